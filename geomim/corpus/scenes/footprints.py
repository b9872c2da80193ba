"""Where pixels lie: on a grid or by control points, on Earth in longitude and latitude, and how far apart they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyproj
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.transform import GCPTransformer
from rasterio.windows import Window
from shapely.geometry.base import BaseGeometry

from geomim.errors import InputError

Placement = Callable[[Any, Any], Any]
"""Columns and rows of pixel corners `(P,)` to x and y in a coordinate reference system."""

SPLINE_POINTS = 1000
"""Beyond so many points a spline takes minutes to solve, and a polynomial is fitted."""

_EARTH_RADIUS = 6378137.0
_GEOD = pyproj.Geod(ellps="WGS84")
_SEGMENTS = 16  # an edge of a window that is a curve in longitude and latitude


@dataclass(frozen=True)
class Grid:
    """A grid of pixels.

    Attributes:
        crs: `rasterio.crs.CRS`, or None where pixels have no place.
        transform: Affine from (column, row) to `crs`.
        height: Rows.
        width: Columns.
    """

    crs: CRS | None
    transform: Affine
    height: int
    width: int

    @classmethod
    def of(cls, dataset: Any) -> Grid:
        """The grid that a rasterio dataset has."""
        return cls(dataset.crs or None, dataset.transform, dataset.height, dataset.width)

    def agrees(self, other: Grid) -> bool:
        """Whether two grids are one, up to rounding: a tenth of a pixel over the whole raster."""
        if (self.height, self.width) != (other.height, other.width) or self.crs != other.crs:
            return False
        pixel = math.hypot(self.transform.a, self.transform.d)
        return all(
            math.dist(self.at(*corner), other.at(*corner)) < 0.1 * pixel
            for corner in ((0, 0), (self.width, 0), (0, self.height))
        )

    def meets(self, other: Grid) -> bool:
        """Whether two grids share ground; so it is taken where one has no outline on Earth."""
        one, two = (
            footprints(grid.crs, affine(grid.transform), [Window(0, 0, grid.width, grid.height)])[0]
            for grid in (self, other)
        )
        return one is None or two is None or one.intersection(two).area > 0

    def at(self, col: float, row: float) -> tuple[float, float]:
        """Where a corner of a pixel lies in `crs`."""
        x, y = affine(self.transform)(col, row)
        return x, y

    @property
    def gsd(self) -> float | None:
        """`ground_sample_distance` of it."""
        return ground_sample_distance(self.crs, affine(self.transform), self.height, self.width)

    @property
    def metres(self) -> tuple[float, float]:
        """Width and height of a pixel, in a projected system."""
        a, b, _, d, e, _ = self.transform[:6]
        unit = self.crs.linear_units_factor[1] if self.crs else 1.0
        return math.hypot(a, d) * unit, math.hypot(b, e) * unit


@lru_cache(maxsize=256)
def _to_degrees(wkt: str) -> pyproj.Transformer | None:
    """Transformer to longitude and latitude, or None for another planet or a local system."""
    try:
        crs = pyproj.CRS.from_wkt(wkt)
        ellipsoid = crs.ellipsoid
        if ellipsoid is None or abs(ellipsoid.semi_major_metre / _EARTH_RADIUS - 1) > 0.005:
            return None
        return pyproj.Transformer.from_crs(crs, "OGC:CRS84", always_xy=True)
    except pyproj.exceptions.ProjError:
        return None


def on_earth(crs: Any) -> bool:
    """Whether a `rasterio.crs.CRS` leads to longitude and latitude: not that of another planet or of a local system."""
    return _to_degrees(crs.to_wkt()) is not None


def affine(transform: Affine) -> Placement:
    """An affine as a `Placement`."""
    a, b, c, d, e, f = transform[:6]
    return lambda cols, rows: (a * cols + b * rows + c, d * cols + e * rows + f)


def by_control_points(uri: str, points: Sequence[Any]) -> Placement:
    """From columns and rows to the system of the points: a thin plate spline, which goes through each of them.

    Args:
        uri: The raster, for error sentences.
        points: `rasterio.control.GroundControlPoint`s.

    Raises:
        InputError: They place nothing: fewer than three, or all on a line.
    """
    spread = np.array([[point.col, point.row, point.x, point.y] for point in points])
    spread -= spread[:1]
    ranks = [np.linalg.matrix_rank(part) for part in (spread[:, :2], spread[:, 2:])]
    if len(points) < 3 or min(ranks) < 2:
        raise InputError(
            f"'{uri}' is placed by {len(points)} ground control points, and these place nothing: at least three, not "
            "on one line, are needed"
        )
    transformer = GCPTransformer(points, tps=len(points) <= SPLINE_POINTS)

    return lambda cols, rows: np.array(transformer.xy(rows, cols, offset="ul"))


def degrees(crs: Any, place: Placement, cols: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Pixel corners `(..., P)` to degrees `(..., P, 2)`; all NaN in a row with a point outside the projection."""
    points = np.full((*cols.shape, 2), np.nan)
    transformer = _to_degrees(crs.to_wkt())
    if transformer is None:
        return points
    try:
        x, y = transformer.transform(*place(cols.ravel(), rows.ravel()))
    except pyproj.exceptions.ProjError:
        return points
    points[..., 0], points[..., 1] = x.reshape(cols.shape), y.reshape(cols.shape)
    with np.errstate(invalid="ignore"):
        inside = (np.isfinite(points).all(-1) & (np.abs(points[..., 1]) <= 90 + 1e-9)).all(-1)
    points[~inside] = np.nan
    return points


