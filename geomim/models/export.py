"""Weights out: an encoder as a folder that plain timm reads, baked for one sensor where it knows several."""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from geomim.errors import ConfigError, InputError
from geomim.models.card import model_card
from geomim.models.fitting import fitted, named_contract
from geomim.models.hierarchical import Hierarchical
from geomim.models.image_text import ImageText, with_text, write_remoteclip
from geomim.models.weights import DIVIDED, IMAGENET, STORED, Loaded, read_encoder, write_tensors


def export(
    checkpoint: str,
    out: str,
    heads: int | None = None,
    sensor: str | None = None,
    bands: list[str] | None = None,
    gsd: float | None = None,
    patch_size: int | None = None,
    layout: Literal["timm", "remoteclip"] = "timm",
) -> Path:
    """Write an encoder as a folder that timm, torchgeo and safetensors read without geomim.

    The space that it shares with sentences, where it has one, lies beside in `joint.safetensors`.
    `timm.create_model("local-dir:OUT", pretrained=True)` gives the encoder with mean-pooled patch tokens as its
    answer. The mean and deviation of its `pretrained_cfg` are those of pictures brought to 0..1, as timm's transforms
    do it, where the encoder was trained on 8-bit numbers; else those of stored numbers. Its `description` says which.

    Args:
        checkpoint: A geomim checkpoint, an exported folder, or a published MAE or SelectiveMAE file.
        out: Folder to write; an earlier export is replaced, any other folder with content is refused.
        heads: Attention heads of a published file whose size is not a usual one.
        sensor: What a spectral encoder is baked for: a sensor that it was trained on, another one, or a YAML file of
            one, with `mean` and `std` of the stored numbers where its bands are like none of the encoder's.
        bands: Only these bands, in this order.
        gsd: Metres a pixel of the images, for positions that follow it; those of the sensor where not given.
        patch_size: Another patch size in pixels; kernels are resized by pseudo-inverse.
        layout: `remoteclip` writes images and text as one file, which open_clip loads: a class token, red, green and
            blue, and CLIP's architecture (`--encoder.clip`) are needed.

    Returns:
        The folder, or the file.

    Raises:
        CheckpointError: The checkpoint cannot be read, or is of several sensors and none is named.
        BandError: The encoder cannot be baked for these bands.
        InputError: `out` holds something else.
    """
    loaded = _baked(read_encoder(checkpoint, heads), checkpoint, sensor, bands, gsd, patch_size)
    for note in loaded.notes:
        print(f"note: {note}")
    if layout == "remoteclip":
        return _write_file(with_text(loaded, checkpoint), Path(out))
    return write_folder(loaded, Path(out))


def _write_file(both: ImageText, file: Path) -> Path:
    """In RemoteCLIP's layout."""
    if file.exists():
        raise InputError(f"'{file}' exists: give a new file")
    write_remoteclip(both, file)
    print(f"wrote {file}; read it with remoteclip:{file}, or open_clip's load_checkpoint")
    if not both.joint.text.config["quick_gelu"]:
        print(
            "note: its activation is GELU, which the file cannot say and remoteclip: takes for QuickGELU: give "
            "--quickgelu false to the verb that reads it"
        )
    return file


def write_folder(loaded: Loaded, folder: Path) -> Path:
    """Write an encoder of one sensor as timm reads it; aside, then renamed.

    Raises:
        InputError: The folder holds something else.
    """
    if folder.exists() and not _replaceable(folder):
        raise InputError(f"'{folder}' exists and is no earlier export: give an empty or a new folder")
    config = hub_config(loaded)
    aside, old = (folder.absolute().with_name(f".{folder.name}.{os.getpid()}.{part}") for part in ("part", "old"))
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        model = loaded.encoder.network if isinstance(loaded.encoder, Hierarchical) else loaded.encoder
        write_tensors(aside / "model.safetensors", model.state_dict())
        if loaded.joint:
            write_tensors(aside / "joint.safetensors", loaded.joint)
        (aside / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (aside / "README.md").write_text(model_card(folder.name, config), encoding="utf-8")
        if folder.exists():
            folder.rename(old)
        try:
            aside.rename(folder)
        except OSError:
            old.rename(folder)
            raise
    finally:
        for leftover in (aside, old):
            shutil.rmtree(leftover, ignore_errors=True)
    print(f'wrote {folder}; load it with timm.create_model("local-dir:{folder}", pretrained=True)')
    return folder


def _baked(
    loaded: Loaded, name: str, sensor: str | None, bands: list[str] | None, gsd: float | None, patch_size: int | None
) -> Loaded:
    """A plain encoder of one sensor, with the rights of everything that it was trained on."""
    if gsd is not None and not 0 < gsd < math.inf:
        raise ConfigError(f"--gsd: expected metres a pixel, above 0; given {gsd:g}")
    if patch_size is not None and patch_size < 1:
        raise ConfigError(f"--patch-size: expected pixels, at least 1; given {patch_size}")
    if gsd is not None and not loaded.encoder.config.get("gsd_positions"):
        raise ConfigError(f"the positions of '{name}' do not follow the metres a pixel: leave out --gsd")
    if not loaded.encoder.config.get("spectral"):
        if sensor or bands:
            raise ConfigError(f"'{name}' is a plain encoder of its own bands: leave out --sensor and --bands")
        return replace(loaded, encoder=fitted(loaded.encoder, loaded.contract, gsd, patch_size))
    contract, notes = named_contract(loaded, name, sensor, bands)
    licences, attributions, corpora = (
        tuple(dict.fromkeys(chain.from_iterable(getattr(one, key) for one in loaded.contracts.values())))
        for key in ("licences", "attributions", "corpora")
    )
    contract = replace(contract, licences=licences, attributions=attributions, corpora=corpora)
    encoder = fitted(loaded.encoder, contract, gsd, patch_size)
    return replace(loaded, encoder=encoder, contracts={contract.sensor.name: contract}, notes=notes)


def _replaceable(folder: Path) -> bool:
    if folder.is_file():
        return False
    config = folder / "config.json"
    return not any(folder.iterdir()) or (config.is_file() and '"geomim"' in config.read_text(encoding="utf-8"))


def hub_config(loaded: Loaded) -> dict[str, Any]:
    """The `config.json` of an export, in the form that timm reads from the Hub and from `local-dir:` folders.

    Args:
        loaded: The encoder and what is known of it.
    """
    encoder, contract = loaded.encoder, loaded.contract
    architecture, arguments = encoder.timm_arguments()
    size = [encoder.in_chans, encoder.image_size, encoder.image_size]
    # Without a contract the published files are meant: they were trained on 8-bit RGB as ImageNet is normalised.
    stated = contract or IMAGENET
    unit = 255 if stated.eight_bit else 1  # timm brings pictures to 0..1 before it normalises them
    mean, std = ([value / unit for value in values] for values in (stated.mean, stated.divisor))
    return {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": encoder.width,
        "global_pool": "avg",
        "model_args": arguments,  # every size is stated, so the architecture's own sizes never matter
        "pretrained_cfg": {
            "tag": "geomim",
            "description": DIVIDED if stated.eight_bit else STORED,
            "custom_load": False,
            "input_size": size,
            "fixed_input_size": isinstance(encoder, Hierarchical),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": mean,
            "std": std,
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
        "geomim": loaded.entry,
    }
