"""Raw files of a task: what belongs to its tiles, one behind the other, images in files that are shards already.

Images go to a file for each `whole_shard` of them. One that came out full gets the index of a shard behind its tiles,
so that the corpus takes it over without copying a byte (`pixels.write_pixels`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from geomim.corpus.shards import full_index, whole_shard


def image_at(folder: Path, size: int, place: int, record: int) -> tuple[Path, int]:
    """File of a task that holds an image of so many bytes, and its place there."""
    number, there = divmod(place, whole_shard(record))
    return image_file(folder, size, number), there


def image_file(folder: Path, size: int, number: int) -> Path:
    """File of a task that holds the images of one size whose `place // whole_shard` is `number`."""
    return folder / f"image-{size}-{number:05d}.raw"


class RawFile:
    """Equal pieces of bytes on their way to disk, one for each tile; `close` it.

    Args:
        file: Receives all of them.
        record: Bytes of a piece.
        count: Pieces that are there already; what lies behind goes.
    """

    def __init__(self, file: Path, record: int, count: int = 0) -> None:
        self._file: BinaryIO = open(file, "r+b" if count else "wb")
        self._record = record
        self.truncate(count)

    def append(self, values: np.ndarray) -> None:
        """Add those of some tiles, `(n, ...)`, as little-endian bytes."""
        self._file.write(little_endian(values).data)

    def truncate(self, count: int) -> None:
        """Forget all but the first `count`."""
        self._file.seek(count * self._record)
        self._file.truncate()

    def close(self) -> None:
        """Write what waits."""
        self._file.close()


class ImageFiles:
    """Images of one size, of `record` bytes, on their way to disk; `close` them.

    They go to files of a shard each, of which one is open.
    """

    def __init__(self, folder: Path, size: int, record: int) -> None:
        self._folder, self._size, self._record = folder, size, record
        self._per_file = whole_shard(record)
        self._count = 0
        self._file: RawFile | None = None

    def append(self, values: np.ndarray) -> None:
        """Add images `(n, C, size, size)`, as little-endian bytes."""
        while len(values):
            number, place = divmod(self._count, self._per_file)
            self._file = self._file or RawFile(self._name(number), self._record, place)
            some = values[: self._per_file - place]
            self._file.append(some)
            self._count += len(some)
            values = values[len(some) :]
            if self._count % self._per_file == 0:
                self._file.append(np.frombuffer(full_index(self._per_file, self._record), np.uint8))
                self.close()
                for one in range(max(number - 1, 0), number + 1):  # this is on its way then, the one before has arrived
                    _let_go(self._name(one))

    def truncate(self, count: int) -> None:
        """Forget all but the first `count`."""
        self.close()
        for number in range(-(-count // self._per_file), -(-self._count // self._per_file)):
            self._name(number).unlink()
        if count % self._per_file:
            RawFile(self._name(count // self._per_file), self._record, count % self._per_file).close()
        self._count = count

    def close(self) -> None:
        """Write what waits."""
        if self._file is not None:
            self._file.close()
        self._file = None

    def _name(self, number: int) -> Path:
        return image_file(self._folder, self._size, number)


def _let_go(path: Path) -> None:
    """Let the system write what it holds of a file, and forget what is written.

    A corpus larger than memory would push all else out of it; and pages that are used again are at hand at once.
    """
    if hasattr(os, "posix_fadvise"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def little_endian(values: np.ndarray) -> np.ndarray:
    """The same numbers as they are stored."""
    return np.ascontiguousarray(values, values.dtype.newbyteorder("<"))


def read_raw(file: Path, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Map a raw file of a finished task.

    Args:
        file: `valid-<size>.raw` (packed bits), `mask-<size>.raw` (uint8), `signature.raw` (float16), or an
            `image_file`.
        dtype: Type of its numbers.
        shape: Of one tile.

    Returns:
        `(n, *shape)`, read-only.
    """
    record = int(np.prod(shape)) * np.dtype(dtype).itemsize
    count = file.stat().st_size // record if file.exists() else 0
    if file.name.startswith("image"):
        count = min(count, whole_shard(record))  # the index of a shard lies behind
    if not count:
        return np.empty((0, *shape), dtype)
    return np.memmap(file, np.dtype(dtype).newbyteorder("<"), "r", shape=(count, *shape))
