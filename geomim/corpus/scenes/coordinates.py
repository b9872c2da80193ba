"""Where a cube lies: from its coordinates and their units, and from the words of CF, rioxarray, STAC or GeoZarr."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyproj
from affine import Affine
from rasterio.crs import CRS

from geomim.corpus.scenes.stores import tells_place

_EVEN = 1e-2  # pixels by which a coordinate may lie beside its grid
_WORDS = ("crs_wkt", "spatial_ref", "proj:wkt2", "proj:projjson", "proj:code", "proj:epsg", "epsg", "crs")
_WORDS += ("horizontal_CRS_code",)  # of ESA's products in zarr
_UNITS = {  # to metres and radians
    **dict.fromkeys(("m", "metre", "meter", "metres", "meters", "rad", "radian", "radians"), 1.0),
    **dict.fromkeys(("km", "kilometre", "kilometer", "kilometres", "kilometers"), 1000.0),
    **dict.fromkeys(("microradian", "microradians", "urad"), 1e-6),
}


def place_of(
    cube: Any, values: Any, around: Sequence[Mapping[str, Any]]
) -> tuple[CRS | None, Affine | None, tuple[str, ...]]:
    """Coordinate reference system and affine of a variable, each None where it is not known; and what was lost.

    Args:
        cube: `xarray.Dataset`, its coordinates decoded.
        values: `xarray.DataArray` of it, rows by columns.
        around: Attributes of its group and of those above.
    """
    words = [values.attrs, _mapping(cube, values), *around]
    inside = [one.get(key) for one in around for key in ("other_metadata", "stac_discovery")]
    crs, unknown = _crs([*words, *(one.get("properties", one) for one in inside if isinstance(one, Mapping))])
    rows, cols = values.dims
    known = [dim for dim in (rows, cols) if dim in values.coords]
    units = [str(values[dim].attrs.get("units", "")).strip().lower() for dim in known]
    degrees = any(unit.startswith("degree") for unit in units) or (not any(units) and str(rows).startswith("lat"))
    if degrees and (crs is None or (crs.is_projected and not _height(crs))):
        crs = (crs.geodetic_crs if crs else None) or pyproj.CRS.from_epsg(4326)
    lost = [f"its coordinate reference system cannot be understood ({unknown})"] if unknown and crs is None else []
    across, down = (_even(values, dim, crs) for dim in (cols, rows))
    transform = None
    if across and down:
        transform = Affine(across[1], 0, across[0], 0, down[1], down[0])
    elif known:
        lost.append(f"its coordinates {' and '.join(map(str, known))} are those of no even grid")
    else:
        transform = _told_transform(words)
    if transform is None and not lost and any(one.ndim == 2 and tells_place(one) for one in cube.variables.values()):
        lost.append("its latitudes and longitudes are two-dimensional, those of a swath and of no grid")
    if crs is None and known and not lost:
        lost.append("it tells no coordinate reference system")
    place = None if crs is None else CRS.from_wkt(crs.to_wkt())
    return place, transform, tuple(f"{one}: its tiles have no place on Earth" for one in lost)


def _mapping(cube: Any, values: Any) -> Mapping[str, Any]:
    """Attributes of the variable that `grid_mapping` names, also in its long form `name: x y other: lat lon`."""
    told = str(values.attrs.get("grid_mapping", ""))
    pairs = re.findall(r"(\S+)\s*:\s*((?:[^\s:]+(?:\s+|$)(?!:))+)", told) or [(told, "")]
    fitting = [name for name, of in pairs if set(map(str, values.dims)) <= set(of.split())]
    names = [*fitting, *(name for name, _ in pairs), "spatial_ref", "crs"]
    found: Mapping[str, Any] = next((cube.variables[name].attrs for name in names if name in cube.variables), {})
    return found


def _crs(words: Sequence[Mapping[str, Any]]) -> tuple[pyproj.CRS | None, str]:
    """The first system that is understood, and what was not."""
    unknown = ""
    for attributes in words:
        plain = {key: value for key, value in attributes.items() if key not in _WORDS}
        for key in (*_WORDS, "grid_mapping_name"):
            told = attributes.get(key)
            if told is None or not str(told).strip():
                continue
            try:
                if key == "grid_mapping_name":
                    return pyproj.CRS.from_cf(plain), ""
                return pyproj.CRS.from_user_input(int(told) if str(told).strip().isdigit() else told), ""
            except (pyproj.exceptions.CRSError, KeyError, TypeError, ValueError):
                unknown = unknown or f"{key}: {str(told)[:60]}"
    return None, unknown


def _height(crs: pyproj.CRS) -> float | None:
    """Metres of a geostationary satellite above the ground, whose coordinates may be angles; None for another."""
    operation = crs.coordinate_operation
    if operation is None or "geostationary" not in operation.method_name.lower():
        return None
    return float(crs.to_cf()["perspective_point_height"])


def _even(values: Any, dim: Any, crs: pyproj.CRS | None) -> tuple[float, float] | None:
    """Border of the first pixel and step of a coordinate in units of the system; None where its steps differ."""
    if dim not in values.coords or values.sizes[dim] < 2 or values[dim].dtype.kind not in "iuf":
        return None
    stored = values[dim].values
    at = stored.astype(np.float64)
    rounding = 2 * float(np.spacing(np.abs(stored).max())) if stored.dtype.kind == "f" else 0.0
    step = (at[-1] - at[0]) / (len(at) - 1)
    beside = np.abs(at - (at[0] + step * np.arange(len(at)))).max()
    if step == 0 or not beside <= max(_EVEN * abs(step), rounding):
        return None
    east = crs is not None and crs.is_geographic and dim == values.dims[1] and at.min() >= 180
    factor = _factor(str(values[dim].attrs.get("units", "")).strip().lower(), np.abs(at).max(), crs)
    return float(factor * (at[0] - step / 2 - 360 * east)), float(factor * step)


def _factor(unit: str, largest: float, crs: pyproj.CRS | None) -> float:
    """From the unit of a coordinate to that of the system's axes; 1 where nothing says that they differ."""
    height = _height(crs) if crs is not None else None
    if height and ("rad" in unit or (not unit and largest < math.pi)):  # scanning angles
        return _UNITS.get(unit, 1.0) * height
    axis = crs.axis_info[0].unit_conversion_factor if crs is not None and crs.axis_info else 0.0
    return _UNITS[unit] / axis if unit in _UNITS and axis else 1.0


def _told_transform(words: Sequence[Mapping[str, Any]]) -> Affine | None:
    """The affine that attributes tell, where there are no coordinates."""
    for one in words:
        if "GeoTransform" in one:
            return Affine.from_gdal(*map(float, str(one["GeoTransform"]).split()))
        told = one.get("proj:transform", one.get("spatial:transform", ()))
        if len(told) >= 6:
            return Affine(*map(float, told[:6]))
    return None
