"""An encoder opened for a task: a model of timm, and which numbers it expects, whatever file it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from geomim.errors import BandError, CheckpointError, ConfigError
from geomim.evaluate.features import random_like
from geomim.models.fitting import Chosen, borrowed, contract_for, fitted, named_contract
from geomim.models.frozen import as_timm
from geomim.models.inflate import inflation, share_out, shares_said
from geomim.models.weights import (
    Loaded,
    contract_of,
    exported_contract,
    picture_contract,
    pictures_said,
    read_encoder,
)
from geomim.sensors import BandContract, Sensor, get_sensor, stated_contract


@dataclass(frozen=True)
class Backbone:
    """An encoder as a task uses it, by timm's interface alone.

    Attributes:
        network: A model of timm without a head, on the CPU, in evaluation mode.
        contract: Bands, units, mean and deviation of what it is to be given.
        notes: What was assumed, in sentences for whoever uses it.
        name: What tables call it.
    """

    network: nn.Module
    contract: BandContract
    notes: tuple[str, ...]
    name: str


def open_backbone(
    source: str,
    sensor: Sensor | str | None = None,
    bands: Sequence[str] | None = None,
    image_size: int | None = None,
    seed: int | None = None,
) -> Backbone:
    """Open an encoder as a model of timm.

    A spectral encoder is baked for the sensor. A plain one keeps its own bands where the sensor has them all; for
    fewer or other bands its first kernels are shared out by name or nearest wavelength, and statistics of bands that
    it never saw are those of the nearest one of the same unit.

    Args:
        source: A run folder, a checkpoint, an exported folder, or `timm:NAME`, also `timm:local-dir:FOLDER`.
        sensor: What the images' numbers are: a sensor, or its name or YAML file, which may state mean and std.
        bands: Use these bands alone, in this order: of the sensor, or of the encoder's own where that is None.
        image_size: Side of the images in pixels, which positions are resampled to; the encoder's own where None.
        seed: Same architecture, with weights it would start from, drawn by this number: the floor.

    Raises:
        CheckpointError: The source cannot be read, or is of several sensors and none is named.
        BandError: A band is like none of the encoder's, or it names no bands and is not for three.
        ConfigError: The images do not divide into its patches.
    """
    network, (contract, notes), fits = (_timm if source.startswith("timm:") else _geomim)(source, sensor, bands, seed)
    if not fits:
        contract, said = _refit(network, contract, sensor, bands)
        notes = (*notes, *said)
    if image_size is not None:
        _resize(network, image_size)
    name = source if source.startswith("timm:") else checkpoint_of(source)[1]
    if seed is not None:
        name = f"{name}, random initialisation"
    return Backbone(network.eval(), contract, notes, name)


def checkpoint_of(source: str) -> tuple[str, str]:
    """The file or exported folder that a path means, which may be a run's folder, and what to call it."""
    path = Path(source)
    last = path / "checkpoints" / "last.ckpt"
    if last.is_file():
        return str(last), path.resolve().name
    if not path.exists():
        raise CheckpointError(
            f"'{source}' does not exist: expected a run folder, a checkpoint, an exported folder, or timm:NAME"
        )
    inside = path.parent.name == "checkpoints" and path.suffix == ".ckpt"
    return source, path.resolve().parent.parent.name if inside else path.resolve().stem


Opened = tuple[Any, Chosen, bool]
"""The model, its contract with notes, and whether that is the one that was asked for."""


def _geomim(source: str, sensor: Sensor | str | None, bands: Sequence[str] | None, seed: int | None) -> Opened:
    loaded = read_encoder(checkpoint_of(source)[0])
    spectral = bool(loaded.encoder.config.get("spectral"))
    contract, notes = _spectral(loaded, source, sensor, bands) if spectral else contract_of(loaded, source)
    if loaded.encoder.config.get("gsd_positions"):
        gsd = contract.sensor.gsd
        notes = (*notes, f"its positions are made for {'unknown metres' if gsd is None else f'{gsd:g} m'} a pixel")
    own = fitted(loaded.encoder, contract)
    if seed is not None:
        own = random_like(own, seed)
    return as_timm(own), (contract, notes), spectral


