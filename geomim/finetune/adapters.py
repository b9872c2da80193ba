"""Encoders in the form that other toolkits ask for; none of them is needed, nor torchgeo.

Each takes what `open_backbone` opens, and the toolkit's own config may name the class, with its arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from geomim.errors import ConfigError
from geomim.finetune.backbones import open_backbone
from geomim.finetune.necks import Depths, is_hierarchical, taps
from geomim.models.inputs import ContractInput
from geomim.models.ranges import check_range
from geomim.sensors import Band, Sensor


class TerraTorchBackbone(Depths):
    """Maps of several depths as a list, `out_channels` wide, which is what a backbone of TerraTorch gives.

    In its `custom_modules`, a function that returns one is registered by `TERRATORCH_BACKBONE_REGISTRY.register`.

    Args:
        source: What `open_backbone` opens; `sensor`, `bands` and `image_size` are for it, too.
        depths: How many maps.

    Attributes:
        contract: Bands, and the means and deviations that a datamodule is to be given.
    """

    def __init__(
        self,
        source: str,
        depths: int = 4,
        sensor: str | None = None,
        bands: Sequence[str] | None = None,
        image_size: int | None = None,
    ) -> None:
        backbone = open_backbone(source, sensor, bands, image_size)
        super().__init__(backbone.network, taps(backbone.network, depths))
        self.contract, self.notes, self.out_channels = backbone.contract, backbone.notes, list(self.widths)


class PangaeaEncoder(TerraTorchBackbone):
    """An `Encoder` of PANGAEA, of one date: `{modality: images}` to maps; its preprocessing normalises.

    Args:
        encoder_weights: What `open_backbone` opens.
        input_bands: One modality, and its bands by name in the order they come in, as the dataset has them.
        input_size: Side of the images in pixels.
        sensor: Of an encoder of several.

    Raises:
        ConfigError: There are several modalities.
    """

    multi_temporal = multi_temporal_output = False
    model_name, download_url = "geomim", ""

    def __init__(
        self, encoder_weights: str, input_bands: Mapping[str, Sequence[str]], input_size: int, sensor: str | None = None
    ) -> None:
        if len(input_bands) != 1:
            raise ConfigError(f"expected input_bands of one modality; given {', '.join(input_bands) or 'none'}")
        (self_modality, bands), *_ = input_bands.items()
        super().__init__(encoder_weights, 4, sensor, list(bands), input_size)
        self.modality, self.input_bands = self_modality, {self_modality: list(bands)}
        self.encoder_weights, self.input_size, self.output_layers = encoder_weights, input_size, list(self.depths)
        self.embed_dim, self.output_dim = self.widths[-1], self.out_channels
        self.pyramid_output = is_hierarchical(self.network)

    def forward(self, images: Mapping[str, Tensor]) -> list[Tensor]:
        """Maps `(B, output_dim, h, w)` of images `(B, C, H, W)` or `(B, C, 1, H, W)`."""
        given = images[self.modality]
        return super().forward(given[:, :, 0] if given.ndim == 5 else given)

    def load_encoder_weights(self, logger: Any) -> None:
        """Say what was assumed of the weights, which are there."""
        for note in self.notes:
            logger.info(note)

    def enforce_single_temporal(self) -> None:
        """Nothing: it knows one date."""

    def freeze(self) -> None:
        """Train none of it."""
        self.requires_grad_(False)


class BenchEncoder(nn.Module):
    """A `BenchModel` of torchgeo-bench: stored numbers of a dataset to one vector an image, the mean of its patches.

    `BenchModel.register(BenchEncoder)` makes it one for `isinstance`, too.

    Args:
        bands: The dataset's, in the order of the channels: `name`, `source_name`, `wavelength_um`, `mean` and `std`.
        source: What `open_backbone` opens.
        normalization: By the encoder's statistics (`model_native`), or by the dataset's (`bandspec_zscore`).
        sensor: What the numbers are, of an encoder of several sensors; told by the bands where None.

    Raises:
        BandError: The dataset lacks a band of the encoder.
        ConfigError: There is no such normalization.
        InputError: The dataset's numbers are of another unit than the encoder's (`model_native`).
    """

    def __init__(
        self,
        bands: Sequence[Any],
        source: str,
        normalization: Literal["model_native", "bandspec_zscore"] | str = "model_native",
        sensor: str | None = None,
    ) -> None:
        super().__init__()
        own = normalization == "model_native"
        if not own and normalization != "bandspec_zscore":
            raise ConfigError(f"normalization: expected model_native or bandspec_zscore; given {normalization}")
        lengths = [one.wavelength_um and 1000 * one.wavelength_um for one in bands]
        named = zip(bands, lengths, strict=True)
        given = Sensor("dataset", tuple(Band(one.name, length, alias=one.source_name) for one, length in named))
        backbone = open_backbone(source, sensor or given)
        contract, numbers = backbone.contract, backbone.contract.as_stored(given)
        if own:
            low, high = (torch.tensor([one.mean + sign * one.std for one in bands]) for sign in (-1, 1))
            sample = torch.stack([low, high], 1)[None, :, None]
            check_range(ContractInput(contract, numbers), [(sample, None)], "the dataset")
        else:
            found = [bands[place] for place in contract.indices(given.bands)]
            mean, std = (tuple(float(getattr(one, key)) for one in found) for key in ("mean", "std"))
            contract = replace(contract, mean=mean, std=std)
        self.network, self.notes, self.normalization = backbone.network, backbone.notes, normalization
        self.bands, self.num_channels, self.prepare = list(bands), len(bands), ContractInput(contract, numbers)

    def normalize_inputs(self, images: Tensor) -> Tensor:
        """The encoder's bands `(B, K, H, W)`, normalised, of stored numbers `(B, C, H, W)`."""
        return self.prepare(images)[0]

    def forward(self, images: Tensor) -> Tensor:
        """Vectors `(B, D)` of stored numbers `(B, C, H, W)`."""
        vectors: Tensor = self.network(self.normalize_inputs(images))
        return vectors

    forward_patch_features = forward
