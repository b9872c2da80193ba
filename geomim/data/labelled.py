"""Labelled images to evaluate on: a corpus with labels, or a folder with a folder of pictures for each class."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from geomim.corpus.store import Corpus, Tiles, holds_corpus
from geomim.data.pictures import copies_of, fifth, look_at_pictures, read_picture
from geomim.errors import CorpusError, InputError
from geomim.sensors import SENSORS, BandContract, Sensor, get_sensor, stated_contract

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
"""What counts as a picture in a class folder, in lower case; anything else belongs in a corpus."""

SPLITS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "tst"),
}
"""Names of folders that hold a split, in lower case."""

Read = Callable[[np.ndarray], list[tuple[Tensor, Tensor | None]]]
ReadMasks = Callable[[np.ndarray], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Labelled:
    """Images of one split.

    Attributes:
        labels: `(N,)` int64, places in the class list.
        read: Rows to groups of images of one size: stored numbers `(b, C, H, W)` and validity `(b, H, W)` bool or
            None where all is valid, in the order of the rows.
        hashes: Exact hash of each image's pixels, where a corpus keeps them.
        paths: Files of pictures, in the order of the rows.
        masks: Rows to places in the class list `(b, H, W)` uint8, 255 where a pixel has none, and validity bool.
        sources: `(N,)` int64, a number for the source of each image, where there are masks.
    """

    labels: np.ndarray
    read: Read
    hashes: Sequence[str | None] = ()
    paths: Sequence[Path] = ()
    masks: ReadMasks | None = None
    sources: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def some(self, most: int) -> Labelled:
        """At most so many images without masks, by a chance that is always the same, in their order."""
        rows = np.sort(np.random.default_rng(0).permutation(len(self))[:most])
        hashes, paths = ([kept[row] for row in rows] if kept else () for kept in (self.hashes, self.paths))
        return Labelled(self.labels[rows], lambda wanted: self.read(rows[wanted]), hashes, paths)  # type: ignore[arg-type]

    def sample(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """All images in an order drawn by chance, always the same, a few at a time, as `read` gives them."""
        rows = np.random.default_rng(0).permutation(len(self))
        for start in range(0, len(rows), 16):
            yield from self.read(np.sort(rows[start : start + 16]))


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
        side: Side of the images in pixels; of pictures the median, None where nothing is known.
        ground: Metres along a side of each image, NaN where unknown; None of pictures.
    """

    name: str
    classes: tuple[str, ...]
    sensor: Sensor
    contract: BandContract | None
    train: Labelled
    test: Labelled
    notes: tuple[str, ...] = ()
    side: float | None = None
    ground: np.ndarray | None = None

    def metres(self, size: int) -> float | None:
        """Metres a pixel, the median, where the images are brought to such a side; None where none tells it."""
        known = np.zeros(0) if self.ground is None else self.ground[np.isfinite(self.ground)]
        return float(np.median(known)) / size if len(known) else None

    def gsd_at(self, size: int, contract: BandContract) -> tuple[float | None, str]:
        """Metres a pixel, the median, where the images are brought to one size; and what a reader should know of it.

        Args:
            size: Side in pixels.
            contract: Of the encoder; its sensor's metres a pixel are taken where the images' tell none.
        """
        told = np.full(1, np.nan) if self.ground is None else self.ground
        usual = (self.sensor.gsd or contract.sensor.gsd or math.nan) * (self.side or size)
        known = np.where(np.isnan(told), usual, told) / size
        known = known[np.isfinite(known)]
        if not len(known):
            return (
                None,
                f"nothing tells the metres a pixel of {self.name}: positions are those of unknown ones",
            )
        low, gsd, high = np.quantile(known, [0, 0.5, 1]).tolist()
        said = f"positions follow the metres a pixel: they are made for {gsd:.3g} m, at {size} px"
        if missing := np.isnan(told).mean():
            said += f"; {missing:.0%} of the images tell none: those of the sensor are taken"
        if high > 1.5 * low:
            said += f"; the images are of {low:.3g} to {high:.3g} m, and all are seen as of the median"
        return gsd, said

    def told(self, name: str) -> LabelledData:
        """The same images, of which a user says what their numbers mean; bands are found by name.

        Args:
            name: Of a sensor, or a YAML file of one, with `mean` and `std` where it states them.

        Raises:
            InputError: There is no such sensor, or the file is none.
            BandError: The sensor lacks a band.
        """
        sensor, stated = get_sensor(name, self.sensor.names), stated_contract(name, self.sensor.names)
        own = self.contract and replace(self.contract, sensor=sensor)
        return replace(self, sensor=sensor, contract=stated or own)


