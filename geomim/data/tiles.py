"""Batches of raw tiles, read in one go and in the numbers of the file."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from geomim.corpus.pairs import Pairs, find_pairs
from geomim.corpus.store import Corpus
from geomim.errors import BandError, CorpusError
from geomim.randomness import Draws
from geomim.sensors import BandContract, Sensor

Locate = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class TileSet:
    """The tiles of one corpus that take part: one size, one split.

    Args:
        corpus: The corpus.
        size: Side of its tiles in pixels; None where it has only one.
        split: Tiles of this split; all kept tiles where None.

    Attributes:
        sensor: What batches say their sensor is.

    Raises:
        CorpusError: No kept tile is of the split.
    """

    def __init__(self, corpus: Corpus, size: int | None = None, split: str | None = None) -> None:
        self.corpus, self.sensor = corpus, corpus.sensor.name
        self.tiles = corpus.tiles(size)
        self.pairs: Pairs | None = None
        chosen = np.arange(len(self.tiles))
        if split is not None:
            chosen = chosen[self.tiles.splits == split]
            if not len(chosen) and len(self.tiles):
                there = ", ".join(sorted(set(self.tiles.splits.tolist())))
                raise CorpusError(f"'{corpus.path}' has no kept tile in split '{split}'; it has {there}")
        self.rows = chosen

    def __len__(self) -> int:
        return len(self.rows)

    def pair(self, column: str | None) -> str:
        """Keep only tiles that have a partner, and read them in pairs from now on; see `find_pairs`.

        Returns:
            How many they are, in words.

        Raises:
            CorpusError: There are none.
        """
        self.pairs = find_pairs(self.corpus, self.tiles.size, self.rows, column)
        found, every = len(self.pairs.rows), len(self.rows)
        if not found:
            raise CorpusError(
                f"'{self.corpus.path}' has no two tiles of one place for a recipe of two dates: none has one value of "
                f"'{column}' with another (--data.pairs)"
                if column
                else f"'{self.corpus.path}' has no two tiles of one place and different days for a recipe of two dates: "
                "a column of its catalogue can say which are one place, --data.pairs COLUMN"
            )
        self.rows = self.rows[self.pairs.rows]
        return f"'{self.corpus.path}': {found} of {every} tiles show a place that another date shows, and take part"

    def read(self, rows: np.ndarray, draws: Draws | None = None) -> dict[str, Any]:
        """Read some tiles.

        Args:
            rows: `(B,)` int64 in `[0, len(self))`.
            draws: Randomness of the batch; draws the other dates, and which of two is the image, where tiles are pairs.

        Returns:
            `image (B, C, H, W)` in the dtype of the file, `valid (B, 1, H, W)` bool only where some pixel is not,
            `id` and `label (B,)` int64, `gsd (B,)` float32 metres a pixel or NaN, `sensor`; `unreadable (B,)` bool only
            where a tile is, which then has no valid pixel. Of pairs also `views`: `date` holds the same, and `offset
            (B, 2)` float32, how many pixels below and to the right it lies.
        """
        if self.pairs is None or draws is None:
            return self._load(self.rows[rows])[0]
        drawn, swapped = draws("pair", 2).numpy().T
        others, offset = self.pairs.partner(rows, drawn)
        swap = swapped < 0.5
        batch, date = self._load(self.rows[np.where(swap, others, rows)], self.rows[np.where(swap, rows, others)])
        date["offset"] = torch.from_numpy(np.where(swap[:, None], -offset, offset))
        return batch | {"views": {"date": date}}

    def _load(self, *parts: np.ndarray) -> list[dict[str, Any]]:
        """Read several lists of tiles in one go."""
        rows = np.concatenate(parts)
        arrays = dict(zip(("image", "valid", "unreadable"), self._pixels(rows), strict=True))
        arrays["valid"] = arrays["valid"][:, None]
        tiles = self.tiles
        arrays |= {"id": tiles.ids[rows], "label": tiles.labels[rows], "gsd": tiles.gsds[rows]}
        batches: list[dict[str, Any]] = []
        for start in range(0, len(rows), len(parts[0])):
            part = {name: values[start : start + len(parts[0])] for name, values in arrays.items()}
            left_out = {"valid": part["valid"].all(), "unreadable": not part["unreadable"].any()}
            kept = {name: torch.from_numpy(values) for name, values in part.items() if not left_out.get(name)}
            batches.append(kept | {"sensor": self.sensor})
        return batches

    def _pixels(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pixels, validity and which tiles are unreadable; where a shard is damaged, tiles are read one by one."""
        tiles = self.tiles
        try:
            return tiles.read(rows), tiles.valid(rows), np.zeros(len(rows), bool)
        except CorpusError:
            if len(rows) == 1:
                side = (1, tiles.size, tiles.size)
                return np.zeros((1, tiles.bands, *side[1:]), tiles.dtype), np.zeros(side, bool), np.ones(1, bool)
            single = [self._pixels(rows[at : at + 1]) for at in range(len(rows))]
            image, valid, unreadable = (np.concatenate(part) for part in zip(*single, strict=True))
            return image, valid, unreadable


