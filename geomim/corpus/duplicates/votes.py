"""Which tiles overlap, and how: patches that look alike vote for an orientation and an offset.

All eight orientations of a patch are compared, and only two of them in full. Every hash is stored as its form: flipped
such that its two lowest frequencies, one half wave across and one down, are positive. Patches that look alike mostly
have forms that are near as they are, or with one transposed. Where noise turned the sign of one of the two frequencies,
forms are near after another flip, and one bit of the radius is spent already; where it turned both, two bits. So the
outcome is that of eight searches at the whole radius, for little more than two: the smaller radii cost next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numba
import numpy as np

from geomim.corpus.duplicates.fingerprint import inverse, orientations
from geomim.corpus.duplicates.hamming import Band, BandIndex, choose_bands, index_band, narrow, search_band

RADIUS = 4
"""Bits that two hashes of one patch may differ by."""
CROWD = 50
"""Patches that may look alike before they tell nothing: see `crop_pairs`."""
MIN_VOTES = 2
"""Matches that must agree where tiles are many; a single one is mostly chance, 6,700 times among RSICD's 10,921."""
TOLERANCE = 2
"""Pixels by which offsets may differ and still agree."""
BITS = tuple(bit for bit in range(64) if bit not in (0, 1, 8))
"""Bits in which forms differ: the mean is none, and of the two lowest frequencies the sign is fixed."""
_FIXED = np.uint64(1 << 1 | 1 << 8)
_MOST = 32_000_000
_EVER = 2**62  # pairs: `most` is the limit
_AT_ONCE = 1 << 20
_INVERSE = np.array([inverse(k) for k in range(8)])


@dataclass(frozen=True)
class Blocks:
    """Patches of many tiles, one after the other.

    Attributes:
        tile: `(k,)` int64, the tile of each patch.
        hash: `(k,)` uint64.
        xy: `(k, 2)` int16, its corner.
        shape: `(k, 2)` int32, height and width of its tile.
    """

    tile: np.ndarray
    hash: np.ndarray
    xy: np.ndarray
    shape: np.ndarray

    def __getitem__(self, places: np.ndarray) -> Blocks:
        return Blocks(*(getattr(self, field.name)[places] for field in fields(self)))


@dataclass(frozen=True)
class Crops:
    """Pairs of tiles that may overlap, an entry a pair and orientation.

    Attributes:
        one: `(m,)` int64 tiles.
        two: `(m,)` int64 tiles.
        orientation: `(m,)` int8: how `two` must be turned.
        offset: `(m, 2)` int32, x and y in `one` of the first pixel of `two`, turned.
        votes: `(m,)` int32, matches that agree within `TOLERANCE`.
    """

    one: np.ndarray
    two: np.ndarray
    orientation: np.ndarray
    offset: np.ndarray
    votes: np.ndarray

    def __getitem__(self, places: np.ndarray) -> Crops:
        return Crops(*(getattr(self, field.name)[places] for field in fields(self)))


def crop_pairs(blocks: Blocks, radius: int = RADIUS, min_votes: int = MIN_VOTES, crowd: int = CROWD) -> Crops:
    """Pairs of different tiles whose patches agree on an orientation and an offset: candidates for `blocks.overlap`.

    Sea, lawn and rows of equal roofs give patches by the thousand that look alike, and pairs by the square of it. A
    patch like which more than `crowd` look, itself and all orientations counted, is left out: it would not tell where a
    crop comes from. So no patch takes part in more than `crowd` matches, and memory is bound.

    Args:
        blocks: Patches of all tiles, from `block_hashes`.
        radius: Bits that two hashes of one patch may differ by, 0..12.
        min_votes: Matches that must agree.
        crowd: Patches that may look alike.

    Returns:
        Pairs with `one < two`, sorted by tiles and orientation; one entry each, that of the most votes.

    Raises:
        CorpusError: The radius is out of range.
    """
    groups = _Groups(blocks.hash)
    two, one, turn = groups.alike(groups, radius, crowd)
    told = likes(two, one, groups.starts, len(groups.forms), crowd) <= crowd
    kept = told[two] & (one >= 0) & told[one]
    one, two, pair = member_pairs(one[kept], two[kept], groups.starts)
    one, two, turn = groups.members[one], groups.members[two], turn[kept][pair]
    kept = np.flatnonzero(blocks.tile[one] < blocks.tile[two])  # each pair is found from both sides
    one, two = one[kept], two[kept]
    turn = composed(turn[kept], groups.flips[one], groups.flips[two])
    first, second = blocks[one], blocks[two]
    return vote(first.tile, second.tile, turn, first.xy - turned_xy(second.xy, second.shape, turn), min_votes)


