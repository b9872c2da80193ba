"""What the stored numbers of a scene mean: as its product or file tells, else as names show, else as is usual."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np

from geomim.corpus.scenes.scene import Numbers, Wanted, converted
from geomim.corpus.scenes.validity import Nodata
from geomim.errors import InputError
from geomim.sensors import SENSORS, Sensor

Scaling = tuple[float, float]
"""Scale and offset from stored numbers to what they mean."""

ADDED = 1000
"""What Sentinel-2's numbers have more, from processing baseline 04.00 on."""

_BASELINE = re.compile(r"(?:_N|^)(\d\d)\.?(\d\d)(?:_|$)")
_PRODUCT = re.compile(r"S2[A-D]_MSIL\d\w_\d{8}T\d{6}(_N\d{4}_)")
_FRACTION = 2.0  # no floating-point number above it: reflectance, not a multiple of it
_UNTOLD = (
    "it is taken after January 2022 and tells no processing baseline: its numbers are read as reflectance * 10000, "
    "without the 1000 of baseline 04.00; if they have it, give a sensor with offset: -0.1 (sentinel2_l2a_n0400 or YAML)"
)
_NAMED = {  # names of Landsat's bands: whose they are; scale, offset and nodata there
    r"(?<![A-Za-z])SR_B\d": ("Landsat Collection 2", 2.75e-5, -0.2, 0),
    r"(?<![A-Za-z])ST_B\d": ("Landsat Collection 2 in Kelvin", 0.00341802, 149.0, 0),
    r"(?<![A-Za-z])sr_band\d": ("Landsat Collection 1", 1e-4, 0.0, -9999),
}


def added(baseline: str) -> int | None:
    """What the numbers of a processing baseline have more: `05.09` and `..._N0509_...` 1000, older ones 0.

    None where none is told; 99.99 is told by products that users made with any version.
    """
    found = _BASELINE.search(baseline)
    number = int(found[1] + found[2]) if found else 9999
    return None if number == 9999 else ADDED * (number >= 400)


def is_sentinel2(sensor: Sensor) -> bool:
    """Whether a sensor is Sentinel-2 by its name, or one of the user's own by those of all bands."""
    names = {name.upper() for name in sensor.names}
    own = sensor.name not in SENSORS and names <= set(SENSORS["sentinel2"].names)
    return own or sensor.name.startswith("sentinel2")


def informed(
    uri: str,
    sensor: Sensor,
    names: Sequence[str],
    dtype: np.dtype[Any],
    told: Sequence[Scaling | None],
    wanted: Wanted,
    time: datetime | None,
    look: Callable[[], np.ndarray],
) -> tuple[Sensor, tuple[str, ...]]:
    """A sensor with the scale, offset and nodata that names and numbers show, where neither file nor user tell theirs.

    Args:
        uri: The scene; folders of Sentinel-2 name the processing baseline.
        sensor: What took it.
        names: Names that the file gives the bands, or that of the file of each.
        dtype: Of the numbers.
        told: What product or file say, a band; None where nothing.
        wanted: Whether the user named the sensor.
        time: When it was taken, if known.
        look: Gives some numbers as they are stored.

    Returns:
        The sensor, and what was guessed.

    Raises:
        InputError: The file contradicts a sensor of the user's own, which is no mere default.
    """
    each = _scaling(sensor)
    word = wanted.sensor is not None and not set(each) <= _usual(sensor)
    for one, own in zip(told, each, strict=True):
        if one and word and not np.allclose(one, own, rtol=1e-6, atol=1e-9):
            raise InputError(
                f"'{uri}' says number * {one[0]:g} + {one[1]:g}; sensor '{sensor.name}' says * {own[0]:g} + "
                f"{own[1]:g}: give a sensor YAML with the scale of the file (--sensor)"
            )
    unit, *own = sensor.meaning(0)  # what is guessed would be so of all bands
    several = len(set(sensor.meanings)) > 1
    if word or several or all(told) or dtype.itemsize < 2 or (dtype.kind == "f" and own == [1.0, 0.0]):
        return sensor, ()
    if dtype.kind == "f" and _fractions(look()):
        note = f"its numbers are fractions: they are read as {unit} already, not as number * {own[0]:g}"
        return sensor.rescaled(1.0, 0.0), (note,)
    for pattern, (whose, scale, offset, nodata) in _NAMED.items():
        if all(re.search(pattern, name) for name in names):
            note = f"its bands are called as those of {whose}: read as number * {scale:g} + {offset:g}"
            sensor = replace(sensor.rescaled(scale, offset), nodata=nodata)
            return sensor, () if own == [scale, offset] else (note,)
    if not is_sentinel2(sensor):
        return sensor, ()
    if (more := _named(uri)) is not None:
        return sensor.rescaled(own[0], -more * own[0]), ()
    return sensor, (_UNTOLD,) if _doubtful(time) else ()


def _scaling(sensor: Sensor) -> list[Scaling]:
    return [(scale, offset) for _, scale, offset in sensor.meanings]


