"""A step that is not finite: which tiles are to blame, kept in a file, and run again from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from geomim.pretrain.context import Context
from geomim.pretrain.objective import MaskedImageModel, Output
from geomim.randomness import Draws

Batch = dict[str, Any]


class Asked(NamedTuple):
    """What one term made of a micro-batch: `prediction` and `target` `(B, P, T)`, and the `loss (B,)` of its images."""

    prediction: Tensor
    target: Tensor
    loss: Tensor


@contextmanager
def watched(model: MaskedImageModel) -> Iterator[dict[str, Asked]]:
    """Keep what the terms of a model predict, are answered and lose, by name, while it runs."""
    seen: dict[str, Asked] = {}

    def watch(term: Any) -> None:
        loss = term.loss

        def keep(prediction: Tensor, answer: Any, *rest: Any) -> Tensor:
            values: Tensor = loss(prediction, answer, *rest)
            seen[term.name] = Asked(prediction.detach(), answer.values, values.detach())
            return values

        term.__dict__["loss"] = keep  # in front of a loss that is a module, too

    before = [term.__dict__.get("loss") for term in model.terms]
    for term in model.terms:
        watch(term)
    try:
        yield seen
    finally:
        for term, loss in zip(model.terms, before, strict=True):
            del term.__dict__["loss"]
            if loss is not None:
                term.__dict__["loss"] = loss


def again(
    model: MaskedImageModel, batch: Batch, seed: int, progress: Tensor, totals: Tensor
) -> tuple[Output, dict[str, Asked]]:
    """Run a micro-batch as it ran in its step.

    Args:
        model: The objective.
        batch: Augmented, on its device.
        seed: Seed of the run.
        progress: Of the step, 0-dim.
        totals: `(T,)`, see `MaskedImageModel.compare`.
    """
    context = Context(batch, model.encoder, Draws(seed, batch["position"]))
    with watched(model) as seen:
        output = model.compare(context, model.plan(context, progress), progress, totals)
    return output, seen


@torch.no_grad()
def blame(
    model: MaskedImageModel, parts: Sequence[Batch], receive: Callable[[Batch], Batch], seed: int, progress: Tensor
) -> dict[str, Any]:
    """Run a whole step again, and keep what of it is not finite.

    Args:
        model: The objective with the weights of before the step.
        parts: Its raw micro-batches, those of all ranks.
        receive: Sends one to the device and augments it.
        seed: Seed of the run.
        progress: Of the step, 0-dim.

    Returns:
        On the CPU: `tiles`, ids of which the loss is not finite; `totals`; and of the micro-batches that hold one,
        or of all where no loss is to blame, `raw` and `batches`, as they were read and as the model was given them.
    """
    totals: Any = 0
    for part in parts:
        batch = receive(part)
        context = Context(batch, model.encoder, Draws(seed, batch["position"]))
        totals = totals + model.plan(context, progress).weights.sum(1)
    found: list[tuple[list[int], Batch, Batch]] = []
    for part in parts:
        batch = receive(part)
        _, seen = again(model, batch, seed, progress, totals)
        bad = ~torch.stack([asked.loss.isfinite() for asked in seen.values()]).all(0)
        found.append((part["id"][bad.cpu()].tolist(), part, move_data_to_device(batch, torch.device("cpu"))))
    found = [one for one in found if one[0]] or found
    tiles, raw, batches = zip(*found, strict=True)
    return {"tiles": list(chain(*tiles)), "totals": totals.cpu(), "raw": list(raw), "batches": list(batches)}


def describe(
    model: MaskedImageModel, batches: Sequence[Batch], seed: int, progress: Tensor, totals: Tensor
) -> tuple[list[str], bool]:
    """Run kept micro-batches again with their gradient, and say what each image loses and what is not finite.

    Args:
        model: The objective with the weights of before the step.
        batches: Augmented micro-batches on its device.
        seed: Seed of the run.
        progress: Of the step, 0-dim.
        totals: `(T,)`, see `MaskedImageModel.compare`.

    Returns:
        Lines for a terminal, and whether everything is finite.
    """
    lines, faults = [], []
    for batch in batches:
        output, seen = again(model, batch, seed, progress, totals)
        with torch.autocast(batch["image"].device.type, enabled=False):
            output.loss.backward()  # type: ignore[no-untyped-call]
        asked = {"input": batch["image"]}
        for name, one in seen.items():
            asked |= {f"{name}: prediction": one.prediction, f"{name}: target": one.target, f"{name}: loss": one.loss}
        good = {name: values.flatten(1 if values.ndim > 1 else 0).isfinite() for name, values in asked.items()}
        good = {name: values.all(1) if values.ndim > 1 else values for name, values in good.items()}
        ids = batch["id"].tolist()
        for row, tile in enumerate(ids):
            losses = ", ".join(f"{name} {one.loss[row].item():.6g}" for name, one in seen.items())
            lines.append(f"tile {tile}: {losses}")
        for name, values in good.items():
            if not values.all():
                bad = [str(tile) for tile, fine in zip(ids, values.tolist(), strict=True) if not fine]
                faults.append(f"not finite: {name} of tiles {', '.join(bad)}")
    groups: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            groups.setdefault(".".join(name.split(".")[:3]), []).append(parameter.grad)
    for name, gradients in groups.items():
        norm = torch.nn.utils.get_total_norm(gradients)
        lines.append(f"gradient of {name}: {norm.item():.6g}")
        if not bool(norm.isfinite()):
            faults.append(f"not finite: gradient of {name}")
    return lines + faults, not faults
