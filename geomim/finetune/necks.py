"""From a timm model to a list of maps: as they come out of several depths, or as a pyramid of equally wide ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from geomim.errors import ConfigError, nearest

Neck = Literal["simple", "taps"]


def check_name(what: str, given: str, kinds: Any) -> None:
    """Refuse what is none of a `Literal`.

    Raises:
        ConfigError: With the nearest one.
    """
    if given not in get_args(kinds):
        raise ConfigError(f"unknown {what} '{given}'{nearest(given, get_args(kinds))}")


def taps(network: nn.Module, count: int = 4) -> tuple[int, ...]:
    """Depths that are read: the last block of each of `count` equal parts, or the last stages of a hierarchical model.

    Args:
        network: A timm model.
        count: How many; a depth stands twice where a model has fewer blocks.

    Returns:
        Indices into `network.feature_info`, ascending, the last always in: 2, 5, 8, 11 of 12 and 1, 2, 4, 5 of 6.
    """
    depth = len(_told(network))
    if is_hierarchical(network):
        return tuple(range(max(0, depth - count), depth))
    return tuple(math.ceil(depth * (part + 1) / count) - 1 for part in range(count))


def is_hierarchical(network: nn.Module) -> bool:
    """Whether a timm model's maps have several strides."""
    return len({one["reduction"] for one in _told(network)}) > 1


def maps_of(network: Any, images: Tensor, depths: Sequence[int]) -> list[Tensor]:
    """Maps `(B, D, h, w)` of some depths, behind the last norm where the model does that; one may stand twice."""
    order = sorted(set(depths))
    maps = network.forward_intermediates(images, indices=order, norm=True, output_fmt="NCHW", intermediates_only=True)
    return [maps[order.index(one)] for one in depths]


class Depths(nn.Module):
    """Maps of several depths of a timm model, normalised by its last norm where the model does that.

    The model is taken over: what lies behind the last depth that is read, its head included, is cut off, so that no
    parameter is left without a gradient.

    Args:
        network: A timm model.
        depths: Indices into `network.feature_info`, as `taps` gives them.

    Attributes:
        widths: Channels of each map.
        strides: Pixels at a side of what a position of each map covers.

    Raises:
        ConfigError: The model gives no maps of its depths.
    """

    network: Any
    strides: tuple[int, ...]

    def __init__(self, network: nn.Module, depths: Sequence[int]) -> None:
        super().__init__()
        self.network, self.depths = network, tuple(depths)
        found = [_told(network)[one] for one in self.depths]
        self.widths = tuple(one.get("num_chs_norm", one["num_chs"]) for one in found)
        self.strides = tuple(one["reduction"] for one in found)
        self.multiple = max(self.strides)
        self.network.prune_intermediate_layers(sorted(set(self.depths)), prune_norm=False, prune_head=True)

    def whole(self, images: Tensor) -> Tensor:
        """Images with 0 behind their sides, up to multiples of the coarsest stride."""
        height, width = images.shape[-2:]
        return F.pad(images, (0, -width % self.multiple, 0, -height % self.multiple))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Read the maps of images `(B, C, H, W)`; sides that are no multiple of the coarsest stride are padded with 0.

        Returns:
            `(B, width, H'/stride, W'/stride)` each, with the padded sides H' and W'.

        Raises:
            ConfigError: The model is for images of other sides alone.
        """
        (height, width), images = images.shape[-2:], self.whole(images)
        embed = getattr(self.network, "patch_embed", None) or getattr(self.network, "stem", None)  # of mixers
        if getattr(embed, "strict_img_size", False) and embed.img_size != (sides := tuple(images.shape[-2:])):
            own = _sides(embed.img_size)
            do = "set image_size to these" if hasattr(self.network, "set_input_size") else f"give {own}"
            raise ConfigError(
                f"encoder {type(self.network).__name__} is for images of {own} alone; given {_sides((height, width))}, "
                f"in multiples of {self.multiple} {_sides(sides)}: {do}"
            )
        return maps_of(self.network, images, self.depths)


class Pyramid(Depths):
    """Maps of equal width, one a stride.

    `simple` makes all of them from the last map: ViTDet's simple feature pyramid (Li et al., ECCV 2022, section 3),
    with a 1x1 and a 3x3 convolution behind each. `taps` makes each from a depth of its own, as BEiT's UPerNet does (Bao
    et al., ICLR 2022); other than there, channels are halved with each doubling of the sides, and a 1x1 convolution
    ends it. Of a hierarchical model each map is the stage whose stride is nearest, through a 1x1 convolution, whatever
    the neck.

    Args:
        network: A timm model; it is taken over as `Depths` says.
        neck: Which of the two.
        channels: Width of each map.
        strides: Pixels at a side of what a position of each map covers, ascending.
    """

    def __init__(
        self,
        network: nn.Module,
        neck: Neck = "taps",
        channels: int = 256,
        strides: Sequence[int] = (4, 8, 16, 32),
    ) -> None:
        own = [one["reduction"] for one in _told(network)]
        last = neck == "simple" and not is_hierarchical(network)
        near = [min(range(len(own)), key=lambda i: (abs(math.log2(own[i] / s)), -i)) for s in strides]
        super().__init__(network, near if last or is_hierarchical(network) else taps(network, len(strides)))
        levels = [_level(*one, channels, last) for one in zip(self.widths, self.strides, strides, strict=True)]
        self.levels = nn.ModuleList(levels)
        self.channels, self.strides, self.widths = channels, tuple(strides), (channels,) * len(strides)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps `(B, channels, ceil(H/stride), ceil(W/stride))` of images `(B, C, H, W)`, the finest first."""
        height, width = images.shape[-2:]
        levels = zip(self.levels, super().forward(images), self.strides, strict=True)
        return [level(one)[..., : -(-height // s), : -(-width // s)] for level, one, s in levels]


def _sides(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} pixels"


def _told(network: Any) -> list[dict[str, Any]]:
    """What a timm model says of its depths."""
    if not hasattr(network, "forward_intermediates"):
        raise ConfigError(
            f"encoder {type(network).__name__}: expected a timm model that gives the maps of its depths "
            "(`forward_intermediates`); choose another one"
        )
    return list(network.feature_info)


def _level(width: int, given: int, stride: int, channels: int, simple: bool) -> nn.Sequential:
    """From a map of one stride to one of another: doubled or halved as often as is nearest, then interpolated."""
    steps = round(math.log2(given / stride))
    parts: list[nn.Module] = []
    for step in range(steps):
        parts += [LayerNorm2d(width), nn.GELU()] if step else []
        parts.append(nn.ConvTranspose2d(width, width := max(1, width // 2), 2, 2))
    parts += [nn.MaxPool2d(2, ceil_mode=True) for _ in range(-steps)]
    if (rest := given / stride / 2**steps) != 1:
        parts.append(_Resize(rest))
    parts.append(nn.Conv2d(width, channels, 1))
    if simple:
        parts += [LayerNorm2d(channels), nn.Conv2d(channels, channels, 3, padding=1), LayerNorm2d(channels)]
    return nn.Sequential(*parts)


class _Resize(nn.Module):
    """Bilinear by an exact factor; the border is repeated, so that a started position at the end is a whole one."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, maps: Tensor) -> Tensor:
        """Maps with sides longer by the factor, and some more where they are cut."""
        return F.interpolate(F.pad(maps, (0, 2, 0, 2), mode="replicate"), scale_factor=self.factor, mode="bilinear")
