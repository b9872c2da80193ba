"""A corpus made of tiles that are cut already: of other corpora, or of an archive.

Its folder is put together aside and renamed; pixels are linked or copied shard by shard, and what is kept is decided
anew from the small tables.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import Progress

from geomim.corpus.pipeline.conclude import complete, finish
from geomim.corpus.pipeline.copies import COPIES
from geomim.corpus.pipeline.edges import EDGES
from geomim.corpus.pipeline.executor import Workers
from geomim.corpus.pipeline.rules import rules_of
from geomim.corpus.reader import TileArray
from geomim.corpus.remote import Url
from geomim.corpus.report.report import print_funnel, write_report
from geomim.corpus.shards import ArrayLayout, write_shard
from geomim.corpus.store import IGNORE, Corpus, write_table
from geomim.errors import CorpusError

BY_ID = ("exclusions", "split", "balance")
"""Small tables with a column `id` that a corpus may have."""

ARRAYS: dict[str, tuple[tuple[str, ...], Any]] = {
    "image": (("tile", "band", "y", "x"), 0),
    "valid": (("tile", "y", "x"), True),
    "mask": (("tile", "y", "x"), IGNORE),
}
"""Names of the dimensions of each array of a size, and what a tile reads as that is not stored."""

INLINE_SHARDS = 16
"""Below so many shards, starting a process costs more than it saves."""


def open_parts(path: str) -> Corpus:
    """Open a corpus on this disk that has the small tables which decide.

    Raises:
        CorpusError: It is no corpus, is in a remote store, or is of the first format, which had no such tables.
    """
    if not isinstance(path, Url) and (Path(path) / "next").is_dir():
        complete(Path(path))
    corpus = Corpus.open(path)
    if isinstance(corpus.path, Url):
        raise CorpusError(f"'{path}' is in a remote store: copy it to a disk first")
    if not (corpus.path / "catalogue" / "edges.parquet").exists():
        version = corpus.meta.get("geomim_version")
        raise CorpusError(f"'{path}' was built by geomim {version} and lacks the tables that decide: build it again")
    return corpus


@contextmanager
def new_corpus(out: str) -> Iterator[Path]:
    """A folder aside, which becomes `out` when all went well.

    Raises:
        CorpusError: `out` holds something.
    """
    target = Path(out)
    if target.exists() and any(target.iterdir()):
        raise CorpusError(f"'{out}' holds something already: give another --out, or remove it")
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    (part / "catalogue").mkdir(parents=True)
    try:
        yield part
    except BaseException:
        shutil.rmtree(part)
        raise
    if target.exists():
        target.rmdir()
    os.replace(part, target)
    report(target)


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


def originals(tiles: pa.Table, beside: str = "valid_fraction") -> np.ndarray:
    """For each tile the lowest id among those with the same pixels and the same beside them, `(n,)` int64.

    Args:
        tiles: Columns `id`, `xxh3` and `beside`.
        beside: Column that is equal where validity is, and masks where they count.
    """
    ids: np.ndarray = tiles["id"].to_numpy()
    columns = [pc.dictionary_encode(tiles[name]).combine_chunks() for name in ("xxh3", beside)]
    groups = np.stack([column.indices.to_numpy() for column in columns], 1)
    _, group = np.unique(groups, axis=0, return_inverse=True)
    first = np.full(group.max(initial=-1) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, group.reshape(-1), ids)
    return first[group.reshape(-1)]


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
