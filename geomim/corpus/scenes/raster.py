"""Open a GeoTIFF, COG, VRT, JPEG 2000, PNG or JPEG as a `Scene`: named bands, validity, place, read by window."""

from __future__ import annotations

import dataclasses
import glob
import math
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window
from shapely.geometry.base import BaseGeometry

from geomim.corpus.scenes.footprints import footprint, ground_sample_distance
from geomim.corpus.scenes.naming import choose, read_offer
from geomim.errors import InputError
from geomim.sensors import Sensor

SUFFIXES = (".tif", ".tiff", ".gtif", ".gtiff", ".vrt", ".jp2", ".j2k", ".png", ".jpg", ".jpeg")
"""What `find_scenes` picks up inside a folder, in lower case."""


@dataclass(frozen=True)
class Scene:
    """A raster that is open and not read yet; close it, or use it as a context manager.

    Attributes:
        uri: Path or address it was opened from.
        sensor: Bands in the order `read` returns them, unit and scale.
        crs: Coordinate reference system, or None.
        transform: Affine from (column, row) to `crs`, or None where the raster has no place.
        height: Rows.
        width: Columns.
        dtype: Type of the stored numbers.
        nodata: Number written where there is no measurement, or None; used to pad.
        time: Acquisition in UTC without time zone, from metadata or a date in the file name; None if unknown.
        licence: What the file's metadata say, or None.
        gsd: Ground sample distance in metres, or None.
        block: Rows and columns of the blocks the file is stored in.
    """

    uri: str
    sensor: Sensor
    crs: CRS | None
    transform: Affine | None
    height: int
    width: int
    dtype: np.dtype[Any]
    nodata: float | None
    time: datetime | None
    licence: str | None
    gsd: float | None
    block: tuple[int, int]
    _dataset: Any = field(repr=False)
    _places: tuple[int, ...] = field(repr=False)  # 0-based places of the bands in the file
    _alpha: int | None = field(repr=False)  # 0-based place of the alpha band
    _masked: bool = field(repr=False)  # the file carries a mask of its own
    _nodata: tuple[float | None, ...] = field(repr=False)  # a band each

    def read(self, window: Window | None = None) -> np.ndarray:
        """Pixels as they are stored.

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

        A pixel is invalid where alpha or the file's own mask says so, where every band is nodata, or where any band
        is NaN or infinite.

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
        window = window or Window(0, 0, self.width, self.height)
        row, col = window.row_off, window.col_off
        if min(row, col) < 0 or row + window.height > self.height or col + window.width > self.width:
            raise InputError(f"'{self.uri}' is {self.height} x {self.width}; {window} is not inside it")
        places = [*self._places, *([] if self._alpha is None else [self._alpha])]
        try:
            with _environment(self.uri):
                pixels = self._dataset.read([place + 1 for place in places], window=window)
                mask = self._dataset.read_masks(1, window=window) if self._masked else None
        except (RasterioError, OSError) as error:
            raise InputError(
                f"'{self.uri}' cannot be read at row {row}, column {col} ({_cause(error)}): fetch the file again"
            ) from error
        bands = pixels[: len(self._places)]
        valid = self._measured(bands)
        if self._alpha is not None:
            valid &= pixels[-1] > 0
        if mask is not None:
            valid &= mask > 0
        return bands, valid

    def _measured(self, bands: np.ndarray) -> np.ndarray:
        if all(value is not None for value in self._nodata):
            missing = np.ones(bands.shape[1:], bool)
            for band, value in zip(bands, self._nodata, strict=True):
                missing &= band == np.asarray(value, self.dtype)
            measured = ~missing
        else:
            measured = np.ones(bands.shape[1:], bool)
        if self.dtype.kind == "f":
            measured &= np.isfinite(bands).all(axis=0)
        return measured

    def footprint(self, window: Window | None = None) -> BaseGeometry | None:
        """Outline of a window in longitude and latitude (OGC:CRS84); None where the raster has no place on Earth.

        Args:
            window: May reach beyond the raster, as padded tiles do; the whole raster where None.
        """
        window = window or Window(0, 0, self.width, self.height)
        return footprint(self.crs, self.window_transform(window), window.height, window.width)

    def window_transform(self, window: Window) -> Affine | None:
        """Affine of a window's own pixel grid, or None."""
        if self.transform is None:
            return None
        a, b, c, d, e, f = self.transform[:6]
        col, row = window.col_off, window.row_off
        return Affine(a, b, a * col + b * row + c, d, e, d * col + e * row + f)

    def close(self) -> None:
        """Close the file."""
        self._dataset.close()

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def open_scene(uri: str | os.PathLike[str], sensor: Sensor | None = None, bands: Sequence[str] | None = None) -> Scene:
    """Open a raster without reading its pixels.

    Args:
        uri: Path or GDAL address.
        sensor: What took it; its bands are found in the file by name, alias or wavelength.
        bands: Names of the file's bands in file order (`-` ignores one); a choice by name where the file names them.

    Raises:
        InputError: Not a raster, or one whose numbers or place this form of geomim cannot carry; one sentence.
        BandError: The bands have no names or other ones; the sentence gives the flag.
    """
    uri = str(uri)
    try:
        with _environment(uri), warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            dataset = rasterio.open(uri)
    except (RasterioError, OSError) as error:
        raise InputError(f"'{uri}' cannot be opened as a raster ({_cause(error)})") from error
    try:
        return _describe(uri, dataset, sensor, bands)
    except BaseException:
        dataset.close()
        raise


