"""Tiles of a corpus with the masks of their label rasters, and a choice among many in which kinds share evenly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from geomim.corpus.store import Corpus, Tiles, holds_corpus
from geomim.data.labelled import LabelledData, ReadMasks, of_corpus
from geomim.errors import CorpusError, InputError


def spread(count: int, most: int, keys: Sequence[np.ndarray] = (), seed: int = 0) -> np.ndarray:
    """At most `most` of `count` rows, ascending, drawn by chance so that values of the keys share evenly.

    Values of the first key take turns, within one those of the second, and so on. Where a value has no row left, the
    others go on without it.

    Args:
        count: Number of rows.
        most: How many are wanted.
        keys: `(count,)` integers each.
        seed: Of the chance.
    """
    place = np.random.default_rng(seed).permutation(count)  # of each row, the first ones are taken
    for depth in range(len(keys), 0, -1):
        order = np.lexsort([place, *keys[depth - 1 :: -1]])
        sorted_keys = np.stack([key[order] for key in keys[:depth]])
        first = np.flatnonzero(np.r_[True, (sorted_keys[:, 1:] != sorted_keys[:, :-1]).any(0)][:count])
        turn = np.empty(count, np.int64)
        turn[order] = np.arange(count) - np.repeat(first, np.diff(np.r_[first, count]))
        place[np.lexsort([place, turn])] = np.arange(count)
    return np.flatnonzero(place < most)


def open_masked(path: str | Path, train_split: str, test_split: str, size: int | None, most: int) -> LabelledData:
    """Open the tiles of a corpus with their masks.

    Args:
        path: A corpus folder.
        train_split: Name of the split to fit on.
        test_split: Name of the split to score on.
        size: Side of the images wanted; the nearest tile size is taken.
        most: Tiles of each split; of more some are drawn, as many of each source, and of train of each class.

    Raises:
        InputError: It is no corpus, or the splits are one.
        CorpusError: It holds no masks, or no tiles in a split.
    """
    made = "geomim corpus build SCENES --masks LABEL_RASTERS"
    if not holds_corpus(Path(path)):
        raise InputError(f"'{path}' is no corpus: patches are scored on label masks, which one holds ({made})")
    if train_split == test_split:
        raise InputError(f"train and test split are both '{train_split}': name two with --train_split and --test_split")
    corpus = Corpus.open(path)
    side = min(corpus.sizes, key=lambda offered: abs(offered - (size or offered)))
    if corpus.array("mask", side) is None:
        raise CorpusError(f"'{path}' has no masks to score patches on: build it with --masks ({made})")
    tiles, sources = corpus.tiles(side), _sources(corpus, side)
    parts = {}
    for name in (train_split, test_split):
        rows = np.flatnonzero(tiles.splits == name)
        if not len(rows):
            offered = ", ".join(sorted(set(tiles.splits.tolist())))
            raise CorpusError(
                f"'{path}' has no tile in split '{name}'; it has {offered}: choose with --train_split and --test_split"
            )
        keys = [sources[rows], tiles.labels[rows]][: 1 + (name == train_split)]
        parts[name] = rows[spread(len(rows), most, keys)]
    data = of_corpus(corpus, side, parts[train_split], parts[test_split], corpus.classes)
    train, test = (
        replace(part, masks=_masks(tiles, rows), sources=sources[rows])
        for part, rows in zip((data.train, data.test), parts.values(), strict=True)
    )
    return replace(data, name=f"patches of {data.name}", train=train, test=test)


def _sources(corpus: Corpus, side: int) -> np.ndarray:
    """`(n,)` int64, a number for the source of each kept tile; of their names, one a time is held."""
    where = pc.field("kept") & (pc.field("size") == side)
    batches = corpus.rows().to_batches(columns=["source"], filter=where)
    names = pa.chunked_array([batch["source"].dictionary_encode() for batch in batches]).unify_dictionaries()
    return np.concatenate([chunk.indices.to_numpy() for chunk in names.chunks]).astype(np.int64)


def _masks(tiles: Tiles, rows: np.ndarray) -> ReadMasks:
    def read(wanted: np.ndarray) -> tuple[Tensor, Tensor]:
        masks = tiles.mask(rows[wanted])
        assert masks is not None
        return torch.from_numpy(masks), torch.from_numpy(tiles.valid(rows[wanted]))

    return read
