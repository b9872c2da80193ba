"""What vector layers say of tiles that have a place on Earth: objects, areas, lengths, and what crosses what.

All is asked in longitude and latitude, where the catalogue's footprints are; areas and lengths are those on the
ellipsoid, whatever the projection of layer or tile.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyproj
import shapely

from geomim.corpus.captions.chance import Chance
from geomim.corpus.captions.grammar import Noun, length, listed, rounded, sentence, with_article
from geomim.corpus.captions.objects import called
from geomim.corpus.captions.seen import Place
from geomim.corpus.captions.templates import CLASSES, HERE, frequent, stated
from geomim.errors import InputError, nearest

COLUMNS = ("class", "class_name", "label", "category", "type", "fclass", "landuse", "kind")
"""Columns that are looked for, in this order, where nobody says which one holds the class."""
LEAST = 2.0
"""Pixels that a line must run in a tile, and the square root of those that an area must cover, to be spoken of."""
_GEOD = pyproj.Geod(ellps="WGS84")
_WAYS = ("way", "path", "steps", "track", "road", "street", "route")


class Seen(NamedTuple):
    """What of a geometry lies in a tile, its dimension (0, 1 or 2), and whether it is seen whole."""

    what: Noun
    shape: Any
    dimension: int
    whole: bool


class Layer:
    """Geometries in longitude and latitude, and what they are called.

    Args:
        files: Any that geopandas reads; `FILE:LAYER` where one has several layers.
        column: Holds the class; the first of `COLUMNS` that says something where None, and where there is none all are
            called after the layer. As OpenStreetMap has it, `yes` means what the column is called, and values of
            `highway` are kinds of road.
        names: What classes are called instead, or None to leave them out.

    Attributes:
        said: Where the classes were found, and where the layer lies.
        classes: Class names as they stand in the column.

    Raises:
        InputError: One cannot be read, has several layers, no coordinate reference system or coordinates that are none
            of it, or lacks the column.
    """

    def __init__(self, files: tuple[str, ...], column: str | None, names: Mapping[str, str | None]) -> None:
        read = [_read(file, column) for file in files]
        values = [value for own, _, _ in read for value in own]
        shapes = np.concatenate([own for _, own, _ in read])
        self.classes = sorted({value for value in values if value})
        nouns = dict(zip(self.classes, called(list(self.classes), names), strict=True))
        known = np.array([bool(value) and nouns[value] is not None for value in values], bool)
        use = known & np.isfinite(shapely.bounds(shapes)).all(1)  # neither missing nor empty nor beyond a projection
        self.said = [said for _, _, said in read]
        if lost := int((~use).sum()):
            self.said.append(f"{lost} of {len(use)} geometries are left out: no class, or no place")
        self._nouns = [nouns[value] for value, keep in zip(values, use, strict=True) if keep]
        self._shapes = shapes[use]
        self._tree = shapely.STRtree(self._shapes)

    def sentences(self, place: Place, gsd: float, chance: Callable[[str], Chance]) -> list[str]:
        """What it says of a tile: up to four sentences.

        Args:
            place: Where the tile lies.
            gsd: Metres of a pixel.
            chance: Draws for a purpose.
        """
        seen = list(self._seen(place, gsd))
        draw, said = chance("objects"), []
        here = draw.pick(HERE)
        lines, areas = ([one for one in seen if one.dimension == dimension] for dimension in (1, 2))
        if things := [one for one in seen if one.dimension != 1]:
            whole, cut = (Counter(one.what for one in things if one.whole == so) for so in (True, False))
            counts = [(what, whole[what], cut[what]) for what in _kinds(things)]
            said.append(stated(frequent(counts)[:CLASSES], here, draw))
        draw = chance("measures")
        if areas:
            what = draw.pick(_kinds(areas))
            own = [one for one in areas if one.what == what]
            said.append(sentence(f"{_covering(own)} about {_area(_size(_united(own), 2))}"))
        if lines:
            what = draw.pick(_kinds(lines))
            metres = _size(_united(one for one in lines if one.what == what), 1)
            said.append(sentence(f"about {length(metres)} of {_stretch(what)} can be seen {here}"))
        if crossing := list(_crossings(lines, areas, gsd)):
            said.append(sentence(listed(chance("relations").some(crossing, 2))))
        return said

    def _seen(self, place: Place, gsd: float) -> Iterator[Seen]:
        """What lies in a tile and is large enough to be seen."""
        for row in np.sort(self._tree.query(place.valid, "intersects")).tolist():
            what, shape = self._nouns[row], self._shapes[row]
            part, dimension = shapely.intersection(shape, place.valid), int(shapely.get_dimensions(shape))
            if not dimension or _size(part, dimension) >= max((LEAST * gsd) ** dimension, 1e-9):
                yield Seen(what, part, dimension, what.mass or bool(shapely.covers(place.within, shape)))


def _kinds(seen: list[Seen]) -> list[Noun]:
    return sorted({one.what for one in seen}, key=lambda what: what.one)


def _united(seen: Any) -> Any:
    return shapely.union_all([one.shape for one in seen])


def _covering(seen: list[Seen]) -> str:
    """`forest covers`, `buildings cover`, `part of a lake covers`."""
    what = seen[0].what
    if what.cover == "covers" or len(seen) > 1:
        return f"{what.stuff} {what.cover}"
    return f"{'' if seen[0].whole else 'part of '}{with_article(what.one)} covers"


def _area(square_metres: float) -> str:
    if square_metres < 995:
        return f"{rounded(square_metres)} square metres"
    number = rounded(square_metres / 1e4)
    return f"{number} {'hectare' if number == '1' else 'hectares'}"


def _stretch(what: Noun) -> str:
    """Of what a length is: `river`, `road`."""
    return what.one if what.stuff == what.many else what.stuff


def _crossings(lines: list[Seen], areas: list[Seen], gsd: float) -> Iterator[str]:
    """What a line crosses: areas that it runs in and leaves within the tile, and lines that it meets between ends."""
    for one in _kinds(lines):
        own = [line.shape for line in lines if line.what == one]
        subject = with_article(_stretch(one))
        for what in _kinds(areas):
            area = _united(place for place in areas if place.what == what)
            across = [line for line in own if shapely.crosses(line, area)]
            both = [(shapely.intersection(line, area), shapely.difference(line, area)) for line in across]
            if any(min(_size(part, 1) for part in parts) >= LEAST * gsd for parts in both):
                yield f"{subject} crosses {what.stuff if what.mass else with_article(what.one)}"
        for what in _kinds(lines):
            others = [line.shape for line in lines if line.what == what]
            if one.one < what.one and shapely.crosses(np.array(own)[:, None], np.array(others)).any():
                yield f"{subject} crosses {with_article(_stretch(what))}"


def _size(shape: Any, dimension: int) -> float:
    """Square metres of the areas in a geometry, or metres of its lines."""
    parts = shapely.get_parts(shapely.get_parts([shape]))
    parts = [part for part in parts if shapely.get_dimensions(part) == dimension]
    if dimension == 2:
        return sum(abs(_GEOD.geometry_area_perimeter(part)[0]) for part in parts)
    return sum(_GEOD.geometry_length(part) for part in parts)


def _read(file: str, column: str | None) -> tuple[list[str | None], np.ndarray, str]:
    """Classes and geometries of a file in longitude and latitude, and what is to be said of it."""
    table, layer = open_table(file)
    values, column = classes_in(file, table, layer, column)
    try:
        shapes = shapely.make_valid(table.geometry.to_crs("OGC:CRS84").to_numpy())
    except pyproj.exceptions.ProjError as error:
        raise InputError(f"vector layer '{file}' has no place on Earth ({error})") from error
    bounds = shapely.bounds(shapes)
    beyond = np.isfinite(bounds).all(1) & (np.abs(bounds) > [180.001, 90.001, 180.001, 90.001]).any(1)
    if beyond.any():
        row = int(np.flatnonzero(beyond)[0])
        raise InputError(
            f"vector layer '{file}', row {row + 1}: {bounds[row, 0]:.6g}, {bounds[row, 1]:.6g} is no longitude and "
            f"latitude, though it tells {table.crs.name}: write it with the coordinate reference system that it is in"
        )
    some = sorted({value for value in values if value})
    names = ", ".join(some[:5]) + (" ..." if len(some) > 5 else "")
    west, south, east, north = (f"{number:.5g}" for number in shapely.total_bounds(shapes))
    found = f"column '{column}' ({names})" if column else f"the layer's name, {layer}"
    return values, shapes, f"'{file}': classes are {found}; it lies in {west}..{east} E, {south}..{north} N"


def classes_in(file: str, table: Any, layer: str, column: str | None) -> tuple[list[str | None], str | None]:
    """The class of each geometry, and the column that holds it: see `Layer`."""
    known = [name for name in table.columns if name != table.geometry.name]
    if column is not None and column not in known:
        raise InputError(f"vector layer '{file}' has no column '{column}'{nearest(column, known)}")
    lower = {
        name.lower(): name
        for name in known
        if name.lower() in COLUMNS and any(_class(name, value, layer) for value in table[name])
    }
    column = column or next((lower[name] for name in COLUMNS if name in lower), None)
    cells = table[column or table.geometry.name]
    return [layer if column is None else _class(column, value, layer) for value in cells], column


def _class(column: str, value: Any, layer: str) -> str | None:
    """What a cell says of a geometry's class; `yes` in a column such as `type` says no more than the layer's name."""
    if value is None or value != value or not str(value).strip():
        return None
    name = f"{value:.15g}" if isinstance(value, float) else str(value).strip()
    if name.lower() in ("yes", "true"):
        return "road" if column == "highway" else layer if column.lower() in COLUMNS else column
    return f"{name} road" if column == "highway" and not name.endswith(_WAYS) else name


def file_of(given: str) -> tuple[str, str]:
    """File and layer of `FILE:LAYER`; no layer where it is a file as it stands, or nothing stands before a colon."""
    path, _, layer = given.rpartition(":")
    return (given, "") if Path(given).exists() or not path else (path, layer)


def open_table(file: str, placed: bool = True) -> tuple[Any, str]:
    """The table of a layer, and its name; `placed` refuses one that tells no coordinate reference system."""
    import geopandas
    from pyogrio.errors import DataSourceError

    path, layer = file_of(file)
    try:
        layers = [str(name) for name in geopandas.list_layers(path)["name"]]
        if len(layers) > 1 and not layer:
            raise InputError(
                f"vector file '{file}' has layers {', '.join(layers)}: give {file}:{layers[0]}, or another"
            )
        if layer and layer not in layers:
            raise InputError(f"vector file '{path}' has no layer '{layer}'{nearest(layer, layers)}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = geopandas.read_file(path, layer=layer or layers[0])
    except (DataSourceError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"vector file '{file}' cannot be read ({error})") from error
    if not isinstance(table, geopandas.GeoDataFrame) or not len(table):
        raise InputError(f"vector file '{file}' holds no geometry")
    if placed and table.crs is None:
        raise InputError(f"vector layer '{file}' tells no coordinate reference system: write it with one")
    return table, layer or (Path(path).stem if len(layers) == 1 else layers[0])


@lru_cache(1)
def open_layer(files: tuple[str, ...], column: str | None, names: tuple[tuple[str, str | None], ...]) -> Layer:
    """The layer of some files, read once a process."""
    return Layer(files, column, dict(names))
