"""A corpus checked against its lock, and built again from it: `verify`, `rebuild`."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from rich.console import Console
from rich.progress import Progress

from geomim.corpus.duplicates.fingerprint import content_hash
from geomim.corpus.labels import tables_asked
from geomim.corpus.lock import Locked, digests, facts_hash, file_hash, read_lock, source_hash
from geomim.corpus.pipeline.decide import Tables
from geomim.corpus.pipeline.rules import DECIDED
from geomim.corpus.publish import publish
from geomim.corpus.reader import TileArray
from geomim.corpus.remote import Url
from geomim.corpus.store import CATALOGUE, IGNORE, Corpus
from geomim.errors import CorpusError, InputError


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
    """Check a corpus against its lock: every tile, every decision, every table, and on request every source file.

    What was not hashed when the corpus was made is said.

    Args:
        corpus: Folder of the corpus.
        sources: Also hash the files that it was made of again, those of sentences included.

    Raises:
        CorpusError: Something differs; the sentence says how much, and the first of it by name.
    """
    opened = Corpus.open(corpus)
    if isinstance(opened.path, Url):
        raise CorpusError(f"'{corpus}' is in a remote store: verify the folder that was published there")
    head, lines = read_lock(corpus)
    _check_belongs(opened, head)
    found, console = _Findings(), Console(stderr=True, markup=False, highlight=False)
    with Progress(console=console, transient=True) as progress:
        _verify_rows(opened, lines, found)
        tables = _verify_tables(opened, found)
        also = _verify_facts(opened, found)
        if tables:
            _verify_columns(opened, found)
        _verify_tiles(opened, found, progress, tables)
        if sources:
            also = _verify_sources(head, read_lock(corpus)[1], found, progress) + _verify_sentences(head, found) + also
    if found.counts:
        raise CorpusError(f"'{corpus}' is not what its lock says: {found}")
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


def _verify_tables(corpus: Corpus, found: _Findings) -> bool:
    """Hash the small tables again, which decide what is kept; whether they are there and sound."""
    known = corpus.meta.get("tables")
    if known is None:  # of a corpus that was built before they were hashed
        return False
    there = {file.name: file_hash(file) for file in corpus.path.glob("catalogue/*.parquet")}
    for name in sorted(known.keys() | there.keys()):
        if known.get(name) != there.get(name):
            what = "is missing" if name not in there else "was changed" if name in known else "was added"
            found.say("tables", f"'{corpus.path / 'catalogue' / name}' {what}")
    return known == there


def _verify_facts(corpus: Corpus, found: _Findings) -> str:
    """Hash again what `corpus.json` says; what has no hash, in words, as of a corpus of an earlier release."""
    if corpus.meta.get("facts") not in (None, facts_hash(corpus.meta)):
        found.say("facts", f"what '{corpus.path / 'corpus.json'}' says was changed")
    left = [] if "facts" in corpus.meta else ["corpus.json"]
    left += [] if "tables" in corpus.meta else ["the columns of the catalogue that decide nothing"]
    made = corpus.meta.get("geomim_version")
    return f"; geomim {made} left no hash of what is said in {' and '.join(left)}" if left else ""


def _verify_columns(corpus: Corpus, found: _Findings) -> None:
    """Compare what the catalogue says of each tile with the small tables, which are sound; decisions have hashes."""
    tables, names = Tables(corpus.path / "catalogue"), [name for name in CATALOGUE.names if name not in DECIDED]
    for file in tables.parts():
        told = tables.part(file)
        first, last = (told["id"][place].as_py() for place in (0, -1)) if len(told) else (0, -1)
        within = (pc.field("id") >= first) & (pc.field("id") <= last)
        rows = corpus.rows().to_table(columns=names, filter=within)
        for name in names:
            if name in told.column_names and not _equal(rows[name], told[name].cast(rows[name].type)):
                found.say("columns", f"'{name}' of tiles {first} to {last} in the catalogue was changed")


def _equal(one: pa.ChunkedArray, two: pa.ChunkedArray) -> bool:
    if pa.types.is_floating(one.type):  # NaN is NaN
        return np.array_equal(one.to_numpy(), two.to_numpy(), equal_nan=True)
    return one.equals(two)


def _verify_tiles(corpus: Corpus, found: _Findings, progress: Progress, tables: bool) -> None:
    """Hash the pixels of every tile again, and what lies beside them."""
    bar = progress.add_task("hashing tiles", total=corpus.rows().count_rows())
    arrays = {size: [corpus.array(name, size) for name in ("image", "valid", "mask")] for size in corpus.sizes}
    broken: set[str] = set()
    for batch in _tiles(corpus, tables):
        for row in batch.to_pylist():
            progress.advance(bar)
            try:
                changed = _changed(row, *arrays[row["size"]])
            except (CorpusError, IndexError) as error:
                if str(error) not in broken:
                    found.say("shards", str(error))
                broken.add(str(error))
                continue
            if changed:
                found.say("tiles", f"{changed} of tile {row['id']} of '{row['source']}' were changed")


def _tiles(corpus: Corpus, tables: bool) -> Iterator[pa.RecordBatch]:
    """Rows of all tiles: of the small tables, which say more, where these are sound; else of the catalogue."""
    columns = ["id", "size", "slot", "xxh3", "valid_fraction", "source"]
    parts = [pq.ParquetFile(file) for file in sorted(corpus.path.glob("catalogue/tiles-*.parquet"))] if tables else []
    if not parts:
        yield from corpus.rows().to_batches(columns=columns, batch_size=4096)
    for part in parts:
        more = ["beside"] if "beside" in part.schema_arrow.names else []
        yield from part.iter_batches(4096, columns=columns + more)


def _changed(row: dict[str, Any], image: TileArray | None, valid: TileArray | None, mask: TileArray | None) -> str:
    """What of a tile is no longer what it was; "" where all is."""
    if row["slot"] < 0:
        return ""
    if image is None:
        raise CorpusError(f"the array of images of {row['size']} pixels is missing: copy the corpus again")
    slot = [row["slot"]]
    if content_hash(image.read(slot)[0]) != row["xxh3"]:
        return "pixels"
    if row.get("beside") is None:
        same = valid is None or abs(float(valid.read(slot).mean()) - row["valid_fraction"]) < 1e-6
        return "" if same else "valid pixels"
    good = np.ones(image.shape[2:], bool) if valid is None else valid.read(slot)[0]
    labels = np.full(image.shape[2:], IGNORE, np.uint8) if mask is None else mask.read(slot)[0]
    told = content_hash(good)
    unlabelled = row["beside"] == told and (labels == IGNORE).all()
    return "" if unlabelled or row["beside"] == told + content_hash(labels) else "valid pixels or labels"


def _verify_sources(head: dict[str, Any], lines: Iterator[Locked], found: _Findings, progress: Progress) -> str:
    """Hash the files again that tiles were made of; how many were, in words."""
    bar = progress.add_task("hashing sources", total=head["sources"])
    joined = [change["asked"] for change in head.get("changes") or [] if change["verb"] == "join"]
    tables = dict.fromkeys(file for one in (head.get("built", head["recipe"]), *joined) for file in tables_asked(one))
    hashed = 0
    for line in lines:
        progress.advance(bar)
        tables.pop(line.uri, None)
        if line.xxh3 is None:
            continue
        hashed += 1
        try:
            now = source_hash(line.file or line.uri)
        except InputError as error:
            found.say("sources", str(error))
            continue
        if now is None:
            found.say("sources", f"source '{line.uri}' vanished")
        elif now != (line.bytes, line.xxh3):
            found.say("sources", f"source '{line.uri}' was changed")
    for file in tables:  # what `decide` was given, and a build of an earlier release
        if not os.path.exists(file):
            found.say("sources", f"table '{file}' vanished")
    number = head["sources"] + len(tables)
    if hashed == number:
        return f", {number:,} sources"
    remote = head["sources"] - hashed
    left = [f"{remote:,} that were not on this machine"] * bool(remote) + [f"'{file}'" for file in tables]
    return f", {hashed:,} of {number:,} sources (the lock has no hash of {', '.join(left)})"


def _verify_sentences(head: dict[str, Any], found: _Findings, again: bool = False) -> str:
    """Hash the files again that sentences come from, by the last call of `caption` for each origin.

    Args:
        head: Of the lock.
        found: What differs.
        again: The files of earlier calls must be there, too, as all calls are done again.

    Returns:
        How many were hashed, in words; "" where the lock states none.
    """
    from geomim.corpus.captions.files import became, files_asked, hash_of

    calls = [files_asked(change["asked"]) for change in head.get("changes") or [] if change["verb"] == "caption"]
    told = head.get("sentences") or {}
    last = {origin: files for call in calls for origin, files in call.items()}
    pairs = [(name, *pair) for name in last for pair in zip(last[name], told.get(name, ()), strict=False)]
    known = [one for one in pairs if hash_of(one[2])]
    if again:
        every = dict.fromkeys((name, file) for call in calls for name, files in call.items() for file in files)
        known += [(*one, {}) for one in every if one not in [(name, file) for name, file, _ in known]]
    for origin, file, one in known:
        if what := became(origin, file, one):
            found.say("files of sentences", f"'{file}', which sentences of {origin} come from, {what}")
    number = sum(len(one) > 2 for files in told.values() for one in files)  # those of the tiles themselves have no hash
    if len(known) >= number:
        return f", {number:,} files of sentences" if number else ""
    return f", {len(known):,} of {number:,} files of sentences (of the others the lock has no path or no hash)"


def rebuild(lock: str, out: str, workers: int | None = None, cluster: str | None = None) -> Path:
    """Build a corpus again from its lock, do again what changed it, and compare.

    It is run where the first build was run, since sources are looked for by the names in the lock. Until all is done
    and compared, it lies in the folder `OUT.part`; stopped and started again, it goes on there or begins anew.

    Args:
        lock: A corpus.lock, or the folder of the corpus that holds it.
        out: Folder of the new corpus, or an address such as s3://bucket/corpus.
        workers: Processes; one a core where not given.
        cluster: Address of a Dask scheduler, or a YAML file for dask-jobqueue.

    Returns:
        The folder.

    Raises:
        CorpusError: `out` holds something, a source vanished, was changed or was added, the corpus was changed in a way
            that is not done again from a lock, or the outcome differs.
    """
    head, lines = read_lock(lock)
    found, console = _Findings(), Console(stderr=True, markup=False, highlight=False)
    folder = _folder(out)
    part = folder.with_name(folder.name + ".part")
    _check_free(folder, part)
    _check_again(lock, head)
    with Progress(console=console, transient=True) as progress:
        _verify_sources(head, lines, found, progress)
        _verify_sentences(head, found, again=True)
    if found.counts:
        raise CorpusError(f"'{lock}' cannot be rebuilt: {found}")
    recipe = {"edge": "pad", "allow_unmatched": True} | head.get("built", head["recipe"])  # as older builds had it
    _find_added(recipe["source"], lock, found)
    if found.counts:
        raise CorpusError(f"'{lock}' cannot be rebuilt: {found}")
    from geomim.corpus.build import build  # late: it needs all of curation
    from geomim.corpus.pipeline.conclude import versions

    for name, now in versions().items():
        if head["versions"].get(name) != now:
            console.print(f"{name} is {now}, and was {head['versions'].get(name)}", soft_wrap=True)
    mark = _begin(part, folder.name, head)
    made = build(**recipe, out=str(part / folder.name), workers=workers, cluster=cluster)
    _change_again(made, head.get("changes") or [])
    old, new = ((line for line in read_lock(one)[1] if line.tiles) for one in (lock, made))
    for line, again in zip_longest(old, new):
        if line != again:
            found.say("sources", f"tiles of '{(line or again).uri}' came out otherwise")
    if found.counts:
        os.replace(mark, part / f"{_MARK}other")  # the next try begins anew
        raise CorpusError(f"'{made}' differs from '{lock}' and does not become '{out}': {found}")
    os.replace(made, folder)
    shutil.rmtree(part)
    console.print(f"'{folder}' is the same: {head['tiles']:,} tiles of {head['sources']:,} sources", soft_wrap=True)
    if "://" in str(out):
        publish(str(folder), out)
    return folder


_MARK = "of-"  # and a hash of the lock: what a folder holds is unfinished work of `rebuild`


def _folder(out: str) -> Path:
    """Where a corpus comes to lie: `out`, or a folder called like the end of its address."""
    folder = Path(str(out).rstrip("/").rsplit("/", 1)[-1] if "://" in str(out) else out)
    return folder.resolve() if folder.is_symlink() or folder.name in ("", "..") else folder


def _check_free(folder: Path, part: Path) -> None:
    """Refuse to build where something is already."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise CorpusError(f"'{folder}' holds something already: give another --out, or remove it")
    if folder.is_mount():  # nothing can be renamed to it
        raise CorpusError(f"'{folder}' is a mounted file system: give a folder in it as --out")
    if part.is_file() or (part.is_dir() and any(part.iterdir()) and not any(part.glob(f"{_MARK}*"))):
        raise CorpusError(f"'{part}' is needed for unfinished work and holds other files: give another --out")


