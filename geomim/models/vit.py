"""The encoder: a plain vision transformer over any subset of its patches, made of timm's blocks.

Parameter names are timm's, so what is trained here leaves as a timm model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from timm.layers.patch_embed import resample_patch_embed
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from geomim.errors import BandError, ConfigError
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

REFERENCE_GSD = 1.0
"""Metres a pixel at which positions that follow it are the plain ones, as in Scale-MAE."""


class Norm(nn.LayerNorm):
    """Layer norm with the epsilon of the published transformers, 1e-6."""

    def __init__(self, width: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(width, eps=1e-6, device=device, dtype=dtype)


@dataclass
class Patches:
    """What an encoder is given of some images.

    Attributes:
        values: `(B, L, p*p*C)` as `patchify` lays them.
        grid: Rows and columns of the L patches.
        sensor: Whose bands they are, by its name among the encoder's contracts; None where it knows but one.
        gsd: `(B,)` metres a pixel; None where unknown.
    """

    values: Tensor
    grid: tuple[int, int]
    sensor: str | None = None
    gsd: Tensor | None = None


@dataclass
class Latents:
    """What an encoder says of a set of patches.

    Attributes:
        tokens: `(B, prefix+K, D)` after the final norm, a class token first where the encoder has one.
        positions: `(B, K)` patch indices in the order of the tokens; None means all patches in raster order.
        key_valid: `(B, prefix+K)` bool, False where a token must not be attended to; None where all may be.
        levels: The tokens before block 0 and after every block, without the final norm; empty unless asked for.
        sensor: As in `Patches`.
        prefix: Class tokens in front, 0 or 1.
        known: What was made of them already, by its maker.
    """

    tokens: Tensor
    positions: Tensor | None = None
    key_valid: Tensor | None = None
    levels: list[Tensor] = field(default_factory=list)
    sensor: str | None = None
    prefix: int = 1
    known: dict[nn.Module, Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def patches(self) -> Tensor:
        """The tokens of the patches, `(B, K, D)`."""
        return self.tokens[:, self.prefix :]


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images into patches.

    Args:
        images: `(B, C, H, W)`, H and W multiples of `patch_size`.
        patch_size: Side of a patch in pixels.

    Returns:
        `(B, L, p*p*C)`: patches in raster order; inside a patch row, column, channel, the channel fastest.

    Raises:
        ConfigError: The image is not a whole number of patches.
    """
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    if rows * patch_size != height or columns * patch_size != width:
        raise ConfigError(f"expected sides that are multiples of the patch size {patch_size}; given {height}x{width}")
    cut = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, patch_size**2 * channels)


def unpatchify(patches: Tensor, grid: tuple[int, int], patch_size: int) -> Tensor:
    """Put patches back together; the inverse of `patchify`, `(B, L, p*p*C)` to `(B, C, H, W)`."""
    batch, (rows, columns) = patches.shape[0], grid
    cut = patches.reshape(batch, rows, columns, patch_size, patch_size, -1)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, rows * patch_size, columns * patch_size)


