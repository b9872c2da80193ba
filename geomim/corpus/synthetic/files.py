"""Files of drawn scenes: GeoTIFF, GeoJSON, GeoPackage, each written aside and renamed."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.warp import transform as warp_points
from shapely import affinity

from geomim.corpus.remote import aside
from geomim.corpus.synthetic.drafts import Box, Draft
from geomim.sensors import Sensor

GSD = 2.5
"""Metres of a pixel: four times as fine as those of Sentinel-2, so that crowns, rows and roofs are to be seen."""
_CRS = CRS.from_epsg(32719)  # Mendoza, below the Andes: snow, dunes, orchards
_COLOURS = {
    "water": (38, 92, 168), "forest": (20, 92, 44), "woodland": (110, 150, 70), "orchard": (170, 90, 160),
    "cropland": (226, 198, 84), "meadow": (160, 215, 110), "settlement": (205, 50, 50), "rock": (130, 125, 125),
    "dunes": (245, 225, 175), "bare soil": (165, 110, 65), "wetland": (70, 165, 165), "snow": (235, 245, 255),
    "unchanged": (225, 225, 225), "construction": (205, 50, 50), "harvest": (226, 198, 84), "flood": (38, 92, 168),
}  # fmt: skip


def transform_of(index: int, size: int) -> Affine:
    """Where a scene lies: side by side, in rows from the middle of the UTM zone to short of its border."""
    step = (size + 64) * GSD
    row, column = divmod(index, max(1, int(250000 // step)))
    return Affine(GSD, 0, 500000 + column * step, 0, -GSD, 6150000 - row * step)


def write_scene(path: Path, pixels: np.ndarray, transform: Affine, sensor: Sensor, month: int) -> None:
    """A raster that names its bands and its day, in a month from January 2024 on."""
    time = f"{2024 + month // 12}-{month % 12 + 1:02d}-15T14:30:00Z"
    with _writing(path, pixels, transform, predictor=2, interleave="band") as raster:
        raster.update_tags(LICENCE="CC0-1.0")
        raster.update_tags(ns="IMAGERY", ACQUISITIONDATETIME=time)
        for place, band in enumerate(sensor.bands, start=1):
            raster.set_band_description(place, band.name)
            raster.update_tags(
                place,
                ns="IMAGERY",
                CENTRAL_WAVELENGTH_UM=f"{(band.wavelength or 0) / 1000:.4f}",
                FWHM_UM=f"{(band.bandwidth or 0) / 1000:.4f}",
            )


def write_classes(path: Path, labels: np.ndarray, transform: Affine, classes: Sequence[str]) -> None:
    """A raster of class numbers with their names and colours."""
    with _writing(path, labels[None], transform) as raster:
        raster.set_band_description(1, "class")
        raster.write_colormap(1, {0: (0, 0, 0, 0)} | {i: _COLOURS[name] for i, name in enumerate(classes) if i})
        raster.colorinterp = [ColorInterp.palette]
        raster.update_tags(CLASSES=json.dumps(classes))


@contextmanager
def _writing(path: Path, pixels: np.ndarray, transform: Affine, **options: Any) -> Iterator[Any]:
    """A GeoTIFF, made in memory: of a disk that is full when a file is closed, GDAL says nothing."""
    count, height, width = pixels.shape
    profile = {"count": count, "height": height, "width": width, "dtype": pixels.dtype.name, "nodata": 0}
    profile |= {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", "zlevel": 1}
    where = {"crs": _CRS, "transform": transform}
    with rasterio.MemoryFile() as memory:
        with memory.open(driver="GTiff", **where, **profile, **options) as raster:
            raster.write(pixels)
            yield raster
        with aside(path) as file:
            file.write(memory.getbuffer())


def features(draft: Draft) -> list[dict[str, Any]]:
    """The boxes of a scene as GeoJSON's features, in longitude and latitude."""
    corners = [(x, y) for _, x1, y1, x2, y2 in draft.boxes for x, y in ((x1, y1), (x1, y2), (x2, y2), (x2, y1))]
    if not corners:
        return []
    points = np.array([draft.transform * corner for corner in corners])
    places = np.stack(warp_points(_CRS, "OGC:CRS84", *points.T), 1).round(7).reshape(-1, 4, 2).tolist()
    return [_feature(draft.path.name, box, ring) for box, ring in zip(draft.boxes, places, strict=True)]


def _feature(source: str, box: Box, ring: list[list[float]]) -> dict[str, Any]:
    kind, x1, y1, x2, y2 = box
    return {
        "type": "Feature",
        "properties": {"source": source, "class": kind, "x1": x1, "y1": y1, "x2": x2, "y2": y2},
        "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]},
    }


def write_boxes(path: Path, found: list[dict[str, Any]]) -> None:
    """A collection of `features`."""
    with aside(path) as file:
        file.write(json.dumps({"type": "FeatureCollection", "name": "boxes", "features": found}, indent=1).encode())


def placed(draft: Draft) -> list[tuple[str, str, Any]]:
    """Class, scene and shape on the ground of what a map shows of a scene."""
    where = (draft.transform.a, 0, 0, draft.transform.e, draft.transform.c, draft.transform.f)
    return [(kind, draft.path.name, affinity.affine_transform(shape, where)) for kind, shape in draft.shapes]


def write_map(path: Path, found: list[tuple[str, str, Any]]) -> None:
    """A GeoPackage of one layer with columns `class` and `source`, of areas and lines."""
    import geopandas
    import pyogrio

    columns = ["class", "source", "geometry"]
    frame = geopandas.GeoDataFrame(found, columns=columns, geometry="geometry", crs=_CRS.to_epsg())
    date = pyogrio.get_gdal_config_option("OGR_CURRENT_DATE")
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": "2024-01-01T00:00:00.000Z"})  # equal bytes on any day
    made = io.BytesIO()
    try:
        pyogrio.write_dataframe(frame, made, layer="map", driver="GPKG", geometry_type="Unknown")
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": date})
    with aside(path) as file:
        file.write(made.getbuffer())
