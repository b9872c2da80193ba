"""The beginning of a build: which sources there are, and what an interrupted build already knows of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console

from geomim.corpus.labels import SPLITS, assign_labels, assign_splits
from geomim.corpus.pipeline.executor import Workers
from geomim.corpus.pipeline.plan import GIVEN, SOURCES, noted, scan_all, state
from geomim.corpus.pipeline.shuffle import read_tables
from geomim.corpus.recipe import Recipe
from geomim.corpus.sources.items import Item, list_items
from geomim.corpus.store import write_json, write_table, write_text

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


def list_sources(recipe: Recipe, download: bool) -> tuple[pa.Table, bool]:
    """List all sources, with what is known before they are opened: from cards, tables and the recipe.

    Returns:
        Rows of `GIVEN`, and whether their publishers split them.
    """
    items: dict[str, Item] = {}
    for source in recipe.source:
        items |= {item.uri: item for item in list_items(source, download)}
    uris = sorted(items)
    ordered = [items[uri] for uri in uris]
    labels = assign_labels(uris, recipe.labels) if recipe.labels else [item.label for item in ordered]
    splits = _splits(recipe, ordered)
    columns = {
        "uri": uris,
        "split": [_split_name(split) for split in splits],
        "label": labels,
        "captions": [list(item.captions) or None for item in ordered],
        "licence": [recipe.licence or item.licence for item in ordered],
        "attribution": [recipe.attribution or item.attribution for item in ordered],
        "card": [item.card for item in ordered],
        "dataset": [item.dataset for item in ordered],
        "non_commercial": [item.non_commercial for item in ordered],
    }
    return pa.table(columns, GIVEN), recipe.split is not None or any(splits)


def _splits(recipe: Recipe, items: list[Item]) -> list[str | None]:
    """Published splits, by the recipe's table or by the cards; None where there is none."""
    if recipe.split:
        return list(assign_splits([item.uri for item in items], recipe.split, 0.0))
    return ["test" if item.held_out else item.split for item in items]


def scan_sources(recipe: Recipe, given: pa.Table, folder: Path, pool: Workers, console: Console) -> pa.Table:
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
        now = [state(plan, uri) for uri in given["uri"].to_pylist()]
        then = list(zip(known["bytes"].to_pylist(), known["modified"].to_pylist(), strict=True))
        drawn = ["split"] if recipe.test_share else []
        same = known.select(GIVEN.names).drop_columns(drawn).equals(given.drop_columns(drawn))
        if same and now == then:
            return known
        changed = set(zip(given["uri"].to_pylist(), now, strict=True)) ^ set(
            zip(known["uri"].to_pylist(), then, strict=True)
        )
        names = sorted({uri for uri, _ in changed}) or [str(recipe.split or recipe.labels)]
        console.print(
            f"{len(names)} sources changed since the build was stopped, such as '{names[0]}': it cuts them anew",
            soft_wrap=True,
        )
    sources = _draw_splits(recipe, scan_all(plan, given, pool))
    for line in noted(sources):
        console.print(line, soft_wrap=True)
    _begin(folder, recipe, keep_tasks=mine)
    write_text(described, plan.described())
    write_table(file, sources)
    return sources


def _draw_splits(recipe: Recipe, sources: pa.Table) -> pa.Table:
    """Hold out a share of the usable sources, where the recipe asks for it."""
    if not recipe.test_share:
        return sources
    refused = sources["refused"].to_pylist()
    usable = [uri for uri, why in zip(sources["uri"].to_pylist(), refused, strict=True) if not why]
    drawn = iter(assign_splits(usable, None, recipe.test_share))
    split = ["train" if why else next(drawn) for why in refused]
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
