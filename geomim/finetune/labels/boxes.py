"""Boxes of objects: COCO, CSV tables, YOLO, DOTA, and XML of Pascal VOC, DIOR-R and HRSC; all become four corners.

Pascal VOC counts pixels from 1 by its book, and most who write it from 0: its numbers are taken as they stand. Where a
file says that an image has another size than it has, boxes are scaled with it, and where it has other proportions, it
is left out. Where all numbers lie in 0..1, they are shares of the sides.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import shapely
import yaml

from geomim.corpus.joining import PATHS, Row, join, read_table
from geomim.corpus.labels import SPLITS, SYNONYMS
from geomim.errors import InputError
from geomim.finetune.labels.items import Asked, Item, Labels, apart, home_of, need, open_image, paired, some, split_of


class Box(NamedTuple):
    """A box as a file has it; upright where it was written by two corners."""

    name: str
    corners: list[tuple[float, float]]
    upright: bool
    difficult: bool = False


class Marked(NamedTuple):
    """What a file has of an image: its boxes, and its width and height and its split where it tells them."""

    boxes: list[Box]
    size: tuple[float, float] | None = None
    split: str | None = None


_Given = list[tuple[str, Marked]]  # of an image
SIDES = (("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"), ("left", "top", "right", "bottom"))
_TURNED = tuple(f"{axis}{corner}" for corner in (1, 2, 3, 4) for axis in "xy")
_FILES = (*PATHS, "image_id", "file_name", "img")
_CLASS = ("class", "label", "name", "category", "class_name")
_LEAST = 1e-3  # square pixels: less is no area, by rounding
_SHARE = -0.01, 1.01  # of a side


def from_tables(form: str, files: Sequence[str], images: Sequence[str], roots: tuple[str, ...], asked: Asked) -> Labels:
    """Labels of files that name their images: COCO or CSV tables; an image that two name is left out.

    Raises:
        InputError: One cannot be read, or names none of the images.
    """
    homes, owner = {home_of(file) for file in files}, {}  # the innermost folder with a table that an image lies in
    for image, own in ((image, home_of(image)) for image in images):
        owner[image] = max((home for home in homes if own[: len(home)] == home), key=len, default=None)
    claims: dict[str, list[tuple[str, Marked]]] = {image: [] for image in images}
    names, notes, refused, given, torn = list[str](), list[str](), [], [], 0
    for file in files:
        boxes, classes, said = (_coco if form == "COCO" else _csv)(file)
        names, notes = names + classes, notes + said
        called = _named(file, [*boxes], owner, roots)
        times = Counter(called.values())
        refused += [(one, f"'{file}' names it, and no image is called so") for one in boxes if not times[one]]
        for image, name in called.items():
            claims[image] += times[name] * [(file, boxes[name])]
    for image, rows in claims.items():
        if len(rows) == 1:
            ((file, own),) = rows
            folder = split_of(image, roots) or split_of(f"{file}/name", roots)
            torn += own.split is not None and folder not in (None, own.split)
            given.append((image, own._replace(split=own.split or folder)))
        else:
            tables = some(f"'{file}'" for file in {file: 0 for file, _ in rows})
            why = f"it is named twice, or shares its name, in {tables}: give one table, with folders in its names"
            refused.append((image, why if rows else "no row names it"))
    notes += [f"{torn} images are of the split that their table tells, and in a folder of another one"] if torn else []
    return _labels(form, given, names, notes, refused, asked)


def _named(file: str, names: Sequence[str], owner: Mapping[str, Any], roots: tuple[str, ...]) -> dict[str, str]:
    """The names in a table of images of its own folder where it names any, else of those of no table's folder."""
    near = [image for image in owner if not apart(image, f"{file}/name", roots)]  # the file's own name tells, too
    for homes in ({home_of(file)}, {None}, {*owner.values()}):
        images = [image for image in near if owner[image] in homes]
        joined = join(file, [Row(name, name) for name in names], images, "they are left out")
        if any(joined.values):
            break
    called = zip(images, joined.check().values, strict=True)
    return {image: name for image, name in called if name and owner[image] in (home_of(file), None)}


