"""Procedural multispectral scenes with known labels, clouds, nodata, small objects and planted duplicates.

For the demo and the tests: what a run should find is known exactly, and no pixel belongs to anybody.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.warp import transform as warp_points

from geomim.corpus.remote import aside
from geomim.corpus.textures import COLOURS, KINDS, draw_bands, noise, patches
from geomim.errors import InputError
from geomim.sensors import SENSORS, Sensor

CLASSES = ("unlabelled", *KINDS)
"""Classes of the label rasters; the place is the id, 0 is cloud and nodata."""

OBJECTS = ("ship", "storage tank")
"""Classes of the boxes."""

_BANDS = ("B02", "B03", "B04", "B08", "B11", "B12")
_LEVEL = 1500.0  # reflectance * 10,000 around which a band varies, times a factor a band
_CONTRAST = 0.16  # deviation of a band over its level
_CRS = CRS.from_epsg(32632)
_GSD = 10.0


@dataclass(frozen=True)
class Copy:
    """A square that stands in two scenes.

    Attributes:
        source: Scene it was taken from.
        source_row: First row there.
        source_col: First column there.
        target: Scene it was put into.
        target_row: First row there.
        target_col: First column there.
        size: Edge in pixels.
    """

    source: Path
    source_row: int
    source_col: int
    target: Path
    target_row: int
    target_col: int
    size: int


@dataclass(frozen=True)
class Planted:
    """What `write_scenes` wrote, and what a run over it should find.

    Attributes:
        sensor: Bands of the scenes in file order.
        scenes: Rasters, in one folder that holds nothing else.
        labels: Label raster of each scene, same grid: ids of `classes`.
        boxes: GeoJSON in OGC:CRS84 of small objects; properties `source`, `class`, `x1`, `y1`, `x2`, `y2` in pixels.
        classes: Class names; the place is the id.
        exact: Squares copied pixel by pixel.
        near: Squares copied with another gain and noise.
    """

    sensor: Sensor
    scenes: tuple[Path, ...]
    labels: tuple[Path, ...]
    boxes: Path
    classes: tuple[str, ...]
    exact: tuple[Copy, ...]
    near: tuple[Copy, ...]


@dataclass
class _Draft:
    """A scene while it is made."""

    path: Path
    pixels: np.ndarray  # (C, S, S) uint16
    labels: np.ndarray  # (S, S) uint8
    transform: Affine
    taken: set[tuple[int, int]] = field(default_factory=set)  # squares that hold a planted copy or were copied


def write_scenes(
    folder: str | Path, scenes: int = 6, size: int = 1024, bands: Sequence[str] = _BANDS, seed: int = 0
) -> Planted:
    """Write Sentinel-2-like scenes of eight land-cover kinds that pixel statistics cannot tell apart.

    Each scene has nodata (0) outside a tilted swath, some cloud, and from the second on a square that is an exact copy
    of one in the scene before, and one that is a near copy. Squares lie on a grid of a quarter of the scene, at most
    256 pixels, so that tiles of 256, 128 or 64 pixels without overlap meet them whole.

    Args:
        folder: Where `scenes/`, `labels/` and `boxes.geojson` go.
        scenes: How many.
        size: Edge of a scene in pixels, a multiple of 64, at least 256.
        bands: Sentinel-2 bands.
        seed: Another seed, other scenes; the same seed, the same bytes.

    Raises:
        InputError: `scenes` or `size` is out of range.
        BandError: A band is none of Sentinel-2.
    """
    if scenes < 1 or size < 256 or size % 64:
        raise InputError(
            f"expected at least 1 scene of a size that is a multiple of 64 from 256 on; given {scenes}, {size}"
        )
    sensor = SENSORS["sentinel2"].select(bands)
    folder = Path(folder)
    for name in ("scenes", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    exact: list[Copy] = []
    near: list[Copy] = []
    features: list[dict[str, Any]] = []
    drafts: list[_Draft] = []
    for index in range(scenes):
        rng = np.random.default_rng([seed, index])
        draft = _draw(folder / "scenes" / f"scene_{index:03d}.tif", index, size, len(bands), rng)
        features += _place_objects(draft, rng, per_class=6)
        if drafts:
            exact += _plant(drafts[-1], draft, rng, changed=False)
            near += _plant(drafts[-1], draft, rng, changed=True)
        features = _settle(features, exact + near, draft)
        drafts = [draft]  # only the scene before is needed
        _write_scene(draft, sensor, f"2024-{index % 12 + 1:02d}-15T10:30:00Z")
        _write_labels(draft, folder / "labels" / draft.path.name)
    names = [f"scene_{index:03d}.tif" for index in range(scenes)]
    collection = {"type": "FeatureCollection", "name": "boxes", "features": features}
    with aside(folder / "boxes.geojson") as file:
        file.write(json.dumps(collection, indent=1).encode())
    return Planted(
        sensor=sensor,
        scenes=tuple(folder / "scenes" / name for name in names),
        labels=tuple(folder / "labels" / name for name in names),
        boxes=folder / "boxes.geojson",
        classes=CLASSES,
        exact=tuple(exact),
        near=tuple(near),
    )


def _draw(path: Path, index: int, size: int, count: int, rng: np.random.Generator) -> _Draft:
    kind, angle = patches(rng, size, len(KINDS))
    level = _LEVEL * np.linspace(0.7, 1.5, count, dtype=np.float32)[:, None, None]
    pixels = level * (1 + _CONTRAST * draw_bands(rng, kind, angle, count))
    cloud = np.clip((noise(rng, (size, size), 0.15 * size, 0.6 * size) - 1.9) / 0.3, 0, 1)
    pixels += cloud * (3600 + 300 * noise(rng, (size, size), 20, 120) - pixels)
    pixels = np.clip(np.rint(pixels), 1, 65535).astype(np.uint16)
    outside = _outside_swath(size, rng)
    pixels[:, outside] = 0
    labels = np.where((cloud > 0.3) | outside, 0, kind + 1).astype(np.uint8)
    transform = Affine(_GSD, 0, 500000 + index * (size + 64) * _GSD, 0, -_GSD, 5400000)
    return _Draft(path, pixels, labels, transform)


def _outside_swath(size: int, rng: np.random.Generator) -> np.ndarray:
    """Wedges left and right, as the tilted swath of a polar orbit leaves them, and a few missing lines on top."""
    slope = np.tan(np.deg2rad(rng.uniform(7, 11)))
    row, col = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    left = col + slope * row < 0.1 * size
    right = (size - col) + slope * (size - row) < 0.1 * size
    return left | right | (row < 3)


def _square(size: int) -> int:
    """Edge of planted squares."""
    return min(256, size // 4 // 64 * 64)


def _free_squares(draft: _Draft) -> list[tuple[int, int]]:
    """Corners of grid squares without nodata, under little cloud and not part of a copy yet."""
    size, edge = draft.labels.shape[0], _square(draft.labels.shape[0])
    free = []
    for row, col in product(range(0, size, edge), repeat=2):
        cut = (slice(row, row + edge), slice(col, col + edge))
        if (row, col) not in draft.taken and draft.pixels[0][cut].all() and (draft.labels[cut] > 0).mean() > 0.8:
            free.append((row, col))
    return free


def _another_look(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same ground under another sun: 4 % brighter, with half a percent of noise."""
    look = pixels * 1.04 * (1 + 0.005 * rng.standard_normal(pixels.shape, np.float32))
    return np.clip(np.rint(look), 1, 65535).astype(np.uint16)


