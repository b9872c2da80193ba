"""A scene and what looks at it become a map of classes, with how sure it is, hectares and a style."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rasterio._err import CPLE_BaseError  # rasterio does not translate all of them
from rasterio.errors import RasterioError
from rasterio.windows import Window

from geomim.corpus.scenes import SUFFIXES, Scene
from geomim.corpus.scenes.files import cause, is_same
from geomim.corpus.scenes.maps import MADE
from geomim.errors import CheckpointError, ConfigError, GeomimError, InputError
from geomim.maps.files.layers import tags_of
from geomim.maps.files.rasters import (
    NODATA,
    check_place,
    create,
    name_classes,
    placed,
    write_cog,
    write_names,
    write_style,
)
from geomim.maps.scenes.areas import Area
from geomim.maps.scenes.ground import Ground
from geomim.maps.walk.finder import Finder
from geomim.maps.walk.looker import Looker, Prepare
from geomim.maps.walk.strips import Strips, address, digest, scene_card, told_when_full
from geomim.maps.walk.windows import Walk, blend

Made = TypeVar("Made")
_FORM = 1  # of the maps: what an older form has begun is begun anew
_BLOCK = 512  # columns of cells that are measured at a time
_FILES = (*SUFFIXES, ".gpkg", ".geojson", ".parquet", ".shp", ".csv")  # what is named so is no folder


def targets(
    scenes: Sequence[str], out: str, suffix: str, endings: tuple[str, ...] = (".tif", ".tiff"), flag: str = "out"
) -> list[tuple[str, Path]]:
    """Which scene becomes which file: one file of one scene, or of any in a folder `NAME_SUFFIX` with the first ending.

    Args:
        scenes: Paths or addresses.
        out: The file or the folder.
        suffix: What a file's name in the folder ends in.
        endings: Of the file, the first of those in the folder.
        flag: What the user says it by.

    Raises:
        ConfigError: What is to be a folder ends as a file of another kind does, or a file cannot be written there.
        InputError: Several would be one file, or a scene would be written over.
    """
    if out.lower().endswith(endings):
        if len(scenes) > 1:
            raise InputError(f"{len(scenes)} scenes for one file '{out}': give a folder")
        if is_same(out, scenes[0]):
            raise InputError(f"--{flag} would be written over the scene '{out}': name another file")
        check_place(flag, Path(out))
        return [(scenes[0], Path(out))]
    if out.lower().endswith(_FILES) and not Path(out).is_dir():
        raise ConfigError(f"--{flag}: expected a file that ends in {' or '.join(endings)}, or a folder; given '{out}'")
    names = [f"{Path(uri).stem}_{suffix}{endings[0]}" for uri in scenes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"several scenes would be written to {', '.join(twice)}: map them into separate folders")
    for name in names:
        check_place(flag, Path(out) / name)
    return [(uri, Path(out) / name) for uri, name in zip(scenes, names, strict=True)]


def each(pairs: Sequence[tuple[str, Path]], make: Callable[[str, Path], Sequence[Path]]) -> list[Path]:
    """Make the files of one scene after another; one of several that fails does not keep the others from theirs.

    Raises:
        GeomimError: That of the only scene.
        InputError: Some of several have no map; why was said as it came.
    """
    attempts = Attempts(len(pairs), "map")
    files = [attempts.make(uri, partial(make, uri, path)) or () for uri, path in pairs]
    attempts.close()
    return [file for some in files for file in some]


@dataclass
class Attempts:
    """Something is made of each of several scenes, of which some may fail.

    Args:
        count: How many.
        what: Is made of each.
    """

    count: int
    what: str
    failed: list[str] = field(default_factory=list, init=False)

    def make(self, uri: str, made: Callable[[], Made]) -> Made | None:
        """What is made, or None where that fails and why was said; the only scene fails with its own error."""
        try:
            return made()
        except (GeomimError, OSError) as error:
            if self.count == 1 or isinstance(error, ConfigError):
                raise
            print(f"note: no {self.what} of '{uri}': {error}")
            self.failed.append(uri)
            return None

    def close(self) -> None:
        """Tell which failed.

        Raises:
            InputError: Some did.
        """
        if self.failed:
            more = f" and {len(self.failed) - 3} more" if len(self.failed) > 3 else ""
            named = f"{', '.join(self.failed[:3])}{more}"
            raise InputError(f"{len(self.failed)} of {self.count} scenes have no {self.what}, as said above: {named}")


def card_of(scene: Scene, looker: Looker | Finder, walk: Walk, also: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All that a map of a scene depends on, as plain values, with what else it does."""
    told = {"sensor": scene.sensor.to_dict(), "contract": looker.contract.to_dict(), "gsd": scene.gsd}
    made = {"form": _FORM, "made_by": looker.made_by, "walk": [*astuple(walk)], "seen_as": digest(told)}
    return scene_card(scene.uri) | made | {"classes": [*looker.classes]} | dict(also or {})


