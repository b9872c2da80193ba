"""Labelled images to evaluate on: a corpus with labels, or a folder with a folder of pictures for each class."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from geomim.corpus.store import Corpus, Tiles, holds_corpus
from geomim.errors import CorpusError, InputError
from geomim.sensors import SENSORS, BandContract, Sensor

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
"""What counts as a picture in a class folder, in lower case; anything else belongs in a corpus."""

Read = Callable[[np.ndarray], list[tuple[Tensor, Tensor | None]]]


@dataclass(frozen=True)
class Labelled:
    """Images of one split.

    Attributes:
        labels: `(N,)` int64, places in the class list.
        read: Rows to groups of images of one size: stored numbers `(b, C, H, W)` and validity `(b, H, W)` bool or
            None where all is valid, in the order of the rows.
    """

    labels: np.ndarray
    read: Read

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class LabelledData:
    """Train and test images with their classes and bands.

    Attributes:
        name: What it is, in words.
        classes: Class names.
        sensor: Bands in channel order.
        contract: Statistics of the bands, where the data state them.
        train: Images to fit on.
        test: Images to score on.
        notes: Choices that were made and that a reader of the scores should know.
        side: Side of the images in pixels where all have the same; None where it varies.
    """

    name: str
    classes: tuple[str, ...]
    sensor: Sensor
    contract: BandContract | None
    train: Labelled
    test: Labelled
    notes: tuple[str, ...] = ()
    side: int | None = None


def open_labelled(
    path: str | Path, train_split: str = "train", test_split: str = "test", size: int | None = None
) -> LabelledData:
    """Open a corpus or a folder of class folders.

    Args:
        path: A corpus folder; a folder `SPLIT/CLASS/picture`; or a folder `CLASS/picture`, of which a fifth of each
            class is set aside for testing, chosen by a hash of the file's name.
        train_split: Name of the split to fit on.
        test_split: Name of the split to score on.
        size: Side of the images wanted; of a corpus with several tile sizes the nearest is taken.

    Raises:
        InputError: There are no labels, no pictures, or no such split.
    """
    path = Path(path)
    if holds_corpus(path):
        return _from_corpus(Corpus.open(path), train_split, test_split, size)
    if not path.is_dir():
        raise InputError(f"'{path}' is no folder: expected a corpus, or a folder with a folder for each class")
    return _from_folder(path, train_split, test_split)


def _from_corpus(corpus: Corpus, train_split: str, test_split: str, size: int | None) -> LabelledData:
    if not corpus.classes:
        raise CorpusError(f"'{corpus.path}' has no labels: build it with --labels folder, or give an image folder")
    side = min(corpus.sizes, key=lambda offered: abs(offered - (size or offered)))
    tiles = corpus.tiles(side)
    parts = {name: np.flatnonzero((tiles.splits == name) & (tiles.labels >= 0)) for name in (train_split, test_split)}
    for name, rows in parts.items():
        if not len(rows):
            offered = ", ".join(sorted(set(tiles.splits[tiles.labels >= 0].tolist()))) or "none"
            raise CorpusError(
                f"'{corpus.path}' has no labelled tile in split '{name}'; it has {offered}: "
                "choose with --train_split and --test_split, or build it with --split FILE"
            )
    train, test = (_of_tiles(tiles, rows) for rows in parts.values())
    notes = (f"of {len(corpus.sizes)} tile sizes, {side} px is used",) if len(corpus.sizes) > 1 else ()
    name = f"corpus {corpus.path.resolve().name}"
    return LabelledData(name, tuple(corpus.classes), corpus.sensor, corpus.contract, train, test, notes, side)


def _of_tiles(tiles: Tiles, rows: np.ndarray) -> Labelled:
    def read(wanted: np.ndarray) -> list[tuple[Tensor, Tensor | None]]:
        numbers, valid = tiles.read(rows[wanted]), tiles.valid(rows[wanted])
        # torch lacks most operations on unsigned 16 and 32 bits
        numbers = numbers.astype(np.int32) if numbers.dtype in (np.uint16, np.uint32) else numbers
        return [(torch.from_numpy(numbers), None if valid.all() else torch.from_numpy(valid))]

    return Labelled(tiles.labels[rows], read)


def _from_folder(path: Path, train_split: str, test_split: str) -> LabelledData:
    notes: tuple[str, ...] = ()
    if (path / train_split).is_dir() and (path / test_split).is_dir():
        train, test = _by_class(path / train_split), _by_class(path / test_split)
        classes = sorted(train)
        unknown = sorted(set(test) - set(train))
        if unknown:
            raise InputError(f"'{path / test_split}' has classes that '{train_split}' lacks: {', '.join(unknown)}")
    else:
        everything = _by_class(path)
        classes = sorted(everything)
        train, test = {}, {}
        for name, files in everything.items():
            held = set(sorted(files, key=lambda file: zlib.crc32(f"{file.parent.name}/{file.name}".encode()))[::5])
            train[name] = [file for file in files if file not in held]
            test[name] = [file for file in files if file in held]
        notes = ("the folder has no splits: a fifth of each class, by a hash of the file name, is the test split",)
    if len(classes) < 2:
        given = ", ".join(classes) or "none"
        raise InputError(
            f"'{path}': expected a corpus, or at least two class folders with pictures ({', '.join(PICTURES)}); "
            f"given {given}. Other rasters: geomim corpus build --labels folder"
        )
    parts = [_of_files(part, classes) for part in (train, test)]
    return LabelledData(f"folder {path.resolve().name}", tuple(classes), SENSORS["rgb"], None, *parts, notes)


def _by_class(folder: Path) -> dict[str, list[Path]]:
    found = {}
    for sub in sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
        files = sorted(file for file in sub.rglob("*") if file.suffix.lower() in PICTURES)
        if files:
            found[sub.name] = files
    return found


def _of_files(files: dict[str, list[Path]], classes: Sequence[str]) -> Labelled:
    pairs = [(file, classes.index(name)) for name in classes for file in files.get(name, [])]
    paths = [file for file, _ in pairs]

    def read(wanted: np.ndarray) -> list[tuple[Tensor, Tensor | None]]:
        with ThreadPoolExecutor(4) as pool:
            images = list(pool.map(_picture, [paths[row] for row in wanted]))
        if len({image.shape for image in images}) == 1:
            return [(torch.stack(images), None)]
        return [(image[None], None) for image in images]

    return Labelled(np.array([label for _, label in pairs], np.int64), read)


def _picture(path: Path) -> Tensor:
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise InputError(f"'{path}' has more than 8 bits a band: build a corpus of such images")
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"'{path}' cannot be read as a picture ({error}): fetch it again or take it away") from error
