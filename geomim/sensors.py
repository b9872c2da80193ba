"""Bands and sensors: names, wavelengths, units, and the band contract that travels with every corpus and encoder.

Bands are matched by name or by wavelength, never by position.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from geomim.errors import BandError, InputError, nearest


@dataclass(frozen=True)
class Band:
    """One spectral band.

    Attributes:
        name: Name as the provider writes it, such as `B04`.
        wavelength: Centre in nanometres, or None where it has no meaning (a mask, elevation).
        bandwidth: Full width at half maximum in nanometres.
        gsd: Ground sample distance in metres.
        alias: Common name such as `red`; matched like the name.
    """

    name: str
    wavelength: float | None = None
    bandwidth: float | None = None
    gsd: float | None = None
    alias: str | None = None


@dataclass(frozen=True)
class Sensor:
    """A set of bands in a fixed order, and what their numbers mean.

    Attributes:
        name: Short name such as `sentinel2`.
        bands: Bands in storage order.
        unit: Physical unit of `scale * number + offset`.
        scale: Factor from stored numbers to `unit`.
        offset: Added after `scale`.
        nodata: Value that means "no measurement" where a file declares none; None if there is no such value.
    """

    name: str
    bands: tuple[Band, ...]
    unit: str = "digital number"
    scale: float = 1.0
    offset: float = 0.0
    nodata: float | None = None

    def __post_init__(self) -> None:
        names = [band.name for band in self.bands]
        if not names:
            raise BandError(f"sensor '{self.name}' has no bands: give at least one")
        if len(set(names)) != len(names):
            raise BandError(f"sensor '{self.name}' names a band twice: {', '.join(names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Band names in storage order."""
        return tuple(band.name for band in self.bands)

    @property
    def gsd(self) -> float | None:
        """Finest ground sample distance of the bands, in metres."""
        return min((band.gsd for band in self.bands if band.gsd is not None), default=None)

    def select(self, names: Sequence[str]) -> Sensor:
        """Keep some bands, in the order given.

        Raises:
            BandError: A name is not a band of this sensor.
        """
        return dataclasses.replace(self, bands=tuple(self.bands[i] for i in match_bands(names, self.bands)))

    def deviation(self, usual: Sensor) -> str:
        """In what it differs from a sensor whose bands are called the same: `scale 0.0001 (not 1.0)`; "" in nothing."""
        pairs = [("", self, usual), *((f" of {b.name}", b, u) for b, u in zip(self.bands, usual.bands, strict=True))]
        found = [
            f"{name}{of} {value} (not {vars(two)[name]})"
            for of, one, two in pairs
            for name, value in vars(one).items()
            if name != "bands" and value != vars(two)[name]
        ]
        return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and YAML; `from_dict` reads them back."""
        return dataclasses.asdict(self) | {"bands": [dataclasses.asdict(band) for band in self.bands]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Sensor:
        """Read what `to_dict` or a user's YAML wrote.

        Raises:
            InputError: A key is unknown or a required one is missing.
        """
        values = dict(values)
        _check_keys(values, cls, "sensor")
        bands = values.pop("bands")
        if not isinstance(bands, Sequence) or isinstance(bands, str):
            raise InputError(f"sensor: 'bands' must be a list of bands, given {bands!r}")
        read = []
        for band in bands:
            band = {"name": band} if isinstance(band, str) else dict(band)
            _check_keys(band, Band, "band")
            read.append(Band(**band))
        return cls(bands=tuple(read), **values)


@dataclass(frozen=True)
class BandContract:
    """What an encoder expects of the numbers it is given; stored in corpus, checkpoint and export.

    Attributes:
        sensor: Bands in channel order, unit and scale.
        mean: Per band mean of the stored numbers over the training tiles.
        std: Per band standard deviation of the same.
        licences: Licences of the imagery behind the statistics or weights.
        attributions: Attributions that those licences ask for.
        corpora: The corpora behind them, a line each: name, checksum of the lock, and of the audit against benchmarks.
    """

    sensor: Sensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licences: tuple[str, ...] = ()
    attributions: tuple[str, ...] = ()
    corpora: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not len(self.mean) == len(self.std) == len(self.sensor.bands):
            raise BandError(
                f"band contract of '{self.sensor.name}': expected {len(self.sensor.bands)} means and standard "
                f"deviations, one a band; given {len(self.mean)} and {len(self.std)}"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Band names in channel order."""
        return self.sensor.names

    @property
    def divisor(self) -> tuple[float, ...]:
        """What bands are divided by after their mean is taken off: `std`, or 1 for a constant band."""
        return tuple(std if std > 0 else 1.0 for std in self.std)

    @property
    def eight_bit(self) -> bool:
        """Whether these are statistics of numbers from 0 to 255 of no unit, as pictures hold."""
        stored = (self.sensor.unit, self.sensor.scale, self.sensor.offset) == (Sensor.unit, 1.0, 0.0)
        # no numbers between 0 and 255 of a mean deviate further; means of 1 and less are those of fractions
        possible = all(0 <= m <= 255 and s * s <= m * (255 - m) for m, s in zip(self.mean, self.std, strict=True))
        return stored and possible and max(self.mean) > 1

    def indices(self, given: Sequence[str] | Sequence[Band]) -> list[int]:
        """Where each contract band stands among `given` bands, by name, alias or wavelength.

        Args:
            given: Names or bands that a file offers, in file order.

        Returns:
            One index into `given` for each contract band.

        Raises:
            BandError: A contract band is not among them.
        """
        offered = [Band(band) if isinstance(band, str) else band for band in given]
        return match_bands(self.sensor.bands, offered)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them back."""
        return {
            "sensor": self.sensor.to_dict(),
            "mean": list(self.mean),
            "std": list(self.std),
            "licences": list(self.licences),
            "attributions": list(self.attributions),
            "corpora": list(self.corpora),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BandContract:
        """Read what `to_dict` wrote."""
        values = dict(values)
        _check_keys(values, cls, "band contract")
        sensor = Sensor.from_dict(values.pop("sensor"))
        return cls(sensor=sensor, **{key: tuple(value) for key, value in values.items()})


def match_bands(wanted: Iterable[str | Band], offered: Sequence[Band]) -> list[int]:
    """Find wanted bands among the offered ones: by name, then alias, then nearest centre wavelength.

    A wavelength matches when each centre lies within half the other's bandwidth (at least 10 nm).

    Args:
        wanted: Names or bands, in the order wanted.
        offered: Bands to choose from.

    Returns:
        One index into `offered` for each wanted band, all different.

    Raises:
        BandError: A wanted band is missing, or two of them would be the same offered one.
    """
    wanted = list(wanted)
    found = [find_band(band, offered) for band in wanted]
    missing = [_name(band) for band, index in zip(wanted, found, strict=True) if index is None]
    names = ", ".join(band.name for band in offered)
    if missing:
        raise BandError(
            f"expected bands {', '.join(map(_name, wanted))}; given {names}; missing {', '.join(missing)}. "
            "Name the bands of the file with --bands or --sensor"
        )
    indices = [index for index in found if index is not None]
    if len(set(indices)) != len(indices):
        raise BandError(f"expected {len(wanted)} different bands ({', '.join(map(_name, wanted))}); given {names}")
    return indices


def _name(band: str | Band) -> str:
    return band if isinstance(band, str) else band.name


@lru_cache(maxsize=4096)  # asked for every band of every file
def _plain(name: str) -> str:
    """`B4`, `b04` and `B_04` are one band."""
    return re.sub(r"(?<=[a-z])0+(?=\d)", "", re.sub(r"[^a-z0-9]", "", name.lower()))


def find_band(wanted: str | Band, offered: Sequence[Band]) -> int | None:
    """Where one band is among the offered ones, as `match_bands` finds it; None where it is not."""
    band = Band(wanted) if isinstance(wanted, str) else wanted
    keys = [_plain(key) for key in (band.name, band.alias) if key]
    for key in keys:
        for attribute in ("name", "alias"):
            for index, other in enumerate(offered):
                value = getattr(other, attribute)
                if value and _plain(value) == key and not (re.fullmatch(_NUMBERED, key) and _apart(band, other)):
                    return index
    near = [
        (abs(band.wavelength - other.wavelength), index)
        for index, other in enumerate(offered)
        if band.wavelength and other.wavelength and _overlap(band, other)
    ]
    return min(near)[1] if near else None


_NUMBERED = r"b(and)?\d+a?"
"""Names that count a sensor's bands: B5 of Landsat 8 is near infrared, B05 of Sentinel-2 is red edge."""