def is_done(path: Path, scene: Scene, card: Mapping[str, Any]) -> bool:
    """Whether a map is there already.

    Raises:
        InputError: The file is of another scene, or no map at all.
    """
    if not path.exists():
        return False
    tags = tags_of(path)
    if MADE not in tags or "SCENE" not in tags:
        raise InputError(f"'{path}' is there and is no map that geomim made of a scene: name another file with --out")
    if tags["SCENE"] != address(scene.uri) or tags.get("LATER", "") != _later(card):
        dates = " and ".join(filter(None, (tags["SCENE"], tags.get("LATER"))))
        asked = " and ".join(filter(None, (scene.uri, _later(card))))
        raise InputError(f"'{path}' is a map of '{dates}', not of '{asked}': name another file with --out")
    if tags[MADE] != digest(card):
        print(f"note: '{path}' was made by another model, of an older file or with other options: it is replaced")
        return False
    return True


def _later(card: Mapping[str, Any]) -> str:
    """The second dates of a card."""
    return ", ".join(one["scene"] for one in card.get("later", ()))


def tags_for(scene: Scene, card: Mapping[str, Any], made_by: str, model: str) -> dict[str, str]:
    """What a file says that is made of a scene; `is_done` reads it."""
    dates = {"SCENE": address(scene.uri)} | ({"LATER": later} if (later := _later(card)) else {})
    return {MADE: digest(card), **dates, "MODEL": model, "MADE_BY": made_by}


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
        CheckpointError: There are more classes than a map holds.
        InputError: The scene cannot be read somewhere, another process makes the map, it cannot be written there, or
            the disk is full. What is finished stays, and the same call goes on with it.
    """
    if len(looker.classes) > NODATA:
        raise CheckpointError(f"a map holds at most {NODATA} classes; '{model}' has {len(looker.classes)}")
    card = card_of(scene, looker, walk, also)
    with told_when_full(path), Strips(path, card | {"device": looker.device.type}) as strips:
        _look(scene, prepare, looker, walk, strips, area, batch)
        areas = _finish(scene, looker, walk, strips, tags_for(scene, card, looker.made_by, model))
        strips.remove()
    _tell(path, scene, looker, walk, areas, area)


def _look(
    scene: Scene, prepare: Prepare, looker: Looker, walk: Walk, strips: Strips, area: Area | None, batch: int
) -> None:
    """Finish the strips that are not."""
    if strips.done == len(walk.rows):
        return
    wanted, inside = (None, None) if area is None else (area.wants(looker.side), area.in_cells(walk.cell))

    def strip_of(found: tuple[int, np.ndarray]) -> np.ndarray:
        top, values = found
        ids = _ids(values)
        if inside is not None:
            ids[:, ~inside.mask(Window(0, top, ids.shape[2], ids.shape[1]))] = NODATA
        return ids

    strips.fill(blend(scene, walk, looker.on(prepare), len(looker.classes), batch, strips.done, wanted), strip_of)


def _ids(values: np.ndarray) -> np.ndarray:
    """Ids of the likeliest classes, and how likely they are in per cent, `(2, rows, columns)` uint8."""
    known, found = np.isfinite(values[0]), np.empty((2, *values.shape[1:]), np.uint8)
    found[0] = values.argmax(0)
    found[1] = np.rint(100 * np.where(known, values.max(0), 0))
    found[:, ~known] = NODATA
    return found


def _finish(scene: Scene, looker: Looker, walk: Walk, strips: Strips, tags: Mapping[str, str]) -> np.ndarray:
    """Write the map of all strips; `(K, 2)` cells and square metres of each class, NaN without a place on Earth."""
    whole, done, (height, width) = strips.work / "whole.tif", strips.work / "map.tif", walk.shape
    profile = {"dtype": "uint8", "count": 2, "nodata": NODATA, "height": height, "width": width, "alpha": "no"}
    areas, top = np.zeros((len(looker.classes), 2)), 0
    with _written(strips.path):
        with create(whole, profile | {"compress": "deflate", "zlevel": 1} | placed(scene, walk.cell)) as raster:
            name_classes(raster, looker.classes)
            raster.descriptions = ("class", "confidence")
            raster.update_tags(**tags)
            ground = Ground.of_raster(scene.uri, raster)  # as outlines are measured, too
            for strip in strips:
                raster.write(strip, window=Window(0, top, width, strip.shape[1]))
                areas += sum(_measured(ground, top, strip[0], len(areas)))
                top += strip.shape[1]
        write_cog(whole, done, "nearest")
        write_names(strips.path, looker.classes)
        write_style(strips.path, looker.classes)
        done.replace(strips.path)
    return areas


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """Tell in a sentence that a map cannot be written: GDAL has many errors for a full disk."""
    try:
        yield
    except (OSError, RasterioError, CPLE_BaseError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        raise InputError(
            f"'{path}' could not be written ({cause(error)}): is the disk full? The same command goes on"
        ) from error


def _measured(ground: Ground, top: int, ids: np.ndarray, classes: int) -> Iterator[np.ndarray]:
    """Cells and square metres of each class of rows of a map, block by block; areas are those on the ellipsoid."""
    for left in range(0, ids.shape[1], _BLOCK):
        part = ids[:, left : left + _BLOCK]
        areas = ground.window_areas(top, left, *part.shape)
        sums = (np.bincount(part.ravel(), one, NODATA + 1)[:classes] for one in (None, areas.ravel()))
        yield np.stack([*sums], 1)


def tell_beyond(scene: Scene, walk: Walk) -> None:
    """Print how far the last patches of a map reach beyond its scene: areas of classes hold that ground, too."""
    down, across = (-length % walk.cell for length in (scene.height, scene.width))
    if down or across:
        said = f"the last patches reach {down} rows and {across} columns beyond '{scene.uri}'"
        print(f"note: {said}: areas are those of whole patches")


def _tell(path: Path, scene: Scene, looker: Looker, walk: Walk, areas: np.ndarray, area: Area | None) -> None:
    """Print what was written, and how much of it each class covers."""
    cells, what = areas[:, 0].sum(), "pixels" if walk.cell == 1 else f"patches of {walk.cell} px"
    print(f"wrote {path}: {' x '.join(map(str, walk.shape))} {what}, {len(looker.classes)} classes")
    if not cells:
        patch = max(walk.cell, looker.patch)
        lacking = "image" if patch == 1 else f"patch of {patch} px of which at least half is image"
        where = "" if area is None else f", as far as middles of {what.partition(' of')[0]} lie in the area"
        print(f"note: '{scene.uri}' holds no {lacking}{where}: all of its map is nodata")
    if cells:
        tell_beyond(scene, walk)
    for name, (count, metres) in zip(looker.classes, areas, strict=True):
        if count:
            ground = f"{metres / 1e4:,.2f} ha" if np.isfinite(metres) else f"{count:,.0f} pixels of the map"
            print(f"  {name}: {ground} ({count / cells:.1%})")
