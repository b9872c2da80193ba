"""What a slowly following copy of the encoder says, and how alike patches should be."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from geomim.models.decoders import Projector
from geomim.models.patches import Patches
from geomim.models.vit import ViT
from geomim.pretrain.context import View
from geomim.pretrain.scaling import local
from geomim.pretrain.targets.answer import Answer


def falling(progress: Tensor, first: float, last: float) -> Tensor:
    """From `first` to `last` along half a cosine, over training."""
    return last + (first - last) * 0.5 * (1 + torch.cos(math.pi * progress))


class EmaLatent(nn.Module):
    """Latents of a copy of the encoder that follows it (exponential moving average, as in BYOL and Latent MIM).

    Args:
        encoder: The encoder to follow; the copy sees the asked patches alone, with all their bands.
        projector: Followed as well, and put behind the copy; the latents as they are where None.
        momentum: What the copy keeps of itself in the first step; rises to 1 along half a cosine.
    """

    def __init__(self, encoder: ViT, projector: Projector | None = None, momentum: float = 0.99) -> None:
        super().__init__()
        self.dim: int | None = encoder.width
        self.momentum = momentum
        self._followed = (encoder, projector)  # in a tuple, since they are no parts of this one
        self.encoder, self.projector = copy.deepcopy(self._followed)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> EmaLatent:
        """Stay as in evaluation."""
        return super().train(False)

    def before_step(self, progress: Tensor) -> None:
        """Follow."""
        follow((self.encoder, self.projector), self._followed, progress, self.momentum)

    @torch.no_grad()
    def forward(self, view: View, positions: Tensor) -> Answer:
        """Latents at `positions (B, P)`: `(B, P, D)`."""
        patches, valid = Patches(view.patches, view.grid, view.sensor, view.gsd), view.patch_valid
        latents = self.encoder.encode(patches, positions, None if valid is None else valid.gather(1, positions))
        return Answer((latents.patches if self.projector is None else self.projector(latents, positions)).float())


@torch.no_grad()
def follow(
    copies: Sequence[nn.Module | None], followed: Sequence[nn.Module | None], progress: Tensor, momentum: float
) -> None:
    """Bring copies nearer to what they follow, parameters and stored buffers alike; `momentum` rises to 1."""
    ours, theirs = _numbers(*copies), _numbers(*followed)
    torch._foreach_lerp_(ours, theirs, [falling(progress, 1 - momentum, 0.0)] * len(ours))


def _numbers(*modules: nn.Module | None) -> list[Tensor]:
    every = [one for module in modules if module is not None for one in module.state_dict(keep_vars=True).values()]
    return [local(one) for one in dict.fromkeys(every) if one.is_floating_point()]  # tied weights have several names


class Alike(nn.Module):
    """Cosine that an image's patches should have: falls from 0.75 to 0.25 (Latent MIM, Wei et al., ECCV 2024)."""

    dim: int | None = 1
    wanted: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("wanted", torch.tensor(0.75))

    def before_step(self, progress: Tensor) -> None:
        """Fall."""
        self.wanted.copy_(falling(progress, 0.75, 0.25))

    def forward(self, view: View, positions: Tensor) -> Answer:
        """The same at all `positions (B, P)`: `(B, P, 1)`."""
        return Answer(self.wanted.expand(*positions.shape, 1))
