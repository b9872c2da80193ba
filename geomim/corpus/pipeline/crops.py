"""Tiles without a place on Earth that overlap in part: matched by the block hashes that they share."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from geomim.corpus.duplicates.blocks import MIN_CORRELATION, RADIUS, Blocks, Crops, crop_pairs, overlap
from geomim.corpus.duplicates.fingerprint import inverse, orientations
from geomim.corpus.duplicates.hamming import Band, choose_bands, search_band
from geomim.corpus.pipeline.edges import EDGES, edge_table
from geomim.corpus.pipeline.executor import Workers
from geomim.corpus.pipeline.near import QUERIES, index_all, join_hashes, load_index, partition, sort_hashes
from geomim.corpus.pipeline.pixels import Pixels
from geomim.corpus.pipeline.shuffle import parts, scatter, stage_folder
from geomim.corpus.pipeline.staged import staged
from geomim.corpus.pipeline.staging import BLOCKS
from geomim.corpus.store import write_table
from geomim.errors import CorpusError

MIN_SHARE = 0.1
"""Share of the smaller tile from which an overlap is written down; which ones count is decided later."""
_PAIRS = 2000  # of a task


def find_crops(work: Path, copies: pa.Table, pixels: Pixels, workers: Workers) -> Path:
    """Find pairs of tiles that share a part, at any offset and in any of eight orientations.

    Args:
        work: Folder of the build.
        copies: Exact copies, which are left out: their original stands for them.
        pixels: What all tiles share.
        workers: Runs it.

    Returns:
        Folder with Parquet files of `EDGES`.
    """
    done = work / "crops"
    if done.exists():
        return done
    folder, tasks = stage_folder(done), staged(work).folders
    write_table(folder / "copies.parquet", copies)
    count = parts(sum(pq.read_metadata(task / "blocks.parquet").num_rows for task in tasks))
    inline = count == 1
    workers.run("hashing apart", _scatter, [(task, folder, count) for task in tasks], inline)
    sizes = workers.run("sorting block hashes", sort_hashes, [(folder, part) for part in range(count)], inline)
    join_hashes(folder, sizes)
    unique = sum(size for size, _ in sizes)
    bands = choose_bands(unique, RADIUS)
    index_all(folder, bands, workers, inline)
    alone = [(folder, bands, low, min(low + QUERIES, unique)) for low in range(0, unique, QUERIES)]
    workers.run("searching blocks", _accompanied, alone, inline)
    (count,) = workers.run("matching crops", _match, [(work, folder)])
    slices = [(work, folder, pixels, low) for low in range(0, count, _PAIRS)]
    workers.run("comparing crops", _compare, slices, inline=count < _PAIRS)
    os.replace(folder, done)
    return done


def _blocks(task: Path, folder: Path) -> pa.Table:
    """Blocks of a task's tiles but exact copies."""
    copies = pq.read_table(folder / "copies.parquet", columns=["id"])["id"]
    blocks = pq.read_table(task / "blocks.parquet")
    return blocks.filter(pc.invert(pc.is_in(blocks["id"], copies)))


def _scatter(task: Path, folder: Path, count: int) -> None:
    blocks = _blocks(task, folder)
    hashes = blocks["hash"].to_numpy()
    table = pa.table({"phash": hashes, "id": blocks["id"]})
    scatter(folder / "keys", task.name, table, partition(hashes, count), count)


def _accompanied(folder: Path, bands: tuple[Band, ...], low: int, high: int) -> None:
    """Which hashes of a slice any other block comes near, in any orientation: the others match nothing."""
    found = np.diff(np.load(folder / "groups.npy", mmap_mode="r")[low : high + 1]) > 1  # of several tiles
    queries = orientations(np.load(folder / "hashes.npy", mmap_mode="r")[low:high])
    for which in range(len(bands)):
        pairs, _ = search_band(bands, which, load_index(folder, which), queries.ravel())
        query = pairs[:, 0] % (high - low)
        found[query[query + low != pairs[:, 1]]] = True
    np.save(folder / f"near-{low:012d}.npy", found)


def _match(work: Path, folder: Path) -> int:
    """Candidates from the block hashes that are not alone; how many."""
    near = np.concatenate([np.zeros(0, bool), *(np.load(file) for file in sorted(folder.glob("near-*.npy")))])
    wanted = np.load(folder / "hashes.npy")[near]
    some = [BLOCKS.empty_table()]
    for task in staged(work).folders if len(wanted) else []:
        blocks = _blocks(task, folder)
        place = np.minimum(np.searchsorted(wanted, blocks["hash"].to_numpy()), len(wanted) - 1)
        some.append(blocks.filter(pa.array(wanted[place] == blocks["hash"].to_numpy())))
    blocks = pa.concat_tables(some)
    number, size = blocks["id"].to_numpy(), blocks["size"].to_numpy()
    xy = np.stack([blocks["x"].to_numpy(), blocks["y"].to_numpy()], 1)
    found = _candidates(Blocks(number, blocks["hash"].to_numpy(), xy, np.stack([size, size], 1)))
    found = found[_source(work, found.one) != _source(work, found.two)]  # within a file only a stride overlaps
    columns = {"a": found.one, "b": found.two, "turn": found.orientation, "x": found.offset[:, 0]}
    write_table(folder / "candidates.parquet", pa.table(columns | {"y": found.offset[:, 1]}))
    return len(found.one)


def _source(work: Path, ids: np.ndarray) -> np.ndarray:
    """Number of the file that each tile was cut from."""
    sources = pq.read_table(work / "sources.parquet", columns=["tiles"])["tiles"].to_numpy()
    return np.searchsorted(np.cumsum(sources), ids, side="right")


def _candidates(blocks: Blocks) -> Crops:
    try:
        return crop_pairs(blocks)
    except CorpusError as error:
        raise CorpusError(
            f"too many of {len(blocks.tile):,} block hashes look alike to tell crops ({error}): go on with "
            "--crops false; nothing is cut again"
        ) from error


def _compare(work: Path, folder: Path, pixels: Pixels, low: int) -> None:
    """Verify a slice of the candidates on their pixels."""
    found = pq.read_table(folder / "candidates.parquet").slice(low, _PAIRS)
    a, b, turn, x, y = (found[name].to_numpy() for name in ("a", "b", "turn", "x", "y"))
    numbers, places = np.unique(np.concatenate([a, b]), return_inverse=True)
    tiles = staged(work).greys(numbers, np.dtype(pixels.dtype), pixels.bands)
    shares, alike = np.zeros(len(a), np.float32), np.zeros(len(a), np.float32)
    for row in range(len(a)):
        one, two = tiles[places[row]], tiles[places[len(a) + row]]
        shares[row], alike[row] = overlap(one, two, int(turn[row]), (int(x[row]), int(y[row])))
    good = (shares >= MIN_SHARE) & (alike >= MIN_CORRELATION)
    back = np.array([inverse(k) for k in range(8)])[turn]  # `turn` turns b into a
    edges = edge_table(a, b, "crop", orientation=back, correlation=alike, share=shares).filter(pa.array(good))
    edges = edges.sort_by([("a", "ascending"), ("b", "ascending"), ("share", "descending")])
    write_table(folder / f"edges-{low:012d}.parquet", edges.cast(EDGES))
