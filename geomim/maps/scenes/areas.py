"""An area of interest: polygons of a vector file in the columns and rows of a scene."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyproj
import shapely
from affine import Affine
from rasterio._err import CPLE_BaseError  # rasterio does not translate all of them
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.features import rasterize
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from geomim.corpus.captions.vector import open_table
from geomim.corpus.scenes import Scene
from geomim.errors import InputError
from geomim.maps.scenes.ground import Ground

_EARTH = (360.001, 90.001, 360.001, 90.001)  # an area across the date line, or from 0 to 360, counts on
_SEGMENTS = 64  # along a scene, of edges that are curves in its system
_MARGIN = 0.05  # of a scene's sides, that an area is kept around it


class NoGroundError(InputError):
    """An area and a scene have no ground in common, or less than a pixel of it."""


class Area:
    """Where one looks: the scene's pixels whose middle lies in one of some polygons.

    Args:
        shapes: `(n,)` polygons in columns and rows, may overlap and reach beyond the scene.
        notes: What was assumed or mended.
    """

    def __init__(self, shapes: np.ndarray, notes: Sequence[str] = ()) -> None:
        self.notes = tuple(notes)
        self._tree = shapely.STRtree(shapes)
        shapely.prepare(self._tree.geometries)

    @property
    def digest(self) -> str:
        """A few letters that are others for other polygons."""
        return hashlib.blake2b(b"".join(shapely.to_wkb(self._tree.geometries).tolist()), digest_size=12).hexdigest()

    def in_cells(self, cell: int) -> Area:
        """The same in squares of so many pixels."""
        return Area(shapely.transform(self._tree.geometries, lambda xy: xy / cell))

    def wants(self, side: int) -> Callable[[int, int], bool]:
        """Whether a window of this side, with this top and left, shares more than a border with it."""
        return lambda top, left: bool(self.touches([Window(left, top, side, side)])[0])

    def touches(self, windows: Sequence[Window]) -> np.ndarray:
        """`(n,)` whether windows share more than a border with it."""
        boxes = shapely.box(*np.array([_bounds(window) for window in windows], float).reshape(-1, 4).T)
        found = np.zeros(len(boxes), bool)
        one, other = self._tree.query(boxes, "intersects")
        meet = ~shapely.touches(self._tree.geometries[other], boxes[one])
        found[one[meet]] = True
        return found

    def mask(self, window: Window) -> np.ndarray:
        """`(h, w)` bool of a window: the pixels in it."""
        shape, frame = (int(window.height), int(window.width)), shapely.box(*_bounds(window))
        here = self._tree.geometries[self._tree.query(frame, "intersects")]
        here = here[~shapely.covers(here, frame)] if not (whole := shapely.covers(here, frame).any()) else here[:0]
        if not len(here):
            return np.full(shape, whole)
        move = Affine.translation(window.col_off, window.row_off)
        burnt: np.ndarray = rasterize([(one, 1) for one in here], shape, transform=move, dtype="uint8")
        return burnt > 0

    def holds(self, points: np.ndarray) -> np.ndarray:
        """`(n,)` whether points `(n, 2)`, columns and rows, lie in it."""
        found = np.zeros(len(points), bool)
        found[self._tree.query(shapely.points(points), "intersects")[0]] = True
        return found


def open_area(file: str, scene: Scene) -> Area:
    """Read an area of interest.

    Args:
        file: GeoPackage, GeoJSON, Shapefile or another that geopandas reads, `FILE:LAYER` of several layers, in any
            coordinate reference system. Geometries that cross themselves are made valid.
        scene: What is looked at.

    Raises:
        NoGroundError: It and the scene have less than a pixel in common.
        InputError: It cannot be read, holds no polygon, or nothing tells where it lies; or the scene has no place.
    """
    ground = Ground.of(scene)
    if not ground.known or ground.crs is None:
        raise InputError(f"'{scene.uri}' has no place on Earth: an area of interest says nothing about it")
    table, _ = open_table(file, placed=False)
    table = table[~(table.geometry.isna() | table.geometry.is_empty)]
    if table.empty:
        raise InputError(f"'{file}' holds no polygon: all of its geometries are empty")
    table, notes = with_crs(file, table, {scene.uri: (ground.crs, ground.outline)})
    shapes = table.geometry.to_numpy()
    if broken := int((~shapely.is_valid(shapes)).sum()):
        shapes = shapely.make_valid(shapes)
        notes.append(f"{broken} geometries of '{file}' cross themselves, and are made valid")
    flat = shapely.get_dimensions(shapes) == 2
    if not flat.any():
        raise InputError(f"'{file}' holds no polygon: an area of interest is made of polygons")
    if others := int((~flat).sum()):
        notes.append(f"{others} points and lines of '{file}' are left out")
    crs = CRS.from_wkt(table.crs.to_wkt())
    return Area(_shared(file, shapely.STRtree(_polygons(shapes[flat])), crs, ground, scene.uri), notes)


def with_crs(file: str, table: Any, scenes: Mapping[str, tuple[CRS, shapely.Polygon]]) -> tuple[Any, list[str]]:
    """A table with a coordinate reference system: its own where its coordinates can be of it, else a scene's.

    Args:
        file: Where the table is from.
        table: A `GeoDataFrame`.
        scenes: System of each scene, and its outline there.

    Returns:
        The table, and what is to be said.

    Raises:
        InputError: Its coordinates are neither of its system nor on a scene.
    """
    bounds = table.total_bounds
    degrees = bool((np.abs(bounds) <= _EARTH).all())
    if table.crs is not None and (degrees or not table.crs.is_geographic):
        return table, []
    told = table.crs.name if table.crs else "no coordinate reference system"
    why = f"'{file}' tells {told}, and its coordinates are {extent(bounds)}"
    for uri, (crs, outline) in scenes.items():
        if outline.intersects(shapely.box(*bounds)):
            said = f"{why}: they are taken to be in that of '{uri}', on which they lie"
            return table.set_crs(crs.to_wkt(), allow_override=True), [said]
    if degrees:
        return table.set_crs("OGC:CRS84", allow_override=True), [f"{why}: longitude and latitude are assumed"]
    own = ", ".join(dict.fromkeys(f"{crs.to_string():.40}" for crs, _ in scenes.values()))
    raise InputError(
        f"{why}: they lie on no scene, neither as longitude and latitude nor in the scene's own system ({own}); write "
        "the file with the one that it is in"
    )


def extent(bounds: Any) -> str:
    """Bounds in words."""
    west, south, east, north = (f"{number:.9g}" for number in bounds)
    return f"{west}..{east}, {south}..{north}"


def on_scene(tree: shapely.STRtree, crs: CRS, ground: Ground) -> tuple[np.ndarray, np.ndarray]:
    """Geometries that lie on a scene, or near it, in its columns and rows: from whole turns away, with bent edges.

    Args:
        tree: Valid geometries, or None.
        crs: Their system.
        ground: Where the scene lies.

    Returns:
        Valid geometries, areas cut around the scene, and the place of each in the tree.
    """
    frame, turn, bent = _frame(crs, ground), _turn(crs.to_wkt()), crs != ground.crs
    shapes, whose = _around(tree, None if frame is None else _grown(frame, turn, _wide(ground)), turn, bent)
    if bent:
        west, south, east, north = shapely.total_bounds(tree.geometries) if frame is None else frame
        shapes = shapely.segmentize(shapes, max(east - west, north - south) / _SEGMENTS)
        lead = _lead(crs.to_wkt(), ground.crs.to_wkt())
        shapes = shapely.transform(shapes, lambda xy: np.stack(lead.transform(*xy.T), 1))
        held = np.isfinite(shapely.bounds(shapes)).all(1)  # the scene's system may not hold all
        near = frame is not None and (turn is None or east - west <= turn / 2)
        shapes, whose = _brought(shapes[held], whose[held], ground, near)
    shapes = ground.pixels(shapes)
    broken = ~shapely.is_valid(shapes)  # numbers were rounded anew
    shapes[broken] = shapely.make_valid(shapes[broken])
    return shapes, whose


def _shared(file: str, tree: shapely.STRtree, crs: CRS, ground: Ground, uri: str) -> np.ndarray:
    """Polygons in columns and rows that have ground in common with the scene."""
    shapes, _ = on_scene(tree, crs, ground)
    around = shapely.box(0, 0, ground.width, ground.height)
    shapes = shapes[shapely.intersects(shapes, around)]
    covered = shapely.area(shapely.union_all(shapely.intersection(shapes, around)))
    if covered == 0:
        told, frame = extent(shapely.total_bounds(tree.geometries)), _frame(crs, ground)
        where = "" if frame is None else f": in {crs.to_string():.40} it covers {told}, the scene {extent(frame)}"
        raise NoGroundError(f"area '{file}' and scene '{uri}' have no ground in common{where}")
    if covered < 1:
        raise NoGroundError(f"area '{file}' covers less than a pixel of '{uri}': nothing can be told of it")
    return shapes


def _around(
    tree: shapely.STRtree, around: shapely.Polygon | None, turn: float | None, bent: bool
) -> tuple[np.ndarray, np.ndarray]:
    """What lies in a box, by whole turns, too, and whose it is; a line is cut only where it is bent anyway."""
    if around is None:
        here = np.flatnonzero(~shapely.is_missing(tree.geometries))
        return tree.geometries[here], here
    found = []
    for by in (-turn, 0.0, turn) if turn else (0.0,):  # what crosses the date line counts on beyond it
        here = np.sort(tree.query(_moved(around, -by)))
        found.append((_moved(tree.geometries[here], by), here))
    shapes, whose = (np.concatenate(each) for each in zip(*found, strict=True))
    dimensions = shapely.get_dimensions(shapes)
    inside = shapely.bounds(shapes) * (1, 1, -1, -1) >= np.multiply(around.bounds, (1, 1, -1, -1))
    cut = ~inside.all(1) & (bent | (dimensions == 2))
    shapes[cut] = shapely.intersection(shapes[cut], around)
    kept = shapely.get_dimensions(shapes) == dimensions  # no border that the box touches
    return shapes[kept], whose[kept]


def _brought(shapes: np.ndarray, whose: np.ndarray, ground: Ground, near: bool) -> tuple[np.ndarray, np.ndarray]:
    """Those shapes in a scene's system a turn on where the scene counts on; `near` are none but around the scene."""
    turn, (west, _, east, _) = _turn(ground.crs.to_wkt()), ground.outline.bounds
    if turn is None:
        return shapes, whose
    if near and not _wide(ground):  # point by point: the system may have torn a shape at its end
        middle = np.array([(west + east) / 2, 0])
        return shapely.transform(shapes, lambda xy: xy - turn * np.round((xy - middle) / turn) * [1, 0]), whose
    shapes, whose = np.concatenate([_moved(shapes, by) for by in (-turn, 0.0, turn)]), np.tile(whose, 3)
    left, _, right, _ = shapely.bounds(shapes).T
    there = (right > west) & (left < east)
    return shapes[there], whose[there]


