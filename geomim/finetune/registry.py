"""One name for an encoder in timm, torchgeo and segmentation_models_pytorch, so that torchgeo's stock tasks take it."""

from __future__ import annotations

import logging
import math
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
from geomim.models.vit import SIZES
from geomim.sensors import BandContract, Sensor

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Registered:
    """An encoder under one name.

    Attributes:
        name: `geomim_...`, for timm, torchgeo's `get_model` and segmentation_models_pytorch.
        architecture: What timm makes the model by.
        arguments: Of timm's `create_model`, where the caller gives none.
        contract: Bands and statistics; None of an architecture without weights.
        state: The weights by timm's names, without a head.
        weights: Torchgeo's name of them; empty without.
        notes: What was assumed, in sentences.
    """

    name: str
    architecture: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    contract: BandContract | None = None
    state: Mapping[str, Tensor] = field(default_factory=dict)
    weights: str = ""
    notes: tuple[str, ...] = ()

    def build(self, pretrained: bool = False, **arguments: Any) -> Any:
        """Make the model; whatever timm's `create_model` takes, `features_only` too.

        Args:
            pretrained: With its weights.
            arguments: Among them `in_chans`: its bands, or twice as many for two dates, which share the kernels.

        Raises:
            BandError: `in_chans` is another number.
            CheckpointError: There are no weights.
        """
        for theirs in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
            arguments.pop(theirs, None)
        if pretrained and not self.state:
            raise CheckpointError(
                f"'{self.name}' is an architecture without weights: give an exported folder to "
                "geomim.finetune.register, and use its name"
            )
        if self.contract:
            names, given = self.contract.names, arguments.setdefault("in_chans", len(self.contract.names))
            if given not in (len(names), 2 * len(names)):
                raise BandError(
                    f"'{self.name}' is for {len(names)} bands ({', '.join(names)}), or twice as many for two dates; "
                    f"given in_channels={given}: register it with bands= or sensor= for others"
                )
        model: Any = timm.create_model(self.architecture, **{**self.arguments, **arguments})
        maps = bool(arguments.get("features_only"))
        network = getattr(model, "model", model) if maps else model
        network.register_load_state_dict_pre_hook(_fit)
        if self.contract:
            model.pretrained_cfg = model.default_cfg = _stated(model.pretrained_cfg, self.contract)
        if pretrained:
            missing, unknown = network.load_state_dict(self.state, strict=False)
            head = str(network.pretrained_cfg.get("classifier"))
            faults = [key for key in missing if not key.startswith(head)]
            if faults or (unknown and not maps):  # a model that gives maps is cut behind the last one
                raise CheckpointError(f"'{self.name}' does not load: missing {faults[:3]}, unknown {unknown[:3]}")
        return model


REGISTERED: dict[str, Registered] = {}
"""All that is registered, by name."""


def register(
    source: str, name: str | None = None, sensor: Sensor | str | None = None, bands: Sequence[str] | None = None
) -> Registered:
    """Make weights known to timm, torchgeo and segmentation_models_pytorch under one name, with their band contract.

    Torchgeo's stock tasks then take `model=name` or `backbone=name` (`"tu-" + name` with `weights=True` for `dpt`), and
    `weights=registered.weights`.

    Args:
        source: An exported folder, or `timm:NAME`.
        name: `geomim_` is put in front; that of the folder or model where None.
        sensor: As for `open_backbone`.
        bands: As for `open_backbone`.

    Raises:
        ConfigError: The name is another model's, or the source is no exported folder.
        CheckpointError: It cannot be read.
        BandError: As of `open_backbone`.
    """
    library, _, architecture = source.partition(":")
    if library != "timm":
        architecture = f"local-dir:{Path(source).absolute()}"
        if not Path(source, "config.json").is_file():
            raise ConfigError(f"'{source}' is no exported folder: make one with geomim export, or give timm:NAME")
    backbone = open_backbone(source, sensor, bands)
    key = _slug(name or Path(architecture).name)
    weights = f"{''.join(part.title() for part in key.split('_'))}_Weights.DEFAULT"
    dynamic = {"dynamic_img_size": True} if getattr(backbone.network, "dynamic_img_size", False) else {}
    known = REGISTERED.get(key)
    if known and (known.architecture, known.contract) != (architecture, backbone.contract):
        raise ConfigError(f"'{key}' is {known.architecture} already: give another name")
    state = backbone.network.state_dict()
    one = Registered(key, architecture, dynamic, backbone.contract, state, weights, backbone.notes)
    for note in one.notes:
        _log.warning("%s: %s", key, note)
    _put(one)
    return one