def _usual(sensor: Sensor) -> set[Scaling]:
    """What a user takes over who just names a sensor; one with the offset of Sentinel-2 is named for it."""
    known = SENSORS.get(sensor.name)
    return {(1.0, 0.0)} if known is None or (is_sentinel2(known) and known.offset) else {*_scaling(known)}


def _named(uri: str) -> int | None:
    """What the numbers of a product have more, where an address names it with its processing baseline."""
    found = _PRODUCT.search(uri)
    return added(found[1]) if found else None


def _doubtful(time: datetime | None) -> bool:
    """Whether numbers of Sentinel-2 may have 1000 more for being of that time."""
    return time is not None and (time.year, time.month) >= (2022, 2)


def _fractions(numbers: np.ndarray) -> bool:
    positive = numbers[(numbers > 0) & np.isfinite(numbers)]
    return positive.size > 0 and bool(np.percentile(positive, 99) <= _FRACTION)


def meant(
    uri: str,
    numbers: Numbers,
    nodata: Sequence[Nodata],
    told: Sequence[Scaling | None],
    wanted: Wanted,
    time: datetime | None,
) -> Numbers:
    """Numbers as they are stored, where bands are scaled alike or as the sensor says; else what they mean, as float32.

    Args:
        uri: The scene.
        numbers: As they are stored; the scale and offset of their sensor stand in where nothing is told.
        nodata: What is no measurement, a band.
        told: What product or file say, a band; None where nothing.
        wanted: Whether to harmonise.
        time: When it was taken, if known.

    Raises:
        InputError: What is told leaves no numbers; or it is to be harmonised, and nothing says what they have more.
    """
    sensor, reader = numbers.sensor, numbers.reader
    own = _scaling(sensor)
    scaling = [one or usual for one, usual in zip(told, own, strict=True)]
    if wrong := next((one for one in scaling if not (one[0] and math.isfinite(sum(one)))), None):
        raise InputError(
            f"'{uri}' says number * {wrong[0]:g} + {wrong[1]:g}, which leaves nothing of what was measured: correct "
            "its scale and offset in the file, or in what comes with it"
        )
    more = all(math.isclose(-offset, ADDED * scale, rel_tol=1e-4) for scale, offset in scaling)
    if wanted.harmonise:
        _check_told(uri, numbers, told, wanted, time)
    if wanted.harmonise and more and numbers.dtype.kind in "iu" and is_sentinel2(sensor):
        reader = converted(reader, partial(harmonised, nodata))
        scaling = [(scale, 0.0) for scale, _ in scaling]
        numbers = replace(numbers, reader=reader, taken_off=ADDED)
    if scaling == own:
        return numbers
    if len(set(scaling)) == 1:
        return replace(numbers, sensor=sensor.rescaled(*scaling[0]))
    sensor = replace(sensor.rescaled(1.0, 0.0), nodata=None)
    reader = converted(reader, partial(means, nodata, scaling))
    return replace(numbers, sensor=sensor, reader=reader, dtype=np.dtype(np.float32), nodata=math.nan)


def _check_told(
    uri: str, numbers: Numbers, told: Sequence[Scaling | None], wanted: Wanted, time: datetime | None
) -> None:
    """Refuse to harmonise by a guess: what is left in or taken off by mistake shows nowhere."""
    if not is_sentinel2(numbers.sensor):
        return
    if wanted.sensor is not None and (more := next(filter(None, (one[1] for one in _scaling(wanted.sensor))), 0)):
        raise InputError(
            f"sensor '{wanted.sensor.name}' has an offset of its own, {more:g}, which would count for "
            f"'{uri}' and scenes of all other dates: with --harmonise, give a sensor without offset"
        )
    stored = numbers.dtype.kind in "iu" and numbers.dtype.itemsize > 1
    if stored and not all(told) and _named(uri) is None and _doubtful(time):
        raise InputError(
            f"'{uri}' is taken after January 2022 and tells no processing baseline, so that --harmonise cannot know "
            "whether its numbers have 1000 more: give its .SAFE folder, a folder of that name (with _Nxxxx_), a STAC "
            "item that tells its baseline, or write scale and offset into the file"
        )


def means(
    nodata: Sequence[Nodata], scaling: Sequence[Scaling], bands: np.ndarray, valid: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What numbers `(C, h, w)` mean, float32, NaN for nodata; and their validity `(h, w)`."""
    meant = np.empty(bands.shape, np.float32)
    for band, out, (scale, offset), none in zip(bands, meant, scaling, nodata, strict=True):
        out[:] = band * scale + offset
        out[none.missing(band) & ~valid] = np.nan
    return meant, valid


def harmonised(nodata: Sequence[Nodata], bands: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of Sentinel-2 `(C, h, w)` without the 1000 of baseline 04.00, in place; and their validity `(h, w)`.

    What would fall below the least measurement (1 where 0 is nodata) becomes that; nodata and the largest number, which
    means saturated, stay as they are.
    """
    for band, none in zip(bands, nodata, strict=True):
        limits = np.iinfo(band.dtype)
        least = ADDED + (limits.min if limits.min < 0 else int(0 in none.values))
        changed = ~none.missing(band) & (band != limits.max)
        np.copyto(band, np.maximum(band, least) - band.dtype.type(ADDED), where=changed)
    return bands, valid
