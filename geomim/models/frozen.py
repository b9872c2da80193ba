"""Vision transformers of others, to be read and never trained; all of them as timm's."""

from __future__ import annotations

import logging
import math
from typing import Any, cast

import timm
import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from geomim.errors import BandError, CheckpointError, GeomimError
from geomim.models.clip import image_tower, is_clip, read_clip
from geomim.models.fitting import fitted
from geomim.models.hierarchical import Encoder, Hierarchical
from geomim.models.vit import ViT
from geomim.models.weights import contract_of, exported_contract, picture_contract, read_encoder
from geomim.sensors import BandContract

_log = logging.getLogger(__name__)


def read_frozen(
    source: str, grid: tuple[int, int], quickgelu: bool | None = None
) -> tuple[VisionTransformer, BandContract]:
    """Read a vision transformer with a class token, its positions resampled to a grid of patches.

    Args:
        source: `timm:NAME`, also `timm:local-dir:FOLDER`; what `read_clip` reads, as `open_clip:NAME/PRETRAINED`; or
            what `read_encoder` reads.
        grid: Rows and columns of patches.
        quickgelu: As for `read_clip`.

    Returns:
        The network in evaluation mode, without gradients, and what numbers it expects.

    Raises:
        CheckpointError: It cannot be had, or is no plain vision transformer with a class token.
        BandError: It names no bands and is not for three.
        ConfigError: `quickgelu` is given for what is no CLIP.
    """
    library, _, name = source.partition(":")
    try:
        if is_clip(source, quickgelu):
            network, contract = _clip(source, quickgelu)
        else:
            network, contract = _timm(name) if library == "timm" else _geomim(source)
    except GeomimError:
        raise
    except Exception as error:  # unknown name, no network, other weights: these libraries raise many kinds
        raise CheckpointError(f"cannot read teacher '{source}' ({' '.join(str(error).split())[:200]})") from error
    plain = isinstance(network, VisionTransformer) and isinstance(cast(Any, network).blocks[-1].attn, Attention)
    if not plain or not network.has_class_token:
        given = type(network).__name__
        raise CheckpointError(f"'{source}': expected a vision transformer with a class token; given {given} without")
    if network.patch_embed.proj.in_channels != len(contract.names):
        raise BandError(f"'{source}' has {network.patch_embed.proj.in_channels} channels and names no bands")
    rows, columns = network.patch_embed.patch_size
    network.set_input_size(img_size=(grid[0] * rows, grid[1] * columns))
    return network.eval().requires_grad_(False), contract


def last_levels(network: VisionTransformer, images: Tensor, count: int) -> tuple[list[Tensor], Tensor]:
    """Tokens after each of the last `count` blocks, and how much the class token attends to each patch in the last.

    Args:
        network: From `read_frozen`, of at least two blocks.
        images: `(B, C, H, W)` as it normalises them.
        count: How many.

    Returns:
        `(B, 1+L, D)` each, class token first, without the final norm; and `(B, L)`, the mean over heads.
    """
    pairs: Any = network.forward_intermediates(
        images, max(2, count), return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
    )
    last: Any = network.blocks[-1]
    mixed = last.attn.qkv(last.norm1(torch.cat(pairs[-2][::-1], 1)))
    queries, keys, _ = mixed.unflatten(-1, (3, last.attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    queries, keys = last.attn.q_norm(queries[:, :, :1]), last.attn.k_norm(keys)
    looks = (queries @ keys.transpose(-2, -1) / math.sqrt(keys.shape[-1])).float().softmax(-1).mean(1)
    levels = [torch.cat([prefix[:, :1], patches], 1).float() for patches, prefix in pairs[-count:]]
    return levels, looks[:, 0, network.num_prefix_tokens :]


def _timm(name: str) -> tuple[Any, BandContract]:
    network: Any = timm.create_model(name, pretrained=True, num_classes=0)
    return network, exported_contract(name) or picture_contract(network.pretrained_cfg)


def _geomim(path: str) -> tuple[Any, BandContract]:
    loaded = read_encoder(path)
    contract = contract_of(loaded, path)[0]
    if loaded.encoder.config.get("gsd_positions"):
        gsd = contract.sensor.gsd
        said = "unknown metres a pixel" if gsd is None else f"{gsd:g} m a pixel, as its sensor has"
        _log.warning("teacher %s: its positions are made for %s, whatever the images have", path, said)
    own = fitted(loaded.encoder, contract)
    return as_timm(own), contract


def as_timm(own: Encoder) -> Any:
    """A plain encoder as the model of timm that its export is."""
    name, arguments = own.timm_arguments()
    network: Any = timm.create_model(name, num_classes=0, **arguments)
    network.load_state_dict((own.network if isinstance(own, Hierarchical) else own).state_dict())
    return network


def _clip(source: str, quickgelu: bool | None) -> tuple[Any, BandContract]:
    clip = read_clip(source, quickgelu)
    for note in clip.notes:
        _log.warning("teacher %s: %s", source, note)
    own, visual = image_tower(clip)[0].encoder, clip.model.visual
    return as_timm(own) if isinstance(own, ViT) else getattr(visual, "trunk", visual), clip.contract
