"""Cubes as scenes: zarr stores and NetCDF files through xarray, read window by window, numbers as they are stored."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from typing import Any

import numpy as np
from rasterio.windows import Window

from geomim.addresses import full
from geomim.corpus.scenes.clouds import KINDS, kind_of, named_kind
from geomim.corpus.scenes.coordinates import place_of
from geomim.corpus.scenes.files import cause, split_address
from geomim.corpus.scenes.footprints import affine, ground_sample_distance
from geomim.corpus.scenes.grids import Grid
from geomim.corpus.scenes.metadata import acquisition_time, licence
from geomim.corpus.scenes.naming import Offer, choose, scaled
from geomim.corpus.scenes.readers import MeantReader
from geomim.corpus.scenes.scene import Reader, Scene, Wanted
from geomim.corpus.scenes.validity import measured, storable
from geomim.corpus.scenes.warping import check_grid
from geomim.errors import GeomimError, InputError, MissingExtraError
from geomim.sensors import Band

_ROWS = ("y", "lat", "latitude", "northing", "row", "rows")
_COLS = ("x", "lon", "longitude", "easting", "col", "column", "cols", "columns")
_TIMES = ("time", "t", "date")


@dataclass(frozen=True)
class _Plane:
    """One band of a cube: a variable with two dimensions left, and what is said about it."""

    name: str
    values: Any  # xarray.DataArray, rows by columns, not read yet
    attributes: dict[str, Any]


@dataclass
class CubeReader:
    """Windows of variables of a cube.

    Attributes:
        uri: The cube.
        cube: Open `xarray.Dataset`.
        planes: `xarray.DataArray` a band, rows by columns.
        nodata: A value a band, or None.
    """

    uri: str
    cube: Any
    planes: Sequence[Any]
    nodata: tuple[float | None, ...]

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Pixels `(C, h, w)` and validity `(h, w)`."""
        pixels = np.stack([_window(plane, window) for plane in self.planes])
        return pixels, measured(pixels, self.nodata)

    def close(self) -> None:
        """Close the file."""
        self.cube.close()


@dataclass
class CubeClouds:
    """A variable of cloud codes.

    Attributes:
        plane: `xarray.DataArray`, rows by columns.
        kind: One of `clouds.KINDS`.
    """

    plane: Any
    kind: str

    def read(self, window: Window) -> np.ndarray:
        """`(h, w)` bool: True under cloud or its shadow."""
        codes = _window(self.plane, window)
        return KINDS[self.kind](np.nan_to_num(codes).astype(np.int64) if codes.dtype.kind == "f" else codes)

    def close(self) -> None:
        """The reader of the pixels closes the file."""


def is_cube(uri: str) -> bool:
    """Whether an address is one of a zarr store or a NetCDF file, with or without a choice after `#`."""
    path, _ = split_address(uri)
    if re.search(r"\.(zarr|nc|nc4|cdf)/?$", path, re.IGNORECASE):
        return not path.startswith("/vsi")
    return os.path.isdir(path) and any(os.path.exists(os.path.join(path, name)) for name in ("zarr.json", ".zgroup"))


def open_cube(uri: str, wanted: Wanted) -> Scene:
    """Open a zarr store or a NetCDF file: a variable with a dimension of bands, or a variable a band.

    `FILE#time=3` chooses the fourth time (places count from 0, as for any other dimension), `FILE#group=NAME` a group.

    Raises:
        InputError: It holds no image, several times, or is to be warped; one sentence.
        BandError: The bands have no names or other ones.
        MissingExtraError: No library for NetCDF is installed.
    """
    path, choices = _choices(uri)
    cube = _open(path, choices.pop("group", None))
    try:
        return _describe(uri, cube, choices, wanted)
    except GeomimError:
        cube.close()
        raise
    except (ValueError, OSError, RuntimeError) as error:
        cube.close()
        raise InputError(f"'{uri}' cannot be read as a cube ({cause(error)})") from error


def _choices(uri: str) -> tuple[str, dict[str, str]]:
    path, fragment = split_address(uri)
    choices = dict(part.partition("=")[::2] for part in fragment.split("&") if part)
    return path, choices


def _open(path: str, group: str | None) -> Any:
    import xarray

    try:
        return xarray.open_dataset(
            full(path), engine=_engine(path), group=group, chunks=None, cache=False, mask_and_scale=False
        )
    except ImportError as error:
        raise MissingExtraError(f"'{path}' cannot be opened: {cause(error)}") from error
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        raise InputError(f"'{path}' cannot be opened as a cube ({cause(error)})") from error


