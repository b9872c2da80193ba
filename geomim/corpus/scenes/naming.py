"""Which bands does a raster hold? Names come from the file or from the user, never from a guess about positions."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from geomim.corpus.scenes.bandfiles import band_of, maker
from geomim.errors import BandError
from geomim.sensors import SENSORS, Band, Sensor, find_band, match_bands

_COLOURS = ("red", "green", "blue", "nir", "rededge", "swir", "pan", "coastal", "yellow")
_COUNT = re.compile(r"(?:(?:band|layer|channel|bnd|ch|c|)[ _-]?0*|b[ _-]?)(0|[1-9]\d*)", re.IGNORECASE)
"""Labels of programs that count bands. `B01` is a code."""
_GUESSED = ("sentinel2", "landsat7", "landsat8", "naip", "rgb")
"""Sensors that a file's names and wavelengths are taken for; others are too like these, or are named by the user."""
_TYPO = 0.75  # likeness of two names from which one is the other misspelt
_IS_CODE = re.compile(r"b\d+a?", re.IGNORECASE)
_CODE = re.compile(r"(?<![a-z0-9])b(?:and)?[ _-]?0*(\d{1,2}a?)(?![a-z0-9])", re.IGNORECASE)


@dataclass(frozen=True)
class Offer:
    """What a raster says about its own bands.

    Attributes:
        uri: The raster, for error sentences.
        bands: One entry a band in file order; None where the file does not name it.
        described: The names are band descriptions or wavelengths, not just the colours of a picture format.
        alpha: Place of the alpha band, 0-based, or None.
        masks: Places of bands that are read only where they are asked for, as cloud codes are.
        usual: What took it, where more than the names of bands tells this.
    """

    uri: str
    bands: tuple[Band | None, ...]
    described: bool
    alpha: int | None
    masks: tuple[int, ...] = ()
    usual: Sensor | None = None

    @property
    def spectral(self) -> list[int]:
        """Places of all bands but alpha, 0-based."""
        return [place for place in range(len(self.bands)) if place != self.alpha]

    @property
    def labels(self) -> list[tuple[int, Band]]:
        """Places and bands of all labels that no other band has, too."""
        times = Counter(band.name for band in self.bands if band)
        return [(place, band) for place, band in enumerate(self.bands) if band and times[band.name] == 1]

    @property
    def counted(self) -> bool:
        """Whether the labels only count the bands (`Band_1`, `Band_2`, ...) and nothing else tells what they are."""
        bands = [self.bands[place] for place in self.spectral if place not in self.masks]
        told = [_COUNT.fullmatch(band.name) if band and not band.wavelength else None for band in bands]
        return [int(count[1]) for count in told if count] in ([*range(len(told))], [*range(1, len(told) + 1)])

    def names(self, sensor: Sensor | None = None) -> list[tuple[int, Band]]:
        """Those of the labels that say what a band is.

        Args:
            sensor: Whose own codes are no mere count, where the file has all its bands in its order.
        """
        if self.counted:
            codes = [band and (band.alias or band.name) for band in self.bands]
            return self.labels if sensor and codes == [*sensor.names] else []
        return self.labels


@dataclass(frozen=True)
class Choice:
    """Which bands of the file to read, and what they are.

    Attributes:
        sensor: Bands in the order read.
        places: 0-based place in the file of each of them.
        alpha: Place of the alpha band, 0-based, or None.
        assumed: Nothing names the bands: they are taken to come in the sensor's order.
    """

    sensor: Sensor
    places: tuple[int, ...]
    alpha: int | None
    assumed: bool = False


def read_offer(uri: str, dataset: Any, masks: tuple[int, ...] = ()) -> Offer:
    """Read the band names of an open rasterio dataset: descriptions, wavelengths, or colour interpretation.

    One band that is not described may be named by its file, as in `scene_B04.tif`.

    Args:
        uri: The raster, for error sentences.
        dataset: Open `rasterio.DatasetReader`.
        masks: 0-based places of bands that hold cloud codes.
    """
    colours = [colour.name for colour in dataset.colorinterp]
    descriptions = [(name or "").strip() for name in dataset.descriptions]
    if len(colours) == 1 and _COUNT.fullmatch(descriptions[0] or "1") and _wavelength(dataset, 1)[0] is None:
        if told := band_of(os.path.basename(uri)):
            return Offer(uri, (_told_by_name(uri, told[1]),), True, None, masks)
    # Programs mark the last of four bands as alpha by habit; a name of its own says that it is none.
    unnamed = [not name or "alpha" in name.lower() for name in descriptions]
    alpha = next((place for place, colour in enumerate(colours) if colour == "alpha" and unnamed[place]), None)
    bands: list[Band | None] = []
    described = False
    for place, (description, colour) in enumerate(zip(descriptions, colours, strict=True)):
        wavelength, bandwidth = _wavelength(dataset, place + 1)
        if place == alpha:
            bands.append(None)
        elif description or wavelength:
            code = _CODE.search(description)
            name = description or f"{wavelength:g} nm"
            bands.append(Band(name, wavelength, bandwidth, alias=f"B{code[1]}" if code else None))
            described = True
        else:
            bands.append(Band(colour) if colour in _COLOURS else None)
    return Offer(uri, tuple(bands), described, alpha, masks)


