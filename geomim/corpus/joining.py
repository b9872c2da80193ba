"""Tables joined with sources by their paths, and rasters by their names: what matched, and what did not."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from geomim.errors import InputError

PATHS = ("path", "image", "file", "filename", "filepath", "source", "image_path", "tile")


class Row(NamedTuple):
    """One row of a table: the file it names, what it says, and whether it holds that file out."""

    name: str
    value: Any = None
    held_out: bool = False


@dataclass(frozen=True)
class Joined:
    """What a table, or a folder of rasters, says of sources; as text it counts and names what fits and what does not.

    `values` has an entry a source, None for those `without` a row, which are what `default` says; `torn` are sources
    that rows of different values name. Rows are `unmatched` where they name no source, `several` where more than one,
    and `guessed` where it is called so but for suffix or case.
    """

    file: str
    values: list[Any]
    default: str
    rows: int
    unmatched: list[Row]
    several: list[Row]
    guessed: list[Row]
    torn: list[str]
    without: list[str]

    def check(self, allow: bool = False) -> Joined:
        """Refuse what says two things of a source, names none at all, or holds out what is no source, or several.

        Raises:
            InputError: So it is; the last is content with `allow`.
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
                "give paths with folders where names repeat, or be content without them: --allow-unmatched"
            )
        return self

    def __str__(self) -> str:
        said = {
            "name no source": [row.name for row in self.unmatched],
            "name several sources": [row.name for row in self.several],
            "name a source of another suffix or case, and are taken for it": [row.name for row in self.guessed],
            f"sources that it does not name ({self.default})": self.without,
        }
        words = [f"{self.rows - len(self.unmatched)} of {self.rows} match"]
        words += [f"{what}: {len(names)} ({_some(names)})" for what, names in said.items() if names]
        return f"'{self.file}': {'; '.join(words)}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def join(file: str, rows: Sequence[Row], uris: Sequence[str], default: str) -> Joined:
    """Join a table with sources: a row names every source whose path ends with its path.

    Where several rows name a source, the one with the longest path counts; the others are for sources that it does not
    name. Rows that name no source are taken for those without a row that are called so but for suffix and case.
    """
    counts, torn, values = [0] * len(rows), [], [None] * len(uris)
    lefts = []
    for as_row, as_source in ((_plain, _plain), (_folded, _bare), (_bare, _bare)):
        named = defaultdict(list)
        lefts.append([row for row, count in enumerate(counts) if not count])
        for row in lefts[-1]:
            named[as_row(rows[row].name)].append(row)
        deep = sorted({name.count("/") + 1 for name in named}, reverse=True)  # the longest path first
        shorter = []
        for place in [place for place, value in enumerate(values) if value is None]:
            parts = as_source(uris[place]).split("/")
            paths = ["/".join(parts[-depth:]) for depth in deep if depth <= len(parts)]
            found, *others = [named[path] for path in paths if path in named] or [[]]
            for row in found:
                counts[row] += 1
                values[place] = rows[found[0]].value
            if len({rows[row].value for row in found}) > 1:
                torn.append(uris[place])
            shorter += [row for other in others for row in other if rows[row].value == values[place]]
        for row in shorter:  # it says the same once more, which is no row without a source
            counts[row] = max(counts[row], 1)
    unmatched = [row for row, count in zip(rows, counts, strict=True) if count == 0]
    several = [row for row, count in zip(rows, counts, strict=True) if count > 1]
    guessed = [rows[row] for row in lefts[1] if counts[row] == 1]
    without = [uri for uri, value in zip(uris, values, strict=True) if value is None]
    return Joined(file, values, default, len(rows), unmatched, several, guessed, torn, without)


def _plain(path: str) -> str:
    return path.replace("\\", "/").removeprefix("./")


def _folded(path: str) -> str:
    return _plain(path).casefold()


def _bare(path: str) -> str:
    return re.sub(r"\.[^./]*$", "", _folded(path))


def join_rasters(folder: str, files: Iterable, uris: Sequence[str], find: Callable[[str], Any], default: str) -> Joined:
    """Join the rasters of a folder with scenes; `find` gives the one of a scene, or None.

    Raises:
        InputError: There are several for a scene, or one is named like scenes of different names.
    """
    values = [find(uri) for uri in uris]
    first: dict[str, str] = {}
    for uri, file in sorted((uri, str(file)) for uri, file in zip(uris, values, strict=True) if file is not None):
        if Path(uri).stem.casefold() != Path(first.setdefault(file, uri)).stem.casefold():
            raise InputError(
                f"'{file}' may be of '{first[file]}' or of '{uri}' by its name: give each a raster of its own in "
                f"'{folder}', or rename the scenes"
            )
    times = Counter(dict.fromkeys(map(str, files), 0))
    times.update(str(file) for file in values if file is not None)
    unmatched = [Row(Path(file).name) for file, count in times.items() if count == 0]
    several = [Row(Path(file).name) for file, count in times.items() if count > 1]
    without = [uri for uri, file in zip(uris, values, strict=True) if file is None]
    return Joined(folder, values, default, len(times), unmatched, several, [], [], without)


def read_rows(file: str, columns: Sequence[str]) -> list[Row]:
    """Rows of a CSV file (commas, semicolons or tabs) or of JSONL; those that say nothing of a file are left out.

    Args:
        file: With a column `path` or `image`.
        columns: What is said stands in the first of these columns that there is.

    Raises:
        InputError: The table cannot be read or lacks a column.
    """
    rows = read_table(file)
    there = {str(name).strip().lower(): name for name in rows[0]}
    for names in (PATHS, columns):
        if there.keys().isdisjoint(names):
            raise InputError(f"'{file}' needs a column {' or '.join(names)}; it has {', '.join(there)}")
    path, said = (there[next(name for name in names if name in there)] for names in (PATHS, columns))
    given = ((row.get(path), row.get(said)) for row in rows)
    return [Row(str(name).strip(), str(cell).strip()) for name, cell in given if name and cell not in (None, "")]


def read_table(file: str) -> list[dict[str, Any]]:
    """Rows of a CSV file (commas, semicolons or tabs) or of JSONL.

    Raises:
        InputError: The table cannot be read or is empty.
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
    return rows