def open_labelled(
    path: str | Path, train_split: str = "train", test_split: str = "test", size: int | None = None
) -> LabelledData:
    """Open a corpus or a folder of class folders.

    Args:
        path: A corpus folder; a folder `SPLIT/CLASS/picture`; or a folder `CLASS/picture`, of which a fifth of each
            class is set aside for testing, chosen by a hash of the file's name; equal files are on one side.
        train_split: Name of the split to fit on. Of folders also another usual name of it: `Training` for `train`.
        test_split: Name of the split to score on, likewise.
        size: Side of the images wanted; of a corpus with several tile sizes the nearest is taken.

    Raises:
        InputError: There are no labels, no pictures, no such split, or a test class that is not in train; or class
            folders seem to be splits, or to hold them.
    """
    if train_split == test_split:
        raise InputError(f"train and test split are both '{train_split}': name two with --train-split and --test-split")
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
                "choose with --train-split and --test-split, or build it with --split FILE"
            )
    data = of_corpus(corpus, side, parts[train_split], parts[test_split], corpus.classes)
    advice = "divide it again (geomim corpus split), or leave those tiles out (geomim corpus filter)"
    missing = _unscored(f"'{corpus.path}'", corpus.classes, data.train, data.test, advice)
    return replace(data, notes=data.notes + missing)


def of_corpus(corpus: Corpus, side: int, train: np.ndarray, test: np.ndarray, classes: Sequence[str]) -> LabelledData:
    """The tiles of one size of a corpus, of which `train` and `test` are rows; -1 where one has no class."""
    tiles = corpus.tiles(side)
    about = corpus.table(["gsd", "size", "xxh3"], where=pc.field("kept") & (pc.field("size") == side))
    hashes = [about["xxh3"].take(rows) for rows in (test, train)]
    seen = pc.sum(pc.is_in(hashes[0], value_set=hashes[1], skip_nulls=True)).as_py()
    notes = (f"of {len(corpus.sizes)} tile sizes, {side} px is used",) if len(corpus.sizes) > 1 else ()
    return LabelledData(
        f"corpus {corpus.path.resolve().name}",
        tuple(classes),
        corpus.sensor,
        corpus.contract,
        of_tiles(tiles, train),
        replace(of_tiles(tiles, test), hashes=hashes[0].to_pylist()),
        (*notes, *said_of_copies(seen or 0, len(test))),
        side,
        ground_sides(about),
    )


def ground_sides(tiles: pa.Table) -> np.ndarray:
    """Metres along a side of tiles with `gsd` and `size`, NaN where unknown."""
    sides: np.ndarray = tiles["gsd"].to_numpy() * tiles["size"].to_numpy()
    return sides.astype(float)


def of_tiles(tiles: Tiles, rows: np.ndarray) -> Labelled:
    """Some tiles of a corpus; those without a class have the label -1."""

    def read(wanted: np.ndarray) -> list[tuple[Tensor, Tensor | None]]:
        numbers, valid = tiles.read(rows[wanted]), tiles.valid(rows[wanted])
        # torch lacks most operations on unsigned 16 and 32 bits
        numbers = numbers.astype(np.int32) if numbers.dtype in (np.uint16, np.uint32) else numbers
        return [(torch.from_numpy(numbers), None if valid.all() else torch.from_numpy(valid))]

    return Labelled(tiles.labels[rows], read)


def _from_folder(path: Path, train_split: str, test_split: str) -> LabelledData:
    notes: tuple[str, ...] = ()
    splits = _split_folders(path)
    chosen = [_split_folder(path, splits, name) for name in (train_split, test_split)]
    if all(chosen) and chosen[0] != chosen[1]:
        train, test = (_by_class(folder) for folder in chosen if folder)
    elif splits or (train_split, test_split) != ("train", "test"):
        raise InputError(_no_split(path, splits, train_split, test_split))
    else:
        found = _by_class(path)
        _check_no_splits(path, found)
        train, test = fifth(found)
        notes = ("the folder has no splits: a fifth of each class, by a hash of the file name, is the test split",)
    classes = sorted(set(train) | set(test))
    if len(classes) < 2:
        given = ", ".join(classes) or "none"
        raise InputError(
            f"'{path}': expected a corpus, or at least two class folders with pictures ({', '.join(PICTURES)}); "
            f"given {given}. Other rasters: geomim corpus build --labels folder"
        )
    parts = [_of_files(part, classes) for part in (train, test)]
    missing = _unscored(f"'{path}'", classes, *parts, "move some of their pictures into it, or leave them out")
    if not notes:  # else no copy is on the other side
        missing += said_of_copies(seen_before(*parts), len(parts[1]))
    side, looks = look_at_pictures([file for part in (train, test) for files in part.values() for file in files])
    name = f"folder {path.resolve().name}"
    return LabelledData(name, tuple(classes), SENSORS["rgb"], None, *parts, (*notes, *missing, *looks), side)


def _unscored(where: str, classes: Sequence[str], train: Labelled, test: Labelled, advice: str) -> tuple[str, ...]:
    """Classes that no test image has, as a note.

    Raises:
        InputError: There is no test image, or one of a class that no training image has.
    """
    there = [{classes[label] for label in part.labels.tolist()} for part in (train, test)]
    unknown, missing = sorted(there[1] - there[0]), sorted(there[0] - there[1])
    if unknown or not there[1]:
        what = (
            f"test images of classes that the train split lacks ({', '.join(unknown)})" if unknown else "no test image"
        )
        raise InputError(f"{where} has {what}: {advice}")
    return (f"no test image is of {', '.join(missing)}",) if missing else ()


