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

import numba
import numpy as np
from numba.extending import intrinsic

from geomim.errors import CorpusError

MAX_RADIUS = 12
"""Beyond this, bands get so short that the join compares nearly all pairs."""
MAX_PAIRS = 200_000_000
"""Pairs that a join may return, 3.4 GB."""
_WIDEST = 28  # bits of a key: the index has a place for each of its values
_BLOCK = 1024  # keys that are walked at once: with their hashes they fit into the nearest caches
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


def choose_bands(count: int, radius: int) -> tuple[Band, ...]:
    """The bands that should take the least time.

    The estimate assumes even bits: 0.6 ns a comparison, 4 ns to bring a hash to the hashes of a near key, 30 ns to
    sort one.

    Args:
        count: Number of hashes, of the larger side.
        radius: Largest distance, 0..12 bits.

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
        widths = [_width(count, len(range(number, 64, bands)), radii[number]) for number in range(bands)]
        cost = sum(_seconds(count, width, near) for width, near in zip(widths, radii, strict=True))
        if cost < least:
            spread = [tuple(range(number, 64, bands)[:width]) for number, width in enumerate(widths)]
            best, least = tuple(Band(bits, near) for bits, near in zip(spread, radii, strict=True)), cost
    return best


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
    _sort(hashes, np.array(band.bits, np.uint64), order, starts, sorted_)
    return BandIndex(order, starts, sorted_)


@numba.njit(cache=True, nogil=True)
def _key(hash_, bits):  # pragma: no cover - compiled
    key = np.uint64(0)
    for place in range(len(bits)):
        key |= ((hash_ >> bits[place]) & np.uint64(1)) << np.uint64(place)
    return np.int64(key)


@numba.njit(cache=True, nogil=True)
def _sort(hashes, bits, order, starts, sorted_):  # pragma: no cover - compiled
    """Counting sort; while hashes are placed, `starts[key]` is the end of what is placed, shifted by one key."""
    for n in range(len(hashes)):
        starts[_key(hashes[n], bits) + 1] += 1
    total = 0
    for key in range(len(starts) - 1):
        count = starts[key + 1]
        starts[key + 1] = total
        total += count
    for n in range(len(hashes)):
        key = _key(hashes[n], bits) + 1
        order[starts[key]] = n
        sorted_[starts[key]] = hashes[n]
        starts[key] += 1


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
    return _run(bands, which, index, index, True, (part, parts), limit, threads)


def search_band(
    bands: Sequence[Band],
    which: int,
    index: BandIndex,
    queries: np.ndarray,
    limit: int = MAX_PAIRS,
    threads: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a query and a hash that are near in this band and in none before it.

    Args:
        bands: All bands of the join.
        which: Number of the band.
        index: Of the hashes in that band.
        queries: `(q,)` uint64, any slice of all queries.
        limit: Pairs beyond which the search gives up.
        threads: How many work at once; they do not change the outcome.

    Returns:
        Pairs `(m, 2)` int64, the place in `queries` and the place of the hash, sorted, and their distances
        `(m,)` uint8.

    Raises:
        CorpusError: There are more pairs than `limit`; nothing is cut off silently.
    """
    return _run(bands, which, index_band(queries, bands[which]), index, False, (0, 1), limit, threads)


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


def _run(
    bands: Sequence[Band],
    which: int,
    left: BandIndex,
    right: BandIndex,
    within: bool,
    piece: tuple[int, int],
    limit: int,
    threads: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Share a piece of the keys among threads, in more runs than threads."""
    part, parts = piece
    runs = 32 * threads if threads > 1 else 1
    keys = np.flatnonzero(left.starts[1:] != left.starts[:-1])
    edges = _cut(left.starts[keys], len(left.order), parts * runs)[part * runs : (part + 1) * runs + 1]
    radius = sum(band.radius + 1 for band in bands) - 1
    earlier = np.array([band.mask for band in bands[:which]], np.uint64)
    radii = np.array([band.radius for band in bands[:which]], np.int64)
    masks = bands[which].masks()
    sides = (left.hashes, left.order, left.starts, right.hashes, right.order, right.starts)

    def work(first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        room = 1 << 14
        while True:
            pairs, distances = np.empty((room, 2), np.int64), np.empty(room, np.uint8)
            found = _scan(*sides, keys[first:end], masks, earlier, radii, within, radius, limit, pairs, distances)
            if found > limit:
                raise CorpusError(_too_many(limit, radius))
            if found <= room:
                return pairs[:found].copy(), distances[:found].copy()
            room = found  # the second time all fit

    spans = [(int(first), int(end)) for first, end in pairwise(edges) if first < end]
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(lambda span: work(*span), spans))
    else:
        found = [work(*span) for span in spans]
    total = sum(len(pairs) for pairs, _ in found)
    if total > limit:
        raise CorpusError(_too_many(limit, radius))
    return _joined(found)


def _too_many(limit: int, radius: int) -> str:
    return (
        f"more than {limit:,} pairs of hashes lie within {radius} bits: the tiles are nearly all alike; lower the "
        "radius of near duplicates, or leave out the sources of little information"
    )


def _cut(starts: np.ndarray, count: int, parts: int) -> np.ndarray:
    """Places that cut a list of keys, whose hashes start at `starts`, into parts with about equally many hashes."""
    inner = np.searchsorted(starts, np.arange(1, parts) * (count / parts)) if parts > 1 else []
    return np.concatenate([[0], inner, [len(starts)]]).astype(np.int64)


@intrinsic
def _ones(_context, number):
    """Number of ones in a uint64, one instruction."""

    def code(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return numba.types.uint64(numba.types.uint64), code


@numba.njit(cache=True, nogil=True)
def _scan(
    hashes, places, starts, others, other_places, other_starts, keys, masks, earlier, radii, within, radius, limit,
    pairs, distances,
):  # pragma: no cover - compiled  # fmt: skip
    """Pairs of some keys with all near keys; counts on where `pairs` is full, up to `limit`."""
    found = 0
    for block in range(0, len(keys), _BLOCK):
        for mask in masks:
            for key in keys[block : block + _BLOCK]:
                other = key ^ mask
                if within and other < key:
                    continue  # found from the other key's side
                begin, stop = other_starts[other], other_starts[other + 1]
                for a in range(starts[key], starts[key + 1]):
                    if within and mask == 0:
                        begin = a + 1
                    hash_ = hashes[a]
                    if not _any_near(hash_, others, begin, stop, radius):
                        continue
                    for b in range(begin, stop):
                        if _ones(hash_ ^ others[b]) > radius or _seen(hash_ ^ others[b], earlier, radii):
                            continue
                        if found < len(pairs):
                            one, two = np.int64(places[a]), np.int64(other_places[b])
                            if within and one > two:
                                one, two = two, one
                            pairs[found, 0], pairs[found, 1] = one, two
                            distances[found] = _ones(hash_ ^ others[b])
                        found += 1
                        if found > limit:
                            return found
    return found


@numba.njit(cache=True, nogil=True)
def _any_near(hash_, others, begin, stop, radius):  # pragma: no cover - compiled
    """Without a branch inside, so that several are compared at once."""
    near = 0
    for b in range(begin, stop):
        near += _ones(hash_ ^ others[b]) <= radius
    return near > 0


@numba.njit(cache=True, nogil=True)
def _seen(difference, earlier, radii):  # pragma: no cover - compiled
    """Whether an earlier band finds the pair."""
    for band in range(len(earlier)):
        if _ones(difference & earlier[band]) <= radii[band]:
            return True
    return False
