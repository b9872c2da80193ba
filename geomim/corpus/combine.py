"""Corpora put together and taken apart: `merge`, `append`, `filter`. No scene is cut again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console

from geomim.corpus.assemble import (
    ARRAYS,
    BY_ID,
    INLINE_SHARDS,
    bring_shard,
    decide_anew,
    dtype_of,
    masked,
    new_corpus,
    open_parts,
    put,
    read_small,
    report,
    working,
    write_copies,
    write_edges,
)
from geomim.corpus.pieces import Piece, forget_unfinished, line_up, write_arrays, write_tables
from geomim.corpus.pipeline.executor import Workers
from geomim.corpus.pipeline.rules import matching
from geomim.corpus.shards import create_array, write_groups
from geomim.corpus.store import Corpus, write_json, write_table
from geomim.errors import BandError, CorpusError, InputError


def merge(corpora: list[str], out: str) -> Path:
    """Put corpora of one sensor together into a new one; pixels are shared, not written again, where the disk can.

    Duplicates between them are looked for, and what is kept is decided anew by the thresholds of the first. Pairs of
    tiles of different corpora are verified as an audit does it, by their details (`comparison.likeness`), not by the
    correlation that a build asks for: the same tiles built together may give a few other pairs. Tiles that benchmarks
    excluded stay excluded, but the audits of the parts do not cover the others: exclude the benchmarks again.

    Args:
        corpora: Folders of two corpora or more.
        out: Folder of the new corpus.

    Returns:
        The folder.

    Raises:
        BandError: They have different bands.
        CorpusError: They hold different types of numbers or classes of masks, or `out` holds something.
    """
    if len(corpora) < 2:
        raise InputError(f"merge takes two corpora or more; given {len(corpora)}")
    opened = [open_parts(path) for path in corpora]
    for other in opened[1:]:
        _check_alike(opened[0], other)
    with new_corpus(out) as folder, working() as workers:
        pieces = line_up(opened)
        write_arrays(folder / "tiles.zarr", pieces, workers)
        write_groups(folder / "tiles.zarr")
        write_tables(folder / "catalogue", pieces, 0, workers)
        skipped = pa.concat_tables([corpus.skipped() for corpus in opened]).sort_by("source")
        write_table(folder / "skipped.parquet", skipped)
        first = opened[0].meta
        decide_anew(
            folder,
            _joined(opened) | {"recipe": first["recipe"] | {"merged": [_made(piece) for piece in pieces]}},
            workers,
        )
    _say_uncovered(out, _benchmarks(opened))
    return Path(out)


def append(corpus: str, more: str) -> Path:
    """Add the tiles of another corpus to one, without touching the shards that are there.

    New tiles start in a shard of their own; the slots before them stay a gap that no row of the catalogue names.
    Duplicates are looked for, and what is kept is decided anew. Stopped and started again, it goes on. Pairs of an old
    and a new tile are verified as an audit does it, by their details (`comparison.likeness`), not by the correlation
    that a build asks for: the same tiles built together may give a few other pairs. Tiles that benchmarks excluded stay
    excluded; the evidence in `audit` goes, since the new tiles were never compared: exclude the benchmarks again.

    Args:
        corpus: Folder of the corpus that grows.
        more: Folder of the corpus whose tiles are added; it stays as it is.

    Returns:
        The folder of the corpus.

    Raises:
        BandError: They have different bands.
        CorpusError: They hold different types of numbers or classes of masks.
    """
    folder, added = Path(corpus), str(Path(more).resolve())
    if folder.resolve() == Path(more).resolve():
        raise InputError(f"'{corpus}' cannot be appended to itself")
    if _finish_append(folder) == added:  # it was stopped when all was written
        return folder
    first, second = open_parts(corpus), open_parts(more)
    forget_unfinished(folder / "tiles.zarr")
    _check_alike(first, second)
    with working() as workers:
        pieces = line_up([first, second])
        write_arrays(folder / "tiles.zarr", pieces, workers, grows=True)
        part = folder / _GROWN
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        parts = sorted((folder / "catalogue").glob("tiles-*.parquet"))
        for file in parts:
            shutil.copyfile(file, part / file.name)
        write_tables(part, pieces, len(parts), workers)
        done = [*first.meta["recipe"].get("appended", []), _made(pieces[1])]
        meta = _joined([first, second]) | {"recipe": first.meta["recipe"] | {"appended": done}}
        write_json(part / _MARK, {"more": added, "meta": meta, "benchmarks": _benchmarks([first, second])})
    _finish_append(folder)
    return folder


_GROWN = "catalogue.part"  # the small tables of an append, until they take the place of the others
_MARK = "append.json"  # in them: all is written


def _finish_append(folder: Path) -> str | None:
    """Put an append into effect whose tiles and tables are all written; which corpus was appended, if any."""
    catalogue, former = folder / "catalogue", folder / "catalogue.former"
    if (folder / _GROWN / _MARK).exists():
        if catalogue.exists():
            os.replace(catalogue, former)
        os.replace(folder / _GROWN, catalogue)
    if not (catalogue / _MARK).exists():
        return None
    mark = json.loads((catalogue / _MARK).read_text())
    shutil.rmtree(former, ignore_errors=True)
    write_groups(folder / "tiles.zarr")
    shutil.rmtree(folder / "audit", ignore_errors=True)  # of the corpus as it was: no claim on the new tiles
    with working() as workers:
        decide_anew(folder, mark["meta"], workers)
    (catalogue / _MARK).unlink()
    report(folder)
    _say_uncovered(str(folder), mark.get("benchmarks", []))
    return str(mark["more"])


def _benchmarks(corpora: Sequence[Corpus]) -> list[str]:
    """What some of several corpora were compared with, as it was given."""
    files = [corpus.path / "audit" / "audit.json" for corpus in corpora]
    records = [json.loads(file.read_text())["benchmarks"] for file in files if file.is_file()]
    return list(dict.fromkeys(record["given"] for some in records for record in some))


def _say_uncovered(folder: str, benchmarks: Sequence[str]) -> None:
    """Say that audits of the parts are none of the whole."""
    if benchmarks:
        Console(stderr=True, markup=False, highlight=False).print(
            f"excluded tiles stay excluded, but audits of the parts do not cover all tiles of '{folder}': exclude "
            f"{', '.join(benchmarks)} again",
            soft_wrap=True,
        )


def filter(corpus: str, where: str, out: str, licence: list[str] | None = None) -> Path:
    """Make a new corpus of some tiles of one.

    What is kept of them is decided anew: a copy of a tile that is left out takes its place.

    Args:
        corpus: Folder of the corpus.
        where: SQL condition on the catalogue's columns, such as "kept AND cloud_fraction < 0.1"; `true` for all.
        out: Folder of the new corpus.
        licence: Only tiles under these licences, as the catalogue spells them.

    Returns:
        The folder.

    Raises:
        InputError: The condition is wrong, or no tile meets it.
        CorpusError: It is no corpus, or `out` holds something.
    """
    opened = open_parts(corpus)
    ids = _chosen(opened, where, licence)
    with new_corpus(out) as folder, working() as workers:
        _pick(opened, ids, folder, workers)
        said = {"where": where, "licence": licence, "recipe": opened.meta["recipe"].get("filtered")}
        meta = opened.meta | {"classes": opened.meta["classes"] if masked(opened) else []}
        decide_anew(folder, meta | {"recipe": opened.meta["recipe"] | {"filtered": said}}, workers)
    return Path(out)


def _chosen(corpus: Corpus, where: str, licence: Sequence[str] | None) -> np.ndarray:
    """Ids of the tiles that meet a condition, sorted."""
    found, licences = [], set()
    for batch in corpus.rows().to_batches():
        tiles = pa.Table.from_batches([batch])
        met = matching(tiles, where)
        if licence is not None:
            licences.update(tiles["licence"].unique().to_pylist())
            met &= pc.is_in(tiles["licence"], pa.array(licence, pa.string())).to_numpy()
        found.append(tiles["id"].to_numpy()[met])
    ids = np.concatenate(found)
    if not len(ids):
        known = sorted(name for name in licences if name)
        more = f" (its licences: {', '.join(known) or 'none stated'})" if licence is not None else ""
        raise InputError(f"no tile of '{corpus.path}' meets '{where}'{more}")
    return np.sort(ids)


def _pick(corpus: Corpus, ids: np.ndarray, folder: Path, workers: Workers) -> None:
    """Write arrays and small tables of some tiles."""
    rows = []
    for file in sorted((corpus.path / "catalogue").glob("tiles-*.parquet")):
        table = pq.read_table(file, columns=["id", "size", "slot", "original"])
        rows.append(table.filter(_among(table["id"], ids)))
    tiles = pa.concat_tables(rows)
    original = _first_of(tiles["original"].to_numpy(), tiles["id"].to_numpy())
    slots = _pick_arrays(corpus, tiles, folder / "tiles.zarr", workers)
    done = number = 0
    for file in sorted((corpus.path / "catalogue").glob("tiles-*.parquet")):
        part = pq.read_table(file)
        part = part.filter(_among(part["id"], ids))
        if len(part):
            own = slice(done, done + len(part))
            part = put(put(part, "slot", slots[own]), "original", original[own])
            write_table(folder / "catalogue" / f"tiles-{number:06d}.parquet", part)
            done, number = done + len(part), number + 1
    write_copies(folder / "catalogue", tiles["id"].to_numpy(), original)
    edges = pq.read_table(corpus.path / "catalogue" / "edges.parquet")
    write_edges(folder / "catalogue", [edges.filter(pc.and_(_among(edges["a"], ids), _among(edges["b"], ids)))])
    for name in BY_ID:
        if (table := read_small(corpus, name)) is not None:
            write_table(folder / "catalogue" / f"{name}.parquet", table.filter(_among(table["id"], ids)))
    _pick_sources(corpus, folder)
    if (corpus.path / "audit").is_dir():
        shutil.copytree(corpus.path / "audit", folder / "audit")


def _pick_sources(corpus: Corpus, folder: Path) -> None:
    """Of the sources those that gave a tile, and all masks that were given beside sources."""
    named: set[str] = set()
    for file in sorted((folder / "catalogue").glob("tiles-*.parquet")):
        named.update(pq.read_table(file, columns=["source"])["source"].unique().to_pylist())
    sources = pq.read_table(corpus.path / "catalogue" / "sources.parquet")
    some = pc.is_in(sources["uri"], pa.array(sorted(named), pa.string()))
    if "tiles" in sources.column_names:
        some = pc.or_kleene(some, pc.equal(sources["tiles"], 0))
    write_table(folder / "catalogue" / "sources.parquet", sources.filter(some))
    write_table(folder / "skipped.parquet", corpus.skipped())


def _among(column: pa.ChunkedArray, ids: np.ndarray) -> pa.Array:
    """Which numbers of a column are among sorted ones."""
    numbers = column.to_numpy()
    at = np.minimum(np.searchsorted(ids, numbers), len(ids) - 1)
    return pa.array(ids[at] == numbers)


def _first_of(group: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The lowest id of each tile's group."""
    _, place = np.unique(group, return_inverse=True)
    first: np.ndarray = np.full(place.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, place, ids)
    result: np.ndarray = first[place]
    return result


