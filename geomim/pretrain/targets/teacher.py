"""What a frozen network says of an image: features of its last levels, and where it looks."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import torch
import xxhash
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.nn import functional as F

from geomim.errors import BandError, ConfigError
from geomim.models.frozen import last_levels, read_frozen
from geomim.models.inputs import ContractInput
from geomim.models.patches import take
from geomim.models.vit import ViT
from geomim.pretrain.context import View
from geomim.pretrain.targets.answer import Answer
from geomim.sensors import BandContract

_FAR, _FLAT = 8, 0.01
"""Mean or deviation of a band, and deviation of all bands, in the teacher's, that only a wrong unit explains."""

_log = logging.getLogger(__name__)


class FrozenTeacher:
    """A trained network that sees every view whole; computed once a view, without gradient.

    It finds its bands among those of the corpus by name or wavelength, in its own numbers and normalisation, and gets
    the image resized to as many of its patches as the encoder has, so that they cover the same ground. Reflectance is
    given to a network of 8-bit pictures as 255 times it. Its weights are no part of a checkpoint: they are read again,
    and their hash is compared.

    Args:
        source: As for `read_frozen`.
        encoder: The encoder being trained, for its grid and the contracts of its bands.
        levels: How many of its last blocks are kept.
        cache: Folder of its features of whole tiles: a view that brings those is not looked at. None where it has none.
        quickgelu: As for `read_frozen`.

    Attributes:
        weights: Hash of its weights.
        identity: What its features follow from, as plain values.

    Raises:
        BandError: A band of the teacher is not in the corpus, or its numbers cannot be the teacher's.
        ConfigError: It has fewer blocks than levels are asked for, or nobody said what the encoder's bands are.
        CheckpointError: See `read_frozen`.
    """

    def __init__(
        self, source: str, encoder: ViT, levels: int = 5, cache: str | None = None, quickgelu: bool | None = None
    ) -> None:
        if not encoder.contracts:
            raise ConfigError("a teacher needs to know what bands it is given: expected an encoder with band contracts")
        self.source, self.grid, self.levels = source, encoder.grid, levels
        self.network, expected = read_frozen(source, encoder.grid, quickgelu)
        self.width, depth = self.network.embed_dim, len(self.network.blocks)
        if not 1 <= levels <= depth or depth < 2:
            raise ConfigError(f"'{source}' has {depth} blocks: expected 1 to as many levels; given {levels}")
        self.bands = {name: _bands(source, expected, given) for name, given in encoder.contracts.items()}
        self.cache, self.shape = cache or "", (1 + encoder.num_patches, levels * self.width + 1)
        weights = xxhash.xxh3_128()
        for name, value in self.network.state_dict().items():
            if not name.startswith(("pos_embed", "patch_embed")):  # fitted here: last digits differ between machines
                weights.update(value.contiguous().numpy())
        self.weights = weights.hexdigest()
        own = {"weights": self.weights, "grid": self.grid, "bands": self.bands}
        self.identity: dict[str, Any] = {"teacher": source, "levels": levels} | own
        self.identity |= {} if quickgelu is None else {"quickgelu": quickgelu}

    def __call__(self, view: View) -> tuple[list[Tensor], Tensor]:
        """Tokens after its last blocks, `(B, 1+L, D)` each, and its attention to patches `(B, L)`; see `last_levels`.

        Raises:
            ConfigError: The view is of another size than the encoder was made for.
        """
        if view.grid != self.grid:
            raise ConfigError(f"teacher '{self.source}': expected {self.grid} patches; given {view.grid}")
        if self.cache and view.teacher is not None:
            *levels, looks = torch.split(view.teacher, [self.width] * self.levels + [1], -1)
            return levels, looks[:, 1:, 0]
        return view.once(self, lambda: self._read(view.image, view.valid, view.sensor))

    def features(self, batch: dict[str, Any]) -> Tensor:
        """What a cache keeps of a normalised batch, `(B, *shape)`: tokens of all levels, then attention to them."""
        levels, looks = self._read(batch["image"], batch.get("valid"), batch["sensor"])
        return torch.cat([*levels, F.pad(looks, (1, 0))[..., None]], -1)

    @torch.no_grad()
    def _read(self, image: Tensor, valid: Tensor | None, sensor: str | None) -> tuple[list[Tensor], Tensor]:
        if next(self.network.parameters()).device != image.device:
            self.network.to(image.device)
        bands = self.bands[sensor or next(iter(self.bands))]
        images = torch.stack([image[:, place].float() * std + mean for place, std, mean in bands], 1)
        if valid is not None:
            images = torch.where(valid, images, 0.0)
        if images.shape[-2:] != (size := self.network.patch_embed.img_size):
            images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        return last_levels(self.network, images, self.levels)


def _bands(source: str, wanted: BandContract, given: BandContract) -> list[tuple[int, float, float]]:
    """Channel of each band of the teacher; deviation and mean of the corpus in it, in the teacher's own deviations."""
    sensor, unit = given.sensor, "reflectance"
    try:
        if wanted.eight_bit and {sensor.meaning(at)[0] for at in wanted.indices(sensor.bands)} == {unit}:
            wanted = dataclasses.replace(wanted, sensor=dataclasses.replace(wanted.sensor, unit=unit, scale=1 / 255))
        prepare = ContractInput(wanted, sensor)
    except BandError as error:
        raise BandError(f"teacher '{source}' cannot see '{sensor.name}': {error}") from error
    scaling = zip(prepare.indices, prepare.factor.flatten().tolist(), prepare.shift.flatten().tolist(), strict=True)
    found = [(at, factor * given.divisor[at], factor * given.mean[at] + shift) for at, factor, shift in scaling]
    seen = ", ".join(f"{given.names[at]} ({mean:+.1f} +- {std:.2g})" for at, std, mean in found)
    if any(max(abs(mean), std) > _FAR for _, std, mean in found) or all(std < _FLAT for _, std, _ in found):
        raise BandError(
            f"teacher '{source}' knows other numbers than those of '{sensor.name}': in its own deviations they are "
            f"{seen}; expected within {_FAR} and no less than +- {_FLAT}: build the corpus with a sensor whose unit, "
            "scale and offset are theirs"
        )
    rank_zero_only(_log.warning)("teacher %s sees %s of %s, in its own deviations", source, seen, sensor.name)
    return found


class TeacherLevels:
    """The last levels of a teacher side by side, each standardised over its channels (Xue et al., CVPR 2023).

    Args:
        teacher: The teacher.

    Attributes:
        dim: Levels times its width, the last level last.
    """

    def __init__(self, teacher: FrozenTeacher) -> None:
        self.teacher, self.dim = teacher, teacher.levels * teacher.width

    def __call__(self, view: View, positions: Tensor) -> Answer:
        """Features of the class token and at `positions (B, P)`: `(B, 1+P, dim)`."""
        places = F.pad(positions + 1, (1, 0))
        levels = [take(level, places) for level in self.teacher(view)[0]]
        return Answer(torch.cat([F.layer_norm(level, level.shape[-1:]) for level in levels], -1))
