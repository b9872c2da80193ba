"""Which windows train and which test: by place, never by window."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import shapely
import xxhash
from rasterio.windows import Window

from geomim.corpus.scenes import Scene
from geomim.errors import InputError
from geomim.finetune.labels.items import Item, some

_BLOCKS = (8, 4, 2, 1)  # sides of a block of ground, in windows
_MANY = 10  # places that there are at least, if blocks may be that large
_METRES = 111_320.0  # of a degree of latitude


@dataclass(frozen=True)
class Split:
    """How places are shared out.

    Attributes:
        test: Images or folders that are the test; else what lies in folders called so; else one of the folds.
        folds: Parts that places are shared out to, each with each class where possible.
        fold: Which of them is the test; the next one is for validation.
        val: Hold a part out for validation; where labels are few all others may train.
    """

    test: tuple[str, ...] = ()
    folds: int = 5
    fold: int = 0
    val: bool = True


class Ground(NamedTuple):
    """Where windows lie. On Earth they share a frame, in metres; any other image is a frame of its own, in pixels.

    Attributes:
        frames: `(N,)` names.
        outlines: `(N,)` polygons.
        whole: `(N,)` whether the frame is one place, never divided.
    """

    frames: np.ndarray
    outlines: np.ndarray
    whole: np.ndarray


def outlines_of(item: Item, scene: Scene, windows: Sequence[Window]) -> tuple[str, np.ndarray]:
    """The frame of an image, `earth` for longitude and latitude, and the outlines of windows in it."""
    outlines = scene.footprints(windows)
    if item.place is None and not shapely.is_missing(outlines).any():
        return "earth", outlines
    boxes = [(one.col_off, one.row_off, one.col_off + one.width, one.row_off + one.height) for one in windows]
    return f"place {item.place}" if item.place else _content(item.image), shapely.box(*np.array(boxes, float).T)


def _content(path: str) -> str:
    """What equal files have in common, whatever they are called: copies are one place."""
    if not os.path.isfile(path):
        return path
    with open(path, "rb") as file:
        return f"{os.path.getsize(path)} {xxhash.xxh3_64_hexdigest(file.read(1 << 20))}"


def ground_of(frames: Sequence[str], outlines: Sequence[shapely.Geometry]) -> Ground:
    """The ground of windows, by what `outlines_of` says of each; many images are each a place, few are divided."""
    names, shapes = np.array(frames), np.array(outlines, object)
    earth = names == "earth"
    if earth.any():
        middle = np.radians(shapely.get_coordinates(shapely.centroid(shapes[earth]))[:, 1].mean())
        shapes[earth] = shapely.transform(shapes[earth], lambda xy: xy * _METRES * [np.cos(middle), 1])
    alone = len(set(names[~earth].tolist())) >= _MANY
    return Ground(names, shapes, np.char.startswith(names, "place ") | (~earth & alone))


def divide(
    ground: Ground, counts: np.ndarray, told: np.ndarray, split: Split, classes: Sequence[str]
) -> tuple[np.ndarray, list[str]]:
    """Share windows out.

    Args:
        ground: Where they lie.
        counts: `(N, K)` labels of each class in each.
        told: `(N,)` parts that the user or a folder's name says; empty words where nobody does.
        split: How.
        classes: Names.

    Returns:
        `(N,)` words, `train`, `val`, `test`, or `near` for those left out as they lie too near to another part; and
        what is to be said.

    Raises:
        InputError: There is one place only, or nothing is left to train on.
    """
    parts, said = told.copy(), []
    free = parts == ""
    parts[free] = "train"
    if not (told == "test").any() or (split.val and not (told == "val").any()):
        places, what = _places(ground, split.folds)
        count = len(np.unique(places[free]))
        folds = min(split.folds, count)
        if folds < 2:
            raise InputError(
                "all labels lie in one place, and a test needs another: give more scenes, or smaller windows"
            )
        fold = _balanced(places, np.where(free[:, None], counts, 0), folds)
        if not (told == "test").any():
            parts[free & (fold == split.fold % folds)] = "test"
        if split.val and folds > 2 and not (told == "val").any():
            parts[free & (fold == (split.fold + 1) % folds)] = "val"
        said.append(f"{count} places ({what}) are shared out to {folds} folds; the test is fold {split.fold % folds}")
    parts, near = _apart(ground, parts, counts, (told == "test").any())
    said += near
    for part in ("train", "test"):
        lost = [name for name, n in zip(classes, counts[parts == part].sum(0), strict=True) if not n]
        said += [f"{part} holds no label of {some(lost)}: places of it are too few to be on both sides"] if lost else []
    return parts, said


def _places(ground: Ground, folds: int) -> tuple[np.ndarray, str]:
    """`(N,)` number of the place of each window, and what places are: as large blocks as there are enough of."""
    sides = np.sqrt(shapely.area(ground.outlines))
    for frame in np.unique(ground.frames):
        sides[ground.frames == frame] = np.median(sides[ground.frames == frame])
    middles = shapely.get_coordinates(shapely.centroid(ground.outlines))
    for block in _BLOCKS:
        cells = np.where(ground.whole[:, None], 0, middles // (block * sides[:, None]))
        keys = [f"{frame} {x:g} {y:g}" for frame, (x, y) in zip(ground.frames, cells.tolist(), strict=True)]
        places = np.unique(keys, return_inverse=True)[1]
        if len(set(places.tolist())) >= max(_MANY, 2 * folds):
            break
    return places, "whole images" if ground.whole.all() else f"blocks of {block} x {block} windows"


def _balanced(places: np.ndarray, counts: np.ndarray, folds: int) -> np.ndarray:
    """`(N,)` fold of each window: places of rare classes first, each to the fold that lacks its classes most."""
    number = np.zeros((places.max() + 1, counts.shape[1]))
    np.add.at(number, places, counts)
    share = number / number.sum(0).clip(1)
    size = np.bincount(places) / len(places)
    filled, sizes, fold = np.zeros((folds, counts.shape[1])), np.zeros(folds), np.zeros(len(number), int)
    for place in np.lexsort((np.arange(len(size)), -size, -share.max(1, initial=0))):
        fold[place] = np.lexsort((sizes, (filled * share[place]).sum(1).round(9)))[0]
        filled[fold[place]] += share[place]
        sizes[fold[place]] += size[place]
    return fold[places]


def _apart(ground: Ground, parts: np.ndarray, counts: np.ndarray, told: bool) -> tuple[np.ndarray, list[str]]:
    """Leave out windows that share ground with those of test or validation, and those less than a window away.

    The latter stay where the user says what the test is, or where training would lose a class or half of its windows.
    """
    found, said = parts.copy(), []
    side = np.sqrt(shapely.area(ground.outlines))
    for windows, why in (((-0.01,), "share ground with"), ((1.0,), "lie less than a window from")):
        tried = parts.copy()
        for part, others in (("test", ("train", "val")), ("val", ("train",))):
            near = _near(ground, np.isin(tried, others), tried == part, windows[0] * side)
            tried[near] = "near"
        train = tried == "train"
        lost = ((counts[parts == "train"].sum(0) > 0) & (counts[train].sum(0) == 0)).any()
        gone = int((tried == "near").sum())
        if why.startswith("share"):
            if not train.any():
                raise InputError(
                    f"all {gone} windows of train share ground with the test: train and test are of one place; give a test from elsewhere"
                )
        elif told or lost or train.sum() < 0.5 * (parts == "train").sum():
            said += (
                [] if told else ["windows of train stay that lie beside those of the test: too few are farther away"]
            )
            break
        found = tried
        said = [f"{gone} of {len(parts)} windows {why} windows of another part, and are left out"] if gone else said
    return found, said


def _near(ground: Ground, these: np.ndarray, those: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Which of `these` windows lie within a distance of `those`, in the same frame."""
    near = np.zeros(len(these), bool)
    for frame in np.intersect1d(ground.frames[these], ground.frames[those]):
        here = ground.frames == frame
        one, two = np.flatnonzero(these & here), np.flatnonzero(those & here)
        grown = shapely.buffer(ground.outlines[two], distance[two], cap_style="square", join_style="mitre")
        hits = shapely.STRtree(ground.outlines[one]).query(grown, "intersects")[1]
        near[one if ground.whole[here][0] else one[np.unique(hits)]] = True
    return near
