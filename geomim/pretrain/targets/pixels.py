"""Pixels, raw or normalised per patch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from geomim.models.patches import take
from geomim.pretrain.context import View
from geomim.pretrain.targets.answer import Answer


class Pixels:
    """The pixels of a patch, raw or normalised to zero mean and unit variance (MAE, He et al., CVPR 2022, section 4.1).

    Statistics are over the measured pixels and all bands of the patch, with the unbiased variance. Where a view is
    hidden on a finer grid than that of its patches, only hidden pixels count.

    Args:
        normalise: `patch` or `none`.
    """

    dim: int | None = None

    def __init__(self, normalise: Literal["patch", "none"] = "patch") -> None:
        self.normalise = normalise

    def __call__(self, view: View, positions: Tensor) -> Answer:
        """Pixels at `positions (B, P)`: `(B, P, p*p*C)`, row, column, channel."""
        with torch.no_grad():
            values, element = self._pixels(view, positions)
            if self.normalise == "patch":
                mean, scale = self._statistics(values, element)
                values = (values - mean) / scale
            if view.hidden is not None:
                hidden = self._each_band(take(view.pixels_of(view.hidden), positions).float(), values)
                element = hidden if element is None else element * hidden
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
        return values, self._each_band(take(view.pixel_valid, positions).float(), values)

    def _each_band(self, pixels: Tensor, values: Tensor) -> Tensor:
        """What `(B, P, p*p)` says of a pixel, for each of its bands."""
        return pixels.repeat_interleave(values.shape[-1] // pixels.shape[-1], -1)

    def _statistics(self, values: Tensor, element: Tensor | None) -> tuple[Tensor, Tensor]:
        if element is None:
            variance, mean = torch.var_mean(values, -1, keepdim=True)
        else:
            count = element.sum(-1, keepdim=True)
            mean = (values * element).sum(-1, keepdim=True) / count.clamp(min=1)
            variance = ((values - mean).square() * element).sum(-1, keepdim=True) / (count - 1).clamp(min=1)
        return mean, (variance + 1e-6).sqrt()  # flat water does not amplify sensor noise
