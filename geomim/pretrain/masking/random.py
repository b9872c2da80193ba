"""Patches drawn uniformly, or all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geomim.pretrain.context import Context, View
from geomim.pretrain.masking.split import TokenSplit, counts, split_of


class Whole:
    """Nothing is hidden, and nothing predicted."""

    def __call__(self, context: Context, progress: Tensor) -> dict[str, TokenSplit]:
        """See all of the image."""
        view = context.views["image"]
        every = torch.arange(view.length, device=view.image.device).expand(len(view.image), -1)
        return {"image": split_of(view, every, every[:, :0])}


@dataclass(frozen=True)
class Random:
    """Uniformly random patches (MAE); of the rest, those drawn last are predicted (CrossMAE).

    Attributes:
        visible: Share of the patches that is seen.
        predict: Share of the patches that is predicted; all that are not seen where None.
        other: Another view that must be measured, too, where a patch is predicted.
        views: What is split, each view by draws of its own.
    """

    visible: float = 0.25
    predict: float | None = None
    other: str | None = None
    views: tuple[str, ...] = ("image",)

    def __call__(self, context: Context, progress: Tensor) -> dict[str, TokenSplit]:
        """Split the views."""
        return {name: self._split(context, name, "mask" if name == "image" else f"{name}/mask") for name in self.views}

    def _split(self, context: Context, name: str, purpose: str) -> TokenSplit:
        view = context.views[name]
        split = self.split(view, context.draws(purpose, view.length))
        known = None if self.other is None else context.views[self.other].patch_valid
        if known is not None:
            weight = known.gather(1, split.predict).float()
            both = weight if split.predict_weight is None else weight * split.predict_weight
            split = split._replace(predict_weight=both)
        return split

    def split(self, view: View, noise: Tensor) -> TokenSplit:
        """Split by `noise (B, L)` in (0, 1): the smallest are seen, the largest predicted."""
        length = view.length
        seen, asked = counts(length, self.visible, 1 / length if self.predict is None else self.predict)
        # what is neither seen nor asked for is rounded down, as CrossMAE does
        asked = length - seen - (0 if self.predict is None else int(length * (1 - self.visible - self.predict) + 1e-9))
        if view.patch_valid is not None:
            noise = noise + (~view.patch_valid).to(noise.dtype)
        order = noise.argsort(1)
        if view.patch_valid is None:
            return split_of(view, order[:, :seen], order[:, length - asked :])
        # the last valid patches in the order, or what follows the visible ones where they are too few
        first = (view.patch_valid.sum(1, keepdim=True) - asked).clamp(min=seen)
        slots = first + torch.arange(asked, device=order.device)
        return split_of(view, order[:, :seen], order.gather(1, slots))
