"""Clouds found by the optional library omnicloudmask, where no provider's mask is at hand."""

from __future__ import annotations

from importlib import import_module

import numpy as np
from rasterio.windows import Window

from geomim.corpus.scenes.scene import Scene, Windows
from geomim.errors import BandError, MissingExtraError
from geomim.sensors import Band, match_bands

_BLOCK = 1024  # rows and columns that are predicted together
_MARGIN = 128  # pixels around a block that it is seen with
_COLOURS = (Band("red", 660, 80), Band("green", 560, 80), Band("nir", 850, 120))


def detected_clouds(scene: Scene) -> Windows:
    """Clouds and shadows of a scene by omnicloudmask (Wright et al., Remote Sensing of Environment 2025).

    The scene is predicted block by block on a fixed lattice, so that the answer for a pixel does not depend on the
    window asked for; what the last rows of blocks gave is kept.

    Raises:
        MissingExtraError: The library is not installed.
        BandError: The scene lacks red, green or near infrared.
    """
    try:
        predict = import_module("omnicloudmask").predict_from_array
    except ImportError as error:
        raise MissingExtraError("--clouds omnicloudmask needs a library: pip install omnicloudmask") from error
    try:
        places = match_bands(_COLOURS, scene.sensor.bands)
    except BandError as error:
        raise BandError(
            f"--clouds omnicloudmask looks at red, green and nir; '{scene.uri}' has "
            f"{', '.join(scene.sensor.names)}: give a folder of masks instead"
        ) from error
    kept: dict[tuple[int, int], np.ndarray] = {}

    def block(row: int, col: int) -> np.ndarray:
        if (row, col) not in kept:
            (top, bottom), (above, below) = _reach(row, scene.height)
            (left, right), (before, after) = _reach(col, scene.width)
            pixels, valid = scene.reader.read(Window(before, above, after - before, below - above))
            seen = np.where(valid, pixels[places], 0).astype(np.float32)
            classes = np.asarray(predict(seen, no_data_value=0))[0]
            inside = classes[top - above : bottom - above, left - before : right - before]
            kept[row, col] = np.isin(inside, (1, 2, 3))
        return kept[row, col]

    def read(window: Window) -> np.ndarray:
        rows, cols = window.toslices()
        down, across = (range(part.start // _BLOCK, -(-part.stop // _BLOCK)) for part in (rows, cols))
        for place in [place for place in kept if place[0] < down.start]:
            del kept[place]
        blocks = np.block([[block(row, col) for col in across] for row in down])
        top, left = rows.start - down.start * _BLOCK, cols.start - across.start * _BLOCK
        return blocks[top : top + rows.stop - rows.start, left : left + cols.stop - cols.start]

    return Windows(read)


def _reach(place: int, length: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """First and last pixel of a block along one axis, and of the block with its margin."""
    begin, end = place * _BLOCK, min((place + 1) * _BLOCK, length)
    return (begin, end), (max(begin - _MARGIN, 0), min(end + _MARGIN, length))
