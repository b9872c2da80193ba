"""`corpus.lock`: what a corpus was made of, and what came out, as hashes.

JSON lines: the first holds recipe, versions and digests of the whole; then comes one a source, in the order of their
tiles' ids, and one a label raster, cloud mask or table that was given beside them, so that a lock of millions of
sources is written, read and compared line by line.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from geomim.corpus.remote import aside
from geomim.corpus.scenes import source_files
from geomim.corpus.store import CATALOGUE
from geomim.errors import CorpusError, InputError

if TYPE_CHECKING:
    import pyarrow.dataset as ds

LOCK_VERSION = 1
_BLOCK = 8 * 2**20  # bytes of a source that are read at once
_WHERE_TOLD = ("file", "taken_off")
_CONTENT = ("id", "size", "row", "col", "xxh3")
_DECISIONS = ("id", "split", "label", "kept", "reason", "duplicate_of", "cluster")
_WRITTEN = ("captions", "caption_origins")  # count as decisions where origins are told: then some were written


@dataclass(frozen=True)
class Locked:
    """One source in a lock.

    Attributes:
        uri: Name in the catalogue.
        bytes: Size of the file, or of all files of a folder; -1 where it is remote.
        xxh3: Hash of it; None where it is remote.
        tiles: Number of its tiles.
        content: Hash over places and pixels of its tiles.
        decisions: Hash over split, label and fate of its tiles.
        file: Where it is, if `uri` is not that: sources of merged corpora may be named alike.
        taken_off: What its numbers lost to mean the same as those of others (`--harmonise`), or None.
    """

    uri: str
    bytes: int
    xxh3: str | None
    tiles: int
    content: str
    decisions: str
    file: str | None = None
    taken_off: int | None = None


def source_hash(uri: str) -> tuple[int, str] | None:
    """Size in bytes and hash (xxh3, 128 bits) of a local file, or of all files of a scene with their names.

    Returns:
        None where there is no local file, as for a remote source.

    Raises:
        InputError: A file cannot be read, or vanished meanwhile.
    """
    files = source_files(uri)
    if not files:
        return None
    try:
        return _hash_unchanged(
            uri if os.path.isdir(uri) else None, tuple((file, os.stat(file).st_mtime_ns) for file in files)
        )
    except OSError as error:
        raise InputError(f"'{uri}' cannot be read to its end ({error}): fetch it again") from error


def file_hash(file: str | Path) -> str:
    """Hash (xxh3, 128 bits) of one file of a corpus."""
    return _hash_files([(b"", str(file))])[1]


def facts_hash(meta: dict[str, Any]) -> str:
    """Hash (xxh3, 128 bits) of what a `corpus.json` says: statistics, bands, recipe, hashes of lock and tables.

    Not in the lock, which is the same however tiles are dealt out: the last digits of statistics are not.
    """
    said = {name: value for name, value in meta.items() if name not in ("facts", "audit")}
    return xxhash.xxh3_128_hexdigest(json.dumps(said, sort_keys=True).encode())


def files_hash(files: Sequence[str]) -> str:
    """Hash (xxh3, 128 bits) of some files of one folder with their names; of one alone that of its content."""
    return _hash_unchanged(None, tuple((file, os.stat(file).st_mtime_ns) for file in files))[1]


def hash_files(files: Sequence[str]) -> list[dict[str, Any]]:
    """What the lock says of files that tiles were made of besides their scenes; a task."""
    found = [(file, source_hash(file)) for file in files]
    return [{"uri": file, "bytes": known[0], "xxh3": known[1], "tiles": 0} for file, known in found if known]


@lru_cache(8)  # the images of an archive follow one another
def _hash_unchanged(folder: str | None, files: tuple[tuple[str, int], ...]) -> tuple[int, str]:
    if len(files) == 1 and folder is None:
        return _hash_files([(b"", files[0][0])])
    base = folder or os.path.dirname(files[0][0])
    return _hash_files([(f"{Path(os.path.relpath(file, base)).as_posix()}\0".encode(), file) for file, _ in files])


def _hash_files(files: Iterable[tuple[bytes, str]]) -> tuple[int, str]:
    size, state = 0, xxhash.xxh3_128()
    for name, file in files:
        state.update(name)
        with open(file, "rb", buffering=0) as stream:
            while block := stream.read(_BLOCK):
                state.update(block)
                size += len(block)
    return size, state.hexdigest()


def write_lock(file: Path, catalogue: Path, sources: pa.Table | ds.Dataset, header: dict[str, Any]) -> None:
    """Write the lock of a corpus.

    Args:
        file: The lock.
        catalogue: The corpus's `catalogue.parquet`.
        sources: Columns `uri`, `bytes` and `xxh3` as of `source_hash`, in the order of their tiles' ids.
        header: `geomim_version`, `recipe` and `versions`; where it was changed, `built` (the recipe of the build) and
            `changes`, `verb` and `asked` of each in their order; names of sources that were `skipped`; file, hash and
            licence of `sentences` that came from files, by origin.
    """
    from pyarrow.dataset import dataset

    content, decisions, tiles, count = xxhash.xxh3_128(), xxhash.xxh3_128(), 0, 0
    with tempfile.TemporaryFile("w+b", dir=file.parent) as body:
        for line in _lines(sources, dataset(catalogue, CATALOGUE)):
            content.update(line.content.encode())
            decisions.update(line.decisions.encode())
            tiles, count = tiles + line.tiles, count + 1
            told = {name: value for name, value in asdict(line).items() if value or name not in _WHERE_TOLD}
            body.write(_json(told))
        head = {"lock_version": LOCK_VERSION, **header, "sources": count, "tiles": tiles}
        digests = {"content": content.hexdigest(), "decisions": decisions.hexdigest()}
        body.seek(0)
        with aside(file) as out:
            out.write(_json(head | {"digests": digests}))
            shutil.copyfileobj(body, out)


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, ensure_ascii=False) + "\n").encode()


def read_lock(path: str | Path) -> tuple[dict[str, Any], Iterator[Locked]]:
    """Read a lock, or the lock in a corpus folder.

    Returns:
        The first line, and the sources, which are read as they are asked for.

    Raises:
        CorpusError: It is no lock, or of a newer kind.
    """
    file = Path(path) / "corpus.lock" if Path(path).is_dir() else Path(path)
    try:
        with open(file, encoding="utf-8") as stream:
            head: dict[str, Any] = json.loads(stream.readline())
        version, _ = int(head["lock_version"]), (head["recipe"], head["versions"], head["digests"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorpusError(f"'{file}' is no corpus.lock ({error}): give a corpus folder or its corpus.lock") from error
    if version > LOCK_VERSION:
        raise CorpusError(f"'{file}' is a lock of version {version}: upgrade geomim (pip install -U geomim)")
    return head, _read_lines(file)


def _read_lines(file: Path) -> Iterator[Locked]:
    with open(file, encoding="utf-8") as stream:
        for number, line in enumerate(stream):
            try:
                if number:
                    yield Locked(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise CorpusError(f"'{file}' is damaged in line {number + 1} ({error}): copy it again") from error


def _lines(sources: pa.Table | ds.Dataset, catalogue: ds.Dataset) -> Iterator[Locked]:
    """What the lock says of each source."""
    runs = digests(catalogue)
    run = next(runs, None)
    nothing = xxhash.xxh3_128_hexdigest(b"")
    columns = [name for name in ("uri", "bytes", "xxh3", "file", "taken_off") if name in sources.schema.names]
    for batch in sources.to_batches():
        for row in batch.select(columns).to_pylist():
            file = row.get("file") if row.get("file") != row["uri"] else None
            mine = run is not None and run[0] == row["uri"]
            tiles, content, decisions = run[1:] if run is not None and mine else (0, nothing, nothing)
            yield Locked(row["uri"], row["bytes"], row["xxh3"], tiles, content, decisions, file, row.get("taken_off"))
            run = next(runs, None) if mine else run
    if run is not None:
        raise CorpusError(f"the catalogue has tiles of '{run[0]}', which its sources lack in that place")


def digests(catalogue: ds.Dataset) -> Iterator[tuple[str, int, str, str]]:
    """Source, number of tiles and both hashes of each run of rows of one source."""
    source, count, content, decisions = None, 0, xxhash.xxh3_128(), xxhash.xxh3_128()
    for batch in catalogue.to_batches(columns=list(dict.fromkeys(("source", *_CONTENT, *_DECISIONS, *_WRITTEN)))):
        if not len(batch):
            continue
        said = pc.binary_join_element_wise(*(pc.binary_join(batch[name], "\t") for name in _WRITTEN), "\n", "\t")
        texts = [_text(batch, _CONTENT), _text(batch, _DECISIONS, pc.coalesce(said, pa.scalar("\n")))]
        code = batch.column("source").dictionary_encode().indices.to_numpy()
        starts = [0, *(np.flatnonzero(np.diff(code)) + 1).tolist()]
        for start, end in zip(starts, [*starts[1:], len(batch)], strict=True):
            name = batch.column("source")[start].as_py()
            if name != source:
                if source is not None:
                    yield source, count, content.hexdigest(), decisions.hexdigest()
                source, count, content, decisions = name, 0, xxhash.xxh3_128(), xxhash.xxh3_128()
            count += end - start
            for state, (ends, raw) in zip((content, decisions), texts, strict=True):
                state.update(raw[ends[start] : ends[end]])
    if source is not None:
        yield source, count, content.hexdigest(), decisions.hexdigest()


def _text(batch: pa.RecordBatch, names: Iterable[str], ends: pa.Array | None = None) -> tuple[np.ndarray, memoryview]:
    """One line of text a row: where each starts, and the bytes of all."""
    columns = [pc.cast(batch.column(name), pa.string()) for name in names]
    ends = pa.array(["\n"] * len(batch)) if ends is None else ends
    lines = pc.binary_join_element_wise(*columns, ends, "\t", null_handling="replace", null_replacement="")
    _, offsets, raw = lines.buffers()
    return np.frombuffer(offsets, np.int32)[lines.offset : lines.offset + len(lines) + 1], memoryview(raw)
