"""What labels say of images, whatever format they came in."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from geomim.corpus.labels import SPLIT_WORDS, SPLITS
from geomim.corpus.scenes import Scene, open_scene
from geomim.corpus.scenes.files import open_dataset
from geomim.errors import BandError, InputError
from geomim.sensors import get_sensor

Kind = Literal["class", "mask", "boxes", "oboxes", "change"]
UNLABELLED = -1
"""In a mask: nobody says what the pixel is."""


@dataclass(frozen=True)
class Codes:
    """How the numbers of label rasters name classes.

    Attributes:
        numbers: Number of each class, in their order; of a raster of three bands, colours as `red << 16 | green << 8 |
            blue`. All others are not labelled.
        threshold: Grey levels: numbers at least so high are the second class, all others the first.
    """

    numbers: tuple[int, ...]
    threshold: float | None = None

    def places(self, raster: np.ndarray) -> np.ndarray:
        """Numbers of a label raster `(H, W)` as places in the classes, int64; -1 where there is none."""
        if self.threshold is not None:
            return (raster >= self.threshold).astype(np.int64)
        order = np.argsort(self.numbers)
        known = np.array(self.numbers)[order]
        at = np.searchsorted(known, raster).clip(max=len(known) - 1)
        return np.where(known[at] == raster, order[at], UNLABELLED)


@dataclass(frozen=True)
class Item:
    """One image and its labels. Coordinates are pixels of the image, x from left, y from top; pixel 0 covers 0..1.

    Attributes:
        image: Path or address of the scene.
        height: Its rows.
        width: Its columns.
        label: Place of its class; kind `class`.
        after: The later image of the same place; kind `change`.
        mask: Label raster; kinds `mask` and `change`.
        corners: `(N, 4, 2)` corners of boxes, upright ones too; kinds `boxes` and `oboxes`.
        shapes: `(N,)` geometries, smaller ones later, which lie on top; kind `mask`.
        labels: `(N,)` places of the classes of boxes or shapes.
        outside: Place of the class of what no shape covers, -1 where that is unknown.
        split: `train`, `val` or `test` where a folder or file is called so.
        place: Equal for images of one place, by the user's word.
    """

    image: str
    height: int
    width: int
    label: int = UNLABELLED
    after: str | None = None
    mask: str | None = None
    corners: np.ndarray = field(default_factory=lambda: np.zeros((0, 4, 2)))
    shapes: np.ndarray | None = None
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    outside: int = UNLABELLED
    split: str | None = None
    place: str | None = None


@dataclass(frozen=True)
class Asked:
    """What a user says of images and labels; see `open_labels`."""

    kind: Kind | None = None
    class_column: str | None = None
    outside: Literal["auto", "unlabelled", "background"] = "auto"
    sensor: str | None = None
    bands: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Labels:
    """Images with labels of one kind.

    Attributes:
        kind: What is known of each.
        classes: Names; labels are places among them.
        items: The images.
        notes: What was guessed, left out or mended, in sentences with counts.
        refused: Images and label files that are left out, each with the reason.
        codes: Of label rasters.
        asked: What the user said when they were opened.
    """

    kind: Kind
    classes: tuple[str, ...]
    items: tuple[Item, ...]
    notes: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    codes: Codes | None = None
    asked: Asked = Asked()


@lru_cache(16)  # windows of a scene are often read one after another
def open_image(uri: str, sensor: str | None, bands: tuple[str, ...] | None) -> Scene:
    """A scene, by its bands' names where there are such: labels can be looked at without; kept open for a while."""
    try:
        return open_scene(uri, get_sensor(sensor) if sensor else None, bands)
    except BandError:
        if sensor or bands:
            raise
        with open_dataset(uri) as raster:
            names = [f"channel {number}" for number in range(1, raster.count + 1)]
        return open_scene(uri, None, names)


def size_of(uri: str, asked: Asked) -> tuple[int, int]:
    """Rows and columns of a scene."""
    scene = open_image(uri, asked.sensor, asked.bands)
    return scene.height, scene.width


def split_of(path: str, roots: Iterable[str]) -> str | None:
    """The split that a folder below one of the roots, or a word of the file's name, says."""
    inside = next((path[len(root) :] for root in sorted(roots, key=len, reverse=True) if path.startswith(root)), "")
    words = [SPLIT_WORDS.get(word, word) for word in re.split(r"[\W_\d]+", inside.lower())]
    return next((word for word in words if word in SPLITS), None)


_KIND = re.compile(r"_(labels?|masks?|gt|sat|images?|img)$")


def paired(images: Sequence[str], files: Sequence[str]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """The label file of each image that is called as it is; where several are, the one with most folders in common.

    Returns:
        Files by image, and what of both is left out, with the reason.
    """
    named: Mapping[str, list[str]] = defaultdict(list)
    for file in files:
        named[_KIND.sub("", Path(file).stem.casefold())].append(file)
    found, refused = {}, []
    for image in images:
        near = Counter({file: len({*Path(file).parts} & {*Path(image).parts}) for file in _of(named, image)})
        first, *others = near.most_common(2) or [("", 0)]
        if not first[0]:
            refused.append((image, "no label file is called as it is"))
        elif others and others[0][1] == first[1]:
            refused.append((image, f"several label files are called as it is ({first[0]}, {others[0][0]}): give one"))
        else:
            found[image] = first[0]
    lost = sorted({*files} - {file for image in images for file in _of(named, image)})
    return found, refused + [(file, "no image is called as this label file is") for file in lost]


def _of(named: Mapping[str, list[str]], image: str) -> list[str]:
    return named.get(_KIND.sub("", Path(image).stem.casefold()), [])


def some(words: Iterable[object], most: int = 5) -> str:
    """A few of many, in words."""
    given = [str(word) for word in words]
    return ", ".join(given[:most]) + (f" and {len(given) - most} more" if len(given) > most else "")


def need(items: Sequence[Item], refused: Sequence[tuple[str, str]], what: str) -> None:
    """Refuse labels of no image.

    Raises:
        InputError: There is none.
    """
    if not items:
        why = some((f"'{name}': {reason}" for name, reason in refused), 3)
        raise InputError(f"{what}: none of it could be used" + (f" ({why})" if why else ""))
