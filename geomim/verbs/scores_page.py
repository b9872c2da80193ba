"""What `evaluate` leaves to look at: figures a class, a confusion matrix, and one page that needs no network."""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from geomim.corpus.report.page import html_figure, html_page, html_table
from geomim.corpus.store import aside, write_text
from geomim.data.labelled import LabelledData
from geomim.errors import BandError
from geomim.evaluate.classes import class_scores, confusion
from geomim.evaluate.scores import Row, Scores
from geomim.sensors import Sensor, match_bands

_SHOWN = 8
"""Test images at either end of the page, and the most common confusions that are put in words."""
_SIDE = 192  # pixels of a shown image
_GRID = '<div class=pairs style="grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr))">'  # two on a phone


def write_page(out: Path, scores: Scores, rows: Sequence[Row], shares: dict[str, Tensor], images: LabelledData) -> None:
    """Write `classes.csv`, `confusion.csv`, `confusion.png` and `index.html`.

    Pictures and page are of the linear probe where there is one, which `predict` uses too, else of the first.

    Args:
        out: Folder.
        scores: All of them.
        rows: Those of the encoder.
        shares: `(N, C)` probabilities of the classes by probe.
        images: What was scored.
    """
    counts = {one.probe: confusion(*_known(one), len(images.classes)) for one in rows}
    each = {probe: [list(vars(one).values()) for one in class_scores(count)] for probe, count in counts.items()}
    names = images.classes
    head = ["class", "precision", "recall", "f1", "support"]
    table = [(probe, name, *one) for probe, found in each.items() for name, one in zip(names, found, strict=True)]
    _write_csv(out / "classes.csv", ["probe", *head], table)
    matrix = [(probe, name, *row) for probe, n in counts.items() for name, row in zip(names, n.tolist(), strict=True)]
    _write_csv(out / "confusion.csv", ["probe", "class", *(f"called {name}" for name in names)], matrix)
    row = next((one for one in rows if one.probe == "linear"), rows[0])
    picture = draw_confusion(counts[row.probe].numpy(), names)
    with aside(out / "confusion.png") as file:
        file.write(picture)
    said = "".join(f"<p>{html.escape(one)}.</p>" for one in [_answer(row, scores), *scores.sentences()])
    (head_, *lines), cells = scores.cells(), [[_cell(one) for one in line] for line in each[row.probe]]
    per_class = html_table(head, [[name, *line] for name, line in zip(names, cells, strict=True)])
    protocol = html_table((), [(key, str(value)) for key, value in scores.protocol.items()])
    notes = "".join(f"<li>{html.escape(one)}</li>" for one in scores.notes)
    sections = [
        ("In short", said),
        ("To know beside it", f"<ul>{notes}</ul>" if notes else ""),
        ("Scores beside their floors", _wide(html_table(head_, lines))),
        (f"What is taken for what ({row.probe} probe)", _confused(counts[row.probe], names, picture)),
        (f"Class by class ({row.probe} probe)", _wide(per_class)),
        *_examples(shares[row.probe], row, images),
        ("How", _wide(protocol)),
    ]
    write_text(out / "index.html", html_page(f"{row.encoder} on {scores.data}", sections))


def _known(row: Row) -> tuple[Tensor, Tensor]:
    assert row.answers is not None and row.labels is not None
    return row.answers, row.labels


def _answer(row: Row, scores: Scores) -> str:
    floor = f"; the majority class alone would have {scores.majority.accuracy:.1%}" if scores.majority else ""
    return (
        f"With a {row.probe} probe {row.encoder} has {row.accuracy:.1%} of {len(_known(row)[1]):,} test images right "
        f"(95 %: {row.low:.1%} to {row.high:.1%}), and {row.balanced:.1%} in the mean of the classes{floor}"
    )


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else f"{value:,}"


def _wide(table: str) -> str:
    return f'<div style="overflow-x: auto">{table}</div>'


