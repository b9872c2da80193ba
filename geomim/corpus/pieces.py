"""Corpora that become one: sources in the order of a joint build, shared shards, and tiles staged as cutting does it.

What a build finds out about its tiles is then found out by the build's own stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console

from geomim.corpus.assemble import ARRAYS, bring_tiles, images, put
from geomim.corpus.duplicates.fingerprint import block_means, content_hash, signature
from geomim.corpus.pipeline.decide import Tables
from geomim.corpus.pipeline.executor import Rows, Workers
from geomim.corpus.pipeline.facts import FACTS
from geomim.corpus.pipeline.plan import Task, deal
from geomim.corpus.pipeline.raw import little_endian
from geomim.corpus.pipeline.shuffle import gather, scatter
from geomim.corpus.pipeline.staged import Staged
from geomim.corpus.pipeline.staging import BLOCKS, HASHES, blocks_of
from geomim.corpus.reader import TileArray
from geomim.corpus.shards import write_groups
from geomim.corpus.store import IGNORE, Corpus, write_table

_INLINE_TILES = 2000
_BATCH_BYTES = 16 * 2**20  # pixels that are fingerprinted at once
_SOURCES = HASHES.append(pa.field("file", pa.string()))
_MOVED = pa.schema(
    [
        *((field.name, field.type) for field in FACTS if field.name not in ("place", "mask_place")),
        ("slot", pa.int64()),
        ("corpus", pa.int32()),
        ("old", pa.int64()),
        ("joint", pa.int64()),
    ]
)
"""A tile on its way: its facts, the new slot and name of its source, and which corpus it comes from under which id;
`joint` is the row of its source in the table of all."""


def write_arrays(path: Path, corpora: Sequence[Corpus], workers: Workers) -> list[dict[int, int]]:
    """Bring the pixels of all corpora together; what the disk can share is not written again.

    Args:
        path: `tiles.zarr` of the new corpus.
        corpora: In order.
        workers: Runs it.

    Returns:
        What is added to the slots of each corpus, by size.
    """
    added: list[dict[int, int]] = [{} for _ in corpora]
    for size in sorted({size for corpus in corpora for size in corpus.sizes}):
        holders = [number for number, corpus in enumerate(corpora) if size in corpus.sizes]
        layout = images(corpora[holders[0]], size).layout
        parts = [(corpora[number], range(len(images(corpora[number], size)))) for number in holders]
        first = bring_tiles(path, size, parts, layout.per_shard if layout else None, workers)
        for number, slot in zip(holders, first, strict=True):
            added[number][size] = slot
    write_groups(path)
    return added


def stage(folder: Path, corpora: Sequence[Corpus], slots: Sequence[dict[int, int]], workers: Workers) -> pa.Table:
    """Number the tiles of all corpora as a build of all their sources does it, and stage what it knows of them.

    A source that several of them hold counts once, and so do its tiles that are the same.

    Args:
        folder: Of the new corpus, whose pixels are there; receives `work/tasks` and all that the search for
            duplicates needs, and `ids.parquet` in each task: which tile of which corpus became which.
        corpora: In order.
        slots: From `write_arrays`.
        workers: Runs it.

    Returns:
        The sources: `uri`, `bytes`, `xxh3`, `tiles`, `file` and `taken_off`, in the order of their tiles' ids, then
        those without tiles.
    """
    work, inline = folder / "work", sum(corpus.rows().count_rows() for corpus in corpora) < _INLINE_TILES
    files = [(number, file) for number, one in enumerate(corpora) for file in Tables(one.path / "catalogue").parts()]
    runs = workers.run("counting tiles", count_tiles, [(file,) for _, file in files], inline)
    counted = pa.concat_tables(
        run.append_column("corpus", pa.array([number] * len(run))) for (number, _), run in zip(files, runs, strict=True)
    )
    sources, joint = join_sources(corpora, counted)
    tiled = sources.filter(pc.greater(sources["tiles"], 0))
    count = tiled["tiles"].to_numpy()
    first = np.cumsum(count) - count
    dealt = deal(count, max(size for one in corpora for size in one.sizes) ** 2 * len(corpora[0].sensor.bands))
    part = np.repeat(np.arange(len(dealt)), [end - start for start, end in dealt])
    calls = []
    for (number, file), own in zip(files, np.split(joint, np.cumsum([len(run) for run in runs])[:-1]), strict=True):
        names = Rows(pa.table({"uri": tiled["uri"].take(own)}))
        calls.append((work / "moved", number, file, slots[number], names, own, part[own], len(dealt)))
    workers.run("sorting tiles", move_tiles, calls, inline)
    tasks = [Task(f"{place:06d}", Rows(tiled.slice(*span)), int(first[span[0]])) for place, span in enumerate(dealt)]
    offsets = [first[start:end] for start, end in dealt]
    shared = [(tiled["corpora"].to_numpy() > 1)[start:end] for start, end in dealt]
    staged = [(work, task.name, *some) for task, *some in zip(tasks, dealt, offsets, shared, strict=True)]
    _say_other_words(workers.run("looking at tiles", stage_part, staged, inline))
    Staged.write(work, tasks)
    write_table(work / "sources.parquet", tiled)
    return sources.select(["uri", "bytes", "xxh3", "tiles", "file", "taken_off"])


def count_tiles(file: Path) -> pa.Table:
    """Tiles of each source of a file, in order; a task."""
    found = pc.value_counts(pq.read_table(file, columns=["source"])["source"])
    return pa.table({"uri": found.field("values"), "tiles": found.field("counts")})


def join_sources(corpora: Sequence[Corpus], counted: pa.Table) -> tuple[pa.Table, np.ndarray]:
    """The sources of several corpora, each once, in the order of a build of all.

    Args:
        corpora: In order.
        counted: Columns `corpus`, `uri` and `tiles`.

    Returns:
        Columns `uri`, `bytes`, `xxh3`, `tiles`, `file`, `taken_off` and how many `corpora` have tiles of it; and which
        row each of `counted` belongs to. Other files under a name that is taken get the name of their corpus before it.
    """
    listed = []
    for number, corpus in enumerate(corpora):
        table = pq.read_table(corpus.path / "catalogue" / "sources.parquet", schema=_SOURCES)
        listed.append(table.append_column("corpus", pa.array([number] * len(table))))
    with duckdb.connect() as connection:
        connection.register("listed", pa.concat_tables(listed))
        connection.register("counted", counted.append_column("place", pa.array(np.arange(len(counted)))))
        connection.execute(_JOINED)
        sources = connection.sql("SELECT * FROM joined ORDER BY joint").to_arrow_table()
        joint = connection.execute(_WHERE).fetchnumpy()["joint"]
    names = sources["uri"].to_pylist()
    others, taken = np.flatnonzero(sources["other"].to_numpy(zero_copy_only=False)), set(names)
    for number in np.unique(sources["corpus"].to_numpy()[others]).tolist():
        own = [row for row in others.tolist() if sources["corpus"][row].as_py() == number]
        name = called = corpora[number].path.resolve().name
        while any(f"{called}:{names[row]}" in taken for row in own):
            called = f"{name}-{int(called.removeprefix(name).strip('-') or 1) + 1}"
        Console(stderr=True, markup=False, highlight=False).print(
            f"{len(own)} sources are named alike and are other files, such as '{names[own[0]]}': those of "
            f"'{corpora[number].path}' are called '{called}:{names[own[0]]}'",
            soft_wrap=True,
        )
        for row in own:
            names[row] = f"{called}:{names[row]}"
        taken.update(names[row] for row in own)
    return sources.set_column(0, "uri", pa.array(names, pa.string())), joint


_JOINED = """
CREATE TEMP TABLE known AS
SELECT corpus, uri, bytes, xxh3, min(coalesce(file, uri)) AS file, min(taken_off) AS taken_off
FROM listed GROUP BY corpus, uri, bytes, xxh3;
CREATE TEMP TABLE joined AS
WITH tiles AS (SELECT corpus, uri, sum(tiles) AS tiles FROM counted GROUP BY ALL),
one AS (
    SELECT uri, bytes, xxh3, coalesce(sum(tiles), 0)::BIGINT AS tiles, min(file) AS file, min(taken_off) AS taken_off,
        count(tiles) AS corpora, min(corpus) AS corpus
    FROM known LEFT JOIN tiles USING (corpus, uri) GROUP BY uri, bytes, xxh3
)
SELECT *, corpus > min(corpus) OVER (PARTITION BY uri) AS other,
    row_number() OVER (ORDER BY tiles = 0, file, xxh3 NULLS LAST, uri, corpus) - 1 AS joint