def _moved(shapes: Any, by: float) -> Any:
    return shapely.transform(shapes, lambda xy: np.add(xy, (by, 0))) if by else shapes


@lru_cache(256)
def _turn(wkt: str) -> float | None:
    """How far x counts once around Earth where it is longitude: in degrees, or on a cylinder such as web maps have."""
    if CRS.from_wkt(wkt).is_geographic:
        return 360.0
    x, y = np.meshgrid([0, 1e6, 2e6], [0, 1e6])
    try:
        longitude, _ = pyproj.Proj(wkt)(x, y, inverse=True)
    except pyproj.exceptions.ProjError:
        return None
    steps = np.diff(np.unwrap(longitude, axis=1, period=360.0))
    even = np.isfinite(steps).all() and 0 < abs(steps[0, 0]) and np.allclose(steps, steps[0, 0], rtol=1e-9, atol=0)
    return float(360e6 / abs(steps[0, 0])) if even else None


@lru_cache(256)
def _lead(one: str, other: str) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(one, other, always_xy=True)


def _frame(crs: CRS, ground: Ground) -> tuple[float, ...] | None:
    """The scene's bounds in a system, beyond its date line where they cross it; None where they cannot be told."""
    try:
        west, south, east, north = transform_bounds(ground.crs, crs, *ground.outline.bounds, densify_pts=_SEGMENTS)
    except (RasterioError, CPLE_BaseError):
        return None
    if crs.is_geographic and west > east:
        if _wide(ground):
            return None  # two ends do not tell which longitudes are between
        east += 360
    frame = (west, south, east, north)
    return frame if np.isfinite(frame).all() else None


def _wide(ground: Ground) -> bool:
    """Whether a scene reaches over more than half of all longitudes."""
    turn, (west, _, east, _) = _turn(ground.crs.to_wkt()), ground.outline.bounds
    return turn is not None and east - west > turn / 2


def _grown(frame: tuple[float, ...], turn: float | None, wide: bool) -> shapely.Polygon:
    """A little more than a frame, but no ground twice, nor more longitudes where the scene has nearly all."""
    west, south, east, north = frame
    more = _MARGIN * max(east - west, north - south)
    along = more if turn is None else 0 if wide else min(more, max(turn - (east - west), 0) / 2)
    return shapely.box(west - along, south - more, east + along, north + more)


def _polygons(shapes: np.ndarray) -> np.ndarray:
    """The polygons of geometries; mending may leave lines beside them."""
    parts = shapely.get_parts(shapely.get_parts(shapes))
    kept: np.ndarray = parts[shapely.get_type_id(parts) == 3]
    return kept


def _bounds(window: Window) -> tuple[float, float, float, float]:
    left, top = window.col_off, window.row_off
    return left, top, left + window.width, top + window.height
