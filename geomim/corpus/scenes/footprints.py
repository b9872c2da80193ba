"""Where on Earth a window lies: footprints in longitude and latitude (OGC:CRS84), and ground sample distance."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pyproj
import shapely
from affine import Affine
from rasterio.windows import Window
from shapely.geometry.base import BaseGeometry

Placement = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Columns and rows of pixel corners `(P,)` to x and y in a coordinate reference system."""

_EARTH_RADIUS = 6378137.0
_GEOD = pyproj.Geod(ellps="WGS84")
_SEGMENTS = 16  # an edge of a window that is a curve in longitude and latitude


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


def _project(crs: Any, place: Placement, cols: np.ndarray, rows: np.ndarray) -> np.ndarray | None:
    """Pixel corners `(P,)` to `(P, 2)` degrees; None where a point lies outside the projection."""
    transformer = _to_degrees(crs.to_wkt())
    if transformer is None:
        return None
    try:
        degrees = np.stack(transformer.transform(*place(cols, rows)), axis=1)
    except pyproj.exceptions.ProjError:
        return None
    inside = np.isfinite(degrees).all() and np.abs(degrees[:, 1]).max() <= 90 + 1e-9
    return degrees if inside else None


def footprint(crs: Any, place: Placement | None, window: Window) -> BaseGeometry | None:
    """Outline of a window on Earth, edges densified where they are curves.

    Args:
        crs: `rasterio.crs.CRS` or None.
        place: Where the pixels of the scene lie, or None.
        window: Part of the scene; may reach beyond it.

    Returns:
        A polygon in OGC:CRS84, two where it crosses the date line; None without a georeference, off Earth, where a
        corner lies outside the projection (a geostationary disc) or where the window holds a pole.
    """
    if crs is None or place is None:
        return None
    ring = _ring(crs, place, window, 2)
    if ring is None:
        return None
    # Vertices are corner, middle, corner, ...: how far does a middle lie from its chord, in pixels?
    unwrapped = np.unwrap(ring, axis=0, period=360.0)
    middles, corners = unwrapped[1::2], unwrapped[0::2]
    pixel = np.abs(unwrapped[2] - unwrapped[0]).max() / window.width
    if np.abs(middles - (corners[:-1] + corners[1:]) / 2).max() > 0.5 * pixel:
        ring = _ring(crs, place, window, _SEGMENTS)
        if ring is None:
            return None
        unwrapped = np.unwrap(ring, axis=0, period=360.0)
    else:
        unwrapped = corners
    return _outline(unwrapped)


def _ring(crs: Any, place: Placement, window: Window, segments: int) -> np.ndarray | None:
    """Closed ring `(4 * segments + 1, 2)` around the window, in degrees."""
    along = np.arange(segments) / segments
    cols = np.concatenate([along, np.ones(segments), 1 - along, np.zeros(segments), [0.0]])
    rows = np.concatenate([np.zeros(segments), along, np.ones(segments), 1 - along, [0.0]])
    return _project(crs, place, window.col_off + cols * window.width, window.row_off + rows * window.height)


def _outline(ring: np.ndarray) -> BaseGeometry | None:
    if abs(ring[-1, 0] - ring[0, 0]) > 180:  # the ring goes round a pole
        return None
    # Unwrapping leaves the last corner a rounding error beside the first, which makes an invalid polygon.
    polygon = shapely.Polygon(np.round(ring[:-1], 9))
    west, _, east, _ = polygon.bounds
    if west >= -180 and east <= 180:
        return shapely.normalize(polygon)
    parts = [
        shapely.transform(polygon & shapely.box(-180 + turn, -90, 180 + turn, 90), lambda xy, by=turn: xy - [by, 0.0])
        for turn in (-360.0, 0.0, 360.0)
    ]
    return shapely.normalize(shapely.union_all([part for part in parts if part.area > 0]))


def ground_sample_distance(crs: Any, place: Placement | None, height: int, width: int) -> float | None:
    """Edge in metres of a pixel at the middle of a raster, measured on the ellipsoid; None without a place on Earth."""
    if crs is None or place is None:
        return None
    col, row = width / 2, height / 2
    points = _project(crs, place, np.array([col, col + 1, col]), np.array([row, row, row + 1]))
    if points is None:
        return None
    (x, y), (right, right_y), (down_x, down) = points
    _, _, across = _GEOD.inv(x, y, right, right_y)
    _, _, along = _GEOD.inv(x, y, down_x, down)
    return float(np.sqrt(across * along))
