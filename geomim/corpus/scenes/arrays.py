"""A scene in memory, from an array that some library gave."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np
from affine import Affine
from rasterio.windows import Window

from geomim.corpus.scenes.annotations import Annotations
from geomim.corpus.scenes.scene import Scene, Windows
from geomim.corpus.scenes.validity import Nodata, measured, padding
from geomim.errors import BandError, InputError
from geomim.sensors import Sensor


def array_scene(
    uri: str,
    pixels: np.ndarray,
    sensor: Sensor,
    *,
    valid: np.ndarray | None = None,
    crs: Any = None,
    transform: Affine | None = None,
    nodata: float | None = None,
    time: datetime | None = None,
    licence: str | None = None,
    annotations: Annotations | None = None,
) -> Scene:
    """A scene of pixels that are in memory.

    Args:
        uri: What the catalogue calls it.
        pixels: `(C, H, W)`, one band of the sensor after another.
        sensor: What they are.
        valid: `(H, W)` bool, False where there is no measurement; nodata and NaN count besides.
        crs: `rasterio.crs.CRS` or None.
        transform: Affine from (column, row) to `crs`, or None.
        nodata: Number that means "no measurement"; the sensor's where None.
        time: Acquisition in UTC without time zone.
        licence: Of the pixels.
        annotations: Labels that came with them.

    Raises:
        BandError: The array has not as many bands as the sensor.
        InputError: It is no image of real numbers, or `valid` has another shape.
    """
    if pixels.ndim != 3 or 0 in pixels.shape or pixels.dtype.kind not in "iuf":
        raise InputError(f"'{uri}': expected real numbers (C, H, W), given {pixels.dtype} {pixels.shape}")
    if len(pixels) != len(sensor.bands):
        raise BandError(
            f"'{uri}' has {len(pixels)} bands; sensor '{sensor.name}' has {len(sensor.bands)} "
            f"({', '.join(sensor.names)}): they must be as many"
        )
    if valid is not None and valid.shape != pixels.shape[1:]:
        raise InputError(f"'{uri}': validity is {valid.shape} and the image {pixels.shape[1:]}: they must be equal")
    height, width = pixels.shape[1:]
    none = Nodata.of(nodata, sensor.nodata, pixels.dtype)

    def read(window: Window) -> tuple[np.ndarray, np.ndarray]:
        rows, cols = window.toslices()
        part = pixels[:, rows, cols].copy()
        here = measured(part, [none] * len(part))
        return part, here if valid is None else here & valid[rows, cols]

    return Scene(
        uri=uri,
        sensor=sensor,
        crs=crs,
        transform=transform,
        height=height,
        width=width,
        dtype=pixels.dtype,
        nodata=padding([none]),
        time=time,
        licence=licence,
        block=(height, width),
        reader=Windows(read),
        annotations=annotations,
    )
