"""Images and sentences of an optimiser step told apart, in blocks that are computed again for the gradient.

A batch has its own images and sentences with their gradient, and those of the whole step, see `Step`, without. Each
batch computes the whole gradient of its own features, also what they do as negatives of others, so that ranks and
micro-batches add up to one batch of that size.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geomim.errors import ConfigError
from geomim.models.joint import Joint
from geomim.pretrain.step import Said, Step
from geomim.pretrain.targets.answer import Answer

CELLS = 2**24
"""Pairs of an image and a sentence in memory at a time, 4 bytes each and a few times over."""

Equal = Literal["positives", "negatives"]


class Contrast(nn.Module):
    """How wrongly images and sentences of a step are told apart; a loss of each image, for a term with `step`.

    Args:
        joint: The space of both, for its temperature.
        name: The term that knows images and sentences.
        loss: `softmax` (InfoNCE of CLIP, Radford et al., ICML 2021) or `sigmoid` (SigLIP, Zhai et al., ICCV 2023).
        equal: Pairs of an image and the sentence of another that reads the same are `positives`, which share the target
            evenly (UniCL, Yang et al., CVPR 2022), or `negatives` as published.
    """

    def __init__(
        self,
        joint: Joint,
        name: str = "contrast",
        loss: Literal["softmax", "sigmoid"] = "softmax",
        equal: Equal = "positives",
    ) -> None:
        super().__init__()
        if loss not in ("softmax", "sigmoid") or equal not in ("positives", "negatives"):
            raise ConfigError(
                f"expected a loss softmax or sigmoid, and equal positives or negatives; given {loss}, {equal}"
            )
        self.name, self.equal = name, equal
        self._joint = (joint,)  # in a tuple, since it is no part of this one
        self.bias = nn.Parameter(torch.tensor([-10.0])) if loss == "sigmoid" else None  # as published

    def forward(self, prediction: Tensor, answer: Answer, weight: Tensor | None, step: Step) -> Tensor:
        """Loss of each image `(B,)`: half of it about the image, half about its sentence.

        Args:
            prediction: `(B, 1, D)` unit vectors of images.
            answer: Those of their sentences.
            weight: Not used: a whole image is asked about.
            step: All images and sentences of the step.
        """
        said = step.said[self.name]
        names = self._names(said.key, step.weight)
        pairs = _Pairs(said.prediction.float(), said.answer.float(), names, step.weight.float())
        with torch.autocast(prediction.device.type, enabled=False):
            scale = self._joint[0].scale
            images, sentences = prediction[:, 0].float(), answer.values[:, 0].float()
            if self.bias is not None:
                told: Tensor = _Sigmoid.apply(images, sentences, scale, self.bias[0], step.own, *pairs)  # type: ignore[no-untyped-call]
                return told
            at = step.once(("sums", self.name), lambda: step.of_every_image(lambda rows: pairs.sums(rows, scale)))
            told = _Softmax.apply(images, sentences, scale, at, step.own, *pairs)  # type: ignore[no-untyped-call]
            return told

    def _names(self, key: Tensor, weight: Tensor) -> Tensor:
        """What pairs of equal names are positives; -1 for images that take no part."""
        own = key if self.equal == "positives" else torch.arange(len(key), device=key.device)
        return torch.where((key >= 0) & (weight > 0), own, -1)


class _Pairs(NamedTuple):
    """All images and sentences of a step `(N, D)`, without gradient, names `(N,)` as of `Contrast`, and weights."""

    images: Tensor
    sentences: Tensor
    names: Tensor
    weight: Tensor

    def blocks(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Rows, as many at a time as may be in memory."""
        return torch.split(rows, max(1, CELLS // len(self.names)))

    def together(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """`(n, N)`: which are positives of each row, and which are positives or negatives, as floats and bools."""
        names = self.names[rows, None]
        return (names == self.names).float(), (names >= 0) & (self.names >= 0)

    def sums(self, rows: Tensor, scale: Tensor) -> Tensor:
        """`(n, 3)` of some rows: log-sum-exp over sentences of an image, over images of a sentence, and positives."""
        found = []
        for block in self.blocks(rows):
            positive, known = self.together(block)
            sums = [
                (scale * ours[block] @ theirs.T).masked_fill(~known, -torch.inf).logsumexp(1)
                for ours, theirs in ((self.images, self.sentences), (self.sentences, self.images))
            ]
            found.append(torch.stack([*sums, (positive * known).sum(1)], 1))
        return torch.cat(found).detach()


class _Softmax(torch.autograd.Function):
    """Cross-entropy both ways less the entropy of the targets, so that it ends at 0."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, sentences: Tensor, scale: Tensor, at: Tensor, own: Tensor, *every: Tensor
    ) -> Tensor:
        """`(B,)` of the images at `own`; `at (N, 3)` as of `_Pairs.sums`, `every` as of `_Pairs`."""
        ctx.save_for_backward(images, sentences, scale, at, own, *every)
        pairs, found = _Pairs(*every), []
        for block in pairs.blocks(torch.arange(len(own), device=own.device)):
            positive, known = pairs.together(own[block])
            share = positive * known / at[own[block], 2:].clamp(min=1)
            right = (share @ pairs.sentences * images[block] + share @ pairs.images * sentences[block]).sum(1)
            here = at[own[block]]
            loss = 0.5 * (here[:, 0] + here[:, 1] - scale * right) - here[:, 2].clamp(min=1).log()
            found.append(torch.where(pairs.names[own[block]] >= 0, loss, 0.0))
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Of own features in all rows; of the scale in own rows, which other ranks add to."""
        images, sentences, scale, at, own, *every = ctx.saved_tensors
        pairs = _Pairs(*every)
        # every image's loss is multiplied by its weight and one number, so own ones tell what those of others get
        factor = gradient.sum() / pairs.weight[own].sum().clamp(min=1e-12)
        grads, of_scale = [torch.zeros_like(images), torch.zeros_like(sentences)], torch.zeros_like(scale)
        for block in pairs.blocks(torch.arange(len(own), device=own.device)):
            positive, known = pairs.together(own[block])
            share = positive * known / at[:, 2].clamp(min=1)
            for side, (ours, theirs) in enumerate(((images, pairs.sentences), (sentences, pairs.images))):
                logits = ours[block] @ theirs.T
                scaled = (scale * logits).masked_fill(~known, -torch.inf)
                # as an image among sentences, and as what a sentence picks among images; or the other way round
                mine = 0.5 * gradient[block, None] * (_exp(scaled, at[own[block], side, None]) - share)
                others = 0.5 * factor * pairs.weight * (_exp(scaled, at[:, 1 - side]) - share)
                grads[side][block] = scale * (mine + others) @ theirs
                of_scale = of_scale + (mine * logits).sum()
        return *grads, of_scale, None, None, *[None] * len(every)


def _exp(logits: Tensor, normaliser: Tensor) -> Tensor:
    """Softmax of logits whose log-sum-exp is known; 0 where nothing takes part."""
    return (logits - normaliser).exp().nan_to_num(0.0)


class _Sigmoid(torch.autograd.Function):
    """Each pair by itself: together or not. A pair counts half for its image and half for its sentence."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, sentences: Tensor, scale: Tensor, bias: Tensor, own: Tensor, *every: Tensor
    ) -> Tensor:
        """`(B,)` of the images at `own`; `every` as of `_Pairs`."""
        ctx.save_for_backward(images, sentences, scale, bias, own, *every)
        pairs, found = _Pairs(*every), []
        for block in pairs.blocks(torch.arange(len(own), device=own.device)):
            positive, known = pairs.together(own[block])
            halves = [
                F.softplus((1 - 2 * positive) * (scale * ours[block] @ theirs.T + bias))
                for ours, theirs in ((images, pairs.sentences), (sentences, pairs.images))
            ]
            found.append((0.5 * (halves[0] + halves[1]) * known).sum(1))
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """As of `_Softmax`."""
        images, sentences, scale, bias, own, *every = ctx.saved_tensors
        pairs = _Pairs(*every)
        factor = gradient.sum() / pairs.weight[own].sum().clamp(min=1e-12)
        grads, of_scale, of_bias = [torch.zeros_like(images), torch.zeros_like(sentences)], scale * 0.0, bias * 0.0
        for block in pairs.blocks(torch.arange(len(own), device=own.device)):
            positive, known = pairs.together(own[block])
            for side, (ours, theirs) in enumerate(((images, pairs.sentences), (sentences, pairs.images))):
                logits = ours[block] @ theirs.T
                sign = 1 - 2 * positive
                slope = 0.5 * sign * torch.sigmoid(sign * (scale * logits + bias)) * known
                mine = gradient[block, None] * slope
                grads[side][block] = scale * (mine + factor * pairs.weight * slope) @ theirs
                of_scale, of_bias = of_scale + (mine * logits).sum(), of_bias + mine.sum()
        return *grads, of_scale, of_bias, None, *[None] * len(every)


class LanguageSpace(nn.Module):
    """Predictions and answers compared by what they say of sentences (RILS, Yang et al., CVPR 2023, section 3.3).

    Both are turned into shares of a set of prototypes, sharply for the answer, and their divergence is the loss.

    Args:
        name: The term whose sentences are the prototypes: those of the whole step, each distinct one once, no gradient.
        temperature: Divides the cosines of predictions.
        answer_temperature: Divides those of answers.
        gate: Only images that find their own sentence among all of the step count; where none does, the loss is 0.
        bank: `(K, D)` unit vectors to be the prototypes instead, for a term without `step`.
    """

    bank: Tensor | None

    def __init__(
        self,
        name: str = "contrast",
        temperature: float = 0.1,
        answer_temperature: float = 0.04,
        gate: bool = True,
        bank: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.name, self.gate = name, gate
        self.temperature, self.answer_temperature = temperature, answer_temperature
        self.register_buffer("bank", bank, persistent=False)

    def forward(self, prediction: Tensor, answer: Answer, weight: Tensor | None, step: Step | None = None) -> Tensor:
        """Loss of each image `(B,)`.

        Args:
            prediction: `(B, P, D)` unit vectors.
            answer: As many.
            weight: `(B, P)`.
            step: All sentences of the step; None with a bank.
        """
        with torch.autocast(prediction.device.type, enabled=False):
            if step is None:
                assert self.bank is not None, "neither a step nor a bank"
                return self._diverge(prediction.float(), answer.values, weight, self.bank, None)
            said = step.said[self.name]
            distinct = step.once(("distinct", self.name), lambda: first_of_each(said.key))
            loss = self._diverge(prediction.float(), answer.values, weight, said.answer.float(), distinct)
            if not self.gate:
                return loss
            found = step.once(
                ("retrieved", self.name), lambda: step.of_every_image(lambda rows: retrieved(said, distinct, rows))
            )
            every = (step.weight * found).sum()  # the images that count share the weight of all
            return loss * found[step.own] * torch.where(every > 0, step.weight.sum() / every.clamp(min=1e-12), 0.0)

    def _diverge(
        self, prediction: Tensor, answer: Tensor, weight: Tensor | None, prototypes: Tensor, used: Tensor | None
    ) -> Tensor:
        said, right = prediction @ prototypes.T / self.temperature, answer @ prototypes.T / self.answer_temperature
        if used is not None:
            said, right = (logits.masked_fill(~used, -1e4) for logits in (said, right))
        share = right.softmax(-1)
        patch = (share * (right.log_softmax(-1) - said.log_softmax(-1))).sum(-1)
        if weight is None:
            return patch.mean(1)
        return (patch * weight).sum(1) / weight.sum(1).clamp(min=1e-6)


def first_of_each(key: Tensor) -> Tensor:
    """`(N,)` bool: the first of all equal keys; False for keys below 0."""
    order = key.argsort(stable=True)
    sorted_keys = key[order]
    first = torch.ones_like(key, dtype=torch.bool)
    first[1:] = sorted_keys[1:] != sorted_keys[:-1]
    return torch.zeros_like(first).scatter(0, order, first) & (key >= 0)


def retrieved(said: Said, distinct: Tensor, rows: Tensor) -> Tensor:
    """`(n,)` float: 1 for images whose nearest sentence of all is their own, or reads the same."""
    found = []
    for block in torch.split(rows, max(1, CELLS // len(distinct))):
        cosine = (said.prediction[block] @ said.answer.T).masked_fill(~distinct, -torch.inf)
        found.append(((said.key[cosine.argmax(1)] == said.key[block]) & (said.key[block] >= 0)).float())
    return torch.cat(found)
