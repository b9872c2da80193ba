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
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from geomim.corpus.scenes import Scene
from geomim.errors import ConfigError, InputError, nearest
from geomim.finetune.labels.items import Item, some

_BLOCKS = (8, 4, 2, 1)  # sides of a block of ground, in windows
_MANY = 10  # places that there are at least, where blocks may be that large
_METRES = 111_320.0  # of a degree of latitude


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
        if self.folds < 2:
            raise ConfigError(f"split.folds: expected at least 2; given {self.folds}")
        if not 0 <= self.fold < self.folds:
            raise ConfigError(f"split.fold: expected 0 to {self.folds - 1}, of {self.folds}; given {self.fold}")


def told_parts(items: Sequence[Item], test: Sequence[str]) -> list[str]:
    """The part that each image is said to be of, by the user or else by its folder; empty words where nobody says.

    Raises:
        InputError: No image is called as one of the user's words, or images of several folders are.
    """
    parts = ["" if test or item.split in (None, "train") else str(item.split) for item in items]
    paths = [[_resolved(uri) for uri in (item.image, item.after) if uri] for item in items]
    for name in test:
        where = os.path.join(_resolved(name), "")
        below = [at for at, own in enumerate(paths) if any(os.path.join(one, "").startswith(where) for one in own)]
        called = [at for at, own in enumerate(paths) if name in map(os.path.basename, own)]
        if not below and len(called) != 1:
            known = {os.path.basename(one) for own in paths for one in own}
            several = f"is the name of images of several folders ({some(items[at].image for at in called)}): give paths"
            none = f"is none of {len(items)} images, and no folder of some{nearest(name, known)}"
            raise InputError(f"split.test: '{name}' {several if called else none}")
        for at in below or called:
            parts[at] = "test"
    return parts


def _resolved(path: str) -> str:
    """A path without the links of its folders; an image that is a link stays where it is called so."""
    folder, name = os.path.split(path)
    return os.path.realpath(path) if os.path.isdir(path) else os.path.join(os.path.realpath(folder), name)


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
    """What copies of a file have in common, whatever they are called: they are one place."""
    if not os.path.isfile(path):
        return path
    with open(path, "rb") as file:
        return f"{os.path.getsize(path)} {xxhash.xxh3_64_hexdigest(file.read(1 << 20))}"


