"""What labels say of images, whatever format they came in."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

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


@dataclass(frozen=True)
class Asked:
    """What a user says of images and labels; see `open_labels`."""

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
        corners: `(N, 4, 2)` corners of boxes, upright ones too.
        shapes: `(N,)` geometries, a later one on top; None of other kinds.
        labels: `(N,)` places of the classes of boxes or shapes.
        outside: Place of the class of what no shape covers; -1 where that is unknown.
        split: `train`, `val` or `test` where a folder or file is called so.
        place: Equal for images of one place, by the user's word.
    """

    image: str
    height: int = 0
    width: int = 0
    label: int = UNLABELLED
    after: str | None = None
    mask: str | None = None
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


def split_of(path: str | Path, roots: Iterable[str]) -> str | None:
    """The split that a word of a path below one of the roots says."""
    below = [str(path)[len(root) :] for root in sorted(roots, key=len) if str(path).startswith(root)]
    words = [SYNONYMS.get(word, word) for word in re.split(r"[\W_\d]+", (below or [""])[-1].lower())]
    return next((word for word in words if word in SPLITS), None)


def paired(images: Sequence[str], files: Sequence[str]) -> tuple[dict[str, str], Refused]:
    """The label file of each image that is called as it is; of several the one with most folders in common."""
    named: dict[str, list[str]] = defaultdict(list)
    for file in files:
        named[_plain(file)].append(file)
    found, refused = {}, []
    for image in images:
        common = {file: len({*Path(file).parts} & {*Path(image).parts}) for file in named.get(_plain(image), ())}
        near = [file for file, count in common.items() if count == max(common.values())]
        if len(near) == 1:
            found[image] = near[0]
        else:
            refused.append(
                (image, f"several label files are called so ({some(near)})" if near else "it has no label file")
            )
    called = {_plain(image) for image in images}
    return found, refused + [(file, "no image is called so") for file in files if _plain(file) not in called]


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