def from_files(form: str, files: Sequence[str], images: Sequence[str], roots: tuple[str, ...], asked: Asked) -> Labels:
    """Labels of a file an image, called as it is: YOLO, DOTA, or XML."""
    pairs, refused = paired(images, files, roots)
    named = cache(_yolo_names)
    names = {file: named(Path(file).parent) for file in pairs.values() if form == "YOLO"}
    lists = {tuple(own.items()) for own in names.values() if own}
    given = []
    for image, file in pairs.items():
        try:
            if form == "YOLO":
                if not names[file] and len(lists) > 1:
                    raise ValueError("classes.txt or data.yaml differ between folders, and none is of this one")
                scene = open_image(image, asked)
                own = Marked(_text(Path(file), names[file] or dict(*lists), (scene.width, scene.height)))
            else:
                own = Marked(_text(Path(file))) if form == "DOTA" else _xml(Path(file))
            given.append((image, own._replace(split=split_of(image, roots) or split_of(file, roots))))
        except (ValueError, OSError, ElementTree.ParseError) as error:
            refused.append((file, f"it is no {form} ({error})"))
    number = ["YOLO: no classes.txt or data.yaml names the classes: they are called by number"]
    classes = [name for own in sorted(lists) for _, name in own]
    return _labels(form, given, classes, number if form == "YOLO" and not lists else [], refused, asked)


def _labels(form: str, given: _Given, names: list[str], notes: list[str], refused: list[Any], asked: Asked) -> Labels:
    """Boxes that are some; those that lie outside their image or have no area or no class are left out and counted."""
    every = [one for _, own in given for one in own.boxes]
    classes = tuple(dict.fromkeys(filter(None, names))) or tuple(sorted({one.name for one in every if one.name}))
    turned, numbers = not all(one.upright for one in every), np.array([one.corners for one in every])
    shares = form != "YOLO" and numbers.size and _SHARE[0] <= numbers.min() and numbers.max() <= _SHARE[1]
    if shares:
        notes.append(f"{form}: all coordinates are from 0 to 1, and taken as shares of the sides of their image")
    items, said, counts = [], Counter[str](), Counter[str]()
    for image, (boxes, told, split) in given:
        try:
            scene = open_image(image, asked)
            size = scene.width, scene.height
            scale = _scale((1, 1), size) if shares else _scale(told, size, True) if boxes else np.ones(2)
        except InputError as error:
            refused.append((image, str(error)))
            continue
        corners = np.array([one.corners for one in boxes], float).reshape(-1, 4, 2) * scale
        inner = corners if turned else corners.clip(0, size)
        use = _usable(boxes, corners, inner, size, said)
        if not shares and (scale != 1).any():
            said["boxes are scaled to their image, as their file tells another size of it"] += len(boxes)
        kept = [one.name for one, keep in zip(boxes, use, strict=True) if keep]
        counts.update(kept)
        places = np.array([classes.index(name) for name in kept], np.int64)
        items.append(Item(image, scene.height, scene.width, corners=inner[use], labels=places, split=split))
    need(items, refused, f"{form} labels")
    if empty := [name for name in classes if not counts[name]]:
        notes.append(f"no box is of {some(empty)}: empty classes are kept, and cannot be learned")
    notes += [f"{count} {what}" for what, count in said.items() if count]
    return Labels("oboxes" if turned else "boxes", classes, tuple(items), tuple(notes), tuple(refused))


def _scale(told: tuple[float, float] | None, size: tuple[int, int], alike: bool = False) -> np.ndarray:
    """How many times the size that is told an image is, in width and height; `alike` in both, up to a pixel."""
    wide, high = told or size
    if alike and min(abs(wide * size[1] / high - size[0]), abs(high * size[0] / wide - size[1])) > 1:
        raise InputError(
            f"its labels are of an image of {wide:g} x {high:g} pixels, and it has {size[0]} x {size[1]}: give the "
            "image that was labelled, or correct the size that they tell"
        )
    return np.divide(size, (wide, high))


def _usable(
    boxes: list[Box], corners: np.ndarray, inner: np.ndarray, size: tuple[int, int], said: Counter[str]
) -> np.ndarray:
    """Which boxes have an area, a class and their middle in the image; what the others lack is counted."""
    flat = ~(shapely.area(shapely.convex_hull(shapely.multipoints(corners))) >= _LEAST)
    middle = inner.mean(1)
    nameless = np.array([not one.name for one in boxes], bool)
    use: np.ndarray = ~flat & ~nameless & ((middle > 0) & (middle < size)).all(1)
    said["boxes of no area are left out"] += int(flat.sum())
    said["boxes have no class, and are left out"] += int((nameless & ~flat).sum())
    said["boxes are left out, as they lie outside their image"] += int((~use & ~flat & ~nameless).sum())
    said["boxes are cut off at the border of their image"] += int(((inner != corners).any((1, 2)) & use).sum())
    hard = "boxes are marked difficult: they count as all others, and official scores leave them out"
    said[hard] += sum(one.difficult for one in boxes)
    return use


def _upright(name: str, x1: float, y1: float, x2: float, y2: float) -> Box:
    return Box(name, [(x1, y1), (x2, y1), (x2, y2), (x1, y2)], True)


