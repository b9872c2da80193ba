"""Who lives where: natural cover by relief and water, farmland in parcels, towns at crossroads."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import shapely
from rasterio.features import rasterize
from scipy import ndimage
from shapely import affinity

from geomim.corpus.synthetic.fields import fractal, noise, ranked, smooth
from geomim.corpus.synthetic.parcels import Bend, Cut, divide, extent, turned_square
from geomim.corpus.synthetic.terrain import Terrain, draw_terrain

CLASSES = (
    "unlabelled", "water", "forest", "woodland", "orchard", "cropland", "meadow", "settlement", "rock", "dunes",
    "bare soil", "wetland", "snow",
)  # fmt: skip
"""Classes of the label rasters; the place is the id. 0 is cloud, nodata and roads in the open."""

ID = {name: number for number, name in enumerate(CLASSES)}
"""Number of each class."""

_RARE = ("snow", "rock", "wetland", "dunes", "bare soil")
_WIDTHS = {"road": 3.4, "street": 2.4, "track": 1.3}  # pixels
_LOT, _BLOCK, _FIELD = 260.0, 2600.0, 9000.0  # pixels of a building lot, of a block between streets, of a field


@dataclass(frozen=True)
class Building:
    """What stands on a lot.

    Attributes:
        kind: `house`, `warehouse`, `storage tank` or `ship`.
        shape: Ground plan in pixels.
        material: Of the roof.
        tall: Height in pixels.
        tone: Brightness of the roof against the usual one.
        new: Whether it stands on the second date only.
    """

    kind: str
    shape: shapely.Polygon
    material: str
    tall: float
    tone: float
    new: bool


@dataclass(frozen=True)
class Land:
    """A piece of land, before the light falls on it.

    Attributes:
        terrain: Its relief and water.
        label: `(S, S)` uint8, places in `CLASSES`.
        river: `(S, S)` bool.
        parcel: `(S, S)` int32, place in `kind`; -1 on land that nobody divided.
        kind: `(P,)` class of each parcel.
        angle: `(P,)` direction of its longer side in radians.
        roads: Courses by `road`, `street` or `track`.
        paved: `(S, S)` uint8: 1 asphalt, 2 track.
        stubble: `(P,)` bool: fields that are reaped.
        buildings: See `Building`.
    """

    terrain: Terrain
    label: np.ndarray
    river: np.ndarray
    parcel: np.ndarray
    kind: np.ndarray
    angle: np.ndarray
    roads: list[tuple[str, shapely.LineString]]
    paved: np.ndarray
    stubble: np.ndarray
    buildings: list[Building] = field(default_factory=list)


def draw_land(rng: np.random.Generator, size: int) -> Land:
    """Draw one: every class has its share wherever there is room.

    Args:
        rng: Source of randomness.
        size: Edge in pixels.
    """
    terrain = draw_terrain(rng, size)
    river = burn([shapely.buffer(line, width / 2) for line, width in terrain.rivers], size) > 0
    label, farm = _natural(rng, terrain, river)
    blocks, roads = divide(rng, [turned_square(rng, size)], lambda _: max(0.42 * size, 300) ** 2)
    towns = _towns(rng, blocks, farm)
    fields = rng.uniform(0.7, 1.4) * _FIELD

    def goal(point: np.ndarray) -> float:
        return min((_LOT if np.hypot(*(point - town[:2])) < town[2] else fields for town in towns), default=fields)

    lands, cuts = divide(rng, blocks, goal)
    bend = Bend(rng, size)
    shapes = [bend.area(land) for land in lands]
    parcel = burn(shapes, size).astype(np.int32) - 1
    lot = np.array([goal(land.mean(0)) == _LOT for land in lands])
    kind = _tenants(rng, parcel, lot, farm)
    wild = np.isin(label, [ID[name] for name in ("water", "snow", "rock", "dunes")])
    parcel[wild | (kind[parcel] == 0)] = -1
    label = np.where(parcel >= 0, kind[parcel], np.where(farm, ID["woodland"], label)).astype(np.uint8)
    courses = _courses(bend, roads, cuts, label, parcel)
    asphalt, track = (
        burn([line.buffer(_WIDTHS[name] / 2) for name, line in courses if (name == "track") is small], size) > 0
        for small in (False, True)
    )
    paved = np.where(asphalt, 1, np.where(track & ~river, 2, 0)).astype(np.uint8)
    label[(paved > 0) & (label != ID["settlement"])] = 0
    angle = np.array([extent(shape)[0] for shape in shapes])
    land = Land(terrain, label, river & (paved == 0), parcel, kind, angle, courses, paved, np.zeros(len(kind), bool))
    land.buildings.extend(_build(rng, land, shapes))
    roofs = burn([one.shape for one in land.buildings if one.kind != "ship" and not one.new], size) > 0
    label[roofs] = ID["settlement"]  # also where they reach beyond their lot
    return land


def burn(shapes: list[shapely.Geometry], size: int) -> np.ndarray:
    """Raster of shapes, `(size, size)` int32: 1 for the first, and so on; 0 where there is none."""
    numbered = [(shape, number) for number, shape in enumerate(shapes, start=1) if not shape.is_empty]
    return rasterize(numbered, (size, size), dtype=np.int32) if numbered else np.zeros((size, size), np.int32)


def _natural(rng: np.random.Generator, terrain: Terrain, river: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cover as nature has it, and which of it is fit for fields."""
    size = len(river)
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    turn = rng.uniform(0, 2 * np.pi)
    ragged = 0.05 * min(1, size / 1024) * fractal(rng, size, 1.3)
    high, steep = ranked(terrain.height), ranked(smooth(np.hypot(*np.gradient(terrain.height)), 0.02 * size))
    dry = ranked(fractal(rng, size, 2) + 1.2 * (np.cos(turn) * axis[None] + np.sin(turn) * axis[:, None]))
    label = np.where(terrain.lake | river, ID["water"], 0).astype(np.uint8)
    shore = ranked(smooth((label > 0).astype(np.float32), 0.04 * size) - 0.4 * smooth(steep, 0.02 * size))
    farm = np.zeros(label.shape, bool)
    for name, share, score in (
        ("snow", rng.uniform(0.05, 0.09), high),
        ("rock", rng.uniform(0.09, 0.12), steep + 0.6 * high),
        ("wetland", rng.uniform(0.06, 0.08), shore - 0.2 * steep),
        ("dunes", rng.uniform(0.06, 0.09), dry - 0.5 * steep),
        ("bare soil", rng.uniform(0.05, 0.08), dry - 0.2 * steep),
        ("", rng.uniform(0.34, 0.40), -steep - 0.4 * high - 0.3 * dry),
        ("forest", rng.uniform(0.11, 0.14), 0.7 * ranked(fractal(rng, size, 2.2)) - 0.3 * dry + 0.1 * high),
        ("woodland", 1, high),
    ):
        if name in _RARE and rng.random() > size / 640:
            continue  # a small scene has no room for everything
        free = (label == 0) & ~farm
        values = (score + ragged)[free]
        if not values.size:
            break
        least = np.quantile(values[::5], max(0, 1 - share * label.size / values.size)) if share < 1 else -np.inf
        where = free & (score + ragged >= least)
        farm |= where if not name else False
        label[where] = ID[name] if name else 0
    return label, farm


