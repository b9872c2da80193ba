"""From a list of maps to a class a pixel: linear and efficient heads, and decoders of segmentation_models_pytorch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder, DPTSegmentationHead
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from geomim.errors import ConfigError
from geomim.evaluate.probes import EfficientPooling, queries_for
from geomim.finetune.necks import Depths, Neck, Pyramid, check_name, taps

Head = Literal["linear", "efficient", "pixels", "both", "upernet", "dpt", "unet", "segformer"]


class Segmenter(nn.Module):
    """An encoder that gives maps, and a head that reads a class a pixel from them.

    Args:
        network: A timm model; it is taken over as `Depths` says.
        classes: Number of classes.
        head: `linear` and `efficient` read the encoder's own maps; `pixels` reads the images past it, which is a floor,
            and where labels are few may be the best; `both` is linear, too, and reads the maps and the images, so that
            what is finer than a patch is told by its values; the others read a pyramid.
        neck: How the pyramid is made. For the `linear` head, `simple` reads the last map and `taps` four depths.
        channels: Width of the pyramid and of its decoder.

    Raises:
        ConfigError: No such head or neck, an `efficient` head without taps, or an encoder that gives no maps.
    """

    def __init__(
        self, network: nn.Module, classes: int, head: Head = "upernet", neck: Neck = "taps", channels: int = 256
    ) -> None:
        super().__init__()
        check_name("head", head, Head)
        check_name("neck", neck, Neck)
        if head == "efficient" and neck != "taps":
            raise ConfigError(f"head efficient weighs four depths: expected neck taps, given {neck}")
        self.encoder: Depths
        self.head: nn.Module
        if head in ("linear", "efficient"):
            self.encoder = Depths(network, taps(network, 4 if neck == "taps" else 1))
            self.head = (Linear if head == "linear" else Efficient)(self.encoder.widths, self.encoder.strides, classes)
        elif head in ("pixels", "both"):
            depths = taps(network, 4 if head == "both" and neck == "taps" else 1)
            self.encoder = (Values if head == "pixels" else Beside)(network, depths)
            self.head = Linear(self.encoder.widths, self.encoder.strides, classes)
            self.head.norms[0] = nn.Identity()
        else:
            self.encoder = Pyramid(network, neck, channels)
            self.head = Decoder(head, channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, classes, H, W)` of images `(B, C, H, W)`."""
        logits: Tensor = self.head(self.encoder(images), images.shape[-2:])
        return logits


def values(images: Tensor) -> Tensor:
    """Bands, and all products of two of them: `(B, C + C(C+1)/2, H, W)` of images `(B, C, H, W)`."""
    products = [images[:, band:] * images[:, band, None] for band in range(images.shape[1])]
    return torch.cat([images, *products], 1)


def _values_of(network: nn.Module) -> int:
    bands = next(one.in_channels for one in network.modules() if isinstance(one, nn.Conv2d))
    return bands + bands * (bands + 1) // 2


class Values(Depths):
    """The `values` of the images in place of maps."""

    def __init__(self, network: nn.Module, depths: Sequence[int]) -> None:
        super().__init__(network, depths)
        self.network.requires_grad_(False)  # nothing reads it
        self.widths, self.strides = (_values_of(network),), (1,)

    def forward(self, images: Tensor) -> list[Tensor]:
        """`(B, width, H, W)` of images `(B, C, H, W)`."""
        return [values(images)]


class Beside(Depths):
    """The `values` of the images before the maps."""

    def __init__(self, network: nn.Module, depths: Sequence[int]) -> None:
        super().__init__(network, depths)
        self.widths, self.strides = (_values_of(network), *self.widths), (1, *self.strides)

    def forward(self, images: Tensor) -> list[Tensor]:
        """`(B, width, H', W')` of images `(B, C, H, W)`, padded as the maps are, and these as of `Depths`."""
        return [values(self.whole(images)), *super().forward(images)]


