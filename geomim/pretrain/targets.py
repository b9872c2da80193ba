"""What is asked for at a position; never with gradient.

A target is called as `target(view, positions)`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from geomim.models.vit import ViT, take
from geomim.pretrain.context import View


class Answer(NamedTuple):
    """The right answers at some positions.

    Attributes:
        values: `(B, P, T)` float32.
        element: `(B, P, T)` float, 0 for values that were not measured; None where all were.
    """

    values: Tensor
    element: Tensor | None = None


class Target(Protocol):
    """Anything that gives answers of a fixed size."""

    dim: int

    def __call__(self, view: View, positions: Tensor) -> Answer:
        """Answers at `positions (B, P)`."""
        ...


class Pixels:
    """The pixels of a patch, raw or normalised to zero mean and unit variance (MAE, He et al., CVPR 2022, section 4.1).

    Statistics are over the measured pixels and all bands of the patch, with the unbiased variance.

    Args:
        encoder: Gives patch size and number of bands.
        normalise: `patch` or `none`.
        eps: Added to the variance; keeps flat water from amplifying sensor noise.
    """

    def __init__(self, encoder: ViT, normalise: Literal["patch", "none"] = "patch", eps: float = 1e-6) -> None:
        self.dim = encoder.patch_size**2 * encoder.in_chans
        self.normalise, self.eps = normalise, eps

    def __call__(self, view: View, positions: Tensor) -> Answer:
        """Pixels at `positions (B, P)`: `(B, P, p*p*C)`, row, column, channel."""
        with torch.no_grad():
            values, element = self._pixels(view, positions)
            if self.normalise == "patch":
                mean, scale = self._statistics(values, element)
                values = (values - mean) / scale
            return Answer(values, element)

    def to_pixels(self, view: View, positions: Tensor, prediction: Tensor) -> Tensor:
        """Undo the normalisation of a prediction with the true patch statistics, to look at it."""
        if self.normalise == "none":
            return prediction.float()
        mean, scale = self._statistics(*self._pixels(view, positions))
        return prediction.float() * scale + mean

    def _pixels(self, view: View, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        values = take(view.patches, positions).float()
        if view.pixel_valid is None:
            return values, None
        bands = values.shape[-1] // view.pixel_valid.shape[-1]
        return values, take(view.pixel_valid, positions).float().repeat_interleave(bands, -1)

    def _statistics(self, values: Tensor, element: Tensor | None) -> tuple[Tensor, Tensor]:
        if element is None:
            variance, mean = torch.var_mean(values, -1, keepdim=True)
        else:
            count = element.sum(-1, keepdim=True)
            mean = (values * element).sum(-1, keepdim=True) / count.clamp(min=1)
            variance = ((values - mean).square() * element).sum(-1, keepdim=True) / (count - 1).clamp(min=1)
        return mean, (variance + self.eps).sqrt()