def footprints(crs: Any, place: Placement | None, windows: Sequence[Window]) -> np.ndarray:
    """Outlines of windows on Earth, edges densified where they are curves.

    Args:
        crs: `rasterio.crs.CRS` or None.
        place: Where the pixels of the scene lie, or None.
        windows: Parts of the scene; may reach beyond it.

    Returns:
        `(n,)` polygons in OGC:CRS84, two in one where a window crosses the date line; None without a georeference, off
        Earth, where a corner lies outside the projection (a geostationary disc) or where the window holds a pole.
    """
    outlines = np.full(len(windows), None)
    if crs is None or place is None or not len(windows):
        return outlines
    spans = np.array([(one.col_off, one.row_off, one.width, one.height) for one in windows], float)
    # Vertices are corner, middle, corner, ...: how far does a middle lie from its chord, in pixels?
    rings = np.unwrap(_rings(crs, place, spans, 2), axis=1, period=360.0)
    middles, corners = rings[:, 1::2], rings[:, 0::2]
    pixel = np.abs(rings[:, 2] - rings[:, 0]).max(1) / spans[:, 2]
    with np.errstate(invalid="ignore"):
        curved = np.abs(middles - (corners[:, :-1] + corners[:, 1:]) / 2).max((1, 2)) > 0.5 * pixel
    outlines[~curved] = _outlines(corners[~curved])
    if curved.any():
        dense = _rings(crs, place, spans[curved], _SEGMENTS)
        outlines[curved] = _outlines(np.unwrap(dense, axis=1, period=360.0))
    return outlines


def on_ground(crs: Any, place: Placement, shape: BaseGeometry) -> BaseGeometry | None:
    """A shape in columns and rows as one in OGC:CRS84, in parts where it crosses the date line.

    Args:
        crs: `rasterio.crs.CRS`.
        place: Where the pixels lie; `footprints` gives them an outline.
        shape: Its edges are segments of at most a few pixels where they may be curves.

    Returns:
        The shape; None where a part of it lies outside the projection.
    """
    points = np.unwrap(degrees(crs, place, *shapely.get_coordinates(shape).T), axis=0, period=360.0)
    if not np.isfinite(points).all():
        return None
    moved = shapely.transform(shape, lambda _: points)
    west, _, east, _ = shapely.bounds(moved)
    return _divided(moved) if west < -180 or east > 180 else moved


def _rings(crs: Any, place: Placement, spans: np.ndarray, segments: int) -> np.ndarray:
    """Closed rings `(n, 4 * segments + 1, 2)` around windows, in degrees; NaN where one cannot be told."""
    along = np.arange(segments) / segments
    across = np.concatenate([along, np.ones(segments), 1 - along, np.zeros(segments), [0.0]])
    down = np.concatenate([np.zeros(segments), along, np.ones(segments), 1 - along, [0.0]])
    col, row, width, height = spans.T[..., None]
    return degrees(crs, place, col + across * width, row + down * height)


def _outlines(rings: np.ndarray) -> np.ndarray:
    """Polygons of rings `(n, P, 2)`; None for NaN, and for a ring that goes round a pole."""
    outlines = np.full(len(rings), None)
    good = np.isfinite(rings).all((1, 2))
    good[good] = np.abs(rings[good, -1, 0] - rings[good, 0, 0]) <= 180
    if good.any():
        # Unwrapping leaves the last corner a rounding error beside the first, which makes an invalid polygon.
        polygons = shapely.polygons(np.round(rings[good, :-1], 9))
        west, _, east, _ = shapely.bounds(polygons).T
        for beyond in np.flatnonzero((west < -180) | (east > 180)):
            polygons[beyond] = _divided(polygons[beyond])
        outlines[good] = shapely.normalize(polygons)
    return outlines


def _divided(polygon: BaseGeometry) -> BaseGeometry:
    """A polygon that crosses the date line in its parts on either side."""
    parts = [
        shapely.transform(polygon & shapely.box(-180 + turn, -90, 180 + turn, 90), lambda xy, by=turn: xy - [by, 0.0])
        for turn in (-360.0, 0.0, 360.0)
    ]
    return shapely.union_all([part for part in parts if part.area > 0])


def ground_sample_distance(crs: Any, place: Placement | None, height: int, width: int) -> float | None:
    """Edge in metres of a pixel at the middle of a raster, measured on the ellipsoid; None without a place on Earth."""
    if crs is None or place is None:
        return None
    col, row = width / 2, height / 2
    points = degrees(crs, place, np.array([col, col + 1, col]), np.array([row, row, row + 1]))
    if np.isnan(points).any():
        return None
    (x, y), (right, right_y), (down_x, down) = points
    _, _, across = _GEOD.inv(x, y, right, right_y)
    _, _, along = _GEOD.inv(x, y, down_x, down)
    return float(np.sqrt(across * along))