def seen_before(train: Labelled, test: Labelled) -> int:
    """How many pictures of a test are training pictures, byte by byte."""
    copies = copies_of([*train.paths, *test.paths])
    known = {*copies[: len(train)]}
    return sum(one in known for one in copies[len(train) :])


def said_of_copies(seen: int, count: int) -> tuple[str, ...]:
    """A note on images of a test that are training images, too."""
    said = f"{seen:,} of the {count:,} test images are among the training images: what is fitted scores too well"
    return (said,) if seen else ()


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def split_kind(name: str) -> str | None:
    """Which of the usual splits a name stands for."""
    return next((kind for kind, names in SPLITS.items() if name.lower() in names), None)


def _split_folders(path: Path) -> list[Path]:
    """Folders called as splits are, unless they stand among others and hold pictures, as the class `train` may."""
    called = [folder for kind in SPLITS for folder in _folders(path) if split_kind(folder.name) == kind]
    return called if len(called) == len(_folders(path)) else [folder for folder in called if _by_class(folder)]


def _split_folder(path: Path, splits: Sequence[Path], name: str) -> Path | None:
    """The folder of that very name, or the only one of a name that means the same."""
    if (path / name).is_dir():
        return path / name
    alike = [folder for folder in splits if split_kind(folder.name) == split_kind(name)]
    return alike[0] if len(alike) == 1 and split_kind(name) else None


def _no_split(path: Path, splits: Sequence[Path], train_split: str, test_split: str) -> str:
    there = [folder.name for folder in splits]
    missing = [name for name in (train_split, test_split) if not _split_folder(path, splits, name)] or [test_split]
    said = f"'{path}' has the split folders {', '.join(there) or '(none)'}, and none for {' and '.join(missing)}: "
    if not there:
        return said + "without --train-split and --test-split a fifth of each class is set aside"
    if len(there) == 1:
        return said + f"give {splits[0]} to have a fifth of each of its classes set aside"
    return said + f"name two of them, as in --train-split {there[0]} --test-split {there[1]}"


def _check_no_splits(path: Path, found: dict[str, list[Path]]) -> None:
    """Refuse folders that seem to be splits, or to hold some, where each is to be a class.

    Raises:
        InputError: One holds folders called as splits, or all hold the same folders and no picture beside them.
    """
    depth = len(path.parts) + 1
    inside = {name: {file.parts[depth:-1][:1] for file in files} for name, files in found.items()}
    nested = {name: sorted(sub for parts in subs for sub in parts) for name, subs in inside.items()}
    for name, subs in nested.items():
        if len({split_kind(sub) for sub in subs} - {None}) > 1:
            raise InputError(
                f"'{path / name}' holds the splits {', '.join(subs)}: expected SPLIT/CLASS/picture, not "
                "CLASS/SPLIT/picture; move the class folders into the splits, or all pictures into their class folders"
            )
    most = max(nested.values(), key=len, default=[])
    alike = len(nested) > 1 and all(len(subs) > 1 and set(subs) <= set(most) for subs in nested.values())
    if alike and not any(() in subs for subs in inside.values()):
        names = sorted(nested, key=lambda name: ("train" not in name.lower(), "test" not in name.lower()))
        raise InputError(
            f"'{path}' has the folders {', '.join(nested)}, with the same folders in each ({', '.join(most)}). If they "
            f"are splits, name two of them: --train-split {names[0]} --test-split {names[1]}. If they are classes, "
            "move their pictures up into them"
        )


def _by_class(folder: Path) -> dict[str, list[Path]]:
    found = {}
    for sub in _folders(folder):
        files = sorted(file for file in sub.rglob("*") if file.suffix.lower() in PICTURES)
        if files:
            found[sub.name] = files
    return found


def _of_files(files: dict[str, list[Path]], classes: Sequence[str]) -> Labelled:
    pairs = [(file, classes.index(name)) for name in classes for file in files.get(name, [])]
    return of_pictures([file for file, _ in pairs], [label for _, label in pairs])


def of_pictures(paths: Sequence[Path], labels: Sequence[int]) -> Labelled:
    """Pictures with their labels, -1 where one has none."""

    def read(wanted: np.ndarray) -> list[tuple[Tensor, Tensor | None]]:
        with ThreadPoolExecutor(4) as pool:
            images = list(pool.map(read_picture, [paths[row] for row in wanted]))
        alike = len({image.shape for image in images}) == 1
        groups = [torch.stack(images)] if alike else [image[None] for image in images]
        return [(group[:, :3], group[:, 3] > 0 if group.shape[1] == 4 else None) for group in groups]

    return Labelled(np.array(labels, np.int64), read, paths=paths)
