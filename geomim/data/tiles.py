"""Batches of raw tiles, read in one go and in the numbers of the file."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.utils.data import Dataset

from geomim.corpus.pairs import Pairs, find_pairs
from geomim.corpus.store import Corpus
from geomim.data.pruning import Kept
from geomim.data.sampler import Stream
from geomim.errors import BandError, CorpusError
from geomim.randomness import Draws
from geomim.sensors import BandContract, Sensor, match_bands


class TileSet:
    """The tiles of one corpus that take part: one size, one split.

    Args:
        corpus: The corpus.
        size: Side of its tiles in pixels; None where it has only one.
        split: Tiles of this split; all kept tiles where None.
        bands: Those of these bands that the corpus has, in this order; all of its own where None.

    Attributes:
        contract: The bands that are read, and their statistics.

    Raises:
        CorpusError: No kept tile is of the split.
        BandError: The corpus has none of the bands.
    """

    def __init__(
        self, corpus: Corpus, size: int | None = None, split: str | None = None, bands: Sequence[str] | None = None
    ) -> None:
        self.corpus, self.sensor, self.contract = corpus, corpus.sensor.name, corpus.contract
        self._places: list[int] | None = None
        if bands is not None:
            own = [name for name in bands if name in corpus.sensor.names]
            if not own:
                there = ", ".join(corpus.sensor.names)
                raise BandError(f"data.bands: '{corpus.path}' has none of {', '.join(bands)}; it has {there}")
            self.contract, self._places = corpus.contract.select(own), match_bands(own, corpus.sensor.bands)
        self.tiles = corpus.tiles(size)
        self.contract = dataclasses.replace(self.contract, dtype=self.tiles.dtype.name)
        self.pairs: Pairs | None = None
        self.features: tuple[Path, tuple[int, ...]] | None = None  # file and shape, see `FeatureCache`
        self.text: Callable[[np.ndarray, Draws], dict[str, torch.Tensor]] | None = None  # see `geomim.data.text`
        chosen = np.arange(len(self.tiles))
        if split is not None:
            chosen = chosen[self.tiles.splits == split]
            if not len(chosen) and len(self.tiles):
                there = ", ".join(sorted(set(self.tiles.splits.tolist())))
                raise CorpusError(f"'{corpus.path}' has no kept tile in split '{split}'; it has {there}")
        self.rows = chosen

    def known_gsds(self) -> np.ndarray:
        """Metres a pixel of those of its tiles whose row in the catalogue tells them."""
        own = pc.field("id").isin(pa.array(self.tiles.ids[self.rows]))
        return self.corpus.table(["gsd"], where=own)["gsd"].drop_null().to_numpy()

    def __len__(self) -> int:
        return len(self.rows)

    def pair(self, column: str | None) -> str:
        """Keep only tiles that have a partner, see `find_pairs`, and read pairs from now on; in words, how many.

        Raises:
            CorpusError: There are none.
        """
        self.pairs = find_pairs(self.corpus, self.tiles.size, self.rows, column)
        found, every, path = len(self.pairs.rows), len(self.rows), self.corpus.path
        if not found:
            alike = f"equal values of '{column}'" if column else "one ground and different days"
            raise CorpusError(
                f"'{path}' has no two tiles of {alike}, and the recipe reads two dates: say which are one place with a "
                "column of the catalogue, --data.pairs COLUMN"
            )
        self.rows = self.rows[self.pairs.rows]
        return f"'{path}': {found} of {every} tiles take part, those of a place that another date shows"

    def read(self, rows: np.ndarray, draws: Draws | None = None) -> dict[str, Any]:
        """Read some tiles.

        Args:
            rows: `(B,)` int64 in `[0, len(self))`.
            draws: Where tiles are pairs: randomness that chooses the other dates, and which of two is the image.

        Returns:
            `image (B, C, H, W)` in the dtype of the file, `valid (B, 1, H, W)` bool only where some pixel is not,
            `id` and `label (B,)` int64, `gsd (B,)` float32 metres a pixel or NaN, `sensor`; `unreadable (B,)` bool only
            where a tile is, and has no valid pixel; `teacher (B, T, D)` float16 where `features` are. Of pairs also
            `views`: `date` is the same, and has the `offset` of `geomim.data.augment.boxes_on_both`.
        """
        if self.pairs is None or draws is None:
            return self._load(self.rows[rows])[0]
        others, offset = self.pairs.partner(rows, draws("pair").numpy())
        swap = draws("pair/swap").numpy() < 0.5
        batch, date = self._load(self.rows[np.where(swap, others, rows)], self.rows[np.where(swap, rows, others)])
        date["offset"] = torch.from_numpy(np.where(swap[:, None], -offset, offset))
        return batch | {"views": {"date": date}}

    def _load(self, *parts: np.ndarray) -> list[dict[str, Any]]:
        """Read several lists of tiles, equally long, in one go."""
        tiles, batches = self.tiles, []
        read = [np.split(values, len(parts)) for values in self._pixels(np.concatenate(parts))]
        for rows, image, valid, unreadable in zip(parts, *read, strict=True):
            batch = {"image": image, "id": tiles.ids[rows], "label": tiles.labels[rows], "gsd": tiles.gsds[rows]}
            batch |= {} if valid.all() else {"valid": valid[:, None]}
            batch |= {"unreadable": unreadable} if unreadable.any() else {}
            if self.features:  # opened anew: an open map would be sent to workers as its content
                kept = np.memmap(self.features[0], np.float16, "r", shape=self.features[1])
                batch["teacher"] = np.asarray(kept[np.searchsorted(self.rows, rows)])
            batches.append({name: torch.from_numpy(one) for name, one in batch.items()} | {"sensor": self.sensor})
        return batches

    def _pixels(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pixels, validity, and what is unreadable; where a shard is damaged, tiles are read one by one."""
        tiles, count = self.tiles, len(rows)
        try:
            return self._picked(tiles.read(rows)), tiles.valid(rows), np.zeros(count, bool)
        except CorpusError:
            image = np.zeros((count, tiles.bands, tiles.size, tiles.size), tiles.dtype)
            valid, unreadable = np.zeros((count, tiles.size, tiles.size), bool), np.ones(count, bool)
        for one in range(count):
            with contextlib.suppress(CorpusError):
                image[one], valid[one], unreadable[one] = tiles.read(rows[[one]])[0], tiles.valid(rows[[one]])[0], False
        return self._picked(image), valid, unreadable

    def _picked(self, image: np.ndarray) -> np.ndarray:
        return image if self._places is None else image[:, self._places]


