"""Blocks of patches in two sets that share none."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geomim.errors import ConfigError
from geomim.pretrain.context import Context, View
from geomim.pretrain.masking.split import TokenSplit, split_of


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
        (rows, columns), side, seen = view.grid, self.block, self.seen(view.grid)
        patches = torch.arange(view.length, device=noise.device).view(rows // side, side, columns // side, side)
        patches = patches.permute(1, 3, 0, 2).reshape(side**2, -1)  # the patches of each block
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
