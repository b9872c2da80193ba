"""AdamW, its learning rate as a function of the step, and what each parameter has of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

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
