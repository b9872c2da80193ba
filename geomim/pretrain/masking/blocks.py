"""Patches hidden by rectangles."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from geomim.pretrain.context import Context, View
from geomim.pretrain.masking.split import INVALID, TokenSplit, counts, split_of


@dataclass(frozen=True)
class Blocks:
    """Rectangles until an exact number of patches is hidden (block-wise masking of BEiT, Bao et al., ICLR 2022, 2.3).

    Deviates, so that no device is waited for: a fixed number of rectangles is drawn at once, of areas up to the whole
    number instead of what is left; the last one is filled row by row up to the number. Patches without image are
    hidden first.

    Attributes:
        hidden: Share of the patches that is hidden and predicted; all others are seen.
        least: Fewest patches of a rectangle.
        aspect: Least ratio of its sides.
        rectangles: How many are drawn; what they leave over is filled from the top.
        view: The view that is masked.
    """

    hidden: float = 0.4
    least: int = 16
    aspect: float = 0.3
    rectangles: int = 16
    view: str = "image"

    def __call__(self, context: Context, progress: Tensor) -> dict[str, TokenSplit]:
        """Split the view."""
        return {self.view: self.split(context.views[self.view], context.draws("mask", self.rectangles, 4))}

    def split(self, view: View, noise: Tensor) -> TokenSplit:
        """Split by `noise (B, rectangles, 4)` in (0, 1): areas, aspects, tops and lefts."""
        (rows, columns), length = view.grid, view.length
        _, count = counts(length, 1 - self.hidden, self.hidden)
        area, shape, top, left = noise.unbind(-1)
        area = min(self.least, count) + area * (count - min(self.least, count))
        slope = ((2 * shape - 1) * -math.log(self.aspect)).exp()
        height = (area * slope).sqrt().round().clamp(1, rows)
        width = (area / slope).sqrt().round().clamp(1, columns)
        inside = _span(top, height, rows)[..., None] & _span(left, width, columns)[..., None, :]  # (B, R, h, w)
        place = torch.arange(length, device=noise.device) / length
        number = torch.arange(self.rectangles, device=noise.device)[:, None]
        rank = torch.where(inside.flatten(2), number, self.rectangles).amin(1) + place
        if view.patch_valid is not None:
            rank = rank + INVALID * ~view.patch_valid
        order = rank.argsort(1)
        return split_of(view, order[:, count:], order[:, :count])


def _span(start: Tensor, size: Tensor, length: int) -> Tensor:
    """Which of `length` places lie in spans `(B, R)` of a size, placed by `start` in (0, 1): `(B, R, length)`."""
    first = (start * (length - size + 1)).floor()[..., None]
    place = torch.arange(length, device=start.device)
    return (place >= first) & (place < first + size[..., None])
