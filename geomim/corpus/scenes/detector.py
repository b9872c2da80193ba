"""Clouds found by the optional library omnicloudmask, where no provider's mask is at hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module

import numpy as np
from rasterio.windows import Window

from geomim.corpus.scenes.scene import Reader, Scene
from geomim.errors import BandError, MissingExtraError
from geomim.sensors import Band, match_bands

_BLOCK = 1024  # rows and columns that are predicted together
_MARGIN = 128  # pixels around a block that it is seen with
_COLOURS = (Band("red", 660, 80), Band("green", 560, 80), Band("nir", 850, 120))


@dataclass
class DetectedClouds:
    """Clouds and shadows by omnicloudmask (Wright et al., Remote Sensing of Environment 2025).

    The scene is predicted block by block on a fixed lattice, so that the answer for a pixel does not depend on the
    window asked for; what the last rows of blocks gave is kept.

    Attributes:
        reader: Gives the scene's pixels.
        places: Places of red, green and near infrared among its bands.
        shape: Rows and columns of the scene.
        predict: `(3, h, w)` to classes `(1, h, w)`.
    """

    reader: Reader
    places: tuple[int, ...]
    shape: tuple[int, int]
    predict: Callable[..., np.ndarray]
    _kept: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, scene: Scene) -> DetectedClouds:
        """The detector for a scene.

        Raises:
            MissingExtraError: The library is not installed.
            BandError: The scene lacks red, green or near infrared.
        """
        try:
            library = import_module("omnicloudmask")
        except ImportError as error:
            raise MissingExtraError("--clouds omnicloudmask needs a library: pip install omnicloudmask") from error
        try:
            places = tuple(match_bands(_COLOURS, scene.sensor.bands))
        except BandError as error:
            raise BandError(
                f"--clouds omnicloudmask looks at red, green and nir; '{scene.uri}' has "
                f"{', '.join(scene.sensor.names)}: give a folder of masks instead"
            ) from error
        return cls(scene.reader, places, (scene.height, scene.width), library.predict_from_array)

    def read(self, window: Window) -> np.ndarray:
        """`(h, w)` bool: True under cloud or its shadow."""
        rows, cols = window.toslices()
        down, across = (range(part.start // _BLOCK, -(-part.stop // _BLOCK)) for part in (rows, cols))
        self._kept = {place: block for place, block in self._kept.items() if place[0] >= down.start}
        cloudy = np.block([[self._block(row, col) for col in across] for row in down])
        top, left = rows.start - down.start * _BLOCK, cols.start - across.start * _BLOCK
        return cloudy[top : top + rows.stop - rows.start, left : left + cols.stop - cols.start]

    def _block(self, row: int, col: int) -> np.ndarray:
        if (row, col) not in self._kept:
            (top, bottom), (above, below) = _reach(row, self.shape[0])
            (left, right), (before, after) = _reach(col, self.shape[1])
            pixels, valid = self.reader.read(Window(before, above, after - before, below - above))
            seen = np.where(valid, pixels[list(self.places)], 0).astype(np.float32)
            classes = np.asarray(self.predict(seen, no_data_value=0))[0]
            inside = classes[top - above : bottom - above, left - before : right - before]
            self._kept[row, col] = np.isin(inside, (1, 2, 3))
        return self._kept[row, col]

    def close(self) -> None:
        """Nothing of its own is open."""


def _reach(place: int, length: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """First and last pixel of a block along one axis, and of the block with its margin."""
    begin, end = place * _BLOCK, min((place + 1) * _BLOCK, length)
    return (begin, end), (max(begin - _MARGIN, 0), min(end + _MARGIN, length))