def _plant(source: _Draft, target: _Draft, rng: np.random.Generator, changed: bool) -> list[Copy]:
    """Copy one free square, labels too; none where there is no free one."""
    sources, targets = _free_squares(source), _free_squares(target)
    if not sources or not targets:
        return []
    here, there = sources[rng.integers(len(sources))], targets[rng.integers(len(targets))]
    edge = _square(target.labels.shape[0])
    cut = (slice(here[0], here[0] + edge), slice(here[1], here[1] + edge))
    put = (slice(there[0], there[0] + edge), slice(there[1], there[1] + edge))
    pixels = source.pixels[:, *cut]
    target.pixels[:, *put] = _another_look(pixels, rng) if changed else pixels
    target.labels[put] = source.labels[cut]
    source.taken.add(here)
    target.taken.add(there)
    return [Copy(source.path, *here, target.path, *there, edge)]


def _place_objects(draft: _Draft, rng: np.random.Generator, per_class: int) -> list[dict[str, Any]]:
    """Ships on water, storage tanks in towns: drawn into the pixels, each with its box."""
    features = []
    for name, ground in zip(OBJECTS, ("water", "urban"), strict=True):
        rows, cols = np.nonzero(draft.labels == CLASSES.index(ground))
        for place in rng.permutation(len(rows))[:per_class]:
            box = _stamp(draft, int(rows[place]), int(cols[place]), name, rng)
            if box is not None:
                features.append(_feature(draft, name, box))
    return features


