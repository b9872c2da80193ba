"""Patches chosen by the sentence that is told of the image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geomim.errors import ConfigError
from geomim.models.joint import Joint
from geomim.pretrain.context import Context
from geomim.pretrain.masking.random import Random
from geomim.pretrain.masking.split import TokenSplit


@dataclass(frozen=True)
class Told:
    """Hide what the sentence speaks of: the patches nearest to it are predicted, the farthest seen (SyCoCa).

    Where no patch stands out, or nothing is said, patches are random: a sentence that fits all of an image alike gives
    scores without meaning.

    Attributes:
        joint: The space in which patches and sentences are compared.
        visible: Share of the patches that is seen.
        flat: Entropy of the softmax of a sentence over patches, as a share of the greatest, from which on it is flat.

    Raises:
        ConfigError: `flat` is out of range.
    """

    joint: Joint
    visible: float = 0.5
    flat: float = 0.98

    def __post_init__(self) -> None:
        if not 0 <= self.flat <= 1:
            raise ConfigError(f"flat: expected a share of the greatest entropy, 0 to 1; given {self.flat}")

    def __call__(self, context: Context, progress: Tensor) -> dict[str, TokenSplit]:
        """Split the image."""
        view = context.views["image"]
        noise = context.draws("mask", view.length)
        if view.text is not None:
            with torch.no_grad():
                row = view.text["of"].clamp(min=0)
                sentences = view.once("sentences told", lambda: self.joint.sentences(view.text["tokens"]))[row]  # type: ignore[index]
                score = torch.einsum("bld,bd->bl", self.joint.patches(view.latents()), sentences) * self.joint.scale
                valid = torch.ones_like(score, dtype=torch.bool) if view.patch_valid is None else view.patch_valid
                score = score.masked_fill(~valid, -1e4)
                share = score.log_softmax(1)
                entropy = -(share.exp() * share).sum(1)
                told = (entropy < self.flat * valid.sum(1).clamp(min=1).log()) & (view.text["of"] >= 0)
                rank = (score.argsort(1).argsort(1) + 0.5) / view.length
                noise = torch.where(told[:, None], rank, noise)
        return {"image": Random(self.visible).split(view, noise)}
