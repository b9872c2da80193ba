"""Maps as files: placed on their scene, written aside, opened by any GIS."""

from __future__ import annotations

import colorsys
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.errors import NotGeoreferencedWarning

from geomim.corpus.scenes import Scene
from geomim.corpus.scenes.maps import MADE, entries
from geomim.errors import ConfigError, InputError

NODATA = 255
"""Value of a patch without image in a map of classes; class ids run from 0 to 254."""
_EXTRA_SAMPLES = 338  # what further bands of a TIFF are: 2 is alpha, 0 nothing special
_POINTS = 11  # control points along each side of a scene that is placed by such


def check_endings(**files: tuple[str | None, *tuple[str, ...]]) -> None:
    """Refuse a file to write that ends in none of the endings beside it, which are what its flag writes.

    Or one that cannot be written where it is to be, as `check_place` says.
    """
    for flag, (file, *endings) in files.items():
        if file and not file.lower().endswith(tuple(endings)):
            raise ConfigError(f"--{flag}: expected a file that ends in {' or '.join(endings)}; given '{file}'")
        if file:
            check_place(flag, Path(file))


def check_place(flag: str, path: Path) -> None:
    """Refuse a file whose folder cannot be one, or whose name says something else to what writes it."""
    if path.suffix.lower() in (".gpkg", ".geojson") and "!" in str(path):  # to pyogrio a member of an archive
        raise ConfigError(f"--{flag}: layers cannot be written where a name has '!'; given '{path}'")
    if file := next((folder for folder in path.parents if folder.exists() and not folder.is_dir()), None):
        raise InputError(f"--{flag}: '{path}' cannot be written in folder '{path.parent}': '{file}' is a file")


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Where to write a file that then gets its name, so that it is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def create(path: Path, profile: dict[str, object]) -> rasterio.io.DatasetWriter:
    """Open a GeoTIFF to write, which says that it is a map."""
    path.unlink(missing_ok=True)  # what a killed process left, which GDAL would open, and fail
    raster = open_map(path, "w", **{"driver": "GTiff", "bigtiff": "if_safer"} | profile)
    raster.update_tags(**{MADE: "yes"})
    return raster


def open_map(path: Path, mode: str = "r", **profile: object) -> Any:
    """Open a map; a scene without place gives one without place, which is not warned of again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(path, mode, **profile)


def placed(scene: Scene, cell: int) -> dict[str, object]:
    """Where a map of a scene lies whose pixels are `cell` of the scene's wide; nothing where the scene has no place."""
    if scene.transform is not None:
        return {"transform": scene.transform @ Affine.scale(cell), "crs": scene.crs}
    if scene.placement is None:
        return {}
    ends = (np.linspace(0, length, _POINTS) for length in (scene.width, scene.height))
    columns, rows = (places.ravel() for places in np.meshgrid(*ends))
    x, y = scene.placement(columns, rows)
    points = zip(rows / cell, columns / cell, x, y, strict=True)
    return {"gcps": [GroundControlPoint(*map(float, point)) for point in points], "crs": scene.crs}


def write_cog(source: Path, path: Path, resampling: str) -> None:
    """Write a raster as a cloud-optimised GeoTIFF with overviews; names and a style of one it replaces go with that.

    Args:
        source: Any raster; its bands' descriptions, tags and colours come along.
        path: The file.
        resampling: Of the overviews, such as `average`; `nearest` for classes.

    Raises:
        OSError: What was written is not what was given, as on a full disk, which GDAL may not tell.
    """
    options = {"compress": "deflate", "predictor": "yes", "bigtiff": "if_safer", "overview_resampling": resampling}
    with aside(path) as part, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.Env(GDAL_CACHEMAX=256 * 2**20):  # bytes
            rasterio.shutil.copy(source, part, driver="COG", **options)
            _unmark_alpha(part)
            with rasterio.open(source) as given, rasterio.open(part) as written:
                if any(given.checksum(band) != written.checksum(band) for band in given.indexes):
                    raise OSError(f"'{path}' could not be written in full: is the disk full?")
    _names_of(path).unlink(missing_ok=True)
    if _may_write_style(path):
        path.with_suffix(".qml").unlink(missing_ok=True)


def _unmark_alpha(path: Path) -> None:
    """Take back that a band beside one of colours is alpha, which GDAL writes whatever it is told."""
    with rasterio.open(path) as raster:
        if [one.name for one in raster.colorinterp] != ["palette", "alpha"]:
            return
    with path.open("r+b") as file:
        for place in [place for _, tag, _, _, place in entries(file) if tag == _EXTRA_SAMPLES]:
            file.seek(place)
            file.write(b"\0\0")


