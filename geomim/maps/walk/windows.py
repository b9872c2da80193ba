"""One walk over a scene of any size: overlapping windows, moved inside at its borders, blended into strips of a map."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from rasterio.windows import Window
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from geomim.corpus.scenes import Scene
from geomim.errors import ConfigError, InputError

Look = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""What is made of windows: numbers `(B, C, S, S)` and validity `(B, S, S)` bool, on the CPU, become values
`(B, K, side, side)`, one a cell, and which cells hold image `(B, side, side)` bool, on any device. Beyond the scene
both repeat its border."""

_AHEAD = 2  # batches that are read while one is looked at
_Given, _Made = TypeVar("_Given"), TypeVar("_Made")


def check_overlap(overlap: float) -> None:
    """Refuse a share of a window that the next one cannot have in common with it."""
    if not 0 <= overlap <= 0.9:
        raise ConfigError(f"--overlap: expected a share of a window from 0 to 0.9; given {overlap:g}")


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

    @classmethod
    def over(cls, scene: Scene, cell: int, side: int, overlap: float) -> Walk:
        """The walk over a scene whose windows share so much of their side with the next, from 0 to 0.9."""
        return cls(scene.height, scene.width, cell, side, min(round(overlap * side), side - 1))

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
        """Weights `(side, side)` of a window's cells: from one window to the next they cross over as a cosine does."""
        inside = np.minimum(np.arange(self.side), np.arange(self.side)[::-1]) + 0.5
        ramp = np.sin(np.pi / 2 * np.minimum(inside / max(self.overlap, 0.5), 1)) ** 2
        return np.outer(ramp, ramp).astype(np.float32)

    def inside(self, top: int, rows: int) -> np.ndarray:
        """Which cells of some rows of the map lie at least by half inside the scene, `(rows, columns)` bool."""
        down = np.minimum(self.height / self.cell - np.arange(top, top + rows), 1)
        across = np.minimum(self.width / self.cell - np.arange(self.shape[1]), 1)
        return np.outer(down, across) >= 0.5

    def _starts(self, length: int) -> list[int]:
        last = max(length - self.side, 0)
        return [*range(0, last, self.side - self.overlap), last]


