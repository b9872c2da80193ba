"""How wrong an answer is: a value for every image, and their weighted mean.

A loss is called as `loss(prediction, answer, weight)` with `weight (B, P)` or None, and returns the loss of each image,
`(B,)`. What an image weighs is its term's to say (`Term.weigh`), before anything is predicted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from geomim.errors import ConfigError
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


@dataclass(frozen=True)
class PatchDiscrimination:
    """Tell the patches of an image apart (Latent MIM, Wei et al., ECCV 2024).

    Predictions are standardised over the image's patches, dimension by dimension; both sides are brought to unit
    length; cross-entropy over cosine / temperature with the patch itself as the right one, times 2 * temperature.
    Patches that weigh nothing are neither asked nor offered.

    Attributes:
        temperature: Divides the cosines.
        same: Patches whose targets are nearer than this cosine are not told apart, as in water; all are where None.

    Raises:
        ConfigError: The temperature is not above 0.
    """

    temperature: float = 0.2
    same: float | None = None

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ConfigError(f"method.temperature: expected a number above 0; given {self.temperature}")

    def __call__(self, prediction: Tensor, answer: Answer, weight: Tensor | None) -> Tensor:
        """Arguments as in `mse`."""
        with torch.autocast(prediction.device.type, enabled=False):
            counts = torch.ones_like(answer.values[..., :1]) if weight is None else (weight[..., None] > 0).float()
            ours, count = prediction.float(), counts.sum(1, keepdim=True)
            ours = ours - (ours * counts).sum(1, keepdim=True) / count.clamp(min=1)
            variance = (ours.square() * counts).sum(1, keepdim=True) / (count - 1).clamp(min=1)
            # a floor under root and length: predictions that are all the same have a finite gradient
            ours = F.normalize(ours / ((variance + 1e-12).sqrt() + 1e-4), dim=-1, eps=1e-3)
            right = F.normalize(answer.values, dim=-1)
            cosine = ours @ right.transpose(1, 2)
            other = counts.transpose(1, 2) > 0
            if self.same is not None:
                other = other & (right @ right.transpose(1, 2) <= self.same)
            own = torch.eye(cosine.shape[1], dtype=torch.bool, device=cosine.device)
            offered = (cosine / self.temperature).masked_fill(~(other | own), -torch.inf)
            patch = offered.logsumexp(-1) - offered.diagonal(dim1=1, dim2=2)
            return 2 * self.temperature * _mean(patch, weight)


def similarity(prediction: Tensor, answer: Answer, weight: Tensor | None) -> Tensor:
    """Squared distance of the mean cosine of an image's patches, each with each and itself, from a wanted one.

    Args:
        prediction: `(B, P, T)`.
        answer: The wanted cosine in all its values.
        weight: `(B, P)`.
    """
    unit = F.normalize(prediction.float(), dim=-1)
    mean = _mean(unit.transpose(1, 2), weight[:, None] if weight is not None else None)
    return (mean.square().sum(-1) - answer.values[:, 0, 0]).square()


def _per_image(error: Tensor, answer: Answer, weight: Tensor | None) -> Tensor:
    if answer.element is None:
        patch = error.mean(-1)
    else:
        patch = (error * answer.element).sum(-1) / answer.element.sum(-1).clamp(min=1)
    return _mean(patch, weight)


def _mean(patch: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return patch.mean(-1)
    return (patch * weight).mean(-1) / weight.mean(-1).clamp(min=1e-6)


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
