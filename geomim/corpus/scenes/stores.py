"""Open a zarr store or a NetCDF file with xarray, and find the group of it that holds the image."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from geomim.corpus.scenes.files import cause
from geomim.errors import GeomimError, InputError, MissingExtraError

_ROWS = ("y", "lat", "latitude", "northing", "row", "rows")
_COLS = ("x", "lon", "longitude", "easting", "col", "column", "cols", "columns")
_MEANING = {"Y": ("projection_y_coordinate", "latitude"), "X": ("projection_x_coordinate", "longitude")}
_LEVEL = re.compile(r"(level|scale|overview|l|s)?[_-]?\d+", re.IGNORECASE)


@dataclass(frozen=True)
class Store:
    """A group of a cube.

    Attributes:
        cube: `xarray.Dataset`: coordinates as they are meant, all else as it is stored.
        around: Attributes of the group, and of those above it.
        notes: What was chosen or lost.
    """

    cube: Any
    around: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]


def is_cube(uri: str) -> bool:
    """Whether an address is one of a zarr store or a NetCDF file, with or without a choice after `#`."""
    path = uri if os.path.exists(uri) else uri.partition("#")[0]
    if re.search(r"\.(zarr|zarr\.zip|nc|nc4|cdf)/?$", path, re.IGNORECASE):
        return not path.startswith("/vsi")
    return os.path.isdir(path) and any(os.path.exists(os.path.join(path, name)) for name in ("zarr.json", ".zgroup"))


def open_store(uri: str, path: str, group: str = "") -> Store:
    """Open the group of a cube that is named, or the finest level of the pyramid that it is.

    Args:
        uri: As it was given, for error sentences.
        path: The store or the file.
        group: Name of a group; the root where empty.

    Raises:
        InputError: It cannot be opened, or a group must be chosen.
        MissingExtraError: No library for NetCDF is installed.
    """
    import xarray

    group, notes = group.strip("/"), []
    try:
        source, options = _source(path), {"engine": _engine(path), "decode_cf": False, "chunks": None, "cache": False}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of stores whose metadata are not consolidated
            cube = xarray.open_dataset(source, group=group or None, **options)
            if not images(cube):
                groups = {name.strip("/"): one for name, one in xarray.open_groups(source, **options).items()}
                inside = {name: one for name, one in groups.items() if f"{name}/".startswith(group and f"{group}/")}
                group, cube, notes = _finest(uri, {name: one for name, one in inside.items() if images(one)}, cube)
            steps = group.split("/") if group else []
            above = [
                xarray.open_dataset(source, group="/".join(steps[:end]) or None, **options)
                for end in range(len(steps) - 1, -1, -1)
            ]
        opened = [cube, *above]
        decoded, undated = _decoded(cube, above)
    except GeomimError:
        raise
    except ImportError as error:
        raise MissingExtraError(f"'{path}' cannot be opened: {cause(error)}") from error
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        raise InputError(f"'{path}' cannot be opened as a cube ({cause(error)})") from error
    decoded.set_close(lambda: [one.close() for one in (*opened, source) if hasattr(one, "close")])
    return Store(decoded, tuple(one.attrs for one in opened), (*notes, *undated))


def images(cube: Any) -> dict[str, tuple[str, str]]:
    """Dimensions of rows and of columns of the variables that have both, by name."""
    found = {}
    for name, values in cube.data_vars.items():
        rows, cols = _axis(cube, values, _ROWS, "Y"), _axis(cube, values, _COLS, "X")
        if rows and cols and values.dtype.kind in "iufb":
            found[str(name)] = (rows, cols)
    return found


def _axis(cube: Any, values: Any, names: tuple[str, ...], axis: str) -> str | None:
    """The dimension that is called so, or whose coordinate says that it is."""
    for dim in values.dims:
        told = cube.variables[dim].attrs if dim in cube.variables else {}
        if str(dim).lower() in names or told.get("axis") == axis or told.get("standard_name") in _MEANING[axis]:
            return str(dim)
    return None


def _finest(uri: str, groups: Mapping[str, Any], cube: Any) -> tuple[str, Any, list[str]]:
    """The finest of groups that are levels of one pyramid."""
    names, ask = sorted(groups), f"{uri}{'&' if '#' in uri else '#'}group=NAME"
    parents = {name.rpartition("/")[0] for name in names}
    if not names or len(parents) > 1 or not all(_LEVEL.fullmatch(name.rpartition("/")[2]) for name in names):
        listed = f"images are in the groups {', '.join(names[:8])}: choose" if names else "a group is chosen with"
        raise InputError(
            f"'{uri}' holds no variable with rows and columns (y, x or latitude, longitude): found "
            f"{', '.join(map(str, cube.data_vars)) or 'none'}; {listed} '{ask}'"
        )
    finest = max(names, key=lambda name: max(one.size for one in groups[name].data_vars.values()))
    notes = [f"it is read at the finest of {len(names)} levels, '{finest}'"] if len(names) > 1 else []
    return finest, groups[finest], notes


def _decoded(cube: Any, above: list[Any]) -> tuple[Any, list[str]]:
    """The cube with its coordinates decoded, and with dimensions and grid mappings that it inherits."""
    import xarray

    for outer in above:
        for name, variable in outer.variables.items():
            own = not variable.dims or (variable.dims == (name,) and variable.sizes[name] == cube.sizes.get(name))
            if own and name not in cube.variables:
                cube = cube.assign({name: variable})
    notes = []
    try:
        decoded = xarray.decode_cf(cube, decode_coords="all")
    except ValueError:  # units of a time that are none
        decoded = xarray.decode_cf(cube, decode_coords="all", decode_times=False)
        notes = ["its times cannot be understood"]
    stored = {name: cube.variables[name] for name in decoded.data_vars}
    return decoded.assign(stored), notes


def _source(path: str) -> Any:
    if not path.lower().endswith(".zarr.zip"):
        return path
    from zarr.storage import ZipStore

    return ZipStore(path, mode="r")


def _engine(path: str) -> str:
    if not re.search(r"\.(nc|nc4|cdf)$", path, re.IGNORECASE):
        return "zarr"
    for engine, library in (("netcdf4", "netCDF4"), ("h5netcdf", "h5netcdf")):
        if find_spec(library):
            return engine
    raise MissingExtraError(f"'{path}' needs a library: pip install netCDF4 (or h5netcdf)")
