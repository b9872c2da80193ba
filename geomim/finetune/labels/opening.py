"""Which format labels are in, and their reading: `open_labels`."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from geomim.corpus.joining import PATHS, Row, join, read_table
from geomim.corpus.scenes import SUFFIXES, find_scenes
from geomim.errors import InputError
from geomim.finetune.labels.boxes import from_files, from_tables
from geomim.finetune.labels.items import Asked, Kind, Labels, some
from geomim.finetune.labels.rasters import from_change, from_folders, from_masks
from geomim.finetune.labels.vectors import from_vector

VECTORS = (".gpkg", ".geojson", ".shp", ".fgb")
FORMATS = "mask rasters, COCO, YOLO, Pascal VOC, DIOR-R or HRSC XML, DOTA, CSV boxes, vector files, A/ B/ label/, a folder a class"


def open_labels(
    scenes: Sequence[str],
    labels: str | None = None,
    kind: Kind | None = None,
    class_column: str | None = None,
    outside: Literal["auto", "unlabelled", "background"] = "auto",
    places: str | None = None,
    sensor: str | None = None,
    bands: Sequence[str] | None = None,
) -> Labels:
    """Read labels in whatever of the known formats they are; see `geomim labels check` for what was understood.

    Args:
        scenes: Images, folders of them, or patterns.
        labels: A file or a folder of labels; looked for among the scenes where None.
        kind: `boxes` or `oboxes`: take polygons of a vector file as the boxes around them, boxes as upright or turned.
        class_column: Of a vector file; guessed where None, and the guess is in the notes.
        outside: What no polygon covers: not labelled, `background`, or the latter where there is one class (`auto`).
        places: Table with columns `path` and `place` (or `group`, `location_group`): images of one place are never
            divided.
        sensor: What took the scenes; only needed where their bands have no names and files of bands are stacked.
        bands: Names of their bands in file order.

    Raises:
        InputError: No format is recognised, several are, or the labels cannot be used; one sentence.
    """
    asked = Asked(kind, class_column, outside, sensor, None if bands is None else tuple(bands))
    source = labels or (scenes[0] if len(scenes) == 1 else None)
    if source is None or not os.path.exists(source):
        raise InputError(
            f"labels '{source}' do not exist: give a file or a folder"
            if source
            else "several scenes are given and no labels: give a file or a folder of labels"
        )
    roots = [*scenes, source]
    if found := _change(Path(source)):
        opened = from_change(*found, roots, asked)
    else:
        forms = _forms(Path(source))
        if len(forms) > 1:
            raise InputError(
                f"'{source}' holds labels in several formats: {'; '.join(f'{form}: {some(files, 2)}' for form, files in forms.items())}. Give one of these files or folders as the labels"
            )
        form, files = next(iter(forms.items()), ("", []))
        opened = _read(form, files, source, scenes, roots, asked)
    opened = _placed(opened, places) if places else opened
    if kind not in (None, opened.kind):
        raise InputError(f"'{source}' holds labels of kind {opened.kind}, and --kind {kind} cannot be made of them")
    return replace(opened, asked=asked)


def _read(
    form: str, files: list[str], source: str, scenes: Sequence[str], roots: Sequence[str], asked: Asked
) -> Labels:
    images = [uri for uri in find_scenes(scenes) if uri not in {*files} and not uri.endswith(VECTORS)]
    if form == "vector":
        if len(files) > 1:
            raise InputError(
                f"'{source}' holds {len(files)} vector files ({some(files)}): give one of them as the labels"
            )
        return from_vector(files[0], images, roots, asked)
    if form in ("COCO", "CSV"):
        return from_tables(form, files, images, roots, asked)
    if form:
        return from_files(form, files, images, roots, asked)
    if masks := _masks(source, scenes, images):
        return from_masks(masks, [uri for uri in images if uri not in {*masks}], roots, asked)
    if opened := from_folders(images, roots, asked):
        return opened
    raise InputError(
        f"no labels are recognised in '{source}': looked for {FORMATS}. Give their file or folder as the labels"
    )


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    return sorted(
        path
        for path in source.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(source).parts)
    )


def _forms(source: Path) -> dict[str, list[str]]:
    """Label files by format, rasters aside; of files of text the beginning tells it."""
    forms: dict[str, list[str]] = defaultdict(list)
    for path in _files(source):
        suffix = path.suffix.lower()
        form = ""
        if suffix in VECTORS:
            form = "" if suffix == ".gpkg" and not _layers(path) else "vector"
        elif suffix in (".json", ".csv", ".xml", ".txt"):
            with path.open(encoding="utf-8", errors="replace") as file:
                head = file.read(65536)
            form = _TEXTS[suffix](head) if not path.name.startswith(("classes.", "obj.")) else ""
        if form:
            forms[form].append(str(path))
    return forms


def _json(head: str) -> str:
    if re.search(r'"type"\s*:\s*"FeatureCollection"', head):
        return "vector"
    return "COCO" if re.search(r'"(annotations|categories|images)"\s*:', head) else ""


def _csv(head: str) -> str:
    names = {name.strip(" \"'").lower() for name in re.split(r"[,;\t]", head.partition("\n")[0])}
    return "CSV" if any({*four} <= names for four in (("xmin", "ymin"), ("x1", "y1"), ("left", "top"))) else ""


def _xml(head: str) -> str:
    return next(
        (
            f"XML of {form}"
            for sign, form in (("<HRSC_Im", "HRSC"), ("<robndbox", "DIOR-R"), ("<annotation", "VOC"))
            if sign in head
        ),
        "",
    )


def _text(head: str) -> str:
    lines = [line.split() for line in head.splitlines()[:20] if line.strip() and ":" not in line.split()[0]]
    if lines and all(
        len(words) in (9, 10) and not _numeric(words[8]) and all(map(_numeric, words[:8])) for words in lines
    ):
        return "DOTA"
    yolo = lines and all(len(words) in (5, 9) and words[0].isdigit() and all(map(_numeric, words)) for words in lines)
    return "YOLO" if yolo else ""


def _numeric(word: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d*)?(e-?\d+)?", word, re.IGNORECASE) is not None


_TEXTS: dict[str, Callable[[str], str]] = {".json": _json, ".csv": _csv, ".xml": _xml, ".txt": _text}


def _layers(path: Path) -> bool:
    import geopandas

    return len(geopandas.list_layers(path)) > 0


def _change(source: Path) -> tuple[list[str], list[str], list[str]] | None:
    """Images before, after and masks of all folders `A`, `B` and `label`; also below folders of splits."""
    parents = [path.parent for path in (source, *source.rglob("A")) if path.name == "A"] if source.is_dir() else []
    found = [
        (one / "A", one / "B", next((one / name for name in ("label", "labels", "mask") if (one / name).is_dir()), one))
        for one in parents
    ]
    found = [three for three in found if three[1].is_dir() and three[2] != three[0].parent]
    if not found:
        return None
    before, after, masks = (
        [str(file) for three in found for file in _files(three[at]) if file.suffix.lower() in SUFFIXES]
        for at in range(3)
    )
    return before, after, masks


_MASKS = re.compile(r"(ground.?truths?|gts?|labels?|masks?|annotations?|targets?)([_-]\w+)?", re.IGNORECASE)


def _masks(source: str, scenes: Sequence[str], images: Sequence[str]) -> list[str]:
    """Label rasters: those of a folder of their own, or of folders among the scenes that are called so."""
    rasters = [str(path) for path in _files(Path(source)) if path.suffix.lower() in SUFFIXES]
    apart = all(os.path.abspath(source) != os.path.abspath(scene) for scene in scenes)
    if apart:
        return rasters
    return [
        path
        for path in rasters
        if any(_MASKS.fullmatch(part) for part in Path(os.path.relpath(path, source)).parts[:-1])
    ]


def _placed(labels: Labels, file: str) -> Labels:
    """The labels with the place of each image that a table tells."""
    rows = read_table(file)
    there = {str(name).strip().lower(): name for name in rows[0]}
    path, place = (
        next((there[name] for name in names if name in there), None)
        for names in ((*PATHS, "tile", "image_path"), ("place", "group", "location_group"))
    )
    if path is None or place is None:
        raise InputError(f"'{file}' needs columns path and place; it has {', '.join(there)}")
    joined = join(
        file,
        [Row(str(row[path]).strip(), str(row[place]).strip()) for row in rows if row[path]],
        [item.image for item in labels.items],
        "each is a place of its own",
    ).check()
    items = tuple(replace(item, place=value) for item, value in zip(labels.items, joined.values, strict=True))
    return replace(labels, items=items, notes=(*labels.notes, str(joined)))
