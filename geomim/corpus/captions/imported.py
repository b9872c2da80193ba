"""Sentences from a publisher's file or a table: Karpathy's JSON (RSICD, UCM, Sydney), RSITMD, NWPU-Captions, CSV."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from geomim.corpus.joining import PATHS, Joined, Row, join, read_table
from geomim.errors import InputError, nearest

LONGEST = 1000
"""Characters of a sentence that are kept, up to the end of a word: text towers read some 300."""
_SENTENCES = re.compile(r"(raw|captions?|sentences?|text|title|description)([_ ]?\d+)?", re.IGNORECASE)
_CLASSES = ("class", "label", "labels")
_FORMS = (
    "expected JSON with a list 'images' of 'filename' and 'sentences' (Karpathy's form), lists of images by class "
    "(NWPU-Captions), or a CSV, JSONL or Parquet table with a column 'image' and one 'caption'"
)


def imported(file: str, column: str | None, uris: Sequence[str], said: Counter[str]) -> Joined:
    """Sentences of each source, joined by their paths.

    Args:
        file: The file.
        column: Holds the sentences; all that are called so (`caption`, `caption_2`, `sentences`, `raw` ...) where None.
        uris: Sources.
        said: Receives what was done to sentences, with file and row.

    Raises:
        InputError: The file is of another form, a cell is no text, or it names none of the sources.
    """
    found: dict[str, list[str]] = {}
    mended = defaultdict[str, list[str]](list)
    for where, name, texts, record in read_sentences(file, column, mended):
        found.setdefault(name, []).extend(texts)
        classes = [
            key for key in _keys(record, _CLASSES) if record[key] not in (None, "") and record[key] == record[key]
        ]
        if classes:
            mended[_left_behind(file, classes)].append(where)
    said.update({f"{what}, the first in {places[0]}": len(places) for what, places in mended.items()})
    rows = [Row(name, tuple(dict.fromkeys(texts))) for name, texts in found.items() if texts]
    if not rows:
        raise InputError(f"'{file}' holds no sentence: its rows are empty")
    return join(file, rows, uris, "they get no sentence").check()


def _left_behind(file: str, classes: Sequence[str]) -> str:
    """What is said of classes, and which file `geomim corpus build --labels` takes."""
    taken = Path(file).suffix.lower() not in (".json", ".parquet") and _keys(dict.fromkeys(classes), _CLASSES[:2])
    which = "it" if taken else "a CSV or JSONL table of image and label"
    return f"classes that rows name stay behind (`geomim corpus build --labels` takes {which})"


def read_sentences(
    file: str, column: str | None, mended: dict[str, list[str]]
) -> Iterator[tuple[str, str, list[str], Mapping[str, Any]]]:
    """Rows of a file: where a row stands, the image that it names, its sentences, and all that it says.

    Args:
        file: As for `imported`, likewise `column`.
        column: Holds the sentences.
        mended: Receives where sentences were cut or left out, and what columns were taken for theirs, by what was done.

    Raises:
        InputError: The file is of another form, or a cell is no text.
    """
    for number, record in enumerate(_records(file), 1):
        where = f"'{file}', row {number}"
        if not isinstance(record, Mapping):
            raise InputError(f"{where}: {record!r:.80} is no row of a table; {_FORMS}")
        if any(record.get(None) or ()):  # where csv puts cells that the header does not name
            raise InputError(f"{where} has more cells than the header has names: put text with separators in quotes")
        named = next((record[key] for key in _keys(record, PATHS) if record[key]), None)
        columns = [key for key in record if key == column or (column is None and _SENTENCES.fullmatch(str(key)))]
        if not named or not columns:
            lacks = f"column '{column}'{nearest(column, map(str, record))}" if column and named else "image or sentence"
            raise InputError(f"{where} names no {lacks}; it has {', '.join(map(str, record))}; {_FORMS}")
        if column is None:
            mended[f"rows have their sentences in {', '.join(map(str, columns))}"].append(where)
        texts = chain.from_iterable(_texts(record[key], f"{where}: '{key}'") for key in columns)
        clean = (_clean(text, where, mended) for text in texts)
        yield where, str(named).strip(), [text for text in clean if text], record


def _records(file: str) -> list[Any]:
    path = Path(file)
    try:
        if path.suffix.lower() == ".parquet":
            return list(pq.read_table(path).to_pylist())
        if path.suffix.lower() != ".json":
            return list(read_table(file))
        table = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, pa.ArrowException) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"'{file}' cannot be read as sentences ({error}); {_FORMS}") from error
    if isinstance(table, Mapping):
        table = table["images"] if "images" in table else list(chain.from_iterable(_lists(table, file)))
    if not isinstance(table, list):
        raise InputError(f"'{file}' is of another form; {_FORMS}")
    return table


def _lists(table: Mapping[str, Any], file: str) -> Iterator[list[Any]]:
    """Rows of NWPU-Captions, which stand under their classes; a class that a row names itself counts."""
    for key, rows in table.items():
        if not isinstance(rows, list):
            raise InputError(f"'{file}' has no list under '{key}'; {_FORMS}")
        yield [{"class": key, **row} if isinstance(row, Mapping) else row for row in rows]


def _keys(record: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    lower = {str(key).strip().lower(): key for key in record}
    return [lower[name] for name in names if name in lower]


def _texts(cell: Any, where: str) -> Iterator[str]:
    """The sentences in a cell: a text, a list of them, or of mappings with `raw`."""
    if cell is None or isinstance(cell, str):
        yield cell or ""
    elif isinstance(cell, Mapping) and isinstance(cell.get("raw"), str):
        yield cell["raw"]
    elif isinstance(cell, list):
        for one in cell:
            yield from _texts(one, where)
    else:
        raise InputError(f"{where} holds {cell!r:.80}; expected text or a list of texts")


def _clean(text: str, where: str, mended: dict[str, list[str]]) -> str:
    """One line, composed, nothing unprintable but what joins emoji or parts letters; at most `LONGEST` long."""
    kept = "\u200c\u200d\ufe0f"
    shown = (one if one.isprintable() or one in kept else " " for one in unicodedata.normalize("NFC", text))
    line = " ".join("".join(shown).split())
    if not line:
        mended["empty sentences are left out"].append(where)
    if len(line) > LONGEST:
        mended[f"sentences are cut at {LONGEST} characters"].append(where)
        line = line[: LONGEST + 1].rpartition(" ")[0] or line[:LONGEST]
    return line
