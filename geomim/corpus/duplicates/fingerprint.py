"""Fingerprints of tiles: an exact one of the pixels, and a perceptual one that survives recompression and gain.

The perceptual hash is the classic one (block means, discrete cosine transform, signs of the low frequencies; see
Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010) on a fixed radiometric projection,
the mean of the bands: no stretch per tile, so equal places give equal hashes whatever surrounds them.
"""

from __future__ import annotations

import numba
import numpy as np
import xxhash

GRID = 32
"""Edge of the grid of block means."""
_LOW = 8  # edge of the block of low frequencies: 64 bits


def content_hash(tile: np.ndarray) -> str:
    """Exact hash of a tile: equal where shape, dtype and every number are equal, on any machine.

    Args:
        tile: Array of any shape and dtype.

    Returns:
        32 hexadecimal digits (xxh3, 128 bits).
    """
    little = np.ascontiguousarray(tile, tile.dtype.newbyteorder("<"))
    state = xxhash.xxh3_128(f"{tile.shape}{tile.dtype.name}".encode())
    state.update(little.view(np.uint8).reshape(-1).data)
    return state.hexdigest()


def block_means(tiles: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Mean over the bands and over each cell of a 32 x 32 grid.

    Args:
        tiles: `(n, C, H, W)`, any numbers.
        valid: `(n, H, W)` bool. A cell without a valid pixel gets the mean of the tile's valid pixels.

    Returns:
        `(n, 32, 32)` float32 in the tiles' unit; zeros where a tile has no valid pixel.
    """
    means = np.empty((len(tiles), GRID, GRID), np.float32)
    edges = [_edges(length) for length in tiles.shape[2:]]
    _block_means(np.ascontiguousarray(tiles), np.ascontiguousarray(valid), *edges, means)
    return means


def _edges(length: int) -> np.ndarray:
    """First and end pixel of each cell, `(32, 2)`; cells of a tile below 32 pixels share pixels."""
    start = np.arange(GRID) * length // GRID
    return np.stack([start, np.maximum(start + 1, (np.arange(GRID) + 1) * length // GRID)], 1)


@numba.njit(cache=True, nogil=True)
def _block_means(tiles, valid, rows, columns, means):  # pragma: no cover - compiled
    bands = tiles.shape[1]
    for n in range(tiles.shape[0]):
        total, seen = 0.0, 0
        for i in range(GRID):
            for j in range(GRID):
                sum_, count = 0.0, 0
                for y in range(rows[i, 0], rows[i, 1]):
                    for x in range(columns[j, 0], columns[j, 1]):
                        if valid[n, y, x]:
                            count += 1
                            for c in range(bands):
                                value = float(tiles[n, c, y, x])
                                if np.isfinite(value):
                                    sum_ += value
                means[n, i, j] = sum_ / (count * bands) if count else np.nan
                total += sum_
                seen += count
        mean = total / (seen * bands) if seen else 0.0
        for i in range(GRID):
            for j in range(GRID):
                if np.isnan(means[n, i, j]):
                    means[n, i, j] = mean


def perceptual_hash(means: np.ndarray) -> np.ndarray:
    """64-bit perceptual hash: which low frequencies lie above their median.

    Gain and offset of a tile do not change it. The bit of the mean brightness is always 0.

    Args:
        means: `(n, 32, 32)` from `block_means`.

    Returns:
        `(n,)` uint64.
    """
    frequency, place = np.arange(_LOW)[:, None], np.arange(GRID)[None]
    cosine = np.cos(np.pi * frequency * (2 * place + 1) / (2 * GRID))  # (8, 32)
    centred = means.astype(np.float64)
    centred -= centred.mean((1, 2), keepdims=True)
    coefficients = (cosine @ centred @ cosine.T).reshape(len(means), -1)[:, 1:]
    # Rounding keeps the noise of the last float digit, which differs by machine, from deciding a sign.
    largest = np.abs(coefficients).max(1, keepdims=True)
    coefficients = np.round(coefficients / np.where(largest > 0, largest, 1), 6)
    bits = coefficients > np.median(coefficients, axis=1, keepdims=True)
    weights = np.uint64(1) << np.arange(1, _LOW * _LOW, dtype=np.uint64)
    return np.where(bits, weights, np.uint64(0)).sum(1, dtype=np.uint64)


def signature(means: np.ndarray) -> np.ndarray:
    """Block means at zero mean and unit length, small enough to keep for every tile.

    The dot product of two is their normalised cross-correlation, in -1..1.

    Args:
        means: `(n, 32, 32)` from `block_means`.

    Returns:
        `(n, 1024)` float16; zeros for a flat tile.
    """
    flat = means.reshape(len(means), -1).astype(np.float64)
    flat -= flat.mean(1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return (flat / np.where(length > 0, length, 1)).astype(np.float16)
