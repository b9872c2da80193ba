"""Polygons, lines and points of a vector file over scenes with a place on Earth, in any coordinate reference system."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import shapely
from rasterio.crs import CRS

from geomim.corpus.captions.vector import classes_in, open_table
from geomim.errors import InputError
from geomim.finetune.labels.items import UNLABELLED, Asked, Item, Labels, Refused, need, open_image, some, split_of
from geomim.maps.scenes.areas import extent, on_scene, with_crs
from geomim.maps.scenes.ground import Ground

_NUMBER = re.compile(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)")


def from_vector(file: str, images: Sequence[str], roots: tuple[str, ...], asked: Asked) -> Labels:
    """Labels of all scenes that geometries lie on.

    Where geometries of different classes overlap the smaller one counts: a pond is drawn over its forest.

    Raises:
        InputError: Nothing tells where the layer lies, it lies on no scene, or its column of classes is none.
    """
    table, layer = open_table(file, placed=False)
    values, column = _classes(file, table, layer, asked.class_column)
    _check_values(f"column '{column}' of '{file}'", {value for value in values if value})
    grounds = {uri: Ground.of(open_image(uri, asked)) for uri in images}
    scenes = {uri: one for uri, one in grounds.items() if one.known and one.transform and one.crs is not None}
    refused: Refused = [(uri, "it has no place on Earth that an affine tells") for uri in images if uri not in scenes]
    need([*scenes], refused, f"vector labels '{file}'")
    table, notes = with_crs(file, table, {uri: (one.crs, one.outline) for uri, one in scenes.items()})
    table, good, said = _mended(table, values)
    if others := sorted({scene.crs.to_string() for scene in scenes.values()} - {table.crs.to_string()}):
        notes.append(f"geometries are brought from {table.crs.name} to {some(one[:40] for one in others)}")
    classes = sorted({str(value) for value, use in zip(values, good, strict=True) if use})
    how = f"column '{column}'" if column else "the layer's name, as no column has a usual one: --class-column names it"
    notes += [f"classes are {some(classes, 12)} ({how})", *said]
    outside, classes, said = _outside(file, table.geometry.to_numpy()[good], classes, asked)
    notes += said
    places = np.array([classes.index(str(one)) if use else -1 for one, use in zip(values, good, strict=True)])
    kept, count = _items(table, places, scenes, outside, roots)
    if not kept:
        raise InputError(_nowhere(file, table, *next(iter(scenes.items()))))
    used = {item.image for item in kept}
    refused += [(uri, "no label lies on it") for uri in scenes if uri not in used]
    beside = int(good.sum()) - count
    notes += [f"{beside} of {good.sum()} geometries lie on no scene, and are left out"] if beside else []
    return Labels("mask", tuple(classes), tuple(kept), (*notes, *_overlaps(kept)), tuple(refused))


def _classes(file: str, table: Any, layer: str, column: str | None) -> tuple[list[str | None], str | None]:
    """As captions find them, but for a yes beside a no: these are two classes, and neither is the layer's name."""
    values, column = classes_in(file, table, layer, column)
    cells = [] if column is None else [str(cell).strip() for cell in table[column]]
    if any(cell.lower() in ("no", "false") for cell in cells):
        both = zip(cells, values, strict=True)
        values = [cell if cell.lower() in ("yes", "true") else value for cell, value in both]
    return values, column


def _outside(file: str, shapes: np.ndarray, classes: list[str], asked: Asked) -> tuple[int, list[str], list[str]]:
    """What pixels are that no shape covers, all classes, and what is to be said."""
    if asked.outside != "background" and (asked.outside == "unlabelled" or len(classes) > 1):
        return UNLABELLED, classes, []
    if (shapely.get_dimensions(shapes) < 2).all():
        told = f"'{file}' holds points or lines of one class, {classes[0]}"
        raise InputError(f"{told}: nothing says what is not of it; give polygons, or further classes")
    others = [one for one in classes if one != "background"]
    return 0, ["background", *others], ["what no polygon covers is 'background': --outside unlabelled says otherwise"]


