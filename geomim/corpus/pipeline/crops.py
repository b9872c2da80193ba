"""Tiles without a place on Earth that overlap in part: matched by the block hashes that they share."""

from __future__ import annotations

import errno
from concurrent.futures import BrokenExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from geomim.corpus.duplicates.blocks import MIN_CORRELATION, MIN_SINGLE_CORRELATION, overlap
from geomim.corpus.duplicates.fingerprint import inverse
from geomim.corpus.pipeline.candidates import propose
from geomim.corpus.pipeline.edges import EDGES, edge_table
from geomim.corpus.pipeline.executor import Workers
from geomim.corpus.pipeline.overlaps import MIN_SHARE
from geomim.corpus.pipeline.pixels import Pixels
from geomim.corpus.pipeline.shuffle import save
from geomim.corpus.pipeline.staged import staged
from geomim.corpus.store import write_table
from geomim.errors import CorpusError

SINGLE = 1.0
"""Pairs a tile that are compared although a single match tells of them. They are by chance, and grow faster than the
tiles: 0.6 a tile in RSICD, of which 10 more overlaps come than the 27 that two matches tell of, all true by eye. Where
there are more, comparing them would cost more than the build, and only pairs that two matches tell of are compared."""
_PAIRS = 2000  # of a task
_HELD = 64  # of them whose tiles are held: half a gigabyte at 1024 pixels


def find_crops(folder: Path, aside: pa.Table, pixels: Pixels, workers: Workers) -> None:
    """Find pairs of tiles that share a part, at any offset and in any of eight orientations.

    Args:
        folder: Empty, in the folder of unfinished work; receives Parquet files of `EDGES`.
        aside: Tiles that are not compared (column `id`).
        pixels: What all tiles share.
        workers: Runs it.

    Raises:
        CorpusError: Memory or disk do not suffice.
    """
    try:
        _find(folder, aside, pixels, workers)
    except (MemoryError, BrokenExecutor, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.ENOSPC:
            raise
        lacking = "disk" if isinstance(error, OSError) else "memory"
        raise CorpusError(
            f"looking for crops needs more {lacking} than there is: go on with fewer --workers, or with --crops false; "
            "nothing is cut again"
        ) from error


def _find(folder: Path, aside: pa.Table, pixels: Pixels, workers: Workers) -> None:
    tasks = staged(folder.parent).folders
    write_table(folder / "copies.parquet", aside)
    sources = pq.read_table(folder.parent / "sources.parquet", columns=["tiles"])["tiles"].to_numpy()
    save(folder / "sources.npy", np.cumsum(sources))
    rows = [pq.read_metadata(task / "blocks.parquet").num_rows for task in tasks]
    counts = propose(folder, tasks, rows, workers)
    found, several = (sum(column) for column in zip(*counts, strict=True))
    which = 0 if found - several <= SINGLE * sources.sum() else 1
    ends = [(part, some[which]) for part, some in enumerate(counts)]
    slices = [(folder, pixels, part, low, end) for part, end in ends for low in range(0, end, _PAIRS)]
    workers.run("comparing crops", _compare, slices, inline=(found, several)[which] < _PAIRS)


def _compare(folder: Path, pixels: Pixels, part: int, low: int, end: int) -> None:
    found = pq.read_table(folder / f"candidates-{part:05d}.parquet").slice(low, min(_PAIRS, end - low))
    a, b, turn, x, y = (found[name].to_numpy() for name in ("a", "b", "turn", "x", "y"))
    shares, alike = np.zeros(len(a), np.float32), np.zeros(len(a), np.float32)
    for start in range(0, len(a), _HELD):
        rows = range(start, min(start + _HELD, len(a)))
        numbers, places = np.unique(np.concatenate([a[rows], b[rows]]), return_inverse=True)
        tiles = staged(folder.parent).greys(numbers, np.dtype(pixels.dtype), pixels.bands)
        for row, one, two in zip(rows, places[: len(rows)], places[len(rows) :], strict=True):
            shares[row], alike[row] = overlap(tiles[one], tiles[two], int(turn[row]), (int(x[row]), int(y[row])))
    least = np.where(found["votes"].to_numpy() > 1, MIN_CORRELATION, MIN_SINGLE_CORRELATION)
    good = (shares >= MIN_SHARE) & (alike >= least)
    back = np.array([inverse(k) for k in range(8)])[turn]  # `turn` turns b into a
    edges = edge_table(a, b, "crop", orientation=back, correlation=alike, share=shares).filter(pa.array(good))
    edges = edges.sort_by([("a", "ascending"), ("b", "ascending"), ("share", "descending")])
    write_table(folder / f"edges-{part:05d}-{low:012d}.parquet", edges.cast(EDGES))
