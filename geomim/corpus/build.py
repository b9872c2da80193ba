"""The whole way from scenes to a corpus, resumable: scan, slice, find duplicates, store, decide, report.

Every stage is a function over partitions that writes aside and renames, so a build that was stopped goes on where it
was, and the outcome depends on the recipe and the sources alone: not on the number of workers, nor on the engine, nor
on how often it was stopped.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import Progress

from geomim.addresses import keep
from geomim.corpus.assemble import write_edges
from geomim.corpus.comparison.sides import side
from geomim.corpus.exclusion import Search, keep_clear
from geomim.corpus.labels import open_masks, tables_asked
from geomim.corpus.lock import hash_files
from geomim.corpus.pipeline.conclude import finish
from geomim.corpus.pipeline.copies import find_copies, left_out
from geomim.corpus.pipeline.crops import find_crops
from geomim.corpus.pipeline.edges import EDGES
from geomim.corpus.pipeline.executor import Workers
from geomim.corpus.pipeline.intake import list_sources, made_by, scan_sources
from geomim.corpus.pipeline.near import find_near
from geomim.corpus.pipeline.overlaps import find_overlaps
from geomim.corpus.pipeline.pixels import Pixels, write_pixels
from geomim.corpus.pipeline.plan import SCENES_PER_SCAN, Plan, tasks
from geomim.corpus.pipeline.rules import rules_of
from geomim.corpus.pipeline.shuffle import discard, read_tables, stage_folder
from geomim.corpus.pipeline.slots import assign_slots
from geomim.corpus.pipeline.staged import Staged, staged
from geomim.corpus.pipeline.staging import HASHES, cut
from geomim.corpus.publish import publish
from geomim.corpus.recipe import Recipe
from geomim.corpus.report.report import print_funnel, print_summary, write_report
from geomim.corpus.slicing import TILE
from geomim.corpus.store import SKIPPED, Corpus, write_json, write_table
from geomim.errors import CorpusError, InputError

_INLINE_PIXELS = 32 * 2**20  # below this, starting a process costs more than it saves
_INLINE_TILES = 20_000
LATER = {"min_valid", "max_cloud", "where", "quota", "overlap", "only_licence", "non_commercial", "against"}
LATER |= {"skip_unreadable", "crops", "allow_unmatched"}
"""What of a recipe counts after cutting: an unfinished build goes on with other values of these."""
RADIUS = 8
"""Bits within which near-copies are looked for at least; which of them count is decided later."""


def build(
    source: list[str],
    out: str,
    tile: int | list[int] | None = None,
    stride: int | None = None,
    edge: Literal["shift", "pad", "drop"] = "shift",
    seed: int = 0,
    sensor: str | None = None,
    bands: list[str] | None = None,
    resolution: float | None = None,
    harmonise: bool = False,
    warp: str | None = None,
    clouds: str | None = None,
    min_valid: float = 0.5,
    max_cloud: float | None = None,
    where: str | None = None,
    quota: int = 16,
    near: int | None = 4,
    overlap: float | None = 0.5,
    crops: bool = True,
    against: list[str] | None = None,
    skip_unreadable: bool = False,
    labels: str | None = None,
    masks: str | None = None,
    split: str | None = None,
    allow_unmatched: bool = False,
    test_share: float = 0.0,
    licence: str | None = None,
    attribution: str | None = None,
    only_licence: list[str] | None = None,
    non_commercial: bool = False,
    compression: str | None = None,
    download: bool = False,
    workers: int | None = None,
    cluster: str | None = None,
    work: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Turn scenes into a clean corpus of tiles.

    Stopped and started again, it goes on where it was. Every readable tile stays in the corpus with its pixels,
    except exact copies; `kept` and `reason` in the catalogue say which ones training reads, and `geomim corpus
    decide` changes that without cutting again.

    Args:
        source: Rasters, folders, patterns, products (.SAFE, a file a band), zarr or NetCDF, STAC items, addresses, or
            CARD@FOLDER for a public source (see `geomim sources list`). Logins and tokens of addresses are used and
            never written down.
        out: Folder of the corpus, or an address such as s3://bucket/corpus.
        tile: Edge of a tile in pixels. Several sizes cut each block of the largest one at a size drawn by chance. Where
            not given, pictures that are all square and of one size (up to 1024 px; below 512 px where they have a place
            on Earth) are taken whole, and others are cut at 256.
        stride: Step between tiles in pixels; the tile's edge where not given.
        edge: What becomes of a tile that would reach beyond the lower or right border: `shift` moves it inside, so that
            it ends there and shares ground with its neighbour; `pad` fills it with pixels that are not valid; `drop`
            leaves it out. Scenes smaller than a tile are padded, or dropped.
        seed: Of the choice between several sizes.
        sensor: Name of a built-in sensor or a YAML file, for rasters that do not name their bands. Where nothing names
            them and there are as many as the sensor has, its order is assumed, printed with means, and held to physics.
        bands: A choice by name where the rasters have all these names; else the names of their bands in file order (`-`
            ignores one), which outrank what the files say.
        resolution: Metres of a pixel that bands of different resolution are brought to; never resampled otherwise.
        harmonise: Take off the 1000 that Sentinel-2 adds to its numbers since processing baseline 04.00 (January 2022),
            so that those of all years mean the same; what would fall below the least measurement becomes that.
            Scenes after January 2022 that tell no baseline are not used then.
        warp: `auto` or a code such as EPSG:32633: the grid that rotated rasters and those placed by ground control
            points are warped to; cut as they are otherwise.
        clouds: Folder of cloud masks named like the scenes (FOLDER:scl, :fmask or :qa_pixel says which kind), or
            omnicloudmask. A product's own mask is used in any case.
        min_valid: Share of a tile's pixels that must be measurements, 0 to 1. Other tiles are not compared, so that
            `decide` can raise it and not lower it.
        max_cloud: Largest share of clouds, 0 to 1, where they are known of at least half of a tile; others pass.
        where: SQL condition on the catalogue's columns that a tile must meet.
        quota: Tiles of low information (sea, desert, snow) that are kept of each scene.
        near: Bits, 0 to 12, in which the perceptual hashes of near duplicates may differ; null keeps near duplicates,
            also those of val and test. One ground on different days (UTC) is no duplicate unless its pixels are equal,
            nor are tiles of one file that overlap: these were asked for.
        overlap: Share of the smaller of two overlapping tiles of different files from which one is dropped, where
            they are one acquisition: of one sensor and day (or less than an hour apart across midnight).
        crops: Look for partly overlapping crops among tiles without a place on Earth or a time: some 11 core-hours
            and 60 GB of disk for 13 million of them, extrapolated.
        against: Benchmarks whose held-out images must not be in the corpus: folders, corpora, or CARD@FOLDER.
        skip_unreadable: Be content where some images of a benchmark cannot be read.
        labels: `folder` (the class is the name of the folder), or a CSV or JSONL file with columns `image` and
            `label`.
        masks: Folder of label rasters named like the scenes and on their grids, with the names of the classes in
            `classes.json`, or of each raster in its tag `CLASSES`. Where it lies among the scenes, or is their folder,
            what is a mask of another is no scene; likewise with clouds.
        split: CSV or JSONL file with columns `image` and `split` (train, val, test). Its val and test tiles are never
            dropped as duplicates; what shares ground or pixels with them leaves train. Sources that it does not name
            are train.
        allow_unmatched: Build although rows of val or test name no source, or several of one name in different folders.
        test_share: Where there is no split file, the share of scenes held out as test, 0 to 1; what shares ground or
            pixels with them leaves train.
        licence: Licence of all sources; where not given, what each card or file says.
        attribution: Who is to be credited.
        only_licence: Licences to keep, as the catalogue spells them.
        non_commercial: Keep sources whose licence forbids commercial use, or whose card does not say.
        compression: lz4 or zstd for archives; training reads uncompressed tiles ten times faster.
        download: Let torchgeo fetch public sources that are not there.
        workers: Processes; one a core where not given. Does not change the outcome.
        cluster: Address of a Dask scheduler (tcp://...), or a YAML file for dask-jobqueue, in place of processes.
        work: Folder for unfinished work where `out` is an address; `out`'s last name where not given.
        overwrite: Replace a corpus that another recipe made.

    Returns:
        The folder.

    Raises:
        InputError: A source or an argument is wrong, or no source can be read.
        BandError: The sources have different bands.
        CorpusError: `out` holds something else.
    """
    given = {name: value for name, value in locals().items() if name in {field.name for field in fields(Recipe)}}
    given["source"] = [keep(str(one)) for one in ([source] if isinstance(source, str | os.PathLike) else source)]
    given["against"] = against and [keep(str(one)) for one in against]
    remote = "://" in str(out)
    folder = Path(work or str(out).rstrip("/").rsplit("/", 1)[-1]) if remote else Path(out)
    folder = folder.absolute() if cluster else folder  # workers elsewhere have other working folders
    given["tile"] = [tile] if isinstance(tile, int) else list(tile or ([] if stride is None else [TILE]))
    recipe = _as_begun(Recipe(**given), folder, overwrite)
    recipe.check()
    console = Console(stderr=True, markup=False, highlight=False)
    if _finished(folder, recipe, overwrite):
        console.print(f"'{folder}' is built already with this recipe; --overwrite builds it again", soft_wrap=True)
    else:
        with Progress(console=console, transient=True) as progress, Workers(progress, workers, cluster) as pool:
            try:
                _run(recipe, folder, pool, download, console)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise CorpusError(
                    f"no room is left for '{folder}', or for temporary files: make room and run the build again; what "
                    "was finished is kept"
                ) from error
    if not (folder / "report" / "index.html").exists():
        write_report(folder)
    if remote:
        publish(str(folder), str(out))
    print_funnel(Corpus.open(folder), console)
    return folder