def _engine(path: str) -> str:
    if not re.search(r"\.(nc|nc4|cdf)$", path, re.IGNORECASE):
        return "zarr"
    for engine, library in (("netcdf4", "netCDF4"), ("h5netcdf", "h5netcdf")):
        if find_spec(library):
            return engine
    raise MissingExtraError(f"'{path}' needs a library: pip install netCDF4 (or h5netcdf)")


def _describe(uri: str, cube: Any, choices: dict[str, str], wanted: Wanted) -> Scene:
    planes, time = _planes(uri, cube, choices)
    masks = [place for place, plane in enumerate(planes) if named_kind(plane.name, whole=True)]
    offered = tuple(_band(plane) for plane in planes)
    choice = choose(Offer(uri, offered, True, None, tuple(masks)), wanted.sensor, wanted.bands)
    chosen = [planes[place] for place in choice.places]
    dtypes = {plane.values.dtype for plane in chosen}
    dtype = np.dtype(dtypes.pop())
    if dtypes or dtype.kind not in "iuf":
        listed = ", ".join(sorted({str(plane.values.dtype) for plane in chosen}))
        raise InputError(f"'{uri}' stores its bands as {listed}: choose bands of one type with --bands")
    nodata = tuple(_nodata(plane, choice.sensor.nodata, dtype) for plane in chosen)
    reader: Reader = CubeReader(uri, cube, [plane.values for plane in chosen], nodata)
    scaling = tuple(_scaling(plane) for plane in chosen)
    if len(set(scaling)) == 1:
        sensor = scaled(uri, choice.sensor, *scaling[0], given=wanted.sensor is not None)
        fill = next((value for value in nodata if value is not None), None)
    else:
        sensor = dataclasses.replace(choice.sensor, scale=1.0, offset=0.0, nodata=None)
        reader, fill, dtype = MeantReader(reader, nodata, scaling), math.nan, np.dtype(np.float32)
    crs, transform = place_of(cube, chosen[0].values)
    height, width = chosen[0].values.shape
    check_grid(uri, None if transform is None else Grid(crs, transform, height, width), wanted.warp, wanted.resolution)
    place = None if transform is None else affine(transform)
    tags = {key: str(value) for key, value in cube.attrs.items()}
    tags |= {"ACQUISITION_DATE": tags["time_coverage_start"]} if "time_coverage_start" in tags else {}
    return Scene(
        uri=uri,
        sensor=sensor,
        crs=crs,
        transform=transform,
        height=height,
        width=width,
        dtype=dtype,
        nodata=fill,
        time=time or acquisition_time(split_address(uri)[0], tags),
        licence=licence({key.upper(): value for key, value in tags.items()}),
        gsd=ground_sample_distance(crs, place, height, width) or sensor.gsd,
        block=_block(chosen[0]),
        reader=reader,
        masks=_clouds(uri, planes[masks[0]]) if masks else None,
        assumed=choice.assumed,
    )


def _planes(uri: str, cube: Any, choices: dict[str, str]) -> tuple[list[_Plane], datetime | None]:
    """The bands of a cube, and the time of the choice made."""
    images = {
        str(name): values
        for name, values in cube.data_vars.items()
        if _axis(values, _ROWS) and _axis(values, _COLS) and values.dtype.kind in "iufb"
    }
    if not images:
        raise InputError(
            f"'{uri}' holds no variable with rows and columns (y, x or latitude, longitude): found "
            f"{', '.join(map(str, cube.data_vars)) or 'none'}; a group is chosen with '{uri}#group=NAME'"
        )
    planes: list[_Plane] = []
    time: datetime | None = None
    for name, values in images.items():
        rows, cols = _axis(values, _ROWS), _axis(values, _COLS)
        values = values.isel(
            {dim: _chosen(uri, values, dim, place) for dim, place in choices.items() if dim in values.dims}
        )
        time = time or _time(values)
        values = values.isel({dim: 0 for dim in values.dims if values.sizes[dim] == 1 and dim not in (rows, cols)})
        others = [str(dim) for dim in values.dims if dim not in (rows, cols)]
        times = [dim for dim in others if dim.lower() in _TIMES]
        if times or len(others) > 1:
            dim = (times or others)[0]
            raise InputError(
                f"'{uri}' holds {values.sizes[dim]} places along '{dim}' and a scene is one: choose it in the "
                f"address, as in '{uri}{'&' if '#' in uri else '#'}{dim}=0'"
            )
        values = values.transpose(*others, rows, cols)
        planes += _along(name, values, others[0]) if others else [_Plane(name, values, values.attrs)]
    shapes = {plane.values.shape for plane in planes}
    if len(shapes) > 1:
        raise InputError(f"'{uri}' holds images of {len(shapes)} sizes: keep those of one, or bring them to one grid")
    return planes, time


