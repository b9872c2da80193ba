"""Patches hidden or dealt by squares and rectangles of the image."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from geomim.errors import ConfigError
from geomim.models.hierarchical import Encoder
from geomim.models.patches import patchify
from geomim.pretrain.context import PATCH_VALID, Context, View
from geomim.pretrain.masking.split import INVALID, TokenSplit, counts, split_of

RECTANGLES, LEAST, ASPECT = 16, 16, 0.3

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
        patches = _blocks(view.grid, self.size // patch, order.device).T[order]
        return split_of(view, patches[:, count:].flatten(1), patches[:, :count].flatten(1))


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


@dataclass(frozen=True)
class Disjoint:
    """Two sets of visible blocks that share none, each to predict all else (DMJD, Ma et al., arXiv 2301.00230).

    Blocks are dealt in turn, drawn for every image, so that both sets get as many measured ones.

    Attributes:
        visible: Share of the blocks that each set sees, at most a half.
        block: Side of a block in patches.
    """

    visible: float = 0.4
    block: int = 2

    def __call__(self, context: Context, progress: Tensor) -> dict[str, TokenSplit]:
        """Split the image twice: `image` and `image/2`."""
        view = context.views["image"]
        one, two = self.split(view, context.draws("mask", view.length // self.block**2))
        return {"image": one, "image/2": two}

    def seen(self, grid: tuple[int, int]) -> int:
        """Blocks that each set sees of a grid of patches.

        Raises:
            ConfigError: The grid is not a whole number of blocks, or a set would see nothing or more than a half.
        """
        (rows, columns), side = grid, self.block
        blocks = (rows // side) * (columns // side)
        seen = int(blocks * self.visible + 1e-9)
        if rows % side or columns % side or not 1 <= seen <= blocks // 2:
            raise ConfigError(
                f"masking: expected a grid in whole blocks of {side}x{side} patches, of which each set sees at least "
                f"one and at most a half; given {rows}x{columns} patches and visible={self.visible} ({seen} blocks)"
            )
        return seen

    def split(self, view: View, noise: Tensor) -> tuple[TokenSplit, TokenSplit]:
        """Deal by `noise (B, blocks)` in (0, 1), smallest first."""
        seen, patches = self.seen(view.grid), _blocks(view.grid, self.block, noise.device)
        if view.patch_valid is not None:
            noise = noise + (~view.patch_valid)[:, patches].sum(1)
        order = noise.argsort(1)
        hands, rest = (order[:, : 2 * seen : 2], order[:, 1 : 2 * seen : 2]), order[:, 2 * seen :]

        def spread(blocks: Tensor) -> Tensor:
            return patches[:, blocks].transpose(0, 1).flatten(1)

        one, two = (
            split_of(view, spread(mine), spread(torch.cat([other, rest], 1))) for mine, other in (hands, hands[::-1])
        )
        return one, two


def _blocks(grid: tuple[int, int], side: int, device: torch.device) -> Tensor:
    """The patches of every square block of a grid, blocks in raster order: `(side * side, blocks)`."""
    (rows, columns), patches = grid, torch.arange(grid[0] * grid[1], device=device)
    return patches.view(rows // side, side, columns // side, side).permute(1, 3, 0, 2).reshape(side**2, -1)


def _span(start: Tensor, size: Tensor, length: int) -> Tensor:
    """Which of `length` places lie in spans `(B, R)` of a size, placed by `start` in (0, 1): `(B, R, length)`."""
    first = (start * (length - size + 1)).floor()[..., None]
    place = torch.arange(length, device=start.device)
    return (place >= first) & (place < first + size[..., None])
