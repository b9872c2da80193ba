"""An encoder and windows in, a tuned task and its figures out: which task, how many steps, how good."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from inspect import signature
from pathlib import Path
from typing import Any, Literal, get_type_hints

import lightning.pytorch as pl
import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection
from torchvision.ops import box_iou

from geomim.corpus.report.pictures import composite
from geomim.errors import ConfigError
from geomim.finetune import rotated
from geomim.finetune.backbones import Encoder
from geomim.finetune.change import Change, Join
from geomim.finetune.classification import Classification
from geomim.finetune.datamodule import Cut, Samples, Windows, together
from geomim.finetune.detection import Detection, answers_for
from geomim.finetune.labels import Labels
from geomim.finetune.necks import Neck, check_name
from geomim.finetune.pictures import Drawn, Shown
from geomim.finetune.segmentation import Segmentation
from geomim.maps.walk.windows import read_window
from geomim.pretrain.half import arithmetic, computing

TASKS: dict[str, Any] = {
    "classification": Classification,
    "segmentation": Segmentation,
    "detection": Detection,
    "change": Change,
}
TASK_OF = {"class": "classification", "mask": "segmentation", "change": "change"} | dict.fromkeys(
    ("boxes", "oboxes"), "detection"
)
"""By the kind of labels, the task that learns them."""
RANDOM, PIXELS = "random initialisation", "pixel statistics"
"""What a task may start from in place of its encoder's weights: the floors."""
_SURE = 0.3  # score from which on a box is drawn


@dataclass(frozen=True)
class Model:
    """What stands on the encoder, and what the encoder is given; where None the task's own default.

    Args:
        head: One of the task's heads.
        neck: How a pyramid is made of the encoder's maps.
        channels: Width of the pyramid.
        join: How two dates meet, of change.
        class_weights: Of the loss, one a class; not of detection.
        sensor: What the images' numbers are, for the encoder.
        bands: Use these bands alone, in this order.
        image_size: Side that the encoder's positions are resampled to.
    """

    head: str | None = None
    neck: Neck | None = None
    channels: int | None = None
    join: Join | None = None
    class_weights: list[float] | None = None
    sensor: str | None = None
    bands: list[str] | None = None
    image_size: int | None = None

    def arguments(self, kind: str) -> dict[str, Any]:
        """What the task of a kind of labels is given of these.

        Raises:
            ConfigError: It takes no such argument, or its head is for another kind of boxes.
        """
        opens = {field.name for field in fields(Encoder)}
        given = {name: value for name, value in asdict(self).items() if value is not None and name not in opens}
        if kind == "oboxes":
            given.setdefault("head", "oriented")
        if kind in ("boxes", "oboxes") and "head" in given and (given["head"] == "oriented") != (kind == "oboxes"):
            raise ConfigError(
                f"model.head {given['head']}: the labels are {'rotated' if kind == 'oboxes' else 'upright'} boxes, and "
                "rotated ones are for the head oriented alone"
            )
        known = signature(made := TASKS[TASK_OF[kind]].__init__).parameters
        for name in given.keys() - known.keys():
            raise ConfigError(f"model.{name}: {TASK_OF[kind]} has none; leave it out")
        if "head" in given:  # which would be refused only after all labels are read
            check_name("model.head", given["head"], get_type_hints(made)["head"])
        return given


