"""Patches: cut from images, placed, embedded, and read out again; and what encoders are given and say of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geomim.errors import BandError, ConfigError
from geomim.sensors import Sensor


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

    def mean(self) -> Tensor:
        """Mean of the patches that may be attended to, `(B, D)` float32."""
        tokens, valid = self.patches.float(), self.key_valid
        return tokens.mean(1) if valid is None else masked_mean(tokens, valid[:, self.prefix :])


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


def masked_mean(tokens: Tensor, seen: Tensor) -> Tensor:
    """Mean of the tokens `(B, L, D)` that are `seen (B, L)`; of all where none is."""
    weight = torch.where(seen.any(1, keepdim=True), seen, True).to(tokens.dtype)
    return torch.einsum("bld,bl->bd", tokens, weight) / weight.sum(1, keepdim=True)


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
        bias: Add one.
    """

    def __init__(self, in_chans: int, width: int, patch_size: int, bias: bool = True) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, width, patch_size, stride=patch_size, bias=bias)

    def channels(self, sensor: str | None = None) -> int:
        """Number of bands."""
        return self.proj.in_channels

    def baked(self, sensor: Sensor) -> tuple[Tensor, Tensor | None]:
        """Convolution and bias as they are, for a sensor of as many bands."""
        if len(sensor.bands) != self.proj.in_channels:
            raise BandError(f"a plain encoder of {self.proj.in_channels} bands cannot be baked for {sensor.names}")
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
