"""A frozen model of images and text, wherever it comes from: what evaluation and maps ask."""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geomim.errors import CheckpointError
from geomim.models.clip import Clip, Visual, clip_name, image_tower, is_clip, openai_contract, read_clip
from geomim.models.fitting import fitted
from geomim.models.inputs import patch_validity
from geomim.models.joint import Joint
from geomim.models.patches import Latents
from geomim.models.text import text_tower
from geomim.models.vit import ViT
from geomim.models.weights import Loaded, fill, read_encoder
from geomim.sensors import SENSORS, BandContract, find_band

_CHUNK = 256  # sentences at a time


class ImageText(nn.Module):
    """Images and sentences to vectors of length 1 in one space, whose dot products say how well they fit.

    Args:
        loaded: The encoder of images, which `contract_for` and `named_contract` ask for a sensor's contract.
        joint: The space.

    Attributes:
        contracts: Bands and statistics of each sensor it was trained with, by the name that `sensor` takes.
        image_size: Side of the images it was trained with, in pixels; other sizes are taken in whole patches.
        patch_size: Side of a patch in pixels.
        logit_scale: What dot products are multiplied by before a softmax.
        notes: What was assumed of it, in sentences.
    """

    def __init__(self, loaded: Loaded, joint: Joint) -> None:
        super().__init__()
        self.loaded, self.encoder, self.joint = loaded, loaded.encoder, joint
        self.contracts, self.notes = loaded.contracts, loaded.notes
        self.image_size, self.patch_size = self.encoder.image_size, self.encoder.patch_size
        self.logit_scale = float(joint.scale.detach())
        self.eval().requires_grad_(False)

    @cached_property
    def fingerprint(self) -> str:
        """Of weights, bands and statistics: vectors of two models are comparable where these are the same."""
        found = hashlib.blake2b(digest_size=16)
        contracts = [(one.sensor.to_dict(), one.mean, one.std) for one in self.contracts.values()]
        space = self.joint.config | {"text": self.joint.text.content}
        found.update(json.dumps([contracts, self.encoder.config, space], sort_keys=True).encode())
        for name, value in self.state_dict().items():
            found.update(name.encode())
            found.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return found.hexdigest()

    def fitted(self, contract: BandContract, gsd: float | None = None) -> ImageText:
        """The model for one sensor, which a spectral one need not be trained on; arguments as for `ViT.bake`."""
        encoder = fitted(self.encoder, contract, gsd)
        return ImageText(replace(self.loaded, encoder=encoder, contracts={contract.sensor.name: contract}), self.joint)

    @torch.no_grad()
    def encode_image(self, images: Tensor, valid: Tensor | None = None, sensor: str | None = None) -> Tensor:
        """Vectors of images.

        Args:
            images: `(B, C, H, W)`, normalised as the contract says.
            valid: `(B, 1, H, W)` bool; patches of less than half valid pixels are not seen.
            sensor: Which of `contracts` they follow; may be None where there is but one.

        Returns:
            `(B, dim)` float32.
        """
        return self.joint.image(self._latents(images, valid, sensor))

    @torch.no_grad()
    def encode_patches(self, images: Tensor, valid: Tensor | None = None, sensor: str | None = None) -> Tensor:
        """Vectors `(B, h*w, dim)` of the patches of images in raster order; arguments as for `encode_image`.

        Raises:
            CheckpointError: The image tower has none.
        """
        if isinstance(self.encoder, Visual):
            raise CheckpointError(
                f"a {self.encoder.kind} answers with one vector an image, and has none of patches to compare with "
                "text: take one whose tokens are projected, as the vision transformer ViT-B-32"
            )
        return self.joint.patches(self._latents(images, valid, sensor))

    @torch.no_grad()
    def encode_text(self, sentences: Sequence[str]) -> Tensor:
        """Vectors `(n, dim)` of sentences."""
        text, device = self.joint.text, self.joint.logit_scale.device
        parts = [list(sentences[start : start + _CHUNK]) for start in range(0, len(sentences), _CHUNK)]
        found = [self.joint.sentences(text.trim(text.tokenize(part)).to(device)) for part in parts]
        return torch.cat(found) if found else torch.zeros(0, text.dim, device=device)

    def _latents(self, images: Tensor, valid: Tensor | None, sensor: str | None) -> Latents:
        seen = None if valid is None else patch_validity(valid, self.patch_size)
        if seen is not None:  # of an image without any valid patch all are
            seen = None if bool(seen.all()) else seen | ~seen.any(1, keepdim=True)
        if not isinstance(self.encoder, ViT):
            latents: Latents = self.encoder(images, sensor=sensor)
            latents.key_valid = None if seen is None else F.pad(seen, (latents.prefix, 0), value=True)
            return latents
        contract = self.contracts.get(sensor or next(iter(self.contracts), ""))
        told = contract.sensor.gsd if contract and self.encoder.gsd_positions else None
        gsd = images.new_full((len(images),), told) if told else None
        encoded: Latents = self.encoder(images, key_valid=seen, sensor=sensor, gsd=gsd)
        return encoded


