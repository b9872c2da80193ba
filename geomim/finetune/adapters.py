"""Encoders as other toolkits ask for them, none of which is needed: their configs name a class with its arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from geomim.errors import ConfigError
from geomim.finetune.backbones import open_backbone
from geomim.finetune.necks import Depths, is_hierarchical, taps
from geomim.models.inputs import ContractInput
from geomim.models.ranges import check_range
from geomim.sensors import Band, Sensor


class TerraTorchBackbone(Depths):
    """Maps of four depths as a list, `out_channels` wide, of images that are normalised by `contract`.

    In TerraTorch's `custom_modules`, register a function that returns one: `TERRATORCH_BACKBONE_REGISTRY.register`.

    Args are those of `open_backbone`.
    """

    def __init__(
        self, source: str, sensor: str | None = None, bands: Sequence[str] | None = None, image_size: int | None = None
    ) -> None:
        backbone = open_backbone(source, sensor, bands, image_size)
        super().__init__(backbone.network, taps(backbone.network))
        self.contract, self.notes, self.out_channels = backbone.contract, backbone.notes, list(self.widths)


class PangaeaEncoder(TerraTorchBackbone):
    """An `Encoder` of PANGAEA, whose preprocessing normalises: images of one date and modality to maps.

    `encoder_weights` is what `open_backbone` opens, and `input_bands` names the modality's bands as they come in.
    """

    multi_temporal = multi_temporal_output = False
    model_name, download_url = "geomim", ""

    def __init__(
        self, encoder_weights: str, input_bands: Mapping[str, Sequence[str]], input_size: int, sensor: str | None = None
    ) -> None:
        if len(input_bands) != 1:
            raise ConfigError(f"expected input_bands of one modality; given {', '.join(input_bands) or 'none'}")
        (modality, bands), *_ = input_bands.items()
        super().__init__(encoder_weights, sensor, list(bands), input_size)
        self.modality, self.input_bands, self.input_size = modality, {modality: list(bands)}, input_size
        self.encoder_weights, self.output_layers, self.output_dim = (
            encoder_weights,
            list(self.depths),
            self.out_channels,
        )
        self.embed_dim, self.output_dim = self.widths[-1], self.out_channels
        self.pyramid_output = is_hierarchical(self.network)

    def forward(self, images: Mapping[str, Tensor]) -> list[Tensor]:
        """Maps `(B, output_dim, h, w)` of images `(B, C, H, W)` or `(B, C, 1, H, W)`."""
        given = images[self.modality]
        return super().forward(given[:, :, 0] if given.ndim == 5 else given)

    def load_encoder_weights(self, logger: Any) -> None:
        """Log what was assumed of the weights, which are there."""
        logger.info("; ".join(self.notes))

    def enforce_single_temporal(self) -> None:
        """Do nothing: it knows one date."""

    def freeze(self) -> None:
        """Train none of it."""
        self.requires_grad_(False)


class BenchEncoder(nn.Module):
    """A `BenchModel` of torchgeo-bench, which `BenchModel.register(BenchEncoder)` tells `isinstance`.

    Args:
        bands: `BandSpec`s of the dataset, in the order of the channels.
        source: What `open_backbone` opens.
        normalization: By the encoder's statistics (`model_native`), or by the dataset's (`bandspec_zscore`).
        sensor: What the numbers are, for an encoder of several sensors; told by the bands where None.

    Raises:
        BandError: The dataset lacks a band of the encoder.
        InputError: Its numbers are of another unit than the encoder's (`model_native`).
    """

    def __init__(
        self, bands: Sequence[Any], source: str, normalization: str = "model_native", sensor: str | None = None
    ) -> None:
        super().__init__()
        if normalization not in ("model_native", "bandspec_zscore"):
            raise ConfigError(f"normalization: expected model_native or bandspec_zscore; given {normalization}")
        named = (Band(one.name, one.wavelength_um and 1000 * one.wavelength_um, alias=one.source_name) for one in bands)
        given = Sensor("dataset", tuple(named))
        backbone = open_backbone(source, sensor or given)
        contract, numbers = backbone.contract, backbone.contract.as_stored(given)
        mean, std = (tuple(float(getattr(one, key)) for one in bands) for key in ("mean", "std"))
        if normalization == "model_native":
            spread = torch.tensor([mean, mean]) + torch.tensor([[-1.0], [1.0]]) * torch.tensor(std)
            check_range(ContractInput(contract, numbers), [(spread.T[None, :, None], None)], "the dataset")
        else:
            own = contract.indices(given.bands)
            contract = replace(contract, mean=tuple(mean[at] for at in own), std=tuple(std[at] for at in own))
        self.network, self.notes, self.normalization = backbone.network, backbone.notes, normalization
        self.bands, self.num_channels, self.prepare = list(bands), len(bands), ContractInput(contract, numbers)

    def normalize_inputs(self, images: Tensor) -> Tensor:
        """The encoder's bands `(B, K, H, W)`, normalised, of stored numbers `(B, C, H, W)`."""
        return self.prepare(images)[0]

    def forward(self, images: Tensor) -> Tensor:
        """One vector an image `(B, D)`, the mean of its patches, of stored numbers `(B, C, H, W)`."""
        return self.network(self.normalize_inputs(images))

    forward_patch_features = forward
