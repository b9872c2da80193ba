"""Which staged tiles are kept, and one reason for each that is not."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import Progress

from geomim.corpus.duplicates.dedupe import correlation_at_least, keep_first, keep_one
from geomim.corpus.labels import SPLITS
from geomim.corpus.pipeline.staging import SIGNATURE
from geomim.corpus.store import CATALOGUE, write_table

DECISIONS = pa.schema([CATALOGUE.field(name) for name in ("id", "slot", "kept", "reason", "duplicate_of", "cluster")])
"""Columns that are decided when all tiles are known."""


def decide(
    folders: Sequence[Path], file: Path, min_valid: float, near: int | None, protect: bool, progress: Progress
) -> None:
    """Decide about all staged tiles and write `DECISIONS`, in the order of the tasks.

    Args:
        folders: Finished tasks.
        file: Parquet file to write; nothing happens where it exists.
        min_valid: Least share of valid pixels.
        near: Hamming radius of near duplicates, or None.
        protect: Never drop val and test tiles as duplicates: a published split stays whole, its copies leave train.
        progress: Shows how far it is.
    """
    if file.exists():
        return
    bar = progress.add_task("finding duplicates", total=3)
    columns = ["id", "xxh3", "phash", "valid_fraction", "low_information", "split"]
    table = pa.concat_tables([pq.read_table(folder / "tiles.parquet", columns=columns) for folder in folders])
    progress.advance(bar)
    tiles = Tiles(table, min_valid, protect)
    distance = np.zeros(len(table), np.int64)
    keeper = tiles.exact_keepers()
    original = keeper.copy()
    progress.advance(bar)
    if near is not None:
        signatures = file.with_name("signatures.raw")
        _join(folders, signatures)
        places = np.flatnonzero(tiles.usable & (keeper == np.arange(len(keeper))) & ~tiles.low_information)
        if len(places):
            all_signatures = np.memmap(signatures, np.float16, mode="r").reshape(-1, *SIGNATURE)
            order = np.argsort(tiles.rank[places], kind="stable")
            similar = correlation_at_least(_Rows(all_signatures, places))
            result = keep_one(tiles.phash[places], order, near, tiles.protected[places], similar)
            keeper[places] = places[result.keeper]
            distance[places] = result.distance
        keeper = keeper[keeper]  # an exact copy of a tile that is dropped goes to that one's keeper
        signatures.unlink()
    write_table(file, tiles.decisions(original, keeper, distance))
    progress.advance(bar)


class _Rows:
    """Some rows of a memory map, without reading the others."""

    def __init__(self, array: np.ndarray, places: np.ndarray) -> None:
        self._array = array
        self._places = places

    def __getitem__(self, index: int | np.ndarray) -> np.ndarray:
        return self._array[self._places[index]]


def _join(folders: Sequence[Path], file: Path) -> None:
    with open(file, "wb") as out:
        for folder in folders:
            if (folder / "signature.raw").exists():
                with open(folder / "signature.raw", "rb") as part:
                    shutil.copyfileobj(part, out)


class Tiles:
    """What decides about tiles, a place each.

    Args:
        table: Facts of all tiles.
        min_valid: Least share of valid pixels.
        protect: Never drop val and test tiles as duplicates.

    Attributes:
        usable: `(n,)` bool, valid enough to be kept.
        protected: `(n,)` bool, not to be dropped as a duplicate.
        rank: `(n,)` int64, the lower the rather kept: held-out tiles first, so that copies leave train; then the
            more valid; then the lower id.
    """

    def __init__(self, table: pa.Table, min_valid: float, protect: bool) -> None:
        self.id: np.ndarray = table["id"].to_numpy()
        self.phash: np.ndarray = table["phash"].to_numpy().view(np.uint64)
        self.low_information: np.ndarray = table["low_information"].to_numpy()
        self._min_valid = min_valid
        self._valid: np.ndarray = table["valid_fraction"].to_numpy()
        self._content = np.array([bytes.fromhex(text) for text in table["xxh3"].to_pylist()], "S16").view("V16")
        split = np.array([SPLITS.index(name) for name in table["split"].to_pylist()])
        self.usable = (self._valid >= min_valid) & (self._valid > 0)
        self.protected = (split > 0) & protect
        self.rank = np.empty(len(split), np.int64)
        self.rank[np.lexsort((self.id, -self._valid, -split))] = np.arange(len(split))

    def exact_keepers(self) -> np.ndarray:
        """The first of equal tiles, among the usable ones and among the others, `(n,)`."""
        keeper = np.arange(len(self.id))
        for group in (self.usable, ~self.usable):
            places = np.flatnonzero(group)
            order = np.argsort(self.rank[places], kind="stable")
            protected = self.protected[places] & group[places] & self.usable[places]
            keeper[places] = places[keep_first(self._content[places], order, protected)]
        return keeper

    def decisions(self, original: np.ndarray, keeper: np.ndarray, distance: np.ndarray) -> pa.Table:
        """A row a tile.

        Args:
            original: `(n,)` the tile whose exact copy each is; itself where it is none.
            keeper: `(n,)` the kept tile that stands for each usable one.
            distance: `(n,)` Hamming distance of a near duplicate to its keeper.
        """
        places = np.arange(len(self.id))
        stored = original == places
        slot = np.where(stored, np.cumsum(stored) - 1, -1)
        kept = self.usable & (keeper == places)
        reasons = [""] * len(places)
        for place in np.flatnonzero(~kept).tolist():
            reasons[place] = self._reason(place, int(original[place]), int(keeper[place]), distance)
        dropped_copy = self.usable & ~kept
        columns = {
            "id": self.id,
            "slot": slot,
            "kept": kept,
            "reason": reasons,
            "duplicate_of": pa.array(self.id[keeper], mask=~dropped_copy),
            "cluster": self.id[keeper],
        }
        return pa.table({name: pa.array(values, DECISIONS.field(name).type) for name, values in columns.items()})

    def _reason(self, place: int, original: int, keeper: int, distance: np.ndarray) -> str:
        if not self.usable[place]:
            share = math.floor(self._valid[place] * 1000) / 1000  # never rounded up to the threshold
            return f"valid fraction {share:g} < {self._min_valid:g}" if self._min_valid else "no valid pixel"
        reasons = []
        if original != place:
            reasons.append(f"exact duplicate of {self.id[original]}")
        if original != keeper:
            reasons.append(f"near duplicate of {self.id[keeper]} (distance {distance[original]})")
        return ", ".join(reasons)
