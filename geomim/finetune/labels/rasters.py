"""Labels that are rasters, or none at all: masks of classes, masks of change, and folders called as classes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from affine import Affine
from rasterio.features import rasterize
from rasterio.windows import Window

from geomim.corpus.labels import class_folders, class_names
from geomim.corpus.scenes import Scene
from geomim.corpus.scenes.files import open_dataset
from geomim.errors import InputError
from geomim.finetune.labels.items import UNLABELLED, Asked, Item, Labels, need, open_image, paired, some, split_of

_MOST = 64  # different numbers of a mask of classes
_WHITE = 0xFFFFFF
_FEW = 16  # more may be two, in greys that compression or smoothing made
_EDGE = 40  # such greys from black or white
_SPLIT = re.compile(r"/(train|training|val|valid|validation|test|testing)(?=/[^/]+/[^/]+$)", re.IGNORECASE)


def from_masks(files: Sequence[str], images: Sequence[str], roots: Sequence[str], asked: Asked) -> Labels:
    """A label raster an image, called as it is, of its size."""
    pairs, refused = paired(images, files)
    items = [Item(image, mask=mask, split=split_of(Path(image).parent, roots)) for image, mask in pairs.items()]
    return _of_masks("mask", items, refused, ("background", "foreground"), asked)


def from_change(folders: Sequence[Sequence[str]], roots: Sequence[str], asked: Asked) -> Labels:
    """Images before and after, and label rasters of what changed between them, called the same."""
    before, after, files = folders
    pairs, refused = paired(before, files)
    later, lost = paired(list(pairs), after)
    both = [(image, pairs[image], other, split_of(Path(image).parent, roots)) for image, other in later.items()]
    items = [Item(image, mask=mask, after=other, split=split) for image, mask, other, split in both]
    return _of_masks("change", items, refused + lost, ("no change", "change"), asked)


def from_folders(images: Sequence[str], roots: Sequence[str], asked: Asked) -> Labels | None:
    """Images in a folder a class; None where folders are not called as classes."""
    classes = class_folders([_SPLIT.sub("", image) for image in images])
    if len(classes) < 2:
        return None
    items = []
    for image in images:
        if (name := Path(image).parent.name) in classes:
            scene, split = open_image(image, asked), split_of(Path(image).parent.parent, roots)
            items.append(Item(image, scene.height, scene.width, label=classes.index(name), split=split))
    named = {item.image for item in items}
    refused = tuple((image, "its folder is no class") for image in images if image not in named)
    return Labels("class", tuple(classes), tuple(items), (f"folders are classes: {some(classes)}",), refused)


def read_mask(labels: Labels, item: Item, top: int, left: int, side: int) -> np.ndarray:
    """What is known of the pixels of a window, which may reach beyond the image.

    Returns:
        `(side, side)` int64 places in the classes, -1 where nothing is known.
    """
    found = np.full((side, side), UNLABELLED, np.int64)
    inner = found[: max(item.height - top, 0), : max(item.width - left, 0)]
    if item.mask is not None:
        numbers = _read(item.mask, Window(left, top, inner.shape[1], inner.shape[0]))
        order = np.argsort(labels.numbers)
        known = np.array(labels.numbers)[order]
        at = np.searchsorted(known, numbers).clip(max=len(known) - 1)
        grey = labels.threshold is not None
        inner[:] = numbers >= labels.threshold if grey else np.where(known[at] == numbers, order[at], UNLABELLED)
    else:
        inner[:] = item.outside
        if item.shapes is not None and inner.size:
            inner[:] = _burnt(item, inner, top, left)
    return found


def _burnt(item: Item, under: np.ndarray, top: int, left: int) -> np.ndarray:
    """A window with the classes of the shapes that reach into it over what is `under` them, large ones first."""
    sides = left, top, left + under.shape[1], top + under.shape[0]
    rows = np.sort(item.tree.query(shapely.box(*sides)))
    shapes, around = np.asarray(item.shapes)[rows], np.add(sides, (-1, -1, 1, 1))
    areas = shapely.get_dimensions(shapes) == 2  # a line that is cut off takes other pixels
    shapes[areas] = shapely.clip_by_rect(shapes[areas], *around)  # a coast is not drawn whole in each window
    pairs = [pair for pair in zip(shapes, item.labels[rows].tolist(), strict=True) if not pair[0].is_empty]
    if not pairs:
        return under
    return rasterize(pairs, out=under.copy(), transform=Affine.translation(left, top), all_touched=False)


def counted(labels: Labels, item: Item, top: int, left: int, height: int, width: int | None = None) -> np.ndarray:
    """`(K,)` how many pixels, boxes or images of each class there are in a rectangle; a square without a width."""
    if labels.kind == "class":
        places = np.array([item.label])
    elif labels.kind in ("boxes", "oboxes"):
        places = item.labels[inside(item, top, left, height, width)]
    else:
        width = width or height
        places = read_mask(labels, item, top, left, max(height, width))[:height, :width]
    return np.bincount(places[places >= 0], minlength=len(labels.classes))


def inside(item: Item, top: int, left: int, height: int, width: int | None = None) -> np.ndarray:
    """`(N,)` places of the boxes that have their middle in such a rectangle."""
    bottom, right = top + height, left + (width or height)
    rows = np.sort(item.tree.query(shapely.box(left, top, right, bottom)))
    x, y = item.corners[rows].mean(1).T
    return rows[(x >= left) & (x < right) & (y >= top) & (y < bottom)]


def _read(file: str, window: Window | None = None) -> np.ndarray:
    """Numbers of a label raster, int64; its nodata and NaN are -1, colours are `red << 16 | green << 8 | blue`."""
    with open_dataset(file) as raster:
        numbers, nodata = raster.read(window=window), raster.nodata
    if len(numbers) not in (1, 3, 4):
        raise InputError(f"label raster '{file}' has {len(numbers)} bands; expected class numbers, or 3 of colours")
    if numbers.dtype.kind == "f" and (numbers[np.isfinite(numbers)] % 1).any():
        raise InputError(f"label raster '{file}' holds numbers with fractions; expected whole ones of classes")
    first, *others = np.nan_to_num(numbers, nan=-1).astype(np.int64)
    first = first if nodata is None else np.where(first == nodata, -1, first)
    return (first << 16) | (others[0] << 8) | others[1] if others else first


def _of_masks(kind: Any, items: list[Item], refused: list[Any], two: tuple[str, str], asked: Asked) -> Labels:
    """What the numbers of all masks say; masks that do not fit their image are left out."""
    counts, single, good = Counter[int](), 0, []
    for item in items:
        try:
            numbers = _read(item.mask or "")
            scenes = [open_image(uri, asked) for uri in (item.image, item.after) if uri]
            sizes = [*((scene.height, scene.width) for scene in scenes), numbers.shape]
            if len({*sizes}) > 1:
                said = ", ".join(f"{rows} x {columns}" for rows, columns in sizes)
                raise InputError(f"image and label raster differ in size ({said} pixels)")
            _check_place(scenes[0], item.mask or "")
        except InputError as error:
            refused.append((item.image, str(error)))
            continue
        good.append(replace(item, height=numbers.shape[0], width=numbers.shape[1]))
        own = dict(zip(*(part.tolist() for part in np.unique(numbers[numbers != -1], return_counts=True)), strict=True))
        single += len(own) < 2
        counts.update(own)
    need(good, refused, "label rasters")
    labels = _classes(Labels(kind, (), tuple(good), (), tuple(refused)), counts, two)
    held = counts if labels.threshold is not None else [number for number in labels.numbers if counts[number]]
    if len(held) < 2:
        raise InputError(
            f"all {len(good)} label rasters hold one class, number {some(held) or 'none'}: nothing can be told apart; "
            "give masks that hold what is not of it, too"
        )
    known = zip(labels.classes, labels.numbers, strict=False) if labels.threshold is None else ()
    empty = [name for name, number in known if number not in held]
    notes = [f"no pixel is of {some(empty)}: empty classes are kept, and cannot be learned"] if empty else []
    notes += [f"{single} of {len(good)} label rasters hold one class alone"] if single else []
    return replace(labels, notes=(*labels.notes, *notes))


def _check_place(scene: Scene, mask: str) -> None:
    """Refuse a label raster that says it lies elsewhere than its image."""
    with open_dataset(mask) as raster:
        if raster.crs is None or scene.crs is None or scene.transform is None:
            return
        corner = ~scene.transform * (raster.transform * (0, 0)) if raster.crs == scene.crs else None
    if corner is None or max(map(abs, corner)) > 0.5:
        where = (
            f"at column {corner[0]:.6g}, row {corner[1]:.6g} of it" if corner else f"in {raster.crs.to_string():.40}"
        )
        raise InputError(f"its label raster lies {where}: bring it to the image's grid")


def _classes(labels: Labels, counts: Counter[int], two: tuple[str, str]) -> Labels:
    """Classes by their numbers: from `classes.json` beside the masks or above, or a tag; else guessed, and said."""
    mask, found = Path(labels.items[0].mask or ""), sorted(counts)
    told = [one for one in (mask.parent / "classes.json", mask.parent.parent / "classes.json") if one.exists()]
    with open_dataset(str(mask)) as raster:
        tagged = "CLASSES" in raster.tags()
    if told or tagged:
        numbers, names = class_names((told or [mask.parent / "classes.json"])[0], mask)
        lost = [number for number in found if number not in numbers]
        gone = sum(counts[number] for number in lost)
        said = [f"{gone} pixels of numbers {some(lost)}, which have no name, are not labelled"]
        return replace(labels, classes=tuple(names), numbers=tuple(numbers), notes=tuple(said if lost else ()))
    if (top := max([*found, 1])) in (1, 255, _WHITE) and {*found} <= {0, top}:
        said = f"in masks 0 is '{two[0]}' and {'white' if top == _WHITE else top} is '{two[1]}'"
        return replace(labels, classes=two, numbers=(0, top), notes=(said,))
    ends = sum(count for number, count in counts.items() if min(number, 255 - number) < _EDGE)
    if len(found) > _FEW and found[-1] <= 255 and ends >= 0.9 * counts.total():
        said = f"masks are grey ({len(found)} levels): from 128 on a pixel is '{two[1]}'"
        return replace(labels, classes=two, numbers=(0, 255), threshold=128, notes=(said,))
    if len(found) > _MOST:
        raise InputError(
            f"masks hold {len(found)} different numbers ({some(found)}), and expected are at most {_MOST} classes: "
            "name those that are some in a file classes.json beside the masks"
        )
    notes = ["classes are called by their numbers: classes.json beside the masks names them, and leaves others out"]
    if found[-1] == 255:
        found, notes = found[:-1], ["in masks 255 is taken as not labelled", *notes]
    names = tuple(f"#{number:06x}" if found[-1] > 0xFFFF else str(number) for number in found)
    return replace(labels, classes=names, numbers=tuple(found), notes=tuple(notes))
