"""Matches of two sets of images as a table, and side by side in pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.table import Table

from geomim.corpus.comparison.collection import Collection
from geomim.corpus.duplicates.fingerprint import ORIENTATIONS
from geomim.corpus.duplicates.geometry import same_day
from geomim.corpus.report.page import html_figure, html_table
from geomim.corpus.report.terminal import table_of

SHOWN = 120
"""Pairs of images shown on a page."""
_EDGE = 224  # pixels of a picture

WORDS = {
    "exact": "same pixels",
    "perceptual": "same picture, changed",
    "crop": "parts overlap",
    "footprint": "same ground",
}
"""Kinds of matches in plain words."""


def describe(matches: pa.Table, a: Collection, b: Collection) -> pa.Table:
    """Matches with what is known of both sides, ready to be written: places give way to ids and names."""
    columns: dict[str, Any] = {}
    for letter, side in (("a", a), ("b", b)):
        views = side.views.take(matches[letter])
        columns |= {f"id_{letter}": views["id"], f"item_{letter}": views["item"], f"split_{letter}": views["split"]}
        windows = np.stack([views[name].to_numpy() for name in ("row", "col", "height", "width")], 1)
        columns[f"window_{letter}"] = pa.array(windows.tolist(), pa.list_(pa.int64()))
        columns[f"time_{letter}"] = views["time"]
    rest = {name: matches[name] for name in matches.column_names if name not in ("a", "b")}
    return pa.table(columns | rest)


def counts(described: pa.Table) -> list[tuple[str, str, int, int]]:
    """Kind, distance, pairs of windows, and pairs of images, in the order of certainty."""
    pairs = described.group_by(["kind", "distance", "item_a", "item_b"]).aggregate([([], "count_all")])
    found = pairs.group_by(["kind", "distance"]).aggregate([("count_all", "sum"), ([], "count_all")])
    order = list(WORDS)
    return [
        (row["kind"], "" if row["distance"] < 0 else str(row["distance"]), row["count_all_sum"], row["count_all"])
        for row in sorted(found.to_pylist(), key=lambda row: (order.index(row["kind"]), row["distance"]))
    ]


def counts_table(described: pa.Table, title: str) -> Table | str:
    """The same for the terminal."""
    if not len(described):
        return f"{title}: nothing was found"
    return table_of(title, _COUNTED, _in_words(described))


def counts_html(described: pa.Table) -> str:
    """The same for a page."""
    if not len(described):
        return "<p>Nothing was found.</p>"
    return html_table(_COUNTED, _in_words(described))


_COUNTED = ("found by", "distance (bits)", "pairs of windows", "pairs of images")


def _in_words(described: pa.Table) -> list[tuple[str, ...]]:
    return [(f"{kind} ({WORDS[kind]})", d, f"{w:,}", f"{i:,}") for kind, d, w, i in counts(described)]


def figures(matches: pa.Table, a: Collection, b: Collection, folder: Path, file: str) -> str:
    """Pictures of the most certain matches, one a pair of images.

    Args:
        matches: Rows of `matching.MATCHES`, the most certain first.
        a: One side.
        b: The other.
        folder: Where the pictures go.
        file: Where all matches are, for the sentence that says so.

    Returns:
        HTML.
    """
    pairs = _pairs(matches, a, b)
    if not pairs:
        return ""
    figures_ = []
    for number, (row, more) in enumerate(pairs[:SHOWN]):
        name = f"match-{number:03d}.jpg"
        caption = _caption(row, more, a, b)
        try:
            _save_pair(folder / name, row, a, b)
            figures_.append(html_figure(caption, name))
        except Exception as error:  # a picture that cannot be drawn must not cost the list
            figures_.append(html_figure(f"{caption} ({error})"))
    shown = (
        "all of them"
        if len(pairs) <= SHOWN
        else f"the most certain {SHOWN} of {len(pairs):,}; the others are in {file}"
    )
    return f"<p>Pairs of images: {shown}.</p><div class=pairs>{''.join(figures_)}</div>"


def _pairs(matches: pa.Table, a: Collection, b: Collection) -> list[tuple[dict[str, Any], int]]:
    """The most certain row of each pair of images, and how many more windows of it match."""
    first: dict[tuple[Any, Any], int] = {}
    count: Counter[tuple[Any, Any]] = Counter()
    for place, key in enumerate(zip(_images(a, matches["a"]), _images(b, matches["b"]), strict=True)):
        first.setdefault(key, place)
        count[key] += 1
    rows = matches.take(list(first.values())).to_pylist() if first else []
    return [(row, count[key] - 1) for row, key in zip(rows, first, strict=True)]


def _images(side: Collection, places: pa.ChunkedArray) -> list[Any]:
    """Tiles of a corpus are pictures of their own, windows of an image are not."""
    return side.views["item" if side.paths else "id"].take(places).to_pylist()


def name_of(side: Collection, place: int) -> str:
    """How to call a view: its image, and the window where it is a part."""
    row = side.views.slice(place, 1).to_pylist()[0]
    name = row["item"] if side.paths else f"tile {row['id']} ({Path(row['item']).name})"
    if side.paths and not row["whole"]:
        name += f" at row {row['row']}, column {row['col']}"
    return name + (f" [{row['split']}]" if row["split"] else "")


def _caption(row: dict[str, Any], more: int, a: Collection, b: Collection) -> str:
    how = [row["kind"]]
    if row["kind"] == "perceptual":
        how.append(f"distance {row['distance']}")
    if row["kind"] in ("perceptual", "crop"):
        how.append(f"correlation {row['correlation']:.2f}")
    if row["kind"] in ("crop", "footprint"):
        how.append(f"{100 * row['share']:.0f} % of the smaller one")
    if row["orientation"]:
        how.append(f"left one shown {ORIENTATIONS[row['orientation']]}")
    dates = [side.views["time"][row[letter]].as_py() for letter, side in (("a", a), ("b", b))]
    if row["kind"] == "footprint" and all(dates):
        same = same_day(*np.array(dates, "datetime64[us]"))
        how.append("same day" if same else "dates {:%Y-%m-%d} and {:%Y-%m-%d}".format(*dates))
    also = f"; {more:,} more matches of the two" if more else ""
    return f"{name_of(a, row['a'])} and {name_of(b, row['b'])}: {', '.join(how)}{also}"


def _save_pair(path: Path, row: dict[str, Any], a: Collection, b: Collection) -> None:
    from geomim.corpus.report import pictures  # here: matplotlib takes a second

    left, right = _picture(a, row["a"], pictures), _picture(b, row["b"], pictures)
    pictures.save_picture(path, pictures.beside([pictures.turn_picture(left, row["orientation"]), right]))


def _picture(side: Collection, place: int, pictures: Any) -> np.ndarray:
    pixels, valid = side.read(place)
    if side.sensor is None:
        return np.full((_EDGE, _EDGE, 3), 96, np.uint8)
    limits = np.array([[0, 255]] * len(pixels)) if pixels.dtype == np.uint8 else None
    return pictures.shrink(pictures.composite(pixels, side.sensor, valid, limits), _EDGE)


def unreadable_html(sides: Iterable[Collection]) -> str:
    """Images that could not be read, and why."""
    rows = [(side.name, Path(uri).name, reason) for side in sides for uri, reason in side.unreadable]
    more = f"<p>And {len(rows) - 200:,} more.</p>" if len(rows) > 200 else ""
    return html_table(("of", "image", "why"), rows[:200]) + more if rows else ""
