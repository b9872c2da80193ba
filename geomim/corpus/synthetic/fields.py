"""Random fields: the grain that everything drawn is made of."""

from __future__ import annotations

import numpy as np
from scipy import fft, ndimage


def fractal(rng: np.random.Generator, size: int, slope: float, longest: float | None = None) -> np.ndarray:
    """Random field by spectral synthesis: amplitude falls with frequency as a power, as in relief and natural pictures.

    Args:
        rng: Source of randomness.
        size: Edge in pixels.
        slope: Amplitude is frequency ** -slope; 1 is a natural picture, 2 is relief.
        longest: Longest wavelength in pixels; the edge where None.

    Returns:
        `(size, size)` float32, mean 0 and deviation 1.
    """
    frequency = _frequency(size)
    weight = np.maximum(frequency, 1 / (longest or size)) ** np.float32(-slope)
    return _coloured(rng, size, weight)


def noise(rng: np.random.Generator, size: int, shortest: float, longest: float) -> np.ndarray:
    """Isotropic random field with wavelengths in a range of pixels, `(size, size)` float32, mean 0 and deviation 1."""
    squared = _frequency(size) ** 2
    weight = np.exp(squared * np.float32(-(shortest**2))) - np.exp(squared * np.float32(-(longest**2)))
    return _coloured(rng, size, weight)


def _frequency(size: int) -> np.ndarray:
    return np.hypot(fft.fftfreq(size)[:, None], fft.rfftfreq(size)[None]).astype(np.float32)


def _coloured(rng: np.random.Generator, size: int, weight: np.ndarray) -> np.ndarray:
    spectrum = fft.rfft2(rng.standard_normal((size, size), np.float32)) * weight
    spectrum[0, 0] = 0
    field = fft.irfft2(spectrum, s=(size, size))
    return field / max(float(field.std()), 1e-9)


def ranked(field: np.ndarray) -> np.ndarray:
    """The share of the field that is lower, 0 ... 1."""
    places = np.linspace(0, 1, 257)
    return np.interp(field, np.quantile(field[::2, ::2], places), places).astype(np.float32)


def smooth(field: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur."""
    return ndimage.gaussian_filter(field, sigma, mode="nearest", truncate=3)


def shifted(field: np.ndarray, steps: list[int]) -> np.ndarray:
    """A field moved down and right by whole pixels; its border goes on outside."""
    return ndimage.shift(field, steps, order=0, mode="nearest")


def enlarged(field: np.ndarray, size: int, order: int = 1) -> np.ndarray:
    """A coarse field on a finer grid of the same ground."""
    step = field.shape[0] / size
    axis = np.clip((np.arange(size) + 0.5) * step - 0.5, 0, field.shape[0] - 1)
    grid = np.broadcast_arrays(axis[:, None], axis[None])
    return ndimage.map_coordinates(field.astype(np.float32), grid, order=order, mode="nearest")