class Linear(nn.Module):
    """A linear layer on the maps of every position, side by side; each map normalised there, without weights.

    Args:
        widths: Channels of each map.
        strides: Pixels at a side of a position of each map; what it says is interpolated to pixels.
        classes: Number of classes.
    """

    def __init__(self, widths: Sequence[int], strides: Sequence[int], classes: int) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.norms = nn.ModuleList(LayerNorm2d(width, affine=False) for width in widths)
        self.predict = nn.Conv2d(sum(widths), classes, 1)

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Logits `(B, classes, *size)` of maps `(B, width, h, w)`."""
        weights = self.predict.weight.split([one.shape[1] for one in maps], 1)
        biases = [self.predict.bias, *[None] * (len(maps) - 1)]
        said: dict[int, Tensor] = {}  # a sum of interpolated maps is the interpolated sum, which has fewer channels
        for stride, norm, one, *own in zip(self.strides, self.norms, maps, weights, biases, strict=True):
            logits = F.conv2d(norm(one), *own)
            said[stride] = said[stride] + logits if stride in said else logits
        return torch.stack([_enlarge(logits, stride, size) for stride, logits in said.items()]).sum(0)


class Efficient(nn.Module):
    """Attention over depths, position by position, then a linear layer; after efficient probing.

    The pooling is that of `EfficientProbe` (Psomas et al., 2025), but what it pools are the depths of one position, not
    the patches of an image: each query weighs the depths anew for its slice of the channels. Maps are normalised
    without weights; where their widths differ, as in a hierarchical model, a 1x1 convolution makes them alike.

    What it is made from is as of `Linear`.
    """

    def __init__(self, widths: Sequence[int], strides: Sequence[int], classes: int) -> None:
        super().__init__()
        self.stride, width = strides[0], max(widths)
        self.lift = nn.ModuleList(nn.Conv2d(one, width, 1) if one != width else nn.Identity() for one in widths)
        self.norm = LayerNorm2d(width, affine=False)
        self.pool = EfficientPooling(width, queries_for(width))
        self.predict = nn.Linear(width, classes)

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Logits `(B, classes, *size)` of maps `(B, width, h, w)`."""
        read = _alike([self.norm(lift(one)) for lift, one in zip(self.lift, maps, strict=True)])
        tokens = torch.stack(read, 1).permute(0, 3, 4, 1, 2)  # (B, h, w, depths, width)
        logits = self.predict(self.pool(tokens.flatten(0, 2))).unflatten(0, tokens.shape[:3])
        return _enlarge(logits.permute(0, 3, 1, 2), self.stride, size)


class Decoder(nn.Module):
    """A decoder of segmentation_models_pytorch on a pyramid of strides 4, 8, 16 and 32.

    UPerNet (Xiao et al., ECCV 2018), DPT (Ranftl et al., ICCV 2021; the class token is not read), U-Net (Ronneberger et
    al., 2015) and the MLP decoder of SegFormer (Xie et al., NeurIPS 2021). Two deviations: group normalisation stands
    in for batch normalisation, so that a result depends neither on the batch, which is small where labels are few, nor
    on how it is divided over devices; and no auxiliary head is trained beside UPerNet.

    Args:
        name: `upernet`, `dpt`, `unet` or `segformer`.
        channels: Width of the pyramid and of the decoder; a U-Net halves it with each doubling, down to 16.
        classes: Number of classes.
    """

    def __init__(self, name: Head, channels: int, classes: int) -> None:
        super().__init__()
        self.name, given = name, [0, 0, *[channels] * 4]  # smp counts the strides 1 and 2, which have no channels
        width, self.stride, decoder = channels, 4, None
        if name == "upernet":
            decoder = UPerNetDecoder(given, decoder_channels=channels)
        elif name == "segformer":
            decoder = SegformerDecoder(given, segmentation_channels=channels)
        elif name == "unet":
            halves = [max(16, channels // 2**step) for step in range(5)]
            decoder, width, self.stride = UnetDecoder(given, halves), halves[-1], 1
        else:
            four = (channels,) * 4
            decoder, self.stride = DPTDecoder(four, (4, 8, 16, 32), False, "ignore", four, channels), 2
        self.decoder = _grouped(decoder)
        head = DPTSegmentationHead(width, classes, upsampling=1) if name == "dpt" else nn.Conv2d(width, classes, 1)
        self.predict = _grouped(head)
        initialize_decoder(self.decoder)
        initialize_head(self.predict)

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Logits `(B, classes, *size)` of four maps `(B, channels, ceil(H/stride), ceil(W/stride))`."""
        height, width = maps[-1].shape[-2:]
        whole = [_widen(one, height * 2**step, width * 2**step) for step, one in zip((3, 2, 1, 0), maps, strict=True)]
        if self.name == "dpt":
            decoded = self.decoder(whole, [None] * 4)
        else:
            empty = [maps[0].new_empty(maps[0].shape[0], 0, height * by, width * by) for by in (32, 16)]
            decoded = self.decoder(empty + whole)
        return _enlarge(self.predict(decoded), self.stride, size)


def _alike(maps: Sequence[Tensor]) -> list[Tensor]:
    """All maps with the sides of the first."""
    sides = maps[0].shape[-2:]
    return [F.interpolate(one, sides, mode="bilinear") if one.shape[-2:] != sides else one for one in maps]


def _widen(maps: Tensor, height: int, width: int) -> Tensor:
    """Repeat the lower and right border up to a size: what a decoder that doubles sides can halve again."""
    return F.pad(maps, (0, width - maps.shape[-1], 0, height - maps.shape[-2]), mode="replicate")


def _enlarge(logits: Tensor, stride: int, size: Sequence[int]) -> Tensor:
    """From positions to pixels, bilinear, and without what lies beyond the images' sides."""
    if stride > 1:
        logits = F.interpolate(logits, scale_factor=stride, mode="bilinear")
    return logits[..., : size[0], : size[1]]


def _grouped(module: nn.Module) -> nn.Module:
    """Put group normalisation, 16 channels a group where that divides them, where batch normalisation stands."""
    if isinstance(module, nn.BatchNorm2d):
        channels = module.num_features
        return nn.GroupNorm(math.gcd(channels, max(1, channels // 16)), channels)
    for name, child in module.named_children():
        setattr(module, name, _grouped(child))
    return module
