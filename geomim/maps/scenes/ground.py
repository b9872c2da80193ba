"""From columns and rows of a raster to the ground and back, and how much ground a pixel covers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyproj
import shapely
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.transform import GCPTransformer

from geomim.corpus.scenes import Scene
from geomim.corpus.scenes.footprints import Placement, affine, by_control_points, degrees

_GEOD = pyproj.Geod(ellps="WGS84")
_POINTS = 21  # along each side, of the spline that leads back to pixels
_STEPS = 3  # of its correction
_SQUARE, _EVEN = 64, 1e-3  # side of squares whose pixels are measured as one, and how far they may differ
_FIVE = np.array([[0.0, 0], [1, 0], [0.5, 0.5], [0, 1], [1, 1]])  # corners and middle


@dataclass(frozen=True)
class Ground:
    """Where a raster lies.

    Attributes:
        crs: Coordinate reference system, or None.
        place: Columns and rows of pixel corners to x and y in it. Without a place x is the column and y the row below
            0, so that a GIS shows the upper side up.
        height: Rows.
        width: Columns.
        transform: The affine that `place` is, or None.
        known: Whether it has a place at all.
    """

    crs: CRS | None
    place: Placement
    height: int
    width: int
    transform: Affine | None
    known: bool = True

    @classmethod
    def of(cls, scene: Scene) -> Ground:
        """That of a scene."""
        return cls._of(scene.crs, scene.transform, scene.placement, scene.height, scene.width)

    @classmethod
    def of_raster(cls, uri: str, dataset: Any) -> Ground:
        """That of an open rasterio dataset."""
        transform = None if dataset.transform == Affine.identity() else dataset.transform
        points, crs = dataset.gcps
        placement = by_control_points(uri, points) if transform is None and points else None
        crs = dataset.crs if placement is None else crs
        return cls._of(crs or None, transform, placement, dataset.height, dataset.width)

    @classmethod
    def _of(cls, crs: Any, transform: Affine | None, placement: Placement | None, height: int, width: int) -> Ground:
        if transform is None and placement is not None:
            return cls(crs, placement, height, width, None)
        known, transform = transform is not None, transform or Affine.scale(1, -1)
        return cls(crs, affine(transform), height, width, transform, known)

    @property
    def outline(self) -> shapely.Polygon:
        """The raster's outline in `crs`."""
        return self.shapes(np.array([shapely.box(0, 0, self.width, self.height)]))[0]

    @cached_property
    def measured(self) -> bool:
        """Whether metres are known."""
        return bool(np.isfinite(self.areas(np.array([self.width / 2]), np.array([self.height / 2]))).all())

    def notes(self, out: str) -> list[str]:
        """What is to be said of a file that lies on it."""
        if not self.known:
            return [f"'{out}' is in columns and rows, these below 0: nothing tells a place"]
        return [] if self.crs else [f"'{out}' tells no coordinate reference system: the scene has none"]

    def shapes(self, pixels: np.ndarray) -> np.ndarray:
        """Geometries `(n,)` in columns and rows as ones in `crs`; control points bend their edges."""
        if self.transform is None:
            pixels = shapely.segmentize(pixels, max(self.height, self.width) / 64)
        return shapely.transform(pixels, lambda xy: np.stack(self.place(*xy.T), 1))

    def pixels(self, shapes: np.ndarray) -> np.ndarray:
        """Geometries `(n,)` in `crs` as ones in columns and rows."""
        return shapely.transform(shapes, lambda xy: np.stack(self.back(*xy.T), 1))

    def areas(self, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Square metres on the ellipsoid `(n,)` of pixels around points; NaN where nothing tells metres.

        In a system that does not lead to Earth those of its plane.
        """
        around = np.array([[-0.5, 0], [0.5, 0], [0, -0.5], [0, 0.5]])
        columns, rows = columns[:, None] + around[:, 0], rows[:, None] + around[:, 1]
        if not self.known or self.crs is None:
            return np.full(len(columns), np.nan)
        points = degrees(self.crs, self.place, columns, rows)
        if np.isnan(points).all() and self.crs.is_projected:
            x, y = self.place(columns.ravel(), rows.ravel())
            points = np.stack([x, y], -1).reshape(*columns.shape, 2)
            return _product(points) * self.crs.linear_units_factor[1] ** 2
        points = np.unwrap(points, axis=1, period=360.0)
        return _product(np.radians(points)) * _radii(points[..., 1].mean(1))

    def window_areas(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """`areas` of all pixels `(height, width)` of a window, from squares that are taken as even.

        They are of 64 pixels a side, and of fewer where that much is not even to a thousandth.
        """
        five = self.areas(*(np.array([left, top]) + np.array([width, height]) * _FIVE).T)
        known = np.isfinite(five)
        uneven = np.ptp(five) / five.mean() / _EVEN if known.all() else 0.0
        if known.any() and not known.all():  # beyond a pole, or a projection, nothing tells
            uneven = np.inf
        step = max(min(int(max(height, width) / max(uneven, 1)), _SQUARE), 1)
        ends = (np.append(np.arange(0, length, step), length) for length in (width, height))
        columns, rows = (start + (one[1:] + one[:-1]) / 2 for start, one in zip((left, top), ends, strict=True))
        coarse = self.areas(*(axis.ravel() for axis in np.meshgrid(columns, rows))).reshape(len(rows), len(columns))
        return coarse.repeat(step, 0)[:height].repeat(step, 1)[:, :width]

    def bearings(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Degrees `(n,)` clockwise from north that lines between points `(n, 2)`, columns and rows, run at.

        From the upper side of the image where it has no place on Earth.
        """
        both = np.stack([starts, ends], 1)
        points = np.full(both.shape, np.nan)
        if self.known and self.crs is not None:
            points = degrees(self.crs, self.place, both[..., 0], both[..., 1])
        (east, down), on_earth = (ends - starts).T, np.isfinite(points).all((1, 2))
        bearings = np.degrees(np.arctan2(east, -down))
        (lon, lat), (far_lon, far_lat) = points[on_earth].transpose(1, 2, 0)
        bearings[on_earth] = _GEOD.inv(lon, lat, far_lon, far_lat)[0]
        return bearings

    def back(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Columns and rows `(2, n)` of points in `crs`."""
        if self.transform is not None:
            return np.stack(affine(~self.transform)(x, y))
        guess = self._spline
        found = guess(x, y)
        for _ in range(_STEPS):  # a spline through points on a grid misses by a little between them
            found = found + guess(x, y) - guess(*self.place(*found))
        return found

    @cached_property
    def _spline(self) -> Any:
        ends = (np.linspace(0, length, _POINTS) for length in (self.width, self.height))
        columns, rows = (axis.ravel() for axis in np.meshgrid(*ends))
        points = zip(rows, columns, *self.place(columns, rows), strict=True)
        transformer = GCPTransformer([GroundControlPoint(*map(float, one)) for one in points], tps=True)
        return lambda x, y: np.stack(transformer.rowcol(x, y, op=np.positive)[::-1]).astype(float)


def _product(points: np.ndarray) -> np.ndarray:
    """Areas `(n,)` of parallelograms across points `(n, 4, 2)`: left, right, above, below."""
    (a, b), (c, d) = (points[:, 1] - points[:, 0]).T, (points[:, 3] - points[:, 2]).T
    return np.abs(a * d - b * c)


def _radii(latitude: np.ndarray) -> np.ndarray:
    """Square metres of a radian of longitude by one of latitude."""
    sine = np.sin(np.radians(latitude))
    curved = 1 - _GEOD.es * sine**2
    return _GEOD.a**2 * (1 - _GEOD.es) / curved**2 * np.cos(np.radians(latitude))
