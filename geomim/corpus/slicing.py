"""Scene -> tiles on a fixed grid, decoding every block once and holding one row of tiles in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from affine import Affine
from rasterio.windows import Window

from geomim.corpus.scenes import Scene
from geomim.errors import InputError

_BUFFER_BYTES = 256 * 2**20  # rows held at a time; wider scenes are cut in columns


@dataclass(frozen=True)
class Tile:
    """A square of a scene.

    Attributes:
        row: First row in the scene.
        col: First column in the scene.
        pixels: `(C, t, t)` in the scene's type; nodata (or 0) beyond the scene's border.
        valid: `(t, t)` bool; False beyond the border.
        transform: Affine of the tile's pixel grid, or None.
    """

    row: int
    col: int
    pixels: np.ndarray
    valid: np.ndarray
    transform: Affine | None


def starts(length: int, tile: int, stride: int) -> list[int]:
    """First pixels of the tiles along one axis: every `stride`, until one reaches the border.

    The last one may reach beyond it. No tile lies wholly inside what the one before already reached.
    """
    count = max(0, math.ceil((length - tile) / stride)) + 1
    return [index * stride for index in range(count) if index * stride < length]


def windows(height: int, width: int, tile: int, stride: int | None = None) -> list[Window]:
    """The grid of a scene, row by row, from its upper left corner.

    Args:
        height: Rows of the scene.
        width: Columns of the scene.
        tile: Edge of a tile in pixels.
        stride: Step between tiles in pixels; `tile` where None.

    Returns:
        Windows of `tile` x `tile`, of which those at the lower and right border may reach beyond it.

    Raises:
        InputError: `tile` or `stride` is below 1.
    """
    stride = _checked(tile, stride)
    return [Window(col, row, tile, tile) for row in starts(height, tile, stride) for col in starts(width, tile, stride)]


def slice_scene(scene: Scene, tile: int, stride: int | None = None) -> Iterator[Tile]:
    """Cut a scene into tiles, row by row.

    Blocks are decoded once, from the top, whatever tile and stride; only the rows that the tiles of one row need are
    held. Where those exceed 256 MB and the file is stored in blocks, one part of the columns follows another.

    Args:
        scene: Open scene.
        tile: Edge of a tile in pixels.
        stride: Step between tiles in pixels; `tile` where None.

    Yields:
        Every tile of `windows`, including those that hold nothing valid.

    Raises:
        InputError: `tile` or `stride` is below 1, or a block cannot be read; tiles above it have been given by then.
    """
    stride = _checked(tile, stride)
    cols = starts(scene.width, tile, stride)
    for part in _column_parts(scene, cols, tile, stride):
        yield from _slice_columns(scene, part, tile, stride)


def _checked(tile: int, stride: int | None) -> int:
    stride = tile if stride is None else stride
    if tile < 1 or stride < 1:
        raise InputError(f"tile and stride must be at least 1 pixel; given {tile} and {stride}")
    return stride


def _column_parts(scene: Scene, cols: list[int], tile: int, stride: int) -> list[list[int]]:
    """Groups of tile columns whose rolling rows fit the buffer, cut where blocks begin if possible."""
    column_bytes = (tile + scene.block[0]) * (len(scene.sensor.bands) * scene.dtype.itemsize + 1)
    wide = max(tile, _BUFFER_BYTES // column_bytes)
    if scene.width <= wide or scene.block[1] >= scene.width:  # strips would be decoded again for every part
        return [cols]
    step = math.lcm(stride, scene.block[1])
    per_part = (wide // step * step if step <= wide else wide) // stride or 1
    return [cols[first : first + per_part] for first in range(0, len(cols), per_part)]


def _slice_columns(scene: Scene, cols: list[int], tile: int, stride: int) -> Iterator[Tile]:
    left, right = cols[0], min(cols[-1] + tile, scene.width)
    bands = len(scene.sensor.bands)
    pixels = np.empty((bands, 0, right - left), scene.dtype)  # rows [top, bottom) of the part
    valid = np.empty((0, right - left), bool)
    top = bottom = 0
    for row in starts(scene.height, tile, stride):
        if row > top:
            keep = min(row, bottom) - top
            pixels, valid, top = pixels[:, keep:], valid[keep:], top + keep
        end = min(row + tile, scene.height)
        if end > bottom:
            begin = max(bottom, row)  # a stride above the tile leaves rows out
            until = min(math.ceil(end / scene.block[0]) * scene.block[0], scene.height)
            more, more_valid = scene.read_valid(Window(left, begin, right - left, until - begin))
            if begin > bottom:
                pixels, valid = more, more_valid
            else:
                pixels = np.concatenate([pixels, more], axis=1)
                valid = np.concatenate([valid, more_valid])
            top, bottom = (begin if begin > bottom else top), until
        for col in cols:
            yield _cut(scene, pixels, valid, (row, col), (row - top, col - left), tile)


def _cut(
    scene: Scene, pixels: np.ndarray, valid: np.ndarray, place: tuple[int, int], inside: tuple[int, int], tile: int
) -> Tile:
    rows, cols = slice(inside[0], inside[0] + tile), slice(inside[1], inside[1] + tile)
    part, part_valid = pixels[:, rows, cols], valid[rows, cols]
    height, width = part_valid.shape
    if (height, width) == (tile, tile):
        part, part_valid = part.copy(), part_valid.copy()
    else:
        padded = np.full((len(part), tile, tile), scene.nodata or 0, scene.dtype)
        padded[:, :height, :width] = part
        padded_valid = np.zeros((tile, tile), bool)
        padded_valid[:height, :width] = part_valid
        part, part_valid = padded, padded_valid
    transform = scene.window_transform(Window(place[1], place[0], tile, tile))
    return Tile(place[0], place[1], part, part_valid, transform)
