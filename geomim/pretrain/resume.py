"""What a run may change when it goes on from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from lightning.pytorch.utilities import rank_zero_only

from geomim.errors import CheckpointError, ResumeError
from geomim.models.weights import FORMAT_VERSION
from geomim.pretrain.objective import MaskedImageModel, Term

_TRAINING = (
    "max_steps minutes clip precision accelerator devices nodes accumulate log_every checkpoint_every milestones "
    "strategy checkpointing compile progress_bar"
)
FREE = {f"training.{name}" for name in _TRAINING.split()}
FREE |= {"optimizer.base_learning_rate", "data.batch_size", "data.workers"}
"""Settings that may change; that as many images make a step is a setting of its own."""


def resumable(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The `geomim` entry of a checkpoint.

    Raises:
        CheckpointError: No run can go on from it: it does not say how it was trained, or says it in another way.
    """
    entry: dict[str, Any] = checkpoint.get("geomim") or {}
    if "settings" not in entry or entry["format_version"] != FORMAT_VERSION:
        given = "written by another version of geomim" if entry else "not written by geomim pretrain"
        raise CheckpointError(
            f"cannot resume: the checkpoint was {given}; go on with what wrote it, or start under another --name"
        )
    return entry


def changes(entry: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Compare the configuration that a checkpoint was trained with to the one that is to go on.

    Args:
        entry: The `geomim` entry of the checkpoint.
        ours: What this run would store there.

    Returns:
        `[old, new]` of every setting that changes, by name.

    Raises:
        ResumeError: Something differs that must not, or fewer steps are wanted than are done.
    """
    found = {name: [given, wanted] for name, given, wanted in _differences("", _compared(entry), _compared(ours))}
    fixed = [f"{name} {given}, this run has {wanted}" for name, (given, wanted) in found.items() if name not in FREE]
    if fixed:
        raise ResumeError(
            f"cannot resume: the checkpoint has {'; '.join(fixed[:4])}{'; and more' * (len(fixed) > 4)}. Give the "
            "checkpoint's own, or start under another --name. What may change: optimizer.base_learning_rate, all of "
            "training.* but prune, data.workers; data.batch_size where batch_size * devices * nodes * accumulate stays"
        )
    if ours["settings"].get("training.max_steps", entry["step"]) < entry["step"]:
        raise ResumeError(f"cannot resume: the checkpoint is at step {entry['step']}: give more training.max_steps")
    return found


def go_on(model: MaskedImageModel, entry: Mapping[str, Any], steps: int) -> None:
    """Let terms that had started go on, also where more steps make it too early for them again, which is said.

    The model is left as it was in the last step that was done: a term that the next one begins with begins there.

    Args:
        model: Of the run that goes on.
        entry: The `geomim` entry of the checkpoint.
        steps: All that are wanted.
    """
    step = entry["step"]
    before = max(0, step - 1) / max(1, round(step / (entry["progress"] or 1)))  # of the last step that was done
    for term in cast(list[Term], model.terms):
        starts = entry.get("starts", {}).get(term.name, term.starts)
        if before >= starts > step / max(1, steps):
            if term.starts:
                rank_zero_only(print)(
                    f"'{term.name}' starts at {starts:.0%} of training; it had started when the run was shorter, and "
                    f"goes on, though step {step} of {steps} is before that"
                )
            starts = 0.0
        term.starts = starts
    model.begin(before)


def _compared(entry: Mapping[str, Any]) -> dict[str, Any]:
    """By the names of the flags; corpora are compared by their content, not by name or audit, nor by a `dtype`."""
    contracts = {
        name: {key: value for key, value in contract.items() if key not in ("corpora", "dtype")}
        for name, contract in entry["contracts"].items()
    }
    values = {"recipe": entry["recipe"], "method": entry["recipe_args"], "encoder": entry["encoder"]}
    return {**values, **entry["settings"], "contracts": contracts}


def _differences(name: str, one: Any, other: Any) -> Iterator[tuple[str, Any, Any]]:
    """Places where two plain values differ, by dotted name."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            yield from _differences(f"{name}.{key}" if name else key, one.get(key), other.get(key))
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            yield from _differences(f"{name}[{index}]", left, right)
    elif one != other:
        yield name, one, other
