"""Labels that are rasters, or none at all: masks of classes, masks of change, and folders called as classes."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from affine import Affine
from rasterio.enums import MaskFlags
from rasterio.features import rasterize
from rasterio.windows import Window

from geomim.corpus.labels import class_folders, class_names
from geomim.corpus.scenes import Scene, find_scenes
from geomim.corpus.scenes.files import open_dataset
from geomim.errors import InputError
from geomim.finetune.labels.items import UNLABELLED, Asked, Item, Labels, need, open_image, paired, some, split_of

_MOST = 64  # different numbers of a mask of classes
_COLOUR = 1 << 24  # and more are colours; greys are their number, in one band or in three
_STRIP = 1 << 20  # pixels that are read at a time
_FEW = 16  # more may be two, in greys that compression or smoothing made
_EDGE = 40  # such greys from black or white
_SPLIT = re.compile(r"/(train|training|val|valid|validation|test|testing)(?=/[^/]+/[^/]+$)", re.IGNORECASE)


def from_masks(files: Sequence[str], images: Sequence[str], roots: tuple[str, ...], asked: Asked) -> Labels:
    """A label raster an image, called as it is, of its size."""
    pairs, refused = paired(images, files, roots)
    items = [Item(image, mask=mask, split=split_of(image, roots)) for image, mask in pairs.items()]
    return _of_masks("mask", items, refused, ("background", "foreground"), asked)


def from_change(
    folders: Sequence[tuple[Path, ...]], images: Sequence[str], roots: tuple[str, ...], asked: Asked
) -> Labels:
    """Those of the images that are before, with what is after and label rasters called the same, of three folders."""
    items, refused, real = [], [], os.path.realpath
    for three in folders:
        if own := [image for image in images if Path(real(image)).is_relative_to(real(three[0]))]:
            below = tuple(os.path.abspath(folder) for folder in three)
            pairs, lost = paired(own, find_scenes(three[2], maps=True), below)
            later, gone = paired([*pairs], find_scenes(three[1]), below)
            refused += lost + gone
            items += [Item(one, mask=pairs[one], after=later[one], split=split_of(one, roots)) for one in later]
    return _of_masks("change", items, refused, ("no change", "change"), asked)


def from_folders(images: Sequence[str], roots: tuple[str, ...], asked: Asked) -> Labels | None:
    """Images in a folder a class; None where folders are not called as classes."""
    classes = class_folders([_SPLIT.sub("", image) for image in images])
    if len(classes) < 2:
        return None
    items = []
    for image in images:
        if (name := Path(image).parent.name) in classes:
            scene, split = open_image(image, asked), split_of(os.path.dirname(image), roots)
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
        window = Window(left, top, inner.shape[1], inner.shape[0])
        inner[:] = _places(labels, _numbers(_opened(item.mask, *_version(item.mask), os.getpid()), window))
    else:
        inner[:] = item.outside
        if item.shapes is not None and inner.size:
            inner[:] = _burnt(item, inner, top, left)
    return found


def _version(path: str) -> tuple[int, ...]:
    """What changes when a file on this machine is written again, or another takes its place."""
    try:
        told = os.stat(path)
    except OSError:  # an address
        return ()
    return told.st_ino, told.st_size, told.st_mtime_ns


@lru_cache(64)
def _opened(path: str, *_: int) -> Any:
    """A label raster, held open for its next window; a process does not read by what another one opened."""
    return open_dataset(path)


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


def _places(labels: Labels, numbers: np.ndarray) -> np.ndarray:
    """Places in the classes of numbers of a label raster; -1 of those that are none."""
    if labels.threshold is not None:
        return np.where(numbers < 0, UNLABELLED, numbers >= labels.threshold)
    order = np.argsort(labels.numbers)
    known = np.array(labels.numbers)[order]
    at = np.searchsorted(known, numbers).clip(max=len(known) - 1)
    return np.where(known[at] == numbers, order[at], UNLABELLED)


def _numbers(raster: Any, window: Window) -> np.ndarray:
    """Numbers of a label raster, int64; -1 is nodata or NaN in all bands, or masked; other colours are 24 bits more."""
    bands, said = raster.read(window=window)[:3], f"label raster '{raster.name}'"
    if raster.count not in (1, 3, 4):
        raise InputError(f"{said} has {raster.count} bands; expected class numbers, or 3 of colours")
    lost = (~np.isfinite(bands) | (bands == raster.nodata)).all(0)
    if _masked(raster):
        lost |= raster.dataset_mask(window=window) == 0
    if bands.dtype.kind == "f" and (np.nan_to_num(bands, nan=0.5) % 1)[:, ~lost].any():
        raise InputError(f"{said} holds numbers with fractions; expected whole ones of classes")
    first, *others = np.where(lost, UNLABELLED, np.nan_to_num(bands).astype(np.int64))
    if not others or not (bright := (others != first).any(0)).any():
        return first
    if not 0 <= bands[:, bright].min() <= bands[:, bright].max() <= 255:
        raise InputError(f"{said} holds colours beyond 0..255")
    return np.where(bright, _COLOUR | (first << 16) | (others[0] << 8) | others[1], first)


def _masked(raster: Any) -> bool:
    """Whether a label raster has a mask of its own, or an alpha band, beside its numbers."""
    return MaskFlags.per_dataset in raster.mask_flag_enums[0]


def _tally(item: Item, asked: Asked) -> tuple[Item, Counter[int], str]:
    """Its size, and pixels of each number of a label raster that fits its images, strip by strip; what is not told."""
    total = Counter[int]()
    with open_dataset(item.mask or "") as raster:
        _check_place(raster, [open_image(uri, asked) for uri in (item.image, item.after) if uri])
        rows = max(1, _STRIP // raster.width)
        for top in range(0, raster.height, rows):
            strip = _numbers(raster, Window(0, top, raster.width, min(rows, raster.height - top)))
            total.update(dict(zip(*(one.tolist() for one in np.unique(strip, return_counts=True)), strict=True)))
        none = "-1 or NaN" if raster.nodata is None else f"nodata ({raster.nodata:g})"
        none = f"masked out or {none}" if _masked(raster) else none
        return replace(item, height=raster.height, width=raster.width), total, none


def _check_place(raster: Any, scenes: Sequence[Scene]) -> None:
    """Refuse a label raster or a later image of another size than the image, or that says it lies elsewhere."""
    sizes, scene = [(one.height, one.width) for one in (*scenes, raster)], scenes[0]
    if len({*sizes}) > 1:
        said = ", ".join(f"{rows} x {columns}" for rows, columns in sizes)
        raise InputError(f"image and label raster differ in size ({said} pixels)")
    for what, other in (("label raster", raster), ("later image", scenes[-1])):
        if any(one.crs is None or one.transform is None for one in (scene, other)):
            continue
        if other.crs != scene.crs:
            raise InputError(f"its {what} lies in {other.crs.to_string():.40}: bring it to the image's grid")
        for verb, end in (("lies", (0, 0)), ("ends", (scene.width, scene.height))):
            column, row = ~scene.transform * (other.transform * end)
            if max(abs(column - end[0]), abs(row - end[1])) > 0.5:
                where = f"at column {column:.6g}, row {row:.6g} of it"
                raise InputError(f"its {what} {verb} {where}: bring it to the image's grid")


def _of_masks(kind: Any, items: list[Item], refused: list[Any], two: tuple[str, str], asked: Asked) -> Labels:
    """What the numbers of all masks say; masks that do not fit their image are left out."""
    good, tallies, lost = [], [], Counter[str]()
    for item in items:
        try:
            whole, own, none = _tally(item, asked)
        except InputError as error:
            refused.append((item.image, str(error)))
            continue
        lost[none] += own.pop(UNLABELLED, 0)
        good.append(whole)
        tallies.append(own)
    need(good, refused, "label rasters")
    labels = _classes(Labels(kind, (), tuple(good), (), tuple(refused)), sum(tallies, Counter[int]()), two)
    counts = np.zeros((len(good), len(labels.classes)), np.int64)
    for row, own in zip(counts, tallies, strict=True):
        at = _places(labels, np.array([*own], np.int64))
        np.add.at(row, at[at >= 0], np.array([*own.values()], np.int64)[at >= 0])
    gone = [f"{count} pixels are {none}: not labelled" for none, count in lost.items() if count]
    held = counts.any(0)
    if held.sum() < 2:
        number = "; ".join([some(np.array(labels.numbers)[held]) or "none", *gone])
        raise InputError(
            f"all {len(good)} label rasters hold one class, number {number}: nothing can be told apart; "
            "give masks that hold what is not of it, too"
        )
    empty = [name for name, one in zip(labels.classes, held, strict=True) if not one]
    notes = [f"no pixel is of {some(empty)}: empty classes are kept, and cannot be learned"] if empty else []
    single = (counts > 0).sum(1) < 2
    notes += [f"{single.sum()} of {len(good)} label rasters hold one class alone"] if single.any() else []
    found = tuple(replace(item, counts=own) for item, own in zip(good, counts, strict=True))
    return replace(labels, items=found, notes=(*labels.notes, *notes, *gone))


def _told(masks: Sequence[Path]) -> dict[int, str]:
    """Classes by number: of `classes.json` beside each mask or above, or of its tag, which must not contradict."""
    names: dict[int, str] = {}
    for mask in masks:
        beside, above = mask.parent / "classes.json", mask.parent.parent / "classes.json"
        file = above if above.exists() and not beside.exists() else beside
        with open_dataset(str(mask)) as raster:
            if not file.exists() and "CLASSES" not in raster.tags():
                continue
            own = dict(zip(*class_names(file, raster), strict=True))
        both = names | own
        if both != own | names or len({*both.values()}) < len(both):
            said = f"classes of '{mask}' are {own}, of others {names}"
            raise InputError(f"{said}: give each number one name, and each name one number")
        names = both
    return dict(sorted(names.items()))


def _classes(labels: Labels, counts: Counter[int], two: tuple[str, str]) -> Labels:
    """Classes by their numbers: from `classes.json` beside the masks or above, or a tag; else guessed, and said."""
    found = sorted(counts)
    if names := _told([Path(item.mask or "") for item in labels.items]):
        lost = [number for number in found if number not in names]
        gone = sum(counts[number] for number in lost)
        said = [f"{gone} pixels of numbers {some(lost)}, which have no name, are not labelled"]
        return replace(labels, classes=tuple(names.values()), numbers=tuple(names), notes=tuple(said if lost else ()))
    if (top := max([*found, 1])) in (1, 255) and {*found} <= {0, top}:
        said = f"in masks 0 is '{two[0]}' and {top} is '{two[1]}'"
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
    hexes = [f"#{number - _COLOUR if number >= _COLOUR else number * 0x10101:06x}" for number in found]
    called = hexes if found[-1] >= _COLOUR else map(str, found)
    return replace(labels, classes=tuple(called), numbers=tuple(found), notes=tuple(notes))
