"""Outlines of the classes of a map: polygons with hectares and mean confidence, of a map of any size."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from rasterio.features import shapes as trace
from rasterio.windows import Window
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from geomim.errors import ConfigError, InputError
from geomim.maps.files.layers import layer
from geomim.maps.files.rasters import NODATA, open_map
from geomim.maps.scenes.ground import Ground

_BLOCK = 1024  # rows and columns that are outlined at a time
_ROWS = 1 << 14  # of the table that are written at a time


@dataclass
class Region:
    """Pixels of one class that hang together by their sides.

    Attributes:
        value: Number of the class.
        pixels: How many.
        area: The sum of what each of them counts.
        sure: The sum of their confidence.
        parts: Outlines of its parts in columns and rows, one a block that it lies in.
    """

    value: int
    pixels: int = 0
    area: float = 0.0
    sure: float = 0.0
    parts: list[shapely.Polygon] = field(default_factory=list)

    def add(self, other: Region) -> None:
        """Take in what hangs together with it."""
        self.pixels, self.area, self.sure = self.pixels + other.pixels, self.area + other.area, self.sure + other.sure
        self.parts += other.parts

    @property
    def outline(self) -> shapely.Polygon:
        """Of all parts; without corners that are none."""
        whole = self.parts[0] if len(self.parts) == 1 else shapely.coverage_union_all(self.parts)
        return shapely.simplify(whole, 0, preserve_topology=False)


def write_polygons(
    source: Path,
    out: Path,
    names: Sequence[str],
    simplify: float | None = None,
    tags: Mapping[str, str] | None = None,
) -> list[str]:
    """Write the outlines of a map's classes.

    A polygon is what hangs together by sides of pixels. Its hectares are those of its pixels on the ellipsoid, so they
    add up to those of the map, simplified or not. The map is read by blocks, and only polygons that may go on are kept.

    Args:
        source: Raster of class ids, 255 where there is none, and as band 2 a confidence, if it has one.
        out: A `.gpkg` or `.parquet` with columns `class`, `id`, `hectares` (`pixels` where nothing tells metres) and
            `confidence`, the mean.
        names: Of the classes by id.
        simplify: Metres. Corners are taken off outlines, those first that make the smallest triangles, as long as these
            are of less than so many metres squared (Visvalingam and Whyatt, 1993). Neighbours keep one outline between
            them; it stays where it crosses the blocks that are read.
        tags: What is told beside.

    Returns:
        What is to be said, last what was written.

    Raises:
        ConfigError: `simplify` is not above 0.
        InputError: Nothing tells the map's metres, and it is to be simplified by some.
    """
    if simplify is not None and not simplify > 0:
        raise ConfigError(f"--simplify: expected metres above 0; given {simplify:g}")
    with open_map(source) as raster:
        ground = Ground.of_raster(str(source), raster)
        notes = ground.notes(str(out))
        tolerance = 0.0 if simplify is None else simplify / _side(ground, source)
        if simplify and tolerance < 0.7:  # the smallest triangle has half a pixel
            notes.append(f"--simplify {simplify:g} m is less than a pixel of {simplify / tolerance:.3g} m: no effect")
        count, size = 0, "hectares" if ground.measured else "pixels"
        with layer(out, ground.crs, tags) as write:
            write(_columns([], names, size, raster.count > 1), np.zeros(0, object))
            found = regions(raster, ground, tolerance)
            while some := list(islice(found, _ROWS)):
                outlines = ground.shapes(np.array([one.outline for one in some]))
                write(_columns(some, names, size, raster.count > 1), outlines)
                count += len(some)
    return [*notes, f"wrote {out}: {count} polygons"]


def _side(ground: Ground, source: Path) -> float:
    """Metres of a pixel's side."""
    if not ground.measured:
        raise InputError(f"'{source}' has no place that tells metres: leave --simplify out")
    return float(ground.areas(np.array([ground.width / 2]), np.array([ground.height / 2]))[0] ** 0.5)


def _columns(some: Sequence[Region], names: Sequence[str], size: str, sure: bool) -> dict[str, np.ndarray]:
    pixels = np.array([one.pixels for one in some], np.int64)
    columns = {
        "class": np.array([names[one.value] for one in some], object),
        "id": np.array([one.value for one in some], np.int32),
        size: pixels if size == "pixels" else np.array([one.area / 1e4 for one in some], np.float64),
    }
    confidence = np.array([one.sure for one in some], np.float64) / pixels
    return columns | ({"confidence": confidence.round(2)} if sure else {})


def regions(raster: Any, ground: Ground, tolerance: float = 0.0, block: int = _BLOCK) -> Iterator[Region]:
    """Regions of a map; those that hang together across blocks are one.

    Args:
        raster: Open rasterio dataset, as `write_polygons` describes it.
        ground: Where it lies.
        tolerance: Side in pixels of the square that triangles are taken off below; 0 leaves outlines as they are.
        block: Rows and columns that are read at a time.

    Yields:
        Each once nothing below can belong to it.
    """
    going: dict[int, Region] = {}
    above, count = np.full(raster.width, -1), 0
    for top in range(0, raster.height, block):
        pairs, below, before = [], np.full(raster.width, -1), None
        for left in range(0, raster.width, block):
            window = Window(left, top, min(block, raster.width - left), min(block, raster.height - top))
            found, numbers = _in_block(raster, ground, window, tolerance)
            numbers = np.where(numbers >= 0, numbers + count, -1)
            going |= dict(enumerate(found, count))
            count += len(found)
            columns = slice(left, left + window.width)
            sides = [(above[columns], numbers[0])] + ([] if before is None else [(before, numbers[:, 0])])
            pairs += [pair for one, other in sides for pair in _touching(one, other, going)]
            below[columns], before = numbers[-1], numbers[:, -1]
        going, below = _joined(going, pairs, below)
        above = below
        last = {*np.unique(below).tolist()} if top + block < raster.height else set[int]()
        yield from (one for number, one in going.items() if number not in last)
        going = {number: one for number, one in going.items() if number in last}


