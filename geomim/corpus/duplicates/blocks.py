"""Crops that overlap at any offset: hashes of patches around corners, and votes for the offset they agree on.

A hash of the whole tile sees nothing of a crop moved by more than some pixels. Corners move with the picture: the
tensor of gradients (Harris and Stephens, "A Combined Corner and Edge Detector", 1988) finds the same ones wherever a
crop begins, and the perceptual hash of the patch around each is compared like that of a tile, in all eight
orientations. Matches of two tiles that agree on orientation and offset vote for it; pixels decide (`overlap`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numba
import numpy as np

from geomim.corpus.duplicates.fingerprint import GRID, inverse, orient, orientations, perceptual_hash
from geomim.corpus.duplicates.hamming import MAX_PAIRS, cross_pairs, near_pairs

PATCH = GRID + 1
"""Edge of a patch in pixels: odd, so that its corner lies in the middle from all sides."""
RADIUS = 4
"""Bits that two hashes of one patch may differ by."""
CROWD = 50
"""Patches that may look alike before they tell nothing: see `crop_pairs`."""
MIN_VOTES = 2
"""Matches that must agree; a single one is chance too often, 13,000 times among the 10,921 photographs of RSICD."""
TOLERANCE = 2
"""Pixels by which offsets may differ and still agree."""
MIN_CORRELATION = 0.9
"""Correlation over the overlap from which a candidate pair is taken for crops of one image.

Measured: of 256 px crops of 0.5 m scenes (Airbus) that share a half, one of them rotated and after JPEG at quality 50,
99.5 % of those proposed correlate by 0.98. Chance candidates there (aircraft of one type, markings of taxiways, rows of
equal roofs) reach 0.84, a single one 0.95 over a fifth of the tile. Of 37 candidates among 10,921 photographs (RSICD)
28 lie above 0.9 and show one place, seen by eye; so do most of the six between 0.66 and 0.9, other dates and angles.
"""
_LARGE = 1e6
_MARGIN = PATCH // 2
_LEAST = 16  # pixels of overlap
_APART = 6  # a corner is the strongest one this many pixels around


def block_hashes(gray: np.ndarray, valid: np.ndarray, count: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the patches around corners of a tile, spread over it.

    Args:
        gray: `(H, W)` float32, the mean of the bands.
        valid: `(H, W)` bool; a patch with an invalid pixel is left out.
        count: Corners at most; 32 suit 256 x 256 pixels.

    Returns:
        Hashes `(k,)` uint64 and corners `(k, 2)` int16, x and y; none for a tile below 33 pixels.
    """
    seen = valid & np.isfinite(gray)
    gray = np.ascontiguousarray(gray if seen.all() else np.where(seen, gray, 0), np.float32)
    largest = np.abs(gray).max(initial=0)
    if largest > _LARGE:
        gray = gray / largest  # squares of squares would not fit into 32 bits
    found = _corners(gray, np.ascontiguousarray(valid), bool(valid.all()))
    found = found[np.lexsort((found[:, 0], found[:, 1], -found[:, 2]))]
    xy = found[_spread(found, count), :2].astype(np.int16)
    patches = np.empty((len(xy), GRID, GRID), np.float32)
    _cut(gray, xy, patches)
    return perceptual_hash(patches), xy


@numba.njit(cache=True, nogil=True)
def _spread(found, count):  # pragma: no cover - compiled
    """The corners that are farthest from any stronger one (Brown et al., "Multi-Image Matching", CVPR 2005).

    Taking the strongest ones instead finds a harbour's corners and none of the lawn beside it, where the next crop
    lies: of 256 px crops that share a quarter, 71 % are found by the strongest 32, and 99 % by these.
    """
    apart = np.empty(len(found))
    for a in range(len(found)):
        apart[a] = np.inf
        for b in range(a):
            x, y = found[a, 0] - found[b, 0], found[a, 1] - found[b, 1]
            apart[a] = min(apart[a], x * x + y * y)
    return np.argsort(-apart, kind="mergesort")[:count]


@numba.njit(cache=True, nogil=True)
def _cut(gray, xy, patches):  # pragma: no cover - compiled
    """Means of 2 x 2 pixels, a pixel apart: 33 pixels give 32."""
    for n in range(len(xy)):
        left, top = xy[n, 0] - _MARGIN, xy[n, 1] - _MARGIN
        for i in range(GRID):
            for j in range(GRID):
                y, x = top + i, left + j
                patches[n, i, j] = (gray[y, x] + gray[y + 1, x + 1]) + (gray[y + 1, x] + gray[y, x + 1])


