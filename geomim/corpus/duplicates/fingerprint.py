"""Fingerprints of tiles: an exact one of the pixels, and a perceptual one that survives recompression and gain.

The perceptual hash takes block means, their discrete cosine transform and the signs of its low frequencies (after
Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, who compares with the median). Signs
have one merit more: flipping a tile changes the sign of its odd frequencies and transposing it swaps their places, so
the hashes of all eight orientations follow from one by bit operations. The transform is taken of a fixed radiometric
projection, the mean of the bands: no stretch per tile, so equal places give equal hashes whatever surrounds them.
"""

from __future__ import annotations

import numba
import numpy as np
import xxhash

GRID = 32
"""Edge of the grid of block means."""
ORIENTATIONS = (
    "as it is",
    "flipped left-right",
    "flipped top-bottom",
    "rotated by 180 degrees",
    "transposed",
    "rotated by 90 degrees clockwise",
    "rotated by 90 degrees counter-clockwise",
    "anti-transposed",
)
"""What `orient` does, by its number: bit 2 transposes, then bit 0 flips the columns and bit 1 the rows."""
_LOW = 8  # edge of the block of low frequencies: 64 bits, of which the first, the mean, is not used
_NOTHING = 1e-6  # a coefficient below this share of the tile's largest one counts as zero


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