def _as_begun(recipe: Recipe, folder: Path, overwrite: bool) -> Recipe:
    """With the size of tiles that this build has settled on before, where the user names none."""
    made = made_by(folder)
    if recipe.tile or not made or not made.get("tile"):
        return recipe
    goes_on = not overwrite or ((folder / "work").exists() and made | {"tile": []} == asdict(recipe))
    return replace(recipe, tile=made["tile"]) if goes_on else recipe


def inspect(corpus: str) -> None:
    """Print what a corpus holds, and what was dropped and why.

    Args:
        corpus: Folder of a corpus.

    Raises:
        CorpusError: The folder is no corpus, or of a newer format.
    """
    print_summary(Corpus.open(corpus), Console(markup=False, highlight=False))


def _finished(folder: Path, recipe: Recipe, overwrite: bool) -> bool:
    """Whether the corpus is there already; refuses a folder that holds something else."""
    made, wanted = made_by(folder), asdict(recipe)
    begun = {"work", "work/deleting", "work/recipe.json.part"}  # left by one that was stopped before its recipe
    if made is None and not begun.issuperset(path.relative_to(folder).as_posix() for path in folder.rglob("*")):
        raise CorpusError(f"'{folder}' holds files that are no corpus: give another --out")
    if made is not None and made != wanted and not overwrite:
        names = [name for name in {**wanted, **made} if made.get(name) != wanted.get(name)]
        if (folder / "work").exists() and set(names) <= LATER:
            stale = ["catalogue"] if "crops" in names else []  # its edges are among the others
            stale += ["work/near", "work/overlaps", "work/crops", "catalogue"] if "min_valid" in names else []
            for one in stale:  # other tiles are compared
                if (folder / one).exists():
                    discard(folder / one, folder / "work" / "old")
            write_json(folder / "work" / "recipe.json", wanted)  # what is cut is cut
            return False
        changed = ", ".join(f"{name}: {made.get(name)!r} there, {wanted.get(name)!r} given" for name in names)
        raise CorpusError(
            f"'{folder}' was made by another recipe ({changed}): give another --out, or --overwrite to replace it"
        )
    shutil.rmtree(folder / "work.done", ignore_errors=True)
    return (folder / "corpus.json").exists() and not (folder / "work").exists() and not overwrite


