"""All pairs of 64-bit hashes within a Hamming distance: complete, not approximate.

Multi-index hashing (Norouzi, Punjani and Fleet, "Fast Search in Hamming Space with Multi-Index Hashing", CVPR 2012):
cut the bits into bands and give each a radius, such that the radii and the number of bands add up to more than the
radius sought. Then two hashes within that radius lie within the radius of at least one band (pigeonhole), and it is
enough to compare the hashes whose keys in a band differ in so few bits. Both sides are sorted by key, and the keys are
walked in blocks, one block of partners a mask, so that memory is read in order and hardly a probe is random.

`near_pairs` and `cross_pairs` do all of it at once. For tasks that share the work, `choose_bands`, `index_band` (plain
arrays, to be stored and mapped), and `join_band` or `search_band` do it in pieces: every pair is found in exactly one
band and one piece.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np

from geomim.corpus.duplicates.bandscan import keys_of, scan, sort
from geomim.errors import CorpusError

MAX_RADIUS = 12
"""Beyond this, bands get so short that the join compares nearly all pairs."""
MAX_PAIRS = 200_000_000
"""Pairs that a join may return, 3.4 GB."""
_WIDEST = 28  # bits of a key: the index has a place for each of its values
_PIECE = 500_000  # hashes that are searched at once, so that memory for what they find stays small
_COMPARE, _PROBE, _SORT, _KEY = 0.6e-9, 4e-9, 30e-9, 2e-9  # seconds, measured on one core


@dataclass(frozen=True)
class Band:
    """Some bits of the hash, and how many of them may differ.

    Attributes:
        bits: Places of the bits, lowest first; none: all hashes have the same key, and all pairs are compared.
        radius: Number of bits of the key that may differ.
    """

    bits: tuple[int, ...]
    radius: int

    @property
    def mask(self) -> int:
        """The bits as a number."""
        return sum(1 << bit for bit in self.bits)

    def masks(self) -> np.ndarray:
        """All differences of two keys that count as near, `(k,)` int64, 0 first."""
        width = len(self.bits)
        flips = [bits for count in range(min(self.radius, width) + 1) for bits in combinations(range(width), count)]
        return np.array([sum(1 << bit for bit in bits) for bits in flips], np.int64)


@dataclass(frozen=True)
class BandIndex:
    """Hashes sorted by their key in one band: three plain arrays.

    Attributes:
        order: `(n,)` uint32 or int64, the place of each hash before sorting; rising where keys are equal.
        starts: `(2**bits + 1,)` of the same type: where the hashes of each key begin.
        hashes: `(n,)` uint64, sorted.
    """

    order: np.ndarray
    starts: np.ndarray
    hashes: np.ndarray


def choose_bands(count: int, radius: int, bits: Sequence[int] = range(64)) -> tuple[Band, ...]:
    """The bands that should take the least time.

    The estimate assumes even bits: 0.6 ns a comparison, 4 ns to bring a hash to the hashes of a near key, 30 ns to
    sort one.

    Args:
        count: Number of hashes, of the larger side.
        radius: Largest distance, 0..12 bits.
        bits: Places that may make keys: those where hashes differ at all.

    Returns:
        Bands that complete each other; a single one without bits where comparing all pairs is cheapest.

    Raises:
        CorpusError: The radius is out of range.
    """
    if not 0 <= radius <= MAX_RADIUS:
        raise CorpusError(f"the radius of near duplicates must lie in 0..{MAX_RADIUS} bits, given {radius}")
    best, least = (Band((), radius),), _COMPARE * count**2 / 2
    for bands in range(1, radius + 2):
        share, more = divmod(radius + 1, bands)  # a band of radius r uses up r + 1 of radius + 1
        radii = [share - 1 + (number < more) for number in range(bands)]
        widths = [_width(count, len(bits[number::bands]), radii[number]) for number in range(bands)]
        cost = sum(_seconds(count, width, near) for width, near in zip(widths, radii, strict=True))
        if cost < least:
            spread = [tuple(bits[number::bands][:width]) for number, width in enumerate(widths)]
            best, least = tuple(Band(key, near) for key, near in zip(spread, radii, strict=True)), cost
    return best


def narrow(bands: Sequence[Band], radius: int) -> tuple[Band, ...]:
    """The same keys for a smaller radius, so that an index serves both; bands that it does not need are left out.

    Args:
        bands: From `choose_bands`.
        radius: At most the one they were chosen for; none are needed below 0.
    """
    share, more = divmod(max(radius, -1) + 1, len(bands))
    radii = [share - 1 + (number < more) for number in range(len(bands))]
    return tuple(Band(band.bits, near) for band, near in zip(bands, radii, strict=True) if near >= 0)


def _width(count: int, most: int, radius: int) -> int:
    """How many of a band's bits make its key; those left out only cost comparisons."""
    return min(range(1, min(most, _WIDEST) + 1), key=lambda width: _seconds(count, width, radius))


