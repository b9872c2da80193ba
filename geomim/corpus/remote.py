"""Files here and in remote stores: `s3://`, `gs://`, `https://`, `memory://` and whatever else fsspec opens.

A corpus on a disk is opened by `Path`; one elsewhere by `Url`, which has those methods of `Path` that reading needs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from geomim.errors import CorpusError, InputError, MissingExtraError


@lru_cache(1)
def _use_object_stores() -> None:
    """Open `s3://`, `gs://` and `az://` with obstore where it is installed: one library, without a cloud's own one."""
    try:
        from obstore.fsspec import register
    except ModuleNotFoundError:
        return  # fsspec then looks for s3fs, gcsfs or adlfs
    register(["s3", "gs", "az"])


@dataclass(frozen=True)
class Url:
    """An address in a remote store.

    Attributes:
        text: Such as `s3://bucket/folder`.
    """

    text: str

    def __str__(self) -> str:
        return self.text

    def __truediv__(self, name: str) -> Url:
        return Url(f"{self.text.rstrip('/')}/{name}")

    def joinpath(self, *names: str) -> Url:
        """The address below this one."""
        return self / "/".join(names)

    @property
    def name(self) -> str:
        """The last part."""
        return self.text.rstrip("/").rsplit("/", 1)[-1]

    def files(self) -> tuple[Any, str]:
        """The fsspec file system, and the path in it.

        It is looked up each time: fsspec keeps one for each process, and one that came through a fork is dead.

        Raises:
            MissingExtraError: The library for this kind of store is not installed.
            InputError: There is no such kind of store.
        """
        import fsspec

        _use_object_stores()
        try:
            files, path = fsspec.core.url_to_fs(self.text)
        except ImportError as error:
            raise MissingExtraError(
                f"'{self}' cannot be opened: {error}; pip install 'geomim[corpus]' for s3, gs, az"
            ) from error
        except ValueError as error:
            raise InputError(f"'{self}' cannot be opened: {error}") from error
        return files, path

    def _ask(self, method: str) -> Any:
        with reached(self):
            files, path = self.files()
            return getattr(files, method)(path)

    def is_file(self) -> bool:
        """Whether a file is there."""
        return bool(self._ask("isfile"))

    def exists(self) -> bool:
        """Whether there is anything."""
        return bool(self._ask("exists"))

    def read_text(self, encoding: str = "utf-8") -> str:
        """All of a text file.

        Raises:
            FileNotFoundError: It is not there.
        """
        return str(self._ask("cat_file").decode(encoding))

    def remove(self) -> None:
        """Remove a file."""
        self._ask("rm_file")

    def ranges(self, names: Sequence[str], starts: Sequence[int], ends: Sequence[int]) -> list[bytes]:
        """Parts of files below, asked for side by side.

        Args:
            names: Of the files.
            starts: First byte of each part; a negative one counts from the end.
            ends: Byte behind each part; ignored where the start is negative: such a part ends with the file.

        Raises:
            FileNotFoundError: A file is not there.
        """
        with reached(self):
            files, path = self.files()
            paths = [f"{path.rstrip('/')}/{name}" for name in names]
            if len(paths) == 1 and starts[0] < 0:
                size = files.size(paths[0])  # not every store counts from the end
                return [files.cat_file(paths[0], start=max(size + starts[0], 0), end=size)]
            found: list[bytes] = files.cat_ranges(paths, list(starts), list(ends), on_error="raise")
            return found


Place = Path | Url


def place(path: str | Path | Url) -> Place:
    """A folder or file, here or elsewhere, by its name."""
    if isinstance(path, Url):
        return path
    text = str(path)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return Url(text) if "://" in text else Path(path)


@contextmanager
def reached(url: Url) -> Iterator[None]:
    """Say in a sentence that a store does not answer; each library has errors of its own for that.

    Raises:
        FileNotFoundError: The store answers that there is no such file.
        CorpusError: Anything else went wrong.
    """
    try:
        yield
    except (FileNotFoundError, CorpusError, InputError, MissingExtraError):
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CorpusError(f"'{url}' cannot be reached ({reason}): check the address and your access to it") from error


@contextmanager
def aside(path: Path) -> Iterator[BinaryIO]:
    """Open a file beside its place and rename it when all is written, so that it is whole or not there.

    Raises:
        CorpusError: It cannot be written, such as on a full disk; what was there before is untouched.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            yield file
        os.replace(part, path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if not isinstance(error, OSError) or error.filename not in (None, str(part), str(path.parent)):
            raise  # not about this file
        raise CorpusError(
            f"'{path}' cannot be written ({error.strerror or error}): make room and run it again; "
            "what was finished is kept"
        ) from error
