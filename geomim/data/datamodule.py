"""Corpora in, batches on the device out: the data side of a training run."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader

from geomim.corpus.store import Corpus
from geomim.data.augment import Augment
from geomim.data.features import FeatureCache
from geomim.data.pruning import END, Kept, Pruning
from geomim.data.sampler import PositionBatches, Stream
from geomim.data.text import Sentences
from geomim.data.tiles import StreamDataset, TileSet, as_is, check_ranges, share_contracts
from geomim.errors import STOPS, BandError, ConfigError, CorpusError
from geomim.randomness import Draws

Batch = dict[str, Any]


class Steps(DataLoader[Batch]):
    """Micro-batches, as workers read them, together as optimiser steps of `parts`; one by one where it is None.

    Attributes:
        waited: Seconds that were spent waiting for them.
    """

    def __init__(self, *args: Any, parts: int | None, waited: float = 0.0, **options: Any) -> None:
        super().__init__(*args, **options)
        self.parts, self.waited = parts, waited

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        micro = super().__iter__()
        while self.parts:
            start = time.perf_counter()
            step = list(islice(micro, self.parts))
            self.waited += time.perf_counter() - start
            if not step:
                return
            yield step
        yield from micro

    def whole(self, number: int) -> list[Batch]:
        """Read optimiser step `number`, counted from 0, again: the micro-batches of all ranks, in order."""
        sampler: Any = self.batch_sampler
        dataset: Any = self.dataset
        count = sampler.world * (self.parts or 1)
        starts = range(number * count * sampler.size, (number + 1) * count * sampler.size, sampler.size)
        return [dataset.__getitems__(range(start, start + sampler.size)) for start in starts]


def _deaf(_: int) -> None:
    """Let a worker outlive a signal that reaches the whole group of processes: its trainer finishes the step."""
    for one in STOPS:
        signal.signal(one, signal.SIG_IGN)


class TileDataModule(pl.LightningDataModule):
    """Endless batches of training tiles from one corpus or several.

    Args:
        corpus: Corpus folder, or several; a batch is of one sensor.
        batch_size: Images on each device at a time; an optimiser step takes `training.accumulate` times as many.
        image_size: Side of the training image in pixels.
        size: Side of the tiles to read, or one a corpus; needed where a corpus holds several sizes, or one has
            another size than the others.
        weights: Share of each corpus in training; in proportion to its tiles where not given.
        split: Train on tiles of this split.
        workers: Reading processes on each device; 0 reads in the training process.
        scale: Least and greatest share of a tile that a crop covers.
        ratio: Least and greatest width over height of a crop.
        flip: Mirror left and right at random, or also top and bottom, or none of it.
        turn: Also turn by 90 degrees at random.
        seed: Seed of order and crops.
        pairs: For recipes of two dates: column of the catalogue in which a place has one value; by ground if not given.
        shift: Greatest random error in pixels between the crops of two dates, up to 8.
        jitter: Greatest random change of a band of an image, by a factor 1 -+ jitter and by -+ jitter deviations; not
            for targets in physical units, which would change as well.
        captions: For recipes with sentences: take those of these origins; of all if not given.
        bands: Train on these bands, in this order, of each corpus those that it has; on all if not given.

    Attributes:
        contracts: Bands and statistics of what the batches hold, by the name that `sensor` of a batch says.
        settings: All arguments as plain values, corpora by their content; a resumed run compares them.
        pruning: What leaves tiles out of an epoch; None where nothing does.
        notes: What may be wrong with the corpora, in sentences.

    Raises:
        ConfigError: A number is out of range, or corpora differ in tile size and `size` does not say each.
        CorpusError: A folder is no corpus, or has no tile to train on.
        BandError: A band of one sensor means different things in two corpora, or its numbers are of other ranges; or no
            corpus has a band of `bands`.
    """

    def __init__(
        self,
        corpus: str | list[str],
        batch_size: int = 256,
        image_size: int = 224,
        size: int | list[int] | None = None,
        weights: list[float] | None = None,
        split: str = "train",
        workers: int = 4,
        scale: tuple[float, float] = (0.2, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: Literal["none", "horizontal", "both"] = "both",
        turn: bool = False,
        seed: int = 0,
        pairs: str | None = None,
        shift: float = 0.0,
        jitter: float = 0.0,
        captions: list[str] | None = None,
        bands: list[str] | None = None,
    ) -> None:
        super().__init__()
        least_values = {"batch_size": (batch_size, 1), "image_size": (image_size, 1), "workers": (workers, 0)}
        for name, (value, least) in least_values.items():
            if value < least:
                raise ConfigError(f"data.{name}: expected at least {least}; given {value}")
        if not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
            raise ConfigError(
                "data.scale and data.ratio: expected 0 < least <= greatest, and a scale of at most 1; given "
                f"{list(scale)} and {list(ratio)}"
            )
        if not 0 <= shift <= 8 or not 0 <= jitter < 1:
            raise ConfigError(f"expected data.shift in [0, 8] and data.jitter in [0, 1); given {shift} and {jitter}")
        self.corpora = [Corpus.open(path) for path in ([corpus] if isinstance(corpus, str) else corpus)]
        for name, given in (("size", size), ("weight", weights)):
            if isinstance(given, list) and len(given) != len(self.corpora):
                raise ConfigError(f"expected one {name} a corpus ({len(self.corpora)}); given {len(given)}")
        sizes = size if isinstance(size, list) else [size] * len(self.corpora)
        there = dict.fromkeys(name for one in self.corpora for name in one.sensor.names)
        for name in bands or ():
            if name not in there:
                raise BandError(f"data.bands: no corpus has a band '{name}'; they have {', '.join(there)}")
        self.sets = [TileSet(one, side, split, bands) for one, side in zip(self.corpora, sizes, strict=True)]
        if not isinstance(size, list) and len({tiles.tiles.size for tiles in self.sets}) > 1:
            given = ", ".join(f"{tiles.tiles.size} in '{tiles.corpus.path}'" for tiles in self.sets)
            flag = f"--data.size '[{','.join(str(tiles.tiles.size) for tiles in self.sets)}]'"
            raise ConfigError(f"expected tiles of one size; given {given}: to train on all of them, say so with {flag}")
        for one, tiles in zip(self.corpora, self.sets, strict=True):
            if not len(tiles):
                raise CorpusError(f"'{one.path}' holds no kept tile to train on: see its report for the reasons")
        self.contracts = share_contracts(self.sets, weights or [float(len(tiles)) for tiles in self.sets])
        self.notes = check_ranges(self.sets)
        self.batch_size, self.image_size, self.workers, self.seed = batch_size, image_size, workers, seed
        self.pairs, self.weights, self.captions = pairs, weights or None, captions
        self.features: FeatureCache | None = None
        self.sentences: Sentences | None = None
        self.prepare_data_per_node = False  # all machines share one folder
        self.pruning: Pruning | None = None
        self.augment = Augment(self.contracts, image_size, scale, ratio, flip, turn, seed, jitter, shift)
        self.settings = {
            "corpus": [f"{len(tiles)} tiles of lock {tiles.corpus.meta.get('lock')}" for tiles in self.sets],
            **{"batch_size": batch_size, "image_size": image_size, "size": size, "weights": weights, "split": split},
            **{"workers": workers, "scale": list(scale), "ratio": list(ratio), "flip": flip, "turn": turn},
            **{"seed": seed, "pairs": pairs, "shift": shift, "jitter": jitter, "captions": captions},
            "bands": bands,
        }

    @property
    def gsds(self) -> dict[str, float]:
        """Metres a pixel of whole tiles as training images, the median of each sensor whose catalogues tell it."""
        own = {name: [one for one in self.sets if one.sensor == name] for name in self.contracts}
        known = {
            name: np.concatenate([one.known_gsds() * (one.tiles.size / self.augment.image_size) for one in sets])
            for name, sets in own.items()
        }
        return {name: round(float(np.median(one)), 4) for name, one in known.items() if len(one)}

    def provide(
        self,
        needs: frozenset[str],
        crop_size: int | None = None,
        teacher: Any = None,
        tokenizer: Any = None,
        few_shapes: bool = False,
    ) -> list[str]:
        """Have batches hold what a recipe needs, once, before anything is read; in sentences, what this means.

        Args:
            needs: `second`, another crop of the tile, and `date`, the same crop of another date where there is one, as
                views; `text`, a sentence of the tile.
            crop_size: Side of the training image where it is not `image_size`.
            teacher: Whose features of the tiles come with them, from its cache, which is filled before training.
            tokenizer: Of the sentences, see `Sentences`.
            few_shapes: Batches of sentences have few shapes: a compiled step is compiled anew for each.

        Raises:
            ConfigError: Settings of dates or sentences are given, and the recipe has none; or there is no such column,
                no such origin, or no room.
            CorpusError: A corpus has no pairs, or none has a sentence.
        """
        if "date" not in needs and (self.pairs or self.augment.shift):
            raise ConfigError("data.pairs and data.shift are for recipes of two dates, and this one reads one date")
        if "text" not in needs and self.captions is not None:
            raise ConfigError("data.captions is for recipes with sentences, and this one reads none")
        self.augment.second, self.augment.image_size = "second" in needs, crop_size or self.image_size
        said = self.notes + [tiles.pair(self.pairs) for tiles in self.sets if "date" in needs]
        if teacher:
            self.features = FeatureCache(teacher, self.sets, self.augment.whole, self.augment.image_size)
            said.append(self.features.said)
        if "text" in needs:
            moved = self.augment.flip != "none" or self.augment.turn
            self.sentences, self._few_shapes = Sentences(self.sets, tokenizer, self.captions, moved), few_shapes
            self._scratch = tempfile.TemporaryDirectory(prefix="geomim-")
            said += self.sentences.said
        return said

    def prepare_data(self) -> None:
        """Have a teacher's features and the tokens of sentences on disk; by the first process, while others wait."""
        if self.features and self.trainer:
            self.features.fill(self.trainer.strategy.root_device)
        if self.sentences and self.trainer:
            print(self.sentences.fill(self._tokens))

    @property
    def _tokens(self) -> Path:
        """Folder of the tokens of sentences: the run's, or without a trainer one that lives as long as this."""
        return Path(self.trainer.default_root_dir) / "tokens" if self.trainer else Path(self._scratch.name)

    def prune(self, share: float) -> list[str]:
        """Leave tiles that are learned well out with a probability, see `Pruning`; after `provide`. In words, how.

        Raises:
            ConfigError: There are several corpora.
        """
        if not share:
            return []
        if len(self.sets) > 1:
            raise ConfigError(f"training.prune goes by the epochs of one corpus; given {len(self.sets)}: leave it away")
        self.pruning = Pruning(len(self.sets[0]), share, self.seed)
        return [
            f"pruning: a tile whose last loss lies below the mean is left out of an epoch with probability {share:g}, "
            f"and weighs {1 / (1 - share):.3g} where it stays; none is in the first epoch, nor after {END:.1%} of "
            "training. A term of the loss that begins late makes all losses be forgotten. Epochs are shorter and steps "
            "hold harder tiles, so figures a step or an epoch mean something else than without. 'images' counts what "
            "is seen, 'images_skipped' what is left out"
        ]

    def train_dataloader(self) -> Steps:
        """Steps of raw micro-batches from the trainer's global step on; without a trainer, micro-batches."""
        if self.features:
            self.features.attach()
        trainer = self.trainer
        if self.sentences:
            if trainer is None:
                self.sentences.fill(self._tokens)
            self.sentences.attach(self._tokens, self._few_shapes)
        rank, world, steps, accumulate = 0, 1, 0, 1
        if trainer is not None:
            rank, world = trainer.global_rank, trainer.world_size
            steps, accumulate = trainer.global_step, trainer.lightning_module.accumulate
        block = self.batch_size * world * accumulate
        stream: Stream | Kept = Stream([len(tiles) for tiles in self.sets], self.weights, block, self.seed)
        stop = None  # only with pruning does an epoch end, and the trainer ask for the next one
        if self.pruning is not None and trainer is not None:
            stream, stop = self.pruning.begin(steps, trainer.max_steps, block)
            stop *= accumulate
        return Steps(
            StreamDataset(self.sets, stream),
            parts=accumulate if trainer is not None else None,
            batch_sampler=PositionBatches(self.batch_size, rank, world, steps * accumulate, stop),  # type: ignore[arg-type]
            collate_fn=as_is,
            num_workers=self.workers,
            # a step is asked for at once
            prefetch_factor=max(2, -(-accumulate // self.workers)) if self.workers else None,
            persistent_workers=self.workers > 0 and stop is None,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_deaf,
            waited=getattr(getattr(trainer, "train_dataloader", None), "waited", 0.0),
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Send a micro-batch; a step stays where it is, and its micro-batches are sent one after the other."""
        return batch if isinstance(batch, list) else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment a micro-batch on the device."""
        return batch if isinstance(batch, list) else self.augment(batch)

    def pictures(self, count: int) -> Batch:
        """Some whole tiles to watch, the same every time: of the first corpus, its validation split where that has two.

        Args:
            count: How many at most.

        Returns:
            A normalised batch as `Augment` gives it, on the CPU, crops where there are views; `position` counts from 0.
        """
        tiles = self.sets[0]
        if (tiles.tiles.splits == "val").sum() > 1 and tiles.pairs is None:
            tiles = TileSet(self.corpora[0], tiles.tiles.size, "val", tiles.contract.names)
            tiles.sensor = self.sets[0].sensor
        rows = np.linspace(0, len(tiles) - 1, min(count, len(tiles))).astype(np.int64)
        position = torch.arange(len(rows))
        batch = tiles.read(rows, Draws(self.seed, position)) | {"position": position}
        seen = (self.augment if self.augment.second or tiles.pairs is not None else self.augment.whole)(batch)
        return seen | ({"text": self.sentences.first(tiles, batch["id"])} if self.sentences else {})
