"""Scene -> tiles of one or several sizes, decoding every block once and holding a bounded part of the scene."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xxhash
from affine import Affine
from rasterio.windows import Window

from geomim.corpus.scenes import Scene, scene_name
from geomim.errors import InputError, nearest

_HELD_BYTES = 256 * 2**20  # of decoded pixels in memory; more of them wait in scratch files
_PART_BYTES = 32 * 2**20  # decoded in one call, if the file's blocks allow it


TILE = 256
"""Edge of a tile where nobody says another, and the pictures are not to be taken whole."""
EDGES = ("shift", "pad", "drop")
"""What becomes of tiles that would reach beyond the border of a scene."""


def whole(height: int, width: int, placed: bool) -> int:
    """Edge of a picture that is a tile by itself where all are alike, else 0.

    It is square; and up to 1024 px where it has no place on Earth, as the images of benchmarks are. With a place it may
    be a sheet of a larger map, and is one only where it is too small to be cut into two tiles.
    """
    small = height < 2 * TILE if placed else height <= 4 * TILE
    return height if height == width and small else 0


@dataclass(frozen=True)
class Grid:
    """Sizes and places of tiles.

    With several sizes a scene is cut into blocks of the largest, from its upper left corner, and each block wholly into
    tiles of one size that is drawn for it. So each size gets the same share of the ground (half the edge gives four
    times the tiles), and the outcome depends on seed, name and place alone.

    At the lower and right border `shift` moves the last block, and in a block that is cut off the last tile, inside:
    it ends there, and some pixels lie in two tiles. `pad` lets it reach beyond, with pixels that are not valid, so that
    without a stride every pixel lies in one tile. `drop` leaves out what would reach beyond. A scene smaller than a
    tile is padded by `shift`, too. With a stride, only what is last in its row or column moves.

    Attributes:
        sizes: Edges of the tiles in pixels; kept in rising order.
        stride: Step between tiles in pixels; the tile's edge where None. Only with one size.
        seed: Of the draws.
        edge: One of `EDGES`.

    Raises:
        InputError: The edge is none of them, a size or the stride is below 1, a size does not divide the largest, or
            there is a stride and more than one size.
    """

    sizes: tuple[int, ...]
    stride: int | None = None
    seed: int = 0
    edge: str = "pad"

    def __post_init__(self) -> None:
        if self.edge not in EDGES:
            raise InputError(f"--edge: unknown way '{self.edge}'{nearest(self.edge, EDGES)}")
        object.__setattr__(self, "sizes", tuple(sorted(set(self.sizes))))
        if not self.sizes or min(*self.sizes, self.stride if self.stride is not None else 1) < 1:
            raise InputError(f"tile and stride must be at least 1 pixel; given {list(self.sizes)} and {self.stride}")
        odd = [str(size) for size in self.sizes if self.largest % size]
        if odd:
            raise InputError(
                f"tile sizes must divide the largest, {self.largest}, so that every pixel lies in one tile; "
                f"{', '.join(odd)} does not: choose for example 64, 128, 256, 512, 1024"
            )
        if self.stride is not None and len(self.sizes) > 1:
            raise InputError(
                f"a stride ({self.stride}) needs one tile size; given {len(self.sizes)}: leave the stride or sizes out"
            )

    @property
    def largest(self) -> int:
        """Edge of a block."""
        return self.sizes[-1]

    @property
    def step(self) -> int:
        """From one block to the next."""
        return self.largest if self.stride is None else self.stride

    def draw(self, name: str, row: int, col: int, room: int) -> int:
        """The size that a block is cut at: one that fits into it, or the smallest.

        Args:
            name: Of the source.
            row: First row of the block.
            col: First column of the block.
            room: Shorter edge of what of the block lies inside the scene.
        """
        if len(self.sizes) == 1:
            return self.largest
        fitting = [size for size in self.sizes if size <= room] or self.sizes[:1]
        return fitting[xxhash.xxh3_64_intdigest(f"{self.seed} {row} {col} {name}".encode()) % len(fitting)]


@dataclass(frozen=True)
class Tile:
    """A square of a scene.

    Attributes:
        row: First row in the scene.
        col: First column in the scene.
        size: Edge in pixels, t.
        pixels: `(C, t, t)` in the scene's type; nodata (or 0) beyond the scene's border.
        valid: `(t, t)` bool; False beyond the border.
        clouds: `(t, t)` uint8, see `Scene.cloud_codes`, 0 beyond the border; None where the scene does not know.
        transform: Affine of the tile's pixel grid, or None.
    """

    row: int
    col: int
    size: int
    pixels: np.ndarray
    valid: np.ndarray
    clouds: np.ndarray | None
    transform: Affine | None


def starts(length: int, tile: int, stride: int, edge: str = "pad") -> list[int]:
    """First pixels of the tiles along one axis: every `stride`, until one reaches the border.

    Where the last one reaches beyond it, it stays (`pad`), ends there instead (`shift`), or goes (`drop`). No tile lies
    wholly inside what the one before already reached.
    """
    count = max(0, -(-(length - tile) // stride)) + 1
    last = {"pad": length - 1, "drop": length - tile}.get(edge, max(length - tile, 0))
    first = (index * stride for index in range(count) if index * stride < length)
    return [min(one, last) for one in first if edge != "drop" or one <= last]


def windows(height: int, width: int, grid: Grid, name: str) -> list[Window]:
    """The tiles of a scene in the order of `slice_scene`: rows of blocks from the top, and rows inside a block.

    Args:
        height: Rows of the scene.
        width: Columns of the scene.
        grid: Sizes and places.
        name: Name of the source (`scene_name`), which decides sizes where there are several.

    Returns:
        Squares, of which those at the lower and right border may reach beyond the scene (see `Grid`).
    """
    return [
        Window(col, row, size, size)
        for top in _blocks(height, grid)
        for row, col, size in _row_of_blocks(top, height, width, grid, name)
    ]


def _blocks(length: int, grid: Grid) -> list[int]:
    """First pixels of the blocks along one axis; a block that is cut off may still hold whole tiles."""
    return starts(length, grid.largest, grid.step, "shift" if grid.edge == "shift" else "pad")


def _row_of_blocks(top: int, height: int, width: int, grid: Grid, name: str) -> Iterator[tuple[int, int, int]]:
    """Row, column and size of the tiles in the blocks that begin in row `top`."""
    bottom = min(top + grid.largest, height)
    for left in _blocks(width, grid):
        right = min(left + grid.largest, width)
        size = grid.draw(name, top, left, min(bottom - top, right - left))
        for row in starts(bottom - top, size, size, grid.edge):
            for col in starts(right - left, size, size, grid.edge):
                yield top + row, left + col, size


def slice_scene(scene: Scene, grid: Grid) -> Iterator[Tile]:
    """Cut a scene into tiles.

    The file's blocks are decoded once, from the top, whatever the grid, and only what the tiles of one row of blocks
    need is held: up to 256 MB in memory, and beyond that in scratch files in the system's temporary folder.

    Args:
        scene: Open scene.
        grid: Sizes and places.

    Yields:
        Every tile of `windows`, in that order, including those that hold nothing valid.

    Raises:
        InputError: A block cannot be read; tiles above it have been given by then.
    """
    rows = _Rows(scene)
    for top in _blocks(scene.height, grid):
        rows.hold(top, min(top + grid.largest, scene.height))
        for row, col, size in _row_of_blocks(top, scene.height, scene.width, grid, scene_name(scene.uri)):
            yield rows.cut(row, col, size)


@dataclass(frozen=True)
class _Part:
    """What one call decoded: rows and columns of the scene, and the pixels, validity and clouds there."""

    top: int
    bottom: int
    left: int
    right: int
    pixels: np.ndarray
    valid: np.ndarray
    clouds: np.ndarray | None


class _Rows:
    """Rows of a scene, read once from the top, in parts that are dropped when they are passed."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._parts: list[_Part] = []
        self._bottom = 0  # rows above it are read
        self._step = self._part_size()

    def _part_size(self) -> tuple[int, int]:
        """Rows and columns to decode in one call: whole blocks of the file, as many as fit."""
        scene = self._scene
        rows, cols = min(scene.block[0], scene.height), min(scene.block[1], scene.width)
        blocks = _PART_BYTES // (rows * cols * _bytes_per_pixel(scene))
        across = -(-scene.width // cols)
        return rows * max(blocks // across, 1), cols * min(max(blocks, 1), across)

    def hold(self, top: int, bottom: int) -> None:
        """Have the rows `top` to `bottom`, and none above."""
        self._parts = [part for part in self._parts if part.bottom > top]
        if bottom <= self._bottom:
            return
        height, width = self._scene.height, self._scene.width
        block = self._scene.block[0]
        begin = max(self._bottom, top)  # a stride above the tile leaves rows out
        self._bottom = min(-(-bottom // block) * block, height)
        for row in range(begin, self._bottom, self._step[0]):
            for col in range(0, width, self._step[1]):
                self._read(row, min(row + self._step[0], self._bottom), col, min(col + self._step[1], width))

    def _read(self, top: int, bottom: int, left: int, right: int) -> None:
        window = Window(left, top, right - left, bottom - top)
        pixels, valid = self._scene.read_valid(window)
        clouds = self._scene.cloud_codes(window)
        held = sum(part.pixels.nbytes for part in self._parts if not isinstance(part.pixels, np.memmap))
        if held + pixels.nbytes > _HELD_BYTES:
            pixels, valid = _aside(pixels), _aside(valid)
            clouds = None if clouds is None else _aside(clouds)
        self._parts.append(_Part(top, bottom, left, right, pixels, valid, clouds))

    def cut(self, row: int, col: int, size: int) -> Tile:
        """One tile of the rows that are held."""
        scene = self._scene
        inside = row + size <= scene.height and col + size <= scene.width
        shape = (len(scene.sensor.bands), size, size)
        pixels = np.empty(shape, scene.dtype) if inside else np.full(shape, scene.nodata or 0, scene.dtype)
        valid = np.zeros((size, size), bool)
        clouds = None if scene.masks is None else np.zeros((size, size), np.uint8)
        for part in self._parts:
            top, bottom = max(row, part.top), min(row + size, part.bottom)
            left, right = max(col, part.left), min(col + size, part.right)
            if top >= bottom or left >= right:
                continue
            there = (..., slice(top - row, bottom - row), slice(left - col, right - col))
            here = (..., slice(top - part.top, bottom - part.top), slice(left - part.left, right - part.left))
            pixels[there] = part.pixels[here]
            valid[there] = part.valid[here]
            if clouds is not None and part.clouds is not None:
                clouds[there] = part.clouds[here]
        return Tile(row, col, size, pixels, valid, clouds, scene.window_transform(Window(col, row, size, size)))


def _bytes_per_pixel(scene: Scene) -> int:
    return len(scene.sensor.bands) * scene.dtype.itemsize + (1 if scene.masks is None else 2)


def _aside(array: np.ndarray) -> np.ndarray:
    """A copy on disk, mapped; it goes with its last reference."""
    with tempfile.TemporaryFile(prefix="geomim-rows-") as file:
        file.write(np.ascontiguousarray(array).data)  # `tofile` does not say of a full disk that it is full
        file.flush()
        return np.memmap(file, array.dtype, "r", shape=array.shape)
