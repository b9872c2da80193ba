"""Which bands does a raster hold? Names come from the file or from the user, never from a guess about positions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from geomim.errors import BandError
from geomim.sensors import SENSORS, Band, Sensor, match_bands

_COLOURS = ("red", "green", "blue", "nir", "rededge", "swir", "pan", "coastal", "yellow")
_CODE = re.compile(r"(?<![a-z0-9])b(?:and)?[ _-]?0*(\d{1,2}a?)(?![a-z0-9])", re.IGNORECASE)


@dataclass(frozen=True)
class Offer:
    """What a raster says about its own bands.

    Attributes:
        uri: The raster, for error sentences.
        bands: One entry a band in file order; None where the file does not name it.
        described: The names are band descriptions or wavelengths, not just the colours of a picture format.
        alpha: Place of the alpha band, 0-based, or None.
        masks: Places of bands that hold cloud codes: read as bands only where they are asked for.
    """

    uri: str
    bands: tuple[Band | None, ...]
    described: bool
    alpha: int | None
    masks: tuple[int, ...] = ()

    @property
    def spectral(self) -> list[int]:
        """Places of all bands but alpha, 0-based."""
        return [place for place in range(len(self.bands)) if place != self.alpha]


@dataclass(frozen=True)
class Choice:
    """Which bands of the file to read, and what they are.

    Attributes:
        sensor: Bands in the order read.
        places: 0-based place in the file of each of them.
        alpha: Place of the alpha band, 0-based, or None.
    """

    sensor: Sensor
    places: tuple[int, ...]
    alpha: int | None


def read_offer(uri: str, dataset: Any, masks: tuple[int, ...] = ()) -> Offer:
    """Read the band names of an open rasterio dataset: descriptions, wavelengths, or colour interpretation.

    Args:
        uri: The raster, for error sentences.
        dataset: Open `rasterio.DatasetReader`.
        masks: 0-based places of bands that hold cloud codes.
    """
    colours = [colour.name for colour in dataset.colorinterp]
    # Programs mark the last of four bands as alpha by habit; a name of its own says that it is none.
    unnamed = [not name or "alpha" in name.lower() for name in dataset.descriptions]
    alpha = next((place for place, colour in enumerate(colours) if colour == "alpha" and unnamed[place]), None)
    bands: list[Band | None] = []
    described = False
    for place, (description, colour) in enumerate(zip(dataset.descriptions, colours, strict=True)):
        wavelength, bandwidth = _wavelength(dataset, place + 1)
        if place == alpha:
            bands.append(None)
        elif description or wavelength:
            code = _CODE.search(description or "")
            name = description or f"{wavelength:g} nm"
            bands.append(Band(name, wavelength, bandwidth, alias=f"B{code[1]}" if code else None))
            described = True
        else:
            bands.append(Band(colour) if colour in _COLOURS else None)
    return Offer(uri, tuple(bands), described, alpha, masks)


def choose(offer: Offer, sensor: Sensor | None = None, bands: Sequence[str] | None = None) -> Choice:
    """Decide which bands of a file are read, in which order, and what they are called.

    - `bands` alone or with `sensor`: names of the file's bands in file order, `-` for one to ignore; where the file
      describes its bands itself, a choice among them by name.
    - `sensor` alone: all its bands, found by name, alias or wavelength. Only where the file names nothing and has
      exactly as many bands as the sensor is the flag the user's word that they come in the sensor's order.
    - neither: the file's own names.

    Raises:
        BandError: The bands have no names, or not those asked for; the sentence says which flag to give.
    """
    if bands:
        return _by_user(offer, sensor, [name.strip() for name in bands])
    if sensor is not None:
        return _by_sensor(offer, sensor)
    return _by_file(offer)


def _by_user(offer: Offer, sensor: Sensor | None, names: list[str]) -> Choice:
    kept = [name for name in names if name not in ("", "-")]
    if not kept:
        raise BandError("--bands names no band to keep: give at least one name")
    chosen = sensor.select(kept) if sensor else None
    if offer.described:
        named = [(place, band) for place, band in enumerate(offer.bands) if band is not None]
        wanted = list(chosen.bands) if chosen else [Band(name) for name in kept]
        known = [band for band in wanted if _offers(named, band)]
        if len(known) == len(wanted):
            found = match_bands(wanted, [band for _, band in named])
            own = [named[index][1] for index in found]
            return Choice(chosen or _guess(offer, own).select(kept), _pick(named, found), offer.alpha)
        if known:  # were it none of them, the user would be renaming the bands of the file
            missing = ", ".join(band.name for band in wanted if band not in known)
            given = ", ".join(band.name for _, band in named)
            raise BandError(f"'{offer.uri}' names its bands {given}; --bands asks for {missing}: choose among them")
    if len(names) == len(offer.bands):
        places = list(range(len(offer.bands)))
    elif len(names) == len(offer.spectral):
        places = offer.spectral
    else:
        raise BandError(
            f"'{offer.uri}' has {_count(offer)}; --bands gives {len(names)} names: give one a band, - to ignore"
        )
    taken = tuple(place for place, name in zip(places, names, strict=True) if name not in ("", "-"))
    alpha = None if offer.alpha in taken else offer.alpha
    return Choice(chosen or _guess(offer, [Band(name) for name in kept]).select(kept), taken, alpha)


def _offers(named: Sequence[tuple[int, Band]], wanted: Band) -> bool:
    try:
        match_bands([wanted], [band for _, band in named])
    except BandError:
        return False
    return True


def _by_sensor(offer: Offer, sensor: Sensor) -> Choice:
    named = [(place, band) for place, band in enumerate(offer.bands) if band is not None]
    if named:
        try:
            found = match_bands(sensor.bands, [band for _, band in named])
        except BandError as error:
            given = ", ".join(band.name for _, band in named)
            raise BandError(
                f"'{offer.uri}' names its bands {given}{' and alpha' if offer.alpha is not None else ''}; sensor "
                f"'{sensor.name}' has {', '.join(sensor.names)}: take some, or rename them, with --bands"
            ) from error
        return Choice(sensor, _pick(named, found), offer.alpha)
    if offer.alpha is None and len(offer.bands) == len(sensor.bands):
        return Choice(sensor, tuple(range(len(offer.bands))), None)
    raise BandError(
        f"'{offer.uri}' has {_count(offer)} without names; sensor '{sensor.name}' has {len(sensor.bands)} "
        f"({', '.join(sensor.names)}): name the bands of the file with --bands"
    )


def _by_file(offer: Offer) -> Choice:
    named = [(place, band) for place, band in enumerate(offer.bands) if band and place not in offer.masks]
    if named and len(named) + len(offer.masks) == len(offer.spectral):
        own = [band for _, band in named]
        sensor = _guess(offer, own)
        found = range(len(own)) if sensor.bands == tuple(own) else match_bands([b.name for b in sensor.bands], own)
        return Choice(sensor, _pick(named, found), offer.alpha)
    if len(offer.spectral) == 1:
        return Choice(Sensor("gray", (Band("gray"),)), (offer.spectral[0],), offer.alpha)
    fitting = ", ".join(sensor.name for sensor in SENSORS.values() if len(sensor.bands) == len(offer.spectral))
    raise BandError(
        f"'{offer.uri}' has {_count(offer)}, {'some' if named else 'all'} without a name: say what they are with "
        f"--sensor NAME{f' (with as many bands: {fitting})' if fitting else ''} or --bands with one name a band"
    )


def _guess(offer: Offer, bands: Sequence[Band]) -> Sensor:
    """A sensor from what the file says: names that no other sensor uses, or names with their wavelengths."""
    names = {band.name.lower() for band in bands}
    if names == {"red", "green", "blue"}:
        return SENSORS["rgb"]
    codes = [_CODE.fullmatch(band.name) or _CODE.fullmatch(band.alias or "") for band in bands]
    if any(code and code[1].upper() == "8A" for code in codes):  # only Sentinel-2 has a band 8A
        return _in_order(offer, SENSORS["sentinel2"], bands)
    known = [sensor for sensor in SENSORS.values() if all(_is_of(band, sensor) for band in bands)]
    if len(known) == 1:
        return _in_order(offer, known[0], bands)
    if all(codes):
        raise BandError(
            f"'{offer.uri}' names its bands {', '.join(band.name for band in bands)}, as several sensors do: "
            f"say which with --sensor ({', '.join(SENSORS)}, or a YAML file)"
        )
    return Sensor("custom", tuple(bands))


def _is_of(band: Band, sensor: Sensor) -> bool:
    """Name and wavelength both say so."""
    try:
        own = sensor.bands[match_bands([band.name], sensor.bands)[0]]
    except BandError:
        return False
    return bool(band.wavelength and own.wavelength and abs(band.wavelength - own.wavelength) <= 5)


def _in_order(offer: Offer, sensor: Sensor, bands: Sequence[Band]) -> Sensor:
    try:
        places = match_bands(bands, sensor.bands)
    except BandError as error:
        raise BandError(
            f"'{offer.uri}' looks like {sensor.name} and names bands that are none of its ({', '.join(sensor.names)}): "
            f"given {', '.join(band.name for band in bands)}; choose with --bands"
        ) from error
    return sensor.select([sensor.names[place] for place in sorted(places)])


def _pick(named: Sequence[tuple[int, Band]], found: Sequence[int]) -> tuple[int, ...]:
    return tuple(named[index][0] for index in found)


def _count(offer: Offer) -> str:
    count = len(offer.spectral)
    return f"{count} band{'s' if count != 1 else ''}{' and alpha' if offer.alpha is not None else ''}"


def _wavelength(dataset: Any, index: int) -> tuple[float | None, float | None]:
    """Centre and width in nm where band metadata give them (GDAL's IMAGERY domain, ENVI, Sentinel-2 SAFE)."""
    imagery = dataset.tags(index, ns="IMAGERY")
    tags = {key.lower(): value for key, value in dataset.tags(index).items()}
    try:
        if "CENTRAL_WAVELENGTH_UM" in imagery:
            width = imagery.get("FWHM_UM")
            return 1000 * float(imagery["CENTRAL_WAVELENGTH_UM"]), 1000 * float(width) if width else None
        if "wavelength" in tags:
            unit = tags.get("wavelength_unit", tags.get("wavelength_units", "nm")).lower()
            factor = 1000.0 if unit.startswith(("um", "micro")) else 1.0
            width = tags.get("bandwidth", tags.get("fwhm"))
            return factor * float(tags["wavelength"]), factor * float(width) if width else None
    except ValueError:
        pass  # not a number: the band keeps its name only
    return None, None
