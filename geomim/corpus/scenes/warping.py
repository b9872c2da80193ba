"""Bring rasters to a north-up grid or to another pixel size, only when asked; pixels from outside are invalid."""

from __future__ import annotations

import math
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from rasterio._err import CPLE_BaseError  # rasterio does not translate all of them
from rasterio.crs import CRS
from rasterio.enums import MaskFlags, Resampling
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform as transform_points

from geomim.corpus.scenes.files import cause, environment
from geomim.corpus.scenes.footprints import SPLINE_POINTS, Grid, on_earth
from geomim.corpus.scenes.scene import Wanted
from geomim.errors import InputError

_BLOCK = 512  # rows and columns that are warped at a time: twice as fast as GDAL's 128 x 512
_SAME = 1e-4  # relative difference of pixel sizes that are one


def wanted_grid(uri: str, dataset: Any, wanted: Wanted) -> Grid | None:
    """The grid that a raster is to be brought to, or None where it stays as it is.

    `auto` leaves alone what is north-up in a projected system, and what has no place at all.

    Args:
        uri: The raster, for error sentences.
        dataset: Open rasterio dataset.
        wanted: What is asked for.

    Raises:
        InputError: The raster has no place to warp from, or the system measures in degrees and the pixel in metres.
    """
    warp, resolution = wanted.warp, wanted.resolution
    if warp is None and resolution is None:
        return None
    source, method = _source(dataset)
    if warp is None and source is not None and dataset.transform == Affine.identity():
        raise InputError(f"'{uri}' is placed by points and not by a grid: give --warp auto with --resolution")
    if warp is None or (warp == "auto" and (source is None or not on_earth(source))):
        return None if resolution is None else _resampled(uri, Grid.of(dataset), resolution)
    if source is None or not on_earth(source):
        raise InputError(f"'{uri}' has no place on Earth to warp from: leave --warp out, or give its place first")
    target = _automatic(dataset, source, method) if warp == "auto" else named_crs(warp)
    upright = dataset.transform != Affine.identity() and dataset.transform.b == dataset.transform.d == 0
    if upright and target == source:
        return None if resolution is None else _resampled(uri, Grid.of(dataset), resolution)
    try:
        with environment(uri), WarpedVRT(dataset, crs=target, **method) as warped:
            grid = Grid.of(warped)
    except (RasterioError, CPLE_BaseError) as error:
        raise InputError(f"'{uri}' cannot be warped to {_short(target)} ({cause(error)})") from error
    if resolution is not None:
        return _resampled(uri, grid, resolution) or grid
    _check_sizes(uri, dataset, grid)
    return grid


def _check_sizes(uri: str, dataset: Any, grid: Grid) -> None:
    """Refuse a grid that spends its pixels on going round the Earth."""
    before, after = Grid.of(dataset).gsd, grid.gsd
    if before and after and after > 4 * before:
        raise InputError(
            f"'{uri}' would come from pixels of {before:.4g} m to {after:.4g} m in {_short(grid.crs)}, as what crosses "
            "the date line or a pole does: warp it to another system (--warp)"
        )


def _short(crs: CRS) -> str:
    return str(crs.to_string())[:40]


def check_grid(uri: str, grid: Grid | None, wanted: Wanted) -> None:
    """Refuse to bring a scene to another grid that is read on its own only: a cube, an array in memory.

    Raises:
        InputError: What is asked for is another grid.
    """
    crs, warp, resolution = grid.crs if grid else None, wanted.warp, wanted.resolution
    projected = crs is not None and crs.is_projected
    kept = warp is None or (crs is None or projected if warp == "auto" else crs == named_crs(warp))
    if resolution is not None:
        kept &= grid is not None and projected and math.isclose(grid.metres[0], resolution, rel_tol=_SAME)
    if not kept:
        raise InputError(f"'{uri}' is read on its own grid only: leave --warp and --resolution out")


def on_grid(
    uri: str,
    dataset: Any,
    grid: Grid,
    places: Sequence[int],
    *,
    alpha: int | None = None,
    nodata: float | None = None,
    nearest: bool = False,
) -> Any:
    """Some bands of a raster on another grid, read lazily; the raster may be closed afterwards.

    Args are those of `readers.stored`; `nodata` means "no measurement" in all of the bands; where it is None, nothing
    does, whatever the file declares.

    Returns:
        The bands in the order given, and after them an alpha band: 0 where no pixel of the raster lies.
    """
    with environment(uri), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(_subset(dataset, places, alpha, nodata is not None)) as chosen:
            if nodata is None and np.dtype(chosen.dtypes[0]).kind == "f":
                nodata = math.nan  # else one NaN spoils its neighbours
            source, method = _source(chosen)
            warped = WarpedVRT(
                chosen,
                src_crs=source or grid.crs,
                crs=grid.crs,
                src_nodata=nodata,
                add_alpha=alpha is None,
                resampling=Resampling.nearest if nearest else Resampling.bilinear,
                UNIFIED_SRC_NODATA="PARTIAL",  # a pixel is missing where all bands are
                **method,
            )
            with warped:
                return rasterio.open(_moved(warped.tags(ns="xml:VRT")["xml:VRT"], grid, nodata))


