"""Where a raster lies that is placed by ground control points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rasterio.transform import GCPTransformer

from geomim.corpus.scenes.footprints import Placement
from geomim.errors import InputError

SPLINE_POINTS = 1000
"""Beyond so many points a spline takes minutes to solve, and a polynomial is fitted."""


def by_control_points(uri: str, points: Sequence[Any]) -> Placement:
    """From columns and rows to the system of the points: a thin plate spline, which goes through each of them.

    Args:
        uri: The raster, for error sentences.
        points: `rasterio.control.GroundControlPoint`s.

    Raises:
        InputError: They place nothing: fewer than three, or all on a line.
    """
    spread = np.array([[point.col, point.row, point.x, point.y] for point in points])
    spread -= spread[:1]
    ranks = [np.linalg.matrix_rank(part) for part in (spread[:, :2], spread[:, 2:])]
    if len(points) < 3 or min(ranks) < 2:
        raise InputError(
            f"'{uri}' is placed by {len(points)} ground control points, and these place nothing: at least three, not "
            "on one line, are needed"
        )
    transformer = GCPTransformer(points, tps=len(points) <= SPLINE_POINTS)

    def place(cols: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x, y = transformer.xy(rows, cols, offset="ul")
        return np.asarray(x), np.asarray(y)

    return place
