"""Weights out: an encoder as a folder that plain timm reads, baked for one sensor where it knows several."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import timm
import torch

from geomim.errors import ConfigError, InputError
from geomim.models.card import model_card
from geomim.models.fitting import fitted, named_contract
from geomim.models.graphs import Features, compare
from geomim.models.hierarchical import Hierarchical
from geomim.models.image_text import ImageText, write_remoteclip
from geomim.models.weights import DIVIDED, IMAGENET, STORED, Loaded, write_tensors
from geomim.sensors import BandContract


def write_file(both: ImageText, file: Path) -> Path:
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


def write_encoder(loaded: Loaded, config: Mapping[str, Any], folder: Path) -> None:
    """Write what timm reads, read it, and compare (CheckpointError); the space shared with sentences lies beside."""
    own, contract = loaded.encoder, loaded.contract
    if contract and contract.dtype is None and contract.eight_bit:
        print("note: nothing says how the images were stored: by mean and std as 8-bit, and both are divided by 255")
    write_tensors(folder / "model.safetensors", (own.network if isinstance(own, Hierarchical) else own).state_dict())
    if loaded.joint:
        write_tensors(folder / "joint.safetensors", loaded.joint)
    write_json(folder / "config.json", config)
    made: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(1, own.in_chans, own.image_size, own.image_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        patches = own(images).patches.transpose(1, 2)
        expected = patches.mean(2), patches.unflatten(2, own.grid)
        compare(Features(made)(images), expected, "model.safetensors in timm")


def write_folder(loaded: Loaded, folder: Path) -> Path:
    """Write an encoder of one sensor and its card as timm reads it; aside, then renamed.

    Raises:
        InputError: The folder holds something else.
    """
    config = hub_config(loaded)

    def fill(aside: Path) -> None:
        write_encoder(loaded, config, aside)
        card = model_card(folder.name, config, f"local-dir:/path/to/{folder.name}")
        (aside / "README.md").write_text(card, encoding="utf-8")

    put_folder(folder, fill)
    return folder


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write plain values."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds something else than an earlier export, or that one is in (InputError)."""
    if folder.exists() and not _replaceable(folder):
        raise InputError(f"'{folder}' exists and is no earlier export: give an empty or a new folder")
    if Path.cwd().is_relative_to(folder.resolve()):
        raise InputError(f"'{folder}' is the folder you are in, and would be replaced: give another, or leave it first")


def put_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder aside, then rename it, over an earlier export where `check_folder` lets it."""
    check_folder(folder)
    folder = folder.resolve()  # of a link, what it leads to is replaced
    aside, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{part}") for part in ("part", "old"))
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        fill(aside)
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


def baked(
    loaded: Loaded, name: str, sensor: str | None, bands: list[str] | None, gsd: float | None, patch_size: int | None
) -> Loaded:
    """A plain encoder of one sensor, as `fitted` and `named_contract` say."""
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
    return replace(for_contract(loaded, contract, gsd, patch_size), notes=notes)


def for_contract(loaded: Loaded, contract: BandContract, gsd: float | None, patch_size: int | None = None) -> Loaded:
    """A plain encoder for a contract, which is given the rights of everything that the encoder was trained on."""
    rights: dict[str, Any] = {
        key: tuple(dict.fromkeys(chain.from_iterable(getattr(one, key) for one in loaded.contracts.values())))
        for key in ("licences", "attributions", "corpora")
    }
    encoder, contract = fitted(loaded.encoder, contract, gsd, patch_size), replace(contract, **rights)
    return replace(loaded, encoder=encoder, contracts={contract.sensor.name: contract})


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
