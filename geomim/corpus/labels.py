"""Where a tile's class and split come from: folder names, a table, or label rasters beside the scenes."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import xxhash
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.windows import Window

from geomim.corpus.joining import Joined, Row, join, read_rows
from geomim.corpus.scenes import SUFFIXES, scene_name
from geomim.corpus.scenes.files import cause, environment, is_same, open_dataset
from geomim.corpus.scenes.footprints import Grid
from geomim.corpus.store import IGNORE
from geomim.errors import InputError

SPLITS = ("train", "val", "test")
MAJORITY = 0.6
"""Share of a tile's valid pixels that one class must cover to be the tile's label."""
_PIXELS = 2**24  # of a label raster that are read at once
_MASK_ENDINGS = ("", "_label", "_labels", "_mask")


def by_tables(
    uris: Sequence[str], labels: str | None, split: str | None, allow_unmatched: bool
) -> tuple[dict[str, list[str | None]], list[Joined]]:
    """`label` and `split` of each source, where they are asked for, and how the tables were joined.

    Args:
        uris: Sources.
        labels: `folder` (the name of the folder a file lies in), a table with a column `label` or `class`, or None.
        split: Table with a column `split`, or None; sources that it does not name are train.
        allow_unmatched: Be content where rows of val or test name no source, or several.

    Raises:
        InputError: A table does not fit the sources (see `Joined.check`), or names an unknown split.
    """
    columns: dict[str, list[str | None]] = {}
    joined = []
    if labels == "folder":
        columns["label"] = [Path(uri).parent.name for uri in uris]
    elif labels:
        joined.append(join(labels, read_rows(labels, ("label", "class")), uris, "they have no class").check())
        columns["label"] = joined[-1].values
    if split:
        said = [(row.name, SYNONYMS.get(row.value.lower(), row.value.lower())) for row in read_rows(split, ["split"])]
        if unknown := sorted({name for _, name in said} - set(SPLITS)):
            raise InputError(f"'{split}' names splits {', '.join(unknown)}; expected {', '.join(SPLITS)}")
        rows = [Row(file, name, held_out=name != "train") for file, name in said]
        joined.append(join(split, rows, uris, "they are train").check(allow_unmatched))
        columns["split"] = [name or "train" for name in joined[-1].values]
    return columns, joined


def tables_asked(asked: Mapping[str, Any]) -> list[str]:
    """The tables among the arguments `labels` and `split` of a build or a change."""
    return [file for file in (asked.get("labels"), asked.get("split")) if file and file != "folder"]


SYNONYMS = {"training": "train", "validation": "val", "valid": "val", "testing": "test"}


def draw_splits(uris: Sequence[str], test_share: float) -> list[str]:
    """Hold out whole scenes, so that no tile lies beside one of another split; a hash of their names decides which.

    Raises:
        InputError: The share is out of range.
    """
    if not 0 <= test_share < 1:
        raise InputError(f"the share of test scenes must lie in 0..1, given {test_share}")
    count = min(max(1, round(test_share * len(uris))), len(uris) - 1) if test_share else 0
    ranked = sorted(range(len(uris)), key=lambda i: (xxhash.xxh3_64_intdigest(scene_name(uris[i]).encode()), uris[i]))
    held_out = set(ranked[:count])
    return ["test" if i in held_out else "train" for i in range(len(uris))]


def class_folders(uris: Sequence[str]) -> list[str]:
    """Names of folders that look like classes: most sources lie in them, side by side, several in each."""
    folders = Counter(os.path.dirname(uri) for uri in uris)
    homes = Counter(os.path.dirname(folder) for folder, count in folders.items() if count > 1)
    home, count = max(homes.items(), key=lambda one: one[1], default=("", 0))
    names = {os.path.basename(folder): count for folder, count in folders.items() if os.path.dirname(folder) == home}
    most = count > 1 and sum(names.values()) >= 0.8 * len(uris)
    return sorted(names) if most and not any(_NO_CLASS.fullmatch(name) for name in names) else []


_NO_CLASS = re.compile(r"train\w*|val\w*|test\w*|dev|images?|imgs?|labels?|masks?|[\W\d_]*|.", re.IGNORECASE)
"""Folders of splits, of kinds of files, dates, and single letters (pairs A and B) are no classes."""


class Masks:
    """Label rasters of scenes: one band of class numbers on the scene's own pixel grid.

    Args:
        folder: Holds a raster for each scene with the scene's name, or that name and `_label`, `_labels` or `_mask`.
            Class names by number stand in a file `classes.json` beside them, as `{"1": "forest", "2": "water"}` or a
            list, or in each raster's tag `CLASSES` in the same form, which then counts for that raster alone. Numbers
            without a name, and a raster's own nodata value, mean "not labelled".

    Attributes:
        rasters: All label rasters.
        classes: Class names; a mask holds places in this list.

    Raises:
        InputError: The folder or the names are missing or of another form.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"mask folder '{folder}' does not exist")
        self.rasters = sorted(file for file in self.folder.glob("[!.]*") if file.suffix.lower() in SUFFIXES)
        if not self.rasters:
            raise InputError(f"mask folder '{folder}' holds no raster")
        self._files: dict[str, list[Path]] = {}
        for file in self.rasters:
            self._files.setdefault(file.stem.casefold(), []).append(file)
        self.classes = self._all_classes()

    def _all_classes(self) -> list[str]:
        """Of the file of names; else of the tags of all rasters, in the order of their numbers."""
        found: dict[str, int] = {}
        tagged = [] if self._names.exists() else self.rasters
        for file in tagged:  # scenes may lie among them that have none; what is wrong with a mask is said by `read`
            with suppress(InputError), open_dataset(str(file)) as raster:
                for number, name in zip(*class_names(self._names, raster), strict=True):
                    found[name] = min(number, found.get(name, number))
        if len(found) > IGNORE:
            raise InputError(f"label rasters in '{self.folder}' name {len(found)} classes; expected at most {IGNORE}")
        if found:
            return sorted(found, key=found.__getitem__)
        with open_dataset(str(self.rasters[0])) as raster:
            return list(dict.fromkeys(class_names(self._names, raster)[1]))

    @property
    def _names(self) -> Path:
        return self.folder / "classes.json"

    def files(self, uri: str) -> list[str]:
        """The files that a scene's labels are read from: its label raster, and the names of the classes."""
        file = self.find(uri)
        return [] if file is None else [str(one) for one in (file, self._names) if one.exists()]

    def find(self, uri: str) -> Path | None:
        """The label raster of a scene, or None.

        Raises:
            InputError: There are several.
        """
        stem = Path(uri).stem.casefold()
        named = [file for end in _MASK_ENDINGS for file in self._files.get(stem + end, ())]
        found = [file for file in named if not is_same(file, uri)]
        if len(found) > 1:
            names = ", ".join(file.name for file in found)
            raise InputError(f"--masks: '{self.folder}' holds several rasters for '{uri}': {names}; keep one")
        return found[0] if found else None

    def read(self, uri: str, height: int, width: int, grid: Grid | None = None) -> np.ndarray:
        """All labels of a scene.

        Args:
            uri: The scene.
            height: Its rows.
            width: Its columns.
            grid: Where it lies, or None.

        Returns:
            `(height, width)` uint8, places in `classes`, 255 where a pixel has no class or the scene no label raster.

        Raises:
            InputError: The label raster is of another size or kind or lies elsewhere, holds a class that is nodata
                elsewhere, or cannot be read.
        """
        found = np.full((height, width), IGNORE, np.uint8)
        file = self.find(uri)
        if file is None:
            return found
        try:
            with environment(str(file)), open_dataset(str(file)) as raster:
                _check(raster, height, width, grid)
                own, (block, _) = class_names(self._names, raster), raster.block_shapes[0]
                rows = block * max(_PIXELS // (block * width), 1)
                for top in range(0, height, rows):
                    window = Window(0, top, width, min(rows, height - top))
                    numbers, shown = raster.read(1, window=window), raster.read_masks(1, window=window) > 0
                    for number, name in zip(*own, strict=True):
                        self._fill(found[top : top + rows], (numbers == number) & shown, number, name, file)
        except (RasterioError, OSError) as error:
            raise InputError(f"label raster '{file}' cannot be read ({cause(error)}): fetch it again") from error
        return found

    def _fill(self, found: np.ndarray, where: np.ndarray, number: int, name: str, file: Path) -> None:
        if name in self.classes:
            found[where] = self.classes.index(name)
        elif where.any():
            raise InputError(
                f"label raster '{file}' holds {number} ('{name}'), which '{self.rasters[0]}' has as nodata: give "
                "all label rasters one nodata value, or each its own tag CLASSES and no classes.json"
            )


def _check(raster: rasterio.DatasetReader, height: int, width: int, grid: Grid | None) -> None:
    """Refuse a label raster that is no single band of whole numbers on the grid of its scene."""
    said, own, dtype = f"label raster '{raster.name}'", Grid.of(raster), np.dtype(raster.dtypes[0])
    if (own.height, own.width) != (height, width):
        raise InputError(f"{said} has {own.height} x {own.width} pixels, its scene {height} x {width}")
    if grid and grid.crs and own.crs and not grid.agrees(own):
        raise InputError(f"{said} lies elsewhere than its scene, or is turned: bring it to the scene's grid")
    if list(raster.colorinterp[1:]) not in ([], [ColorInterp.alpha]):
        raise InputError(f"{said} has {raster.count} bands; expected one of class numbers: colours are not read")
    if dtype.kind not in "uib":
        raise InputError(f"{said} holds {dtype} numbers; expected whole numbers 0..255")


def open_masks(folder: str, again: bool = False) -> Masks:
    """The masks of a folder; listed again only where it changed, or `again`, as tags in its rasters may have."""
    if again:
        _listed.cache_clear()
    names = (folder, os.path.join(folder, "classes.json"))
    return _listed(folder, tuple(os.stat(name).st_mtime_ns for name in names if os.path.exists(name)))


@lru_cache(maxsize=1)
def _listed(folder: str, changed: tuple[int, ...]) -> Masks:
    return Masks(folder)


def class_names(file: Path, raster: rasterio.DatasetReader) -> tuple[list[int], list[str]]:
    """Numbers and names of a raster's classes, sorted by number: of the file, else of its tag; without its nodata."""
    text = None if file.exists() else raster.tags().get("CLASSES")
    place = f"'{file}'" if text is None else f"tag CLASSES of '{raster.name}'"
    try:
        names = json.loads(file.read_text(encoding="utf-8") if text is None else text)
        pairs: Iterable = enumerate(names) if isinstance(names, list) else names.items()
        named = sorted((int(number), str(name)) for number, name in pairs if int(number) != raster.nodata)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(
            f'{place} must give class names by number, such as {{"1": "forest", "2": "water"}} ({error})'
        ) from error
    if not named or not all(0 <= number < IGNORE for number, _ in named):
        given = ", ".join(str(number) for number, _ in named) or "none"
        raise InputError(f"{place}: class numbers must lie in 0..254, given {given}")
    return [number for number, _ in named], [name for _, name in named]


def majority(mask: np.ndarray, valid: np.ndarray, classes: Sequence[str]) -> str | None:
    """The class that covers at least 60 % of a tile's valid pixels, or None.

    Args:
        mask: `(H, W)` uint8, places in `classes`, 255 where a pixel has none.
        valid: `(H, W)` bool.
        classes: Class names.
    """
    counts = np.bincount(mask[valid], minlength=256)
    place = int(np.argmax(counts[:IGNORE]))
    return classes[place] if counts[place] > 0 and counts[place] >= MAJORITY * valid.sum() else None
