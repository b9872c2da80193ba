"""Predictions beside the truth: the best and the worst of them on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

from geomim.finetune.rotated import corners
from geomim.sheets import contact_sheet

Drawn = np.ndarray | tuple[np.ndarray, np.ndarray] | str
"""A mask `(H, W)` of places of classes, -1 where nothing is known; boxes and their places of classes `(N,)`, boxes
being `(N, 4)` x1, y1, x2, y2, `(N, 5)` cx, cy, w, h, angle, or `(N, 4, 2)` corners; or a word."""
_NAMES = ["blue", "orange", "green", "red", "purple", "brown", "pink", "gray", "olive", "cyan"]
_TAB10 = "1f77b4 ff7f0e 2ca02c d62728 9467bd 8c564b e377c2 7f7f7f bcbd22 17becf"  # matplotlib's
COLOURS = np.array([[*bytes.fromhex(one)] for one in _TAB10.split()], np.uint8)
"""Of classes, one after another, again and again."""


class Shown(NamedTuple):
    """An image `(H, W, 3)` uint8, of change `(2, H, W, 3)`; what is true; what was predicted; how good that is."""

    image: np.ndarray
    truth: Drawn
    prediction: Drawn
    score: float
    name: str


def best_and_worst(path: Path, shown: Sequence[Shown], classes: Sequence[str], count: int = 4) -> None:
    """Write a page (PNG) of the best and the worst predictions; each is on it once.

    Args:
        path: The file.
        shown: What was predicted, at least once.
        classes: Names.
        count: How many of each at most.
    """
    order = sorted(shown, key=lambda one: -one.score)
    best = min(count, -(-len(order) // 2))
    groups = (("best", order[:best]), ("worst", order[best:][: -count - 1 : -1]))
    named = legend(classes)
    drawn = [(f"{what}: {named}", [panel for one in own for panel in _panels(one)]) for what, own in groups if own]
    contact_sheet(path, drawn, len(_panels(order[0])))


def legend(classes: Sequence[str]) -> str:
    """Classes, each with its colour."""
    return ", ".join(f"{name} ({_NAMES[at % len(_NAMES)]})" for at, name in enumerate(classes))


def _panels(one: Shown) -> list[tuple[np.ndarray, str]]:
    images = one.image if one.image.ndim == 4 else one.image[None]
    dates = (", before", ", after") if len(images) > 1 else ("",)
    found = [(image, f"{one.name[-28:]}{date}") for image, date in zip(images, dates, strict=True)]
    for what, said in ((one.truth, "truth"), (one.prediction, f"prediction, {one.score:.2f}")):
        found.append((draw(images[-1], what), f"{said}: {what}" if isinstance(what, str) else said))
    return found


def draw(image: np.ndarray, what: Drawn) -> np.ndarray:
    """An image `(H, W, 3)` uint8 under the colours of a mask, or with boxes around what is in it."""
    if isinstance(what, str):
        return image
    if isinstance(what, np.ndarray):
        colours = COLOURS[what.clip(0) % len(COLOURS)]
        return np.where((what >= 0)[..., None], image // 2 + colours // 2, image).astype(np.uint8)
    canvas, (boxes, places) = Image.fromarray(image), what
    if boxes.ndim == 2:
        upright = boxes.shape[1] == 4
        given = torch.from_numpy(np.asarray(boxes, np.float64))
        boxes = (given[:, [[0, 1], [2, 1], [2, 3], [0, 3]]] if upright else corners(given)).numpy()
    for box, colour in zip(boxes.tolist(), COLOURS[np.asarray(places) % len(COLOURS)].tolist(), strict=True):
        ImageDraw.Draw(canvas).polygon([*map(tuple, box)], outline=tuple(colour), width=max(1, max(canvas.size) // 200))
    return np.asarray(canvas)
