"""Images and sentences of an optimiser step told apart, in blocks that are computed again for the gradient.

A batch has its own images and sentences with their gradient, and those of the whole step, see `Step`, without. Each
batch computes the whole gradient of its own features, also what they do as negatives of others, so that ranks and
micro-batches add up to one batch of that size. Another crop of each image may stand in place of its sentence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geomim.errors import ConfigError
from geomim.models.crops import CropSpace
from geomim.models.joint import Joint
from geomim.pretrain.step import Said, Step
from geomim.pretrain.targets.answer import Answer

CELLS = 2**24
"""Pairs of an image and a sentence in memory at a time, 4 bytes each and a few times over."""

Equal = Literal["positives", "negatives"]


class Contrast(nn.Module):
    """How wrongly images and sentences of a step are told apart; a loss of each image, for a term with `step`.

    Args:
        joint: The space of both, or of crops, for its temperature.
        name: The term that knows images and sentences.
        loss: `softmax` (InfoNCE of CLIP, Radford et al., ICML 2021) or `sigmoid` (SigLIP, Zhai et al., ICCV 2023).
        equal: Pairs of an image and the sentence of another that reads the same are `positives`, which share the target
            evenly (UniCL, Yang et al., CVPR 2022), or `negatives` as published. Of a softmax the gradient is the same,
            as equal sentences are one vector, and so pulled and pushed at once; but that of positives ends at 0.
    """

    def __init__(
        self,
        joint: Joint | CropSpace,
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
        """Loss of each image and its sentence `(B,)`.

        Args:
            prediction: `(B, 1, D)` unit vectors of images.
            answer: Those of their sentences.
            weight: Not used: a whole image is asked about.
            step: All images and sentences of the step.
        """
        pairs, at = self.survey(step)
        own = pairs.names[step.own]
        with torch.autocast(prediction.device.type, enabled=False):
            images, sentences, scale = prediction[:, 0].float(), answer.values[:, 0].float(), self._joint[0].scale
            if self.bias is not None:
                loss = _Sigmoid.apply(images, sentences, scale, self.bias[0], step.own, *pairs)  # type: ignore[no-untyped-call]
            else:
                sums = _Softmax.apply(images, sentences, scale, at, step.own, *pairs)  # type: ignore[no-untyped-call]
                ordered = pairs.names.sort().values
                equal = torch.searchsorted(ordered, own, right=True) - torch.searchsorted(ordered, own)
                loss = sums - scale * (images * sentences).sum(1) - equal.log()  # less the entropy of the target
            told: Tensor = torch.where(own >= 0, loss, 0.0)
            return told

    def survey(self, step: Step) -> tuple[_Pairs, Tensor | None]:
        """All pairs of a step, and for a softmax their `_Pairs.sums`; computed once a step."""

        def look() -> tuple[_Pairs, Tensor | None]:
            said = step.said[self.name]
            named = said.key if self.equal == "positives" else torch.arange(len(said.key), device=said.key.device)
            names = torch.where((said.key >= 0) & (step.weight > 0), named, -1)
            with torch.autocast(named.device.type, enabled=False), torch.no_grad():
                pairs = _Pairs.of(said.prediction.float(), said.answer.float(), names, step.weight.float())
                return pairs, None if self.bias is not None else pairs.sums(step, self._joint[0].scale)

        return step.once(("pairs", step.term), look)


class _Pairs(NamedTuple):
    """All images and sentences of a step `(N, D+8)`, without gradient, names `(N,)` as of `Contrast`, and weights.

    The last columns move the product of two, of which one takes no part, far below all others.
    """

    images: Tensor
    sentences: Tensor
    names: Tensor
    weight: Tensor

    @classmethod
    def of(cls, images: Tensor, sentences: Tensor, names: Tensor, weight: Tensor) -> _Pairs:
        """Pairs of vectors `(N, D)`, with the columns that keep away those whose name is below 0."""
        far, one = torch.where(names >= 0, 0.0, -1e4), torch.ones_like(weight)
        rest = [torch.zeros_like(far)] * 6  # for products that are aligned in memory
        sides = (images, (far, one, *rest)), (sentences, (one, far, *rest))
        both = [torch.cat([side, torch.stack(more, 1)], 1) for side, more in sides]
        return cls(both[0], both[1], names, weight)

    def blocks(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Rows, as many at a time as may be in memory."""
        return torch.split(rows, max(1, CELLS // len(self.names)))

    def sums(self, step: Step, scale: Tensor) -> Tensor:
        """`(N, 2)` of every image, and of every sentence: log-sum-exp over all of the other side."""
        of_images, of_sentences = [], []
        for block in self.blocks(step.rows):
            logits = (scale * self.images[block]) @ self.sentences.T
            of_images.append(logits.logsumexp(1))
            of_sentences.append(logits.logsumexp(0))
        some = torch.stack(of_sentences).logsumexp(0, keepdim=True)
        return torch.stack([step.gather(torch.cat(of_images)), step.gather(some).logsumexp(0)], 1)

    def pull(
        self, own: Tensor, scale: Tensor, slope: Callable[[Tensor, Tensor, int], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of the images and sentences at `own (B,)`, of the scale and of what is added to all products.

        `slope(logits (n, N), rows (n,), side)` gives those of scaled products of some images with all sentences, or
        where `side` is 1 of some sentences with all images. Of scale and addition they are the share of own images.
        """
        grads = [torch.zeros_like(self.images[own]) for _ in range(2)]
        alone = len(own) == len(self.names)  # then images beside all sentences are sentences beside all images
        sides = ((self.images, self.sentences), (self.sentences, self.images))
        for side, (ours, theirs) in enumerate(sides[:1] if alone else sides):
            for rows in self.blocks(torch.arange(len(own), device=own.device)):
                mine = ours[own[rows]]
                pulls = slope((scale * mine) @ theirs.T, rows, side)
                grads[side][rows] = scale * pulls @ theirs
                if alone:
                    grads[1] += scale * pulls.T @ mine
        (images, added, _), (sentences, *_) = (one.tensor_split((-8, -7), 1) for one in grads)
        return images, sentences, (self.images[own, :-8] * images).sum() / scale, added.sum() / scale


def _factor(gradient: Tensor, weight: Tensor) -> Tensor:
    """What every image's loss is multiplied by besides its weight: own ones tell what those of others get."""
    return gradient.sum() / weight.sum().clamp(min=1e-12)


class _Softmax(torch.autograd.Function):
    """Half the log-sum-exp of each own image, and half of its sentence's, with the gradient of those of all."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, sentences: Tensor, scale: Tensor, at: Tensor, own: Tensor, *every: Tensor
    ) -> Tensor:
        """`(B,)` of the images at `own`; `at (N, 2)` as of `_Pairs.sums`, `every` as of `_Pairs`."""
        ctx.save_for_backward(scale, at, own, *every)
        return 0.5 * at[own].sum(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Of own features in the sums of all; of the scale the share of own images."""
        scale, at, own, *every = ctx.saved_tensors
        pairs = _Pairs(*every)
        mine, others = 0.5 * gradient, 0.5 * _factor(gradient, pairs.weight[own]) * pairs.weight

        def slope(logits: Tensor, rows: Tensor, side: int) -> Tensor:
            # as an image among sentences, and as what a sentence picks among images; or the other way round
            picked: Tensor = (logits - at[:, 1 - side]).exp_().mul_(others)
            return picked.addcmul_(logits.sub_(at[own[rows], side, None]).exp_(), mine[rows, None])

        return *pairs.pull(own, scale, slope)[:3], None, None, *[None] * len(every)


class _Sigmoid(torch.autograd.Function):
    """Each pair by itself: together or not; counted at its image."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, sentences: Tensor, scale: Tensor, bias: Tensor, own: Tensor, *every: Tensor
    ) -> Tensor:
        """`(B,)` of the images at `own`; `every` as of `_Pairs`."""
        ctx.save_for_backward(scale, bias, own, *every)
        pairs = _Pairs(*every)
        return torch.cat(
            [
                F.softplus(_sign(pairs, rows) * ((scale * pairs.images[rows]) @ pairs.sentences.T + bias)).sum(1)
                for rows in pairs.blocks(own)
            ]
        )

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """As of `_Softmax`."""
        scale, bias, own, *every = ctx.saved_tensors
        pairs = _Pairs(*every)
        others = _factor(gradient, pairs.weight[own]) * pairs.weight

        def slope(logits: Tensor, rows: Tensor, side: int) -> Tensor:
            sign = _sign(pairs, own[rows])
            pulls: Tensor = sign * torch.sigmoid(sign * (logits + bias)) * (others if side else gradient[rows, None])
            return pulls

        return *pairs.pull(own, scale, slope), None, *[None] * len(every)


def _sign(pairs: _Pairs, rows: Tensor) -> Tensor:
    """`(n, N)`: -1 for positives of each row, 1 for all others."""
    names = pairs.names[rows, None]
    return 1 - 2 * ((names == pairs.names) & (names >= 0)).float()


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
        if not min(temperature, answer_temperature) > 0:
            raise ConfigError(f"expected temperatures above 0; given {temperature} and {answer_temperature}")
        self.name, self.gate = name, gate
        self.temperature, self.answer_temperature = temperature, answer_temperature
        self.register_buffer("bank", bank)

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
            distinct, counts = self.survey(step)
            said = step.said[self.name]
            sentences = (said.answer if said.prototype is None else said.prototype).float()
            loss = self._diverge(prediction.float(), answer.values, weight, sentences, distinct)
            return loss if counts is None else loss * counts[step.own]

    def survey(self, step: Step) -> tuple[Tensor, Tensor | None]:
        """`(N,)` each: the first of all equal sentences, and what images count by the gate; computed once a step."""

        def look() -> tuple[Tensor, Tensor | None]:
            said = step.said[self.name]
            distinct = first_of_each(said.key)
            if not self.gate:
                return distinct, None
            with torch.autocast(distinct.device.type, enabled=False):
                found = step.gather(retrieved(said, distinct, step.rows))
            every = (step.weight * found).sum()  # the images that count share the weight of all
            return distinct, found * torch.where(every > 0, step.weight.sum() / every.clamp(min=1e-12), 0.0)

        return step.once(("retrieved", step.term), look)

    def _diverge(
        self, prediction: Tensor, answer: Tensor, weight: Tensor | None, prototypes: Tensor, used: Tensor | None
    ) -> Tensor:
        sides = prediction.flatten(0, 1), answer.flatten(0, 1), prototypes, used
        rows: Tensor = _Divergence.apply(*sides, self.temperature, self.answer_temperature)  # type: ignore[no-untyped-call]
        patch = rows.view(prediction.shape[:2])
        if weight is None:
            return patch.mean(1)
        return (patch * weight).sum(1) / weight.sum(1).clamp(min=1e-6)


class _Divergence(torch.autograd.Function):
    """How far each prediction `(n, D)` is from its answer over prototypes `(K, D)`, those `used (K,)`: `(n,)`.

    Predictions alone have a gradient, which is known at once: no share of a prototype is kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        prediction: Tensor,
        answer: Tensor,
        prototypes: Tensor,
        used: Tensor | None,
        temperature: float,
        answer_temperature: float,
    ) -> Tensor:
        """Kullback-Leibler divergence, as many rows at a time as may be in memory."""

        def shares(vectors: Tensor, temperature: float) -> Tensor:
            logits = vectors @ prototypes.T / temperature
            return (logits if used is None else logits.masked_fill(~used, -1e4)).log_softmax(1)

        values, slopes, size = [], [], max(1, CELLS // len(prototypes))
        for ours, right in zip(torch.split(prediction, size), torch.split(answer, size), strict=True):
            said, known = shares(ours, temperature), shares(right, answer_temperature)
            values.append((known.exp() * (known - said)).sum(1))
            slopes.append((said.exp() - known.exp()) @ prototypes / temperature)
        ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Of predictions."""
        (slope,) = ctx.saved_tensors
        return gradient[:, None] * slope, *[None] * 5


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
