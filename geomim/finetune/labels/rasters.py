"""Labels that are rasters, or none at all: masks of classes, masks of change, and folders called as classes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from affine import Affine
from rasterio.features import rasterize
from rasterio.windows import Window

from geomim.corpus.labels import class_folders, class_names
from geomim.corpus.scenes.files import open_dataset
from geomim.errors import InputError
from geomim.finetune.labels.items import UNLABELLED, Asked, Codes, Item, Labels, need, paired, size_of, some, split_of

_MOST = 64  # different numbers of a mask of classes
_EDGE = 40  # grey levels around black and white that compression or smoothing makes of them


def from_masks(files: Sequence[str], images: Sequence[str], roots: Sequence[str], asked: Asked) -> Labels:
    """A label raster an image, called as it is, of its size."""
    pairs, refused = paired(images, files)
    items = [
        Item(image, 0, 0, mask=mask, split=split_of(str(Path(image).parent), roots)) for image, mask in pairs.items()
    ]
    return _named("mask", items, refused, ("background", "foreground"), asked)


def from_change(
    before: Sequence[str], after: Sequence[str], files: Sequence[str], roots: Sequence[str], asked: Asked
) -> Labels:
    """Two images of a place, and a label raster of what changed between them, all called the same."""
    pairs, refused = paired(before, files)
    later, lost = paired(list(pairs), after)
    items = [
        Item(image, 0, 0, mask=pairs[image], after=other, split=split_of(str(Path(image).parent), roots))
        for image, other in later.items()
    ]  # fmt: skip
    return _named("change", items, refused + lost, ("no change", "change"), asked)


def from_folders(images: Sequence[str], roots: Sequence[str], asked: Asked) -> Labels | None:
    """Images in a folder a class; None where folders are not called as classes."""
    splits = [split_of(str(Path(image).parent), roots) for image in images]
    plain = [_SPLIT.sub("/", image) for image in images]
    classes = class_folders(plain)
    if len(classes) < 2:
        return None
    items, refused = [], []
    for image, split in zip(images, splits, strict=True):
        if (name := Path(image).parent.name) in classes:
            items.append(Item(image, *size_of(image, asked), label=classes.index(name), split=split))
        else:
            refused.append((image, f"its folder, {name}, is no class"))
    return Labels("class", tuple(classes), tuple(items), (f"folders are classes: {some(classes)}",), tuple(refused))


_SPLIT = re.compile(r"/(train|training|val|valid|validation|test|testing)(?=/[^/]+/[^/]+$)", re.IGNORECASE)


def read_mask(labels: Labels, item: Item, top: int, left: int, side: int) -> np.ndarray:
    """What is known of the pixels of a window, which may reach beyond the image.

    Returns:
        `(side, side)` int64 places in the classes, -1 where nothing is known.
    """
    if item.mask is None:
        found = np.full((side, side), item.outside, np.int64)
        _outside(found, item, top, left)
        if item.shapes is not None and len(item.shapes):
            pairs = zip(item.shapes, item.labels.tolist(), strict=True)
            rasterize(pairs, out=found, transform=Affine.translation(left, top), all_touched=False)
            _outside(found, item, top, left)
        return found
    found = np.full((side, side), UNLABELLED, np.int64)
    assert labels.codes is not None
    bottom, right = min(top + side, item.height), min(left + side, item.width)
    found[: bottom - top, : right - left] = labels.codes.places(
        _read(item.mask, Window(left, top, right - left, bottom - top))
    )
    return found


def counted(labels: Labels, item: Item, top: int, left: int, side: int) -> np.ndarray:
    """`(K,)` how many pixels, boxes or images of each class there are in a window."""
    if labels.kind == "class":
        places = np.array([item.label])
    elif labels.kind in ("boxes", "oboxes"):
        places = item.labels[inside(item, top, left, side)]
    else:
        places = read_mask(labels, item, top, left, side).ravel()
    return np.bincount(places[places >= 0], minlength=len(labels.classes))


def inside(item: Item, top: int, left: int, side: int) -> np.ndarray:
    """`(N,)` which boxes have their middle in a window."""
    middle = item.corners.mean(1) - [left, top]
    return ((middle >= 0) & (middle < side)).all(1)


def _outside(mask: np.ndarray, item: Item, top: int, left: int) -> None:
    mask[max(item.height - top, 0) :] = UNLABELLED
    mask[:, max(item.width - left, 0) :] = UNLABELLED


def _read(file: str, window: Window | None = None) -> np.ndarray:
    """Numbers of a label raster, int64 or floating; its nodata is -1. Colours become one number."""
    with open_dataset(file) as raster:
        numbers = raster.read(window=window)
        nodata = raster.nodata
    if len(numbers) not in (1, 3, 4):
        raise InputError(
            f"label raster '{file}' has {len(numbers)} bands; expected 1 of class numbers, or 3 of colours"
        )
    if numbers.dtype.kind == "f" and (numbers[np.isfinite(numbers)] % 1).any():
        raise InputError(f"label raster '{file}' holds numbers with fractions; expected whole ones of classes")
    numbers = np.nan_to_num(numbers, nan=-1).astype(np.int64)
    red, *others = numbers[:3]
    if nodata is not None:
        red = np.where(red == nodata, -1, red)
    return (red << 16) | (others[0] << 8) | others[1] if others and (others[0] != red).any() else red


def _named(kind, items: list[Item], refused: list[tuple[str, str]], two: tuple[str, str], asked: Asked) -> Labels:
    """What the numbers of all masks say, and what is wrong with some of them."""
    counts, single, good = Counter[int](), 0, []
    for item in items:
        try:
            height, width = size_of(item.image, asked)
            numbers = _read(item.mask or "")
            sizes = {numbers.shape, (height, width), *([size_of(item.after, asked)] if item.after else ())}
            if len(sizes) > 1:
                said = ", ".join(f"{rows} x {columns}" for rows, columns in sorted(sizes))
                raise InputError(f"image and label raster differ in size ({said} pixels)")
            good.append(replace(item, height=height, width=width))
            own = dict(zip(*(part.tolist() for part in np.unique(numbers, return_counts=True)), strict=True))
            single += len(own.keys() - {-1}) < 2
            counts.update(own)
        except InputError as error:
            refused.append((item.image, str(error)))
    need(good, refused, "label rasters")
    counts.pop(-1, None)
    codes, classes, notes = _classes(Path(good[0].mask or ""), counts, two)
    if len(classes) < 2 or sum(counts[number] > 0 for number in counts) < 2:
        raise InputError(
            f"all {len(good)} label rasters hold one class, {some(classes) or 'none'} (number {some(counts)}): nothing can "
            "be told apart; give masks that hold what is not of it as well"
        )
    if single:
        notes.append(f"{single} of {len(good)} label rasters hold one class alone")
    if codes.threshold is None and (
        empty := [n for n, code in zip(classes, codes.numbers, strict=True) if not counts[code]]
    ):
        notes.append(f"no pixel is of {some(empty)}: empty classes are kept, and cannot be learned")
    return Labels(kind, classes, tuple(good), tuple(notes), tuple(refused), codes)


def _classes(mask: Path, counts: Counter[int], two: tuple[str, str]) -> tuple[Codes, tuple[str, ...], list[str]]:
    """Classes by their numbers: from `classes.json` beside the masks or above, else guessed, which is said."""
    told = next(
        (one for one in (mask.parent / "classes.json", mask.parent.parent / "classes.json") if one.exists()), None
    )
    with open_dataset(str(mask)) as raster:
        tagged = "CLASSES" in raster.tags()
    if told or tagged:
        numbers, names = class_names(told or mask.parent / "classes.json", mask)
        lost = {number: count for number, count in counts.items() if number not in numbers}
        said = (
            [f"{sum(lost.values())} pixels of numbers {some(lost)} have no name: they are not labelled"] if lost else []
        )
        return Codes(tuple(numbers)), tuple(names), said
    found = sorted(counts)
    if (found and set(found) <= {0, 1}) or set(found) <= {0, 255}:
        return (
            Codes((0, found[-1] or 1)),
            two,
            [f"masks hold {some(found)}: 0 is {two[0]}, {found[-1] or 1} is {two[1]}"],
        )
    if len(found) > 2 and found[-1] <= 255 and len(found) > 16:
        ends = sum(count for number, count in counts.items() if min(number, 255 - number) < _EDGE)
        if ends >= 0.9 * sum(counts.values()):
            return Codes((), 128), two, [f"masks are grey ({len(found)} levels): from 128 on a pixel is {two[1]}"]
    if len(found) > _MOST:
        raise InputError(
            f"masks hold {len(found)} different numbers, such as {some(found)}; expected at most {_MOST} classes: pictures "
            "or measurements are no masks. Name the numbers that are classes in a file classes.json beside them"
        )
    notes = []
    if found[-1] == 255 and len(found) > 2:
        found, notes = found[:-1], ["255 is taken as not labelled"]
    names = tuple(f"#{number:06x}" if max(found) > 65535 else str(number) for number in found)
    return (
        Codes(tuple(found)),
        names,
        [
            *notes,
            f"classes are called by their numbers ({some(names)}): classes.json beside the masks names them, and leaves others out",
        ],
    )