def _pick_arrays(corpus: Corpus, tiles: pa.Table, path: Path, workers: Workers) -> np.ndarray:
    """Write the arrays of some tiles, and return the slot of each in them."""
    sizes, calls = tiles["size"].to_numpy(), []
    slots: np.ndarray = tiles["slot"].to_numpy().copy()
    for size in np.unique(sizes).tolist():
        rows = np.flatnonzero(sizes == size)
        wanted, slots[rows] = np.unique(slots[rows], return_inverse=True)
        per_shard = None
        for name, (names, fill) in ARRAYS.items():
            source = corpus.array(name, size)
            if source is None:
                continue
            packed = source.layout.compression if source.layout else None
            shape = (len(wanted), *source.shape[1:])
            layout = create_array(path / str(size) / name, shape, source.dtype, names, fill, packed, per_shard)
            per_shard = layout.per_shard
            for number in range(layout.shards):
                span = layout.slots(number)
                calls.append((path / str(size) / name, layout, number, source.path, wanted[span.start : span.stop]))
    workers.run("copying tiles", bring_shard, calls, inline=len(calls) < INLINE_SHARDS)
    write_groups(path)
    return slots


def _made(piece: Piece) -> dict[str, Any]:
    return {"corpus": piece.name, "recipe": piece.corpus.meta["recipe"]}


