"""Crops that overlap at any offset: hashes of patches around corners, and the proof on pixels.

A hash of the whole tile sees nothing of a crop moved by more than some pixels. Corners move with the picture: the
tensor of gradients (Harris and Stephens, "A Combined Corner and Edge Detector", 1988) finds the same ones wherever a
crop begins, and the perceptual hash of the patch around each is compared like that of a tile, in all eight
orientations. Matches of two tiles that agree on orientation and offset vote for it (`votes`); pixels decide
(`overlap`).
"""

from __future__ import annotations

import numba
import numpy as np

from geomim.corpus.duplicates.fingerprint import GRID, orient, perceptual_hash

PATCH = GRID + 1
"""Edge of a patch in pixels: odd, so that its corner lies in the middle from all sides."""
MIN_CORRELATION = 0.9
"""Correlation over the overlap from which a candidate pair is taken for crops of one image.

Measured: of 256 px crops of 0.5 m scenes (Airbus) that share a half, one of them rotated and after JPEG at quality 50,
99.5 % of those proposed correlate by 0.98. Chance candidates there (aircraft of one type, markings of taxiways, rows of
equal roofs) reach 0.84, a single one 0.95 over a fifth of the tile. Of 37 candidates among 10,921 photographs (RSICD)
28 lie above 0.9 and show one place, seen by eye; so do most of the six between 0.66 and 0.9, other dates and angles.
"""
MIN_SINGLE_CORRELATION = 0.96
"""The same of a pair of which a single match tells. Markings of a runway, turned, reach 0.953 over a fifth of a tile
(Airbus); of 12 such overlaps in RSICD, all true by eye, ten lie above."""
MIN_CLIPPED = 0.6
"""The same of details clipped at their median, so that no few of them decide: copies and crops as above reach 0.67, and
lakes with a bright corner alike 0.32, which correlate by 0.99."""
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
    spread = np.argsort(-_distances(found), kind="stable")[:count]
    xy = found[spread, :2].astype(np.int16)
    patches = np.empty((len(xy), GRID, GRID), np.float32)
    _cut(gray, xy, patches)
    return perceptual_hash(patches), xy


@numba.njit(cache=True, nogil=True)
def _distances(found):  # pragma: no cover - compiled
    """Squared distance of each corner from any stronger one (Brown et al., "Multi-Image Matching", CVPR 2005).

    The farthest are taken. The strongest instead find a harbour's corners and none of the lawn beside it, where the
    next crop lies: of 256 px crops that share a quarter, 71 % are found by the strongest 32, and 99 % by these.
    """
    apart = np.empty(len(found))
    for a in range(len(found)):
        apart[a] = np.inf
        for b in range(a):
            x, y = found[a, 0] - found[b, 0], found[a, 1] - found[b, 1]
            apart[a] = min(apart[a], x * x + y * y)
    return apart


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
        pixels or an overlap less than 16 pixels wide, and where it rests on a few bright ones (`MIN_CLIPPED`).
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
    best, sides = -1.0, (here[seen], there[seen])
    for y in range(-1, 2):
        for x in range(-1, 2):
            first, second = _window(here.shape, y, x), _window(here.shape, -y, -x)
            both = seen[first] & seen[second]
            if (found := _correlation(here[first][both], there[second][both])) > best:
                best, sides = found, (here[first][both], there[second][both])
    return share, best if best < MIN_CORRELATION or _correlation(*map(_clipped, sides)) >= MIN_CLIPPED else 0.0


def _clipped(details: np.ndarray) -> np.ndarray:
    size = np.abs(details)
    size = size[size > 1e-4 * size.max(initial=0)]
    limit = np.median(size) if 4 * len(size) > len(details) else 0
    return np.clip(details, -limit, limit)


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
