"""Images with all that is said of them: sentences, classes, objects and masks; a corpus, a table, or class folders."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from geomim.corpus.captions.imported import read_sentences
from geomim.corpus.store import Corpus, holds_corpus
from geomim.data.labelled import (
    LabelledData,
    of_corpus,
    of_pictures,
    open_labelled,
    said_of_copies,
    seen_before,
    split_kind,
)
from geomim.data.pictures import look_at_pictures
from geomim.errors import CorpusError, InputError
from geomim.sensors import SENSORS

Masks = Callable[[np.ndarray], np.ndarray]
"""Rows to masks `(B, H, W)` uint8 of places in the class list, 255 where a pixel has none."""


@dataclass(frozen=True)
class Described:
    """Images of a test split with what is said of them, and of a train split that have a class.

    Attributes:
        images: The images; test images without a class have the label -1.
        texts: All sentences.
        of: `(T,)` int64, the test image of each.
        kinds: `(N, C)` bool, which classes each test image has, one or several.
        masks: Those of the test images.
    """

    images: LabelledData
    texts: list[str]
    of: np.ndarray
    kinds: np.ndarray
    masks: Masks | None = None


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
    return _described(open_labelled(path, train_split, test_split), [], [])


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
    said = corpus.table(["captions", "boxes"], where=pc.field("kept") & (pc.field("size") == side)).take(test)
    # objects are of other classes than whole tiles and pixels, and count where those have none
    objects = [{box["label"] for box in boxes or ()} - {None} for boxes in said["boxes"].to_pylist()]
    classes = corpus.classes or sorted(set().union(*objects))
    images = of_corpus(corpus, side, train, test, classes)
    captions = said["captions"].to_pylist()
    if any(captions):
        note = "a corpus has each sentence of an image once; publishers' files, and their recalls, have repeated ones"
        images = replace(images, notes=(*images.notes, note))
    masks = None if tiles.mask(test[:1]) is None else lambda rows: tiles.mask(test[rows])
    return _described(images, captions, objects, masks)


def _described(
    images: LabelledData, captions: Sequence[Sequence[str] | None], several: Sequence[set[str]], masks: Any = None
) -> Described:
    """With the sentences of each test image, and the classes that it has beside that of its label."""
    pairs = [(" ".join(text.split()), image) for image, texts in enumerate(captions) for text in texts or ()]
    pairs = [(text, image) for text, image in pairs if text]
    kinds = images.test.labels[:, None] == np.arange(len(images.classes))
    for image, names in enumerate(several):
        kinds[image] |= np.isin(images.classes, list(names))
    return Described(images, [text for text, _ in pairs], np.array([at for _, at in pairs], np.int64), kinds, masks)


class _Picture(NamedTuple):
    where: str
    split: str
    label: str
    labels: set[str]
    captions: list[str]


def _from_table(path: Path, train_split: str, test_split: str, folder: Path) -> Described:
    mended = defaultdict[str, list[str]](list)
    found: dict[str, _Picture] = {}
    for where, name, texts, record in read_sentences(str(path), None, mended):
        told = {str(key).strip().lower(): value for key, value in record.items() if value is not None}
        split, label = (str(told.get(key, "")).strip() for key in ("split", "class"))
        given = told.get("labels", "")  # several: a list, or words between `|` or `;`
        labels = {str(one).strip() for one in (given if isinstance(given, list) else re.split("[|;]", str(given)))}
        first = found.setdefault(name, _Picture(where, split, label, labels, []))
        if first[1:3] != (split, label):
            raise InputError(f"{where} gives '{name}' another split or class than {first.where.rpartition(', ')[2]}")
        first.captions.extend(texts)
        first.labels.update(labels)
    splits = sorted({one.split for one in found.values()})
    notes = [f"{what}: {len(places)}, the first in {places[0]}" for what, places in mended.items()]
    if splits == [""]:
        notes.append(f"'{path}' names no splits: all of its {len(found)} images are the test split")
        found = {name: one._replace(split=test_split) for name, one in found.items()}
    elif "" in splits:
        lost = next(one.where for one in found.values() if not one.split)
        notes.append(f"images without a split are left out, the first in {lost}")
    train, test = _divided(found, train_split, test_split)
    if not test:
        said = f"'{path}' has no image in split '{test_split}'; it has {', '.join(splits)}"
        raise InputError(f"{said}: choose with --test-split")
    train = {name: one for name, one in train.items() if one.label}
    both = [*train.values(), *test.values()]
    classes = sorted({name for one in both for name in (one.label, *one.labels)} - {""})
    place = {name: number for number, name in enumerate(classes)}
    paths = _files(train | test, folder)
    parts = [
        of_pictures([paths[name] for name in part], [place.get(one.label, -1) for one in part.values()])
        for part in (train, test)
    ]
    side, looks = look_at_pictures(list(paths.values()))
    looks += said_of_copies(seen_before(*parts), len(test))
    images = LabelledData(path.name, tuple(classes), SENSORS["rgb"], None, *parts, (*notes, *looks), side)
    return _described(images, [one.captions for one in test.values()], [one.labels for one in test.values()])


def _divided(pictures: Mapping[str, _Picture], *splits: str) -> Iterator[dict[str, _Picture]]:
    """The pictures of each split, or of any name of its kind; two names of one kind mean themselves alone."""
    kinds = [split_kind(split) for split in splits]
    for split, kind in zip(splits, kinds, strict=True):
        alike = {kind} - {None} if kinds.count(kind) == 1 else set()
        yield {name: one for name, one in pictures.items() if one.split == split or split_kind(one.split) in alike}


def _files(pictures: Mapping[str, _Picture], folder: Path) -> dict[str, Path]:
    """Where the pictures are: as the table names them under a folder, or anywhere in it by their file names."""
    by_name = defaultdict[str, list[Path]](list)
    if not all((folder / name).is_file() for name in pictures):
        for file in sorted(folder.rglob("*")):
            by_name[file.name].append(file)
    files = {}
    for name, one in pictures.items():
        found = [folder / name] if (folder / name).is_file() else by_name[Path(name).name]
        if len(found) != 1:
            what = f"{len(found)} files called" if found else "no picture"
            raise InputError(f"{one.where}: '{folder}' holds {what} '{name}': give their folder with --pictures")
        files[name] = found[0]
    return files
