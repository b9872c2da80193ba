"""Where a scene is cloudy: from the masks that providers give, from a folder of masks, or from a detector."""

from __future__ import annotations

import dataclasses
import os
import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.windows import Window

from geomim.corpus.scenes.files import SUFFIXES, environment, is_same, open_dataset, split_address
from geomim.corpus.scenes.footprints import Grid
from geomim.corpus.scenes.readers import RasterReader, stored
from geomim.corpus.scenes.scene import UNKNOWN, Scene, Windows
from geomim.corpus.scenes.validity import Nodata
from geomim.errors import InputError, nearest

KINDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    # Sen2Cor scene classification: 3 shadow, 8 and 9 cloud, 10 thin cirrus
    "scl": lambda codes: np.isin(codes, (3, 8, 9, 10)),
    # Fmask 4: 2 shadow, 4 cloud
    "fmask": lambda codes: np.isin(codes, (2, 4)),
    # HLS Fmask layer, bits: 0 cirrus, 1 cloud, 2 beside cloud or shadow, 3 shadow; 255 fill
    "hls": lambda codes: (codes & 0b1111 > 0) & (codes != 255),
    # Landsat Collection 2, bits: 1 dilated cloud, 2 cirrus, 3 cloud, 4 shadow
    "qa_pixel": lambda codes: codes & 0b11110 > 0,
    # Sentinel-2, bits: 10 opaque cloud, 11 cirrus
    "qa60": lambda codes: codes & (0b11 << 10) > 0,
    # Sentinel-2 level 1 from processing baseline 04.00 on: a band of opaque clouds and one of cirrus
    "msk_classi": lambda codes: codes > 0,
    # omnicloudmask: 1 thick cloud, 2 thin cloud, 3 shadow
    "omnicloudmask": lambda codes: np.isin(codes, (1, 2, 3)),
    "binary": lambda codes: codes > 0,
}
"""Kinds of cloud masks: whether a code means cloud or its shadow."""
_FILL: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "scl": lambda codes: codes == 0,
    "fmask": lambda codes: codes == 255,
    "hls": lambda codes: codes == 255,
    "qa_pixel": lambda codes: codes & 1 > 0,
}
"""Whether a code means that nothing is known, in kinds that have such a one."""

DETECTOR = "omnicloudmask"
_NAMES = {
    "scl": r"scl",
    "msk_classi": r"msk_?classi",
    "qa_pixel": r"qa_?pixel",
    "qa60": r"qa_?60",
    "fmask": r"fmask\d?",
    "omnicloudmask": r"omnicloudmask|ocm",
    "binary": r"cloud_?mask",
}
_SAMPLE = 512  # rows and columns looked at to tell the kind of a mask by its codes


class UnknownKindError(InputError):
    """Neither name nor codes of a cloud mask tell what its codes mean."""


def cloud_codes(codes: np.ndarray, kind: str, nodata: float | None = None) -> np.ndarray:
    """What codes mean, as a `Reader` of clouds gives it; `nodata` says nothing, unless it is 0 or 1, as in many."""
    unknown = np.isnan(codes)
    if codes.dtype.kind == "f":  # some programs write all bands of a file as one type
        codes = np.nan_to_num(codes).astype(np.int64)
    if kind in _FILL:
        unknown |= _FILL[kind](codes)
    if nodata not in (None, 0, 1):
        unknown |= codes == nodata
    return np.where(unknown, UNKNOWN, KINDS[kind](codes)).astype(np.uint8)


def named_kind(name: str, whole: bool = False) -> str | None:
    """Kind of a cloud mask by the name of its file (anywhere in it) or band (the whole of it), or None."""
    for kind, pattern in _NAMES.items():
        around = ("^", "$") if whole else ("(?<![a-z0-9])", "(?![a-z])")
        if re.search(f"{around[0]}({pattern}){around[1]}", name.lower()):
            return "hls" if kind == "fmask" and re.search(r"(?<![a-z])hls", name.lower()) else kind
    return None


