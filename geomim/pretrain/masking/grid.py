"""Patches hidden by square units of the image."""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor

from geomim.errors import ConfigError
from geomim.models.hierarchical import Encoder
from geomim.models.vit import patchify
from geomim.pretrain.context import PATCH_VALID, Context, View
from geomim.pretrain.masking.split import TokenSplit, split_of

_log = logging.getLogger(__name__)


class Units:
    """Square units of pixels, drawn uniformly (SimMIM, Xie et al., CVPR 2022): hidden are `ceil(hidden * units)`.

    Units without image are hidden first. All of them are hidden from an encoder with mask tokens, none is predicted.

    Args:
        encoder: The encoder that is masked: its patches divide a unit, or are divided by it.
        size: Side of a unit in pixels.
        hidden: Share of the units that is hidden.

    Raises:
        ConfigError: The unit does not fit the patches or the image, or none would be hidden or seen.
    """

    def __init__(self, encoder: Encoder, size: int = 32, hidden: float = 0.6) -> None:
        self.size, self.hidden = size, hidden
        patch, embed, image = encoder.patch_size, encoder.embed_size, encoder.image_size
        if size < 1 or size % embed or image % size or (size % patch and patch % size):
            fine = f", and a divisor or a multiple of its output's {patch} px" if patch > embed else ""
            raise ConfigError(
                f"masking: expected a unit that is a multiple of the encoder's {embed} px patches{fine}, and a divisor "
                f"of image_size {image}; given {size}"
            )
        self.count((image // size) ** 2)
        if size < patch:
            said = "units of %d px are hidden, the encoder answers by %d px: every answer has seen some of its pixels"
            _log.warning(said, size, patch)

    def count(self, units: int) -> int:
        """How many of `units` are hidden."""
        count = math.ceil(self.hidden * units - 1e-9)
        if not 0 < count < units:
            raise ConfigError(f"masking: {self.hidden:g} hides {count} of {units} units: expected some, but not all")
        return count

    def __call__(self, context: Context, progress: Tensor) -> dict[str, TokenSplit]:
        """Split the image."""
        view = context.views["image"]
        units = view.image.shape[2] // self.size * (view.image.shape[3] // self.size)
        return {"image": self.split(view, context.draws("mask", units))}

    def split(self, view: View, noise: Tensor) -> TokenSplit:
        """Split by `noise (B, units)` in (0, 1): the smallest are hidden."""
        empty = torch.zeros_like(noise, dtype=torch.bool)
        if view.valid is not None:
            empty = patchify(view.valid, self.size).float().mean(-1) < PATCH_VALID
        order = (noise - empty.to(noise.dtype)).argsort(1)
        count, patch = self.count(noise.shape[1]), view.encoder.patch_size
        if self.size < patch:  # all patches are asked, and weigh as many pixels as they hide
            hidden = empty.scatter(1, order[:, :count], True)
            asked = view.pixels_of(hidden) & (True if view.pixel_valid is None else view.pixel_valid)
            weight = asked.float().mean(-1) * (1 if view.patch_valid is None else view.patch_valid)
            everywhere = torch.arange(view.length, device=order.device).expand(len(order), -1)
            return TokenSplit(order[:, :0], everywhere, predict_weight=weight, hidden=hidden)
        side, columns = self.size // patch, view.image.shape[3] // self.size
        inside = torch.arange(side, device=order.device)
        corner = order // columns * (side * view.grid[1]) + order % columns * side
        patches = corner[..., None] + (inside[:, None] * view.grid[1] + inside).flatten()
        return split_of(view, patches[:, count:].flatten(1), patches[:, :count].flatten(1))
