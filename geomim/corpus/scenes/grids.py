"""Where the pixels of a raster lie, or are wanted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from affine import Affine
from rasterio.crs import CRS


@dataclass(frozen=True)
class Grid:
    """A grid of pixels.

    Attributes:
        crs: `rasterio.crs.CRS`, or None where pixels have no place.
        transform: Affine from (column, row) to `crs`.
        height: Rows.
        width: Columns.
    """

    crs: CRS | None
    transform: Affine
    height: int
    width: int

    @classmethod
    def of(cls, dataset: Any) -> Grid:
        """The grid that a rasterio dataset has."""
        return cls(dataset.crs, dataset.transform, dataset.height, dataset.width)

    def agrees(self, other: Grid) -> bool:
        """Whether two grids are one, up to rounding: a tenth of a pixel over the whole raster."""
        if (self.height, self.width) != (other.height, other.width) or (self.crs or None) != (other.crs or None):
            return False
        pixel = math.hypot(self.transform.a, self.transform.d)
        return all(
            math.dist(self.at(*corner), other.at(*corner)) < 0.1 * pixel
            for corner in ((0, 0), (self.width, 0), (0, self.height))
        )

    def at(self, col: float, row: float) -> tuple[float, float]:
        """Where a corner of a pixel lies in `crs`."""
        a, b, c, d, e, f = self.transform[:6]
        return a * col + b * row + c, d * col + e * row + f

    @property
    def metres(self) -> tuple[float, float]:
        """Width and height of a pixel, in a projected system."""
        a, b, _, d, e, _ = self.transform[:6]
        unit = self.crs.linear_units_factor[1] if self.crs else 1.0
        return math.hypot(a, d) * unit, math.hypot(b, e) * unit
