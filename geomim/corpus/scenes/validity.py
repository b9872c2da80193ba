"""Which numbers are measurements: the one rule that every reader keeps to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from geomim.errors import InputError


@dataclass(frozen=True)
class Nodata:
    """The numbers of a band that are no measurement.

    Attributes:
        values: Each of them means "no measurement".
        told: By the file or its product; else a sensor's usual value, which a dark pixel may have in one band.
        limits: Numbers below the first or above the second are none either.
    """

    values: tuple[float, ...] = ()
    told: bool = True
    limits: tuple[float, float] = (-math.inf, math.inf)

    @classmethod
    def of(cls, told: float | None, usual: float | None, dtype: Any) -> Nodata:
        """One value, or none where the type cannot hold it.

        Args:
            told: What the file or its product declares, or None.
            usual: What takes its place, or None.
            dtype: Of the numbers.
        """
        value = storable(usual if told is None else told, np.dtype(dtype))
        return cls(() if value is None else (value,), told is not None)

    def missing(self, band: np.ndarray) -> np.ndarray:
        """`(h, w)` bool of numbers `(h, w)`: where they are no measurement."""
        here = np.zeros(band.shape, bool)
        for value in self.values:
            here |= band == np.asarray(value, band.dtype)
        low, high = self.limits
        if low > -math.inf:
            here |= band < low
        if high < math.inf:
            here |= band > high
        if band.dtype.kind == "f":
            here |= ~np.isfinite(band)
        return here


def measured(pixels: np.ndarray, nodata: Sequence[Nodata]) -> np.ndarray:
    """Where all bands are measurements.

    A pixel is none where one band is NaN, infinite or what its file declares as nodata. A sensor's usual value, of
    which the file says nothing, counts only where all bands have theirs: 0 in one band may be a dark pixel.

    Args:
        pixels: `(C, h, w)`.
        nodata: What is no measurement, a band.

    Returns:
        `(h, w)` bool.
    """
    valid, nothing = np.ones(pixels.shape[1:], bool), np.ones(pixels.shape[1:], bool)
    for band, none in zip(pixels, nodata, strict=True):
        missing = none.missing(band)
        nothing &= missing
        if none.told or band.dtype.kind == "f":
            valid &= ~missing if none.told else np.isfinite(band)
    return valid & ~nothing


def padding(nodata: Sequence[Nodata]) -> float | None:
    """The number that is written where nothing is measured: the first nodata value, or None."""
    return next((none.values[0] for none in nodata if none.values), None)


def one_type(uri: str, dtypes: Iterable[Any]) -> np.dtype[Any]:
    """The type of the bands of a scene.

    Raises:
        InputError: They have several, or it is none of real numbers.
    """
    listed = sorted({str(dtype) for dtype in dtypes})
    if len(listed) > 1 or np.dtype(listed[0]).kind not in "iuf":
        raise InputError(f"'{uri}' stores its bands as {', '.join(listed)}: choose bands of one type with --bands")
    return np.dtype(listed[0])


def storable(value: float | None, dtype: np.dtype[Any]) -> float | None:
    """A nodata value; None where the type cannot hold it."""
    if value is None or dtype.kind == "f":
        return value
    limits = np.iinfo(dtype)
    return value if float(value).is_integer() and limits.min <= value <= limits.max else None