def _write_csv(path: Path, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    write_text(path, text.getvalue())


def _embedded(picture: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def draw_confusion(counts: np.ndarray, names: Sequence[str]) -> bytes:
    """A PNG of a confusion matrix: each row in shares of its class; numbers where there is room for them.

    Args:
        counts: `(C, C)`, a row a true class.
        names: Of the classes.
    """
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 2.2 + 0.36 * len(names)
    figure = Figure(figsize=(max(side, 4), max(side, 4) - 0.4), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(xlabel="called", ylabel="is")
    for (row, column), value in np.ndenumerate(share):
        if len(names) <= 40 and value >= 0.005:
            text = f"{100 * value:.0f}"
            axes.text(
                column, row, text, ha="center", va="center", fontsize=7, color="white" if value > 0.5 else "black"
            )
    file = io.BytesIO()
    figure.savefig(file, dpi=110)
    return file.getvalue()


def _confused(counts: Tensor, names: Sequence[str], picture: bytes) -> str:
    """The picture, and the most common confusions in words."""
    wrong = counts - counts.diag().diag()
    values, places = wrong.flatten().topk(min(_SHOWN, wrong.numel()))
    pairs = [(value, *divmod(place, len(names))) for value, place in zip(values.tolist(), places.tolist(), strict=True)]
    said = [
        f"<li>{html.escape(f'{names[true]} called {names[called]}: {value:.3g} of {counts[true].sum():.0f}')}</li>"
        for value, true, called in pairs
        if value > 0
    ]
    shown = html_figure("Percent of the images of a row's class, mean over seeds.", _embedded(picture, "png"))
    return shown.replace("<figure>", "<figure class=strip>") + f"<ul>{''.join(said)}</ul>"


def _examples(shares: Tensor, row: Row, images: LabelledData) -> list[tuple[str, str]]:
    """The test images whose own class has most, and least, of what the probe gives."""
    _, labels = _known(row)
    own, called = shares[range(len(labels)), labels], shares.argmax(1)
    order = own.argsort(stable=True).tolist()
    worst = [one for one in order if called[one] != labels[one]][:_SHOWN]
    best = [one for one in order[::-1] if called[one] == labels[one]][:_SHOWN]

    def shown(place: int) -> str:
        true, said = images.classes[labels[place]], images.classes[called[place]]
        words = (
            f"{true}: right, {own[place]:.0%} sure"
            if true == said
            else f"{said} ({shares[place].max():.0%}), is {true}"
        )
        [(numbers, valid)] = images.test.read(np.array([place]))
        drawn = thumbnail(numbers[0].numpy(), None if valid is None else valid[0].numpy(), images.sensor)
        return html_figure(words, _embedded(drawn, "png"))

    titles = (("Worst test images", worst), ("Best test images", best))
    return [(title, f"{_GRID}{''.join(map(shown, chosen))}</div>" if chosen else "") for title, chosen in titles]


def thumbnail(numbers: np.ndarray, valid: np.ndarray | None, sensor: Sensor) -> bytes:
    """A PNG of an image in colours, else in its first three bands or in grey; what was not measured is grey.

    Args:
        numbers: `(C, H, W)` stored numbers.
        valid: `(H, W)` bool, None where all is.
        sensor: Names the bands.
    """
    try:
        bands = match_bands(("red", "green", "blue"), sensor.bands)
    except BandError:
        bands = [0, 1, 2] if len(numbers) >= 3 else [0, 0, 0]
    picked = numbers[bands].transpose(1, 2, 0).astype(np.float64)
    known = np.isfinite(picked).all(2) & (True if valid is None else valid)
    if numbers.dtype != np.uint8 and known.any():
        low, high = np.percentile(picked[known], [2, 98], axis=0)
        picked = 255 * (picked - low) / np.maximum(high - low, 1e-12)
    image = Image.fromarray(np.where(known[..., None], picked.clip(0, 255), 96).astype(np.uint8))
    image.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
