"""The encoder that a run trains: what the `--encoder` arguments mean, and how a stored one is made again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from geomim.errors import ConfigError
from geomim.models.hierarchical import SWIN_SIZES, Encoder, swin_v2
from geomim.models.vit import SIZES, Size, ViT
from geomim.sensors import BandContract


def build_encoder(
    contracts: Mapping[str, BandContract],
    image_size: int = 224,
    family: Literal["vit", "swinv2"] = "vit",
    patch_size: int | None = None,
    size: Size = "small",
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    class_token: bool = True,
    window: int | None = None,
    spectral: bool = False,
    band_dropout: float = 0.0,
    gsd_positions: bool = False,
    clip: Literal["gelu", "quick_gelu"] | None = None,
    weights: str | None = None,
    fill: Literal["nearest", "zero"] = "nearest",
) -> Encoder:
    """Make an encoder for some sensors.

    Args:
        contracts: Bands and statistics of each sensor that it is trained on.
        image_size: Side of the training image in pixels.
        family: A plain transformer, or the hierarchical Swin V2, for recipes that hide patches behind mask tokens.
        patch_size: Side of an embedded patch in pixels; 16 where not given, 4 of a Swin.
        size: Usual width, depth and heads, by name.
        width: Token width instead of the size's; of a Swin that of the first stage.
        depth: Number of blocks instead of the size's; of a Swin those of the third stage.
        heads: Attention heads instead of the size's, of a Swin in the first stage; where only `width` of a plain
            transformer is given, one head every 64 channels.
        class_token: Put a class token in front of the patches; a Swin has none.
        window: Side of a Swin's attention windows in patches; the one nearest to 8 that fits where not given.
        spectral: Make the kernel of every band from its wavelength, so that one encoder takes any sensor.
        band_dropout: Probability of a band to be hidden from the encoder in training; it is still asked for.
        gsd_positions: Positions follow the metres a pixel, where the tiles tell them.
        clip: Be as CLIP's image towers, with this activation: a norm before the blocks. For weights of theirs.
        weights: Start from published weights: `timm:NAME`, `open_clip:NAME/PRETRAINED` or `remoteclip:PATH`, the image
            tower of a CLIP, or a checkpoint, an exported folder or a published file.
        fill: Kernels of bands that the weights lack: a share of the nearest one's, which keeps half, or zero.

    Raises:
        ConfigError: There are several sensors, which a plain encoder cannot tell apart; the sizes do not fit, a number
            is out of range, or the family lacks what is asked for.
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
    swin = family == "swinv2"
    if swin and (spectral or gsd_positions or clip or weights):
        raise ConfigError("--encoder.spectral, gsd_positions, clip and weights are of --encoder.family vit")
    if window is not None and not swin:
        raise ConfigError("--encoder.window is of a Swin: expected --encoder.family swinv2 with it")
    sensors = {name: contract.sensor for name, contract in contracts.items()}
    shape = len(next(iter(sensors.values())).bands), image_size, patch_size or (4 if swin else 16)
    width, depth, heads = _sizes(swin, size, width, depth, heads)
    encoder: Encoder
    if swin:
        encoder = swin_v2(*shape, width, (2, 2, depth, 2), [heads << stage for stage in range(4)], window)
    else:
        sizes, made = (*shape, width, depth, heads), sensors if spectral else None
        encoder = ViT(*sizes, class_token=class_token, gsd_positions=gsd_positions, sensors=made, clip=clip)
    encoder.contracts, encoder.band_dropout = dict(contracts), band_dropout
    if weights and isinstance(encoder, ViT):
        from geomim.models.inflate import start  # reads weights, which makes encoders

        encoder.notes, encoder.source = start(encoder, list(sensors.values()), weights, fill), weights
    return encoder


def _sizes(swin: bool, size: Size, width: int | None, depth: int | None, heads: int | None) -> tuple[int, int, int]:
    """Width, depth and heads: what is given, else the size's own."""
    known = SWIN_SIZES if swin else SIZES
    if size not in known:
        raise ConfigError(f"unknown encoder size '{size}'; valid: {', '.join(known)}")
    if width is not None and heads is None and not swin:
        heads = math.gcd(width, max(1, width // 64))
    both = zip((width, depth, heads), known[size], strict=True)
    width, depth, heads = (usual if given is None else given for given, usual in both)
    return width, depth, heads


def from_config(config: Mapping[str, Any], contracts: Mapping[str, BandContract] | None = None) -> Encoder:
    """An encoder by its `config`, with the weights it would start training from.

    Args:
        config: What an encoder says of itself.
        contracts: Whose bands a spectral one is made for, by name.

    Raises:
        ConfigError: The family is unknown.
    """
    values = {key: value for key, value in config.items() if key not in ("family", "spectral")}
    family = config.get("family", "vit")
    if family not in ("vit", "swinv2"):
        raise ConfigError(f"unknown family of encoders '{family}'")
    if config.get("spectral"):
        values["sensors"] = {name: contract.sensor for name, contract in (contracts or {}).items()}
    return swin_v2(**values) if family == "swinv2" else ViT(**values)
