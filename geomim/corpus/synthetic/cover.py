"""What a piece of land looks like from above: how much of which material is in each pixel, and how tall it stands.

Classes come in pairs of one spectrum and two layouts, as in life: trees on a grid or scattered (orchard, woodland),
green in rows or mottled (cropland, meadow), sand in ridges or flat (dunes, bare soil), grey and green in roofs or
crags (settlement, rock). What the pairs share is drawn from the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from geomim.corpus.synthetic.fields import fractal, noise, smooth
from geomim.corpus.synthetic.land import ID, Land, burn
from geomim.corpus.synthetic.spectra import MATERIALS

_TURN = np.float32(2 * np.pi)


@dataclass(frozen=True)
class Season:
    """The state of what grows and flows.

    Attributes:
        green: Share of green among grass, 0 ... 1.
        mud: Share of mud in water, 0 ... 1.
        sandy: Share of sand in bare ground, 0 ... 1.
        leaf: Share of leaves that are on, 0 ... 1.
        later: Whether it is the second date.
    """

    green: float
    mud: float
    sandy: float
    leaf: float
    later: bool = False


@dataclass
class Cover:
    """What `light` falls on.

    Attributes:
        mix: `(S, S)` share of each material.
        tall: `(S, S)` height above the ground in pixels.
        tone: `(S, S)` brightness of the material against the usual one.
    """

    mix: dict[str, np.ndarray]
    tall: np.ndarray
    tone: np.ndarray

    def put(self, share: np.ndarray | float, **materials: np.ndarray | float) -> None:
        """Lay materials over what is there: `share` of each pixel is theirs, divided among them."""
        share = np.float32(share)
        for name, values in self.mix.items():
            values *= 1 - share
            if name in materials:
                values += share * materials[name]


def draw_cover(rng: np.random.Generator, land: Land, season: Season) -> Cover:
    """Draw the cover of all land: the same numbers from `rng` give the same trees on every date.

    Args:
        rng: Source of randomness.
        land: From `draw_land`.
        season: What grows.
    """
    size = len(land.label)
    grain = {"rough": fractal(rng, size, 1), "fine": noise(rng, size, 2, 7), "patchy": noise(rng, size, 25, 110)}
    tone = 1 + 0.09 * grain["rough"] + 0.06 * noise(rng, size, 1, 4)
    empty = np.zeros((len(MATERIALS) + 1, size, size), np.float32)
    cover = Cover(dict(zip(MATERIALS, empty[1:], strict=True)), empty[0], tone)
    parcels = _Parcels(rng, land)
    _ground(cover, land, season, grain, parcels)
    _ridges(rng, cover, land)
    _water(rng, cover, land, season, grain)
    _trees(rng, cover, land, season, grain, parcels)
    _built(cover, land, season)
    snow = smooth((land.label == ID["snow"]).astype(np.float32), 1.5)
    snow = np.clip(1.3 * snow - 0.25 + 0.35 * snow * np.tanh(grain["rough"]) - 0.2 * (grain["fine"] > 1.6), 0, 1)
    cover.put(snow, snow=1.0)
    cover.tall *= 1 - snow
    return cover


class _Parcels:
    """A number a parcel, spread over its pixels, and the coordinates along and across it."""

    def __init__(self, rng: np.random.Generator, land: Land) -> None:
        count = max(1, len(land.kind))
        self.place = np.maximum(land.parcel, 0)
        self.chance = rng.random((4, count)).astype(np.float32)
        angle = land.angle.astype(np.float32)[self.place] if len(land.angle) else np.float32(0)
        y, x = np.mgrid[: len(land.parcel), : len(land.parcel)].astype(np.float32)
        self.along, self.across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)

    def number(self, which: int, low: float, high: float) -> np.ndarray:
        return (low + (high - low) * self.chance[which])[self.place]


def _ground(cover: Cover, land: Land, season: Season, grain: dict[str, np.ndarray], parcels: _Parcels) -> None:
    """Grass, crops in rows, stubble, bare ground, stones, reeds."""
    rough, fine, patchy = grain.values()
    crops, bare, rock, town, wet = (
        np.isin(land.label, [ID[name] for name in names])
        for names in (["cropland"], ["bare soil", "dunes", "rock"], ["rock"], ["settlement"], ["wetland"])
    )
    reaped = crops & land.stubble[parcels.place]
    stage = np.where(land.parcel >= 0, parcels.number(0, 0.35, 0.75), 0.6 + 0.15 * patchy)
    stage = np.clip(stage + 0.2 * (season.green - 0.5), 0.1, 0.9)
    period = parcels.number(1, 4.5, 8.0)
    rows, lanes = np.cos(_TURN * parcels.across / period), np.mod(parcels.across, 4 * period) < 1.3
    swing = 0.45  # rows go from bare to closed, for what tells crops from grass are rows
    share = stage + np.where(
        crops, swing * rows + 0.05 * rough - 0.3 * lanes, 0.13 * patchy + 0.1 * fine + 0.08 * rough
    )
    share = np.where(reaped, 0.06, np.where(land.label == ID["forest"], 0.85, np.clip(share, 0, 1)))
    share *= np.where(bare, np.clip(0.06 + 0.08 * patchy, 0, 1), 1)
    ripe = np.clip(parcels.number(2, -0.6, 0.9) * (1.2 - season.green), 0, 0.6)
    leafy = share * np.clip(season.green + 0.12 * patchy, 0.05, 1) * (1 - ripe)
    sand = np.clip(season.sandy + 0.12 * patchy + 0.05 * rough, 0, 1) * np.where(bare, 1, parcels.number(3, 0.0, 0.6))
    straw = share - leafy + 0.75 * reaped * (1 - share)
    earth = 1 - leafy - straw
    green = {"grass": leafy * (1 - 0.7 * crops), "crop": leafy * 0.7 * crops}
    cover.put(1.0, **green, straw=straw, soil=earth * (1 - sand), sand=earth * sand)
    crevice = np.clip(0.45 + 0.5 * np.tanh(1.5 * rough + 0.7 * fine), 0, 1)
    cover.put(rock, grass=season.green * crevice, straw=(1 - season.green) * crevice, soil=1 - crevice)
    cover.put(np.where(rock, 0.9 - 0.55 * crevice, 0.4 * town), rock=1.0)
    cover.put(wet, leaves=0.3, grass=0.5 * season.green, straw=0.7 - 0.5 * season.green)
    cover.tall += 0.5 * np.clip(rows, 0, 1) * crops * swing * ~reaped
    cover.tone += np.where(bare | crops, 0.06, 0.04) * fine + 0.04 * (parcels.chance[3][parcels.place] - 0.5)


def _ridges(rng: np.random.Generator, cover: Cover, land: Land) -> None:
    """Dunes: long, steep on one side; crags of rock."""
    size = len(land.label)
    phase = np.mod(_across(rng, size) / 14 + 0.8 * noise(rng, size, 160, 600) + 0.13 * noise(rng, size, 30, 90), 1)
    ridge = np.where(phase < 0.72, phase / 0.72, (1 - phase) / 0.28) * (1 + 0.4 * noise(rng, size, 20, 80))
    dunes, rock = (smooth((land.label == ID[name]).astype(np.float32), 2) for name in ("dunes", "rock"))
    cover.tall += dunes * 10 * ridge + rock * 4 * np.abs(fractal(rng, size, 1.4, longest=70))


def _across(rng: np.random.Generator, size: int) -> np.ndarray:
    """Distance along a direction of chance in pixels."""
    turn = rng.uniform(0, np.pi)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    return x * np.cos(turn) + y * np.sin(turn)


def _water(rng: np.random.Generator, cover: Cover, land: Land, season: Season, grain: dict[str, np.ndarray]) -> None:
    """Lakes and rivers with their shores, channels in wetland, waves."""
    size = len(land.label)
    wet = land.label == ID["water"]
    winding = np.exp(-((noise(rng, size, 9, 40) / 0.2) ** 2))
    pools = np.clip(3 * (noise(rng, size, 8, 24) - 0.9), 0, 1)
    marsh = np.clip((winding + pools) * (land.label == ID["wetland"]), 0, 1)
    deep = smooth(wet.astype(np.float32), 4)
    mud = np.clip(season.mud + 0.35 * (1 - deep) + 0.12 * grain["patchy"] + 0.2 * land.river, 0, 1)
    shore = np.clip(4 * (smooth((wet & land.river).astype(np.float32), 3)), 0, 1) * ~wet
    cover.put(0.5 * shore * (grain["patchy"] > 0.4), sand=0.8, soil=0.2)
    share = np.maximum(wet, 0.9 * marsh)
    cover.put(share, water=1 - mud, mud=mud)
    swell = np.sin(_TURN * _across(rng, size) / 9 + 2.5 * noise(rng, size, 40, 160))
    cover.tone += share * (0.06 * swell + 0.05 * grain["fine"])
    cover.tall *= 1 - share


_CROWNS = {"forest": 0.11, "woodland": 0.016, "settlement": 0.008, "wetland": 0.002, "meadow": 0.0008, "rock": 0.002}
"""Trees a pixel."""


def _trees(
    rng: np.random.Generator, cover: Cover, land: Land, season: Season, grain: dict[str, np.ndarray], parcels: _Parcels
) -> None:
    """Crowns: scattered, and in orchards on a grid along the parcel."""
    size = len(land.label)
    density = np.zeros(256, np.float32)
    for name, trees in _CROWNS.items():
        density[ID[name]] = trees
    stand = np.exp(0.4 * grain["patchy"])
    clear = (land.paved == 0) & (land.label != ID["water"])
    seeds = (rng.random((size, size), np.float32) < density[land.label] * stand) & clear
    seeds[0, 0] = True
    away, (row, col) = ndimage.distance_transform_edt(~seeds, return_indices=True)
    chance, kin = rng.random((size, size), np.float32), noise(rng, size, 40, 160)
    radius = (2.3 + 2.0 * chance)[row, col]
    orchard = land.label == ID["orchard"]
    spacing = parcels.number(1, 6.5, 10)
    offset = [np.mod(axis, spacing) - spacing / 2 for axis in (parcels.along, parcels.across)]
    away = np.where(orchard, np.hypot(*offset), away)
    radius = np.where(orchard, 0.36 * spacing, radius)
    inside = np.clip(radius - away + 0.5, 0, 1) * clear
    dome = np.sqrt(np.maximum(1 - (away / (radius + 0.5)) ** 2, 0))
    needles = (kin[row, col] + 0.8 * (chance[row, col] - 0.5) > 0.5) & (land.label == ID["forest"])
    bald = 0.5 * (1 - season.leaf) * ~needles
    cover.put(inside, needles=needles, leaves=season.leaf * ~needles, straw=bald, soil=bald)
    stature = np.where(orchard, 1.7, 3.6) * (0.7 + 0.6 * chance[row, col])
    cover.tall += (inside * dome * stature).astype(np.float32)
    cover.tone += inside * 0.25 * (chance[row, col] - 0.5)


def _built(cover: Cover, land: Land, season: Season) -> None:
    """Streets, tracks, and roofs that rise to a ridge."""
    cover.put((land.paved == 1), asphalt=0.6, sand=0.4)
    cover.put(0.7 * (land.paved == 2), soil=1 - season.sandy, sand=season.sandy)
    cover.tall *= land.paved == 0
    own = [one for one in land.buildings if season.later or not one.new]
    number = burn([one.shape for one in own], len(land.label))
    roof = number > 0
    for material in sorted({one.material for one in own}):
        of_it = np.array([False, *(one.material == material for one in own)])
        cover.put(of_it[number], **{material: 1.0})
    inward = np.minimum(ndimage.distance_transform_edt(roof), 4).astype(np.float32)
    tall = np.array([0, *(one.tall for one in own)], np.float32)[number]
    pitched = np.array([False, *(one.kind == "house" for one in own)])[number]
    cover.tall = np.where(roof, tall + 0.35 * pitched * inward, cover.tall)
    cover.tone = np.where(roof, np.array([1, *(one.tone for one in own)], np.float32)[number], cover.tone)
