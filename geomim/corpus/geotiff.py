"""Tiles leave as GeoTIFFs for a GIS: `to_geotiff`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import rasterio
import xxhash
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioIOError

from geomim.corpus.assemble import ARRAYS, working
from geomim.corpus.duplicates.fingerprint import content_hash
from geomim.corpus.pipeline.rules import matching
from geomim.corpus.remote import aside
from geomim.corpus.store import IGNORE, Corpus
from geomim.errors import InputError
from geomim.sensors import Sensor

_FILES = 256  # a task


def to_geotiff(corpus: str, out: str, where: str | None = None, kept_only: bool = True) -> Path:
    """Write each tile as a GeoTIFF that opens in QGIS: placed, its bands named, its rights in its tags.

    Pixels that are no measurements are masked. Labels come as `<id>_labels.tif`. Files that are there are not written
    again, and must be of the same tiles, with the labels, splits and rights that these have now.

    Args:
        corpus: Folder or address of the corpus.
        out: Folder of the files.
        where: SQL condition on the catalogue's columns, such as "label = 'forest'".
        kept_only: Leave out the tiles that training does not read.

    Returns:
        The folder.

    Raises:
        CorpusError: It is no corpus.
        InputError: The condition is wrong, no tile meets it, or `out` holds a file of that name that is of another tile
            or says something else of it.
    """
    opened, folder = Corpus.open(corpus), Path(out)
    tiles = opened.table(where=pc.field("kept") if kept_only else None)
    if where is not None:
        tiles = tiles.filter(pa.array(matching(tiles, where)))
    if not len(tiles):
        raise InputError(f"no tile of '{corpus}' meets '{where or 'kept'}'")
    folder.mkdir(parents=True, exist_ok=True)
    ids = tiles["id"].to_numpy()
    groups = [ids[start : start + _FILES] for start in range(0, len(ids), _FILES)]
    with working() as workers:
        calls = [(str(opened.path), folder, group) for group in groups]
        workers.run("writing GeoTIFFs", write_geotiffs, calls, inline=len(calls) < 4)
    return folder


def write_geotiffs(corpus: str, folder: Path, ids: np.ndarray) -> None:
    """Write some tiles as GeoTIFFs; a task."""
    opened = Corpus.open(corpus)
    near = (pc.field("id") >= int(ids.min())) & (pc.field("id") <= int(ids.max()))
    rows = opened.table(where=near)
    for row in rows.filter(pc.is_in(rows["id"], pa.array(ids))).to_pylist():
        arrays = {name: opened.array(name, row["size"]) for name in ARRAYS}
        tile = {name: None if array is None else array.read([row["slot"]])[0] for name, array in arrays.items()}
        image, valid, mask = tile["image"], tile["valid"], tile["mask"]
        assert image is not None
        _write(folder / f"{row['id']:09d}.tif", image, valid, row, opened.sensor)
        labels = folder / f"{row['id']:09d}_labels.tif"
        if mask is not None and (mask != IGNORE).any():
            _write(labels, mask[None], None, row, None, opened.classes)
        elif labels.exists():
            raise InputError(f"'{labels}' is there, and tile {row['id']} has no labels; {_ELSE}")


def _write(
    file: Path,
    pixels: np.ndarray,
    valid: np.ndarray | None,
    row: dict[str, Any],
    sensor: Sensor | None,
    classes: Sequence[str] = (),
) -> None:
    """Write `(C, H, W)` as a GeoTIFF, unless it is there; all is valid where `valid` is None, labels have no sensor."""
    tags = _tags(row) | ({"CLASSES": json.dumps(classes)} if classes else {})
    beside = [tags, row["transform"], row["epsg"], row["crs_wkt"], sensor.names if sensor else None]
    beside += [content_hash(pixels if sensor is None else np.ones(pixels.shape[1:], bool) if valid is None else valid)]
    tags[_ALL] = xxhash.xxh3_128_hexdigest(json.dumps(beside).encode())
    if file.exists():
        return _check_same(file, row, tags)
    count, height, width = pixels.shape
    # A label of 255 is none; measurements may have any number, so that theirs is a mask.
    placed = {"crs": _crs(row), "transform": rasterio.Affine(*row["transform"]) if row["transform"] else None}
    profile = {"count": count, "height": height, "width": width, "dtype": pixels.dtype.name} | placed
    profile |= {"tiled": True, "blockxsize": _block(width), "blockysize": _block(height), "compress": "deflate"}
    profile |= {"predictor": 3 if pixels.dtype.kind == "f" else 2, "nodata": None if sensor else IGNORE}
    colours = _colours(sensor)
    if ColorInterp.red not in colours:  # GDAL would take the first three bands for colours, and the fourth for alpha
        colours, profile["photometric"] = [ColorInterp.gray] + [ColorInterp.undefined] * (count - 1), "MINISBLACK"
    with rasterio.MemoryFile() as memory:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), memory.open(driver="GTiff", **profile) as raster:
            raster.write(pixels)
            if valid is not None and not valid.all():
                raster.write_mask(valid)
            raster.descriptions = sensor.names if sensor else ["label"]
            raster.colorinterp = colours
            raster.update_tags(**tags)
            for place, band in enumerate(sensor.bands if sensor else (), start=1):
                if band.wavelength:  # by which any reader knows the band, whatever else has its name
                    told = {"CENTRAL_WAVELENGTH_UM": band.wavelength, "FWHM_UM": band.bandwidth}
                    told = {name: f"{value / 1000:g}" for name, value in told.items() if value}
                    raster.update_tags(place, ns="IMAGERY", **told)
        with aside(file) as out:
            out.write(memory.read())


_ELSE = "give another --out, or remove it"


def _check_same(file: Path, row: dict[str, Any], tags: dict[str, str]) -> None:
    """Refuse to take a file of another corpus, or of this one before it was changed, for the one that was asked for."""
    try:
        with rasterio.open(file) as raster:
            found = raster.tags()
    except RasterioIOError:
        found = {}
    if found.get("XXH3") != row["xxh3"]:
        raise InputError(
            f"'{file}' is there and is another tile than {row['id']} of '{row['source']}': it is of another corpus or "
            f"damaged; {_ELSE}"
        )
    if found.get(_ALL) != tags[_ALL]:
        names = [name for name in _TAGS if found.get(name) != tags.get(name)]
        said = [f"{name} {found.get(name)}, now {tags.get(name)}" for name in names]
        raise InputError(
            f"'{file}' is there and has something else of tile {row['id']} "
            f"({'; '.join(said) or 'place, bands, valid pixels or labels'}): it is of another corpus, or this one was "
            f"changed since; {_ELSE}"
        )


def _colours(sensor: Sensor | None) -> list[ColorInterp]:
    shown = {"red", "green", "blue"}
    names = [shown & {band.name.lower(), (band.alias or "").lower()} for band in sensor.bands] if sensor else []
    return [ColorInterp[next(iter(name), "undefined")] for name in names]


def _crs(row: dict[str, Any]) -> Any:
    if row["epsg"] is not None:
        return CRS.from_epsg(row["epsg"])
    return CRS.from_wkt(row["crs_wkt"]) if row["crs_wkt"] else None


def _block(length: int) -> int:
    """Edge of a block: TIFF wants multiples of 16."""
    return min(512, -(-length // 16) * 16)


_SAID = ("source", "row", "col", "split", "label", "licence", "attribution", "dataset", "sensor", "xxh3")
_TAGS = (*map(str.upper, _SAID), "TIFFTAG_DATETIME", "CLASSES")
_ALL = "XXH3_TOLD"  # hash of these tags, of place, bands, and valid pixels or labels


def _tags(row: dict[str, Any]) -> dict[str, str]:
    said = {name.upper(): str(row[name]).strip() for name in _SAID if row[name] is not None}
    tags = {name: value for name, value in said.items() if value}
    if row["time"] is not None:
        tags["TIFFTAG_DATETIME"] = row["time"].strftime("%Y:%m:%d %H:%M:%S")
    if row["attribution"] or row["licence"]:
        tags["TIFFTAG_COPYRIGHT"] = ", ".join(filter(None, (row["attribution"], row["licence"])))
    return tags
