"""The whole way from scenes to a corpus, resumable: scan, slice, dedupe, store, catalogue, report.

Every stage writes aside and renames, so a build that was stopped goes on where it was, and the outcome depends on the
recipe and the sources alone: not on the number of workers, nor on how often it was stopped.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from geomim.corpus.labels import Masks, assign_labels, assign_splits
from geomim.corpus.pipeline.decide import decide
from geomim.corpus.pipeline.finish import Staged, finish
from geomim.corpus.pipeline.staging import BYTES_PER_TASK, SCENES_PER_TASK, Header, Plan, Source, cut, scan
from geomim.corpus.report.report import print_funnel, print_summary, write_report
from geomim.corpus.scenes import find_scenes
from geomim.corpus.store import Corpus, write_json
from geomim.errors import BandError, CorpusError, InputError
from geomim.sensors import Sensor, get_sensor

_OWN = ("corpus.json", "skipped.parquet", "catalogue.parquet", "catalogue", "tiles.zarr", "report", "work")
_INLINE_TILES = 64  # below this, starting a process costs more than it saves


@dataclass(frozen=True)
class Recipe:
    """What decides the bytes of a corpus; see `build` for the meaning of each."""

    source: list[str]
    tile: int
    stride: int
    min_valid: float
    sensor: str | None
    bands: list[str] | None
    near: int | None
    labels: str | None
    masks: str | None
    split: str | None
    test_share: float
    licence: str | None
    attribution: str | None

    def plan(self) -> Plan:
        """How scenes are read and cut."""
        sensor = get_sensor(self.sensor) if self.sensor else None
        return Plan(self.tile, self.stride, sensor, self.bands, self.licence, self.attribution, self.masks)


def build(
    source: list[str],
    out: str,
    tile: int = 256,
    stride: int | None = None,
    min_valid: float = 0.5,
    sensor: str | None = None,
    bands: list[str] | None = None,
    near: int | None = 4,
    labels: str | None = None,
    masks: str | None = None,
    split: str | None = None,
    test_share: float = 0.0,
    licence: str | None = None,
    attribution: str | None = None,
    workers: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Turn scenes into a clean corpus of tiles.

    Stopped and started again, it goes on where it was. Every readable tile stays in the corpus with its pixels,
    except exact copies; `kept` and `reason` in the catalogue say which ones training reads.

    Args:
        source: Rasters, folders of rasters, or patterns.
        out: Folder of the corpus.
        tile: Edge of a tile in pixels.
        stride: Step between tiles in pixels; `tile` where not given.
        min_valid: Share of a tile's pixels that must be measurements, 0 to 1.
        sensor: Name of a built-in sensor or a YAML file, for rasters that do not name their bands.
        bands: Names of the rasters' bands in file order (`-` ignores one), or a choice by name.
        near: Bits, 0 to 4, in which the perceptual hashes of near duplicates may differ; null keeps near duplicates.
        labels: `folder` (the class is the name of the folder), or a CSV or JSONL file with columns `image` and
            `label`.
        masks: Folder of label rasters named like the scenes, with the names of the classes in
            `classes.json` or in their tag `CLASSES`.
        split: CSV or JSONL file with columns `image` and `split` (train, val, test). Its val and test tiles are never
            dropped as duplicates; their copies leave train.
        test_share: Where there is no split file, the share of scenes held out as test, 0 to 1.
        licence: Licence of all sources; where not given, what each file says.
        attribution: Who is to be credited.
        workers: Processes; one a core where not given. Does not change the outcome.
        overwrite: Replace a corpus that another recipe made.

    Returns:
        The folder.

    Raises:
        InputError: A source or an argument is wrong, or no source can be read.
        BandError: The sources have different bands.
        CorpusError: `out` holds something else.
    """
    given = Recipe(
        source=[str(one) for one in ([source] if isinstance(source, str | os.PathLike) else source)],
        tile=tile,
        stride=tile if stride is None else stride,
        min_valid=min_valid,
        sensor=sensor,
        bands=bands,
        near=near,
        labels=labels,
        masks=masks,
        split=split,
        test_share=test_share,
        licence=licence,
        attribution=attribution,
    )
    _check(given)
    folder, console = Path(out), Console(stderr=True, markup=False, highlight=False)
    if _finished(folder, given, overwrite):
        console.print(f"'{folder}' is built already with this recipe; --overwrite builds it again", soft_wrap=True)
        _report(folder)
        return folder
    workers = _cores() if workers is None else workers
    with Progress(console=console, transient=True) as progress:
        _run(given, folder, Workers(workers, progress), progress)
    _report(folder)
    print_funnel(Corpus.open(folder), console)
    return folder


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(recipe: Recipe, folder: Path, pool: Workers, progress: Progress) -> None:
    headers = _scan(recipe, folder, pool)
    work = folder / "work"
    tasks = _tasks(recipe, headers)
    _cut(recipe, tasks, work, pool)
    folders = [_task(work, number) for number in range(len(tasks))]
    decisions = work / "decisions.parquet"
    decide(folders, decisions, recipe.min_valid, recipe.near, recipe.split is not None, progress)
    first = next(header for header in headers if not header.refused)
    staged = Staged(folders, decisions, first.sensor, first.dtype, recipe.tile)
    refused = [(header.uri, header.refused) for header in headers if header.refused]
    finish(folder, staged, asdict(recipe), refused, progress)
    shutil.rmtree(work)


