"""The encoder that a run trains: what the `--encoder` arguments mean."""

from __future__ import annotations

from collections.abc import Mapping

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

    Raises:
        ConfigError: There are several sensors, which a plain encoder cannot tell apart.
    """
    if len(contracts) > 1:
        raise ConfigError(f"the corpora are of several sensors ({', '.join(contracts)}): a plain encoder knows one")
    (contract,) = contracts.values()
    return vit(len(contract.names), image_size, patch_size, size, width, depth, heads, class_token)
