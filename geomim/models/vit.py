"""The encoder: a plain vision transformer over any subset of its patches, made of timm's blocks.

Parameter names are timm's, so what is trained here leaves as a timm model.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from timm.layers.activations import QuickGELU
from timm.layers.norm import LayerNorm as Norm
from timm.layers.patch_embed import resample_patch_embed
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from geomim.errors import ConfigError
from geomim.models.patches import Latents, PatchEmbed, Patches, Readout, patchify, sincos_positions, take
from geomim.models.spectral import SpectralPatchEmbed, SpectralReadout
from geomim.sensors import BandContract, Sensor

Size = Literal["tiny", "small", "base", "large", "huge", "giant"]

SIZES: dict[str, tuple[int, int, int]] = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
"""Width, depth and heads of the usual sizes."""


class ViT(nn.Module):
    """A vision transformer over any subset of tokens (Dosovitskiy et al., ICLR 2021; positions as in MAE).

    Patches are gathered before they are embedded, so a hidden pixel never reaches the network.

    Args:
        in_chans: Number of bands.
        image_size: Side of the square training image in pixels.
        patch_size: Side of a patch in pixels.
        width: Token width, a multiple of 4 and of `heads`.
        depth: Number of blocks.
        heads: Attention heads.
        mlp_ratio: Hidden width of the MLP over `width`.
        class_token: Put a class token in front of the patches.
        gsd_positions: Positions follow the metres a pixel where a batch tells them, in the line of Scale-MAE.
        sensors: Make the kernel of every band from its wavelength, for these sensors by name instead of `in_chans`.
        clip: Be as CLIP's image towers (Radford et al., ICML 2021): a norm before the blocks and no bias in front of
            it, norms with an epsilon of 1e-5, and this activation; QuickGELU in OpenAI's models and RemoteCLIP.

    Attributes:
        contracts: Bands and statistics of what it is trained on, by sensor; empty where nobody said.
        embed_size: Pixels at a side of an embedded patch, which a mask token stands for; `embed_width` wide.
        band_dropout: Probability of a band to be hidden from the encoder in training.
        notes: What was done to start it from published weights, in sentences.
        source: Where those came from, as it was given; None where it started at random.
        rights: Of those and of what they started from: `weights`, and lists of `licences` and `attributions`.
    """

    pos_embed: Tensor
    visible_only = True
    """Whether it can run on some of the patches alone."""
    band_dropout = 0.0
    notes: tuple[str, ...] = ()
    source: str | None = None
    rights: tuple[dict[str, Any], ...] = ()

    def __init__(
        self,
        in_chans: int = 3,
        image_size: int = 224,
        patch_size: int = 16,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        class_token: bool = True,
        gsd_positions: bool = False,
        sensors: Mapping[str, Sensor] | None = None,
        clip: Literal["gelu", "quick_gelu"] | None = None,
    ) -> None:
        super().__init__()
        if min(in_chans, image_size, patch_size, width, depth, heads) < 1 or image_size % patch_size or width % heads:
            raise ConfigError(
                f"expected image_size a multiple of patch_size and width a multiple of heads, and all at least 1; "
                f"given {image_size}/{patch_size} and {width}/{heads}, depth {depth}"
            )
        self.contracts: dict[str, BandContract] = {}
        self.image_size, self.patch_size, self.gsd_positions = image_size, patch_size, gsd_positions
        self.width, self.depth, self.heads, self.mlp_ratio = width, depth, heads, mlp_ratio
        self.embed_size, self.embed_width = patch_size, width
        self.grid = (image_size // patch_size, image_size // patch_size)
        self.num_patches = self.grid[0] * self.grid[1]
        self.clip, bias = clip, clip is None
        norm: Any = Norm if clip is None else partial(Norm, eps=1e-5)
        embed = PatchEmbed(in_chans, width, patch_size, bias)
        self.patch_embed = embed if sensors is None else SpectralPatchEmbed(sensors, width, patch_size, bias)
        self.class_tokens = int(class_token)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if class_token else None
        self.register_buffer("pos_embed", sincos_positions(width, self.grid)[:, 1 - self.class_tokens :])
        self.norm_pre = nn.Identity() if clip is None else norm(width)
        activation = QuickGELU if clip == "quick_gelu" else nn.GELU
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, qkv_bias=True, norm_layer=norm, act_layer=activation) for _ in range(depth)
        )
        self.norm = norm(width)
        self.apply(init_weights)
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=0.02)
        if isinstance(self.patch_embed, PatchEmbed):
            nn.init.xavier_uniform_(self.patch_embed.proj.weight.data.flatten(1))

    @property
    def in_chans(self) -> int:
        """Number of bands, where it knows one sensor."""
        return self.patch_embed.channels()

    @property
    def spectral(self) -> bool:
        """Whether it takes any bands, whose kernels it makes."""
        return isinstance(self.patch_embed, SpectralPatchEmbed)

    @property
    def config(self) -> dict[str, Any]:
        """Plain values to store beside the weights, which `geomim.models.build.from_config` reads."""
        names = ("image_size", "patch_size", "width", "depth", "heads", "mlp_ratio", "gsd_positions", "spectral")
        channels = {} if self.spectral else {"in_chans": self.patch_embed.channels()}
        values = {name: getattr(self, name) for name in names} | {"class_token": bool(self.class_tokens)}
        return {"family": "vit", **channels, **values, **({"clip": self.clip} if self.clip else {})}

    def pixel_head(self, width: int) -> nn.Module:
        """The last layer of a decoder of pixels: `head(tokens, sensor)` of `(B, P, width)` gives `(B, P, p*p*C)`."""
        if isinstance(self.patch_embed, SpectralPatchEmbed):
            return SpectralReadout(self.patch_embed.sensors, width, self.patch_size)
        return Readout(width, self.patch_size**2 * self.in_chans)

    @torch.no_grad()
    def bake(self, contract: BandContract, gsd: float | None = None, patch_size: int | None = None) -> ViT:
        """A plain encoder for one sensor, which need not be one that it was trained on.

        Args:
            contract: The bands, in the order of the channels.
            gsd: Metres a pixel, where positions follow it; those of the sensor where None.
            patch_size: Another patch size: kernels resized by pseudo-inverse (FlexiViT, Beyer et al., CVPR 2023,
                section 3.4), positions resampled.

        Raises:
            BandError: It is a plain one of another number of bands, or a band's kernel cannot be made.
            ConfigError: The image size is no multiple of the patch size.
        """
        kernel, bias = self.patch_embed.baked(contract.sensor)
        size = patch_size or self.patch_size
        own = self.config | {"in_chans": len(contract.names), "patch_size": size, "gsd_positions": False}
        plain = ViT(**{key: value for key, value in own.items() if key not in ("family", "spectral")})
        state = {name: value for name, value in self.state_dict().items() if not name.startswith("patch_embed.")}
        state["patch_embed.proj.weight"] = resample_patch_embed(kernel, [size, size])
        if bias is not None:
            state["patch_embed.proj.bias"] = bias
        told = contract.sensor.gsd if gsd is None else gsd
        scaled = torch.tensor([told * size / self.patch_size]) if told else None
        state["pos_embed"] = self.positions(plain.grid, scaled)
        plain.load_state_dict(state)
        return plain.train(self.training)

    def timm_arguments(self) -> tuple[str, dict[str, Any]]:
        """Name of an architecture and arguments that make timm build the same model, of a plain one."""
        sizes = {size: name for name, size in SIZES.items()}
        name = sizes.get((self.width, self.depth, self.heads), "base")
        usual = "vit_huge_patch14_224" if name == "huge" else f"vit_{name}_patch16_224"
        clips = {"gelu": "vit_base_patch16_clip_224", "quick_gelu": "vit_base_patch16_clip_quickgelu_224"}
        return clips.get(self.clip or "", usual), {
            "img_size": self.image_size,
            "patch_size": self.patch_size,
            "in_chans": self.in_chans,
            "class_token": bool(self.class_tokens),
            "embed_dim": self.width,
            "depth": self.depth,
            "num_heads": self.heads,
            "mlp_ratio": self.mlp_ratio,
            "global_pool": "avg",
            "fc_norm": False,  # keeps the final norm where it was trained, before the pooling
            "dynamic_img_size": True,
        }

    def positions(self, grid: tuple[int, int], gsd: Tensor | None = None) -> Tensor:
        """Position embedding `(1 or B, prefix+L, D)` for a patch grid, resampled where it is not the trained one.

        Where positions follow it, `gsd` is metres a pixel, 0-dim or `(B,)`, NaN where unknown: 1, whose positions are
        the plain ones.
        """
        if self.gsd_positions and gsd is not None:
            scale = gsd.to(self.pos_embed.device).float().reshape(-1).nan_to_num(1.0)
            return sincos_positions(self.width, grid, scale)[:, 1 - self.class_tokens :]
        if grid == self.grid:
            return self.pos_embed
        resampled: Tensor = resample_abs_pos_embed(self.pos_embed, grid, self.grid, num_prefix_tokens=self.class_tokens)
        return resampled

    def embed(
        self,
        patches: Patches,
        indices: Tensor | None = None,
        hidden: Tensor | None = None,
        mask_token: Tensor | None = None,
    ) -> Tensor:
        """Embed patches and add their positions; no class token.

        Args:
            patches: Some images.
            indices: `(B, K)` patches to embed; all where None.
            hidden: `(B, L)` bool, the patches that `mask_token` stands for; none where None.
            mask_token: `(1, 1, D)`.

        Returns:
            `(B, K, D)`.
        """
        positions = self.positions(patches.grid, patches.gsd)[:, self.class_tokens :]
        positions = positions.expand(len(patches.values), -1, -1)
        values = patches.values
        if indices is not None:
            values, positions = take(values, indices), take(positions, indices)
        embedded: Tensor = self.patch_embed(values, patches.sensor)
        if hidden is not None and mask_token is not None:
            embedded = torch.where(hidden[..., None], mask_token.to(embedded.dtype), embedded)
        return embedded + positions

    def encode(
        self,
        patches: Patches,
        indices: Tensor | None = None,
        key_valid: Tensor | None = None,
        levels: bool = False,
        hidden: Tensor | None = None,
        mask_token: Tensor | None = None,
    ) -> Latents:
        """Run the transformer over some patches.

        Args:
            patches: Some images.
            indices: `(B, K)` patches to see; all where None.
            key_valid: `(B, K)` bool, False for patches that no token may attend to; None where all may be.
            levels: Keep the tokens before block 0 and after every block.
            hidden: `(B, L)` bool, the patches that `mask_token` stands for; with all patches only.
            mask_token: `(1, 1, D)`.

        Returns:
            The latents of class token and patches.
        """
        tokens = self.embed(patches, indices, hidden, mask_token)
        if self.cls_token is not None:
            class_token = self.cls_token + self.positions(patches.grid)[:, :1]
            tokens = torch.cat([class_token.expand(len(tokens), -1, -1), tokens], 1)
        if key_valid is not None:
            key_valid = F.pad(key_valid, (self.class_tokens, 0), value=True)
        tokens = self.norm_pre(tokens)
        mask = None if key_valid is None else key_valid[:, None, None, :]
        kept = [tokens] if levels else []
        for block in self.blocks:
            tokens = block(tokens, attn_mask=mask)
            if levels:
                kept.append(tokens)
        return Latents(self.norm(tokens), indices, key_valid, kept, patches.sensor, self.class_tokens)

    def forward(
        self,
        images: Tensor,
        indices: Tensor | None = None,
        key_valid: Tensor | None = None,
        levels: bool = False,
        sensor: str | None = None,
        gsd: Tensor | None = None,
    ) -> Latents:
        """Encode images `(B, C, H, W)`; the other arguments as in `encode` and `Patches`.

        Raises:
            ConfigError: The number of bands is not the encoder's.
        """
        if images.shape[1] != (channels := self.patch_embed.channels(sensor)):
            raise ConfigError(f"expected images (B, {channels}, H, W); given {tuple(images.shape)}")
        grid = (images.shape[2] // self.patch_size, images.shape[3] // self.patch_size)
        return self.encode(Patches(patchify(images, self.patch_size), grid, sensor, gsd), indices, key_valid, levels)


def init_weights(module: nn.Module) -> None:
    """Xavier-uniform linear layers with zero bias, as MAE starts."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
