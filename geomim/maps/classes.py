"""A scene and what looks at it become a map of classes, with how sure it is, hectares and a style."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
from rasterio.errors import RasterioError
from rasterio.windows import Window

from geomim.corpus.scenes import Scene
from geomim.corpus.scenes.maps import MADE
from geomim.errors import InputError
from geomim.maps.areas import Area
from geomim.maps.finder import Finder
from geomim.maps.layers import ENDINGS, tags_of
from geomim.maps.looker import Looker, Prepare
from geomim.maps.rasters import (
    NODATA,
    create,
    name_classes,
    open_map,
    placed,
    write_cog,
    write_names,
    write_style,
)
from geomim.maps.strips import Strips, address, digest, scene_card
from geomim.maps.windows import Walk, ahead, blend

_FORM = 1  # of the maps: what an older form has begun is begun anew
_BLOCK = 512  # columns of cells that are taken to be of one size
_GEOD = pyproj.Geod(ellps="WGS84")


def targets(
    scenes: Sequence[str], out: str, suffix: str, endings: tuple[str, ...] = (".tif", ".tiff")
) -> list[tuple[str, Path]]:
    """Which scene becomes which file: one file of one scene, or of any in a folder `NAME_SUFFIX` with the first ending.

    Raises:
        InputError: Several would be one file, or a scene would be written over.
    """
    if out.lower().endswith(endings):
        if len(scenes) > 1:
            raise InputError(f"{len(scenes)} scenes for one file '{out}': give a folder")
        if Path(out).absolute() == Path(scenes[0]).absolute():
            raise InputError(f"--out would be written over the scene '{out}': name another file")
        return [(scenes[0], Path(out))]
    names = [f"{Path(uri).stem}_{suffix}{endings[0]}" for uri in scenes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"several scenes would be written to {', '.join(twice)}: map them into separate folders")
    return [(uri, Path(out) / name) for uri, name in zip(scenes, names, strict=True)]


def card_of(scene: Scene, looker: Looker | Finder, walk: Walk, also: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All that a map of a scene depends on, as plain values, with what else it does."""
    told = {"sensor": scene.sensor.to_dict(), "contract": looker.contract.to_dict(), "gsd": scene.gsd}
    made = {"form": _FORM, "made_by": looker.made_by, "walk": [*astuple(walk)], "seen_as": digest(told)}
    return scene_card(scene.uri) | made | dict(also or {})


def is_done(path: Path, scene: Scene, card: Mapping[str, Any]) -> bool:
    """Whether a map is there already.

    Raises:
        InputError: The file is of another scene, or no map at all.
    """
    if not path.exists():
        return False
    tags = _tags(path)
    if MADE not in tags or "SCENE" not in tags:
        raise InputError(f"'{path}' is there and is no map that geomim made of a scene: name another file with --out")
    if tags["SCENE"] != address(scene.uri):
        raise InputError(f"'{path}' is a map of '{tags['SCENE']}', not of '{scene.uri}': name another file with --out")
    return bool(tags[MADE] == digest(card))


def _tags(path: Path) -> dict[str, str]:
    if path.suffix.lower() in ENDINGS:
        return tags_of(path)
    try:
        with open_map(path) as raster:
            return dict(raster.tags())
    except RasterioError:
        return {}


def tags_for(scene: Scene, card: Mapping[str, Any], made_by: str, model: str) -> dict[str, str]:
    """What a file says that is made of a scene; `is_done` reads it."""
    return {MADE: digest(card), "SCENE": address(scene.uri), "MODEL": model, "MADE_BY": made_by}


