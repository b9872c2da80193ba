"""What looks at windows of a scene: a model with its bands, its classes, and one call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from geomim.corpus.scenes import Scene
from geomim.maps.walk.windows import Look, Walk
from geomim.models.inputs import patch_validity
from geomim.sensors import BandContract

Prepare = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Stored numbers and validity to normalised images and validity `(B, 1, S, S)`, as `ContractInput` does."""

_MIRRORED: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))
_LEAST = 1e-6  # of a weight; less is a rounding error


@dataclass(frozen=True)
class Looker:
    """What looks at windows of a scene and says, for each cell, how likely each class is.

    Attributes:
        contract: Bands and statistics of its input.
        side: Of a window in pixels, a multiple of `cell`.
        cell: Pixels along a cell's side: 1 of a segmentation model, the patch of a probe.
        classes: Names in the order of the probabilities.
        made_by: Digest of encoder and head: a map is gone on with by the same one alone.
        look: Normalised images `(B, C, S, S)` and validity `(B, 1, S, S)` bool, on `device`, to probabilities
            `(B, K, S/cell, S/cell)` float32. Images are `(B, dates, C, S, S)` of several dates.
        device: Where it runs.
        notes: What is to be said once.
        gsd: Metres a pixel of what it was fitted on, where they are known.
        scaled: The same for so many metres a pixel, where positions follow them; else None.
        dates: Images of a place that are looked at together.
        patch: Pixels along the side of the patches that pixels are interpolated between; 1 where they are not.
    """

    contract: BandContract
    side: int
    cell: int
    classes: tuple[str, ...]
    made_by: str
    look: Callable[[Tensor, Tensor], Tensor]
    device: torch.device
    notes: tuple[str, ...] = ()
    gsd: float | None = None
    scaled: Callable[[float | None], Looker] | None = None
    dates: int = 1
    patch: int = 1

    def at(self, scene: Scene) -> Looker:
        """The one for the metres a pixel of a scene, where positions follow them."""
        return self.scaled(scene.gsd) if self.scaled else self

    def flipped(self) -> Looker:
        """The mean over a window as it is, mirrored from left to right, upside down, and both."""

        def look(images: Tensor, valid: Tensor) -> Tensor:
            total = torch.zeros(())
            for axes in _MIRRORED:
                total = self.look(images.flip(axes), valid.flip(axes)).flip(axes) + total.to(images.device)
            return total / len(_MIRRORED)

        scaled, made_by = self.scaled, f"{self.made_by}, mirrored"
        return replace(self, made_by=made_by, look=look, scaled=scaled and (lambda gsd: scaled(gsd).flipped()))

    def per_pixel(self) -> Looker:
        """The same with a value a pixel, interpolated bilinearly between the middles of cells that hold image.

        What is said of nodata does not reach into pixels beside it. A pixel without a cell of image around it stays
        unknown, as it is in a map of cells.
        """
        if self.cell == 1:
            return self

        def look(images: Tensor, valid: Tensor) -> Tensor:
            found, held = self.look(images, valid), _held(valid, self.cell)
            weights = _between(held.to(found.dtype), self.cell).clamp_min(_LEAST)
            return _between(torch.where(held, found, 0), self.cell) / weights

        scaled = self.scaled
        made_by = f"{self.made_by}, by pixel"
        scaled_too = scaled and (lambda gsd: scaled(gsd).per_pixel())
        return replace(self, cell=1, patch=self.cell, made_by=made_by, look=look, scaled=scaled_too)

    def walk(self, scene: Scene, overlap: float) -> Walk:
        """Where windows lie over a scene that share so much of their side with the next, from 0 to 0.9."""
        side = self.side // self.cell
        return Walk.over(scene, self.cell, side, overlap)

    def on(self, prepare: Prepare) -> Look:
        """How windows of a scene are looked at, with what brings its numbers to the contract."""

        @torch.inference_mode()
        def look(numbers: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
            images, seen = prepare(numbers.to(self.device), valid.to(self.device))
            return self.look(images, seen), self._known(seen)

        return look

    def _known(self, valid: Tensor) -> Tensor:
        """Which cells of windows with validity `(B, 1, S, S)` something is known of, `(B, S/cell, S/cell)` bool."""
        cells = _held(valid, self.cell)
        if self.patch > 1:
            cells = cells & (_between(_held(valid, self.patch).float(), self.patch) > _LEAST)
        return cells[:, 0]


def _held(valid: Tensor, cell: int) -> Tensor:
    """Which cells of this side hold image, `(B, 1, S/cell, S/cell)` bool."""
    if cell == 1:
        return valid
    return patch_validity(valid, cell).unflatten(1, (1, valid.shape[2] // cell, valid.shape[3] // cell))


def _between(cells: Tensor, cell: int) -> Tensor:
    """Values a cell as values a pixel, bilinearly between the middles of cells."""
    return F.interpolate(cells, scale_factor=cell, mode="bilinear", align_corners=False)
