"""Pictures of answers, as PNG files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rasterio.windows import Window

from geomim.corpus.report.pictures import composite
from geomim.corpus.scenes import Scene
from geomim.maps.files.rasters import aside, open_map

_EDGE = 1200  # pixels of a scene's longer side, at most
_PANELS = 4  # beside each other
_ROWS = 256  # of a scene that are read at a time
ACROSS = 6
"""Pictures in a row of a contact sheet."""
_TITLE: dict[str, Any] = {"fontsize": 9, "parse_math": False}  # dollars are just that


def quick_look(path: Path, scene: Scene, scores: Path, texts: Sequence[str], what: str) -> None:
    """Draw a scene, and beside it how each text scores; one scale of colours for all texts."""
    pixels, valid = thinned(scene, Window(0, 0, scene.width, scene.height), _EDGE)
    with open_map(scores) as raster:
        times = max(1, math.ceil(max(raster.shape) / _EDGE))
        heat = raster.read(out_shape=(raster.count, *(max(1, length // times) for length in raster.shape)))
    shown = heat[np.isfinite(heat)]  # of few patches with image none may be among those that are drawn
    low, high = np.percentile(shown, [1, 99.5]) if len(shown) else (0.0, 1.0)
    columns = min(1 + len(texts), _PANELS)
    rows, aspect = math.ceil((1 + len(texts)) / columns), scene.height / scene.width
    figure = Figure(figsize=(4 * columns, rows * (4 * min(max(aspect, 0.3), 3) + 0.4)), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    panels[0].imshow(composite(pixels, scene.sensor, valid))
    panels[0].set_title(Path(scene.uri).name, **_TITLE)
    for panel, text, band in zip(panels[1:], texts, heat, strict=False):
        shown = panel.imshow(band, cmap="inferno", vmin=low, vmax=max(high, low + 1e-6))
        panel.set_title(shorten(text, 45, placeholder=" ..."), **_TITLE)
    for panel in panels:
        panel.set_axis_off()
    figure.colorbar(shown, ax=panels, shrink=0.6, label=what)
    with aside(path) as part:
        figure.savefig(part, dpi=120)


def thinned(scene: Scene, window: Window, edge: int) -> tuple[np.ndarray, np.ndarray]:
    """Every so many pixels of a part of a scene that its longer side is at most `edge`: `(C, h, w)` and `(h, w)` bool.

    Rows are read many at a time, as blocks are decoded whole, and few enough for any scene.
    """
    (top, left), (height, width) = (
        map(round, (window.row_off, window.col_off)),
        map(round, (window.height, window.width)),
    )
    step = max(1, math.ceil(max(height, width) / edge))
    many = max(1, _ROWS // step) * step
    parts = [
        scene.read_valid(Window(left, top + row, width, min(many, height - row))) for row in range(0, height, many)
    ]
    pixels = np.concatenate([part[0][:, ::step, ::step] for part in parts], 1)
    return pixels, np.concatenate([part[1][::step, ::step] for part in parts])


def contact_sheet(path: Path, groups: Sequence[tuple[str, Sequence[tuple[np.ndarray, str]]]], item: int = 1) -> None:
    """Draw pictures `(H, W, 3)` with words below each, a headed block of rows a group; an item's stand in one row."""
    across = min(ACROSS // item * item, max(len(pictures) for _, pictures in groups))
    rows = [(title, pictures[at : at + across]) for title, pictures in groups for at in range(0, len(pictures), across)]
    figure = Figure(figsize=(2.2 * across, 2.7 * len(rows)), layout="constrained", facecolor="white")
    panels, before = figure.subplots(len(rows), across, squeeze=False), None
    for line, (title, pictures) in zip(panels, rows, strict=True):
        for panel in line:
            panel.set_axis_off()
        for panel, (picture, said) in zip(line, pictures, strict=False):
            panel.imshow(picture)
            panel.text(0.5, -0.03, said, ha="center", va="top", fontsize=6.5, transform=panel.transAxes)
        head = shorten(title if title != before else "", 24 * across, placeholder=" ...")
        line[0].set_title(" ", fontsize=10)  # room for the head, which is wider than the column and must not widen it
        line[0].text(
            0, 1.04, head, fontsize=10, fontweight="bold", parse_math=False, transform=line[0].transAxes
        ).set_in_layout(False)
        before = title
    with aside(path) as part:
        figure.savefig(part, dpi=120)
