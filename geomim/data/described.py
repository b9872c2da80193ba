"""Images with all that is said of them: sentences, classes, objects and masks; a corpus, a table, or class folders."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from geomim.corpus.captions.imported import read_sentences
from geomim.corpus.store import Corpus, holds_corpus
from geomim.data.labelled import (
    PICTURES,
    LabelledData,
    ground_sides,
    look_at_pictures,
    of_pictures,
    of_tiles,
    open_labelled,
    split_kind,
)
from geomim.errors import CorpusError, InputError
from geomim.sensors import SENSORS


@dataclass(frozen=True)
class Described:
    """Images of a test split with what is said of them, and of a train split that have a class.

    Attributes:
        images: The images; test images without a class have the label -1.
        captions: Sentences of each test image.
        kinds: `(N, C)` bool, which classes each test image has, one or several.
        masks: Rows of the test images to masks `(B, H, W)` uint8 of places in the class list, 255 without.
    """

    images: LabelledData
    captions: tuple[tuple[str, ...], ...]
    kinds: np.ndarray
    masks: Callable[[np.ndarray], np.ndarray | None] | None = None


def open_described(
    path: str | Path, train_split: str = "train", test_split: str = "test", pictures: str | None = None, size: int = 0
) -> Described:
    """Open a corpus, a table of pictures, or a folder of class folders.

    Args:
        path: A corpus folder; class folders as `open_labelled` has them; or a file of sentences as the publishers of
            RSICD, RSITMD, UCM, Sydney, NWPU-Captions and RemoteCLIP have them (JSON of images, CSV, JSONL), which may
            name a `split`, a `class` or a list `labels` too.
        train_split: Split to fit on, where something is fitted.
        test_split: Split to score on.
        pictures: Folder of the pictures that a table names; the table's own where None.
        size: Side of the images wanted, of a corpus with several tile sizes.

    Raises:
        InputError: It is of no such form, names pictures that are not there, or has no such split.
    """
    path = Path(path)
    if pictures and not path.is_file():
        raise InputError(f"--pictures is for a table that names them, and '{path}' is none: leave it out")
    if train_split == test_split:
        raise InputError(f"train and test split are both '{train_split}': name two with --train-split and --test-split")
    if path.is_file():
        return _from_table(path, train_split, test_split, Path(pictures or path.parent))
    if holds_corpus(path):
        return _from_corpus(Corpus.open(path), train_split, test_split, size)
    images = open_labelled(path, train_split, test_split)
    return Described(images, ((),) * len(images.test), _kinds(images, []))


def _from_corpus(corpus: Corpus, train_split: str, test_split: str, size: int) -> Described:
    side = min(corpus.sizes, key=lambda offered: abs(offered - size))
    tiles = corpus.tiles(side)
    test = np.flatnonzero(tiles.splits == test_split)
    train = np.flatnonzero((tiles.splits == train_split) & (tiles.labels >= 0))
    if not len(test):
        offered = ", ".join(sorted(set(tiles.splits.tolist()))) or "none"
        raise CorpusError(
            f"'{corpus.path}' has no tile in split '{test_split}'; it has {offered}: choose with --test-split"
        )
    said = corpus.table(["captions", "boxes", "gsd", "size"], where=pc.field("kept") & (pc.field("size") == side))
    said = said.take(test)
    # objects are of other classes than whole tiles and pixels, and count where those have none
    objects = [{box["label"] for box in boxes or ()} - {None} for boxes in said["boxes"].to_pylist()]
    known = corpus.classes or sorted(set().union(*objects))
    images = LabelledData(
        f"corpus {corpus.path.name}, split {test_split}",
        tuple(known),
        corpus.sensor,
        corpus.contract,
        of_tiles(tiles, train),
        of_tiles(tiles, test),
        (f"of {len(corpus.sizes)} tile sizes, {side} px is used",) * (len(corpus.sizes) > 1),
        side,
        ground_sides(said),
    )
    captions = tuple(tuple(texts or ()) for texts in said["captions"].to_pylist())
    masks = None if tiles.mask(test[:1]) is None else lambda rows: tiles.mask(test[rows])
    return Described(images, captions, _kinds(images, objects), masks)


def _kinds(images: LabelledData, several: Sequence[set[str]]) -> np.ndarray:
    """Which classes test images have: that of their label, and those of which they have several."""
    kinds: np.ndarray = images.test.labels[:, None] == np.arange(len(images.classes))
    for image, names in enumerate(several):
        kinds[image] |= np.isin(images.classes, list(names))
    return kinds


@dataclass
class _Picture:
    where: str
    split: str
    label: str
    labels: set[str]
    captions: list[str]


def _from_table(path: Path, train_split: str, test_split: str, folder: Path) -> Described:
    mended = defaultdict[str, list[str]](list)
    found: dict[str, _Picture] = {}
    for where, name, texts, record in read_sentences(str(path), None, mended):
        said = _Picture(where, _cell(record, "split"), _cell(record, "class", "label"), _several(record), [])
        known = found.setdefault(name, said)
        if (known.split, known.label) != (said.split, said.label):
            raise InputError(f"{where} gives '{name}' another split or class than {known.where.rpartition(', ')[2]}")
        known.captions += texts
        known.labels |= said.labels
    splits = {one.split for one in found.values()}
    notes = [f"{what}: {len(places)}, the first in {places[0]}" for what, places in mended.items()]
    if splits == {""}:
        notes.append(f"'{path}' names no splits: all of its {len(found)} images are the test split")
    parts = [
        {name: one for name, one in found.items() if (one.split or test_split) == split or _same(one.split, split)}
        for split in (train_split, test_split)
    ]
    if not parts[1]:
        raise InputError(
            f"'{path}' has no image in split '{test_split}'; it has {', '.join(sorted(splits))}: choose with "
            "--test-split"
        )
    parts[0] = {name: one for name, one in parts[0].items() if one.label}
    classes = sorted({name for part in parts for one in part.values() for name in (one.label, *one.labels)} - {""})
    paths = [_files(part, path, folder) for part in parts]
    labels = [[classes.index(one.label) if one.label else -1 for one in part.values()] for part in parts]
    side, looks = look_at_pictures([file for part in paths for file in part])
    images = LabelledData(
        f"{path.name}, split {test_split}",
        tuple(classes),
        SENSORS["rgb"],
        None,
        *(of_pictures(*part) for part in zip(paths, labels, strict=True)),
        (*notes, *looks),
        side,
    )
    test = parts[1].values()
    return Described(images, tuple(tuple(one.captions) for one in test), _kinds(images, [one.labels for one in test]))


def _same(split: str, wanted: str) -> bool:
    return split_kind(split) is not None and split_kind(split) == split_kind(wanted)


def _cell(record: Mapping[str, Any], *names: str) -> str:
    return next((str(record[name]).strip() for name in names if record.get(name)), "")


def _several(record: Mapping[str, Any]) -> set[str]:
    """Classes of an image that has several: a list, or words between `|` or `;`."""
    given = record.get("labels") or ()
    words = given.replace(";", "|").split("|") if isinstance(given, str) else map(str, given)
    return {word.strip() for word in words} - {""}


def _files(pictures: Mapping[str, _Picture], table: Path, folder: Path) -> list[Path]:
    """Where the pictures are: as the table names them under a folder, or anywhere in it by their file names."""
    if all((folder / name).is_file() for name in pictures):
        return [folder / name for name in pictures]
    by_name: dict[str, list[Path]] = defaultdict(list)
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in PICTURES:
            by_name[file.name].append(file)
    files = []
    for name, one in pictures.items():
        found = [folder / name] if (folder / name).is_file() else by_name[Path(name).name]
        if len(found) != 1:
            what = f"{len(found)} pictures called" if found else "no picture"
            raise InputError(f"{one.where}: '{folder}' holds {what} '{name}': give their folder with --pictures")
        files += found
    return files
