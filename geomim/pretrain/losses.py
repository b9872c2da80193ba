"""How wrong an answer is: a value for every image, and their weighted mean.

A loss is called as `loss(prediction, answer, weight)` with `weight (B, P)` or None, and returns the loss of each image,
`(B,)`. What an image weighs is its term's to say (`Term.weigh`), before anything is predicted.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from geomim.pretrain.targets import Answer

Loss = Callable[[Tensor, Answer, Tensor | None], Tensor]


def mse(prediction: Tensor, answer: Answer, weight: Tensor | None) -> Tensor:
    """Mean squared error.

    Args:
        prediction: `(B, P, T)`.
        answer: Values `(B, P, T)` and which of them were measured.
        weight: `(B, P)`.
    """
    return _per_image((prediction.float() - answer.values).square(), answer, weight)


def smooth_l1(beta: float = 1.0, factor: float = 1.0) -> Loss:
    """Squared error up to `beta`, absolute error beyond, times `factor`; a loss like `mse`."""

    def loss(prediction: Tensor, answer: Answer, weight: Tensor | None) -> Tensor:
        error = F.smooth_l1_loss(prediction.float(), answer.values, reduction="none", beta=beta)
        return factor * _per_image(error, answer, weight)

    return loss


def _per_image(error: Tensor, answer: Answer, weight: Tensor | None) -> Tensor:
    if answer.element is None:
        patch = error.mean(-1)
    else:
        patch = (error * answer.element).sum(-1) / answer.element.sum(-1).clamp(min=1)
    if weight is None:
        return patch.mean(1)
    return (patch * weight).mean(1) / weight.mean(1).clamp(min=1e-6)


def reduce(values: Tensor, weights: Tensor, total: Tensor | None = None) -> Tensor:
    """Weighted mean over images; 0 where nothing weighs.

    Args:
        values: `(B,)` loss of each image.
        weights: `(B,)` its weight.
        total: 0-dim, what all images of the optimiser step weigh where these are only some of them: the means of all
            parts then add up to that of the whole.
    """
    total = weights.sum() if total is None else total
    return torch.where(total > 0, (values * weights).sum() / total.clamp(min=1e-12), 0.0 * values.sum())