def _run(recipe: Recipe, folder: Path, pool: Workers, download: bool, console: Console) -> None:
    """All stages; each does nothing where its outcome is there already."""
    work = folder / "work"
    # a wrong benchmark is an error now, not after a night
    benchmarks = [side(one, True, None, None, download) for one in recipe.against or []]
    given, published, joined = list_sources(recipe, download, console)
    recipe, sources = scan_sources(recipe, given, folder, pool, console)
    plan = recipe.plan()
    dealt = tasks(plan, sources)
    _cut(plan, dealt, work, pool)
    Staged.write(work, dealt)
    usable = sources.filter(pc.equal(sources["refused"], ""))
    found = json.loads(usable["found"][0].as_py())
    pixels = Pixels(usable["dtype"][0].as_py(), len(found["bands"]), recipe.compression)
    tiles = pc.sum(sources["tiles"]).as_py()
    skipped = _skipped(sources, work)
    if not any(pq.read_metadata(task / "tiles.parquet").num_rows for task in staged(work).folders):
        listed = "; ".join(list(dict.fromkeys(skipped["reason"].to_pylist()))[:5])
        raise InputError(f"no tile is kept, of 0 tiles and {len(skipped)} skipped sources: {listed}")
    if not (folder / "catalogue").exists():
        _catalogue(recipe, plan, folder, pixels, tiles, pool)
    write_pixels(work, folder, pixels, pool, inline=tiles < _INLINE_TILES)
    write_table(folder / "skipped.parquet", skipped)
    classes = open_masks(recipe.masks).classes if recipe.masks else _own_classes(folder)
    meta = {"searched": searched(recipe.near), "sensor": found, "recipe": asdict(recipe), "changes": []}
    meta |= {"protect": published, "classes": classes, "joined": [str(one) for one in joined]}
    meta |= {"searched_valid": recipe.min_valid}
    search = Search(skip_unreadable=recipe.skip_unreadable)
    excluded = keep_clear(folder, meta, benchmarks, search, pool, console) if benchmarks else None
    finish(folder, meta, rules_of(meta), pool, {"exclusions": excluded})
    os.replace(work, folder / "work.done")  # with `work` beside it, no corpus opens
    shutil.rmtree(folder / "work.done")