def _turned(name: str, numbers: Iterable[float]) -> Box:
    each = iter(numbers)
    return Box(name, list(zip(each, each, strict=True)), False)


def _coco(file: str) -> tuple[dict[str, Marked], list[str], list[str]]:
    """What is told of images by their names, names of the classes, and what is to be said."""
    try:
        data = json.loads(Path(file).read_text(encoding="utf-8"))
        for part, key in (("images", "id"), ("images", "file_name"), ("categories", "id")):
            if twice := [one for one, count in Counter(row[key] for row in data[part]).items() if count > 1]:
                raise ValueError(f"several {part} have the {key} {some(twice, 3)}: give each one of its own")
        names = {one["id"]: str(one["name"]) for one in data["categories"]}
        rows = {str(one["file_name"]): one for one in data["images"]}
        paths = {one["id"]: path for path, one in rows.items()}
        found: dict[str, list[Box]] = {path: [] for path in rows}
        single = [one for one in data["annotations"] if not one.get("iscrowd")]
        for one in single:
            x, y, width, height = map(float, one["bbox"])
            found[paths[one["image_id"]]].append(_upright(names[one["category_id"]], x, y, x + width, y + height))
        sizes = {path: _size(one.get("width"), one.get("height")) for path, one in rows.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        told = f"{type(error).__name__}: {error}"
        raise InputError(f"'{file}' is no COCO file of images, categories, annotations with bbox ({told})") from error
    splits, said = _splits(file, ((path, one.get("split")) for path, one in rows.items()))
    crowds = len(data["annotations"]) - len(single)
    said += [f"{crowds} crowds are left out"] if crowds else []
    return _marked(found, sizes, splits), [names[number] for number in sorted(names)], said


def _csv(file: str) -> tuple[dict[str, Marked], list[str], list[str]]:
    """The same of a table: a row a box, a row of empty cells for an image without."""
    rows = read_table(file)
    there = {str(name).strip().lower(): name for name in rows[0]}
    sides = next((names for names in (_TURNED, *SIDES) if {*names} <= there.keys()), None)
    path, said = (next((there[name] for name in names if name in there), None) for names in (_FILES, _CLASS))
    if sides is None or path is None:
        expected = f"image, {', '.join(SIDES[0])} and class"
        raise InputError(f"'{file}' is no table of boxes: expected columns {expected}; given {', '.join(there)}")
    found: dict[str, list[Box]] = {}
    sizes, told = [], []
    for line, row in enumerate(rows, 2):
        image = str(row[path]).strip()
        own = found.setdefault(image, [])
        cells = [str(row[there[name]] or "").strip() for name in sides]
        try:
            numbers = [_finite(cell) for cell in cells] if any(cells) else []
        except ValueError as error:
            raise InputError(f"'{file}', line {line}: '{', '.join(cells)}' are no coordinates ({error})") from error
        name = str(row[said] or "").strip() if said else "object"
        if numbers:
            own.append(_turned(name, numbers) if sides is _TURNED else _upright(name, *numbers))
        width, height, split = (row[there[key]] if key in there else None for key in ("width", "height", "split"))
        sizes.append((image, own[-1:] if numbers else [], _size(width, height)))
        told.append((image, split))
    splits, notes = _splits(file, told)
    notes += [] if said else [f"'{file}' has no column of classes: all boxes are called 'object'"]
    return _marked(found, _image_sizes(sizes), splits), [], notes


def _marked(boxes: Mapping[str, list[Box]], sizes: Mapping[str, Any], splits: Mapping[str, str]) -> dict[str, Marked]:
    return {name: Marked(own, sizes.get(name), splits.get(name)) for name, own in boxes.items()}


def _size(width: Any, height: Any) -> tuple[float, float] | None:
    """A width and a height that a file tells; many write 0 where they do not know it."""
    try:
        size = float(width), float(height)
    except (TypeError, ValueError):
        return None
    return size if all(1 <= side < math.inf for side in size) else None


def _image_sizes(rows: Iterable[tuple[str, list[Box], Any]]) -> dict[str, tuple[float, float]]:
    """Width and height of images from those of the rows of a table; none where they may be those of boxes."""
    found, own = dict[str, tuple[float, float]](), True
    for image, boxes, size in rows:
        if size is None or found.setdefault(image, size) != size:
            return {}
        for corners in (np.array(box.corners) for box in boxes):
            if (corners.max(0) > np.add(size, 1)).any():
                return {}
            own &= bool((abs(np.ptp(corners, 0) - size) <= 1).all())
    return {} if own else found


def _splits(file: str, told: Iterable[tuple[str, Any]]) -> tuple[dict[str, str], list[str]]:
    """Splits of images by their names, and what is to be said of words that are none."""
    found, odd = dict[str, str](), dict[str, None]()
    for name, cell in told:
        word = str(cell or "").strip().lower()
        split = SYNONYMS.get(word, word)
        if split in SPLITS and found.setdefault(name, split) != split:
            raise InputError(f"'{file}' says that '{name}' is of {found[name]} and of {split}: give it one split")
        odd |= {} if split in SPLITS or not word else {word: None}
    return found, [f"'{file}': splits {some(odd)} are not read: expected {', '.join(SPLITS)}"] if odd else []


def _finite(text: str | None) -> float:
    number = float(text or "nan")
    if not math.isfinite(number):
        raise ValueError("a number is missing or not finite")
    return number


def _xml(path: Path) -> Marked:
    found, root = [], ElementTree.parse(path).getroot()
    sides = (root.findtext(f"size/{side}") or root.findtext(f"Img_Size{side.title()}") for side in ("width", "height"))
    size = _size(*sides)
    for one in root.iter():
        name, turned, box = one.findtext("name", "").strip(), one.find("robndbox"), one.find("bndbox")
        if one.tag == "HRSC_Object":
            x, y, width, height, angle = (_finite(one.findtext(f"mbox_{key}")) for key in ("cx", "cy", "w", "h", "ang"))
            sides = ((a * width + 1j * b * height) / 2 for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1)))
            points = np.array([complex(x, y) + side * np.exp(1j * angle) for side in sides])
            found.append(_turned(one.findtext("Class_ID", ""), points.view(float).tolist()))
        elif one.tag != "object":
            continue
        elif turned is not None:
            ends = ("left_top", "right_top", "right_bottom", "left_bottom")
            found.append(_turned(name, [_finite(turned.findtext(f"{axis}_{end}")) for end in ends for axis in "xy"]))
        elif box is not None:
            found.append(_upright(name, *(_finite(box.findtext(side)) for side in SIDES[0])))
        else:
            raise ValueError(f"object '{name}' has neither bndbox nor robndbox")
        found[-1] = found[-1]._replace(difficult=one.findtext("difficult", "").strip() == "1")
    return Marked(found, size)


