"""Folders and archives alike: what lies in them, where GDAL finds it, and its text."""

from __future__ import annotations

import os
import re
import tarfile
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from geomim.errors import InputError

_ARCHIVE = re.compile(r"\.(zip|tar|tgz|tar\.gz)$", re.IGNORECASE)
_INSIDE = re.compile(r"^/vsi(?:zip|tar)/(.+?\.(?:zip|tar|tgz|tar\.gz))(?:/(.*))?$", re.IGNORECASE)


@dataclass(frozen=True)
class Folder:
    """Files below one place.

    Attributes:
        root: The place, as GDAL opens it.
        names: Paths of the files relative to it, sorted.
    """

    root: str
    names: tuple[str, ...]

    def path(self, name: str) -> str:
        """A file, as GDAL opens it."""
        return f"{self.root.rstrip('/')}/{name}"

    def text(self, name: str) -> str:
        """The text of a file.

        Raises:
            InputError: It is no text.
        """
        path = self.path(name)
        inside = _INSIDE.match(path)
        try:
            if inside is None:
                return Path(path).read_text(encoding="utf-8")
            return _content(inside[1], inside[2]).decode()
        except (OSError, UnicodeDecodeError, KeyError, zipfile.BadZipFile, tarfile.TarError) as error:
            raise InputError(f"'{path}' cannot be read as text ({error})") from error


def is_archive(path: str) -> bool:
    """Whether a file is a ZIP or TAR archive, by its name; a zipped zarr store is none."""
    return _ARCHIVE.search(path) is not None and not path.lower().endswith(".zarr.zip")


def archive_root(path: str) -> str:
    """Where GDAL finds the members of an archive on this machine."""
    kind = "vsizip" if path.lower().endswith(".zip") else "vsitar"
    return f"/{kind}/{os.path.abspath(path)}"


def archive_of(path: str) -> str | None:
    """The archive on this machine that a path such as `/vsizip/...` leads into, or None."""
    inside = _INSIDE.match(path)
    return inside[1] if inside else None


def open_folder(root: str) -> Folder:
    """List a folder on this machine, or one inside an archive (`/vsizip/...`).

    Raises:
        InputError: It does not exist, or an archive is broken or holds a path that leads out of it.
    """
    inside = _INSIDE.match(root)
    if inside is None:
        files = (os.path.join(parent, name) for parent, _, names in os.walk(root) for name in names)
        return Folder(root, tuple(sorted(os.path.relpath(file, root) for file in files)))
    prefix = f"{inside[2].rstrip('/')}/" if inside[2] else ""
    return Folder(root, tuple(name[len(prefix) :] for name in members(inside[1]) if name.startswith(prefix)))


def is_folder(root: str) -> bool:
    """Whether there is such a folder, on this machine or inside an archive."""
    archive = archive_of(root)
    return os.path.isdir(root) if archive is None else os.path.isfile(archive) and bool(open_folder(root).names)


def members(archive: str) -> tuple[str, ...]:
    """Files of an archive, sorted.

    Raises:
        InputError: It is broken, or holds an absolute path or one with `..`, as no honest archive does.
    """
    return _members(archive, os.stat(archive).st_mtime_ns)


@lru_cache(maxsize=16)
def _members(archive: str, changed: int) -> tuple[str, ...]:
    try:
        if archive.lower().endswith(".zip"):
            with zipfile.ZipFile(archive) as file:
                names = [entry.filename for entry in file.infolist() if not entry.is_dir()]
        else:
            with tarfile.open(archive) as bundle:
                names = [entry.name for entry in bundle.getmembers() if entry.isfile()]
    except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise InputError(f"'{archive}' cannot be opened as an archive ({error}): fetch the file again") from error
    for name in names:
        if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name):
            raise InputError(f"'{archive}' holds the path '{name}', which leads out of it: do not trust this archive")
    return tuple(sorted(name.removeprefix("./") for name in names))


def _content(archive: str, name: str) -> bytes:
    if archive.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as file:
            return file.read(name)
    with tarfile.open(archive) as bundle:
        held = bundle.getnames()
        member = bundle.extractfile(name if name in held else f"./{name}")
        assert member is not None  # `members` lists files alone
        return member.read()
