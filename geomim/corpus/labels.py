"""Where a tile's class and split come from: folder names, a table, or label rasters beside the scenes."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import rasterio
import xxhash
from rasterio.errors import RasterioError

from geomim.corpus.scenes import SUFFIXES, scene_name
from geomim.corpus.store import IGNORE
from geomim.errors import InputError

SPLITS = ("train", "val", "test")
MAJORITY = 0.6
"""Share of a tile's valid pixels that one class must cover to be the tile's label."""
_PATH_COLUMNS = ("path", "image", "file", "filename", "source")
_CLASS_COLUMNS = ("label", "class")
_MASK_ENDINGS = ("", "_label", "_labels", "_mask")


class ByPath:
    """Values by file, found by the longest path ending that a table knows.

    Args:
        file: CSV, or JSONL (one object a line), with a column `path` or `image`.
        columns: The value is in the first of these columns that there is; empty values are left out.

    Raises:
        InputError: The table cannot be read or lacks a column.
    """

    def __init__(self, file: str | Path, columns: Sequence[str]) -> None:
        self.file = Path(file)
        rows = _rows(self.file)
        path = _column(self.file, rows[0], _PATH_COLUMNS)
        value = _column(self.file, rows[0], columns)
        self._values = {_plain(row[path]): str(row[value]) for row in rows if row.get(value) not in (None, "")}

    def __call__(self, uri: str) -> str | None:
        """The value for a file, or None."""
        parts = _plain(uri).split("/")
        for start in range(len(parts)):
            value = self._values.get("/".join(parts[start:]))
            if value is not None:
                return value
        return None

    def values(self) -> list[str]:
        """All different values, sorted."""
        return sorted(set(self._values.values()))


def _plain(path: str) -> str:
    return str(path).replace("\\", "/").removeprefix("./")


def _rows(file: Path) -> list[dict[str, str]]:
    try:
        with open(file, encoding="utf-8", newline="") as lines:
            if file.suffix in (".jsonl", ".ndjson"):
                rows = [json.loads(line) for line in lines if line.strip()]
            else:
                rows = list(csv.DictReader(lines))
    except (OSError, ValueError) as error:
        raise InputError(f"'{file}' cannot be read as a table, CSV or JSONL ({error})") from error
    if not rows:
        raise InputError(f"'{file}' has no rows")
    return rows


def _column(file: Path, row: dict[str, str], names: Sequence[str]) -> str:
    for name in names:
        if name in row:
            return name
    raise InputError(f"'{file}' needs a column {' or '.join(names)}; it has {', '.join(map(str, row))}")


def assign_splits(uris: Sequence[str], file: str | None, test_share: float) -> list[str]:
    """The split of each source: whole scenes, so that no tile lies beside one of another split.

    Args:
        uris: Sources.
        file: Table with a column `split`; sources it does not name are `train`. No table where None.
        test_share: Share of the sources to hold out as `test` where there is no table; which ones is decided by a
            hash of their names alone.

    Raises:
        InputError: The table names none of the sources, or another split than train, val or test.
    """
    if file is not None:
        table = ByPath(file, ["split"])
        unknown = [value for value in table.values() if value not in SPLITS]
        if unknown:
            raise InputError(f"'{file}' names splits {', '.join(unknown)}; expected {', '.join(SPLITS)}")
        found = [table(uri) for uri in uris]
        if uris and not any(found):
            raise InputError(f"'{file}' names none of the {len(uris)} sources, such as '{uris[0]}'")
        return [split or "train" for split in found]
    if not 0 <= test_share < 1:
        raise InputError(f"the share of test scenes must lie in 0..1, given {test_share}")
    count = min(max(1, round(test_share * len(uris))), len(uris) - 1) if test_share else 0
    ranked = sorted(range(len(uris)), key=lambda i: (xxhash.xxh3_64_intdigest(scene_name(uris[i]).encode()), uris[i]))
    held_out = set(ranked[:count])
    return ["test" if i in held_out else "train" for i in range(len(uris))]


def assign_labels(uris: Sequence[str], labels: str | None) -> list[str | None]:
    """The class of each source.

    Args:
        uris: Sources.
        labels: `folder` (the name of the folder a file lies in), a table with a column `label` or `class`, or None.

    Raises:
        InputError: The table names none of the sources.
    """
    if labels is None:
        return [None] * len(uris)
    if labels == "folder":
        return [Path(uri).parent.name for uri in uris]
    table = ByPath(labels, _CLASS_COLUMNS)
    found = [table(uri) for uri in uris]
    if uris and not any(found):
        raise InputError(f"'{labels}' names none of the {len(uris)} sources, such as '{uris[0]}'")
    return found


class Masks:
    """Label rasters of scenes: one band of class numbers on the scene's own pixel grid.

    Args:
        folder: Holds a raster for each scene with the scene's name, or that name and `_label`, `_labels` or `_mask`.
            Class names by number stand in a file `classes.json` beside them, as `{"1": "forest", "2": "water"}` or a
            list, or in each raster's tag `CLASSES` in the same form. Numbers without a name, and a raster's nodata
            value, mean "not labelled".

    Attributes:
        classes: Class names; a mask holds places in this list.

    Raises:
        InputError: The folder or the names are missing or of another form.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"mask folder '{folder}' does not exist")
        rasters = [file for file in sorted(self.folder.iterdir()) if file.suffix.lower() in SUFFIXES]
        self._files = {file.stem: file for file in rasters if not file.name.startswith(".")}
        if not self._files:
            raise InputError(f"mask folder '{folder}' holds no raster")
        numbers, self.classes = _class_names(self.folder / "classes.json", next(iter(self._files.values())))
        self._table = np.full(256, IGNORE, np.uint8)
        self._table[numbers] = np.arange(len(numbers))

    def files(self, uri: str) -> list[str]:
        """The files that a scene's labels are read from: its label raster, and the names of the classes."""
        file = self.find(uri)
        return [] if file is None else [str(one) for one in (file, self.folder / "classes.json") if one.exists()]

    def find(self, uri: str) -> Path | None:
        """The label raster of a scene, or None."""
        stem = Path(uri).stem
        return next((self._files[stem + end] for end in _MASK_ENDINGS if stem + end in self._files), None)

    def read(self, uri: str, height: int, width: int) -> np.ndarray:
        """All labels of a scene.

        Args:
            uri: The scene.
            height: Its rows.
            width: Its columns.

        Returns:
            `(height, width)` uint8, places in `classes`, 255 where a pixel has no class or the scene no label raster.

        Raises:
            InputError: The label raster is of another size or kind, or cannot be read.
        """
        file = self.find(uri)
        if file is None:
            return np.full((height, width), IGNORE, np.uint8)
        try:
            with rasterio.open(file) as raster:
                if (raster.height, raster.width) != (height, width):
                    raise InputError(
                        f"label raster '{file}' has {raster.height} x {raster.width} pixels, "
                        f"its scene {height} x {width}"
                    )
                numbers = raster.read(1)
        except (RasterioError, OSError) as error:
            raise InputError(f"label raster '{file}' cannot be read ({error})") from error
        if numbers.dtype.kind not in "uib":
            raise InputError(f"label raster '{file}' holds {numbers.dtype} numbers; expected whole numbers 0..255")
        inside = (numbers >= 0) & (numbers <= 255)
        return np.where(inside, self._table[np.where(inside, numbers, 0).astype(np.uint8)], IGNORE).astype(np.uint8)


