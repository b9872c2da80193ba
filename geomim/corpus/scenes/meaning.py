"""What the stored numbers of a scene mean: as its product or file tells, else as names show, else as is usual."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rasterio.windows import Window

from geomim.corpus.scenes.metadata import acquisition_time
from geomim.corpus.scenes.scene import Reader, Wanted
from geomim.corpus.scenes.validity import Nodata, padding
from geomim.errors import BandError, InputError
from geomim.sensors import SENSORS, Band, Sensor, match_bands

Scaling = tuple[float, float]
"""Scale and offset from stored numbers to what they mean."""

ADDED = 1000
"""What Sentinel-2's numbers have more, from processing baseline 04.00 on."""

_BASELINE = re.compile(r"(?:_N|^)(\d\d)\.?(\d\d)(?:_|$)")
_PRODUCT = re.compile(r"S2[A-D]_MSIL\d\w_\d{8}T\d{6}(_N\d{4}_)")
_UNTOLD = (
    "it is taken after January 2022 and tells no processing baseline: its numbers are read as reflectance * 10000, "
    "without the 1000 of baseline 04.00; if they have it, give a sensor YAML with offset: -0.1"
)
_NAMED = {  # names of Landsat's bands: whose they are; scale, offset and nodata there
    r"(?<![A-Za-z])SR_B\d": ("Landsat Collection 2", 2.75e-5, -0.2, 0),
    r"(?<![A-Za-z])ST_B\d": ("Landsat Collection 2 in Kelvin", 0.00341802, 149.0, 0),
    r"(?<![A-Za-z])sr_band\d": ("Landsat Collection 1", 1e-4, 0.0, -9999),
}


def added(baseline: str) -> int | None:
    """What the numbers of a processing baseline have more: `05.09` and `..._N0509_...` 1000, older ones 0.

    None where none is told. 99.99 is that of products that users made with any version.
    """
    found = _BASELINE.search(baseline)
    number = int(found[1] + found[2]) if found else 9999
    return None if number == 9999 else ADDED * (number >= 400)


def usual(
    uri: str, sensor: Sensor, names: Sequence[str], dtype: Any, told: Sequence[Scaling | None]
) -> tuple[Sensor, tuple[str, ...]]:
    """A sensor with the scale, offset and nodata that names show, where neither file nor user say their own.

    Args:
        uri: The scene; folders of Sentinel-2 name the processing baseline.
        sensor: What took it.
        names: Names that the file, or its name, gives the bands.
        dtype: Of the numbers; names tell nothing of floating point.
        told: What product or file say, a band.

    Returns:
        The sensor, and what was guessed.
    """
    known = SENSORS.get(sensor.name, sensor)
    own = (sensor.scale, sensor.offset)
    word = own != (known.scale, known.offset) or (sensor.name not in SENSORS and own != (1.0, 0.0))
    if all(told) or word:
        return sensor, ()
    if np.dtype(dtype).kind == "f":
        note = (
            f"it stores floating-point numbers and tells no scale: they are read as number * {own[0]:g} + {own[1]:g}, "
            f"usual for {sensor.name}; if they are {sensor.unit} already, give a sensor YAML with scale: 1"
        )
        return sensor, (note,) if own != (1.0, 0.0) else ()
    if np.dtype(dtype).itemsize < 2:
        return sensor, ()
    for pattern, (whose, scale, offset, nodata) in _NAMED.items():
        if all(re.search(pattern, name) for name in names):
            note = f"its bands are called as those of {whose}: read as number * {scale:g} + {offset:g}"
            changed = dataclasses.replace(sensor, scale=scale, offset=offset, nodata=nodata)
            return changed, () if own == (scale, offset) else (note,)
    if not is_sentinel2(sensor):
        return sensor, ()
    product, time = _PRODUCT.search(uri), acquisition_time(uri, {})
    if product and (more := added(product[1])) is not None:
        return dataclasses.replace(sensor, offset=-more * sensor.scale), ()
    return sensor, (_UNTOLD,) if time and (time.year, time.month) >= (2022, 2) else ()


def is_sentinel2(sensor: Sensor) -> bool:
    """Whether all bands are Sentinel-2's, by name and wavelength, under that name or under one of the user's own."""
    known = SENSORS["sentinel2"].bands
    try:
        places = match_bands([band.name for band in sensor.bands], [Band(band.name) for band in known])
    except BandError:
        return False
    centres = [(band.wavelength, known[place].wavelength) for band, place in zip(sensor.bands, places, strict=True)]
    near = all(one is None or two is None or abs(one - two) <= 10 for one, two in centres)
    return near and (sensor.name == "sentinel2" or sensor.name not in SENSORS)


