"""Mean and spread of pixels, exactly and in any number of parts."""

from __future__ import annotations

import numba
import numpy as np


def moments(pixels: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and sum of squared deviations of each band over a tile's valid pixels.

    Args:
        pixels: `(n, C, H, W)`.
        valid: `(n, H, W)` bool.

    Returns:
        Means `(n, C)` and sums `(n, C)` float64, zeros where a tile has no valid pixel; valid pixels `(n,)` int64.
    """
    counts = valid.reshape(len(valid), -1).sum(1)
    flat = np.ascontiguousarray(pixels).reshape(*pixels.shape[:2], -1)
    if pixels.dtype.kind in "iu" and pixels.dtype.itemsize <= 2 and valid.all():
        total, square = _sums(flat)  # whole numbers add up in any order, so many at once
        mean = total / counts[:, None]
        return mean, square - total * mean, counts
    mean, squares = np.zeros(pixels.shape[:2]), np.zeros(pixels.shape[:2])
    _moments(flat, np.ascontiguousarray(valid).reshape(len(valid), -1), mean, squares)
    return mean, squares, counts


@numba.njit(cache=True, nogil=True)
def _sums(pixels):  # pragma: no cover - compiled
    """Sums of numbers and of their squares; runs of 4096 stay in 32 bits, which a processor adds many at once."""
    total, square = np.zeros(pixels.shape[:2], np.int64), np.zeros(pixels.shape[:2], np.int64)
    for n in range(pixels.shape[0]):
        for c in range(pixels.shape[1]):
            for start in range(0, pixels.shape[2], 4096):
                one, two = np.int32(0), np.int64(0)
                for value in pixels[n, c, start : start + 4096]:
                    one += np.int32(value)
                    two += np.int64(np.uint32(np.int32(value) * np.int32(value)))
                total[n, c] += one
                square[n, c] += two
    return total, square


@numba.njit(cache=True, nogil=True)
def _moments(pixels, valid, mean, squares):  # pragma: no cover - compiled
    for n in range(pixels.shape[0]):
        for c in range(pixels.shape[1]):
            total, count = 0.0, 0
            for p in range(pixels.shape[2]):
                if valid[n, p]:
                    total += pixels[n, c, p]
                    count += 1
            if count:
                middle, square = total / count, 0.0
                for p in range(pixels.shape[2]):
                    if valid[n, p]:
                        square += (pixels[n, c, p] - middle) ** 2
                mean[n, c], squares[n, c] = middle, square
