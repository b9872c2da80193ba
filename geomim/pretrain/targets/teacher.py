"""What a frozen network says of an image: features of its last levels, and where it looks."""

from __future__ import annotations

import dataclasses
import logging
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from geomim.errors import BandError, ConfigError
from geomim.models.frozen import Frozen, read_frozen
from geomim.models.inputs import ContractInput
from geomim.models.vit import ViT, take
from geomim.pretrain.context import View
from geomim.pretrain.targets.answer import Answer
from geomim.sensors import BandContract

_FAR = 8
"""Deviations between a band's mean and the teacher's that no unit explains but a wrong one."""

_log = logging.getLogger(__name__)


class States(NamedTuple):
    """What a teacher says of a view.

    Attributes:
        levels: Tokens after each of its last blocks, `(B, 1+L, D)`, the class token first, without the final norm.
        attention: `(B, L)`, how much its class token attends to each patch in the last block.
    """

    levels: list[Tensor]
    attention: Tensor


class FrozenTeacher:
    """A trained network that sees every view whole; computed once a view, without gradient.

    It finds its bands among those of the corpus by name or wavelength, in its own numbers and normalisation, and gets
    the image resized to as many of its patches as the encoder has, so that they cover the same ground. Reflectance is
    given to a network of 8-bit pictures as 255 times it. Its weights are no part of a checkpoint: they are read again.

    Args:
        source: As for `read_frozen`.
        encoder: The encoder being trained, for its grid and the contracts of its bands.
        levels: How many of its last blocks are kept.

    Raises:
        BandError: A band of the teacher is not in the corpus, or its numbers cannot be the teacher's.
        ConfigError: It has fewer blocks than levels are asked for, or nobody said what the encoder's bands are.
        CheckpointError: See `read_frozen`.
    """

    def __init__(self, source: str, encoder: ViT, levels: int = 5) -> None:
        if not encoder.contracts:
            raise ConfigError("a teacher needs to know what bands it is given: expected an encoder with band contracts")
        self.source, self.grid, self.kept = source, encoder.grid, levels
        self.network = read_frozen(source, encoder.grid)
        depth, (rows, columns) = self.network.depth, self.network.size
        if not 1 <= levels <= depth or depth < 2:
            raise ConfigError(f"'{source}' has {depth} blocks: expected 1 to as many levels; given {levels}")
        self.bands = {name: _bands(source, self.network, one) for name, one in encoder.contracts.items()}
        for name, bands in self.bands.items():
            names = encoder.contracts[name].names
            seen = ", ".join(f"{names[place]} ({mean:+.1f} +- {std:.1f})" for place, std, mean in bands)
            _log.warning(
                "teacher %s sees %s of %s, in its deviations, at %d x %d px", source, seen, name, rows, columns
            )

    def __call__(self, view: View) -> States:
        """What it says of a view.

        Raises:
            ConfigError: The view is of another size than the encoder was made for.
        """
        if view.grid != self.grid:
            raise ConfigError(f"teacher '{self.source}': expected {self.grid} patches; given {view.grid}")
        return view.once(self, lambda: self._read(view))

    @torch.no_grad()
    def _read(self, view: View) -> States:
        teacher, bands = self.network, self.bands[view.sensor or next(iter(self.bands))]
        if next(teacher.network.parameters()).device != view.image.device:
            teacher.network.to(view.image.device)
        images = torch.stack([view.image[:, place].float() * std + mean for place, std, mean in bands], 1)
        if view.valid is not None:
            images = torch.where(view.valid, images, 0.0)
        if images.shape[-2:] != teacher.size:
            images = F.interpolate(images, teacher.size, mode="bilinear", antialias=True, align_corners=False)
        tokens = teacher.levels(images, max(2, self.kept))
        levels = [torch.cat([one[:, :1], one[:, teacher.prefix :]], 1).float() for one in tokens[-self.kept :]]
        return States(levels, teacher.looks(tokens[-2]))


def _bands(source: str, teacher: Frozen, given: BandContract) -> list[tuple[int, float, float]]:
    """Channel, factor and shift from the normalised image to each band of the teacher, as it normalises it.

    They are deviation and mean of the corpus in the teacher's deviations.
    """
    wanted, sensor = teacher.contract, given.sensor
    if wanted.eight_bit and sensor.unit == "reflectance":
        wanted = dataclasses.replace(wanted, sensor=dataclasses.replace(wanted.sensor, unit=sensor.unit, scale=1 / 255))
    try:
        prepare = ContractInput(wanted, sensor)
    except BandError as error:
        raise BandError(f"teacher '{source}' cannot see '{sensor.name}': {error}") from error
    factors, shifts = prepare.factor.flatten().tolist(), prepare.shift.flatten().tolist()
    found = [
        (place, factor * given.divisor[place], factor * given.mean[place] + shift)
        for place, factor, shift in zip(prepare.indices, factors, shifts, strict=True)
    ]
    far = [f"{given.names[place]} {mean:+.3g}" for place, std, mean in found if abs(mean) > _FAR or std > _FAR]
    if far:
        raise BandError(
            f"teacher '{source}' knows other numbers than those of '{sensor.name}': in its deviations from its mean, "
            f"bands lie at {', '.join(far)}, expected within {_FAR}: say unit, scale and offset in the corpus's sensor"
        )
    return found


class TeacherLevels:
    """The last levels of a teacher side by side, each standardised over its channels (MaskAlign, section 3.2).

    Args:
        teacher: The teacher.

    Attributes:
        dim: Levels times its width, the last level last.
    """

    def __init__(self, teacher: FrozenTeacher) -> None:
        self.teacher, self.dim = teacher, teacher.kept * teacher.network.width

    def __call__(self, view: View, positions: Tensor) -> Answer:
        """Features of the class token and at `positions (B, P)`: `(B, 1+P, dim)`."""
        places = F.pad(positions + 1, (1, 0))
        levels = [take(level, places) for level in self.teacher(view).levels]
        return Answer(torch.cat([F.layer_norm(level, level.shape[-1:]) for level in levels], -1))
