"""Weights in and out: geomim's own checkpoints, exported folders, and the published MAE and SelectiveMAE files.

Reading never runs code from a file: everything but tensors and plain values is refused. Plain are also numbers of
numpy, paths, and `argparse.Namespace`, a bag of values that the published checkpoints carry their arguments in.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from geomim import __version__
from geomim.errors import BandError, CheckpointError, GeomimError, InputError
from geomim.models.build import from_config
from geomim.models.card import model_card
from geomim.models.foreign import find_encoder
from geomim.models.hierarchical import Encoder, Hierarchical
from geomim.models.vit import SIZES, ViT
from geomim.sensors import SENSORS, BandContract

FORMAT_VERSION = 2
"""Version of the `geomim` entry in checkpoints and exports; a newer one is refused."""

IMAGENET = BandContract(SENSORS["rgb"], (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
"""8-bit RGB with the statistics that the published files were trained with."""

DIVIDED, STORED = "mean and std of 8-bit numbers divided by 255, as of pictures", "mean and std of stored numbers"
"""What `pretrained_cfg` of an export says in its `description`; older exports say nothing and mean stored numbers."""

_log = logging.getLogger(__name__)

# Plain values that published checkpoints carry beside their weights. Paths stay words: none is opened.
_SCALAR = np.float64(0).__reduce__()[0]
_PLAIN: list[Any] = [
    argparse.Namespace,
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"},
    *((PurePosixPath, f"pathlib.{inner}PosixPath") for inner in ("", "Pure", "_local.", "_local.Pure")),
    *((PureWindowsPath, f"pathlib.{inner}WindowsPath") for inner in ("", "Pure", "_local.", "_local.Pure")),
]


@dataclass(frozen=True)
class Loaded:
    """An encoder read from a file.

    Attributes:
        encoder: The encoder, on the CPU, in evaluation mode.
        contract: Bands and statistics it was trained with; None where the file does not say.
        kind: What the file is, in words.
        dropped: How many tensors of each family were left out because they are not the encoder's.
        details: What else a geomim checkpoint says of its training.
        notes: What was assumed of it, in sentences for whoever uses it.
    """

    encoder: Encoder
    contract: BandContract | None
    kind: str
    dropped: dict[str, int] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def entry(self) -> dict[str, Any]:
        """All that is known of it as plain values, as an export stores them."""
        return {
            **self.details,
            "format_version": FORMAT_VERSION,
            "geomim_version": __version__,
            "source": self.kind,
            "encoder": self.encoder.config,
            "contract": self.contract.to_dict() if self.contract else None,
            "notes": list(dict.fromkeys([*self.details.get("notes", ()), *self.notes])),
        }


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a file of tensors and plain values without running anything that is in it.

    Args:
        path: A `.safetensors` file, or one written by `torch.save`.

    Returns:
        What the file holds, tensors on the CPU; `argparse.Namespace` objects are left as they are, and paths become
        pure ones.

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
        with torch.serialization.safe_globals(_PLAIN):
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


def load_encoder(path: str | Path, heads: int | None = None) -> tuple[Encoder, BandContract | None]:
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
        path: File or folder. Published files may hold their weights bare or under any key, with any prefixes.
        heads: Attention heads of a published file, which does not state them; where None, those of the published
            sizes, which is then noted.

    Raises:
        CheckpointError: The file is damaged, of a newer format, or not an encoder; the sentence names the tensors.
    """
    path = Path(path)
    if path.is_dir():
        loaded = _read_folder(path)
    else:
        content = read_checkpoint(path)
        loaded = _read_own(path, content) if "geomim" in content else _read_foreign(path, content, heads)
    if heads not in (None, loaded.encoder.heads):
        raise CheckpointError(f"'{path}' states {loaded.encoder.heads} attention heads: leave out --heads {heads}")
    config, dropped = loaded.encoder.config, loaded.dropped
    _log.info("%s: %s %s; left out: %s", path, loaded.kind, config, dropped or "nothing")
    return loaded


def contract_of(loaded: Loaded, name: str) -> tuple[BandContract, tuple[str, ...]]:
    """The contract of an encoder, and what was assumed of it; weights that name no bands are those published for RGB.

    Args:
        loaded: The encoder.
        name: The file, for the sentence.

    Raises:
        BandError: It names no bands and has other than three channels.
    """
    if loaded.contract is not None:
        return loaded.contract, loaded.notes
    if loaded.encoder.in_chans != 3:
        raise BandError(
            f"'{name}' has {loaded.encoder.in_chans} channels and names no bands: expected a band contract, or RGB"
        )
    note = "the weights name no bands: taken as 8-bit red, green, blue, normalised as ImageNet is"
    return IMAGENET, (note, *loaded.notes)


