"""The encoder that a run trains: what the `--encoder` arguments mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from geomim.errors import ConfigError
from geomim.models.hierarchical import SWIN_SIZES, Encoder, swin_v2
from geomim.models.vit import Size, ViT, vit
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

    Raises:
        ConfigError: There are several sensors, which a plain encoder cannot tell apart; or the sizes do not fit.
    """
    if len(contracts) > 1:
        raise ConfigError(f"the corpora are of several sensors ({', '.join(contracts)}): a plain encoder knows one")
    (contract,) = contracts.values()
    if family == "swinv2":
        sizes = zip((width, depth, heads), SWIN_SIZES[size], strict=True)
        width, third, first = (usual if given is None else given for given, usual in sizes)
        stages = (2, 2, third, 2), [first << stage for stage in range(4)]
        encoder: Encoder = swin_v2(len(contract.names), image_size, patch_size or 4, width, *stages, window)
    elif window is not None:
        raise ConfigError("--encoder.window is of a Swin: expected --encoder.family swinv2 with it")
    else:
        encoder = vit(len(contract.names), image_size, patch_size or 16, size, width, depth, heads, class_token)
    encoder.contracts = dict(contracts)
    return encoder


def from_config(config: Mapping[str, Any]) -> Encoder:
    """The encoder that a `config` describes, with the weights it would start training from.

    Raises:
        ConfigError: The family is unknown.
    """
    values = dict(config)
    family = values.pop("family", "vit")
    if family not in ("vit", "swinv2"):
        raise ConfigError(f"unknown family of encoders '{family}'")
    return swin_v2(**values) if family == "swinv2" else ViT(**values)
