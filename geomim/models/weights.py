"""Weights in and out: geomim's own checkpoints, exported folders, and the published MAE and SelectiveMAE files.

Reading never runs code from a file: everything but tensors and plain values is refused. One exception is
`argparse.Namespace`, a bag of values that the published checkpoints carry their arguments in.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from geomim import __version__
from geomim.errors import BandError, CheckpointError, GeomimError, InputError
from geomim.models.card import model_card
from geomim.models.vit import SIZES, ViT
from geomim.sensors import BandContract

FORMAT_VERSION = 1
"""Version of the `geomim` entry in checkpoints and exports; a newer one is refused."""

_log = logging.getLogger(__name__)

# What the published pretraining models hold besides the encoder, and heads put on one later; none is the encoder's.
_NOT_ENCODER = re.compile(
    r"(mask_token|decoder_|pos_embed_probs|get_token_probs|hog\.|head\.|projector\.|predictor\.|teacher\.)"
)
# Published sizes do not all have 64 channels a head.
_PUBLISHED_HEADS = {width: heads for width, _, heads in SIZES.values()} | {1408: 16}


@dataclass(frozen=True)
class Loaded:
    """An encoder read from a file.

    Attributes:
        encoder: The encoder, on the CPU, in evaluation mode.
        contract: Bands and statistics it was trained with; None where the file does not say.
        kind: What the file is, in words.
        dropped: How many tensors of each family were left out because they are not the encoder's.
        details: What else a geomim checkpoint says of its training.
    """

    encoder: ViT
    contract: BandContract | None
    kind: str
    dropped: dict[str, int] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a file of tensors and plain values without running anything that is in it.

    Args:
        path: A `.safetensors` file, or one written by `torch.save`.

    Returns:
        What the file holds, tensors on the CPU; `argparse.Namespace` objects are left as they are.

    Raises:
        CheckpointError: The file is missing, damaged, or holds an object that is neither tensor nor plain value.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint '{path}' does not exist")
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"'{path}' is not a readable safetensors file: {error}") from error
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for damaged files
        raise CheckpointError(_refusal(path, error)) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"'{path}' holds a {type(content).__name__}; expected a dictionary of weights")
    return dict(content)


def _refusal(path: Path, error: Exception) -> str:
    found = re.search(r"GLOBAL ([\w.]+)|class ([\w.]+)|function ([\w.]+)", str(error))
    if "unsupported" in str(error).lower() and found:
        name = next(group for group in found.groups() if group)
        return (
            f"'{path}' holds the object '{name}', which could run code; expected tensors and plain values. "
            "It was not loaded. If you trust the file, save its state_dict alone and give that"
        )
    return f"'{path}' is no readable checkpoint ({type(error).__name__}): it is damaged or of another kind"


def load_encoder(path: str | Path, heads: int | None = None) -> tuple[ViT, BandContract | None]:
    """Read an encoder from any of the known formats; `read_encoder` also says what was read.

    Args:
        path: As for `read_encoder`.
        heads: As for `read_encoder`.

    Returns:
        The encoder on the CPU in evaluation mode, and its band contract or None.
    """
    loaded = read_encoder(path, heads)
    return loaded.encoder, loaded.contract


def read_encoder(path: str | Path, heads: int | None = None) -> Loaded:
    """Read an encoder from a geomim `.ckpt`, an exported folder, or a published MAE or SelectiveMAE file.

    Args:
        path: File or folder. Published files may hold their weights under `model` or `state_dict` or bare, with
            the prefixes `module.` and `encoder.`.
        heads: Attention heads of a published file, which does not state them; where None, those of the published
            size, or one every 64 channels.

    Raises:
        CheckpointError: The file is damaged, of a newer format, or not an encoder; the sentence names the tensors.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    content = read_checkpoint(path)
    loaded = _read_own(path, content) if "geomim" in content else _read_foreign(path, content, heads)
    config, dropped = loaded.encoder.config, loaded.dropped
    _log.info("%s: %s %s; left out: %s", path, loaded.kind, config, dropped or "nothing")
    return loaded


