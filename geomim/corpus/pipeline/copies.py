"""Exact copies: tiles with the same content hash, validity and mask share the pixels of the first."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from geomim.corpus.pipeline.executor import Workers
from geomim.corpus.pipeline.shuffle import gather, parts, read_tables, scatter, stage_folder

_KEYS = pa.schema([("xxh3", pa.string()), ("beside", pa.string()), ("id", pa.int64())])
COPIES = pa.schema([("id", pa.int64()), ("original", pa.int64())])
"""A row a tile whose pixels another tile with a lower id has too, in id order."""


def find_copies(tasks: Sequence[Path], file: Path, tiles: int, workers: Workers) -> pa.Table:
    """Rows of `COPIES` of all exact copies in the folders of finished tasks; they go to `file`, or come from it."""
    if not file.exists():
        count = parts(tiles)
        folder = stage_folder(file.with_suffix(""))
        workers.run("hashing apart", _scatter, [(task, folder, count) for task in tasks], inline=tiles < 200_000)
        calls = [(folder, part) for part in range(count)]
        tables = workers.run("finding exact copies", _copies, calls, inline=tiles < 200_000)
        pq.write_table(pa.concat_tables(tables).sort_by("id"), folder / "copies.parquet")
        os.replace(folder / "copies.parquet", file)
    return read_tables([file], COPIES)


def left_out(tasks: Sequence[Path], copies: pa.Table, least: float) -> pa.Table:
    """Tiles that are not compared (column `id`): exact copies, whose original stands for them, and those too empty."""
    few = pc.field("valid_fraction") < least
    tables = [pq.read_table(task / "tiles.parquet", columns=["id"], filters=few) for task in tasks]
    ids = [copies["id"].to_numpy(), *(table["id"].to_numpy() for table in tables)]
    return pa.table({"id": np.concatenate(ids)})


def _scatter(task: Path, folder: Path, count: int) -> None:
    table = pq.read_table(task / "tiles.parquet", columns=_KEYS.names)
    key = np.array([int(text[:8], 16) % count for text in table["xxh3"].to_pylist()], np.int64)
    scatter(folder, task.name, table, key, count)


def _copies(folder: Path, part: int) -> pa.Table:
    table = gather(folder, part, _KEYS)
    first = table.group_by(["xxh3", "beside"]).aggregate([("id", "min")])
    both = table.join(first, ["xxh3", "beside"]).select(["id", "id_min"]).rename_columns(COPIES.names)
    return both.filter(pc.not_equal(both["id"], both["original"])).cast(COPIES).sort_by("id")
