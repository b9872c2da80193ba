"""A fitted probe on disk: weights as safetensors, and beside them a JSON that says what it may be used with."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from geomim.errors import CheckpointError
from geomim.evaluate.linear import LinearProbe
from geomim.evaluate.probes import EfficientProbe
from geomim.models.hierarchical import Hierarchical
from geomim.models.vit import ViT
from geomim.models.weights import write_tensors

FORMAT_VERSION = 1


@dataclass(frozen=True)
class ProbeCard:
    """What a saved probe is for.

    Attributes:
        kind: `linear` or `efficient`.
        classes: Class names in the order of the logits.
        pool: How vectors were pooled: `mean` or `class`, or `patch` where they are not (linear); `tokens` (efficient).
        encoder: `fingerprint` of the encoder it was fitted on.
        contract: Band contract of that encoder, as plain values, or None.
        accuracy: On the test images, in 0..1.
        scale: How many times the images were shrunk before they were encoded, the median where it varied; below 1
            where they were enlarged.
        gsd: Metres a pixel that the encoder's positions were baked for, where they follow them.
        fitted_at: Metres a pixel of the images as they were encoded, the median, where they tell it.
        checkpoint: Where the encoder was read from, if the file says; `encoder` decides whether it still is the one.
    """

    kind: str
    classes: tuple[str, ...]
    pool: str
    encoder: str
    contract: dict[str, Any] | None
    accuracy: float
    scale: float = 1.0
    gsd: float | None = None
    fitted_at: float | None = None
    checkpoint: str | None = None


def fingerprint(encoder: nn.Module) -> str:
    """Hash of all weights, and of what they do not show, such as an unusual number of heads: whose probe is this?"""
    digest = hashlib.sha256()
    if isinstance(encoder, ViT) and encoder.heads * 64 != encoder.width:
        digest.update(f"{encoder.heads} heads".encode())
    if isinstance(encoder, Hierarchical):
        digest.update(str(encoder.config).encode())
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()[:32]


def save_probe(path: str | Path, probe: nn.Module, card: ProbeCard) -> Path:
    """Write a probe.

    Args:
        path: File ending in `.safetensors`; the card is written beside it as `.json`.
        probe: `LinearProbe` or `EfficientProbe`.
        card: What it is for.

    Returns:
        The path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {"format_version": FORMAT_VERSION, **asdict(card)}
    about = path.with_suffix(".json")
    part, about_part = (file.with_name(f".{file.name}.{os.getpid()}.part") for file in (path, about))
    write_tensors(part, probe.state_dict())
    about_part.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    part.replace(path)
    about_part.replace(about)
    return path


def load_probe(path: str | Path) -> tuple[LinearProbe | EfficientProbe, ProbeCard]:
    """Read what `save_probe` wrote.

    Args:
        path: The `.safetensors` or the `.json`, or an evaluation folder: then its linear probe, the one whose answers
            for single patches add up to those for images.

    Raises:
        CheckpointError: There is no probe, it is damaged, or of a newer format.
    """
    path = Path(path)
    if not path.exists() and not path.with_suffix(".safetensors").exists():
        raise CheckpointError(f"'{path}' does not exist: give a probe that `geomim evaluate` wrote, or its folder")
    path = path / "linear.safetensors" if path.is_dir() else path.with_suffix(".safetensors")
    about = path.with_suffix(".json")
    if not path.is_file() or not about.is_file():
        raise CheckpointError(f"no probe in '{path}': expected it and '{about.name}', as `geomim evaluate` writes them")
    try:
        values = json.loads(about.read_text(encoding="utf-8"))
        version = values.pop("format_version")
        if version > FORMAT_VERSION:
            raise CheckpointError(f"'{about}' has format {version}; this geomim reads up to {FORMAT_VERSION}: upgrade")
        card = ProbeCard(**values | {"classes": tuple(values["classes"])})
        state = load_file(path)
        probe: LinearProbe | EfficientProbe
        if card.kind == "linear":
            probe = LinearProbe(state["weight"].shape[1], len(card.classes))
        else:
            narrow, width = state["0.v.weight"].shape
            probe = EfficientProbe(width, len(card.classes), state["0.cls_token"].shape[1], width // narrow)
        probe.load_state_dict(state)
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"'{path}' is no probe that geomim wrote: {error}") from error
    return probe.eval().requires_grad_(False), card
