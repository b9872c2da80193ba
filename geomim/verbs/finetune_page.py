"""What `geomim finetune` leaves to look at: figures by class beside floors, confusions, best and worst predictions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from geomim.corpus.report.page import html_figure, html_page
from geomim.corpus.store import aside, write_text
from geomim.finetune.labels import Labels
from geomim.finetune.pictures import Shown, best_and_worst
from geomim.verbs.scores_page import bullets, confusions, draw_confusion, embedded, wide_table, write_csv

MAIN = {"class": "F1", "mask": "IoU", "change": "F1", "boxes": "AP50", "oboxes": "AP50"}
"""The metric that is shown of each class, by the kind of labels; all are in figures.csv."""
_LEVEL = 0.02  # of a mean of figures: another seed may move it as far


@dataclass(frozen=True)
class Tested:
    """A tuned task, its figures, and some predictions beside the truth."""

    task: Any
    figures: list[dict[str, Any]]
    shown: list[Shown] = field(default_factory=list)


def rows_of(kind: str, found: Mapping[str, Tested]) -> list[list[str]]:
    """A head, and a row a class and one for each figure over all: of each side, and of the most frequent answer."""
    first, main = next(iter(found.values())).figures, MAIN[kind]
    rows = [["class", "figure", "labels", *found, "most frequent"]]
    for place, row in enumerate(first):
        if row["metric"] in (main, f"mean {main}", "accuracy"):
            values = [one.figures[place]["value"] for one in found.values()]
            said = [_number(value) for value in (*values, row["floor"])]
            rows.append([row["class"], row["metric"], f"{row['count']:,}", *said])
    return rows


def means(kind: str, found: Mapping[str, Tested]) -> dict[str, float]:
    """Of each side the mean over classes of the metric that is shown."""
    rows = [(name, row) for name, one in found.items() for row in one.figures if row["class"] == "all"]
    return {name: row["value"] for name, row in rows if row["metric"].endswith(MAIN[kind])}


def verdict(kind: str, found: Mapping[str, Tested]) -> list[str]:
    """Whether the encoder is ahead of what stands beside it, in a sentence; none where there is nothing beside."""
    own, *floors = (each := means(kind, found)).values()
    said = ", ".join(f"{value:.3f} of {name}" for name, value in each.items())
    ahead = own - max(floors, default=own)
    pays = "pays here" if ahead > _LEVEL else "does not pay here"
    if abs(ahead) <= _LEVEL:
        pays = f"does not pay here as far as one test can tell, which sees no difference below {_LEVEL}"
    return [f"mean {MAIN[kind]}: {said}: the encoder {pays}"] * bool(floors)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def write_page(out: Path, labels: Labels, found: Mapping[str, Tested], notes: Sequence[str], kept: str) -> list[str]:
    """Write `figures.csv` and `index.html`; of what is kept `predictions.png`, and of classes `confusion.csv`.

    Returns:
        The most common confusions, in sentences.
    """
    out.mkdir(parents=True, exist_ok=True)
    first = found[kept]
    keys = ("class", "metric", "count", "value", "floor")
    lines = [(side, *(row[key] for key in keys)) for side, one in found.items() for row in one.figures]
    write_csv(out / "figures.csv", ["weights", *keys], lines)
    counts, said, matrix = _confusion(first.task), list[str](), ""
    if counts is not None:
        said = confusions(counts, labels.classes)
        called = ((name, *line) for name, line in zip(labels.classes, counts.tolist(), strict=True))
        write_csv(out / "confusion.csv", ["class", *(f"called {name}" for name in labels.classes)], called)
        picture = draw_confusion(counts.numpy(), labels.classes)
        with aside(out / "confusion.png") as file:
            file.write(picture)
        matrix = _strip(f"Shares of a row's class, of {kept}.", embedded(picture))
    pictures = ""
    if first.shown:
        best_and_worst(out / "predictions.png", first.shown, labels.classes)
        pictures = _strip(f"The best and the worst predictions of the test, of {kept}.", "predictions.png")
    head, *rows = rows_of(labels.kind, found)
    sections = [
        ("Figures beside their floors", wide_table(head, *rows) + bullets(verdict(labels.kind, found))),
        ("What is taken for what", matrix + bullets(said)),
        ("Predictions", pictures),
        ("To know beside it", bullets(notes)),
    ]
    title = f"{next(iter(found))} on {len(labels.items)} labelled image{'s' * (len(labels.items) > 1)}"
    write_text(out / "index.html", html_page(title, sections))
    return said


def _strip(caption: str, picture: str) -> str:
    return html_figure(caption, picture).replace("<figure>", "<figure class=strip>")


def _confusion(task: Any) -> Any:
    counts = task.tally.compute()
    return counts.cpu() if hasattr(counts, "ndim") and counts.ndim == 2 else None
