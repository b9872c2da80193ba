"""Pictures of answers, as PNG files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten

import numpy as np
from matplotlib import colormaps
from rasterio.windows import Window

from geomim.corpus.report.pictures import composite
from geomim.corpus.scenes import Scene
from geomim.errors import InputError
from geomim.maps.files.rasters import open_map
from geomim.sheets import contact_sheet, is_sheet

_EDGE = 1200  # pixels of a scene's longer side, at most
_PANELS = 4  # beside each other
_ROWS = 256  # of a scene that are read at a time
_SIDE = 480  # of a panel


def check_picture(flag: str, path: Path) -> None:
    """Say that a picture is replaced, which geomim drew.

    Args:
        flag: What named it.
        path: Where one is to be drawn.

    Raises:
        InputError: What is there is another file.
    """
    if not path.exists():
        return
    if not is_sheet(path):
        raise InputError(f"'{path}' is there and is no picture that this geomim drew: name another file with {flag}")
    print(f"note: '{path}' is there already: it is replaced")


def quick_look(path: Path, scene: Scene, scores: Path, texts: Sequence[str], what: str) -> None:
    """Draw a scene, and beside it how each text scores; one scale of colours for all texts."""
    pixels, valid = thinned(scene, Window(0, 0, scene.width, scene.height), _EDGE)
    with open_map(scores) as raster:
        times = max(1, math.ceil(max(raster.shape) / _EDGE))
        heat = raster.read(out_shape=(raster.count, *(max(1, length // times) for length in raster.shape)))
    shown = heat[np.isfinite(heat)]  # of few patches with image none may be among those that are drawn
    low, high = np.percentile(shown, [1, 99.5]) if len(shown) else (0.0, 1.0)
    colours = colormaps["inferno"].with_extremes(bad="white")
    drawn = colours((heat - low) / max(high - low, 1e-6))[..., :3]
    ramp = np.broadcast_to(colours(np.linspace(0, 1, _SIDE))[:, :3], (_SIDE // 16, _SIDE, 3))
    panels = [(composite(pixels, scene.sensor, valid), Path(scene.uri).name)]
    panels += [(picture, shorten(text, 90, placeholder=" ...")) for picture, text in zip(drawn, texts, strict=True)]
    contact_sheet(path, [("", [*panels, (ramp, f"{what}: {low:.2f} to {high:.2f}")])], across=_PANELS, side=_SIDE)


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