def _stamp(draft: _Draft, row: int, col: int, name: str, rng: np.random.Generator) -> tuple[int, int, int, int] | None:
    """Draw an object around a pixel; its box `(x1, y1, x2, y2)`, or None too near the border."""
    reach = 12
    size = draft.labels.shape[0]
    if min(row, col) < reach or max(row, col) >= size - reach:
        return None
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    if name == "ship":
        angle = rng.uniform(0, np.pi)
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        body = (np.abs(along) < rng.uniform(5, 9)) & (np.abs(across) < 1.8)
    else:
        body = np.hypot(x, y) < rng.uniform(4, 7)
    around = (slice(row - reach, row + reach + 1), slice(col - reach, col + reach + 1))
    if not draft.labels[around].all():
        return None
    draft.pixels[:, *around][:, body] = 4200
    ys, xs = np.nonzero(body)
    left, top = col - reach, row - reach
    return left + int(xs.min()), top + int(ys.min()), left + int(xs.max()) + 1, top + int(ys.max()) + 1


def _feature(draft: _Draft, name: str, box: tuple[int, int, int, int]) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    left, top = draft.transform.c, draft.transform.f
    eastings = [left + _GSD * x for x in (x1, x1, x2, x2, x1)]
    northings = [top - _GSD * y for y in (y1, y2, y2, y1, y1)]
    lon, lat = warp_points(_CRS, "OGC:CRS84", eastings, northings)
    ring = [[round(x, 7), round(y, 7)] for x, y in zip(lon, lat, strict=True)]
    return {
        "type": "Feature",
        "properties": {"source": draft.path.name, "class": name, "x1": x1, "y1": y1, "x2": x2, "y2": y2},
        "geometry": {"type": "Polygon", "coordinates": [ring]},
    }


def _settle(features: list[dict[str, Any]], copies: Sequence[Copy], target: _Draft) -> list[dict[str, Any]]:
    """Boxes after planting: those a copy covers are gone, those that lie wholly in a copied square are copied."""
    settled = list(features)
    for copy in copies:
        if copy.target != target.path:
            continue  # settled with its own scene
        settled = [
            box for box in settled if not _touches(box, copy.target, copy.target_row, copy.target_col, copy.size)
        ]
        for box in features:
            if _touches(box, copy.source, copy.source_row, copy.source_col, copy.size, whole=True):
                values = box["properties"]
                down, right = copy.target_row - copy.source_row, copy.target_col - copy.source_col
                moved = (values["x1"] + right, values["y1"] + down, values["x2"] + right, values["y2"] + down)
                settled.append(_feature(target, values["class"], moved))
    return settled


def _touches(box: dict[str, Any], scene: Path, row: int, col: int, size: int, whole: bool = False) -> bool:
    values = box["properties"]
    if values["source"] != scene.name:
        return False
    x1, y1, x2, y2 = (values[key] for key in ("x1", "y1", "x2", "y2"))
    if whole:
        return bool(x1 >= col and y1 >= row and x2 <= col + size and y2 <= row + size)
    return bool(x1 < col + size and x2 > col and y1 < row + size and y2 > row)


def _write_scene(draft: _Draft, sensor: Sensor, time: str) -> None:
    with _writing(draft.path, draft.pixels, draft.transform, predictor=2, interleave="band") as raster:
        raster.update_tags(LICENCE="CC0-1.0")
        raster.update_tags(ns="IMAGERY", ACQUISITIONDATETIME=time)
        for place, band in enumerate(sensor.bands, start=1):
            raster.set_band_description(place, band.name)
            raster.update_tags(
                place,
                ns="IMAGERY",
                CENTRAL_WAVELENGTH_UM=f"{(band.wavelength or 0) / 1000:.4f}",
                FWHM_UM=f"{(band.bandwidth or 0) / 1000:.4f}",
            )


def _write_labels(draft: _Draft, path: Path) -> None:
    with _writing(path, draft.labels[None], draft.transform) as raster:
        raster.set_band_description(1, "class")
        raster.write_colormap(1, {0: (0, 0, 0, 0)} | {i: COLOURS[n] for i, n in enumerate(CLASSES) if i})
        raster.colorinterp = [ColorInterp.palette]
        raster.update_tags(CLASSES=json.dumps(CLASSES))


@contextmanager
def _writing(path: Path, pixels: np.ndarray, transform: Affine, **options: Any) -> Iterator[Any]:
    """A GeoTIFF beside its place, renamed once all is written."""
    count, height, width = pixels.shape
    profile = {"count": count, "height": height, "width": width, "dtype": pixels.dtype.name, "nodata": 0}
    profile |= {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", "zlevel": 1}
    part = path.with_name(f".{path.name}")
    with rasterio.open(part, "w", driver="GTiff", crs=_CRS, transform=transform, **profile, **options) as raster:
        raster.write(pixels)
        yield raster
    os.replace(part, path)
