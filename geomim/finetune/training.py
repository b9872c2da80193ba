"""How a backbone is tuned under its head: what of it trains, from which step on, and how fast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from timm.optim import param_groups_layer_decay
from torch import nn

from geomim.errors import ConfigError, MissingExtraError, nearest
from geomim.pretrain.optimisation import Optimisation

_PARTS = ("attn", "attention", "mlp")


@dataclass(frozen=True)
class Training:
    """AdamW with warm-up and cosine counted in steps, and what of the backbone it moves. Heads always train.

    Args:
        freeze: `none` trains the whole backbone, `all` leaves it as it is, `first` trains the head alone for a share
            of the steps and everything after.
        lora: Rank of low-rank matrices beside every matrix of attention and MLP (Hu et al., ICLR 2022), which train in
            place of the backbone; 0 for none.
        learning_rate: Highest learning rate, of the head.
        layer_decay: A block's learning rate over that of the block behind it (BEiT, Bao et al., ICLR 2022).
        weight_decay: Decay of matrices; biases, norms, tokens and positions have none.
        warmup: Share of the steps over which the learning rate rises.
        epochs: Times that the labelled images are seen.
        head_first: Share of the steps in which the head trains alone, of `freeze: first`.

    Raises:
        ConfigError: A value is out of its range, or two exclude each other.
    """

    freeze: Literal["none", "all", "first"] = "none"
    lora: int = 0
    learning_rate: float = 5e-4
    layer_decay: float = 0.75
    weight_decay: float = 0.05
    warmup: float = 0.05
    epochs: int = 50
    head_first: float = 0.2

    def __post_init__(self) -> None:
        if self.freeze not in ("none", "all", "first"):
            raise ConfigError(f"training: unknown freeze '{self.freeze}'{nearest(self.freeze, _FREEZE)}")
        shares = 0 <= self.warmup < 1 and 0 < self.layer_decay <= 1 and 0 < self.head_first < 1
        if not shares or self.learning_rate <= 0 or min(self.weight_decay, self.lora) < 0 or self.epochs < 1:
            raise ConfigError(
                "training: expected warmup in [0, 1), layer_decay in (0, 1], head_first in (0, 1), learning_rate above "
                f"0, weight_decay and lora at least 0 and epochs at least 1; given {self}"
            )
        if self.freeze == "all" and self.lora:
            raise ConfigError(
                f"training: freeze 'all' trains nothing of the backbone and lora {self.lora} trains a part of it: "
                "leave one of them out"
            )

    def factor(self, step: int, steps: int) -> float:
        """Learning rate of a step, from 0, as a share of the highest; 0 before the first."""
        return Optimisation(warmup=self.warmup).factor(step, steps) if step >= 0 else 0.0


_FREEZE = ("none", "all", "first")


class Tuning(Callback):
    """Prepares a backbone inside a task, gives the task its optimiser, and lets the backbone go at its step.

    A task makes one when its models stand, returns it from `configure_callbacks`, and `optimizers()` from
    `configure_optimizers`. All that is in the task and not in the backbone counts as its head.

    Args:
        task: Its hyperparameter `training`, a `Training` or its values, is left as plain values.
        network: The timm model inside it.

    Raises:
        ConfigError: Low-rank matrices find nothing to stand beside.
        MissingExtraError: They are asked for and peft is not installed.
    """

    def __init__(self, task: LightningModule, network: nn.Module) -> None:
        given = task.hparams["training"]
        self.training = Training(**given) if isinstance(given, Mapping) else given
        task.hparams["training"] = asdict(self.training)
        self.network = network
        if self.training.lora:
            add_lora(network, self.training.lora)
        elif self.training.freeze == "all":
            network.requires_grad_(False)
        self.trained = [one for one in network.parameters() if one.requires_grad]
        self.frozen = False

    def first_step(self, steps: int) -> int:
        """Step from which the backbone trains, of these many."""
        return round(self.training.head_first * steps) if self.training.freeze == "first" else 0

    def groups(self, task: nn.Module) -> list[dict[str, Any]]:
        """Parameters that train, with their learning rate and weight decay; those of the backbone first.

        Block `i` of `n` has `layer_decay ** (n - i)` of the learning rate, what embeds comes one further below, and
        the head has all of it.
        """
        own, decay = self.training, self.training.weight_decay
        skip = getattr(self.network, "no_weight_decay", set)()
        groups = param_groups_layer_decay(self.network, decay, skip, layer_decay=own.layer_decay)
        inside = {id(one) for one in self.network.parameters()}
        head = [one for one in task.parameters() if one.requires_grad and id(one) not in inside]
        return [
            {
                "params": group["params"],
                "lr": own.learning_rate * own.layer_decay * group["lr_scale"],  # timm's last block has a scale of 1
                "weight_decay": group["weight_decay"],
                "backbone": True,
            }
            for group in groups
        ] + [
            {"params": some, "lr": own.learning_rate, "weight_decay": by, "backbone": False}
            for some, by in (([p for p in head if p.ndim > 1], decay), ([p for p in head if p.ndim < 2], 0.0))
            if some
        ]

    def optimizers(self, task: LightningModule) -> dict[str, Any]:
        """What `configure_optimizers` returns.

        Raises:
            ConfigError: The trainer has no end that a schedule could be laid out to.
        """
        steps = task.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ConfigError("training: the learning rate falls to the last step: give max_epochs or max_steps")
        steps, first = int(steps), self.first_step(int(steps))
        groups = self.groups(task)

        def factor(start: int) -> Any:
            return lambda step: self.training.factor(step - start, steps - start)

        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer := torch.optim.AdamW(groups, weight_decay=0.0),
            [factor(first if group["backbone"] else 0) for group in groups],
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse ranks that would not agree on the backbone's gradients."""
        found = getattr(trainer.strategy, "_ddp_kwargs", {}).get("find_unused_parameters", False)
        if self.training.freeze == "first" and trainer.world_size > 1 and not found:
            raise ConfigError(
                "training: freeze 'first' on several ranks needs strategy ddp_find_unused_parameters_true"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Hold the backbone still, its running statistics too, or let it go."""
        late = trainer.global_step < self.first_step(int(trainer.estimated_stepping_batches))
        if (frozen := late or not self.trained) != self.frozen:
            self.frozen = frozen
            self.network.train(not frozen)
            for parameter in self.trained:
                parameter.requires_grad_(not frozen)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse low-rank matrices that the network goes around, as EVA's attention does.

        Raises:
            ConfigError: Some have no gradient.
        """
        if self.training.lora and not self.frozen:
            silent = [name for name, one in self.network.named_parameters() if one.requires_grad and one.grad is None]
            if silent:
                raise ConfigError(
                    f"training: lora has no effect on {type(self.network).__name__}, which reads the matrices past it "
                    f"({silent[0]}{f' and {len(silent) - 1} more' if silent[1:] else ''}): use freeze 'first' or 'none'"
                )


def add_lora(network: nn.Module, rank: int) -> None:
    """Put low-rank matrices beside all of attention and MLP, in place; they add nothing before they are trained.

    Args:
        network: A timm model; all else in it stops training.
        rank: Their rank; the scale of what they add is 1.

    Raises:
        ConfigError: It has no such matrix, as convolutional networks.
        MissingExtraError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingExtraError("lora needs peft: pip install 'geomim[finetune]'") from error
    linear = (name for name, module in network.named_modules() if isinstance(module, nn.Linear))
    names = [name for name in linear if any(part in _PARTS for part in name.split("."))]
    if not names:
        raise ConfigError(f"training: lora finds no attention and no MLP in {type(network).__name__}: set lora to 0")
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=names), network)


def merge_lora(network: nn.Module) -> None:
    """Add what low-rank matrices have learned to those beside them, in place: the timm model from before is back."""
    from peft.tuners.lora import LoraLayer

    found = [(name, module) for name, module in network.named_modules() if isinstance(module, LoraLayer)]
    for name, module in found:
        module.merge()  # type: ignore[operator]
        network.set_submodule(name, module.get_base_layer())
    network.requires_grad_(True)
