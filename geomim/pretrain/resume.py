"""What a run may change when it goes on from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from geomim.errors import CheckpointError, ResumeError

_TRAINING = (
    "max_steps clip precision accelerator devices nodes accumulate log_every watch_every checkpoint_every milestones "
    "progress_bar"
)
FREE = frozenset(
    {"optimizer.base_learning_rate", "data.batch_size", "data.workers"}
    | {f"training.{name}" for name in _TRAINING.split()}
)
"""Settings that may change; that the images a step stay as many is a setting of its own."""

FORMAT_VERSION = 1
"""Version of the `geomim` entry of a checkpoint."""

_SHOWN = 4


def changes(entry: Mapping[str, Any] | None, ours: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Compare the configuration that a checkpoint was trained with to the one that is to go on.

    Args:
        entry: The `geomim` entry of the checkpoint.
        ours: What this run would store there.

    Returns:
        `[old, new]` of every setting that changes, by name; all of them may.

    Raises:
        CheckpointError: The checkpoint is not geomim's, or does not say how it was trained.
        ResumeError: Something else differs, or fewer steps are wanted than are done.
    """
    if entry is None:
        raise CheckpointError("cannot resume: the checkpoint was not written by geomim pretrain")
    if entry["format_version"] > FORMAT_VERSION:
        raise CheckpointError(
            f"cannot resume: the checkpoint has format {entry['format_version']}, this geomim reads "
            f"{FORMAT_VERSION}; upgrade geomim"
        )
    if "settings" not in entry:
        raise CheckpointError(
            "cannot resume: the checkpoint is of an older geomim and does not say how it was trained; finish it with "
            "that one, or start under another --name"
        )
    found = {name: [given, wanted] for name, given, wanted in _differences("", _settings(entry), _settings(ours))}
    fixed = [f"{name} {given}, this run has {wanted}" for name, (given, wanted) in found.items() if name not in FREE]
    if fixed:
        more = f"; and {len(fixed) - _SHOWN} more" if len(fixed) > _SHOWN else ""
        raise ResumeError(
            f"cannot resume: the checkpoint has {'; '.join(fixed[:_SHOWN])}{more}. Give the checkpoint's own, or start "
            "under another --name. A resumed run may change optimizer.base_learning_rate and all of training.*, and "
            "data.batch_size where batch_size * devices * nodes * accumulate stays"
        )
    steps = ours["settings"].get("training.max_steps")
    if steps is not None and steps < entry["step"]:
        raise ResumeError(
            f"cannot resume: the checkpoint is at step {entry['step']}, and training.max_steps is {steps}; give more "
            "steps, or an earlier checkpoint"
        )
    return found


def _settings(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that is compared, by the names of the flags; corpora by their content, not by where they lie."""
    contract = {key: value for key, value in entry["contract"].items() if key != "corpora"}
    return {
        "recipe": entry["recipe"],
        "method": entry["recipe_args"],
        "encoder": entry["encoder"],
        "contract": contract,
        **entry["settings"],
    }


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


def told(history: list[dict[str, Any]]) -> list[str]:
    """One line a resumption that changed something."""
    return [
        f"from step {entry['step']}: "
        + ", ".join(f"{name} {old} -> {new}" for name, (old, new) in entry["changed"].items())
        for entry in history
    ]
