"""One name for an encoder in timm, torchgeo and segmentation_models_pytorch, so that torchgeo's stock tasks take it."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from segmentation_models_pytorch.encoders._base import EncoderMixin
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn
from torch.nn import functional as F
from torchgeo.models import api
from torchvision.models._api import Weights, WeightsEnum

from geomim.errors import BandError, CheckpointError, ConfigError
from geomim.finetune.backbones import first_conv, open_backbone
from geomim.finetune.necks import Depths, is_hierarchical, taps
from geomim.models.vit import SIZES
from geomim.sensors import BandContract, Sensor

_log = logging.getLogger(__name__)

REGISTERED: dict[str, Registered] = {}
"""All that is registered, by name."""


@dataclass(frozen=True)
class Registered:
    """An encoder under one name: of timm, torchgeo's `get_model` and segmentation_models_pytorch.

    What timm makes it by, with which arguments where the caller gives no other; its bands, its weights by timm's names
    without a head, and torchgeo's name of these. An architecture has no bands and no weights.
    """

    name: str
    architecture: str
    arguments: Mapping[str, Any]
    contract: BandContract | None = None
    state: Mapping[str, Tensor] = field(default_factory=dict)
    weights: str = ""

    def build(self, pretrained: bool = False, **arguments: Any) -> Any:
        """Make the model, by whatever timm's `create_model` takes, `features_only` too.

        Args:
            pretrained: With its weights.
            arguments: Among them `in_chans`: its bands, or twice as many for two dates, which share the kernels.

        Raises:
            BandError: `in_chans` is another number.
            CheckpointError: There are no weights, or not all of them fit.
        """
        if pretrained and not self.state:
            raise CheckpointError(f"'{self.name}' is an architecture: weights come from an exported folder (register)")
        for key in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):  # timm gives them to every one
            arguments.pop(key, None)
        if self.contract:
            names = self.contract.names
            if (given := arguments.setdefault("in_chans", len(names))) not in (len(names), 2 * len(names)):
                raise BandError(
                    f"'{self.name}' is for {len(names)} bands ({', '.join(names)}), or twice as many of two dates; "
                    f"given {given} channels: register it with sensor= or bands= for others"
                )
        model: Any = timm.create_model(self.architecture, **{**self.arguments, **arguments})
        network = getattr(model, "model", model)
        network.register_load_state_dict_pre_hook(fit)
        *_, head = network.children()
        if not hasattr(head, "out_features"):  # which torchgeo asks the last part for
            head.out_features = getattr(network, "num_classes", 0)
        if contract := self.contract:
            unit = 255 if contract.eight_bit else 1  # timm's are of pictures in 0..1
            mean, std = ([value / unit for value in values] for values in (contract.mean, contract.divisor))
            size = (len(contract.names), *model.pretrained_cfg["input_size"][1:])
            stated = {"mean": mean, "std": std, "input_size": size, "contract": contract.to_dict()}
            model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, **stated}
        if pretrained:
            own = {key.replace(".", "_"): key for key in network.state_dict()}  # `stages_0` where it is features_only
            state = {own.get(key.replace(".", "_"), key): value for key, value in self.state.items()}
            missing, unknown = network.load_state_dict(state, strict=False)
            stated = network.pretrained_cfg.get("classifier") or ()  # one, or those of a distilled model
            heads = stated if isinstance(stated, str) else tuple(stated)
            missing = [key for key in missing if not key.startswith(heads)]
            if missing or (unknown and not arguments.get("features_only")):  # which cuts off what it does not need
                raise CheckpointError(f"'{self.name}' does not fit: missing {missing[:3]}, unknown {unknown[:3]}")
        return model


def register(
    source: str, name: str | None = None, sensor: Sensor | str | None = None, bands: Sequence[str] | None = None
) -> Registered:
    """Make weights known to timm, torchgeo and segmentation_models_pytorch under one name, with their band contract.

    Torchgeo's stock tasks then take that name as `model` or `backbone` with `weights=registered.weights`; for `dpt`
    it is `backbone="tu-" + name` and `weights=True`.

    Args:
        source: An exported folder, or `timm:NAME`.
        name: `geomim_` is put in front; that of the folder or model where None.
        sensor: As for `open_backbone`.
        bands: As for `open_backbone`.

    Raises:
        ConfigError: The name is another encoder's, or the source is no exported folder.
        CheckpointError: It cannot be read.
        BandError: As of `open_backbone`.
    """
    library, _, architecture = source.partition(":")
    if library != "timm":
        architecture = f"local-dir:{Path(source).absolute()}"
        if not Path(source, "config.json").is_file():
            raise ConfigError(f"'{source}' is no exported folder: make one with geomim export, or give timm:NAME")
    backbone = open_backbone(source, sensor, bands)
    words = re.sub(r"[^a-z0-9]+", "_", (name or Path(architecture).name).lower()).strip("_")
    key = f"geomim_{words.removeprefix('geomim_')}"
    known = REGISTERED.get(key)
    if known and (known.architecture, known.contract) != (architecture, backbone.contract):
        raise ConfigError(f"'{key}' is {known.architecture} with other bands or weights: give another name")
    dynamic = {"dynamic_img_size": True} if getattr(backbone.network, "dynamic_img_size", False) else {}
    weights = f"{''.join(part.title() for part in key.split('_'))}_Weights.DEFAULT"
    for note in backbone.notes:
        _log.warning("%s: %s", key, note)
    return _put(Registered(key, architecture, dynamic, backbone.contract, backbone.network.state_dict(), weights))


def lightning_checkpoint(one: Registered, out: str | Path, dpt: bool = False) -> str:
    """Write weights as the Lightning checkpoint that torchgeo's tasks take as a path (`weights="FILE.ckpt"`).

    Args:
        one: From `register`.
        out: The file.
        dpt: For `model="dpt"`, which wants them one level deeper than all others.
    """
    prefix = "model.backbone.model." + ("model." if dpt else "")
    facts = {"backbone": one.name, "contract": one.contract and one.contract.to_dict()}
    torch.save({"hyper_parameters": facts, "state_dict": {prefix + key: one.state[key] for key in one.state}}, out)
    return str(out)


def _put(one: Registered) -> Registered:
    """Into the tables of the three libraries."""

    def entry(weights: Any = None, *, pretrained: bool = False, **arguments: Any) -> Any:
        return one.build(pretrained or weights is not None, **arguments)

    entry.__name__ = one.name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's, of an encoder that is registered again
        timm.models.register_model(entry)
    encoder = {"encoder": partial(PlainEncoder, one), "pretrained_settings": {}, "params": {}}
    smp.encoders.encoders.update({one.name: encoder})
    models, members = (getattr(api, name, None) for name in ("_model", "_model_weights"))
    if models is None or members is None:  # private, and to be given up for timm's
        _log.warning("torchgeo keeps no tables of models here: '%s' is known to timm and smp alone", one.name)
    else:
        models.update({one.name: entry})
        if one.contract:
            members.update({one.name: _member(one.weights, one.name, one.architecture, one.contract)})
    REGISTERED[one.name] = one
    return one


class FolderWeights(WeightsEnum):
    """Torchgeo's form of registered weights, which are in memory: nothing is fetched."""

    def get_state_dict(self, *_: Any, **__: Any) -> dict[str, Tensor]:
        """The weights by timm's names."""
        return dict(REGISTERED[self.meta["model"]].state)


