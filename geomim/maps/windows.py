"""One walk over a scene of any size: overlapping windows, moved inside at its borders, blended into strips of a map."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rasterio.windows import Window
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from geomim.corpus.scenes import Scene

Look = Callable[[Tensor, Tensor], tuple[np.ndarray, np.ndarray]]
"""What is made of windows: numbers `(B, C, S, S)` and validity `(B, S, S)` become values `(B, K, side, side)`, one a
cell, and which cells hold image `(B, side, side)` bool."""


@dataclass(frozen=True)
class Walk:
    """Where windows lie over a scene; in cells, squares of pixels that a map has one value for.

    A scene of at most one window is looked at once. The last windows end where the cells of the scene do.

    Attributes:
        height: Rows of the scene in pixels.
        width: Its columns.
        cell: Side of a cell in pixels: that of a patch.
        side: Side of a window in cells.
        overlap: Cells that a window shares with the next one, below `side`.
    """

    height: int
    width: int
    cell: int
    side: int
    overlap: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of cells; the last ones may reach beyond the scene."""
        return math.ceil(self.height / self.cell), math.ceil(self.width / self.cell)

    @property
    def rows(self) -> list[int]:
        """First row of cells of each row of windows."""
        return self._starts(self.shape[0])

    @property
    def columns(self) -> list[int]:
        """First column of cells of each column of windows."""
        return self._starts(self.shape[1])

    @property
    def places(self) -> list[tuple[int, int]]:
        """Top and left of all windows in pixels."""
        return [(row * self.cell, column * self.cell) for row in self.rows for column in self.columns]

    @property
    def taper(self) -> np.ndarray:
        """Weights `(side, side)` of a window's cells: from one window to the next they cross over linearly."""
        inside = np.minimum(np.arange(self.side), np.arange(self.side)[::-1]) + 0.5
        ramp = np.minimum(inside / max(self.overlap, 0.5), 1).astype(np.float32)
        return np.outer(ramp, ramp)

    def _starts(self, length: int) -> list[int]:
        last = max(length - self.side, 0)
        return [*range(0, last, self.side - self.overlap), last]


def blend(scene: Scene, walk: Walk, look: Look, batch: int = 16) -> Iterator[tuple[int, np.ndarray]]:
    """Look at a scene window by window.

    One row of windows is in memory at a time, however large the scene is.

    Args:
        scene: Read a window at a time.
        walk: Where the windows lie.
        look: What is made of them.
        batch: Windows looked at together.

    Yields:
        The first row of a strip of the map, and its values `(K, rows, columns)` float32: means over the windows that
        hold a cell, NaN where none sees image in it.
    """
    (height, width), side, taper = walk.shape, walk.side, walk.taper
    weights, sums = np.zeros((side, max(width, side)), np.float32), np.empty(0)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"looking at {Path(scene.uri).name}", total=len(walk.rows) * len(walk.columns))
        for top, after in zip(walk.rows, [*walk.rows[1:], height], strict=True):
            for start in range(0, len(walk.columns), batch):
                lefts = walk.columns[start : start + batch]
                read = [read_window(scene, top * walk.cell, left * walk.cell, side * walk.cell) for left in lefts]
                values, seen = look(*(torch.from_numpy(np.stack(part)) for part in zip(*read, strict=True)))
                sums = sums if len(sums) else np.zeros((values.shape[1], *weights.shape), np.float32)
                for left, value, weight in zip(lefts, values, seen * taper, strict=True):
                    sums[:, :, left : left + side] += np.where(weight > 0, value, 0) * weight
                    weights[:, left : left + side] += weight
                progress.advance(task, len(lefts))
            done = after - top  # the next row of windows does not reach up to these
            yield top, sums[:, :done, :width] / np.where(weights > 0, weights, np.nan)[:done, :width]
            for kept in (sums, weights):
                kept[..., : side - done, :] = kept[..., done:, :]
                kept[..., side - done :, :] = 0


def read_window(scene: Scene, top: int, left: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A window `(C, side, side)` and its validity; what lies outside the scene repeats its border and is not valid.

    Numbers are of a type that torch computes with: it hardly does with unsigned ones of 16 and 32 bits.
    """
    row, column = max(top, 0), max(left, 0)
    bottom, right = min(top + side, scene.height), min(left + side, scene.width)
    numbers, valid = scene.read_valid(Window(column, row, right - column, bottom - row))
    around = ((row - top, top + side - bottom), (column - left, left + side - right))
    numbers = numbers.astype(np.float32) if numbers.dtype.kind in "ui" and numbers.dtype != np.uint8 else numbers
    return np.pad(numbers, ((0, 0), *around), mode="edge"), np.pad(valid, around)
