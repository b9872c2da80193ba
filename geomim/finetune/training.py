"""How a backbone is tuned under its head: what of it trains, from which step on, and how fast."""

from __future__ import annotations

import copy
import logging
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from timm.optim._param_groups import param_groups_layer_decay
from torch import Tensor, nn
from torchmetrics import Metric

from geomim.errors import ConfigError, InputError, MissingExtraError
from geomim.finetune.backbones import Backbone, Encoder, open_backbone, write_backbone
from geomim.finetune.necks import check_name
from geomim.pretrain.optimisation import Optimisation
from geomim.sensors import BandContract

Freeze = Literal["none", "all", "first"]
_HIGH = 30  # deviations from the mean that no image has
_log = logging.getLogger(__name__)


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
        epochs: Times that `geomim finetune fit` shows the labelled images; a trainer of your own has its `max_epochs`.
        head_first: Share of the steps in which the head trains alone, of `freeze: first`.

    Raises:
        ConfigError: A value is out of its range, or two exclude each other.
    """

    freeze: Freeze = "none"
    lora: int = 0
    learning_rate: float = 5e-4
    layer_decay: float = 0.75
    weight_decay: float = 0.05
    warmup: float = 0.05
    epochs: int = 50
    head_first: float = 0.2

    def __post_init__(self) -> None:
        check_name("freeze", self.freeze, Freeze)
        shares = 0 <= self.warmup < 1 and 0 < self.layer_decay <= 1 and 0 < self.head_first < 1
        if not shares or self.learning_rate <= 0 or min(self.weight_decay, self.lora) < 0 or self.epochs < 1:
            raise ConfigError(
                "training: expected warmup in [0, 1), layer_decay in (0, 1], head_first in (0, 1), learning_rate above "
                f"0, weight_decay and lora at least 0 and epochs at least 1; given {self}"
            )
        if self.freeze == "all" and self.lora:
            raise ConfigError(f"training: freeze 'all' leaves nothing to lora {self.lora}: leave one of them out")


class Tuned(LightningModule):
    """What a task of torchgeo needs to be tuned on a backbone; stands before it among the bases of a task.

    The task's `configure_models` begins with `open_encoder` and ends with `tune`. All that is in the task and not in
    the backbone is its head. Its hyperparameters have `encoder` and `training`.

    Attributes:
        contract: Bands and numbers that images are to be given in.
        notes: What was assumed of the encoder, in sentences.
        target: What batches call the labels, see `allowed`.
        fitted_at: Metres a pixel of what it was tuned on, the median; None where that is not known.
        said: What the model answered last; torchgeo's test steps keep it to themselves.
        tally: What a test counts, over all ranks, for the task's figures.
        normalised: Images are known to be normalised by the contract; else the first ones are looked at.
        marked: The model reads NaN where a batch says that a pixel is not `valid`.
    """

    contract: BandContract
    notes: tuple[str, ...]
    target = "label"
    fitted_at: float | None = None
    said: Any
    tally: Metric
    normalised = False
    marked = False
    _moves: bool | None = None

    def allowed(self) -> tuple[float, float, str]:
        """Lowest and highest label, and both in words."""
        return -math.inf, math.inf, "numbers"

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Refuse labels that cannot be meant, while they are on the CPU; mark what is not valid.

        Raises:
            InputError: With the images and what stands there.
        """
        labels = batch.get(self.target) if isinstance(batch, Mapping) else None
        if labels is not None:
            low, high, said = self.allowed()
            if bool((wrong := ~((labels >= low) & (labels <= high))).any()):
                places = wrong.reshape(len(labels), -1).any(1).nonzero()[:3, 0].tolist()
                images = ", ".join(str(batch["id"][at]) if "id" in batch else f"{at} of the batch" for at in places)
                given = ", ".join(f"{one:g}" for one in labels[wrong].unique()[:5].tolist())
                raise InputError(f"{self.target} of image {images}: expected {said}; given {given}")
        return batch | {"image": batch["image"].where(batch["valid"], math.nan)} if self.marked else batch

    def setup(self, stage: str) -> None:
        """Refuse a datamodule that normalises for another encoder.

        Raises:
            ConfigError: Its contract has other bands or other statistics.
        """
        own, given = (getattr(one, "contract", None) for one in (self, getattr(self.trainer, "datamodule", None)))
        if own and given and (own.names, own.mean, own.divisor) != (given.names, given.mean, given.divisor):
            raise ConfigError(
                f"the windows are normalised for {', '.join(given.names)} of mean {given.mean}, and the encoder is for "
                f"{', '.join(own.names)} of mean {own.mean}: make them with the task's `contract`"
            )

    def look(self, images: Tensor) -> None:
        """Refuse other bands, and say of the first images if they hardly are normalised, as torchgeo's own are not.

        Raises:
            InputError: Their number is another.
        """
        names = self.contract.names
        if images.shape[-3] != len(names):
            raise InputError(f"expected images of {len(names)} bands ({', '.join(names)}); given {images.shape[-3]}")
        if not self.normalised:  # the one time that it waits for a device
            self.normalised = True
            low, high = images.min().item(), images.max().item()
            if 0 <= low < high or high > _HIGH:
                _log.warning(
                    "the first images have values from %.3g to %.3g, which hardly are normalised by the encoder's mean "
                    "and deviation: use geomim.finetune.registry.Normalise(task.contract) on stored numbers, as `aug` "
                    "of torchgeo's datamodules",
                    low,
                    high,
                )

    def open_encoder(self) -> nn.Module:
        """The backbone, a timm model; of a checkpoint it is made again from what that says, without any file."""
        given = self.hparams["encoder"]
        given = Encoder(given) if isinstance(given, str) else given
        plain = dict(given) if isinstance(given, Mapping) else asdict(given)
        opened = plain.pop("opened", None)
        backbone = Backbone.from_dict(opened) if opened else open_backbone(**plain)
        self.hparams["encoder"] = plain | {"opened": backbone.to_dict()}
        self.contract, self.notes = backbone.contract, backbone.notes
        return backbone.network

    def tune(self, network: Any) -> None:
        """Prepare a backbone that stands in the task; `training` is left as plain values.

        Raises:
            ConfigError: Low-rank matrices find nothing to stand beside.
        """
        given = self.hparams["training"]
        self.tuning = Training(**given) if isinstance(given, Mapping) else given
        self.hparams["training"] = asdict(self.tuning)
        if self.tuning.lora:
            add_lora(network, self.tuning.lora)
        elif self.tuning.freeze == "all":
            network.requires_grad_(False)
        self._tuned = [one for one in network.parameters() if one.requires_grad]
        self._backbone = (network.train(),)  # a tuple: no second name in the state

    def groups(self) -> list[dict[str, Any]]:
        """Parameters that train, with their learning rate and weight decay; `backbone` tells where they are.

        Block `i` of `n` has `layer_decay ** (n - i)` of the learning rate, what embeds comes one further below, and
        the head has all of it.
        """
        own, network = self.tuning, self._backbone[0]
        skip = getattr(network, "no_weight_decay", set)()
        inside = param_groups_layer_decay(network, own.weight_decay, skip, layer_decay=own.layer_decay)
        for group in inside:  # timm's last block has a scale of 1
            group |= {"lr": own.learning_rate * own.layer_decay * group.pop("lr_scale"), "backbone": True}
        known = {id(one) for one in network.parameters()}
        head = [one for one in self.parameters() if one.requires_grad and id(one) not in known]
        outside = [
            {"params": some, "lr": own.learning_rate, "weight_decay": matrix * own.weight_decay, "backbone": False}
            for matrix in (True, False)
            if (some := [one for one in head if (one.ndim > 1) == matrix])
        ]
        return inside + outside

    def configure_optimizers(self) -> Any:
        """AdamW, and a schedule by step in which the backbone's begins with its first.

        Raises:
            ConfigError: The trainer has no end to lay a schedule to, or its ranks would not agree on gradients.
        """
        first, strategy = self.tuning.freeze == "first", getattr(self.trainer.strategy, "_ddp_kwargs", {})
        if first and self.trainer.world_size > 1 and not strategy.get("find_unused_parameters"):
            raise ConfigError("training: freeze 'first' on several ranks needs ddp_find_unused_parameters_true")
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ConfigError("training: the learning rate falls to the last step: give max_epochs or max_steps")

        def factor(start: int) -> Any:
            shape = Optimisation(warmup=self.tuning.warmup)
            return lambda step: shape.factor(step - start, int(steps) - start) if step >= start else 0.0

        alone = min(max(1, round(self.tuning.head_first * steps)), int(steps) - 1)  # both have one, of two
        self._start, self._moves = alone if first else 0, None
        for parameter in self._tuned:  # an earlier run may have ended before its backbone moved
            parameter.requires_grad_(True)
        optimizer = torch.optim.AdamW(groups := self.groups(), eps=1e-12)  # the loss of few labelled pixels is small
        factors = [factor(self._start if group["backbone"] else 0) for group in groups]
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Hold the backbone still, its running statistics too, or let it go."""
        moves = bool(self._tuned) and self.trainer.global_step >= self._start
        if moves != self._moves:
            self._moves = moves
            self._backbone[0].train(moves)
            for parameter in self._tuned:
                parameter.requires_grad_(moves)

    def on_after_backward(self) -> None:
        """Refuse low-rank matrices that the network goes around, as EVA's attention does.

        Raises:
            ConfigError: Some have no gradient.
        """
        if self.tuning.lora and self._moves and any(one.grad is None for one in self._tuned):
            raise ConfigError(
                f"training: lora {self.tuning.lora} has no effect on {type(self._backbone[0]).__name__}, which reads "
                "its matrices past it: set lora to 0"
            )

    def forward(self, *given: Any) -> Any:
        """What the model answers."""
        self.look(given[0])
        answer: Any = self.model(*given)
        self.said = answer.detach() if isinstance(answer, Tensor) else None
        return answer

    def export_encoder(self, folder: str | Path) -> Path:
        """Write the encoder as it is tuned, for all that opens one; see `write_backbone`.

        Raises:
            ConfigError: The head has cut off a part of it.
            InputError: The folder holds something else.
        """
        whole, tuned = Backbone.from_dict(self.hparams["encoder"]["opened"]), copy.deepcopy(self._backbone[0])
        merge_lora(tuned)
        if lost := whole.network.load_state_dict(tuned.state_dict(), strict=False).missing_keys:
            raise ConfigError(f"'{whole.name}': the head reads it without {', '.join(lost[:6])}, which are cut off")
        return write_backbone(whole, Path(folder))

    def on_test_start(self) -> None:
        """Count from nothing."""
        if (ranks := self.trainer.world_size) > 1:
            _log.warning("a test on %d devices may count up to %d images twice: test on one", ranks, ranks - 1)
        self.tally.reset()

    def on_test_epoch_end(self) -> None:
        """Bring the counts of all ranks together."""
        super().on_test_epoch_end()
        self.tally.compute()


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
    names = [name for name in linear if {"attn", "attention", "mlp"} & set(name.split("."))]
    if not names:
        raise ConfigError(f"training: lora finds no attention and no MLP in {type(network).__name__}: set lora to 0")
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=names), network)


def merge_lora(network: nn.Module) -> None:
    """Add what low-rank matrices have learned to those beside them, in place: the timm model from before is back."""
    if "peft" not in sys.modules:
        return
    from peft.tuners.lora import LoraLayer

    found = [(name, module) for name, module in network.named_modules() if isinstance(module, LoraLayer)]
    for name, module in found:
        module.merge()
        network.set_submodule(name, module.get_base_layer())
    network.requires_grad_(True)