@contextmanager
def told_full(path: Path) -> Iterator[None]:
    """Tell a full disk in a sentence."""
    try:
        yield
    except (OSError, RasterioError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            raise InputError(f"no space is left for '{path}': free some, and the same command goes on") from error
        raise


def draw(
    scene: Scene,
    prepare: Prepare,
    looker: Looker,
    walk: Walk,
    path: Path,
    model: str,
    also: Mapping[str, Any] | None = None,
    area: Area | None = None,
    batch: int = 16,
) -> None:
    """Write a map of classes: a cloud-optimised GeoTIFF of ids and of how sure they are, with names and a style.

    It goes on where an earlier call with the same arguments was stopped, and comes to the same bytes. Hectares of the
    classes are printed.

    Args:
        scene: What is looked at.
        prepare: Brings its numbers to the contract.
        looker: Looks at it, for the metres a pixel that it has.
        walk: Where its windows lie.
        path: The map; names beside it as `.aux.xml`, its style as `.qml`.
        model: What the map says that it was made with.
        also: What else the map depends on.
        area: Windows that it does not touch are not looked at, and cells whose middle lies outside are nodata.
        batch: Windows looked at together.

    Raises:
        InputError: The scene cannot be read somewhere, another process makes the map, or the disk is full. What is
            finished stays, and the same call goes on with it.
    """
    card = card_of(scene, looker, walk, also)
    path.parent.mkdir(parents=True, exist_ok=True)
    with told_full(path), Strips(path, card) as strips:
        _look(scene, prepare, looker, walk, strips, area, batch)
        areas = _finish(scene, looker, walk, strips, tags_for(scene, card, looker.made_by, model))
        strips.remove()
    _tell(path, scene, looker, walk, areas)


def _look(
    scene: Scene, prepare: Prepare, looker: Looker, walk: Walk, strips: Strips, area: Area | None, batch: int
) -> None:
    """Finish the strips that are not."""
    if strips.done == len(walk.rows):
        return
    wanted, inside = (None, None) if area is None else (area.wants(looker.side), area.in_cells(walk.cell))

    def keep(strip: tuple[int, np.ndarray]) -> None:
        top, values = strip
        ids = _ids(values)
        if inside is not None:
            ids[:, ~inside.mask(Window(0, top, ids.shape[2], ids.shape[1]))] = NODATA
        strips.add(ids)

    found = blend(scene, walk, looker.on(prepare), len(looker.classes), batch, strips.done, wanted)
    try:
        for _ in ahead(keep, found, 1):  # writes while the next is looked at
            pass
    except InputError:
        strips.broken()
        raise


def _ids(values: np.ndarray) -> np.ndarray:
    """Ids of the likeliest classes, and how likely they are in per cent, `(2, rows, columns)` uint8."""
    known, found = np.isfinite(values[0]), np.empty((2, *values.shape[1:]), np.uint8)
    found[0] = values.argmax(0)
    found[1] = np.rint(100 * np.where(known, values.max(0), 0))
    found[:, ~known] = NODATA
    return found


def _finish(scene: Scene, looker: Looker, walk: Walk, strips: Strips, tags: Mapping[str, str]) -> np.ndarray:
    """Write the map of all strips; `(K, 2)` cells and square metres of each class, NaN without a place on Earth."""
    whole, (height, width) = strips.work / "whole.tif", walk.shape
    profile = {"dtype": "uint8", "count": 2, "nodata": NODATA, "height": height, "width": width, "alpha": "no"}
    areas, top = np.zeros((len(looker.classes), 2)), 0
    with create(whole, profile | {"compress": "deflate", "zlevel": 1} | placed(scene, walk.cell)) as raster:
        name_classes(raster, looker.classes)
        raster.descriptions = ("class", "confidence")
        raster.update_tags(**tags)
        for strip in strips:
            raster.write(strip, window=Window(0, top, width, strip.shape[1]))
            areas += sum(_measured(scene, walk.cell, top, strip[0], len(areas)))
            top += strip.shape[1]
    write_names(strips.path, looker.classes)
    write_style(strips.path, looker.classes)
    write_cog(whole, strips.path, "nearest")
    return areas


def _measured(scene: Scene, cell: int, top: int, ids: np.ndarray, classes: int) -> Iterator[np.ndarray]:
    """Cells and square metres of each class, block by block; areas are those on the ellipsoid."""
    parts = [(left, ids[:, left : left + _BLOCK]) for left in range(0, ids.shape[1], _BLOCK)]
    windows = [Window(left * cell, top * cell, part.shape[1] * cell, part.shape[0] * cell) for left, part in parts]
    for (_, part), outline in zip(parts, scene.footprints(windows), strict=True):
        counts = np.bincount(part.ravel(), minlength=NODATA + 1)[:classes]
        area = np.nan if outline is None else abs(_GEOD.geometry_area_perimeter(outline)[0]) / part.size
        yield np.stack([counts, counts * area if counts.any() else 0.0 * counts], 1)


def _tell(path: Path, scene: Scene, looker: Looker, walk: Walk, areas: np.ndarray) -> None:
    """Print what was written, and how much of it each class covers."""
    cells, what = areas[:, 0].sum(), "pixels" if walk.cell == 1 else f"patches of {walk.cell} px"
    print(f"wrote {path}: {' x '.join(map(str, walk.shape))} {what}, {len(looker.classes)} classes")
    if not cells:
        print(f"note: '{scene.uri}' holds no image, all is nodata: so is its map")
    for name, (count, metres) in zip(looker.classes, areas, strict=True):
        if count:
            ground = f"{metres / 1e4:,.2f} ha" if np.isfinite(metres) else f"{count:,.0f} pixels of the map"
            print(f"  {name}: {ground} ({count / cells:.1%})")
