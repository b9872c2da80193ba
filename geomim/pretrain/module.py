"""An objective under Lightning: optimiser, schedule, logging, and what a checkpoint says of itself."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from geomim.errors import ConfigError, GeomimError
from geomim.models.weights import FORMAT_VERSION
from geomim.pretrain.context import Context
from geomim.pretrain.objective import MaskedImageModel
from geomim.pretrain.resume import changes
from geomim.pretrain.signals import Signals
from geomim.randomness import Draws
from geomim.sensors import BandContract

_DIVERGED = (
    "Try half of optimizer.base_learning_rate, training.clip=1 or training.precision=32-true, and go on with --resume "
    "last; where that ends likewise, with --resume and an earlier milestone, or anew under another --name. If it is "
    "not finite from the first step, look at the corpus's means and deviations"
)


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
        contracts: Bands and statistics of the training tiles, by the name of their sensor.
        corpus: Corpus folders.
        settings: How it is trained, as plain values by the names of the flags.
    """

    recipe: str
    recipe_args: dict[str, Any]
    contracts: dict[str, BandContract]
    corpus: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)


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

    A batch of the trainer is an optimiser step: the micro-batches that it is divided into. What all of them weigh on
    all ranks is known before the first gradient, so however a step is divided, its gradient is the same.
    Nothing in a step waits for the device: losses add up there and are read every `log_every` steps.

    Args:
        model: The objective with its encoder.
        origin: What the checkpoint says of the encoder.
        batch_size: Images a micro-batch on each device.
        optimisation: Learning rate, its schedule, weight decay.
        seed: Seed of every random choice.
        log_every: Steps between two rows of figures; the last step is always one.
        accumulate: Micro-batches a step.
        clip: Greatest norm of the gradient; not clipped where None.

    Attributes:
        idle: Seconds since the last log that were not spent training; left out of images/s.
        latest: The figures logged last.
        history: What resumed runs changed: `step`, and `changed` with `[old, new]` by name.
        provenance: What else a checkpoint says of where it comes from, as plain values: `code`, `config`, `corpora`,
            and `evaluation`, the scores seen last.
    """

    def __init__(
        self,
        model: MaskedImageModel,
        origin: Origin,
        batch_size: int,
        optimisation: Optimisation = Optimisation(),
        seed: int = 0,
        log_every: int = 50,
        accumulate: int = 1,
        clip: float | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model, self.origin, self.batch_size = model, origin, batch_size
        self.optimisation, self.seed, self.log_every = optimisation, seed, log_every
        self.accumulate, self.clip = accumulate, clip
        self.idle = 0.0
        self.latest: dict[str, float] = {}
        self.history: list[dict[str, Any]] = []
        self.provenance: dict[str, Any] = {}
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self._mark = (0, 0.0)  # step and time of the last log

    @property
    def images_per_step(self) -> int:
        """Images an optimiser step over all devices."""
        return self.batch_size * self.trainer.world_size * self.accumulate

    @property
    def progress(self) -> float:
        """Share of training that is done."""
        return min(1.0, self.trainer.global_step / self.trainer.max_steps)

    @property
    def learning_rate(self) -> float:
        """That of the next step: a function of the settings and the step, whatever an optimiser was restored from."""
        settings, trainer = self.optimisation, self.trainer
        highest = settings.base_learning_rate * self.images_per_step / 256
        return highest * settings.factor(trainer.global_step, trainer.max_steps)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, fused; every step sets its learning rate.

        Raises:
            ConfigError: The trainer has no number of steps to spread the schedule over.
        """
        if self.trainer.max_steps < 1:
            raise ConfigError("pretraining needs max_steps: every schedule is spread over it")
        groups = parameter_groups(self.model, self.optimisation.weight_decay)
        return torch.optim.AdamW(groups, lr=0.0, betas=self.optimisation.betas, fused=True)

    def training_step(self, parts: Sequence[dict[str, Any]], batch_idx: int) -> None:
        """One optimiser step.

        Args:
            parts: Its micro-batches on this rank, as they were read. Each is sent to the device when its turn comes.
            batch_idx: Not used.
        """
        optimizer: Any = self.optimizers()
        progress = torch.full((), self.progress, device=self.device)
        self.model.before_step(progress)
        plans = []
        for part in parts:
            context = self._receive(part)
            plans.append(self.model.plan(context, progress))
        totals = torch.stack([plan.weights.sum(1) for plan in plans]).sum(0)
        if self.trainer.world_size > 1:  # DDP averages gradients over ranks
            dist.all_reduce(totals)
            totals = totals / self.trainer.world_size
        plain = self.trainer.optimizers[0]
        plain.zero_grad()
        for left in reversed(range(len(parts))):  # the last one is on the device still
            context = context if left == len(parts) - 1 else self._receive(parts[left])
            # while gradients only add up, ranks keep theirs to themselves
            ddp = self.trainer.strategy.model
            with ddp.no_sync() if left and isinstance(ddp, DistributedDataParallel) else nullcontext():
                output = self.model.compare(context, plans[left], progress, totals)
                with torch.autocast(self.device.type, enabled=False):
                    self.manual_backward(output.loss)
            for name, value in {"loss": output.loss.detach(), **output.terms}.items():
                self._sums[name] = self._sums[name] + value.float() if name in self._sums else value.float()
        self._steps += 1
        if self.clip:
            torch.nn.utils.clip_grad_norm_(self.parameters(), self.clip)
        for group in plain.param_groups:
            group["lr"] = self.learning_rate
        optimizer.step()

    def _receive(self, part: dict[str, Any]) -> Context:
        """A micro-batch on the device, augmented; the same whenever it is asked for."""
        batch = self.trainer.strategy.batch_to_device(part)
        return self.model.context(batch, Draws(self.seed, batch["position"]))

    def on_train_start(self) -> None:
        """Start the clock."""
        self._mark = (self.trainer.global_step, time.perf_counter())
        self.idle = 0.0

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log when it is time."""
        step, trainer = self.trainer.global_step, self.trainer
        if step % self.log_every and step != trainer.max_steps:
            return
        losses = self._read_losses()
        now = time.perf_counter()
        seconds = max(1e-9, now - self._mark[1] - self.idle)
        self.latest = losses | {
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "images_per_second": (step - self._mark[0]) * self.images_per_step / seconds,
            "images": float(step * self.images_per_step),
        }
        self._sums, self._steps, self._mark, self.idle = {}, 0, (step, now), 0.0
        for logger in trainer.loggers:
            logger.log_metrics(self.latest, step)

    def _read_losses(self) -> dict[str, float]:
        """Mean losses since the last log over all ranks; the one place that waits for the device.

        Raises:
            GeomimError: The loss is not finite.
        """
        if not self._steps:
            return {}
        stacked = torch.stack(list(self._sums.values())) / self._steps
        values = self.trainer.strategy.reduce(stacked, reduce_op="mean").tolist()
        losses = dict(zip(self._sums, values, strict=True))
        if not math.isfinite(losses["loss"]):
            where = f"between steps {self._mark[0]} and {self.trainer.global_step}"
            raise GeomimError(f"the loss is {losses['loss']} {where}. {_DIVERGED}")
        return losses

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the plain `geomim` entry; the checkpoint before stays where loss or weights are not finite.

        Raises:
            GeomimError: They are not.
        """
        self._read_losses()
        # a step can ruin weights though its loss was finite
        if not bool(torch.stack([one.detach().isfinite().all() for one in self.parameters()]).all()):
            raise GeomimError(f"weights are not finite after step {self.trainer.global_step}. {_DIVERGED}")
        described, step = self.description(), self.trainer.global_step
        checkpoint["geomim"] = described | {
            "step": step,
            "progress": self.progress,
            "provenance": described["provenance"]
            | {"images": step * self.images_per_step, "start": list(self.model.encoder.notes)},
        }

    def description(self) -> dict[str, Any]:
        """What a checkpoint says of its encoder, as plain values."""
        return {
            "format_version": FORMAT_VERSION,
            "recipe": self.origin.recipe,
            "recipe_args": self.origin.recipe_args,
            "encoder": dict(self.model.encoder.config),
            "contracts": {name: contract.to_dict() for name, contract in self.origin.contracts.items()},
            "corpus": list(self.origin.corpus),
            "settings": self.origin.settings,
            "history": self.history,
            "provenance": self.provenance,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on from what was trained otherwise, and keep what changes.

        Raises:
            CheckpointError: See `changes`.
        """
        changed = changes(checkpoint.get("geomim"), self.description())
        entry = checkpoint["geomim"]
        self.provenance.setdefault("evaluation", entry.get("provenance", {}).get("evaluation"))
        self.history = entry["history"] + ([{"step": entry["step"], "changed": changed}] if changed else [])


class Checkpoints(pl.Callback):
    """Keeps `last.ckpt` fresh, and milestones `step-0001000.ckpt` that stay.

    A file is written whole and then renamed, so a run killed while saving resumes from the one before.

    Args:
        folder: Where they go.
        every: Steps between two `last.ckpt`.
        milestones: Number of checkpoints to keep, evenly over the run; the last step is one of them.
        signals: Where they ask to stop, `last.ckpt` is written and the run ends.
    """

    def __init__(self, folder: Path, every: int, milestones: int = 0, signals: Signals | None = None) -> None:
        self.folder, self.every, self.milestones = folder, every, milestones
        self.signals = signals or Signals()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Save when it is time."""
        step, steps = trainer.global_step, trainer.max_steps
        kept = {round(steps * part / self.milestones) for part in range(1, self.milestones + 1)}
        stop = self.signals.agreed(trainer.world_size) and step < steps
        if step in kept:
            self._save(trainer, f"step-{step:07d}.ckpt")
        if step % self.every == 0 or step == steps or stop:
            self._save(trainer, "last.ckpt")
        trainer.should_stop = trainer.should_stop or stop

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        part = self.folder / f"{name}.part"
        try:
            trainer.save_checkpoint(part)
            if trainer.is_global_zero:
                part.replace(self.folder / name)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise GeomimError(
                f"cannot save '{self.folder / name}' at step {trainer.global_step}: {error.strerror or error}. Earlier "
                "checkpoints are as they were: make room and go on with --resume last"
            ) from error