LAND = {
    "water": (0, 100, 200), "river": (70, 150, 230), "wetland": (0, 150, 160), "mangrove": (0, 207, 117),
    "snow": (240, 240, 240), "woodland": (110, 160, 60), "forest": (0, 100, 0), "tree": (30, 120, 40),
    "orchard": (150, 190, 40), "shrub": (255, 187, 34), "crop": (240, 150, 255), "meadow": (220, 230, 90),
    "grass": (255, 255, 76), "settlement": (250, 0, 0), "built": (220, 40, 40), "urban": (200, 60, 60),
    "rock": (120, 120, 120), "dune": (235, 205, 140), "sand": (235, 205, 140), "bare": (180, 140, 110),
}  # fmt: skip
"""Colours of land cover by a word of a class's name, most of them ESA WorldCover's; the first word found counts."""


def name_classes(raster: rasterio.io.DatasetWriter, names: Sequence[str]) -> None:
    """Give a map of classes its colours and, as tags, its names."""
    raster.write_colormap(1, colours_of(names))
    raster.update_tags(1, **{f"CLASS_{index}": _on_a_line(name) for index, name in enumerate(names)})


def _on_a_line(name: str) -> str:
    """A name without what ends a line, and without control characters, which XML cannot hold."""
    return re.sub(r"[\x00-\x1f\x7f\ufffe\uffff]+", " ", name).strip()


def colours_of(names: Sequence[str]) -> dict[int, tuple[int, int, int, int]]:
    """Colours of class ids: those that land cover is known by, once each; of other names hues a golden angle apart."""
    colours: dict[int, tuple[int, int, int, int]] = {}
    left = dict(LAND)
    for index, name in enumerate(names):
        word = next((word for word in left if word in name.lower()), None)
        hue, shade = index * 0.618034 % 1, (0.85, 0.6, 0.95)[index // 3 % 3]
        free = [round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.75 if index % 2 == 0 else 0.5, shade)]
        red, green, blue = left.pop(word) if word else free
        colours[index] = (red, green, blue, 255)
    return colours | {NODATA: (0, 0, 0, 0)}


def write_style(path: Path, names: Sequence[str]) -> None:
    """A `.qml` beside a map of classes, by which QGIS shows its first band in its colours, with its names.

    A style of the user's own stays, which is said.
    """
    if _may_write_style(path):
        with aside(path.with_suffix(".qml")) as part:
            part.write_text(_style(names), encoding="utf-8")


def _may_write_style(path: Path) -> bool:
    """Whether the style beside a raster is none, or just what is written for the names in it; says so of others."""
    style = path.with_suffix(".qml")
    if not style.exists():
        return True
    with suppress(OSError, ValueError, ElementTree.ParseError):
        text = style.read_text(encoding="utf-8")
        if text == _style([one.get("label", "") for one in ElementTree.fromstring(text).iter("paletteEntry")]):
            return True
    print(f"note: the style '{style}' is not as geomim writes one: it stays, and QGIS shows '{path}' by it")
    return False


def _style(names: Sequence[str]) -> str:
    root = ElementTree.Element("qgis", version="3.28", styleCategories="AllStyleCategories")
    pipe = ElementTree.SubElement(root, "pipe")
    shown = {"type": "paletted", "band": "1", "opacity": "1", "alphaBand": "-1", "nodataColor": ""}
    palette = ElementTree.SubElement(ElementTree.SubElement(pipe, "rasterrenderer", shown), "colorPalette")
    for (value, (red, green, blue, _)), name in zip(colours_of(names).items(), names, strict=False):
        entry = {
            "value": str(value),
            "label": _on_a_line(name),
            "color": f"#{red:02x}{green:02x}{blue:02x}",
            "alpha": "255",
        }
        ElementTree.SubElement(palette, "paletteEntry", entry)
    ElementTree.indent(root)
    doctype = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
    return f"{doctype}{ElementTree.tostring(root, 'unicode')}\n"


def write_names(path: Path, names: Sequence[str]) -> None:
    """Category names beside a map of classes, where GDAL and QGIS look for them."""
    categories = "".join(f"<Category>{escape(_on_a_line(name))}</Category>" for name in names)
    text = (
        f'<PAMDataset><PAMRasterBand band="1"><CategoryNames>{categories}</CategoryNames></PAMRasterBand></PAMDataset>'
    )
    with aside(_names_of(path)) as part:
        part.write_text(text + "\n", encoding="utf-8")


def _names_of(path: Path) -> Path:
    return path.with_name(path.name + ".aux.xml")
