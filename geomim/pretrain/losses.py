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


def l1(prediction: Tensor, answer: Answer, weight: Tensor | None) -> Tensor:
    """Mean absolute error; arguments as of `mse`."""
    return _per_image((prediction.float() - answer.values).abs(), answer, weight)


def smooth_l1(beta: float = 1.0, factor: float = 1.0) -> Loss:
    """Squared error up to `beta`, absolute error beyond, times `factor`; a loss like `mse`."""

    def loss(prediction: Tensor, answer: Answer, weight: Tensor | None) -> Tensor:
        error = F.smooth_l1_loss(prediction.float(), answer.values, reduction="none", beta=beta)
        return factor * _per_image(error, answer, weight)

    return loss


def discriminate(
    prediction: Tensor, answer: Answer, weight: Tensor | None, temperature: float = 0.2, same: float | None = None
) -> Tensor:
    """Tell the patches of an image apart (patch discrimination of Latent MIM, Wei et al., ECCV 2024).

    Predictions are standardised over the image's patches, each dimension by itself; then cross-entropy over the cosines
    with all targets / temperature, times 2 * temperature. Patches that weigh nothing are neither asked nor offered.

    Args:
        prediction: `(B, P, T)`.
        answer: Values `(B, P, T)`.
        weight: `(B, P)`.
        temperature: Divides the cosines.
        same: Patches with targets nearer than this cosine are not told apart; all are where None.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        ours, right = prediction.float(), F.normalize(answer.values, dim=-1)
        kept = torch.ones_like(ours[..., :1]) if weight is None else (weight > 0).float().unsqueeze(-1)
        count = kept.sum(1, keepdim=True)
        ours = ours - (ours * kept).sum(1, keepdim=True) / count.clamp(min=1)
        variance = (ours.square() * kept).sum(1, keepdim=True) / (count - 1).clamp(min=1)
        # a floor under root and length: predictions that are all the same have a finite gradient
        ours = F.normalize(ours / ((variance + 1e-12).sqrt() + 1e-4), dim=-1, eps=1e-3)
        logits = ours @ right.transpose(1, 2) / temperature
        apart = kept.transpose(1, 2) > 0
        if same is not None:
            apart = apart & (right @ right.transpose(1, 2) <= same)
        own = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(~(apart | own), -torch.inf)
        wrong = logits.logsumexp(-1) - logits.diagonal(dim1=1, dim2=2)
        return 2 * temperature * _per_image(wrong.unsqueeze(-1), answer, weight)


def similarity(prediction: Tensor, answer: Answer, weight: Tensor | None) -> Tensor:
    """Squared distance of the mean cosine of an image's patches, each with each and itself, from the wanted one."""
    unit = F.normalize(prediction.float(), dim=-1)
    share = torch.ones_like(unit[..., 0]) if weight is None else weight
    mean = (unit * share.unsqueeze(-1)).sum(1) / share.sum(1, keepdim=True).clamp(min=1e-6)
    return (mean.square().sum(-1) - answer.values[:, 0, 0]).square()


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