def open_mask(
    uri: str, grid: Grid | None, shape: tuple[int, int], kind: str | None = None, places: tuple[int, ...] = (0,)
) -> Windows:
    """Open a cloud mask on the grid of a scene, resampled to the nearest code where its own is another.

    Args:
        uri: The mask.
        grid: Grid of the scene; None where it has none.
        shape: Rows and columns of the scene.
        kind: One of `KINDS`; found by name and codes where None.
        places: 0-based places of its bands in the file.

    Raises:
        InputError: It cannot be opened, is of no known kind, or shares no grid or no ground with the scene.
    """
    dataset = open_dataset(uri)
    try:
        nodata = dataset.nodatavals[places[0]]
        kind = kind_of(uri, dataset.descriptions[places[0]], kind, lambda: _sample(dataset, places[0]), nodata)
        own = Grid.of(dataset)
        if grid is not None and own.crs and not grid.agrees(own):
            if not grid.meets(own):
                raise InputError(f"cloud mask '{uri}' lies elsewhere: it shares no ground with its scene; replace it")
            reader = stored(uri, dataset, grid, places, (Nodata(),) * len(places), nearest=True)
        elif (own.height, own.width) == shape:
            reader = RasterReader(uri, dataset, places, None, False, ())
        else:
            raise InputError(
                f"cloud mask '{uri}' is {own.height} x {own.width} and its scene {shape[0]} x {shape[1]}, and they "
                "share no place on Earth: bring it to the scene's grid first"
            )
    except BaseException:
        dataset.close()
        raise

    def read(window: Window) -> np.ndarray:
        codes, shown = reader.read_shown(window)
        told = cloud_codes(codes, kind, nodata)
        cloudy = (told == 1).any(axis=0)
        return np.where(shown & (cloudy | (told == 0).all(axis=0)), cloudy, UNKNOWN).astype(np.uint8)

    return Windows(read, reader.close)


def _sample(dataset: Any, place: int) -> np.ndarray:
    shape = (min(dataset.height, _SAMPLE), min(dataset.width, _SAMPLE))
    with environment(dataset.name):
        codes: np.ndarray = dataset.read(place + 1, out_shape=shape)
    return codes


def kind_of(
    uri: str, name: str | None, kind: str | None, sample: Callable[[], np.ndarray], nodata: float | None
) -> str:
    """Which kind of cloud mask it is: as the user says, by the name of the band, of the file, or by its codes.

    Args:
        uri: The mask.
        name: Name of the band, or None.
        kind: What the user says, or None.
        sample: Gives some of its codes.
        nodata: Code that says nothing, or None.

    Raises:
        UnknownKindError: None of them tells.
    """
    by_file = named_kind(Path(uri).name)
    kind = kind or named_kind(name or "", whole=True) or by_file
    if kind in KINDS and kind not in ("fmask", "binary"):
        return kind
    codes = np.unique(sample()).tolist()
    if kind == "fmask":  # both kinds go by that name
        if by_file == "hls":
            return by_file
        return "fmask" if set(codes) <= {0, 1, 2, 3, 4, 255} else "hls"
    told = {code for code in codes if code != nodata}
    if kind == "binary" or told <= {0, 1} or told <= {0, 255}:
        return "binary"
    raise UnknownKindError(
        f"cloud mask '{uri}' holds the codes {', '.join(map(str, codes[:8]))}: say of which kind they are with "
        f"--clouds FOLDER:KIND ({', '.join(KINDS)})"
    )


def mask_places(names: Sequence[str | None]) -> tuple[int, ...]:
    """0-based places of the bands that are cloud masks by their names."""
    return tuple(place for place, name in enumerate(names) if name and named_kind(name, whole=True))


