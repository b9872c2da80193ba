"""`geomim plot`: the curves of a run, or of several beside each other, as one picture."""

from __future__ import annotations

import csv
import math
import os
import textwrap
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from geomim.errors import InputError

Run = dict[str, tuple[np.ndarray, np.ndarray]]
"""Of each column where on the axis it was measured, and its values."""

FLOORS = {"": "encoder", "/random": "random initialisation", "/pixels": "pixel statistics"}
PANELS = {
    "loss": {"loss": ""},
    "kNN accuracy": {f"knn{floor}": label for floor, label in FLOORS.items()},
    "linear probe accuracy": {f"linear{floor}": label for floor, label in FLOORS.items()},
    "embeddings of images": {"embedding_cosine": "mean cosine of two", "embedding_std": "spread (1: all directions)"},
    "effective rank of embeddings (RankMe)": {"embedding_rank": ""},
    "loss of foreign dates - loss (0: not used)": {"shuffled_date": ""},
    "learning rate": {"learning_rate": ""},
    "images/s": {"images_per_second": ""},
}
"""What is drawn together, by column; a column that is in none has its own panel."""


def plot(
    runs: list[str],
    out: str = "curves.png",
    x: Literal["steps", "images", "minutes"] = "steps",
    only: list[str] | None = None,
) -> Path:
    """Draw the figures of one run or several: losses, probes and their floors, collapse, learning rate, speed.

    Args:
        runs: Run folders, as `geomim pretrain` leaves them.
        out: The PNG to write.
        x: What the curves run over: optimiser steps, images seen, or minutes of training without those of watching.
        only: Words of titles, such as `loss` and `kNN`: draw the panels that have one of them; all where not given.

    Returns:
        The picture.

    Raises:
        InputError: A run has no figures, or no panel has any of the words.
    """
    folders = list(dict.fromkeys(Path(run).resolve() for run in runs))
    common = os.path.commonpath([folder.parent for folder in folders])
    opened = {os.path.relpath(folder, common): read_figures(folder / "metrics.csv", x) for folder in folders}
    panels = _chosen(_panels(opened), only)
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(14, 3.1 * down + 0.5), dpi=130, layout="constrained")
    colours = dict(zip(opened, map(tuple, colormaps["turbo"](np.linspace(0.1, 0.9, len(opened)))), strict=True))
    end = max(float(places[-1]) for run in opened.values() for places, _ in run.values())
    cells = figure.subplots(down, across, squeeze=False).ravel()
    for axes, (title, columns) in zip(cells, panels.items(), strict=False):
        _draw(axes, title, columns, opened, colours)
        axes.set(xlabel=x, xlim=(0, 1.02 * end))
        axes.xaxis.set_major_formatter(ticker.EngFormatter(sep="") if end > 1000 else ticker.ScalarFormatter())
    for axes in cells[len(panels) :]:
        axes.set_axis_off()
    handles = [Line2D([], [], color=one, lw=2, label=textwrap.fill(name, 120)) for name, one in colours.items()]
    beside = min(len(opened), 1 + 130 // (max(map(len, opened)) + 6))
    figure.legend(handles=handles, loc="outside upper left", frameon=False, ncols=beside)
    target = Path(out)
    part = target.with_name(f".{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(part, format="png")
    part.replace(target)
    print(f"wrote {out}: {', '.join(opened)}")
    return target


def read_figures(path: Path, x: str) -> Run:
    """The columns of a table over an axis. Rows that do not say how many images were seen lie between those that do."""
    rows = []
    if path.is_file():
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    if not rows:
        raise InputError(
            f"'{path.parent}' has no figures: expected '{path.name}' with at least a row, as geomim pretrain writes it "
            "every training.log_every steps"
        )
    table = {name: np.array([float(row[name] or math.nan) for row in rows]) for name in rows[0]}
    steps, places = table["step"], table["step"]
    if x != "steps":
        images, speed = table["images"], table["images_per_second"]
        known = images > 0
        over = images[known] if x == "images" else np.cumsum(np.diff(images[known], prepend=0) / speed[known]) / 60
        places = np.interp(steps, np.r_[0, steps[known]], np.r_[0, over])
    curves = {name: (places[there := np.isfinite(values)], values[there]) for name, values in table.items()}
    return {name: curve for name, curve in curves.items() if len(curve[0]) and name not in ("step", "images")}


def _panels(runs: dict[str, Run]) -> dict[str, dict[str, str]]:
    """What is drawn: by title, the columns that the runs have with their labels."""
    columns = list(dict.fromkeys(column for run in runs.values() for column in run))
    panels = {title: {name: label for name, label in some.items() if name in columns} for title, some in PANELS.items()}
    for column in columns:
        kind, _, term = column.partition("/")
        pairs = [(run[column][1], run["loss"][1]) for run in runs.values() if column in run and "loss" in run]
        if kind in ("prediction_cosine", "target_cosine"):
            panels.setdefault(f"cosine of two patches: {term}", {})[column] = f"{kind.split('_')[0]}s"
        elif any(column in known for known in PANELS.values()):
            continue
        elif not pairs or not all(np.array_equal(one, loss) for one, loss in pairs):  # the only term is the loss
            panels[column.replace("_", " ")] = {column: ""}
    return {title: chosen for title, chosen in panels.items() if chosen}


def _chosen(panels: dict[str, dict[str, str]], words: list[str] | None) -> dict[str, dict[str, str]]:
    """The panels whose titles have one of some words."""
    if words is None:
        return panels
    chosen = {title: own for title, own in panels.items() if any(word.lower() in title.lower() for word in words)}
    if not chosen:
        raise InputError(f"--only: no panel has {' or '.join(words)} in its title; there are {', '.join(panels)}")
    return chosen


def _draw(axes: Axes, title: str, columns: dict[str, str], runs: dict[str, Run], colours: dict[str, Any]) -> None:
    """A panel: a colour a run, a style of line a column."""
    styles = dict(zip(columns, ("-", "--", ":"), strict=False))
    for name, run in runs.items():
        for column in (column for column in columns if column in run):
            look = {"ls": styles[column], "color": colours[name]}
            if column.endswith(tuple(FLOORS)[1:]):
                axes.axhline(run[column][1][-1], **look)
            else:
                axes.plot(*run[column], marker="." if len(run[column][0]) < 25 else "", **look)
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    if title == "images/s":
        axes.set_ylim(bottom=0)
    if len(columns) > 1:
        handles = [Line2D([], [], color="0.3", ls=styles[column], label=label) for column, label in columns.items()]
        axes.legend(handles=handles, fontsize=7)
