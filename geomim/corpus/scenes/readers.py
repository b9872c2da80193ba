"""Windows of rasterio datasets: numbers as stored, or what is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rasterio.enums import MaskFlags
from rasterio.windows import Window

from geomim.corpus.scenes.files import environment
from geomim.corpus.scenes.footprints import Grid
from geomim.corpus.scenes.validity import Nodata, measured, padding
from geomim.corpus.scenes.warping import on_grid
from geomim.errors import InputError

_LOOK = 512  # rows and columns
_UNMASKED = ({MaskFlags.all_valid}, {MaskFlags.nodata})


@dataclass
class RasterReader:
    """Numbers as they are stored, with attributes as `stored` takes them."""

    uri: str
    dataset: Any
    places: tuple[int, ...]
    alpha: int | None
    masked: bool  # the file carries masks of its own
    nodata: tuple[Nodata, ...]

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Pixels `(C, h, w)` and validity `(h, w)`."""
        bands, shown = self.read_shown(window)
        return bands, shown & measured(bands, self.nodata)

    def read_shown(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Pixels `(C, h, w)` and where neither alpha nor a mask hides them `(h, w)`."""
        # read in one call
        numbers = [place + 1 for place in (*self.places, *(() if self.alpha is None else (self.alpha,)))]
        with environment(self.uri):
            pixels = self.dataset.read(numbers, window=window)
            masks = self.dataset.read_masks(numbers, window=window) if self.masked else None
        bands = pixels[: len(self.places)]
        shown = np.ones(bands.shape[1:], bool) if self.alpha is None else pixels[-1] > 0
        return bands, shown if masks is None else shown & masks.all(axis=0)

    def close(self) -> None:
        """Close the file."""
        self.dataset.close()


def middle(height: int, width: int) -> Window:
    """A part of a raster that tells what its numbers are."""
    rows, cols = min(height, _LOOK), min(width, _LOOK)
    return Window((width - cols) // 2, (height - rows) // 2, cols, rows)


def sample(uri: str, dataset: Any, place: int) -> np.ndarray:
    """Some numbers of a band of a rasterio dataset, as they are stored."""
    with environment(uri):
        numbers: np.ndarray = dataset.read(place + 1, window=middle(dataset.height, dataset.width))
    return numbers


def nodata_of(dataset: Any, places: Sequence[int], usual: float | None) -> tuple[Nodata, ...]:
    """What is no measurement in some bands, by the file; `usual` where it declares nothing.

    `NODATA_VALUES` are one colour that is transparent (PNG): a pixel is nodata where all its bands have theirs.
    """
    values = [(dataset.nodatavals[place], dataset.dtypes[place]) for place in places]
    if "NODATA_VALUES" in dataset.tags():
        return tuple(Nodata.of(None, told, dtype) for told, dtype in values)
    return tuple(Nodata.of(told, usual, dtype) for told, dtype in values)


def stored(
    uri: str,
    dataset: Any,
    grid: Grid | None,
    places: tuple[int, ...],
    nodata: tuple[Nodata, ...],
    alpha: int | None = None,
    nearest: bool = False,
) -> RasterReader:
    """The numbers of some bands.

    Args:
        uri: The raster.
        dataset: It, open; closed where another takes its place.
        grid: Grid to bring the bands to; None leaves them on their own.
        places: 0-based places of the bands.
        nodata: What is no measurement, a band.
        alpha: 0-based place of the alpha band, or None.
        nearest: Take the nearest pixel, not a bilinear mean, where the grid is another.

    Raises:
        InputError: Bands to be resampled have different nodata values.
    """
    if grid is None:
        flags = [set(dataset.mask_flag_enums[place]) for place in places]
        masked = any(MaskFlags.alpha not in one and one not in _UNMASKED for one in flags)
        return RasterReader(uri, dataset, places, alpha, masked, nodata)
    values = [padding([none]) for none in nodata]
    if len({repr(value) for value in values}) > 1:
        raise InputError(
            f"'{uri}' has another nodata value in each band ({', '.join(map(str, values))}), which warping mixes up: "
            "choose bands of one value with --bands"
        )
    warped = on_grid(uri, dataset, grid, places, alpha=alpha, nodata=values[0], nearest=nearest)
    dataset.close()
    return RasterReader(uri, warped, tuple(range(len(places))), len(places), False, nodata)
