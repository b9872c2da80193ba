"""Drawn scenes with known labels, clouds, nodata, objects and planted duplicates, on one date or two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import shapely
from rasterio.features import shapes as outlines

from geomim.corpus.synthetic.cover import Season, draw_cover
from geomim.corpus.synthetic.drafts import Box, Copy, Draft, mapped, plant
from geomim.corpus.synthetic.files import (
    features,
    placed,
    transform_of,
    write_boxes,
    write_classes,
    write_map,
    write_scene,
)
from geomim.corpus.synthetic.land import CLASSES, ID, Land, burn, draw_land
from geomim.corpus.synthetic.light import Look, expose
from geomim.corpus.synthetic.spectra import BANDS
from geomim.errors import InputError
from geomim.sensors import SENSORS, Sensor

CHANGES = ("unlabelled", "unchanged", "construction", "harvest", "flood")
"""Classes of the rasters of changes; the place is the id, 0 is cloud or nodata on either date, and planted copies."""

_MAPPED = {"cropland": "field", "meadow": "meadow", "orchard": "orchard", "bare soil": "fallow field"}
"""What a parcel is called on the map."""


@dataclass(frozen=True)
class Planted:
    """What `write_scenes` wrote, and what a run over it should find.

    Attributes:
        sensor: Bands of the scenes in file order.
        scenes: Rasters, in one folder without others.
        labels: Label raster of each scene, same grid: ids of `classes`.
        boxes: GeoJSON in OGC:CRS84 of objects; properties `source`, `class`, `x1`, `y1`, `x2`, `y2` in pixels.
        map: GeoPackage of parcels, lakes, rivers and roads; columns `class` and `source`.
        classes: Class names; the place is the id.
        exact: Squares copied pixel by pixel.
        near: Squares copied with another gain and noise.
        later: Rasters of the second date, one a scene; none where none was asked for.
        changes: Rasters of `CHANGES` between the dates, same grid.
    """

    sensor: Sensor
    scenes: tuple[Path, ...]
    labels: tuple[Path, ...]
    boxes: Path
    map: Path
    classes: tuple[str, ...]
    exact: tuple[Copy, ...]
    near: tuple[Copy, ...]
    later: tuple[Path, ...] = ()
    changes: tuple[Path, ...] = ()


def write_scenes(
    folder: str | Path,
    scenes: int = 6,
    size: int = 1024,
    bands: Sequence[str] = BANDS,
    seed: int = 0,
    later: bool = False,
) -> Planted:
    """Write Sentinel-2-like scenes of mountains, farmland, towns and desert, some of whose classes share a spectrum.

    Relief comes first and water runs down it; cover follows relief, water and drought; people divide what is flat. Sun,
    haze, gain and season differ by scene, so that a spectrum alone says little of a class in another scene. A pixel is
    2.5 m wide, finer than the satellite's, so that layout is to be seen. Each scene has nodata (0) outside a tilted
    swath, some cloud with its shadow, and from the second on a square that is an exact copy of one in the scene before,
    and one that is a near copy. Squares lie on a grid of a quarter of the scene, at most 128 pixels, so that tiles of
    128 or 64 pixels without overlap meet them whole.

    Args:
        folder: Where `scenes/`, `labels/`, `boxes.geojson` and `map.gpkg` go.
        scenes: How many.
        size: Edge of a scene in pixels, a multiple of 64, at least 256.
        bands: Sentinel-2 bands.
        seed: Another seed, other scenes; the same seed, the same bytes on one machine.
        later: Write each scene a second time into `later/`, months after, with new buildings, reaped fields and a
            flood, and what changed into `changes/`.

    Raises:
        InputError: `scenes` or `size` is out of range, or the folder holds rasters that these would not replace.
        BandError: A band is none of Sentinel-2.
    """
    if scenes < 1 or size < 256 or size % 64:
        raise InputError(
            f"expected at least 1 scene of a size that is a multiple of 64 from 256 on; given {scenes}, {size}"
        )
    sensor, folder = SENSORS["sentinel2"].select(bands), Path(folder)
    names = [f"scene_{index:03d}.tif" for index in range(scenes)]
    kinds = ("scenes", "labels", *(("later", "changes") if later else ()))
    _make_room(folder, {folder / kind / name for kind in kinds for name in names})
    exact, near, boxes, shapes, before = [], [], [], [], None
    for index in range(scenes):
        place = _Place(seed, index, size, sensor)
        draft, hidden = place.draft(folder / "scenes" / names[index])
        if before is not None:  # only the scene before is needed
            exact += plant(before, draft, place.rng(8), changed=False)
            near += plant(before, draft, place.rng(9), changed=True)
        write_scene(draft.path, draft.pixels, draft.transform, sensor, place.month)
        write_classes(folder / "labels" / draft.path.name, draft.labels, draft.transform, CLASSES)
        if later:
            _write_later(folder, place, draft, hidden, [one for one in (*exact, *near) if one.target == draft.path])
        boxes += features(draft)
        shapes += placed(draft)
        before = draft
    write_boxes(folder / "boxes.geojson", boxes)
    write_map(folder / "map.gpkg", shapes)
    rasters = {kind: tuple(folder / kind / name for name in names) for kind in kinds}
    files = {"boxes": folder / "boxes.geojson", "map": folder / "map.gpkg"}
    return Planted(sensor=sensor, classes=CLASSES, exact=tuple(exact), near=tuple(near), **rasters, **files)


def _make_room(folder: Path, own: set[Path]) -> None:
    """Make the folders of a set of rasters; a folder that holds others would no longer be what `Planted` says."""
    found = {path for kind in ("scenes", "labels", "later", "changes") for path in (folder / kind).glob("[!.]*.tif")}
    if found - own:
        raise InputError(
            f"'{min(found - own)}' is not of the scenes to be drawn: write to another folder, or remove it"
        )
    for path in own:
        path.parent.mkdir(parents=True, exist_ok=True)


class _Place:
    """One piece of land that can be seen on several dates; months count from January 2024."""

    def __init__(self, seed: int, index: int, size: int, sensor: Sensor) -> None:
        self.seed, self.sensor = (seed, index), sensor
        self.sandy = self.rng(0).uniform(0.15, 0.7)
        self.land = draw_land(self.rng(1), size)
        self.month, self.transform = 5 * index % 12, transform_of(index, size)
        self.bands = [BANDS.index(name) for name in sensor.names]

    def rng(self, purpose: int) -> np.random.Generator:
        return np.random.default_rng([*self.seed, purpose])

    def draft(self, path: Path) -> tuple[Draft, np.ndarray]:
        """The first date, and where nothing is to be seen of it, `(S, S)` bool."""
        pixels, cloud, outside = self.picture(self.month)
        labels = np.where(cloud | outside, 0, self.land.label).astype(np.uint8)
        shapes = _shapes(self.land, ~(cloud | outside))
        draft = Draft(path, pixels, labels, self.transform, _boxes(self.land, labels), shapes)
        return draft, cloud | outside

    def picture(self, month: int, later: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A month's numbers `(C, S, S)` uint16, and `(S, S)` bool under clouds and outside of the swath."""
        rng = self.rng(3 if later else 2)
        summer = np.cos(2 * np.pi * month / 12)
        season = Season(
            green=float(np.clip(0.6 + 0.25 * np.cos(2 * np.pi * (month - 11) / 12) + rng.normal(0, 0.1), 0.2, 0.95)),
            mud=0.9 if later else rng.uniform(0.05, 0.4),
            sandy=self.sandy,
            leaf=float(np.clip(0.8 + 0.5 * summer, 0.5, 1)),
            later=later,
        )
        look = Look(
            elevation=float(np.deg2rad(46 + 16 * summer + rng.normal(0, 2))),
            azimuth=float(np.deg2rad(50 + 15 * summer + rng.normal(0, 5))),
            aod=rng.uniform(0.03, 0.28),
            gain=rng.uniform(0.88, 1.12),
            cloudy=rng.uniform(0, 0.06),
        )
        cover = draw_cover(self.rng(4), self.land, season)
        light, cloud = expose(rng, self.land.terrain.height, cover, look, self.bands)
        outside = _outside_swath(len(cloud), self.rng(7 if later else 6))
        pixels = np.where(outside, 0, np.clip(np.rint(1e4 * light), 1, 65535)).astype(np.uint16)
        return pixels, cloud > 0.3, outside

    def change(self) -> np.ndarray:
        """Let months pass; `(S, S)` uint8 in `CHANGES`."""
        land, rng = self.land, self.rng(5)
        fields = np.unique(land.parcel[(land.label == ID["cropland"]) & (land.parcel >= 0)])
        reaped = np.isin(np.arange(len(land.kind)), rng.permutation(fields)[: (len(fields) + 1) // 2])
        built = burn([one.shape for one in land.buildings if one.new], len(land.label)) > 0
        low = (land.terrain.hand < rng.uniform(1.5, 3.0)) & ~np.isin(land.label, [0, ID["snow"], ID["settlement"]])
        flood = low & (land.label != ID["water"])
        harvest = (land.parcel >= 0) & reaped[land.parcel] & (land.label == ID["cropland"])
        changed = np.ones(land.label.shape, np.uint8)
        for name, where in (("harvest", harvest), ("flood", flood), ("construction", built)):
            changed[where] = CHANGES.index(name)
        self.land = replace(land, label=np.where(flood, ID["water"], land.label).astype(np.uint8), stubble=reaped)
        return changed


def _write_later(folder: Path, place: _Place, draft: Draft, hidden: np.ndarray, copied: Sequence[Copy]) -> None:
    """The second date, and what has changed until then; nothing is said of copied squares, which show another place."""
    changed, month = place.change(), place.month + 4
    pixels, cloud, outside = place.picture(month, later=True)
    changed[hidden | cloud | outside] = 0
    for one in copied:
        changed[one.target_row : one.target_row + one.size, one.target_col : one.target_col + one.size] = 0
    write_scene(folder / "later" / draft.path.name, pixels, draft.transform, place.sensor, month)
    write_classes(folder / "changes" / draft.path.name, changed, draft.transform, CHANGES)


def _outside_swath(size: int, rng: np.random.Generator) -> np.ndarray:
    """Wedges left and right, as the tilted swath of a polar orbit leaves them, and a few missing lines on top."""
    slope = np.tan(np.deg2rad(rng.uniform(7, 11)))
    row, col = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    left = col + slope * row < 0.1 * size
    right = (size - col) + slope * (size - row) < 0.1 * size
    return left | right | (row < 3)


def _boxes(land: Land, labels: np.ndarray) -> list[Box]:
    """Boxes of buildings and ships that stand on the first date, whole and in sight."""
    found, size = [], len(land.label)
    for one in land.buildings:
        x1, y1, x2, y2 = (round(number) for number in one.shape.bounds)
        inside = min(x1, y1) >= 0 and max(x2, y2) <= size and x2 - x1 > 1 and y2 - y1 > 1
        if inside and not one.new and labels[y1:y2, x1:x2].all():
            found.append(Box(one.kind, x1, y1, x2, y2))
    return found


def _shapes(land: Land, seen: np.ndarray) -> list[tuple[str, shapely.Geometry]]:
    """What a map shows of the first date where there is a picture."""
    parcel = np.where(seen & (land.label == land.kind[np.maximum(land.parcel, 0)]), land.parcel, -1)
    parcel = np.where(land.label == ID["settlement"], -1, parcel).astype(np.int32)
    lake = (land.terrain.lake & seen).astype(np.uint8)
    found = [
        (_MAPPED[CLASSES[land.kind[int(number)]]], shapely.geometry.shape(outline).simplify(0.8))
        for outline, number in outlines(parcel, parcel >= 0)
    ]
    lakes = [shapely.geometry.shape(outline).simplify(0.8) for outline, _ in outlines(lake, lake > 0)]
    areas = [part for kind, shape in found for part in mapped(kind, shape, 2)]
    areas += [part for shape in lakes for part in mapped("lake", shape, 2)]
    frames = [shapely.geometry.shape(outline) for outline, _ in outlines(seen.astype(np.uint8), seen)]
    frame = shapely.unary_union(frames).simplify(1)
    land_alone = frame.difference(shapely.unary_union(lakes))  # rivers end where they run into a lake
    lines = [(kind, line.intersection(frame)) for kind, line in land.roads]
    lines += [("river", line.intersection(land_alone)) for line, _ in land.terrain.rivers]
    return areas + [part for kind, line in lines for part in mapped(kind, line, 1)]