def stated(uri: str, sensor: Sensor, scaling: Sequence[Scaling], wanted: Wanted) -> list[Scaling | None]:
    """What a file says of each band; None where nothing.

    Raises:
        InputError: It contradicts a sensor of the user's own, which is no mere default.
    """
    own = (sensor.scale, sensor.offset)
    known = SENSORS.get(sensor.name)
    default = wanted.sensor is None or own in ((1.0, 0.0), known and (known.scale, known.offset))
    told = [None if one == (1.0, 0.0) else one for one in scaling]
    for one in told:
        if one and not default and not np.allclose(one, own, rtol=1e-6, atol=1e-9):
            raise InputError(
                f"'{uri}' says number * {one[0]:g} + {one[1]:g}; sensor '{sensor.name}' says * {own[0]:g} + "
                f"{own[1]:g}: give a sensor YAML with the scale of the file (--sensor)"
            )
    return told


@dataclass(frozen=True)
class Meaning:
    """Numbers under one scale and offset.

    Attributes:
        sensor: With that scale and offset.
        reader: Gives the numbers.
        dtype: Their type.
        nodata: Written where nothing was measured, or None.
        taken_off: What `--harmonise` took off the numbers that are stored.
    """

    sensor: Sensor
    reader: Reader
    dtype: np.dtype[Any]
    nodata: float | None
    taken_off: int


def meant(
    sensor: Sensor, reader: Reader, dtype: Any, nodata: Sequence[Nodata], told: Sequence[Scaling | None], wanted: Wanted
) -> Meaning:
    """The numbers as they are stored, where all bands are scaled alike; else what they mean, as float32.

    Args:
        sensor: Its bands are those that are read; its scale and offset stand in where nothing is told.
        reader: Gives the numbers as they are stored.
        dtype: Their type.
        nodata: What is no measurement, a band.
        told: What product or file say, a band.
        wanted: Whether to harmonise.
    """
    scaling = [(sensor.scale, sensor.offset) if one is None else one for one in told]
    taken_off = 0
    more = all(math.isclose(-offset, ADDED * scale, rel_tol=1e-4) for scale, offset in scaling)
    if wanted.harmonise and more and np.dtype(dtype).kind in "iu" and is_sentinel2(sensor):
        reader, taken_off = HarmonisedReader(reader, tuple(nodata)), ADDED
        scaling = [(scale, 0.0) for scale, _ in scaling]
    if len(set(scaling)) == 1:
        sensor = dataclasses.replace(sensor, scale=scaling[0][0], offset=scaling[0][1])
        return Meaning(sensor, reader, np.dtype(dtype), padding(nodata), taken_off)
    sensor = dataclasses.replace(sensor, scale=1.0, offset=0.0, nodata=None)
    return Meaning(sensor, MeantReader(reader, tuple(nodata), scaling), np.dtype(np.float32), math.nan, taken_off)


@dataclass
class MeantReader:
    """What the numbers mean, as float32, NaN for nodata: for bands that are scaled differently.

    Attributes:
        numbers: Gives what is stored.
        nodata: What is no measurement, a band.
        scaling: Scale and offset a band.
    """

    numbers: Reader
    nodata: tuple[Nodata, ...]
    scaling: Sequence[Scaling]

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Meanings `(C, h, w)` float32 and validity `(h, w)`."""
        bands, valid = self.numbers.read(window)
        meant = np.empty(bands.shape, np.float32)
        for band, out, (scale, offset), nodata in zip(bands, meant, self.scaling, self.nodata, strict=True):
            out[:] = band * scale + offset
            out[nodata.missing(band) & ~valid] = np.nan
        return meant, valid

    def close(self) -> None:
        """Close the file."""
        self.numbers.close()


@dataclass
class HarmonisedReader:
    """Numbers of Sentinel-2 without the 1000 of baseline 04.00.

    What would fall to 0 or below becomes the least number that is a measurement; nodata and the largest number, which
    means saturated, stay as they are.

    Attributes:
        numbers: Gives what is stored.
        nodata: What is no measurement, a band.
    """

    numbers: Reader
    nodata: tuple[Nodata, ...]

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Pixels `(C, h, w)` in the type of those that are stored, and validity `(h, w)`."""
        bands, valid = self.numbers.read(window)
        for band, nodata in zip(bands, self.nodata, strict=True):
            limits = np.iinfo(band.dtype)
            least = limits.min if limits.min < 0 else int(0 in nodata.values)
            kept = nodata.missing(band) | (band == limits.max)
            np.copyto(band, np.maximum(band, least + ADDED) - np.asarray(ADDED, band.dtype), where=~kept)
        return bands, valid

    def close(self) -> None:
        """Close the file."""
        self.numbers.close()
