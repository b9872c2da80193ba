"""Two dates of a place as one scene on the grid of the first, read lazily; where one has no image, neither has."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pyproj
import shapely
import torch
from rasterio.windows import Window
from torch import Tensor

from geomim.corpus.scenes import Scene
from geomim.corpus.scenes.scene import Windows
from geomim.errors import InputError
from geomim.maps.scenes.areas import extent
from geomim.maps.scenes.ground import Ground
from geomim.models.inputs import ContractInput
from geomim.sensors import Band, BandContract, Sensor

_MOST = 16  # pixels of the second scene along one of the first
_SPREAD = 64  # pixels along a side of the first scene that are looked for in the second, to know whether they meet
_EXACT = 6  # decimals of a pixel that places are told to: pixels of one grid meet
Lead = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Columns and rows `(n,)` of one scene to those of another, `(2, n)`."""


@dataclass(frozen=True)
class PairInput:
    """Brings both dates of a `pair` to a contract, each from its own bands and numbers.

    Attributes:
        before: Of the first date.
        after: Of the second.
    """

    before: ContractInput
    after: ContractInput

    @property
    def contract(self) -> BandContract:
        """What both are brought to."""
        return self.before.contract

    def __call__(self, numbers: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Images `(B, 2, C, S, S)` and validity `(B, 1, S, S)` of numbers with the bands of both dates."""
        bands = len(self.before.sensor.bands)
        (first, one), (second, other) = self.before(numbers[:, :bands], valid), self.after(numbers[:, bands:], valid)
        seen = one & other
        return torch.where(seen[:, None], torch.stack([first, second], 1), 0.0), seen


def pair(before: Scene, after: Scene) -> Scene:
    """Both dates as a scene on the grid of the first: its bands, then those of the second.

    A pixel is the mean of bilinear samples of the second that lie evenly in it, one where its pixels are not smaller;
    pixels that agree stay as they are. Scenes may be turned, or placed by control points. Those without a place are
    laid on each other if they are of one size.

    Args:
        before: The first date; closed with what is returned.
        after: The second, likewise.

    Raises:
        InputError: They have no ground in common, nothing tells how one lies on the other, or pixels of the second are
            more than 16 times smaller.
    """
    ground = Ground.of(before), Ground.of(after)
    way, notes = _way(before, after, *ground)

    def both(window: Window) -> tuple[np.ndarray, np.ndarray]:
        (first, one), (second, other) = before.read_valid(window), _read(after, window, way)
        return np.concatenate([first.astype(np.float32), second]), one & other

    def close() -> None:
        before.close()
        after.close()

    dates = (("before", before.sensor), ("after", after.sensor))
    bands = tuple(Band(f"{band.name} {date}") for date, sensor in dates for band in sensor.bands)
    return replace(
        before,
        sensor=Sensor("pair", bands),
        reader=Windows(both, close),
        masks=None,
        dtype=np.dtype(np.float32),
        nodata=math.nan,
        notes=notes,
    )


@dataclass(frozen=True)
class Way:
    """From pixels of one scene to those of another.

    Attributes:
        lead: Columns and rows to columns and rows.
        offsets: `(N, 2)` columns and rows of the other scene, spread evenly over what a pixel covers of it.
    """

    lead: Lead
    offsets: np.ndarray

    @classmethod
    def at(cls, lead: Lead, x: np.ndarray, y: np.ndarray, uri: str) -> Way:
        """The way to the scene `uri` whose offsets are those of the pixel of middling size around points `(n,)`."""
        around = ((-0.5, 0), (0.5, 0), (0, -0.5), (0, 0.5))
        left, right, above, below = (lead(x + across, y + down) for across, down in around)
        with np.errstate(invalid="ignore"):
            steps = np.stack([right - left, below - above]).transpose(2, 0, 1)
        sizes = np.sqrt(np.abs(np.linalg.det(steps)))
        middling = np.argsort(sizes)[np.isfinite(sizes).sum() // 2]  # a pixel on the date line is as wide as the Earth
        size, steps = sizes[middling], steps[middling]
        if not size - 0.01 <= _MOST:
            raise InputError(
                f"pixels of '{uri}' are {size:.0f} times smaller: bring it to about the first date's size first"
            )
        count = max(math.ceil(size - 0.01), 1)
        parts = (np.arange(count) + 0.5) / count - 0.5
        return cls(lead, np.stack(np.meshgrid(parts, parts), -1).reshape(-1, 2) @ steps)

    @property
    def reach(self) -> float:
        """How far offsets lie off at most."""
        return float(np.abs(self.offsets).max())


def _way(before: Scene, after: Scene, first: Ground, second: Ground) -> tuple[Way, tuple[str, ...]]:
    """The way from pixels of the first scene to those of the second, and what is to be said."""
    names = f"'{before.uri}' and '{after.uri}'"
    if (first.known, first.crs is None) != (second.known, second.crs is None):
        raise InputError(f"{names}: one has a place on Earth and the other none, so nothing tells how they lie")
    if not first.known:
        if (first.height, first.width) != (second.height, second.width):
            sizes = f"{first.height} x {first.width} and {second.height} x {second.width}"
            raise InputError(f"{names} have no place, and sizes of {sizes}: nothing tells how they lie")
        note = f"{names} have no place: they are laid on each other as they are"
        return Way(lambda x, y: np.stack([x, y]), np.zeros((1, 2))), (note,)
    lead = _between(first, second)
    x, y = _spread(first)
    inside = _inside(lead(x, y), second)
    share = inside.mean()
    if not inside.any():  # of so few
        x, y, share = _shared(names, _between(second, first), first, second)
        inside = _inside(lead(x, y), second)
    if not inside.any():
        raise InputError(f"{names} have no ground in common")
    note = f"'{after.uri}' covers {share:.0%} of '{before.uri}': the rest is nodata"
    return Way.at(lead, x[inside], y[inside], after.uri), (note,) if share < 0.995 else ()


def _spread(ground: Ground) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows `(n,)` of middles of pixels that lie evenly over a raster."""
    sides = (np.unique(np.linspace(0, length - 1, _SPREAD).round()) + 0.5 for length in (ground.width, ground.height))
    columns, rows = np.meshgrid(*sides)
    return columns.ravel(), rows.ravel()


def _inside(points: np.ndarray, raster: Ground | Scene) -> np.ndarray:
    """Which columns and rows `(2, n)` lie in a raster, `(n,)` bool; what is not finite does not."""
    return ((points >= 0) & (points <= np.array([[raster.width], [raster.height]]))).all(0)


def _shared(names: str, back: Lead, first: Ground, second: Ground) -> tuple[np.ndarray, np.ndarray, float]:
    """Column and row `(1,)` of a point of the first raster in the outline of the second, and the share in it.

    An outline that leads beyond the first one's system, as that of the whole Earth does, tells nothing.

    Raises:
        InputError: They have less than a pixel in common.
    """
    frame = shapely.box(0, 0, first.width, first.height)
    outline = shapely.segmentize(shapely.box(0, 0, second.width, second.height), max(second.height, second.width) / 64)
    outline = shapely.transform(outline, lambda xy: np.stack(back(*xy.T), 1))
    finite = np.isfinite(shapely.get_coordinates(outline)).all()
    shared = shapely.intersection(shapely.make_valid(outline), frame) if finite else shapely.Point()
    if shared.area < 1:
        where = [extent(one.bounds) for one in first.shapes(np.array([frame, outline]))] if finite else []
        told = f"; in the system of the first they cover {' and '.join(where)}" if where else ""
        raise InputError(f"{names} have no ground in common{told}")
    middle = shared.representative_point()
    return np.array([middle.x]), np.array([middle.y]), shared.area / frame.area


def _between(one: Ground, other: Ground) -> Lead:
    """From pixels of one raster to those of another; longitudes that differ by whole turns are one."""
    same, system = one.crs == other.crs, other.crs
    bring = None if same else pyproj.Transformer.from_crs(one.crs.to_wkt(), system.to_wkt(), always_xy=True).transform
    round_earth = system is not None and system.is_geographic
    middle = other.place(np.array([other.width / 2]), np.array([other.height / 2]))[0] if round_earth else 0.0

    def lead(columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
        x, y = one.place(columns, rows)
        x, y = bring(x, y) if bring else (x, y)
        with np.errstate(invalid="ignore"):  # of what lies beyond a projection
            return other.back(x - 360 * np.round((x - middle) / 360) if round_earth else x, y)

    return lead


def _read(scene: Scene, window: Window, way: Way) -> tuple[np.ndarray, np.ndarray]:
    """What a scene has at the pixels of a window of another one: `(C, h, w)` float32, and where it has `(h, w)`.

    Means over points spread evenly in each pixel, of valid pixels only; at least half must be such.
    """
    shape = int(window.height), int(window.width)
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    x, y = way.lead((columns + window.col_off).ravel(), (rows + window.row_off).ravel())
    inside = _inside(np.stack([x, y]), scene)
    values, weights = np.zeros((len(scene.sensor.bands), len(x)), np.float32), np.zeros(len(x), np.float32)
    if inside.any():
        x, y = x[inside], y[inside]
        left, right = _span(x, way.reach, scene.width)
        top, bottom = _span(y, way.reach, scene.height)
        numbers, valid = scene.read_valid(Window(left, top, right - left, bottom - top))
        numbers = np.where(valid, numbers, 0).astype(np.float32)
        for across, down in way.offsets:
            at = (x + across).clip(0.5, scene.width - 0.5), (y + down).clip(0.5, scene.height - 0.5)  # its last pixels
            value, weight = _bilinear(numbers, valid, at[0] - left, at[1] - top)
            values[:, inside] += value
            weights[inside] += weight
    seen = weights >= 0.5 * len(way.offsets)
    values = np.where(seen, values / np.where(seen, weights, 1), 0).astype(np.float32)
    return values.reshape(-1, *shape), seen.reshape(shape)


def _span(places: np.ndarray, reach: float, length: int) -> tuple[int, int]:
    """First pixel, and the one behind the last, that means around places are made of."""
    first, last = math.floor(places.min() - reach) - 1, math.ceil(places.max() + reach) + 1
    return max(first, 0), min(last, length)


def _bilinear(numbers: np.ndarray, valid: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted sums `(C, n)` of the valid ones of four pixels around places `(n,)`, and the sums of weights."""
    x, y = (np.round(axis, _EXACT) - 0.5 for axis in (x, y))
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    values, weights = np.zeros((len(numbers), len(x)), np.float32), np.zeros(len(x), np.float32)
    for right in (0, 1):
        for down in (0, 1):
            weight = np.abs(1 - right - (x - column)) * np.abs(1 - down - (y - row))
            at, on = row + down, column + right
            there = (at >= 0) & (on >= 0) & (at < valid.shape[0]) & (on < valid.shape[1])
            at, on = at.clip(0, valid.shape[0] - 1), on.clip(0, valid.shape[1] - 1)
            weight = np.where(there & valid[at, on], weight, 0).astype(np.float32)
            values += numbers[:, at, on] * weight
            weights += weight
    return values, weights
