"""Which numbers are measurements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def measured(pixels: np.ndarray, nodata: Sequence[float | None]) -> np.ndarray:
    """Where there is a measurement: not where every band is nodata, nor where any is NaN or infinite.

    Args:
        pixels: `(C, h, w)`.
        nodata: The value of each band that means "no measurement", or None.

    Returns:
        `(h, w)` bool.
    """
    valid = np.ones(pixels.shape[1:], bool)
    if all(value is not None for value in nodata):
        missing = valid.copy()
        for band, value in zip(pixels, nodata, strict=True):
            missing &= band == np.asarray(value, pixels.dtype)
        valid = ~missing
    if pixels.dtype.kind == "f":
        valid &= np.isfinite(pixels).all(axis=0)
    return valid


def storable(value: float | None, dtype: np.dtype[Any]) -> float | None:
    """A nodata value; None where the type cannot hold it."""
    if value is None or dtype.kind == "f":
        return value
    if not math.isfinite(value) or value != int(value):
        return None
    limits = np.iinfo(dtype)
    return value if limits.min <= value <= limits.max else None