def _member(name: str, one: str, url: str, contract: BandContract) -> Any:
    meta = {"model": one, "in_chans": len(contract.names), "bands": list(contract.names)}
    meta |= {"dataset": ", ".join(contract.corpora) or contract.sensor.name, "resolution": contract.sensor.gsd}
    meta |= {"license": ", ".join(contract.licences), "contract": contract.to_dict()}
    meta |= dict.fromkeys(("publication", "repo", "ssl_method"))
    return FolderWeights(name.partition(".")[0], {"DEFAULT": Weights(url, Normalise(contract), meta)})


class Normalise(nn.Module):
    """Torchgeo's transforms of some weights: takes the mean of stored numbers off and divides by their deviation.

    A pixel that is not finite in some band becomes 0, the mean, in all: what the encoder took nodata for in training.

    Args:
        contract: The bands, in the order of the channels.
    """

    def __init__(self, contract: BandContract) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(contract.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(contract.divisor)[:, None, None])

    def forward(self, sample: Any) -> Any:
        """An image `(..., C, H, W)`, or a sample, of which all but `image` is left as it is."""
        if isinstance(sample, Tensor):
            image = (sample - self.mean.to(sample)) / self.std.to(sample)  # a datamodule does not move it
            return image.where(sample.isfinite().all(-3, keepdim=True), 0.0)
        return {**sample, "image": self(sample["image"])}