def exported_contract(folder: str | Path) -> BandContract | None:
    """What `export` wrote of the bands into a folder; None where it wrote nothing, or something else wrote it."""
    try:
        contract = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["geomim"]["contract"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return BandContract.from_dict(contract) if contract else None


def _read_own(path: Path, content: dict[str, Any]) -> Loaded:
    details, weights = content["geomim"], content.get("state_dict")
    state = _under(weights, "model.encoder.") if isinstance(weights, Mapping) else {}
    if not state or not isinstance(details, Mapping):
        raise CheckpointError(f"'{path}': expected weights under 'model.encoder.' and what they are; it lacks them")
    encoder = _build(path, details, state)
    rest = {key: value for key, value in details.items() if key not in ("encoder", "contract", "contracts")}
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


def _build(path: Path, details: Mapping[str, Any], state: dict[str, Tensor]) -> Encoder:
    version = details.get("format_version", 0)
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"'{path}' has format {version}; this geomim {__version__} reads up to {FORMAT_VERSION}: upgrade geomim"
        )
    try:
        encoder = from_config(details["encoder"])
    except (KeyError, TypeError, GeomimError) as error:
        raise CheckpointError(f"'{path}' does not describe its encoder: {error}") from error
    if isinstance(encoder, Hierarchical):  # an export has timm's own names
        state = {f"network.{name.removeprefix('network.')}": value for name, value in state.items()}
    return _fill(path, encoder, state)


def _fill(path: Path, encoder: Encoder, state: Mapping[str, Tensor]) -> Encoder:
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


def _contract(path: Path, details: Mapping[str, Any], encoder: Encoder) -> BandContract | None:
    values = details.get("contract") or next(iter(details.get("contracts", {}).values()), None)
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
    found = find_encoder(path, content, heads)
    encoder = _fill(path, ViT(**found.config), found.state)
    return Loaded(encoder, None, found.kind, found.dropped, notes=found.notes)


def export(checkpoint: str, out: str, heads: int | None = None) -> Path:
    """Write an encoder as a folder that timm, torchgeo and safetensors read without geomim.

    `timm.create_model("local-dir:OUT", pretrained=True)` gives the encoder with mean-pooled patch tokens as its
    answer. The mean and deviation of its `pretrained_cfg` are those of pictures brought to 0..1, as timm's transforms
    do it, where the encoder was trained on 8-bit numbers; else those of stored numbers. Its `description` says which.

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
    for note in loaded.notes:
        print(f"note: {note}")
    folder = Path(out)
    if folder.exists() and not _replaceable(folder):
        raise InputError(f"'{folder}' exists and is no earlier export: give an empty or a new folder")
    config = hub_config(loaded)
    aside, old = (folder.absolute().with_name(f".{folder.name}.{os.getpid()}.{part}") for part in ("part", "old"))
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        model = loaded.encoder.network if isinstance(loaded.encoder, Hierarchical) else loaded.encoder
        state = {name: value.contiguous() for name, value in model.state_dict().items()}
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
    architecture, arguments = _vit_arguments(encoder) if isinstance(encoder, ViT) else encoder.timm_arguments()
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
            "fixed_input_size": not isinstance(encoder, ViT),
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


def _vit_arguments(encoder: ViT) -> tuple[str, dict[str, Any]]:
    """Name of an architecture and arguments that make timm build the same model."""
    sizes = {size: name for name, size in SIZES.items()}
    name = sizes.get((encoder.width, encoder.depth, encoder.heads), "base")
    return "vit_huge_patch14_224" if name == "huge" else f"vit_{name}_patch16_224", {
        "img_size": encoder.image_size,
        "patch_size": encoder.patch_size,
        "in_chans": encoder.in_chans,
        "embed_dim": encoder.width,
        "depth": encoder.depth,
        "num_heads": encoder.heads,
        "mlp_ratio": encoder.mlp_ratio,
        "global_pool": "avg",
        "fc_norm": False,  # keeps the final norm where it was trained, before the pooling
        "dynamic_img_size": True,
    }
