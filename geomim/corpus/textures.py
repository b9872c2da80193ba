"""Land-cover kinds as procedural textures: they differ in texture and layout, not in per-band mean and deviation.

Every kind is drawn as two fields, a main one and a second one (shadows, fine grain). `draw_bands` mixes them per band
and normalises mean and deviation in a sliding box, so that a tile's pixel statistics say nothing about its kind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_BOX = 65  # pixels: mean and deviation are equal over any box of this size
_COARSE = 2  # textures reach over several 8-pixel patches, so that what is hidden can be told from what is seen
_TURN = np.float32(2 * np.pi)


@dataclass(frozen=True)
class Ground:
    """Where and how a texture is drawn.

    Attributes:
        u: `(H, W)` float32 coordinate along the direction of the patch a pixel lies in, in units of `_COARSE` pixels.
        v: `(H, W)` float32 coordinate across it.
        rng: Source of randomness.
    """

    u: np.ndarray
    v: np.ndarray
    rng: np.random.Generator

    def noise(self, shortest: float, longest: float) -> np.ndarray:
        """Isotropic random field with wavelengths in a range of the coordinates' unit, mean 0 and deviation 1."""
        return noise(self.rng, self.u.shape, _COARSE * shortest, _COARSE * longest)


def noise(rng: np.random.Generator, shape: tuple[int, ...], shortest: float, longest: float) -> np.ndarray:
    """Isotropic random field.

    Args:
        rng: Source of randomness.
        shape: `(H, W)`.
        shortest: Shortest wavelength in pixels.
        longest: Longest wavelength in pixels.

    Returns:
        `(H, W)` float32, mean 0 and deviation 1.
    """
    squared = _squared_frequency(shape)
    weight = np.exp(squared * np.float32(-(shortest**2))) - np.exp(squared * np.float32(-(longest**2)))
    white = rng.standard_normal(shape, np.float32)
    return standard(np.fft.irfft2(np.fft.rfft2(white) * weight, s=shape).astype(np.float32))


@lru_cache(maxsize=1)
def _squared_frequency(shape: tuple[int, ...]) -> np.ndarray:
    return (np.fft.fftfreq(shape[0])[:, None] ** 2 + np.fft.rfftfreq(shape[1])[None] ** 2).astype(np.float32)


def standard(field: np.ndarray) -> np.ndarray:
    """Mean 0 and deviation 1 over the whole field."""
    return (field - field.mean()) / max(float(field.std()), 1e-6)


def _hash(*cells: np.ndarray) -> np.ndarray:
    """A number in 0 ... 1 for each cell of a grid, the same all over the cell."""
    total = np.zeros(cells[0].shape, np.float32)
    for cell, factor in zip(cells, (12.9898, 78.233, 37.719), strict=False):
        total += np.float32(factor) * (np.floor(cell) % 4096)
    return np.mod(np.sin(total) * np.float32(43758.547), 1).astype(np.float32)


def _shift(field: np.ndarray, by: int) -> np.ndarray:
    """The field as a shadow to the lower right."""
    return np.roll(field, (by, by), (0, 1))


def _water(ground: Ground) -> tuple[np.ndarray, np.ndarray]:
    """Swell of two wavelengths from one direction, with glints."""
    warp = ground.noise(40, 200)
    swell = np.sin(_TURN * ground.u / 11 + 1.6 * warp) + 0.6 * np.sin(_TURN * (ground.u + 0.3 * ground.v) / 7 + warp)
    return swell, ground.noise(2, 6)


def _forest(ground: Ground) -> tuple[np.ndarray, np.ndarray]:
    """Crowns lit from one side."""
    crowns = ground.noise(4, 9)
    return np.maximum(crowns, -0.4), crowns - _shift(crowns, 1)


