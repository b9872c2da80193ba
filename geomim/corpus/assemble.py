"""A corpus made of tiles that are cut already: of other corpora.

Pixels are linked or copied shard by shard, and what is kept is decided anew from the small tables.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import Progress

from geomim.corpus.pipeline.conclude import finish
from geomim.corpus.pipeline.copies import COPIES
from geomim.corpus.pipeline.edges import EDGES
from geomim.corpus.pipeline.executor import Workers
from geomim.corpus.pipeline.rules import rules_of
from geomim.corpus.reader import TileArray
from geomim.corpus.report.report import print_funnel, write_report
from geomim.corpus.shards import ArrayLayout, write_shard
from geomim.corpus.store import IGNORE, Corpus, write_json, write_table
from geomim.errors import CorpusError

BY_ID = ("exclusions", "split", "label", "balance")
"""Small tables with a column `id` that a corpus may have."""

ARRAYS: dict[str, tuple[tuple[str, ...], Any]] = {
    "image": (("tile", "band", "y", "x"), 0),
    "valid": (("tile", "y", "x"), True),
    "mask": (("tile", "y", "x"), IGNORE),
}
"""Names of the dimensions of each array of a size, and what a tile reads as that is not stored."""

INLINE_SHARDS = 16
"""Below so many shards, starting a process costs more than it saves."""


@contextmanager
def new_corpus(out: str, verb: str, **asked: Any) -> Iterator[Path]:
    """The folder of a corpus to come, which opens when all went well; what a kill left behind is begun anew.

    Args:
        out: The folder.
        verb: Makes it; whoever opens the folder before it is done is told to run that again.
        asked: Its arguments.

    Raises:
        CorpusError: `out` holds something.
    """
    target = Path(out)
    mark = target / "work" / "recipe.json"
    begun = mark.is_file() and json.loads(mark.read_text()).get("verb") == verb
    if not begun and any(path.is_file() and path.suffix != ".part" for path in target.rglob("*")):
        raise CorpusError(f"'{out}' holds something already: give another --out, or remove it")
    _remove(target)
    write_json(mark, {"verb": verb, "out": out} | asked)
    try:
        yield target
    except BaseException:
        _remove(target)
        raise
    os.replace(target / "work", target / "work.done")  # with `work` beside it, no corpus opens
    shutil.rmtree(target / "work.done")
    report(target)


def _remove(folder: Path) -> None:
    """Remove an unfinished corpus, the folder that says so last."""
    if folder.exists():
        for one in sorted(folder.iterdir(), key=lambda path: path.name == "work"):
            shutil.rmtree(one) if one.is_dir() else one.unlink()
        folder.rmdir()


def report(folder: Path) -> None:
    """Write the page to look at, and print what became of the tiles."""
    write_report(folder)
    print_funnel(Corpus.open(folder), Console(stderr=True, markup=False, highlight=False))


@contextmanager
def working() -> Iterator[Workers]:
    """Processes under a progress bar."""
    console = Console(stderr=True, markup=False, highlight=False)
    with Progress(console=console, transient=True) as progress, Workers(progress) as workers:
        yield workers


def decide_anew(folder: Path, meta: Mapping[str, Any], workers: Workers) -> None:
    """Write catalogue, statistics, lock and `corpus.json` of a folder whose arrays and small tables are there."""
    names = ("sensor", "recipe", "protect", "classes", "searched", "searched_valid")
    kept = {name: meta[name] for name in names if name in meta}
    finish(folder, kept, rules_of(kept), workers)


def write_copies(folder: Path, ids: np.ndarray, original: np.ndarray) -> None:
    """Write `copies.parquet` of a catalogue: the tiles that are exact copies, in id order."""
    copy = np.flatnonzero(ids != original)
    order = copy[np.argsort(ids[copy])]
    write_table(folder / "copies.parquet", pa.table([ids[order], original[order]], COPIES))


def write_edges(folder: Path, tables: Sequence[pa.Table]) -> None:
    """Write `edges.parquet` of a catalogue, sorted."""
    edges = pa.concat_tables([EDGES.empty_table(), *(table.cast(EDGES) for table in tables)])
    write_table(
        folder / "edges.parquet", edges.sort_by([("a", "ascending"), ("b", "ascending"), ("kind", "ascending")])
    )


def read_small(corpus: Corpus, name: str) -> pa.Table | None:
    """A small table of a corpus; None where it has none of that name."""
    file = corpus.path / "catalogue" / f"{name}.parquet"
    return pq.read_table(file) if file.exists() else None


def put(table: pa.Table, name: str, values: Any) -> pa.Table:
    """The table with other values in one column."""
    field = table.schema.field(name)
    array = values if isinstance(values, pa.ChunkedArray) else pa.array(values, field.type)
    return table.set_column(table.schema.get_field_index(name), field, array)


def dtype_of(corpus: Corpus) -> np.dtype:
    """Type of a corpus's pixels."""
    image = corpus.array("image", corpus.sizes[0])
    if image is None:
        raise CorpusError(f"'{corpus.path}' lacks its pixels: build the corpus again")
    dtype: np.dtype = image.dtype
    return dtype


def masked(corpus: Corpus) -> bool:
    """Whether a corpus has label masks."""
    return any(corpus.array("mask", size) is not None for size in corpus.sizes)


def bring_shard(path: Path, layout: ArrayLayout, number: int, source: Path | None, slots: np.ndarray) -> None:
    """Write one shard from tiles of another array; a task.

    Args:
        path: Folder of the array.
        layout: Its layout.
        number: Of the shard.
        source: The other array; None where all tiles are fill values.
        slots: `(n,)` places in it of the shard's tiles, -1 for one that is all fill.
    """
    if (path / layout.file(number)).exists():
        return
    array = TileArray(source) if source else None

    def tiles() -> Iterator[np.ndarray | None]:
        for slot in slots.tolist():
            tile = None if array is None or slot < 0 else array.read([slot])[0]
            yield None if tile is None or (tile == layout.fill).all() else tile

    write_shard(path, layout, number, tiles())
