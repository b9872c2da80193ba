"""A saved probe and the encoder that it was fitted on look at scenes, patch by patch."""

from __future__ import annotations

import os
import shlex
from dataclasses import replace

from torch import Tensor

from geomim.errors import CheckpointError
from geomim.evaluate.probes import patch_logits
from geomim.evaluate.saved import ProbeCard, fingerprint, load_probe
from geomim.maps.walk.encoder import open_encoder
from geomim.maps.walk.looker import Looker
from geomim.maps.walk.strips import digest
from geomim.sensors import BandContract


def open_probe(path: str, encoder: str | None = None, heads: int | None = None, device: str = "auto") -> Looker:
    """What `geomim evaluate` saved, ready to look at scenes.

    Args:
        path: A probe file, or the folder (then the linear probe).
        encoder: What it was fitted on, where its card does not say or that has moved.
        heads: Attention heads of a published file, which does not state them.
        device: `auto`, `cpu`, `cuda` or another torch device.

    Raises:
        CheckpointError: There is no such probe or encoder, it was fitted on another one or on one that is timm's alone,
            or patches have no answer.
    """
    answers, card = load_probe(path)
    _check(path, card)
    found = encoder or card.checkpoint
    if found is None:
        raise CheckpointError(f"probe '{path}' does not say where its encoder is: name it with --encoder")
    if found.startswith("timm:"):
        raise CheckpointError(
            f"'{found}', the encoder of probe '{path}', is timm's alone, and maps need one of geomim's: run `geomim "
            "evaluate` on a checkpoint or on a folder of `geomim export`, or tune this one with "
            f"`geomim finetune --encoder {found}`"
        )
    if encoder is None and not os.path.exists(found):
        raise CheckpointError(f"'{found}', which probe '{path}' was fitted on, is not there: say with --encoder where")
    contract = BandContract.from_dict(card.contract or {})
    frozen = open_encoder(found, heads, device, lambda _: (contract, ()), card.gsd)
    if card.encoder != fingerprint(frozen.encoder):
        raise CheckpointError(
            f"probe '{path}' was fitted on another encoder than '{found}': name that one with --encoder, or run "
            "`geomim evaluate` on this one"
        )
    answers = answers.to(frozen.device)

    def decide(tokens: Tensor) -> Tensor:
        return patch_logits(answers, tokens).softmax(-1)

    made_by = digest({"encoder": card.encoder, "probe": fingerprint(answers)})
    looker = frozen.looker(card.classes, decide, made_by)
    notes = (*looker.notes, *_pool_note(card, found), *_scale_note(card))
    return replace(looker, gsd=looker.gsd or card.fitted_at, notes=notes)


def _check(path: str, card: ProbeCard) -> None:
    if card.kind == "linear" and card.pool == "class":
        raise CheckpointError(
            f"probe '{path}' was fitted on the class token, which no patch has: run `geomim evaluate --pool mean`"
        )


def _pool_note(card: ProbeCard, encoder: str) -> tuple[str, ...]:
    if card.pool == "patch":
        return ()
    fitted = "mean-pooled tiles" if card.kind == "linear" else "tiles, to whose patches it attends together"
    return (
        f"the probe was fitted on {fitted}, and a map asks it of every patch alone: for one fitted on patches run "
        f"`geomim evaluate {shlex.quote(encoder)} DATA --dense`, with or without masks",
    )


def _scale_note(card: ProbeCard) -> tuple[str, ...]:
    if card.scale == 1:
        return ()
    changed = f"shrunk {card.scale:.3g}" if card.scale > 1 else f"enlarged {1 / card.scale:.3g}"
    return (
        f"the probe was fitted on images {changed} times, the map is made at the scene's own resolution: for like with "
        "like, evaluate on images of the encoder's size",
    )
