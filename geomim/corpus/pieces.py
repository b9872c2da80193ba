"""Corpora that become parts of another one: new ids, slots and names, shared shards, and the tables between them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
    originals,
    put,
    read_small,
    write_copies,
    write_edges,
)
from geomim.corpus.pipeline.edges import edge_table
from geomim.corpus.pipeline.executor import Workers
from geomim.corpus.reader import TileArray
from geomim.corpus.shards import ArrayLayout, create_array, extend_array, link_shard, read_layout, tiles_per_shard
from geomim.corpus.store import Corpus, write_table

_RADIUS = 8  # bits within which near-copies are looked for at least


@dataclass(frozen=True)
class Piece:
    """A corpus that becomes a part of another.

    Attributes:
        corpus: The corpus.
        name: Tells its sources from those of others.
        shift: Added to its ids.
        slots: Added to its slots, by size.
        renamed: Sources that another piece has too, though they are other files.
    """

    corpus: Corpus
    name: str
    shift: int
    slots: dict[int, int]
    renamed: frozenset[str]

    def stored(self, size: int) -> int:
        """Number of slots of one size."""
        array = self.corpus.array("image", size) if size in self.corpus.sizes else None
        return 0 if array is None else len(array)

    def called(self, sources: pa.ChunkedArray) -> pa.Array:
        """Names of sources in the new corpus."""
        names = [f"{self.name}:{one}" if one in self.renamed else one for one in sources.to_pylist()]
        return pa.array(names, pa.string())

    def parts(self) -> Iterator[pa.Table]:
        """Its files of tiles, with the new ids, slots and names."""
        for file in sorted((self.corpus.path / "catalogue").glob("tiles-*.parquet")):
            tiles = pq.read_table(file)
            moved = np.array([self.slots[size] for size in tiles["size"].to_pylist()], np.int64)
            tiles = put(tiles, "slot", tiles["slot"].to_numpy() + moved)
            tiles = put(tiles, "id", tiles["id"].to_numpy() + self.shift)
            yield put(tiles, "source", self.called(tiles["source"])) if self.renamed else tiles

    def table(self, name: str, ids: Sequence[str]) -> pa.Table | None:
        """One of its small tables, with the new ids in some columns."""
        table = read_small(self.corpus, name)
        if table is not None:
            for column in ids:
                table = put(table, column, pc.add(table[column], self.shift))
        return table

    def sources(self) -> pa.Table:
        """Its sources, with their new names, and the files that they are."""
        table = pq.read_table(self.corpus.path / "catalogue" / "sources.parquet")
        files = table["file"] if "file" in table.column_names else table["uri"]
        table = table.drop_columns("file") if "file" in table.column_names else table
        return put(table, "uri", self.called(table["uri"])).append_column("file", files)


def line_up(corpora: Sequence[Corpus]) -> list[Piece]:
    """Ids, slots and names of several corpora behind each other; each starts with a shard of its own."""
    pieces: list[Piece] = []
    seen: dict[str, tuple[int, str | None]] = {}
    shift, slots = 0, dict.fromkeys(sorted({size for corpus in corpora for size in corpus.sizes}), 0)
    for corpus in corpora:
        sources = pq.read_table(corpus.path / "catalogue" / "sources.parquet", columns=["uri", "bytes", "xxh3"])
        hashes = {row["uri"]: (row["bytes"], row["xxh3"]) for row in sources.to_pylist()}
        renamed = frozenset(uri for uri, known in hashes.items() if seen.get(uri, known) != known)
        name, count = corpus.path.resolve().name, 1
        while any(f"{name}:{uri}" in seen for uri in renamed):
            count += 1
            name = f"{corpus.path.resolve().name}-{count}"
        pieces.append(Piece(corpus, name, shift, dict(slots), renamed))
        seen |= {f"{name}:{uri}" if uri in renamed else uri: known for uri, known in hashes.items()}
        rows = corpus.table(["id", "size", "slot"])
        shift += pc.max(rows["id"]).as_py() + 1
        for size, used in _used(rows).items():
            slots[size] += -(-used // _per_shard(corpora, size)) * _per_shard(corpora, size)
        if renamed:
            Console(stderr=True, markup=False, highlight=False).print(
                f"{len(renamed)} sources are named alike and are other files, such as '{min(renamed)}': those of "
                f"'{corpus.path}' are called '{name}:{min(renamed)}'",
                soft_wrap=True,
            )
    return pieces


def _used(rows: pa.Table) -> dict[int, int]:
    """Slots in use, by size."""
    last = rows.group_by("size").aggregate([("slot", "max")])
    return {size: slot + 1 for size, slot in zip(last["size"].to_pylist(), last["slot_max"].to_pylist(), strict=True)}


def _per_shard(corpora: Sequence[Corpus], size: int) -> int:
    """Tiles a shard: of the first corpus that holds tiles of this size."""
    for corpus in corpora:
        image = corpus.array("image", size) if size in corpus.sizes else None
        if image is not None:
            return image.layout.per_shard if image.layout else tiles_per_shard(image.shape, image.dtype)
    raise ValueError(f"no corpus holds tiles of {size} pixels")


def write_arrays(path: Path, pieces: Sequence[Piece], workers: Workers, grows: bool = False) -> None:
    """Bring the pixels of all pieces together; `write_groups` is left to do.

    Args:
        path: `tiles.zarr` of the new corpus, or, where it grows, of the first piece.
        pieces: In order.
        workers: Runs it.
        grows: Leave the shards of the first piece alone.
    """
    corpora, calls, links = [piece.corpus for piece in pieces], [], []
    used = [_used(corpus.table(["size", "slot"])) for corpus in corpora]
    for size in pieces[0].slots:
        per_shard = _per_shard(corpora, size)
        end = max(piece.slots[size] + some.get(size, 0) for piece, some in zip(pieces, used, strict=True))
        for name, (names, fill) in ARRAYS.items():
            arrays = [corpus.array(name, size) for corpus in corpora]
            some = next((array for array in arrays if array is not None), None)
            if some is None:
                continue
            target = path / str(size) / name
            own = grows and arrays[0] is not None
            if own:
                layout = _grow(target, pieces[1].slots[size], used[1].get(size, 0))
            else:
                packed = some.layout.compression if some.layout else None
                layout = create_array(target, (end, *some.shape[1:]), some.dtype, names, fill, packed, per_shard)
            for place, (piece, array) in enumerate(zip(pieces, arrays, strict=True)):
                if not (own and place == 0):
                    more = _shards(target, layout, piece.slots[size], used[place].get(size, 0), array)
                    calls += more[0]
                    links += more[1]
    workers.run("sharing tiles", link_shard, links, inline=True)
    workers.run("copying tiles", bring_shard, calls, inline=len(calls) < INLINE_SHARDS)


def forget_unfinished(path: Path) -> None:
    """Remove arrays that an append began which was stopped: those that the groups of `tiles.zarr` do not name."""
    group = json.loads((path / "zarr.json").read_text())
    named = set(group["consolidated_metadata"]["metadata"])
    for folder in [*path.glob("*/*/"), *path.glob("*/")]:
        name = folder.relative_to(path).as_posix()
        if folder.is_dir() and name not in named:
            shutil.rmtree(folder)


def _grow(path: Path, first: int, more: int) -> ArrayLayout:
    """Make an array longer; shards that an append left behind which never came into effect go."""
    layout = read_layout(path)
    if not more:
        return layout
    for number in range(first // layout.per_shard, layout.shards):
        (path / layout.file(number)).unlink(missing_ok=True)
    return extend_array(path, more, first)


def _shards(
    target: Path, layout: ArrayLayout, first: int, used: int, array: TileArray | None
) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Calls that bring the shards of one piece: those of `bring_shard`, and of `link_shard`."""
    per_shard = layout.per_shard
    equal = array is not None and array.layout is not None and replace(array.layout, shape=layout.shape) == layout
    calls: list[tuple[Any, ...]] = []
    for number in range(-(-used // per_shard)):
        there = first // per_shard + number
        if array is not None and equal:
            calls.append((target, layout, there, array.path / layout.file(number)))
            continue
        slots = np.full(len(layout.slots(there)), -1)
        own = np.arange(number * per_shard, min((number + 1) * per_shard, used))
        slots[: len(own)] = own
        calls.append((target, layout, there, array.path if array else None, slots))
    return ([], calls) if equal else (calls, [])


def write_tables(folder: Path, pieces: Sequence[Piece], number: int, workers: Workers) -> None:
    """Write the small tables of all pieces.

    Args:
        folder: The new `catalogue`.
        pieces: In order.
        number: Files of tiles that are there already: those of the first piece, or none.
        workers: Runs the search for duplicates.
    """
    tiles = _contents(pieces)
    exactly = "beside" in tiles.column_names and not tiles["beside"].null_count  # older corpora did not keep it
    ids, original = tiles["id"].to_numpy(), originals(tiles, "beside" if exactly else "valid_fraction")
    write_copies(folder, ids, original)
    for piece in pieces[1:] if number else pieces:
        for part in piece.parts():
            at = np.searchsorted(ids, part["id"].to_numpy())
            write_table(folder / f"tiles-{number:06d}.parquet", put(part, "original", original[at]))
            number += 1
    found = [piece.table("edges", ("a", "b")) for piece in pieces]
    found += [*_edges_between(pieces, workers), _differ_beside(pieces, tiles.filter(pa.array(ids == original)))]
    write_edges(folder, [table for table in found if table is not None])
    for name in BY_ID:
        tables = [table for piece in pieces if (table := piece.table(name, ("id",))) is not None]
        if tables:
            write_table(folder / f"{name}.parquet", pa.concat_tables(tables))
    sources = pa.concat_tables([piece.sources() for piece in pieces], promote_options="default")
    write_table(folder / "sources.parquet", sources)


def _contents(pieces: Sequence[Piece]) -> pa.Table:
    """What tells copies among the tiles of all pieces, in id order."""
    columns = ("id", "xxh3", "valid_fraction", "low_information", "beside")
    parts = (part for piece in pieces for part in piece.parts())
    some = [part.select([name for name in columns if name in part.column_names]) for part in parts]
    return pa.concat_tables(some, promote_options="default")


def _differ_beside(pieces: Sequence[Piece], tiles: pa.Table) -> pa.Table:
    """Edges between tiles of different pieces that have equal pixels and another validity or mask, as in a build."""
    informative = pc.and_(pc.greater(tiles["valid_fraction"], 0), pc.invert(tiles["low_information"]))
    tiles = tiles.filter(informative).select(["id", "xxh3"])
    pairs = tiles.join(tiles.rename_columns(["other", "xxh3"]), "xxh3", join_type="inner").sort_by("id")
    a, b = pairs["id"].to_numpy(), pairs["other"].to_numpy()
    first, second = (np.searchsorted([piece.shift for piece in pieces], end, side="right") for end in (a, b))
    return edge_table(a[first < second], b[first < second], "perceptual", distance=0, correlation=1.0)


def _edges_between(pieces: Sequence[Piece], workers: Workers) -> list[pa.Table]:
    """Near-copies, crops and overlaps between the tiles of different pieces."""
    from geomim.corpus.comparison.collection import collect
    from geomim.corpus.comparison.matching import match
    from geomim.corpus.comparison.parts import Crops
    from geomim.corpus.comparison.sides import side

    radius = max(1, *(piece.corpus.meta.get("searched", _RADIUS) for piece in pieces))
    bands = pieces[0].corpus.sensor.names
    sides = [collect(side(str(piece.corpus.path)), bands, max(piece.corpus.sizes), workers) for piece in pieces]
    found = []
    for second in range(1, len(pieces)):
        for first in range(second):
            crops: Crops = "fast" if pieces[first].corpus.meta["recipe"].get("crops") else "off"
            pairs = match(sides[first], sides[second], workers, radius, crops, footprint="acquisition")
            pairs = pairs.filter(pc.not_equal(pairs["kind"], "exact"))  # copies.parquet says those
            pairs = put(pairs, "a", pc.add(pairs["a"], pieces[first].shift))
            found.append(put(pairs, "b", pc.add(pairs["b"], pieces[second].shift)))
    return found