class StreamDataset(Dataset[dict[str, Any]]):
    """The training stream: a position in, a raw tile out; a list of positions in, one batch out.

    Args:
        sets: The tiles of each corpus.
        locate: Corpus and row of each position: `geomim.data.sampler.Stream`.
        seed: Seed of the run, that draws the partners of tiles in pairs.
    """

    def __init__(self, sets: Sequence[TileSet], locate: Locate, seed: int = 0) -> None:
        self.sets = list(sets)
        self.locate, self.seed = locate, seed

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
        position = torch.from_numpy(places)
        return self.sets[corpora[0]].read(rows, Draws(self.seed, position)) | {"position": position}


def as_is(batch: dict[str, Any]) -> dict[str, Any]:
    """Collate nothing: `StreamDataset` hands over whole batches."""
    return batch


def contracts_of(corpora: Sequence[Corpus], weights: Sequence[float]) -> tuple[dict[str, BandContract], list[str]]:
    """Band contracts of several corpora: one a sensor, with the statistics of its corpora's mixture.

    Corpora are of one sensor where name, bands and what the numbers mean are equal. Sensors of one name but different
    bands have a contract each; the second one's key says how many bands it has, or is numbered.

    Args:
        corpora: At least one.
        weights: Share of each in training, any positive scale.

    Returns:
        The contracts by a short name of their sensor, and the name of each corpus's.

    Raises:
        BandError: A band of one sensor means different things in two corpora.
    """
    groups: dict[Sensor, list[int]] = {}
    for place, corpus in enumerate(corpora):
        groups.setdefault(dataclasses.replace(corpus.sensor, nodata=None), []).append(place)
    _check_meanings({sensor: corpora[places[0]] for sensor, places in groups.items()})
    contracts: dict[str, BandContract] = {}
    keys = [""] * len(corpora)
    for sensor, places in groups.items():
        name = re.sub(r"[^\w-]", "_", sensor.name)  # a module's name has no dots
        names = itertools.chain([name, f"{name}-{len(sensor.bands)}"], (f"{name}-{n}" for n in itertools.count(2)))
        key = next(one for one in names if one not in contracts)
        contracts[key] = _join([corpora[place].contract for place in places], [weights[place] for place in places])
        for place in places:
            keys[place] = key
    return contracts, keys


def _check_meanings(firsts: dict[Sensor, Corpus]) -> None:
    for (one, first), (two, second) in itertools.combinations(firsts.items(), 2):
        for band in [band for band in one.names if one.name == two.name and band in two.names]:
            meanings = [(sensor.unit, sensor.scale, sensor.offset) for sensor in (one, two)]
            if meanings[0] != meanings[1]:
                said = ["{} = {} * number + {}".format(*meaning) for meaning in meanings]
                raise BandError(
                    f"'{first.path}' and '{second.path}' are of sensor {one.name}, but their band {band} means "
                    f"different things: {said[0]} and {said[1]}. Numbers of one sensor must mean one thing; if these "
                    "are two products, give the sensor of one another name (--sensor YAML when it is built)"
                )


def _join(contracts: Sequence[BandContract], weights: Sequence[float]) -> BandContract:
    """The statistics of a mixture of corpora of one sensor."""
    first = contracts[0]
    if len(contracts) == 1:
        return first
    share = np.array(weights, float)[:, None] / sum(weights)
    means = np.array([contract.mean for contract in contracts])
    squares = np.array([contract.std for contract in contracts]) ** 2 + means**2
    mean = (share * means).sum(0)
    std = np.sqrt(np.maximum((share * squares).sum(0) - mean**2, 0))
    origins = (
        tuple(dict.fromkeys(name for contract in contracts for name in getattr(contract, field)))
        for field in ("licences", "attributions", "corpora")
    )
    return BandContract(first.sensor, tuple(mean.tolist()), tuple(std.tolist()), *origins)
