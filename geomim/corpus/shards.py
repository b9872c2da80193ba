"""Zarr v3 shards of tiles: written straight, and read through memory maps at the speed of a copy.

Any zarr library reads what is written here; the reader here takes only the one layout that needs no decoding
(a chunk a tile, uncompressed, index at the end of the shard) and hands every other layout to zarr-python.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import google_crc32c  # what zarr-python itself checks shard indices with
import numpy as np
import zarr

from geomim.errors import CorpusError

SHARD_BYTES = 64 * 2**20
"""Aimed size of a shard file; large enough for object stores, small enough to copy again."""
_MISSING = np.uint64(2**64 - 1)  # offset and size of a chunk that is not stored, as the zarr v3 specification says
_OPEN_SHARDS = 256  # each memory map holds a file descriptor, and 1024 are usual


class TileArray:
    """Random access to the tiles of one array `(N, *tile)`; picklable, safe to use after a fork.

    Args:
        path: Folder of a zarr v3 array whose first axis counts tiles.

    Attributes:
        shape: `(N, *tile)`.
        dtype: Native dtype.

    Raises:
        CorpusError: The folder holds no zarr v3 array.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            meta = json.loads((self.path / "zarr.json").read_text())
            self.shape = tuple(meta["shape"])
            self.dtype = np.dtype(meta["data_type"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorpusError(f"'{self.path}' is no zarr v3 array ({error}): build the corpus again") from error
        self._fill = meta.get("fill_value", 0)
        self._per_shard = _plain_shards(meta, self.dtype)
        self._forget()

    def _forget(self) -> None:
        self._views: OrderedDict[int, np.ndarray | list[np.ndarray]] = OrderedDict()
        self._verified: set[int] = set()
        self._zarr: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {key: self.__dict__[key] for key in ("path", "shape", "dtype", "_fill", "_per_shard")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def __len__(self) -> int:
        return int(self.shape[0])

    def read(self, slots: Sequence[int] | np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Copy tiles into one array.

        Args:
            slots: `(B,)` places on the first axis, any order, repeats allowed.
            out: `(B, *tile)` array of the native dtype to fill; a new one where None.

        Returns:
            `(B, *tile)`.

        Raises:
            IndexError: A slot is negative or beyond the array.
            CorpusError: A shard is damaged.
        """
        slots = np.asarray(slots, np.int64)
        if len(slots) and not (0 <= slots.min() and slots.max() < len(self)):
            raise IndexError(f"slots must lie in 0..{len(self) - 1}, given {slots.min()}..{slots.max()}")
        if out is None:
            out = np.empty((len(slots), *self.shape[1:]), self.dtype)
        if self._per_shard == 0:
            return self._read_zarr(slots, out)
        shards, inner = np.divmod(slots, self._per_shard)
        if len(slots) and (shards == shards[0]).all():
            view = self._view(int(shards[0]))
            if isinstance(view, np.ndarray):
                return np.take(view, inner, axis=0, out=out, mode="clip")  # "clip" skips a second buffer
        for row, (shard, place) in enumerate(zip(shards.tolist(), inner.tolist(), strict=True)):
            out[row] = self._view(shard)[place]
        return out

    def _read_zarr(self, slots: np.ndarray, out: np.ndarray) -> np.ndarray:
        if self._zarr is None:
            self._zarr = zarr.open_array(str(self.path), mode="r")
        for row, slot in enumerate(slots.tolist()):  # tile by tile: fancy indexing over shards is 20 times slower
            out[row] = self._zarr[slot]
        return out

    def _view(self, shard: int) -> np.ndarray | list[np.ndarray]:
        """Tiles of a shard: one array where they lie in order without gaps, else a list."""
        view = self._views.get(shard)
        if view is None:
            view = self._map(shard)
            self._views[shard] = view
            if len(self._views) > _OPEN_SHARDS:
                self._views.popitem(last=False)
        return view

    def _map(self, shard: int) -> np.ndarray | list[np.ndarray]:
        tile = self.shape[1:]
        empty = np.full(tile, self._fill, self.dtype)
        path = self.path.joinpath("c", str(shard), *("0" for _ in tile))
        if not path.exists():
            return np.broadcast_to(empty, (self._per_shard, *tile))
        bytes_ = np.memmap(path, np.uint8, mode="r")
        index = self._index(path, bytes_, shard)
        count, size = min(self._per_shard, len(self) - shard * self._per_shard), empty.nbytes
        offsets, sizes = index[:count, 0], index[:count, 1]
        if (offsets == np.arange(count, dtype=np.uint64) * np.uint64(size)).all():
            return bytes_[: count * size].view(self.dtype).reshape(count, *tile)
        return [
            empty if length == _MISSING else bytes_[offset : offset + size].view(self.dtype).reshape(tile)
            for offset, length in zip(offsets.tolist(), sizes, strict=True)
        ]

    def _index(self, path: Path, bytes_: np.ndarray, shard: int) -> np.ndarray:
        length = self._per_shard * 16
        if len(bytes_) < length + 4:
            raise CorpusError(f"shard '{path}' is cut off: copy it again or build the corpus again")
        raw = bytes_[-length - 4 : -4].tobytes()
        if shard not in self._verified:
            if google_crc32c.value(raw) != int.from_bytes(bytes_[-4:].tobytes(), "little"):
                raise CorpusError(
                    f"shard '{path}' is damaged (the checksum of its index differs): "
                    "copy it again or build the corpus again"
                )
            self._verified.add(shard)
        index = np.frombuffer(raw, "<u8").reshape(-1, 2)
        stored = index[index[:, 0] != _MISSING]
        size = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        if len(stored) and ((stored[:, 1] != size).any() or int(stored[:, 0].max()) + size > len(bytes_) - length - 4):
            raise CorpusError(f"shard '{path}' points outside itself: copy it again or build the corpus again")
        return index


def _plain_shards(meta: dict[str, Any], dtype: np.dtype) -> int:
    """Tiles per shard where the layout needs no decoding, else 0."""
    try:
        (codec,) = meta["codecs"]
        inner = codec["configuration"]
        shape, shard = meta["shape"], meta["chunk_grid"]["configuration"]["chunk_shape"]
        data, check = inner["codecs"], [c["name"] for c in inner["index_codecs"]]
        keys = meta["chunk_key_encoding"]
        plain = (
            codec["name"] == "sharding_indexed"
            and meta["chunk_grid"]["name"] == "regular"
            and keys["name"] == "default"
            and keys.get("configuration", {}).get("separator", "/") == "/"
            and [c["name"] for c in data] == ["bytes"]
            and (dtype.itemsize == 1 or data[0].get("configuration", {}).get("endian") == "little")
            and check == ["bytes", "crc32c"]
            and inner.get("index_location", "end") == "end"
            and inner["chunk_shape"] == [1, *shape[1:]]
            and shard[1:] == shape[1:]
        )
        return int(shard[0]) if plain else 0
    except (KeyError, TypeError, ValueError):
        return 0


class TileWriter:
    """Writes an array `(count, *tile)` tile after tile, one shard file at a time; a context manager.

    A shard is written aside and renamed when it is full. Leaving the context before `count` tiles were appended is
    an error.

    Args:
        path: Folder of the array; must not exist.
        shape: `(count, *tile)`.
        dtype: Stored as little-endian bytes.
        names: Dimension names, which xarray reads.
        fill: What a tile that was appended as missing reads as.
    """

    def __init__(self, path: str | Path, shape: Sequence[int], dtype: Any, names: Sequence[str], fill: Any = 0) -> None:
        self.path = Path(path)
        self.dtype = np.dtype(dtype)
        self.count, tile = int(shape[0]), tuple(shape[1:])
        self.size = int(np.prod(tile)) * self.dtype.itemsize
        self.per_shard = min(max(64, SHARD_BYTES // self.size), self.count)
        zarr.create_array(
            str(self.path),
            shape=(self.count, *tile),
            chunks=(1, *tile),
            shards=(self.per_shard, *tile),
            dtype=self.dtype,
            compressors=None,
            filters=None,
            fill_value=fill,
            dimension_names=list(names),
        )
        self._tail = tuple("0" for _ in tile)
        self._done = 0
        self._file: Any = None
        self._index = np.empty((0, 2), "<u8")

    def append(self, tiles: Iterable[np.ndarray], stored: np.ndarray | None = None) -> None:
        """Add tiles behind the last one.

        Args:
            tiles: `(n, *tile)`, or one after another.
            stored: `(n,)` bool, False for tiles that are all `fill` and need no bytes; all stored where None.
        """
        little = self.dtype.newbyteorder("<")
        for number, tile in enumerate(tiles):
            place = self._done % self.per_shard
            if self._file is None:
                self._begin()
            if stored is None or stored[number]:
                self._index[place] = self._file.tell(), self.size
                self._file.write(np.ascontiguousarray(tile, little).data)
            self._done += 1
            if place + 1 == self.per_shard or self._done == self.count:
                self._finish()

    def _begin(self) -> None:
        folder = self.path.joinpath("c", str(self._done // self.per_shard), *self._tail[:-1])
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(folder / (self._tail[-1] + ".part"), "wb")
        self._index = np.full((self.per_shard, 2), _MISSING, "<u8")

    def _finish(self) -> None:
        raw = self._index.tobytes()
        self._file.write(raw + google_crc32c.value(raw).to_bytes(4, "little"))
        self._file.close()
        os.replace(self._file.name, self._file.name.removesuffix(".part"))
        self._file = None

    def __enter__(self) -> TileWriter:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if self._file is not None:
            self._file.close()
        if kind is None and self._done != self.count:
            raise ValueError(f"'{self.path}': expected {self.count} tiles, given {self._done}")