def _moved(warped: str, grid: Grid, nodata: float | None) -> str:
    """A virtual warped raster on another grid, nodata where it has no pixel.

    rasterio itself takes a grid only where there are no control points, and writes 0 beside an alpha band.
    """
    root = ElementTree.fromstring(warped)
    root.set("rasterXSize", str(grid.width))
    root.set("rasterYSize", str(grid.height))
    for name, transform in (
        ("GeoTransform", grid.transform),
        ("DstGeoTransform", grid.transform),
        ("DstInvGeoTransform", ~grid.transform),
    ):
        for place in root.iter(name):
            place.text = ",".join(repr(float(value)) for value in transform.to_gdal())
    for name, size in (("BlockXSize", grid.width), ("BlockYSize", grid.height)):
        for length in root.iter(name):
            length.text = str(min(_BLOCK, size))
    for option in root.iter("Option"):
        if option.get("name") == "INIT_DEST" and nodata is not None:
            option.text = repr(nodata)
    return ElementTree.tostring(root, encoding="unicode")


def _source(dataset: Any) -> tuple[CRS | None, dict[str, Any]]:
    """System of a raster's affine, control points or polynomials, None without a place; and how GDAL uses these."""
    points, crs = dataset.gcps
    if dataset.transform != Affine.identity():
        return dataset.crs or None, {}
    if points:  # the spline is that of `by_control_points`
        return crs or None, {"METHOD": "GCP_TPS" if len(points) <= SPLINE_POINTS else "GCP_POLYNOMIAL"}
    if dataset.rpcs:
        return CRS.from_epsg(4326), {"METHOD": "RPC", "RPC_HEIGHT": str(dataset.rpcs.height_off)}
    return None, {}


def named_crs(warp: str) -> CRS:
    """The coordinate reference system that `--warp` names.

    Raises:
        InputError: There is none of that name.
    """
    try:
        return CRS.from_user_input(f"EPSG:{warp}" if warp.isdigit() else warp)
    except CRSError as error:
        raise InputError(
            f"--warp '{warp}' is no coordinate reference system: give auto or an EPSG code such as EPSG:32632"
        ) from error


def _automatic(dataset: Any, source: CRS, method: Mapping[str, Any]) -> CRS:
    """The raster's own system where it is projected, else the UTM zone of its middle (polar stereographic beyond)."""
    if source.is_projected:
        return source
    with WarpedVRT(dataset, crs=source, **method) as upright:
        middle = Grid.of(upright).at(upright.width / 2, upright.height / 2)
    (longitude,), (latitude,) = transform_points(source, "OGC:CRS84", [middle[0]], [middle[1]])
    if abs(latitude) > 84:
        return CRS.from_epsg(3413 if latitude > 0 else 3031)
    zone = int((longitude + 180) // 6) % 60 + 1
    return CRS.from_epsg((32600 if latitude >= 0 else 32700) + zone)


def _resampled(uri: str, grid: Grid, resolution: float) -> Grid | None:
    """The same place in pixels of `resolution` metres; None where they are that already."""
    if grid.crs is None or not grid.crs.is_projected:
        told = "has no place on Earth" if grid.crs is None else "is placed in degrees"
        raise InputError(f"'{uri}' {told}, so --resolution in metres says nothing: leave it out, or give --warp too")
    across, down = grid.metres
    if math.isclose(across, resolution, rel_tol=_SAME) and math.isclose(down, resolution, rel_tol=_SAME):
        return None
    return Grid(
        grid.crs,
        grid.transform @ Affine.scale(resolution / across, resolution / down),
        max(round(grid.height * down / resolution), 1),
        max(round(grid.width * across / resolution), 1),
    )


def _subset(dataset: Any, places: Sequence[int], alpha: int | None, nodata: bool) -> str:
    """A virtual raster of some bands: the others are not warped for nothing, and alpha is what naming took for it.

    Without `nodata` what the file declares is a number like others, such as 0 in cloud masks, which means clear.
    """
    with MemoryFile(ext=".vrt") as file:
        rasterio.shutil.copy(dataset, file.name, driver="VRT")
        root = ElementTree.fromstring(file.read())
    bands = root.findall("VRTRasterBand")
    for band in bands:
        root.remove(band)
    wanted = [bands[place] for place in (*places, *(() if alpha is None else (alpha,)))]
    for number, band in enumerate(wanted, start=1):
        colour = band.find("ColorInterp")
        if colour is None:
            colour = ElementTree.SubElement(band, "ColorInterp")
        colour.text = "Alpha" if alpha is not None and number == len(wanted) else "Undefined"
        band.set("band", str(number))
        for none in [] if nodata else band.findall("NoDataValue"):
            band.remove(none)
        root.append(band)
    if MaskFlags.per_dataset not in dataset.mask_flag_enums[0] or MaskFlags.alpha in dataset.mask_flag_enums[0]:
        for mask in root.findall("MaskBand"):
            root.remove(mask)
    return ElementTree.tostring(root, encoding="unicode")