def block_means(tiles: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """Mean over the bands and over each cell of a 32 x 32 grid.

    Where a tile's edge is no multiple of 32, neighbouring cells share the pixel that their border crosses, so the grid
    is the same seen from all sides.

    Args:
        tiles: `(n, C, H, W)`, any real numbers.
        valid: `(n, H, W)` bool. A cell without a valid pixel gets the mean of the tile's valid pixels.
            All are valid where None.

    Returns:
        `(n, 32, 32)` float32 in the tiles' unit; zeros where a tile has no valid pixel.
    """
    tiles = np.ascontiguousarray(tiles, tiles.dtype.newbyteorder("="))
    if valid is None:
        whole, valid = np.ones(len(tiles), bool), np.ones((1, *tiles.shape[2:]), bool)
    else:
        valid = np.ascontiguousarray(valid)
        whole = valid.reshape(len(valid), -1).all(1)
    rows, columns = (_edges(length) for length in tiles.shape[2:])
    means = np.empty((len(tiles), GRID, GRID), np.float32)
    terms = tiles.shape[1] * int(np.diff(rows).max() * np.diff(columns).max())
    sums = np.empty(tiles.shape[3], _sum_type(tiles.dtype, terms))
    _block_means(tiles, valid, whole, rows, columns, sums, means)
    return means


def _edges(length: int) -> np.ndarray:
    """First and end pixel of each cell, `(32, 2)`."""
    start = np.arange(GRID) * length // GRID
    return np.stack([start, length - start[::-1]], 1)


def _sum_type(dtype: np.dtype, terms: int) -> type:
    """Where integers fit they are added as integers: exact in any order, and the narrower the faster."""
    if dtype.kind == "f":
        return np.float64
    return np.int32 if dtype.itemsize <= 2 and terms < 2**15 else np.int64


@numba.njit(cache=True, nogil=True)
def _block_means(tiles, valid, all_valid, rows, columns, sums, means):  # pragma: no cover - compiled
    """Each row of cells is summed down its columns first, in loops over neighbours in memory, then across."""
    count, bands, _, width = tiles.shape
    seen = np.empty(width, np.int64)
    number = sums.dtype.type
    for n in range(count):
        whole = all_valid[n]
        empty = False
        for i in range(GRID):
            sums[:] = 0
            seen[:] = 0
            for y in range(rows[i, 0], rows[i, 1]):
                for c in range(bands):
                    if whole:
                        for x in range(width):
                            use = np.isfinite(tiles[n, c, y, x])
                            sums[x] = number(sums[x] + (number(tiles[n, c, y, x]) if use else number(0)))
                    else:
                        for x in range(width):
                            use = valid[n, y, x] and np.isfinite(tiles[n, c, y, x])
                            sums[x] = number(sums[x] + (number(tiles[n, c, y, x]) if use else number(0)))
                if not whole:
                    for x in range(width):
                        seen[x] += valid[n, y, x]
            for j in range(GRID):
                total = number(0)
                for x in range(columns[j, 0], columns[j, 1]):
                    total = number(total + sums[x])
                pixels = (rows[i, 1] - rows[i, 0]) * (columns[j, 1] - columns[j, 0])
                if not whole:
                    pixels = 0
                    for x in range(columns[j, 0], columns[j, 1]):
                        pixels += seen[x]
                means[n, i, j] = total / (pixels * bands) if pixels else np.nan
                empty |= pixels == 0
        if empty:
            mean = _mean(tiles[n], valid[n])
            for i in range(GRID):
                for j in range(GRID):
                    if np.isnan(means[n, i, j]):
                        means[n, i, j] = mean


@numba.njit(cache=True, nogil=True)
def _mean(tile, valid):  # pragma: no cover - compiled
    total, pixels = 0.0, 0
    for c in range(tile.shape[0]):
        for y in range(tile.shape[1]):
            for x in range(tile.shape[2]):
                if valid[y, x]:
                    pixels += 1
                    if np.isfinite(tile[c, y, x]):
                        total += tile[c, y, x]
    return total / pixels if pixels else 0.0


def perceptual_hash(means: np.ndarray) -> np.ndarray:
    """64-bit perceptual hash: which low frequencies are positive.

    Gain and offset of a tile do not change it. Bit `8 * i + j` belongs to `i` half waves down and `j` across; bit 0,
    the mean brightness, is always 0. A coefficient that is numerically zero (below 1e-6 of the tile's largest one)
    gives 0, or the noise of the last digit, which differs by machine, would decide. Only such bits break the rule of
    `orientations`: they are seen in tiles that are exactly symmetric or constant along an axis, not in photographs.

    Args:
        means: `(n, 32, 32)` from `block_means`.

    Returns:
        `(n,)` uint64.
    """
    frequency, place = np.arange(_LOW)[:, None], np.arange(GRID)[None]
    cosine = np.cos(np.pi * frequency * (2 * place + 1) / (2 * GRID))  # (8, 32)
    across = means.reshape(-1, GRID).astype(np.float64) @ cosine.T
    both = cosine @ across.reshape(-1, GRID, _LOW)  # (n, 8, 8): down, across
    coefficients = both.reshape(len(means), _LOW * _LOW)
    coefficients[:, 0] = 0
    largest = np.abs(coefficients).max(1, keepdims=True)
    noise = np.abs(means).max((1, 2), initial=0)[:, None] * 1e-9  # of a flat tile even the largest one is nothing
    bits = coefficients > np.maximum(largest * _NOTHING, noise)
    return np.packbits(bits, axis=1, bitorder="little").view("<u8")[:, 0].astype(np.uint64)


def orientations(hashes: np.ndarray) -> np.ndarray:
    """Perceptual hashes of a tile seen in all eight orientations, without its pixels.

    Args:
        hashes: `(n,)` uint64.

    Returns:
        `(8, n)` uint64; row `k` is `perceptual_hash` of the tile turned by `orient(tile, k)`, row 0 the hash itself.
    """
    hashes = np.asarray(hashes, np.uint64)
    turned = np.stack([hashes] * 4 + [_transpose(hashes)] * 4)
    return turned ^ (_FLIPS[np.arange(8) & 3])[:, None]


def _transpose(bits: np.ndarray) -> np.ndarray:
    """Transpose 8 x 8 bits, by swapping blocks of 1, 2 and 4 (Warren, "Hacker's Delight", section 7-3)."""
    for shift, mask in ((7, 0x00AA00AA00AA00AA), (14, 0x0000CCCC0000CCCC), (28, 0x00000000F0F0F0F0)):
        swapped = (bits ^ (bits >> np.uint64(shift))) & np.uint64(mask)
        bits = bits ^ swapped ^ (swapped << np.uint64(shift))
    return bits


_ODD_COLUMNS, _ODD_ROWS = 0xAAAAAAAAAAAAAAAA, 0xFF00FF00FF00FF00
_FLIPS = np.array([0, _ODD_COLUMNS, _ODD_ROWS, _ODD_COLUMNS ^ _ODD_ROWS], np.uint64)


def orient(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn pixels.

    Args:
        array: `(..., H, W)`.
        orientation: 0..7, see `ORIENTATIONS`.

    Returns:
        A view, `(..., H, W)` or, where it transposes, `(..., W, H)`.
    """
    if orientation & 4:
        array = array.swapaxes(-1, -2)
    if orientation & 2:
        array = array[..., ::-1, :]
    return array[..., ::-1] if orientation & 1 else array


def inverse(orientation: int) -> int:
    """The orientation that turns back: only the two rotations by 90 degrees are not their own.

    Args:
        orientation: 0..7.
    """
    return {5: 6, 6: 5}.get(orientation, orientation)


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
