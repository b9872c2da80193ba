"""How wrong an answer is: a value and a weight for every image, and their mean over all ranks.

A loss is called as `loss(prediction, answer, weight)` with `weight (B, P)` or None, and returns two `(B,)` tensors:
the loss of each image and what it weighs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch import distributed as dist

from geomim.pretrain.targets import Answer

Loss = Callable[[Tensor, Answer, Tensor | None], tuple[Tensor, Tensor]]


def mse(prediction: Tensor, answer: Answer, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean squared error.

    Args:
        prediction: `(B, P, T)`.
        answer: Values `(B, P, T)` and which of them were measured.
        weight: `(B, P)`.
    """
    return _per_image((prediction.float() - answer.values).square(), answer, weight)


def _per_image(error: Tensor, answer: Answer, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    if answer.element is None:
        patch = error.mean(-1)
    else:
        patch = (error * answer.element).sum(-1) / answer.element.sum(-1).clamp(min=1)
    if weight is None:
        return patch.mean(1), patch.new_ones(patch.shape[0])
    share = weight.mean(1)
    return (patch * weight).mean(1) / share.clamp(min=1e-6), share


def reduce(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over the images of all ranks.

    DDP averages gradients over ranks, so each rank returns its sum over the mean weight of a rank: the averaged
    gradient, and the mean of what the ranks return, is that of one process with all the images. 0 where nothing weighs.

    Args:
        values: `(B,)` loss of each image.
        weights: `(B,)` its weight.
    """
    total = weights.sum().detach()
    if dist.is_available() and dist.is_initialized():
        total = total.clone()
        dist.all_reduce(total)
        total = total / dist.get_world_size()
    return torch.where(total > 0, (values * weights).sum() / total.clamp(min=1e-12), 0.0 * values.sum())
