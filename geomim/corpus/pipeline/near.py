"""Near-copies: perceptual hashes of all tiles, searched completely and verified, slice by slice.

Distinct hashes lie sorted in one file with an index a band beside it (`duplicates.hamming`). A task takes a slice of
them as queries in all eight orientations; all tasks map the same files, so memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from geomim.corpus.duplicates.fingerprint import inverse, orientations
from geomim.corpus.duplicates.hamming import Band, BandIndex, choose_bands, index_band, search_band
from geomim.corpus.duplicates.verify import MIN_CORRELATION, correlation
from geomim.corpus.pipeline.edges import EDGES, edge_table
from geomim.corpus.pipeline.executor import Workers
from geomim.corpus.pipeline.shuffle import gather, parts, save, save_parts, scatter
from geomim.corpus.pipeline.staged import Staged, staged
from geomim.corpus.store import write_table

QUERIES = 250_000  # hashes of a task: some seconds of work
_CROWD = 64  # tiles with one hash that are compared with each other; the others are compared with these
_PAIRS = 200_000  # verified at once: 800 MB of signatures
_KEYS = pa.schema([("phash", pa.uint64()), ("id", pa.int64())])


def find_near(folder: Path, aside: pa.Table, tiles: int, radius: int, workers: Workers) -> None:
    """Find all pairs of tiles whose hashes lie within a radius in one of eight orientations, and verify them.

    Args:
        folder: Empty, in the folder of unfinished work; receives Parquet files of `EDGES`.
        aside: Tiles that are not compared (column `id`).
        tiles: How many there are.
        radius: Bits.
        workers: Runs it.
    """
    count, inline = parts(tiles), tiles < 20_000
    write_table(folder / "aside.parquet", aside)
    tasks = staged(folder.parent).folders
    workers.run("hashing apart", _scatter, [(task, folder, count) for task in tasks], inline)
    sizes = workers.run("sorting hashes", _sort, [(folder, part) for part in range(count)], inline)
    unique = join_groups(folder, sizes, "ids", np.dtype(np.int64))
    bands = choose_bands(unique, radius)
    index_all(folder, bands, workers, inline)
    slices = [(folder, bands, low, min(low + QUERIES, unique)) for low in range(0, unique, QUERIES)]
    workers.run("searching near duplicates", _search, slices, inline)


def index_all(folder: Path, bands: tuple[Band, ...], workers: Workers, inline: bool) -> None:
    """Write the index of each band of `hashes.npy` beside it."""
    workers.run("indexing hashes", _index, [(folder, bands, which) for which in range(len(bands))], inline)


def _scatter(task: Path, folder: Path, count: int) -> None:
    columns = ["id", "phash", "valid_fraction", "low_information"]
    table = pq.read_table(task / "tiles.parquet", columns=columns)
    aside = pq.read_table(folder / "aside.parquet")["id"]
    usable = pc.and_(pc.greater(table["valid_fraction"], 0), pc.invert(table["low_information"]))
    table = table.filter(pc.and_(usable, pc.invert(pc.is_in(table["id"], aside))))
    hashes = table["phash"].to_numpy().view(np.uint64)
    table = pa.table({"phash": hashes, "id": table["id"]})
    scatter(folder / "keys", task.name, table, partition(hashes, count), count)


def partition(hashes: np.ndarray, count: int) -> np.ndarray:
    """The partition of each hash, so that partitions follow one another in the order of hashes."""
    return (hashes >> np.uint64(32)).astype(np.int64) * count >> 32


def _sort(folder: Path, part: int) -> tuple[int, int]:
    table = gather(folder / "keys", part, _KEYS).sort_by([("phash", "ascending"), ("id", "ascending")])
    return save_groups(folder, part, table["phash"].to_numpy(), "ids", table["id"].to_numpy())


def save_groups(folder: Path, part: int, hashes: np.ndarray, name: str, members: np.ndarray) -> tuple[int, int]:
    """Write the distinct hashes of a sorted partition, and the members that have each; returns how many of both."""
    unique, starts = np.unique(hashes, return_index=True)
    for kind, array in (("hashes", unique), ("groups", starts), (name, members)):
        save(folder / f"{kind}-{part:05d}.npy", array)
    return len(unique), len(members)


def join_groups(folder: Path, sizes: list[tuple[int, int]], name: str, dtype: np.dtype) -> int:
    """Put partitions one behind the other, without holding them; returns how many distinct hashes there are."""
    unique, members = (sum(column) for column in zip(*sizes, strict=True))
    ends = np.cumsum([more for _, more in sizes])

    def taken(kind: str) -> Iterator[np.ndarray]:
        for part in range(len(sizes)):
            yield np.load(folder / f"{kind}-{part:05d}.npy")
            (folder / f"{kind}-{part:05d}.npy").unlink()

    begins = (starts + end - more for starts, end, (_, more) in zip(taken("groups"), ends, sizes, strict=True))
    save_parts(folder / "hashes.npy", np.dtype(np.uint64), unique, taken("hashes"))
    save_parts(folder / "groups.npy", np.dtype(np.int64), unique + 1, chain(begins, [np.array([members])]))
    save_parts(folder / f"{name}.npy", dtype, members, taken(name))
    return unique


def _index(folder: Path, bands: tuple[Band, ...], which: int) -> None:
    index = index_band(np.load(folder / "hashes.npy", mmap_mode="r"), bands[which])
    for name in _ARRAYS:
        save(folder / f"{name}-{which}.npy", getattr(index, name))


_ARRAYS = ("order", "starts", "hashes")


def load_index(folder: Path, which: int) -> BandIndex:
    """Map the index of a band."""
    return BandIndex(*(np.load(folder / f"{name}-{which}.npy", mmap_mode="r") for name in _ARRAYS))


def _search(folder: Path, bands: tuple[Band, ...], low: int, high: int) -> None:
    """Pairs of a slice of hashes with all others, verified."""
    hashes = np.load(folder / "hashes.npy", mmap_mode="r")
    queries = np.ascontiguousarray(orientations(np.asarray(hashes[low:high])))
    same = np.arange(low, high)
    found, distances, turns = [np.stack([same, same], 1)], [np.zeros_like(same)], [np.zeros_like(same)]
    for which in range(len(bands)):
        pairs, distance = search_band(bands, which, load_index(folder, which), queries.ravel())
        turn, query = np.divmod(pairs[:, 0], high - low)
        pairs = np.stack([query + low, pairs[:, 1]], 1)
        ahead = pairs[:, 0] < pairs[:, 1]  # each pair is found from both sides
        found.append(pairs[ahead])
        distances.append(distance[ahead])
        turns.append(turn[ahead])
    pairs, distance, turn = (np.concatenate(column) for column in (found, distances, turns))
    starts, ids = np.load(folder / "groups.npy", mmap_mode="r"), np.load(folder / "ids.npy", mmap_mode="r")
    tables = [EDGES.empty_table()]
    for first in range(0, len(pairs), QUERIES):
        some = slice(first, first + QUERIES)
        tables.append(_verified(staged(folder.parent), *_members(pairs[some], distance[some], turn[some], starts, ids)))
    table = _best(pa.concat_tables(tables))
    write_table(folder / f"edges-{low:012d}.parquet", table)


def _members(
    pairs: np.ndarray, distance: np.ndarray, turn: np.ndarray, starts: np.ndarray, ids: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Pairs of hashes to pairs of tiles `(a, b)`, with distance and orientation that turns `a` into `b`."""
    one, two = starts[pairs].T
    many, width = (starts[pairs + 1] - starts[pairs]).T
    count = np.minimum(many, _CROWD) * width
    pair = np.repeat(np.arange(len(pairs)), count)
    first, second = np.divmod(np.arange(len(pair)) - np.repeat(np.cumsum(count) - count, count), width[pair])
    a, b = ids[one[pair] + first], ids[two[pair] + second]
    kept = (one != two)[pair] | (a < b)  # of a group with itself each pair once
    a, b, distance, turn = a[kept], b[kept], distance[pair[kept]], turn[pair[kept]]
    back = np.array([inverse(k) for k in range(8)])
    return np.minimum(a, b), np.maximum(a, b), distance, np.where(a > b, back[turn], turn)


def _verified(tiles: Staged, a: np.ndarray, b: np.ndarray, distance: np.ndarray, turn: np.ndarray) -> pa.Table:
    alike = np.empty(len(a), np.float32)
    for first in range(0, len(a), _PAIRS):
        some = slice(first, first + _PAIRS)
        alike[some] = correlation(tiles.signatures(b[some]), tiles.signatures(a[some]), turn[some])
    table = edge_table(a, b, "perceptual", distance, turn, alike)
    return table.filter(pa.array(alike >= MIN_CORRELATION))


def _best(table: pa.Table) -> pa.Table:
    """The best orientation of each pair, sorted by pair."""
    keys = [("a", "ascending"), ("b", "ascending"), ("distance", "ascending"), ("correlation", "descending")]
    table = table.sort_by([*keys, ("orientation", "ascending")])
    a, b = table["a"].to_numpy(), table["b"].to_numpy()
    first = np.ones(len(table), bool)
    first[1:] = (np.diff(a) != 0) | (np.diff(b) != 0)
    return table.filter(pa.array(first))
