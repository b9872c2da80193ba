"""What is said of an image in words, and what patches mean in the space of images and sentences."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from geomim.models.joint import Joint, unit
from geomim.models.patches import Latents, Patches, take
from geomim.models.vit import ViT
from geomim.pretrain.context import View
from geomim.pretrain.targets.answer import Answer
from geomim.pretrain.targets.latent import follow


class Sentences:
    """The sentence of each image, as the text tower says it: the one target with a gradient, where the tower learns.

    Args:
        joint: The space of images and sentences.
        followed: Whose copy of the text tower says what the prototypes are, where it has one.
    """

    def __init__(self, joint: Joint, followed: Meanings | None = None) -> None:
        self.dim: int | None = joint.dim
        self._joint, self._followed = joint, followed

    def knows(self, view: View) -> Tensor:
        """`(B,)`: 0 for images without a sentence."""
        return known(view)

    def before_step(self, progress: Tensor) -> None:
        """Bring the temperature back into its range, beyond which it would have no gradient."""
        self._joint.limit()

    def __call__(self, view: View, positions: Tensor) -> Answer:
        """`(B, 1, D)` unit vectors; each distinct sentence of the batch is encoded once."""
        text = view.text
        if text is None:
            nothing = torch.zeros(len(view.image), 1, self._joint.dim, device=view.image.device)
            return Answer(nothing, key=torch.full_like(positions[:, 0], -1))
        known = ("sentences", torch.is_grad_enabled())  # a step of several batches looks without gradient first
        vectors = view.once(known, lambda: self._joint.sentences(text["tokens"]))
        row, followed = text["of"].clamp(min=0), self._followed
        steady = (lambda: followed.sentences(text["tokens"])[row, None]) if followed and followed.speaks else None
        return Answer(vectors[row, None], key=torch.where(text["of"] >= 0, text["key"][row], -1), prototype=steady)


def known(view: View) -> Tensor:
    """`(B,)` float: 0 for images of a view without a sentence."""
    if view.text is None:
        return torch.zeros(len(view.image), device=view.image.device)
    return (view.text["of"] >= 0).float()


class Meanings(nn.Module):
    """What the whole image makes of each patch, in the space of images and sentences (RILS, Yang et al., CVPR 2023).

    Args:
        encoder: The encoder to train.
        joint: The space.
        teacher: `encoder` looks at all patches without gradient, or what a term before found there; `ema` is a copy
            that follows the encoder, the projection, and where prototypes are sentences of the batch a text tower that
            learns.
        momentum: What that copy keeps of itself in the first step; rises to 1 along half a cosine.
        needs_text: Images without a sentence have no answer.
        copied: A copy of the encoder that follows it already, to be used instead of another one.
    """

    def __init__(
        self,
        encoder: ViT,
        joint: Joint,
        teacher: Literal["encoder", "ema"] = "encoder",
        momentum: float = 0.99,
        needs_text: bool = True,
        copied: ViT | None = None,
    ) -> None:
        super().__init__()
        self.dim: int | None = joint.dim
        self.momentum, self.needs_text = momentum, needs_text
        learns = any(one.requires_grad for one in joint.text.parameters())
        parts: dict[str, nn.Module] = {"projection": joint.projection}
        parts |= {} if copied else {"encoder": encoder}
        parts |= {"text": joint.text} if needs_text and learns else {}
        self._followed, self._copied = (parts, joint), (copied,)  # in tuples, since they are no parts of this one
        self.copy = nn.ModuleDict(copy.deepcopy(parts)) if teacher == "ema" else None
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Meanings:
        """Stay as in evaluation."""
        return super().train(False)

    def knows(self, view: View) -> Tensor:
        """`(B,)`: 0 for images of which nothing is said, where that is needed."""
        return known(view) if self.needs_text else torch.ones(len(view.image), device=view.image.device)

    def before_step(self, progress: Tensor) -> None:
        """Follow, where it is a copy."""
        if self.copy is not None:
            parts = self._followed[0]
            follow([self.copy[name] for name in parts], list(parts.values()), progress, self.momentum)

    @torch.no_grad()
    def forward(self, view: View, positions: Tensor) -> Answer:
        """Unit vectors at `positions (B, P)`: `(B, P, D)`."""
        if self.copy is None:
            whole: Latents = view.whole or view.latents()
            projection: nn.Module = self._followed[1].projection
        else:
            encoder, projection = self._copied[0] or self.copy["encoder"], self.copy["projection"]
            patches = Patches(view.patches, view.grid, view.sensor, view.gsd)
            whole = encoder.encode(patches, None, view.patch_valid)  # type: ignore[operator]
        return Answer(unit(projection(take(whole.patches, positions))))

    @property
    def speaks(self) -> bool:
        """Whether there is a copy of the text tower."""
        return self.copy is not None and "text" in self.copy

    @torch.no_grad()
    def sentences(self, tokens: Tensor) -> Tensor:
        """Unit vectors `(U, D)` of sentences, as the copy of the text tower says them."""
        assert self.copy is not None
        return unit(self.copy["text"](tokens))
