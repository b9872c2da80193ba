"""Patches hidden by rectangles."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from geomim.pretrain.context import Context
from geomim.pretrain.masking.split import INVALID, TokenSplit, counts, split_of

RECTANGLES, LEAST, ASPECT = 16, 16, 0.3


@dataclass(frozen=True)
class Blocks:
    """Rectangles until an exact number of patches is hidden (block-wise masking of BEiT, Bao et al., ICLR 2022, 2.3).

    Rectangles have at least 16 patches and sides of a ratio from 0.3. Deviates, so that no device is waited for: 16 of
    them are drawn at once, of areas up to the whole number instead of what is left; the last one is filled row by row
    up to the number. Patches without image are hidden first.

    Attributes:
        hidden: Share of the patches that is hidden and predicted; all others are seen.
    """

    hidden: float = 0.4

    def __call__(self, context: Context, progress: Tensor) -> dict[str, TokenSplit]:
        """Split the image."""
        view, noise = context.views["image"], context.draws("mask", RECTANGLES, 4)
        (rows, columns), length = view.grid, view.length
        _, count = counts(length, 1 - self.hidden, self.hidden)
        area, shape, top, left = noise.unbind(-1)
        area = min(LEAST, count) + area * (count - min(LEAST, count))
        slope = ((2 * shape - 1) * -math.log(ASPECT)).exp()
        height = (area * slope).sqrt().round().clamp(1, rows)
        width = (area / slope).sqrt().round().clamp(1, columns)
        inside = _span(top, height, rows)[..., None] & _span(left, width, columns)[..., None, :]  # (B, R, h, w)
        place = torch.arange(length, device=noise.device) / length
        number = torch.arange(RECTANGLES, device=noise.device)[:, None]
        rank = torch.where(inside.flatten(2), number, RECTANGLES).amin(1) + place
        if view.patch_valid is not None:
            rank = rank + INVALID * ~view.patch_valid
        order = rank.argsort(1)
        return {"image": split_of(view, order[:, count:], order[:, :count])}


def _span(start: Tensor, size: Tensor, length: int) -> Tensor:
    """Which of `length` places lie in spans `(B, R)` of a size, placed by `start` in (0, 1): `(B, R, length)`."""
    first = (start * (length - size + 1)).floor()[..., None]
    place = torch.arange(length, device=start.device)
    return (place >= first) & (place < first + size[..., None])
