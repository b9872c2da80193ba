"""Patches that a teacher looks at."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geomim.pretrain.context import Context, View
from geomim.pretrain.masking.split import INVALID, TokenSplit, counts, draw, split_of
from geomim.pretrain.targets.teacher import FrozenTeacher


@dataclass(frozen=True)
class Attention:
    """Visible patches drawn with probability in proportion to a teacher's attention (MaskAlign, Xue et al., CVPR 2023).

    Drawn without replacement; all others are hidden.

    Attributes:
        teacher: Whose class token attends to the patches.
        visible: Share of the patches that is seen.
    """

    teacher: FrozenTeacher
    visible: float = 0.3

    def __call__(self, context: Context, progress: Tensor) -> dict[str, TokenSplit]:
        """Split the image."""
        view = context.views["image"]
        return {"image": self.split(view, self.teacher(view)[1], context.draws("mask", view.length))}

    def split(self, view: View, importance: Tensor, noise: Tensor) -> TokenSplit:
        """Split by `importance (B, L)`, not below 0, and `noise (B, L)` in (0, 1)."""
        seen, _ = counts(view.length, self.visible, 1 / view.length)
        score = importance.clamp(min=1e-12).log()
        if view.patch_valid is not None:
            score = score.masked_fill(~view.patch_valid, INVALID)
        visible = draw(score, noise, seen)
        taken = torch.zeros_like(score).scatter(1, visible, 1.0)
        return split_of(view, visible, taken.argsort(dim=1, stable=True)[:, : view.length - seen])
