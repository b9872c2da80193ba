"""Products as agencies publish them, a file a band: Sentinel-2 SAFE folders and Landsat Collection folders."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import PurePosixPath
from xml.etree import ElementTree

from geomim.corpus.scenes.archives import Folder, is_folder, open_folder
from geomim.corpus.scenes.finding import LANDSAT, landsat_products
from geomim.corpus.scenes.meaning import added
from geomim.corpus.scenes.metadata import acquisition_time
from geomim.corpus.scenes.scene import Scene, Wanted
from geomim.corpus.scenes.stack import Layer, Mask, stack_scene
from geomim.errors import BandError, InputError
from geomim.sensors import SENSORS, Band, Sensor, match_bands

COPERNICUS = "Copernicus Sentinel data, free and open (Legal Notice on the use of Copernicus Sentinel Data)"
USGS = "public domain (USGS)"

_BAND = re.compile(r"(?:^|.*/)IMG_DATA/(?:R\d0m/)?[^/]*_(B\d[0-9A])(?:_(10|20|60)m)?\.(?:jp2|tiff?)$", re.IGNORECASE)
_GRANULE = re.compile(r"^GRANULE/([^/]+)/", re.IGNORECASE)
_MSI_METADATA = re.compile(r"(?:MTD_MSIL\w\w|S2\w_\w+_MTD_SAFL\w\w_.*)\.xml$")
_OFFSETS = ("BOA_ADD_OFFSET", "RADIO_ADD_OFFSET")
_QUANTITIES = ("BOA_QUANTIFICATION_VALUE", "QUANTIFICATION_VALUE")
_FILL = 0.0  # both agencies write it in each band where nothing was measured
_TIMES = ("PRODUCT_START_TIME", "DATATAKE_SENSING_START")

# Thematic Mapper band limits (USGS Landsat 4-7 handbooks); Landsat 4 and 5 carry the same instrument.
_TM = (
    Band("B1", 485, 70, 30, "blue"),
    Band("B2", 560, 80, 30, "green"),
    Band("B3", 660, 60, 30, "red"),
    Band("B4", 830, 140, 30, "nir"),
    Band("B5", 1650, 200, 30, "swir1"),
    Band("B7", 2220, 280, 30, "swir2"),
)
_LANDSAT_SENSORS = {
    "04": Sensor("landsat4", _TM),
    "05": Sensor("landsat5", _TM),
    "07": SENSORS["landsat7"],
    "08": SENSORS["landsat8"],
    "09": dataclasses.replace(SENSORS["landsat8"], name="landsat9"),
}
_FURTHER = {  # bands that are read where --bands names them
    "landsat7": (Band("B8", 710, 380, 15, "pan"),),
    "landsat8": (Band("B8", 590, 180, 15, "pan"), Band("B9", 1373.5, 20, 30, "cirrus")),
}
_FURTHER["landsat9"] = _FURTHER["landsat8"]


def open_product(uri: str, wanted: Wanted) -> Scene | None:
    """Open a folder of bands as one scene; None where it is no product.

    A product says itself what its numbers mean, and that replaces the scale and offset of a sensor that is given.

    Raises:
        InputError: It is a product without bands, or of several granules or scenes.
        BandError: A band is not in it.
    """
    folder, _, product = uri.rstrip("/").rpartition("/")
    if is_folder(uri):
        listing, named = open_folder(uri), None
    elif landsat_products([f"{product}_B1.TIF", f"{product}_B2.TIF"]) and is_folder(folder):
        listing, named = open_folder(folder), product
    else:
        return None
    if named is None and any(_BAND.match(name) for name in listing.names):
        return _sentinel2(uri, listing, wanted)
    products = landsat_products(listing.names)
    if named is not None or products:
        return _landsat(uri, listing, named or _only(uri, products), wanted)
    if uri.lower().endswith(".safe"):
        raise InputError(f"'{uri}' holds no band of Sentinel-2 (GRANULE/.../IMG_DATA/..._B02.jp2)")
    return None


def _only(uri: str, products: Sequence[str]) -> str:
    if len(products) > 1:
        raise InputError(
            f"'{uri}' holds {len(products)} Landsat scenes: give one of them, such as '{uri}/{products[0]}'"
        )
    return products[0]


def _sentinel2(uri: str, folder: Folder, wanted: Wanted) -> Scene:
    granules = sorted({match[1] for name in folder.names if (match := _GRANULE.match(name))})
    if len(granules) > 1:
        raise InputError(f"'{uri}' holds {len(granules)} granules, which is no one scene: give a folder to each")
    files: dict[str, dict[int, str]] = {}  # of each band by metres of a pixel
    own = {band.name: band for band in SENSORS["sentinel2"].bands}
    for name in folder.names:
        if match := _BAND.match(name):
            code = match[1].upper()
            files.setdefault(code, {})[int(match[2] or own[code].gsd or 0)] = folder.path(name)
    told = " ".join((PurePosixPath(uri).name, *granules, *(name for name in folder.names if "/" not in name)))
    level2 = "L2A" in told or ("L1C" not in told and "B10" not in files)
    there = [band for band in SENSORS["sentinel2"].bands if band.name in files]
    usual = dataclasses.replace(
        SENSORS["sentinel2"], name="sentinel2_l2a" if level2 else "sentinel2", bands=tuple(there)
    )
    chosen, codes = _choose(uri, usual, there, wanted)
    facts = _sentinel2_facts(uri, folder)
    layers = [
        Layer(
            band,
            _nearest(files[code], wanted.resolution),
            scale=1 / facts.quantity,
            offset=facts.offsets.get(code, 0.0) / facts.quantity,
            nodata=_FILL,
        )
        for band, code in zip(chosen.bands, codes, strict=True)
    ]
    time = facts.time or acquisition_time(uri, {})
    mask = _sentinel2_mask(folder)
    return stack_scene(uri, chosen, layers, wanted, mask, time, COPERNICUS)


def _nearest(files: dict[int, str], resolution: float | None) -> str:
    """The file that has the resolution asked for, else the finest."""
    return files[int(resolution) if resolution in files else min(files)]


def _choose(uri: str, usual: Sensor, there: Sequence[Band], wanted: Wanted) -> tuple[Sensor, list[str]]:
    """The sensor of the bands asked for, and the name of each in the product."""
    names = [name.strip() for name in wanted.bands or () if name.strip() not in ("", "-")]
    sensor = wanted.sensor or (dataclasses.replace(usual, bands=tuple(there)) if names else usual)
    try:
        sensor = dataclasses.replace(sensor.select(names) if names else sensor, nodata=_FILL)
        return sensor, [there[place].name for place in match_bands(sensor.bands, there)]
    except BandError as error:
        given = ", ".join(band.name for band in there)
        raise BandError(
            f"'{uri}' has the bands {given}; asked for are {', '.join(names or sensor.names)}: choose among them with "
            "--bands"
        ) from error


@dataclasses.dataclass(frozen=True)
class _Facts:
    """What the metadata of a Sentinel-2 product say: reflectance is (number + offset of the band) / quantity."""

    quantity: float
    offsets: dict[str, float]
    time: datetime | None


def _sentinel2_facts(uri: str, folder: Folder) -> _Facts:
    codes = SENSORS["sentinel2"].names  # band_id counts them
    name = next((name for name in folder.names if _MSI_METADATA.match(name)), None)
    if name is None:  # the name tells the processing baseline, from 04.00 on with an offset
        return _Facts(10000.0, dict.fromkeys(codes, float(-(added(PurePosixPath(uri).name) or 0))), None)
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
    times = {"ACQUISITIONDATETIME": next((texts[tag] for tag in _TIMES if tag in texts), "")}
    return _Facts(quantity, offsets, acquisition_time("", times))


def _sentinel2_mask(folder: Folder) -> Mask | None:
    """The scene classification, finest first; else the cloud bands of level 1."""
    classes = sorted(name for name in folder.names if re.search(r"_SCL(_\d0m)?\.(jp2|tiff?)$", name, re.IGNORECASE))
    if classes:
        return Mask(folder.path(classes[0]), "scl")
    clouds = [name for name in folder.names if re.search(r"MSK_CLASSI_B00\.(jp2|tiff?)$", name, re.IGNORECASE)]
    return Mask(folder.path(clouds[0]), "msk_classi", (0, 1)) if clouds else None


def _landsat(uri: str, folder: Folder, product: str, wanted: Wanted) -> Scene:
    number, level = product[2:4], product[5:7].upper()
    usual = _LANDSAT_SENSORS.get(number)
    if usual is None:
        raise InputError(f"'{uri}' is of Landsat {number.lstrip('0')}; known are 4, 5, 7, 8 and 9")
    files: dict[str, str] = {}
    for name in folder.names:
        match = LANDSAT.match(name)
        if match and match[1] == product:
            files[match[2].upper().removeprefix("SR_")] = folder.path(name)
    there = [band for band in (*usual.bands, *_FURTHER.get(usual.name, ())) if band.name in files]
    if not there:
        raise InputError(f"'{uri}' holds no reflective band: found {', '.join(files) or 'nothing'}")
    facts = _landsat_facts(folder, product)
    usual = dataclasses.replace(usual, bands=tuple(band for band in usual.bands if band.name in files))
    chosen, codes = _choose(uri, usual, there, wanted)
    scaling = _landsat_scaling(facts, level, codes)
    chosen = dataclasses.replace(chosen, unit="reflectance" if scaling else "digital number")
    scale, offset = scaling or (1.0, 0.0)
    layers = [
        Layer(band, files[code], scale=scale, offset=offset, nodata=_FILL)
        for band, code in zip(chosen.bands, codes, strict=True)
    ]
    quality = next((name for name in folder.names if name.upper().startswith(f"{product}_QA_PIXEL.TIF".upper())), None)
    day, hour = facts.get("DATE_ACQUIRED", ""), facts.get("SCENE_CENTER_TIME", "")[:8]
    time = acquisition_time("", {"ACQUISITIONDATETIME": f"{day}T{hour}"}) or acquisition_time(product[17:25], {})
    mask = Mask(folder.path(quality), "qa_pixel") if quality else None
    return stack_scene(uri, chosen, layers, wanted, mask, time, USGS)


def _landsat_scaling(facts: dict[str, str], level: str, codes: Sequence[str]) -> tuple[float, float] | None:
    """Scale and offset to reflectance, or None: bands of level 1 that differ stay digital numbers.

    Level 1 is not corrected for the height of the sun, which differs from scene to scene.
    """
    stated = set()
    for code in codes:
        number = code.removeprefix("B")
        scale, offset = (facts.get(f"REFLECTANCE_{what}_BAND_{number}") for what in ("MULT", "ADD"))
        if scale and offset:
            stated.add((float(scale), float(offset)))
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
