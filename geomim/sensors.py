"""Bands and sensors: names, wavelengths, units, and the band contract that travels with every corpus and encoder.

Bands are matched by name or by wavelength, never by position.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import yaml

from geomim.errors import BandError, InputError, nearest
from geomim.resources import root

POLARISATIONS = ("VV", "VH", "HH", "HV")


@dataclass(frozen=True)
class Band:
    """One spectral band.

    Attributes:
        name: Name as the provider writes it, such as `B04`.
        wavelength: Centre in nanometres, or None where it has no meaning (a mask, elevation).
        bandwidth: Full width at half maximum in nanometres.
        gsd: Ground sample distance in metres.
        alias: Common name such as `red`; matched like the name.
        unit: Of `scale * number + offset`; where None, `unit`, `scale` and `offset` are those of the sensor.
        scale: Factor from stored numbers to `unit`.
        offset: Added after `scale`.
        polarisation: One of `POLARISATIONS`, sent and received, of a radar; matched like the name.
    """

    name: str
    wavelength: float | None = None
    bandwidth: float | None = None
    gsd: float | None = None
    alias: str | None = None
    unit: str | None = None
    scale: float | None = None
    offset: float | None = None
    polarisation: str | None = None

    def __post_init__(self) -> None:
        if self.polarisation not in (None, *POLARISATIONS):
            known = ", ".join(POLARISATIONS)
            raise BandError(f"band '{self.name}': 'polarisation' must be one of {known}, given {self.polarisation!r}")


@dataclass(frozen=True)
class Sensor:
    """A set of bands in a fixed order, and what their numbers mean.

    Attributes:
        name: Short name such as `sentinel2`.
        bands: Bands in storage order.
        unit: Physical unit of `scale * number + offset`, of bands that state none of their own.
        scale: Factor from stored numbers to `unit`, likewise.
        offset: Added after `scale`, likewise.
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
        if flat := [name for name, (_, scale, _) in zip(names, self.meanings, strict=True) if not scale]:
            raise BandError(f"sensor '{self.name}': 'scale' of {', '.join(flat)} is 0, which makes all numbers one")

    @property
    def names(self) -> tuple[str, ...]:
        """Band names in storage order."""
        return tuple(band.name for band in self.bands)

    @property
    def gsd(self) -> float | None:
        """Finest ground sample distance of the bands, in metres."""
        return min((band.gsd for band in self.bands if band.gsd is not None), default=None)

    def meaning(self, place: int) -> tuple[str, float, float]:
        """Unit, scale and offset of one band: its own, else the sensor's."""
        own, usual = vars(self.bands[place]), vars(self)
        unit, scale, offset = (usual[key] if own[key] is None else own[key] for key in ("unit", "scale", "offset"))
        return unit, scale, offset

    @property
    def meanings(self) -> tuple[tuple[str, float, float], ...]:
        """`meaning` of each band."""
        return tuple(map(self.meaning, range(len(self.bands))))

    def rescaled(self, scale: float, offset: float) -> Sensor:
        """The sensor with one scale and offset for all bands; their units stay."""
        bands = tuple(dataclasses.replace(band, scale=None, offset=None) for band in self.bands)
        return dataclasses.replace(self, bands=bands, scale=scale, offset=offset)

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
        # a band without these keys is written as before there were any: locks and fingerprints hold it
        later = ("unit", "scale", "offset", "polarisation")
        bands = [vars(band).items() for band in self.bands]
        return vars(self) | {"bands": [{k: v for k, v in band if v is not None or k not in later} for band in bands]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Sensor:
        """Read what `to_dict` or a user's YAML wrote.

        Raises:
            InputError: A key is unknown, a required one is missing, or a value is of the wrong kind.
            BandError: A polarisation is none, or a scale is 0.
        """
        values = _checked(values, cls, "sensor")
        bands = values.pop("bands")
        if not isinstance(bands, Sequence) or isinstance(bands, str):
            raise InputError(f"sensor: 'bands' must be a list of bands, given {bands!r}")
        read = []
        for band in bands:
            if not isinstance(band, str | Mapping):
                raise InputError(f"sensor: 'bands' must be names or mappings with 'name', given {band!r}")
            read.append(Band(**_checked({"name": band} if isinstance(band, str) else band, Band, "band")))
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
        dtype: Of the stored numbers, such as `uint8`; None where nothing says it, as in older weights.
    """

    sensor: Sensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licences: tuple[str, ...] = ()
    attributions: tuple[str, ...] = ()
    corpora: tuple[str, ...] = ()
    dtype: str | None = dataclasses.field(default=None, compare=False)  # the same images may be stored in another

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
        """Whether the numbers are those of pictures, 0 to 255 of no unit; without `dtype` the statistics tell."""
        stored = set(self.sensor.meanings) == {(Sensor.unit, 1.0, 0.0)}
        if self.dtype is not None:
            return stored and self.dtype == "uint8"
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

    def as_stored(self, given: Sensor) -> Sensor:
        """A given sensor whose numbers are taken to mean what the contract's do: its unit, scale and offset, a band.

        Raises:
            BandError: A contract band is not among the given ones.
        """
        bands = list(given.bands)
        for own, place in zip(self.sensor.bands, self.indices(bands), strict=True):
            bands[place] = dataclasses.replace(bands[place], unit=own.unit, scale=own.scale, offset=own.offset)
        return dataclasses.replace(self.sensor, name=given.name, bands=tuple(bands), nodata=given.nodata)

    def select(self, names: Sequence[str] | Sequence[Band]) -> BandContract:
        """Keep some bands, in the order given.

        Raises:
            BandError: One is not a band of the sensor.
        """
        places = match_bands(names, self.sensor.bands)
        bands = tuple(self.sensor.bands[place] for place in places)
        mean, std = (tuple(values[place] for place in places) for values in (self.mean, self.std))
        return dataclasses.replace(self, sensor=dataclasses.replace(self.sensor, bands=bands), mean=mean, std=std)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them back."""
        return {
            "sensor": self.sensor.to_dict(),
            "mean": list(self.mean),
            "std": list(self.std),
            "licences": list(self.licences),
            "attributions": list(self.attributions),
            "corpora": list(self.corpora),
            **({"dtype": self.dtype} if self.dtype else {}),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BandContract:
        """Read what `to_dict` wrote."""
        values = _checked(values, cls, "band contract")
        sensor, dtype = Sensor.from_dict(values.pop("sensor")), values.pop("dtype", None)
        return cls(sensor=sensor, dtype=dtype, **{key: tuple(value) for key, value in values.items()})


def match_bands(wanted: Iterable[str | Band], offered: Sequence[Band]) -> list[int]:
    """Find wanted bands among the offered ones: by name, alias, polarisation, then nearest centre wavelength.

    A name as it is written counts before one that differs by case, separators or leading zeros.
    A wavelength matches when each centre lies within half the other's bandwidth (at least 10 nm).

    Args:
        wanted: Names or bands, in the order wanted.
        offered: Bands to choose from.

    Returns:
        One index into `offered` for each wanted band, all different.

    Raises:
        BandError: A wanted band is missing or may be several, or two of them would be the same offered one.
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
    """`B4`, `b04` and `B_04` are one band; `p2.5` and `p25`, or names in other letters, are not."""
    name = re.sub(r"[\s_.,:;/()\[\]-]+", "_", name.lower())
    name = re.sub(r"(?<!\d)_|_(?!\d)", "", name)  # stays between two digits
    return re.sub(r"(?<=[^\W\d])0+(?=\d)", "", name)


def find_band(wanted: str | Band, offered: Sequence[Band]) -> int | None:
    """Where one band is among the offered ones, as `match_bands` finds it; None where it is not.

    Raises:
        BandError: It is called like several of them, and just as none.
    """
    band = Band(wanted) if isinstance(wanted, str) else wanted
    for key in filter(None, (band.name, band.alias, band.polarisation)):
        plain = _plain(key)
        for attribute in ("name", "alias", "polarisation"):
            alike = [
                index
                for index, other in enumerate(offered)
                if (value := getattr(other, attribute)) and (value == key or _plain(value) == plain != "")
                if not (re.fullmatch(_NUMBERED, plain) and _apart(band, other))
            ]
            found = [index for index in alike if getattr(offered[index], attribute) == key] or alike
            if len(found) > 1:
                names = ", ".join(f"'{offered[index].name}'" for index in found)
                raise BandError(f"band '{band.name}' may be any of {names} by its {attribute}: give one of these names")
            if found:
                return found[0]
    near = [
        (abs(band.wavelength - other.wavelength), index)
        for index, other in enumerate(offered)
        if band.wavelength and other.wavelength and _overlap(band, other)
    ]
    return min(near)[1] if near else None


_NUMBERED = r"b(and)?\d+a?|[hv][hv]"
"""Names that mean another band with each sensor: B5 of Landsat 8 is near infrared, B05 of Sentinel-2 is red edge."""


def _apart(one: Band, two: Band) -> bool:
    return bool(one.wavelength and two.wavelength) and not _overlap(one, two)


def _overlap(one: Band, two: Band) -> bool:
    assert one.wavelength is not None and two.wavelength is not None
    radar, other = map(polarisation_of, (one, two))  # of one letter, C or L, are alike
    reach = max(10.0, min(one.bandwidth or 0.0, two.bandwidth or 0.0) / 2, 0.1 * one.wavelength if radar else 0.0)
    return radar == other and abs(one.wavelength - two.wavelength) <= reach


def polarisation_of(band: Band) -> str | None:
    """What a radar's band sent and received, as it states or as it is called; None of other bands."""
    names = (band.polarisation, band.name.upper(), (band.alias or "").upper())
    return next((name for name in names if name in POLARISATIONS), None)


def _checked(values: Mapping[str, Any], cls: type, what: str) -> dict[str, Any]:
    """The values of a dataclass as they were written, keys and kinds checked; numbers written as text are numbers."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            raise InputError(f"{what}: unknown key '{key}'{nearest(str(key), fields)}")
    for key, field in fields.items():
        if key not in values and field.default is dataclasses.MISSING:
            raise InputError(f"{what}: key '{key}' is missing; given {', '.join(values) or 'nothing'}")
    return {key: _of_kind(str(fields[key].type), value, f"{what}: '{key}'") for key, value in values.items()}


def _of_kind(kind: str, value: Any, what: str) -> Any:
    number, text = kind.startswith("float"), kind.startswith("str")
    if number and isinstance(value, str):
        with suppress(ValueError):
            value = float(value)  # YAML takes 1e-4 for text
    fits = isinstance(value, int | float) if number else isinstance(value, str) or not text
    if not fits and not (value is None and kind.endswith("None")):
        raise InputError(f"{what} must be {'a number' if number else 'text'}, given {value!r}")
    return value


class _Shipped(Mapping[str, Sensor]):
    """Sensors by name, each read from its file when it is first asked for; `-` is as good as `_`."""

    def __getitem__(self, name: str) -> Sensor:
        return _shipped(_files()[name.replace("-", "_")])[0]

    def __iter__(self) -> Iterator[str]:
        return iter(_files())

    def __len__(self) -> int:
        return len(_files())


@cache
def _files() -> dict[str, Path]:
    return {path.stem: path for path in sorted((root() / "datasets" / "sensors").glob("*.yaml"))}


def _read(path: Path) -> tuple[Sensor, BandContract | None]:
    """A sensor, and its statistics where the file has `mean` and `std`."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"sensor file '{path}' is no YAML file ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(values, dict):
        raise InputError(f"sensor file '{path}': expected a mapping with 'name' and 'bands', given {values!r}")
    try:
        stated = [_statistics(values.pop(key), key) for key in ("mean", "std") if key in values]
        sensor = Sensor.from_dict(values)
        if len(stated) == 1:
            raise InputError("'mean' and 'std' go together, a number a band each")
        return sensor, BandContract(sensor, stated[0], stated[1]) if stated else None
    except (InputError, BandError) as error:
        raise type(error)(f"sensor file '{path}': {error}") from error


def _statistics(values: Any, key: str) -> tuple[float, ...]:
    if not isinstance(values, list):
        raise InputError(f"'{key}' must be a list of numbers, one a band; given {values!r}")
    numbers = [_of_kind("float", value, f"'{key}' of a band") for value in values]
    for number in numbers:
        if not math.isfinite(number) or (key == "std" and number < 0):
            raise InputError(f"'{key}' must be finite{' and 0 or more' if key == 'std' else ''}; given {number}")
    return tuple(map(float, numbers))


_shipped = cache(_read)

SENSORS: Mapping[str, Sensor] = _Shipped()
"""The built-in sensors by name, `datasets/sensors/NAME.yaml`."""


def get_sensor(name: str | Path, bands: Sequence[str] | None = None) -> Sensor:
    """A built-in sensor by name, or a user's own from a YAML file of the same form.

    Args:
        name: One of `SENSORS`, or a path to a YAML file with the keys of `Sensor`, a band being a name or the keys of
            `Band`; it may have the keys of `stated_contract` too.
        bands: Keep these bands, in this order; all where None.

    Raises:
        InputError: The name is unknown or the file is not a sensor.
        BandError: A band is not one of the sensor's.
    """
    sensor = _named(name)[0]
    return sensor.select(bands) if bands else sensor


def stated_contract(name: str | Path, bands: Sequence[str] | None = None) -> BandContract | None:
    """Bands and statistics of a YAML file that also has `mean` and `std` of the stored numbers; None of other sensors.

    Arguments and errors as of `get_sensor`.
    """
    contract = _named(name)[1]
    return contract.select(bands) if contract and bands else contract


def _named(name: str | Path) -> tuple[Sensor, BandContract | None]:
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise InputError(f"sensor file '{path}' does not exist")
        return _read(path)
    if str(name) in SENSORS:
        return SENSORS[str(name)], None
    raise InputError(f"unknown sensor '{name}'{nearest(str(name), SENSORS)} (or give a YAML file)")