def _along(name: str, values: Any, dim: str) -> list[_Plane]:
    """Bands along a dimension, named by its coordinate or by the variable's `long_name`."""
    count = values.sizes[dim]
    names = [str(value) for value in values[dim].values] if dim in values.coords else []
    given = values.attrs.get("long_name")
    if isinstance(given, list | tuple | np.ndarray) and len(given) == count:
        names = [str(value) for value in given]
    if not names or all(re.fullmatch(r"[\d.]+", name) for name in names):
        names = [""] * count if not dim.lower().startswith("wave") else names
    told = {key: values.coords[key].values for key in ("wavelength", "fwhm") if key in values.coords}
    planes = []
    for place in range(count):
        own = {key: column[place] for key, column in told.items() if np.shape(column) == (count,)}
        if dim.lower().startswith("wave") and names[place]:
            own = {"wavelength": float(names[place]), **own}
        planes.append(_Plane(names[place], values.isel({dim: place}), values.attrs | own))
    return planes


def _chosen(uri: str, values: Any, dim: str, place: str) -> int:
    if not place.isdigit() or int(place) >= values.sizes[dim]:
        raise InputError(f"'{uri}': '{dim}' has the places 0 to {values.sizes[dim] - 1}, given '{place}'")
    return int(place)


def _axis(values: Any, names: Sequence[str]) -> str | None:
    return next((dim for dim in values.dims if str(dim).lower() in names), None)


def _window(plane: Any, window: Window) -> np.ndarray:
    rows, cols = window.toslices()
    pixels: np.ndarray = np.asarray(plane[rows, cols].values)
    return pixels


def _band(plane: _Plane) -> Band | None:
    attributes = plane.attributes
    wavelength = next((attributes[key] for key in ("wavelength", "central_wavelength") if key in attributes), None)
    if wavelength is None:
        return Band(plane.name) if plane.name else None
    unit = str(attributes.get("wavelength_unit", attributes.get("wavelength_units", "nm"))).lower()
    factor = 1000.0 if unit.startswith(("um", "micro")) or float(wavelength) < 20 else 1.0
    width = attributes.get("bandwidth", attributes.get("fwhm"))
    name = plane.name or f"{factor * float(wavelength):g} nm"
    return Band(name, factor * float(wavelength), None if width is None else factor * float(width))


def _nodata(plane: _Plane, usual: float | None, dtype: np.dtype[Any]) -> float | None:
    told = plane.attributes.get("_FillValue", plane.attributes.get("missing_value"))
    return storable(usual if told is None else float(np.ravel(told)[0]), dtype)


def _scaling(plane: _Plane) -> tuple[float, float]:
    return float(plane.attributes.get("scale_factor", 1.0)), float(plane.attributes.get("add_offset", 0.0))


def _time(values: Any) -> datetime | None:
    """The time that a variable without more than one time is of."""
    for name in _TIMES:
        if name in values.coords and values[name].size == 1 and values[name].dtype.kind == "M":
            seconds = values[name].values.ravel()[0].astype("datetime64[s]")
            return None if np.isnat(seconds) else seconds.astype(datetime)
    return None


def _block(plane: _Plane) -> tuple[int, int]:
    """Rows and columns of the chunks that the plane is stored in."""
    encoding = plane.values.encoding
    chunks = encoding.get("chunks") or encoding.get("chunksizes")
    height, width = plane.values.shape
    return (min(chunks[-2], height), min(chunks[-1], width)) if chunks else (1, width)


def _clouds(uri: str, plane: _Plane) -> CubeClouds:
    height, width = plane.values.shape
    steps = (max(height // 512, 1), max(width // 512, 1))
    fill = plane.attributes.get("_FillValue")
    return CubeClouds(
        plane.values, kind_of(uri, plane.name, None, lambda: plane.values[:: steps[0], :: steps[1]].values, fill)
    )
