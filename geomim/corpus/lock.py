"""`corpus.lock`: what a corpus was made of, and what came out, as hashes; checked again, and built again from it.

JSON lines: the first holds recipe, versions and digests of the whole; then comes one a source, in the order of their
tiles' ids, so that a lock of millions of sources is written, read and compared line by line.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import xxhash

from geomim.corpus.remote import Url, aside
from geomim.corpus.scenes import source_files
from geomim.corpus.store import CATALOGUE, Corpus
from geomim.errors import CorpusError

if TYPE_CHECKING:
    from rich.progress import Progress

LOCK_VERSION = 1
_PUT_TOGETHER = {"merged", "appended", "filtered", "unpacked"}  # entries of a recipe that starts from other corpora
_BLOCK = 8 * 2**20  # bytes of a source that are read at once
_CONTENT = ("id", "size", "row", "col", "xxh3")
_DECISIONS = ("id", "split", "label", "kept", "reason", "duplicate_of", "cluster")


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
    """

    uri: str
    bytes: int
    xxh3: str | None
    tiles: int
    content: str
    decisions: str
    file: str | None = None


def source_hash(uri: str) -> tuple[int, str] | None:
    """Size in bytes and hash (xxh3, 128 bits) of a local file, or of all files of a scene with their names.

    Returns:
        None where there is no local file, as for a remote source.
    """
    files = source_files(uri)
    if not files:
        return None
    return _hash_unchanged(
        uri if os.path.isdir(uri) else None, tuple((file, os.stat(file).st_mtime_ns) for file in files)
    )


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
            `changes` as of `listed`; names of sources that were `skipped`.
    """
    content, decisions, tiles, count = xxhash.xxh3_128(), xxhash.xxh3_128(), 0, 0
    with tempfile.TemporaryFile("w+b", dir=file.parent) as body:
        for line in _lines(sources, ds.dataset(catalogue, CATALOGUE)):
            content.update(line.content.encode())
            decisions.update(line.decisions.encode())
            tiles, count = tiles + line.tiles, count + 1
            body.write(_json({name: value for name, value in asdict(line).items() if name != "file" or value}))
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
    columns = [name for name in ("uri", "bytes", "xxh3", "file") if name in sources.schema.names]
    for batch in sources.to_batches():
        for row in batch.select(columns).to_pylist():
            file = row.get("file") if row.get("file") != row["uri"] else None
            mine = run is not None and run[0] == row["uri"]
            tiles, content, decisions = run[1:] if run is not None and mine else (0, nothing, nothing)
            yield Locked(row["uri"], row["bytes"], row["xxh3"], tiles, content, decisions, file)
            run = next(runs, None) if mine else run
    if run is not None:
        raise CorpusError(f"the catalogue has tiles of '{run[0]}', which its sources lack in that place")


def digests(catalogue: ds.Dataset) -> Iterator[tuple[str, int, str, str]]:
    """Source, number of tiles and both hashes of each run of rows of one source."""
    source, count, content, decisions = None, 0, xxhash.xxh3_128(), xxhash.xxh3_128()
    for batch in catalogue.to_batches(columns=list(dict.fromkeys(("source", *_CONTENT, *_DECISIONS)))):
        if not len(batch):
            continue
        texts = [_text(batch, names) for names in (_CONTENT, _DECISIONS)]
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


def _text(batch: pa.RecordBatch, names: Iterable[str]) -> tuple[np.ndarray, memoryview]:
    """One line of text a row: where each starts, and the bytes of all."""
    columns = [pc.cast(batch.column(name), pa.string()) for name in names]
    ends = pa.array(["\n"] * len(batch))
    lines = pc.binary_join_element_wise(*columns, ends, "\t", null_handling="replace", null_replacement="")
    _, offsets, raw = lines.buffers()
    return np.frombuffer(offsets, np.int32)[lines.offset : lines.offset + len(lines) + 1], memoryview(raw)


def listed(changes: Any) -> list[dict[str, Any]]:
    """What was done to a corpus after its build, in its order: `verb` and `asked` of each, also of older locks."""
    if isinstance(changes, dict):
        return [{"verb": verb, "asked": asked} for verb, asked in changes.items()]
    return list(changes or [])


class _Findings:
    """What differs: counted by kind, and the first of each kept in words."""

    _SHOWN = 5

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.said: list[str] = []

    def say(self, kind: str, sentence: str) -> None:
        self.counts[kind] += 1
        if self.counts[kind] <= self._SHOWN:
            self.said.append(sentence)

    def __str__(self) -> str:
        counts = ", ".join(f"{kind}: {count}" for kind, count in self.counts.items())
        return f"{'; '.join(self.said)} ({counts})"


def verify(corpus: str, sources: bool = False) -> None:
    """Check a corpus against its lock: every tile's pixels, every decision, and on request every source file.

    Args:
        corpus: Folder of the corpus.
        sources: Also hash the files that it was made of again.

    Raises:
        CorpusError: Something differs; the sentence says how much, and the first of it by name.
    """
    from rich.console import Console
    from rich.progress import Progress

    opened = Corpus.open(corpus)
    if isinstance(opened.path, Url):
        raise CorpusError(f"'{corpus}' is in a remote store: verify the folder that was published there")
    head, lines = read_lock(corpus)
    _check_belongs(opened, head)
    found, console = _Findings(), Console(stderr=True, markup=False, highlight=False)
    with Progress(console=console, transient=True) as progress:
        _verify_rows(opened, lines, found)
        _verify_tiles(opened, found, progress)
        if sources:
            _verify_sources(head, read_lock(corpus)[1], found, progress)
    if found.counts:
        raise CorpusError(f"'{corpus}' is not what its lock says: {found}")
    also = f", {head['sources']:,} sources" if sources else ""
    Console(markup=False, highlight=False).print(
        f"'{corpus}' is what its lock says: {head['tiles']:,} tiles{also}", soft_wrap=True
    )


def _check_belongs(corpus: Corpus, head: dict[str, Any]) -> None:
    """Refuse a lock or a catalogue that came from elsewhere: comparing tile by tile would say nothing."""
    lock = corpus.path / "corpus.lock"
    if corpus.meta.get("lock") not in (None, xxhash.xxh3_128_hexdigest(lock.read_bytes())):
        raise CorpusError(f"'{lock}' is not the lock that '{corpus.path / 'corpus.json'}' was written with: copy both")
    rows = corpus.rows().count_rows()
    if rows != head["tiles"]:
        raise CorpusError(
            f"'{corpus.path / 'catalogue.parquet'}' belongs to another corpus: it has {rows:,} rows, and the lock "
            f"{head['tiles']:,} tiles"
        )


def _verify_rows(corpus: Corpus, lines: Iterator[Locked], found: _Findings) -> None:
    locked = (line for line in lines if line.tiles)
    for line, run in zip_longest(locked, digests(corpus.rows())):
        if line is None or run is None or line.uri != run[0]:
            names = [line.uri if line else "nothing", run[0] if run else "nothing"]
            found.say("sources", f"the lock has '{names[0]}' where the catalogue has '{names[1]}'")
            return
        if (line.tiles, line.content) != run[1:3]:
            found.say("sources with other tiles", f"rows of '{line.uri}' in the catalogue were changed")
        elif line.decisions != run[3]:
            found.say("sources with other decisions", f"decisions about '{line.uri}' were changed")


def _verify_tiles(corpus: Corpus, found: _Findings, progress: Progress) -> None:
    """Hash the pixels of every tile again, in the order of the shards."""
    from geomim.corpus.duplicates.fingerprint import content_hash

    bar = progress.add_task("hashing tiles", total=corpus.rows().count_rows())
    arrays = {size: (corpus.array("image", size), corpus.array("valid", size)) for size in corpus.sizes}
    broken: set[str] = set()
    columns = ["id", "size", "slot", "xxh3", "valid_fraction", "source"]
    for batch in corpus.rows().to_batches(columns=columns, batch_size=4096):
        for row in batch.to_pylist():
            progress.advance(bar)
            image, valid = arrays[row["size"]]
            if row["slot"] < 0 or image is None:
                continue
            try:
                same = content_hash(image.read([row["slot"]])[0]) == row["xxh3"]
                if same and valid is not None:
                    same = abs(float(valid.read([row["slot"]]).mean()) - row["valid_fraction"]) < 1e-6
            except (CorpusError, IndexError) as error:
                if str(error) not in broken:
                    found.say("shards", str(error))
                broken.add(str(error))
                continue
            if not same:
                found.say("tiles", f"pixels of tile {row['id']} of '{row['source']}' were changed")


def _verify_sources(head: dict[str, Any], lines: Iterator[Locked], found: _Findings, progress: Progress) -> None:
    bar = progress.add_task("hashing sources", total=head["sources"])
    for line in lines:
        progress.advance(bar)
        if line.xxh3 is None:
            continue
        now = source_hash(line.file or line.uri)
        if now is None:
            found.say("sources", f"source '{line.uri}' vanished")
        elif now != (line.bytes, line.xxh3):
            found.say("sources", f"source '{line.uri}' was changed")


def rebuild(lock: str, out: str, workers: int | None = None, cluster: str | None = None) -> Path:
    """Build a corpus again from its lock, and compare.

    It is run where the first build was run, since sources are looked for by the names in the lock.

    Args:
        lock: A corpus.lock, or the folder of the corpus that holds it.
        out: Folder of the new corpus.
        workers: Processes; one a core where not given.
        cluster: Address of a Dask scheduler, or a YAML file for dask-jobqueue.

    Returns:
        The folder.

    Raises:
        CorpusError: A source vanished, was changed or was added, or the outcome differs.
    """
    from rich.console import Console
    from rich.progress import Progress

    head, lines = read_lock(lock)
    found, console = _Findings(), Console(stderr=True, markup=False, highlight=False)
    if not _PUT_TOGETHER.isdisjoint(head["recipe"]):
        raise CorpusError(f"'{lock}' is of a corpus that was put together from others: rebuild those, then do it again")
    with Progress(console=console, transient=True) as progress:
        _verify_sources(head, lines, found, progress)
    if found.counts:
        raise CorpusError(f"'{lock}' cannot be rebuilt: {found}")
    recipe = head.get("built", head["recipe"])
    _find_added(recipe["source"], lock, found)
    if found.counts:
        raise CorpusError(f"'{lock}' cannot be rebuilt: {found}")
    from geomim.corpus.build import build  # late: it needs all of curation
    from geomim.corpus.pipeline.conclude import versions

    for name, now in versions().items():
        if head["versions"].get(name) != now:
            console.print(f"{name} is {now}, and was {head['versions'].get(name)}", soft_wrap=True)
    folder = build(**recipe, out=out, workers=workers, cluster=cluster)
    _change_again(folder, listed(head.get("changes")))
    for line, again in zip_longest(read_lock(lock)[1], read_lock(folder)[1]):
        if line != again:
            found.say("sources", f"tiles of '{(line or again).uri}' came out otherwise")
    if found.counts:
        raise CorpusError(f"'{folder}' differs from '{lock}': {found}")
    console.print(f"'{folder}' is the same: {head['tiles']:,} tiles of {head['sources']:,} sources", soft_wrap=True)
    return folder


def _find_added(sources: list[str], lock: str, found: _Findings) -> None:
    """Say which files the recipe finds now and did not find then."""
    from geomim.corpus.sources.items import list_items

    head, lines = read_lock(lock)
    if "skipped" not in head:
        return
    known = {line.uri for line in lines} | set(head["skipped"])
    for uri in sorted({item.uri for source in sources for item in list_items(source)} - known):
        found.say("added sources", f"source '{uri}' was added")


def _change_again(folder: Path, changes: list[dict[str, Any]]) -> None:
    """Do what was done to the corpus after its build, in the same order."""
    from geomim.corpus.changes import split
    from geomim.corpus.exclusion import exclude
    from geomim.corpus.pipeline.conclude import conclude
    from geomim.corpus.report.report import write_report

    verbs: dict[str, Callable[..., Any]] = {"split": split, "exclude": exclude, "decide": conclude}
    for place, change in enumerate(changes):
        if change["verb"] not in verbs:
            left = ", ".join(dict.fromkeys(later["verb"] for later in changes[place:]))
            raise CorpusError(f"'{folder}' is built; {left} then changed the first one: do it again, with its encoder")
        verbs[change["verb"]](str(folder), **change["asked"])
    if changes:
        write_report(folder)
