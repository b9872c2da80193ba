"""Which windows train and which test: by place, never by window."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import shapely
import xxhash
from rasterio.windows import Window

from geomim.corpus.scenes import Scene
from geomim.errors import ConfigError, InputError, nearest
from geomim.finetune.labels.items import Item, some

_BLOCKS = (8, 4, 2, 1)  # sides of a block of ground, in windows
_MANY = 10  # places that there are at least, where blocks may be that large


@dataclass(frozen=True)
class Split:
    """How places are shared out.

    Attributes:
        test: Images or folders that are the test; else what lies in folders called so; else one of the folds.
        folds: Parts that places are shared out to, each with each class where possible; as many as places at most.
        fold: Which of them, from 0, is the test; the next one is for validation.
        val: Hold out a part for validation; where labels are few, all others may train.

    Raises:
        ConfigError: There are fewer than two folds, or not this one.
    """

    test: tuple[str, ...] = ()
    folds: int = 5
    fold: int = 0
    val: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.fold < self.folds or self.folds < 2:
            given = f"split.folds {self.folds}, split.fold {self.fold}"
            raise ConfigError(f"{given}: expected at least 2 folds, and one of them, counted from 0")


def told_parts(items: Sequence[Item], test: Sequence[str]) -> list[str]:
    """The part that each image is said to be of, by the user or else by its folder; empty words where nobody says.

    Raises:
        InputError: No image is called as one of the user's words, or images of several folders are.
    """
    parts = ["" if test or item.split in (None, "train") else str(item.split) for item in items]
    paths = [[uri for uri in (item.image, item.after) if uri] for item in items]
    for name in test:
        below = [at for at, own in enumerate(paths) if any(_within(uri, name) for uri in own)]
        called = [at for at, own in enumerate(paths) if name in map(os.path.basename, own)]
        if not below and len(called) != 1:
            known = {os.path.basename(uri) for own in paths for uri in own}
            several = f"is the name of images of several folders ({some(items[at].image for at in called)}): give paths"
            none = f"is none of {len(items)} images, and no folder of some{nearest(name, known)}"
            raise InputError(f"split.test: '{name}' {several if called else none}")
        for at in below or called:
            parts[at] = "test"
    return parts


def _within(path: str, where: str) -> bool:
    """Whether an image is a file, or lies in a folder; links may lead there."""
    ways = (os.path.abspath, os.path.realpath)
    return any(Path(one(path)).is_relative_to(other(where)) for one in ways for other in ways)


class Ground(NamedTuple):
    """Where windows lie. On Earth they share a frame, in degrees; any other image is a frame of its own, in pixels.

    Attributes:
        frames: `(N,)` names.
        outlines: `(N,)` polygons.
        ties: `(N,)` names of places that are never divided; empty words where the frame may be.
    """

    frames: np.ndarray
    outlines: np.ndarray
    ties: np.ndarray


def outlines_of(item: Item, scene: Scene, windows: Sequence[Window]) -> tuple[str, np.ndarray]:
    """The frame of an image, `earth` for longitude and latitude, and the outlines of windows in it."""
    outlines = scene.footprints(windows)
    if not shapely.is_missing(outlines).any():
        return "earth", outlines
    boxes = [(one.col_off, one.row_off, one.col_off + one.width, one.row_off + one.height) for one in windows]
    return "\n".join(_content(uri) for uri in (item.image, item.after) if uri), shapely.box(*np.array(boxes, float).T)


def _content(path: str) -> str:
    """What copies of a file have in common, whatever they are called: they are one place."""
    if not os.path.isfile(path):
        return path
    with open(path, "rb") as file:
        return f"{os.path.getsize(path)} {xxhash.xxh3_64_hexdigest(file.read(1 << 20))}"


def ground_of(frames: Sequence[str], outlines: Sequence[shapely.Geometry], places: Sequence[str] = ()) -> Ground:
    """The ground of windows; of many images each is a place, few are divided.

    Args:
        frames: Of each window, as `outlines_of` says.
        outlines: Likewise.
        places: The user's word for each, empty where there is none. A place ties images and never parts what shares
            ground: windows without a word that lie on ground of a place are of it.
    """
    names, shapes = np.array(_joined(frames)), np.array(outlines, object)
    alone = names != "earth"
    many = len({*names[alone].tolist()}) >= _MANY
    told = np.array([f"place {place}" if place else "" for place in places or [""] * len(names)])
    named = told != ""
    ties = np.where(named, told, np.where(alone & many, names, ""))
    for frame in np.intersect1d(names[named], names[~named]):
        here = names == frame
        free, whose = np.flatnonzero(here & ~named), np.where(here, told, "")
        tree = shapely.STRtree(shapes[free])
        for place in np.unique(whose[here & named]):
            ties[free[tree.query(_grown(shapes[whose == place], -0.01), "intersects")[1]]] = place
    return Ground(names, shapes, ties)


def _joined(frames: Sequence[str]) -> list[str]:
    """The same name for frames of pairs, a line a date, that have one in common."""
    groups: dict[str, set[str]] = {}
    for dates in (frame.split("\n") for frame in dict.fromkeys(frames)):
        group = {*dates}.union(*(groups.get(date, ()) for date in dates))
        groups |= dict.fromkeys(group, group)
    return [min(groups[frame.split("\n")[0]]) for frame in frames]


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
        InputError: There is one place only, or no label is left to train on.
        ConfigError: There are fewer places than this fold needs.
    """
    free, given = told == "", {*told.tolist()}
    parts, said = np.where(free, "train", told), []
    places, what = _places(ground, split.folds)
    count = len({*places[free & counts.any(1)].tolist()})
    folds = min(split.folds, count)
    if "test" not in given and (folds < 2 or split.fold >= folds):
        few = "all labels lie in one place, and a test needs another: give more scenes, or smaller windows"
        many = f"split.fold {split.fold}: labels lie in {count} places, so folds are 0 to {folds - 1}"
        raise InputError(few) if folds < 2 else ConfigError(many)
    if folds > 1:
        fold = _balanced(places, np.where(free[:, None], counts, 0), folds)
        if "test" not in given:
            parts[free & (fold == split.fold)] = "test"
            said = [f"{count} places with labels ({what}) are shared out to {folds} folds, test: {split.fold}"]
        held = np.where(free & (fold == (split.fold + 1) % folds) & (parts == "train"), "val", parts)
        if split.val and "val" not in given:
            lost = _lost(counts, parts == "train", _apart(ground, held, counts, True)[0] == "train")
            said += ["no part is held out for validation: a class would be lost to training"] if lost else []
            parts = parts if lost else held
    parts, near = _apart(ground, parts, counts, "test" in given)
    return parts, [*said, *near, *_missing(parts, counts, classes)]


