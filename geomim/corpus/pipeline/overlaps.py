"""Tiles of one acquisition that lie on the same ground, though they were delivered in different files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from geomim.corpus.duplicates.geometry import overlapping
from geomim.corpus.pipeline.edges import edge_table
from geomim.corpus.pipeline.executor import Workers
from geomim.corpus.pipeline.shuffle import gather, parts, scatter, stage_folder
from geomim.corpus.pipeline.staged import staged
from geomim.corpus.store import write_table

MIN_SHARE = 0.1
"""Share of the smaller footprint from which an overlap is written down; which ones count is decided later."""

_KEYS = pa.schema(
    [("id", pa.int64()), ("source", pa.string()), ("acquisition", pa.string()), ("geometry", pa.binary())]
)


def find_overlaps(work: Path, tiles: int, workers: Workers) -> Path:
    """Find overlapping footprints among tiles of the same sensor and time that come from different files.

    The same place at another time is no duplicate. Tiles of one file overlap only where a stride asks them to.

    Args:
        work: Folder of the build.
        tiles: How many there are.
        workers: Runs it.

    Returns:
        Folder with Parquet files of `EDGES`.
    """
    done = work / "overlaps"
    if done.exists():
        return done
    folder, count, inline = stage_folder(done), parts(tiles), tiles < 20_000
    workers.run("sorting footprints", _scatter, [(task, folder, count) for task in staged(work).folders], inline)
    workers.run("overlapping footprints", _overlaps, [(folder, part) for part in range(count)], inline)
    os.replace(folder, done)
    return done


def _scatter(task: Path, folder: Path, count: int) -> None:
    columns = ["id", "source", "sensor", "time", "geometry"]
    table = pq.read_table(task / "tiles.parquet", columns=columns)
    table = table.filter(pc.and_(pc.is_valid(table["time"]), pc.is_valid(table["geometry"])))
    both = zip(table["sensor"].to_pylist(), table["time"].to_pylist(), strict=True)
    acquisition = [f"{sensor} {time}" for sensor, time in both]
    key = np.array([xxhash.xxh3_64_intdigest(one.encode()) % count for one in acquisition], np.int64)
    table = table.select(["id", "source", "geometry"]).append_column("acquisition", pa.array(acquisition, pa.string()))
    scatter(folder / "keys", task.name, table.select(_KEYS.names), key, count)


def _overlaps(folder: Path, part: int) -> None:
    table = gather(folder / "keys", part, _KEYS).sort_by("id")
    group = pc.dictionary_encode(table["acquisition"]).combine_chunks().indices.to_numpy()
    source = pc.dictionary_encode(table["source"]).combine_chunks().indices.to_numpy()
    pairs, shares = overlapping(table["geometry"].to_pylist(), group, source, MIN_SHARE)
    ids = table["id"].to_numpy()
    edges = edge_table(ids[pairs[:, 0]], ids[pairs[:, 1]], "footprint", share=shares)
    write_table(folder / f"edges-{part:05d}.parquet", edges)