def _describe(uri: str, dataset: Any, sensor: Sensor | None, bands: Sequence[str] | None) -> Scene:
    _check_pixels(uri, dataset)
    choice = choose(read_offer(uri, dataset), sensor, bands)
    sensor = _scaled(uri, dataset, choice.sensor, choice.places, given=sensor is not None)
    together = [*choice.places, *([] if choice.alpha is None else [choice.alpha])]  # read in one call
    dtypes = {dataset.dtypes[place] for place in together}
    if len(dtypes) > 1:
        raise InputError(
            f"'{uri}' stores its bands as {', '.join(sorted(dtypes))}: choose bands of one type with --bands"
        )
    dtype = np.dtype(dtypes.pop())
    nodata = tuple(_nodata(dataset.nodatavals[place], sensor, dtype) for place in choice.places)
    flags = dataset.mask_flag_enums[choice.places[0]]
    placed = dataset.transform != Affine.identity()
    transform = dataset.transform if placed else None
    crs = dataset.crs if placed and dataset.crs else None
    tags = dataset.tags()
    return Scene(
        uri=uri,
        sensor=sensor,
        crs=crs,
        transform=transform,
        height=dataset.height,
        width=dataset.width,
        dtype=dtype,
        nodata=next((value for value in nodata if value is not None), None),
        time=acquisition_time(uri, tags | dataset.tags(ns="IMAGERY")),
        licence=next((tags[key] for key in ("LICENCE", "LICENSE", "TIFFTAG_COPYRIGHT") if tags.get(key)), None),
        gsd=ground_sample_distance(crs, transform, dataset.height, dataset.width) or sensor.gsd,
        block=dataset.block_shapes[choice.places[0]],
        _dataset=dataset,
        _places=choice.places,
        _alpha=choice.alpha,
        _masked=rasterio.enums.MaskFlags.per_dataset in flags and rasterio.enums.MaskFlags.alpha not in flags,
        _nodata=nodata,
    )


def _check_pixels(uri: str, dataset: Any) -> None:
    """Refuse what slicing would turn into wrong numbers or a wrong place."""
    if dataset.count == 0:
        held = f"holds {len(dataset.subdatasets)} rasters: open one of them" if dataset.subdatasets else "holds no band"
        raise InputError(f"'{uri}' {held}")
    if any(colour.name == "palette" for colour in dataset.colorinterp):
        raise InputError(f"'{uri}' stores indices into a colour palette, no measurements: expand it to RGB first")
    if any("complex" in dtype for dtype in dataset.dtypes):
        raise InputError(
            f"'{uri}' stores complex numbers ({dataset.dtypes[0]}): convert to amplitude or intensity first"
        )
    if dataset.transform == Affine.identity():
        if dataset.gcps[0]:
            raise InputError(
                f"'{uri}' is placed by {len(dataset.gcps[0])} ground control points only: warp it to a grid first"
            )
        if dataset.rpcs:
            raise InputError(f"'{uri}' is placed by rational polynomials only: orthorectify it first")


def _scaled(uri: str, dataset: Any, sensor: Sensor, places: Sequence[int], given: bool) -> Sensor:
    """The sensor with the file's own scale and offset, which must not contradict a sensor that has them."""
    stated = {(dataset.scales[place], dataset.offsets[place]) for place in places}
    if len(stated) > 1:
        raise InputError(
            f"'{uri}' scales its bands differently {sorted(stated)}: bring them to one scale and offset first"
        )
    scale, offset = stated.pop()
    if (scale, offset) == (1.0, 0.0):
        return sensor
    if (sensor.scale, sensor.offset) == (1.0, 0.0):
        return dataclasses.replace(sensor, scale=scale, offset=offset)
    if math.isclose(scale, sensor.scale, rel_tol=1e-6) and math.isclose(offset, sensor.offset, abs_tol=1e-9):
        return sensor
    advice = "give a sensor YAML with the scale of the file" if given else "name the sensor"
    raise InputError(
        f"'{uri}' says number * {scale:g} + {offset:g}; sensor '{sensor.name}' says * {sensor.scale:g} + "
        f"{sensor.offset:g}: {advice} (--sensor)"
    )


