"""AdamW, its learning rate as a function of the step, and what each parameter has of it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from inspect import unwrap
from typing import Any

import torch
from torch import nn

from geomim.errors import ConfigError


@dataclass(frozen=True)
class Optimisation:
    """AdamW with warm-up and cosine, counted in steps.

    Args:
        base_learning_rate: Highest learning rate for 256 images a step; scaled by the images a step over all devices.
        weight_decay: Decay of matrices; biases, norms and tokens have none.
        betas: Decay of the two running moments.
        warmup: Share of the steps over which the learning rate rises.
        final: Learning rate of the last step as a share of the highest.
        layer_decay: A block's learning rate over that of the block behind it; the embedding has the lowest, decoders
            the highest. 1 for the same everywhere.
    """

    base_learning_rate: float = 1.5e-4
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: float = 0.05
    final: float = 0.0
    layer_decay: float = 1.0

    def __post_init__(self) -> None:
        shares = 0 <= self.warmup < 1 and 0 <= self.final <= 1 and 0 < self.layer_decay <= 1
        if not shares or not 0 < self.base_learning_rate < math.inf:
            raise ConfigError(
                "optimizer: expected warmup in [0, 1), final in [0, 1], layer_decay in (0, 1] and base_learning_rate "
                f"above 0; given {self.warmup}, {self.final}, {self.layer_decay} and {self.base_learning_rate}"
            )
        if not all(0 <= beta < 1 for beta in self.betas) or not 0 <= self.weight_decay < math.inf:
            raise ConfigError(
                "optimizer: expected betas in [0, 1) and weight_decay of 0 or more; given "
                f"{list(self.betas)} and {self.weight_decay}"
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


class AdamW(torch.optim.AdamW):
    """Torch's, whose step loads the compiler, a second of start-up, to be left out of graphs; ours is in none."""

    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Trainable parameters with and without weight decay, each with the `scale` of its learning rate.

    Vectors do not decay: biases, norms, and tokens, which are vectors with axes of length 1 around them. With layer
    decay (BEiT, Bao et al., ICLR 2022) block `i` of `n` has the scale `layer_decay ** (n - i)`, what embeds comes one
    further below, and all that is behind the blocks has 1. What decays of a term that starts late in training stands
    apart, with the place of its term as `late`: it must not decay before.
    """
    trained = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
    found = [match[0] if (match := _BLOCK.match(name)) else "" for name, _ in trained]
    blocks = list(dict.fromkeys(filter(None, found)))
    first = found.index(blocks[0]) if blocks else 0
    late = {f"terms.{place}.": place for place, term in enumerate(getattr(model, "terms", ())) if term.late}
    groups: dict[tuple[bool, float, int], list[nn.Parameter]] = {}
    for index, (name, parameter) in enumerate(trained):
        behind = -1 if name.startswith("encoder.") and index < first else len(blocks)
        place = blocks.index(found[index]) if found[index] else behind
        decays = sum(size > 1 for size in parameter.shape) > 1
        term = next((late[start] for start in late if decays and name.startswith(start)), -1)
        key = (decays, layer_decay ** (len(blocks) - place), term)
        groups.setdefault(key, []).append(parameter)
    return [
        {"params": one, "weight_decay": weight_decay if decays else 0.0, "scale": scale}
        | ({"late": term} if term >= 0 else {})
        for (decays, scale, term), one in sorted(groups.items(), key=lambda group: group[0], reverse=True)
    ]


def number(state: dict[str, Any], optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Number an optimiser's state by the places of parameters in the model, as shared-out weights are stored."""
    places = {one: place for place, one in enumerate(model.parameters())}
    order = [places[one] for group in optimizer.param_groups for one in group["params"]]
    state["state"] = {order[key]: values for key, values in state["state"].items()}
    for group in state["param_groups"]:
        group["params"] = [order[key] for key in group["params"]]


_BLOCK = re.compile(r"encoder\.(?:\w+\.)?(?:layers\.\d+\.)?(?:blocks\.\d+|downsample)\.")
"""A block of a plain encoder, or of a stage of a hierarchical one."""