def crop_matches(
    queries: Blocks, blocks: Blocks, radius: int = RADIUS, min_votes: int = MIN_VOTES, crowd: int = CROWD
) -> Crops:
    """The same between two sets of tiles: `one` is a tile of the queries, `two` one of the others.

    Args:
        queries: Patches of one set, or of a part of it.
        blocks: Patches of the other one.
        radius: As in `crop_pairs`, as all that follow.
        min_votes: Matches that must agree.
        crowd: A query like which more patches of the other set look is left out, and then a patch of the other set
            like which more queries look.

    Raises:
        CorpusError: The radius is out of range.
    """
    asked, groups = _Groups(queries.hash), _Groups(blocks.hash)
    one, two, turn = asked.alike(groups, radius, crowd)
    told = likes(one, two, groups.starts, len(asked.forms), crowd) <= crowd
    kept = told[one] & (two >= 0)
    one, two, turn = one[kept], two[kept], turn[kept]
    kept = (likes(two, one, asked.starts, len(groups.forms), crowd) <= crowd)[two]
    one, two, pair = member_pairs(one[kept], two[kept], asked.starts, groups.starts)
    one, two = asked.members[one], groups.members[two]
    turn = _INVERSE[composed(turn[kept][pair], groups.flips[two], asked.flips[one])]
    first, second = queries[one], blocks[two]
    return vote(first.tile, second.tile, turn, first.xy - turned_xy(second.xy, second.shape, turn), min_votes)


