"""Cubes as scenes: zarr stores and NetCDF files through xarray, read window by window, numbers as they are stored."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np
from rasterio.windows import Window

from geomim.corpus.scenes.clouds import cloud_codes, kind_of, mask_places
from geomim.corpus.scenes.coordinates import place_of
from geomim.corpus.scenes.files import split_address
from geomim.corpus.scenes.footprints import Grid
from geomim.corpus.scenes.meaning import informed, meant
from geomim.corpus.scenes.metadata import acquisition_time, licence
from geomim.corpus.scenes.naming import Offer, choose
from geomim.corpus.scenes.readers import middle
from geomim.corpus.scenes.scene import Numbers, Scene, Wanted, Windows
from geomim.corpus.scenes.stores import images, open_store
from geomim.corpus.scenes.validity import Nodata, measured, one_type, padding, storable
from geomim.corpus.scenes.warping import check_grid
from geomim.errors import InputError
from geomim.sensors import Band

_TIMES = ("time", "t", "date")
_FILLS = ("_FillValue", "missing_value", "nodata")
_ENDS = {"valid_min": -math.inf, "valid_max": math.inf}


@dataclass(frozen=True)
class _Plane:
    """One band of a cube: a variable with two dimensions left, and what is said about it."""

    name: str
    values: Any  # xarray.DataArray, rows by columns, not read yet
    attributes: dict[str, Any]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its numbers: what formats without such a type mark as unsigned (or signed) is that."""
        stored = self.values.dtype
        sign = {"true": "u", "false": "i"}.get(str(self.attributes.get("_Unsigned")).lower(), stored.kind)
        return np.dtype(f"{sign if stored.kind in 'iu' else stored.kind}{stored.itemsize}")

    @property
    def scaling(self) -> tuple[float, float]:
        """Scale and offset from its numbers to what they mean."""
        return float(self.attributes.get("scale_factor", 1.0)), float(self.attributes.get("add_offset", 0.0))

    def told(self, key: str) -> list[float]:
        """Numbers that an attribute tells, as they would be stored; none where it is not there or holds none."""
        numbers, (scale, offset) = np.ravel(self.attributes.get(key, [])), self.scaling
        if numbers.dtype.kind in "iu" and self.dtype != self.values.dtype:
            numbers = numbers.astype(self.dtype)  # they are marked as its numbers are
        if numbers.dtype.kind == "f" and self.dtype.kind in "iu" and key.startswith("valid"):
            numbers = (numbers - offset) / scale  # CF: of the type of what is unpacked
        try:
            return [float(number) for number in numbers]
        except (TypeError, ValueError):
            return []

    def read(self, window: Window) -> np.ndarray:
        """Numbers `(h, w)` of a window."""
        rows, cols = window.toslices()
        stored = np.asarray(self.values[rows, cols].values)
        return stored.astype(stored.dtype.newbyteorder("="), copy=False).view(self.dtype)


def open_cube(uri: str, wanted: Wanted) -> Scene:
    """Open a zarr store or a NetCDF file: a variable with a dimension of bands, or a variable a band.

    `FILE#time=3` chooses the fourth time (places count from 0, as for any other dimension), `FILE#group=NAME` a group.

    Raises:
        InputError: It holds no image, several times, or is to be warped; one sentence.
        BandError: The bands have no names or other ones.
    """
    path, fragment = split_address(uri)
    choices = dict(part.partition("=")[::2] for part in fragment.split("&") if part)
    cube, around, notes = open_store(uri, path, choices.pop("group", ""))
    try:
        return _describe(uri, cube, around, notes, choices, wanted)
    except BaseException:
        cube.close()
        raise