def inspect(corpus: str) -> None:
    """Print what a corpus holds, and what was dropped and why.

    Args:
        corpus: Folder of a corpus.

    Raises:
        CorpusError: The folder is no corpus, or of a newer format.
    """
    print_summary(Corpus.open(corpus), Console(markup=False, highlight=False))


def _report(folder: Path) -> None:
    if not (folder / "report" / "index.html").exists():
        write_report(folder)


def _check(recipe: Recipe) -> None:
    if recipe.tile < 1 or recipe.stride < 1:
        raise InputError(f"tile and stride must be at least 1 pixel; given {recipe.tile} and {recipe.stride}")
    if not 0 <= recipe.min_valid <= 1:
        raise InputError(f"--min-valid is a share of a tile's pixels, 0 to 1; given {recipe.min_valid}")
    if recipe.near is not None and not 0 <= recipe.near <= 4:
        raise InputError(f"--near is a number of bits, 0 to 4; given {recipe.near}")
    if recipe.labels and recipe.masks:
        raise InputError("--labels and --masks both label tiles: give one of them")
    if recipe.split and recipe.test_share:
        raise InputError("--split and --test-share both split the scenes: give one of them")
    if recipe.masks:
        Masks(recipe.masks)  # says now what is wrong with the folder


def _finished(folder: Path, recipe: Recipe, overwrite: bool) -> bool:
    """Whether the corpus is there already; refuses a folder that holds something else."""
    made, wanted = _made_by(folder), asdict(recipe)
    if made is None and folder.exists() and any(folder.iterdir()):
        raise CorpusError(f"'{folder}' holds files that are no corpus: give another --out")
    if made is not None and made != wanted and not overwrite:
        names = [name for name in wanted if made.get(name) != wanted[name]]
        changed = ", ".join(f"{name}: {made.get(name)!r} there, {wanted[name]!r} given" for name in names)
        raise CorpusError(
            f"'{folder}' was made by another recipe ({changed}): give another --out, or --overwrite to replace it"
        )
    done = (folder / "corpus.json").exists() and not overwrite
    if done:
        shutil.rmtree(folder / "work", ignore_errors=True)
    return done


def _begin(folder: Path, recipe: Recipe) -> None:
    """Remove what another build left, and mark the folder as this one's."""
    for name in _OWN:  # corpus.json first: without it the rest is no corpus
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    (folder / "work").mkdir(parents=True)
    write_json(folder / "work" / "recipe.json", asdict(recipe))


def _made_by(folder: Path) -> dict[str, Any] | None:
    """The recipe of a finished or unfinished corpus; an unreadable one counts as another recipe."""
    for file, key in ((folder / "corpus.json", "recipe"), (folder / "work" / "recipe.json", None)):
        if file.is_file():
            try:
                values = json.loads(file.read_text())
                return values[key] if key else values
            except (ValueError, KeyError, TypeError):
                return {}
    return None


class Workers:
    """Runs tasks in processes, or in this one where that is faster, under a progress bar.

    Args:
        count: Processes.
        progress: Shows how far it is.
    """

    def __init__(self, count: int, progress: Progress) -> None:
        self._count = max(1, count)
        self._progress = progress

    def run(self, what: str, function: Callable[..., Any], tasks: Sequence[tuple], inline: bool = False) -> list[Any]:
        """Call a function once for each task.

        Args:
            what: Words for the progress bar.
            function: Importable by name.
            tasks: Arguments of each call.
            inline: Stay in this process.

        Returns:
            What the calls returned, in the order of the tasks.
        """
        bar = self._progress.add_task(what, total=len(tasks))
        if inline or self._count == 1 or len(tasks) < 2:
            results = []
            for task in tasks:
                results.append(function(*task))
                self._progress.advance(bar)
            return results
        # "spawn": a fork would copy GDAL's and numba's threads in an undefined state
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(self._count, len(tasks)), mp_context=context) as executor:
            futures = [executor.submit(function, *task) for task in tasks]
            try:
                for future in as_completed(futures):
                    future.result()
                    self._progress.advance(bar)
            except BaseException:
                executor.shutdown(wait=True, cancel_futures=True)
                raise
        return [future.result() for future in futures]