def lightning_checkpoint(one: Registered, out: str | Path, dpt: bool = False) -> Path:
    """Write weights as the Lightning checkpoint that torchgeo's tasks take as a path (`weights="FILE.ckpt"`).

    Args:
        one: From `register`.
        out: The file.
        dpt: For `model="dpt"`, which loads them one level deeper than the others.
    """
    prefix = "model.backbone.model." + ("model." if dpt else "")
    contract = one.contract.to_dict() if one.contract else None
    state = {f"{prefix}{key}": value for key, value in one.state.items()}
    torch.save({"hyper_parameters": {"backbone": one.name, "contract": contract}, "state_dict": state}, out)
    return Path(out)


def _slug(name: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return f"geomim_{words.removeprefix('geomim_') or 'encoder'}"


def _put(one: Registered) -> None:
    """Into the tables of the three libraries."""

    def entry(weights: Any = None, *_: Any, pretrained: bool = False, **arguments: Any) -> Any:
        return one.build(pretrained or weights is not None, **arguments)

    entry.__name__ = one.name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the same name again, of the same encoder
        timm.models.register_model(entry)
    smp.encoders.encoders.update(
        {one.name: {"encoder": partial(PlainEncoder, one), "pretrained_settings": {}, "params": {}}}
    )
    tables = [getattr(api, name, None) for name in ("_model", "_model_weights")]
    if None in tables:  # in later ones timm's names are all there is
        _log.warning("torchgeo has no tables of models any more: '%s' is known to timm and smp alone", one.name)
    else:
        tables[0].update({one.name: entry})
        if one.contract:
            tables[1].update({one.name: _enum(one)})
    REGISTERED[one.name] = one


class FolderWeights(WeightsEnum):
    """Torchgeo's form of registered weights; they are in memory, nothing is downloaded."""

    def get_state_dict(self, *_: Any, **__: Any) -> dict[str, Tensor]:
        """The weights by timm's names."""
        return dict(REGISTERED[self.meta["model"]].state)


def _enum(one: Registered) -> Any:
    contract = one.contract
    assert contract is not None
    meta = {
        "dataset": ", ".join(contract.corpora) or contract.sensor.name,
        "model": one.name,
        "in_chans": len(contract.names),
        "bands": list(contract.names),
        "resolution": contract.sensor.gsd,
        "license": ", ".join(contract.licences),
        "publication": None,
        "repo": None,
        "ssl_method": None,
        "contract": contract.to_dict(),
    }
    return FolderWeights(
        one.weights.partition(".")[0], {"DEFAULT": Weights(one.architecture, Normalise(contract), meta)}
    )


class Normalise(nn.Module):
    """Torchgeo's transforms of some weights: takes the mean off and divides by the deviation, of stored numbers.

    Args:
        contract: The bands, in the order of the channels.
    """

    def __init__(self, contract: BandContract) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(contract.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(contract.divisor)[:, None, None])

    def forward(self, sample: Any) -> Any:
        """Normalise `image`, `(..., C, H, W)`, of a sample, and leave the rest; or an image alone."""
        if isinstance(sample, Tensor):
            return (sample - self.mean) / self.std
        return {**sample, "image": self(sample["image"])}


class PlainEncoder(nn.Module, EncoderMixin):
    """A registered encoder for segmentation_models_pytorch's decoders: maps at strides 2, 4, 8, 16 and 32.

    A plain transformer has one stride: its maps are taken at five depths, each behind the last norm, and brought to
    their strides by bilinear or mean resampling. It adds no weights of its own, so that a frozen one is as pretrained.

    Args:
        one: What is registered.
        depth: How many strides.
        output_stride: The coarsest: 8, 16 or 32.
    """

    def __init__(self, one: Registered, depth: int = 5, output_stride: int = 32) -> None:
        super().__init__()
        self._one, self._depth, self._output_stride = one, depth, output_stride
        self.network = one.build(num_classes=0)
        self._in_channels = first_conv(self.network).in_channels
        info: Any = self.network.feature_info
        self._places = _places([one["reduction"] for one in info], depth)
        self._out_channels = [self._in_channels, *(info[place]["num_chs"] for place in self._places)]

    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
        """Take images of so many bands: the encoder's, or twice as many for two dates."""
        if in_channels != self._in_channels:
            self.network = self._one.build(num_classes=0, in_chans=in_channels)
            self._in_channels = self._out_channels[0] = in_channels

    def make_dilated(self, output_stride: int) -> None:
        """Have no map coarser than this."""
        self._output_stride = output_stride

    def forward(self, images: Tensor) -> list[Tensor]:
        """The images `(B, C, H, W)`, and a map `(B, D, H/s, W/s)` a stride."""
        height, width = images.shape[-2:]
        order = sorted(set(self._places))
        maps = self.network.forward_intermediates(
            _to_patches(self.network, images), indices=order, norm=True, output_fmt="NCHW", intermediates_only=True
        )
        found, answer = dict(zip(order, maps, strict=True)), [images]
        for level, place in enumerate(self._places, 1):
            stride = min(2**level, self._output_stride)
            answer.append(_resample(found[place], (height // stride, width // stride)))
        return answer

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take weights by timm's names, or its own."""
        own = any(key.startswith("network.") for key in state_dict)
        load = super().load_state_dict if own else self.network.load_state_dict
        return load(state_dict, strict=strict, assign=assign)


def _places(strides: Sequence[int], count: int) -> list[int]:
    """Which of a model's maps stands for each stride from 2 on: by depth, or the nearest stride that is not coarser."""
    if len(set(strides)) == 1:
        return [math.ceil(len(strides) * part / count) - 1 for part in range(1, count + 1)]
    fine = [[place for place, own in enumerate(strides) if own <= 2**level] for level in range(1, count + 1)]
    return [places[-1] if places else 0 for places in fine]


def _to_patches(network: Any, images: Tensor) -> Tensor:
    """Images whose sides are multiples of the patches, stretched where they are not."""
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", (1, 1))
    size = [max(1, round(side / one)) * one for side, one in zip(images.shape[-2:], patch, strict=True)]
    return images if size == list(images.shape[-2:]) else F.interpolate(images, size, mode="bilinear")


def _resample(features: Tensor, size: tuple[int, int]) -> Tensor:
    if features.shape[-1] > size[-1]:
        return F.adaptive_avg_pool2d(features, size)
    return features if tuple(features.shape[-2:]) == size else F.interpolate(features, size, mode="bilinear")


def _fit(network: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before weights load: positions resampled to the model's, kernels shared out where two dates are concatenated."""
    place, own = f"{prefix}pos_embed", getattr(network, "pos_embed", None)
    if own is not None and place in state and state[place].shape != own.shape:
        tokens = 0 if getattr(network, "no_embed_class", False) else network.num_prefix_tokens
        state[place] = resample_abs_pos_embed(state[place], network.patch_embed.grid_size, num_prefix_tokens=tokens)
    kernel, channels = f"{prefix}{network.pretrained_cfg['first_conv']}.weight", first_conv(network).in_channels
    if kernel in state and channels == 2 * state[kernel].shape[1]:
        _log.warning("%d channels are read as two dates of %d bands, which share the kernels", channels, channels // 2)
        state[kernel] = state[kernel].repeat(1, 2, 1, 1) / 2


def _stated(config: Mapping[str, Any], contract: BandContract) -> dict[str, Any]:
    """Timm's `pretrained_cfg` with the band contract in it; mean and std are of pictures in 0..1 where it is so."""
    unit = 255 if contract.eight_bit else 1
    mean, std = ([value / unit for value in values] for values in (contract.mean, contract.divisor))
    size = (len(contract.names), *config["input_size"][1:])
    return {**config, "mean": mean, "std": std, "input_size": size, "contract": contract.to_dict()}


for _size, (_width, _depth, _heads) in SIZES.items():
    for _patch in (8, 16) if _size != "huge" else ():
        _shape = {"embed_dim": _width, "depth": _depth, "num_heads": _heads, "patch_size": _patch}
        _usual = {"global_pool": "avg", "fc_norm": False, "dynamic_img_size": True}
        _put(Registered(f"geomim_vit_{_size}_patch{_patch}", "vit_base_patch16_224", {**_shape, **_usual}))
