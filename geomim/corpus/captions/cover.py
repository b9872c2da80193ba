"""What covers the ground of a tile, as a mask of classes: from a land-cover map, and from the spectrum itself.

Indices are on reflectance; where a source gives no threshold it is geomim's own, and said to be. They were set on
scenes of the land surface: haze lowers NDVI at the top of the atmosphere, so that dense vegetation is missed there
rather than seen where it is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.warp import Resampling, reproject

from geomim.corpus.captions.grammar import Noun
from geomim.corpus.labels import class_names
from geomim.corpus.store import IGNORE
from geomim.errors import BandError, InputError
from geomim.sensors import Band, Sensor, find_band

NDWI_WATER = 0.0
"""Open water is above it: (green - nir) / (green + nir); McFeeters (1996), Int. J. Remote Sensing 17(7)."""
MNDWI_WATER = 0.0
"""And above it, where there is such a band: (green - swir1) / (green + swir1) of Xu (2006), Int. J. Remote Sensing
27(14), who sets the threshold by scene; geomim's is that of NDWI."""
NDSI_SNOW = 0.4
"""Snow is above it: (green - swir1) / (green + swir1); Hall, Riggs and Salomonson (1995), RSE 54(2)."""
NIR_SNOW = 0.11
"""Reflectance in nir above which that is snow and no water, as in the MODIS snow maps made of it. That no water and all
bare soil is so bright is geomim's own choice."""
GREEN_SNOW = 0.25
"""Reflectance in green above which it is snow: geomim's own, as muddy water is bright in nir and dark in swir1, too."""
NDVI_DENSE = 0.6
"""Dense vegetation is above it: (nir - red) / (nir + red); USGS, NDVI, the Foundation for Remote Sensing Phenology."""
NDVI_BARE = 0.2
"""Bare soil is below it, as in the NDVI thresholds method; Sobrino et al. (2008), IEEE TGRS 46(2)."""
BSI_BARE = 0.0
"""And above it: ((swir1 + red) - (nir + blue)) / (sum of all); Rikimaru, Roy and Miyatake (2002), Trop. Ecol. 43(1).
The threshold is geomim's own: the bands that soil is bright in outweigh the others, which keeps clouds out."""

BANDS = (
    Band("blue", 485, 60), Band("green", 560, 60), Band("red", 660, 50), Band("nir", 850, 100), Band("swir1", 1610, 100)
)  # fmt: skip
NOUNS = [
    Noun("area of open water", "areas of open water", "open water", True),
    Noun("area of snow", "areas of snow", "snow", True),
    Noun("area of dense vegetation", "areas of dense vegetation", "dense vegetation", True),
    Noun("area of bare soil", "areas of bare soil", "bare soil", True),
]
"""What `classify` tells apart, in the order of its numbers."""


def bands_of(sensor: Sensor) -> dict[str, int]:
    """Where the bands are that indices need, by name or wavelength; those that are no reflectance are left out.

    Raises:
        BandError: No index can be had from them.
    """
    places = {band.name: find_band(band, sensor.bands) for band in BANDS}
    found = {name: place for name, place in places.items() if place is not None}
    there = {name: place for name, place in found.items() if sensor.meaning(place)[0] == "reflectance"}
    if "nir" not in there or not there.keys() & {"green", "red"}:
        units = ", ".join(f"{sensor.names[place]} ({sensor.meaning(place)[0]})" for place in found.values()) or "none"
        raise BandError(
            f"captions of indices need nir and green or red as reflectance; {sensor.name} has of them {units}: build "
            "the corpus with a --sensor that names bands, unit, scale and offset"
        )
    return there


