"""`geomim corpus exclude`: keep a corpus clear of what benchmarks are scored on, and keep the evidence.

What is dropped are tiles of the corpus, never images of a benchmark. The evidence lies in the corpus's folder `audit`:
`matches.parquet` and `audit.json` of all benchmarks, and a page with pictures for each.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from rich.console import Console
from rich.progress import Progress

from geomim import __version__
from geomim.corpus.audit import check_readable, collect_both, facts, write_evidence
from geomim.corpus.comparison.collection import Collection
from geomim.corpus.comparison.matching import KINDS, Footprint, check_buffer, match
from geomim.corpus.comparison.parts import Crops
from geomim.corpus.comparison.sides import Side, same_corpus, side
from geomim.corpus.pipeline.conclude import conclude, open_to_change
from geomim.corpus.pipeline.executor import Workers
from geomim.corpus.report.matches import WORDS, counts_table, describe
from geomim.corpus.report.page import html_page
from geomim.corpus.report.report import write_report
from geomim.corpus.store import CATALOGUE, Corpus, write_json, write_table, write_text
from geomim.errors import CorpusError, InputError

EXCLUSIONS = pa.schema(
    [
        ("id", pa.int64()),
        ("benchmark", pa.string()),
        ("item", pa.string()),
        ("split", pa.string()),
        ("kind", pa.string()),
        ("distance", pa.int16()),
        ("orientation", pa.int8()),
        ("correlation", pa.float32()),
        ("share", pa.float32()),
    ]
)
"""A row a tile, an image of a benchmark that it touches, and a way in which it does; of each tile the most certain one
first. `orientation` turns the tile so that it looks like the image."""


def exclude(
    corpus: str,
    against: list[str],
    report_only: bool = False,
    radius: int = 8,
    crops: Crops = "fast",
    footprint: Footprint = "any",
    buffer: float = 0.0,
    sensor: str | None = None,
    bands: list[str] | None = None,
    skip_unreadable: bool = False,
    download: bool = False,
    workers: int | None = None,
) -> Path:
    """Drop the tiles of a corpus that touch what a benchmark is scored on.

    A tile touches an image by equal pixels, by a perceptual hash in any of eight orientations (checked on the pixels),
    by a part that overlaps at any offset, or by its place on Earth. Benchmarks that were excluded before stay so; one
    that is given again is searched again, and the outcome replaces the former. No pixel of the corpus is removed.

    Args:
        corpus: Folder of the corpus.
        against: Benchmarks: CARD@ROOT (its held-out splits), a folder of images (all of them), or a corpus or its
            catalogue (its val and test tiles); `:train+test` behind one takes those splits, `NAME=` before it names it.
        report_only: Write the evidence, and drop nothing; for a benchmark that is not excluded yet.
        radius: Bits, 0 to 12, in which perceptual hashes may differ.
        crops: How to look for parts that overlap at any offset: `fast`, `thorough` (finds more of the small overlaps;
            takes hours where millions of tiles meet thousands of images) or `off`.
        footprint: Which footprints count: `any`, those of one `acquisition` (same sensor, same day), or `off`.
        buffer: Metres by which the footprints of the benchmarks grow.
        sensor: Name of a built-in sensor or a YAML file, for rasters of benchmarks that do not name their bands.
        bands: Names of these rasters' bands in file order (`-` ignores one).
        skip_unreadable: Be content where images of a benchmark cannot be read; the page lists them all the same.
        download: Let torchgeo fetch the benchmarks of cards that are not there.
        workers: Processes; one a core where not given. Does not change the outcome.

    Returns:
        The page with the evidence.

    Raises:
        InputError: There is no such benchmark, or nothing of it can be read; or a part of it cannot, so that the
            exclusion, which is done, is not complete; or it is excluded, and would only be reported on.
        CorpusError: The folder is no corpus, or its exclusions are those of another one.
    """
    search = Search(radius, crops, footprint, buffer, sensor, bands, skip_unreadable)
    opened = open_to_change(corpus)
    console = Console(stderr=True, markup=False, highlight=False)
    sides = [side(one, True, sensor, bands, download) for one in against]
    _check_names(opened.path / "audit", sides)
    known = _known(opened)
    if report_only:
        _check_open(opened.path / "audit", sides, known)
    with (
        Progress(console=console, transient=True) as progress,
        Workers(progress, workers) as pool,
        _put_back(opened.path, sides),
    ):
        found, searched = _search_all(opened, sides, known, search, pool, console, report_only)
        if report_only:
            conclude(opened.path, workers=pool)  # for the checksum of the evidence
        else:
            # it is done even where it is an error in the end, so that a rebuild goes on behind it
            done = replace(search, skip_unreadable=skip_unreadable or any(one.unreadable for one in searched))
            change = {"exclude": {"against": [one.given for one in sides], **asdict(done)}}
            conclude(opened.path, change, {"exclusions": found}, workers=pool)
    _overview(opened, known if report_only else found)
    write_report(opened.path)
    console.print(f"look at: {opened.path / 'audit' / 'index.html'}", soft_wrap=True)
    check_readable(searched, skip_unreadable, opened.path / "audit")
    return opened.path / "audit" / "index.html"


@dataclass(frozen=True)
class Search:
    """How benchmarks are searched for; see `exclude`."""

    radius: int = 8
    crops: Crops = "fast"
    footprint: Footprint = "any"
    buffer: float = 0.0
    sensor: str | None = None
    bands: list[str] | None = None
    skip_unreadable: bool = False

    def __post_init__(self) -> None:
        check_buffer(self.buffer)


@contextmanager
def _put_back(corpus: Path, sides: Sequence[Side]) -> Iterator[None]:
    """Leave the evidence of benchmarks as it was where something fails: nothing is excluded then."""
    found = [corpus / "audit" / folder_of(one.name) for one in sides]
    old = {one: one.with_name(f"{one.name}.old.part") for one in found}
    for one, before in old.items():
        shutil.rmtree(before, ignore_errors=True)
        if one.exists():
            shutil.copytree(one, before)
    try:
        yield
    except BaseException:
        if not (corpus / "next").is_dir():  # with that, it is decided and only not yet in place
            for one, before in old.items():
                shutil.rmtree(one, ignore_errors=True)
                if before.exists():
                    os.replace(before, one)
        raise
    finally:
        for before in old.values():
            shutil.rmtree(before, ignore_errors=True)


def keep_clear(
    folder: Path, meta: dict[str, Any], sides: Sequence[Side], search: Search, pool: Workers, console: Console
) -> pa.Table:
    """Rows of `EXCLUSIONS` of tiles about which nothing is decided yet; the evidence is written beside them.

    Args:
        folder: Holds their pixels and their small tables.
        meta: What `corpus.json` is going to say: `sensor` and `recipe` count here.
        sides: Benchmarks.
        search: How to look for them.
        pool: Runs it.
        console: Is told what was found.

    Raises:
        InputError: Two benchmarks are called the same, or not all of one can be read.
    """
    shutil.rmtree(folder / "audit", ignore_errors=True)
    _check_names(folder / "audit", sides)
    undecided = _Undecided(folder, meta)
    found, searched = _search_all(undecided, sides, EXCLUSIONS.empty_table(), search, pool, console)
    check_readable(searched, search.skip_unreadable, folder / "audit")
    _overview(undecided, found)
    return found


class _Undecided(Corpus):
    """The tiles of a corpus that is being made: pixels and small tables are there, and no decision."""

    def __init__(self, path: Path, meta: dict[str, Any]) -> None:
        bands = [0.0] * len(meta["sensor"]["bands"])
        sizes = [one.name for one in (path / "tiles.zarr").iterdir() if one.is_dir()]
        open_yet = {"statistics": {"mean": bands, "std": bands}, "licences": (), "attributions": (), "sizes": sizes}
        super().__init__(path, meta | open_yet)

    def rows(self) -> Any:
        """Facts of all tiles, in id order; all that will be decided is null."""
        from pyarrow.dataset import dataset

        return dataset(sorted(self.path.glob("catalogue/tiles-*.parquet")), CATALOGUE, format="parquet")


def _search_all(
    opened: Corpus,
    sides: Sequence[Side],
    known: pa.Table,
    search: Search,
    pool: Workers,
    console: Console,
    report_only: bool = False,
) -> tuple[pa.Table, list[Collection]]:
    """`EXCLUSIONS` of all benchmarks beside those that are known of others, and the images that were looked at."""
    searched, tiles = [], opened.rows().count_rows()
    for benchmark in sides:
        collection, rows = _search(benchmark, opened, search, pool, report_only)
        searched.append(collection)
        known = pa.concat_tables([known.filter(pc.not_equal(known["benchmark"], benchmark.name)), rows])
        what = "would be dropped" if report_only else "are excluded"
        console.print(f"{benchmark.name}: {len(pc.unique(rows['id'])):,} of {tiles:,} tiles touch it and {what}")
    # of each tile the most certain row first: it is the reason that the catalogue gives
    ranked = known.append_column("rank", pc.index_in(known["kind"], value_set=pa.array(KINDS)))
    ways = [(name, "ascending") for name in ("id", "rank", "benchmark", "distance")]
    ways += [("correlation", "descending"), ("item", "ascending")]
    return known.take(pc.sort_indices(ranked, ways)), searched


def _search(
    benchmark: Side, corpus: Corpus, search: Search, pool: Workers, report_only: bool
) -> tuple[Collection, pa.Table]:
    """The benchmark's images and the `EXCLUSIONS` that they cause; the evidence is written."""
    if same_corpus(benchmark.corpus, corpus):
        raise InputError(f"'{benchmark.given}' is the corpus itself: its own splits are kept apart by `corpus split`")
    own = Side(corpus.path.resolve().name, str(corpus.path), (), corpus)
    one, two = collect_both(own, benchmark, min(corpus.sizes), pool)
    asked = {name: getattr(search, name) for name in ("radius", "crops", "footprint", "buffer")}
    found = match(one, two, pool, **asked)
    described = describe(found, one, two)
    touched = len(pc.unique(described["id_a"]))
    record = {
        "benchmark": benchmark.name,
        "given": benchmark.given,
        "splits": list(benchmark.splits or sorted({item.split for item in benchmark.items if item.split})),
        "asked": asked,
        **{key: value for key, value in facts(two).items() if key != "name"},
        "tiles": touched,
        "excluded": not report_only,
    }
    target, title = corpus.path / "audit" / folder_of(benchmark.name), f"{one.name} against {two.name}"
    lead = [("In short", f"<p>{touched:,} of {len(one):,} tiles touch {two.name}.</p>")]
    matches = "Matches: the tile, and the image of the benchmark"
    write_evidence(target, title, record, found, described, one, two, lead, matches)
    Console(markup=False, highlight=False).print(counts_table(described, benchmark.name))
    rows = described.rename_columns({"id_a": "id", "item_b": "item", "split_b": "split"})
    rows = rows.append_column("benchmark", pa.array([benchmark.name] * len(rows), pa.string()))
    return two, rows.select(EXCLUSIONS.names).cast(EXCLUSIONS)