def blend(
    scene: Scene,
    walk: Walk,
    look: Look,
    count: int,
    batch: int = 16,
    start: int = 0,
    wanted: Callable[[int, int], bool] | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Look at a scene window by window; windows without image are not looked at.

    One row of windows is in memory at a time, however large the scene is. A thread reads ahead of what is computed.

    Args:
        scene: Read a window at a time.
        walk: Where the windows lie.
        look: What is made of them.
        count: Values a cell.
        batch: Windows looked at together.
        start: Row of windows to go on with: what comes is what had come from there on, bit for bit.
        wanted: Whether the window with this top and left, in pixels, is looked at; all are where None.

    Yields:
        For each row of windows the first row of a strip of the map, and its values `(count, rows, columns)` float32:
        means over the windows that hold a cell, NaN where none sees image in it.

    Raises:
        InputError: The scene cannot be read somewhere, or the model's answers are not finite.
    """
    rows, sums = [*walk.rows, walk.shape[0]], _Sums(walk, count)
    first = next(row for row in range(start + 1) if rows[row] + walk.side > rows[start])  # that reaches into the strip
    for row, lefts, numbers, valid, last in batches(scene, walk, batch, first, wanted):
        if lefts and not sums.add(lefts, *look(numbers, valid)):
            place = f"row {rows[row] * walk.cell}, columns from {lefts[0] * walk.cell} on"
            raise InputError(f"'{scene.uri}': the model's answers at {place} are not finite: look at its weights")
        if last:
            values = sums.take(rows[row], rows[row + 1] - rows[row])
            if row >= start:
                yield rows[row], values


class Windows(NamedTuple):
    """Windows of a row that are read together.

    Attributes:
        row: Of windows.
        lefts: First column of cells of each window that holds image.
        numbers: `(B, C, S, S)` of these, None where there is none.
        valid: `(B, S, S)` bool, likewise.
        last: No more come of the row.
    """

    row: int
    lefts: list[int]
    numbers: Any
    valid: Any
    last: bool


def batches(
    scene: Scene, walk: Walk, batch: int, start: int, wanted: Callable[[int, int], bool] | None = None
) -> Iterator[Windows]:
    """Read the windows of a scene from a row of windows on; a thread reads ahead. Arguments are those of `blend`."""
    jobs = _jobs(walk, start, batch, wanted)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        total, done = len(walk.rows) * len(walk.columns), start * len(walk.columns)
        task = progress.add_task(f"looking at {Path(scene.uri).name}", total=total, completed=done)
        for count, windows in ahead(lambda one: (one.count, _read(scene, walk, one)), jobs, _AHEAD):
            yield windows
            progress.advance(task, count)


class _Sums:
    """Sums `(count, side, columns)` of what a row of windows says, each weighted, and the sums of the weights."""

    def __init__(self, walk: Walk, count: int) -> None:
        shape = walk.side, max(walk.shape[1], walk.side)
        self.walk, self.taper = walk, torch.from_numpy(walk.taper)
        self.weights, self.values = np.zeros(shape, np.float32), np.zeros((count, *shape), np.float32)

    def add(self, lefts: list[int], values: Tensor, seen: Tensor) -> bool:
        """Add windows whose values are finite; otherwise say that they are not."""
        values, seen = values.cpu(), seen.cpu()
        values = torch.where(seen[:, None], values.float(), 0)
        if not bool(values.isfinite().all()):
            return False
        for left, value, weight in zip(lefts, values, seen * self.taper, strict=True):
            place = np.s_[..., left : left + self.walk.side]
            torch.from_numpy(self.values[place]).addcmul_(value, weight)
            self.weights[place] += weight.numpy()
        return True

    def take(self, top: int, rows: int) -> np.ndarray:
        """Means of so many rows, the first of which is row `top` of the map; the others move up."""
        width, side = self.walk.shape[1], self.walk.side
        weights = self.weights[:rows, :width]
        known = (weights > 0) & self.walk.inside(top, rows)
        means: np.ndarray = self.values[:, :rows, :width] / np.where(known, weights, np.float32(np.nan))
        for kept in (self.values, self.weights):
            kept[..., : side - rows, :] = kept[..., rows:, :]
            kept[..., side - rows :, :] = 0
        return means


def ahead(make: Callable[[_Given], _Made], given: Iterable[_Given], most: int) -> Iterator[_Made]:
    """What is made of one after another, in order; a thread is up to so many of them ahead."""
    waiting: deque[Future[_Made]] = deque()
    pool = ThreadPoolExecutor(1)
    try:
        for one in given:
            waiting.append(pool.submit(make, one))
            if len(waiting) > most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Job:
    """Windows of a row that are read together; `last` of their row. With them `count` are done, unwanted ones, too."""

    row: int
    lefts: list[int]
    last: bool
    count: int


def _jobs(walk: Walk, first: int, batch: int, wanted: Callable[[int, int], bool] | None) -> Iterator[_Job]:
    for row, top in enumerate(walk.rows[first:], first):
        lefts = [one for one in walk.columns if wanted is None or wanted(top * walk.cell, one * walk.cell)]
        starts = range(0, max(len(lefts), 1), batch)
        for at in starts:
            last = at == starts[-1]
            yield _Job(row, lefts[at : at + batch], last, len(walk.columns) - at if last else batch)


def _read(scene: Scene, walk: Walk, job: _Job) -> Windows:
    """The windows of a job that hold image, stacked."""
    top, side, kept = walk.rows[job.row] * walk.cell, walk.side * walk.cell, []
    for run in _runs(job.lefts, walk.side):  # each is read at once, since windows share columns
        first = run[0] * walk.cell
        numbers, valid, around = _held(scene, top, first, side, run[-1] * walk.cell + side - first)
        if any(map(any, around)):
            numbers, valid = np.pad(numbers, ((0, 0), *around), mode="edge"), np.pad(valid, around, mode="edge")
        for left in run:
            own = np.s_[..., left * walk.cell - first : left * walk.cell - first + side]
            if valid[own].any():
                kept.append((left, numbers[own], valid[own]))
    if not kept:
        return Windows(job.row, [], None, None, job.last)
    lefts, numbers, valid = zip(*kept, strict=True)
    both = np.stack(numbers, dtype=_computed(numbers[0].dtype)), np.stack(valid)
    return Windows(job.row, list(lefts), *map(torch.from_numpy, both), job.last)


def _runs(lefts: Iterable[int], side: int) -> Iterator[list[int]]:
    """Ascending windows of this side, as many at a time as touch or overlap."""
    run: list[int] = []
    for left in lefts:
        if run and left > run[-1] + side:
            yield run
            run = []
        run.append(left)
    if run:
        yield run


def read_window(scene: Scene, top: int, left: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A window `(C, side, side)` and its validity; what lies outside the scene repeats its border and is not valid."""
    numbers, valid, around = _held(scene, top, left, side, side)
    numbers = numbers.astype(_computed(numbers.dtype), copy=False)
    return np.pad(numbers, ((0, 0), *around), mode="edge"), np.pad(valid, around)


def _computed(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type that numbers of a scene are handed on in: torch hardly computes with unsigned ones of 16 and 32 bits."""
    return np.dtype(np.float32) if dtype.kind in "ui" and dtype != np.uint8 else dtype


def _held(scene: Scene, top: int, left: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray, Any]:
    """What the scene has of a window, and how many rows and columns of it lie before and behind."""
    row, column = max(top, 0), max(left, 0)
    bottom, right = min(top + height, scene.height), min(left + width, scene.width)
    numbers, valid = scene.read_valid(Window(column, row, right - column, bottom - row))
    around = ((row - top, top + height - bottom), (column - left, left + width - right))
    return numbers, valid, around