def with_clouds(scene: Scene, clouds: str | None) -> Scene:
    """A scene with the clouds that the user names, where they are found; else with its own.

    Args:
        scene: Open scene.
        clouds: `FOLDER` or `FOLDER:KIND` of masks named like their scenes, `omnicloudmask`, or None.

    Raises:
        InputError: The folder does not exist, holds no mask, or several for the scene; or the kind is unknown.
        BandError: The detector lacks a band.
        MissingExtraError: The detector is not installed.
    """
    if clouds is None:
        return scene
    if clouds == DETECTOR:
        from geomim.corpus.scenes.detector import detected_clouds

        masks = detected_clouds(scene)
    else:
        folder, kind = _parsed(clouds)
        found = find_mask(folder, scene.uri)
        if found is None:
            return scene
        masks = open_mask(found, scene.grid, (scene.height, scene.width), kind)
    if scene.masks:
        scene.masks.close()
    return dataclasses.replace(scene, masks=masks)


def cloud_file(clouds: str | None, uri: str) -> str | None:
    """The file that `with_clouds` reads the clouds of a scene from, where a folder holds it; else None."""
    return None if clouds in (None, DETECTOR) else find_mask(_parsed(clouds)[0], uri)


def cloud_files(clouds: str | None) -> list[str]:
    """All masks of the folder that `cloud_file` looks into; none where no folder is named."""
    if clouds in (None, DETECTOR):
        return []
    folder = _parsed(clouds)[0]
    return [file for files in _listed(folder, os.stat(folder).st_mtime_ns)[0].values() for file in files]


def _parsed(clouds: str) -> tuple[str, str | None]:
    if os.path.isdir(clouds):
        return clouds, None
    folder, _, kind = clouds.rpartition(":")
    if folder and os.path.isdir(folder):
        if kind not in KINDS:
            raise InputError(f"--clouds: unknown kind of cloud mask '{kind}'{nearest(kind, KINDS)}")
        return folder, kind
    raise InputError(f"--clouds: '{clouds}' is no folder: give FOLDER, FOLDER:KIND ({', '.join(KINDS)}) or {DETECTOR}")


def find_mask(folder: str, uri: str) -> str | None:
    """The mask in a folder that is named like a scene: `scene.tif`, or `scene_SCL.tif`, `scene.Fmask.tif`.

    Raises:
        InputError: The folder holds no mask at all, or several that may be the scene's.
    """
    name = re.sub(r"\.(safe|zarr|nc|json)$", "", Path(split_address(uri)[0]).name, flags=re.IGNORECASE)
    stem = name if name != Path(uri).name else Path(name).stem
    files, keys = _listed(folder, os.stat(folder).st_mtime_ns)
    if not files:
        raise InputError(f"--clouds: no raster in '{folder}'")
    stem = stem.casefold()
    after = (keys[place] for place in range(bisect_left(keys, stem), len(keys)))
    begun = [key for key in takewhile(lambda key: key.startswith(stem), after) if key[len(stem) :][:1] in tuple("._-")]
    telling = [key for key in begun if named_kind(key[len(stem) :])]
    same = files.get(stem, [])
    exact = [file for file in same if not is_same(file, uri)]
    beside = len(exact) < len(same)  # other scenes lie there, too, whose names may begin so
    matches = exact or [file for key in telling or ([] if beside else begun) for file in files[key]]
    if len(matches) > 1:
        names = ", ".join(os.path.basename(file) for file in matches[:5])
        raise InputError(f"--clouds: '{folder}' holds several masks for '{uri}': {names}; keep one")
    return matches[0] if matches else None


@lru_cache(maxsize=8)
def _listed(folder: str, changed: int) -> tuple[dict[str, list[str]], list[str]]:
    """Rasters of a folder by name without suffix, in lower case, and these names sorted."""
    found: dict[str, list[str]] = {}
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda one: one.name):
            if entry.name.lower().endswith(SUFFIXES):
                found.setdefault(Path(entry.name).stem.casefold(), []).append(entry.path)
    return found, sorted(found)