def open_masks(folder: str) -> Masks:
    """The masks of a folder; listed again only where it changed."""
    names = (folder, os.path.join(folder, "classes.json"))
    return _listed(folder, tuple(os.stat(name).st_mtime_ns for name in names if os.path.exists(name)))


@lru_cache(maxsize=1)
def _listed(folder: str, changed: tuple[int, ...]) -> Masks:
    return Masks(folder)


def _class_names(file: Path, raster: Path) -> tuple[list[int], list[str]]:
    """Numbers and names of the classes, sorted by number; without the raster's nodata value."""
    try:
        with rasterio.open(raster) as opened:
            text, nodata = opened.tags().get("CLASSES"), opened.nodata
        names = json.loads(file.read_text(encoding="utf-8") if file.exists() or text is None else text)
        pairs: Iterable = enumerate(names) if isinstance(names, list) else names.items()
        named = sorted((int(number), str(name)) for number, name in pairs if int(number) != nodata)
    except (OSError, RasterioError, ValueError, AttributeError, TypeError) as error:
        raise InputError(
            f'\'{file}\' must give class names by number, such as {{"1": "forest", "2": "water"}} ({error})'
        ) from error
    if not named or not all(0 <= number < IGNORE for number, _ in named):
        given = ", ".join(str(number) for number, _ in named) or "none"
        raise InputError(f"'{file}': class numbers must lie in 0..254, given {given}")
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
