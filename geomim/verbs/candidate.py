"""Encoders to evaluate, opened for given images, and the images as they are shown to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

from geomim.data.labelled import Labelled, LabelledData
from geomim.errors import BandError, CheckpointError, ConfigError
from geomim.evaluate.features import random_like
from geomim.models.fitting import contract_for, fitted
from geomim.models.inputs import ContractInput
from geomim.models.weights import Loaded, exported_contract, picture_contract, read_encoder
from geomim.sensors import SENSORS, BandContract


@dataclass(frozen=True)
class Candidate:
    """An encoder to evaluate.

    Attributes:
        name: For the table.
        encoder: Frozen, on the CPU; one of any sensor, or of any metres a pixel, as a plain one.
        fresh: The same architecture with random weights, by seed.
        contract: Bands and statistics its input must have.
        image_size: Side of the images it is given, in pixels.
        notes: What was assumed about it.
        gsd: Metres a pixel that its positions are baked for, where they follow them.
        details: What its weights say of their training.
        source: The encoder as it was read, where that is another one.
    """

    name: str
    encoder: nn.Module
    fresh: Callable[[int], nn.Module]
    contract: BandContract
    image_size: int
    notes: tuple[str, ...] = ()
    gsd: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    source: nn.Module | None = None


class Batches:
    """Batches of one split as the evaluation room takes them.

    Args:
        images: The split.
        prepare: Picks and normalises the bands.
        size: Side to resize to.
        batch: Images a batch.
    """

    def __init__(self, images: Labelled, prepare: ContractInput, size: int, batch: int = 128) -> None:
        self.images, self.prepare, self.size, self.batch = images, prepare, size, batch

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self.images), self.batch):
            rows = np.arange(start, min(start + self.batch, len(self.images)))
            parts = [self.prepare(numbers, valid, self.size) for numbers, valid in self.images.read(rows)]
            yield {
                "image": torch.cat([image for image, _ in parts]),
                "valid": torch.cat([valid for _, valid in parts]),
                "label": torch.from_numpy(self.images.labels[rows]),
            }


def open_candidate(
    checkpoint: str,
    images: LabelledData,
    image_size: int | None = None,
    heads: int | None = None,
    all_bands: bool = False,
) -> Candidate:
    """Read an encoder for given images.

    Args:
        checkpoint: As for `evaluate`.
        images: What it is to be evaluated on.
        image_size: Side of the images; the encoder's own where None.
        heads: As for `evaluate`.
        all_bands: As for `evaluate`.

    Raises:
        CheckpointError: The checkpoint cannot be read.
        ConfigError: A size, or all bands, are asked of an encoder that they do not fit.
        BandError: The file names no bands and is not for RGB.
    """
    if checkpoint.startswith("timm:"):
        if all_bands:
            raise ConfigError(f"'{checkpoint}' is a plain encoder of its own bands: leave out --all_bands")
        return _timm_candidate(checkpoint.removeprefix("timm:"), images, image_size)
    loaded = read_encoder(checkpoint, heads)
    contract, gsd, notes = suited(loaded, checkpoint, images, all_bands)
    encoder = fitted(loaded.encoder, contract, gsd)
    size = image_size or encoder.image_size
    if size % encoder.patch_size:
        raise ConfigError(f"image_size {size}: expected a multiple of the patch size {encoder.patch_size}")
    name, told = _name(checkpoint, loaded.details), (notes, gsd, loaded.details, loaded.encoder)
    return Candidate(name, encoder, lambda seed: random_like(encoder, seed), contract, size, *told)


def suited(
    loaded: Loaded, source: str, images: LabelledData, all_bands: bool = False
) -> tuple[BandContract, float | None, tuple[str, ...]]:
    """What an encoder sees images with: their contract, metres a pixel where positions follow them, and notes.

    Arguments and errors as of `contract_for`.
    """
    contract, notes = contract_for(loaded, source, images.sensor, images.contract, all_bands)
    if not loaded.encoder.config.get("gsd_positions"):
        return contract, None, notes
    # positions are stretched over images of another size, which are of as much ground
    gsd, said = images.gsd_at(loaded.encoder.image_size, contract)
    return contract, gsd, (*notes, said)


def _name(checkpoint: str, details: Mapping[str, Any]) -> str:
    """What stands in the table: recipe and step where the file tells them."""
    recipe, step = details.get("recipe"), details.get("step")
    return f"{recipe}, step {step:,}" if recipe and step is not None else Path(checkpoint).stem


def _timm_candidate(name: str, images: LabelledData, image_size: int | None) -> Candidate:
    try:
        encoder = _timm(name, image_size, pretrained=True)
    except Exception as error:  # unknown name, no network, no such size: timm raises many kinds
        raise CheckpointError(f"timm cannot give '{name}' ({' '.join(str(error).split())[:200]})") from error
    config = encoder.pretrained_cfg
    own = exported_contract(name)
    if own is None and config["input_size"][0] != 3:
        raise BandError(f"timm model '{name}' has {config['input_size'][0]} channels without names; expected RGB")
    if own is not None:
        contract, note = own, f"{name}: normalised as its pretraining was"
    elif images.contract is None:
        contract, note = picture_contract(config), f"{name}: normalised as its pretraining was"
    else:
        contract = images.contract.select(SENSORS["rgb"].bands)
        note = f"{name}: sees {', '.join(contract.names)}, normalised with the corpus's statistics"
    size = image_size or config["input_size"][-1]
    return Candidate(name, encoder, lambda seed: _timm(name, image_size, seed=seed), contract, size, (note,))


def _timm(name: str, image_size: int | None, pretrained: bool = False, seed: int = 0) -> Any:
    sizes = [{}] if image_size is None else [{"img_size": image_size}, {}]  # convolutions take no size
    for size in sizes:
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                return timm.create_model(name, pretrained=pretrained, num_classes=0, **size).eval()
        except TypeError:
            if size is sizes[-1]:
                raise
    return None
