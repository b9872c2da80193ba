"""Polygons, lines and points of a vector file over scenes with a place on Earth, in any coordinate reference system."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import shapely
from affine import Affine

from geomim.corpus.captions.vector import classes_in, open_table
from geomim.corpus.scenes import Scene
from geomim.errors import InputError
from geomim.finetune.labels.items import UNLABELLED, Asked, Item, Labels, need, open_image, some, split_of


def from_vector(file: str, images: Sequence[str], roots: Sequence[str], asked: Asked) -> Labels:
    """Labels of all scenes that geometries lie on.

    Of geometries of different classes that overlap, the smaller lies on top: a pond in a forest is drawn in it.

    Raises:
        InputError: Nothing tells where the layer lies, it lies on no scene, or its column of classes is none.
    """
    table, layer = open_table(file, placed=False)
    values, column = classes_in(file, table, layer, asked.class_column)
    _check_values(file, column, [value for value in values if value])
    lost = [uri for uri in images if _scene(uri, asked).crs is None or _scene(uri, asked).transform is None]
    refused = [(uri, "it has no place on Earth, or none that is an affine grid") for uri in lost]
    placed = [uri for uri in images if uri not in {*lost}]
    need(placed, refused, f"vector labels '{file}'")
    table, notes = _with_crs(file, table, [_scene(uri, asked) for uri in placed])
    where = (
        f"column '{column}'" if column else "the layer's name: no column is called as usual, --class-column names one"
    )
    shapes, good, said = _mended(table.geometry.to_numpy(), values)
    classes = sorted({value for value, use in zip(values, good, strict=True) if use and value})
    notes += [f"classes are {some(classes, 12)} ({where})", *said]
    kind, outside = asked.kind or "mask", UNLABELLED
    if kind == "mask" and (asked.outside == "background" or (asked.outside == "auto" and len(classes) == 1)):
        if (shapely.get_dimensions(shapes[good]) < 2).all():
            raise InputError(
                f"'{file}' holds points or lines of one class, {classes[0]}: nothing says what is not of it; give polygons, or further classes"
            )
        outside, classes = 0, ["background", *classes]
        notes.append(
            f"what no polygon covers is 'background'{'' if asked.outside != 'auto' else ', as there is one class: --outside unlabelled says otherwise'}"
        )
    own = np.array([classes.index(value) if use else -1 for value, use in zip(values, good, strict=True)])
    items, seen, by_crs = [], np.zeros(len(own), bool), {}
    for uri in placed:
        scene = _scene(uri, asked)
        key = scene.crs.to_wkt()
        if key not in by_crs:
            by_crs[key] = table.set_geometry(shapes, crs=table.crs).to_crs(scene.crs).geometry.to_numpy()
        pixels = _pixels(by_crs[key], scene.transform)
        here = good & shapely.intersects(pixels, shapely.box(0, 0, scene.width, scene.height))
        seen |= here
        if not here.any():
            refused.append((uri, "no label lies on it"))
            continue
        items.append(_item(uri, scene, pixels[here], own[here], kind, outside, split_of(uri, roots)))
    if not items:
        raise InputError(_nowhere(file, table, [_scene(uri, asked) for uri in placed]))
    if beside := int((good & ~seen).sum()):
        notes.append(f"{beside} of {int(good.sum())} geometries lie on no scene, and are left out")
    return Labels(kind, tuple(classes), tuple(items), (*notes, *_overlaps(items)), tuple(refused))


def _scene(uri: str, asked: Asked) -> Scene:
    return open_image(uri, asked.sensor, asked.bands)


def _pixels(shapes: np.ndarray, transform: Affine) -> np.ndarray:
    inverse = ~transform
    return shapely.transform(shapes, lambda points: np.stack(inverse * points.T, 1))


def _item(
    uri: str, scene: Scene, shapes: np.ndarray, labels: np.ndarray, kind: str, outside: int, split: str | None
) -> Item:
    common: dict[str, Any] = {"image": uri, "height": scene.height, "width": scene.width, "split": split}
    if kind == "mask":
        order = np.argsort(-shapely.area(shapes), kind="stable")
        return Item(**common, shapes=shapes[order], labels=labels[order], outside=outside)
    around = shapely.envelope(shapes) if kind == "boxes" else shapely.oriented_envelope(shapes)
    use = shapely.area(around) > 0
    corners = np.array([shapely.get_coordinates(one)[:4] for one in around[use]]).reshape(-1, 4, 2)
    return Item(**common, corners=corners, labels=labels[use])


def _check_values(file: str, column: str | None, values: list[str]) -> None:
    """Refuse a column that holds words and numbers, or measurements."""
    numbers = sorted({value for value in values if _is_number(value)})
    words = sorted({*values} - {*numbers})
    if numbers and words:
        raise InputError(
            f"column '{column}' of '{file}' holds numbers ({some(numbers, 3)}) and words ({some(words, 3)}): a class is one of them; correct it, or give another column with --class-column"
        )
    if any(float(value) % 1 for value in numbers):
        raise InputError(
            f"column '{column}' of '{file}' holds measurements ({some(numbers, 3)}), no classes: give another column with --class-column"
        )
    if not values:
        raise InputError(f"column '{column}' of '{file}' is empty: give another column with --class-column")


def _is_number(value: str) -> bool:
    try:
        return bool(np.isfinite(float(value)))
    except ValueError:
        return False


def _with_crs(file: str, table: Any, scenes: Sequence[Scene]) -> tuple[Any, list[str]]:
    """The table with a coordinate reference system: its own, where its coordinates can be of it, else the scenes'."""
    bounds = table.total_bounds
    degrees = (np.abs(bounds) <= [180.001, 90.001, 180.001, 90.001]).all()
    if table.crs is not None and (degrees or not table.crs.is_geographic):
        return table, []
    why = (
        "tells no coordinate reference system"
        if table.crs is None
        else f"tells {table.crs.name}, and its coordinates ({_said(bounds)}) are no longitude and latitude"
    )
    box = shapely.box(*bounds)
    for scene in scenes:
        transform = scene.transform
        corners = [
            transform * corner for corner in ((0, 0), (scene.width, 0), (scene.width, scene.height), (0, scene.height))
        ]
        if shapely.Polygon(corners).intersects(box):
            crs = scene.crs.to_wkt()
            return table.set_crs(crs, allow_override=True), [
                f"'{file}' {why}: it is taken to be in that of '{scene.uri}', on which it lies"
            ]
    if degrees:
        return table.set_crs("OGC:CRS84", allow_override=True), [f"'{file}' {why}: longitude and latitude are assumed"]
    raise InputError(
        f"'{file}' {why}, and they lie on no scene either (the first, '{scenes[0].uri}', is in {scenes[0].crs.to_string():.40}): write it with its coordinate reference system"
    )


