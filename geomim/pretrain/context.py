"""What a masking, a target or a term may ask of a batch; each thing is computed once, and only when asked for."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from geomim.models.vit import ViT, patchify
from geomim.randomness import Draws

PATCH_VALID = 0.5
"""Least share of valid pixels of a patch that may be predicted."""


class View:
    """One image of every sample: the crop itself, another date, another mask.

    Args:
        image: `(B, C, H, W)` normalised pixels.
        valid: `(B, 1, H, W)` bool, False where nothing was measured; None where everything was.
        encoder: The encoder, for patch size and embedding.
    """

    def __init__(self, image: Tensor, valid: Tensor | None, encoder: ViT) -> None:
        self.image, self.valid, self.encoder = image, valid, encoder
        size = encoder.patch_size
        self.grid = (image.shape[2] // size, image.shape[3] // size)
        self.length = self.grid[0] * self.grid[1]

    @cached_property
    def patches(self) -> Tensor:
        """`(B, L, p*p*C)`, see `patchify`."""
        return patchify(self.image, self.encoder.patch_size)

    @cached_property
    def pixel_valid(self) -> Tensor | None:
        """`(B, L, p*p)` bool: which pixels of each patch were measured."""
        return None if self.valid is None else patchify(self.valid, self.encoder.patch_size)

    @cached_property
    def patch_valid(self) -> Tensor | None:
        """`(B, L)` bool: patches with at least `PATCH_VALID` of their pixels measured."""
        return None if self.pixel_valid is None else self.pixel_valid.float().mean(-1) >= PATCH_VALID

    @cached_property
    def tokens(self) -> Tensor:
        """`(B, L, D)` patch embedding plus position, without gradient: what a masking may compare."""
        with torch.no_grad():
            return self.encoder.embed(self.patches, self.grid).float()


class Context:
    """One batch while it goes through an objective.

    Args:
        batch: `image (B, C, H, W)`, optionally `valid (B, 1, H, W)`, and further `views: {name: {image, valid}}`.
        encoder: The encoder being trained.
        draws: Addressed random numbers of the batch.
    """

    def __init__(self, batch: dict, encoder: ViT, draws: Draws) -> None:  # type: ignore[type-arg]
        self.draws = draws
        self.views = {"image": View(batch["image"], batch.get("valid"), encoder)}
        for name, view in batch.get("views", {}).items():
            self.views[name] = View(view["image"], view.get("valid"), encoder)

    def image_weight(self, view: str, min_valid: float) -> Tensor | None:
        """`(B,)` float: 0 for images with less than `min_valid` of their patches valid; None where all are."""
        patch_valid = self.views[view].patch_valid
        return None if patch_valid is None else (patch_valid.float().mean(1) >= min_valid).float()
