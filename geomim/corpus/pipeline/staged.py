"""Finished tasks, and random access to what they staged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from geomim.corpus.duplicates.fingerprint import GRID
from geomim.corpus.pipeline.plan import Task
from geomim.corpus.pipeline.raw import image_at, read_raw
from geomim.corpus.pipeline.staging import grey
from geomim.corpus.reader import TileArray
from geomim.corpus.store import write_table

_SIGNATURE = (GRID * GRID,)  # shape of one


class Staged:
    """All finished tasks of a build.

    Args:
        work: Folder of the build's unfinished state; holds `tasks/` and `tasks.parquet`.

    Attributes:
        folders: Of the tasks, in the order of their tiles' ids.
        first: `(t,)` int64, the first id of each.
    """

    def __init__(self, work: Path) -> None:
        table = pq.read_table(work / "tasks.parquet")
        self.folders = [work / "tasks" / name for name in table["name"].to_pylist()]
        self.first: np.ndarray = table["first_id"].to_numpy()
        self._ids = lru_cache(maxsize=64)(self._read_ids)
        self._raw = lru_cache(maxsize=256)(read_raw)
        self._array = lru_cache(lambda size, name: TileArray(work.parent / "tiles.zarr" / str(size) / name))

    @staticmethod
    def write(work: Path, tasks: Sequence[Task]) -> None:
        """Say which tasks there are."""
        names, first = [task.name for task in tasks], [task.first_id for task in tasks]
        write_table(work / "tasks.parquet", pa.table({"name": names, "first_id": pa.array(first, pa.int64())}))

    def _read_ids(self, task: int) -> np.ndarray:
        return pq.read_table(self.folders[task] / "tiles.parquet", columns=["id"])["id"].to_numpy()

    def _by_task(self, ids: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Each task that holds some of the tiles, which of them, and their rows in it."""
        task = np.searchsorted(self.first, ids, side="right") - 1
        order = np.argsort(task, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(task[order])) + 1):
            if len(group):
                number = int(task[group[0]])
                yield number, group, np.searchsorted(self._ids(number), ids[group])

    def signatures(self, ids: np.ndarray) -> np.ndarray:
        """Block means of tiles, `(n, 1024)` float16."""
        result = np.empty((len(ids), *_SIGNATURE), np.float16)
        for number, group, rows in self._by_task(ids):
            result[group] = self._raw(self.folders[number] / "signature.raw", np.float16, _SIGNATURE)[rows]
        return result

    def greys(self, ids: np.ndarray, dtype: np.dtype, bands: int) -> list[np.ndarray]:
        """Mean of the bands of each tile, `(H, W)` float32, NaN where invalid; tiles may be of several sizes."""
        result: list[np.ndarray] = [np.empty(0)] * len(ids)
        for number, group, rows in self._by_task(ids):
            folder = self.folders[number]
            stored = "slot" in pq.read_schema(folder / "tiles.parquet").names
            columns = ["size", "pixels", "slot" if stored else "place"]
            tiles = pq.read_table(folder / "tiles.parquet", columns=columns).take(rows).to_pylist()
            for slot, tile in zip(group.tolist(), tiles, strict=True):
                size, full = tile["size"], tile["pixels"] == tile["size"] ** 2
                if stored:
                    image, valid = self._stored(size, tile["slot"], full)
                else:
                    image, valid = self._raws(folder, tile["place"], (bands, size, size), dtype, full)
                result[slot] = grey(image)
                if valid is not None:
                    result[slot][~valid] = np.nan
        return result

    def _raws(
        self, folder: Path, place: int, shape: tuple[int, ...], dtype: np.dtype, full: bool
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Pixels that a task staged, and which are measurements where not all are."""
        size = shape[-1]
        file, there = image_at(folder, size, place, int(np.prod(shape)) * dtype.itemsize)
        image = self._raw(file, dtype, shape)[there]
        if full:
            return image, None
        bits = self._raw(folder / f"valid-{size}.raw", np.dtype(np.uint8), (-(-(size**2) // 8),))[place]
        return image, np.unpackbits(bits, count=size**2).reshape(size, size).astype(bool)

    def _stored(self, size: int, slot: int, full: bool) -> tuple[np.ndarray, np.ndarray | None]:
        """The same of a task whose tiles lie in the corpus's arrays already."""
        image, valid = self._array(size, "image"), None if full else self._array(size, "valid")
        return image.read([slot])[0], None if valid is None else valid.read([slot])[0]


def staged(work: Path) -> Staged:
    """`Staged`, opened once a process and again when the tasks changed: workers of a cluster outlive a build."""
    return _opened(work, (work / "tasks.parquet").stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _opened(work: Path, changed: int) -> Staged:
    return Staged(work)