def _towns(rng: np.random.Generator, blocks: list[np.ndarray], farm: np.ndarray) -> list[np.ndarray]:
    """Centres and radii: crossroads amid farmland, far from each other."""
    size = len(farm)
    fit = smooth(farm.astype(np.float32), 0.04 * size)
    corners = np.unique(np.vstack(blocks).round(1), axis=0)
    corners = corners[((corners > 0.08 * size) & (corners < 0.92 * size)).all(1)]
    score = fit[tuple(corners.T[::-1].astype(int))]
    towns: list[np.ndarray] = []
    for place in corners[np.argsort(-score, kind="stable")]:
        if len(towns) < round(size / 340) and all(np.hypot(*(place - town[:2])) > 0.33 * size for town in towns):
            towns.append(np.array([*place, rng.uniform(0.8, 1.2) * np.clip(0.13 * size, 70, 125)]))
    return towns


def _tenants(rng: np.random.Generator, parcel: np.ndarray, lot: np.ndarray, farm: np.ndarray) -> np.ndarray:
    """Class of each parcel; 0 where nature keeps it. Neighbours grow alike more often than not."""
    size, count = len(parcel), len(lot)
    flat = parcel.ravel()
    known = flat >= 0
    area = np.maximum(np.bincount(flat[known], minlength=count), 1)
    usable = np.bincount(flat[known], farm.ravel()[known], count) / area
    custom = ranked(noise(rng, size, max(0.15 * size, 120), max(0.5 * size, 400))).ravel()
    mean = np.bincount(flat[known], custom[known], count) / area
    pick = np.where(lot | (usable < 0.5), np.inf, mean + rng.normal(0, 0.07, count))
    pick = pick.argsort(kind="stable").argsort() / max(1, np.isfinite(pick).sum())
    crops = np.array([ID[name] for name in ("cropland", "meadow", "orchard", "cropland", "bare soil")])
    kind = crops[np.searchsorted([0.25, 0.48, 0.73, 0.94], pick).clip(0, 4)]
    kind[usable < 0.5] = 0
    kind[lot & (usable > 0.2)] = ID["settlement"]
    return kind