class StreamDataset(Dataset[dict[str, Any]]):
    """The training stream: a position in, a raw tile out; a list of positions in, one batch out.

    Args:
        sets: The tiles of each corpus.
        stream: Corpus and row of each position.
    """

    def __init__(self, sets: Sequence[TileSet], stream: Stream | Kept) -> None:
        self.sets, self.stream = list(sets), stream

    def __getitem__(self, position: int) -> dict[str, Any]:
        return self.__getitems__([position])

    def __getitems__(self, positions: Sequence[int]) -> dict[str, Any]:
        """Read the batch at some positions, which must lie in one block of the stream.

        Returns:
            What `TileSet.read` returns, `position (B,)` int64, where tiles are left out `weight (B,)`, and where they
            have sentences `text`, see `geomim.data.text.Drawing`.
        """
        places = np.asarray(positions, np.int64)
        corpora, rows = self.stream(places)
        assert (corpora == corpora[0]).all(), "a batch reaches over the edge of a block"
        position = torch.from_numpy(places)
        tiles, draws = self.sets[corpora[0]], Draws(self.stream.seed, position)
        batch = tiles.read(rows, draws) | {"position": position}
        if tiles.text:  # of what was read: of a pair it may be the other one
            shown = np.searchsorted(tiles.rows, np.searchsorted(tiles.tiles.ids, batch["id"].numpy()))
            batch["text"] = tiles.text(shown, draws)
        return batch | ({"weight": self.stream.weights[rows]} if isinstance(self.stream, Kept) else {})


