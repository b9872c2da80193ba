"""Predictions beside the truth: the best and the worst of them on one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw

from geomim.maps.pictures import contact_sheet

COLOURS = (np.array(colormaps["tab10"].colors) * 255).astype(np.uint8)
"""Of classes, one after another, again and again."""


@dataclass(frozen=True)
class Shown:
    """An image with what is true and what was predicted: a mask, boxes, or words for a class.

    Attributes:
        image: `(H, W, 3)` uint8; of change `(2, H, W, 3)`.
        truth: `(H, W)` places of classes, -1 where unknown; or boxes `(N, 4)`, `(N, 5)` or corners `(N, 4, 2)`; or a
            word.
        prediction: The same.
        score: Greater is better.
        name: What stands below.
        truth_labels: `(N,)` places of classes of boxes.
        prediction_labels: The same.
    """

    image: np.ndarray
    truth: np.ndarray | str
    prediction: np.ndarray | str
    score: float
    name: str
    truth_labels: np.ndarray | None = None
    prediction_labels: np.ndarray | None = None


def best_and_worst(path: Path, shown: Sequence[Shown], classes: Sequence[str], count: int = 4) -> None:
    """Write a page (PNG) of the best and the worst predictions; an image is in one of the two.

    Args:
        path: The file.
        shown: All that were predicted.
        classes: Names.
        count: How many of each at most.

    Raises:
        InputError: Nothing was predicted.
    """
    order = sorted(shown, key=lambda one: -one.score)
    half = min(count, -(-len(order) // 2))
    groups = [("best", order[:half]), ("worst", order[half:][::-1][:count])]
    contact_sheet(
        path,
        [
            (f"{title} predictions: {_legend(own, classes)}", [panel for one in own for panel in _panels(one)])
            for title, own in groups
            if own
        ],
    )


def _panels(one: Shown) -> list[tuple[np.ndarray, str]]:
    images = one.image if one.image.ndim == 4 else one.image[None]
    sides = (
        (one.truth, one.truth_labels, "truth"),
        (one.prediction, one.prediction_labels, f"prediction: {one.score:.2f}"),
    )
    plain = [(image, one.name[-28:]) for image in images]
    return plain + [
        (drawn(images[-1], what, labels), what if isinstance(what, str) else said) for what, labels, said in sides
    ]


def _legend(shown: Sequence[Shown], classes: Sequence[str]) -> str:
    return ", ".join(classes)


def drawn(image: np.ndarray, labels: np.ndarray | str, places: np.ndarray | None = None) -> np.ndarray:
    """An image under the colours of a mask, or boxes around what is in it.

    Args:
        image: `(H, W, 3)` uint8.
        labels: As in `Shown`.
        places: `(N,)` classes of boxes; all of the first where None.
    """
    if isinstance(labels, str):
        return image
    if labels.ndim == 2 and labels.shape == image.shape[:2]:
        colours = COLOURS[labels.clip(0) % len(COLOURS)]
        return np.where((labels >= 0)[..., None], image // 2 + colours // 2, image).astype(np.uint8)
    canvas = Image.fromarray(image)
    for polygon, place in zip(outlines(labels), np.zeros(len(labels), int) if places is None else places, strict=True):
        ImageDraw.Draw(canvas).polygon(
            [tuple(point) for point in polygon.tolist()],
            outline=tuple(COLOURS[place % len(COLOURS)].tolist()),
            width=max(1, max(image.shape) // 200),
        )
    return np.asarray(canvas)


def outlines(boxes: np.ndarray) -> np.ndarray:
    """Corners `(N, 4, 2)` of boxes `(N, 4)` x1, y1, x2, y2, of `(N, 5)` cx, cy, w, h, angle, or of corners."""
    if boxes.ndim == 3:
        return boxes
    if boxes.shape[-1] == 4:
        return boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]
    centre, half, angle = boxes[:, None, :2], boxes[:, 2:4] / 2, boxes[:, 4]
    turn = np.stack([np.cos(angle), np.sin(angle), -np.sin(angle), np.cos(angle)], -1).reshape(-1, 2, 2)
    return centre + (np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half[:, None]) @ turn
