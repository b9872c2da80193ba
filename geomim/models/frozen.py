"""Vision transformers of others, to be read and never trained: timm's, open_clip's image towers, geomim's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import timm
import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from geomim.errors import BandError, CheckpointError
from geomim.models.vit import PatchEmbed, Patches, patchify
from geomim.models.weights import contract_of, exported_contract, read_encoder
from geomim.sensors import SENSORS, BandContract


@dataclass(frozen=True)
class Frozen:
    """A transformer that is read.

    Attributes:
        network: The transformer, in evaluation mode, without gradients.
        contract: What it expects of the numbers it is given.
        size: Rows and columns of the image it is given, in pixels.
        width: Token width.
        depth: Number of blocks.
        prefix: Tokens before those of the patches; the first of them is the class token.
        levels: `levels(images, count)` gives the tokens after each of the last `count` blocks, `(B, prefix+L, D)`,
            without the final norm.
        norm: What is before the attention of the last block.
        attention: That attention.
    """

    network: nn.Module
    contract: BandContract
    size: tuple[int, int]
    width: int
    depth: int
    prefix: int
    levels: Callable[[Tensor, int], list[Tensor]]
    norm: nn.Module
    attention: Any

    def looks(self, tokens: Tensor) -> Tensor:
        """How much the class token attends to each patch in the last block, mean over heads.

        Args:
            tokens: `(B, prefix+L, D)`, what enters that block.

        Returns:
            `(B, L)`; with what the class token and its like are given, rows sum to 1.
        """
        part, tokens = self.attention, self.norm(tokens)
        torch_own = isinstance(part, nn.MultiheadAttention)
        mixed = F.linear(tokens, part.in_proj_weight, part.in_proj_bias) if torch_own else part.qkv(tokens)
        queries, keys, _ = mixed.unflatten(-1, (3, part.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if not torch_own:
            queries, keys = part.q_norm(queries), part.k_norm(keys)
        logits = queries[:, :, :1] @ keys.transpose(-2, -1) / math.sqrt(queries.shape[-1])
        looks: Tensor = logits.float().softmax(-1).mean(1)[:, 0, self.prefix :]
        return looks


def read_frozen(source: str, grid: tuple[int, int]) -> Frozen:
    """Read a vision transformer with a class token, its positions resampled to a grid of patches.

    Args:
        source: `timm:NAME`, also `timm:local-dir:FOLDER`; `open_clip:NAME/PRETRAINED`; or what `read_encoder` reads.
        grid: Rows and columns of patches.

    Raises:
        CheckpointError: It cannot be had, or is no plain vision transformer with a class token.
        BandError: It names no bands and is not for three.
    """
    library, _, name = source.partition(":")
    if library == "timm":
        read = _of_timm(source, _create(source, timm.create_model, name, pretrained=True, num_classes=0), grid)
    elif library == "open_clip":
        read = _of_open_clip(source, name, grid)
    else:
        read = _of_geomim(source, grid)
    read.network.eval().requires_grad_(False)
    return read


def _create(source: str, create: Callable[..., Any], *args: Any, **options: Any) -> Any:
    try:
        return create(*args, **options)
    except Exception as error:  # unknown name, no network: these libraries raise many kinds
        raise CheckpointError(f"cannot read '{source}' ({' '.join(str(error).split())[:200]})") from error


def _refuse(source: str, given: Any) -> CheckpointError:
    return CheckpointError(
        f"'{source}': expected a plain vision transformer with a class token; given {type(given).__name__}"
    )


def _of_timm(source: str, network: Any, grid: tuple[int, int], cfg: dict[str, Any] | None = None) -> Frozen:
    if not (isinstance(network, VisionTransformer) and network.has_class_token):
        raise _refuse(source, network)
    network, cfg = cast(Any, network), cfg or cast(dict[str, Any], network.pretrained_cfg)
    folder = source.removeprefix("timm:local-dir:")
    contract = exported_contract(folder) if folder != source else None
    if contract is None:
        if network.patch_embed.proj.in_channels != 3:
            raise BandError(f"'{source}' has {network.patch_embed.proj.in_channels} channels and names no bands")
        mean, std = (tuple(255 * value for value in cfg[key]) for key in ("mean", "std"))
        contract = BandContract(SENSORS["rgb"], mean, std)
    patch = network.patch_embed.patch_size
    size = (grid[0] * patch[0], grid[1] * patch[1])
    network.set_input_size(img_size=size)

    def levels(images: Tensor, count: int) -> list[Tensor]:
        pairs = network.forward_intermediates(
            images, count, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
        )
        return [torch.cat([prefix, patches], 1) for patches, prefix in pairs]

    last, prefix = network.blocks[-1], network.num_prefix_tokens
    return Frozen(
        network, contract, size, network.embed_dim, len(network.blocks), prefix, levels, last.norm1, last.attn
    )


def _of_open_clip(source: str, name: str, grid: tuple[int, int]) -> Frozen:
    try:
        import open_clip
        from open_clip.transformer import VisionTransformer as ImageTower
    except ImportError as error:
        raise CheckpointError(f"'{source}' needs open_clip: pip install 'geomim[language]'") from error
    name, _, tag = name.partition("/")
    if not tag:
        raise CheckpointError(f"'{source}': expected open_clip:NAME/PRETRAINED, such as open_clip:ViT-B-16/openai")
    network = _create(source, open_clip.create_model, name, pretrained=tag, require_pretrained=True).visual
    cfg = open_clip.get_model_preprocess_cfg(network)
    if hasattr(network, "trunk"):
        return _of_timm(source, network.trunk, grid, cfg)
    last: Any = network.transformer.resblocks[-1] if isinstance(network, ImageTower) else network
    if not isinstance(getattr(last, "attn", None), nn.MultiheadAttention):
        raise _refuse(source, network)
    positions = network.positional_embedding
    resampled = resample_abs_pos_embed(positions[None], list(grid), list(network.grid_size))[0]
    network.positional_embedding = nn.Parameter(resampled)
    mean, std = (tuple(255 * value for value in cfg[key]) for key in ("mean", "std"))

    def levels(images: Tensor, count: int) -> list[Tensor]:
        found = network.forward_intermediates(
            images, count, intermediates_only=True, output_fmt="NLC", output_extra_tokens=True
        )
        pairs = zip(found["image_intermediates_prefix"], found["image_intermediates"], strict=True)
        return [torch.cat(pair, 1) for pair in pairs]

    size = (grid[0] * network.patch_size[0], grid[1] * network.patch_size[1])
    contract = BandContract(SENSORS["rgb"], mean, std)
    depth = len(network.transformer.resblocks)
    return Frozen(network, contract, size, positions.shape[1], depth, 1, levels, last.ln_1, last.attn)


def _of_geomim(source: str, grid: tuple[int, int]) -> Frozen:
    loaded = read_encoder(source)
    encoder = loaded.encoder
    if not isinstance(encoder.patch_embed, PatchEmbed):
        raise CheckpointError(f"'{source}' knows several sensors: export it for one, and give that folder")
    if not encoder.class_tokens:
        raise _refuse(source, encoder)
    contract, _ = contract_of(loaded, source)
    size = (grid[0] * encoder.patch_size, grid[1] * encoder.patch_size)

    def levels(images: Tensor, count: int) -> list[Tensor]:
        return encoder.encode(Patches(patchify(images, encoder.patch_size), grid), levels=True).levels[-count:]

    last: Any = encoder.blocks[-1]
    return Frozen(encoder, contract, size, encoder.width, encoder.depth, 1, levels, last.norm1, last.attn)