def _apart(one: Band, two: Band) -> bool:
    return bool(one.wavelength and two.wavelength) and not _overlap(one, two)


def _overlap(one: Band, two: Band) -> bool:
    assert one.wavelength is not None and two.wavelength is not None
    reach = max(10.0, min(one.bandwidth or 0.0, two.bandwidth or 0.0) / 2)
    return abs(one.wavelength - two.wavelength) <= reach


def _check_keys(values: Mapping[str, Any], cls: type, what: str) -> None:
    fields = dataclasses.fields(cls)
    names = [field.name for field in fields]
    for key in values:
        if key not in names:
            raise InputError(f"{what}: unknown key '{key}'{nearest(key, names)}")
    for field in fields:
        if field.name not in values and field.default is dataclasses.MISSING:
            raise InputError(f"{what}: key '{field.name}' is missing; given {', '.join(values) or 'nothing'}")


def get_sensor(name: str | Path, bands: Sequence[str] | None = None) -> Sensor:
    """A built-in sensor by name, or a user's own from a YAML file.

    Args:
        name: One of `SENSORS`, or a path to a YAML file with the keys of `Sensor`.
        bands: Keep these bands, in this order; all where None.

    Raises:
        InputError: The name is unknown or the file is not a sensor.
        BandError: A band is not one of the sensor's.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise InputError(f"sensor file '{path}' does not exist")
        values = yaml.safe_load(path.read_text())
        if not isinstance(values, dict):
            raise InputError(f"sensor file '{path}': expected a mapping with 'name' and 'bands', given {values!r}")
        sensor = Sensor.from_dict(values)
    elif str(name) in SENSORS:
        sensor = SENSORS[str(name)]
    else:
        raise InputError(f"unknown sensor '{name}'{nearest(str(name), SENSORS)} (or give a YAML file)")
    return sensor.select(bands) if bands else sensor


# Sentinel-2A spectral response (ESA Sentinel-2 User Handbook); L1C and L2A numbers are reflectance * 10000,
# before the offset of processing baseline 04.00.
_SENTINEL2 = Sensor(
    "sentinel2",
    (
        Band("B01", 442.7, 21, 60, "coastal"),
        Band("B02", 492.4, 66, 10, "blue"),
        Band("B03", 559.8, 36, 10, "green"),
        Band("B04", 664.6, 31, 10, "red"),
        Band("B05", 704.1, 15, 20, "rededge1"),
        Band("B06", 740.5, 15, 20, "rededge2"),
        Band("B07", 782.8, 20, 20, "rededge3"),
        Band("B08", 832.8, 106, 10, "nir"),
        Band("B8A", 864.7, 21, 20, "nir_narrow"),
        Band("B09", 945.1, 20, 60, "water_vapour"),
        Band("B10", 1373.5, 31, 60, "cirrus"),
        Band("B11", 1613.7, 91, 20, "swir1"),
        Band("B12", 2202.4, 175, 20, "swir2"),
    ),
    unit="reflectance",
    scale=1e-4,
    nodata=0,
)

# ETM+ band limits (USGS Landsat 7 Data Users Handbook); Collection-1 style surface reflectance * 10000.
_LANDSAT7 = Sensor(
    "landsat7",
    (
        Band("B1", 485, 70, 30, "blue"),
        Band("B2", 560, 80, 30, "green"),
        Band("B3", 660, 60, 30, "red"),
        Band("B4", 835, 130, 30, "nir"),
        Band("B5", 1650, 200, 30, "swir1"),
        Band("B7", 2215, 270, 30, "swir2"),
    ),
    unit="reflectance",
    scale=1e-4,
    nodata=-9999,
)

# OLI band limits (USGS Landsat 8 and 9 Data Users Handbooks); Collection-2 level-2 surface reflectance.
_LANDSAT8 = Sensor(
    "landsat8",
    (
        Band("B1", 443, 16, 30, "coastal"),
        Band("B2", 482, 60, 30, "blue"),
        Band("B3", 561.5, 57, 30, "green"),
        Band("B4", 654.5, 37, 30, "red"),
        Band("B5", 865, 28, 30, "nir"),
        Band("B6", 1608.5, 85, 30, "swir1"),
        Band("B7", 2200.5, 187, 30, "swir2"),
    ),
    unit="reflectance",
    scale=2.75e-5,
    offset=-0.2,
    nodata=0,
)

# Nominal limits of the Leica ADS line cameras flown for the USDA programme; other cameras differ by some 10 nm.
_NAIP = Sensor(
    "naip",
    (
        Band("red", 635, 32, 1, "R"),
        Band("green", 555, 60, 1, "G"),
        Band("blue", 465, 60, 1, "B"),
        Band("nir", 845, 74, 1, "N"),
    ),
    nodata=None,
)

# Nominal: photographs state no wavelengths.
_RGB = Sensor(
    "rgb",
    (Band("red", 650, 80, None, "R"), Band("green", 550, 80, None, "G"), Band("blue", 470, 80, None, "B")),
)

SENSORS: dict[str, Sensor] = {sensor.name: sensor for sensor in (_SENTINEL2, _LANDSAT7, _LANDSAT8, _NAIP, _RGB)}
"""The built-in sensors by name."""
