"""Reads arrays of tiles: from a disk straight into the batch, from remote stores by ranges of bytes.

The layout of `geomim.corpus.shards` is read here, plain or compressed; every other one goes to zarr-python. Tiles are
read at their offsets rather than through memory maps: that costs no page faults, and a shard that was cut off is an
error, not a crash.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from io import FileIO
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np

from geomim.corpus.compression import CODECS, zarr_python
from geomim.corpus.remote import Url, place
from geomim.corpus.shards import COMPLETE, MISSING, ArrayLayout, find_layout, read_meta
from geomim.errors import CorpusError

_OPEN_SHARDS = 256  # each holds a file descriptor, and 1024 are usual
_LARGE = 4 * 2**20  # bytes of a batch that are worth more than one thread
_NOWHERE = int(MISSING)
_AGAIN = "copy it again or build the corpus again"


@lru_cache(maxsize=1)
def _threads() -> int:
    """How many threads share a large batch: copying and decoding let go of Python's lock."""
    return min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads of this process; those of a parent are not there after a fork."""
    return ThreadPoolExecutor(_threads())


class _Shard(NamedTuple):
    """An open shard: its file where it is one on this disk, and `(per_shard, 2)` offset and bytes of each tile."""

    file: FileIO | None
    spans: np.ndarray


class TileArray:
    """Random access to the tiles of one array `(N, *tile)`; picklable, safe to use after a fork.

    Args:
        path: Folder or address of a zarr v3 array whose first axis counts tiles.

    Attributes:
        shape: `(N, *tile)`.
        dtype: Native dtype.
        layout: How it lies in its shards; None where only zarr-python reads it.

    Raises:
        CorpusError: The folder holds no zarr v3 array.
    """

    def __init__(self, path: str | Path | Url) -> None:
        self.path = place(path)
        meta = read_meta(self.path)
        self.shape = tuple(meta["shape"])
        self.dtype: np.dtype[Any] = np.dtype(meta["data_type"])
        self.layout = find_layout(meta)
        self._complete = bool(meta.get("attributes", {}).get(COMPLETE))
        self._forget()

    def _forget(self) -> None:
        self._shards: dict[int, _Shard] = {}
        self._zarr: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {key: self.__dict__[key] for key in ("path", "shape", "dtype", "layout", "_complete")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def __len__(self) -> int:
        return int(self.shape[0])

    def read(self, slots: Sequence[int] | np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Copy tiles into one array.

        Args:
            slots: `(B,)` places on the first axis, any order, repeats allowed.
            out: C-contiguous `(B, *tile)` array of the native dtype to fill; a new one where None.

        Returns:
            `(B, *tile)`.

        Raises:
            IndexError: A slot is negative or beyond the array.
            CorpusError: A shard is damaged or lost.
        """
        slots = np.asarray(slots, np.int64)
        if len(slots) and not (0 <= slots.min() and slots.max() < len(self)):
            raise IndexError(f"slots must lie in 0..{len(self) - 1}, given {slots.min()}..{slots.max()}")
        if out is None:
            out = np.empty((len(slots), *self.shape[1:]), self.dtype)
        layout = self.layout
        if layout is None:
            return self._read_zarr(slots, out)
        numbers, places = np.divmod(slots, layout.per_shard)
        if isinstance(self.path, Url):
            return self._read_remote(self.path, layout, numbers, places, out)
        threads = _threads() if out.nbytes >= _LARGE else 1
        bounds = [len(slots) * part // threads for part in range(threads + 1)]
        calls = [(numbers[low:high], places[low:high], out[low:high]) for low, high in pairwise(bounds)]
        if threads == 1:
            self._read_here(layout, *calls[0])
        else:
            list(_pool(os.getpid()).map(lambda call: self._read_here(layout, *call), calls))
        return out

    def _read_here(self, layout: ArrayLayout, numbers: np.ndarray, places: np.ndarray, out: np.ndarray) -> None:
        for row, (number, at) in enumerate(zip(numbers.tolist(), places.tolist(), strict=True)):
            file, spans = self._shard(layout, number)
            start, length = spans[at].tolist()
            if file is None or start == _NOWHERE:
                out[row] = layout.fill
            elif layout.compression:
                self._decode(_fill(file, bytearray(length), start), out[row], layout, number)
            else:
                _fill(file, out[row], start)

    def _read_zarr(self, slots: np.ndarray, out: np.ndarray) -> np.ndarray:
        if self._zarr is None:
            self._zarr = zarr_python().open_array(str(self.path), mode="r")  # an address as well, through fsspec
        try:
            for row, slot in enumerate(slots.tolist()):  # tile by tile: fancy indexing over shards is 20 times slower
                out[row] = self._zarr[slot]
        except (ValueError, RuntimeError, OSError, EOFError) as error:  # each codec has its own
            raise CorpusError(f"a shard of '{self.path}' is damaged ({error}): {_AGAIN}") from error
        return out

    def _decode(self, raw: Any, out: np.ndarray, layout: ArrayLayout, number: int) -> None:
        try:
            if layout.compression:
                CODECS[layout.compression].decode(raw, out)
            else:
                out[...] = np.frombuffer(raw, self.dtype).reshape(out.shape)
        except (ValueError, RuntimeError) as error:
            raise CorpusError(f"shard '{self.path}/{layout.file(number)}' is damaged ({error}): {_AGAIN}") from error

    def _shard(self, layout: ArrayLayout, number: int) -> _Shard:
        shard = self._shards.get(number)
        if shard is None:
            shard = self._shards[number] = self._open(layout, number)
            if len(self._shards) > _OPEN_SHARDS:
                self._shards.pop(next(iter(self._shards)))  # the one opened first
        return shard

    def _open(self, layout: ArrayLayout, number: int) -> _Shard:
        path = Path(str(self.path)) / layout.file(number)
        try:
            file = FileIO(path)
        except FileNotFoundError:
            return self._lost(layout, number)
        size, length = os.fstat(file.fileno()).st_size, _index_bytes(layout)
        index = _index(path, bytes(_fill(file, bytearray(length), size - length)) if size >= length else b"", layout)
        stored = index[index[:, 0] != MISSING]
        if len(stored) and int(stored.sum(1).max()) > size - length:
            raise CorpusError(f"shard '{path}' points outside itself: {_AGAIN}")
        return _Shard(file, index)

    def _lost(self, layout: ArrayLayout, number: int) -> _Shard:
        if self._complete:
            raise CorpusError(f"shard '{self.path}/{layout.file(number)}' is missing: {_AGAIN}")
        return _Shard(None, np.full((layout.per_shard, 2), MISSING))

    def _read_remote(
        self, url: Url, layout: ArrayLayout, numbers: np.ndarray, places: np.ndarray, out: np.ndarray
    ) -> np.ndarray:
        """Ask for all tiles at once; an index is fetched once a shard."""
        for number in np.unique(numbers).tolist():
            if number not in self._shards:
                self._shards[number] = self._remote_index(url, layout, number)
        spans = [self._shards[number].spans[at] for number, at in zip(numbers.tolist(), places.tolist(), strict=True)]
        rows = [row for row, span in enumerate(spans) if span[0] != MISSING]
        names = [layout.file(int(numbers[row])) for row in rows]
        starts = [int(spans[row][0]) for row in rows]
        parts = url.ranges(names, starts, [int(spans[row].sum()) for row in rows]) if rows else []
        out[...] = layout.fill
        for row, part in zip(rows, parts, strict=True):
            self._decode(part, out[row], layout, int(numbers[row]))
        return out

    def _remote_index(self, url: Url, layout: ArrayLayout, number: int) -> _Shard:
        name = layout.file(number)
        try:
            (raw,) = url.ranges([name], [-_index_bytes(layout)], [0])
        except FileNotFoundError:
            return self._lost(layout, number)
        return _Shard(None, _index(url / name, raw, layout))


def _fill(file: FileIO, buffer: Any, start: int) -> Any:
    """Read into all of a buffer from an offset, whoever else reads the file at the same time."""
    size = memoryview(buffer).nbytes
    try:
        if hasattr(os, "preadv"):
            done = os.preadv(file.fileno(), [buffer], start)
        else:  # macOS, Windows: one reader at a time
            file.seek(start)
            done = file.readinto(buffer)
    except OSError as error:  # a bad sector, a network drive that is gone
        raise CorpusError(f"shard '{file.name}' cannot be read ({error}): {_AGAIN}") from error
    if done != size:
        raise CorpusError(f"shard '{file.name}' was cut off while it was open: {_AGAIN}")
    return buffer


def _index_bytes(layout: ArrayLayout) -> int:
    return layout.per_shard * 16 + 4


def _index(path: Path | Url, raw: bytes, layout: ArrayLayout) -> np.ndarray:
    """Offset and number of bytes of each tile of a shard, `(per_shard, 2)` uint64."""
    if len(raw) < _index_bytes(layout):
        raise CorpusError(f"shard '{path}' is cut off: {_AGAIN}")
    if google_crc32c.value(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
        raise CorpusError(f"shard '{path}' is damaged (the checksum of its index differs): {_AGAIN}")
    index = np.frombuffer(raw[:-4], "<u8").reshape(-1, 2)
    stored = index[index[:, 0] != MISSING]
    if not layout.compression and (stored[:, 1] != layout.tile_bytes).any():
        raise CorpusError(f"shard '{path}' points outside itself: {_AGAIN}")
    return index
