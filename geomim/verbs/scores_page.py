"""What `evaluate` leaves to look at: figures a class, a confusion matrix, and one page that needs no network."""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
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
"""Test images at either end, and the most common confusions that are put in words."""
_NAMED = 100  # classes that a confusion matrix has room to name
_SIDE = 192  # pixels of a shown image
_GRID = '<div class=pairs style="grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr))">'  # two on a phone


def write_page(out: Path, scores: Scores, shares: dict[str, Tensor], images: LabelledData) -> None:
    """Write `classes.csv`, `confusion.csv`, `confusion.png` and `index.html`.

    Pictures and page are of the linear probe where there is one, which `predict` uses too, else of the first.

    Args:
        out: Folder.
        scores: With the encoder's answers.
        shares: `(N, C)` probabilities of the classes by probe.
        images: What was scored.
    """
    names, counts, each = images.classes, {}, {}
    rows = [row for row in scores.rows if row.encoder == scores.rows[0].encoder]
    for one in rows:
        assert one.answers is not None and one.labels is not None
        counts[one.probe] = confusion(one.answers, one.labels, len(names))
        each[one.probe] = class_scores(counts[one.probe], overlap=one.groups is not None)
    row = next((one for one in rows if one.probe == "linear"), rows[0])
    found = ((probe, *line) for probe, lists in each.items() for line in zip(names, *lists.values(), strict=True))
    write_csv(out / "classes.csv", ["probe", "class", *each[row.probe]], found)
    called = ((probe, name, *line) for probe, n in counts.items() for name, line in zip(names, n.tolist(), strict=True))
    write_csv(out / "confusion.csv", ["probe", "class", *(f"called {name}" for name in names)], called)
    picture = draw_confusion(counts[row.probe].numpy(), names)
    with aside(out / "confusion.png") as file:
        file.write(picture)
    per_class = [[name, *map(_cell, line)] for name, *line in zip(names, *each[row.probe].values(), strict=True)]
    of = f"({row.probe} probe)"
    sections = [
        ("In short", "".join(f"<p>{html.escape(one)}.</p>" for one in [_answer(row, scores), *scores.sentences()])),
        ("To know beside it", bullets(scores.notes)),
        ("Scores beside their floors", wide_table(*scores.cells())),
        (f"What is taken for what {of}", _confused(counts[row.probe], names, picture)),
        (f"Class by class {of}", wide_table(["class", *each[row.probe]], *per_class)),
        *(_examples(shares[row.probe], images) if row.groups is None else ()),
        ("How", wide_table((), *((key, str(value)) for key, value in scores.protocol.items()))),
    ]
    write_text(out / "index.html", html_page(f"{row.encoder} on {scores.data}", sections))


def _answer(row: Row, scores: Scores) -> str:
    unit = "images" if row.groups is None else "patches"
    floor = f"; the majority class alone would have {scores.majority.accuracy:.1%}" if scores.majority else ""
    return (
        f"With a {row.probe} probe {row.encoder} has {row.accuracy:.1%} of the test {unit} right "
        f"(95 %: {row.low:.1%} to {row.high:.1%}), and {row.balanced:.1%} in the mean of the classes{floor}"
    )


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else f"{value:,}"


def wide_table(head: Sequence[str], *rows: Sequence[str]) -> str:
    """A table that scrolls on its own."""
    return f'<div style="overflow-x: auto">{html_table(head, rows)}</div>'


def bullets(lines: Iterable[str]) -> str:
    """Sentences as a list, if there are any."""
    said = "".join(f"<li>{html.escape(one)}</li>" for one in lines)
    return f"<ul>{said}</ul>" if said else ""


def write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write rows under a head, aside first."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    write_text(path, text.getvalue())


def embedded(picture: bytes) -> str:
    """A PNG inside a page."""
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def draw_confusion(counts: np.ndarray, names: Sequence[str]) -> bytes:
    """A PNG of a confusion matrix: each row in shares of its class; in percent where there is room for numbers.

    Args:
        counts: `(C, C)`, a row a true class.
        names: Of the classes; of more than a hundred their places stand there instead.
    """
    from matplotlib.figure import Figure  # slow to import, and not needed for help

    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = max(4, 2.2 + 0.36 * len(names)) if len(names) <= _NAMED else 16
    figure = Figure(figsize=(side, side - 0.4), layout="constrained", facecolor="white")
    axes = figure.add_subplot(xlabel="called", ylabel="is")
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= _NAMED:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
    style = {"ha": "center", "va": "center", "fontsize": 7}
    for row, column in np.argwhere(share >= 0.005) if len(names) <= 40 else ():
        value = share[row, column]
        axes.text(column, row, f"{100 * value:.0f}", color="white" if value > 0.5 else "black", **style)
    file = io.BytesIO()
    figure.savefig(file, dpi=110)
    return file.getvalue()


def _confused(counts: Tensor, names: Sequence[str], picture: bytes) -> str:
    """The picture, and the most common confusions in words."""
    shown = html_figure("Shares of a row's class, mean over seeds.", embedded(picture))
    return shown.replace("<figure>", "<figure class=strip>") + bullets(confusions(counts, names))


def confusions(counts: Tensor, names: Sequence[str]) -> list[str]:
    """The most common confusions in words, of counts `(C, C)`, a row a true class."""
    most = (counts - counts.diag().diag()).flatten().topk(min(_SHOWN, counts.numel()))
    said = []
    for value, place in zip(most.values.tolist(), most.indices.tolist(), strict=True):
        true, called = divmod(place, len(names))
        if value:
            number = f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
            said.append(f"{names[true]} called {names[called]}: {number} of {counts[true].sum():,.0f}")
    return said


def _examples(shares: Tensor, images: LabelledData) -> list[tuple[str, str]]:
    """The test images whose own class has least, and most, of what the probe gives."""
    labels = images.test.labels
    own, most = shares[range(len(labels)), labels].numpy(), shares.max(1).values.numpy()
    called, order = shares.argmax(1).numpy(), own.argsort(kind="stable")
    right = (called == labels)[order]

    def shown(place: int) -> str:
        words = f"{images.classes[called[place]]} ({most[place]:.0%})"
        words += ", right" if called[place] == labels[place] else f", is {images.classes[labels[place]]}"
        [(numbers, valid)] = images.test.read(np.array([place]))
        drawn = thumbnail(numbers[0].numpy(), None if valid is None else valid[0].numpy(), images.sensor)
        return html_figure(words, embedded(drawn))

    ends = (("Worst test images", order[~right][:_SHOWN]), ("Best test images", order[right][::-1][:_SHOWN]))
    return [(title, f"{_GRID}{''.join(map(shown, ids))}</div>" if len(ids) else "") for title, ids in ends]


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