def _courses(
    bend: Bend, roads: list[Cut], cuts: list[Cut], label: np.ndarray, parcel: np.ndarray
) -> list[tuple[str, shapely.LineString]]:
    """Roads through all that can be passed, streets in towns, tracks between fields."""
    size, water = len(label), label == ID["water"]
    wide = water & (ndimage.uniform_filter(water.astype(np.float32), 25) > 0.7)
    town = ndimage.maximum_filter(label == ID["settlement"], 5)
    open_to = {"road": ~wide & (label != ID["snow"]), "street": town, "track": (parcel >= 0) & ~town}
    smaller = [cut for cut in cuts if cut.area > _BLOCK]
    found = []
    for name, lines in (("road", roads), ("street", smaller), ("track", smaller)):
        for points in (bend(cut.line) for cut in lines):
            col, row = points.T.astype(int)
            inside = (points >= 0).all(1) & (points < size).all(1)
            good = inside & open_to[name][np.clip(row, 0, size - 1), np.clip(col, 0, size - 1)]
            ends = np.flatnonzero(np.diff(np.r_[0, good, 0]))
            runs = zip(ends[::2], ends[1::2], strict=True)
            found += [(name, shapely.LineString(points[start:stop])) for start, stop in runs if stop - start > 2]
    return found


def _build(rng: np.random.Generator, land: Land, shapes: list[shapely.Polygon]) -> list[Building]:
    """Houses, warehouses and storage tanks along the longer side of lots, ships on wide water."""
    size, found = len(land.label), []
    free = ndimage.binary_erosion((land.label == ID["settlement"]) & (land.paved == 0), iterations=2)
    for lot in np.flatnonzero(land.kind == ID["settlement"]).tolist():
        angle, length, width = extent(shapes[lot])
        length, width = length - 3.2, width - 3.2
        col, row = shapes[lot].centroid.coords[0]
        chance, tone = rng.random(4), float(rng.uniform(0.8, 1.2))
        if min(row, col) < 0 or max(row, col) >= size or not free[int(row), int(col)] or width < 3.5:
            continue
        new = bool(chance[0] < 0.25)
        if chance[1] < 0.04:
            radius = min(width / 3, 4.5)
            for at in np.arange(radius - length / 2, length / 2 - radius + 0.1, 2 * radius + 1.2).tolist():
                tank = shapely.Point(col + at * np.cos(angle), row + at * np.sin(angle)).buffer(radius)
                found.append(Building("storage tank", tank, "paint", 2.5, tone, False))
        elif chance[1] < 0.16:
            plan = _rectangle(col, row, angle, 0.85 * length, 0.85 * width)
            found.append(Building("warehouse", plan, "metal", 2.5, tone, new))
        else:
            sides = np.minimum(rng.uniform(6.5, 11, 2), (0.8 * length, 0.8 * width))
            material = "tiles" if chance[2] < 0.6 else "asphalt" if chance[2] < 0.94 else "metal"
            found.append(
                Building("house", _rectangle(col, row, angle, *sides), material, 2 + 1.2 * chance[3], tone, new)
            )
    rows, cols = np.nonzero(ndimage.distance_transform_edt(land.label == ID["water"]) > 6)
    for place in rng.permutation(len(rows))[: 2 + size // 256]:
        plan = _rectangle(cols[place], rows[place], rng.uniform(0, np.pi), rng.uniform(6, 9), 2.6)
        found.append(Building("ship", plan, "paint", 1.0, 1.0, False))
    return found


def _rectangle(x: float, y: float, angle: float, length: float, width: float) -> shapely.Polygon:
    """A ground plan around a point."""
    plan = shapely.box(-length / 2, -width / 2, length / 2, width / 2)
    return affinity.translate(affinity.rotate(plan, angle, (0, 0), use_radians=True), x, y)