def _check_again(lock: str, head: dict[str, Any]) -> None:
    """Refuse a corpus that was made or changed in ways that a lock alone does not tell."""
    if "merged" in head["recipe"] or "filtered" in head["recipe"]:
        raise CorpusError(f"'{lock}' is of a corpus that was put together from others: rebuild those, then do it again")
    changes = [change["verb"] for change in head.get("changes") or []]
    if left := [verb for verb in dict.fromkeys(changes) if verb not in _AGAIN]:
        raise CorpusError(
            f"'{lock}' cannot be rebuilt: {', '.join(left)} changed the corpus by an encoder's embeddings; build it by "
            "the recipe in the lock, and do what it lists as `changes` again"
        )


def _begin(part: Path, name: str, head: dict[str, Any]) -> Path:
    """The folder of unfinished work, empty but for a build that can go on; its mark."""
    mark = part / f"{_MARK}{xxhash.xxh3_128_hexdigest(json.dumps(head).encode())}"
    shutil.rmtree(part / ".old", ignore_errors=True)
    if (part / name).exists() and not (mark.exists() and _goes_on(part / name)):
        os.replace(part / name, part / ".old")  # at once, so that no half of it is taken for a build
        shutil.rmtree(part / ".old")
    part.mkdir(parents=True, exist_ok=True)
    mark.touch()
    for other in set(part.glob(f"{_MARK}*")) - {mark}:
        other.unlink()
    return mark


