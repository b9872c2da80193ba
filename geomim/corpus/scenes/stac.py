"""STAC items as scenes: their assets are the bands, wherever these lie."""

from __future__ import annotations

import json
import os
import re
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pystac

from geomim.addresses import full
from geomim.corpus.scenes.clouds import named_kind
from geomim.corpus.scenes.files import open_dataset
from geomim.corpus.scenes.meaning import Scaling, added
from geomim.corpus.scenes.naming import Offer, choose
from geomim.corpus.scenes.raster import open_raster
from geomim.corpus.scenes.scene import Scene, Wanted
from geomim.corpus.scenes.stack import Layer, Mask, open_masks, stack_scene
from geomim.errors import InputError
from geomim.sensors import SENSORS, Band, find_band

_BASELINES = ("s2:processing_baseline", "processing:version", "s2:product_uri", "sentinel:product_id")
_SENTINEL2 = re.compile(r"sentinel-?2|\bS2[A-D]_", re.IGNORECASE)
_TIMEOUT = 30  # seconds
_RASTER = re.compile(r"\.(tiff?|jp2|vrt|png|jpe?g)(\?.*)?$", re.IGNORECASE)
_NO_MEASUREMENTS = {"thumbnail", "overview", "visual", "metadata", "cloud", "cloud-shadow", "snow-ice", "water-mask"}
_PICTURES = {"thumbnail", "preview", "rendered_preview", "overview", "visual", "tci"}


def open_item(uri: str, wanted: Wanted) -> Scene:
    """Open a STAC item: a JSON file here or at an `https://` address, with assets anywhere GDAL can read.

    Raises:
        InputError: It cannot be read, is no item, has no image, or an asset cannot be reached.
        BandError: The bands have no names or other ones.
    """
    content = _json(uri)
    href = uri if "://" in uri else os.path.abspath(uri)
    try:
        item = pystac.Item.from_dict(content, href=href)
    except (pystac.STACError, pystac.STACTypeError, KeyError, TypeError, ValueError, AttributeError) as error:
        kind = content.get("type", "JSON") if isinstance(content, dict) else "JSON"
        raise InputError(f"'{uri}' is a {kind} and no STAC item: give the item of one scene") from error
    layers = _layers(item)
    if not layers:
        raise InputError(f"'{uri}' has no asset with image bands: found {', '.join(item.assets) or 'none'}")
    if scene := _named_by_file(uri, item, layers, wanted):
        return scene
    choice = choose(Offer(uri, tuple(layer.band for layer in layers), True, None), wanted.sensor, wanted.bands)
    chosen = [replace(layers[place], band=band) for place, band in zip(choice.places, choice.sensor.bands, strict=True)]
    return stack_scene(uri, choice.sensor, chosen, wanted, _mask(item), _time(item), _licence(item))


def _json(href: str) -> Any:
    try:
        if href.startswith(("http://", "https://")):
            with urllib.request.urlopen(full(href), timeout=_TIMEOUT) as answer:
                return json.loads(answer.read())
        return json.loads(Path(href).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"'{href}' cannot be read as a STAC item ({' '.join(str(error).split())[:200]})") from error


def _layers(item: Any) -> list[Layer]:
    """Every band of every image asset once; where some assets say what their bands are, only those."""
    layers: dict[str, Layer] = {}
    described: set[str] = set()
    for key, asset in item.assets.items():
        if key.lower() in _PICTURES or _NO_MEASUREMENTS & set(asset.roles or ()) or named_kind(key, whole=True):
            continue
        href = _href(asset)
        if not ("tiff" in (asset.media_type or "") or "jp2" in (asset.media_type or "") or _RASTER.search(href)):
            continue
        told = _told_bands(asset.extra_fields)
        for place, facts in enumerate(told or [{}]):
            band = _band(facts, key if len(told) < 2 else f"{key} {place + 1}", asset.extra_fields)
            if band.name not in layers:
                nodata = _number(facts.get("nodata"))
                layers[band.name] = Layer(band, href, place, _scaling(facts, band, item), nodata, len(told) or 1)
            if band.wavelength or band.alias:
                described.add(band.name)
    return [layer for name, layer in layers.items() if not described or name in described]


