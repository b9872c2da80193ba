"""How like something the patches of a scene are, by the cosines of their vectors: a raster that lies on the scene."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pyproj import Transformer
from rasterio.windows import Window
from rich.console import Console
from rich.progress import track

from geomim.errors import ConfigError, InputError
from geomim.maps.embeddings.patches import PatchRaster
from geomim.maps.files.layers import check_replaced
from geomim.maps.files.rasters import create, write_cog


def example(patches: PatchRaster, like: str) -> np.ndarray:
    """The vector `(1, D)` of the patch at a place.

    Args:
        patches: Vectors of a scene.
        like: `X,Y` in the raster's CRS; or longitude and latitude, where no patch lies at these coordinates otherwise.
            Of a raster without place column and row.

    Raises:
        ConfigError: It is no pair of numbers.
        InputError: There is no patch, or it holds no image.
    """
    try:
        x, y = map(float, like.split(","))
    except ValueError as error:
        raise ConfigError(f"--like: expected coordinates X,Y of a place in the scene; given '{like}'") from error
    found, crs = patches.locate(x, y), patches.place.get("crs")
    if found is None and crs and abs(x) <= 360 and abs(y) <= 90:
        projected, north = Transformer.from_crs("OGC:CRS84", crs, always_xy=True).transform(x, y)
        turns = range(-720, 721, 360) if crs.is_geographic else (0,)  # longitudes may be counted from anywhere
        for east in [projected + turn for turn in turns] if np.isfinite((projected, north)).all() else []:
            if found := patches.locate(east, north):
                print(f"note: {like} is taken as longitude and latitude: {east:.10g},{north:.10g} of {crs}")
                break
    if found is None:
        raise InputError(
            f"--like {like}: no patch of '{patches.name}' lies there; expected X,Y in {_extent(patches)}, or longitude,"
            "latitude"
        )
    vector = patches.read(Window(found[1], found[0], 1, 1))[:, 0, 0]
    if np.isnan(vector).any():
        raise InputError(f"--like {like}: the patch there holds no image: name a place that does")
    return vector[None]


def _extent(patches: PatchRaster) -> str:
    """Where patches lie, in words."""
    _, rows, columns = patches.shape
    if "gcps" in patches.place:
        xs, ys = ([getattr(point, axis) for point in patches.place["gcps"]] for axis in "xy")
    else:
        corners = [(0, 0), (columns, 0), (0, rows), (columns, rows)]
        transform = patches.place.get("transform")
        xs, ys = zip(*(transform @ corner if transform else corner for corner in corners), strict=True)
    named = patches.place.get("crs") or "columns and rows"
    return f"{min(xs):.10g}..{max(xs):.10g}, {min(ys):.10g}..{max(ys):.10g} ({named})"


def write_cosines(patches: PatchRaster, asked: np.ndarray, titles: Sequence[str], out: Path) -> None:
    """Write the cosine of every patch to some vectors; a block of patches is in memory at a time.

    Args:
        patches: Vectors of a scene.
        asked: `(n, D)`.
        titles: What the n bands are called.
        out: A cloud-optimised GeoTIFF of float32, NaN where there is no image; one of the same scene is replaced.

    Raises:
        InputError: The file there is of another scene, or no map.
    """
    check_replaced("--out", out, patches.card["source"])
    asked = asked / np.linalg.norm(asked, axis=1, keepdims=True).clip(1e-12)
    _, rows, columns = patches.shape
    profile = {"dtype": "float32", "count": len(asked), "height": rows, "width": columns, "nodata": np.nan}
    tiled = {"tiled": True, "blockxsize": 128, "blockysize": 128}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.stem}.") as scratch:
        with create(Path(scratch) / "cosines.tif", {**profile, **tiled, **patches.place}) as raster:
            raster.descriptions = tuple(titles)
            told = {"ENCODER": patches.card["encoder"], "MODEL": patches.card["checkpoint"]}
            raster.update_tags(GEOMIM_MAP="cosines", SCENE=patches.card["source"], **told)
            console = Console(stderr=True)
            for window, vectors in track(patches.blocks(), "comparing patches", console=console, transient=True):
                length = np.linalg.norm(vectors, axis=0).clip(1e-12)
                raster.write((np.tensordot(asked, vectors, 1) / length).astype(np.float32), window=window)
        write_cog(Path(raster.name), out, "average")