def _cut(plan: Plan, dealt: list[Any], work: Path, pool: Workers) -> None:
    """Cut the tasks that are missing; those of changed sources go."""
    (work / "tasks").mkdir(exist_ok=True)
    names = {task.name for task in dealt}
    for folder in (work / "tasks").iterdir():
        lacking = plan.crops and not (folder / "blocks.parquet").exists()  # cut without what crops need
        if folder.name not in names or lacking:
            discard(folder, work / "old")
    missing = [task for task in dealt if not (work / "tasks" / task.name).exists()]
    calls = [(plan, task, work / "tasks" / task.name) for task in missing]
    pixels = sum(pc.sum(task.sources.table["tiles"]).as_py() for task in missing) * plan.grid.largest**2
    pool.run("cutting tiles", cut, calls, inline=pixels < _INLINE_PIXELS)


def _catalogue(recipe: Recipe, plan: Plan, folder: Path, pixels: Pixels, tiles: int, pool: Workers) -> None:
    """Find all duplicates and write the folder of small tables."""
    work, inline = folder / "work", tiles < _INLINE_TILES
    copies, edges = find_duplicates(work, tiles, pixels, asdict(recipe), pool)
    part = stage_folder(work / "catalogue")
    assign_slots(work, part, copies, pixels, pool, inline)
    write_edges(part, [edges])
    hashes = read_tables([task / "sources.parquet" for task in staged(work).folders], HASHES)
    beside = _beside(recipe, plan, hashes["uri"].to_pylist(), pool)
    write_table(part / "sources.parquet", pa.concat_tables([hashes, beside]))
    os.replace(part, folder / "catalogue")


def find_duplicates(
    work: Path, tiles: int, pixels: Pixels, asked: Mapping[str, Any], pool: Workers
) -> tuple[pa.Table, pa.Table]:
    """Find all copies and edges of the tiles that are staged.

    Args:
        work: Holds the finished tasks and the table of their sources.
        tiles: How many there are.
        pixels: What all tiles share.
        asked: A recipe's `near` (`searched` says how many bits are looked for), `min_valid` and `crops`.
        pool: Runs it.

    Returns:
        Rows of `COPIES`, and of `EDGES`.
    """
    copies = find_copies(staged(work).folders, work / "copies.parquet", tiles, pool)
    aside = left_out(staged(work).folders, copies, asked["min_valid"])
    ways: dict[str, tuple[Callable[..., None], tuple]] = {
        "near": (find_near, (aside, tiles, searched(asked["near"]))),
        "overlaps": (find_overlaps, (tiles, asked["min_valid"])),
    }
    if asked.get("crops"):
        ways["crops"] = (find_crops, (aside, pixels))
    for name, (find, given) in ways.items():
        if not (work / name).exists():
            find(part := stage_folder(work / name), *given, pool)
            os.replace(part, work / name)
    return copies, read_tables([file for name in ways for file in sorted((work / name).glob("edges-*.parquet"))], EDGES)


def searched(near: int | None) -> int:
    """Bits within which near-copies are looked for, by those that are asked for."""
    return max(RADIUS, near or 0)


def _beside(recipe: Recipe, plan: Plan, sources: list[str], pool: Workers) -> pa.Table:
    """Label rasters, cloud masks and tables that were given beside the sources, hashed as these are."""
    tables = tables_asked(asdict(recipe))
    files = sorted({*tables, *(file for uri in sources for file in plan.beside(uri))} - set(sources))
    chunks = [(files[at : at + SCENES_PER_SCAN],) for at in range(0, len(files), SCENES_PER_SCAN)]
    found = pool.run("hashing masks", hash_files, chunks, inline=len(chunks) < 4)
    return pa.Table.from_pylist([row for rows in found for row in rows], HASHES)


def _own_classes(folder: Path) -> list[str]:
    """Classes of the masks that sources brought themselves."""
    classes = pq.read_table(folder / "catalogue" / "sources.parquet", columns=["classes"])["classes"].to_pylist()
    lists = list(dict.fromkeys(tuple(names) for names in classes if names))
    if len(lists) > 1:
        raise InputError(
            f"the sources' masks have different classes ({lists[0]} and {lists[1]}): build a corpus of each"
        )
    return list(lists[0]) if lists else []


def _skipped(sources: pa.Table, work: Path) -> pa.Table:
    refused = sources.filter(pc.not_equal(sources["refused"], ""))
    table = pa.table({"source": refused["uri"], "reason": refused["refused"]}).cast(SKIPPED)
    later = [task / "skipped.parquet" for task in staged(work).folders]
    return pa.concat_tables([table, read_tables(later, SKIPPED)]).sort_by("source")
