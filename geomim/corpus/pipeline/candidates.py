"""Candidates for tiles that overlap in part: `votes.crop_pairs` over partitions.

Distinct forms of the block hashes lie sorted in one file, with an index a band beside it. A task takes a slice of them
as queries in one orientation and one band; what it finds goes into partitions by query, where hashes like which too
many look are left out. The matches of the others go into partitions by tile and vote there. All tasks map the same
files and hold one slice or one partition, but for the index of a band: 12 bytes a hash while it is made.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from geomim.corpus.duplicates.hamming import Band
from geomim.corpus.duplicates.votes import (
    CROWD,
    MIN_VOTES,
    RADIUS,
    choose_form_bands,
    composed,
    likes,
    member_pairs,
    search_forms,
    turned_xy,
    upright,
    vote,
)
from geomim.corpus.pipeline.executor import Workers
from geomim.corpus.pipeline.near import index_all, join_groups, load_index, partition, save_groups
from geomim.corpus.pipeline.shuffle import ROWS, gather, parts, save, scatter
from geomim.corpus.store import write_table

QUERIES = 4_000_000
"""Hashes of a search task: sorted by key, so many read the index in order, and they take some 500 MB."""
_INDEXED = 50_000_000  # forms from which one band is indexed at a time, for memory
_EXPANDED = 1_000_000  # pairs of forms that become pairs of patches at once
_MEMBER = np.dtype([("id", "<i8"), ("x", "<i2"), ("y", "<i2"), ("size", "<u2"), ("flip", "<u2")])
_FORMS = pa.schema(
    {"form": pa.uint64(), "flip": pa.uint16(), "id": pa.int64(), "size": pa.uint16(), "x": pa.int16(), "y": pa.int16()}
)
_ALIKE = pa.schema([("query", pa.int64()), ("place", pa.int64()), ("turn", pa.int8())])
_MATCHES = pa.schema([("a", pa.int64()), ("b", pa.int64()), ("turn", pa.int8()), ("x", pa.int32()), ("y", pa.int32())])


def propose(
    folder: Path, tasks: Sequence[Path], rows: Sequence[int], workers: Workers, count: int = 0
) -> list[tuple[int, int]]:
    """Find the candidates: `votes.crop_pairs` over partitions, but of different sources only.

    Args:
        folder: Holds `copies.parquet`, tiles to leave out, and `sources.npy`, the end of each source's ids; receives
            `candidates-*.parquet`, a file a partition of tiles: those of `MIN_VOTES` first, each part sorted.
        tasks: Folders with `blocks.parquet`.
        rows: How many each has.
        workers: Runs it.
        count: Partitions; as many as rows ask for where 0. It does not change the candidates.

    Returns:
        How many candidates each file has, and how many of them have `MIN_VOTES`.
    """
    inline, count = sum(rows) <= ROWS, count or parts(sum(rows))
    workers.run("hashing apart", _scatter, [(some, folder, count) for some in _batches(tasks, rows)], inline)
    sizes = workers.run("sorting block hashes", _sort, [(folder, part) for part in range(count)], inline)
    shutil.rmtree(folder / "keys", ignore_errors=True)
    unique = join_groups(folder, sizes, "members", _MEMBER)
    bands = choose_form_bands(unique, RADIUS)
    index_all(folder, bands, workers, inline or unique > _INDEXED)
    lows = range(0, unique, QUERIES)
    slices = [
        (which, k, low, min(low + QUERIES, unique)) for which in range(len(bands)) for k in range(8) for low in lows
    ]
    calls = [(folder, bands, *one, count) for one in slices]
    workers.run("searching blocks", _search, calls, inline)
    ranges = [(folder, part, count) for part in range(count)]
    found = sum(workers.run("counting crowds", _count, ranges, inline))
    save(folder / "told.npy", np.concatenate([np.load(folder / f"told-{part:05d}.npy") for part in range(count)]))
    voters = max(count, parts(found // 2))
    workers.run("matching crops", _match, [(*some, voters) for some in ranges], inline)
    shutil.rmtree(folder / "alike", ignore_errors=True)
    counts = workers.run("voting for crops", _vote, [(folder, part) for part in range(voters)], inline)
    shutil.rmtree(folder / "matches", ignore_errors=True)
    for file in folder.glob("*.npy"):
        file.unlink()
    return counts


def _batches(tasks: Sequence[Path], rows: Sequence[int]) -> list[list[Path]]:
    """Tasks together that have about as many rows as a partition, or the shuffle were made of millions of files."""
    batch = (np.cumsum(rows) - rows) // ROWS if len(rows) else np.empty(0)
    return [[task for task, own in zip(tasks, batch, strict=True) if own == one] for one in np.unique(batch)]


def _scatter(tasks: Sequence[Path], folder: Path, count: int) -> None:
    """Forms of the blocks of all tiles but exact copies, by partitions in the order of forms."""
    copies = pq.read_table(folder / "copies.parquet", columns=["id"])["id"]
    blocks = pa.concat_tables([pq.read_table(task / "blocks.parquet") for task in tasks])
    blocks = blocks.filter(pc.invert(pc.is_in(blocks["id"], copies)))
    forms, flips = upright(blocks["hash"].to_numpy())
    table = pa.table({"form": forms, "flip": flips} | {name: blocks[name] for name in _FORMS.names[2:]}, _FORMS)
    scatter(folder / "keys", tasks[0].name, table, partition(forms, count), count)


def _sort(folder: Path, part: int) -> tuple[int, int]:
    keys = [(name, "ascending") for name in ("form", "id", "x", "y")]
    table = gather(folder / "keys", part, _FORMS).sort_by(keys)
    members = np.empty(len(table), _MEMBER)
    for name in _MEMBER.names:
        members[name] = table[name].to_numpy()
    return save_groups(folder, part, table["form"].to_numpy(), "members", members)


def _search(folder: Path, bands: tuple[Band, ...], which: int, turn: int, low: int, high: int, count: int) -> None:
    """What looks like a slice of the forms in one orientation and band, by partitions of the queries."""
    forms = np.load(folder / "hashes.npy", mmap_mode="r")
    query, place = search_forms(forms[low:high], turn, bands, which, load_index(folder, which), CROWD)
    table = pa.table({"query": query + low, "place": place, "turn": np.full(len(query), turn, np.int8)}, _ALIKE)
    name = f"{which}-{turn}-{low:012d}"
    scatter(folder / "alike", name, table, np.searchsorted(_bounds(len(forms), count), query + low, "right") - 1, count)


def _bounds(forms: int, count: int) -> np.ndarray:
    """Where partitions of queries begin, and the end."""
    return np.arange(count + 1) * forms // count


def _count(folder: Path, part: int, count: int) -> int:
    """Which forms of a partition are no crowd; how many pairs these have."""
    starts = np.load(folder / "groups.npy", mmap_mode="r")
    low, high = _bounds(len(starts) - 1, count)[part : part + 2]
    table = gather(folder / "alike", part, _ALIKE)
    query, place = table["query"].to_numpy() - low, table["place"].to_numpy()
    told = likes(query, place, starts, high - low, CROWD) <= CROWD
    save(folder / f"told-{part:05d}.npy", told)
    return int(told[query].sum())


def _match(folder: Path, part: int, count: int, voters: int) -> None:
    """Pairs of patches of different sources that look alike, by partitions of their first tile."""
    starts, told = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("groups", "told"))
    members, ends = np.load(folder / "members.npy", mmap_mode="r"), np.load(folder / "sources.npy")
    table = gather(folder / "alike", part, _ALIKE)
    two, one, turn = (table[name].to_numpy() for name in _ALIKE.names)
    kept = np.flatnonzero((one >= 0) & told[two])
    kept = kept[told[one[kept]]]
    kept = kept[np.lexsort((turn[kept], one[kept], two[kept]))]  # neighbours on disk are read together
    tables = [_MATCHES.empty_table()]
    for low in range(0, len(kept), _EXPANDED):
        some = kept[low : low + _EXPANDED]
        first, second, pair = member_pairs(one[some], two[some], starts)
        tables.append(_matches(members[first], members[second], turn[some][pair], ends))
    matches = pa.concat_tables(tables)
    scatter(folder / "matches", f"{part:05d}", matches, matches["a"].to_numpy() * voters // ends[-1], voters)


def _matches(one: np.ndarray, two: np.ndarray, turn: np.ndarray, ends: np.ndarray) -> pa.Table:
    """Rows of `_MATCHES` of pairs of patches; within a file only a stride overlaps, so these are dropped."""
    kept = one["id"] < two["id"]  # each pair is found from both sides
    kept[kept] = np.searchsorted(ends, one["id"][kept], "right") != np.searchsorted(ends, two["id"][kept], "right")
    one, two = one[kept], two[kept]
    turn = composed(turn[kept], one["flip"], two["flip"])
    here, there = (np.stack([side["x"], side["y"]], 1) for side in (one, two))
    size = two["size"].astype(np.int32)
    offset = here - turned_xy(there, np.stack([size, size], 1), turn)
    columns = {"a": one["id"], "b": two["id"], "turn": turn.astype(np.int8), "x": offset[:, 0], "y": offset[:, 1]}
    return pa.table(columns, _MATCHES)


def _vote(folder: Path, part: int) -> tuple[int, int]:
    """Candidates of a partition of tiles; how many, and of how many more than one match tells."""
    table = gather(folder / "matches", part, _MATCHES)
    a, b, turn, x, y = (table[name].to_numpy() for name in _MATCHES.names)
    found = vote(a, b, turn, np.stack([x, y], 1), 1)
    several = found.votes >= MIN_VOTES
    found = found[np.argsort(~several, kind="stable")]
    columns = {"a": found.one, "b": found.two, "turn": found.orientation, "x": found.offset[:, 0]}
    columns |= {"y": found.offset[:, 1], "votes": found.votes}
    write_table(folder / f"candidates-{part:05d}.parquet", pa.table(columns))
    return len(found.one), int(several.sum())