def _known(corpus: Corpus) -> pa.Table:
    """Exclusions of earlier runs.

    Raises:
        CorpusError: They are of another corpus.
    """
    file = corpus.path / "catalogue" / "exclusions.parquet"
    if not file.exists():
        return EXCLUSIONS.empty_table()
    table = pq.read_table(file)
    if table.schema.names != EXCLUSIONS.names:
        raise CorpusError(f"'{file}' is no table of exclusions: remove it, and exclude again")
    strange = pc.unique(
        table.filter(pc.invert(pc.is_in(table["id"], corpus.table(["id"])["id"].combine_chunks())))["id"]
    )
    if len(strange):
        raise CorpusError(
            f"'{file}' excludes {len(strange):,} tiles that '{corpus.path}' does not have, such as {strange[0]}: it is "
            "that of another corpus; remove it, and exclude again"
        )
    return table.cast(EXCLUSIONS)


def _records(folder: Path) -> dict[Path, dict[str, Any]]:
    """`audit.json` of each benchmark; what an interrupted run left aside is none."""
    files = sorted(file for file in folder.glob("*/audit.json") if file.parent.suffix != ".part")
    return {file: json.loads(file.read_text()) for file in files}


def _check_names(folder: Path, sides: Sequence[Side]) -> None:
    """Refuse to let one benchmark replace another that is called the same."""
    given: dict[str, str] = {record["benchmark"]: record["given"] for record in _records(folder).values()}
    for one in sides:
        before = given.setdefault(one.name, one.given)
        if before != one.given and not one.given.startswith(f"{one.name}="):
            raise InputError(
                f"'{before}' and '{one.given}' would both be called '{one.name}', and the one would replace the other: "
                f"give NAME={one.given}"
            )