def _named_by_file(uri: str, item: Any, layers: Sequence[Layer], wanted: Wanted) -> Scene | None:
    """The only image of an item that tells no bands, where it holds several: the file says what they are."""
    path = layers[0].path
    told = any(_told_bands(asset.extra_fields) for asset in item.assets.values() if _href(asset) == path)
    if len(layers) > 1 or told:
        return None
    with open_dataset(path) as dataset:
        colours = [colour.name for colour in dataset.colorinterp if colour.name != "alpha"]
        if len(colours) < 2 and colours != ["palette"]:
            return None
        scaling = _scaling({"data_type": dataset.dtypes[0]}, Band("B02"), item)
    scene = open_raster(path, wanted, _time(item), scaling)
    masks = open_masks(_mask(item), scene.grid, (scene.height, scene.width)) or scene.masks
    return replace(scene, uri=uri, licence=_licence(item) or scene.licence, masks=masks)


def _told_bands(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What an asset says about its bands, in the words of STAC 1.1 or of the older extensions, as one."""
    if fields.get("bands"):
        return [
            {key.removeprefix("eo:").removeprefix("raster:"): value for key, value in band.items()}
            for band in fields["bands"]
        ]
    older = (fields.get(key) or [] for key in ("raster:bands", "eo:bands"))
    return [numbers | spectral for numbers, spectral in zip_longest(*older, fillvalue={})]


def _band(facts: Mapping[str, Any], key: str, fields: Mapping[str, Any]) -> Band:
    centre, width = facts.get("center_wavelength"), facts.get("full_width_half_max")
    return Band(
        str(facts.get("name") or key),
        None if centre is None else 1000 * float(centre),  # micrometres
        None if width is None else 1000 * float(width),
        facts.get("gsd", fields.get("gsd")),
        facts.get("common_name"),
    )


def _number(told: Any) -> float | None:
    """A number that may be written as `nan` or `inf`, or be null."""
    try:
        return float(told)
    except (TypeError, ValueError):
        return None


def _scaling(facts: Mapping[str, Any], band: Band, item: Any) -> Scaling | None:
    """Scale and offset of a band, or None where they are not told.

    Where the offset is not told of a band of Sentinel-2, its processing baseline does.
    """
    scale, offset = _number(facts.get("scale")), _number(facts.get("offset"))
    told = item.properties
    # This catalogue keeps the agency's offset in the metadata of numbers from which it has been taken off.
    applied = any(told.get(f"{name}:boa_offset_applied") is True for name in ("earthsearch", "sentinel"))
    by = f"{told.get('platform')} {told.get('constellation')} {item.id}"
    whole = str(facts.get("data_type", "uint16")) in ("uint16", "int16")
    if offset is None and whole and _SENTINEL2.search(by) and find_band(band, SENSORS["sentinel2"].bands) is not None:
        texts = [str(told.get(key, "")) for key in _BASELINES]
        more = next((more for text in (*texts, item.id) if (more := added(text)) is not None), None)
        scale, offset = (scale, None) if more is None else (scale or 1e-4, -more * (scale or 1e-4))
    scale, offset = scale or 1.0, 0.0 if applied else offset or 0.0
    return None if (scale, offset) == (1.0, 0.0) else (scale, offset)


def _mask(item: Any) -> Mask | None:
    """The cloud mask: an asset that is one by its key, else one with the role `cloud`."""
    kinds = ((named_kind(key, whole=True), asset) for key, asset in item.assets.items())
    masks = [Mask(_href(asset), kind) for kind, asset in kinds if kind or "cloud" in (asset.roles or ())]
    return min(masks, key=lambda mask: mask.kind is None, default=None)


def _href(asset: Any) -> str:
    return str(asset.get_absolute_href() or asset.href)


def _time(item: Any) -> datetime | None:
    time: datetime | None = item.datetime or item.common_metadata.start_datetime
    if time is None:
        return None
    return (time.astimezone(UTC) if time.tzinfo else time).replace(tzinfo=None, microsecond=0)


def _licence(item: Any) -> str | None:
    """Licence of the item, else of its collection."""
    if licence := item.properties.get("license"):
        return str(licence)
    link = item.get_single_link("collection")
    href = link.get_absolute_href() if link else None
    return _collection_licence(href) if href else None


@lru_cache(maxsize=64)
def _collection_licence(href: str) -> str | None:
    try:
        collection = _json(href)
    except InputError:
        return None  # items are copied without their collections
    licence = collection.get("license") if isinstance(collection, dict) else None
    return str(licence) if licence else None
