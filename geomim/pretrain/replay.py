"""A step that is not finite: which tiles are to blame, kept in a file, and run again from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from geomim.pretrain.objective import MaskedImageModel
from geomim.randomness import Draws

Batch = dict[str, Any]


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
    found: list[tuple[list[int], Batch, Batch]] = []
    for part in parts:
        batch = receive(part)
        context = model.context(batch, Draws(seed, batch["position"]))
        plan = model.plan(context, progress)
        totals = totals + plan.weights.sum(1)
        losses = [one.term.loss(one.prediction, one.answer, one.weight) for one in model.ask(context, plan.splits)]
        bad = ~torch.stack(losses).isfinite().all(0)
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
        context = model.context(batch, Draws(seed, batch["position"]))
        plan = model.plan(context, progress)
        output = model.compare(context, plan, progress, totals)
        with torch.autocast(batch["image"].device.type, enabled=False):
            output.loss.backward()  # type: ignore[no-untyped-call]
        looked = {"input": batch["image"]}
        losses: dict[str, list[float]] = {}
        with torch.no_grad():
            for term, _, prediction, answer, weight in model.ask(context, plan.splits):
                loss = term.loss(prediction, answer, weight)
                losses[term.name] = loss.tolist()
                parts = {"prediction": prediction, "target": answer.values, "loss": loss[:, None]}
                looked |= {f"{term.name}: {part}": values for part, values in parts.items()}
        ids = batch["id"].tolist()
        for row, tile in enumerate(ids):
            lines.append(f"tile {tile}: " + ", ".join(f"{name} {values[row]:.6g}" for name, values in losses.items()))
        for name, values in looked.items():
            finite = values.flatten(1).isfinite().all(1).tolist()
            if not all(finite):
                bad = ", ".join(str(tile) for tile, fine in zip(ids, finite, strict=True) if not fine)
                faults.append(f"not finite: {name} of tiles {bad}")
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
