"""An objective under Lightning: optimiser, schedule, logging, and what a checkpoint says of itself."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch import distributed as dist

from geomim.errors import ConfigError, GeomimError
from geomim.models.weights import FORMAT_VERSION
from geomim.pretrain.context import Context
from geomim.pretrain.objective import MaskedImageModel, Plan
from geomim.pretrain.optimisation import AdamW, Optimisation, number, parameter_groups
from geomim.pretrain.replay import keep
from geomim.pretrain.resume import changes, go_on, resumable
from geomim.pretrain.scaling import alone, local, shard, whole
from geomim.pretrain.skipped import Skipped
from geomim.pretrain.step import Step, join
from geomim.pretrain.throughput import Pace, count_flops, few, peak
from geomim.randomness import Draws
from geomim.sensors import BandContract

_DIVERGED = (
    "Try half of optimizer.base_learning_rate, training.clip=1 or training.precision=32-true, and go on with --resume "
    "last; where that ends likewise, with --resume and an earlier milestone, or anew under another --name. If it is "
    "not finite from the first step, look at the corpus's means and deviations"
)


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
        compiled: Compile encoding, decoding and losses, a graph a sensor.

    Attributes:
        pace: How fast it is; what is done `aside` is left out.
        latest: The figures logged last.
        history: What resumed runs changed: `step`, and `changed` with `[old, new]` by name.
        provenance: What else a checkpoint says of where it comes from, as plain values: `code`, `config`, `corpora`,
            `evaluation`, the scores seen last, and of a recipe with sentences `sentences`, what is said of them, and
            `sentence_files`, with their licences.
        pruning: The data module's; None where nothing is pruned.
        rehearsed: The share of training that steps stand for which will be forgotten; None where they count.
    """

    def __init__(
        self,
        model: MaskedImageModel,
        origin: Origin,
        batch_size: int,
        optimisation: Optimisation = Optimisation(),  # noqa: B008 (frozen)
        seed: int = 0,
        log_every: int = 50,
        accumulate: int = 1,
        clip: float | None = None,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model, self.origin, self.batch_size = model, origin, batch_size
        self.optimisation, self.seed, self.log_every = optimisation, seed, log_every
        self.accumulate, self.clip, self.compiled = accumulate, clip, compiled
        self.pace = Pace()
        self.latest: dict[str, float] = {}
        self.history: list[dict[str, Any]] = []
        self.provenance: dict[str, Any] = {}
        self.pruning: Any = None
        self.rehearsed: float | None = None
        self._sums: dict[str, Tensor] = {}
        self._steps = Counter[str]()  # in which each of them was asked
        self._flops: dict[Any, float] = {}  # of an image of each sensor, with the terms that were asked
        self._spent = 0.0  # FLOPs since the last log
        self._skipped = Skipped()
        self._failed = torch.zeros((), dtype=torch.int64)  # on the device: the first step that was not finite, or 0
        self._mark = (0, 0.0, 0.0)  # step, time, and time spent waiting at the last log

    @property
    def images_per_step(self) -> int:
        """Images an optimiser step over all devices."""
        return self.batch_size * self.trainer.world_size * self.accumulate

    @property
    def progress(self) -> float:
        """Share of training that is done."""
        if self.rehearsed is not None:
            return self.rehearsed
        return min(1.0, self.trainer.global_step / self.trainer.max_steps)

    @property
    def learning_rate(self) -> float:
        """That of the next step: a function of the settings and the step, whatever an optimiser was restored from."""
        settings, trainer = self.optimisation, self.trainer
        highest = settings.base_learning_rate * self.images_per_step / 256
        return highest * settings.factor(trainer.global_step, trainer.max_steps)

    def configure_model(self) -> None:
        """Share out the weights where the strategy does."""
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            shard(self.model, self.trainer.strategy.device_mesh["data_parallel"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, fused; every step sets its learning rate.

        Raises:
            ConfigError: The trainer has no number of steps to spread the schedule over.
        """
        if self.trainer.max_steps < 1:
            raise ConfigError("pretraining needs max_steps: every schedule is spread over it")
        groups = parameter_groups(self.model, self.optimisation.weight_decay, self.optimisation.layer_decay)
        return AdamW(groups, lr=0.0, betas=self.optimisation.betas, fused=True)

    def training_step(self, parts: Sequence[dict[str, Any]], batch_idx: int) -> None:
        """One optimiser step.

        Args:
            parts: Its micro-batches on this rank, as they were read. Each is sent to the device when its turn comes.
            batch_idx: Not used.
        """
        optimizer: Any = self.optimizers()
        progress = torch.full((), self.progress, device=self.device)
        begun = self.model.begin(self.progress)
        if begun and self.rehearsed is None:
            again = ", and compiled with all others anew" * self.compiled
            for name in begun:
                rank_zero_only(print)(f"step {self.trainer.global_step + 1}: '{name}' is asked from here on{again}")
            if self.pruning:
                self.pruning.forget()
        self._count(parts[0], progress)
        self._follow(progress)
        context, plans, steps, totals = self._survey(parts, progress)
        losses = []
        plain: Any = self.trainer.optimizers[0]
        plain.zero_grad()
        for left in reversed(range(len(parts))):  # the last one is on the device still
            if left < len(parts) - 1 or (left and self.compiled):  # where it was looked at, it has another graph
                context = self._receive(parts[left])
            with alone(self.trainer.strategy.model, self.model) if left else nullcontext():
                output = self._compare(context, plans[left], progress, totals, steps[left])
                with torch.autocast(self.device.type, enabled=False):
                    self.manual_backward(output.loss)
            for name, value in {"loss": output.loss.detach(), **output.terms}.items():
                self._add(name, value)
            losses.append(output.loss.detach().float())
            if self.pruning:
                self.pruning.noted.append((parts[left]["position"], output.images))
        self._steps.update(("loss", *output.terms, "gradient_norm"))
        norm = self._check(losses)
        if self.clip:
            torch.nn.utils.clip_grads_with_norm_(self.parameters(), self.clip, norm)
        for group in plain.param_groups:
            group["lr"] = self.learning_rate * group["scale"]
            if "late" in group:
                silent = self.model.terms[group["late"]].silent
                group["weight_decay"] = 0.0 if silent else self.optimisation.weight_decay
        plain.found_inf = (self._failed > 0).float()  # the fused update then leaves weights and moments as they are
        optimizer.step()

    def _survey(
        self, parts: Sequence[dict[str, Any]], progress: Tensor
    ) -> tuple[Context, list[Plan], Sequence[Step | None], Tensor]:
        """The last micro-batch, of each what is asked and the step it is part of, and what all of them weigh."""
        loader: Any = self.trainer.train_dataloader
        plans, said = [], []
        for part in parts:
            if self.rehearsed is None:
                self._skipped.note(part, loader.dataset)
            context = self._receive(part)
            plans.append(self.model.plan(context, progress))
            if self.model.shared and len(parts) > 1:
                said.append(self.model.said(context, plans[-1]))
        steps: Sequence[Step | None] = join(said) if said else [None] * len(parts)
        if steps[0]:
            self.model.survey(steps[0])
        totals = torch.stack([plan.weights.sum(1) for plan in plans]).sum(0)
        if self.trainer.world_size > 1:  # DDP averages gradients over ranks
            dist.all_reduce(totals)
            totals = totals / self.trainer.world_size
        return context, plans, steps, totals

    def _add(self, name: str, value: Tensor) -> None:
        self._sums[name] = self._sums[name] + value.float() if name in self._sums else value.float()

    def _check(self, losses: list[Tensor]) -> Tensor:
        """Norm of the gradient; a step in which it or a loss is not finite is noted on the device, on all ranks."""
        norm = whole(torch.nn.utils.get_total_norm([one.grad for one in self.parameters() if one.grad is not None]))
        self._add("gradient_norm", norm)
        bad = (~torch.stack([norm, *losses]).isfinite().all()).float()
        if self.trainer.world_size > 1:
            dist.all_reduce(bad, dist.ReduceOp.MAX)
        first = (self._failed == 0) & (bad > 0)
        self._failed = torch.where(first, self.trainer.global_step + 1, self._failed)
        return norm

    @torch.no_grad()
    def _follow(self, progress: Tensor) -> None:
        """Let targets follow the encoder; after a step that was not finite they stay as they are, like the weights."""
        model = self.model
        parts = [part for part in model.modules() if part is not model and hasattr(part, "before_step")]
        state = [local(one) for part in parts for one in part.state_dict().values()]
        before = [one.clone() for one in state]
        model.before_step(progress)
        for one, old in zip(state, before, strict=True):
            one.copy_(torch.where(self._failed > 0, old, one))

    def _count(self, part: dict[str, Any], progress: Tensor) -> None:
        """Add up the FLOPs of a step; those of an image are counted once a sensor and set of terms."""
        asked = part["sensor"], *(term.silent for term in self.model.terms)
        if asked not in self._flops:
            with self.aside():
                batch = self.trainer.strategy.batch_to_device(few(part))
                given = progress, self.images_per_step, self.accumulate > 1
                self._flops[asked] = count_flops(self.model, batch, *given)
        self._spent += self._flops[asked] * self.images_per_step

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leave out of images/s what is done meanwhile; what the device has still to do is training, so waited for."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        start = time.perf_counter()
        yield
        self.pace.idle += time.perf_counter() - start

    def _receive(self, part: dict[str, Any]) -> Context:
        """A micro-batch on the device, augmented; the same whenever it is asked for."""
        batch = self.trainer.strategy.batch_to_device(part)
        return self.model.context(batch, Draws(self.seed, batch["position"]))

    def on_train_start(self) -> None:
        """Start the clock."""
        self._compare = self.model.compare
        if self.compiled:
            torch._dynamo.config.recompile_limit = 256  # a graph a sensor, validity, set of terms, shape of sentences
            self._compare = torch.compile(self._compare, dynamic=False)
        self._failed = torch.zeros_like(self._failed, device=self.device)
        self.pace = Pace(self.trainer.global_step)
        self._mark = (self.trainer.global_step, self.pace.clock(), 0.0)

    def forget(self) -> None:
        """Have no step of a rehearsal done; weights and optimiser are not its own."""
        self.rehearsed, self._sums, self._steps, self._spent = None, {}, Counter(), 0.0
        if self.pruning:
            self.pruning.noted = []

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log when it is time."""
        trainer: Any = self.trainer
        step = trainer.global_step
        self.pace.note()
        if step % self.log_every and step != trainer.max_steps:
            return
        losses = self._read_losses()
        now, waited = self.pace.clock(), trainer.train_dataloader.waited
        seconds = max(1e-9, now - self._mark[1])
        done = step - self._mark[0]
        speed, limit = self._spent / seconds / trainer.world_size, peak(self.device)
        known = limit is not None and "bf16" in str(trainer.precision)
        self.latest = losses | {
            "learning_rate": max(group["lr"] for group in trainer.optimizers[0].param_groups),
            "images_per_second": done * self.images_per_step / seconds,
            "images": float(step * self.images_per_step),
            **(self.pruning.figures(step) if self.pruning else {}),
            "flops_per_image": self._spent / max(1, done * self.images_per_step),
            **({"mfu": speed / limit} if known and limit else {"flops_per_second": speed}),
            "wait": (waited - self._mark[2]) / seconds,
            "hours_left": self.pace.left(step, trainer.max_steps) / 3600,
        }
        self._sums, self._steps, self._mark, self._spent = {}, Counter(), (step, now, waited), 0.0
        for logger in trainer.loggers:
            logger.log_metrics(self.latest, step)

    def on_train_epoch_end(self) -> None:
        """Know all losses of an epoch before the next one begins; without pruning there is but one."""
        if self.pruning:
            self._read_losses()

    def _read_losses(self) -> dict[str, float]:
        """Mean losses since the last log over all ranks; the one place that waits for the device.

        Raises:
            GeomimError: A step was not finite; weights are those of before it. Or too many tiles cannot be read.
        """
        if not self._steps:
            return {}
        if failed := int(self._failed):
            raise GeomimError(f"{keep(self.trainer, self, failed)}. {_DIVERGED}")
        if self.pruning:
            self.pruning.read(self.trainer.world_size)
        stacked = torch.stack([total / self._steps[name] for name, total in self._sums.items()])
        trainer: Any = self.trainer
        values = trainer.strategy.reduce(stacked, reduce_op="mean").tolist()
        losses = dict(zip(self._sums, values, strict=True))
        skipped = self._skipped.count(trainer.train_dataloader.dataset.sets, trainer.world_size)
        return losses | ({"unreadable": float(skipped)} if skipped else {})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the plain `geomim` entry; the checkpoint before stays where loss or weights are not finite.

        Raises:
            GeomimError: They are not.
        """
        self._read_losses()
        # a step can ruin weights though its loss was finite
        finite = [whole(one.detach().isfinite().all()) for one in self.parameters()]
        if not bool(torch.stack(finite).all()):
            raise GeomimError(f"weights are not finite after step {self.trainer.global_step}. {_DIVERGED}")
        if not isinstance(self.trainer.strategy, ModelParallelStrategy):
            number(checkpoint["optimizer_states"][0], self.trainer.optimizers[0], self)
        if self.pruning:
            checkpoint["pruning"] = self.pruning.state_dict()
        described, step = self.description(), self.trainer.global_step
        checkpoint["geomim"] = described | {
            "step": step,
            "progress": self.progress,
            "provenance": described["provenance"] | {"images": step * self.images_per_step},
        }

    def description(self) -> dict[str, Any]:
        """What a checkpoint says of its encoder, as plain values."""
        return {
            "format_version": FORMAT_VERSION,
            "recipe": self.origin.recipe,
            "recipe_args": self.origin.recipe_args,
            "encoder": dict(self.model.encoder.config),
            **({"joint": self.model.joint.config} if self.model.joint else {}),
            "contracts": {name: contract.to_dict() for name, contract in self.origin.contracts.items()},
            "corpus": list(self.origin.corpus),
            "settings": self.origin.settings,
            "starts": {term.name: term.starts for term in self.model.terms},
            "history": self.history,
            "unreadable": self._skipped.state(),
            "provenance": self.provenance
            | {"start": list(self.model.encoder.notes), "rights": list(self.model.encoder.rights)},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on from what was trained otherwise, and keep what changes.

        Raises:
            CheckpointError: See `resumable` and `changes`.
        """
        entry = resumable(checkpoint)
        changed = changes(entry, self.description())
        go_on(self.model, entry, self.origin.settings.get("training.max_steps", 0))
        if self.pruning:
            self.pruning.load_state_dict(checkpoint["pruning"])
        self._skipped.restore(entry.get("unreadable", ()))
        known = entry.get("provenance", {})
        self.provenance.setdefault("evaluation", known.get("evaluation"))
        self.model.encoder.notes = tuple(known.get("start", ()))  # what the run started from
        self.model.encoder.rights = tuple(known.get("rights", ()))
        self.history = entry["history"] + ([{"step": entry["step"], "changed": changed}] if changed else [])
