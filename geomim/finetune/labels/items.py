"""What labels say of images, whatever format they came in."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import shapely

from geomim.corpus.labels import SPLITS, SYNONYMS
from geomim.corpus.scenes import Scene, open_scene
from geomim.corpus.scenes.files import open_dataset
from geomim.errors import BandError, InputError
from geomim.sensors import get_sensor

Kind = Literal["class", "mask", "boxes", "oboxes", "change"]
Outside = Literal["auto", "unlabelled", "background"]
Refused = list[tuple[str, str]]
"""Images and label files that are left out, each with the reason."""
UNLABELLED = -1
"""In a mask: nobody says what the pixel is."""
_KINDS = re.compile(r"((jpe?g|png|tiff?)?(images?|imgs?)?|(labels?|masks?|gts?|annotations?|truths?)(txt|xml)?|ground)")
"""Words of folders that say what is in them, and not of which images it is."""


@dataclass(frozen=True)
class Asked:
    """What a user says of images and labels.

    Attributes:
        class_column: Column of a vector file that holds the class; guessed if not given.
        outside: What no polygon covers: `unlabelled`, `background`, or the latter where there is one class (`auto`).
        sensor: What took the scenes, a name or a YAML file; it says what their bands and numbers are.
        bands: Names of their bands in file order; `-` leaves one out.
    """

    class_column: str | None = None
    outside: Outside = "auto"
    sensor: str | None = None
    bands: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Item:
    """One image and its labels. Coordinates are pixels of the image, x from left, y from top; the first covers 0..1.

    Attributes:
        image: Path or address of the scene.
        height: Its rows.
        width: Its columns.
        label: Place of its class.
        after: The later image of a pair.
        mask: Label raster.
        counts: `(K,)` how many of its pixels are of each class.
        corners: `(N, 4, 2)` corners of boxes, upright ones too.
        shapes: `(N,)` geometries, a later one on top; None of other kinds.
        labels: `(N,)` places of the classes of boxes or shapes.
        outside: Place of the class of what no shape covers; -1 where that is unknown.
        split: `train`, `val` or `test` where a folder, or a table of labels, is called so.
        place: Equal for images of one place, by the user's word.
    """

    image: str
    height: int = 0
    width: int = 0
    label: int = UNLABELLED
    after: str | None = None
    mask: str | None = None
    counts: np.ndarray | None = None
    corners: np.ndarray = field(default_factory=lambda: np.zeros((0, 4, 2)))
    shapes: np.ndarray | None = None
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    outside: int = UNLABELLED
    split: str | None = None
    place: str | None = None

    @cached_property
    def tree(self) -> shapely.STRtree:
        """Of the shapes, or the outlines of the boxes: what lies in a window is found without asking all."""
        boxes = shapely.convex_hull(shapely.multipoints(self.corners)) if self.shapes is None else self.shapes
        return shapely.STRtree(boxes)


@dataclass(frozen=True)
class Labels:
    """Images with labels of one kind.

    Attributes:
        kind: What is known of each.
        classes: Names; labels are places among them.
        items: The images.
        notes: What was guessed, left out or mended, in sentences with counts.
        refused: Images and label files that are left out, each with the reason.
        numbers: Of label rasters: the number of each class, all others being unlabelled.
        threshold: Of grey label rasters: from this number on a pixel is of the second class, else of the first.
        asked: What the user said when they were opened.
    """

    kind: Kind
    classes: tuple[str, ...]
    items: tuple[Item, ...]
    notes: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    numbers: tuple[int, ...] = ()
    threshold: int | None = None
    asked: Asked = Asked()


@lru_cache(16)
def open_image(uri: str, asked: Asked) -> Scene:
    """A scene, kept open for a while; where nothing names its bands they are numbered: labels need no names."""
    try:
        return open_scene(uri, get_sensor(asked.sensor) if asked.sensor else None, asked.bands)
    except BandError:
        if asked.sensor or asked.bands:
            raise
        with open_dataset(uri) as raster:
            names = [f"channel {number}" for number in range(1, raster.count + 1)]
        return open_scene(uri, None, names)


@lru_cache(1 << 16)  # each of many tables asks for all images
def split_of(path: str, roots: tuple[str, ...]) -> str | None:
    """The split that a word of the folders of a path says, below the longest of the roots that it lies in."""
    words = [SYNONYMS.get(word, word) for word in re.split(r"[\W_\d]+", _below(path, roots).lower())]
    return next((word for word in words if word in SPLITS), None)


def apart(image: str, file: str, roots: tuple[str, ...]) -> bool:
    """Whether folders say that an image and labels are of two splits, also where scenes are one of those of labels."""
    said = ({split_of(path, below) for path in (image, file)} - {None} for below in (roots, roots[-1:]))
    return any(len(splits) > 1 for splits in said)


def home_of(path: str, roots: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The folders of a path without the words for images and labels: equal for `train/images` and `train/labels`."""
    split = (re.split(r"[\W_]+", part) for part in _below(path, roots).casefold().split(os.sep))
    kept = ("_".join(word for word in words if word and not _KINDS.fullmatch(word)) for words in split)
    return tuple(part for part in kept if part)


