"""What a scene is, whatever it was opened from: named bands, validity, clouds, place, read by window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.windows import Window
from shapely.geometry.base import BaseGeometry

from geomim.corpus.scenes.annotations import Annotations
from geomim.corpus.scenes.files import cause
from geomim.corpus.scenes.footprints import Grid, Placement, affine, footprints, ground_sample_distance
from geomim.errors import GeomimError, InputError, UnreadableError
from geomim.sensors import Sensor


@dataclass(frozen=True)
class Wanted:
    """What a user asks of a scene, as `open_scene` takes it.

    Raises:
        InputError: `resolution` is not above 0.
    """

    sensor: Sensor | None = None
    bands: Sequence[str] | None = None
    resolution: float | None = None
    warp: str | None = None
    harmonise: bool = False

    def __post_init__(self) -> None:
        if self.resolution is not None and not self.resolution > 0:
            raise InputError(f"--resolution must be above 0 metres, given {self.resolution}")


UNKNOWN = 255
"""Of a cloud mask: nothing is known of the pixel."""


class Reader(Protocol):
    """Reads windows inside a scene.

    Of pixels it reads numbers `(C, h, w)` and validity `(h, w)` bool; of clouds `(h, w)`, 1 under cloud or its shadow,
    0 where it is clear, and `UNKNOWN`.
    """

    def read(self, window: Window) -> Any:
        """What lies in a window."""

    def close(self) -> None:
        """Let go of the files."""


@dataclass(frozen=True)
class Windows:
    """A `Reader` that is two functions."""

    read: Callable[[Window], Any]
    close: Callable[[], None] = lambda: None


def converted(reader: Reader, convert: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]) -> Windows:
    """A reader of what is made of the pixels and the validity that another gives."""
    return Windows(lambda window: convert(*reader.read(window)), reader.close)


@dataclass(frozen=True)
class Numbers:
    """The numbers of a scene.

    Attributes:
        sensor: Bands in the order `read` returns them, unit and scale.
        reader: Gives pixels and validity.
        dtype: Type of the numbers.
        nodata: Number written where there is no measurement, or None; used to pad.
        block: Rows and columns of the blocks the file is stored in.
        notes: What was guessed or lost, sentences that say nothing of the file's name.
        taken_off: What was taken off the numbers that the source stores, to harmonise them.
        assumed: Nothing names its bands: they are taken to come in the order of the sensor that the user names.
    """

    sensor: Sensor
    reader: Reader = field(repr=False)
    dtype: np.dtype[Any]
    nodata: float | None
    block: tuple[int, int]
    notes: tuple[str, ...] = ()
    taken_off: int = 0
    assumed: bool = False


@dataclass(frozen=True, kw_only=True)
class Scene(Numbers):
    """A raster that is open and not read yet; close it, or use it as a context manager.

    Attributes:
        uri: Path or address it was opened from.
        crs: Coordinate reference system, or None.
        transform: Affine from (column, row) to `crs`; None where the raster has no place, or is placed by ground
            control points.
        height: Rows.
        width: Columns.
        time: Acquisition in UTC without time zone, from metadata or a date in the file name; None if unknown.
        licence: What the file's metadata say, or None.
        masks: Gives clouds, or None.
        placement: From columns and rows to `crs`, where no affine does it; else None.
        annotations: Labels that came with it, or None.
    """

    uri: str
    crs: CRS | None
    transform: Affine | None
    height: int
    width: int
    time: datetime | None
    licence: str | None
    masks: Reader | None = field(default=None, repr=False)
    placement: Placement | None = field(default=None, repr=False)
    annotations: Annotations | None = field(default=None, repr=False)

    @property
    def grid(self) -> Grid | None:
        """Where its pixels lie, or None without an affine."""
        return None if self.transform is None else Grid(self.crs, self.transform, self.height, self.width)

    @cached_property
    def gsd(self) -> float | None:
        """Ground sample distance in metres, measured where it has a place, else that of its sensor; or None."""
        return ground_sample_distance(self.crs, self._place, self.height, self.width) or self.sensor.gsd

    @property
    def _place(self) -> Placement | None:
        return self.placement if self.transform is None else affine(self.transform)

    def read(self, window: Window | None = None) -> np.ndarray:
        """Pixels as they are stored.

        Colours where indices into a palette are stored; what the numbers mean, as float32, where bands are scaled
        differently; bilinear means where the scene was brought to another grid.

        Args:
            window: Part of the raster, wholly inside it; all of it where None.

        Returns:
            `(C, h, w)` in `dtype`.

        Raises:
            InputError: The window is outside, or the file cannot be decoded there.
        """
        return self.read_valid(window)[0]

    def valid(self, window: Window | None = None) -> np.ndarray:
        """Where there is a measurement.

        A pixel is invalid where alpha or the file's own mask says so, or where one of its bands is no measurement
        (see `validity.measured`).

        Args:
            window: Part of the raster, wholly inside it; all of it where None.

        Returns:
            `(h, w)` bool.
        """
        return self.read_valid(window)[1]

    def read_valid(self, window: Window | None = None) -> tuple[np.ndarray, np.ndarray]:
        """`read` and `valid` of one window, decoding it once.

        Returns:
            `(C, h, w)` in `dtype` and `(h, w)` bool.
        """
        both: tuple[np.ndarray, np.ndarray] = self._decode(self.reader.read, window)
        return both

    def clouds(self, window: Window | None = None) -> np.ndarray | None:
        """Where cloud or its shadow hides the ground.

        Args:
            window: Part of the raster, wholly inside it; all of it where None.

        Returns:
            `(h, w)` bool, False also where nothing is known of a pixel; None where nothing is of the scene.
        """
        codes = self.cloud_codes(window)
        return None if codes is None else codes == 1

    def cloud_codes(self, window: Window | None = None) -> np.ndarray | None:
        """The same as a cloud mask's `Reader` gives it, which tells clear from `UNKNOWN`."""
        return self._decode(self.masks.read, window) if self.masks else None

    def _decode(self, read: Callable[[Window], Any], window: Window | None) -> Any:
        window = window or Window(0, 0, self.width, self.height)
        row, col = window.row_off, window.col_off
        if min(row, col) < 0 or row + window.height > self.height or col + window.width > self.width:
            raise InputError(f"'{self.uri}' is {self.height} x {self.width}; {window} is not inside it")
        try:
            return read(window)
        except (GeomimError, MemoryError):
            raise
        except Exception as error:  # whatever GDAL, HDF5 or a codec of zarr raises for a broken file
            raise UnreadableError(
                f"'{self.uri}' cannot be read at row {row}, column {col} ({cause(error)}): fetch the file again"
            ) from error

    def footprint(self, window: Window | None = None) -> BaseGeometry | None:
        """Outline of a window in longitude and latitude (OGC:CRS84); None where the raster has no place on Earth.

        Args:
            window: May reach beyond the raster, as padded tiles do; the whole raster where None.
        """
        outline: BaseGeometry | None = self.footprints([window or Window(0, 0, self.width, self.height)])[0]
        return outline

    def footprints(self, windows: Sequence[Window]) -> np.ndarray:
        """The same for many windows at once: `(n,)` geometries or None."""
        return footprints(self.crs, self._place, windows)

    def window_transform(self, window: Window) -> Affine | None:
        """Affine of a window's own pixel grid, or None."""
        if self.transform is None:
            return None
        return self.transform @ Affine.translation(window.col_off, window.row_off)

    def close(self) -> None:
        """Close the files."""
        self.reader.close()
        if self.masks:
            self.masks.close()

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
