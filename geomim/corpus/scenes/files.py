"""Files and addresses as GDAL opens them, its settings, and what its errors say."""

from __future__ import annotations

import os
import re
import warnings
from typing import Any
from xml.etree import ElementTree

import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from geomim.addresses import full
from geomim.errors import InputError

SUFFIXES = (".tif", ".tiff", ".gtif", ".gtiff", ".vrt", ".jp2", ".j2k", ".png", ".jpg", ".jpeg")
"""What `find_scenes` picks up inside a folder, in lower case."""

_STORES = {"s3": "vsis3", "gs": "vsigs", "az": "vsiaz", "abfs": "vsiaz"}

_NETWORK = {  # seconds: an address that does not answer is told, not waited for
    "GDAL_HTTP_CONNECTTIMEOUT": 10,
    "GDAL_HTTP_TIMEOUT": 120,
    "GDAL_HTTP_MAX_RETRY": 2,
}


def is_remote(uri: str) -> bool:
    """Whether a source is an address, not a path of this machine."""
    return "://" in uri or uri.startswith("/vsi")


def is_same(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Whether two paths lead to one file, also by links or `..`; neither has to be there."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


def split_address(uri: str) -> tuple[str, str]:
    """A path, and the choice in it that a `#` begins; a file whose name holds a `#` is that file."""
    path, _, choice = (uri, "", "") if os.path.exists(uri) else uri.partition("#")
    return path, choice


def gdal_address(uri: str) -> str:
    """An address as GDAL opens it: `s3://bucket/key` is `/vsis3/bucket/key`, and so on; paths stay as they are.

    What signs it, where it was given in this run, comes back here.
    """
    uri = full(uri)
    scheme, found, rest = uri.partition("://")
    if not found:
        return uri
    if scheme in ("http", "https"):
        return f"/vsicurl/{uri}"
    if scheme == "file":
        return rest
    return f"/{_STORES[scheme]}/{rest}" if scheme in _STORES else uri


def parts_of(path: str) -> list[str]:
    """Paths that a virtual raster on this machine is made of, also by way of others; none for another file."""
    if not path.lower().endswith(".vrt") or not os.path.isfile(path):
        return []
    try:
        told = [one for one in ElementTree.parse(path).iter() if one.tag in ("SourceFilename", "SourceDataset")]
    except ElementTree.ParseError:
        return []  # GDAL says what is wrong
    near = [(os.path.dirname(path) if one.get("relativeToVRT") == "1" else "", one.text or "") for one in told]
    parts = dict.fromkeys(os.path.normpath(os.path.join(*pair)) for pair in near if not re.search(":|^/vsi", pair[1]))
    return [file for part in parts if part != path for file in (part, *parts_of(part))]


def environment(uri: str) -> rasterio.Env:
    """GDAL settings: no listing of the folder at every open, truncated JPEG and PNG are errors, a bounded cache.

    Side files (world files, masks) are still looked for by name, except over the network.
    """
    return rasterio.Env(
        GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR" if is_remote(uri) else "TRUE",
        GDAL_ERROR_ON_LIBJPEG_WARNING="YES",
        GDAL_PNG_WHOLE_IMAGE_OPTIM="NO",  # the fast path returns garbage for a truncated PNG (seen in GDAL 3.10)
        GDAL_CACHEMAX=256 * 2**20,  # rasterio takes bytes; less, and blocks are decoded again for every window
        **(_NETWORK if is_remote(uri) else {}),
    )


def open_dataset(uri: str) -> Any:
    """Open a rasterio dataset by its path or address.

    Raises:
        InputError: It is not there, cannot be reached, or is no raster.
    """
    try:
        with environment(uri), warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            return rasterio.open(gdal_address(uri))
    except (RasterioError, OSError) as error:
        refused = is_remote(uri) and re.search(r"\b40[13]\b|denied|forbidden|authori[sz]", cause(error), re.IGNORECASE)
        how = _UNSIGNED if refused else ""
        raise InputError(f"'{uri}' cannot be opened as a raster ({cause(error)}){how}") from error


def check_pages(path: str, dataset: Any) -> tuple[str, ...]:
    """What there is to say of the further pages of a file, of which the first is read; overviews and masks are none.

    Raises:
        InputError: One is of the size of the first: a band or a time that would be lost.
    """
    pages = dataset.subdatasets
    for page in pages[1:]:
        with open_dataset(page) as other:
            if other.shape == dataset.shape:
                raise InputError(
                    f"'{path}' holds {len(pages)} pages, others of the size of the first, which alone would be read: "
                    "write them as bands of one page, or join them (gdalbuildvrt -separate OUT.vrt GTIFF_DIR:1:FILE ..)"
                )
    return (f"it holds {len(pages)} pages of several sizes: the first is read",) if pages[1:] else ()


_UNSIGNED = (
    "; what signs an address is never kept: give the full address again, or sign it by the environment "
    "(GDAL_HTTP_HEADERS, ~/.netrc, AWS_*, AZURE_*)"
)


def cause(error: BaseException) -> str:
    """Innermost message of an exception chain, one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
