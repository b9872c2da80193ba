"""Corpora put together and taken apart: `merge`, `filter`. No scene is cut again."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console

from geomim.corpus.assemble import (
    bring_tiles,
    decide_anew,
    images,
    masked,
    new_corpus,
    put,
    read_small,
    working,
    write_edges,
)
from geomim.corpus.build import find_duplicates, searched
from geomim.corpus.captions.origins import files_of
from geomim.corpus.captions.table import CAPTIONS, joined, origins_of
from geomim.corpus.pieces import stage, write_arrays
from geomim.corpus.pipeline.conclude import open_to_change
from geomim.corpus.pipeline.copies import COPIES
from geomim.corpus.pipeline.decide import Tables
from geomim.corpus.pipeline.edges import EDGES, led
from geomim.corpus.pipeline.executor import Workers
from geomim.corpus.pipeline.pixels import Pixels
from geomim.corpus.pipeline.rules import matching, rules_of
from geomim.corpus.pipeline.slots import originals
from geomim.corpus.pipeline.staged import staged
from geomim.corpus.shards import write_groups
from geomim.corpus.store import SKIPPED, Corpus, write_table
from geomim.errors import BandError, CorpusError, InputError


def merge(corpora: list[str], out: str) -> Path:
    """Put corpora of one sensor together into a new one; pixels are shared, not written again, where the disk can.

    All is looked for and decided as a build of all their sources does it, by the thresholds of the first, and takes as
    long as it does there, but for the cutting. A source that several of them hold counts once, with the labels, licence
    and whatever else only one of them states; where they differ, the first counts and it is said, and a ban on
    commercial use counts whoever states it. Tiles that benchmarks excluded stay excluded; benchmarks that not all of
    the corpora were compared with are named: exclude them again. Splits and balances that were drawn, and sentences
    that were written, stay as they are.

    Args:
        corpora: Folders of two corpora or more.
        out: Folder of the new corpus.

    Returns:
        The folder.

    Raises:
        BandError: They have different bands.
        CorpusError: They hold different types of numbers or classes of masks, or `out` holds something.
    """
    if len(corpora) < 2:
        raise InputError(f"merge takes two corpora or more; given {len(corpora)}")
    opened = [open_to_change(path) for path in corpora]
    for other in opened[1:]:
        _check_alike(opened[0], other)
    recipe = opened[0].meta["recipe"]
    with new_corpus(out, "merge", corpora=corpora) as folder, working() as workers:
        slots = write_arrays(folder / "tiles.zarr", opened, workers)
        sources = stage(folder, opened, slots, workers)
        pixels = Pixels(images(opened[0], opened[0].sizes[0]).dtype.name, len(opened[0].sensor.bands))
        tiles = pc.sum(sources["tiles"]).as_py()
        copies, edges = find_duplicates(folder / "work", tiles, pixels, recipe, workers)
        _write_tables(folder, copies)
        _carry_over(folder, opened, edges)
        write_table(folder / "catalogue" / "sources.parquet", sources)
        skipped = pa.concat_tables([corpus.skipped() for corpus in opened])
        write_table(folder / "skipped.parquet", skipped.group_by(SKIPPED.names).aggregate([]).sort_by("source"))
        decide_anew(folder, _joined(opened) | {"searched": searched(recipe["near"])}, workers)
    _say_what_differs(out, opened)
    return Path(out)


def _write_tables(folder: Path, copies: pa.Table) -> None:
    """Write the facts of all tiles that are staged, with the original of each."""
    write_table(folder / "catalogue" / "copies.parquet", copies)
    for number, task in enumerate(staged(folder / "work").folders):
        tiles = pq.read_table(task / "tiles.parquet")
        tiles = tiles.append_column("original", pa.array(originals(tiles["id"].to_numpy(), copies)))
        write_table(folder / "catalogue" / f"tiles-{number:06d}.parquet", tiles)


def _carry_over(folder: Path, corpora: Sequence[Corpus], edges: pa.Table) -> None:
    """Write the edges that were found, and what was done to the corpora after their builds, under the new ids."""
    files = [task / "ids.parquet" for task in staged(folder / "work").folders]
    tables: dict[str, list[pa.Table]] = {"exclusions": [], "balance": []}  # a split that was drawn is the tiles' own
    between, captions = [edges], CAPTIONS.empty_table()
    for number, corpus in enumerate(corpora):
        ids = pa.concat_tables(pq.read_table(file, filters=pc.field("corpus") == number) for file in files)
        ids = ids.sort_by("old")
        old, new = ids["old"].to_numpy(), ids["id"].to_numpy()
        more = pq.read_table(corpus.path / "catalogue" / "edges.parquet").cast(EDGES)
        more = more.filter(pc.equal(more["kind"], "embedding"))
        between.append(_renamed(more, old, new))
        for name, some in (*tables.items(), ("captions", [])):
            if (table := read_small(corpus, name)) is not None:
                some.append(put(table, "id", new[np.searchsorted(old, table["id"].to_numpy())]))
                captions = joined(some[0], captions) if name == "captions" else captions
    write_edges(folder / "catalogue", between)
    if len(captions):
        write_table(folder / "catalogue" / "captions.parquet", captions)
    for name, some in tables.items():
        if some:
            table = pa.concat_tables(some)
            table = table.group_by(table.column_names, use_threads=False).aggregate([])  # of a tile that several had
            order = np.argsort(table["id"].to_numpy(), kind="stable")
            write_table(folder / "catalogue" / f"{name}.parquet", table.take(order))


def _say_what_differs(folder: str, corpora: Sequence[Corpus]) -> None:
    """Say what a build of all sources might have done otherwise."""
    console = Console(stderr=True, markup=False, highlight=False)
    first, *others = corpora
    for other in others:
        asked, theirs = (asdict(rules_of(corpus.meta)) | {"protect": None} for corpus in (first, other))
        if named := [f"{name} {value} and {theirs[name]}" for name, value in asked.items() if value != theirs[name]]:
            console.print(
                f"'{first.path}' and '{other.path}' ask other things of a tile ({', '.join(named)}): what the first "
                f"asks counts for all; `geomim corpus decide {folder}` changes it",
                soft_wrap=True,
            )
        if named := [name for name in _CUT if first.meta["recipe"].get(name) != other.meta["recipe"].get(name)]:
            console.print(
                f"'{first.path}' and '{other.path}' were made with other values of {', '.join(named)}: a build of all "
                "sources decides otherwise",
                soft_wrap=True,
            )
    compared = [_benchmarks(corpus) for corpus in corpora]
    if every := list(dict.fromkeys(name for some in compared for name in some)):
        partly = [name for name in every if not all(name in some for some in compared)]
        why = f"audits of the parts do not cover all tiles of '{folder}'" if partly else "the evidence stays behind"
        again = f"`geomim corpus exclude {folder} --against {' '.join(partly or every)}`"
        console.print(f"excluded tiles stay excluded, but {why}: {again} does it", soft_wrap=True)


_CUT = ("tile", "stride", "resolution", "harmonise", "warp", "clouds", "crops", "test_share")
"""Entries of recipes by which the same sources give other tiles, edges or splits."""


def _benchmarks(corpus: Corpus) -> list[str]:
    """What a corpus was compared with, as it was given."""
    return [record["given"] for record in corpus.evidence() if record.get("excluded", True)]


def filter(corpus: str, where: str, out: str, licence: list[str] | None = None) -> Path:
    """Make a new corpus of some tiles of one.

    What is kept of them is decided anew: a copy of a tile that is left out takes its place.

    Args:
        corpus: Folder of the corpus.
        where: SQL condition on the catalogue's columns, such as "kept AND cloud_fraction < 0.1"; `true` for all.
        out: Folder of the new corpus.
        licence: Only tiles under these licences, as the catalogue spells them.

    Returns:
        The folder.

    Raises:
        InputError: The condition is wrong, or no tile meets it.
        CorpusError: It is no corpus, or `out` holds something.
    """
    opened = open_to_change(corpus)
    ids = _chosen(opened, where, licence)
    with new_corpus(out, "filter", corpus=corpus, where=where, licence=licence) as folder, working() as workers:
        _pick(opened, ids, folder, workers)
        for name in ("exclusions", "split", "label", "balance", "captions"):
            if (table := read_small(opened, name)) is not None:
                write_table(folder / "catalogue" / f"{name}.parquet", _among(table, ids, "id"))
        write_table(folder / "skipped.parquet", opened.skipped())
        if (opened.path / "audit").is_dir():
            shutil.copytree(opened.path / "audit", folder / "audit")
        said = {"where": where, "licence": licence, "recipe": opened.meta["recipe"].get("filtered")}
        meta = opened.meta | {"classes": opened.meta["classes"] if masked(opened) else []}
        decide_anew(folder, meta | {"recipe": opened.meta["recipe"] | {"filtered": said}}, workers)
    return Path(out)


def _chosen(corpus: Corpus, where: str, licence: Sequence[str] | None) -> np.ndarray:
    """Ids of the tiles that meet a condition, sorted."""
    found, licences = [], set()
    for batch in corpus.rows().to_batches():
        tiles = pa.Table.from_batches([batch])
        met = matching(tiles, where)
        if licence is not None:
            licences.update(tiles["licence"].unique().to_pylist())
            met &= pc.is_in(tiles["licence"], pa.array(licence, pa.string())).to_numpy()
        found.append(tiles["id"].to_numpy()[met])
    ids = np.concatenate(found)
    if not len(ids):
        known = sorted(name for name in licences if name)
        more = f" (its licences: {', '.join(known) or 'none stated'})" if licence is not None else ""
        raise InputError(f"no tile of '{corpus.path}' meets '{where}'{more}")
    return np.sort(ids)


def _pick(corpus: Corpus, ids: np.ndarray, folder: Path, workers: Workers) -> None:
    """Write pixels, facts, edges and sources of some tiles."""
    files, columns = Tables(corpus.path / "catalogue").parts(), ["size", "slot", "original"]
    tiles = pa.concat_tables(_among(pq.read_table(file, columns=["id", *columns]), ids, "id") for file in files)
    sizes, slots, old = (tiles[name].to_numpy() for name in columns)
    originals_, place, back = np.unique(old, return_index=True, return_inverse=True)
    original, slots = ids[place][back], slots.copy()  # of copies the first that stays
    for size in np.unique(sizes).tolist():
        own = sizes == size
        wanted, slots[own] = np.unique(slots[own], return_inverse=True)
        bring_tiles(folder / "tiles.zarr", size, [(corpus, wanted)], None, workers)
    write_groups(folder / "tiles.zarr")
    done, number, named = 0, 0, set()
    for part in (_among(pq.read_table(file), ids, "id") for file in files):
        if len(part):
            here = slice(done, done + len(part))
            part = put(put(part, "slot", slots[here]), "original", original[here])
            write_table(folder / "catalogue" / f"tiles-{number:06d}.parquet", part)
            named.update(part["source"].unique().to_pylist())
            done, number = done + len(part), number + 1
    copy = ids != original
    write_table(folder / "catalogue" / "copies.parquet", pa.table([ids[copy], original[copy]], COPIES))
    # what was found by looking at an original holds for its copies; a footprint or a vector is that of a tile itself
    edges = pq.read_table(corpus.path / "catalogue" / "edges.parquet").cast(EDGES)
    itself = pc.is_in(edges["kind"], pa.array(["footprint", "embedding"]))
    looked = _among(edges.filter(pc.invert(itself)), originals_, "a", "b")
    found = [_among(edges.filter(itself), ids, "a", "b"), _renamed(looked, originals_, ids[place])]
    write_edges(folder / "catalogue", found)
    sources = pq.read_table(corpus.path / "catalogue" / "sources.parquet")
    # those that gave a tile, and all masks that were given beside sources
    some = pc.or_(pc.is_in(sources["uri"], pa.array(sorted(named))), pc.equal(sources["tiles"], 0))
    write_table(folder / "catalogue" / "sources.parquet", sources.filter(some))


def _among(table: pa.Table, known: np.ndarray, *columns: str) -> pa.Table:
    """The rows whose numbers in these columns are among sorted ones."""
    for name in columns:
        numbers = table[name].to_numpy()
        at = np.minimum(np.searchsorted(known, numbers), len(known) - 1)
        table = table.filter(pa.array(known[at] == numbers))
    return table


def _renamed(edges: pa.Table, old: np.ndarray, new: np.ndarray) -> pa.Table:
    """The edges under other ids; `old` is sorted."""
    return led(edges, *(new[np.searchsorted(old, edges[end].to_numpy())] for end in ("a", "b")))


def _check_alike(one: Corpus, two: Corpus) -> None:
    """Refuse what cannot be one corpus."""
    if one.sensor != two.sensor:
        alike = one.sensor.names == two.sensor.names
        raise BandError(
            f"a corpus holds one sensor: '{one.path}' has {one.sensor.name} ({', '.join(one.sensor.names)}), "
            f"'{two.path}' has {two.sensor.name} ({', '.join(two.sensor.names)})"
            + (f" with {two.sensor.deviation(one.sensor)}" if alike else "")
        )
    types = [images(corpus, corpus.sizes[0]).dtype for corpus in (one, two)]
    if types[0] != types[1]:
        raise CorpusError(f"a corpus holds one type: '{one.path}' holds {types[0]}, '{two.path}' {types[1]}")
    if masked(one) and masked(two) and one.classes != two.classes:
        raise CorpusError(
            f"their masks have different classes: '{one.path}' has {', '.join(one.classes)}; '{two.path}' has "
            f"{', '.join(two.classes)}"
        )


def _joined(corpora: Sequence[Corpus]) -> dict[str, Any]:
    """What `corpus.json` says of several corpora together."""
    of_masks = [corpus.classes for corpus in corpora if masked(corpus)]
    labels = [name for corpus in corpora for name in corpus.classes]
    recipes = [corpus.meta["recipe"] for corpus in corpora]
    made = [{"corpus": one.path.resolve().name, "recipe": recipe} for one, recipe in zip(corpora, recipes, strict=True)]
    sources = sorted({source for recipe in recipes for source in recipe["source"]})
    told = _sentences(corpora)
    return ({"sentences": told} if told else {}) | {
        "sensor": corpora[0].meta["sensor"],
        "protect": any(corpus.meta["protect"] for corpus in corpora),
        "classes": list(dict.fromkeys([*of_masks[0], *labels])) if of_masks else [],
        "searched_valid": recipes[0]["min_valid"],
        "recipe": recipes[0] | {"source": sources, "against": None, "merged": made},
    }


def _sentences(corpora: Sequence[Corpus]) -> dict[str, list[dict[str, Any]]]:
    """The files that sentences come from, by origin; where one corpus states some, also what others have of it."""
    told: dict[str, list[dict[str, Any]]] = {}
    own = [origins_of(read_small(corpus, "captions")) for corpus in corpora]
    for origin in dict.fromkeys(name for corpus in corpora for name in corpus.meta.get("sentences", {})):
        files = (files_of(corpus.meta, origin) for corpus, there in zip(corpora, own, strict=True) if origin in there)
        every = [*chain(*files)]
        told[origin] = [one for place, one in enumerate(every) if one not in every[:place]]
    return told
