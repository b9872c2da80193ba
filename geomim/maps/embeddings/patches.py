"""Vectors of a scene's patches as a raster, a pixel a patch: a cloud-optimised GeoTIFF, or zarr that xarray opens."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import zarr
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.windows import Window
from zarr.errors import GroupNotFoundError

from geomim.corpus.scenes.footprints import by_control_points
from geomim.corpus.scenes.maps import MADE
from geomim.errors import InputError
from geomim.maps.embeddings.rows import BLOCK, Rows, windows, write_geotiff
from geomim.maps.embeddings.vectors import NODATA, Rounding, told_card
from geomim.maps.files.rasters import open_map
from geomim.maps.scenes.ground import Ground

ENDINGS = (".tif", ".tiff", ".zarr")
_CHUNK = 64  # patches along a side of a chunk, with all of their values: who asks for a place asks for a vector


@dataclass(frozen=True)
class PatchRaster:
    """Vectors of patches on disk.

    Attributes:
        name: Of the file.
        card: What made them.
        rounding: How they are kept.
        shape: Values a vector, rows and columns.
        place: `transform` and `crs`, or `gcps` and `crs`, or nothing.
        kept: Values as they are kept `(D, rows, columns)` of a window.
    """

    name: str
    card: dict[str, Any]
    rounding: Rounding
    shape: tuple[int, int, int]
    place: dict[str, Any]
    kept: Callable[[Window], np.ndarray]

    def read(self, window: Window) -> np.ndarray:
        """Vectors `(D, rows, columns)` float32 of a window; NaN where there is no image."""
        return np.moveaxis(self.rounding.restore(np.moveaxis(self.kept(window), 0, -1)), -1, 0)

    def blocks(self) -> Iterator[tuple[Window, np.ndarray]]:
        """All vectors, a block `(D, rows, columns)` at a time."""
        for window in windows(self.shape, BLOCK):
            yield window, self.read(window)

    def locate(self, x: float, y: float) -> tuple[int, int] | None:
        """Row and column of the patch at a place; None where there is none.

        Args:
            x: In the raster's CRS; of a raster without place the column.
            y: Likewise; the row.
        """
        if self._ground is not None:
            column, row = self._ground.back(np.array([x]), np.array([y]))[:, 0]
        else:
            column, row = ~self.place.get("transform", Affine.identity()) @ (x, y)
        if not (0 <= row < self.shape[1] and 0 <= column < self.shape[2]):
            return None
        return int(row), int(column)

    @cached_property
    def _ground(self) -> Ground | None:
        """Where it lies by control points, as maps of its scene do."""
        if "gcps" not in self.place:
            return None
        placement = by_control_points(self.name, self.place["gcps"])
        return Ground(self.place.get("crs"), placement, *self.shape[1:], None)


def write_patches(
    path: Path,
    place: Mapping[str, Any],
    said: Mapping[str, Any],
    rounding: Rounding,
    strips: Iterable[np.ndarray],
    work: Path | None = None,
) -> None:
    """Write vectors of patches aside, then rename; few rows of them are in memory at a time.

    Args:
        path: A file that ends in one of `ENDINGS`.
        place: Where it lies, as `placed` says.
        said: Its attributes, as `described` gives them.
        rounding: How vectors are kept.
        strips: All rows in order, `(D, rows, columns)` float32 each, NaN where there is no image.
        work: Folder for what is not finished; that of the file where not given.

    Raises:
        OSError: What was written is not what was given, as on a full disk, which GDAL may not tell.
    """
    write = _write_zarr if path.suffix.lower() == ".zarr" else write_geotiff
    with tempfile.TemporaryDirectory(dir=work or path.parent, prefix=f".{path.stem}.") as scratch:
        rows = (rounding.keep(row) for strip in strips for row in np.moveaxis(strip, 0, -1))
        whole = Rows.written(Path(scratch) / "0", said["geomim"]["shape"][1], said["geoemb:dimensions"], rounding, rows)
        write(path, place, said, whole)


def _write_zarr(path: Path, place: Mapping[str, Any], said: Mapping[str, Any], rows: Rows) -> None:
    shape, rounding = rows.shape, rows.rounding
    whole = rounding.scale is not None
    with _folder_aside(path) as part:
        group = zarr.open_group(
            part, mode="w", zarr_format=3, attributes={MADE: "embeddings", **said, "Conventions": "CF-1.10"}
        )
        values = group.create_array(
            "embedding",
            shape=shape,
            chunks=(shape[0], min(_CHUNK, shape[1]), min(_CHUNK, shape[2])),
            dtype=rounding.dtype,
            fill_value=NODATA if whole else np.nan,
            dimension_names=("band", "y", "x"),
            attributes={"grid_mapping": "spatial_ref", "coordinates": "spatial_ref scale" if whole else "spatial_ref"}
            | ({"_FillValue": NODATA} if whole else {}),
        )
        _coordinate(group, "band", np.arange(shape[0]))
        if rounding.scale is not None:
            _coordinate(group, "scale", rounding.scale, "band")
        _write_place(group, place, shape)
        for window in rows.windows(_CHUNK):
            values[(slice(None), *window.toslices())] = rows.read(window)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that zarr's specification does not have it yet, which xarray looks for
            zarr.consolidate_metadata(group.store)


def _write_place(group: zarr.Group, place: Mapping[str, Any], shape: tuple[int, int, int]) -> None:
    """`spatial_ref` as rioxarray reads it; `x` and `y` where they are lines of the grid."""
    crs, transform = place.get("crs"), place.get("transform")
    said: dict[str, Any] = {"crs_wkt": CRS.from_user_input(crs).to_wkt()} if crs else {}
    said |= {"spatial_ref": said["crs_wkt"]} if crs else {}
    if transform is not None:
        said["GeoTransform"] = " ".join(map(repr, map(float, transform.to_gdal())))
    if "gcps" in place:
        said["gcps"] = json.dumps(_as_features(place["gcps"]))
    group.create_array("spatial_ref", shape=(), dtype="int64", dimension_names=(), attributes=said)
    upright = transform is None or (transform.b == 0 and transform.d == 0)
    if not upright or "gcps" in place:
        return
    grid = transform or Affine.identity()
    degrees = bool(crs and CRS.from_user_input(crs).is_geographic)
    for name, start, step, count, words in (
        ("x", grid.c, grid.a, shape[2], ("longitude", "degrees_east")),
        ("y", grid.f, grid.e, shape[1], ("latitude", "degrees_north")),
    ):
        meant = dict(zip(("standard_name", "units"), words, strict=True))
        meant = meant if degrees else {"standard_name": f"projection_{name}_coordinate"} if crs else {}
        _coordinate(group, name, start + step * (np.arange(count) + 0.5), attributes={"axis": name.upper(), **meant})


def _coordinate(group: zarr.Group, name: str, values: np.ndarray, along: str | None = None, **more: Any) -> None:
    array = group.create_array(name, shape=values.shape, dtype=values.dtype, dimension_names=(along or name,), **more)
    array[:] = values


def _as_features(points: Iterable[GroundControlPoint]) -> dict[str, Any]:
    """Control points as rioxarray keeps them."""
    features = [
        {
            "type": "Feature",
            "properties": {"id": str(number), "info": "", "row": point.row, "col": point.col},
            "geometry": {"type": "Point", "coordinates": [point.x, point.y, point.z or 0.0]},
        }
        for number, point in enumerate(points)
    ]
    return {"type": "FeatureCollection", "features": features}


@contextmanager
def _folder_aside(path: Path) -> Iterator[Path]:
    """A folder that gets its name when all is written, so that it is whole or not there."""
    part, before = (path.with_name(f".{path.name}.{os.getpid()}.{word}") for word in ("part", "before"))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        if path.exists():
            path.replace(before)
        part.replace(path)
    finally:
        for left in (part, before):
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def open_patches(path: str | Path) -> Iterator[PatchRaster]:
    """Open vectors of patches that `write_patches` wrote.

    Raises:
        InputError: There are none.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"there is no file '{path}': expected vectors that `geomim embed` wrote")
    if path.suffix.lower() == ".zarr":
        yield _open_zarr(path)
        return
    try:
        raster = open_map(path)
    except rasterio.errors.RasterioIOError as error:
        raise InputError(f"'{path}' cannot be read ({error}): embed again, or copy it again") from error
    with raster:
        card = told_card(json.loads(raster.tags().get("EMBEDDING", "{}")), path)
        points, crs = raster.gcps
        placed = {"transform": raster.transform} if raster.transform != Affine.identity() else {}
        place = {"gcps": points, "crs": crs} if points else {**placed, "crs": raster.crs} if placed else {}
        shape = (raster.count, raster.height, raster.width)
        rounding = Rounding.from_dict(card)
        yield PatchRaster(
            path.name, card | {"name": path.name}, rounding, shape, place, lambda one: raster.read(window=one)
        )


def _open_zarr(path: Path) -> PatchRaster:
    try:
        group = zarr.open_group(path, mode="r")
    except (GroupNotFoundError, OSError, ValueError) as error:
        raise InputError(f"'{path}' is no zarr group that can be read ({error}): embed again") from error
    card = told_card(dict(group.attrs), path)
    values: Any = group["embedding"]
    said = dict(group["spatial_ref"].attrs)
    place: dict[str, Any] = {"crs": CRS.from_wkt(said["crs_wkt"])} if "crs_wkt" in said else {}
    if "GeoTransform" in said:
        place["transform"] = Affine.from_gdal(*map(float, str(said["GeoTransform"]).split()))
    if "gcps" in said:
        place["gcps"] = [
            GroundControlPoint(one["properties"]["row"], one["properties"]["col"], *one["geometry"]["coordinates"])
            for one in json.loads(str(said["gcps"]))["features"]
        ]

    def kept(window: Window) -> np.ndarray:
        rows, columns = window.toslices()
        return np.asarray(values[:, rows, columns])

    return PatchRaster(path.name, card | {"name": path.name}, Rounding.from_dict(card), values.shape, place, kept)
