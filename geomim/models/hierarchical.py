"""Hierarchical encoders of timm: they see all patches, and what is hidden as a mask token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn

from geomim.errors import ConfigError
from geomim.models.patches import Latents, Patches, Readout, patchify, unpatchify
from geomim.models.vit import ViT
from geomim.sensors import BandContract

SWIN_SIZES: dict[str, tuple[int, int, int]] = {
    "tiny": (96, 6, 3),
    "small": (96, 18, 3),
    "base": (128, 18, 4),
    "large": (192, 18, 6),
    "huge": (352, 18, 11),
    "giant": (512, 42, 16),
}
"""Width of an embedded patch, blocks of the third stage, and heads of the first: of Swin V2's usual sizes."""


class Hierarchical(nn.Module):
    """A model of timm that shows `patch_embed` and `forward_features`, as an encoder.

    Hidden patches are embedded and then replaced, so none of their numbers goes on. Windows attend to all that is in
    them: what was not measured must be hidden too.

    Args:
        network: The model, without a classifier.
        config: What it is made from, to store beside the weights.

    Attributes:
        patch_size: Pixels at a side that an output token covers.
        embed_size: Pixels at a side of an embedded patch, which a mask token stands for.
    """

    visible_only = False
    band_dropout = 0.0
    notes: tuple[str, ...] = ()
    source: str | None = None
    rights: tuple[dict[str, Any], ...] = ()

    def __init__(self, network: Any, config: dict[str, Any]) -> None:
        super().__init__()
        self.network, self.config, embed = network, config, network.patch_embed
        self.in_chans, self.embed_width = int(embed.proj.in_channels), int(embed.proj.out_channels)
        self.image_size, self.embed_size = int(embed.img_size[0]), int(embed.patch_size[0])
        self.patch_size, self.width = int(network.feature_info[-1]["reduction"]), int(network.num_features)
        self.class_tokens = int(getattr(network, "num_prefix_tokens", 0))
        self.depth, self.heads = sum(config.get("depths", ())), config.get("heads")
        self.grid = (self.image_size // self.patch_size, self.image_size // self.patch_size)
        self.num_patches = self.grid[0] * self.grid[1]
        self.contracts: dict[str, BandContract] = {}
        self._veil: tuple[Tensor, Tensor] | None = None
        embed.register_forward_hook(self._hide)

    def pixel_head(self, width: int) -> nn.Module:
        """As of `ViT`, with `p` the output stride."""
        return Readout(width, self.patch_size**2 * self.in_chans)

    def _hide(self, module: nn.Module, inputs: Any, embedded: Tensor) -> Tensor:
        """Put the mask token in the place of hidden embedded patches, `(B, l, D)` or `(B, h, w, D)`."""
        if self._veil is None:
            return embedded
        hidden, token = self._veil
        side = math.isqrt(hidden.shape[1])
        times = self.image_size // self.embed_size // side
        hidden = hidden.view(-1, side, side).repeat_interleave(times, 1).repeat_interleave(times, 2)
        return torch.where(hidden.view(*embedded.shape[:-1], 1), token.to(embedded.dtype).view(-1), embedded)

    def encode(
        self,
        patches: Patches,
        indices: Tensor | None = None,
        key_valid: Tensor | None = None,
        levels: bool = False,
        hidden: Tensor | None = None,
        mask_token: Tensor | None = None,
    ) -> Latents:
        """Run the model over all patches.

        Args:
            patches: Some images, in patches of `patch_size`.
            indices: Refused: it cannot run on some of the patches.
            key_valid: Not used: windows have no mask for keys.
            levels: Refused: its stages have grids of their own.
            hidden: `(B, l)` bool, the cells that `mask_token` stands for: on the grid of the output, of the embedding,
                or one between.
            mask_token: `(1, 1, embed_width)`.

        Raises:
            ConfigError: Some patches or levels are asked for, or the image is not of the trained size.
        """
        if indices is not None or levels:
            raise ConfigError("a hierarchical encoder sees all patches and gives one level: use --encoder.family vit")
        if patches.grid != self.grid:
            given = "x".join(str(side * self.patch_size) for side in patches.grid)
            raise ConfigError(f"expected images of {self.image_size}x{self.image_size} px, as trained; given {given}")
        self._veil = None if hidden is None or mask_token is None else (hidden, mask_token)
        features = self.network.forward_features(unpatchify(patches.values, patches.grid, self.patch_size))
        self._veil = None
        tokens = features.flatten(1, 2) if features.ndim == 4 else features
        return Latents(tokens, sensor=patches.sensor, prefix=self.class_tokens)

    def forward(self, images: Tensor, sensor: str | None = None, gsd: Tensor | None = None) -> Latents:
        """Encode whole images `(B, C, H, W)`.

        Raises:
            ConfigError: The number of bands or the size is not the encoder's.
        """
        if images.shape[1] != self.in_chans:
            raise ConfigError(f"expected images (B, {self.in_chans}, H, W); given {tuple(images.shape)}")
        grid = (images.shape[2] // self.patch_size, images.shape[3] // self.patch_size)
        return self.encode(Patches(patchify(images, self.patch_size), grid, sensor, gsd))

    def timm_arguments(self) -> tuple[str, dict[str, Any]]:
        """Name of an architecture and arguments that make timm build the same model."""
        theirs = ("in_chans", "img_size", "patch_size", "embed_dim", "depths", "num_heads", "window_size")
        ours = ("in_chans", "image_size", "embed_size", "width", "depths", "heads", "window")
        arguments = {their: self.config[our] for their, our in zip(theirs, ours, strict=True)}
        return "swinv2_base_window8_256", {**arguments, "global_pool": "avg"}


Encoder = ViT | Hierarchical


def swin_v2(
    in_chans: int,
    image_size: int,
    embed_size: int,
    width: int,
    depths: Sequence[int],
    heads: Sequence[int],
    window: int | None = None,
) -> Hierarchical:
    """Swin V2 (Liu et al., CVPR 2022), timm's, as an encoder; no drop path, whose randomness would not be addressed.

    Args:
        in_chans: Number of bands.
        image_size: Side of the training image in pixels.
        embed_size: Side of an embedded patch in pixels; every stage but the first doubles it.
        width: Width of an embedded patch; every stage but the first doubles it.
        depths: Blocks of each stage.
        heads: Attention heads of each stage.
        window: Side of an attention window in patches; the one nearest to 8 that fits where None.

    Raises:
        ConfigError: The image does not divide into patches, or a stage's grid not into windows.
    """
    stride = embed_size * 2 ** (len(depths) - 1)
    grids = [image_size // (embed_size << stage) for stage in range(len(depths))]
    fitting = [one for one in range(1, 33) if all(grid <= one or grid % one == 0 for grid in grids)]
    found = window or min((one for one in fitting if one > 3), key=lambda one: abs(one - 8), default=0)
    if image_size % stride or found not in fitting:
        raise ConfigError(
            f"expected a Swin's image_size to be a multiple of {stride} px, and the grids of its stages "
            f"({', '.join(map(str, grids))}) to divide into windows{f' of {window}' if window else ''}, as into "
            f"--encoder.window {fitting}; given {image_size}"
        )
    if any(width * 2**stage % count for stage, count in enumerate(heads)):
        raise ConfigError(f"expected a Swin's width {width}, doubled by stage, as multiples of its heads {list(heads)}")
    config: dict[str, Any] = {"family": "swinv2", "in_chans": in_chans, "image_size": image_size}
    config |= {"embed_size": embed_size, "width": width, "depths": list(depths), "heads": list(heads), "window": found}
    network = SwinTransformerV2(
        image_size, embed_size, in_chans, 0, "avg", width, tuple(depths), tuple(heads), found, drop_path_rate=0.0
    )
    return Hierarchical(network, config)