def _text(path: Path, names: Mapping[int, str] | None = None, size: tuple[int, int] = (1, 1)) -> list[Box]:
    """A line a box: of YOLO a class number and 4 or 8 shares of the sides; else, of DOTA, 8 coordinates and a name."""
    found = []
    for line, words in enumerate(map(str.split, path.read_text(encoding="utf-8-sig").splitlines()), 1):
        if not words or ":" in words[0]:  # DOTA begins with imagesource: and gsd:
            continue
        try:
            numbers = [_finite(word) for word in (words[:8] if names is None else words[1:])]
            if names is None:
                *name, last = words[8:]
                marked = bool(name) and last in ("0", "1", "2")  # a name may be of several words
                name = " ".join(name if marked else words[8:])
                found.append(_turned(name, numbers)._replace(difficult=marked and last != "0"))
                continue
            if len(numbers) not in (4, 8) or not all(_SHARE[0] <= one <= _SHARE[1] for one in numbers):
                raise ValueError("expected a class number and 4 or 8 numbers from 0 to 1")
            if (number := int(words[0])) < 0 or (names and number not in names):
                raise ValueError(f"class {number} has no name")
            name, numbers = names.get(number, str(number)), [one * size[at % 2] for at, one in enumerate(numbers)]
            x, y, width, height = numbers[:4]
            upright = _upright(name, x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            found.append(upright if len(numbers) == 4 else _turned(name, numbers))
        except (ValueError, IndexError) as error:
            raise ValueError(f"line {line}: {error}") from error
    return found


def _yolo_names(folder: Path) -> dict[int, str]:
    """Names of classes by number as YOLO's tools keep them, beside the labels or in one of two folders above."""
    names = ("classes.txt", "obj.names", "data.yaml", "dataset.yaml")
    above = list((folder.absolute() / "any").parents)[:3]
    for path in (one / name for one in above for name in names if (one / name).is_file()):
        try:
            text = path.read_text(encoding="utf-8-sig")
            told = text.split("\n") if path.suffix != ".yaml" else (yaml.safe_load(text) or {}).get("names", [])
            pairs: Any = told.items() if isinstance(told, dict) else enumerate(told)
            found = {int(number): str(name).strip() for number, name in sorted(pairs) if str(name).strip()}
        except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
            raise InputError(f"'{path}' does not give names of classes, in a list or by number ({error})") from error
        if found:
            return found
    return {}
