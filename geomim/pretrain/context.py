"""What a masking, a target or a term may ask of a batch; each thing is computed once."""

from __future__ import annotations

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

    Attributes:
        grid: Rows and columns of patches.
        length: Number of patches, L.
        patches: `(B, L, p*p*C)`, see `patchify`.
        pixel_valid: `(B, L, p*p)` bool, which pixels of each patch were measured; None where all were.
        patch_valid: `(B, L)` bool, patches with at least `PATCH_VALID` of their pixels measured; None where all are.
    """

    def __init__(self, image: Tensor, valid: Tensor | None, encoder: ViT) -> None:
        self.image, self.valid, self.encoder = image, valid, encoder
        size = encoder.patch_size
        self.grid = (image.shape[2] // size, image.shape[3] // size)
        self.length = self.grid[0] * self.grid[1]
        self.patches = patchify(image, size)
        self.pixel_valid = None if valid is None else patchify(valid, size)
        self.patch_valid = None if self.pixel_valid is None else self.pixel_valid.float().mean(-1) >= PATCH_VALID
        self._tokens: Tensor | None = None

    def tokens(self) -> Tensor:
        """`(B, L, D)` patch embedding plus position, without gradient: what a masking may compare."""
        if self._tokens is None:
            with torch.no_grad():
                self._tokens = self.encoder.embed(self.patches, self.grid).float()
        return self._tokens


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