def _spectral(loaded: Loaded, source: str, sensor: Sensor | str | None, bands: Sequence[str] | None) -> Chosen:
    """What a spectral encoder is baked for."""
    if isinstance(sensor, Sensor):
        images = sensor.select(bands) if bands else sensor
        return contract_for(loaded, source, images, all_bands=bool(bands))
    return named_contract(loaded, source, sensor, bands)


def _timm(source: str, sensor: Sensor | str | None, bands: Sequence[str] | None, seed: int | None) -> Opened:
    name = source.removeprefix("timm:")
    with torch.random.fork_rng(devices=[]) if seed is not None else nullcontext():
        if seed is not None:
            torch.manual_seed(seed)
        network = create(name, pretrained=seed is None)
    contract, notes = exported_contract(name), tuple[str, ...]()
    if contract is None:
        channels = first_conv(network).in_channels
        if channels != 3:
            raise BandError(f"'{source}' has {channels} channels and names no bands: expected a band contract, or RGB")
        contract = picture_contract(network.pretrained_cfg)
        notes = (pictures_said(contract),)
    return network, (contract, notes), False


def create(name: str, **arguments: Any) -> Any:
    """A model of timm without a head, for images of any size where it can be.

    Raises:
        CheckpointError: timm has no such model, or cannot get its weights.
    """
    try:
        try:
            return timm.create_model(name, num_classes=0, dynamic_img_size=True, **arguments)
        except TypeError:  # only transformers know that argument
            return timm.create_model(name, num_classes=0, **arguments)
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


def _refit(network: Any, contract: BandContract, sensor: Sensor | str | None, bands: Sequence[str] | None) -> Chosen:
    """Give a plain model other bands, in place, where its own are not what is asked for."""
    if sensor is None:
        other, notes = (contract.select(bands) if bands else contract), tuple[str, ...]()
    else:
        given = sensor if isinstance(sensor, Sensor) else get_sensor(sensor)
        if not bands and _has_all(contract, given):
            return contract, ()
        stated = None if isinstance(sensor, Sensor) else stated_contract(sensor, bands)
        other, notes = (stated, ()) if stated else _like(contract, given.select(bands) if bands else given)
    if other == contract:
        return contract, ()
    own, wanted = contract.sensor, other.sensor
    taken, said = inflation(own, wanted, "nearest")
    shares, conv = share_out(taken, own, wanted), first_conv(network)
    conv.weight = nn.Parameter(torch.einsum("cs,dshw->dchw", shares, conv.weight.detach()))
    conv.in_channels = len(wanted.bands)
    return replace(other, licences=contract.licences, attributions=contract.attributions, corpora=contract.corpora), (
        *notes,
        *said,
        *shares_said(shares, own, wanted),
    )


def _has_all(contract: BandContract, given: Sensor) -> bool:
    try:
        return bool(contract.indices(given.bands))
    except BandError:
        return False


def _like(contract: BandContract, given: Sensor) -> Chosen:
    """A contract for other bands, with statistics of those that are most like them."""
    other, said = borrowed({contract.sensor.name: contract}, given)
    return other, (f"never trained on just {', '.join(given.names)} of '{given.name}': {said}",)


def _resize(network: Any, side: int) -> None:
    """Resample the positions of a transformer to images of another size; convolutions need nothing."""
    if not hasattr(network, "set_input_size"):
        return
    if side < 1 or any(side % patch for patch in network.patch_embed.patch_size):
        raise ConfigError(f"image_size {side}: expected a multiple of the patches' {network.patch_embed.patch_size} px")
    network.set_input_size(img_size=(side, side))
