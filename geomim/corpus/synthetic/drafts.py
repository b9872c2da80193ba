"""A scene while it is made, and squares of one that are put into another."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import shapely
from affine import Affine
from shapely import affinity


class Box(NamedTuple):
    """A class, and the pixels that an object covers."""

    kind: str
    x1: int
    y1: int
    x2: int
    y2: int


@dataclass(frozen=True)
class Copy:
    """A square that stands in two scenes.

    Attributes:
        source: Scene it was taken from.
        source_row: First row there.
        source_col: First column there.
        target: Scene it was put into.
        target_row: First row there.
        target_col: First column there.
        size: Edge in pixels.
    """

    source: Path
    source_row: int
    source_col: int
    target: Path
    target_row: int
    target_col: int
    size: int


@dataclass
class Draft:
    """A scene while it is made.

    Attributes:
        path: Where it goes.
        pixels: `(C, S, S)` uint16.
        labels: `(S, S)` uint8.
        transform: Of pixels to the ground.
        boxes: Of objects.
        shapes: Class and shape in pixels of what a map shows, from `mapped`.
        taken: Corners of squares that hold a copy, or were copied.
    """

    path: Path
    pixels: np.ndarray
    labels: np.ndarray
    transform: Affine
    boxes: list[Box]
    shapes: list[tuple[str, shapely.Geometry]]
    taken: set[tuple[int, int]] = field(default_factory=set)


def plant(source: Draft, target: Draft, rng: np.random.Generator, changed: bool) -> list[Copy]:
    """Copy one free square with all that is in it; none where there is no free one."""
    sources, targets = _free_squares(source), _free_squares(target)
    if not sources or not targets:
        return []
    here, there = sources[rng.integers(len(sources))], targets[rng.integers(len(targets))]
    edge = _edge(target.labels.shape[0])
    cut = (slice(here[0], here[0] + edge), slice(here[1], here[1] + edge))
    put = (slice(there[0], there[0] + edge), slice(there[1], there[1] + edge))
    pixels = source.pixels[:, *cut]
    target.pixels[:, *put] = _another_look(pixels, rng) if changed else pixels
    target.labels[put] = source.labels[cut]
    old, new = (shapely.box(col, row, col + edge, row + edge) for row, col in (here, there))
    down, right = there[0] - here[0], there[1] - here[1]
    own = [box for box in target.boxes if not new.intersects(shapely.box(*box[1:]))]
    moved = [box for box in source.boxes if old.covers(shapely.box(*box[1:]))]
    target.boxes = own + [Box(kind, x1 + right, y1 + down, x2 + right, y2 + down) for kind, x1, y1, x2, y2 in moved]
    left = [(kind, shape.difference(new), shape) for kind, shape in target.shapes]
    come = [(kind, affinity.translate(shape.intersection(old), right, down), shape) for kind, shape in source.shapes]
    target.shapes = [
        part for kind, shape, whole in left + come for part in mapped(kind, shape, shapely.get_dimensions(whole))
    ]
    source.taken.add(here)
    target.taken.add(there)
    return [Copy(source.path, *here, target.path, *there, edge)]


def mapped(kind: str, shape: shapely.Geometry, dimension: int) -> list[tuple[str, shapely.Geometry]]:
    """The parts of a line (dimension 1) or an area (2) that a map shows, each by itself: no specks, no points."""
    parts = shapely.get_parts(shape)
    large = shapely.area(parts) > 20 if dimension == 2 else shapely.length(parts) > 8
    return [(kind, part) for part in parts[large & (shapely.get_dimensions(parts) == dimension)]]


def _edge(size: int) -> int:
    """Edge of squares that are copied."""
    return min(128, size // 4 // 64 * 64)


def _free_squares(draft: Draft) -> list[tuple[int, int]]:
    """Corners of squares on a grid without nodata, under little cloud and not part of a copy yet."""
    size, edge = draft.labels.shape[0], _edge(draft.labels.shape[0])
    free = []
    for row, col in product(range(0, size - edge + 1, edge), repeat=2):
        cut = (slice(row, row + edge), slice(col, col + edge))
        seen = draft.pixels[0][cut].all() and (draft.labels[cut] > 0).mean() > 0.8
        if (row, col) not in draft.taken and seen and len(np.unique(draft.labels[cut])) > 2:
            free.append((row, col))
    return free


def _another_look(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same ground under another sun: 4 % brighter, with half a percent of noise."""
    look = pixels * 1.04 * (1 + 0.005 * rng.standard_normal(pixels.shape, np.float32))
    return np.clip(np.rint(look), 1, 65535).astype(np.uint16)