def _crops(ground: Ground) -> tuple[np.ndarray, np.ndarray]:
    """Parcels, each with its own brightness, row direction and row spacing."""
    parcel_u, parcel_v = ground.u / 52, ground.v / 34
    level, turned, spacing = (_hash(parcel_u + 97 * i, parcel_v + 31 * i) for i in range(3))
    along = np.where(turned < 0.5, ground.u, ground.v)
    rows = np.sin(_TURN * along / (3.5 + 2.5 * spacing))
    edge = (np.mod(parcel_u, 1) < 2 / 52) | (np.mod(parcel_v, 1) < 2 / 34)
    return rows, np.where(edge, np.float32(-1), level)


def _orchard(ground: Ground) -> tuple[np.ndarray, np.ndarray]:
    """Trees on a lattice."""
    trees = np.maximum(np.cos(_TURN * ground.u / 8.5) + np.cos(_TURN * ground.v / 8.5) - 0.5, 0)
    return trees, _shift(trees, 2)


def _urban(ground: Ground) -> tuple[np.ndarray, np.ndarray]:
    """Streets around blocks of roofs that throw shadows."""
    street = (np.mod(ground.u, 44) < 4) | (np.mod(ground.v, 32) < 4)
    lot_u, lot_v = ground.u / 10, ground.v / 14
    roof = (np.mod(lot_u, 1) > 0.25) & (np.mod(lot_v, 1) > 0.25) & ~street
    shade = 0.4 + 0.8 * _hash(lot_u, lot_v)
    roofs = np.where(roof, shade, np.float32(0))
    return roofs - 0.5 * street, roofs - _shift(roofs, 2)


def _dunes(ground: Ground) -> tuple[np.ndarray, np.ndarray]:
    """Long ridges, steep on one side."""
    phase = np.mod(ground.u / 19 + 0.8 * ground.noise(110, 400), 1)
    ridge = np.where(phase < 0.75, phase / 0.75, (1 - phase) / 0.25)
    return ridge, np.cos(_TURN * phase) + 0.3 * ground.noise(2, 5)


def _wetland(ground: Ground) -> tuple[np.ndarray, np.ndarray]:
    """Winding channels and pools."""
    channel = np.exp(-((ground.noise(16, 60) / 0.22) ** 2))
    pools = np.clip(4 * (ground.noise(8, 20) - 0.9), 0, 1)
    return -channel - 0.6 * pools, pools + 0.4 * ground.noise(3, 8)


def _savanna(ground: Ground) -> tuple[np.ndarray, np.ndarray]:
    """Trees scattered without order."""
    seeds = (ground.rng.random(ground.u.shape, np.float32) < 1 / 80).astype(np.float32)
    crown = np.exp(_squared_frequency(seeds.shape) * np.float32(-(7**2)))
    trees = np.minimum(np.fft.irfft2(np.fft.rfft2(seeds) * crown, s=seeds.shape).astype(np.float32), 0.06)
    return trees, _shift(trees, 3)


