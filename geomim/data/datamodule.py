"""Corpora in, batches on the device out: the data side of a training run."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader

from geomim.corpus.store import Corpus
from geomim.data.augment import Augment, whole
from geomim.data.sampler import PositionBatches, Stream
from geomim.data.tiles import StreamDataset, TileSet, as_is, join_contracts
from geomim.errors import ConfigError, CorpusError
from geomim.sensors import BandContract

Batch = dict[str, Any]


class Steps(DataLoader[Batch]):
    """Micro-batches, as workers read them, together as optimiser steps of `parts`; one by one where it is None.

    Attributes:
        waited: Seconds that were spent waiting for them.
    """

    def __init__(self, *args: Any, parts: int | None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.parts, self.waited = parts, 0.0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        micro = super().__iter__()
        while self.parts:
            start = time.perf_counter()
            step = [next(micro) for _ in range(self.parts)]
            self.waited += time.perf_counter() - start
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
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(one, signal.SIG_IGN)


class TileDataModule(pl.LightningDataModule):
    """Endless batches of training tiles from one corpus or several.

    Args:
        corpus: Corpus folder, or several of one sensor.
        batch_size: Images on each device at a time; an optimiser step takes `training.accumulate` times as many.
        image_size: Side of the training image in pixels.
        size: Side of the tiles to read; needed only where a corpus holds several sizes.
        weights: Share of each corpus in training; in proportion to its tiles where not given.
        split: Train on tiles of this split.
        workers: Reading processes on each device; 0 reads in the training process.
        scale: Least and greatest share of a tile that a crop covers.
        ratio: Least and greatest width over height of a crop.
        flip: Mirror left and right at random, or also top and bottom.
        turn: Also turn by 90 degrees at random.
        seed: Seed of order and crops.

    Attributes:
        contract: Bands and statistics of what the batches hold.
        contracts: The same by the name of the sensor, as `sensor` of a batch says it.
        settings: All arguments as plain values, corpora by their content; a resumed run compares them.

    Raises:
        ConfigError: A number is out of range.
        CorpusError: A folder is no corpus, or has no tile to train on.
        BandError: The corpora differ in their bands.
    """

    def __init__(
        self,
        corpus: str | list[str],
        batch_size: int = 256,
        image_size: int = 224,
        size: int | None = None,
        weights: list[float] | None = None,
        split: str = "train",
        workers: int = 4,
        scale: tuple[float, float] = (0.2, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: Literal["horizontal", "both"] = "both",
        turn: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in zip(
            ("batch_size", "image_size", "workers"), (batch_size, image_size, workers), (1, 1, 0), strict=True
        ):
            if value < least:
                raise ConfigError(f"data.{name}: expected at least {least}; given {value}")
        if not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
            raise ConfigError(
                "data.scale and data.ratio: expected 0 < least <= greatest, and a scale of at most 1; given "
                f"{list(scale)} and {list(ratio)}"
            )
        self.corpora = [Corpus.open(path) for path in ([corpus] if isinstance(corpus, str) else corpus)]
        self.sets = [TileSet(one, size, split) for one in self.corpora]
        for one, tiles in zip(self.corpora, self.sets, strict=True):
            if not len(tiles):
                raise CorpusError(f"'{one.path}' holds no kept tile to train on: see its report for the reasons")
        self.weights = weights or [float(len(tiles)) for tiles in self.sets]
        if len(self.weights) != len(self.sets):
            raise ConfigError(f"expected one weight a corpus ({len(self.sets)}); given {len(self.weights)}")
        self.contract: BandContract = join_contracts(self.corpora, self.weights)
        self.contracts = {self.contract.sensor.name: self.contract}
        self.batch_size, self.image_size, self.workers, self.seed = batch_size, image_size, workers, seed
        self.augment = Augment(self.contract, image_size, scale, ratio, flip, turn, seed)
        locks = [one.meta.get("lock") for one in self.corpora]
        self.settings = {
            "corpus": [f"{len(tiles)} tiles of lock {lock}" for tiles, lock in zip(self.sets, locks, strict=True)],
            **{"batch_size": batch_size, "image_size": image_size, "size": size, "weights": weights, "split": split},
            **{"workers": workers, "scale": list(scale), "ratio": list(ratio), "flip": flip, "turn": turn},
            "seed": seed,
        }

    def train_dataloader(self) -> Steps:
        """Steps of raw micro-batches from the trainer's global step on; without a trainer, micro-batches."""
        trainer = self.trainer
        rank, world, steps, accumulate = 0, 1, 0, 1
        if trainer is not None:
            rank, world = trainer.global_rank, trainer.world_size
            steps, accumulate = trainer.global_step, trainer.lightning_module.accumulate
        stream = Stream(
            [len(tiles) for tiles in self.sets], self.weights, self.batch_size * world * accumulate, self.seed
        )
        return Steps(
            StreamDataset(self.sets, stream),
            parts=accumulate if trainer is not None else None,
            batch_sampler=PositionBatches(self.batch_size, rank, world, steps * accumulate),  # type: ignore[arg-type]
            collate_fn=as_is,
            num_workers=self.workers,
            # a step is asked for at once
            prefetch_factor=max(2, -(-accumulate // self.workers)) if self.workers else None,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_deaf,
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Send a micro-batch; a step stays where it is, and its micro-batches are sent one after the other."""
        return batch if isinstance(batch, list) else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment a micro-batch on the device."""
        return batch if isinstance(batch, list) else self.augment(batch)

    def pictures(self, count: int) -> Batch:
        """Some whole tiles to watch, the same every time: of the validation split where there is one.

        Args:
            count: How many at most.

        Returns:
            A normalised batch as `Augment` gives it, on the CPU; `position` counts from 0.
        """
        tiles = self.sets[0]
        if (tiles.tiles.splits == "val").any():
            tiles = TileSet(self.corpora[0], tiles.tiles.size, "val")
        rows = np.linspace(0, len(tiles) - 1, min(count, len(tiles))).astype(np.int64)
        batch = tiles.read(rows)
        shown = whole(batch["image"], batch.get("valid"), self.image_size, self.contract)
        return batch | shown | {"position": torch.arange(len(rows))}