def _mended(shapes: np.ndarray, values: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Valid geometries, which of them can be used, and what is said of the others."""
    there = ~(shapely.is_missing(shapes) | shapely.is_empty(shapes))
    broken = there & ~shapely.is_valid(shapes)
    shapes = np.where(broken, shapely.make_valid(shapes), shapes)
    named = np.array([bool(value) for value in values], bool)
    kinds = Counter(
        np.array(["points", "lines", "polygons"])[shapely.get_dimensions(shapes[there & named]).clip(0)].tolist()
    )
    holes = sum(int(shapely.get_num_interior_rings(shapely.get_parts(shapes[there]))[:].sum()) for _ in (0,))
    said = {
        "geometries are left out: they are empty": int((~there).sum()),
        "geometries are left out: they have no class": int((there & ~named).sum()),
        "geometries cross themselves, and are made valid": int(broken.sum()),
        "holes in polygons are not of their class": holes,
        "points label the pixel that they lie in": kinds["points"],
        "lines label a line of pixels": kinds["lines"],
    }
    return shapes, there & named, [f"{count} {what}" for what, count in said.items() if count]


def _overlaps(items: Sequence[Item]) -> list[str]:
    """How many geometries of different classes overlap."""
    count = 0
    for item in items:
        if item.shapes is not None:
            one, two = shapely.STRtree(item.shapes).query(item.shapes, "intersects")
            apart = (one < two) & (item.labels[one] != item.labels[two])
            count += int(
                (shapely.area(shapely.intersection(item.shapes[one[apart]], item.shapes[two[apart]])) > 0).sum()
            )
    return [f"{count} pairs of geometries of different classes overlap: the smaller lies on top"] if count else []


def _nowhere(file: str, table: Any, scenes: Sequence[Scene]) -> str:
    first = scenes[0]
    own = table.to_crs(first.crs).total_bounds
    corners = [first.transform * corner for corner in ((0, first.height), (first.width, 0))]
    return f"none of the {len(table)} geometries of '{file}' lies on a scene: in the coordinates of '{first.uri}' they lie in {_said(own)}, and it in {_said([*corners[0], *corners[1]])}; give the scenes that were labelled"


def _said(bounds: Any) -> str:
    west, south, east, north = (f"{number:.6g}" for number in bounds)
    return f"{west}..{east}, {south}..{north}"
