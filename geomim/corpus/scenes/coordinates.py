"""Where a cube lies: from its coordinates, and from the CF, rioxarray or STAC words for its reference system."""

from __future__ import annotations

from typing import Any

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError

_EVEN = 1e-2  # pixels by which a coordinate may lie beside its grid


def place_of(cube: Any, values: Any) -> tuple[CRS | None, Affine | None]:
    """Coordinate reference system and affine of a variable; None where its coordinates are those of no even grid.

    Args:
        cube: `xarray.Dataset`.
        values: `xarray.DataArray` of it, rows by columns.
    """
    mapping = values.attrs.get("grid_mapping", values.encoding.get("grid_mapping"))
    names = [name for name in (mapping, "spatial_ref", "crs") if name and name in cube.variables]
    attributes = cube.variables[names[0]].attrs if names else {}
    rows, cols = values.dims
    crs = _crs(attributes, cube.attrs, str(rows))
    across, down = (_even(values, dim) for dim in (cols, rows))
    if across is not None and down is not None:
        return crs, Affine(across[1], 0, across[0], 0, down[1], down[0])
    if rows in values.coords or "GeoTransform" not in attributes:
        return crs, None
    return crs, Affine.from_gdal(*map(float, str(attributes["GeoTransform"]).split()))


def _crs(attributes: dict[str, Any], whole: dict[str, Any], rows: str) -> CRS | None:
    texts = [attributes.get("crs_wkt"), attributes.get("spatial_ref"), whole.get("crs")]
    texts += [f"EPSG:{whole[key]}" for key in ("proj:epsg", "epsg") if key in whole]
    for text in texts:
        if text:
            try:
                return CRS.from_user_input(str(text))
            except CRSError:
                continue
    if "grid_mapping_name" in attributes:
        import pyproj

        try:
            return CRS.from_wkt(pyproj.CRS.from_cf(attributes).to_wkt())
        except (pyproj.exceptions.CRSError, KeyError, CRSError):
            return None
    return CRS.from_epsg(4326) if rows.lower().startswith("lat") else None


def _even(values: Any, dim: Any) -> tuple[float, float] | None:
    """Border of the first pixel and step of a coordinate, or None where it has none or its steps differ."""
    if dim not in values.coords or values.sizes[dim] < 2 or values[dim].dtype.kind not in "iuf":
        return None
    at = values[dim].values.astype(np.float64)
    step = (at[-1] - at[0]) / (len(at) - 1)
    if step == 0 or not np.abs(at - (at[0] + step * np.arange(len(at)))).max() <= _EVEN * abs(step):
        return None
    return float(at[0] - step / 2), float(step)
