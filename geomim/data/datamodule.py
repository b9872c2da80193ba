"""Corpora in, batches on the device out: the data side of a training run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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


class TileDataModule(pl.LightningDataModule):
    """Endless batches of training tiles from one corpus or several.

    Args:
        corpus: Corpus folder, or several of one sensor.
        batch_size: Images a step on each device, before accumulation.
        image_size: Side of the training image in pixels.
        size: Side of the tiles to read; needed only where a corpus holds several sizes.
        weights: Share of each corpus in training; in proportion to its tiles where not given.
        split: Train on tiles of this split; on all kept tiles where a corpus does not carry it.
        workers: Reading processes on each device; 0 reads in the training process.
        scale: Least and greatest share of a tile that a crop covers.
        ratio: Least and greatest width over height of a crop.
        flip: Mirror left and right at random, or also top and bottom.
        turn: Also turn by 90 degrees at random.
        seed: Seed of order and crops.

    Attributes:
        contract: Bands and statistics of what the batches hold.

    Raises:
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
        self.corpora = [Corpus.open(path) for path in ([corpus] if isinstance(corpus, str) else corpus)]
        self.sets = [TileSet(one, size, split) for one in self.corpora]
        for one, tiles in zip(self.corpora, self.sets, strict=True):
            if not len(tiles):
                raise CorpusError(f"'{one.path}' holds no kept tile to train on: see its report for the reasons")
        self.weights = weights or [float(len(tiles)) for tiles in self.sets]
        if len(self.weights) != len(self.sets):
            raise ConfigError(f"expected one weight a corpus ({len(self.sets)}); given {len(self.weights)}")
        self.contract: BandContract = join_contracts(self.corpora, self.weights)
        self.batch_size, self.image_size, self.workers, self.seed = batch_size, image_size, workers, seed
        self.augment = Augment(self.contract, image_size, scale, ratio, flip, turn, seed)

    def train_dataloader(self) -> Iterable[Batch]:
        """Raw batches from the trainer's global step on."""
        trainer = self.trainer
        rank, world, steps, accumulate = 0, 1, 0, 1
        if trainer is not None:
            rank, world = trainer.global_rank, trainer.world_size
            steps, accumulate = trainer.global_step, trainer.accumulate_grad_batches
        stream = Stream(
            [len(tiles) for tiles in self.sets], self.weights, self.batch_size * world * accumulate, self.seed
        )
        return DataLoader(
            StreamDataset(self.sets, stream),
            batch_sampler=PositionBatches(self.batch_size, rank, world, steps * accumulate),  # type: ignore[arg-type]
            collate_fn=as_is,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment on the device."""
        return self.augment(batch)

    def pictures(self, count: int) -> Batch:
        """Some whole tiles to watch, the same every time: of the validation split where there is one.

        Args:
            count: How many at most.

        Returns:
            A normalised batch as `Augment` gives it, on the CPU; `position` counts from 0.
        """
        tiles = TileSet(self.corpora[0], self.sets[0].tiles.size, "val")
        rows = np.linspace(0, len(tiles) - 1, min(count, len(tiles))).astype(np.int64)
        batch = _normalised(tiles, rows, self.image_size, self.contract)
        return batch | {"position": torch.arange(len(rows))}


class EvaluationLoader:
    """Whole tiles in id order, scaled and normalised; iterate it as often as needed.

    Args:
        tiles: What to read.
        image_size: Side of the images in pixels.
        batch_size: Images a batch; the last may be smaller.
        contract: Bands that the encoder expects; those of the corpus where None.
        channels: Where the encoder's bands stand among the corpus's.
    """

    def __init__(
        self, tiles: TileSet, image_size: int, batch_size: int, contract: BandContract, channels: list[int]
    ) -> None:
        self.tiles, self.image_size, self.batch_size = tiles, image_size, batch_size
        self.contract, self.channels = contract, channels

    def __len__(self) -> int:
        return -(-len(self.tiles) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.tiles), self.batch_size):
            rows = np.arange(start, min(start + self.batch_size, len(self.tiles)))
            yield _normalised(self.tiles, rows, self.image_size, self.contract, self.channels)


def evaluation_loader(
    corpus: str | Corpus,
    split: str | None,
    image_size: int,
    batch_size: int = 256,
    size: int | None = None,
    contract: BandContract | None = None,
) -> EvaluationLoader:
    """Tiles of a corpus as a frozen encoder sees them.

    Args:
        corpus: Folder or opened corpus.
        split: `train`, `val`, `test`; all kept tiles where None.
        image_size: Side of the images in pixels.
        batch_size: Images a batch.
        size: Side of the tiles; needed only where the corpus holds several sizes.
        contract: Bands, means and standard deviations that the encoder was trained with; the corpus's own where None.

    Returns:
        An iterable of batches on the CPU: `image`, `id`, `label`, `sensor`, and `valid` where some pixel is not.

    Raises:
        CorpusError: The corpus has no kept tile in this split.
        BandError: The corpus lacks a band of the contract.
    """
    opened = Corpus.open(corpus) if isinstance(corpus, str) else corpus
    tiles = TileSet(opened, size)
    if split is not None:
        tiles.rows = tiles.rows[tiles.tiles.splits == split]
    if not len(tiles):
        raise CorpusError(f"'{opened.path}' has no kept tile in split '{split}'")
    contract = contract or opened.contract
    return EvaluationLoader(tiles, image_size, batch_size, contract, contract.indices(opened.sensor.bands))


def _normalised(
    tiles: TileSet, rows: np.ndarray, image_size: int, contract: BandContract, channels: list[int] | None = None
) -> Batch:
    batch = tiles.read(rows)
    image = batch["image"]
    if channels is not None and channels != list(range(image.shape[1])):
        image = image.float()[:, channels]  # torch cannot index uint16
    return batch | whole(image, batch.get("valid"), image_size, contract)