def _check_alike(one: Corpus, two: Corpus) -> None:
    """Refuse what cannot be one corpus."""
    if one.sensor != two.sensor:
        alike = one.sensor.names == two.sensor.names
        raise BandError(
            f"a corpus holds one sensor: '{one.path}' has {one.sensor.name} ({', '.join(one.sensor.names)}), "
            f"'{two.path}' has {two.sensor.name} ({', '.join(two.sensor.names)})"
            + (f" with {two.sensor.deviation(one.sensor)}" if alike else "")
        )
    if dtype_of(one) != dtype_of(two):
        raise CorpusError(f"a corpus holds one type: '{one.path}' holds {dtype_of(one)}, '{two.path}' {dtype_of(two)}")
    if masked(one) and masked(two) and one.classes != two.classes:
        raise CorpusError(
            f"their masks have different classes: '{one.path}' has {', '.join(one.classes)}; '{two.path}' has "
            f"{', '.join(two.classes)}"
        )


def _joined(corpora: Sequence[Corpus]) -> dict[str, Any]:
    """What `corpus.json` says of several corpora together, besides the recipe."""
    of_masks = [corpus.classes for corpus in corpora if masked(corpus)]
    labels = [name for corpus in corpora for name in corpus.classes]
    return {
        "sensor": corpora[0].meta["sensor"],
        "protect": any(corpus.meta["protect"] for corpus in corpora),
        "classes": list(dict.fromkeys([*of_masks[0], *labels])) if of_masks else [],
        "searched": min(corpus.meta.get("searched", 0) for corpus in corpora),
        "searched_valid": max(corpus.meta.get("searched_valid", 0.0) for corpus in corpora),
    }
