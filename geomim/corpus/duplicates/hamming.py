"""All pairs of 64-bit hashes within a Hamming distance: complete, not approximate.

Multi-index hashing (Norouzi, Punjani and Fleet, "Fast Search in Hamming Space with Multi-Index Hashing", CVPR 2012):
cut the bits into bands and give each a radius, such that the radii and the number of bands add up to more than the
radius sought. Then two hashes within that radius lie within the radius of at least one band (pigeonhole), and it is
enough to compare the hashes whose keys in a band differ in so few bits. Both sides are sorted by key, and the keys are
walked in blocks, one block of partners a mask, so that memory is read in order and hardly a probe is random.

`cross_pairs` does all of it at once. For tasks that share the work, `choose_bands`, `index_band` (plain arrays, to be
stored and mapped) and `search_band` do it in pieces: every pair is found in exactly one band and one piece.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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


def search_band(
    bands: Sequence[Band],
    which: int,
    index: BandIndex,
    queries: np.ndarray,
    limit: int = MAX_PAIRS,
    most: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a query and a hash that are near in this band and in none before it.

    Args:
        bands: All bands of the join.
        which: Number of the band.
        index: Of the hashes in that band.
        queries: `(q,)` uint64, any slice of all queries.
        limit: Pairs beyond which the search gives up.
        most: Pairs of a query beyond which they are not sought on: it gets a single one, with place -1.

    Returns:
        Pairs `(m, 2)` int64, the place in `queries` and the place of the hash, sorted, and their distances
        `(m,)` uint8.

    Raises:
        CorpusError: There are more pairs than `limit`; nothing is cut off silently.
    """
    queries = np.ascontiguousarray(queries, np.uint64)
    key = keys_of(queries, np.array(bands[which].bits, np.uint64))
    order = np.argsort(key, kind="stable")
    sorted_ = queries[order]
    keys, starts = np.unique(key[order], return_index=True)
    keys, starts = keys.astype(np.int64), np.append(starts, len(order))
    radius = sum(band.radius + 1 for band in bands) - 1
    earlier = np.array([band.mask for band in bands[:which]], np.uint64)
    radii = np.array([band.radius for band in bands[:which]], np.int64)
    masks, stop = bands[which].masks(), limit if most is None else most

    def search(first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        begins = starts[first : end + 1]
        tally = np.empty(begins[-1] - begins[0], np.int64)
        sides = (sorted_, order, keys[first:end], begins, index.hashes, index.order, index.starts)
        room = 1 << 14
        while True:
            pairs, distances = np.empty((room, 2), np.int64), np.empty(room, np.uint8)
            found = scan(*sides, masks, earlier, radii, radius, stop, limit, pairs, distances, tally)
            if found > limit:
                raise _too_many(limit, radius)
            if found <= room:
                break
            room = found  # the second time all fit
        pairs, distances = pairs[:found], distances[:found]
        if most is None:
            return pairs.copy(), distances.copy()
        return _told(pairs, distances, order[begins[0] : begins[-1]][tally > most])

    edges = np.append(np.searchsorted(starts[:-1], np.arange(0, len(order), _PIECE)), len(keys))
    found = [search(int(first), int(end)) for first, end in pairwise(edges) if first < end]
    if sum(len(pairs) for pairs, _ in found) > limit:
        raise _too_many(limit, radius)
    return _joined(found)


def cross_pairs(
    queries: np.ndarray, hashes: np.ndarray, radius: int, limit: int = MAX_PAIRS
) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of a query and a hash within a Hamming distance.

    Args:
        queries: `(q,)` uint64.
        hashes: `(n,)` uint64; repeated ones on either side cost a pair each.
        radius: Largest distance, 0..12 bits.
        limit: Pairs beyond which the join gives up.

    Returns:
        Pairs `(m, 2)` int64 of places (query, hash), sorted, and their distances `(m,)` uint8.

    Raises:
        CorpusError: The radius is out of range, or there are more pairs than `limit`.
    """
    bands = choose_bands(max(len(queries), len(hashes)), radius)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for which, band in enumerate(bands):
        left = limit - sum(len(pairs) for pairs, _ in found)
        found.append(search_band(bands, which, index_band(hashes, band), queries, left))
    return _joined(found)


def _joined(found: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    if not found:
        return np.empty((0, 2), np.int64), np.empty(0, np.uint8)
    pairs = np.concatenate([pairs for pairs, _ in found])
    distances = np.concatenate([distances for _, distances in found])
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return pairs[order], distances[order]


def _told(pairs: np.ndarray, distances: np.ndarray, full: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs but those of full queries, which get one without a partner."""
    kept = ~np.isin(pairs[:, 0], full)
    alone = np.stack([full, np.full(len(full), -1)], 1).astype(np.int64)
    return np.concatenate([pairs[kept], alone]), np.append(distances[kept], np.full(len(full), 255, np.uint8))


def _too_many(limit: int, radius: int) -> CorpusError:
    return CorpusError(
        f"more than {limit:,} pairs of hashes lie within {radius} bits: the images are nearly all alike; leave some of "
        "them out, or search within fewer bits where --radius says how many"
    )
