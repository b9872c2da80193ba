"""`geomim corpus caption`: sentences of tiles, as a small table that is joined with them; nothing is cut again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console

from geomim.corpus.assemble import masked, read_small, report, working
from geomim.corpus.captions import imported as importing
from geomim.corpus.captions.chance import Chance
from geomim.corpus.captions.cover import bands_of, open_cover
from geomim.corpus.captions.files import files_asked, stated
from geomim.corpus.captions.objects import plain_class, spelled
from geomim.corpus.captions.origins import ORIGINS
from geomim.corpus.captions.table import CAPTIONS, ROWS, flat, joined, of_one, origins_of, without
from geomim.corpus.captions.writing import Job, write_part
from geomim.corpus.pipeline.conclude import conclude, open_to_change
from geomim.corpus.pipeline.decide import Tables
from geomim.corpus.store import Corpus
from geomim.errors import InputError, nearest

_INLINE_TILES = 2000


def caption(
    corpus: str,
    of: list[Literal["boxes", "masks", "cover", "index"]] | None = None,
    vector: list[str] | None = None,
    landcover: str | None = None,
    imported: str | None = None,
    column: str | None = None,
    names: dict[str, str | None] | None = None,
    licence: str | None = None,
    placed: bool = False,
    middle: float = 0.5,
    min_area: int = 16,
    seed: int = 0,
    drop: list[str] | None = None,
    show: int | None = None,
) -> Path:
    """Write sentences that are true of the tiles of a corpus, each with its origin; nothing is cut again.

    Several runs add to one another; one of an origin that is there replaces its sentences. Those that sources brought
    with them are of origin `human` and stay.

    Args:
        corpus: Folder of the corpus.
        of: `boxes` (origin b2c) and connected parts of label `masks` (m2b): objects in the middle of the picture,
            around it, and counts, as RemoteCLIP has them; `cover`: shares of the classes of masks (landcover); `index`:
            open water, snow, dense vegetation and bare soil by thresholds of spectral indices.
        vector: Files that geopandas reads (FILE:LAYER where one has several layers), in any projection: objects, areas,
            lengths and crossings on tiles with a place on Earth.
        landcover: Raster of class numbers with a place on Earth, whose classes `classes.json` beside it or its tag
            `CLASSES` names: shares of them.
        imported: Karpathy's JSON (RSICD, UCM, Sydney, RSITMD), that of NWPU-Captions, CSV, JSONL or Parquet; joined
            with sources by path, the origin is the file's name without suffix (where that ends in `-placed`, batches
            that flip or turn tiles leave it out).
        column: Of `vector` the class, of `imported` the sentences.
        names: What classes are called, as '{"small-vehicle": "car", "17": "person|people", "rest": null}'; null leaves
            a class out.
        licence: Of the sentences of `vector`, `landcover` or `imported`, which the lock and the report state with the
            file; `unknown` where not given.
        placed: Write a second family, too, with quarters of the picture and sizes in metres (b2c-placed, m2b-placed):
            batches that flip or turn tiles leave it out.
        middle: Edge of the middle of the picture as a share of the picture's.
        min_area: Least pixels of a connected part of a mask.
        seed: Of all choices.
        drop: Origins whose sentences are removed.
        show: Print so many sentences drawn by chance, and change nothing.

    Returns:
        The folder.

    Raises:
        InputError: An argument or a file is wrong, or there is nothing to write a sentence of.
        BandError: The corpus lacks the bands of an index.
        CorpusError: It is no corpus, or its masks do not fit its tiles.
    """
    asked = {name: value for name, value in locals().items() if name not in ("corpus", "show")}
    opened = open_to_change(corpus)
    places = (str(opened.path), tuple(of or ()), tuple(vector or ()), landcover, column)
    job = Job(*places, names or {}, placed, middle, min_area, seed)
    _check_arguments(job, imported, licence, drop, show)
    _check_corpus(opened, job, drop)
    _say(_look(opened, job))
    new, said = _imported(opened, imported, column) if imported else _written(opened, job)
    _say(said)
    if not len(new) and not drop:
        raise InputError(f"'{corpus}' has nothing of that kind to write a sentence of")
    counts = _count(new, job.origins)
    _say(f"{origin}: {count:,} sentences of {tiles:,} tiles" for origin, (count, tiles) in counts.items())
    if show is None:
        _store(opened, asked, new, counts)
        report(opened.path)
    else:
        _show(new, show, seed)
    return opened.path


def _say(lines: Iterable[str]) -> None:
    console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    for line in lines:
        console.print(line)


def _check_arguments(
    job: Job, imported: str | None, licence: str | None, drop: list[str] | None, show: int | None
) -> None:
    """Refuse what makes no sense together."""
    if imported and (job.of or job.vector or job.landcover):
        raise InputError("--imported is joined by itself: run it alone, and the others before or after")
    if not (imported or job.of or job.vector or job.landcover or drop):
        raise InputError("say what to write of: --of boxes,masks,cover,index, --vector, --landcover or --imported")
    if not 0 < job.middle < 1 or job.min_area < 1:
        raise InputError(f"--middle lies between 0 and 1, --min-area is 1 or more; given {job.middle}, {job.min_area}")
    if show is not None and show < 1:
        raise InputError(f"--show is 1 or more; given {show}")
    if job.column and not (job.vector or imported):
        raise InputError("--column goes with --vector or --imported")
    if licence and not (job.vector or job.landcover or imported):
        raise InputError("--licence goes with --vector, --landcover or --imported: of others it is the imagery's")
    if licence and job.vector and job.landcover:
        raise InputError("--licence is of one publisher's files: run --vector and --landcover apart, each with its own")
    if job.names and not job.origins - {"index"}:
        raise InputError("--names goes with --of boxes, masks or cover, --vector or --landcover")
    if job.placed and not {"boxes", "masks"} & set(job.of):
        raise InputError("--placed goes with --of boxes or masks")
    if job.landcover and "cover" in job.of:
        raise InputError("--landcover and --of cover write sentences of one origin: give one of them")
    if imported and Path(imported).stem in ORIGINS:
        raise InputError(f"'{imported}': '{Path(imported).stem}' is the origin of sentences of another kind; rename it")


def _check_corpus(corpus: Corpus, job: Job, drop: list[str] | None) -> None:
    """Refuse what the corpus does not hold."""
    if {"masks", "cover"} & set(job.of) and not masked(corpus):
        raise InputError(f"'{corpus.path}' has no label masks: build it with --masks, or take --of boxes")
    if "index" in job.of:
        bands_of(corpus.sensor)
    if drop:
        there = origins_of(read_small(corpus, "captions"))
        if left := sorted(set(drop) - there):
            raise InputError(f"--drop: no sentence of origin {', '.join(left)} was written{nearest(left[0], there)}")


def _look(corpus: Corpus, job: Job) -> list[str]:
    """What layers and maps say of themselves; refuse names of classes that nothing has, before any tile is read."""
    said, classes = [], set(corpus.classes if {"masks", "cover"} & set(job.of) else ())
    if job.vector:
        layer = job.layer()
        said += layer.said
        classes.update(layer.classes)
    if job.landcover:
        with open_cover(job.landcover) as cover:
            said.append(cover.said)
            classes.update(cover.classes)
    if "boxes" in job.of and job.names:
        for file in Tables(corpus.path / "catalogue").parts():
            boxes = pc.list_flatten(pq.read_table(file, columns=["boxes"])["boxes"].combine_chunks())
            classes.update(pc.unique(pc.struct_field(boxes, "label")).drop_null().to_pylist())
    known = {spelled(name) for one in classes for name in (one, plain_class(one))}
    if left := sorted(name for name in job.names if spelled(name) not in known):
        raise InputError(f"--names: no class is called {', '.join(left)}{nearest(left[0], classes)}")
    return said


def _written(corpus: Corpus, job: Job) -> tuple[pa.Table, list[str]]:
    """Sentences that are written of the tiles, and what is to be said of them."""
    if not job.origins:
        return CAPTIONS.empty_table(), []
    with working() as workers:
        inline = corpus.rows().count_rows() < _INLINE_TILES
        calls = [(job, file) for file in Tables(corpus.path / "catalogue").parts()]
        parts = workers.run("writing captions", write_part, calls, inline)
    return pa.concat_tables([part for part, _ in parts]), _lines(sum((counts for _, counts in parts), Counter()))


def _lines(counts: Counter[str]) -> list[str]:
    return [f"{count:,} {what}" for what, count in sorted(counts.items()) if count]


def _imported(corpus: Corpus, file: str, column: str | None) -> tuple[pa.Table, list[str]]:
    """Sentences of a file, and what is to be said of them."""
    said = Counter[str]()
    tiles = corpus.table(["id", "source"])
    sources = pc.dictionary_encode(tiles["source"].cast(pa.string())).combine_chunks()
    found = importing.imported(file, column, sources.dictionary.to_pylist(), said)
    texts = pa.array([value and list(value) for value in found.values], pa.list_(pa.string()))
    times = pc.value_counts(sources.indices)
    several = times.field("values").filter(pc.greater(times.field("counts"), 1))
    told = pc.and_(texts.is_valid().take(sources.indices), pc.is_in(sources.indices, several))
    said["tiles are parts of an image, and get the sentences of the whole"] = pc.sum(told).as_py() or 0
    ids, origin = tiles["id"].combine_chunks(), Path(file).stem
    starts = range(0, len(ids), ROWS)
    parts = [of_one(ids[at : at + ROWS], texts.take(sources.indices[at : at + ROWS]), origin) for at in starts]
    return pa.concat_tables([CAPTIONS.empty_table(), *parts]), [str(found), *_lines(said)]


def _count(new: pa.Table, asked: set[str]) -> dict[str, tuple[int, int]]:
    """Sentences and their tiles of each origin, none of one that was asked for included."""
    rows = flat(new).group_by("caption_origins").aggregate([("id", "count"), ("id", "count_distinct")])
    columns = (rows[name].to_pylist() for name in ("caption_origins", "id_count", "id_count_distinct"))
    found = {origin: (count, tiles) for origin, count, tiles in zip(*columns, strict=True)}
    return {origin: found.get(origin, (0, 0)) for origin in sorted({*found, *asked})}


def _show(new: pa.Table, count: int, seed: int) -> None:
    rows = flat(new).select(["id", "caption_origins", "captions"])
    some = rows.take(Chance(seed, "show").some(range(len(rows)), count))
    for row in sorted(tuple(row.values()) for row in some.to_pylist()):
        print(*row, sep="\t")


def _store(corpus: Corpus, asked: dict[str, Any], new: pa.Table, counts: dict[str, tuple[int, int]]) -> None:
    """Put new sentences in place of those of their origins, and state which files they come from."""
    gone = {*counts, *(asked["drop"] or ())}
    table = joined(without(read_small(corpus, "captions") or CAPTIONS.empty_table(), gone), new)
    before = corpus.meta.get("sentences", {})
    told = {origin: files for origin, files in before.items() if origin not in gone}
    for origin, files in files_asked(asked).items():
        if counts.get(origin, (0, 0))[0]:
            told[origin] = [stated(origin, file, asked["licence"]) for file in files]
    said = {"sentences": told} if told or before else None
    conclude(corpus.path, {"caption": asked}, {"captions": table if len(table) else None}, said=said)
