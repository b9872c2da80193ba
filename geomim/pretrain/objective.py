"""The parts in order: mask, encode, decode, compare. No method is known here by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from geomim.models.decoders import Decoder
from geomim.models.vit import Latents, ViT
from geomim.pretrain.context import Context
from geomim.pretrain.losses import Loss, reduce
from geomim.pretrain.masking import Masking, TokenSplit
from geomim.pretrain.targets import Pixels, Target
from geomim.randomness import Draws

Weight = Callable[[Tensor], Tensor]


class Term(nn.Module):
    """One thing that is asked: a decoder answers, a target knows, a loss compares.

    Args:
        decoder: Called as `decoder(memory, positions)`.
        target: Called as `target(view, positions)`.
        loss: Called as `loss(prediction, answer, weight)`.
        where: Ask at the predicted or at the visible patches.
        view: The view that is asked about.
        memory: The view whose visible patches the decoder reads; the same where None.
        weight: Share in the sum of terms, a number or a function of progress.
        name: What its loss is logged as.
    """

    def __init__(
        self,
        decoder: Decoder,
        target: Target,
        loss: Loss,
        where: Literal["predict", "visible"] = "predict",
        view: str = "image",
        memory: str | None = None,
        weight: float | Weight = 1.0,
        name: str = "reconstruction",
    ) -> None:
        super().__init__()
        self.decoder, self.target, self.loss = decoder, target, loss
        self.where, self.view, self.memory, self.weight, self.name = where, view, memory or view, weight, name

    def positions(self, split: TokenSplit) -> tuple[Tensor, Tensor | None]:
        """Where to ask `(B, P)`, and what each place weighs `(B, P)`."""
        if self.where == "predict":
            return split.predict, split.predict_weight
        return split.visible, None if split.visible_valid is None else split.visible_valid.float()

    def weigh(self, context: Context, splits: dict[str, TokenSplit], min_valid: float) -> Tensor:
        """What each image weighs `(B,)`: the share of its places that count, 0 where too little of it is valid."""
        positions, weight = self.positions(splits[self.view])
        share = torch.ones(len(positions), device=positions.device) if weight is None else weight.mean(1)
        usable = context.image_weight(self.view, min_valid)
        return share if usable is None else share * usable


class Plan(NamedTuple):
    """What is asked of a batch, known before anything is predicted.

    Attributes:
        splits: Seen and asked-for patches of each view.
        weights: `(T, B)`, what each image weighs in each term.
    """

    splits: dict[str, TokenSplit]
    weights: Tensor


@dataclass
class Output:
    """What one batch gave.

    Attributes:
        loss: 0-dim, the weighted sum of the terms.
        terms: 0-dim detached loss of each term by name.
    """

    loss: Tensor
    terms: dict[str, Tensor]


class MaskedImageModel(nn.Module):
    """Masked image modeling: an encoder, a masking, and the terms that ask for what is hidden.

    Args:
        encoder: The encoder being trained.
        masking: Splits the patches of each view.
        terms: What is asked.
        min_valid: An image with a smaller share of valid patches weighs nothing.
    """

    def __init__(self, encoder: ViT, masking: Masking, terms: Sequence[Term], min_valid: float = 0.25) -> None:
        super().__init__()
        self.encoder, self.masking, self.min_valid = encoder, masking, min_valid
        self.terms = nn.ModuleList(terms)
        self.read_levels = any(term.decoder.reads_levels for term in terms)

    def forward(self, batch: dict[str, Any], progress: Tensor, draws: Draws) -> Output:
        """Compute the loss of a batch that is a whole optimiser step.

        Args:
            batch: See `Context`.
            progress: 0-dim float in [0, 1], the share of training that is done.
            draws: Addressed random numbers of the batch.
        """
        context = Context(batch, self.encoder, draws)
        plan = self.plan(context, progress)
        return self.compare(context, plan, progress, plan.weights.sum(1))

    @torch.no_grad()
    def plan(self, context: Context, progress: Tensor) -> Plan:
        """Mask a batch and weigh its images, so that a step knows its whole weight before its first gradient."""
        splits = self.masking(context, progress)
        weights = [term.weigh(context, splits, self.min_valid) for term in cast(list[Term], self.terms)]
        return Plan(splits, torch.stack(weights))

    def compare(self, context: Context, plan: Plan, progress: Tensor, totals: Tensor) -> Output:
        """The share that a batch has in the loss of its optimiser step; the shares add up to it.

        Args:
            context: The batch.
            plan: What `plan` gave for it.
            progress: As for `forward`.
            totals: `(T,)`, what all images of the step weigh in each term.
        """
        latents: dict[str, Latents] = {}
        loss, logged = progress.new_zeros(()), {}
        for term, weights, total in zip(cast(list[Term], self.terms), plan.weights, totals, strict=True):
            if term.memory not in latents:
                latents[term.memory] = self.encode(context, plan.splits, term.memory)
            positions, weight = term.positions(plan.splits[term.view])
            prediction = term.decoder(latents[term.memory], positions)
            values = term.loss(prediction, term.target(context.views[term.view], positions), weight)
            reduced = reduce(values, weights, total)
            share = term.weight(progress) if callable(term.weight) else term.weight
            loss = loss + share * reduced
            logged[term.name] = reduced.detach()
        return Output(loss, logged)

    def encode(self, context: Context, splits: dict[str, TokenSplit], view: str) -> Latents:
        """Encode the visible patches of a view."""
        seen, split = context.views[view], splits[view]
        return self.encoder.encode(seen.patches, seen.grid, split.visible, split.visible_valid, self.read_levels)

    @torch.no_grad()
    def predict(self, batch: dict[str, Any], progress: Tensor, draws: Draws) -> dict[str, dict[str, Tensor]]:
        """What the first pixel term of each view predicts, to look at.

        Returns:
            For every view: `visible (B, K)` and `predict (B, M)` patch indices, `patches (B, L, p*p*C)` as given,
            `prediction (B, M, p*p*C)` in the same normalised pixels, `weight (B, M)`.
        """
        context = Context(batch, self.encoder, draws)
        splits = self.masking(context, progress)
        pictures: dict[str, dict[str, Tensor]] = {}
        for term in cast(list[Term], self.terms):
            if not isinstance(term.target, Pixels) or term.where != "predict" or term.view in pictures:
                continue
            view, split = context.views[term.view], splits[term.view]
            prediction = term.decoder(self.encode(context, splits, term.memory), split.predict)
            weight = split.predict_weight
            pictures[term.view] = {
                "visible": split.visible,
                "predict": split.predict,
                "patches": view.patches,
                "prediction": term.target.to_pixels(view, split.predict, prediction),
                "weight": torch.ones_like(split.predict, dtype=torch.float32) if weight is None else weight,
            }
        return pictures
