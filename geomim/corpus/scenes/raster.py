"""Open a GeoTIFF, COG, VRT, JPEG 2000, PNG or JPEG as a `Scene`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import MaskFlags

from geomim.corpus.scenes.files import open_dataset
from geomim.corpus.scenes.footprints import Placement, affine, ground_sample_distance
from geomim.corpus.scenes.gcps import by_control_points
from geomim.corpus.scenes.metadata import acquisition_time, licence
from geomim.corpus.scenes.naming import Choice, Offer, choose, read_offer
from geomim.corpus.scenes.readers import MeantReader, PaletteReader, RasterReader
from geomim.corpus.scenes.scene import Reader, Scene
from geomim.corpus.scenes.validity import storable
from geomim.errors import InputError
from geomim.sensors import Band, Sensor


def open_raster(uri: str, sensor: Sensor | None = None, bands: Sequence[str] | None = None) -> Scene:
    """Open one raster file; see `open_scene`."""
    dataset = open_dataset(uri)
    try:
        return _describe(uri, dataset, sensor, bands)
    except BaseException:
        dataset.close()
        raise


def _describe(uri: str, dataset: Any, sensor: Sensor | None, bands: Sequence[str] | None) -> Scene:
    _check_pixels(uri, dataset)
    contents = _palette(uri, dataset, sensor, bands) or _numbers(uri, dataset, sensor, bands)
    crs, transform, placement = _place(uri, dataset)
    place = placement if transform is None else affine(transform)
    tags = dataset.tags()
    return Scene(
        uri=uri,
        sensor=contents.sensor,
        crs=crs,
        transform=transform,
        height=dataset.height,
        width=dataset.width,
        dtype=contents.dtype,
        nodata=contents.nodata,
        time=acquisition_time(uri, tags | dataset.tags(ns="IMAGERY")),
        licence=licence(tags),
        gsd=ground_sample_distance(crs, place, dataset.height, dataset.width) or contents.sensor.gsd,
        block=dataset.block_shapes[0],
        reader=contents.reader,
        placement=placement,
    )


@dataclasses.dataclass(frozen=True)
class _Contents:
    """The bands that are read, and how."""

    sensor: Sensor
    reader: Reader
    dtype: np.dtype[Any]
    nodata: float | None


def _numbers(uri: str, dataset: Any, given: Sensor | None, bands: Sequence[str] | None) -> _Contents:
    choice = choose(read_offer(uri, dataset), given, bands)
    dtype = _dtype(uri, dataset, choice)
    nodata = tuple(
        storable(choice.sensor.nodata if value is None else value, dtype)
        for value in (dataset.nodatavals[place] for place in choice.places)
    )
    flags = dataset.mask_flag_enums[choice.places[0]]
    masked = MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags
    reader = RasterReader(uri, dataset, choice.places, choice.alpha, masked, nodata)
    scaling = tuple((dataset.scales[place], dataset.offsets[place]) for place in choice.places)
    if len(set(scaling)) > 1:
        sensor = dataclasses.replace(choice.sensor, scale=1.0, offset=0.0, nodata=None)
        return _Contents(sensor, MeantReader(reader, scaling), np.dtype(np.float32), math.nan)
    sensor = _scaled(uri, choice.sensor, *scaling[0], given=given is not None)
    return _Contents(sensor, reader, dtype, next((value for value in nodata if value is not None), None))


def _palette(uri: str, dataset: Any, given: Sensor | None, bands: Sequence[str] | None) -> _Contents | None:
    """Colours, where the file stores indices into them."""
    if dataset.colorinterp[0].name != "palette" or dataset.count > 1:
        return None
    table = dataset.colormap(1)
    colours = np.array([table.get(index, (0, 0, 0, 0)) for index in range(max(table) + 1)], np.uint8)
    offer = Offer(uri, (Band("red"), Band("green"), Band("blue")), False, None)
    choice = choose(offer, given, bands)
    nodata = storable(dataset.nodata, np.dtype(dataset.dtypes[0]))
    masked = MaskFlags.per_dataset in dataset.mask_flag_enums[0]
    stored = RasterReader(uri, dataset, (0,), None, masked, (nodata,))
    reader = PaletteReader(stored, colours[:, list(choice.places)], colours[:, 3] > 0)
    return _Contents(choice.sensor, reader, np.dtype(np.uint8), None)


def _check_pixels(uri: str, dataset: Any) -> None:
    """Refuse what slicing would turn into wrong numbers or a wrong place."""
    if dataset.count == 0:
        held = f"holds {len(dataset.subdatasets)} rasters: open one of them" if dataset.subdatasets else "holds no band"
        raise InputError(f"'{uri}' {held}")
    if dataset.count > 1 and any(colour.name == "palette" for colour in dataset.colorinterp):
        raise InputError(f"'{uri}' stores indices into a colour palette beside other bands: expand it to RGB first")
    if any("complex" in dtype for dtype in dataset.dtypes):
        raise InputError(
            f"'{uri}' stores complex numbers ({dataset.dtypes[0]}): convert to amplitude or intensity first"
        )


def _dtype(uri: str, dataset: Any, choice: Choice) -> np.dtype[Any]:
    together = [*choice.places, *([] if choice.alpha is None else [choice.alpha])]
    dtypes = {dataset.dtypes[place] for place in together}
    if len(dtypes) > 1:
        raise InputError(
            f"'{uri}' stores its bands as {', '.join(sorted(dtypes))}: choose bands of one type with --bands"
        )
    return np.dtype(dtypes.pop())


def _place(uri: str, dataset: Any) -> tuple[CRS | None, Affine | None, Placement | None]:
    """Coordinate reference system, and the affine or the control points that lead to it."""
    if dataset.transform != Affine.identity():
        return dataset.crs or None, dataset.transform, None
    points, crs = dataset.gcps
    if points:
        return crs, None, by_control_points(uri, points)
    if dataset.rpcs:
        raise InputError(
            f"'{uri}' is placed by rational polynomials, which need a height: give a grid to warp it to (--warp)"
        )
    return None, None, None


def _scaled(uri: str, sensor: Sensor, scale: float, offset: float, given: bool) -> Sensor:
    """The sensor with the file's own scale and offset, which must not contradict a sensor that has them."""
    if (scale, offset) == (1.0, 0.0):
        return sensor
    if (sensor.scale, sensor.offset) == (1.0, 0.0):
        return dataclasses.replace(sensor, scale=scale, offset=offset)
    if math.isclose(scale, sensor.scale, rel_tol=1e-6) and math.isclose(offset, sensor.offset, abs_tol=1e-9):
        return sensor
    advice = "give a sensor YAML with the scale of the file" if given else "name the sensor"
    raise InputError(
        f"'{uri}' says number * {scale:g} + {offset:g}; sensor '{sensor.name}' says * {sensor.scale:g} + "
        f"{sensor.offset:g}: {advice} (--sensor)"
    )
