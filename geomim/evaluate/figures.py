"""The table of what a model of images and sentences can do, beside chance, floors and published figures."""

from __future__ import annotations

import csv
import io
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
    """

    task: str
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    beside: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class LanguageScores:
    """What was measured.

    Attributes:
        data: What was evaluated on, in words.
        protocol: How, as plain values.
        figures: One a row of the table.
        notes: What a reader should know beside the numbers.
    """

    data: str
    protocol: dict[str, Any]
    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """A plain row a figure, with a column for each of the others."""
        names = ("task", "metric", "value", "low", "high")
        others = list(dict.fromkeys(name for one in self.figures for name in one.beside))
        return [
            {name: getattr(one, name) for name in names} | {name: one.beside.get(name) for name in others}
            for one in self.figures
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"data": self.data, "protocol": self.protocol, "figures": self.rows(), "notes": list(self.notes)}

    def to_csv(self) -> str:
        """The table as CSV, shares in 0..1."""
        text, rows = io.StringIO(), self.rows()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def tables(self) -> list[Table]:
        """A table a task for the terminal, in percent, a model a row as papers have it."""
        tables = []
        for task in dict.fromkeys(one.task for one in self.figures):
            figures = [one for one in self.figures if one.task == task]
            title = f"{task}, in percent, on {self.data}"
            table = Table("", *(one.metric for one in figures), title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
            table.add_row("measured", *(f"{100 * one.value:.2f}" for one in figures))
            table.add_row("95 %", *(_spread(one.low, one.high) for one in figures))
            for name in dict.fromkeys(name for one in figures for name in one.beside):
                known = [one.beside.get(name) for one in figures]
                table.add_row(name, *("-" if value is None else f"{100 * value:.2f}" for value in known))
            tables.append(table)
        return tables


def _spread(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{100 * low:.1f}-{100 * high:.1f}"


@dataclass(frozen=True)
class Published:
    """Figures of others on one evaluation set.

    Attributes:
        figures: In 0..1, by model, of each task and metric.
        notes: Where they come from, and what a reader should know.
    """

    figures: Mapping[tuple[str, str], Mapping[str, float]]
    notes: tuple[str, ...]

    def beside(self, figures: Sequence[Figure]) -> tuple[Figure, ...]:
        """Measured figures with the published ones of the same task and metric beside them."""
        return tuple(
            replace(one, beside={**one.beside, **self.figures.get((one.task, one.metric), {})}) for one in figures
        )


def published(name: str) -> Published:
    """Published figures on an evaluation set, such as `rsicd`; case, `-` and `_` do not count.

    Raises:
        InputError: None are known.
    """
    known = yaml.safe_load((root() / "datasets" / "published" / "language.yaml").read_text(encoding="utf-8"))
    found = {_plain(key): tables for key, tables in known["sets"].items()}.get(_plain(name))
    if found is None:
        raise InputError(f"no published figures are known of a set '{name}'{nearest(name, known['sets'])}")
    figures: dict[tuple[str, str], dict[str, float]] = {}
    for table, models in found.items():
        about = known["tables"][table]
        for model, values in models.items():
            for metric, value in zip(about["metrics"], values, strict=True):
                figures.setdefault((about["task"], metric), {})[model] = value / 100
    return Published(figures, tuple(f"published: {known['tables'][table]['source']}" for table in found))


def _plain(name: str) -> str:
    return name.casefold().replace("-", "").replace("_", "")
