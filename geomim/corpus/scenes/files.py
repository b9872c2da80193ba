"""Files and addresses as GDAL opens them, its settings, and what its errors say."""

from __future__ import annotations

import os
import warnings
from typing import Any

import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from geomim.errors import InputError


def is_remote(uri: str) -> bool:
    """Whether a source is an address, not a path of this machine."""
    return "://" in uri or uri.startswith("/vsi")


def environment(uri: str) -> rasterio.Env:
    """GDAL settings: no listing of the folder at every open, truncated JPEG and PNG are errors, a bounded cache.

    Side files (world files, masks) are still looked for by name, except over the network.
    """
    return rasterio.Env(
        GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR" if is_remote(uri) else "TRUE",
        GDAL_ERROR_ON_LIBJPEG_WARNING="YES",
        GDAL_PNG_WHOLE_IMAGE_OPTIM="NO",  # the fast path returns garbage for a truncated PNG (seen in GDAL 3.10)
        GDAL_CACHEMAX=256,  # MB
    )


def open_dataset(uri: str) -> Any:
    """Open a rasterio dataset.

    Raises:
        InputError: It is not there, or no raster.
    """
    try:
        with environment(uri), warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            return rasterio.open(os.fspath(uri))
    except (RasterioError, OSError) as error:
        raise InputError(f"'{uri}' cannot be opened as a raster ({cause(error)})") from error


def cause(error: BaseException) -> str:
    """Innermost message of an exception chain, one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