def _goes_on(folder: Path) -> bool:
    """Whether a build was stopped, or is done and nothing changed it yet."""
    done = folder / "corpus.json"
    if (folder / "work").exists() or not done.exists():
        return True
    return not (folder / "next").exists() and not json.loads(done.read_text(encoding="utf-8")).get("changes")


def _find_added(sources: list[str], lock: str, found: _Findings) -> None:
    """Say which files the recipe finds now and did not find then."""
    from geomim.corpus.sources.items import list_items

    head, lines = read_lock(lock)
    known = {line.uri for line in lines} | set(head["skipped"])
    for uri in sorted({item.uri for item in list_items(sources)} - known):
        found.say("added sources", f"source '{uri}' was added")


_AGAIN = ("split", "exclude", "decide", "join", "caption")


def _change_again(folder: Path, changes: list[dict[str, Any]]) -> None:
    """Do what was done to the corpus after its build, in the same order."""
    from geomim.corpus.captions.caption import caption
    from geomim.corpus.changes import decide, split
    from geomim.corpus.exclusion import exclude
    from geomim.corpus.pipeline.conclude import conclude
    from geomim.corpus.report.report import write_report

    verbs: dict[str, Callable[..., Any]] = dict(zip(_AGAIN, (split, exclude, conclude, decide, caption), strict=True))
    for change in changes:
        verbs[change["verb"]](str(folder), **change["asked"])
    if changes:
        write_report(folder)
