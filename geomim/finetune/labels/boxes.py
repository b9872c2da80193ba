"""Boxes of objects: COCO, CSV tables, YOLO, Pascal VOC, DIOR-R, HRSC and DOTA.

All become four corners in pixels. Pascal VOC counts pixels from 1 by its book and from 0 by most who write it: its
numbers are taken as they stand.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import shapely
import yaml

from geomim.corpus.joining import PATHS, Row, join, read_table
from geomim.errors import InputError
from geomim.finetune.labels.items import Asked, Item, Labels, need, paired, size_of, split_of

Corners = list[tuple[float, float]]


class Drawn(NamedTuple):
    """A box as a file has it; upright where it was written by two corners."""

    name: str
    corners: Corners
    upright: bool


_SIDES = (("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"), ("left", "top", "right", "bottom"))
_TURNED = tuple(f"{axis}{corner}" for corner in (1, 2, 3, 4) for axis in "xy")
_CLASS = ("class", "label", "name", "category", "class_name")
_LEAST = 1e-3  # square pixels: less is no area, by rounding


def from_tables(form: str, files: Sequence[str], images: Sequence[str], roots: Sequence[str], asked: Asked) -> Labels:
    """Labels of files that name their images: COCO or CSV tables.

    Raises:
        InputError: One cannot be read, or names none of the images.
    """
    found: dict[str, list[Drawn]] = {}
    splits: dict[str, str | None] = {}
    names: list[str] = []
    notes, refused = [], []
    for file in files:
        drawn, own, said = (_coco if form == "COCO" else _csv)(file)
        notes += [f"'{file}': {one}" for one in said]
        joined = join(file, [Row(name, name) for name in drawn], images, "they are left out").check()
        for image, name in zip(images, joined.values, strict=True):
            if name is not None:
                found.setdefault(image, []).extend(drawn[name])
                splits[image] = split_of(file, roots)
        refused += [(row.name, f"'{file}' names it, and no image is called so") for row in joined.unmatched]
        names += own
    refused += [(image, "no row names it") for image in images if image not in found]
    given = [(image, drawn, splits[image]) for image, drawn in found.items()]
    return _labels(form, given, names, notes, refused, roots, asked)


def from_files(form: str, files: Sequence[str], images: Sequence[str], roots: Sequence[str], asked: Asked) -> Labels:
    """Labels of a file an image, called as it is: YOLO, DOTA, or XML of Pascal VOC, DIOR-R or HRSC."""
    pairs, refused = paired(images, files)
    names = _yolo_names(files) if form == "YOLO" else []
    notes = (
        [] if form != "YOLO" or names else ["YOLO: no classes.txt or data.yaml beside: classes are called by number"]
    )
    read: Callable[[Path, Sequence[str], str], list[Drawn]] = _xml if form.startswith("XML") else _text
    given = []
    for image, file in pairs.items():
        try:
            drawn = read(Path(file), names, form)
            if form == "YOLO":
                height, width = size_of(image, asked)
                drawn = [one._replace(corners=[(x * width, y * height) for x, y in one.corners]) for one in drawn]
            given.append((image, drawn, split_of(str(Path(file).parent), roots)))
        except (ValueError, OSError, ElementTree.ParseError) as error:
            refused.append((file, f"it is no {form} ({error})"))
    return _labels(form, given, names, notes, refused, roots, asked)


def _labels(
    form: str,
    given: Iterable[tuple[str, list[Drawn], str | None]],
    names: Sequence[str],
    notes: list[str],
    refused: list[tuple[str, str]],
    roots: Sequence[str],
    asked: Asked,
) -> Labels:
    """Boxes that are some, counted; those that lie outside their image or have no area are left out."""
    given, said = list(given), Counter[str]()
    classes = tuple(dict.fromkeys(names)) or tuple(sorted({one.name for _, drawn, _ in given for one in drawn}))
    turned = any(not one.upright for _, drawn, _ in given for one in drawn)
    kind = asked.kind or ("oboxes" if turned else "boxes")
    items, counts = [], Counter[str]()
    for image, drawn, split in given:
        try:
            height, width = size_of(image, asked)
        except InputError as error:
            refused.append((image, str(error)))
            continue
        corners = np.array([one.corners for one in drawn], float).reshape(-1, 4, 2)
        hulls = shapely.convex_hull(shapely.multipoints(corners))
        flat = ~(shapely.area(hulls) >= _LEAST)
        outside = ~shapely.intersects(hulls, shapely.box(0, 0, width, height)) & ~flat
        said["boxes of no area are left out"] += int(flat.sum())
        said["boxes are left out: they lie outside their image"] += int(outside.sum())
        use = ~flat & ~outside
        if kind == "boxes":
            low, high = corners.min(1), corners.max(1)
            inner = np.stack([low, high], 1).clip(0, [width, height])
            over = (inner != np.stack([low, high], 1)).any((1, 2)) & use
            said["boxes are cut off at the border of their image"] += int(over.sum())
            corners = inner[:, [0, 1, 1, 0]] * [[1, 0]] + inner[:, [0, 0, 1, 1]] * [[0, 1]]
        kept = [one.name for one, keep in zip(drawn, use, strict=True) if keep]
        counts.update(kept)
        own = np.array([classes.index(name) for name in kept], np.int64)
        split = split or split_of(str(Path(image).parent), roots)
        items.append(Item(image, height, width, corners=corners[use], labels=own, split=split))
    need(items, refused, f"{form} labels")
    if empty := [name for name in classes if not counts[name]]:
        notes.append(f"no box is of {', '.join(empty)}: empty classes are kept, and cannot be learned")
    if kind == "boxes" and turned:
        notes.append("turned boxes are taken as the upright ones around them, as asked")
    return Labels(
        kind, classes, tuple(items), (*notes, *(f"{n} {what}" for what, n in said.items() if n)), tuple(refused)
    )


def _upright(name: str, x1: float, y1: float, x2: float, y2: float) -> Drawn:
    return Drawn(name, [(x1, y1), (x2, y1), (x2, y2), (x1, y2)], True)


def _turned(name: str, numbers: Sequence[float]) -> Drawn:
    return Drawn(name, list(zip(numbers[::2], numbers[1::2], strict=True)), False)


def _coco(file: str) -> tuple[dict[str, list[Drawn]], list[str], list[str]]:
    """Boxes by the name of the image, names of classes, and what is said."""
    try:
        data = json.loads(Path(file).read_text(encoding="utf-8"))
        names = {one["id"]: str(one["name"]) for one in data["categories"]}
        paths = {one["id"]: str(one["file_name"]) for one in data["images"]}
        found: dict[str, list[Drawn]] = {path: [] for path in paths.values()}
        crowds = [one for one in data["annotations"] if one.get("iscrowd")]
        for one in data["annotations"]:
            if not one.get("iscrowd"):
                x, y, width, height = map(float, one["bbox"])
                box = _upright(names[one["category_id"]], x, y, x + width, y + height)
                found[paths[one["image_id"]]].append(box)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"'{file}' is no COCO file: expected images, annotations with bbox, and categories "
            f"({type(error).__name__}: {error})"
        ) from error
    order = [names[number] for number in sorted(names)]
    return found, order, [f"{len(crowds)} regions of crowds are left out"] if crowds else []


def _csv(file: str) -> tuple[dict[str, list[Drawn]], list[str], list[str]]:
    """The same of a table: a row a box, a row of empty cells for an image without."""
    rows = read_table(file)
    there = {str(name).strip().lower(): name for name in rows[0]}
    sides = next((names for names in (_TURNED, *_SIDES) if {*names} <= there.keys()), None)
    path, said = (next((there[name] for name in names if name in there), None) for names in (_FILES, _CLASS))
    if sides is None or path is None:
        raise InputError(
            f"'{file}' is no table of boxes: expected columns image, {', '.join(_SIDES[0])} and class; it has "
            f"{', '.join(there)}"
        )
    found: dict[str, list[Drawn]] = {}
    for number, row in enumerate(rows, 2):
        own = found.setdefault(str(row[path]).strip(), [])
        cells = [str(row[there[name]] or "").strip() for name in sides]
        if not any(cells):
            continue
        try:
            numbers = list(map(float, cells))
            if not all(map(math.isfinite, numbers)):
                raise ValueError("not finite")
        except ValueError as error:
            raise InputError(f"'{file}', line {number}: {', '.join(cells)} are no coordinates ({error})") from error
        name = str(row[said] or "").strip() if said else "object"
        own.append(_turned(name, numbers) if sides is _TURNED else _upright(name, *numbers))
    return found, [], [] if said else ["it has no column of classes: all boxes are called 'object'"]


_FILES = (*PATHS, "image_path", "image_id", "file_name", "img")


def _xml(path: Path, _: Sequence[str], form: str) -> list[Drawn]:
    found = []
    root = ElementTree.parse(path).getroot()
    for one in root.iter("HRSC_Object"):
        cx, cy, width, height, angle = (_number(one, f"mbox_{name}") for name in ("cx", "cy", "w", "h", "ang"))
        along = np.array([np.cos(angle), np.sin(angle)]) * width / 2
        across = np.array([-np.sin(angle), np.cos(angle)]) * height / 2
        points = [(cx, cy) + sign * along + other * across for sign, other in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
        found.append(Drawn(one.findtext("Class_ID", ""), [(float(x), float(y)) for x, y in points], False))
    for one in root.iter("object"):
        name, turned, box = one.findtext("name", "").strip(), one.find("robndbox"), one.find("bndbox")
        if turned is not None:
            ends = ("left_top", "right_top", "right_bottom", "left_bottom")
            found.append(_turned(name, [_number(turned, f"{axis}_{end}") for end in ends for axis in "xy"]))
        elif box is not None:
            found.append(_upright(name, *(_number(box, side) for side in _SIDES[0])))
        else:
            raise ValueError(f"object '{name}' has neither bndbox nor robndbox")
    return found


def _number(parent: Any, name: str) -> float:
    number = float(parent.findtext(name, "nan"))
    if not math.isfinite(number):
        raise ValueError(f"{name} is missing or no finite number")
    return number


def _text(path: Path, names: Sequence[str], form: str) -> list[Drawn]:
    """A line a box, as YOLO (a number and 4 or 8 shares) or DOTA (8 coordinates and a name) have it."""
    found = []
    for line, words in enumerate((line.split() for line in path.read_text(encoding="utf-8-sig").splitlines()), 1):
        if not words or ":" in words[0]:  # DOTA begins with imagesource: and gsd:
            continue
        try:
            if form == "DOTA":
                found.append(_turned(words[8], list(map(float, words[:8]))))
                continue
            number, numbers = int(words[0]), list(map(float, words[1:]))
            if len(numbers) not in (4, 8) or not all(-0.01 <= one <= 1.01 for one in numbers):
                raise ValueError("expected a class number and 4 or 8 numbers from 0 to 1")
            name = names[number] if names else str(number)
            x, y, width, height = numbers[:4]
            upright = _upright(name, x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            found.append(upright if len(numbers) == 4 else _turned(name, numbers))
        except (ValueError, IndexError) as error:
            raise ValueError(f"line {line}: {error}") from error
    return found


def _yolo_names(files: Sequence[str]) -> list[str]:
    """Names of classes from the file beside the labels, or in one of two folders above, that YOLO's tools keep."""
    for folder in list(dict.fromkeys(parent for file in files for parent in list(Path(file).parents)[:3])):
        for name in ("classes.txt", "obj.names", "data.yaml", "dataset.yaml"):
            if (path := folder / name).is_file():
                text = path.read_text(encoding="utf-8")
                told: Any = text.split("\n") if path.suffix != ".yaml" else yaml.safe_load(text).get("names", [])
                values = [told[key] for key in sorted(told)] if isinstance(told, Mapping) else told
                return [str(one).strip() for one in values if str(one).strip()]
    return []