@dataclass(frozen=True)
class Running:
    """How long to train, and on what.

    Args:
        max_steps: Optimiser steps, in place of `training.epochs`.
        minutes: Train for so long in place of both: steps are timed first, and as many done as fill it.
        accumulate: Batches an optimiser step.
        precision: `auto` is `bf16-mixed` where hardware has it, else `32-true`.
        accelerator: `auto` takes a GPU where there is one.
        devices: How many.
        probe: Fit a linear head on a frozen encoder at once, by logistic regression, in place of steps; not of boxes.
    """

    max_steps: int | None = None
    minutes: float | None = None
    accumulate: int = 1
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    devices: int = 1
    probe: bool = False

    def __post_init__(self) -> None:
        if self.minutes is not None and self.max_steps is not None:
            raise ConfigError("run.minutes and run.max_steps both say how long to train: give one")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise ConfigError(f"run.minutes: expected above 0; given {self.minutes}")
        for name in ("max_steps", "accumulate", "devices"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"run.{name}: expected at least 1; given {value}")

    def trainer(self, steps: int = -1, *callbacks: pl.Callback) -> pl.Trainer:
        """Lightning's, for so many steps; it writes nothing."""
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its tips are not ours
        warnings.filterwarnings("ignore", module="lightning.*")
        return pl.Trainer(
            max_steps=steps,
            max_epochs=-1,
            accumulate_grad_batches=self.accumulate,
            accelerator=self.accelerator,
            devices=self.devices,
            callbacks=[_Bar(), *callbacks],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **computing(arithmetic(self.precision, self.accelerator), self.accelerator),
        )


