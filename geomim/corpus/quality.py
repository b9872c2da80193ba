"""How much of a tile is measured, and how much there is to see."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LOW_INFORMATION = 0.005
"""Below this contrast of block means a perceptual hash says nothing: see `information`."""

_SMALLEST_BLOCK = 8  # pixels: sensor noise falls by this factor in a block mean
_GRID = 32  # blocks along the edge of a tile of 256 pixels or more


@dataclass(frozen=True)
class Quality:
    """Quality of N tiles.

    Attributes:
        valid_fraction: `(N,)` float64 in 0 ... 1.
        cloud_fraction: `(N,)` float64 in 0 ... 1, of the valid pixels; NaN where clouds are not known, 0 where nothing
            is valid.
        saturated_fraction: `(N,)` float64 in 0 ... 1, of the valid pixels; see `saturated_fraction`.
        information: `(N,)` float64, at least 0; see `information`.
        low_information: `(N,)` bool: water, sand, haze, nodata; a legitimate class, but a perceptual hash finds
            unrelated pairs in it and misses related ones.
    """

    valid_fraction: np.ndarray
    cloud_fraction: np.ndarray
    saturated_fraction: np.ndarray
    information: np.ndarray
    low_information: np.ndarray


def assess(pixels: np.ndarray, valid: np.ndarray | None = None, clouds: np.ndarray | None = None) -> Quality:
    """Quality columns of a batch of tiles.

    Args:
        pixels: `(N, C, H, W)`, any real type.
        valid: `(N, H, W)` bool; all valid where None.
        clouds: `(N, H, W)` bool; not known where None.
    """
    if valid is None:
        valid = np.ones((len(pixels), *pixels.shape[2:]), bool)
    contrast = information(pixels, valid)
    cloudy = np.full(len(pixels), np.nan) if clouds is None else _share(clouds, valid)
    return Quality(
        valid_fraction(valid), cloudy, saturated_fraction(pixels, valid), contrast, contrast < LOW_INFORMATION
    )


def _share(what: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Share of the valid pixels, both `(N, H, W)` bool; 0 where none is valid."""
    count = valid.sum(axis=(1, 2))
    return (what & valid).sum(axis=(1, 2)) / np.maximum(count, 1)


def saturated_fraction(pixels: np.ndarray, valid: np.ndarray, limit: float | None = None) -> np.ndarray:
    """Share of the valid pixels at which any band sits at the end of its scale.

    Args:
        pixels: `(N, C, H, W)`.
        valid: `(N, H, W)` bool.
        limit: Least number that counts as saturated. Where None, the largest that an integer type holds; numbers with
            a fractional part have no end, and none of them counts.

    Returns:
        `(N,)` float64 in 0 ... 1.
    """
    if limit is None:
        if pixels.dtype.kind not in "iu":
            return np.zeros(len(pixels))
        limit = np.iinfo(pixels.dtype).max
    return _share((pixels >= limit).any(axis=1), valid)


def valid_fraction(valid: np.ndarray) -> np.ndarray:
    """Share of valid pixels.

    Args:
        valid: `(N, H, W)` bool.

    Returns:
        `(N,)` float64 in 0 ... 1.
    """
    return valid.reshape(len(valid), -1).mean(axis=1, dtype=np.float64)


def information(pixels: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """Contrast that is larger than noise: standard deviation of block means over the mean level.

    Blocks are 8 pixels wide, or a 32nd of the tile where that is more; a block counts where at least half of it is
    valid. Variance and level are averaged over bands before they are divided, so that a dark band full of noise does
    not count as contrast.

    Args:
        pixels: `(N, C, H, W)`, any real type.
        valid: `(N, H, W)` bool; all valid where None.

    Returns:
        `(N,)` float64: 0 for a constant tile or one without a valid block; 0.001 for noise of 1 %; 0.1 for a town.
    """
    height, width = pixels.shape[-2:]
    rows, cols = _blocks(height), _blocks(width)
    if valid is not None and valid.all():
        valid = None
    values = pixels.astype(np.float32)
    if valid is None:
        counts = np.ones((len(pixels), 1, 1, 1), np.float32) * (rows @ np.ones((height, width), np.float32) @ cols.T)
    else:
        np.copyto(values, 0, where=~valid[:, None])  # NaN and nodata add nothing
        counts = (rows @ valid.astype(np.float32) @ cols.T)[:, None]
    sums = rows @ (values @ cols.T)  # (N, C, blocks, blocks)
    area = np.outer(rows.sum(1), cols.sum(1))
    counted = (counts >= 0.5 * area).astype(np.float64)
    means = sums / np.maximum(counts, 1).astype(np.float64)
    weight = np.maximum(counted.sum(axis=(2, 3)), 1)
    level = (means * counted).sum(axis=(2, 3)) / weight  # (N, C)
    variance = (((means - level[..., None, None]) ** 2) * counted).sum(axis=(2, 3)) / weight
    scale = np.abs(level).mean(axis=1)
    deviation = np.sqrt(variance.mean(axis=1))
    return np.divide(deviation, scale, out=np.zeros(len(pixels)), where=scale > 0)


def _blocks(length: int) -> np.ndarray:
    """Which pixel belongs to which block: `(blocks, length)` of 0 and 1."""
    block = max(_SMALLEST_BLOCK, length // _GRID)
    count = -(-length // block)
    return (np.arange(length)[None] // block == np.arange(count)[:, None]).astype(np.float32)
