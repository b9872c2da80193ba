"""The space in which crops of one tile are near each other."""

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
        self.head = nn.Sequential(*maps)
        self.register_buffer("scale", torch.tensor(1 / temperature), persistent=False)

    def image(self, latents: Latents) -> Tensor:
        """Vectors `(B, dim)` of what was seen of images; tokens that must not be attended to count for nothing."""
        return unit(self.head(latents.mean()))
