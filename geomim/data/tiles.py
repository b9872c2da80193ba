"""Batches of raw tiles, read in one go and in the numbers of the file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from geomim.corpus.store import Corpus
from geomim.errors import BandError, CorpusError
from geomim.sensors import BandContract

Locate = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class TileSet:
    """The tiles of one corpus that take part: one size, one split.

    Args:
        corpus: The corpus.
        size: Side of its tiles in pixels; None where it has only one.
        split: Tiles of this split; all kept tiles where None.

    Raises:
        CorpusError: No kept tile is of the split.
    """

    def __init__(self, corpus: Corpus, size: int | None = None, split: str | None = None) -> None:
        self.sensor = corpus.sensor.name
        self.tiles = corpus.tiles(size)
        chosen = np.arange(len(self.tiles))
        if split is not None:
            chosen = chosen[self.tiles.splits == split]
            if not len(chosen) and len(self.tiles):
                there = ", ".join(sorted(set(self.tiles.splits.tolist())))
                raise CorpusError(f"'{corpus.path}' has no kept tile in split '{split}'; it has {there}")
        self.rows = chosen

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, rows: np.ndarray) -> dict[str, Any]:
        """Read some tiles.

        Args:
            rows: `(B,)` int64 in `[0, len(self))`.

        Returns:
            `image (B, C, H, W)` in the dtype of the file, `valid (B, 1, H, W)` bool only where some pixel is not,
            `id` and `label (B,)` int64, `sensor`.
        """
        rows = self.rows[rows]
        batch: dict[str, Any] = {
            "image": torch.from_numpy(self.tiles.read(rows)),
            "id": torch.from_numpy(self.tiles.ids[rows]),
            "label": torch.from_numpy(self.tiles.labels[rows]),
            "sensor": self.sensor,
        }
        valid = self.tiles.valid(rows)
        if not valid.all():
            batch["valid"] = torch.from_numpy(valid)[:, None]
        return batch


class StreamDataset(Dataset[dict[str, Any]]):
    """The training stream: a position in, a raw tile out; a list of positions in, one batch out.

    Args:
        sets: The tiles of each corpus.
        locate: Corpus and row of each position: `geomim.data.sampler.Stream`.
    """

    def __init__(self, sets: Sequence[TileSet], locate: Locate) -> None:
        self.sets = list(sets)
        self.locate = locate

    def __getitem__(self, position: int) -> dict[str, Any]:
        return self.__getitems__([position])

    def __getitems__(self, positions: Sequence[int]) -> dict[str, Any]:
        """Read the batch at some positions, which must lie in one block of the stream.

        Returns:
            What `TileSet.read` returns, and `position (B,)` int64.
        """
        places = np.asarray(positions, np.int64)
        corpora, rows = self.locate(places)
        assert (corpora == corpora[0]).all(), "a batch reaches over the edge of a block"
        batch = self.sets[corpora[0]].read(rows)
        batch["position"] = torch.from_numpy(places)
        return batch


def as_is(batch: dict[str, Any]) -> dict[str, Any]:
    """Collate nothing: `StreamDataset` hands over whole batches."""
    return batch


def join_contracts(corpora: Sequence[Corpus], weights: Sequence[float]) -> BandContract:
    """One band contract for several corpora of one sensor: the statistics of their mixture.

    Args:
        corpora: At least one.
        weights: Share of each in training, any positive scale.

    Raises:
        BandError: They are of different sensors, or their bands differ.
    """
    first = corpora[0].contract
    for corpus in corpora[1:]:
        if corpus.sensor != first.sensor:
            raise BandError(
                f"corpora of one run must share their bands: '{corpora[0].path}' has {first.sensor.name} "
                f"({', '.join(first.names)}), '{corpus.path}' has {corpus.sensor.name} "
                f"({', '.join(corpus.contract.names)}); train one encoder a sensor"
            )
    if len(corpora) == 1:
        return first
    share = np.array(weights, float)[:, None] / sum(weights)
    means = np.array([corpus.contract.mean for corpus in corpora])
    squares = np.array([corpus.contract.std for corpus in corpora]) ** 2 + means**2
    mean = (share * means).sum(0)
    std = np.sqrt(np.maximum((share * squares).sum(0) - mean**2, 0))
    return BandContract(
        first.sensor,
        tuple(mean.tolist()),
        tuple(std.tolist()),
        tuple(dict.fromkeys(name for corpus in corpora for name in corpus.contract.licences)),
        tuple(dict.fromkeys(name for corpus in corpora for name in corpus.contract.attributions)),
        tuple(dict.fromkeys(name for corpus in corpora for name in corpus.contract.corpora)),
    )
