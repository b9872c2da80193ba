"""An encoder opened for a task: a model of timm, and which numbers it expects, whatever file it comes from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_model_args, save_for_hf
from torch import nn

from geomim.errors import BandError, CheckpointError, ConfigError
from geomim.evaluate.features import random_like
from geomim.models.build import from_config
from geomim.models.export import check_folder, write_folder
from geomim.models.fitting import Chosen, borrowed, contract_for, fitted, named_contract
from geomim.models.frozen import as_timm
from geomim.models.hierarchical import Hierarchical
from geomim.models.inflate import inflation, share_out, shares_said
from geomim.models.weights import (
    Loaded,
    contract_of,
    exported_contract,
    picture_contract,
    pictures_said,
    read_encoder,
)
from geomim.sensors import BandContract, Sensor, find_band, get_sensor, stated_contract


@dataclass(frozen=True)
class Backbone:
    """An encoder as a task uses it, by timm's interface alone.

    Attributes:
        network: A model of timm without a head, on the CPU, in evaluation mode.
        contract: Bands, units, mean and deviation of what it is to be given.
        notes: What was assumed, in sentences for whoever uses it.
        name: What tables call it.
        config: What geomim says of an encoder of its own; nothing of others.
        gsds: Metres a pixel that its sensors have, whatever it is used for; empty where unknown.
        trained_at: Metres a pixel of the images that it was trained on; empty where its file does not tell.
    """

    network: nn.Module
    contract: BandContract
    notes: tuple[str, ...]
    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    gsds: tuple[float, ...] = ()
    trained_at: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """All but the weights, as plain values."""
        network: Any = self.network
        arguments = get_model_args(network) | {"in_chans": len(self.contract.names)}
        said = {"contract": self.contract.to_dict(), "notes": [*self.notes], "name": self.name, "config": self.config}
        return {"architecture": network.pretrained_cfg["architecture"], "arguments": arguments} | said

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Backbone:
        """The same with weights that mean nothing, from no file."""
        with torch.random.fork_rng(devices=[]):
            network = timm.create_model(stored["architecture"], **stored["arguments"])
        contract, notes = BandContract.from_dict(stored["contract"]), tuple(stored["notes"])
        return cls(network.eval(), contract, notes, stored["name"], stored["config"])


@dataclass(frozen=True)
class Encoder:
    """What a task opens by `open_backbone`, as plain values.

    Args:
        source: A run folder, a checkpoint, an exported folder, or `timm:NAME`, also `timm:local-dir:FOLDER`.
        sensor: What the images' numbers are: the name of a sensor, or its YAML file, which may state mean and std.
        bands: Use these bands alone, in this order: of the sensor, or of the encoder's own where that is None.
        image_size: Side of the images in pixels, which positions are resampled to; the encoder's own where None.
        seed: Same architecture, with weights it would start from, drawn by this number: the floor.
    """

    source: str
    sensor: str | None = None
    bands: list[str] | None = None
    image_size: int | None = None
    seed: int | None = None


def open_backbone(
    source: str,
    sensor: Sensor | str | None = None,
    bands: Sequence[str] | None = None,
    image_size: int | None = None,
    seed: int | None = None,
) -> Backbone:
    """Open an encoder as a model of timm.

    A spectral encoder is baked for the sensor. A plain one keeps its own bands where the sensor has them all; for
    fewer or other ones its first kernels are shared out by name or nearest wavelength, and statistics of bands that
    it never saw are those of the nearest one of the same unit.

    What is given is as of `Encoder`; a sensor may be made in memory.

    Raises:
        CheckpointError: The source cannot be read, or is of several sensors and none is named.
        BandError: A band is like none of the encoder's, or it names no bands and is not for three.
        ConfigError: The images do not divide into its patches, or it takes those of one size alone.
    """
    foreign = source.startswith("timm:")
    name = source if foreign else checkpoint_of(source)[1]
    with torch.random.fork_rng(devices=[]):  # every model is drawn before it is filled
        if seed is not None:
            torch.manual_seed(seed)
        opened = _timm(source, seed) if foreign else _geomim(source, sensor, bands, seed)
        network, (contract, notes), config, (trained, metres) = opened
    if not config.get("spectral"):
        contract, notes = _refit(network, contract, notes, sensor, bands)
    if image_size is not None and (image_size < 1 or hasattr(network, "set_input_size")):
        patch = getattr(getattr(network, "patch_embed", None), "patch_size", (1, 1))
        if image_size < 1 or any(image_size % side for side in patch):
            raise ConfigError(f"image_size {image_size}: expected a multiple of the patches' sides {patch}")
        network.set_input_size(img_size=(image_size, image_size))
    elif image_size is not None and network.pretrained_cfg.get("fixed_input_size"):
        side = network.pretrained_cfg["input_size"][-1]
        if image_size != side:
            raise ConfigError(f"image_size {image_size}: '{source}' takes images of {side} pixels alone; leave it out")
    name += "" if seed is None else ", random initialisation"
    gsds = tuple(one.sensor.gsd for one in trained if one.sensor.gsd)
    return Backbone(network.eval(), contract, notes, name, config, gsds, tuple(metres))


def checkpoint_of(source: str) -> tuple[str, str]:
    """The file or exported folder that a path means, which may be a run's folder, and what to call it.

    Raises:
        CheckpointError: There is nothing.
    """
    path = Path(source)
    if not path.exists():
        raise CheckpointError(
            f"'{source}' does not exist: expected a run folder, a checkpoint, an exported folder, or timm:NAME"
        )
    last, inside = path / "checkpoints" / "last.ckpt", path.parent.name == "checkpoints"
    named = path.resolve().parent.parent if inside else path.resolve()
    return str(last) if last.is_file() else source, named.stem if named.is_file() else named.name


def write_backbone(backbone: Backbone, folder: Path) -> Path:
    """Write an encoder as `geomim export` does; one that is timm's alone as timm's own, for `timm:local-dir:FOLDER`.

    Raises:
        InputError: The folder holds something else.
    """
    network, contract = backbone.network, backbone.contract
    if not backbone.config:
        check_folder(folder)
        save_for_hf(network, str(folder), {"geomim": {"contract": contract.to_dict()}}, safe_serialization=True)
        return folder
    own = {"in_chans": len(contract.names), "image_size": network.patch_embed.img_size[0], "spectral": False}
    encoder = from_config({**backbone.config, **own})
    (encoder.network if isinstance(encoder, Hierarchical) else encoder).load_state_dict(network.state_dict())
    return write_folder(
        Loaded(encoder, {contract.sensor.name: contract}, "tuned encoder", notes=backbone.notes), folder
    )


_Opened = tuple[Any, Chosen, dict[str, Any], tuple[Collection[BandContract], Collection[float]]]
"""The model, its contract and notes, geomim's configuration, and what it was trained on, at which metres a pixel; a
spectral one is made for the bands asked for."""


def _geomim(source: str, sensor: Sensor | str | None, bands: Sequence[str] | None, seed: int | None) -> _Opened:
    loaded = read_encoder(checkpoint_of(source)[0])
    spectral = bool(loaded.encoder.config.get("spectral"))
    if not spectral:
        contract, notes = contract_of(loaded, source)
    elif isinstance(sensor, Sensor):
        given = sensor.select(bands) if bands else sensor
        contract, notes = contract_for(loaded, source, given, all_bands=bool(bands))
    else:
        contract, notes = named_contract(loaded, source, sensor, bands)
    if loaded.encoder.config.get("gsd_positions"):
        gsd = contract.sensor.gsd
        notes = (*notes, f"its positions are made for {'unknown metres' if gsd is None else f'{gsd:g} m'} a pixel")
    own = fitted(loaded.encoder, contract)
    return (
        as_timm(own if seed is None else random_like(own, seed)),
        (contract, notes),
        own.config | {"spectral": spectral},
        (loaded.contracts.values(), loaded.trained_at.values()),
    )


def _timm(source: str, seed: int | None) -> _Opened:
    name = source.removeprefix("timm:")
    network = create(name, pretrained=seed is None)
    if contract := exported_contract(name):
        return network, (contract, ()), {}, ([contract], ())
    channels = first_conv(network).in_channels
    if channels != 3:
        raise BandError(f"'{source}' has {channels} channels and names no bands: expected a band contract, or RGB")
    contract = picture_contract(network.pretrained_cfg)
    return network, (contract, (pictures_said(contract),)), {}, ((), ())


def create(name: str, pretrained: bool) -> Any:
    """A model of timm without a head, for images of any size where it can be.

    Raises:
        CheckpointError: timm has no such model, or cannot get its weights.
    """
    try:
        try:
            return timm.create_model(name, pretrained, num_classes=0, dynamic_img_size=True)
        except TypeError:  # only transformers know that argument
            return timm.create_model(name, pretrained, num_classes=0)
    except Exception as error:  # unknown name, no network, other weights: timm raises many kinds
        raise CheckpointError(f"timm cannot give '{name}' ({' '.join(str(error).split())[:200]})") from error


def first_conv(network: Any) -> nn.Conv2d:
    """The convolution that reads the bands.

    Raises:
        BandError: There is not just one.
    """
    stated = network.pretrained_cfg.get("first_conv")
    conv = network.get_submodule(stated) if isinstance(stated, str) else None
    if not isinstance(conv, nn.Conv2d):
        raise BandError(f"{type(network).__name__} reads its bands with no single convolution, but {stated}")
    return conv


def _refit(
    network: Any,
    contract: BandContract,
    notes: tuple[str, ...],
    sensor: Sensor | str | None,
    bands: Sequence[str] | None,
) -> Chosen:
    """Give a plain model other bands, in place, where its own are not what is asked for."""
    own, said, kept = contract.sensor, "", False
    if sensor is None:
        other = contract.select(bands) if bands else contract
    else:
        given = sensor if isinstance(sensor, Sensor) else get_sensor(sensor)
        kept = not bands and all(find_band(band, given.bands) is not None for band in own.bands)
        stated = stated_contract(sensor, bands) if isinstance(sensor, str) else None
        if stated:  # the user's word outranks what it was trained with
            other, said = stated.select(own.bands) if kept else stated, f"its mean and std are those of '{sensor}'"
        elif kept:
            return contract, notes
        else:
            other, said = borrowed({own.name: contract}, given.select(bands) if bands else given)
    rights = {key: getattr(contract, key) for key in ("licences", "attributions", "corpora")}
    other, notes = replace(other, **rights), (*notes, *[said] * bool(said))
    if kept or other.sensor == own:
        return other, notes
    taken, words = inflation(own, other.sensor, "nearest")
    shares, conv = share_out(taken, own, other.sensor), first_conv(network)
    conv.weight = nn.Parameter(torch.einsum("cs,dshw->dchw", shares, conv.weight.detach()))
    conv.in_channels = len(other.names)
    return other, (*notes, *words, *shares_said(shares, own, other.sensor))
