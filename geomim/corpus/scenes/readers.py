"""Windows of rasterio datasets: numbers as stored, as what they mean, or as the colours they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from rasterio.windows import Window

from geomim.corpus.scenes.files import environment
from geomim.corpus.scenes.validity import measured


@dataclass
class RasterReader:
    """Numbers as they are stored.

    Attributes:
        uri: The raster.
        dataset: Open rasterio dataset.
        places: 0-based places of the bands in it.
        alpha: 0-based place of the alpha band, or None.
        masked: The file carries a mask of its own.
        nodata: A value a band, or None.
    """

    uri: str
    dataset: Any
    places: tuple[int, ...]
    alpha: int | None
    masked: bool
    nodata: tuple[float | None, ...]

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Pixels `(C, h, w)` and validity `(h, w)`."""
        places = [*self.places, *([] if self.alpha is None else [self.alpha])]  # read in one call
        with environment(self.uri):
            pixels = self.dataset.read([place + 1 for place in places], window=window)
            mask = self.dataset.read_masks(1, window=window) if self.masked else None
        bands = pixels[: len(self.places)]
        valid = measured(bands, self.nodata)
        if self.alpha is not None:
            valid &= pixels[-1] > 0
        if mask is not None:
            valid &= mask > 0
        return bands, valid

    def close(self) -> None:
        """Close the file."""
        self.dataset.close()


@dataclass
class MeantReader:
    """What the numbers mean, as float32, NaN for nodata: for bands that are scaled differently.

    Attributes:
        stored: Gives the numbers.
        scaling: Scale and offset a band.
    """

    stored: RasterReader
    scaling: tuple[tuple[float, float], ...]

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Meanings `(C, h, w)` float32 and validity `(h, w)`."""
        bands, valid = self.stored.read(window)
        meant = np.empty(bands.shape, np.float32)
        for band, out, (scale, offset), nodata in zip(bands, meant, self.scaling, self.stored.nodata, strict=True):
            out[:] = band * scale + offset
            if nodata is not None:
                out[band == np.asarray(nodata, band.dtype)] = np.nan
        return meant, valid & np.isfinite(meant).all(axis=0)

    def close(self) -> None:
        """Close the file."""
        self.stored.close()


@dataclass
class PaletteReader:
    """Colours for indices into a palette.

    Attributes:
        stored: Gives the indices, one band.
        colours: `(n, C)` uint8.
        shown: `(n,)` bool, False for colours that are transparent.
    """

    stored: RasterReader
    colours: np.ndarray
    shown: np.ndarray

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Colours `(C, h, w)` and validity `(h, w)`."""
        (indices,), valid = self.stored.read(window)
        known = (indices >= 0) & (indices < len(self.colours))
        places = np.where(known, indices, 0)
        return np.moveaxis(self.colours[places], -1, 0).copy(), valid & known & self.shown[places]

    def close(self) -> None:
        """Close the file."""
        self.stored.close()