def _read_own(path: Path, content: dict[str, Any]) -> Loaded:
    details, weights = content["geomim"], content.get("state_dict")
    state = _under(weights, "model.encoder.") if isinstance(weights, Mapping) else {}
    if not state or not isinstance(details, Mapping):
        raise CheckpointError(f"'{path}': expected weights under 'model.encoder.' and what they are; it lacks them")
    encoder = _build(path, details, state)
    rest = {key: value for key, value in details.items() if key not in ("encoder", "contract")}
    return Loaded(encoder, _contract(path, details, encoder), "geomim checkpoint", details=rest)


def _read_folder(path: Path) -> Loaded:
    config, weights = path / "config.json", path / "model.safetensors"
    if not config.is_file() or not weights.is_file():
        raise CheckpointError(f"'{path}' is no exported encoder: expected config.json and model.safetensors in it")
    try:
        details = json.loads(config.read_text(encoding="utf-8")).get("geomim")
    except ValueError as error:
        raise CheckpointError(f"'{config}' is not JSON: {error}") from error
    if not details:
        raise CheckpointError(f"'{config}' has no 'geomim' entry: use timm:local-dir:{path} for a plain timm folder")
    encoder = _build(path, details, read_checkpoint(weights))
    rest = {key: value for key, value in details.items() if key not in ("encoder", "contract")}
    return Loaded(encoder, _contract(path, details, encoder), "exported encoder", details=rest)


def _build(path: Path, details: Mapping[str, Any], state: dict[str, Tensor]) -> ViT:
    version = details.get("format_version", 0)
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"'{path}' has format {version}; this geomim {__version__} reads up to {FORMAT_VERSION}: upgrade geomim"
        )
    try:
        encoder = ViT(**details["encoder"])
    except (KeyError, TypeError, GeomimError) as error:
        raise CheckpointError(f"'{path}' does not describe its encoder: {error}") from error
    return _fill(path, encoder, state)


def _fill(path: Path, encoder: ViT, state: Mapping[str, Tensor]) -> ViT:
    """Load weights, or say which are missing, unknown or of another shape."""
    wanted = encoder.state_dict()
    faults = [f"missing {name} {tuple(value.shape)}" for name, value in wanted.items() if name not in state]
    faults += [f"unknown {name} {tuple(value.shape)}" for name, value in state.items() if name not in wanted]
    faults += [
        f"{name}: expected {tuple(wanted[name].shape)}, given {tuple(value.shape)}"
        for name, value in state.items()
        if name in wanted and value.shape != wanted[name].shape
    ]
    if faults:
        more = f" and {len(faults) - 6} more" if len(faults) > 6 else ""
        raise CheckpointError(f"'{path}' does not hold the encoder {encoder.config}: {'; '.join(faults[:6])}{more}")
    encoder.load_state_dict({name: value.float() for name, value in state.items()})
    return encoder.eval()


def _contract(path: Path, details: Mapping[str, Any], encoder: ViT) -> BandContract | None:
    values = details.get("contract")
    if values is None:
        return None
    contract = BandContract.from_dict(values)
    if len(contract.names) != encoder.in_chans:
        raise BandError(
            f"'{path}': expected {encoder.in_chans} bands, one a channel; "
            f"its contract names {', '.join(contract.names)}"
        )
    return contract


def _under(state: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in state.items()
        if name.startswith(prefix) and isinstance(value, Tensor)
    }


def _read_foreign(path: Path, content: dict[str, Any], heads: int | None) -> Loaded:
    nested = next((content[key] for key in ("model", "state_dict") if isinstance(content.get(key), Mapping)), content)
    state = {name: value for name, value in nested.items() if isinstance(value, Tensor)}
    for prefix in ("module.", "encoder."):
        inner = _under(state, prefix)
        state = inner if "patch_embed.proj.weight" in inner or (prefix == "module." and inner) else state
    kept = {name: value for name, value in state.items() if not _NOT_ENCODER.match(name)}
    dropped = Counter(name.split(".")[0] for name in state if name not in kept)
    selective = any(name.startswith("get_token_probs") or ".cross_attn." in name for name in state)
    encoder = _fill(path, _infer(path, kept, heads), kept)
    kind = "published SelectiveMAE checkpoint" if selective else "published MAE checkpoint"
    return Loaded(encoder, None, kind, dict(dropped))


