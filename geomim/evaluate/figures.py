"""The table of what a model of images and sentences can do, beside chance, floors and published figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import yaml
from rich.box import SIMPLE_HEAD
from rich.table import Table

from geomim.errors import InputError, nearest
from geomim.resources import root

CHANCE = "chance"


@dataclass(frozen=True)
class Figure:
    """One figure, a share in 0..1.

    Attributes:
        task: What is done.
        metric: What is measured.
        value: The figure.
        low: Lower end of the 95 % confidence interval, where there is one.
        high: Upper end.
        beside: What others have: `chance`, floors, and published models by name.
        balanced: Of accuracy the mean of the classes' recall, where it is known.
    """

    task: str
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    beside: Mapping[str, float] = field(default_factory=dict)
    balanced: float | None = None


@dataclass(frozen=True)
class LanguageScores:
    """What was measured.

    Attributes:
        data: What was evaluated on, in words.
        protocol: How, as plain values.
        figures: One a task and metric.
        notes: What a reader should know beside the numbers.
    """

    data: str
    protocol: dict[str, Any]
    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = ()

    def tables(self) -> list[Table]:
        """A table a task for the terminal, in percent, a model a row as papers have it."""
        tables = []
        for task in dict.fromkeys(one.task for one in self.figures):
            figures = [one for one in self.figures if one.task == task]
            heads = [one.metric for one in figures]
            table = Table("", *heads, title=f"{task}, %", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
            table.add_row("measured", *(_percent(one.value) for one in figures))
            table.add_row("95 %", *(f"{_percent(one.low, 1)}-{_percent(one.high, 1)}" for one in figures))
            if any(one.balanced is not None for one in figures):
                table.add_row("mean of classes", *(_percent(one.balanced) for one in figures))
            for name in dict.fromkeys(name for one in figures for name in one.beside):
                table.add_row(name, *(_percent(one.beside.get(name)) for one in figures))
            tables.append(table)
        return tables


def _percent(share: float | None, digits: int = 2) -> str:
    return "" if share is None else f"{100 * share:.{digits}f}"


def beside_published(name: str, figures: Sequence[Figure] = ()) -> tuple[tuple[Figure, ...], tuple[str, ...]]:
    """Put published figures of the same task and metric beside measured ones, and say where they come from.

    Args:
        name: Of an evaluation set, such as `rsicd`; case, `-` and `_` do not count.
        figures: The measured ones.

    Returns:
        The figures, and the sources of those that stand beside some.

    Raises:
        InputError: None are known of that set.
    """
    known = yaml.safe_load((root() / "datasets" / "published" / "language.yaml").read_text(encoding="utf-8"))
    found = {_plain(key): tables for key, tables in known["sets"].items()}.get(_plain(name))
    if found is None:
        raise InputError(f"no published figures are known of a set '{name}'{nearest(name, known['sets'])}")
    others: dict[tuple[str, str], dict[str, float]] = {}
    for table, models in found.items():
        about = known["tables"][table]
        for model, values in models.items():
            for metric, value in zip(about["metrics"], values, strict=True):
                others.setdefault((about["task"], metric), {})[model] = value / 100
    joined = (replace(one, beside={**one.beside, **others.get((one.task, one.metric), {})}) for one in figures)
    measured = {(one.task, one.metric) for one in figures}
    used = [known["tables"][table] for table in found]
    used = [one for one in used if measured & {(one["task"], metric) for metric in one["metrics"]}]
    tasks = ", ".join(sorted({known["tables"][table]["task"] for table in found}))
    none = (f"nothing published stands beside: what is known of '{name}' is of {tasks}",)
    return tuple(joined), tuple(f"published: {one['source']}" for one in used) or none


def _plain(name: str) -> str:
    return name.casefold().replace("-", "").replace("_", "")
