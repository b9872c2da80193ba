"""Vectors of patches on their way to a file: row by row onto disk, from there block by block with all of their values.

A cloud-optimised GeoTIFF of hundreds of bands is slow where GDAL has to look for a block's bands in its cache, and
slower where it averages them for overviews, a hundred seconds for 256 bands of 1,000 x 200 patches. Here each block is
given to it once, whole, and overviews are ready when it makes the file.
"""

from __future__ import annotations

import errno
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile
from rasterio.windows import Window

from geomim.corpus.scenes.maps import MADE
from geomim.maps.embeddings.vectors import NODATA, Rounding
from geomim.maps.files.rasters import aside, create, open_map

BLOCK = 128
"""Patches along a side of a GeoTIFF's block: a cloud-optimised one has none smaller."""
_MANY = 512  # values a vector
_SCREEN = 512  # patches along a side that need no overview
_CACHE = 256 * 2**20  # bytes


def windows(shape: tuple[int, int, int], side: int) -> Iterator[Window]:
    """Blocks of a raster `(D, rows, columns)`, row by row."""
    _, height, width = shape
    for top in range(0, height, side):
        for left in range(0, width, side):
            yield Window(left, top, min(side, width - left), min(side, height - top))


@dataclass(frozen=True)
class Rows:
    """Vectors as they are kept, on disk, those of a row one after another.

    Attributes:
        file: Holds nothing else.
        shape: Values a vector, rows and columns.
        rounding: How they are kept.
    """

    file: Path
    shape: tuple[int, int, int]
    rounding: Rounding

    @classmethod
    def written(cls, file: Path, width: int, bands: int, rounding: Rounding, rows: Iterable[np.ndarray]) -> Rows:
        """Write rows `(width, bands)` of kept values."""
        height = 0
        with file.open("wb") as opened:
            for row in rows:
                opened.write(np.ascontiguousarray(row).data)
                height += 1
        return cls(file, (bands, height, width), rounding)

    def _open(self) -> np.ndarray:
        """`(rows, columns, D)`; what is read of it is in memory until it is let go."""
        return np.memmap(self.file, self.rounding.dtype, "r", shape=(*self.shape[1:], self.shape[0]))

    def windows(self, side: int) -> Iterator[Window]:
        """Its blocks."""
        return windows(self.shape, side)

    def read(self, window: Window) -> np.ndarray:
        """Kept values `(D, rows, columns)` of a window."""
        return np.ascontiguousarray(np.moveaxis(self._open()[window.toslices()], -1, 0))

    def halved(self, file: Path) -> Rows:
        """An overview, of the mean of each two by two vectors that there are."""
        bands, height, width = self.shape

        def rows() -> Iterator[np.ndarray]:
            for top in range(0, height, 2):
                pair = self.rounding.restore(self._open()[top : top + 2])
                pair = np.pad(pair, ((0, 2 - len(pair)), (0, width % 2), (0, 0)), constant_values=np.nan)
                four = pair.reshape(2, -1, 2, bands).swapaxes(1, 2).reshape(4, -1, bands)
                seen = ~np.isnan(four[..., :1])
                count = seen.sum(0)
                mean = np.where(seen, four, 0).sum(0) / np.maximum(count, 1)
                yield self.rounding.keep(np.where(count, mean, np.nan))

        return Rows.written(file, -(-width // 2), bands, self.rounding, rows())


def write_geotiff(path: Path, place: Mapping[str, Any], said: Mapping[str, Any], rows: Rows) -> None:
    """Write vectors as a cloud-optimised GeoTIFF, aside at first, and compare it with them.

    Args:
        path: The file.
        place: Where it lies.
        said: Its attributes.
        rows: The vectors; further files are written beside theirs.

    Raises:
        OSError: What was written is not what was given, as on a full disk, which GDAL may not tell.
    """
    half = rows.rounding.scale is None
    bits = {"nbits": 16} if half else {}  # GDAL has had the type since 3.11, the file for longer
    whole = rows.file.with_name("patches.tif")
    with aside(path) as part, rasterio.Env(GDAL_CACHEMAX=_CACHE), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        level, file = rows, whole
        _write_blocks(file, level, {**bits, **place}, said)
        while max(level.shape[1:]) > _SCREEN:
            level, file = level.halved(level.file.with_name(f"{level.file.name}0")), Path(f"{file}.ovr")
            _write_blocks(file, level, bits)
        options = {"blocksize": BLOCK, "num_threads": "all_cpus", "bigtiff": "if_safer", **bits, **_compression()}
        rasterio.shutil.copy(whole, part, driver="COG", **options)
        with open_map(part) as written:
            if not all(_same(rows.read(window), written.read(window=window)) for window in rows.windows(BLOCK)):
                raise OSError(errno.ENOSPC, "No space left on device", str(path))


def slow_note(path: Path, shape: tuple[int, int, int]) -> list[str]:
    """That another form is the better one for so many values a vector `(D, rows, columns)`."""
    bands, height, width = shape
    if path.suffix.lower() == ".zarr" or bands <= _MANY or height * width <= BLOCK**2:
        return []
    size = bands * BLOCK**2 * 4 / 1e6
    return [
        f"a GeoTIFF of {bands} bands takes about three times as long to write as zarr, and who reads a patch of it "
        f"reads {size:.0f} MB: a file that ends in .zarr is the better form for so many"
    ]


def _write_blocks(file: Path, rows: Rows, more: Mapping[str, Any], said: Mapping[str, Any] | None = None) -> None:
    """One level as a GeoTIFF for GDAL to copy."""
    (bands, height, width), half = rows.shape, rows.rounding.scale is None
    profile = {
        "dtype": "float32" if half else "int8", "nodata": np.nan if half else NODATA,
        "count": bands, "height": height, "width": width,
        "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "interleave": "pixel", **more,
    }  # fmt: skip
    with create(file, profile) as raster:
        if said is not None:
            raster.descriptions = [f"dimension {number}" for number in range(bands)]
            raster.update_tags(**{MADE: "embeddings", "EMBEDDING": json.dumps(said)})
            if rows.rounding.scale is not None:
                raster.scales = rows.rounding.scale.tolist()
        for window in rows.windows(BLOCK):
            values = rows.read(window)
            raster.write(values.astype(np.float32) if half else values, window=window)


def _same(given: np.ndarray, written: np.ndarray) -> bool:
    return np.array_equal(given, written, equal_nan=given.dtype != np.int8)


def _compression() -> dict[str, Any]:
    """Of what GDAL can, the quickest that makes files smaller."""
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 1, "height": 1, "width": 1, "compress": "zstd"}
    try:
        with MemoryFile() as memory, open_map(memory, "w", **profile):
            return {"compress": "zstd", "level": 1}
    except RasterioError:
        return {"compress": "deflate", "level": 1}
