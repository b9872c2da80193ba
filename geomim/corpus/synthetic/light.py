"""From cover to numbers of a satellite: sun, shadows, clouds, air, the blur and noise of a camera."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from geomim.corpus.synthetic.cover import Cover
from geomim.corpus.synthetic.fields import fractal, ranked, shifted, smooth
from geomim.corpus.synthetic.spectra import BLUR, CLOUD, reflectance, through_air

_SKY = 0.3  # share of the light that comes from the sky and reaches shadows
_CLOUD_HEIGHT = 34.0  # pixels


@dataclass(frozen=True)
class Look:
    """How a scene was taken.

    Attributes:
        elevation: Of the sun over the horizon, in radians.
        azimuth: Where the sun stands, in radians from north over east.
        aod: Aerosol optical depth at 550 nm, 0 ... 0.6.
        gain: Factor of the whole camera.
        cloudy: Share of the sky under clouds.
    """

    elevation: float
    azimuth: float
    aod: float
    gain: float
    cloudy: float


def expose(
    rng: np.random.Generator, height: np.ndarray, cover: Cover, look: Look, bands: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Take a picture.

    Args:
        rng: Source of randomness.
        height: `(S, S)` of the ground in pixels.
        cover: What stands on it.
        look: How it is taken.
        bands: Columns of `spectra.MATERIALS`.

    Returns:
        `(C, S, S)` float32 reflectance at the top of the atmosphere, and `(S, S)` optical share of clouds, 0 ... 1.
    """
    size = len(height)
    cloud = _clouds(rng, size, look.cloudy)
    away = (np.cos(look.azimuth), -np.sin(look.azimuth))  # of the sun in rows and columns: where shadows fall
    far = _CLOUD_HEIGHT / np.tan(look.elevation)
    under = shifted(smooth(cloud, 1.5), [round(far * step) for step in away])
    water = cover.mix["water"] + cover.mix["mud"]  # lies level whatever the relief
    near = smooth((cover.tall > 1.2).astype(np.float32), 2) * (cover.tall < 0.5)
    direct = _sunlight(height, cover.tall, look, away)
    direct = (direct + water * (1 - direct)) * (1 - 0.85 * under)
    light = _SKY * (1 - 0.4 * near) + (1 - _SKY) * direct
    light *= cover.tone
    pixels = reflectance(cover.mix, bands) * light
    billow = 1 + 0.10 * fractal(rng, size, 1.2)
    path, transmittance = through_air(look.aod, bands)
    veil = 1 + 0.12 * fractal(rng, size, 2)
    pixels = pixels * transmittance + path * veil
    pixels += cloud * (CLOUD[bands, None, None] * billow - pixels)  # its numbers are of the top of the atmosphere
    for band, width in enumerate(BLUR[bands].tolist()):
        pixels[band] = smooth(pixels[band], 0.38 + 0.25 * (width - 1) ** 0.7)
    pixels *= look.gain * rng.uniform(0.97, 1.03, len(CLOUD)).astype(np.float32)[bands, None, None]
    pixels += (0.0012 + 0.006 * pixels) * rng.standard_normal(pixels.shape, np.float32)
    return pixels, cloud


def _sunlight(height: np.ndarray, tall: np.ndarray, look: Look, away: tuple[float, float]) -> np.ndarray:
    """Light of the sun on a slope against that on flat ground; 0 in cast shadow."""
    surface = height + tall
    down, right = np.gradient(surface)
    rise = np.tan(look.elevation)
    light = np.maximum(rise + down * away[0] + right * away[1], 0) / (rise * np.sqrt(1 + down**2 + right**2))
    longest = min(14, int(8 / rise) + 1)
    shade = np.zeros(height.shape, np.float32)
    for step in range(1, longest + 1):
        moved = shifted(tall, [round(step * axis) for axis in away])
        shade = np.maximum(shade, np.clip(moved - step * rise - tall, 0, 1))
    return np.clip(light, 0, 1.9) * (1 - shade)


def _clouds(rng: np.random.Generator, size: int, share: float) -> np.ndarray:
    """Optical share of fair-weather clouds."""
    field = ranked(fractal(rng, size, 1.9, longest=0.35 * size) + 0.06 * fractal(rng, size, 1))
    return np.clip((field - (1 - share)) / 0.025, 0, 1) ** 0.7