def _check_open(folder: Path, sides: Sequence[Side], known: pa.Table) -> None:
    """Refuse to put a mere report in the place of the evidence for what is dropped."""
    done = {record["benchmark"] for record in _records(folder).values() if record.get("excluded")}
    for one in sides:
        if one.name in done | set(known["benchmark"].to_pylist()):
            raise InputError(
                f"'{one.name}' is excluded already, and --report-only would replace the evidence of that: report on it "
                f"by another name, as NAME={one.given}, or search again without --report-only"
            )


def folder_of(name: str) -> str:
    """Name of a benchmark as the name of a folder."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")
    return plain if plain == name else f"{plain}-{xxhash.xxh3_64_hexdigest(name.encode())[:6]}"


def _overview(corpus: Corpus, excluded: pa.Table) -> None:
    """`matches.parquet`, `audit.json` and the page of all benchmarks together; the same facts give the same bytes."""
    folder, ids = corpus.path / "audit", corpus.table(["id"])["id"].to_numpy()
    records, tables = _records(folder), []
    for file, record in records.items():
        table = pq.read_table(file.with_name("matches.parquet"))
        # what was asked for counts only where each tile that touches it is out; `filter` leaves tiles behind
        out = excluded.filter(pc.equal(excluded["benchmark"], record["benchmark"]))["id"].to_numpy()
        touching = np.intersect1d(table["id_a"].to_numpy(), ids)
        record["excluded"] = record.get("excluded", True) and bool(np.isin(touching, out).all())
        tables.append(table.add_column(0, "benchmark", pa.array([record["benchmark"]] * len(table), pa.string())))
    write_table(folder / "matches.parquet", pa.concat_tables(tables))
    digest = xxhash.xxh3_128_hexdigest((folder / "matches.parquet").read_bytes())
    write_json(
        folder / "audit.json", {"geomim_version": __version__, "benchmarks": list(records.values()), "matches": digest}
    )
    rows = "".join(_overview_row(record) for record in records.values())
    head = "".join(f"<th>{name}</th>" for name in ("benchmark", "images", "tiles that touch it", *WORDS, ""))
    text = (
        "<p>Tiles of the corpus that touch what a benchmark is scored on, by the way in which they do. A tile may "
        f"touch an image in several ways. The list of all is matches.parquet.</p><table><tr>{head}</tr>{rows}</table>"
    )
    write_text(
        folder / "index.html",
        html_page(f"Corpus {corpus.path.resolve().name} against benchmarks", [("Benchmarks", text)]),
    )


def _overview_row(record: dict[str, Any]) -> str:
    name = html.escape(record["benchmark"])
    ways = [sum(row["windows"] for row in record["found"] if row["kind"] == kind) for kind in WORDS]
    cells = [f'<a href="{html.escape(folder_of(record["benchmark"]))}/index.html">{name}</a>', f"{record['images']:,}"]
    cells += [f"{record['tiles']:,}", *(f"{number:,}" for number in ways)]
    cells.append("excluded" if record["excluded"] else "reported only")
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
