"""Encoders in files that others wrote: where their weights stand, and what the weights alone do not say."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from geomim.errors import CheckpointError
from geomim.models.vit import SIZES

_MARK = "patch_embed.proj.weight"
_ENCODER = re.compile(
    r"cls_token|pos_embed|(patch_embed\.proj|norm|blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12]))\.(weight|bias)"
)
# What the published pretraining models hold besides the encoder, and heads put on one later; none is the encoder's.
_NOT_ENCODER = re.compile(
    r"mask_token|decoder|pos_embed_probs|get_token_probs|(hog|heads?|fc|classifier|projector|predictor|teacher|student)\."
)
# Of several copies of one encoder the trained one comes first; a teacher is what self-distillation publishes.
_COPIES = ("teacher", "ema", "momentum", "student")
# Published sizes do not all have 64 channels a head.
_USUAL_HEADS = {width: heads for width, _, heads in SIZES.values()} | {1408: 16}
_HINTS = (
    (
        r"patch_embed\.\w+\.proj",
        "its bands are embedded in groups, as SatMAE does: give weights of one patch embedding",
    ),
    (r"patch_embeddings", "these are the names of Hugging Face's transformers: give the model as timm:NAME"),
    (r"regist|reg_token|\.ls\d\.", "it has register tokens or layer scale, as DINOv2 does: give it as timm:NAME"),
    (r"visual\.|ln_pre", "it is a CLIP: give it as remoteclip:PATH, or its name as open_clip:NAME/PRETRAINED"),
    (r"fc_norm", "it was fine-tuned to normalise after pooling: give the pretrained weights that it started from"),
)


def find_encoder(
    path: Path, content: Mapping[str, Any], heads: int | None
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """Find the one plain vision transformer in a file, however deep its weights stand and whatever stands before them.

    Args:
        path: The file, for the sentences.
        content: What it holds.
        heads: Attention heads; those usual at this width where None.

    Returns:
        Arguments of `ViT`; its weights by name; and `kind`, `dropped` and `notes` of `Loaded`.

    Raises:
        CheckpointError: There is none, there are several, or it is no plain one.
    """
    flat = dict(_flat(content))
    prefixes = sorted({name.removesuffix(_MARK) for name in flat if name.endswith(_MARK)}, key=_rank)
    prefixes = [prefix for prefix in prefixes if not prefix or prefix.endswith(".")]
    best = [prefix for prefix in prefixes if _rank(prefix)[0] == _rank(prefixes[0])[0]]
    if not best:
        raise CheckpointError(_refusal(path, f"no '{_MARK}'", flat))
    if len(best) > 1:
        named = ", ".join(f"'{prefix}'" for prefix in best)
        raise CheckpointError(f"'{path}' holds several encoders ({named}): save the weights of one, and give that file")
    state = {name.removeprefix(best[0]): value for name, value in flat.items() if name.startswith(best[0])}
    kept = {name: value for name, value in state.items() if not _NOT_ENCODER.match(name)}
    config, notes = _sizes(path, kept, heads)
    if len(prefixes) > 1 or _rank(best[0])[0]:
        others = "".join(f", not those under '{prefix}'" for prefix in prefixes[1:])
        notes = (*notes, f"the weights under '{best[0]}' are taken{others}")
    dropped = Counter(name.split(".")[0] for name in state if name not in kept)
    if dropped:
        notes = (*notes, f"left out as no part of an encoder: {', '.join(dropped)}")
    selective = any(name.startswith("get_token_probs") or ".cross_attn." in name for name in state)
    kind = "published SelectiveMAE checkpoint" if selective else "published MAE checkpoint"
    return config, kept, {"kind": kind, "dropped": dict(dropped), "notes": notes}


def _flat(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in content.items():
        if isinstance(value, Tensor) and value.ndim:
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")


def _rank(prefix: str) -> tuple[int, str]:
    """Which of several encoders is meant: the lowest."""
    words = re.split(r"[._]", prefix)
    return next((place for place, word in enumerate(_COPIES, 1) if word in words), 0), prefix


def _sizes(path: Path, state: Mapping[str, Tensor], heads: int | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Arguments of `ViT` from shapes alone, and what was assumed."""
    needed = ("cls_token", "pos_embed", "blocks.0.mlp.fc1.weight")
    missing = [name for name in needed if name not in state]
    strange = [name for name in state if not _ENCODER.fullmatch(name)]
    if missing or strange:
        faults = [f"no '{name}'" for name in missing] + [f"'{name}', which none has" for name in strange[:3]]
        raise CheckpointError(_refusal(path, ", ".join(faults), state))
    patches, positions = state[_MARK].shape, state["pos_embed"].shape
    side = math.isqrt(max(positions[1] - 1, 0))
    if len(patches) != 4 or patches[2] != patches[3] or len(positions) != 3 or side**2 != positions[1] - 1:
        raise CheckpointError(
            f"'{path}': expected square patches, and positions of a class token and a square of patches; "
            f"given {_MARK} {tuple(patches)} and pos_embed {tuple(positions)}: bring the positions to a square first"
        )
    width, in_chans, patch_size, _ = patches
    notes: tuple[str, ...] = ()
    if heads is None and width in _USUAL_HEADS:
        heads = _USUAL_HEADS[width]
        notes = (f"the weights do not state their attention heads: {heads}, as is usual {width} wide (else --heads)",)
    if not heads or width % heads:
        raise CheckpointError(
            f"'{path}' is {width} wide and does not state its attention heads: give them with --heads, a divisor of "
            f"{width}{f'; given {heads}' if heads is not None else ''}"
        )
    names = ("in_chans", "image_size", "patch_size", "width", "depth", "heads", "mlp_ratio")
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    ratio = state["blocks.0.mlp.fc1.weight"].shape[0] / width
    return dict(zip(names, (in_chans, side * patch_size, patch_size, width, depth, heads, ratio), strict=True)), notes


def _refusal(path: Path, fault: str, state: Mapping[str, Tensor]) -> str:
    hint = next((hint for pattern, hint in _HINTS if any(re.search(pattern, name) for name in state)), "")
    given = ", ".join([*list(state)[:4], *["..."] * (len(state) > 4)]) or "no tensors"
    return f"'{path}' holds no plain vision transformer by timm's names: {fault}; given {given}{hint and f': {hint}'}"