def classify(pixels: np.ndarray, sensor: Sensor, places: dict[str, int]) -> np.ndarray:
    """Which of `NOUNS` each pixel is, by thresholds of indices that its bands allow.

    Args:
        pixels: `(C, H, W)` stored numbers.
        sensor: What they mean.
        places: From `bands_of`.

    Returns:
        `(H, W)` uint8; 255 where a pixel is none of them, or its reflectance is not above 0.
    """
    seen = {name: pixels[at] * np.float32(sensor.meaning(at)[1]) + sensor.meaning(at)[2] for name, at in places.items()}
    good = np.logical_and.reduce([values > 0 for values in seen.values()])
    none = np.zeros(good.shape, bool)

    def index(*names: str) -> np.ndarray | None:
        """Normalised difference of the first half of some bands and the second; None where one is missing."""
        if not set(names) <= seen.keys():
            return None
        plus, minus = (
            sum(seen[name] for name in half) for half in (names[: len(names) // 2], names[len(names) // 2 :])
        )
        return np.where(good, plus - minus, 0) / np.where(good, plus + minus, 1)

    ndwi, ndsi, ndvi = index("green", "nir"), index("green", "swir1"), index("nir", "red")
    bsi = index("swir1", "red", "nir", "blue")
    bright = seen["nir"] > NIR_SNOW
    water = none if ndwi is None else (ndwi > NDWI_WATER) & ~bright & (True if ndsi is None else ndsi > MNDWI_WATER)
    snow = none if ndsi is None else (ndsi > NDSI_SNOW) & bright & (seen["green"] > GREEN_SNOW)
    dense = none if ndvi is None else ndvi > NDVI_DENSE
    bare = none if bsi is None or ndvi is None else (ndvi < NDVI_BARE) & (bsi > BSI_BARE) & bright
    found = np.full(good.shape, IGNORE, np.uint8)
    for number, where in reversed(list(enumerate((water, snow, dense, bare)))):
        found[where & good] = number
    return found


@contextmanager
def open_cover(file: str) -> Iterator[LandCover]:
    """A land-cover map, open as long as the context is.

    Args:
        file: A raster of class numbers 0..254 in its first band. Class names by number stand in `classes.json` beside
            it, or in its tag `CLASSES` (see `geomim.corpus.labels.Masks`); other numbers are no class.

    Raises:
        InputError: It cannot be read, has no place on Earth, or nothing names its classes.
    """
    try:
        raster = rasterio.open(file)
    except RasterioError as error:
        raise InputError(f"land-cover map '{file}' cannot be read ({error})") from error
    with raster:
        yield LandCover(file, raster)


class LandCover:
    """A land-cover map in any projection; see `open_cover`.

    Attributes:
        classes: Names of its classes.
        said: What they are, and where the map lies.
    """

    def __init__(self, file: str, raster: rasterio.DatasetReader) -> None:
        if raster.crs is None:
            raise InputError(f"land-cover map '{file}' has no coordinate reference system: write it with one")
        numbers, self.classes = class_names(Path(file).parent / "classes.json", raster)
        west, south, east, north = (f"{number:.5g}" for number in raster.bounds)
        where = f"{west}..{east}, {south}..{north} of {raster.crs.to_string():.40}"
        self.said = f"'{file}': classes are {', '.join(self.classes)}; it lies in {where}"
        self._file, self._raster = file, raster
        self._table = np.full(256, IGNORE, np.uint8)
        self._table[numbers] = np.arange(len(numbers))

    def read(self, transform: Affine, crs: CRS, size: int) -> np.ndarray:
        """The classes on a tile's grid, by the nearest pixel, `(size, size)` uint8; 255 where there is none.

        Raises:
            InputError: Numbers there are no whole ones, so that they name no class.
        """
        numbers = np.full((size, size), -1.0)
        reproject(
            rasterio.band(self._raster, 1),
            numbers,
            dst_transform=transform,
            dst_crs=crs,
            dst_nodata=-1,
            resampling=Resampling.nearest,
        )
        numbers = np.nan_to_num(numbers, nan=-1.0, posinf=-1.0, neginf=-1.0)
        if (broken := numbers[numbers % 1 != 0]).size:
            raise InputError(
                f"land-cover map '{self._file}' holds {broken[0]:.6g}, and expected are whole numbers of classes "
                f"({', '.join(self.classes)}): write it with the class of each pixel"
            )
        inside = (numbers >= 0) & (numbers < IGNORE)
        return np.where(inside, self._table[np.where(inside, numbers, 0).astype(int)], IGNORE).astype(np.uint8)
