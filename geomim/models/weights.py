"""Weights read: geomim's own checkpoints, exported folders, and the published MAE and SelectiveMAE files.

Reading never runs code from a file: everything but tensors and plain values is refused. Plain are also numbers of
numpy, paths, and `argparse.Namespace`, a bag of values that the published checkpoints carry their arguments in.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from geomim import __version__
from geomim.errors import BandError, CheckpointError, ConfigError, GeomimError
from geomim.models.build import from_config
from geomim.models.foreign import find_encoder
from geomim.models.hierarchical import Encoder, Hierarchical
from geomim.models.vit import ViT
from geomim.sensors import SENSORS, BandContract

FORMAT_VERSION = 3
"""Version of the `geomim` entry in checkpoints and exports; a newer one is refused."""

IMAGENET = BandContract(SENSORS["rgb"], (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), dtype="uint8")
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
        contracts: Bands and statistics of each sensor it was trained with, by name; none where the file does not say.
        kind: What the file is, in words.
        dropped: How many tensors of each family were left out because they are not the encoder's.
        details: What else a geomim checkpoint says of its training.
        notes: What was assumed of it, in sentences for whoever uses it.
        joint: Weights of the space that it shares with sentences, whose `config` is `details["joint"]`; none without.
    """

    encoder: Encoder
    contracts: dict[str, BandContract]
    kind: str
    dropped: dict[str, int] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    joint: dict[str, Tensor] = field(default_factory=dict)

    @property
    def contract(self) -> BandContract | None:
        """The contract of its one sensor; None where the file names none, or several."""
        return next(iter(self.contracts.values())) if len(self.contracts) == 1 else None

    @property
    def trained_at(self) -> dict[str, float]:
        """Metres a pixel of what it was trained on, the median by sensor, as far as the file tells."""
        return dict((self.details.get("provenance") or {}).get("gsd") or {})

    @property
    def entry(self) -> dict[str, Any]:
        """All that is known of it as plain values, as an export of one sensor stores them."""
        several = {name: one.to_dict() for name, one in self.contracts.items() if self.contract is None}
        return {
            **self.details,
            "format_version": FORMAT_VERSION,
            "geomim_version": __version__,
            "source": self.kind,
            "encoder": self.encoder.config,
            "contract": self.contract.to_dict() if self.contract else None,
            **({"contracts": several} if several else {}),
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


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file for whom the umask says; the library's own writer leaves it to the owner alone."""
    path.write_bytes(save({name: value.contiguous() for name, value in tensors.items()}, {"format": "pt"}))


def _refusal(path: Path, error: Exception) -> str:
    found = re.search(r"GLOBAL ([\w.]+)|class ([\w.]+)|function ([\w.]+)", str(error))
    if "unsupported" in str(error).lower() and found:
        name = next(group for group in found.groups() if group)
        return (
            f"'{path}' holds the object '{name}', which could run code; expected tensors and plain values. "
            "It was not loaded. If you trust the file, save its state_dict alone and give that"
        )
    return f"'{path}' is no readable checkpoint ({type(error).__name__}): it is damaged or of another kind"


def read_encoder(path: str | Path, heads: int | None = None) -> Loaded:
    """Read an encoder from a geomim `.ckpt`, an exported folder, or a published MAE or SelectiveMAE file.

    Args:
        path: File or folder. Published files may hold their weights bare or under any key, with any prefixes.
        heads: Attention heads of a published file, which does not state them; where None, those of the published
            sizes, which is then noted.

    Raises:
        CheckpointError: The file is damaged, of a newer format, or not an encoder; the sentence names the tensors.
        ConfigError: It states other heads.
    """
    path = Path(path)
    if path.is_dir():
        loaded = _read_folder(path)
    elif "geomim" in (content := read_checkpoint(path)):
        loaded = _read_own(path, content)
    else:
        config, state, facts = find_encoder(path, content, heads)
        encoder = ViT(**config)
        fill(path, encoder, state, f"the encoder {encoder.config}")
        loaded = Loaded(encoder, {}, **facts)
    if heads not in (None, loaded.encoder.heads):
        raise ConfigError(f"'{path}' states {loaded.encoder.heads} attention heads: leave out --heads {heads}")
    config, dropped = loaded.encoder.config, loaded.dropped
    _log.info("%s: %s %s; left out: %s", path, loaded.kind, config, dropped or "nothing")
    return loaded


def contract_of(loaded: Loaded, name: str) -> tuple[BandContract, tuple[str, ...]]:
    """The contract of an encoder, and what was assumed of it; weights that name no bands are those published for RGB.

    Args:
        loaded: The encoder.
        name: The file, for the sentence.

    Raises:
        BandError: It is of several sensors, or names no bands and has other than three channels.
    """
    if len(loaded.contracts) > 1:
        raise BandError(
            f"'{name}' is of several sensors ({', '.join(loaded.contracts)}): make one of them with geomim export "
            "--sensor, and give that"
        )
    if loaded.contract is not None:
        return loaded.contract, loaded.notes
    if loaded.encoder.in_chans != 3:
        raise BandError(
            f"'{name}' has {loaded.encoder.in_chans} channels and names no bands: expected a band contract, or RGB"
        )
    note = "the weights name no bands: taken as 8-bit red, green, blue, normalised as ImageNet is"
    return IMAGENET, (note, *loaded.notes)


def exported_contract(name: str) -> BandContract | None:
    """What `export` wrote of the bands, of a model by timm's name `local-dir:FOLDER`; None of all others."""
    if not name.startswith("local-dir:"):
        return None
    try:
        config = Path(name.removeprefix("local-dir:"), "config.json").read_text(encoding="utf-8")
        contract = json.loads(config)["geomim"]["contract"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return BandContract.from_dict(contract) if contract else None


def picture_contract(config: Mapping[str, Any]) -> BandContract:
    """8-bit RGB with the mean and std of timm's `pretrained_cfg`, or of another that divides pictures by 255 first."""
    # exports of geomim say what their statistics are of; the earliest said nothing and meant stored numbers
    stored = config.get("tag") == "geomim" and config.get("description") in (None, "", STORED)
    mean, std = (tuple(value * (1 if stored else 255) for value in config[key]) for key in ("mean", "std"))
    return BandContract(SENSORS["rgb"], mean, std, dtype=None if stored else "uint8")


def pictures_said(contract: BandContract) -> str:
    """That weights are taken to be for pictures, in a sentence."""
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (contract.mean, contract.std))
    return f"the weights name no bands: taken as 8-bit red, green, blue, of mean {mean} and std {std}"


def _read_own(path: Path, content: dict[str, Any]) -> Loaded:
    details, weights = content["geomim"], content.get("state_dict")
    named = weights if isinstance(weights, Mapping) else {}
    state, joint = (
        {name.removeprefix(own): one for name, one in named.items() if name.startswith(own) and isinstance(one, Tensor)}
        for own in ("model.encoder.", "model.joint.")
    )
    if not state or not isinstance(details, Mapping):
        raise CheckpointError(f"'{path}': expected weights under 'model.encoder.' and what they are; it lacks them")
    started = tuple((details.get("provenance") or {}).get("start", ()))
    return replace(_described(path, details, state, "geomim checkpoint", started), joint=joint)


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
    joint = read_checkpoint(path / "joint.safetensors") if "joint" in details else {}
    notes = tuple(details.get("notes", ()))
    return replace(_described(path, details, read_checkpoint(weights), "exported encoder", notes), joint=joint)


def _described(
    path: Path, details: Mapping[str, Any], state: dict[str, Tensor], kind: str, notes: tuple[str, ...]
) -> Loaded:
    """An encoder by what geomim wrote of it."""
    version = details.get("format_version", 0)
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"'{path}' has format {version}; this geomim {__version__} reads up to {FORMAT_VERSION}: upgrade geomim"
        )
    given = details.get("contracts") or ({"": details["contract"]} if details.get("contract") else {})
    contracts = {name or one["sensor"]["name"]: BandContract.from_dict(one) for name, one in given.items()}
    try:
        encoder = from_config(details["encoder"], contracts)
    except (KeyError, TypeError, GeomimError) as error:
        raise CheckpointError(f"'{path}' does not describe its encoder: {error}") from error
    encoder.contracts = contracts
    if isinstance(encoder, Hierarchical):  # an export has timm's own names
        state = {f"network.{name.removeprefix('network.')}": value for name, value in state.items()}
    fill(path, encoder, state, f"the encoder {encoder.config}")
    for contract in contracts.values():
        if not encoder.config.get("spectral") and len(contract.names) != encoder.in_chans:
            bands = f"its contract names {', '.join(contract.names)}"
            raise BandError(f"'{path}': expected {encoder.in_chans} bands, one a channel; {bands}")
    rest = {key: value for key, value in details.items() if key not in ("encoder", "contract", "contracts")}
    return Loaded(encoder, contracts, kind, details=rest, notes=notes)


def fill(path: str | Path, module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load weights from a file into what is called so, or say which are missing, unknown or of another shape."""
    wanted = module.state_dict()
    faults = [f"missing {name} {tuple(value.shape)}" for name, value in wanted.items() if name not in state]
    faults += [f"unknown {name} {tuple(value.shape)}" for name, value in state.items() if name not in wanted]
    faults += [
        f"{name}: expected {tuple(wanted[name].shape)}, given {tuple(value.shape)}"
        for name, value in state.items()
        if name in wanted and value.shape != wanted[name].shape
    ]
    if faults:
        more = f" and {len(faults) - 6} more" if len(faults) > 6 else ""
        raise CheckpointError(f"'{path}' does not hold {what}: {'; '.join(faults[:6])}{more}")
    module.load_state_dict({name: value.float() for name, value in state.items()})
    module.eval()
