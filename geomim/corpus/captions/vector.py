"""What a vector layer says of tiles that have a place on Earth: objects, areas, lengths, and what crosses what.

All is asked in longitude and latitude, where the catalogue's footprints are; areas and lengths are those on the
ellipsoid, whatever the projection of layer or tile.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import shapely

from geomim.corpus.captions.chance import Chance
from geomim.corpus.captions.grammar import Noun, length, listed, rounded, sentence, with_article
from geomim.corpus.captions.objects import called
from geomim.corpus.captions.templates import CLASSES, frequent, stated
from geomim.errors import InputError, nearest

COLUMNS = ("class", "class_name", "label", "category", "type", "fclass", "landuse", "kind")
"""Columns that are looked for, in this order, where nobody says which one holds the class."""
LEAST = 2.0
"""Pixels that a line must run in a tile, and the square root of those that an area must cover, to be spoken of."""
_GEOD = pyproj.Geod(ellps="WGS84")


class Layer:
    """Geometries in longitude and latitude, and what they are called.

    Args:
        file: Any file that geopandas reads; `FILE:LAYER` where it has several layers.
        column: Holds the class; one of `COLUMNS` where None, and where there is none all are called after the layer.
        names: What classes are called instead, or None to leave them out.

    Attributes:
        said: Where the classes were found.
        classes: Class names as they stand in the column.

    Raises:
        InputError: It cannot be read, has several layers or no coordinate reference system, or lacks the column.
    """

    def __init__(self, file: str, column: str | None, names: Mapping[str, str | None]) -> None:
        table, layer = _read(file)
        if table.crs is None:
            raise InputError(f"vector layer '{file}' tells no coordinate reference system: write it with one")
        known = [name for name in table.columns if name != table.geometry.name]
        if column is not None and column not in known:
            raise InputError(f"vector layer '{file}' has no column '{column}'{nearest(column, known)}")
        lower = {name.lower(): name for name in known}
        column = column or next((lower[name] for name in COLUMNS if name in lower), None)
        whole = column is None
        values = [layer] * len(table) if whole else [None if v != v or v is None else str(v) for v in table[column]]
        self.classes = sorted({value for value in values if value})
        some = ", ".join(self.classes[:5]) + (" ..." if len(self.classes) > 5 else "")
        self.said = f"'{file}': classes are " + (
            f"the layer's name, {layer}" if whole else f"column '{column}' ({some})"
        )
        nouns = dict(zip(self.classes, called(list(self.classes), names), strict=True))
        shapes = shapely.make_valid(table.geometry.to_crs("OGC:CRS84").to_numpy())
        use = [
            bool(value) and nouns[value] is not None and not (shapely.is_missing(shape) or shapely.is_empty(shape))
            for value, shape in zip(values, shapes, strict=True)
        ]
        use &= np.isfinite(shapely.bounds(shapes)).all(1)
        self._nouns = [nouns[value] for value, keep in zip(values, use, strict=True) if keep]
        self._shapes = shapes[use]
        self._tree = shapely.STRtree(self._shapes)

    def sentences(self, footprint: Any, gsd: float, chance: Callable[[str], Chance]) -> list[str]:
        """What it says of a tile: up to four sentences.

        Args:
            footprint: The tile's, in longitude and latitude.
            gsd: Metres of a pixel.
            chance: Draws for a purpose.
        """
        counts: dict[Noun, list[int]] = defaultdict(lambda: [0, 0])
        areas: dict[Noun, list[Any]] = defaultdict(list)
        lines: dict[Noun, list[Any]] = defaultdict(list)
        for row in np.sort(self._tree.query(footprint, "intersects")).tolist():
            what, shape = self._nouns[row], self._shapes[row]
            seen = shapely.intersection(shape, footprint)
            dimension = shapely.get_dimensions(shape)
            if dimension and _size(seen, dimension) < (LEAST * gsd) ** dimension:
                continue
            if dimension:
                (lines if dimension == 1 else areas)[what].append(seen)
            whole = what.mass or shapely.covers(footprint, shape)
            counts[what][0 if whole else 1] += 1
        if not counts:
            return []
        said = []
        draw = chance("objects")
        here = draw.pick(("in this picture", "in the remote sensing picture", "in this aerial image"))
        things = [(one, *numbers) for one, numbers in counts.items() if one not in lines]
        if things:
            said.append(stated(frequent(things)[:CLASSES], here, draw))
        united = {one: shapely.union_all(parts) for one, parts in (*areas.items(), *lines.items())}
        draw = chance("measures")
        if areas:
            one = draw.pick(sorted(areas, key=lambda one: one.one))
            hectares = rounded(_size(united[one], 2) / 1e4)
            said.append(sentence(f"{one.stuff} {'covers' if one.mass else 'cover'} about {_hectares(hectares)}"))
        if lines:
            one = draw.pick(sorted(lines, key=lambda one: one.one))
            said.append(sentence(f"about {length(_size(united[one], 1))} of {_stretch(one)} can be seen {here}"))
        crossing = _crossings(lines, {one: united[one] for one in areas}, gsd)
        if crossing:
            said.append(sentence(listed(chance("relations").some(crossing, 2))))
        return said


def _hectares(number: str) -> str:
    return f"{number} {'hectare' if number == '1' else 'hectares'}"


def _stretch(what: Noun) -> str:
    """Of what a length is: `river`, `road`."""
    return what.stuff if what.mass else what.one


def _crossings(lines: Mapping[Noun, list[Any]], areas: Mapping[Noun, Any], gsd: float) -> list[str]:
    """What a line crosses: areas that it runs in and leaves within the tile, and lines that it meets between ends."""
    said = []
    for one, own in sorted(lines.items(), key=lambda item: item[0].one):
        met = [
            what
            for what, area in areas.items()
            if any(
                shapely.crosses(line, area) and _size(shapely.intersection(line, area), 1) >= LEAST * gsd
                for line in own
            )
        ]
        met += [
            what
            for what, others in lines.items()
            if one.one < what.one and any(shapely.crosses(line, other) for line in own for other in others)
        ]
        for what in sorted(met, key=lambda item: item.one):
            said.append(f"{with_article(_stretch(one))} crosses {what.stuff if what.mass else with_article(what.one)}")
    return said


def _size(shape: Any, dimension: int) -> float:
    """Square metres of the areas in a geometry, or metres of its lines."""
    parts = [
        part for part in shapely.get_parts(shapely.get_parts([shape])) if shapely.get_dimensions(part) == dimension
    ]
    if dimension == 2:
        return sum(abs(_GEOD.geometry_area_perimeter(part)[0]) for part in parts)
    return sum(_GEOD.geometry_length(part) for part in parts)


def _read(file: str) -> tuple[Any, str]:
    """The table of a layer, and its name."""
    import geopandas
    from pyogrio.errors import DataSourceError

    path, _, layer = (file, "", "") if Path(file).exists() else file.rpartition(":")
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
    if "geometry" not in table or not len(table):
        raise InputError(f"vector file '{file}' holds no geometry")
    return table, layer or (Path(path).stem if len(layers) == 1 else layers[0])


@lru_cache(1)
def open_layer(file: str, column: str | None, names: tuple[tuple[str, str | None], ...]) -> Layer:
    """The layer of a file, read once a process."""
    return Layer(file, column, dict(names))
