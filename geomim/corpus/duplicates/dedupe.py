"""Copies and near-copies among tiles, and which one of them stays.

Near-copies are joined on their perceptual hashes by banding: two 64-bit hashes that differ in at most `r` bits agree
on at least one of `r + 1` bands, so comparing only tiles that share a band finds every pair (Norouzi et al.,
"Fast Search in Hamming Space with Multi-Index Hashing", CVPR 2012).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numba
import numpy as np

from geomim.errors import CorpusError

MAX_RADIUS = 4
"""Beyond this, bands get so short that the join compares nearly all pairs."""
MAX_PAIRS = 200_000_000
"""Pairs of different hashes that the join may return, 3.4 GB."""
MIN_CORRELATION = 0.9
"""Normalised cross-correlation of block means from which a candidate pair is taken for a near-copy."""


def near_pairs(hashes: np.ndarray, radius: int, limit: int = MAX_PAIRS) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of different hashes within a Hamming distance: complete, not approximate.

    Args:
        hashes: `(n,)` uint64, all different (`np.unique` first: equal hashes would pair up quadratically).
        radius: Largest distance, 0..4 bits.
        limit: Pairs beyond which the join gives up.

    Returns:
        Pairs `(m, 2)` int64 of places with `i < j`, sorted, and their distances `(m,)` uint8.

    Raises:
        CorpusError: The radius is out of range, or there are more pairs than `limit`; nothing is cut off silently.
    """
    if not 0 <= radius <= MAX_RADIUS:
        raise CorpusError(f"the radius of near duplicates must lie in 0..{MAX_RADIUS} bits, given {radius}")
    keys = _bands(np.ascontiguousarray(hashes, np.uint64), radius + 1)
    orders = np.stack([np.argsort(key, kind="stable") for key in keys])
    empty_pairs, empty_distances = np.empty((0, 2), np.int64), np.empty(0, np.uint8)
    count = _join(hashes, keys, orders, radius, empty_pairs, empty_distances)
    if count > limit:
        raise CorpusError(
            f"{count:,} pairs of tiles lie within {radius} bits, more than {limit:,}: the tiles are nearly all alike; "
            "lower --near, or leave out the sources of little information"
        )
    pairs, distances = np.empty((count, 2), np.int64), np.empty(count, np.uint8)
    _join(hashes, keys, orders, radius, pairs, distances)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return pairs[order], distances[order]


@numba.njit(cache=True)
def _bands(hashes, count):  # pragma: no cover - compiled
    """Every `count`-th bit makes a band: neighbouring bits of a perceptual hash are correlated, so they are spread."""
    keys = np.zeros((count, len(hashes)), np.uint64)
    for band in range(count):
        for n in range(len(hashes)):
            key, place = np.uint64(0), 0
            for bit in range(band, 64, count):
                key |= ((hashes[n] >> np.uint64(bit)) & np.uint64(1)) << np.uint64(place)
                place += 1
            keys[band, n] = key
    return keys


@numba.njit(cache=True)
def _distance(one, two):  # pragma: no cover - compiled
    x = one ^ two
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (x * np.uint64(0x0101010101010101)) >> np.uint64(56)


@numba.njit(cache=True)
def _join(hashes, keys, orders, radius, pairs, distances):  # pragma: no cover - compiled
    """Count the pairs; also write them where there is room. A pair counts in the first band on which it agrees."""
    total = 0
    for band in range(keys.shape[0]):
        order = orders[band]
        start = 0
        while start < len(order):
            end = start + 1
            while end < len(order) and keys[band, order[end]] == keys[band, order[start]]:
                end += 1
            for a in range(start, end):
                for b in range(a + 1, end):
                    i, j = order[a], order[b]
                    distance = _distance(hashes[i], hashes[j])
                    if distance > radius:
                        continue
                    first = True
                    for earlier in range(band):
                        if keys[earlier, i] == keys[earlier, j]:
                            first = False
                            break
                    if not first:
                        continue
                    if total < len(pairs):
                        pairs[total, 0], pairs[total, 1] = i, j  # a stable sort leaves i < j
                        distances[total] = distance
                    total += 1
            start = end
    return total


@dataclass(frozen=True)
class Keepers:
    """Who stands for whom.

    Attributes:
        keeper: `(n,)` int64: the kept tile that stands for each tile; the tile itself where it is kept.
        distance: `(n,)` int64: Hamming distance to it.
    """

    keeper: np.ndarray
    distance: np.ndarray


def keep_first(keys: np.ndarray, order: np.ndarray, protected: np.ndarray) -> np.ndarray:
    """Among tiles with equal keys keep the first.

    Args:
        keys: `(n,)` content hashes.
        order: `(n,)` places, the one to prefer first.
        protected: `(n,)` bool, tiles that are kept in any case.

    Returns:
        `(n,)` int64, the keeper of each tile.
    """
    _, group = np.unique(keys, return_inverse=True)
    keeper = np.arange(len(keys))
    ordered = group[order]
    _, at, inverse = np.unique(ordered, return_index=True, return_inverse=True)
    keeper[order] = order[at[inverse]]
    keeper[protected] = np.flatnonzero(protected)
    return keeper


def keep_one(
    hashes: np.ndarray,
    order: np.ndarray,
    radius: int,
    protected: np.ndarray,
    similar: Callable[[int, np.ndarray], np.ndarray] | None = None,
) -> Keepers:
    """Greedily keep tiles so that every dropped one lies near a kept one.

    Unlike connected components this never chains: a tile is dropped only for a kept tile within `radius` of itself.

    Args:
        hashes: `(n,)` uint64.
        order: `(n,)` places, the one to prefer first; decides alone who is kept, so the outcome is deterministic.
        radius: Largest Hamming distance, 0..4.
        protected: `(n,)` bool, tiles that are never dropped.
        similar: Verifies candidates: `(place, kept places) -> (k,) bool`; all candidates count where None.

    Raises:
        CorpusError: As `near_pairs`.
    """
    unique, group, members = np.unique(hashes, return_inverse=True, return_counts=True)
    pairs, distances = near_pairs(unique, radius)
    neighbours: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for (i, j), distance in zip(pairs.tolist(), distances.tolist(), strict=True):
        neighbours[i].append((j, distance))
        neighbours[j].append((i, distance))
    crowded = members > 1
    crowded[pairs.ravel()] = True
    keeper, apart = np.arange(len(hashes)), np.zeros(len(hashes), np.int64)
    kept: dict[int, list[int]] = defaultdict(list)
    for tile in order[crowded[group[order]]].tolist():
        own = int(group[tile])
        if not protected[tile]:
            near = [(distance, other) for g, distance in [(own, 0), *neighbours[own]] for other in kept[g]]
            near.sort()
            places = np.array([other for _, other in near], np.int64)
            if len(places):
                agree = np.ones(len(places), bool) if similar is None else similar(tile, places)
                if agree.any():
                    first = int(np.argmax(agree))
                    keeper[tile], apart[tile] = places[first], near[first][0]
                    continue
        kept[own].append(tile)
    return Keepers(keeper, apart)


def correlation_at_least(signatures: np.ndarray, threshold: float = MIN_CORRELATION):
    """A verifier for `keep_one`: block means must correlate.

    Args:
        signatures: `(n, 1024)` float16 from `fingerprint.signature`; may be a memory map.
        threshold: Least normalised cross-correlation, -1..1.

    Returns:
        `(place, kept places) -> (k,) bool`.
    """

    def similar(tile: int, others: np.ndarray) -> np.ndarray:
        one = signatures[tile].astype(np.float32)
        return signatures[others].astype(np.float32) @ one >= threshold

    return similar
