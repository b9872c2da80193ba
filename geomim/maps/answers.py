"""What is made of the scores of patches: pixels, classes and outlines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
import torch
from affine import Affine
from rasterio.features import geometry_mask, shapes
from rasterio.windows import Window
from torch.nn import functional as F

from geomim.corpus.scenes import Scene
from geomim.corpus.scenes.footprints import affine
from geomim.maps.files.layers import layer
from geomim.maps.files.rasters import MADE, NODATA, create, name_classes, open_map, placed, write_cog, write_names

_ROWS = 32  # of a raster in memory at a time
NONE = "none of these"


def _strips(raster: Any, rows: int = _ROWS) -> Iterator[Window]:
    for top in range(0, raster.height, rows):
        yield Window(0, top, raster.width, min(rows, raster.height - top))


def enlarge(patches: Path, scene: Scene, cell: int) -> Path:
    """Scores of patches as those of the scene's pixels, interpolated bilinearly among patches with image.

    Args:
        patches: A value a patch, NaN without image.
        scene: Its pixels without image get none.
        cell: Side of a patch in pixels.

    Returns:
        Another raster in the same folder.
    """
    out, size = patches.with_name("pixels.tif"), {"height": scene.height, "width": scene.width}
    with open_map(patches) as raster:
        profile = {"dtype": "float32", "count": raster.count, "nodata": np.nan, "compress": "deflate", "zlevel": 1}
        with create(out, profile | size | placed(scene, 1)) as pixels:
            pixels.descriptions = raster.descriptions
            pixels.update_tags(**raster.tags())
            for strip in _strips(raster, max(1, _ROWS // cell)):
                above, below = min(strip.row_off, 1), min(raster.height - strip.row_off - strip.height, 1)
                around = Window(0, strip.row_off - above, raster.width, strip.height + above + below)
                inner = np.s_[above * cell : (above + strip.height) * cell]
                values = _interpolated(raster.read(window=around), cell)[:, inner]
                top = strip.row_off * cell
                values = values[:, : scene.height - top, : scene.width]
                window = Window(0, top, scene.width, values.shape[1])
                pixels.write(np.where(scene.valid(window), values, np.nan).astype(np.float32), window=window)
    return out


def _interpolated(values: np.ndarray, times: int) -> np.ndarray:
    """Values `(K, h, w)` so many times as large, of those that are not NaN; NaN stays."""
    seen = torch.from_numpy(np.isfinite(values[:1])).float()
    both = torch.cat([torch.from_numpy(np.nan_to_num(values)), seen])[None]
    large = F.interpolate(both, scale_factor=times, mode="bilinear", align_corners=False)[0].numpy()
    held = seen[0].numpy().astype(bool).repeat(times, 0).repeat(times, 1)
    return np.where(held, large[:-1] / np.where(held, large[-1:], 1), np.nan)


def classify(
    scores: Path,
    place: dict[str, object],
    texts: Sequence[str],
    threshold: float | None,
    path: Path,
    tags: Mapping[str, str],
) -> Path:
    """Write which text scores highest, with names and colours; none of them where all are below the threshold."""
    names = [*texts, *([] if threshold is None else [NONE])]
    plain = scores.with_name("classes.tif")
    with open_map(scores) as raster:
        profile = {"dtype": "uint8", "count": 1, "nodata": NODATA, "height": raster.height, "width": raster.width}
        with create(plain, profile | place) as ids:
            name_classes(ids, names)
            ids.update_tags(**tags)
            for strip in _strips(raster):
                values = raster.read(window=strip)
                best = values.argmax(0)
                if threshold is not None:
                    best = np.where(values.max(0) >= threshold, best, len(texts))
                best = np.where(np.isfinite(values[0]), best, NODATA)
                ids.write(best.astype(np.uint8), 1, window=strip)
    write_cog(plain, path, "nearest")
    write_names(path, names)
    return path


def outline(patches: Path, scene: Scene, cell: int, threshold: float, path: Path, tags: Mapping[str, str]) -> Path:
    """Write the borders of patches that score at least a threshold, with mean and highest score.

    Where the scene has no place they are in its pixels, rows counted below 0, as GIS show such rasters.

    Args:
        patches: Scores; bands are described by their texts.
        scene: Gives them their place.
        cell: Side of a patch in pixels.
        threshold: Least score.
        path: A GeoPackage.
        tags: What is told beside, see `check_replaced`.
    """
    outlines, rows = [], []
    with open_map(patches) as raster:
        for band, text in enumerate(raster.descriptions, 1):
            for shape in _shapes(raster, band, threshold, patches.with_name("above.tif")):
                low, high = shape.bounds[:2], shape.bounds[2:]
                window = Window(*map(int, low), *(int(b - a) for a, b in zip(low, high, strict=True)))
                values = raster.read(band, window=window)
                inside = geometry_mask([shape], values.shape, Affine.translation(*low), invert=True)
                held = values[inside]
                outlines.append(shape)
                rows.append((text, float(held.mean()), float(held.max()), len(held)))
    place = scene.placement if scene.transform is None else affine(scene.transform)
    if place is None:
        print(f"note: '{scene.uri}' has no place on Earth: the outlines are in its pixels, rows counted below 0")
    place = place or (lambda columns, down: (columns, -down))
    there = shapely.transform(outlines, lambda xy: np.stack(place(*(xy.T * cell)), 1)) if outlines else []
    kinds = {"text": object, "mean": np.float64, "highest": np.float64, "patches": np.int64}
    values = zip(*rows, strict=True) if rows else [()] * len(kinds)
    columns = {name: np.array(one, kinds[name]) for name, one in zip(kinds, values, strict=True)}
    with layer(path, scene.crs, {MADE: "yes", **tags}) as write:
        write(columns, np.array(there, object))
    return path


def _shapes(raster: Any, band: int, threshold: float, scratch: Path) -> Iterator[Any]:
    """Polygons in patches around those of a band that score at least a threshold; the mask of them is on disk."""
    with create(scratch, {"dtype": "uint8", "count": 1, "height": raster.height, "width": raster.width}) as mask:
        for strip in _strips(raster):
            mask.write((raster.read(band, window=strip) >= threshold).astype(np.uint8), 1, window=strip)
    with open_map(scratch) as mask:
        for shape, _ in shapes(rasterio.band(mask, 1), rasterio.band(mask, 1)):
            yield shapely.geometry.shape(shape)
