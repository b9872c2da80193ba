"""Open a zarr store or a NetCDF file with xarray, and find the group of it that holds the image."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from geomim.addresses import full
from geomim.corpus.scenes.files import cause, split_address
from geomim.errors import GeomimError, InputError

_AXES = (  # names of a dimension of rows, of columns; what its coordinate may say instead
    ("y lat latitude northing row rows", "Y", "projection_y_coordinate latitude"),
    ("x lon longitude easting col column cols columns", "X", "projection_x_coordinate longitude"),
)
_DEGREES = re.compile(r"degrees?[_ ]?[NE]", re.IGNORECASE)  # as CF spells them
_LEVEL = re.compile(r"(.*/)?(level|scale|overview|l|s)?[_-]?\d+", re.IGNORECASE)


def is_cube(uri: str) -> bool:
    """Whether an address is one of a zarr store or a NetCDF file, with or without a choice after `#`."""
    path, _ = split_address(uri)
    if re.search(r"\.(zarr|zarr\.zip|nc|nc4|cdf)/?$", path, re.IGNORECASE):
        return not path.startswith("/vsi")
    return os.path.isdir(path) and any(os.path.exists(os.path.join(path, name)) for name in ("zarr.json", ".zgroup"))


def open_store(uri: str, path: str, group: str = "") -> tuple[Any, list[Mapping[str, Any]], list[str]]:
    """Open the group of a cube that is named, or the finest level of the pyramid that it is.

    Args:
        uri: As it was given, for error sentences.
        path: The store or the file.
        group: Name of a group; the root where empty.

    Returns:
        `xarray.Dataset` with coordinates as they are meant and all else as it is stored; the attributes of its group
        and of those above; what was chosen or lost.

    Raises:
        InputError: It cannot be opened, or a group must be chosen.
    """
    import xarray

    group, notes = group.strip("/"), []
    try:
        source, options = _source(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata that are not consolidated, of several fill values
            if not images(xarray.open_dataset(source, group=group or None, **options)):
                groups = {name.strip("/"): one for name, one in xarray.open_groups(source, **options).items()}
                group, notes = _finest(uri, group, groups)
            steps = group.split("/") if group else []
            names = ["/".join(steps[:end]) for end in range(len(steps), -1, -1)]
            opened = [xarray.open_dataset(source, group=name or None, **options) for name in names]
            cube, undated = _decoded(opened)
    except GeomimError:
        raise
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        raise InputError(f"'{path}' cannot be opened as a cube ({cause(error)})") from error
    cube.set_close(lambda: [one.close() for one in (*opened, source) if hasattr(one, "close")])
    return cube, [one.attrs for one in opened], [*notes, *undated]


def images(cube: Any) -> dict[str, tuple[str, str]]:
    """Dimensions of rows and of columns of the variables that have both, by name; what holds places is no image."""
    found = {}
    for name, values in cube.data_vars.items():
        rows, cols = (next((str(dim) for dim in values.dims if _is(cube, dim, axis)), "") for axis in _AXES)
        if rows and cols and values.dtype.kind in "iufb" and not tells_place(values):
            found[str(name)] = (rows, cols)
    return found


def tells_place(values: Any) -> bool:
    """Whether a variable holds latitudes or longitudes, by its standard name or its units."""
    units = str(values.attrs.get("units", ""))
    return values.attrs.get("standard_name") in ("latitude", "longitude") or _DEGREES.match(units) is not None


def _is(cube: Any, dim: Any, axis: tuple[str, str, str]) -> bool:
    told = cube.variables[dim].attrs if dim in cube.variables else {}
    names, letter, meanings = axis
    named = str(dim).lower() in names.split() or told.get("standard_name") in meanings.split()
    return named or told.get("axis") == letter


def _finest(uri: str, group: str, groups: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The finest of the groups with images inside one, where they are levels of one pyramid."""
    names = sorted(name for name in groups if images(groups[name]) and f"{name}/".startswith(group and f"{group}/"))
    if len({name.rpartition("/")[0] for name in names}) != 1 or not all(map(_LEVEL.fullmatch, names)):
        listed = f"images are in the groups {', '.join(names[:8])}: choose" if names else "a group is chosen with"
        held = ", ".join(map(str, groups[group].data_vars)) if group in groups else ""
        raise InputError(
            f"'{uri}' holds no variable with rows and columns (y, x or latitude, longitude): found {held or 'none'}; "
            f"{listed} '{uri}{'&' if '#' in uri else '#'}group=NAME'"
        )
    finest = max(names, key=lambda name: max(one.size for one in groups[name].data_vars.values()))
    return finest, [f"it is read at the finest of {len(names)} levels, '{finest}'"] if len(names) > 1 else []


def _decoded(opened: Sequence[Any]) -> tuple[Any, list[str]]:
    """The first with its coordinates decoded, and with dimensions and grid mappings from those above it."""
    import xarray

    cube = opened[0]
    for name, variable in ((name, one) for outer in opened[1:] for name, one in outer.variables.items()):
        fits = not variable.dims or (variable.dims == (name,) and variable.sizes[name] == cube.sizes.get(name))
        if fits and name not in cube.variables:
            cube = cube.assign({name: variable})
    try:
        decoded, notes = xarray.decode_cf(cube, decode_coords="all"), []
    except ValueError:  # units of a time that are none
        decoded = xarray.decode_cf(cube, decode_coords="all", decode_times=False)
        notes = ["its times cannot be understood"]
    return decoded.assign({name: cube.variables[name] for name in decoded.data_vars}), notes


def _source(path: str) -> tuple[Any, dict[str, Any]]:
    """What xarray opens, and how."""
    path, options = full(path), {"engine": "zarr", "decode_cf": False, "chunks": None, "cache": False}
    if path.lower().endswith(".zarr.zip"):
        from zarr.storage import ZipStore

        return ZipStore(path, mode="r"), options
    return path, options | ({"engine": "netcdf4"} if re.search(r"\.(nc|nc4|cdf)$", path, re.IGNORECASE) else {})