def _scan(recipe: Recipe, folder: Path, pool: Workers) -> list[Header]:
    """Open every source once, and refuse a mixture before anything is written.

    An unfinished build goes on only if its sources are still the same files.
    """
    file = folder / "work" / "scan.json"
    uris = find_scenes(recipe.source)
    states = [_state(uri) for uri in uris]
    if file.exists() and _made_by(folder) == asdict(recipe) and not (folder / "corpus.json").exists():
        scanned = json.loads(file.read_text())
        if scanned["sources"] == states:
            return [Header.from_dict(values) for values in scanned["headers"]]
    chunks = [uris[start : start + SCENES_PER_TASK] for start in range(0, len(uris), SCENES_PER_TASK)]
    plan = recipe.plan()
    parts = pool.run("opening sources", scan, [(plan, chunk) for chunk in chunks], inline=len(uris) < 2000)
    headers = [header for part in parts for header in part]
    _refuse_mixtures(headers)
    headers = _of_one_type(headers)
    if all(header.refused for header in headers):
        raise InputError(_nothing(headers))
    _tasks(recipe, headers)  # a split or label file that does not fit is an error now, not after minutes
    _begin(folder, recipe)
    write_json(file, {"sources": states, "headers": [header.to_dict() for header in headers]})
    return headers


def _state(uri: str) -> list[str | int]:
    """What changes when a file does; only the name of a remote one."""
    try:
        status = os.stat(uri)
        return [uri, status.st_size, status.st_mtime_ns]
    except OSError:
        return [uri]


def _refuse_mixtures(headers: Iterable[Header]) -> None:
    kinds: dict[Sensor, list[str]] = defaultdict(list)
    for header in headers:
        if header.sensor is not None:
            kinds[header.sensor].append(header.uri)
    if len(kinds) > 1:
        listed = "; ".join(
            f"{len(uris)} of {sensor.name} ({', '.join(sensor.names)}), such as '{uris[0]}'"
            for sensor, uris in sorted(kinds.items(), key=lambda kind: -len(kind[1]))
        )
        raise BandError(
            f"a corpus holds one sensor; the sources are of {len(kinds)} kinds: {listed}. "
            "Build a corpus of each, or choose common bands with --sensor or --bands"
        )


def _of_one_type(headers: Sequence[Header]) -> list[Header]:
    """Skip the scenes whose numbers are of another type than most: one array holds one type, and none is converted."""
    counts = Counter(header.dtype for header in headers if not header.refused)
    if len(counts) < 2:
        return list(headers)
    (usual, count), *_ = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [
        replace(
            header,
            tiles=0,
            refused=f"'{header.uri}' stores {header.dtype} and {count} other sources {usual}, and a corpus holds one "
            "type: build a corpus of its own, or convert it",
        )
        if not header.refused and header.dtype != usual
        else header
        for header in headers
    ]


def _nothing(headers: Sequence[Header]) -> str:
    reasons = list(dict.fromkeys(header.refused for header in headers))
    more = f"; and {len(reasons) - 5} more" if len(reasons) > 5 else ""
    return f"none of the {len(headers)} sources can be used: {'; '.join(reasons[:5])}{more}"


def _tasks(recipe: Recipe, headers: Sequence[Header]) -> list[list[Source]]:
    """Runs of consecutive sources; they depend on the sources alone, so that a resumed build finds its own."""
    usable = [header for header in headers if not header.refused]
    uris = [header.uri for header in usable]
    splits = assign_splits(uris, recipe.split, recipe.test_share)
    labels = assign_labels(uris, recipe.labels)
    tasks: list[list[Source]] = []
    number = size = 0
    for header, split, label in zip(usable, splits, labels, strict=True):
        bands = len(header.sensor.bands) if header.sensor else 1
        more = header.tiles * recipe.tile**2 * bands
        if not tasks or len(tasks[-1]) == SCENES_PER_TASK or size + more > BYTES_PER_TASK:
            tasks.append([])
            size = 0
        tasks[-1].append(Source(header.uri, number, split, label))
        number += header.tiles
        size += more
    return tasks


def _task(work: Path, number: int) -> Path:
    return work / "tasks" / f"{number:06d}"


def _cut(recipe: Recipe, tasks: Sequence[Sequence[Source]], work: Path, pool: Workers) -> None:
    missing = [number for number in range(len(tasks)) if not _task(work, number).exists()]
    plan = recipe.plan()
    sources = sum(len(tasks[number]) for number in missing)
    calls = [(tasks[number], _task(work, number)) for number in missing]
    pool.run("cutting tiles", partial(cut, plan), calls, inline=sources < _INLINE_TILES)