def as_is(batch: dict[str, Any]) -> dict[str, Any]:
    """Collate nothing: `StreamDataset` hands over whole batches."""
    return batch


_LESS = 8  # what varies so much less in all its bands is near a constant once normalised with the other


def share_contracts(sets: Sequence[TileSet], weights: Sequence[float]) -> dict[str, BandContract]:
    """Band contracts of several corpora by a short name: one a sensor, with the statistics of its corpora's mixture.

    Args:
        sets: Their tiles; each learns the name of its contract. One sensor are equal names, bands and meanings.
        weights: Share of each in training, any positive scale.

    Raises:
        BandError: A band of one sensor means different things in two corpora.
    """
    groups: dict[Sensor, list[int]] = {}
    for place, tiles in enumerate(sets):
        groups.setdefault(dataclasses.replace(tiles.contract.sensor, nodata=None), []).append(place)
    for one, two in itertools.combinations(groups, 2):
        for band in [band for band in one.names if one.name == two.name and band in two.names]:
            said, other = ("{} = {} * number + {}".format(*s.select([band]).meaning(0)) for s in (one, two))
            if said != other:
                first, second = (sets[groups[sensor][0]].corpus.path for sensor in (one, two))
                raise BandError(
                    f"band {band} of {one.name} is {said} in '{first}', and {other} in '{second}'; where these are two "
                    "products, build one with a sensor of another name (--sensor YAML)"
                )
    contracts: dict[str, BandContract] = {}
    for sensor, places in groups.items():
        name = re.sub(r"[^\w-]", "_", sensor.name)  # a module's name has no dots
        names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        key = next(one for one in names if one not in contracts)
        contracts[key] = _join([sets[place].contract for place in places], [weights[place] for place in places])
        for place in places:
            sets[place].sensor = key
    return contracts


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
    names = ((one.licences, one.attributions, one.corpora) for one in contracts)
    origins = [tuple(dict.fromkeys(itertools.chain(*every))) for every in zip(*names, strict=True)]
    dtypes = {one.dtype for one in contracts}
    dtype = dtypes.pop() if len(dtypes) == 1 else None
    return BandContract(first.sensor, tuple(mean.tolist()), tuple(std.tolist()), *origins, dtype)


def check_ranges(sets: Sequence[TileSet]) -> list[str]:
    """Compare the numbers of corpora that share a contract: together, one of a far smaller range comes to nothing.

    Returns:
        What may be wrong, in sentences.

    Raises:
        BandError: Pictures of 8 bits share one with numbers of another range.
    """
    said, way_out = [], "build one of them with a sensor of another name (--sensor YAML), for statistics of its own"
    for one, two in itertools.permutations(sets, 2):
        own, other = one.contract, two.contract
        if one.sensor != two.sensor:
            continue
        less = all(_LESS * std < wide for std, wide in zip(own.std, other.std, strict=True))
        beyond = own.dtype == "uint8" and (max(other.mean) > 255 or max(other.std) > 127.5)  # what 8 bits cannot be
        if (less or beyond) and own.dtype != other.dtype and "uint8" in (own.dtype, other.dtype):
            ranges = " and ".join(
                f"'{of.corpus.path}' holds {of.contract.dtype} of mean {max(of.contract.mean):.4g} and std "
                f"{max(of.contract.std):.4g}"
                for of in (one, two)
            )
            raise BandError(f"both are of sensor '{own.sensor.name}', and of other ranges: {ranges}: {way_out}")
        if less:
            said.append(
                f"'{one.corpus.path}' varies more than {_LESS} times less than '{two.corpus.path}' in every band, and "
                f"both are normalised alike, as '{one.sensor}': where their numbers mean different things, {way_out}"
            )
    return said