def _infer(path: Path, state: Mapping[str, Tensor], heads: int | None) -> ViT:
    """Sizes from shapes alone."""
    needed = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
    missing = [name for name in needed if name not in state]
    if missing:
        given = ", ".join(list(state)[:5]) or "no tensors"
        raise CheckpointError(
            f"'{path}' is no vision transformer with timm's names: missing {', '.join(missing)}; given {given}"
        )
    width, in_chans, patch_size, _ = state["patch_embed.proj.weight"].shape
    side = round((state["pos_embed"].shape[1] - 1) ** 0.5)
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    if heads is None:
        heads = _PUBLISHED_HEADS.get(width, width // 64 if width % 64 == 0 else None)
    if heads is None or width % heads:
        raise CheckpointError(
            f"'{path}' is {width} wide and does not state its attention heads: expected a divisor of {width} "
            f"in heads=, given {heads}"
        )
    ratio = state["blocks.0.mlp.fc1.weight"].shape[0] / width
    return ViT(in_chans, side * patch_size, patch_size, width, depth, heads, ratio)


def export(checkpoint: str, out: str, heads: int | None = None) -> Path:
    """Write an encoder as a folder that timm, torchgeo and safetensors read without geomim.

    `timm.create_model("local-dir:OUT", pretrained=True)` gives the encoder with mean-pooled patch tokens as its
    answer; the numbers it expects are `(stored number - mean) / std` of `pretrained_cfg`.

    Args:
        checkpoint: A geomim checkpoint, an exported folder, or a published MAE or SelectiveMAE file.
        out: Folder to write; an earlier export is replaced, any other folder with content is refused.
        heads: Attention heads of a published file whose size is not a usual one.

    Returns:
        The folder.

    Raises:
        CheckpointError: The checkpoint cannot be read.
        InputError: `out` holds something else.
    """
    loaded = read_encoder(checkpoint, heads)
    folder = Path(out)
    if folder.exists() and not _replaceable(folder):
        raise InputError(f"'{folder}' exists and is no earlier export: give an empty or a new folder")
    config = hub_config(loaded)
    aside, old = (folder.absolute().with_name(f".{folder.name}.{os.getpid()}.{part}") for part in ("part", "old"))
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        state = {name: value.contiguous() for name, value in loaded.encoder.state_dict().items()}
        save_file(state, aside / "model.safetensors", metadata={"format": "pt"})
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
    sizes = {size: name for name, size in SIZES.items()}
    name = sizes.get((encoder.width, encoder.depth, encoder.heads), "base")
    architecture = "vit_huge_patch14_224" if name == "huge" else f"vit_{name}_patch16_224"
    size = [encoder.in_chans, encoder.image_size, encoder.image_size]
    # Without a contract the published files are meant: they were trained on 8-bit RGB as ImageNet is normalised.
    mean = list(contract.mean) if contract else [255 * value for value in IMAGENET_MEAN]
    std = list(contract.divisor) if contract else [255 * value for value in IMAGENET_STD]
    return {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": encoder.width,
        "global_pool": "avg",
        # Every size is stated, so the architecture's own sizes never matter. fc_norm=False keeps the final norm
        # where it was trained, before the pooling.
        "model_args": {
            "img_size": encoder.image_size,
            "patch_size": encoder.patch_size,
            "in_chans": encoder.in_chans,
            "embed_dim": encoder.width,
            "depth": encoder.depth,
            "num_heads": encoder.heads,
            "mlp_ratio": encoder.mlp_ratio,
            "global_pool": "avg",
            "fc_norm": False,
            "dynamic_img_size": True,
        },
        "pretrained_cfg": {
            "tag": "geomim",
            "custom_load": False,
            "input_size": size,
            "fixed_input_size": False,
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
        "geomim": {
            **loaded.details,
            "format_version": FORMAT_VERSION,
            "geomim_version": __version__,
            "source": loaded.kind,
            "encoder": encoder.config,
            "contract": contract.to_dict() if contract else None,
        },
    }


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Statistics of RGB in 0..1 that the published files were trained with."""