def open_image_text(source: str, quickgelu: bool | None = None) -> ImageText:
    """Open a model of images and text.

    Args:
        source: A geomim checkpoint or export of a recipe with sentences; `remoteclip:PATH[@ARCH]`; or
            `open_clip:NAME/PRETRAINED`, see `read_clip`.
        quickgelu: As for `read_clip`.

    Raises:
        CheckpointError: It cannot be read, or knows no sentences.
        ConfigError: `quickgelu` is given for what states it itself.
        MissingExtraError: open_clip is not installed.
    """
    if is_clip(source, quickgelu):
        clip = read_clip(source, quickgelu)
        loaded, pool, projection = image_tower(clip)
        joint = Joint(text_tower(clip), loaded.encoder.width, pool)
        _as_published(joint, clip, projection)
        return ImageText(loaded, joint)
    return with_text(read_encoder(source), source)


def start_space(joint: Joint, source: str, quickgelu: bool | None = None) -> str:
    """Give a space whose encoder and text tower start from one model that model's projection and temperature too.

    Args:
        joint: The space.
        source: As for `read_clip`.
        quickgelu: Likewise.

    Returns:
        What was done, in a sentence.
    """
    clip = read_clip(source, quickgelu)
    pool, projection = image_tower(clip)[1:]
    _as_published(joint, clip, projection)
    other = f"; it pools {pool}, this run {joint.pool}" if pool != joint.pool else ""
    return f"projection of images and temperature started from {source}{other}"


def _as_published(joint: Joint, clip: Clip, projection: Tensor) -> None:
    joint.projection.weight.data.copy_(projection)
    joint.logit_scale.data.fill_(float(clip.model.logit_scale.detach()))


def with_text(loaded: Loaded, source: str) -> ImageText:
    """What was read of a checkpoint or an export, with the space that it shares with sentences.

    Raises:
        CheckpointError: It has none.
    """
    if not loaded.joint or "joint" not in loaded.details:
        raise CheckpointError(
            f"'{source}' knows images and no sentences (recipe {loaded.details.get('recipe', 'unknown')}): expected a "
            "checkpoint or export of a recipe with sentences, as remote_clip, or remoteclip:PATH, or "
            "open_clip:NAME/PRETRAINED"
        )
    joint = Joint.from_config(loaded.details["joint"])
    fill(source, joint, loaded.joint, f"the space of images and sentences {joint.config}")
    return ImageText(loaded, joint)


def write_remoteclip(model: ImageText, path: Path) -> None:
    """Write a model in RemoteCLIP's layout: a bare state dict, which open_clip loads as well.

    Its images are normalised as OpenAI's: other statistics go into the kernels and, as every patch gains the same of
    them, into the positions.

    Raises:
        CheckpointError: The layout cannot hold it: it states neither heads, which are read as of 64 channels, nor the
            activation, one for both towers, and knows 8-bit red, green, blue and a class token alone, and of an image
            tower that is no vision transformer OpenAI's statistics.
    """
    encoder, joint = model.encoder, model.joint
    if isinstance(encoder, Visual):
        visual = encoder.tower.state_dict()
    else:
        visual = {clip_name(name): value for name, value in encoder.state_dict().items()}
        visual |= {name: value.squeeze() for name, value in visual.items() if name.endswith("_embedding")}
        visual["proj"] = joint.projection.weight.T.contiguous()
        _renormalise(visual, _contract(model))
    state = {f"visual.{name}": value for name, value in visual.items()} | joint.text.network.state_dict()
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        torch.save(OrderedDict(state | {"logit_scale": joint.logit_scale[0].clone()}), aside)
        again = open_image_text(f"remoteclip:{aside}", joint.text.config["quick_gelu"])  # what reads wrong is not kept
        if (given := _shape(again)) != (ours := _shape(model)):
            raise CheckpointError(f"it would be read as {given}, and is {ours}")
        aside.replace(path)
    except CheckpointError as error:
        raise CheckpointError(f"'{path}' is not written, RemoteCLIP's layout cannot hold the model: {error}") from error
    finally:
        aside.unlink(missing_ok=True)


def _renormalise(visual: dict[str, Tensor], own: BandContract) -> None:
    """Make weights for images of their own statistics take those normalised as OpenAI's, in place."""
    wanted = openai_contract()
    if (own.mean, own.std) != (wanted.mean, wanted.std) and len(own.mean) == len(wanted.mean):
        mean, std, divisor = (torch.tensor(one) for one in (own.mean, wanted.std, own.divisor))
        kernel, shift = visual["conv1.weight"], (torch.tensor(wanted.mean) - mean) / divisor
        visual["conv1.weight"] = kernel * (std / divisor)[:, None, None]
        visual["positional_embedding"] = visual["positional_embedding"].clone()
        visual["positional_embedding"][1:] += torch.einsum("dcij,c->d", kernel, shift)


def _contract(model: ImageText) -> BandContract:
    return next(iter(model.contracts.values()))


def _shape(model: ImageText) -> dict[str, Any]:
    contract, rgb = _contract(model), SENSORS["rgb"]
    known = [find_band(band, rgb.bands) for band in contract.sensor.bands] == [0, 1, 2]
    images = f"{'8-bit ' * contract.eight_bit}{', '.join(rgb.names if known else contract.names)}"
    if isinstance(model.encoder, Visual):  # whose weights stay, and so what its images are normalised with
        images += (
            f", of mean {[round(one, 2) for one in contract.mean]} and std {[round(one, 2) for one in contract.std]}"
        )
    heads = model.joint.text.config["text_cfg"].get("heads", 8)
    return {**model.encoder.config, "pool": model.joint.pool, "heads of text": heads, "images": images}
