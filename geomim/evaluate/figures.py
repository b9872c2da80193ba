"""The table of what a model of images and sentences can do, beside chance and published figures."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import yaml
from rich.table import Table

from geomim.errors import InputError, nearest
from geomim.resources import root


@dataclass(frozen=True)
class Figure:
    """One figure, a share in 0..1.

    Attributes:
        task: What is done.
        metric: What is measured.
        value: The figure.
        low: Lower end of the 95 % confidence interval, where there is one.
        high: Upper end.
        chance: What guessing has.
        floor: What mean and deviation of each band have, where they can.
    """

    task: str
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    floor: float | None = None


@dataclass(frozen=True)
class Published:
    """Figures of others on one evaluation set.

    Attributes:
        figures: In 0..1 by model, task and metric.
        notes: Where they come from, and what a reader should know.
    """

    figures: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def published(name: str) -> Published:
    """Published figures on an evaluation set.

    Args:
        name: Of the set, such as `rsicd`; case, `-` and `_` do not count.

    Raises:
        InputError: None are known.
    """
    known = yaml.safe_load((root() / "datasets" / "published" / "language.yaml").read_text(encoding="utf-8"))
    found = {_plain(key): one for key, one in known["sets"].items()}.get(_plain(name))
    if found is None:
        raise InputError(f"no published figures are known of a set '{name}'{nearest(name, known['sets'])}")
    figures: dict[str, dict[str, dict[str, float]]] = {}
    notes = []
    for table, models in found.items():
        about = known["tables"][table]
        notes.append(f"published: {about['source']}")
        for model, values in models.items():
            shares = dict(zip(about["metrics"], [value / 100 for value in values], strict=True))
            figures.setdefault(model, {})[about["task"]] = shares
    return Published(figures, tuple(notes))


def _plain(name: str) -> str:
    return name.casefold().replace("-", "").replace("_", "")


@dataclass(frozen=True)
class LanguageScores:
    """What was measured.

    Attributes:
        data: What was evaluated on, in words.
        protocol: How, as plain values.
        figures: One a row of the table.
        beside: Of others.
        notes: What a reader should know beside the numbers.
    """

    data: str
    protocol: dict[str, Any]
    figures: tuple[Figure, ...]
    beside: Published = Published()
    notes: tuple[str, ...] = ()

    def find(self, task: str, metric: str) -> Figure:
        """One figure.

        Raises:
            KeyError: There is none.
        """
        return {(one.task, one.metric): one for one in self.figures}[task, metric]

    def rows(self) -> list[dict[str, Any]]:
        """A plain row a figure, with those of others by model."""
        return [
            asdict(one)
            | {model: tasks.get(one.task, {}).get(one.metric) for model, tasks in self.beside.figures.items()}
            for one in self.figures
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        notes = [*self.notes, *self.beside.notes]
        return {"data": self.data, "protocol": self.protocol, "figures": self.rows(), "notes": notes}

    def to_csv(self) -> str:
        """The table as CSV, shares in 0..1."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows()[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows())
        return text.getvalue()

    def table(self) -> Table:
        """A table for the terminal, in percent as papers have it."""
        below = "\n".join([*self.notes, *self.beside.notes])
        table = Table(title=f"In percent, on {self.data}", caption=below or None, caption_justify="left")
        table.add_column("task")
        table.add_column("metric")
        rows = self.rows()
        columns = [name for name in list(rows[0])[5:] if any(row[name] is not None for row in rows)]
        for name in ("measured (95 %)", *columns):
            table.add_column("pixel statistics" if name == "floor" else name, justify="right")
        for row in rows:
            spread = "" if row["low"] is None else f"  ({100 * row['low']:.1f}-{100 * row['high']:.1f})"
            others = ["-" if row[name] is None else f"{100 * row[name]:.2f}" for name in columns]
            table.add_row(row["task"], row["metric"], f"{100 * row['value']:.2f}{spread}", *others)
        return table