def _seconds(count: int, width: int, radius: int) -> float:
    keys = 2.0**width
    masks = sum(math.comb(width, flips) for flips in range(radius + 1))
    compared = count**2 / 2 * min(masks / keys, 1)
    return _SORT * count + _KEY * keys + _PROBE * count * masks / 2 + _COMPARE * compared


def index_band(hashes: np.ndarray, band: Band) -> BandIndex:
    """Sort hashes by their key in a band.

    Args:
        hashes: `(n,)` uint64.
        band: One of `choose_bands`.
    """
    hashes = np.ascontiguousarray(hashes, np.uint64)
    number = np.uint32 if len(hashes) < 2**32 else np.int64
    order, sorted_ = np.empty(len(hashes), number), np.empty(len(hashes), np.uint64)
    starts = np.zeros((1 << len(band.bits)) + 1, number)
    sort(hashes, np.array(band.bits, np.uint64), order, starts, sorted_)
    return BandIndex(order, starts, sorted_)


def join_band(
    bands: Sequence[Band],
    which: int,
    index: BandIndex,
    part: int = 0,
    parts: int = 1,
    limit: int = MAX_PAIRS,
    threads: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs within one set of hashes that are near in this band and in none before it.

    Args:
        bands: All bands of the join.
        which: Number of the band.
        index: Of the hashes in that band. Equal hashes pair up quadratically: take `np.unique` first.
        part: Number of the piece.
        parts: Into how many pieces of about equal work this band is cut.
        limit: Pairs beyond which the join gives up.
        threads: How many work at once; they do not change the outcome.

    Returns:
        Pairs `(m, 2)` int64 of places `i < j`, sorted, and their distances `(m,)` uint8.

    Raises:
        CorpusError: There are more pairs than `limit`; nothing is cut off silently.
    """
    keys = np.flatnonzero(index.starts[1:] != index.starts[:-1])
    begins = np.append(index.starts[keys], np.array([len(index.order)], index.starts.dtype))
    return _run(bands, which, _Side(index.hashes, index.order, keys, begins), index, (part, parts), limit, threads)


def search_band(
    bands: Sequence[Band],
    which: int,
    index: BandIndex,
    queries: np.ndarray,
    limit: int = MAX_PAIRS,
    threads: int = 1,
    most: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a query and a hash that are near in this band and in none before it.

    Args:
        bands: All bands of the join.
        which: Number of the band.
        index: Of the hashes in that band.
        queries: `(q,)` uint64, any slice of all queries.
        limit: Pairs beyond which the search gives up.
        threads: How many work at once; they do not change the outcome.
        most: Pairs of a query beyond which they are not sought on: it gets a single one, with place -1.

    Returns:
        Pairs `(m, 2)` int64, the place in `queries` and the place of the hash, sorted, and their distances
        `(m,)` uint8.

    Raises:
        CorpusError: There are more pairs than `limit`; nothing is cut off silently.
    """
    return _run(bands, which, _by_key(queries, bands[which]), index, None, limit, threads, most)


def near_pairs(
    hashes: np.ndarray, radius: int, limit: int = MAX_PAIRS, threads: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of different hashes within a Hamming distance.

    Args:
        hashes: `(n,)` uint64, all different (`np.unique` first: equal hashes would pair up quadratically).
        radius: Largest distance, 0..12 bits.
        limit: Pairs beyond which the join gives up.
        threads: How many work at once; they do not change the outcome.

    Returns:
        Pairs `(m, 2)` int64 of places with `i < j`, sorted, and their distances `(m,)` uint8.

    Raises:
        CorpusError: The radius is out of range, or there are more pairs than `limit`.
    """
    bands = choose_bands(len(hashes), radius)
    return _all_bands(
        bands, limit, lambda which, left: join_band(bands, which, index_band(hashes, bands[which]), 0, 1, left, threads)
    )


def cross_pairs(
    queries: np.ndarray, hashes: np.ndarray, radius: int, limit: int = MAX_PAIRS, threads: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of a query and a hash within a Hamming distance.

    Args:
        queries: `(q,)` uint64.
        hashes: `(n,)` uint64; repeated ones on either side cost a pair each.
        radius: Largest distance, 0..12 bits.
        limit: Pairs beyond which the join gives up.
        threads: How many work at once; they do not change the outcome.

    Returns:
        Pairs `(m, 2)` int64 of places (query, hash), sorted, and their distances `(m,)` uint8.

    Raises:
        CorpusError: The radius is out of range, or there are more pairs than `limit`.
    """
    bands = choose_bands(max(len(queries), len(hashes)), radius)

    def search(which: int, left: int) -> tuple[np.ndarray, np.ndarray]:
        return search_band(bands, which, index_band(hashes, bands[which]), queries, left, threads)

    return _all_bands(bands, limit, search)


def _all_bands(
    bands: Sequence[Band], limit: int, search: Callable[[int, int], tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for which in range(len(bands)):
        found.append(search(which, limit - sum(len(pairs) for pairs, _ in found)))
    return _joined(found)


def _joined(found: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    if not found:
        return np.empty((0, 2), np.int64), np.empty(0, np.uint8)
    pairs = np.concatenate([pairs for pairs, _ in found])
    distances = np.concatenate([distances for _, distances in found])
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return pairs[order], distances[order]


@dataclass(frozen=True)
class _Side:
    """Hashes sorted by key, and where those of each key that occurs begin: small where few of all keys do."""

    hashes: np.ndarray
    order: np.ndarray
    keys: np.ndarray
    begins: np.ndarray


def _by_key(hashes: np.ndarray, band: Band) -> _Side:
    hashes = np.ascontiguousarray(hashes, np.uint64)
    key = keys_of(hashes, np.array(band.bits, np.uint64))
    order = np.argsort(key, kind="stable")
    key = key[order]
    first = np.flatnonzero(np.append(True, key[1:] != key[:-1])) if len(key) else np.empty(0, np.int64)
    return _Side(hashes[order], order, key[first].astype(np.int64), np.append(first, len(key)))


def _run(
    bands: Sequence[Band],
    which: int,
    left: _Side,
    right: BandIndex,
    piece: tuple[int, int] | None,
    limit: int,
    threads: int,
    most: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Share the keys among threads, in more runs than threads; or a piece of them, with each pair once."""
    part, parts = piece or (0, 1)
    runs = max(32 * threads if threads > 1 else 1, -(-len(left.order) // (parts * _PIECE)))
    edges = _cut(left.begins[:-1], len(left.order), parts * runs)[part * runs : (part + 1) * runs + 1]
    radius = sum(band.radius + 1 for band in bands) - 1
    earlier = np.array([band.mask for band in bands[:which]], np.uint64)
    radii = np.array([band.radius for band in bands[:which]], np.int64)
    masks, stop = bands[which].masks(), limit if most is None else most

    def work(first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        begins = left.begins[first : end + 1].astype(np.int64)
        tally = np.empty(begins[-1] - begins[0], np.int64)
        sides = (left.hashes, left.order, left.keys[first:end], begins, right.hashes, right.order, right.starts)
        room = 1 << 14
        while True:
            pairs, distances = np.empty((room, 2), np.int64), np.empty(room, np.uint8)
            rest = (masks, earlier, radii, piece is not None, radius, stop, limit, pairs, distances, tally)
            found = scan(*sides, *rest)
            if found > limit:
                raise CorpusError(_too_many(limit, radius))
            if found <= room:
                break
            room = found  # the second time all fit
        pairs, distances = pairs[:found], distances[:found]
        if most is None:
            return pairs.copy(), distances.copy()
        return _told(pairs, distances, left.order[begins[0] : begins[-1]][tally > most])

    spans = [(int(first), int(end)) for first, end in pairwise(edges) if first < end]
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(lambda span: work(*span), spans))
    else:
        found = [work(*span) for span in spans]
    if sum(len(pairs) for pairs, _ in found) > limit:
        raise CorpusError(_too_many(limit, radius))
    return _joined(found)


def _told(pairs: np.ndarray, distances: np.ndarray, full: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs but those of full queries, which get one without a partner."""
    kept = ~np.isin(pairs[:, 0], full)
    alone = np.stack([full, np.full(len(full), -1)], 1).astype(np.int64)
    return np.concatenate([pairs[kept], alone]), np.append(distances[kept], np.full(len(full), 255, np.uint8))


def _too_many(limit: int, radius: int) -> str:
    return (
        f"more than {limit:,} pairs of hashes lie within {radius} bits: the images are nearly all alike; search within "
        "fewer bits (--near of a build, --radius elsewhere)"
    )


def _cut(starts: np.ndarray, count: int, parts: int) -> np.ndarray:
    """Places that cut a list of keys, whose hashes start at `starts`, into parts with about equally many hashes."""
    inner = np.searchsorted(starts, np.arange(1, parts) * (count / parts)) if parts > 1 else []
    return np.concatenate([[0], inner, [len(starts)]]).astype(np.int64)