def ground_of(frames: Sequence[str], outlines: Sequence[shapely.Geometry]) -> Ground:
    """The ground of windows, by what `outlines_of` says of each; of many images each is a place, few are divided."""
    names, shapes = np.array(frames), np.array(outlines, object)
    earth = names == "earth"
    if earth.any():
        north = np.radians(shapely.get_coordinates(shapely.centroid(shapes[earth]))[:, 1].mean())
        shapes[earth] = shapely.transform(shapes[earth], lambda xy: xy * _METRES * [np.cos(north), 1])
    many = len({*names[~earth].tolist()}) >= _MANY
    return Ground(names, shapes, np.char.startswith(names, "place ") | (~earth & many))


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
    """
    free, given = told == "", {*told.tolist()}
    parts, said = np.where(free, "train", told), []
    places, what = _places(ground, split.folds)
    count = len({*places[free & counts.any(1)].tolist()})
    folds = min(split.folds, count)
    if "test" not in given and folds < 2:
        raise InputError("all labels lie in one place, and a test needs another: give more scenes, or smaller windows")
    if "test" not in given and split.fold >= folds:
        raise InputError(
            f"split.fold {split.fold}: labels lie in {count} places ({what}), so folds are 0 to {folds - 1}"
        )
    if folds > 1:
        fold = _balanced(places, np.where(free[:, None], counts, 0), folds)
        if "test" not in given:
            parts[free & (fold == split.fold)] = "test"
            said = [f"{count} places with labels ({what}) are shared out to {folds} folds, test: {split.fold}"]
        held = np.where(free & (fold == (split.fold + 1) % folds) & (parts == "train"), "val", parts)
        if split.val and "val" not in given:
            if _lost(counts, parts == "train", _apart(ground, held, counts, True)[0] == "train"):
                said.append("no part is held out for validation: a class would be lost to training")
            else:
                parts = held
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
    sides, middles = np.sqrt(shapely.area(ground.outlines)), shapely.get_coordinates(shapely.centroid(ground.outlines))
    for frame in np.unique(ground.frames[~ground.whole]):
        sides[ground.frames == frame] = np.median(sides[ground.frames == frame])
    for block in _BLOCKS:
        cells = np.where(ground.whole[:, None], 0, middles // (block * sides[:, None]))
        keys = [f"{frame} {x:.0f} {y:.0f}" for frame, (x, y) in zip(ground.frames, cells.tolist(), strict=True)]
        places = np.unique(keys, return_inverse=True)[1]
        if places.max() + 1 >= max(_MANY, 2 * folds):
            break
    if block == 1:  # windows that were moved inside share ground with their neighbours: one place, if enough stay
        one, two = shapely.STRtree(ground.outlines).query(shapely.buffer(ground.outlines, -0.01 * sides), "intersects")
        same = (ground.frames[one] == ground.frames[two]) & ~ground.whole[one]
        pairs = coo_array((same, (places[one], places[two])), (places.max() + 1,) * 2)
        count, joined = connected_components(pairs)
        places = joined[places] if count >= folds else places
    return places, "whole images" if ground.whole.all() else f"blocks of {block} x {block} windows"


def _balanced(places: np.ndarray, counts: np.ndarray, folds: int) -> np.ndarray:
    """`(N,)` fold of each window: the places of rare classes first, each to the fold that lacks the class most.

    This is iterative stratification (Sechidis et al., ECML PKDD 2011) of places. The first place of a class goes to the
    last fold, which trains where fold 0 is the test, the second one to fold 0.
    """
    number = np.zeros((places.max() + 1, counts.shape[1]))
    np.add.at(number, places, counts)
    share = np.c_[number / number.sum(0).clip(1), np.bincount(places) / len(places)]  # and of all windows, at last
    filled, fold = np.zeros((folds, share.shape[1])), np.full(len(share), -1)
    first = (np.arange(folds) + 1) % folds
    for kind in [*np.argsort((number > 0).sum(0), kind="stable"), -1]:
        for place in np.argsort(-share[:, kind], kind="stable"):
            if fold[place] < 0 and share[place, kind] > 0:
                lacking = filled[:, kind].round(9), (filled @ share[place]).round(9)
                fold[place] = np.lexsort((first, *lacking[::-1]))[0]
                filled[fold[place]] += share[place]
    return fold[places]


def _lost(counts: np.ndarray, before: np.ndarray, after: np.ndarray) -> bool:
    return bool((counts[before].any(0) & ~counts[after].any(0)).any())


def _apart(ground: Ground, parts: np.ndarray, counts: np.ndarray, told: bool) -> tuple[np.ndarray, list[str]]:
    """Leave out windows that share ground with those of test or validation, and those less than a window away.

    The latter stay where somebody says what the test is, or where training would lose a class or half of its windows.
    """
    side, said = np.sqrt(shapely.area(ground.outlines)), []
    for distance, what in ((-0.01, "share ground with"), (1.0, "lie less than a window from")):
        tried = parts.copy()
        for part, others in (("test", ("train", "val")), ("val", ("train",))):
            tried[_near(ground, np.isin(tried, others), tried == part, distance * side)] = "near"
        train = tried == "train"
        if distance < 0:
            sharing = tried
        elif told or _lost(counts, sharing == "train", train) or 2 * train.sum() < (parts == "train").sum():
            said += [] if told else ["windows beside those of another part stay, as too few are farther away"]
            return sharing, said
        if gone := int((tried == "near").sum()):
            said = [f"{gone} of {len(parts)} windows are left out, as they {what} those of test or validation"]
    return tried, said


def _near(ground: Ground, these: np.ndarray, those: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Which of `these` windows lie within a distance of `those`, in the same frame."""
    near = np.zeros(len(these), bool)
    for frame in np.intersect1d(ground.frames[these], ground.frames[those]):
        here = ground.frames == frame
        one, two = np.flatnonzero(these & here), np.flatnonzero(those & here)
        grown = shapely.buffer(ground.outlines[two], distance[two], join_style="mitre")
        hits = shapely.STRtree(ground.outlines[one]).query(grown, "intersects")[1]
        near[one if ground.whole[one[0]] else one[np.unique(hits)]] = True
    return near
