"""The space that images and sentences share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geomim.errors import ConfigError
from geomim.models.patches import Latents
from geomim.models.text import TextTower

Pool = Literal["mean", "class"]
LIMIT = math.log(100)


class Joint(nn.Module):
    """Puts what an encoder says of images, and a text tower of sentences, into one space (CLIP's, and RILS's).

    Vectors are of length 1 and float32, whatever precision they were computed in.

    Args:
        text: The tower of sentences; the space has its width.
        width: Width of the encoder's tokens.
        pool: What stands for an image: the mean of its valid patch tokens (as RILS), or the class token (as CLIP).
        temperature: What cosines are divided by at the start.

    Attributes:
        dim: Width of the space.
        logit_scale: `(1,)`, the logarithm of what cosines are multiplied by; `scale` is how it is used.

    Raises:
        ConfigError: A number is out of range, or the pool unknown.
    """

    def __init__(self, text: TextTower, width: int, pool: Pool = "mean", temperature: float = 0.07) -> None:
        super().__init__()
        if pool not in ("mean", "class") or not temperature > 0:
            raise ConfigError(
                f"joint: expected pool mean or class and temperature above 0; given {pool}, {temperature}"
            )
        self.text, self.width, self.pool, self.temperature, self.dim = text, width, pool, temperature, text.dim
        self.projection = nn.Linear(width, text.dim, bias=False)
        nn.init.normal_(self.projection.weight, std=width**-0.5)
        self.logit_scale = nn.Parameter(torch.full((1,), -math.log(temperature)))  # no scalar: ranks may share it out

    @property
    def scale(self) -> Tensor:
        """What cosines are multiplied by, 0-dim, at most 100 (Radford et al., ICML 2021, section 2.5)."""
        return self.logit_scale.float().clamp(max=LIMIT).exp()[0]

    @property
    def config(self) -> dict[str, Any]:
        """Plain values to store beside the weights, which `from_config` reads."""
        return {"text": self.text.config, "width": self.width, "pool": self.pool, "temperature": self.temperature}

    @torch.no_grad()
    def limit(self) -> None:
        """Bring `logit_scale` back to where it is used as it is."""
        self.logit_scale.clamp_(max=LIMIT)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Joint:
        """A space by its `config`, with the weights it would start training from."""
        return cls(TextTower(config["text"]), *(config[key] for key in ("width", "pool", "temperature")))

    def project(self, tokens: Tensor) -> Tensor:
        """Tokens `(..., width)` into the space: `(..., dim)`, not normalised."""
        projected: Tensor = self.projection(tokens)
        return projected

    def image(self, latents: Latents) -> Tensor:
        """Vectors `(B, dim)` of images; tokens that must not be attended to count for nothing.

        Raises:
            ConfigError: The class token is asked for and the encoder has none.
        """
        if self.pool == "class":
            if not latents.prefix:
                raise ConfigError("the joint space pools the class token, and the encoder has none: use pool 'mean'")
            return unit(self.project(latents.tokens[:, 0]))
        return unit(self.project(latents.mean()))

    def patches(self, latents: Latents) -> Tensor:
        """Vectors `(B, K, dim)` of the patches of images."""
        return unit(self.project(latents.patches))

    def sentences(self, tokens: Tensor) -> Tensor:
        """Vectors `(U, dim)` of the sentences of `tokens (U, T)`."""
        return unit(self.text(tokens))


def unit(vectors: Tensor) -> Tensor:
    """Vectors of length 1, in float32."""
    return F.normalize(vectors.float(), dim=-1)
