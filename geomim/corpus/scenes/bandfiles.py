"""A file a band: files of one folder whose names differ by nothing but a band are one scene."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from geomim.corpus.scenes.archives import archive_of, is_folder, open_folder
from geomim.corpus.scenes.files import SUFFIXES
from geomim.errors import InputError

_OF_BANDS = (".tif", ".tiff", ".gtif", ".gtiff", ".vrt", ".jp2", ".j2k")
"""What agencies write bands into. Pictures are none: `house_red.jpg` shows a house."""

_WORDS = r"coastal|blue|green|yellow|red[ _-]?edge[ _-]?\d?|red|nir\d{0,2}|swir[ _-]?\d{0,2}|cirrus|pan|vv|vh|hv|hh"
_TOKEN = re.compile(
    r"(?<![a-z0-9])(?:(?P<kind>(?:sr|st|toa|bt)[ _-])?b(?:and)?[ _-]?(?P<code>\d{1,3}a?)"
    rf"|(?P<word>{_WORDS}))(?:[ _-](?P<metres>\d\d?)m)?(?![a-z0-9])",
    re.IGNORECASE,
)
_BESIDE = re.compile(
    r"(?:scl|aot|wvp|tci|pvi|cld|snw|visual|preview|thumbnail|overview|fmask\d?|b?qa\w*|\w+_qa\w*|udm\d?|[sv][az]a|"
    r"\w*aerosol|\w*cloud\w*)(?:[ _-]\d\dm)?",
    re.IGNORECASE,
)
_SENTINEL2 = re.compile(
    r"(?<![A-Z0-9])(?:S2[A-D](?![A-Z0-9])|T\d\d[C-X][A-Z]{2}_\d{8}T\d{6}|\d{8}T\d{6}_\d{8}T\d{6}_T\d\d[C-X][A-Z]{2}|SENTINEL-?2)",
    re.IGNORECASE,
)
PRODUCT = re.compile(r"(?:L[COTEM]0?(?P<landsat>\d)(?:\d{13}|_\w)|HLS[._](?P<hls>[LS]30)[._])", re.IGNORECASE)
"""How names begin that all files of a product carry: number of the Landsat, or kind of the HLS tile."""

MSI_METADATA = re.compile(r"(?:MTD_MSIL\w\w|S2\w_\w+_MTD_SAFL\w\w_.*)\.xml$")
"""Names of the files that tell what the numbers of a Sentinel-2 product mean."""


@dataclass
class BandFiles:
    """The files of one scene.

    Attributes:
        key: What their names have in common.
        bands: Metres of a pixel (0 where the name tells none) and name of the files of each band.
        beside: Masks, angles, previews and metadata of the scene.
    """

    key: str
    bands: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    beside: list[str] = field(default_factory=list)

    @property
    def files(self) -> list[str]:
        """Names of the files that hold bands, in the order of the bands."""
        return [name for files in self.bands.values() for _, name in files]


def band_of(name: str) -> tuple[str, str, int] | None:
    """The band that the name of a file tells, if any.

    Returns:
        What is left of the name, the band (`B04`, `SR_B4`, `red`), and metres of a pixel (0 where none are told).
    """
    stem, suffix = os.path.splitext(name)
    tokens = list(_TOKEN.finditer(stem)) if suffix.lower() in _OF_BANDS else []
    if not tokens:
        return None
    token = next((token for token in reversed(tokens) if token["code"]), tokens[-1])
    key = re.sub(r"([ ._-])[ ._-]+", r"\1", _TOKEN.sub("", stem)).strip(" ._-")
    kind = (token["kind"] or "").upper().replace("-", "_").replace(" ", "_")
    return key, f"{kind}B{token['code'].upper()}" if token["code"] else token["word"].lower(), int(token["metres"] or 0)


def maker(uri: str) -> tuple[str, str]:
    """The last part of a path that tells what took a scene, and what: the number of a Landsat, `L30`, `S30` or `S2`.

    Returns:
        Twice "" where no part does.
    """
    for name in reversed(uri.split("/")):
        if product := PRODUCT.match(name):
            return name, (product["landsat"] or product["hls"]).upper()
        if _SENTINEL2.search(name):
            return name, "S2"
    return "", ""


def band_groups(names: Iterable[str]) -> dict[str, BandFiles]:
    """Scenes of two bands or more among the files of one folder, by what the names of their files have in common."""
    groups: dict[str, BandFiles] = {}
    others = []
    for name in sorted(names):
        if named := band_of(name):
            key, band, metres = named
            groups.setdefault(key, BandFiles(key)).bands.setdefault(band, []).append((metres, name))
        else:
            others.append(name)
    for group in [group for group in groups.values() if len(group.bands) < 2 or _of_product(group.key, groups)]:
        others += groups.pop(group.key).files  # one band alone; or the angles of each band of a product
    for group in groups.values():
        group.bands = {band: group.bands[band] for band in sorted(group.bands, key=_numbered)}
    for name in others if groups else ():
        if MSI_METADATA.match(name):  # its name tells no scene
            for group in groups.values():
                group.beside.append(name)
        stem = os.path.splitext(name)[0]
        own = _of_product(stem, groups) or next(
            (key for key, rest in [*_parts(stem), ("", stem)] if key in groups and _BESIDE.fullmatch(rest)), None
        )
        if own is not None:
            groups[own].beside.append(name)
    return groups


def group_of(uri: str) -> tuple[str, BandFiles] | None:
    """Folder and files of a scene of many files: the only one in the folder `uri`, or that of `FOLDER/KEY`.

    Raises:
        InputError: The folder holds several.
    """
    if uri.lower().endswith(SUFFIXES):  # a file: told without asking the disk, for there may be millions
        return None
    if not is_folder(uri):
        folder, _, key = uri.rpartition("/") if "/" in uri else (".", "", uri)
        group = groups_in(folder).get(key) if is_folder(folder) else None
        return (folder, group) if group else None
    groups = groups_in(uri.rstrip("/"))
    if len(groups) > 1 and "" not in groups:
        raise InputError(f"'{uri}' holds {len(groups)} scenes: give one of them, such as '{uri}/{min(groups)}'")
    return (uri, groups.get("") or next(iter(groups.values()))) if groups else None


def groups_in(folder: str) -> dict[str, BandFiles]:
    """`band_groups` of a folder on this machine or in an archive."""
    return _listed(folder, os.stat(archive_of(folder) or folder).st_mtime_ns)


@lru_cache(maxsize=16)  # a folder may hold a million files, and each scene in it is asked for
def _listed(folder: str, changed: int) -> dict[str, BandFiles]:
    if archive_of(folder):
        return band_groups(name for name in open_folder(folder).names if "/" not in name)
    with os.scandir(folder) as entries:
        return band_groups(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file())


def _of_product(stem: str, groups: Mapping[str, BandFiles]) -> str | None:
    return next((key for key, _ in _parts(stem) if key in groups and PRODUCT.match(key)), None)


def _parts(stem: str) -> Iterator[tuple[str, str]]:
    for place in re.finditer(r"[ ._-]", stem):
        yield stem[: place.start()], stem[place.end() :]


def _numbered(band: str) -> str:
    return re.sub(r"\d+", lambda number: number[0].zfill(3), band)
