"""A file a band: Sentinel-2 and Landsat as agencies publish them, and any files whose names differ by a band."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import PurePosixPath
from xml.etree import ElementTree

from geomim.corpus.scenes.archives import Folder, is_folder, open_folder
from geomim.corpus.scenes.bandfiles import MSI_METADATA, group_of, maker
from geomim.corpus.scenes.clouds import named_kind
from geomim.corpus.scenes.files import open_dataset
from geomim.corpus.scenes.meaning import added
from geomim.corpus.scenes.metadata import acquisition_time, date_in
from geomim.corpus.scenes.naming import Offer, choose
from geomim.corpus.scenes.scene import Scene, Wanted
from geomim.corpus.scenes.stack import Layer, Mask, stack_scene
from geomim.errors import InputError
from geomim.sensors import SENSORS, Band, Sensor, find_band

COPERNICUS = "Copernicus Sentinel data, free and open (Legal Notice on the use of Copernicus Sentinel Data)"
USGS = "public domain (USGS)"

_BAND = re.compile(r"(?:^|.*/)IMG_DATA/(?:R\d0m/)?[^/]*_(B\d[0-9A])(?:_(10|20|60)m)?\.(?:jp2|tiff?)$", re.IGNORECASE)
_GRANULE = re.compile(r"^GRANULE/([^/]+)/", re.IGNORECASE)
_OFFSETS = ("BOA_ADD_OFFSET", "RADIO_ADD_OFFSET")
_QUANTITIES = ("BOA_QUANTIFICATION_VALUE", "QUANTIFICATION_VALUE")
_FILL = 0.0  # both agencies write it in each band where nothing was measured
_TIMES = ("PRODUCT_START_TIME", "DATATAKE_SENSING_START")

_MADE_BY = {  # as `maker` tells it
    "4": replace(SENSORS["landsat5"], name="landsat4"),
    "5": SENSORS["landsat5"],
    "7": SENSORS["landsat7"],
    "8": SENSORS["landsat8"],
    "9": SENSORS["landsat9"],
    "S2": SENSORS["sentinel2"],
    "S30": SENSORS["hls_s30"],
    "L30": SENSORS["hls_l30"],
}
_FURTHER = {  # bands that are read where --bands names them
    "landsat7": (Band("B8", 710, 380, 15, "pan"),),
    "landsat8": (Band("B8", 590, 180, 15, "pan"), Band("B9", 1373.5, 20, 30, "cirrus")),
}
_FURTHER["landsat9"] = _FURTHER["landsat8"]
_ALSO = {"nir08": "nir_narrow", "nir09": "water_vapour", "swir16": "swir1", "swir22": "swir2"}  # Sentinel-2 on AWS

_Meaning = tuple[float, dict[str, float]]  # quantity and the offset of each band
Files = dict[int, str]
"""Files of one band by metres of a pixel, 0 where their names tell none."""


def open_product(uri: str, wanted: Wanted) -> Scene | None:
    """Open many files as one scene; None where it is none.

    A product says itself what its numbers mean, and that replaces the scale and offset of a sensor that is given.

    Raises:
        InputError: It is a product without bands, or of several granules or scenes.
        BandError: A band is not in it.
    """
    if found := group_of(uri):
        root, group = found
        folder = Folder(root, tuple(sorted(group.files + group.beside)))
        name, kind = maker(f"{uri}/{group.key}")
        files = {band: _by_metres(uri, folder, band, named) for band, named in group.bands.items()}
        return (_landsat if kind.isdigit() else _loose)(uri, folder, files, (name, kind), wanted)
    if not is_folder(uri):
        return None
    folder = open_folder(uri)
    if any(_BAND.match(name) for name in folder.names):
        return _sentinel2(uri, folder, wanted)
    if uri.lower().endswith(".safe"):
        raise InputError(f"'{uri}' holds no band of Sentinel-2 (GRANULE/.../IMG_DATA/..._B02.jp2)")
    return None


def _by_metres(uri: str, folder: Folder, band: str, named: Sequence[tuple[int, str]]) -> Files:
    found = {metres: folder.path(name) for metres, name in named}
    if len(found) < len(named):
        twice = "', '".join(name for _, name in named)
        raise InputError(f"'{uri}' holds {band} twice ('{twice}'): keep one file of a band, move the others away")
    return found


def _loose(uri: str, folder: Folder, files: dict[str, Files], made: tuple[str, str], wanted: Wanted) -> Scene:
    """Bands that the names of their files tell, and perhaps what took them."""
    name, kind = made
    if not kind and any(map(MSI_METADATA.match, folder.names)) and set(files) <= set(SENSORS["sentinel2"].names):
        kind = "S2"
    usual = _MADE_BY.get(kind)
    if usual and kind == "S2" and ("L2A" in name or any(0 not in found for found in files.values())):
        usual = replace(usual, name="sentinel2_l2a")  # of level 1 no name tells metres
    told = [(_meant(usual, band), found) for band, found in files.items()]
    sensor, codes, layers = _choose(uri, usual, told, wanted)
    time = acquisition_time(uri, {}) or acquisition_time(folder.root, {}) or acquisition_time(name, {})
    if kind == "S2":
        meaning, time = _loose_facts(name, folder, time)
        with open_dataset(layers[0].path) as first:
            whole = "int" in first.dtypes[0]  # as the agency writes them
        layers = _scaled(layers, codes, meaning) if meaning and whole else layers
    return stack_scene(uri, sensor, layers, wanted, _mask(folder), time, COPERNICUS if kind == "S2" else None)


def _loose_facts(name: str, folder: Folder, time: datetime | None) -> tuple[_Meaning | None, datetime | None]:
    """What metadata beside bands of Sentinel-2 say, where they are of that day, else their name; and their time."""
    if any(map(MSI_METADATA.match, folder.names)):
        meaning, taken = _sentinel2_facts(name, folder)
        if taken is None or time is None or taken.date() == time.date():
            return meaning, time or taken
    return (_sentinel2_facts(name, Folder(folder.root, ()))[0] if re.search(r"_N\d{4}_", name) else None), time


def _meant(sensor: Sensor | None, name: str) -> Band:
    """The band of a sensor that the name of a file means, else one of that name alone."""
    code = name.removeprefix("SR_")
    place = find_band(_ALSO.get(code, code), sensor.bands) if sensor else None
    return sensor.bands[place] if sensor and place is not None else Band(name, alias=code if code != name else None)


def _choose(
    uri: str, usual: Sensor | None, found: Sequence[tuple[Band, Files]], wanted: Wanted
) -> tuple[Sensor, list[str], list[Layer]]:
    """The sensor of the bands asked for, their names in the product, and their files.

    Bands that a usual sensor lacks are read only where they are asked for; of the files of a band, the one that has the
    resolution asked for, else the finest.
    """
    told = tuple(band for band, _ in found)
    further = tuple(place for place, band in enumerate(told) if usual and band not in usual.bands)
    choice = choose(Offer(uri, told, True, None, further, usual), wanted.sensor, wanted.bands)
    files = [found[place][1] for place in choice.places]
    paths = [one[int(wanted.resolution) if wanted.resolution in one else min(one)] for one in files]
    layers = [Layer(band, path) for band, path in zip(choice.sensor.bands, paths, strict=True)]
    return choice.sensor, [told[place].name for place in choice.places], layers


def _mask(folder: Folder) -> Mask | None:
    """The first of the files that is a cloud mask by its name, the finest scene classification before others."""
    kinds = [(kind != "scl", name, kind) for name in folder.names if (kind := named_kind(PurePosixPath(name).stem))]
    _, name, kind = min(kinds, default=(False, "", ""))
    return Mask(folder.path(name), kind, (0, 1) if kind == "msk_classi" else (0,)) if name else None


def _sentinel2(uri: str, folder: Folder, wanted: Wanted) -> Scene:
    granules = sorted({match[1] for name in folder.names if (match := _GRANULE.match(name))})
    if len(granules) > 1:
        one = f"{uri.rstrip('/')}/GRANULE/{granules[0]}"
        raise InputError(f"'{uri}' holds {len(granules)} granules, a scene each: give them, such as '{one}'")
    files: dict[str, Files] = {}
    own = {band.name: band for band in SENSORS["sentinel2"].bands}
    for name in folder.names:
        if match := _BAND.match(name):
            code = match[1].upper()
            files.setdefault(code, {})[int(match[2] or own[code].gsd or 0)] = folder.path(name)
    told = " ".join((PurePosixPath(uri).name, *granules, *(name for name in folder.names if "/" not in name)))
    level2 = "L2A" in told or ("L1C" not in told and "B10" not in files)
    usual = replace(SENSORS["sentinel2"], name="sentinel2_l2a" if level2 else "sentinel2")
    there = [(band, files[name]) for name, band in own.items() if name in files]
    chosen, codes, layers = _choose(uri, usual, there, wanted)
    above, granule, _ = uri.rstrip("/").rpartition("/GRANULE/")
    meaning, time = _sentinel2_facts(above, open_folder(above)) if granule else _sentinel2_facts(uri, folder)
    layers, chosen = _scaled(layers, codes, meaning), replace(chosen, nodata=_FILL)
    return stack_scene(uri, chosen, layers, wanted, _mask(folder), time or acquisition_time(uri, {}), COPERNICUS)


def _scaled(layers: Sequence[Layer], codes: Sequence[str], meaning: _Meaning) -> list[Layer]:
    """Bands of Sentinel-2 whose reflectance is (number + offset of the band) / quantity."""
    quantity, offsets = meaning
    scaling = [(1 / quantity, offsets.get(code, 0.0) / quantity) for code in codes]
    return [replace(layer, scaling=one, nodata=_FILL) for layer, one in zip(layers, scaling, strict=True)]


def _sentinel2_facts(uri: str, folder: Folder) -> tuple[_Meaning, datetime | None]:
    """What the metadata of a product say, or its name; and its time."""
    codes = SENSORS["sentinel2"].names  # band_id counts them
    name = next((name for name in folder.names if MSI_METADATA.match(name)), None)
    if name is None:  # the name tells the processing baseline, from 04.00 on with an offset
        return (10000.0, dict.fromkeys(codes, float(-(added(PurePosixPath(uri).name) or 0)))), None
    texts: dict[str, str] = {}
    offsets: dict[str, float] = {}
    try:
        for element in ElementTree.fromstring(folder.text(name)).iter():
            tag = element.tag.rpartition("}")[2]
            if tag in _OFFSETS and element.text:
                offsets[codes[int(element.get("band_id", 0))]] = float(element.text)
            elif element.text and element.text.strip():
                texts.setdefault(tag, element.text.strip())
        quantity = next((float(texts[tag]) for tag in _QUANTITIES if tag in texts), 10000.0)
    except (ElementTree.ParseError, ValueError, IndexError) as error:
        raise InputError(f"'{folder.path(name)}' is no metadata of Sentinel-2 ({error}): fetch it again") from error
    return (quantity, offsets), date_in(next((texts[tag] for tag in _TIMES if tag in texts), ""))


def _landsat(uri: str, folder: Folder, files: dict[str, Files], made: tuple[str, str], wanted: Wanted) -> Scene:
    product, number = made
    usual = _MADE_BY.get(number)
    if usual is None:
        raise InputError(f"'{uri}' is of Landsat {number}; known are 4, 5, 7, 8 and 9")
    possible = replace(usual, bands=(*usual.bands, *_FURTHER.get(usual.name, ())))
    found = {band: files[name] for name in files if (band := _meant(possible, name)) in possible.bands}
    if not found:
        raise InputError(f"'{uri}' holds no reflective band: found {', '.join(files)}")
    facts = _landsat_facts(folder, product)
    chosen, codes, layers = _choose(uri, usual, [*found.items()], wanted)
    older = any("sr_band" in name.lower() for name in folder.names)  # made of Collection 1
    level = "L2" if "_L2" in product.upper() or any(name.startswith("SR_") for name in files) else "L1"
    scaling = (1e-4, 0.0) if older else _landsat_scaling(facts, level, codes)
    nodata = -9999.0 if older else _FILL
    chosen = replace(chosen, unit="reflectance" if scaling else "digital number", nodata=nodata)
    layers = [replace(layer, scaling=scaling or (1.0, 0.0), nodata=nodata) for layer in layers]
    day, hour = facts.get("DATE_ACQUIRED", ""), facts.get("SCENE_CENTER_TIME", "")[:8]
    time = date_in(f"{day}T{hour}") or acquisition_time(product, {})
    return stack_scene(uri, chosen, layers, wanted, _mask(folder), time, USGS)


def _landsat_scaling(facts: dict[str, str], level: str, codes: Sequence[str]) -> tuple[float, float] | None:
    """Scale and offset to reflectance, or None: bands of level 1 that differ stay digital numbers.

    Level 1 is not corrected for the height of the sun, which differs from scene to scene.
    """
    numbers = [code.removeprefix("B") for code in codes]
    pairs = [[facts.get(f"REFLECTANCE_{what}_BAND_{number}") for what in ("MULT", "ADD")] for number in numbers]
    stated = {(float(scale), float(offset)) for scale, offset in pairs if scale and offset}
    if len(stated) == 1:
        return stated.pop()
    return (2.75e-5, -0.2) if level == "L2" and not stated else None


def _landsat_facts(folder: Folder, product: str) -> dict[str, str]:
    """Keys and values of the metadata file, of the product's own level where both are told."""
    other = "LEVEL1" if product[5:7].upper() == "L2" else "LEVEL2"
    names = {name.upper(): name for name in folder.names}
    if name := names.get(f"{product}_MTL.JSON".upper()):
        try:
            (groups,) = json.loads(folder.text(name)).values()
            pairs = [(group, key, value) for group, values in groups.items() for key, value in values.items()]
        except (ValueError, AttributeError) as error:
            raise InputError(f"'{folder.path(name)}' is no Landsat metadata ({error}): fetch it again") from error
    elif name := names.get(f"{product}_MTL.TXT".upper()):
        pairs, group = [], ""
        for key, value in re.findall(r'^\s*(\w+) = "?(.*?)"?\s*$', folder.text(name), re.MULTILINE):
            if key == "GROUP":
                group = value
            else:
                pairs.append((group, key, value))
    else:
        return {}
    return {key: str(value) for group, key, value in pairs if not group.startswith(other)}