def upright(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Forms of hashes, and how each was flipped.

    Args:
        hashes: `(n,)` uint64.

    Returns:
        `(n,)` uint64, bits 1 and 8 of them set, and `(n,)` uint8, 0..3 as in `fingerprint.orient`.
    """
    flips = (~hashes >> np.uint64(1) & np.uint64(1)) | (~hashes >> np.uint64(8) & np.uint64(1)) << np.uint64(1)
    forms = np.empty_like(hashes)
    for low in range(0, len(hashes), _AT_ONCE):
        some = flips[low : low + _AT_ONCE]
        forms[low : low + _AT_ONCE] = orientations(hashes[low : low + _AT_ONCE])[some, np.arange(len(some))]
    return forms, flips.astype(np.uint8)


def choose_form_bands(count: int, radius: int) -> tuple[Band, ...]:
    """`hamming.choose_bands` for forms; of more than 32 million, it would choose fewer and wider bands.

    Its estimate is for joins of all with all. Slices of queries make more probes that miss the caches: of 128 million,
    bands of 21/1, 20/1 and 20/0 bits took 45 microseconds a hash in all orientations, and 27/2 and 27/1 took 152.
    """
    return choose_bands(min(count, _MOST), radius, BITS)


def search_forms(
    forms: np.ndarray, turn: int, bands: Sequence[Band], which: int, index: BandIndex, crowd: int
) -> tuple[np.ndarray, np.ndarray]:
    """Forms that are near in one orientation and band, and in no band before it.

    Args:
        forms: `(q,)` uint64, any slice of all queries.
        turn: 0..7: how the queries are turned.
        bands: From `choose_form_bands`.
        which: Number of the band.
        index: Of the forms to search, in that band.
        crowd: Forms that may look like a query.

    Returns:
        Places `(m,)` of queries and of forms, int64, sorted; a query like which more look has one entry, with place -1.
    """
    near = narrow(bands, sum(band.radius + 1 for band in bands) - 1 - (turn & 3).bit_count())
    if which >= len(near):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    queries = np.empty(len(forms), np.uint64)
    for low in range(0, len(forms), _AT_ONCE):
        queries[low : low + _AT_ONCE] = orientations(forms[low : low + _AT_ONCE])[turn] | _FIXED
    pairs, _ = search_band(near, which, index, queries, _EVER, crowd)
    return pairs[:, 0], pairs[:, 1]


def likes(query: np.ndarray, place: np.ndarray, starts: np.ndarray, count: int, crowd: int) -> np.ndarray:
    """How many patches look like each query; more than `crowd` where a search was given up.

    Args:
        query: `(m,)` of `search_forms`, of all orientations and bands.
        place: `(m,)` likewise.
        starts: `(n + 1,)`: where the patches of each form that was searched begin.
        count: Number of queries.
        crowd: As in the search.
    """
    weight = np.full(len(place), crowd + 1, np.int64)
    some = np.flatnonzero(place >= 0)
    weight[some] = starts[place[some] + 1] - starts[place[some]]
    return np.bincount(query, weight, count)


def member_pairs(
    one: np.ndarray, two: np.ndarray, starts: np.ndarray, others: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of members of pairs of groups.

    Args:
        one: `(m,)` groups.
        two: `(m,)` groups.
        starts: `(n + 1,)`: where the members of each group begin.
        others: The same of the groups of `two`, where they are others.

    Returns:
        Members of either, and the number of the pair of groups that they come from, `(p,)` each.
    """
    others = starts if others is None else others
    here, there = starts[one], others[two]
    width = others[two + 1] - there
    count = (starts[one + 1] - here) * width
    pair = np.repeat(np.arange(len(one)), count)
    place = np.arange(len(pair)) - np.repeat(np.cumsum(count) - count, count)
    first, second = np.divmod(place, width[pair])
    return here[pair] + first, there[pair] + second, pair


def composed(turn: np.ndarray, flip_one: np.ndarray, flip_two: np.ndarray) -> np.ndarray:
    """How a patch must be turned to look like another one, where its form must be turned by `turn`.

    Args:
        turn: `(m,)` 0..7.
        flip_one: `(m,)` 0..3, from hash to form of the patch that is looked like.
        flip_two: `(m,)` 0..3, of the patch that is turned.
    """
    turn, flip_two = turn.astype(np.int64), flip_two.astype(np.int64)
    swapped = (flip_two & 1) << 1 | flip_two >> 1  # a flip before transposing is the other one after it
    return turn ^ np.where(turn & 4, swapped, flip_two) ^ flip_one


def turned_xy(xy: np.ndarray, shape: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    """Where points lie when their tile is turned by `orient`.

    Args:
        xy: `(m, 2)`, x and y.
        shape: `(m, 2)`, height and width of the tile.
        orientation: `(m,)` 0..7.

    Returns:
        `(m, 2)` int32.
    """
    swapped = ((orientation & 4) > 0)[:, None]
    xy = np.where(swapped, xy[:, ::-1], xy).astype(np.int32)
    width_height = np.where(swapped, shape, shape[:, ::-1])
    flipped = np.stack([orientation & 1, orientation & 2], 1) > 0
    return np.where(flipped, width_height - 1 - xy, xy).astype(np.int32)


def vote(one: np.ndarray, two: np.ndarray, orientation: np.ndarray, offset: np.ndarray, min_votes: int) -> Crops:
    """Group matches by tiles and orientation; of each group, the offset that most of them agree on.

    Args:
        one: `(m,)` int64 tiles.
        two: `(m,)` int64 tiles.
        orientation: `(m,)`: how `two` must be turned.
        offset: `(m, 2)` int32, as in `Crops`.
        min_votes: Matches that must agree.
    """
    order = np.lexsort((offset[:, 0], offset[:, 1], orientation, two, one))
    votes = np.zeros(len(order), np.int32)
    found = Crops(one[order], two[order], orientation[order].astype(np.int8), offset[order], votes)
    key = np.stack([found.one, found.two, found.orientation])
    starts = np.flatnonzero(np.r_[True, (key[:, 1:] != key[:, :-1]).any(0)]) if len(order) else np.empty(0, np.int64)
    best = np.zeros(len(starts), np.int64)
    _count(found.offset, np.r_[starts, len(order)], found.votes, best)
    return found[best[found.votes[best] >= min_votes]]


@numba.njit(cache=True, nogil=True)
def _count(offset, starts, votes, best):  # pragma: no cover - compiled
    for group in range(len(starts) - 1):
        best[group] = starts[group]
        for a in range(starts[group], starts[group + 1]):
            for b in range(starts[group], starts[group + 1]):
                near = abs(offset[a, 0] - offset[b, 0]) <= TOLERANCE and abs(offset[a, 1] - offset[b, 1]) <= TOLERANCE
                votes[a] += near
            if votes[a] > votes[best[group]]:
                best[group] = a


class _Groups:
    """Patches grouped by equal forms."""

    def __init__(self, hashes: np.ndarray) -> None:
        forms, self.flips = upright(hashes)
        self.members = np.argsort(forms, kind="stable")
        self.forms, starts = np.unique(forms[self.members], return_index=True)
        self.starts = np.append(starts, len(forms))

    def alike(self, others: _Groups, radius: int, crowd: int) -> tuple[np.ndarray, ...]:
        """Groups of here and of the others that look alike when these are turned, and how: `(m,)` each."""
        bands = choose_form_bands(max(len(self.forms), len(others.forms)), radius)
        indexes = [index_band(others.forms, band) for band in bands]
        found = []
        for turn in range(8):
            for which, index in enumerate(indexes):
                query, place = search_forms(self.forms, turn, bands, which, index, crowd)
                found.append((query, place, np.full(len(query), turn)))
        query, place, turned = (np.concatenate(column) for column in zip(*found, strict=True))
        return query, place, turned