def _items(
    table: Any, places: np.ndarray, scenes: dict[str, Ground], outside: int, roots: tuple[str, ...]
) -> tuple[list[Item], int]:
    """Scenes with the geometries that lie on them, large ones first, and how many of a class lie on some.

    Before all others come those of no class, which are not what lies outside, either.
    """
    items, seen, crs = [], set[int](), CRS.from_wkt(table.crs.to_wkt())
    tree = shapely.STRtree(np.where((places >= 0) | (outside != UNLABELLED), table.geometry.to_numpy(), None))
    areas = shapely.area(tree.geometries)
    for uri, scene in scenes.items():
        shapes, whose = on_scene(tree, crs, scene)
        order = np.lexsort((-areas[whose], places[whose] >= 0))
        order = order[shapely.intersects(shapes, shapely.box(0, 0, scene.width, scene.height))[order]]
        if (known := whose[order][places[whose[order]] >= 0]).size:
            own: dict[str, Any] = {"outside": outside, "split": split_of(uri, roots)}
            items.append(Item(uri, scene.height, scene.width, shapes=shapes[order], labels=places[whose[order]], **own))
            seen.update(known.tolist())
    return items, len(seen)


def _nowhere(file: str, table: Any, uri: str, scene: Ground) -> str:
    where = extent(shapely.total_bounds(scene.pixels(table.geometry.to_crs(scene.crs.to_wkt()).to_numpy())))
    return (
        f"none of the {len(table)} geometries of '{file}' lies on a scene: in columns and rows of '{uri}', of "
        f"{scene.width} x {scene.height}, they lie in {where}; give the scenes that were labelled"
    )


def _check_values(column: str, values: set[str]) -> None:
    """Refuse a column that holds words and numbers, measurements, or nothing."""
    numbers = sorted(value for value in values if _NUMBER.fullmatch(value))
    words = sorted(values - {*numbers})
    both = f"numbers ({some(numbers, 3)}) and words ({some(words, 3)}), and a class is one of them"
    wrong = both if words and numbers else ""
    if any(float(number) % 1 for number in numbers):
        wrong = f"measurements ({some(numbers, 3)}), and no classes"
    elif len({*map(float, numbers)}) < len(numbers):
        wrong = f"one number written in several ways ({some(numbers, 3)})"
    if wrong or not values:
        raise InputError(f"{column} holds {wrong or 'nothing'}: correct it, or give another one with --class-column")


def _mended(table: Any, values: Sequence[str | None]) -> tuple[Any, np.ndarray, list[str]]:
    """Valid geometries, which of them can be used, and what is said of the others."""
    shapes = table.geometry.to_numpy()
    there = ~(shapely.is_missing(shapes) | shapely.is_empty(shapes))
    good = there & np.array([bool(value) for value in values], bool)
    broken = there & ~shapely.is_valid(shapes)
    shapes = np.where(broken, shapely.make_valid(shapes), shapes)
    if not good.any():
        raise InputError("no geometry of the vector file has a place and a class")
    dimensions = shapely.get_dimensions(shapes)
    said = {
        "geometries are empty, and left out": ~there,
        "geometries have no class: what they alone cover is not labelled": there & ~good,
        "geometries cross themselves, and are made valid": broken,
        "polygons have holes, which are not of their class": good & _holed(shapes),
        "points label the pixel that they lie in": good & (dimensions == 0),
        "lines label a line of pixels": good & (dimensions == 1),
    }
    told = [f"{which.sum()} {what}" for what, which in said.items() if which.any()]
    return table.set_geometry(shapes, crs=table.crs), good, told


def _holed(shapes: np.ndarray) -> np.ndarray:
    parts, whose = shapely.get_parts(shapes, return_index=True)
    return np.bincount(whose, shapely.get_num_interior_rings(parts), len(shapes)) > 0


def _overlaps(items: Sequence[Item]) -> list[str]:
    """How many geometries of different classes overlap."""
    count = 0
    for shapes, labels, tree in ((item.tree.geometries, item.labels, item.tree) for item in items):
        one, two = tree.query(shapes, "intersects")
        pairs = (one < two) & (labels[one] != labels[two]) & (labels[one] != UNLABELLED)
        count += int((shapely.area(shapely.intersection(shapes[one[pairs]], shapes[two[pairs]])) > 0).sum())
    return [f"{count} pairs of geometries of different classes overlap: the smaller one counts"] if count else []
