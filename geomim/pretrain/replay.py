"""A step that is not finite: which tiles are to blame, kept in a file, and run again from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from geomim.pretrain.objective import MaskedImageModel
from geomim.pretrain.step import Step, join
from geomim.randomness import Draws

Batch = dict[str, Any]


def keep(trainer: Any, module: Any, step: int) -> str:
    """Keep a step of a `PretrainModule` that was not finite as a file; in words, what of it is not, and where it is.

    All ranks do the same: their weights are those of before it.

    Args:
        trainer: The module's.
        module: What trains.
        step: From 1.
    """
    done = (step - 1) / trainer.max_steps
    progress = torch.full((), done, device=module.device)
    parts = trainer.train_dataloader.whole(step - 1)
    module.model.begin(done)
    with trainer.precision_plugin.forward_context():
        failure = blame(module.model, parts, trainer.strategy.batch_to_device, module.seed, progress)
    content = {
        "geomim": module.description() | {"step": step - 1, "progress": done},
        "state_dict": trainer.strategy.lightning_module_state_dict(),
        "failure": failure | {"step": step, "seed": module.seed, "progress": done},
    }
    path = Path(trainer.default_root_dir) / "failures" / f"step-{step:07d}.pt"
    where = f"'geomim replay {path}' runs it again and shows where it begins"
    if trainer.is_global_zero:
        try:
            path.parent.mkdir(exist_ok=True)
            torch.save(content, path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
        except (OSError, RuntimeError) as error:
            where = f"it could not be kept in '{path}' ({error})"
    trainer.strategy.barrier()
    tiles = failure["tiles"]
    more = f" and {len(tiles) - 8} more" * (len(tiles) > 8)
    what = f"loss of tiles {', '.join(map(str, tiles[:8]))}{more}" if tiles else "gradient, not the loss,"
    return f"the {what} is not finite in step {step} of {trainer.max_steps}: {where}"


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
        or of all where no loss is to blame, `raw` and `batches`, as they were read and as the model was given them,
        and `steps`, what was said of all images.
    """
    totals: Any = 0
    said, kept = [], list[Any]()
    for part in parts:
        batch = receive(part)
        context = model.context(batch, Draws(seed, batch["position"]))
        plan = model.plan(context, progress)
        totals = totals + plan.weights.sum(1)
        said.append(model.said(context, plan))
    steps, cpu = join(said, ranks=False), torch.device("cpu")
    every = move_data_to_device(steps[0].plain(), cpu)  # once, and so once in a file
    for part, step in zip(parts, steps, strict=True):
        batch = receive(part)
        context = model.context(batch, Draws(seed, batch["position"]))
        asked = list(model.ask(context, model.plan(context, progress).splits))
        # what is said of one image may spoil the loss of all
        values = [value.flatten(1) for one in asked for value in (one.prediction, one.answer.values)]
        spoiled = ~torch.stack([value.isfinite().all(1) for value in values]).all(0)
        lost = ~torch.stack([one.loss(step) for one in asked]).isfinite().all(0)
        ids, own = part["id"], every | {"own": step.own.cpu()}
        kept.append((ids[spoiled.cpu()], ids[lost.cpu()], part, move_data_to_device(batch, cpu), own))
    which = 0 if any(len(one[0]) for one in kept) else 1
    kept = [one for one in kept if len(one[which])] or kept
    tiles = list(chain(*(one[which].tolist() for one in kept)))
    raw, batches, told = (list(one) for one in zip(*(one[2:] for one in kept), strict=True))
    return {"tiles": tiles, "totals": totals.cpu(), "raw": raw, "batches": batches, "steps": told}


def describe(
    model: MaskedImageModel,
    batches: Sequence[Batch],
    seed: int,
    progress: Tensor,
    totals: Tensor,
    steps: Sequence[dict[str, Any]],
) -> tuple[list[str], bool]:
    """Run kept micro-batches again with their gradient, and say what each image loses and what is not finite.

    Args:
        model: The objective with the weights of before the step.
        batches: Augmented micro-batches on its device.
        seed: Seed of the run.
        progress: Of the step, 0-dim.
        totals: `(T,)`, see `MaskedImageModel.compare`.
        steps: As `blame` keeps them.

    Returns:
        Lines for a terminal, and whether everything is finite.
    """
    lines, faults = [], []
    for batch, plain in zip(batches, steps, strict=True):
        step = Step.from_plain(plain)
        context = model.context(batch, Draws(seed, batch["position"]))
        plan = model.plan(context, progress)
        output = model.compare(context, plan, progress, totals, step)
        with torch.autocast(batch["image"].device.type, enabled=False):
            output.loss.backward()  # type: ignore[no-untyped-call]
        looked = {"input": batch["image"]}
        losses: dict[str, list[float]] = {}
        with torch.no_grad():
            for one in model.ask(context, plan.splits):
                loss = one.loss(step)
                losses[one.term.name] = loss.tolist()
                parts = {"prediction": one.prediction, "target": one.answer.values, "loss": loss[:, None]}
                looked |= {f"{one.term.name}: {part}": values for part, values in parts.items()}
        ids = batch["id"].tolist()
        for row, tile in enumerate(ids):
            lines.append(f"tile {tile}: " + ", ".join(f"{name} {values[row]:.6g}" for name, values in losses.items()))
        for name, values in looked.items():
            finite = values.flatten(1).isfinite().all(1).tolist()
            if not all(finite):
                bad = ", ".join(str(tile) for tile, fine in zip(ids, finite, strict=True) if not fine)
                faults.append(f"not finite: {name} of tiles {bad}")
    norms = {f"gradient of {name}": torch.nn.utils.get_total_norm(one) for name, one in _gradients(model).items()}
    lines += [f"{name}: {norm.item():.6g}" for name, norm in norms.items()]
    faults += [f"not finite: {name}" for name, norm in norms.items() if not bool(norm.isfinite())]
    return lines + faults, not faults


def _gradients(model: MaskedImageModel) -> dict[str, list[Tensor]]:
    """Those of each part of a model, by the first three words of their names."""
    groups: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            groups.setdefault(".".join(name.split(".")[:3]), []).append(parameter.grad)
    return groups
