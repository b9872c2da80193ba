"""What an encoder's vectors say of tiles: which show the same thing again, and which choice of them is diverse.

Vectors are compared by their cosine. They may be mapped from disk: blocks of them, a sample for k-means and a few
numbers a vector are all that is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from geomim.errors import CorpusError, InputError

MAX_PAIRS = 50_000_000
"""Pairs that a search may return."""
_BLOCK = 1024  # vectors compared with as many others at once
_SCORES = 2**22  # scores of vectors against centres held at once
_SAMPLE_PER_CENTRE = 32  # vectors of each cluster that k-means sees
_SAMPLE_BYTES = 256 * 2**20


class Subset:
    """Some rows of an array that may be mapped from disk, read when they are asked for.

    Args:
        array: `(n, d)`.
        rows: `(m,)` places in it.
    """

    def __init__(self, array: np.ndarray, rows: np.ndarray) -> None:
        self._array, self._rows = array, rows
        self.shape = (len(rows), array.shape[1])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        return np.asarray(self._array[self._rows[index]])


Vectors = np.ndarray | Subset


def semantic_pairs(
    features: Vectors, threshold: float, clusters: int, seed: int = 0, probes: int = 1, limit: int = MAX_PAIRS
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of vectors with a high cosine, after SemDeDup (Abbas et al., 2023, arXiv 2303.09540).

    k-means first, then all pairs within a cluster. This is not complete: a pair that a border between clusters divides
    is missed. With `probes` above 1 each vector is compared with the clusters next nearest to it, too, which finds most
    of those at as many times the cost; with as many probes as clusters the search is complete.

    Args:
        features: `(n, d)` float32; a zero vector pairs with none.
        threshold: Least cosine, above 0 and at most 1.
        clusters: Of k-means; about the square root of n costs least.
        seed: Of k-means.
        probes: Clusters that each vector is compared with, at least 1.
        limit: Pairs beyond which the search gives up.

    Returns:
        `(m, 2)` int64 places `i < j`, sorted, each once, and their cosines `(m,)` float32.

    Raises:
        CorpusError: There are more pairs than `limit`; nothing is cut off silently.
        InputError: The threshold is out of range, or a vector is not finite.
    """
    if not 0 < threshold <= 1 or probes < 1:
        raise InputError(f"a cosine lies in 0..1 and a vector has a cluster; given {threshold} and {probes} probes")
    near = _nearest(features, _centres(features, clusters, seed), probes)
    keys, cosines, found = [np.empty(0, np.int64)], [np.empty(0, np.float32)], 0
    for members, visitors in zip(_grouped(near[:, :1], clusters), _grouped(near[:, 1:], clusters), strict=True):
        for first, second, cosine in _alike(features, members, visitors, threshold):
            found += len(first)
            if found > limit:
                raise CorpusError(
                    f"more than {limit:,} pairs of tiles have a cosine of {threshold:g} or more: raise the threshold"
                )
            keys.append(np.minimum(first, second) * len(features) + np.maximum(first, second))
            cosines.append(cosine)
    key, place = np.unique(np.concatenate(keys), return_index=True)
    return np.stack(np.divmod(key, max(len(features), 1)), 1), np.concatenate(cosines)[place]


