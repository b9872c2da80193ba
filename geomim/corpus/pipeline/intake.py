"""The beginning of a build: which sources there are, and what an interrupted build already knows of them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from geomim.corpus.joining import Joined, join_rasters
from geomim.corpus.labels import SPLITS, by_tables, class_folders, draw_splits, open_masks
from geomim.corpus.pipeline.executor import Workers
from geomim.corpus.pipeline.plan import GIVEN, SOURCES, noted, scan_all, state
from geomim.corpus.pipeline.plausible import check_numbers
from geomim.corpus.pipeline.shuffle import read_tables
from geomim.corpus.recipe import Recipe
from geomim.corpus.scenes.clouds import cloud_file, cloud_files
from geomim.corpus.slicing import TILE
from geomim.corpus.sources.items import list_items
from geomim.corpus.store import write_json, write_table, write_text
from geomim.errors import InputError

_OWN = ("corpus.json", "corpus.lock", "skipped.parquet", "catalogue.parquet", "catalogue", "tiles.zarr")
_OTHERS = ("report", "audit", "embeddings", "next", "next.part")


def made_by(folder: Path) -> dict[str, Any] | None:
    """The recipe of an unfinished or finished corpus; an unreadable one counts as another recipe."""
    for file, key in ((folder / "work" / "recipe.json", None), (folder / "corpus.json", "recipe")):
        if file.is_file():
            try:
                values = json.loads(file.read_text())
                return values[key] if key else values
            except (ValueError, KeyError, TypeError):
                return {}
    return None


def list_sources(recipe: Recipe, download: bool, console: Console) -> tuple[pa.Table, bool, list[Joined]]:
    """List all sources, with what is known before they are opened: from cards, tables and the recipe; and say it.

    Returns:
        Rows of `GIVEN`, whether their publishers split them, and how tables and folders of rasters were joined.

    Raises:
        InputError: There are none, or a table does not fit them.
    """
    joined: list[Joined] = []
    items = {item.uri: item for item in list_items(recipe.source, download, joined)}
    for one in joined:
        one.check(recipe.allow_unmatched)
    uris, folders = _without_masks(sorted(items), _mask_folders(recipe), console)
    ordered = [items[uri] for uri in uris]
    told, tables = by_tables(uris, recipe.labels, recipe.split, recipe.allow_unmatched)
    joined += [*tables, *(join_rasters(name, files, uris, find, default) for name, files, find, default in folders)]
    for one in joined:
        console.print(str(one), soft_wrap=True)
    splits = told.get("split", ["test" if item.held_out else item.split for item in ordered])
    labels = told.get("label", [item.label for item in ordered])
    if not any(labels) and not recipe.masks and (classes := class_folders(uris)):
        console.print(
            f"{len(classes)} folders look like classes, such as {', '.join(classes[:5])}: --labels folder takes them, "
            "now or later (geomim corpus decide CORPUS --labels folder)",
            soft_wrap=True,
        )
    columns = {
        "uri": uris,
        "split": [_split_name(split) for split in splits],
        "label": labels,
        "captions": [list(item.captions) or None for item in ordered],
        "licence": [recipe.licence or item.licence for item in ordered],
        "attribution": [recipe.attribution or item.attribution for item in ordered],
        **{name: [getattr(item, name) for item in ordered] for name in ("card", "dataset", "non_commercial")},
    }
    return pa.table(columns, GIVEN), any(splits), joined


_Folder = tuple[str, list[str], Callable[[str], Any], str]
"""A folder of label rasters or cloud masks, as `join_rasters` takes it with the sources."""


def _mask_folders(recipe: Recipe) -> list[_Folder]:
    folders: list[_Folder] = []
    if recipe.masks:
        masks = open_masks(recipe.masks)
        folders.append((recipe.masks, list(map(str, masks.rasters)), masks.find, "they have no labels"))
    if clouds := cloud_files(recipe.clouds):
        find = partial(cloud_file, recipe.clouds)
        folders.append((str(recipe.clouds), clouds, find, "their own masks count"))
    return folders


def _without_masks(uris: list[str], folders: list[_Folder], console: Console) -> tuple[list[str], list[_Folder]]:
    """Sources that are no mask of another, and folders without the sources in them: one may lie in the other."""
    if not folders:
        return uris, folders
    real = {uri: os.path.realpath(uri) for uri in uris}
    masks: set[str] = set()
    for _, files, find, _ in folders:
        found: dict[str, str] = {}
        for uri in uris:
            with suppress(InputError):  # of several masks: said later, if it is a source
                found[real[uri]] = os.path.realpath(find(uri) or uri)
        taken = {mask for scene, mask in found.items() if mask != scene}
        others = set(map(os.path.realpath, files)) - taken
        scenes = any(found.get(file, file) != file for file in others)
        masks |= taken | (others if taken and not scenes else set())  # no scene lies there: it holds masks alone
    if left_out := [uri for uri in uris if real[uri] in masks]:
        said = "1 source is a mask" if len(left_out) == 1 else f"{len(left_out)} sources are masks"
        console.print(f"note: {said} of others by name and left out, such as '{left_out[0]}'", soft_wrap=True)
    kept = {uri: file for uri, file in real.items() if file not in masks}
    own = set(kept.values())
    apart = [(name, [one for one in files if os.path.realpath(one) not in own], *how) for name, files, *how in folders]
    return list(kept), apart


def scan_sources(
    recipe: Recipe, given: pa.Table, folder: Path, pool: Workers, console: Console
) -> tuple[Recipe, pa.Table]:
    """Open every source once, and refuse a mixture before anything is written.

    An unfinished build goes on where its sources are the same files. Where some changed, the tasks that hold them are
    done again, and what was derived from all.
    """
    work, file = folder / "work", folder / "work" / "sources.parquet"
    plan, described = recipe.plan(), work / "plan.json"
    mine = (work / "recipe.json").exists() and made_by(folder) == asdict(recipe)
    mine = mine and described.exists() and described.read_text() == plan.described()
    if mine and not (work / "deleting").exists() and file.exists():
        known = read_tables([file], SOURCES)
        now = {(uri, *state(plan, uri)) for uri in given["uri"].to_pylist()}
        then = set(zip(*(known[name].to_pylist() for name in ("uri", "bytes", "modified")), strict=True))
        drawn = ["split"] if recipe.test_share else []
        same = known.select(GIVEN.names).drop_columns(drawn).equals(given.drop_columns(drawn))
        if same and now == then:
            return recipe, known
        names = sorted({uri for uri, *_ in now ^ then}) or [str(recipe.split or recipe.labels)]
        console.print(
            f"{len(names)} sources changed since the build was stopped, such as '{names[0]}': it cuts them anew",
            soft_wrap=True,
        )
    found = scan_all(plan, given, pool)
    for line in noted(found):
        console.print(line, soft_wrap=True)
    check_numbers(plan, found, console)
    recipe, sources = _settle_tile(recipe, found, console)
    sources = _draw_splits(recipe, sources)
    _begin(folder, recipe, keep_tasks=mine)
    write_text(described, recipe.plan().described())
    write_table(file, sources)
    return recipe, sources


def _settle_tile(recipe: Recipe, sources: pa.Table, console: Console) -> tuple[Recipe, pa.Table]:
    """Where no size of tiles is asked for: pictures that are all alike are taken whole, and small ones are said."""
    if recipe.tile:
        return recipe, sources
    usable = pc.equal(sources["refused"], "")
    edges = sources["whole"].filter(usable).to_numpy()
    if len(edges) < 2 or edges[0] <= 0 or (edges != edges[0]).any():
        _say_padded(recipe, np.abs(edges), console)
        return replace(recipe, tile=[TILE]), sources
    edge = int(edges[0])
    console.print(f"all {len(edges)} pictures are {edge} x {edge}: each is one tile; --tile cuts them otherwise")
    tiles = pc.if_else(usable, pa.scalar(1, pa.int64()), sources["tiles"])
    place = sources.column_names.index("tiles")
    return replace(recipe, tile=[edge]), sources.set_column(place, SOURCES.field("tiles"), tiles)


def _say_padded(recipe: Recipe, edges: np.ndarray, console: Console) -> None:
    """Name the size that needs no padding; where `pad` or `drop` is asked for, none would help."""
    small = edges[edges < TILE]
    if len(small) and recipe.edge == "shift":
        console.print(
            f"{len(small)} of {len(edges)} pictures are smaller than a tile of {TILE} and are padded: "
            f"--tile {small.min()} cuts them without padding",
            soft_wrap=True,
        )


def _draw_splits(recipe: Recipe, sources: pa.Table) -> pa.Table:
    """Hold out a share of the usable sources, where the recipe asks for it."""
    if not recipe.test_share:
        return sources
    usable = pc.equal(sources["refused"], "")
    split = np.full(len(sources), "train", object)
    split[usable.to_numpy()] = draw_splits(sources["uri"].filter(usable).to_pylist(), recipe.test_share)
    return sources.set_column(1, SOURCES.field("split"), pa.array(split, pa.string()))


def _split_name(published: str | None) -> str:
    """train, val or test, whatever the publisher calls it."""
    name = (published or "train").lower()
    return name if name in SPLITS else "val" if name.startswith("val") else "test" if "test" in name else "train"


def _begin(folder: Path, recipe: Recipe, keep_tasks: bool) -> None:
    """Mark the folder as this build's, then remove what another one left."""
    work = folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    (work / "deleting").touch()
    if not keep_tasks:
        (work / "plan.json").unlink(missing_ok=True)  # without it nothing here counts, should this be stopped
    write_json(work / "recipe.json", asdict(recipe))
    for path in [*(folder / name for name in (*_OWN, *_OTHERS)), *work.iterdir()]:
        if path.is_dir() and not (keep_tasks and path.name == "tasks"):
            shutil.rmtree(path)
        elif path.is_file() and path.name not in ("recipe.json", "plan.json", "deleting"):
            path.unlink()
    (work / "deleting").unlink()
