"""Tiles without a place on Earth that overlap in part: matched by the block hashes that they share."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from geomim.corpus.duplicates.blocks import MIN_CORRELATION, RADIUS, Blocks, crop_pairs, overlap
from geomim.corpus.duplicates.fingerprint import inverse, orientations
from geomim.corpus.duplicates.hamming import Band, choose_bands, search_band
from geomim.corpus.pipeline.edges import EDGES, edge_table
from geomim.corpus.pipeline.executor import Workers
from geomim.corpus.pipeline.near import QUERIES, index_all, load_index
from geomim.corpus.pipeline.pixels import Pixels
from geomim.corpus.pipeline.shuffle import stage_folder
from geomim.corpus.pipeline.staged import staged
from geomim.corpus.pipeline.staging import BLOCKS
from geomim.corpus.store import write_table

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
    folder = stage_folder(done)
    write_table(folder / "copies.parquet", copies)
    (unique,) = workers.run("sorting block hashes", _sort, [(work, folder)])
    bands, inline = choose_bands(unique, RADIUS), unique < QUERIES
    index_all(folder, bands, workers, inline)
    alone = [(folder, bands, low, min(low + QUERIES, unique)) for low in range(0, unique, QUERIES)]
    workers.run("searching blocks", _accompanied, alone, inline)
    (count,) = workers.run("matching crops", _match, [(work, folder)])
    slices = [(work, folder, pixels, low) for low in range(0, count, _PAIRS)]
    workers.run("comparing crops", _compare, slices, inline=count < _PAIRS)
    os.replace(folder, done)
    return done


def _blocks(work: Path, folder: Path, columns: list[str]) -> pa.Table:
    """Blocks of all tiles but exact copies."""
    copies = pq.read_table(folder / "copies.parquet", columns=["id"])["id"]
    files = [task / "blocks.parquet" for task in staged(work).folders]
    tables = [BLOCKS.empty_table().select(columns)]
    for file in files:
        table = pq.read_table(file)
        tables.append(table.filter(pc.invert(pc.is_in(table["id"], copies))).select(columns))
    return pa.concat_tables(tables)


def _sort(work: Path, folder: Path) -> int:
    """Distinct hashes of all blocks, in a file; how many."""
    hashes, counts = np.unique(_blocks(work, folder, ["hash"])["hash"].to_numpy(), return_counts=True)
    np.save(folder / "hashes.npy", hashes)
    np.save(folder / "repeated.npy", counts > 1)
    return len(hashes)


def _accompanied(folder: Path, bands: tuple[Band, ...], low: int, high: int) -> None:
    """Which hashes of a slice any other block comes near, in any orientation: the others match nothing."""
    found = np.load(folder / "repeated.npy", mmap_mode="r")[low:high].copy()
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
    blocks = _blocks(work, folder, BLOCKS.names)
    place = np.minimum(np.searchsorted(wanted, blocks["hash"].to_numpy()), max(len(wanted) - 1, 0))
    blocks = blocks.filter(pa.array(wanted[place] == blocks["hash"].to_numpy())) if len(wanted) else blocks.slice(0, 0)
    number, size = blocks["id"].to_numpy(), blocks["size"].to_numpy()
    xy = np.stack([blocks["x"].to_numpy(), blocks["y"].to_numpy()], 1)
    found = crop_pairs(Blocks(number, blocks["hash"].to_numpy(), xy, np.stack([size, size], 1)))
    columns = {"a": found.one, "b": found.two, "turn": found.orientation, "x": found.offset[:, 0]}
    write_table(folder / "candidates.parquet", pa.table(columns | {"y": found.offset[:, 1]}))
    return len(found.one)


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
