"""An objective under Lightning: optimiser, schedule, logging, and what a checkpoint says of itself."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from geomim.errors import CheckpointError, ConfigError, GeomimError
from geomim.pretrain.objective import MaskedImageModel
from geomim.randomness import Draws
from geomim.sensors import BandContract

FORMAT_VERSION = 1
"""Version of the `geomim` entry of a checkpoint."""


@dataclass(frozen=True)
class Optimisation:
    """AdamW with warm-up and cosine, counted in steps.

    Args:
        base_learning_rate: Highest learning rate for 256 images a step; scaled by the images a step over all devices.
        weight_decay: Decay of matrices; biases, norms and tokens have none.
        betas: Decay of the two running moments.
        warmup: Share of the steps over which the learning rate rises.
        final: Learning rate of the last step as a share of the highest.
    """

    base_learning_rate: float = 1.5e-4
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: float = 0.05
    final: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1 or not 0 <= self.final <= 1 or self.base_learning_rate <= 0:
            raise ConfigError(
                "optimizer: expected warmup in [0, 1), final in [0, 1] and base_learning_rate above 0; given "
                f"{self.warmup}, {self.final} and {self.base_learning_rate}"
            )

    def factor(self, step: int, steps: int) -> float:
        """Learning rate of a step as a share of the highest.

        Args:
            step: From 0.
            steps: Steps in all.
        """
        warm = round(self.warmup * steps)
        if step < warm:
            return (step + 1) / warm
        done = min(1.0, (step - warm) / max(1, steps - warm))
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Origin:
    """Where an encoder comes from, to be stored with its weights.

    Attributes:
        recipe: Name in `RECIPES`.
        recipe_args: Its arguments as plain values.
        contract: Bands and statistics of the training tiles.
        corpus: Corpus folders.
    """

    recipe: str
    recipe_args: dict[str, Any]
    contract: BandContract
    corpus: tuple[str, ...] = ()


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters with and without weight decay.

    Vectors have none: biases, norms, and tokens, which are vectors with axes of length 1 around them.
    """
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups[sum(size > 1 for size in parameter.shape) > 1].append(parameter)
    return [
        {"params": groups[True], "weight_decay": weight_decay},
        {"params": groups[False], "weight_decay": 0.0},
    ]


