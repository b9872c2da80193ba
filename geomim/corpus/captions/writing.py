"""What is written of the tiles of one part of a corpus, each kind of sentence from its own labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from affine import Affine

from geomim.corpus.captions.chance import Chance
from geomim.corpus.captions.cover import NOUNS, LandCover, bands_of, classify, open_cover
from geomim.corpus.captions.objects import called, from_boxes, from_masks, masks
from geomim.corpus.captions.seen import FACTS, crs_of, place_of, read_valid
from geomim.corpus.captions.table import Said, table_of
from geomim.corpus.captions.templates import by_boxes, covering, placed
from geomim.corpus.captions.vector import Layer, open_layer
from geomim.corpus.store import Corpus

_ORIGIN = {"boxes": "b2c", "masks": "m2b", "cover": "landcover", "index": "index"}
_COLUMNS = ["id", "size", "slot", "source", "valid_fraction", "cloud_fraction", "boxes", "gsd", "geometry", "transform"]
_COLUMNS += ["epsg", "crs_wkt"]

Found = tuple[int, str, list[str]]
"""The place of a tile in its part, an origin, and sentences."""


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

    def layer(self) -> Layer:
        """The vector layers, read once a process."""
        return open_layer(self.vector, self.column, tuple(self.names.items()))

    @property
    def origins(self) -> set[str]:
        """Of what is asked for; their placed sentences go with them."""
        layers = {"vector": self.vector, "landcover": self.landcover}
        return {_ORIGIN[kind] for kind in self.of} | {origin for origin, given in layers.items() if given}


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
    ids, facts = tiles["id"].to_pylist(), tiles.select(FACTS).to_pylist()
    for origin, nouns, covers in _covers(job, corpus, tiles, said):
        for place, mask in covers:
            valid = read_valid(corpus, facts[place])
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
        yield "landcover", called(list(corpus.classes), job.names), masks(corpus, tiles)
    if job.landcover:
        with open_cover(job.landcover) as cover:
            yield "landcover", called(list(cover.classes), job.names), _on_map(cover, tiles, said)
    if "index" in job.of:
        yield "index", NOUNS, _spectral(corpus, tiles, said)


def _on_map(cover: LandCover, tiles: pa.Table, said: Counter[str]) -> Iterator[tuple[int, np.ndarray]]:
    for place, tile in enumerate(tiles.select(["size", "transform", "epsg", "crs_wkt"]).to_pylist()):
        if tile["transform"] is None or (tile["epsg"] is None and tile["crs_wkt"] is None):
            said["tiles have no grid on Earth, and get nothing of --landcover"] += 1
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
            said["tiles have no mask of clouds, and are taken for clear by --of index"] += (
                tile["cloud_fraction"] is None
            )
            yield place, classify(array.read([tile["slot"]])[0], corpus.sensor, places)


def _of_vector(job: Job, corpus: Corpus, tiles: pa.Table, said: Counter[str]) -> Iterator[Found]:
    if not job.vector:
        return
    layer = job.layer()
    for row, tile in enumerate(tiles.drop_columns("boxes").to_pylist()):
        if tile["geometry"] is None:
            said["tiles have no place on Earth, and get nothing of --vector"] += 1
            continue
        if (place := place_of(tile, read_valid(corpus, tile))) is None:
            said["tiles are padded and placed by ground control points, and get nothing of --vector"] += 1
        elif sentences := layer.sentences(place, tile["gsd"] or 0.0, partial(Chance, job.seed, tile["id"], "vector")):
            yield row, "vector", sentences