FROM one
"""
_WHERE = """
SELECT joint FROM counted JOIN known USING (corpus, uri)
JOIN joined ON joined.uri = known.uri AND joined.bytes = known.bytes AND joined.xxh3 IS NOT DISTINCT FROM known.xxh3
ORDER BY place
"""


def move_tiles(
    folder: Path,
    number: int,
    file: Path,
    slots: dict[int, int],
    names: Rows,
    joint: np.ndarray,
    part: np.ndarray,
    count: int,
) -> None:
    """Write the tiles of one file of a corpus into the parts of the new corpus; a task.

    Args:
        folder: Of the shuffle.
        number: Of the corpus.
        file: Its tiles.
        slots: Added to their slots, by size.
        names: What each of its sources is called now, in the order of their tiles.
        joint: `(n,)` the row of each source in the table of all.
        part: `(n,)` the part of each.
        count: Parts.
    """
    tiles = Tables(file.parent).part(file, written=False)  # of which `merge` makes a table
    source = pc.dictionary_encode(tiles["source"].combine_chunks()).indices.to_numpy()
    known = tiles.column_names
    columns: dict[str, Any] = {name: tiles[name] for name in _MOVED.names if name in known}
    columns["slot"] = tiles["slot"].to_numpy() + np.array([slots[size] for size in tiles["size"].to_pylist()])
    columns["source"] = names.table["uri"].take(pa.array(source))
    columns |= {"corpus": np.full(len(tiles), number), "old": tiles["id"], "joint": joint[source]}
    empty = {field.name: pa.nulls(len(tiles), field.type) for field in _MOVED if field.name not in columns}
    table = pa.table({name: (columns | empty)[name] for name in _MOVED.names}).cast(_MOVED)
    scatter(folder, f"{number:03d}-{file.stem}", table, part[source], count)


def stage_part(
    work: Path, name: str, span: tuple[int, int], first: np.ndarray, shared: np.ndarray
) -> dict[str, tuple[int, Any, Any]]:
    """Number the tiles of one part, and write what the search for duplicates needs of them; a task.

    Args:
        work: Of the new corpus.
        name: Of the part.
        span: Rows of its sources in the table of all.
        first: `(n,)` the first id of each source.
        shared: `(n,)` whether several corpora have tiles of it.

    Returns:
        Columns in which corpora differ about tiles that several have: how many, what is kept, what another says.
    """
    tiles = gather(work / "moved", int(name), _MOVED)
    joint = tiles["joint"].to_numpy() - span[0]
    corpus, old = (tiles[column].to_numpy() for column in ("corpus", "old"))
    row, col = (np.where(shared[joint], pc.fill_null(tiles[column], 0).to_numpy(), 0) for column in ("row", "col"))
    what = ("joint", "size", "row", "col", "xxh3", "beside")  # the same tile, on whichever side of a split
    code = _groups(tiles, (*what, "split"))
    said = tiles
    if shared.any():
        tiles = _pooled(_pooled(tiles, corpus, joint, _OF_SOURCE), corpus, _groups(tiles, what), _OF_TILE)
    least = np.full(code.max(initial=-1) + 1, np.iinfo(np.int32).max)
    np.minimum.at(least, code, corpus)
    order = np.lexsort((old, corpus, col, row, joint))
    order = order[corpus[order] == least[code[order]]]
    group = joint[order]
    ids = first[group] + np.arange(len(order)) - np.searchsorted(group, group)
    stands = np.full(len(least), np.iinfo(np.int64).max)
    np.minimum.at(stands, code[order], ids)
    new = stands[code]
    new[order] = ids
    write_table(work / "tasks" / name / "ids.parquet", pa.table({"corpus": corpus, "old": old, "id": new}))
    tiles = put(tiles.take(order), "id", ids).drop_columns(["corpus", "old", "joint"])
    _fingerprint(work / "tasks" / name, work.parent / "tiles.zarr", tiles)
    gone = np.flatnonzero(corpus > least[code])
    return _other_words(tiles.take(np.searchsorted(ids, new[gone])), said.take(gone))


_OF_SOURCE = ("licence", "attribution", "non_commercial", "dataset", "time", "gsd")
_OF_TILE = ("label", "captions", "boxes", "cloud_fraction")
"""Columns that one corpus may know and another not, though their pixels are the same."""


def _groups(tiles: pa.Table, names: Sequence[str]) -> np.ndarray:
    """`(n,)` numbers, equal where all of these columns are."""
    keys = [pc.cast(tiles[name], pa.string()) for name in names]
    same = pc.binary_join_element_wise(*keys, "\t", null_handling="replace").combine_chunks().dictionary_encode()
    return np.asarray(same.indices.to_numpy())


def _pooled(tiles: pa.Table, corpus: np.ndarray, group: np.ndarray, names: Sequence[str]) -> pa.Table:
    """Tiles with what the first corpus of their group says that says anything, where their own says nothing.

    A ban on commercial use counts for all of the group, whoever says it.
    """
    for name in names:
        column = tiles[name].combine_chunks()
        known = column.is_valid().to_numpy(zero_copy_only=False)
        rank = np.where(known, corpus, np.iinfo(np.int32).max)
        if name == "non_commercial":
            rank[column.fill_null(False).to_numpy(zero_copy_only=False)] = -1
            known = np.zeros(len(tiles), bool)
        order = np.lexsort((rank, group))
        _, at, back = np.unique(group[order], return_index=True, return_inverse=True)
        first = np.empty(len(tiles), np.int64)
        first[order] = order[at][back]
        values = column.take(pa.array(np.where(known, np.arange(len(tiles)), first)))
        tiles = tiles.set_column(tiles.schema.get_field_index(name), tiles.schema.field(name), values)
    return tiles


def _other_words(kept: pa.Table, other: pa.Table) -> dict[str, tuple[int, Any, Any]]:
    """Columns in which tiles differ, row by row, though both say something: how many, and the first of it."""
    found = {}
    for name in (*_OF_SOURCE, *_OF_TILE):
        pairs = zip(kept[name].to_pylist(), other[name].to_pylist(), strict=True)
        differ = [pair for pair in pairs if None not in pair and pair[0] != pair[1]]
        if differ and name != "non_commercial":  # of which the stricter counts
            found[name] = (len(differ), *differ[0])
    return found


def _say_other_words(parts: Sequence[dict[str, tuple[int, Any, Any]]]) -> None:
    console = Console(stderr=True, markup=False, highlight=False)
    for name in (*_OF_SOURCE, *_OF_TILE):
        if some := [part[name] for part in parts if name in part]:
            kept, other = (str(value)[:80] for value in some[0][1:])
            console.print(
                f"{sum(one[0] for one in some):,} tiles that several corpora hold have another {name} in a later one, "
                f"such as '{other}' for '{kept}': that of the first which states one is kept",
                soft_wrap=True,
            )


def _fingerprint(task: Path, arrays: Path, tiles: pa.Table) -> None:
    """Write `tiles.parquet`, `signature.raw` and `blocks.parquet` of tiles whose pixels are there."""
    sizes, slots, ids = (tiles[name].to_numpy() for name in ("size", "slot", "id"))
    placed = pc.and_(tiles["geometry"].is_valid(), tiles["time"].is_valid())
    without = pc.or_(placed, pc.fill_null(tiles["low_information"], False)).to_numpy()
    signatures: dict[int, np.ndarray] = {}
    blocks, beside = {-1: BLOCKS.empty_table()}, tiles["beside"].to_pylist()
    for size in np.unique(sizes).tolist():
        own = np.flatnonzero(sizes == size)
        image, valid, mask = (_array(arrays / str(size) / name) for name in ARRAYS)
        assert image is not None
        batch = max(1, _BATCH_BYTES // (int(np.prod(image.shape[1:])) * image.dtype.itemsize))
        for start in range(0, len(own), batch):
            rows = own[start : start + batch]
            pixels = image.read(slots[rows])
            good = np.ones((len(rows), size, size), bool) if valid is None else valid.read(slots[rows]).astype(bool)
            signatures |= zip(rows.tolist(), signature(block_means(pixels, good)), strict=True)
            for place, row in enumerate(rows.tolist()):
                if not without[row]:
                    blocks[row] = blocks_of(int(ids[row]), pixels[place], good[place])
                if beside[row] is None:  # an older corpus did not keep it
                    beside[row] = content_hash(good[place]) + _labelled(mask, int(slots[row]))
    write_table(task / "tiles.parquet", put(tiles, "beside", beside))
    np.stack([little_endian(signatures[row]) for row in range(len(tiles))]).tofile(task / "signature.raw")
    write_table(task / "blocks.parquet", pa.concat_tables([blocks[row] for row in sorted(blocks)]))


def _array(path: Path) -> TileArray | None:
    return TileArray(path) if (path / "zarr.json").is_file() else None


def _labelled(mask: TileArray | None, slot: int) -> str:
    labels = None if mask is None else mask.read([slot])[0]
    return "" if labels is None or (labels == IGNORE).all() else content_hash(labels)
