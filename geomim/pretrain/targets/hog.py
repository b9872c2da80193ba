"""Histograms of oriented gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from geomim.errors import ConfigError
from geomim.models.vit import ViT
from geomim.pretrain.context import View
from geomim.pretrain.targets.answer import Answer
from geomim.sensors import match_bands


class HOG:
    """Histograms of gradient orientation, one for every cell and band, as DMJD has them (Ma et al., arXiv 2301.00230).

    The gradient is the next minus the previous pixel, 0 across the border of the image and beside nodata; its whole
    magnitude goes to the one bin of its orientation, whose sign does not count. No block is normalised: the bins of
    each cell are standardised. Only the asked-for patches are computed, each with a border of one pixel.
    Numbers of any unit will do; differences of decibels are ratios, as radar wants them, linear radar numbers are not.

    Args:
        encoder: The encoder being trained, for its patch size and bands.
        bands: Bands to describe, by name; all where None.
        bins: Orientations between 0 and 180 degrees.
        cell: Side of a cell in pixels, which divides a patch.
        eps: Added to the variance of the bins, in the units of the normalised image.

    Attributes:
        dim: Values a patch: cell row, cell column, bin, band, the band fastest.

    Raises:
        ConfigError: The patch is not a whole number of cells, or the sensors have different numbers of bands.
        BandError: A sensor lacks a band.
    """

    def __init__(
        self, encoder: ViT, bands: Sequence[str] | None = None, bins: int = 9, cell: int = 8, eps: float = 1e-5
    ) -> None:
        if encoder.patch_size % cell:
            raise ConfigError(f"HOG: expected cells that divide a patch of {encoder.patch_size} px; given {cell} px")
        known = {name: contract.sensor.bands for name, contract in encoder.contracts.items()}
        counts = {len(bands) if bands else len(offered) for offered in known.values()} or {encoder.in_chans}
        if len(counts) > 1:
            raise ConfigError(
                f"HOG: {', '.join(known)} differ in their bands, and one answer is given for all: name bands that "
                "each of them has, as --method.bands '[red,green]'"
            )
        self.places = {name: match_bands(bands, offered) for name, offered in known.items()} if bands else {}
        self.bins, self.cell, self.eps = bins, cell, eps
        self.dim = (encoder.patch_size // cell) ** 2 * bins * counts.pop()

    def __call__(self, view: View, positions: Tensor) -> Answer:
        """Standardised histograms at `positions (B, P)`: `(B, P, dim)`."""
        with torch.no_grad():
            histogram, known = self.histogram(view, positions)
            values = self.whiten(histogram).permute(0, 1, 3, 4, 5, 2)
            element = None if known is None else known.permute(0, 1, 3, 4, 5, 2).expand_as(values).flatten(2).float()
            return Answer(values.flatten(2), element)

    def whiten(self, histogram: Tensor) -> Tensor:
        """Standardise the bins of every cell, with the biased variance."""
        return F.layer_norm(histogram, histogram.shape[-1:], eps=self.eps)

    def histogram(self, view: View, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """Histograms `(B, P, C, rows, columns, bins)` of the cells of each patch.

        Returns:
            Them, and where anything was measured `(B, P, 1, rows, columns, 1)`; None where everything was.
        """
        image = view.image.float()
        if self.places:
            places = self.places[view.sensor or next(iter(self.places))]
            image = torch.stack([image[:, place] for place in places], 1)  # no index to send to the device
        patches = _with_border(image, view, positions)
        across = patches[..., 1:-1, 2:] - patches[..., 1:-1, :-2]
        down = patches[..., 2:, 1:-1] - patches[..., :-2, 1:-1]
        magnitude, known = torch.hypot(across, down), None
        if view.valid is not None:
            valid = _with_border(view.valid, view, positions)
            level, upright = valid[..., 1:-1, :], valid[..., 1:-1]
            usable = level[..., 2:] & level[..., 1:-1] & level[..., :-2] & upright[..., 2:, :] & upright[..., :-2, :]
            magnitude = torch.where(usable, magnitude, 0.0)
            known = self._cells(usable.float())[..., None] > 0
        # opposite directions are one orientation; 180 degrees is 0
        turned = (down < 0) | ((down == 0) & (across < 0))
        across, down = torch.where(turned, -across, across), torch.where(turned, -down, down)
        place = torch.zeros_like(magnitude, dtype=torch.uint8)
        for edge in (math.pi * number / self.bins for number in range(1, self.bins)):
            place += down * math.cos(edge) >= across * math.sin(edge)
        parts = [self._cells(torch.where(place == one, magnitude, 0.0)) for one in range(self.bins)]
        return torch.stack(parts, -1), known

    def _cells(self, pixels: Tensor) -> Tensor:
        """Mean over every cell: `(..., p, p)` to `(..., rows, columns)`."""
        count = pixels.shape[-1] // self.cell
        return pixels.reshape(*pixels.shape[:-2], count, self.cell, count, self.cell).mean((-3, -1))


def _with_border(image: Tensor, view: View, positions: Tensor) -> Tensor:
    """Patches with one pixel around them, mirrored at the border: `(B, P, C, p+2, p+2)`."""
    size = view.encoder.patch_size
    padded = F.pad(image.float(), (1, 1, 1, 1), mode="reflect").to(image.dtype)
    windows = padded.unfold(2, size + 2, size).unfold(3, size + 2, size)
    batch = torch.arange(len(image), device=image.device)[:, None]
    return windows[batch, :, positions // view.grid[1], positions % view.grid[1]]
