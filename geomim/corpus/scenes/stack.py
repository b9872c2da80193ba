"""One scene of bands that lie in files of their own: Sentinel-2 and Landsat folders, STAC items."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from affine import Affine
from rasterio.windows import Window

from geomim.corpus.scenes.clouds import UnknownKindError, open_mask
from geomim.corpus.scenes.files import check_pages, open_dataset
from geomim.corpus.scenes.footprints import Grid
from geomim.corpus.scenes.meaning import Scaling, informed, meant
from geomim.corpus.scenes.readers import RasterReader, sample, stored
from geomim.corpus.scenes.scene import Numbers, Scene, Wanted, Windows
from geomim.corpus.scenes.validity import Nodata, measured, one_type, padding
from geomim.corpus.scenes.warping import wanted_grid
from geomim.errors import InputError
from geomim.sensors import Band, Sensor


@dataclass(frozen=True)
class Layer:
    """A band in a file.

    Attributes:
        band: What it is.
        path: The file, as GDAL opens it.
        place: 0-based place in the file.
        scaling: What the product says its numbers mean, or None where only the file knows.
        nodata: Number that means "no measurement" by the product, where the file declares none.
        told: How many bands the product tells of in this file; if one, it must hold no other.
    """

    band: Band
    path: str
    place: int = 0
    scaling: Scaling | None = None
    nodata: float | None = None
    told: int = 1


@dataclass(frozen=True)
class Mask:
    """A cloud mask in a file.

    Attributes:
        path: The file, as GDAL opens it.
        kind: One of `clouds.KINDS`, or None to tell by name and codes.
        places: 0-based places of its bands.
    """

    path: str
    kind: str | None = None
    places: tuple[int, ...] = (0,)


def stack_scene(
    uri: str,
    sensor: Sensor,
    layers: Sequence[Layer],
    wanted: Wanted,
    mask: Mask | None = None,
    time: datetime | None = None,
    licence: str | None = None,
) -> Scene:
    """A scene of bands from several files, each on its own grid or all brought to one.

    Args:
        uri: What the catalogue calls it.
        sensor: Name and unit; its bands are those of the layers. What these say of scale and offset comes first.
        layers: Bands in the order of the scene.
        wanted: Grid to bring them to.
        mask: Cloud mask, or None.
        time: Acquisition in UTC without time zone.
        licence: Of the scene.

    Raises:
        InputError: A file cannot be opened, the bands are of different types, or they lie on different grids and no
            resolution is asked for.
    """
    paths = list(dict.fromkeys(layer.path for layer in layers))
    with ExitStack() as opened:
        datasets = {path: opened.enter_context(open_dataset(path)) for path in paths}
        paged = dict.fromkeys(note for path, one in datasets.items() for note in check_pages(path, one))
        dtype = _dtype(uri, layers, datasets)
        grid = _grid(uri, layers, datasets, wanted)
        told = [_scaling(layer, datasets[layer.path]) for layer in layers]
        sensor = dataclasses.replace(sensor, bands=tuple(layer.band for layer in layers))
        guessed: tuple[str, ...] = ()
        if not all(told):  # else the product's word goes before the user's
            names = [PurePosixPath(layer.path).name for layer in layers]
            look = partial(sample, layers[0].path, datasets[layers[0].path], layers[0].place)
            sensor, guessed = informed(uri, sensor, names, dtype, told, wanted, time, look)
        reader, nodata, block = _reader(layers, datasets, grid, sensor)
        masks = open_masks(mask, grid, (grid.height, grid.width))
        opened.pop_all()  # they stay open, with the scene
    numbers = Numbers(sensor, reader, dtype, padding(nodata), block, (*paged, *guessed))
    numbers = meant(uri, numbers, nodata, told, wanted, time)
    return Scene(uri=uri, time=time, licence=licence, masks=masks, **vars(grid), **vars(numbers))


def _grid(uri: str, layers: Sequence[Layer], datasets: dict[str, Any], wanted: Wanted) -> Grid:
    """The grid that all bands share, or are brought to."""
    first = layers[0]
    groups: list[tuple[Grid, list[Layer]]] = []
    for layer in layers:
        own = Grid.of(datasets[layer.path])
        members = next((members for grid, members in groups if grid.agrees(own)), None)
        if members is None:
            groups.append((own, [layer]))
        else:
            members.append(layer)
    if len(groups) > 1 and wanted.resolution is None:
        listed = "; ".join(
            f"{', '.join(layer.band.name for layer in members)} at {_pixel(grid)}" for grid, members in groups
        )
        degrees = groups[0][0].crs is not None and not groups[0][0].crs.is_projected
        raise InputError(
            f"'{uri}' has bands on {len(groups)} grids: {listed}. Choose bands of one with --bands, or bring all to "
            f"one with {'--warp auto ' if degrees and not wanted.warp else ''}--resolution METRES"
        )
    if wanted.resolution is not None:  # a band that has this pixel size is left as it is
        sizes = [abs(math.log((grid.gsd or grid.metres[0]) / wanted.resolution)) for grid, _ in groups]
        first = groups[sizes.index(min(sizes))][1][0]
    dataset = datasets[first.path]
    if dataset.transform == Affine.identity():
        raise InputError(f"'{first.path}' has no affine: bands in files of their own are put together by place only")
    return wanted_grid(uri, dataset, wanted) or Grid.of(dataset)


def _pixel(grid: Grid) -> str:
    if not grid.crs or not grid.crs.is_projected:
        return f"{grid.height} x {grid.width}"
    return f"{grid.metres[0]:g} m"


def _dtype(uri: str, layers: Sequence[Layer], datasets: dict[str, Any]) -> np.dtype[Any]:
    for layer in layers:
        held = datasets[layer.path].count
        images = held - (_alpha(datasets[layer.path], layer) is not None)
        if layer.place >= held:
            raise InputError(f"'{layer.path}' holds {held} bands, and '{uri}' says that it holds {layer.band.name} too")
        if layer.told == 1 < images:
            raise InputError(
                f"'{layer.path}' holds {images} bands, and '{uri}' tells of one: move it elsewhere, or tell of all (in "
                "the 'bands' of a STAC asset)"
            )
    return one_type(uri, [datasets[layer.path].dtypes[layer.place] for layer in layers])


def _scaling(layer: Layer, dataset: Any) -> Scaling | None:
    """What the product says, else what the file says."""
    stated = dataset.scales[layer.place], dataset.offsets[layer.place]
    return layer.scaling or (None if stated == (1.0, 0.0) else stated)


def _alpha(dataset: Any, layer: Layer) -> int | None:
    """Place of the alpha band, which no product tells of."""
    further = range(layer.told, dataset.count)
    return next((place for place in further if dataset.colorinterp[place].name == "alpha"), None)


def open_masks(mask: Mask | None, grid: Grid | None, size: tuple[int, int]) -> Windows | None:
    """Where clouds are by a mask; None where there is none, or it is of no known kind.

    Args:
        mask: The file.
        grid: To bring it to.
        size: Rows and columns of the scene.
    """
    try:
        return open_mask(mask.path, grid, size, mask.kind, mask.places) if mask else None
    except UnknownKindError:
        return None  # offered as clouds, such as percentages: no mask


def _reader(
    layers: Sequence[Layer], datasets: dict[str, Any], grid: Grid, sensor: Sensor
) -> tuple[Windows, tuple[Nodata, ...], tuple[int, int]]:
    """What reads the bands of all files in their order; what is no measurement in each; blocks of the first file."""
    readers: list[RasterReader] = []
    listed: list[Layer] = []
    values: dict[Layer, Nodata] = {layer: _nodata(layer, datasets[layer.path], sensor) for layer in layers}
    for path, dataset in datasets.items():
        own = [layer for layer in layers if layer.path == path]
        target = None if grid.agrees(Grid.of(dataset)) else grid
        places, none = tuple(layer.place for layer in own), tuple(values[layer] for layer in own)
        readers.append(stored(path, dataset, target, places, none, _alpha(dataset, own[0])))
        listed += own
    order, nodata = [listed.index(layer) for layer in layers], tuple(values[layer] for layer in layers)

    def read(window: Window) -> tuple[np.ndarray, np.ndarray]:
        parts = [reader.read_shown(window) for reader in readers]
        pixels = np.concatenate([part for part, _ in parts])[order]
        shown: np.ndarray = np.logical_and.reduce([part for _, part in parts])
        return pixels, shown & measured(pixels, nodata)

    def close() -> None:
        for reader in readers:
            reader.close()

    return Windows(read, close), nodata, readers[0].dataset.block_shapes[0]


def _nodata(layer: Layer, dataset: Any, sensor: Sensor) -> Nodata:
    """What the file declares, else what the product says, else what is usual for the sensor."""
    file = dataset.nodatavals[layer.place]
    return Nodata.of(layer.nodata if file is None else file, sensor.nodata, dataset.dtypes[layer.place])