def take(tokens: Tensor, indices: Tensor) -> Tensor:
    """Gather tokens: `(B, L, D)` at `(B, K)` gives `(B, K, D)`."""
    return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def sincos_positions(width: int, grid: tuple[int, int], scale: Tensor | None = None) -> Tensor:
    """Fixed sine-cosine positions of a patch grid (He et al., CVPR 2022, with a zero row for the class token).

    Args:
        width: Token width, a multiple of 4.
        grid: Rows and columns.
        scale: `(B,)` what one patch counts (Scale-MAE, Reed et al., ICCV 2023, section 3.1); 1 where None.

    Returns:
        `(B or 1, 1 + rows*columns, width)`: the column in the first half, the row in the second.
    """
    if width % 4:
        raise ConfigError(f"sine-cosine positions: expected a width that is a multiple of 4; given {width}")
    scale = torch.ones(1, dtype=torch.float64) if scale is None else scale
    frequency = 1.0 / 10000 ** (torch.arange(width // 4, dtype=scale.dtype, device=scale.device) / (width / 4))
    places = (torch.arange(size, dtype=scale.dtype, device=scale.device)[:, None] for size in grid)
    angles = (scale[:, None, None] * place * frequency for place in places)
    row, column = (torch.cat([angle.sin(), angle.cos()], 2) for angle in angles)
    row, column = row[:, :, None].expand(-1, -1, grid[1], -1), column[:, None].expand(-1, grid[0], -1, -1)
    positions = torch.cat([column, row], 3).flatten(1, 2)
    return F.pad(positions, (0, 0, 1, 0)).float()


class PatchEmbed(nn.Module):
    """A linear map of each patch, stored as the convolution that timm expects.

    Args:
        in_chans: Number of bands.
        width: Token width.
        patch_size: Side of a patch in pixels.
    """

    def __init__(self, in_chans: int, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, width, patch_size, stride=patch_size)

    def channels(self, sensor: str | None = None) -> int:
        """Number of bands."""
        return self.proj.in_channels

    def baked(self, sensor: Sensor) -> tuple[Tensor, Tensor]:
        """Convolution and bias as they are, for a sensor of as many bands."""
        if len(sensor.bands) != self.proj.in_channels:
            raise BandError(f"a plain encoder of {self.proj.in_channels} bands cannot be baked for {sensor.names}")
        assert self.proj.bias is not None
        return self.proj.weight, self.proj.bias

    def forward(self, patches: Tensor, sensor: str | None = None) -> Tensor:
        """Embed patches laid out as `patchify` lays them: `(B, K, p*p*C)` to `(B, K, D)`; the sensor is always its."""
        weight = self.proj.weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(patches, weight, self.proj.bias)


class Readout(nn.Linear):
    """A linear map of tokens to answers, the same for every sensor."""

    def forward(self, tokens: Tensor, sensor: str | None = None) -> Tensor:
        """`(B, P, width)` to `(B, P, out)`."""
        return super().forward(tokens)


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

    Attributes:
        contracts: Bands and statistics of what it is trained on, by sensor; empty where nobody said.
        band_dropout: Probability of a band to be hidden from the encoder in training.
        notes: What was done to start it from published weights, in sentences.
    """

    pos_embed: Tensor
    visible_only = True
    """Whether it can run on some of the patches alone."""
    band_dropout = 0.0
    notes: tuple[str, ...] = ()

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
        self.grid = (image_size // patch_size, image_size // patch_size)
        self.num_patches = self.grid[0] * self.grid[1]
        embed = PatchEmbed(in_chans, width, patch_size)
        self.patch_embed = embed if sensors is None else SpectralPatchEmbed(sensors, width, patch_size)
        self.class_tokens = int(class_token)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if class_token else None
        self.register_buffer("pos_embed", sincos_positions(width, self.grid)[:, 1 - self.class_tokens :])
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, qkv_bias=True, norm_layer=Norm) for _ in range(depth)
        )
        self.norm = Norm(width)
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
    def embed_width(self) -> int:
        """Width of an embedded patch, which a mask token stands for."""
        return self.width

    @property
    def embed_size(self) -> int:
        """Pixels at a side of an embedded patch."""
        return self.patch_size

    @property
    def config(self) -> dict[str, Any]:
        """Plain values to store beside the weights, which `geomim.models.build.from_config` reads."""
        names = ("image_size", "patch_size", "width", "depth", "heads", "mlp_ratio", "gsd_positions", "spectral")
        channels = {} if self.spectral else {"in_chans": self.patch_embed.channels()}
        values = {name: getattr(self, name) for name in names} | {"class_token": bool(self.class_tokens)}
        return {"family": "vit", **channels, **values}

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
        state["patch_embed.proj.bias"] = bias
        told = gsd or contract.sensor.gsd
        scaled = torch.tensor([told * size / self.patch_size]) if told else None
        state["pos_embed"] = self.positions(plain.grid, scaled)
        plain.load_state_dict(state)
        return plain.train(self.training)

    def positions(self, grid: tuple[int, int], gsd: Tensor | None = None) -> Tensor:
        """Position embedding `(1 or B, prefix+L, D)` for a patch grid, resampled where it is not the trained one.

        Where positions follow it, `gsd` is metres a pixel, 0-dim or `(B,)`, NaN where unknown.
        """
        if self.gsd_positions and gsd is not None:
            scale = (gsd.to(self.pos_embed.device).float().reshape(-1) / REFERENCE_GSD).nan_to_num(1.0)
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


def vit(
    in_chans: int = 3,
    image_size: int = 224,
    patch_size: int = 16,
    size: Size = "small",
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    **options: Any,
) -> ViT:
    """A vision transformer of a usual size.

    Args:
        in_chans: Number of bands.
        image_size: Side of the training image in pixels.
        patch_size: Side of a patch in pixels.
        size: One of `SIZES`.
        width: Token width instead of the size's.
        depth: Number of blocks instead of the size's.
        heads: Attention heads instead of the size's; where only `width` is given, one head every 64 channels.
        **options: Further arguments of `ViT`.

    Raises:
        ConfigError: The size is unknown.
    """
    if size not in SIZES:
        raise ConfigError(f"unknown encoder size '{size}'; valid: {', '.join(SIZES)}")
    usual_width, usual_depth, usual_heads = SIZES[size]
    if width is not None and heads is None:
        heads = math.gcd(width, max(1, width // 64))
    sizes = zip((width, depth, heads), (usual_width, usual_depth, usual_heads), strict=True)
    width, depth, heads = (usual if given is None else given for given, usual in sizes)
    return ViT(in_chans, image_size, patch_size, width, depth, heads, **options)
