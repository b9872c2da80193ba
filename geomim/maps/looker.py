"""What looks at windows of a scene: a model with its bands, its classes, and one call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from geomim.corpus.scenes import Scene
from geomim.maps.windows import Look, Walk
from geomim.models.inputs import patch_validity
from geomim.sensors import BandContract

Prepare = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Stored numbers and validity to normalised images and validity `(B, 1, S, S)`, as `ContractInput` does."""

_MIRRORED: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))


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
        """The same with a value a pixel, interpolated bilinearly between the middles of cells."""
        if self.cell == 1:
            return self

        def look(images: Tensor, valid: Tensor) -> Tensor:
            found = self.look(images, valid)
            return F.interpolate(found, scale_factor=self.cell, mode="bilinear", align_corners=False)

        scaled = self.scaled
        made_by = f"{self.made_by}, by pixel"
        return replace(
            self, cell=1, made_by=made_by, look=look, scaled=scaled and (lambda gsd: scaled(gsd).per_pixel())
        )

    def walk(self, scene: Scene, overlap: float) -> Walk:
        """Where windows lie over a scene that share so much of their side with the next, from 0 to 0.9."""
        side = self.side // self.cell
        return Walk(scene.height, scene.width, self.cell, side, min(round(overlap * side), side - 1))

    def on(self, prepare: Prepare) -> Look:
        """How windows of a scene are looked at, with what brings its numbers to the contract."""

        @torch.inference_mode()
        def look(numbers: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
            images, seen = prepare(numbers.to(self.device), valid.to(self.device))
            cells = (
                seen[:, 0]
                if self.cell == 1
                else patch_validity(seen, self.cell).unflatten(
                    1, (seen.shape[2] // self.cell, seen.shape[3] // self.cell)
                )
            )
            return self.look(images, seen), cells

        return look
