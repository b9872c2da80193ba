"""Rows to partitions by a key, through Parquet files: what one stage writes by key, the next reads by partition.

The files are the shuffle. No engine moves rows, so a pool, a cluster and a restarted build do the same.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 2_000_000
"""Aimed rows of a partition: they and what is made of them fit into a small worker."""


def parts(rows: int) -> int:
    """How many partitions a shuffle of so many rows has."""
    return max(1, -(-rows // ROWS))


def scatter(folder: Path, task: str, table: pa.Table, key: np.ndarray, count: int) -> None:
    """Write the rows of one task into its files, one a partition.

    Args:
        folder: Of the shuffle.
        task: Name of the task; written again, it replaces its own files.
        table: Rows.
        key: `(n,)` the partition of each row, `0 <= key < count`.
        count: Partitions.
    """
    order = np.argsort(key, kind="stable")
    bounds = np.searchsorted(key[order], np.arange(count + 1))
    for part in range(count):
        if bounds[part] < bounds[part + 1]:
            target = folder / f"part-{part:05d}"
            target.mkdir(parents=True, exist_ok=True)
            file = target / f"{task}.parquet"
            pq.write_table(table.take(order[bounds[part] : bounds[part + 1]]), file.with_suffix(".part"))
            os.replace(file.with_suffix(".part"), file)


def gather(folder: Path, part: int, schema: pa.Schema) -> pa.Table:
    """All rows of one partition, in the order of the tasks' names."""
    return read_tables(sorted((folder / f"part-{part:05d}").glob("*.parquet")), schema)


def save(path: Path, array: np.ndarray) -> None:
    """`np.save`, but a full disk is an error that says so."""
    save_parts(path, array.dtype, len(array), [array])


def save_parts(path: Path, dtype: np.dtype, count: int, parts: Iterable[np.ndarray]) -> None:
    """The same for arrays `(n,)` one behind the other, `count` numbers together, of which one is held at a time."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count,)}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype).view(np.uint8).data)


def discard(folder: Path, aside: Path) -> None:
    """Remove a folder such that a kill leaves nothing under its name; `aside`, on the same disk, means nothing."""
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(folder, aside)
    shutil.rmtree(aside)


def stage_folder(folder: Path) -> Path:
    """An empty folder for a stage that has to start again; a finished stage is renamed to `folder`."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    return part


def read_tables(files: Sequence[Path], schema: pa.Schema) -> pa.Table:
    """Parquet files one below the other."""
    return pa.concat_tables([schema.empty_table(), *(pq.read_table(file).cast(schema) for file in files)])