def _describe(
    uri: str, cube: Any, around: Sequence[Any], notes: Sequence[str], choices: dict[str, str], wanted: Wanted
) -> Scene:
    planes, time = _planes(uri, cube, choices)
    masks = mask_places([plane.name for plane in planes])
    choice = choose(Offer(uri, tuple(map(_band, planes)), True, None, masks), wanted.sensor, wanted.bands)
    chosen = [planes[place] for place in choice.places]
    dtype = one_type(uri, [plane.dtype for plane in chosen])
    told = [None if plane.scaling == (1.0, 0.0) else plane.scaling for plane in chosen]
    names = [plane.name for plane in chosen]
    height, width = chosen[0].values.shape
    look = partial(chosen[0].read, middle(height, width))
    tags = {key: str(value) for key, value in cube.attrs.items()}
    tags |= {"ACQUISITION_DATE": tags["time_coverage_start"]} if "time_coverage_start" in tags else {}
    time = time or acquisition_time(split_address(uri)[0], tags)
    sensor, guessed = informed(uri, choice.sensor, names, dtype, told, wanted, time, look)
    nodata = tuple(_nodata(plane, sensor.nodata) for plane in chosen)
    crs, transform, lost = place_of(cube, chosen[0].values, around)
    check_grid(uri, None if transform is None else Grid(crs, transform, height, width), wanted)

    def read(window: Window) -> tuple[np.ndarray, np.ndarray]:
        pixels = np.stack([plane.read(window) for plane in chosen])
        return pixels, measured(pixels, nodata)

    notes, reader = (*notes, *lost, *guessed), Windows(read, cube.close)
    numbers = Numbers(sensor, reader, dtype, padding(nodata), _block(chosen[0]), notes, assumed=choice.assumed)
    return Scene(
        uri=uri,
        crs=crs,
        transform=transform,
        height=height,
        width=width,
        time=time,
        licence=licence({key.upper(): value for key, value in tags.items()}),
        masks=_clouds(uri, planes[masks[0]]) if masks else None,
        **vars(meant(uri, numbers, nodata, told, wanted, time)),
    )


def _planes(uri: str, cube: Any, choices: dict[str, str]) -> tuple[list[_Plane], datetime | None]:
    """The bands of a cube, and the time of the choice made."""
    planes: list[_Plane] = []
    time: datetime | None = None
    for name, (rows, cols) in images(cube).items():
        values = cube[name]
        own = {dim: _chosen(uri, values, dim, place) for dim, place in choices.items() if dim in values.dims}
        values = values.isel(own)
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
        planes += _along(values, others[0]) if others else [_Plane(name, values, values.attrs)]
    shapes = {plane.values.shape for plane in planes}
    if len(shapes) > 1:
        raise InputError(f"'{uri}' holds images of {len(shapes)} sizes: keep those of one, or bring them to one grid")
    return planes, time


def _along(values: Any, dim: str) -> list[_Plane]:
    """Bands along a dimension, named by its coordinate or by the variable's `long_name`."""
    count, waves = values.sizes[dim], dim.lower().startswith("wave")
    names = [str(value) for value in values[dim].values] if dim in values.coords else []
    given = values.attrs.get("long_name")
    if isinstance(given, list | tuple | np.ndarray) and len(given) == count:
        names = [str(value) for value in given]
    if not names or (not waves and all(re.fullmatch(r"[\d.]+", name) for name in names)):
        names = [""] * count
    told = {key: values.coords[key].values for key in ("wavelength", "fwhm") if key in values.coords}
    planes = []
    for place in range(count):
        own = {key: column[place] for key, column in told.items() if np.shape(column) == (count,)}
        if waves and names[place]:
            own = {"wavelength": float(names[place]), **own}
        planes.append(_Plane(names[place], values.isel({dim: place}), values.attrs | own))
    return planes


def _chosen(uri: str, values: Any, dim: str, place: str) -> int:
    if not place.isdigit() or int(place) >= values.sizes[dim]:
        raise InputError(f"'{uri}': '{dim}' has the places 0 to {values.sizes[dim] - 1}, given '{place}'")
    return int(place)


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


def _nodata(plane: _Plane, usual: float | None) -> Nodata:
    """Fill values, and limits of what can be measured."""
    told = [value for key in _FILLS for value in plane.told(key)]
    values = [value for value in (storable(one, plane.dtype) for one in told) if value is not None]
    none = Nodata(tuple(values)) if told else Nodata.of(None, usual, plane.dtype)
    both = plane.told("valid_range")
    low, high = both if len(both) == 2 else ((plane.told(key) or [end])[0] for key, end in _ENDS.items())
    return dataclasses.replace(none, limits=(min(low, high), max(low, high)))


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


def _clouds(uri: str, plane: _Plane) -> Windows:
    down, across = (max(length // 512, 1) for length in plane.values.shape)
    fill = plane.attributes.get("_FillValue")
    kind = kind_of(uri, plane.name, None, lambda: plane.values[::down, ::across].values, fill)
    return Windows(lambda window: cloud_codes(plane.read(window), kind, fill))
