"""What a run looks at while it trains, as the `--watch` arguments say it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from geomim.data.labelled import open_labelled
from geomim.errors import ConfigError, GeomimError, MissingExtraError
from geomim.evaluate.features import extract_all, fast_half, frozen, pixel_statistics, random_like
from geomim.evaluate.scores import PIXELS, RANDOM, majority, probe_features
from geomim.models.fitting import fitted
from geomim.models.hierarchical import Encoder
from geomim.models.inputs import ContractInput
from geomim.models.ranges import check_range
from geomim.models.weights import Loaded
from geomim.pretrain.monitor import ENCODER, MetricsTable
from geomim.sensors import BandContract
from geomim.verbs.candidate import Batches, suited


@dataclass(frozen=True)
class Watching:
    """How often to look at collapse, reconstructions and probes, and who is told besides CSV and TensorBoard.

    Args:
        every: Steps between two looks; the last step is always one.
        data: A corpus with labels, or a folder with a folder of pictures for each class: kNN and a linear probe of the
            frozen encoder are scored on it, beside random weights and pixel statistics.
        limit: Most images of each of its splits, drawn by chance and always the same.
        train_split: Split to fit on.
        test_split: Split to score on; give `val` where settings are chosen by these scores.
        wandb: Project of Weights & Biases to log to as well.
    """

    every: int = 1000
    data: str | None = None
    limit: int = 1000
    train_split: str = "train"
    test_split: str = "test"
    wandb: str | None = None

    def __post_init__(self) -> None:
        if min(self.every, self.limit) < 1:
            raise ConfigError(f"watch: expected every and limit at least 1; given {self.every} and {self.limit}")
        if self.wandb and find_spec("wandb") is None:
            raise MissingExtraError("watch.wandb needs 'wandb', which is not installed: pip install wandb")


def loggers(folder: Path, watch: Watching, config: Mapping[str, Any] | None = None) -> list[Logger]:
    """Who is told the figures: `metrics.csv`, TensorBoard, and Weights & Biases where asked for."""
    told: list[Logger] = [MetricsTable(folder / "metrics.csv"), TensorBoardLogger(folder, "tensorboard", "")]
    if watch.wandb:
        told.append(WandbLogger(folder.name, folder, project=watch.wandb, config=dict(config or {})))
    return told


@dataclass
class Probing:
    """Scores a frozen encoder on labelled images; its floors are measured once, at the first look.

    Args:
        contract: Bands and statistics that the images are brought to.
        parts: Batches to fit on, and batches to score on.
        facts: What a reader of the scores should know, as plain values.
        gsd: Metres a pixel of the images, for positions that follow them.
    """

    contract: BandContract
    parts: tuple[Batches, Batches]
    facts: dict[str, Any]
    gsd: float | None = None
    floors: list[dict[str, Any]] = field(default_factory=list, init=False)

    def __call__(self, encoder: Encoder, device: torch.device) -> dict[str, Any]:
        """The facts, and `rows` of `encoder`, `probe`, `accuracy`, `low` and `high` of its interval, `balanced`.

        Args:
            encoder: In evaluation mode, on the device. It is fitted to the contract.
            device: Where it runs.
        """
        encoder = fitted(encoder, self.contract, self.gsd)
        half = fast_half(device)
        extractors = {ENCODER: frozen(encoder.to(device), half=half)}
        if not self.floors:
            extractors |= {RANDOM: frozen(random_like(encoder, 0).to(device), half=half), PIXELS: pixel_statistics()}
        train, test = (extract_all(extractors, part, device) for part in self.parts)
        probed = [
            {key: getattr(row, key) for key in ("encoder", "probe", "accuracy", "low", "high", "balanced")}
            for name in extractors
            for row in probe_features(name, train[name], test[name], self.facts["classes"], ("knn", "linear"), [0]).rows
        ]
        self.floors = self.floors or [row for row in probed if row["encoder"] != ENCODER]
        return {**self.facts, "rows": [row for row in probed if row["encoder"] == ENCODER] + self.floors}


def probing(watch: Watching, encoder: Encoder, image_size: int) -> Probing | None:
    """The probes on `watch.data`, whose images are brought to the encoder's side; None where there is none.

    Args:
        watch: What to look at.
        encoder: What trains, with its contracts.
        image_size: Side of the training images.

    Raises:
        GeomimError: There are no labelled images, or their bands or numbers are not those of the training.
    """
    if watch.data is None:
        return None
    try:
        images = open_labelled(watch.data, watch.train_split, watch.test_split, image_size)
        loaded = Loaded(encoder, encoder.contracts, "the encoder")
        contract, gsd, said = suited(loaded, loaded.kind, images)
        prepare = ContractInput(contract, images.sensor)
        splits = images.train.some(watch.limit), images.test.some(watch.limit)
        notes = [check_range(prepare, one.sample(), images.name) for one in splits]
    except GeomimError as error:
        raise type(error)("watch.data: " + re.sub("--(train|test)-split", r"--watch.\1_split", str(error))) from error
    facts = {"data": images.name, "classes": len(images.classes), "test_split": watch.test_split}
    facts |= {"train_images": len(splits[0]), "test_images": len(splits[1])}
    facts["majority"] = majority(*(torch.from_numpy(one.labels) for one in splits)).accuracy
    facts["notes"] = [*said, *images.notes, *notes[0], *notes[1]]
    train, test = (Batches(one, prepare, image_size) for one in splits)
    return Probing(contract, (train, test), facts, gsd)
