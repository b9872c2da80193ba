"""Finished rows of a map on disk, so that who stops at any moment goes on there and comes to the same bytes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO, TypeVar

import numpy as np
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile

from geomim.corpus.scenes.files import is_remote
from geomim.corpus.scenes.finding import source_files
from geomim.corpus.store import write_json
from geomim.errors import InputError, UnreadableError
from geomim.maps.files.rasters import open_map
from geomim.maps.walk.windows import ahead

_Found = TypeVar("_Found")


class Strips:
    """The folder `.NAME.work` beside a map: a card of what makes it, and a small raster for each finished strip.

    As a context manager it holds a lock. What is there of another card is thrown away with a note; what is finished
    stays when the work ends early, and is taken away by `remove`.

    Args:
        path: The map.
        card: Plain values that tell all that a map depends on; see `scene_card`.

    Attributes:
        done: Strips that are finished, from the first on.

    Raises:
        InputError: Another process makes the same map, or nothing can be written there.
    """

    def __init__(self, path: Path, card: Mapping[str, Any]) -> None:
        self.path, self.work = path, path.with_name(f".{path.name}.work")
        self.card, self.done = json.loads(json.dumps(card)), 0

    def __enter__(self) -> Strips:
        self._lock = hold(self.work, self.path)
        self._go_on()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.work.exists() and not self.done:
            self.remove()
        self._lock.close()

    def _go_on(self) -> None:
        """Count what is finished, or begin anew."""
        there = self._read_card()
        broken = isinstance(there, dict) and there.pop("broken", None)
        same = there == self.card
        mended = broken and _but_files(there) == _but_files(self.card)
        if mended and not same:
            print(f"note: '{self.card['scene']}' has changed since it could not be read: its rows before that are kept")
        elif not same:
            if there is not None:
                print(f"note: what was begun of '{self.path}' was of another scene, model or options: it begins anew")
            for file in self.work.glob("*.tif"):
                file.unlink()
        write_json(self.work / "card.json", self.card)
        while self._file(self.done).exists():
            self.done += 1

    def _read_card(self) -> Any:
        try:
            return json.loads((self.work / "card.json").read_text())
        except (OSError, ValueError):
            return None

    def _file(self, number: int) -> Path:
        return self.work / f"{number:06d}.tif"

    def fill(self, found: Iterable[_Found], strip_of: Callable[[_Found], np.ndarray]) -> None:
        """Keep the strips that come next; each is made and written while the next one is looked at.

        Args:
            found: What they are made of, in order.
            strip_of: Makes a strip `(K, rows, columns)`.

        Raises:
            UnreadableError: The scene could not be read further: its file may be another one when the work goes on.
        """
        failed = False

        def keep(one: _Found) -> None:
            nonlocal failed
            if not failed:  # else a strip would take the place of one that could not be kept
                failed = True
                self.add(strip_of(one))
                failed = False

        try:
            for _ in ahead(keep, found, 1):
                pass
        except UnreadableError:
            write_json(self.work / "card.json", self.card | {"broken": True})
            raise

    def add(self, values: np.ndarray) -> None:
        """Keep the next strip `(K, rows, columns)`: it is there in full, or not at all."""
        count, height, width = values.shape
        profile = {"driver": "GTiff", "dtype": values.dtype, "count": count, "height": height, "width": width}
        with MemoryFile() as memory:
            with open_map(memory, "w", compress="deflate", zlevel=1, **profile) as raster:
                raster.write(values)
            content = memory.read()
        part = self.work / "part"
        with part.open("wb") as file:  # not by GDAL, which keeps a full disk to itself
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self._file(self.done))
        self.done += 1

    def __iter__(self) -> Iterator[np.ndarray]:
        """All finished strips in order."""
        for number in range(self.done):
            with open_map(self._file(number)) as raster:
                yield raster.read()

    def remove(self) -> None:
        """Take the folder away, at once for another process that waits for its lock."""
        gone = self.work.with_name(f"{self.work.name}.{os.getpid()}")
        self.work.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


@contextmanager
def told_when_full(path: Path) -> Iterator[None]:
    """Say in a sentence that a file cannot be written as the disk is full.

    Raises:
        InputError: No space is left.
    """
    try:
        yield
    except (OSError, RasterioError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            raise InputError(f"no space is left for '{path}': free some, and the same command goes on") from error
        raise


def hold(work: Path, path: Path) -> TextIO:
    """Take the lock of a folder of unfinished work on a file: nobody else has it until it is closed.

    Raises:
        InputError: Another process has it, or the folder cannot be made.
    """
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = (work / "lock").open("w")
    except OSError as error:
        raise InputError(
            f"'{path}' cannot be written in folder '{path.parent}' ({error.strerror}): give another --out"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(lock.fileno()), (work / "lock").stat()):
            raise BlockingIOError  # which the other process took away with the folder
    except (BlockingIOError, FileNotFoundError) as error:
        lock.close()
        raise InputError(f"'{path}' is being written by another process: wait for it, or give another --out") from error
    return lock


def scene_card(uri: str) -> dict[str, Any]:
    """Which scene it is: where it lies, and size and time of change of its files on this machine."""
    files = [(os.path.abspath(file), os.stat(file)) for file in source_files(_local(uri))]
    return {"scene": address(uri), "files": [[name, told.st_size, told.st_mtime_ns] for name, told in files]}


def address(uri: str) -> str:
    """A path from the root, or an address as it is."""
    path = _local(uri)
    return path if is_remote(path) else os.path.abspath(path)


def _local(uri: str) -> str:
    return uri.removeprefix("file://")


def digest(card: Mapping[str, Any]) -> str:
    """A few letters that are others for another card."""
    return hashlib.blake2b(json.dumps(card, sort_keys=True).encode(), digest_size=12).hexdigest()


def _but_files(card: Any) -> Any:
    """A card without what tells of its scenes' files, also of later dates."""
    if isinstance(card, dict):
        return {name: _but_files(value) for name, value in card.items() if name != "files"}
    return [_but_files(one) for one in card] if isinstance(card, list) else card