class Tuning:
    """Tasks of one encoder, trained on windows one after another, each from the same start.

    Args:
        kind: Of the labels.
        arguments: Of the task, see `Model.arguments`, with `encoder` (an `Encoder`), `classes` and `training`.
        running: How long and on what.
        seed: Of the head, and of all that is drawn in training.
    """

    def __init__(self, kind: str, arguments: Mapping[str, Any], running: Running, seed: int) -> None:
        self.kind, self.arguments, self.running, self.seed = kind, dict(arguments), running, seed

    def make(self, start: str = "") -> Any:
        """A task that is not trained, on the encoder's weights, on `RANDOM` ones, or past it on `PIXELS`."""
        torch.manual_seed(self.seed)
        other: dict[str, Any] = {}
        if start == RANDOM:
            other = {"encoder": replace(self.arguments["encoder"], seed=self.seed)}
        elif start == PIXELS and self.kind != "class":
            other = {"head": "pixels"}
        task = TASKS[TASK_OF[self.kind]](**self.arguments | other)
        task.normalised = True  # by windows; check_scene tells what is odd
        if hasattr(task, "train_metrics"):
            task.train_metrics = MetricCollection({})  # of each step, which no logger would write
        return task

    def steps(self, windows: Windows) -> int:
        """How many fill the time that is given.

        Raises:
            ConfigError: The minutes are over before a step is trained.
        """
        own = self.running
        if own.minutes is None:
            batches = len(windows.train_dataloader())
            return own.max_steps or -(-batches // own.accumulate) * int(self.arguments["training"].epochs)
        task, watch = self.make(), _Stopwatch(min(3 * own.minutes, 20))
        task.tuning = replace(task.tuning, freeze="none" if task.tuning.freeze == "first" else task.tuning.freeze)
        own.trainer(1000, watch).fit(task, windows.train_dataloader())
        seconds = (watch.ends[-1] - watch.ends[0]) / (len(watch.ends) - 1)
        if not (count := int(60 * own.minutes / seconds)):
            raise ConfigError(f"{own.minutes:.2g} minutes a run: a step takes {seconds:.3g} s here: give more minutes")
        return count

    def train(self, windows: Windows, steps: int, start: str = "") -> Any:
        """A task after so many steps, from the encoder's weights or from `RANDOM` ones."""
        task = self.make(start)
        self.running.trainer(steps).fit(task, windows.train_dataloader())
        return task

    def test(self, task: Any, loader: DataLoader[Any]) -> Any:
        """The task, which has counted."""
        self.running.trainer().test(task, loader, verbose=False)
        return task

    def shown(self, task: Any, windows: Windows, cuts: Sequence[Cut], most: int = 24) -> list[Shown]:
        """Predictions beside the truth, of some windows."""
        some = [cuts[at] for at in np.unique(np.linspace(0, len(cuts) - 1, most).astype(int))]
        samples = Samples(windows, some, False)
        loader = DataLoader(samples, windows.batch_size, collate_fn=together)
        answers: Any = self.running.trainer().predict(task, loader)
        each = [{key: v[i] for key, v in one.items()} for one in answers for i in range(len(one["id"]))]
        found = [
            Shown(picture(windows, cut), *judged(sample, answer, windows.labels), name(windows, cut))
            for cut, sample, answer in zip(some, map(samples.__getitem__, range(len(some))), each, strict=True)
        ]
        return [one for one in found if not math.isnan(one.score)]


class _Bar(pl.Callback):
    """How far it is and the time that is left, where a terminal shows it."""

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        console = Console(stderr=True)
        self.bar = Progress(console=console, transient=True, disable=not console.is_terminal)
        self.bar.start()
        said = {"fit": "training", "test": "testing"}.get(stage, "drawing")
        self.task = self.bar.add_task(said, total=max(trainer.max_steps, 0) or None)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.bar.update(self.task, completed=trainer.global_step)

    def on_test_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.bar.update(self.task, advance=1, total=sum(trainer.num_test_batches))

    def teardown(self, *_: Any, **__: Any) -> None:
        self.bar.stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        self.bar.stop()
        if isinstance(exception, KeyboardInterrupt):
            raise exception  # Lightning would end the process with a code of its own


class _Stopwatch(pl.Callback):
    """Ends a fit after some seconds, and three steps; the first is slower than others and only starts the clock."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.ends = seconds, list[float]()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step > len(self.ends):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.ends.append(time.perf_counter())
        trainer.should_stop = len(self.ends) > 2 and self.ends[-1] - self.ends[0] > self.seconds


def picture(windows: Windows, cut: Cut) -> np.ndarray:
    """A window in colours, `(H, W, 3)` uint8, or `(2, H, W, 3)` of two dates."""
    item, found = windows.labels.items[cut.item], []
    for uri in filter(None, (item.image, item.after)):
        scene, _ = windows.open(uri)
        pixels, valid = read_window(scene, *cut[1:])
        found.append(composite(pixels, scene.sensor, valid))
    return np.stack(found) if item.after else found[0]


def name(windows: Windows, cut: Cut) -> str:
    """What a window is called on a page."""
    whole = f"{Path(windows.labels.items[cut.item].image).stem}"
    return whole if windows.labels.kind == "class" else f"{whole} {cut.top},{cut.left}"


def judged(sample: Mapping[str, Any], answer: Mapping[str, Any], labels: Labels) -> tuple[Drawn, Drawn, float]:
    """What is true of a window, what was predicted, and how good that is, from 0 to 1.

    That is the probability of the true class, the share of labelled pixels that are right (NaN of none), or F1 of boxes
    that overlap by half, without those that another window answers for.
    """
    if labels.kind == "class":
        truth, said = int(sample["label"]), int(answer["prediction"])
        return labels.classes[truth], labels.classes[said], float(answer["probability"][truth])
    if "mask" in sample:
        mask, answered = sample["mask"].numpy(), answer["prediction"].numpy()
        known = mask >= 0
        return mask, answered, float((mask == answered)[known].mean()) if known.any() else math.nan
    key, overlap = ("obox", rotated.box_iou) if "obox" in sample else ("bbox_xyxy", box_iou)
    sure = answer["score"] >= _SURE
    sure &= answers_for(answer[key].float(), sample[key], sample["beside"], overlap)
    boxes, kinds = answer[key][sure].float(), answer["label"][sure]
    hit = (overlap(boxes, sample[key]) > 0.5) & (kinds[:, None] == sample["label"])
    both = len(boxes) + len(sample[key])
    score = 2 * min(int(hit.any(0).sum()), int(hit.any(1).sum())) / both if both else 1.0
    return (sample[key].numpy(), sample["label"].numpy()), (boxes.numpy(), kinds.numpy()), score
