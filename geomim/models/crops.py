"""The space in which crops of one tile are near each other, and the decoder that puts a crop there."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geomim.errors import ConfigError
from geomim.models.joint import unit
from geomim.models.patches import Latents


class CropSpace(nn.Module):
    """Where crops of one tile are near each other, and far from those of others (SimCLR, Chen et al., ICML 2020).

    Vectors are of length 1 and float32. The head has norms of each vector, not of the batch, so that a step does not
    depend on how it is divided.

    Args:
        width: Width of the encoder's tokens.
        hidden: Width between the two maps of the head.
        dim: Width of the space.
        temperature: What cosines are divided by.

    Attributes:
        dim: As given.
        scale: What cosines are multiplied by, 0-dim.

    Raises:
        ConfigError: A number is out of range.
    """

    scale: Tensor

    def __init__(self, width: int, hidden: int = 2048, dim: int = 128, temperature: float = 0.1) -> None:
        super().__init__()
        if min(hidden, dim) < 1 or not temperature > 0:
            raise ConfigError(
                f"crops: expected hidden and dim of at least 1 and temperature above 0; given {hidden}, {dim} and "
                f"{temperature}"
            )
        maps = nn.Linear(width, hidden, bias=False), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, dim, bias=False)
        self.head, self.dim = nn.Sequential(*maps), dim
        self.register_buffer("scale", torch.tensor(1 / temperature), persistent=False)

    def image(self, latents: Latents) -> Tensor:
        """Vectors `(B, dim)` of what was seen of images; tokens that must not be attended to count for nothing."""
        return unit(self.head(latents.mean()))


class PooledCrop(nn.Module):
    """The vector of a crop in the space where crops of one tile are near each other.

    Args:
        space: The space, a part of this decoder.
    """

    reads_levels = False

    def __init__(self, space: CropSpace) -> None:
        super().__init__()
        self.space = space

    def forward(self, memory: Latents, positions: Tensor, *others: Latents) -> Tensor:
        """`(B, 1, D)` of what was seen first, whatever the positions; the others are read by the target."""
        return self.space.image(memory)[:, None]
