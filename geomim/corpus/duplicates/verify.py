"""Verification of candidate pairs: do the block means really show the same place?"""

from __future__ import annotations

import numba
import numpy as np

from geomim.corpus.duplicates.fingerprint import GRID, orient

MIN_CORRELATION = 0.9
"""Correlation of detail from which a candidate pair is taken for a near-copy.

Measured on 128 px photographs (RSICD) and 256 px tiles of 0.5 m scenes (Airbus), 600 planted copies a kind: at least
99 % of the copies reach 0.97 after JPEG at quality 50, 0.99 with 1 % noise, 0.98 after a shift by 1 px of 256, 0.95 by
4 px of 256 and 0.90 by 2 or 4 px of 128; clipping gain (1.3) leaves 98 % and 95 % of them above 0.9. Of the pairs
within 12 bits that show no copy, the likest reach 0.88 (a taxiway and its own mirror image) and 0.82, while plain
correlation of block means gives up to 0.96 to two unrelated beaches, and as little as 0.6 to a true shift by 4 px.
"""
MIN_CLIPPED = 0.7
"""The same where each detail is clipped at the median of all, so that no few of them decide: below it, the correlation
rests on one bright corner or a strip of shore, and the rest is not alike.

Of the same planted copies that correlate, all but one in a thousand reach 0.83, the least 0.75 (JPEG of a meadow).
Lakes of other waves with a bright corner alike, of 6 to 40 px of 128, correlate up to 1.0 and reach 0.5 here.
"""
_NOTHING = 1e-4  # a detail below this share of the tile's largest one is none
_FEW = 0.25  # share of the blocks that must have a detail
_AT_ONCE = 2048  # pairs: 17 MB of numbers


def correlation(one: np.ndarray, two: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    """Normalised cross-correlation of the detail in two signatures, the second one turned, at its best shift.

    Detail is what a narrow blur leaves and a wide one does not: without it, a bright half and a dark half are enough
    for a high correlation. Shifts are tried up to a block (1/32 of the tile) in steps of half a block, each over the
    30 x 30 blocks that all of them share.

    Args:
        one: `(n, 1024)` float16 from `fingerprint.signature`.
        two: `(n, 1024)` float16.
        orientation: `(n,)` 0..7: how `two` must be turned (`fingerprint.orient`) to look like `one`.

    Returns:
        `(n,)` float32, -1..1; 0 where one of the two is flat. Where clipped details correlate by less than
        `MIN_CLIPPED`, their correlation stands instead.
    """
    result = np.zeros(len(one), np.float32)
    for start in range(0, len(one), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        turned = np.take_along_axis(np.asarray(two[part]), _PLACES[np.asarray(orientation[part])], 1)
        details, alike = [_detail(one[part]), _detail(turned)], result[part]
        _best_shift(*details, alike)
        good = np.flatnonzero(alike >= MIN_CORRELATION)
        clipped = np.zeros(len(good), np.float32)
        _best_shift(*(_clipped(side[good]) for side in details), clipped)
        alike[good] = np.where(clipped < MIN_CLIPPED, clipped, alike[good])
    return result


_PLACES = np.stack([orient(np.arange(GRID * GRID).reshape(GRID, GRID), k).reshape(-1) for k in range(8)])


def _blur(width: float) -> np.ndarray:
    """Gaussian blur of 32 blocks as a `(32, 32)` matrix; the edge is repeated."""
    offset = np.arange(-4, 5)
    weight = np.exp(-((offset / width) ** 2) / 2)
    matrix = np.zeros((GRID, GRID), np.float32)
    for place in range(GRID):
        np.add.at(matrix[place], np.clip(place + offset, 0, GRID - 1), weight / weight.sum())
    return matrix


_NARROW, _WIDE = _blur(0.7), _blur(1.7)


def _detail(signatures: np.ndarray) -> np.ndarray:
    blocks = np.asarray(signatures, np.float32).reshape(-1, GRID, GRID)
    return _NARROW @ blocks @ _NARROW.T - _WIDE @ blocks @ _WIDE.T


def _clipped(details: np.ndarray) -> np.ndarray:
    """Details `(n, 32, 32)` clipped at the median of those that there are; zeros where too few blocks have one."""
    size = np.abs(details)
    there = size > _NOTHING * size.max((1, 2), keepdims=True, initial=0)
    count = there.sum((1, 2), keepdims=True)
    ranked = np.sort(np.where(there, size, 0).reshape(-1, GRID**2), 1)  # those that there are come last
    middle = np.take_along_axis(ranked, ranked.shape[1] - 1 - count[:, 0] // 2, 1)[:, :, None]
    return np.clip(details, -middle, middle) * (count >= _FEW * GRID**2).astype(np.float32)


@numba.njit(cache=True, nogil=True, fastmath=True)
def _best_shift(one, two, best):  # pragma: no cover - compiled
    """Grids of the second tile, even and half a block on, hold all 25 shifts as windows of 30 x 30."""
    size = GRID - 2
    grids = np.zeros((2, 2, GRID, GRID), np.float32)
    still = np.zeros((2, 2, GRID, GRID), np.float32)
    for n in range(len(one)):
        _half_steps(one[n], still)
        _half_steps(two[n], grids)
        own = _moments(still[0, 0], still[0, 0], 1, 1, 1, 1, size)
        if own[0] <= 1e-9:
            continue
        highest = np.float32(-1)
        for y in range(5):
            for x in range(5):
                grid = grids[y % 2, x % 2]
                other = _moments(grid, grid, y // 2, x // 2, y // 2, x // 2, size)
                if other[0] > 1e-9:
                    both = _moments(still[0, 0], grid, 1, 1, y // 2, x // 2, size)
                    highest = max(highest, both[0] / np.sqrt(own[0] * other[0]))
        best[n] = highest if highest > -1 else 0


@numba.njit(cache=True, nogil=True, fastmath=True)
def _half_steps(blocks, grids):  # pragma: no cover - compiled
    """Even places are blurred by (1, 2, 1) / 4, or they would be sharper than the means at half places."""
    rows = np.zeros((2, GRID, GRID), np.float32)
    for i in range(GRID):
        up, down = max(i - 1, 0), min(i + 1, GRID - 1)
        for j in range(GRID):  # whole rows at once would take five seconds to compile
            rows[0, i, j] = (blocks[up, j] + 2 * blocks[i, j] + blocks[down, j]) / 4
            rows[1, i, j] = (blocks[i, j] + blocks[down, j]) / 2
    for half in range(2):
        for i in range(GRID):
            for j in range(GRID):
                left, right = max(j - 1, 0), min(j + 1, GRID - 1)
                grids[half, 0, i, j] = (rows[half, i, left] + 2 * rows[half, i, j] + rows[half, i, right]) / 4
                grids[half, 1, i, j] = (rows[half, i, j] + rows[half, i, right]) / 2


@numba.njit(cache=True, nogil=True, fastmath=True)
def _moments(one, two, y, x, other_y, other_x, size):  # pragma: no cover - compiled
    """Covariance of two windows, as a sum, in a tuple."""
    sum_one, sum_two, product = np.float32(0), np.float32(0), np.float32(0)
    for i in range(size):
        for j in range(size):
            a, b = one[y + i, x + j], two[other_y + i, other_x + j]
            sum_one += a
            sum_two += b
            product += a * b
    return product - sum_one * sum_two / (size * size), sum_one