def _alike(
    features: Vectors, members: np.ndarray, visitors: np.ndarray, threshold: float
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs among `members`, and of visitors with members: a block of vectors against a block at a time."""
    asking = np.concatenate([members, visitors])
    for start in range(0, len(asking), _BLOCK):
        rows = asking[start : start + _BLOCK]
        vectors = _unit(features[rows])
        for other in range(start if start < len(members) else 0, len(members), _BLOCK):
            columns = members[other : other + _BLOCK]
            cosine = vectors @ _unit(features[columns]).T
            row, column = np.divmod(np.flatnonzero(cosine >= threshold), len(columns))
            once = (start + row >= len(members)) | (start + row < other + column)
            row, column = row[once], column[once]
            yield rows[row], columns[column], cosine[row, column]


def balance(features: Vectors, count: int, levels: Sequence[int], seed: int = 0) -> np.ndarray:
    """Choose vectors so that all kinds count alike, however common they are.

    Hierarchical k-means and balanced sampling (Vo et al., 2024, arXiv 2405.15613): the vectors are clustered, the
    centres clustered again, and so on. From the top, the number to choose is shared out equally among the clusters of
    a level (those with fewer vectors give all they have), and in the finest ones it is drawn by chance. The paper's
    resampling of the centres is left out.

    Args:
        features: `(n, d)` float32.
        count: Vectors to choose, 0 to n.
        levels: Numbers of clusters, the finest level first; none for a plain draw.
        seed: Of k-means and of the draw.

    Returns:
        `(n,)` bool, `count` of them True.

    Raises:
        InputError: `count` is out of range, or a vector is not finite.
    """
    if not 0 <= count <= len(features):
        raise InputError(f"{count} of {len(features)} tiles cannot be chosen: give a number up to that")
    points: Vectors = features
    parents: list[np.ndarray] = []
    for level, clusters in enumerate(levels):
        centres = _centres(points, clusters, seed + level)
        parents.append(_nearest(points, centres, 1)[:, 0])
        points = centres
    parents.append(np.zeros(len(points), np.int64))  # one root over all
    sizes = [np.ones(len(features), np.int64)]
    for own, above in pairwise(parents):
        sizes.append(np.bincount(own, sizes[-1], len(above)).astype(np.int64))
    chance, wanted = np.random.default_rng(seed), np.array([count])
    for own, held in zip(reversed(parents), reversed(sizes), strict=True):
        shares = np.zeros(len(own), np.int64)
        for children, number in zip(_grouped(own[:, None], len(wanted)), wanted.tolist(), strict=True):
            shares[children] = _share_out(held[children], number, chance)
        wanted = shares
    return wanted > 0


def _share_out(sizes: np.ndarray, wanted: int, chance: np.random.Generator) -> np.ndarray:
    """Split `wanted` as equally as `sizes (m,)` allow; what is left over goes by chance."""
    ordered = np.sort(sizes)
    used = np.concatenate([[0], np.cumsum(ordered)[:-1]])
    level = (wanted - used) // np.arange(len(sizes), 0, -1)  # each one's share when all smaller ones give all
    short = np.flatnonzero(level < ordered)
    if not len(short):
        return sizes
    shares = np.minimum(sizes, level[short[0]])
    more = np.flatnonzero(sizes > level[short[0]])
    shares[chance.permutation(more)[: wanted - shares.sum()]] += 1
    return shares


def _centres(features: Vectors, clusters: int, seed: int) -> np.ndarray:
    """k-means of the unit vectors on a sample of them: `(clusters, d)` float32, fewer where there are fewer vectors."""
    from sklearn.cluster import MiniBatchKMeans

    count, width = features.shape
    clusters = min(max(clusters, 1), count)
    if clusters < 2:
        return np.zeros((clusters, width), np.float32)
    most = max(_SAMPLE_BYTES // (4 * width), clusters)
    size = min(count, _SAMPLE_PER_CENTRE * clusters, most)
    sample = np.sort(np.random.default_rng(seed).choice(count, size, replace=False))
    # Without early stopping: it would look at a sum whose last digits depend on the number of threads.
    means = MiniBatchKMeans(
        clusters, random_state=seed, n_init=1, max_iter=5, max_no_improvement=None, compute_labels=False
    )
    return means.fit(_unit(features[sample])).cluster_centers_.astype(np.float32)


def _nearest(features: Vectors, centres: np.ndarray, probes: int) -> np.ndarray:
    """The nearest centres of the unit vectors, the nearest first: `(n, probes)` int64."""
    probes, step = min(probes, len(centres)), max(_SCORES // max(len(centres), 1), 1)
    near = np.empty((len(features), probes), np.int64)
    half = (centres**2).sum(1) / 2
    for start in range(0, len(features), step):
        distance = half - _unit(features[start : start + step]) @ centres.T
        few = np.argpartition(distance, probes - 1, axis=1)[:, :probes] if probes > 1 else distance.argmin(1)[:, None]
        order = np.argsort(np.take_along_axis(distance, few, 1), axis=1, kind="stable")
        near[start : start + step] = np.take_along_axis(few, order, 1)
    return near


def _grouped(groups: np.ndarray, count: int) -> list[np.ndarray]:
    """The rows of `groups (n, p)` that name each of `count` groups, in rising order."""
    flat = groups.reshape(-1)
    order = np.argsort(flat, kind="stable")
    bounds = np.searchsorted(flat[order], np.arange(count + 1))
    rows = order // max(groups.shape[1], 1)
    return [rows[low:high] for low, high in pairwise(bounds)]


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors `(n, d)` at unit length, zeros where there is none, float32.

    Raises:
        InputError: One is not finite.
    """
    vectors = np.asarray(vectors, np.float32)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(length).all():
        raise InputError("a tile's embedding is not finite: embed the corpus again with an encoder that is sound")
    return vectors / np.where(length > 0, length, 1)
