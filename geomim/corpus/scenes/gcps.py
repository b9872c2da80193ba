"""Where a raster lies that is placed by ground control points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rasterio.errors import RasterioError
from rasterio.transform import GCPTransformer

from geomim.corpus.scenes.footprints import Placement
from geomim.errors import InputError


def by_control_points(uri: str, points: Sequence[Any]) -> Placement:
    """From columns and rows to the system of the points: a thin plate spline, which goes through each of them.

    Args:
        uri: The raster, for error sentences.
        points: `rasterio.control.GroundControlPoint`s.

    Raises:
        InputError: They place nothing: fewer than three, or all on a line.
    """

    def place(cols: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with GCPTransformer(points, tps=True) as transformer:
            x, y = transformer.xy(rows, cols, offset="ul")
        return np.asarray(x), np.asarray(y)

    try:
        corner = place(np.zeros(1), np.zeros(1))
    except RasterioError:
        corner = (np.full(1, np.nan),) * 2
    if len(points) < 3 or not np.isfinite(corner).all():
        raise InputError(f"'{uri}' is placed by {len(points)} ground control points, which place nothing: give three")
    return place