class PretrainModule(pl.LightningModule):
    """Trains a `MaskedImageModel`.

    Nothing in a step waits for the device: losses add up there and are read every `log_every` steps.

    Args:
        model: The objective with its encoder.
        origin: What the checkpoint says of the encoder.
        batch_size: Images a step on each device, before accumulation.
        optimisation: Learning rate, its schedule, weight decay.
        seed: Seed of every random choice.
        log_every: Steps between two rows of figures; the last step is always one.

    Attributes:
        idle: Seconds since the last log that were not spent training; left out of images/s.
        latest: The figures logged last.
    """

    def __init__(
        self,
        model: MaskedImageModel,
        origin: Origin,
        batch_size: int,
        optimisation: Optimisation = Optimisation(),
        seed: int = 0,
        log_every: int = 50,
    ) -> None:
        super().__init__()
        self.model, self.origin, self.batch_size = model, origin, batch_size
        self.optimisation, self.seed, self.log_every = optimisation, seed, log_every
        self.idle = 0.0
        self.latest: dict[str, float] = {}
        self._sums: dict[str, Tensor] = {}
        self._batches = 0
        self._mark = (0, 0.0)  # step and time of the last log

    @property
    def images_per_step(self) -> int:
        """Images an optimiser step over all devices."""
        return self.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches

    @property
    def progress(self) -> float:
        """Share of training that is done."""
        return min(1.0, self.trainer.global_step / self.trainer.max_steps)

    def configure_optimizers(self) -> Any:
        """AdamW, fused, and its schedule on steps.

        Raises:
            ConfigError: The trainer has no number of steps to spread the schedule over.
        """
        steps = self.trainer.max_steps
        if steps < 1:
            raise ConfigError("pretraining needs max_steps: every schedule is spread over it")
        settings = self.optimisation
        rate = settings.base_learning_rate * self.images_per_step / 256
        groups = parameter_groups(self.model, settings.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=rate, betas=settings.betas, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: settings.factor(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip by norm; Lightning refuses to with a fused optimiser, though bfloat16 scales no gradient."""
        if gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One micro-batch forward."""
        progress = torch.full((), self.progress, device=self.device)
        output = self.model(batch, progress, Draws(self.seed, batch["position"]))
        for name, value in {"loss": output.loss.detach(), **output.terms}.items():
            value = value.float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._batches += 1
        loss: Tensor = output.loss
        return loss

    def on_train_start(self) -> None:
        """Start the clock."""
        self._mark = (self.trainer.global_step, time.perf_counter())
        self.idle = 0.0

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log when it is time."""
        step, trainer = self.trainer.global_step, self.trainer
        due = step % self.log_every == 0 or step == trainer.max_steps
        if not due or step == self._mark[0]:
            return
        losses = self._read_losses()
        now = time.perf_counter()
        seconds = max(1e-9, now - self._mark[1] - self.idle)
        self.latest = losses | {
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "images_per_second": (step - self._mark[0]) * self.images_per_step / seconds,
            "images": float(step * self.images_per_step),
        }
        self._sums, self._batches, self._mark, self.idle = {}, 0, (step, now), 0.0
        for logger in trainer.loggers:
            logger.log_metrics(self.latest, step)

    def _read_losses(self) -> dict[str, float]:
        """Mean losses since the last log over all ranks; the one place that waits for the device.

        Raises:
            GeomimError: The loss is not finite.
        """
        if not self._batches:
            return {}
        stacked = torch.stack(list(self._sums.values())) / self._batches
        values = self.trainer.strategy.reduce(stacked, reduce_op="mean").tolist()
        losses = dict(zip(self._sums, values, strict=True))
        if not math.isfinite(losses["loss"]):
            raise GeomimError(
                f"the loss is {losses['loss']} between steps {self._mark[0]} and {self.trainer.global_step}. Try "
                "half of optimizer.base_learning_rate, training.clip=1 or training.precision=32-true, and go on with "
                "--resume last; if it is not finite from the first step, look at the corpus's means and deviations"
            )
        return losses

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the plain `geomim` entry; refuses to store weights after a loss that is not finite."""
        self._read_losses()
        checkpoint["geomim"] = self.description() | {
            "step": self.trainer.global_step,
            "progress": self.progress,
        }

    def description(self) -> dict[str, Any]:
        """What a checkpoint says of its encoder, as plain values."""
        return {
            "format_version": FORMAT_VERSION,
            "recipe": self.origin.recipe,
            "recipe_args": self.origin.recipe_args,
            "encoder": dict(self.model.encoder.config),
            "contract": self.origin.contract.to_dict(),
            "corpus": list(self.origin.corpus),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on from other weights than these.

        Raises:
            CheckpointError: The checkpoint is not geomim's, or of another recipe, encoder or band contract.
        """
        if "geomim" not in checkpoint:
            raise CheckpointError("cannot resume: the checkpoint was not written by geomim pretrain")
        theirs, ours = checkpoint["geomim"], self.description()
        if theirs["format_version"] > FORMAT_VERSION:
            raise CheckpointError(
                f"cannot resume: the checkpoint has format {theirs['format_version']}, this geomim reads "
                f"{FORMAT_VERSION}; upgrade geomim"
            )
        for key in ("recipe", "recipe_args", "encoder", "contract"):
            for name, given, expected in _differences(key, theirs[key], ours[key]):
                raise CheckpointError(
                    f"cannot resume: the checkpoint has {name} {given}, this run has {expected}; "
                    "start it under another --name, or give it the checkpoint's configuration"
                )


def _differences(name: str, one: Any, other: Any) -> Iterable[tuple[str, Any, Any]]:
    """Places where two plain values differ, by dotted name."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            yield from _differences(f"{name}.{key}", one.get(key), other.get(key))
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            yield from _differences(f"{name}[{index}]", left, right)
    elif one != other:
        yield name, one, other


class Checkpoints(pl.Callback):
    """Keeps `last.ckpt` fresh, and milestones `step-0001000.ckpt` that stay.

    A file is written whole and then renamed, so a run killed while saving resumes from the one before.

    Args:
        folder: Where they go.
        every: Steps between two `last.ckpt`.
        milestones: Number of checkpoints to keep, evenly over the run; the last step is one of them.
    """

    def __init__(self, folder: Path, every: int, milestones: int = 0) -> None:
        self.folder, self.every, self.milestones = folder, every, milestones
        self._saved = -1

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Save when it is time, once a step."""
        step, steps = trainer.global_step, trainer.max_steps
        if step == self._saved or step == 0:
            return
        kept = {round(steps * part / self.milestones) for part in range(1, self.milestones + 1)}
        names = [f"step-{step:07d}.ckpt"] if step in kept else []
        names += ["last.ckpt"] if step % self.every == 0 or step == steps else []
        self._saved = step
        for name in names:
            part = self.folder / f"{name}.part"
            trainer.save_checkpoint(part)
            if trainer.is_global_zero:
                part.replace(self.folder / name)