@numba.njit(cache=True, nogil=True)
def _corners(gray, valid, whole):  # pragma: no cover - compiled
    """Corners with a whole valid patch that are the strongest around: rows of x, y, strength."""
    height, width = gray.shape
    strength = _strength(gray)
    found = np.empty(((height // _APART + 1) * (width // _APART + 1), 3), np.float64)
    count = 0
    step = _APART + 1
    for top in range(_MARGIN, height - _MARGIN, step):
        for left in range(_MARGIN, width - _MARGIN, step):
            best, y, x = np.float32(0), -1, -1
            for i in range(top, min(top + step, height - _MARGIN)):
                for j in range(left, min(left + step, width - _MARGIN)):
                    if strength[i, j] > best:
                        best, y, x = strength[i, j], i, j
            if y < 0 or not _strongest(strength, y, x):
                continue
            if not whole and not valid[y - _MARGIN : y + _MARGIN + 1, x - _MARGIN : x + _MARGIN + 1].all():
                continue
            found[count, 0], found[count, 1], found[count, 2] = x, y, best
            count += 1
    return found[:count]


@numba.njit(cache=True, nogil=True)
def _strongest(strength, y, x):  # pragma: no cover - compiled
    """Nothing stronger around, seen also beyond the margin: or the margin of a crop would make corners."""
    for i in range(max(y - _APART, 0), min(y + _APART + 1, strength.shape[0])):
        for j in range(max(x - _APART, 0), min(x + _APART + 1, strength.shape[1])):
            if strength[i, j] > strength[y, x]:
                return False
    return True


@numba.njit(cache=True, nogil=True, fastmath=True)
def _strength(gray):  # pragma: no cover - compiled
    """Determinant over trace of the gradient tensor, summed over 5 x 5 pixels, of the image blurred over 5 x 5."""
    height, width = gray.shape
    smooth = _binomial(gray)
    across, along, both = np.zeros_like(gray), np.zeros_like(gray), np.zeros_like(gray)
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            dx = smooth[y, x + 1] - smooth[y, x - 1]
            dy = smooth[y + 1, x] - smooth[y - 1, x]
            across[y, x], along[y, x], both[y, x] = dx * dx, dy * dy, dx * dy
    across, along, both = _binomial(across), _binomial(along), _binomial(both)
    for y in range(height):
        for x in range(width):
            a, b, c = across[y, x], along[y, x], both[y, x]
            smooth[y, x] = (a * b - c * c) / (a + b + np.float32(1e-12))
    return smooth


@numba.njit(cache=True, nogil=True, fastmath=True)
def _binomial(image):  # pragma: no cover - compiled
    """Blur by (1, 4, 6, 4, 1) / 16 down and across; zero at the two outermost pixels."""
    height, width = image.shape
    rows, result = np.zeros_like(image), np.zeros_like(image)
    for y in range(2, height - 2):
        for x in range(width):
            near, far = image[y - 1, x] + image[y + 1, x], image[y - 2, x] + image[y + 2, x]
            rows[y, x] = (np.float32(6) * image[y, x] + np.float32(4) * near + far) / np.float32(16)
    for y in range(2, height - 2):
        for x in range(2, width - 2):
            near, far = rows[y, x - 1] + rows[y, x + 1], rows[y, x - 2] + rows[y, x + 2]
            result[y, x] = (np.float32(6) * rows[y, x] + np.float32(4) * near + far) / np.float32(16)
    return result


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
        return Blocks(self.tile[places], self.hash[places], self.xy[places], self.shape[places])


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


def crop_pairs(
    blocks: Blocks,
    radius: int = RADIUS,
    min_votes: int = MIN_VOTES,
    crowd: int = CROWD,
    limit: int = MAX_PAIRS,
    threads: int = 1,
) -> Crops:
    """Pairs of different tiles whose patches agree on an orientation and an offset: candidates for `overlap`.

    Sea, lawn and rows of equal roofs give patches by the thousand that look alike, and pairs by the square of it. A
    hash that has more than `crowd` patches within the radius is left out: it would not tell where a crop comes from. So
    no patch takes part in more than `crowd` matches an orientation.

    Most patches are like no other one. Where all of them are too many for memory, those that have none within the
    radius in any orientation (`hamming.search_band`, a slice a task) may be left out before: the result is the same.

    Args:
        blocks: Patches of all tiles, from `block_hashes`.
        radius: Bits that two hashes of one patch may differ by, 0..12.
        min_votes: Matches that must agree.
        crowd: Patches that may look alike.
        limit: Pairs of hashes beyond which the join gives up.
        threads: How many search at once; they do not change the outcome.

    Returns:
        Pairs with `one < two`, sorted by tiles and orientation; one entry each, that of the most votes.

    Raises:
        CorpusError: As `hamming.near_pairs`.
    """
    groups = _Groups(blocks.hash)
    pairs, _ = near_pairs(groups.hashes, radius, limit, threads)
    likes = groups.sizes + np.bincount(pairs.ravel(), groups.sizes[pairs[:, ::-1].ravel()], len(groups.hashes))
    told = np.flatnonzero(likes <= crowd)
    hashes = groups.hashes[told]
    found = []
    for k in (0, 1, 2, 3, 4, 5, 7):  # 6 is 5 seen from the other tile
        near, _ = cross_pairs(orientations(hashes)[k], hashes, radius, limit, threads)
        if k != 5:
            near = near[near[:, 0] <= near[:, 1]]
        two, one = groups.matches(told[near], groups, crowd)
        once = blocks.hash[one] != blocks.hash[two] if k != 5 else np.ones(len(one), bool)
        kept = np.flatnonzero(np.where(once, blocks.tile[one] != blocks.tile[two], blocks.tile[one] < blocks.tile[two]))
        one, two, turn = one[kept], two[kept], np.full(len(kept), k)
        swap = blocks.tile[one] > blocks.tile[two]
        one, two = np.where(swap, two, one), np.where(swap, one, two)
        found.append((one, two, np.where(swap, _INVERSE[turn], turn)))
    one, two, turn = (np.concatenate(column) for column in zip(*found, strict=True))
    return _vote(blocks[one], blocks[two], turn, min_votes)


def crop_matches(
    queries: Blocks,
    blocks: Blocks,
    radius: int = RADIUS,
    min_votes: int = MIN_VOTES,
    crowd: int = CROWD,
    limit: int = MAX_PAIRS,
    threads: int = 1,
) -> Crops:
    """The same between two sets of tiles: `one` is a tile of the queries, `two` one of the others.

    Args:
        queries: Patches of one set, or of a part of it.
        blocks: Patches of the other one.
        radius: As in `crop_pairs`, as all that follow.
        min_votes: Matches that must agree.
        crowd: A hash on either side that has more than so many matches in an orientation is left out.
        limit: Pairs of hashes beyond which the join gives up.
        threads: How many search at once; they do not change the outcome.

    Raises:
        CorpusError: As `hamming.cross_pairs`.
    """
    asked, groups = _Groups(queries.hash), _Groups(blocks.hash)
    turned = orientations(asked.hashes)
    found = []
    for k in range(8):
        near, _ = cross_pairs(turned[k], groups.hashes, radius, limit, threads)
        one, two = asked.matches(near, groups, crowd)
        found.append((one, two, np.full(len(one), _INVERSE[k])))
    one, two, turn = (np.concatenate(column) for column in zip(*found, strict=True))
    return _vote(queries[one], blocks[two], turn, min_votes)


_INVERSE = np.array([inverse(k) for k in range(8)])


class _Groups:
    """Patches grouped by equal hashes."""

    def __init__(self, hashes: np.ndarray) -> None:
        self.hashes, group, self.sizes = np.unique(hashes, return_inverse=True, return_counts=True)
        self._members = np.argsort(group, kind="stable")
        self._first = np.cumsum(self.sizes) - self.sizes

    def matches(self, near: np.ndarray, others: _Groups, crowd: int) -> tuple[np.ndarray, np.ndarray]:
        """All pairs of patches of pairs of groups, but of groups with more than `crowd` matches."""
        one, two = near.T
        here = np.bincount(one, others.sizes[two], len(self.hashes))
        there = np.bincount(two, self.sizes[one], len(others.hashes))
        told = (here[one] <= crowd) & (there[two] <= crowd)
        one, two = one[told], two[told]
        count = self.sizes[one] * others.sizes[two]
        pair = np.repeat(np.arange(len(one)), count)
        place = np.arange(len(pair)) - np.repeat(np.cumsum(count) - count, count)
        first, second = np.divmod(place, others.sizes[two][pair])
        return self._members[self._first[one][pair] + first], others._members[others._first[two][pair] + second]


def _vote(one: Blocks, two: Blocks, orientation: np.ndarray, min_votes: int) -> Crops:
    """Group matches by tiles and orientation; of each group, the offset that most of them agree on."""
    offset = one.xy - _turned(two.xy, two.shape, orientation)
    order = np.lexsort((offset[:, 0], offset[:, 1], orientation, two.tile, one.tile))
    found = Crops(
        one.tile[order],
        two.tile[order],
        orientation[order].astype(np.int8),
        offset[order],
        np.zeros(len(order), np.int32),
    )
    key = np.stack([found.one, found.two, found.orientation])
    starts = np.flatnonzero(np.r_[True, (key[:, 1:] != key[:, :-1]).any(0)]) if len(order) else np.empty(0, np.int64)
    best = np.zeros(len(starts), np.int64)
    _count(found.offset, np.r_[starts, len(order)], found.votes, best)
    return found[best[found.votes[best] >= min_votes]]


def _turned(xy: np.ndarray, shape: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    """Where points lie when their tile is turned by `orient`."""
    swapped = ((orientation & 4) > 0)[:, None]
    xy = np.where(swapped, xy[:, ::-1], xy).astype(np.int32)
    width_height = np.where(swapped, shape, shape[:, ::-1])
    flipped = np.stack([orientation & 1, orientation & 2], 1) > 0
    return np.where(flipped, width_height - 1 - xy, xy).astype(np.int32)


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


def overlap(one: np.ndarray, two: np.ndarray, orientation: int, offset: tuple[int, int]) -> tuple[float, float]:
    """How much of two tiles overlaps, and whether it shows the same: the proof of a candidate.

    What is compared is detail: the pixels, blurred, less their mean over 31 x 31; else two beaches would do. The offset
    is also tried a pixel to each side.

    Args:
        one: `(H, W)` float32, the mean of the bands; NaN where invalid.
        two: `(h, w)` float32, likewise.
        orientation: 0..7: how `two` must be turned.
        offset: x and y in `one` of the first pixel of `two`, turned; may be negative.

    Returns:
        Share of the smaller tile that overlaps, 0..1, and the normalised cross-correlation over it, -1..1; 0 for flat
        pixels or an overlap less than 16 pixels wide.
    """
    turned = orient(two, orientation)
    left, top = max(offset[0], 0), max(offset[1], 0)
    right = min(one.shape[1], offset[0] + turned.shape[1])
    bottom = min(one.shape[0], offset[1] + turned.shape[0])
    share = max(right - left, 0) * max(bottom - top, 0) / min(one.size, two.size)
    if min(right - left, bottom - top) < _LEAST:
        return share, 0.0
    here = one[top:bottom, left:right]
    there = turned[top - offset[1] : bottom - offset[1], left - offset[0] : right - offset[0]]
    seen = np.isfinite(here) & np.isfinite(there)
    if not seen.any():
        return share, 0.0
    here, there = _detail(here, seen), _detail(there, seen)
    best = -1.0
    for y in range(-1, 2):
        for x in range(-1, 2):
            first, second = _window(here.shape, y, x), _window(here.shape, -y, -x)
            both = seen[first] & seen[second]
            best = max(best, _correlation(here[first][both], there[second][both]))
    return share, best


def _detail(pixels: np.ndarray, seen: np.ndarray) -> np.ndarray:
    from scipy.ndimage import gaussian_filter, uniform_filter

    filled = np.where(seen, pixels, pixels[seen].mean()).astype(np.float32)
    return gaussian_filter(filled, 2, truncate=2) - uniform_filter(filled, 31)


def _window(shape: tuple[int, int], y: int, x: int) -> tuple[slice, slice]:
    return slice(max(y, 0), shape[0] + min(y, 0)), slice(max(x, 0), shape[1] + min(x, 0))


def _correlation(one: np.ndarray, two: np.ndarray) -> float:
    one, two = one - one.mean(), two - two.mean()
    length = float(np.sqrt(np.dot(one, one) * np.dot(two, two)))
    return float(np.dot(one, two)) / length if length > 1e-6 else 0.0