class PlainEncoder(Depths, EncoderMixin):
    """A registered encoder for segmentation_models_pytorch's decoders: maps at strides 2, 4, 8, 16 and 32.

    A plain transformer has one stride: its maps are those of five depths, each behind the last norm, resampled. That
    adds no weights, so a frozen encoder is all as pretrained.

    Args:
        one: What is registered.
        depth: How many strides.
        output_stride: The coarsest: 8, 16 or 32.
    """

    def __init__(self, one: Registered, depth: int = 5, output_stride: int = 32) -> None:
        network = one.build(num_classes=0)
        places = taps(network, depth)
        if is_hierarchical(network):  # the coarsest that is fine enough
            own = [each["reduction"] for each in network.feature_info]
            places = tuple(max(0, sum(stride <= 2**level for stride in own) - 1) for level in range(1, depth + 1))
        super().__init__(network, places)
        self._one, self._depth, self._output_stride = one, depth, output_stride
        self._in_channels = first_conv(network).in_channels
        self._out_channels = [self._in_channels, *self.widths]

    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
        """Take images of the encoder's bands, or of two dates of them."""
        if in_channels != self._in_channels:
            self.network = Depths(self._one.build(num_classes=0, in_chans=in_channels), self.depths).network
            self._in_channels = self._out_channels[0] = in_channels

    def make_dilated(self, output_stride: int) -> None:
        """Have no map coarser than this."""
        self._output_stride = output_stride

    def forward(self, images: Tensor) -> list[Tensor]:
        """The images `(B, C, H, W)`, and a map `(B, D, H/s, W/s)` a stride; stretched to whole patches in between."""
        sides, unit = images.shape[-2:], self.multiple
        height, width = (max(1, round(side / unit)) * unit for side in sides)
        maps = super().forward(_resample(images, (height, width)))
        strides = (min(2**level, self._output_stride) for level in range(1, self._depth + 1))
        return [images, *(_resample(one, (sides[0] // s, sides[1] // s)) for one, s in zip(maps, strides, strict=True))]

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take weights by timm's names, or by its own; those behind the last map are left out."""
        if any(key.startswith("network.") for key in state_dict):
            return super().load_state_dict(state_dict, strict, assign)
        cut = self._one.state.keys() - self.network.state_dict().keys()
        kept = {key: value for key, value in state_dict.items() if key not in cut}
        return self.network.load_state_dict(kept, strict, assign)


def _resample(images: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(images.shape[-2:]) == size:
        return images
    smaller = images.shape[-1] > size[-1]
    return F.adaptive_avg_pool2d(images, size) if smaller else F.interpolate(images, size, mode="bilinear")


def fit(network: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Bring weights, in place, to a model: positions resampled, kernels shared where two dates are concatenated."""
    place, own = f"{prefix}pos_embed", getattr(network, "pos_embed", None)
    if own is not None and place in state and state[place].shape != own.shape:
        tokens = 0 if getattr(network, "no_embed_class", False) else network.num_prefix_tokens
        state[place] = resample_abs_pos_embed(state[place], network.patch_embed.grid_size, num_prefix_tokens=tokens)
    kernel = f"{prefix}{network.pretrained_cfg['first_conv']}.weight"
    if kernel in state and (channels := first_conv(network).in_channels) == 2 * state[kernel].shape[1]:
        _log.warning("%d channels are read as two dates of %d bands, which share the kernels", channels, channels // 2)
        state[kernel] = state[kernel].repeat(1, 2, 1, 1) / 2


for _size in ("tiny", "small", "base", "large"):
    for _patch in (8, 16):
        _shape = dict(zip(("embed_dim", "depth", "num_heads"), SIZES[_size], strict=True)) | {"patch_size": _patch}
        _usual = {"global_pool": "avg", "fc_norm": False, "dynamic_img_size": True}
        _put(Registered(f"geomim_vit_{_size}_patch{_patch}", "vit_base_patch16_224", {**_shape, **_usual}))