def _below(path: str, roots: tuple[str, ...]) -> str:
    """The folders of a path, all where there are no roots."""
    folder = os.path.dirname(os.path.abspath(path))
    found = [len(root) for root in roots if (folder + os.sep).startswith(root.rstrip(os.sep) + os.sep)]
    return folder[max(found, default=len(folder) if roots else 0) :]


def paired(images: Sequence[str], files: Sequence[str], roots: tuple[str, ...]) -> tuple[dict[str, str], Refused]:
    """The label file of each image: called as it is, in a folder called as its own.

    Folders are compared by `home_of`, as a whole, or below the roots where no two agree. What lies in none that has a
    fellow belongs to what has most folders in common with it, if that is one, and not of another split.
    """
    for below in ((), roots, ()):
        homes = {path: home_of(path, below) for path in (*images, *files)}
        both = ({(homes[path], _plain(path)) for path in paths} for paths in (images, files))
        if shared := {home for home, _ in set.intersection(*both)}:
            break
    alike: dict[Any, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for at, paths in enumerate((images, files)):
        for path in paths:
            alike[homes[path] if homes[path] in shared else None, _plain(path)][at].append(path)

    def near(image: str, file: str) -> int:
        return -1 if apart(image, file, roots) else len({*homes[image]} & {*homes[file]})

    found, refused = {}, []
    for rivals, called in alike.values():
        for image in rivals:
            score = {file: near(image, file) for file in called}
            best = [file for file in called if score[file] == max(score.values()) >= 0]
            if len(best) == 1 and all(near(one, best[0]) < score[best[0]] for one in rivals if one != image):
                found[image] = best[0]
            else:
                why = f"folders do not tell whose {some(called, 3)} is" if called else "no label file is called so"
                refused.append((image, why))
    taken = {*found.values()}
    return found, refused + [(file, "no image is called so, or not clearly") for file in files if file not in taken]


def _plain(path: str) -> str:
    return re.sub(r"_(labels?|masks?|gt|sat|images?|img)$", "", Path(path).stem.casefold())


def some(words: Iterable[object], most: int = 5) -> str:
    """A few of many, in words."""
    given = [str(word) for word in words]
    return ", ".join(given[:most]) + (f" and {len(given) - most} more" if len(given) > most else "")


def need(items: Sequence[object], refused: Refused, what: str) -> None:
    """Refuse labels of no image, with the reasons."""
    if not items:
        why = some((f"'{name}': {reason}" for name, reason in refused), 3)
        raise InputError(f"{what}: no image is left" + (f" ({why})" if why else ""))
