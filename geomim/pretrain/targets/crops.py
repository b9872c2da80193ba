"""What is said of another crop of the same tile."""

from __future__ import annotations

import torch
from torch import Tensor

from geomim.models.crops import CropSpace
from geomim.pretrain.context import View
from geomim.pretrain.targets.answer import Answer


class OtherCrop:
    """What is seen of the asked view, as one vector; with a gradient, as both crops learn.

    Args:
        space: The space where crops of one tile are near each other.
    """

    def __init__(self, space: CropSpace) -> None:
        self.dim: int | None = space.dim
        self._space = space

    def __call__(self, view: View, positions: Tensor) -> Answer:
        """`(B, 1, D)` unit vectors, for a term that has the view among what it reads."""
        assert view.shown is not None, "the term does not read the view that it asks about"
        return Answer(self._space.image(view.shown)[:, None], key=torch.zeros_like(positions[:, 0]))