def _in_block(raster: Any, ground: Ground, window: Window, tolerance: float) -> tuple[list[Region], np.ndarray]:
    """Regions of a window, and which of them each pixel `(h, w)` is in; -1 for none."""
    ids = raster.read(1, window=window)
    count, labels = hanging(ids)
    outlines = _outlines(labels, count, tolerance)
    values = np.zeros(count, int)
    values[labels] = ids
    place = np.where(values == NODATA, -1, (values != NODATA).cumsum() - 1)
    sums = [np.bincount(labels.ravel())]
    area = ground.window_areas(*(int(one) for one in (window.row_off, window.col_off, window.height, window.width)))
    sure = raster.read(2, window=window) if raster.count > 1 else np.zeros_like(ids)
    sums += [np.bincount(labels.ravel(), one.ravel().astype(float)) for one in (area, sure)]
    outlines = shapely.transform(outlines, lambda xy: np.add(xy, (window.col_off, window.row_off)))
    rows = zip(values.tolist(), *(one.tolist() for one in sums), outlines, strict=True)
    found = [Region(value, *own, [outline]) for value, *own, outline in rows if value != NODATA]
    return found, place[labels]


def hanging(ids: np.ndarray) -> tuple[int, np.ndarray]:
    """How many sets of equal numbers hang together by their sides in `(h, w)`, and which set each pixel is in."""
    starts = np.ones(ids.shape, bool)
    starts[:, 1:] = ids[:, 1:] != ids[:, :-1]
    runs = starts.ravel().cumsum().reshape(ids.shape) - 1
    same = ids[1:] == ids[:-1]
    count = int(runs[-1, -1]) + 1
    links = coo_array((np.ones(same.sum(), bool), (runs[:-1][same], runs[1:][same])), shape=(count, count))
    found, sets = connected_components(links, directed=False)
    return int(found), sets[runs]


def _outlines(labels: np.ndarray, count: int, tolerance: float) -> np.ndarray:
    """Outlines `(count,)` of sets of pixels, with a corner at each pixel's where they meet the frame."""
    rings: list[list[tuple[float, float]]] = []
    owners, numbers = list[int](), list[int]()
    for shape, number in trace(labels.astype(np.int32)):
        rings += shape["coordinates"]
        owners += [len(numbers)] * len(shape["coordinates"])
        numbers.append(int(number))
    which = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
    outlines = np.empty(count, object)
    outlines[numbers] = shapely.polygons(
        shapely.linearrings(np.array(list(chain.from_iterable(rings))), indices=which), indices=owners
    )
    height, width = labels.shape
    west, north, east, south = shapely.bounds(outlines).T
    dense = (west == 0) | (north == 0) | (east == width) | (south == height) | (tolerance > 0)
    outlines[dense] = shapely.transform(shapely.segmentize(outlines[dense], 1), np.round)
    if not tolerance:
        return outlines
    simple = shapely.coverage_simplify(outlines, tolerance, simplify_boundary=False)
    if np.isclose(shapely.area(simple).sum(), labels.size, rtol=1e-9) and shapely.is_valid(simple).all():
        return simple
    print("note: outlines of a block would no longer fit each other if they were simplified: they stay as they are")
    return outlines


def _touching(one: np.ndarray, other: np.ndarray, going: dict[int, Region]) -> list[tuple[int, int]]:
    """Pairs of regions of one class on either side of a line."""
    pairs = np.unique(np.stack([one, other], 1)[(one >= 0) & (other >= 0)], axis=0)
    return [(a, b) for a, b in pairs.tolist() if going[a].value == going[b].value]


def _joined(
    going: dict[int, Region], pairs: Sequence[tuple[int, int]], below: np.ndarray
) -> tuple[dict[int, Region], np.ndarray]:
    """Regions with those that hang together as one, called by the lowest number, and the last row in these."""
    if not pairs:
        return going, below
    numbers = np.array(sorted(going))
    one, other = (np.searchsorted(numbers, side) for side in np.array(pairs).T)
    links = coo_array((np.ones(len(one), bool), (one, other)), shape=(len(numbers), len(numbers)))
    _, sets = connected_components(links, directed=False)
    members = defaultdict(list)
    for number, own in zip(numbers.tolist(), sets.tolist(), strict=True):
        members[own].append(number)
    joined = {}
    for first, *others in members.values():
        joined[first] = going[first]
        for another in others:
            joined[first].add(going[another])
    names = np.array([members[own][0] for own in sets.tolist()])
    return joined, np.where(below >= 0, names[np.searchsorted(numbers, np.maximum(below, numbers[0]))], -1)
