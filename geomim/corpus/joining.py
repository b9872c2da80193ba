"""Tables joined with sources by their paths, and rasters by their names: what matched, what did not, what did twice."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from geomim.errors import InputError

_PATHS = ("path", "image", "file", "filename", "source")
_NAMED = 5  # of each kind


class Row(NamedTuple):
    """One row of a table: the file it names, what it says, and whether that is a split that is held out."""

    name: str
    value: Any = None
    held_out: bool = False


@dataclass(frozen=True)
class Joined:
    """What a table, or a folder of rasters, says of sources, and what of it found none.

    Attributes:
        file: The table or the folder.
        rows: How many rows or rasters it has.
        values: What it says of each source, or None.
        unmatched: Rows that name no source.
        several: Rows that name several sources.
        guessed: Rows that name a source but for its suffix or its case, and the only one.
        torn: Sources that rows of different values name.
        without: Sources that no row names.
        default: What these are then, in words.
    """

    file: str
    rows: int
    values: list[Any]
    unmatched: list[Row]
    several: list[Row]
    guessed: list[Row]
    torn: list[str]
    without: list[str]
    default: str

    def check(self, allow: bool = False) -> Joined:
        """Refuse what would train on held-out images, or give a source one of two classes.

        Args:
            allow: Be content with rows of held-out images that name no source, or several.

        Raises:
            InputError: So it is, or the table names none of the sources.
        """
        if self.without and len(self.without) == len(self.values):
            raise InputError(f"'{self.file}' names none of the {len(self.values)} sources, such as '{self.without[0]}'")
        if self.torn:
            raise InputError(
                f"'{self.file}' says different things of {_some(self.torn)}: keep one row a file, and give paths with "
                "folders where names repeat"
            )
        lost = [row.name for row in (*self.unmatched, *self.several) if row.held_out]
        if lost and not allow:
            raise InputError(
                f"'{self.file}' holds out images that are no source, or several: {_some(lost)}. Correct the names, "
                "give paths with folders where names repeat, or build without them: --allow-unmatched"
            )
        return self

    def facts(self) -> dict[str, Any]:
        """Counts, and the first names of each kind, for `corpus.json`."""
        kinds = {"unmatched": self.unmatched, "several": self.several, "guessed": self.guessed}
        names = {kind: [row.name for row in rows] for kind, rows in kinds.items()} | {"without": self.without}
        counted = {kind: {"count": len(some), "such as": some[:_NAMED]} for kind, some in names.items()}
        return {"file": self.file, "rows": self.rows, "default": self.default} | counted

    def __str__(self) -> str:
        return told(self.facts())


def told(facts: dict[str, Any]) -> str:
    """The `facts` of a `Joined` in words."""
    words = {
        "unmatched": "{} name no source",
        "several": "{} name several sources",
        "guessed": "{} name a source of another suffix or case, and are taken for it",
        "without": "{} sources are not named: {default}",
    }
    said = [f"{facts['rows'] - facts['unmatched']['count']} of {facts['rows']} match"]
    for kind, sentence in words.items():
        count, names = facts[kind].values()
        if count:
            said.append(
                f"{sentence.format(count, **facts)} ({', '.join(names)}{', ...' if count > len(names) else ''})"
            )
    return f"'{facts['file']}': {'; '.join(said)}"


def _some(names: Sequence[str]) -> str:
    return f"{len(names)}, such as {', '.join(repr(name) for name in names[:_NAMED])}"


def join(file: str, rows: Sequence[Row], uris: Sequence[str], default: str) -> Joined:
    """Join a table with sources: a row names every source whose path ends with its path.

    Where several rows name a source, the one with the longest path counts. A row that names none is taken for the one
    source that is called so but for its suffix or its case.

    Args:
        file: What the table is called.
        rows: It.
        uris: Sources.
        default: What a source is that no row names, in words.
    """
    counts, values = np.zeros(len(rows), np.int64), [None] * len(uris)
    torn, without = [], []
    for place, found in _matches([row.name for row in rows], uris, _plain):
        if not found:
            without.append(place)
            continue
        counts[found] += 1
        values[place] = rows[found[0]].value
        if any(rows[one].value != values[place] for one in found):
            torn.append(uris[place])
    left = np.flatnonzero(counts == 0)
    guesses = [(p, f) for p, f in _matches([rows[n].name for n in left], [uris[p] for p in without], _bare) if f]
    times = np.bincount([one for _, found in guesses for one in found], minlength=len(left))
    guessed = {without[place]: left[found[0]] for place, found in guesses if len(found) == 1 == times[found[0]]}
    for place, one in guessed.items():
        values[place], counts[one] = rows[one].value, 1
    return Joined(
        file,
        len(rows),
        values,
        [rows[one] for one in np.flatnonzero(counts == 0)],
        [rows[one] for one in np.flatnonzero(counts > 1)],
        [rows[one] for one in guessed.values()],
        torn,
        [uris[place] for place in without if place not in guessed],
        default,
    )


def join_rasters(
    folder: str, files: Iterable[str], uris: Sequence[str], find: Callable[[str], Any], default: str
) -> Joined:
    """Join the rasters of a folder with the scenes that they belong to by their names.

    Args:
        folder: What it is called.
        files: Its rasters.
        uris: Scenes.
        find: The raster of a scene, or None.
        default: What a scene without a raster is, in words.

    Raises:
        InputError: There are several rasters for a scene.
    """
    found = [find(uri) for uri in uris]
    times: dict[str, int] = {str(file): 0 for file in files}
    for file in found:
        if file is not None:
            times[str(file)] += 1
    unmatched = [Row(Path(file).name) for file, count in times.items() if count == 0]
    several = [Row(Path(file).name) for file, count in times.items() if count > 1]
    without = [uri for uri, file in zip(uris, found, strict=True) if file is None]
    return Joined(folder, len(times), found, unmatched, several, [], [], without, default)


def _matches(names: Sequence[str], uris: Sequence[str], form: Callable[[str], str]) -> Iterator[tuple[int, list[int]]]:
    """For each source the rows whose names its path ends with, the longest first."""
    rows: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        rows.setdefault(form(name), []).append(number)
    for place, uri in enumerate(uris):
        parts = form(uri).split("/")
        yield place, [row for start in range(len(parts)) for row in rows.get("/".join(parts[start:]), ())]


def _plain(path: str) -> str:
    return path.replace("\\", "/").removeprefix("./")


def _bare(path: str) -> str:
    return re.sub(r"\.[^./]*$", "", _plain(path)).casefold()


def read_rows(file: str, columns: Sequence[str], value: Callable[[str], str] = str) -> list[Row]:
    """Rows of a CSV file (commas, semicolons or tabs) or of JSONL that say something of a file.

    Args:
        file: With a column `path` or `image`.
        columns: What is said stands in the first of these columns that there is; rows that say nothing are left out.
        value: Makes of it what counts.

    Raises:
        InputError: The table cannot be read or lacks a column.
    """
    try:
        text = Path(file).read_text(encoding="utf-8-sig")  # a byte-order mark is no part of the first name
        if Path(file).suffix.lower() in (".jsonl", ".ndjson"):
            rows = [dict(json.loads(line)) for line in text.split("\n") if line.strip()]
        else:
            comma = max(",;\t", key=text.partition("\n")[0].count)
            rows = list(csv.DictReader(StringIO(text, newline=""), delimiter=comma))
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise InputError(f"'{file}' cannot be read as a table, CSV or JSONL ({error})") from error
    if not rows:
        raise InputError(f"'{file}' has no rows")
    named = [{str(name).strip().lower(): cell for name, cell in row.items()} for row in rows]
    path, said = (_column(file, named[0], names) for names in (_PATHS, columns))
    given = ((str(row.get(path) or "").strip(), row.get(said)) for row in named)
    return [Row(name, value(str(cell).strip())) for name, cell in given if name and cell not in (None, "")]


def _column(file: str, row: dict[str, Any], names: Sequence[str]) -> str:
    for name in names:
        if name in row:
            return name
    raise InputError(f"'{file}' needs a column {' or '.join(names)}; it has {', '.join(row)}")
