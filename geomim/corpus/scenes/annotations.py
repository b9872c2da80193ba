"""Labels that a scene brings with it: class, sentences, boxes, and a mask of classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Box:
    """An object in a scene.

    Attributes:
        polygon: Four corners `(x1, y1, ..., x4, y4)` in the scene's pixels; an upright box has four corners too.
        label: Class, or None.
    """

    polygon: tuple[float, ...]
    label: str | None = None


@dataclass(frozen=True)
class Annotations:
    """Labels of one scene; each is empty where the scene has none of that kind.

    Attributes:
        label: Class of the whole scene.
        captions: Sentences about it.
        boxes: Objects in it.
        mask: `(H, W)` uint8, places in `classes`, 255 where a pixel has no class.
        classes: Names of the mask's classes.
    """

    label: str | None = None
    captions: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    mask: np.ndarray | None = None
    classes: tuple[str, ...] = ()