def _missing(parts: np.ndarray, counts: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Which classes a side lacks; all of them is refused."""
    said = []
    for part in ("train", "test"):
        lost = [name for name, n in zip(classes, counts[parts == part].sum(0), strict=True) if not n]
        if len(lost) == len(classes):
            why = "train and test are of one place, or labels are of too few"
            raise InputError(f"no label is left for {part}: {why}; give more scenes, or a test from elsewhere")
        said += [f"{part} holds no label of {some(lost)}, which too few places have"] if lost else []
    return said


def _places(ground: Ground, folds: int) -> tuple[np.ndarray, str]:
    """`(N,)` number of the place of each window, and what places are: blocks as large as there are enough of."""
    low, high = np.split(shapely.bounds(ground.outlines), 2, 1)
    middles, sizes = (low + high) / 2, high - low
    whole = ground.ties != ""
    for frame in np.unique(ground.frames[~whole]):
        sizes[ground.frames == frame] = np.median(sizes[ground.frames == frame], 0)
    for block in _BLOCKS:
        cells = np.where(whole[:, None], 0, middles // (block * sizes))
        names = np.where(whole, ground.ties, ground.frames)
        keys = [f"{name} {x:.0f} {y:.0f}" for name, (x, y) in zip(names, cells.tolist(), strict=True)]
        places = np.unique(keys, return_inverse=True)[1]
        if places.max() + 1 >= max(_MANY, 2 * folds):
            break
    return places, "whole images" if whole.all() else f"blocks of {block} x {block} windows"


def _balanced(places: np.ndarray, counts: np.ndarray, folds: int) -> np.ndarray:
    """`(N,)` fold of each window: the places of rare classes first, each to the fold that lacks the class most.

    This is iterative stratification (Sechidis et al., ECML PKDD 2011) of places. A class of two places is in fold 0 and
    in what trains where that is the test.
    """
    number = np.zeros((places.max() + 1, counts.shape[1]))
    np.add.at(number, places, counts)
    share = np.c_[number / number.sum(0).clip(1), np.bincount(places) / len(places)]  # and of all windows, at last
    filled, fold = np.zeros((folds, share.shape[1])), np.full(len(share), -1)
    first = np.arange(folds) + 1
    first[min(2, folds - 1)] = 0
    for kind in [*np.argsort((number > 0).sum(0), kind="stable"), -1]:
        for place in np.argsort(-share[:, kind], kind="stable"):
            if fold[place] < 0 and share[place, kind] > 0:
                own, total = filled[:, kind].round(9), (filled @ share[place]).round(9)
                fold[place] = np.lexsort((first, total, own.any() & (np.arange(folds) > 0), own))[0]
                filled[fold[place]] += share[place]
    return fold[places]


def _lost(counts: np.ndarray, before: np.ndarray, after: np.ndarray) -> bool:
    return bool((counts[before].any(0) & ~counts[after].any(0)).any())


def _apart(ground: Ground, parts: np.ndarray, counts: np.ndarray, told: bool) -> tuple[np.ndarray, list[str]]:
    """Leave out windows that share ground with those of test or validation, and those less than a window away.

    The latter stay where somebody says what the test is, or where training would lose a class or half of its windows.
    """
    (sharing, near), what = (_left(ground, parts, distance) for distance in (-0.01, 0.99)), "share ground with"
    few = _lost(counts, sharing == "train", near == "train") or 2 * (near == "train").sum() < (parts == "train").sum()
    said = ["windows beside those of another part stay, as too few are farther away"] if few and not told else []
    if not few and not told:
        sharing, what = near, "lie less than a window from"
    if gone := int((sharing == "near").sum()):
        said.append(f"{gone} of {len(parts)} windows are left out, as they {what} those of test or validation")
    return sharing, said


def _left(ground: Ground, parts: np.ndarray, distance: float) -> np.ndarray:
    """Parts without windows that lie within so many windows of those of the test, or of validation if they train."""
    parts = parts.copy()
    for part, others in (("test", ("train", "val")), ("val", ("train",))):
        these, those = np.isin(parts, others), parts == part
        parts[these & (ground.ties != "") & np.isin(ground.ties, ground.ties[those])] = "near"
        for frame in np.intersect1d(ground.frames[these], ground.frames[those]):
            one, two = (np.flatnonzero(which & (ground.frames == frame)) for which in (these, those))
            hits = shapely.STRtree(ground.outlines[one]).query(_grown(ground.outlines[two], distance), "intersects")[1]
            parts[one[hits]] = "near"
    return parts


def _grown(outlines: np.ndarray, by: float) -> np.ndarray:
    """Outlines that reach so many of their own sides farther, whatever a degree is in metres; parts of one alone."""
    parts = shapely.get_parts(outlines)
    xy, whose = shapely.get_coordinates(parts, return_index=True)
    middles = shapely.get_coordinates(shapely.centroid(parts))[whose]
    return shapely.set_coordinates(parts, middles + (1 + 2 * by) * (xy - middles))
