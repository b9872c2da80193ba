"""The encoder that a run trains: what the `--encoder` arguments mean, and how a stored one is made again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from geomim.errors import ConfigError
from geomim.models.vit import Size, ViT, vit
from geomim.sensors import BandContract


def build_encoder(
    contracts: Mapping[str, BandContract],
    image_size: int = 224,
    patch_size: int = 16,
    size: Size = "small",
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    class_token: bool = True,
    spectral: bool = False,
    band_dropout: float = 0.0,
    gsd_positions: bool = False,
    weights: str | None = None,
    fill: Literal["nearest", "zero"] = "nearest",
) -> ViT:
    """Make an encoder for some sensors.

    Args:
        contracts: Bands and statistics of each sensor that it is trained on.
        image_size: Side of the training image in pixels.
        patch_size: Side of a patch in pixels.
        size: Usual width, depth and heads, by name.
        width: Token width instead of the size's.
        depth: Number of blocks instead of the size's.
        heads: Attention heads instead of the size's; where only `width` is given, one head every 64 channels.
        class_token: Put a class token in front of the patches.
        spectral: Make the kernel of every band from its wavelength, so that one encoder takes any sensor.
        band_dropout: Probability of a band to be hidden from the encoder in training; it is still asked for.
        gsd_positions: Positions follow the metres a pixel, where the tiles tell them.
        weights: Start from published weights: `timm:NAME`, or a checkpoint, an exported folder or a published file.
        fill: Kernels of bands that the weights lack: those of the nearest wavelength, or zero.

    Raises:
        ConfigError: There are several sensors, which a plain encoder cannot tell apart, or a number is out of range.
        BandError: A band of a spectral encoder has neither wavelength nor polarisation.
        CheckpointError: The weights cannot be read, or are of another encoder.
    """
    if len(contracts) > 1 and not spectral:
        raise ConfigError(
            f"the corpora are of several sensors ({', '.join(contracts)}), and a plain encoder knows one: give "
            "--encoder.spectral true, or corpora of one sensor"
        )
    if not 0 <= band_dropout < 1:
        raise ConfigError(f"encoder.band_dropout: expected 0 or more and below 1; given {band_dropout}")
    sensors = {name: contract.sensor for name, contract in contracts.items()}
    bands = len(next(iter(sensors.values())).bands)
    options = {"class_token": class_token, "gsd_positions": gsd_positions, "sensors": sensors if spectral else None}
    encoder = vit(bands, image_size, patch_size, size, width, depth, heads, **options)
    encoder.band_dropout = band_dropout
    if weights:
        from geomim.models.inflate import start  # reads weights, which makes encoders

        encoder.notes = start(encoder, list(sensors.values()), weights, fill)
    return encoder


def from_config(config: Mapping[str, Any], contracts: Mapping[str, BandContract]) -> ViT:
    """An encoder by its `config`, with fresh weights; a spectral one is made for the bands of `contracts`."""
    values = {key: value for key, value in config.items() if key not in ("family", "spectral")}
    if config.get("spectral"):
        values["sensors"] = {name: contract.sensor for name, contract in contracts.items()}
    return ViT(**values)
