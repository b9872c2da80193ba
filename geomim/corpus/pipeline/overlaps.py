"""Tiles of one acquisition that lie on the same ground, though they were delivered in different files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from geomim.corpus.duplicates.geometry import HOUR, overlapping, same_day
from geomim.corpus.pipeline.edges import edge_table
from geomim.corpus.pipeline.executor import Workers
from geomim.corpus.pipeline.shuffle import gather, parts, scatter
from geomim.corpus.pipeline.staged import staged
from geomim.corpus.store import write_table

MIN_SHARE = 0.1
"""Share of the smaller footprint from which an overlap is written down; which ones count is decided later."""

_KEYS = pa.schema(
    {"id": pa.int64(), "source": pa.string(), "acquisition": pa.string(), "geometry": pa.binary()}
    | {"time": pa.timestamp("us"), "late": pa.bool_()}
)
"""Tiles by sensor and day; `late` ones, of the day before, are there a second time, for those of after midnight."""


def find_overlaps(folder: Path, tiles: int, least: float, workers: Workers) -> None:
    """Find overlapping footprints among tiles of one acquisition (`same_day`) that come from different files.

    The same place on another day is no duplicate. Tiles of one file overlap only where a stride asks them to.

    Args:
        folder: Empty, in the folder of unfinished work; receives Parquet files of `EDGES`.
        tiles: How many there are.
        least: Share of valid pixels from which a tile is compared.
        workers: Runs it.
    """
    count, inline, tasks = parts(tiles), tiles < 20_000, staged(folder.parent).folders
    workers.run("sorting footprints", _scatter, [(task, folder, count, least) for task in tasks], inline)
    workers.run("overlapping footprints", _overlaps, [(folder, part) for part in range(count)], inline)


def _scatter(task: Path, folder: Path, count: int, least: float) -> None:
    table = pq.read_table(
        task / "tiles.parquet", columns=["id", "source", "sensor", "time", "geometry", "valid_fraction"]
    )
    there = pc.and_(pc.is_valid(table["time"]), pc.is_valid(table["geometry"]))
    table = table.filter(pc.and_(there, pc.greater_equal(table["valid_fraction"], least)))
    time = table["time"].to_numpy()
    days = np.stack([(time + shift).astype("datetime64[D]") for shift in (np.timedelta64(0), HOUR)])
    twice = np.flatnonzero(days[0] != days[1])
    rows, late = np.append(np.arange(len(time)), twice), np.repeat([False, True], [len(time), len(twice)])
    day = np.append(days[0], days[1][twice])
    acquisition = [f"{sensor} {on}" for sensor, on in zip(table["sensor"].take(rows).to_pylist(), day, strict=True)]
    key = np.array([xxhash.xxh3_64_intdigest(one.encode()) % count for one in acquisition], np.int64)
    columns = {name: table[name].take(rows) for name in ("id", "source", "time", "geometry")}
    columns |= {"acquisition": acquisition, "late": late}
    scatter(folder / "keys", task.name, pa.table(columns, _KEYS), key, count)


def _overlaps(folder: Path, part: int) -> None:
    table = gather(folder / "keys", part, _KEYS).sort_by([("id", "ascending"), ("late", "ascending")])
    group = pc.dictionary_encode(table["acquisition"]).combine_chunks().indices.to_numpy()
    source = pc.dictionary_encode(table["source"]).combine_chunks().indices.to_numpy()
    pairs, shares = overlapping(table["geometry"].to_pylist(), group, source, MIN_SHARE)
    late, time = table["late"].to_numpy(), table["time"].to_numpy()
    once = ~late[pairs].all(1) & same_day(time[pairs[:, 0]], time[pairs[:, 1]])  # two late ones met on their own day
    ids = np.sort(table["id"].to_numpy()[pairs[once]], axis=1)
    edges = edge_table(ids[:, 0], ids[:, 1], "footprint", share=shares[once])
    write_table(folder / f"edges-{part:05d}.parquet", edges)
