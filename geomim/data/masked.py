"""Tiles whose patches are fitted on: by label masks, a choice in which classes and scenes share evenly; or without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.nn import functional as F

from geomim.corpus.store import Corpus, holds_corpus
from geomim.data.labelled import Labelled, LabelledData, of_corpus, open_labelled
from geomim.errors import CorpusError, InputError

TILES, PATCHES = 8192, 20_000
"""Of a split, at most; with them the pixels read and the features kept are bounded, however large a corpus is."""


def open_patches(path: str, train_split: str, test_split: str, size: int | None) -> LabelledData:
    """Open tiles of a corpus with their masks, or where there are none, of anything `open_labelled` takes, by class.

    Arguments as of `open_labelled`; errors as of it and of `open_masked`. Of tiles without masks at most 8,192 a split
    are taken, drawn by chance.
    """
    corpus = Corpus.open(path) if holds_corpus(Path(path)) else None
    if corpus and any(corpus.array("mask", side) is not None for side in corpus.sizes):
        return open_masked(path, train_split, test_split, size)
    if corpus and not corpus.classes:
        raise CorpusError(
            f"'{path}' has neither masks nor labels, of which --dense needs one: build it with --masks FOLDER or "
            "--labels folder"
        )
    data = open_labelled(path, train_split, test_split, size)
    parts = {train_split: data.train, test_split: data.test}
    cut = [
        f"of the {len(part):,} tiles of '{name}' {TILES:,} are used, drawn by chance"
        for name, part in parts.items()
        if len(part) > TILES
    ]
    told = "no masks: patches are fitted by multiple instance from the tiles' classes, and tiles are scored"
    notes = (*data.notes, *cut, told)
    return replace(data, train=data.train.some(TILES), test=data.test.some(TILES), notes=notes)


def open_masked(path: str, train_split: str, test_split: str, size: int | None) -> LabelledData:
    """Open tiles of a corpus with their masks: of many a choice in which scenes share evenly.

    Arguments as of `open_labelled`.

    Raises:
        CorpusError: It is no corpus, holds no masks, or no tiles in a split.
        InputError: The splits are one.
    """
    if train_split == test_split:
        raise InputError(f"train and test split are both '{train_split}': name two with --train-split and --test-split")
    corpus = Corpus.open(path) if holds_corpus(Path(path)) else None
    side = min(corpus.sizes, key=lambda offered: abs(offered - (size or offered))) if corpus else 0
    if corpus is None or corpus.array("mask", side) is None:
        raise CorpusError(f"'{path}' has no masks: --dense needs a corpus of `geomim corpus build --masks FOLDER`")
    tiles, where = corpus.tiles(side), pc.field("kept") & (pc.field("size") == side)
    # as numbers first: strings of 2 GiB do not fit into one array
    names = pc.dictionary_encode(corpus.table(["source"], where)["source"]).combine_chunks()
    sources, parts, cut = names.indices.to_numpy().astype(np.int64), [], []
    for name in (train_split, test_split):
        rows = np.flatnonzero(tiles.splits == name)
        if not len(rows):
            offered = ", ".join(sorted(set(tiles.splits.tolist())))
            raise CorpusError(
                f"'{path}' has no tile in split '{name}': name others (--train-split, --test-split) of {offered}"
            )
        parts.append(rows[spread(len(rows), TILES, [sources[rows]])])
        if len(rows) > TILES:
            cut.append(f"of the {len(rows):,} tiles of '{name}' {TILES:,} are used, in which scenes share evenly")

    def masked(part: Labelled, rows: np.ndarray) -> Labelled:
        def read(wanted: np.ndarray) -> tuple[Tensor, Tensor]:
            masks, valid = tiles.mask(rows[wanted]), tiles.valid(rows[wanted])
            return torch.from_numpy(np.asarray(masks)), torch.from_numpy(valid)

        return replace(part, masks=read, sources=sources[rows])

    data = of_corpus(corpus, side, *parts, corpus.classes)
    train, test = masked(data.train, parts[0]), masked(data.test, parts[1])
    return replace(data, name=f"patches of {data.name}", train=train, test=test, notes=(*data.notes, *cut))


def choose_patches(images: LabelledData, grid: tuple[int, int]) -> dict[str, tuple[Tensor, ...]]:
    """Patches to fit on, in which classes share evenly and of each the scenes, and patches to score, as they come.

    Of a class that no patch to fit on is of, none is scored.

    Args:
        images: From `open_masked`.
        grid: Rows and columns of patches.

    Returns:
        By split `(N, L)` int64 labels, -1 where a patch is not chosen; `(P,)` int64 groups of the chosen ones, from 0
        without a gap: their tiles, but to fit on their scenes where there are several; and `(C,)` int64, how many
        patches of each class there were.

    Raises:
        InputError: No patch of a split has a class, or all of train have one or are of one tile.
    """
    chosen: dict[str, tuple[Tensor, ...]] = {}
    advice = "choose others with --train-split and --test-split, or divide the corpus again (geomim corpus split)"
    for name, part in (("train", images.train), ("test", images.test)):
        assert part.masks is not None and part.sources is not None
        some = np.split(np.arange(len(part)), range(256, len(part), 256))
        labels = torch.cat([patch_labels(*part.masks(rows), grid, len(images.classes)) for rows in some])
        counts = labels[labels >= 0].bincount(minlength=len(images.classes))
        if name == "test":
            labels[chosen["train"][2][labels] == 0] = -1  # where there was -1 it stays
        at = (labels >= 0).nonzero()
        kinds, sources = labels[labels >= 0].numpy(), part.sources[at[:, 0]]
        if len(shown := [images.classes[kind] for kind in np.unique(kinds)]) < (2 if name == "train" else 1):
            given = f"{shown[0]} alone" if shown else "no class to score" if name == "test" else "no class"
            raise InputError(f"masks of {images.name}, {name}, show {given}: expected several classes; {advice}")
        kept = spread(len(kinds), PATCHES, [kinds, sources] if name == "train" else [])
        rows, places = at[kept].T
        alone = name == "test" or len(np.unique(sources[kept])) < 2
        groups = np.unique(rows if alone else sources[kept], return_inverse=True)[1]
        if name == "train" and not groups.any():
            raise InputError(f"all labelled patches of {images.name}, train, are of one tile: expected two; {advice}")
        left = torch.full_like(labels, -1).index_put((rows, places), labels[rows, places])
        chosen[name] = left, torch.from_numpy(groups), counts
    return chosen


def patch_labels(masks: Tensor, valid: Tensor, grid: tuple[int, int], classes: int) -> Tensor:
    """The class of each patch: the only one that covers at least half of its valid pixels that have a class.

    Args:
        masks: `(B, H, W)` places in the class list; any other number means that the pixel has none.
        valid: `(B, H, W)` bool.
        grid: Rows and columns of patches that the pixels are divided into.
        classes: Number of classes.

    Returns:
        `(B, L)` int64 in raster order; -1 where none or two do, or the patch holds more nodata than image.
    """
    covers = [F.adaptive_avg_pool2d(((masks == place) & valid).float(), grid) for place in range(classes)]
    share, kind = torch.stack(covers, 1).max(1)
    clear = (share > 0) & (sum(2 * cover >= sum(covers) - 1e-6 for cover in covers) == 1)  # rounding
    seen = F.adaptive_avg_pool2d(valid.float(), grid) >= 0.5
    return torch.where(clear & seen, kind, -1).flatten(1)


def spread(count: int, most: int, keys: Sequence[np.ndarray] = ()) -> np.ndarray:
    """At most `most` of `count` rows, ascending, by a chance that is always the same.

    Values of the first of the `keys` `(count,)` take turns, within one those of the second, and so on while rows last.
    """
    place = np.random.default_rng(0).permutation(count)  # of each row; the first ones are taken
    for depth in range(len(keys), 0, -1):
        order = np.lexsort([place, *keys[:depth][::-1]])
        ranked = np.stack(keys[:depth])[:, order]
        first = np.flatnonzero(np.r_[True, (ranked[:, 1:] != ranked[:, :-1]).any(0)][:count])
        turn = np.empty(count, np.int64)
        turn[order] = np.arange(count) - np.repeat(first, np.diff(np.r_[first, count]))
        place[np.lexsort([place, turn])] = np.arange(count)
    return np.flatnonzero(place < most)
