"""Open a GeoTIFF, COG, VRT, JPEG 2000, PNG or JPEG as a `Scene`."""

from __future__ import annotations

import dataclasses
import os
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np
from affine import Affine

from geomim.corpus.scenes.clouds import mask_places, open_mask
from geomim.corpus.scenes.files import check_pages, open_dataset, parts_of
from geomim.corpus.scenes.footprints import Grid, by_control_points
from geomim.corpus.scenes.meaning import informed, meant
from geomim.corpus.scenes.metadata import acquisition_time, licence
from geomim.corpus.scenes.naming import Offer, choose, read_offer
from geomim.corpus.scenes.readers import nodata_of, sample, stored
from geomim.corpus.scenes.scene import Numbers, Scene, Wanted, converted
from geomim.corpus.scenes.validity import one_type, padding
from geomim.corpus.scenes.warping import wanted_grid
from geomim.errors import InputError
from geomim.sensors import Band, find_band


def open_raster(
    uri: str, wanted: Wanted, time: datetime | None = None, scaling: tuple[float, float] | None = None
) -> Scene:
    """Open one raster file; see `open_scene`.

    Args:
        uri: Path or address.
        wanted: Bands and grid.
        time: When it was taken, by what names the file.
        scaling: What its numbers mean, likewise.
    """
    if gone := [part for part in parts_of(uri) if not os.path.exists(part)]:
        raise InputError(f"'{uri}' is made of '{gone[0]}', which is not there: GDAL would read zeros instead")
    dataset = open_dataset(uri)
    try:
        return _describe(uri, dataset, wanted, time, scaling)
    except BaseException:
        dataset.close()
        raise


def _describe(
    uri: str, dataset: Any, wanted: Wanted, time: datetime | None, scaling: tuple[float, float] | None
) -> Scene:
    grid = wanted_grid(uri, dataset, wanted)
    _check_pixels(uri, dataset)
    paged = check_pages(uri, dataset)
    tags, imagery, masks = dataset.tags(), dataset.tags(ns="IMAGERY"), mask_places(dataset.descriptions)
    place = _place(uri, dataset) if grid is None else vars(grid)
    time = time or acquisition_time(uri, tags | imagery)
    numbers = _palette(uri, dataset, grid, wanted) or _numbers(uri, dataset, grid, wanted, time, scaling)
    numbers = dataclasses.replace(numbers, notes=(*paged, *numbers.notes))
    return Scene(
        uri=uri,
        time=time,
        licence=licence(tags),
        masks=open_mask(uri, grid, (place["height"], place["width"]), None, masks[:1]) if masks else None,
        **place,
        **vars(numbers),
    )


def _numbers(
    uri: str,
    dataset: Any,
    grid: Grid | None,
    wanted: Wanted,
    time: datetime | None,
    scaling: tuple[float, float] | None,
) -> Numbers:
    offer, marked = _unmarked(read_offer(uri, dataset, mask_places(dataset.descriptions)), dataset, wanted)
    choice = choose(offer, wanted.sensor, wanted.bands)
    together = (*choice.places, *(() if choice.alpha is None else (choice.alpha,)))
    dtype = one_type(uri, [dataset.dtypes[place] for place in together])
    names = [dataset.descriptions[place] or "" for place in choice.places]
    own = [(dataset.scales[place], dataset.offsets[place]) for place in choice.places]
    told = [scaling or (None if one == (1.0, 0.0) else one) for one in own]
    look = partial(sample, uri, dataset, choice.places[0])
    sensor, guessed = informed(uri, choice.sensor, names, dtype, told, wanted, time, look)
    nodata = nodata_of(dataset, choice.places, sensor.nodata)
    reader = stored(uri, dataset, grid, choice.places, nodata, choice.alpha)
    block = reader.dataset.block_shapes[0]
    stored_numbers = Numbers(sensor, reader, dtype, padding(nodata), block, (*marked, *guessed), assumed=choice.assumed)
    return meant(uri, stored_numbers, nodata, told, wanted, time)


def _unmarked(offer: Offer, dataset: Any, wanted: Wanted) -> tuple[Offer, tuple[str, ...]]:
    """The offer with its alpha band as a band, where that holds what no alpha band does and the sensor has one more."""
    if offer.alpha is None or dataset.driver != "GTiff" or wanted.bands:
        return offer, ()
    held = np.unique(sample(offer.uri, dataset, offer.alpha))
    told = f"its band {offer.alpha + 1} is marked as alpha and holds {len(held)} different numbers"
    if len(held) < 3 or wanted.sensor is None:  # one and none, whatever stands for them
        return offer, () if len(held) < 3 else (f"{told}: if it is near infrared, give --sensor naip",)
    named = [band for band in offer.bands if band is not None]
    others = [band for band in wanted.sensor.bands if find_band(band, named) is None]
    if len(others) != 1:
        return offer, ()
    bands = tuple(others[0] if place == offer.alpha else band for place, band in enumerate(offer.bands))
    return dataclasses.replace(offer, bands=bands, alpha=None), (f"{told}: it is read as {others[0].name}",)


def _palette(uri: str, dataset: Any, grid: Grid | None, wanted: Wanted) -> Numbers | None:
    """Colours, where the file stores indices into them."""
    if dataset.colorinterp[0].name != "palette":
        return None
    colormap = dataset.colormap(1)
    if dataset.dtypes[0] not in ("uint8", "uint16"):
        raise InputError(f"'{uri}' stores {dataset.dtypes[0]} as indices into a palette: expected uint8 or uint16")
    colours = np.zeros((4, np.iinfo(dataset.dtypes[0]).max + 1), np.uint8)
    colours[:, list(colormap)] = np.array(list(colormap.values())).T
    rgb = (Band("red"), Band("green"), Band("blue"))
    choice = choose(Offer(uri, rgb, False, None), wanted.sensor, wanted.bands)
    indices = stored(uri, dataset, grid, (0,), nodata_of(dataset, (0,), None), nearest=True)
    table, shown = colours[list(choice.places)], colours[3] > 0  # transparent ones, and those of no index, are not
    reader = converted(indices, lambda bands, valid: (table.take(bands[0], 1), valid & shown[bands[0]]))
    return Numbers(choice.sensor, reader, np.dtype(np.uint8), None, indices.dataset.block_shapes[0])


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


def _place(uri: str, dataset: Any) -> dict[str, Any]:
    """Size, coordinate reference system, and the affine or the control points that lead to it, as `Scene` has them."""
    own = Grid.of(dataset)
    if own.transform != Affine.identity():
        return vars(own)
    points, crs = dataset.gcps
    if points:
        return vars(own) | {"crs": crs, "transform": None, "placement": by_control_points(uri, points)}
    if dataset.rpcs:
        raise InputError(
            f"'{uri}' is placed by rational polynomials, which need a height: give a grid to warp it to (--warp)"
        )
    return vars(own) | {"crs": None, "transform": None}