def _told_by_name(uri: str, name: str) -> Band:
    own = SENSORS["sentinel2"].bands if maker(uri)[1] == "S2" else ()
    place = find_band(name, own)
    code = _CODE.search(name)
    return Band(name, alias=f"B{code[1]}" if code else None) if place is None else own[place]


def choose(offer: Offer, sensor: Sensor | None = None, bands: Sequence[str] | None = None) -> Choice:
    """Decide which bands of a file are read, in which order, and what they are called.

    - `bands` alone or with `sensor`: a choice by name where the file has all the names; else, a name for each band of
      the file in its order, `-` for one to ignore. Labels that only count (`Band_1`, `Band_2`, ...) are names
      where the user writes them, and say nothing of what a band is.
    - `sensor` alone: its bands that the file names, by name, alias or wavelength. Only where the file names nothing and
      has exactly as many bands as the sensor is the flag taken to say that they come in the sensor's order.
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
    chosen = _selected(offer, sensor, kept) if sensor else None
    own = offer.names(sensor) if offer.described else []
    written = _found(offer.labels, [Band(name) for name in kept]) if offer.described else None
    by_name = written or (_found(own, chosen.bands) if chosen else None)
    by_order = _in_file_order(offer, names)
    if by_name and by_order and by_name != by_order and not (written and len(kept) == len(names)):
        listed = ",".join(band.name for place in by_name if (band := offer.bands[place]))
        raise BandError(
            f"'{offer.uri}' names its bands {_listed(offer.labels)}; by name, --bands {','.join(names)} chooses others "
            f"than in file order: choose with --bands {listed}, or give new names in file order, without --sensor"
        )
    if by_name:
        bands = tuple(band for place in by_name if (band := offer.bands[place]))
        guessed = Sensor("custom", bands) if offer.counted and not all(map(_IS_CODE.fullmatch, kept)) else None
        return Choice(chosen or (guessed or _guess(offer, bands)).select(kept), by_name, offer.alpha)
    missing = [band.name for band in (chosen.bands if chosen else map(Band, kept)) if not _found(own, [band])]
    others = {band.name for _, band in own} - set(kept)
    misspelt = [difflib.get_close_matches(name, others, 1, _TYPO) for name in missing]
    if by_order is None or (len(missing) < len(kept) and any(misspelt)):
        has = f"{_count(offer)} ({_listed(own)})" if own else _count(offer)
        asked = f"asks for {', '.join(missing)}: choose among them, or" if own else f"gives {len(names)} names:"
        raise BandError(f"'{offer.uri}' has {has}; --bands {asked} give one name a band in file order, - to ignore")
    alpha = None if offer.alpha in by_order else offer.alpha
    return Choice(chosen or _guess(offer, [Band(name) for name in kept]).select(kept), by_order, alpha)


def _selected(offer: Offer, sensor: Sensor, names: list[str]) -> Sensor:
    try:
        return sensor.select(names)
    except BandError as error:
        raise BandError(
            f"'{offer.uri}': sensor '{sensor.name}' has the bands {', '.join(sensor.names)}; --bands gives "
            f"{', '.join(names)}: give its names, - for a band that is none of its, or leave out --sensor"
        ) from error


def _found(named: Sequence[tuple[int, Band]], wanted: Sequence[Band]) -> tuple[int, ...] | None:
    """Places of wanted bands among named ones; None where one is not there."""
    try:
        return tuple(named[index][0] for index in match_bands(wanted, [band for _, band in named]))
    except BandError:
        return None


def _in_file_order(offer: Offer, names: Sequence[str]) -> tuple[int, ...] | None:
    """Places of the names that are kept, where there is one for each band."""
    for places in (range(len(offer.bands)), offer.spectral):
        if len(names) == len(places):
            return tuple(place for place, name in zip(places, names, strict=True) if name not in ("", "-"))
    return None


def _by_sensor(offer: Offer, sensor: Sensor) -> Choice:
    if named := offer.names(sensor):
        there = [band for band in sensor.bands if find_band(band, [own for _, own in named]) is not None]
        places = _found(named, there) if there else None
        if places and (offer.described or len(there) == len(sensor.bands)):
            return Choice(dataclasses.replace(sensor, bands=tuple(there)), places, offer.alpha)
        raise BandError(
            f"'{offer.uri}' names its bands {_listed(named)}{' and alpha' if offer.alpha is not None else ''}; sensor "
            f"'{sensor.name}' has {', '.join(sensor.names)}: name each in file order with --bands (- ignores one)"
        )
    if offer.alpha is None and len(offer.bands) == len(sensor.bands):
        return Choice(sensor, tuple(range(len(offer.bands))), None, assumed=True)
    raise BandError(
        f"'{offer.uri}' has {_count(offer)} without names{_labelled(offer)}; sensor '{sensor.name}' has "
        f"{len(sensor.bands)} ({', '.join(sensor.names)}): name each in file order with --bands (- ignores one)"
    )


def _by_file(offer: Offer) -> Choice:
    named = [(place, band) for place, band in offer.names() if place not in offer.masks]
    if named and len(named) + len(offer.masks) == len(offer.spectral):
        own = [band for _, band in named]
        sensor = _guess(offer, own)
        found = range(len(own)) if sensor.bands == tuple(own) else match_bands([b.name for b in sensor.bands], own)
        return Choice(sensor, tuple(named[index][0] for index in found), offer.alpha)
    if len(offer.spectral) == 1:
        return Choice(Sensor("gray", (Band("gray"),)), (offer.spectral[0],), offer.alpha)
    fitting = [sensor for sensor in map(SENSORS.__getitem__, _GUESSED) if len(sensor.bands) == len(offer.spectral)]
    orders = "; ".join(f"{sensor.name}: {', '.join(sensor.names)}" for sensor in fitting)
    would = f"; --sensor would assume their order ({orders})" if orders else ""
    would = f"; --sensor would find those that have one ({_listed(named)})" if named else would
    raise BandError(
        f"'{offer.uri}' has {_count(offer)}, {'some' if named else 'all'} without a name{_labelled(offer)}: say what "
        f"they are with --sensor NAME or --bands, a name each in file order (- ignores one){would}; the source card of "
        "a dataset knows its own (as in eurosat@FOLDER)"
    )


def _listed(named: Sequence[tuple[int, Band]]) -> str:
    return ", ".join(band.name for _, band in named)


def _labelled(offer: Offer) -> str:
    return f" ('{offer.bands[0].name}' and so on only count them)" if offer.counted and offer.bands[0] else ""


def _guess(offer: Offer, bands: Sequence[Band]) -> Sensor:
    """A sensor from what the file says: names that no other sensor uses, or names with their wavelengths."""
    if offer.usual:
        return dataclasses.replace(offer.usual, bands=tuple(bands))
    names = {band.name.lower() for band in bands}
    if names == {"red", "green", "blue"}:
        return SENSORS["rgb"]
    codes = [_CODE.fullmatch(band.name) or _CODE.fullmatch(band.alias or "") for band in bands]
    if any(code and code[1].upper() == "8A" for code in codes):  # only Sentinel-2 has a band 8A
        return _in_order(offer, SENSORS["sentinel2"], bands)
    known = [sensor for sensor in map(SENSORS.__getitem__, _GUESSED) if all(_is_of(band, sensor) for band in bands)]
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
    place = find_band(band.name, sensor.bands)
    own = None if place is None else sensor.bands[place].wavelength
    return bool(band.wavelength and own and abs(band.wavelength - own) <= 5)


def _in_order(offer: Offer, sensor: Sensor, bands: Sequence[Band]) -> Sensor:
    try:
        places = match_bands(bands, sensor.bands)
    except BandError as error:
        raise BandError(
            f"'{offer.uri}' looks like {sensor.name} and names bands that are none of its ({', '.join(sensor.names)}): "
            f"given {', '.join(band.name for band in bands)}; choose with --bands"
        ) from error
    return sensor.select([sensor.names[place] for place in sorted(places)])


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
