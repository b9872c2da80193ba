"""`geomim corpus caption`: sentences of tiles, as a small table that is joined with them; nothing is cut again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from affine import Affine
from rich.console import Console

from geomim.corpus.assemble import masked, read_small, report, working
from geomim.corpus.captions import imported as importing
from geomim.corpus.captions.chance import Chance
from geomim.corpus.captions.cover import NOUNS, LandCover, bands_of, classify
from geomim.corpus.captions.objects import called, from_boxes, from_masks, masks
from geomim.corpus.captions.seen import crs_of, place_of, read_valid
from geomim.corpus.captions.table import CAPTIONS, Said, joined, rows_of, table_of, without
from geomim.corpus.captions.templates import by_boxes, covering, placed
from geomim.corpus.captions.vector import open_layer
from geomim.corpus.pipeline.conclude import conclude, open_to_change
from geomim.corpus.pipeline.decide import Tables
from geomim.corpus.store import Corpus
from geomim.errors import InputError, nearest

ORIGINS = ("human", "b2c", "m2b", "landcover", "index", "vector", "b2c-placed", "m2b-placed")
"""Origins that sentences of a file cannot have."""
_ORIGIN = {"boxes": "b2c", "masks": "m2b", "cover": "landcover", "index": "index"}
_COLUMNS = ["id", "size", "slot", "source", "valid_fraction", "cloud_fraction", "boxes", "gsd", "geometry", "transform"]
_COLUMNS += ["epsg", "crs_wkt"]
_INLINE_TILES = 2000

Found = tuple[int, str, list[str]]
"""The place of a tile in its part, an origin, and sentences."""


def caption(
    corpus: str,
    of: list[Literal["boxes", "masks", "cover", "index"]] | None = None,
    vector: list[str] | None = None,
    landcover: str | None = None,
    imported: str | None = None,
    column: str | None = None,
    names: dict[str, str | None] | None = None,
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
            with sources by path, the origin is the file's name without suffix.
        column: Of `vector` the class, of `imported` the sentences.
        names: What classes are called, as '{"small-vehicle": "car", "17": "person|people", "rest": null}'; null leaves
            a class out.
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
    opened, console = open_to_change(corpus), Console(stderr=True, markup=False, highlight=False)
    places = (str(opened.path), tuple(of or ()), tuple(vector or ()), landcover, column)
    job = Job(*places, names or {}, placed, middle, min_area, seed)
    _check(opened, job, imported, drop)
    before, said = read_small(opened, "captions"), Counter[str]()
    table = without(before, drop or []) if before is not None else CAPTIONS.empty_table()
    files = Tables(opened.path / "catalogue").parts()
    if of or vector or landcover:
        if vector:
            layer = open_layer(job.vector, column, tuple(job.names.items()))
            console.print("\n".join(layer.said), soft_wrap=True)
        if landcover:
            console.print(LandCover(landcover).said, soft_wrap=True)
        with working() as workers:
            inline = opened.rows().count_rows() < _INLINE_TILES
            parts = workers.run("writing captions", write_part, [(job, file) for file in files], inline)
        said.update(sum((counted for _, counted in parts), Counter()))
        _check_names(job.names, {word.removeprefix("class ") for word in said if word.startswith("class ")})
        new = pa.concat_tables([part for part, _ in parts])
    elif imported:
        new = _imported(opened, imported, column, said, console)
    else:
        new = CAPTIONS.empty_table()
    for what, count in sorted(said.items()):
        if count and not what.startswith("class "):
            console.print(f"{count:,} {what}", soft_wrap=True)
    if not len(new) and not drop:
        raise InputError(f"'{corpus}' has nothing of that kind to write a sentence of")
    origins = _say(new, job.origins, console)
    if show is not None:
        _show(new, show, seed)
        return opened.path
    table = joined(without(table, origins), new)
    conclude(opened.path, {"caption": asked}, {"captions": table if len(table) else None})
    report(opened.path)
    return opened.path


@dataclass(frozen=True)
class Job:
    """What to write; see `caption`."""

    corpus: str
    of: tuple[str, ...]
    vector: tuple[str, ...]
    landcover: str | None
    column: str | None
    names: dict[str, str | None]
    placed: bool
    middle: float
    min_area: int
    seed: int

    @property
    def origins(self) -> set[str]:
        """Of what is asked for; their placed sentences go with them."""
        layers = {"vector": self.vector, "landcover": self.landcover}
        return {_ORIGIN[kind] for kind in self.of} | {origin for origin, given in layers.items() if given}


def _check(corpus: Corpus, job: Job, imported: str | None, drop: list[str] | None) -> None:
    """Refuse what makes no sense before any tile is read."""
    if imported and (job.of or job.vector or job.landcover):
        raise InputError("--imported is joined by itself: run it alone, and the others before or after")
    if not (imported or job.of or job.vector or job.landcover or drop):
        raise InputError("say what to write of: --of boxes,masks,cover,index, --vector, --landcover or --imported")
    if not 0 < job.middle < 1 or job.min_area < 1:
        raise InputError(f"--middle lies between 0 and 1, --min-area is 1 or more; given {job.middle}, {job.min_area}")
    if job.column and not (job.vector or imported):
        raise InputError("--column goes with --vector or --imported")
    if job.names and not job.origins - {"index"}:
        raise InputError("--names goes with --of boxes, masks or cover, --vector or --landcover")
    if job.placed and not {"boxes", "masks"} & set(job.of):
        raise InputError("--placed goes with --of boxes or masks")
    if job.landcover and "cover" in job.of:
        raise InputError("--landcover and --of cover write sentences of one origin: give one of them")
    if {"masks", "cover"} & set(job.of) and not masked(corpus):
        raise InputError(f"'{corpus.path}' has no label masks: build it with --masks, or take --of boxes")
    if "index" in job.of:
        bands_of(corpus.sensor)
    if job.landcover:
        LandCover(job.landcover)
    if imported and Path(imported).stem in ORIGINS:
        raise InputError(f"'{imported}': '{Path(imported).stem}' is the origin of sentences of another kind; rename it")
    if drop:
        table = read_small(corpus, "captions")
        there = set() if table is None else set(pc.unique(pc.list_flatten(table["caption_origins"])).to_pylist())
        if left := sorted(set(drop) - there):
            raise InputError(f"--drop: no sentence of origin {', '.join(left)} was written{nearest(left[0], there)}")


def _check_names(names: dict[str, str | None], there: set[str]) -> None:
    if left := sorted(set(names) - there):
        raise InputError(f"--names: no class is called {', '.join(left)}{nearest(left[0], there)}")


def write_part(job: Job, file: Path) -> tuple[pa.Table, Counter[str]]:
    """Sentences of the tiles of one part, and what is to be said of them; a task."""
    corpus, said = Corpus.open(job.corpus), Counter[str]()
    tiles = pq.read_table(file, columns=_COLUMNS)
    found = [*_of_objects(job, corpus, tiles, said), *_of_cover(job, corpus, tiles, said)]
    found += _of_vector(job, corpus, tiles, said)
    return _table(tiles["id"].to_pylist(), found), said


def _table(ids: list[int], found: Iterable[Found]) -> pa.Table:
    rows: dict[int, Said] = {}
    for place, origin, sentences in found:
        rows.setdefault(ids[place], []).extend((text, origin) for text in sentences)
    return table_of(rows.items())


def _of_objects(job: Job, corpus: Corpus, tiles: pa.Table, said: Counter[str]) -> Iterator[Found]:
    ids, sizes = tiles["id"].to_pylist(), tiles["size"].to_pylist()
    gsds = pc.fill_null(tiles["gsd"], corpus.sensor.gsd or 0.0).to_pylist()
    if job.placed and corpus.sensor.gsd:
        guessed = (
            f"tiles tell no size of a pixel, and are taken for {corpus.sensor.gsd:g} m as {corpus.sensor.name} has"
        )
        said[guessed] += tiles["gsd"].null_count
    for kind in ("boxes", "masks"):
        if kind not in job.of:
            continue
        boxes, origin = kind == "boxes", _ORIGIN[kind]
        given = (corpus, tiles, job.names, said)
        for place, objects in (from_boxes(*given) if boxes else from_masks(*given, job.min_area)).by_tile():
            chance = partial(Chance, job.seed, ids[place], origin)
            yield place, origin, by_boxes(objects, sizes[place], job.middle, chance)
            if job.placed:
                yield place, f"{origin}-placed", placed(objects, sizes[place], gsds[place], chance)


def _of_cover(job: Job, corpus: Corpus, tiles: pa.Table, said: Counter[str]) -> Iterator[Found]:
    """Shares of what covers the ground: masks of the corpus, of a map, of the spectrum."""
    ids, sizes, slots = (tiles[name].to_pylist() for name in ("id", "size", "slot"))
    for origin, nouns, covers in _covers(job, corpus, tiles, said):
        for place, mask in covers:
            valid = read_valid(corpus, sizes[place], slots[place])
            seen = mask if valid is None else mask[valid]
            numbers = np.bincount(seen.ravel(), minlength=256) / max(seen.size, 1)
            shares: dict[Any, float] = {}
            for number, noun in enumerate(nouns):
                if noun is not None and numbers[number]:
                    shares[noun] = shares.get(noun, 0.0) + float(numbers[number])
            if sentences := covering(shares, Chance(job.seed, ids[place], origin)):
                yield place, origin, sentences


def _covers(job: Job, corpus: Corpus, tiles: pa.Table, said: Counter[str]) -> Iterator[tuple[str, list, Any]]:
    if "cover" in job.of:
        said.update(f"class {name}" for name in corpus.classes)
        yield "landcover", called(list(corpus.classes), job.names), masks(corpus, tiles)
    if job.landcover:
        cover = LandCover(job.landcover)
        said.update(f"class {name}" for name in cover.classes)
        yield "landcover", called(list(cover.classes), job.names), _on_map(cover, tiles, said)
    if "index" in job.of:
        yield "index", NOUNS, _spectral(corpus, tiles, said)


def _on_map(cover: LandCover, tiles: pa.Table, said: Counter[str]) -> Iterator[tuple[int, np.ndarray]]:
    for place, tile in enumerate(tiles.select(["size", "transform", "epsg", "crs_wkt"]).to_pylist()):
        if tile["transform"] is None or (tile["epsg"] is None and tile["crs_wkt"] is None):
            said["tiles have no place on Earth, and get nothing of --landcover"] += 1
            continue
        crs = crs_of(tile["epsg"], tile["crs_wkt"])
        yield place, cover.read(Affine(*tile["transform"]), crs, tile["size"])


def _spectral(corpus: Corpus, tiles: pa.Table, said: Counter[str]) -> Iterator[tuple[int, np.ndarray]]:
    places = bands_of(corpus.sensor)
    arrays = {size: corpus.array("image", size) for size in corpus.sizes}
    for place, tile in enumerate(tiles.select(["size", "slot", "cloud_fraction"]).to_pylist()):
        array = arrays.get(tile["size"])
        if (tile["cloud_fraction"] or 0) > 0:
            said["tiles have clouds, of which no index tells the ground"] += 1
        elif array is not None and tile["slot"] >= 0:
            yield place, classify(array.read([tile["slot"]])[0], corpus.sensor, places)


def _of_vector(job: Job, corpus: Corpus, tiles: pa.Table, said: Counter[str]) -> Iterator[Found]:
    if not job.vector:
        return
    layer = open_layer(job.vector, job.column, tuple(job.names.items()))
    said.update(f"class {name}" for name in layer.classes)
    for row, tile in enumerate(tiles.drop_columns("boxes").to_pylist()):
        if tile["geometry"] is None:
            said["tiles have no place on Earth, and get nothing of --vector"] += 1
            continue
        valid = read_valid(corpus, tile["size"], tile["slot"]) if tile["valid_fraction"] < 1 else None
        if (place := place_of(tile, valid)) is None:
            said["tiles are padded and placed by ground control points, and get nothing of --vector"] += 1
        elif sentences := layer.sentences(place, tile["gsd"] or 0.0, partial(Chance, job.seed, tile["id"], "vector")):
            yield row, "vector", sentences


def _imported(corpus: Corpus, file: str, column: str | None, said: Counter[str], console: Console) -> pa.Table:
    tiles = corpus.table(["id", "source"])
    sources = pc.dictionary_encode(tiles["source"].cast(pa.string())).combine_chunks()
    found = importing.imported(file, column, sources.dictionary.to_pylist(), said)
    console.print(str(found), soft_wrap=True)
    codes = sources.indices.to_numpy()
    told = np.array([bool(value) for value in found.values], bool)[codes]
    several = np.bincount(codes)[codes] > 1
    said["tiles are parts of an image, and get the sentences of the whole"] = int((several & told).sum())
    every = ((place, Path(file).stem, list(found.values[code] or ())) for place, code in enumerate(codes.tolist()))
    return _table(tiles["id"].to_pylist(), every)


def _say(new: pa.Table, asked: set[str], console: Console) -> list[str]:
    """Say how many sentences of which origins there are, none of one that was asked for included; the origins."""
    rows = new["caption_origins"].to_pylist()
    sentences, tiles = (Counter(origin for row in rows for origin in kind(row)) for kind in (list, set))
    for origin in (origins := sorted({*tiles, *asked})):
        console.print(f"{origin}: {sentences[origin]:,} sentences of {tiles[origin]:,} tiles")
    return origins


def _show(new: pa.Table, count: int, seed: int) -> None:
    every = [(number, origin, text) for number, said in rows_of(new).items() for text, origin in said]
    for row in sorted(Chance(seed, "show").some(every, count)):
        print(*row, sep="\t")