def _nodata(declared: float | None, sensor: Sensor, dtype: np.dtype[Any]) -> float | None:
    """The file's nodata, else the sensor's; None where the type cannot hold it."""
    value = sensor.nodata if declared is None else declared
    if value is None or dtype.kind == "f":
        return value
    if not math.isfinite(value) or value != int(value):
        return None
    limits = np.iinfo(dtype)
    return value if limits.min <= value <= limits.max else None


_DATE = re.compile(r"(?<!\d)((?:19|20)\d\d)-?([01]\d)-?([0-3]\d)(?:[T_ ]?([0-2]\d):?([0-5]\d):?([0-6]\d))?(?!\d)")
_LANDSAT = re.compile(r"(?<![A-Z0-9])L[COETM]\d{7}((?:19|20)\d\d)([0-3]\d\d)(?!\d)")
_TIME_TAGS = ("ACQUISITIONDATETIME", "ACQUISITION_DATETIME", "ACQUISITION_DATE", "DATE_ACQUIRED", "SENSING_TIME")


def acquisition_time(uri: str, tags: dict[str, str]) -> datetime | None:
    """When a scene was taken: from metadata that mean acquisition, else a date in the file name.

    TIFF's own date tag is when a program wrote the file, so it does not count.

    Args:
        uri: Path or address.
        tags: Metadata of the file.
    """
    upper = {key.upper(): value for key, value in tags.items()}
    name = Path(uri).name
    landsat = _LANDSAT.search(name)
    if landsat and not any(key in upper for key in _TIME_TAGS):
        return datetime(int(landsat[1]), 1, 1) + timedelta(days=int(landsat[2]) - 1)
    for text in [*(upper[key] for key in _TIME_TAGS if key in upper), name]:
        found = _DATE.search(text)
        if found:
            try:
                return datetime(*(int(part or 0) for part in found.groups()))  # type: ignore[arg-type]
            except ValueError:
                continue  # digits that are no date
    return None


def find_scenes(sources: Iterable[str | os.PathLike[str]] | str | os.PathLike[str]) -> list[str]:
    """List rasters: files as given, folders searched recursively for `SUFFIXES`, patterns expanded.

    Hidden files, and folders that are a corpus, are left out. Addresses (`https://`, `/vsi...`) pass unchecked.

    Returns:
        Sorted, each once.

    Raises:
        InputError: A path does not exist, or nothing was found.
    """
    given = [str(source) for source in ([sources] if isinstance(sources, str | os.PathLike) else sources)]
    found: set[str] = set()
    for source in given:
        if os.path.isdir(source):
            found.update(_walk(source))
        elif os.path.isfile(source) or _remote(source):
            found.add(source)
        elif matches := glob.glob(source, recursive=True):
            found.update(find_scenes(matches))
        else:
            raise InputError(f"'{source}' does not exist: give a raster, a folder of rasters or a pattern")
    if not found:
        raise InputError(f"no raster in {', '.join(given) or 'nothing'}: looked for {', '.join(SUFFIXES)}")
    return sorted(found)


def _walk(folder: str) -> Iterable[str]:
    for parent, folders, names in os.walk(folder):
        if "corpus.json" in names:  # a corpus is made of scenes and is none
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield os.path.join(parent, name)


def _remote(uri: str) -> bool:
    return "://" in uri or uri.startswith("/vsi")


def _environment(uri: str) -> rasterio.Env:
    """GDAL settings: no listing of the folder at every open, truncated JPEG and PNG are errors, a bounded cache.

    Side files (world files, masks) are still looked for by name, except over the network.
    """
    return rasterio.Env(
        GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR" if _remote(uri) else "TRUE",
        GDAL_ERROR_ON_LIBJPEG_WARNING="YES",
        GDAL_PNG_WHOLE_IMAGE_OPTIM="NO",  # the fast path returns garbage for a truncated PNG (seen in GDAL 3.10)
        GDAL_CACHEMAX=256,  # MB
    )


def _cause(error: BaseException) -> str:
    """Innermost message of an exception chain, one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
