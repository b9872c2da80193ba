"""The table of what a model of images and sentences can do, beside chance, floors and published figures."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import yaml
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

    @property
    def others(self) -> list[str]:
        """All that figures stand beside, in the order of the table."""
        return list(dict.fromkeys(name for one in self.figures for name in one.beside))

    def rows(self) -> list[dict[str, Any]]:
        """A plain row a figure, with a column for each of the others."""
        names = ("task", "metric", "value", "low", "high")
        return [
            {name: getattr(one, name) for name in names} | {name: one.beside.get(name) for name in self.others}
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

    def table(self) -> Table:
        """A table for the terminal, in percent as papers have it; notes below it."""
        table = Table(
            title=f"In percent, on {self.data}", caption="\n".join(self.notes) or None, caption_justify="left"
        )
        table.add_column("task")
        table.add_column("metric")
        for name in ("measured (95 %)", *self.others):
            table.add_column(name, justify="right")
        for one in self.figures:
            spread = "" if one.low is None or one.high is None else f"  ({100 * one.low:.1f}-{100 * one.high:.1f})"
            others = [f"{100 * one.beside[name]:.2f}" if name in one.beside else "-" for name in self.others]
            table.add_row(one.task, one.metric, f"{100 * one.value:.2f}{spread}", *others)
        return table


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
