"""A corpus made of tiles that are cut already: of other corpora.

Pixels are linked or copied shard by shard, and what is kept is decided anew from the small tables.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import Progress

from geomim.corpus.pipeline.conclude import finish
from geomim.corpus.pipeline.edges import EDGES
from geomim.corpus.pipeline.executor import Workers
from geomim.corpus.pipeline.rules import rules_of
from geomim.corpus.reader import TileArray
from geomim.corpus.report.report import print_funnel, write_report
from geomim.corpus.shards import ArrayLayout, create_array, link_shard, tiles_per_shard, write_shard
from geomim.corpus.store import IGNORE, Corpus, write_json, write_table
from geomim.errors import CorpusError

ARRAYS: dict[str, tuple[tuple[str, ...], Any]] = {
    "image": (("tile", "band", "y", "x"), 0),
    "valid": (("tile", "y", "x"), True),
    "mask": (("tile", "y", "x"), IGNORE),
}
"""Names of the dimensions of each array of a size, and what a tile reads as that is not stored."""

_INLINE_SHARDS = 16
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
    target = Path(out).resolve() if Path(out).is_symlink() else Path(out)  # a link stays one
    mark = target / "work" / "recipe.json"
    begun = mark.is_file() and json.loads(mark.read_text()).get("verb") == verb
    if target.is_file() or (not begun and any(one.is_file() and one.suffix != ".part" for one in target.rglob("*"))):
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
def working(count: int | None = None) -> Iterator[Workers]:
    """So many processes under a progress bar; one a core where not given."""
    console = Console(stderr=True, markup=False, highlight=False)
    with Progress(console=console, transient=True) as progress, Workers(progress, count) as workers:
        yield workers


def decide_anew(folder: Path, meta: Mapping[str, Any], workers: Workers) -> None:
    """Write catalogue, statistics, lock and `corpus.json` of a folder whose arrays and small tables are there."""
    names = ("sensor", "recipe", "protect", "classes", "searched", "searched_valid", "sentences")
    kept = {name: meta[name] for name in names if name in meta}
    finish(folder, kept, rules_of(kept), workers)


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
    return table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))


def images(corpus: Corpus, size: int) -> TileArray:
    """The pixels of a corpus's tiles of one size.

    Raises:
        CorpusError: They are not there.
    """
    array = corpus.array("image", size)
    if array is None:
        raise CorpusError(f"'{corpus.path}' lacks its pixels: build the corpus again")
    return array


def masked(corpus: Corpus) -> bool:
    """Whether a corpus has label masks."""
    return any(corpus.array("mask", size) is not None for size in corpus.sizes)


def bring_tiles(
    path: Path, size: int, parts: Sequence[tuple[Corpus, Sequence[int]]], per_shard: int | None, workers: Workers
) -> list[int]:
    """Write the arrays of one size from tiles of corpora, one corpus behind the other; `write_groups` is left to do.

    Args:
        path: `tiles.zarr` of the new corpus.
        size: Of the tiles.
        parts: Corpora that have tiles of it, and the slots there of those to bring, ascending.
        per_shard: Tiles a shard; as many as suit a new array where None.
        workers: Runs it.

    Returns:
        Where the tiles of each corpus begin: with a shard of their own.
    """
    image = images(parts[0][0], size)
    counts: np.ndarray = np.array([len(slots) for _, slots in parts])
    per_shard = per_shard or tiles_per_shard((counts.sum(), *image.shape[1:]), image.dtype)
    shards = -(-counts // per_shard)
    first = (np.cumsum(shards) - shards) * per_shard
    calls = []
    for name, (names, fill) in ARRAYS.items():
        arrays = [corpus.array(name, size) for corpus, _ in parts]
        like = next((array for array in arrays if array is not None), None)
        if like is None:
            continue
        packed, target = like.layout.compression if like.layout else None, path / str(size) / name
        shape = ((first + counts).max(), *like.shape[1:])
        layout = create_array(target, shape, like.dtype, names, fill, packed, per_shard)
        for array, start, (_, slots) in zip(arrays, first.tolist(), parts, strict=True):
            for done in range(0, len(slots), per_shard):
                calls.append((target, layout, (start + done) // per_shard, array, slots[done : done + per_shard]))
    workers.run("copying tiles", bring_shard, calls, inline=len(calls) < _INLINE_SHARDS)
    return list(first.tolist())


def bring_shard(path: Path, layout: ArrayLayout, number: int, array: TileArray | None, slots: Sequence[int]) -> None:
    """Write one shard from tiles of another array, or share one that is taken whole; a task.

    Args:
        path: Folder of the array.
        layout: Its layout.
        number: Of the shard.
        array: The other one; None where all tiles are fill values.
        slots: Places in it of the first tiles of the shard, ascending; what is behind them is all fill.
    """
    if array is not None and array.layout and replace(array.layout, shape=layout.shape) == layout:
        there = slots[0] // layout.per_shard
        whole = array.layout.slots(there)
        if (slots[0], slots[-1], len(slots)) == (whole[0], whole[-1], len(whole)):
            link_shard(path, layout, number, array.path / layout.file(there))
            return
    tiles = (None if array is None else array.read([slot])[0] for slot in slots)
    found = (None if tile is None or (tile == layout.fill).all() else tile for tile in tiles)
    write_shard(path, layout, number, chain(found, repeat(None, len(layout.slots(number)) - len(slots))))