KINDS: dict[str, Callable[[Ground], tuple[np.ndarray, np.ndarray]]] = {
    draw.__name__.removeprefix("_"): draw
    for draw in (_water, _forest, _crops, _orchard, _urban, _dunes, _wetland, _savanna)
}
"""Land-cover kinds by name: each draws its two fields, `(H, W)`, on a `Ground`."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "water": (38, 92, 168),
    "forest": (20, 92, 44),
    "crops": (226, 198, 84),
    "orchard": (138, 176, 60),
    "urban": (196, 60, 60),
    "dunes": (238, 220, 170),
    "wetland": (70, 160, 160),
    "savanna": (176, 128, 72),
}
"""A colour a kind, for label rasters and maps."""


def patches(rng: np.random.Generator, size: int, kinds: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide a square into irregular patches of at least about 128 pixels.

    Args:
        rng: Source of randomness.
        size: Edge in pixels.
        kinds: Number of kinds; each gets an equal share of the patches, as far as they go round.

    Returns:
        `(size, size)` uint8 kind of each pixel, 0-based, and `(size, size)` float32 direction of its patch in radians.
    """
    cells = max(2, size // 256)
    spacing = size / cells
    centre = (np.arange(-1, cells + 1) + 0.5) * spacing
    count = len(centre)
    jitter = rng.uniform(-0.2, 0.2, (2, count, count)) * spacing
    seeds_y, seeds_x = (centre[:, None] + jitter[0]).ravel(), (centre[None] + jitter[1]).ravel()
    kind = rng.integers(0, kinds, (count, count)).astype(np.uint8)  # patches around the square reach in
    first = rng.integers(kinds)
    kind[1:-1, 1:-1] = rng.permutation((first + np.arange(cells * cells)) % kinds).reshape(cells, cells)
    kind = kind.ravel()
    angle = rng.uniform(0, np.pi, count * count).astype(np.float32)
    axis = np.arange(size, dtype=np.float32)
    y = axis[:, None] + 0.05 * spacing * noise(rng, (size, size), 0.3 * spacing, spacing)
    x = axis[None] + 0.05 * spacing * noise(rng, (size, size), 0.3 * spacing, spacing)
    nearest = np.zeros((size, size), np.int64)
    best = np.full((size, size), np.inf, np.float32)
    for index in range(count * count):
        distance = (y - np.float32(seeds_y[index])) ** 2 + (x - np.float32(seeds_x[index])) ** 2
        closer = distance < best
        nearest[closer] = index
        np.minimum(best, distance, out=best)
    return kind[nearest], angle[nearest]


def draw_bands(rng: np.random.Generator, kind: np.ndarray, angle: np.ndarray, count: int) -> np.ndarray:
    """Draw the kinds and mix them into bands of equal statistics.

    Args:
        rng: Source of randomness.
        kind: `(H, W)` uint8, 0-based, in the order of `KINDS`.
        angle: `(H, W)` float32 direction of the patch each pixel lies in, in radians.
        count: Number of bands.

    Returns:
        `(count, H, W)` float32: mean about 0 and deviation about 1 in any box of 65 pixels, times a brightness and a
        contrast that vary over hundreds of pixels whatever the kind.
    """
    y, x = np.meshgrid(*(np.arange(length, dtype=np.float32) for length in kind.shape), indexing="ij")
    cos, sin = np.cos(angle), np.sin(angle)
    ground = Ground((x * cos + y * sin) / _COARSE, (y * cos - x * sin) / _COARSE, rng)
    first, second = np.zeros(kind.shape, np.float32), np.zeros(kind.shape, np.float32)
    for index, draw in enumerate(KINDS.values()):
        where = kind == index
        main, other = draw(ground)
        first[where], second[where] = standard(main)[where], standard(other)[where]
    mixing = np.linspace(-1.2, 1.2, count, dtype=np.float32)  # the same for all kinds: colour tells nothing
    brightness, contrast = 0.5 * ground.noise(100, 400), np.exp(0.2 * ground.noise(75, 300))
    drawn = np.empty((count, *kind.shape), np.float32)
    for band in range(count):
        field = np.cos(mixing[band]) * first + np.sin(mixing[band]) * second
        field = _soften(field) + 0.1 * rng.standard_normal(kind.shape, np.float32)
        drawn[band] = brightness + contrast * _equalise(field)
    return drawn


def _soften(field: np.ndarray) -> np.ndarray:
    """A sensor's blur: weights 1/6, 4/6, 1/6 along both axes."""
    for axis in (0, 1):
        field = (4 * field + np.roll(field, 1, axis) + np.roll(field, -1, axis)) / 6
    return field


def _equalise(field: np.ndarray) -> np.ndarray:
    """Mean 0 and deviation 1 in a sliding box."""
    mean = _box_mean(field)
    deviation = np.sqrt(np.maximum(_box_mean(field**2) - mean**2, 1e-4))
    return ((field - mean) / deviation).astype(np.float32)


def _box_mean(field: np.ndarray) -> np.ndarray:
    half = _BOX // 2
    total = np.pad(field, ((half + 1, half), (half + 1, half)), mode="reflect").astype(np.float64)
    total = np.cumsum(total, axis=0)
    total = np.cumsum(total[_BOX:] - total[:-_BOX], axis=1)
    return ((total[:, _BOX:] - total[:, :-_BOX]) / _BOX**2).astype(np.float32)
