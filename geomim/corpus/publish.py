"""`geomim corpus publish`: a corpus to a remote store."""

from __future__ import annotations

import hashlib
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from geomim.addresses import plain
from geomim.corpus.remote import Place, Url, place, reached
from geomim.corpus.store import Corpus
from geomim.errors import CorpusError, InputError

_UNFINISHED = "work.done"
_AT_ONCE = 8  # copies on their way: a store answers slowly, but many at a time


def publish(corpus: str, url: str) -> None:
    """Copy a finished corpus to a remote store; `corpus.json` comes last and says that all is there.

    Stopped and started again, it goes on: files that are there with the same bytes are not sent again.

    Args:
        corpus: Folder of the corpus.
        url: Address of its folder in the store, such as s3://bucket/corpus.

    Raises:
        CorpusError: The folder is no finished corpus or lacks pixels, the address holds another one (of other sources,
            or other tiles of them; decisions may differ), or the store does not answer.
    """
    folder, target = Path(corpus), place(url)
    if not isinstance(target, Url):
        raise InputError(f"'{url}' is no address of a remote store, such as s3://bucket/corpus: copy the folder itself")
    names = _files(Corpus.open(folder))  # which says what is not finished
    _clear_for(folder, target)
    names.remove("corpus.json")
    console = Console(stderr=True, markup=False, highlight=False)
    with Progress(console=console, transient=True) as progress, reached(target):
        there = _there(target)
        bar = progress.add_task(f"copying to {target}", total=len(names))
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for _ in pool.map(lambda name: _send(folder, target, name, there.get(name)), names):
                progress.advance(bar)
        for name in sorted(there.keys() - names):  # of an older state, which readers would find beside the new ones
            if name.partition("/")[0] in ("tiles.zarr", "catalogue", "audit"):
                (target / name).remove()
        _send(folder, target, "corpus.json", None)
    console.print(f"'{folder}' is at '{plain(str(target))}'", soft_wrap=True)


def _files(corpus: Corpus) -> list[str]:
    """Names of all files of a corpus, sorted; those in linked folders, too.

    Raises:
        CorpusError: A link leads nowhere, or there are no pixels.
    """
    found = []
    for folder, _, files in os.walk(corpus.path, followlinks=True):
        for file in (Path(folder, name) for name in files):
            inside = file.relative_to(corpus.path)
            if inside.parts[0] == _UNFINISHED or any(part.endswith(".part") for part in inside.parts):
                continue
            if not file.exists():
                raise CorpusError(
                    f"'{file}' is a link that leads nowhere: bring back what it led to, or copy the corpus again"
                )
            if file.is_file():
                found.append(inside.as_posix())
    lacking = [size for size in corpus.sizes if f"tiles.zarr/{size}/image/zarr.json" not in found]
    if lacking:
        raise CorpusError(
            f"'{corpus.path}' lacks the pixels of its {lacking[0]} px tiles: copy it again, or build it again"
        )
    return sorted(found)


def _clear_for(folder: Path, target: Url) -> None:
    """Refuse to write over another corpus; take the mark from an older state of this one."""
    try:
        text = (target / "corpus.json").read_text()
    except FileNotFoundError:
        return
    mine = (folder / "corpus.json").read_text(encoding="utf-8")
    try:
        same = _made(target, text) == _made(folder, mine)
    except (ValueError, KeyError, TypeError, AttributeError):
        same = False
    if not same:
        raise CorpusError(f"'{target}' holds another corpus: give another address, or remove it there first")
    if text != mine:
        (target / "corpus.json").remove()


def _made(corpus: Place, text: str) -> tuple[Any, ...]:
    """What stays the same of a corpus whatever is decided: its sources, and where its tiles lie and their pixels.

    Args:
        corpus: Its folder.
        text: Its `corpus.json`.
    """
    meta, lock = json.loads(text), corpus / "corpus.lock"
    content = json.loads(_first_line(lock))["digests"]["content"] if lock.is_file() else None
    return meta["recipe"].get("source"), {size: one["tiles"] for size, one in meta["sizes"].items()}, content


def _first_line(file: Place) -> str:
    if isinstance(file, Path):
        with open(file, encoding="utf-8") as stream:
            return stream.readline()
    with reached(file):
        files, path = file.files()
        with files.open(path, "rb") as stream:  # a lock is long
            return str(stream.readline(), "utf-8")


def _there(target: Url) -> dict[str, dict[str, Any]]:
    """What the store says of each file below an address."""
    files, path = target.files()
    files.invalidate_cache()
    try:
        found = files.find(path, detail=True)
    except FileNotFoundError:
        return {}
    root = path.strip("/")
    return {name.strip("/").removeprefix(root).strip("/"): info for name, info in found.items()}


def _send(folder: Path, target: Url, name: str, there: dict[str, Any] | None) -> None:
    file, (files, path) = folder / name, (target / name).files()
    if there is None or there.get("size") != file.stat().st_size or not _equal(file, files, path, there):
        files.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        files.put_file(str(file), path)


def _equal(file: Path, files: Any, path: str, there: dict[str, Any]) -> bool:
    """Whether a remote file of the same size has the same bytes: by the store's checksum, or else by reading it."""
    tag = str(there.get("ETag", "")).strip('"')
    if re.fullmatch("[0-9a-f]{32}", tag):
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "md5").hexdigest() == tag
    with open(file, "rb") as one, files.open(path, "rb") as two:
        while block := one.read(2**23):
            if block != two.read(len(block)):
                return False
    return True
