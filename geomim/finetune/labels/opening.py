"""Which format labels are in, and their reading: `open_labels`."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from geomim.corpus.captions.vector import file_of
from geomim.corpus.joining import join, read_rows
from geomim.corpus.scenes import SUFFIXES, find_scenes
from geomim.errors import InputError
from geomim.finetune.labels.boxes import from_files, from_tables
from geomim.finetune.labels.items import Asked, Labels, Outside, some
from geomim.finetune.labels.rasters import from_change, from_folders, from_masks
from geomim.finetune.labels.vectors import from_vector

_SIGNS = (
    ("vector", r"gpkg|geojson|shp|fgb", r""),
    ("vector", r"json", r'"type"\s*:\s*"FeatureCollection"'),
    ("COCO", r"json", r'"(annotations|categories|images)"\s*:'),
    ("CSV", r"csv", r"\A[^\n]*\b(xmin|x1|left)\b"),
    ("HRSC XML", r"xml", r"<HRSC_Im"),
    ("DIOR-R XML", r"xml", r"<robndbox"),
    ("Pascal VOC XML", r"xml", r"<bndbox"),
    ("DOTA", r"txt", r"\A([^\n]*:[^\n]*\n)*\s*(-?[\d.]+\s+){8}[a-z]"),
    ("YOLO", r"txt", r"\A\s*\d+([ \t]+[\d.e-]+){4}(([ \t]+[\d.e-]+){4})?\s*($|\n)"),
    ("", r"txt|xml", r"\A\s*\Z|<annotation"),
)
"""Formats of files: their endings, and what their beginning holds; one without objects is of that of the others."""
_MASKS = re.compile(r"(.*[_-])?(ground.?truths?|gts?|labels?|masks?|annotations?|targets?)([_-].*)?", re.IGNORECASE)


def open_labels(
    scenes: Sequence[str],
    labels: str | None = None,
    class_column: str | None = None,
    outside: Outside = "auto",
    places: str | None = None,
    sensor: str | None = None,
    bands: Sequence[str] | None = None,
) -> Labels:
    """Read labels in whatever of the known formats they are.

    These are masks called as their images, A/ B/ label/ of pairs, a folder a class, COCO, YOLO, Pascal VOC, DOTA, XML
    of DIOR-R and HRSC, CSV tables of boxes, and vector files over scenes in any coordinate reference system.

    Args:
        scenes: Images, folders of them, or patterns.
        labels: A file or a folder, or `FILE:LAYER` of a vector file of several layers; looked for among the scenes
            where None.
        class_column: Of a vector file; guessed where None.
        outside: What no polygon covers: not labelled, `background`, or the latter where there is one class (`auto`).
        places: Table with columns `path` and `place`: images of one place are never divided.
        sensor: What took the scenes; needed where files of bands are stacked that have no other names.
        bands: Names of the scenes' bands in file order.

    Raises:
        InputError: No format is recognised, several are, or the labels cannot be used.
    """
    asked = Asked(class_column, outside, sensor, None if bands is None else tuple(bands))
    given = str(labels or (scenes[0] if len(scenes) == 1 else ""))
    path, layer = file_of(given)
    source = Path(path if os.path.isfile(path) else given)
    if not labels and len(scenes) > 1:
        raise InputError(f"{len(scenes)} scenes and no labels are given: give a file or a folder of labels")
    if not source.exists():
        raise InputError(f"labels '{source}' do not exist: give a file or a folder")
    opened = replace(_opened(source, layer, scenes, asked), asked=asked)
    return _placed(opened, places) if places else opened


def _opened(source: Path, layer: str, scenes: Sequence[str], asked: Asked) -> Labels:
    images, roots, real = find_scenes(scenes), (_root(scenes), os.path.abspath(source)), os.path.realpath
    if folders := _change(source):
        return from_change(folders, images, roots, asked)
    found = _forms(source)
    if len(found) > 1 or len(found.get("vector", ())) > 1:
        said = "; ".join(f"{form}: {some(files, 3)}" for form, files in found.items())
        raise InputError(f"'{source}' holds several labels ({said}): give one of these files or folders as the labels")
    form, files = next(iter(found.items()), ("", []))
    if layer and form != "vector":
        raise InputError(f"labels '{source}' have no layer '{layer}': they are {form or 'no vector file'}")
    if form == "vector":
        return from_vector(f"{files[0]}:{layer}" if layer else files[0], images, roots, asked)
    if form:
        return (from_tables if form in ("COCO", "CSV") else from_files)(form, files, images, roots, asked)
    apart = not any((real(scene) + os.sep).startswith(real(source) + os.sep) for scene in scenes)
    inner = [path for path in _files(source) if path.suffix.lower() in SUFFIXES]
    masks = [str(path) for path in inner if apart or any(map(_MASKS.fullmatch, path.relative_to(source).parts[:-1]))]
    if masks:
        taken = {real(mask) for mask in masks}
        return from_masks(masks, [uri for uri in images if real(uri) not in taken], roots, asked)
    if labels := from_folders(images, roots, asked):
        return labels
    known = ", ".join(dict.fromkeys(form for form, _, _ in _SIGNS if form))
    raise InputError(
        f"no labels are recognised in '{source}': looked for rasters in a folder labels/ or masks/, A/ B/ label/, a "
        f"folder a class, {known}"
    )


def _root(scenes: Sequence[str]) -> str:
    """The folder that all scenes lie in."""
    given = (one if os.path.isdir(one) else os.path.dirname(re.split(r"[*?[]", one)[0]) for one in map(str, scenes))
    return os.path.commonpath([os.path.abspath(folder) for folder in given])


def _files(source: Path) -> list[Path]:
    """All files, or the one that it is; without hidden ones."""
    inside = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
    return [path for path in inside if not any(part.startswith(".") for part in path.relative_to(source).parts)]


def _forms(source: Path) -> dict[str, list[str]]:
    """Label files by format, rasters aside."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in _files(source):
        signs = [(form, sign) for form, ending, sign in _SIGNS if re.fullmatch(ending, path.suffix[1:].lower())]
        with path.open("rb") as file:
            head = file.read(1 << 16 if signs else 0).decode("utf-8-sig", "replace")
        for form in [form for form, sign in signs if re.search(sign, head, re.IGNORECASE)][:1]:
            found[form].append(str(path))
    for empty in found.pop("", []):
        alike = [form for form, files in found.items() if Path(files[0]).suffix.lower() == Path(empty).suffix.lower()]
        for form in alike[:1]:
            found[form].append(empty)
    return found


def _change(source: Path) -> list[tuple[Path, ...]]:
    """Folders `A`, `B` and `label` side by side, also in a folder a split."""
    masks = [(one, one.parent / name) for one in sorted(source.rglob("A")) for name in ("mask", "labels", "label")]
    sides = {one: (one, one.parent / "B", mask) for one, mask in masks if mask.is_dir()}
    return [three for three in sides.values() if three[1].is_dir()]


def _placed(labels: Labels, file: str) -> Labels:
    """The labels with the place of each image that a table tells."""
    rows = read_rows(file, ("place", "group", "location_group"))
    joined = join(file, rows, [item.image for item in labels.items], "each is a place of its own").check()
    items = tuple(replace(item, place=value) for item, value in zip(labels.items, joined.values, strict=True))
    return replace(labels, items=items, notes=(*labels.notes, str(joined)))
