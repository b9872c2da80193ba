"""From the small tables to what a reader sees: decisions, catalogue, statistics, lock, and `corpus.json` last.

The end of every build, and of everything that changes a finished corpus (`decide`, `split`, `exclude`, ...). All
files are made aside, then renamed one after the other; a change that was stopped in between is finished by the next.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import rasterio
import xxhash
from rich.console import Console
from rich.progress import Progress

from geomim import __version__
from geomim.corpus.lock import facts_hash, file_hash, write_lock
from geomim.corpus.pipeline.decide import FATES, Tables, counting, crowd, decide_part, repeating, settle, standing
from geomim.corpus.pipeline.edges import EDGES
from geomim.corpus.pipeline.executor import Workers
from geomim.corpus.pipeline.ground import SHARED, check_apart, first_of, is_divided, shared_ground, shared_pixels
from geomim.corpus.pipeline.rules import Rules, rules_of
from geomim.corpus.pipeline.shuffle import stage_folder
from geomim.corpus.remote import Url, place
from geomim.corpus.store import CATALOGUE, FORMAT_VERSION, Corpus, write_catalogue, write_json, write_table
from geomim.errors import CorpusError, InputError, nearest

_ROWS = 65536  # of a row group of the catalogue
_FILES = ("catalogue.parquet", "corpus.lock", "corpus.json")  # in this order; the last says that all is there
_REMOVED = ".removed"
_NEXT = "next"  # holds the files of a change that is made and not yet in place
_INLINE_TILES = 100_000

SmallTables = Mapping[str, pa.Table | None]


def complete(folder: Path) -> None:
    """Put the files of a change into place that was stopped while it did so."""
    if (folder / _NEXT).is_dir():
        for file in sorted((folder / _NEXT / "catalogue").glob("*")):
            if file.suffix == _REMOVED:  # the mark stays until all is done, so that a second try finds it
                (folder / "catalogue" / file.name).with_suffix(".parquet").unlink(missing_ok=True)
            else:
                os.replace(file, folder / "catalogue" / file.name)
        for name in _FILES:
            if (folder / _NEXT / name).exists():
                os.replace(folder / _NEXT / name, folder / name)
        shutil.rmtree(folder / _NEXT)


def open_to_change(corpus: str | Path) -> Corpus:
    """Open a corpus that is about to be changed; a change that was stopped is finished first.

    Raises:
        InputError: It lies in a remote store.
        CorpusError: It is no corpus, or one of the first format, which holds no tables that decide.
    """
    folder = place(corpus)
    if isinstance(folder, Url):
        raise InputError(
            f"'{corpus}' lies in a remote store and cannot be changed there: copy it here, and publish again"
        )
    if not (folder / "work").is_dir():  # a build finishes its own
        complete(folder)
    opened = Corpus.open(folder)
    if not (folder / "catalogue" / "edges.parquet").exists():
        made = opened.meta.get("geomim_version")
        raise CorpusError(
            f"'{folder}' was built by geomim {made} and holds no edges between its tiles: build it again to change it"
        )
    return opened


def conclude(
    folder: str | Path,
    change: dict[str, Any] | None = None,
    tables: SmallTables | None = None,
    workers: Workers | None = None,
    said: Mapping[str, Any] | None = None,
    **recipe: Any,
) -> None:
    """Decide again about a finished corpus, after one of its small tables or some entries of its recipe changed.

    Args:
        folder: Of the corpus.
        change: The verb that changed a table, and its arguments, for the lock, after what was done before; None as
            arguments takes back all that this verb did.
        tables: New small tables of the folder `catalogue` by name; None removes one.
        workers: Runs it; processes of its own where None.
        said: What `corpus.json` is to say besides: `protect`, `classes`, `joined`, `sentences`.
        recipe: New values of entries of the recipe.

    Raises:
        CorpusError: It is no corpus, or one of the first format, which holds no such tables.
        InputError: A value of the recipe makes no sense, or no tile would be kept; nothing is changed then.
    """
    opened = open_to_change(folder)
    meta = dict(opened.meta)
    other = {name: value for name, value in recipe.items() if meta["recipe"].get(name) != value}
    _note(meta, (change or {}) | ({"decide": other} if other else {}))
    meta["recipe"] = meta["recipe"] | other
    if tables and tables.get("split") is not None:
        meta["protect"] = False  # nobody is compared by a split that was drawn here: its near copies may go
    meta |= said or {}
    rules = rules_of(meta)
    rules.check()
    with ExitStack() as own:
        if workers is None:
            progress = own.enter_context(Progress(console=Console(stderr=True), transient=True))
            workers = own.enter_context(Workers(progress))
        finish(opened.path, meta, rules, workers, tables)


def _note(meta: dict[str, Any], change: dict[str, Any]) -> None:
    """Add to the list of what was done after the build, in its order; the first time with the build's own recipe."""
    if not change:
        return
    meta.setdefault("built", meta["recipe"])
    before = [one for one in meta.get("changes") or [] if change.get(one["verb"], one) is not None]
    meta["changes"] = before + [{"verb": verb, "asked": asked} for verb, asked in change.items() if asked is not None]


def finish(
    folder: Path, meta: dict[str, Any], rules: Rules, workers: Workers, tables: SmallTables | None = None
) -> None:
    """Decide about all tiles and write the catalogue, the lock and `corpus.json`.

    Args:
        folder: A corpus whose tiles and small tables are there.
        meta: What `corpus.json` says besides decisions: `sensor`, `recipe`, `protect`, `classes`.
        rules: What is asked of a tile.
        workers: Runs it.
        tables: New small tables of the folder `catalogue` by name; None removes one.

    Raises:
        InputError: No tile is kept, or none of train in a split that was drawn; nothing is changed then.
    """
    complete(folder)
    part = stage_folder(folder / _NEXT)
    deciding = Tables(folder / "catalogue", _stage(part / "catalogue", tables or {}))
    files = deciding.parts()
    inline = sum(pq.read_metadata(file).num_rows for file in files) < _INLINE_TILES
    edges, copies = (pq.read_table(deciding.file(name)) for name in ("edges", "copies"))
    if rules.near is None:  # near duplicates are kept
        edges = edges.filter(pc.not_equal(edges["kind"], "perceptual"))
    ends = [edges["a"], edges["b"], copies["id"], copies["original"]]
    np.save(part / "crowd.npy", np.unique(np.concatenate([column.to_numpy() for column in ends])))
    fates = _fates(deciding, edges.cast(EDGES), rules, part, workers, inline)
    calls = [(deciding, file, rules, fates, part / f"decided-{file.stem}.parquet") for file in files]
    sums = workers.run("deciding", _decide, calls, inline)
    _check_some_kept(folder, sums, part, bool(tables and tables.get("split")))
    write_catalogue(part / "catalogue.parquet", _row_groups([call[-1] for call in calls]))
    meta = meta | {"shared": check_apart(part, edges, copies, workers, inline)}
    sources = pq.read_table(folder / "catalogue" / "sources.parquet")
    facts = _facts(folder, meta, sums)
    _say_unknown(rules, facts)
    meta |= facts | {"tables": {file.name: file_hash(file) for file in deciding.all()}}
    write_lock(part / "corpus.lock", part / "catalogue.parquet", sources, _locked(folder, meta))
    meta |= {"lock": file_hash(part / "corpus.lock")}
    write_json(part / "corpus.json", meta | {"facts": facts_hash(meta)})
    os.replace(part, folder / _NEXT)
    complete(folder)


def _stage(folder: Path, tables: SmallTables) -> Path:
    """Write new small tables aside, and a mark for each that goes."""
    folder.mkdir()
    for name, table in tables.items():
        if table is None:
            (folder / f"{name}{_REMOVED}").touch()
        else:
            write_table(folder / f"{name}.parquet", table)
    return folder


def _fates(tables: Tables, edges: pa.Table, rules: Rules, part: Path, workers: Workers, inline: bool) -> Path:
    asked = [(tables, file, rules) for file in tables.parts()]
    calls = [(*one, part / "crowd.npy") for one in asked]
    members = pa.concat_tables(workers.run("comparing copies", crowd, calls, inline)).combine_chunks()
    telling = counting(repeating(edges, members), rules)
    shared = SHARED.empty_table()
    if any(is_divided(tables.part(file, ["id", "split"])) for file in tables.parts()):
        count = sum(pq.read_metadata(file).num_rows for file in tables.parts())
        ground = shared_ground(standing, asked, count, part / "shared", workers, inline)
        one, two = (table["a"].to_numpy() * 2**31 + table["b"].to_numpy() for table in (edges, telling))
        pixels = shared_pixels(members, edges.filter(pa.array(~np.isin(one, two))))  # of `telling`, one goes as a copy
        shared = first_of(pa.concat_tables([ground, pixels]))
    write_table(part / "catalogue" / "shared.parquet", shared)
    able = pc.and_(members["usable"], pc.invert(pc.is_in(members["id"], shared["id"].combine_chunks())))
    members = members.set_column(members.column_names.index("usable"), "usable", able)
    write_table(part / "fates.parquet", settle(members, telling, rules).cast(FATES))
    return part / "fates.parquet"


def _decide(tables: Tables, file: Path, rules: Rules, fates: Path, out: Path) -> dict[str, Any]:
    """Decisions of one part on disk, and what is to be summed up over all parts."""
    tiles = decide_part(tables, file, rules, fates)
    write_table(out, tiles.select(CATALOGUE.names).cast(CATALOGUE))
    kept = tiles.filter(tiles["kept"])
    named = ("licence", "attribution", "label")
    return {
        "names": {name: [one for one in tiles[name].unique().to_pylist() if one is not None] for name in named},
        "reasons": tiles["reason"].unique().to_pylist()[:5],
        "stored": Counter(tiles.filter(pc.equal(tiles["original"], tiles["id"]))["size"].to_pylist()),
        "kept": Counter(kept["size"].to_pylist()),
        "all": _moments(kept),
        "train": _moments(kept.filter(pc.equal(kept["split"], "train"))),
    }


def _moments(tiles: pa.Table) -> tuple[int, np.ndarray, np.ndarray]:
    """Valid pixels of some tiles, and mean and sum of squared deviations of each band over them."""
    pixels = tiles["pixels"].to_numpy()
    total = int(pixels.sum())
    if total == 0:
        return 0, np.zeros(0), np.zeros(0)
    mean, squares = (np.array(tiles[name].to_pylist(), float) for name in ("mean", "squares"))
    middle = (pixels[:, None] * mean).sum(0) / total
    return total, middle, squares.sum(0) + (pixels[:, None] * (mean - middle) ** 2).sum(0)


def _merged(parts: list[tuple[int, np.ndarray, np.ndarray]]) -> tuple[int, np.ndarray, np.ndarray]:
    """Moments of all parts together, in their order (Chan et al., 1983)."""
    count, mean, squares = 0, np.zeros(1), np.zeros(1)
    for more, part_mean, part_squares in parts:
        if more:
            delta = part_mean - mean
            squares = squares + part_squares + delta**2 * (count * more / (count + more))
            mean = mean + delta * (more / (count + more))
            count += more
    return count, mean, squares


def _statistics(sums: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation of each band over kept train tiles, or over all kept ones where none is train."""
    split = "train" if any(one["train"][0] for one in sums) else "all"
    count, mean, squares = _merged([one[split] for one in sums])
    return {"mean": mean.tolist(), "std": np.sqrt(squares / count).tolist(), "split": split, "pixels": count}


def _check_some_kept(folder: Path, sums: list[dict[str, Any]], part: Path, drawn: bool) -> None:
    if not any(one["kept"] for one in sums):
        skipped = pq.read_table(folder / "skipped.parquet")["reason"].to_pylist()
        count = sum(one["stored"].total() for one in sums)
        reasons = list(dict.fromkeys(chain(*(one["reasons"] for one in sums), skipped)))[:5]
        why = f"no tile is kept, of {count} tiles and {len(skipped)} skipped sources: {'; '.join(reasons)}"
    elif drawn and not any(one["train"][0] for one in sums):
        why = (
            "no tile would be left to train on: each shares ground or pixels with one that is held out; hold out less, "
            "or divide by something smaller (geomim corpus split --by cluster); nothing is changed"
        )
    else:
        return
    shutil.rmtree(part)
    raise InputError(why)


def _say_unknown(rules: Rules, facts: dict[str, Any]) -> None:
    """Say which licences are to be kept that no tile has, as the wrong spelling of one would drop its tiles."""
    if left := [name for name in rules.licence or [] if name not in facts["licences"]]:
        Console(stderr=True, markup=False, highlight=False).print(
            f"--only-licence: no tile has {', '.join(left)}{nearest(left[0], facts['licences'])}", soft_wrap=True
        )


def _row_groups(files: list[Path]) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    for file in files:
        waiting.append(pq.read_table(file))
        if sum(map(len, waiting)) >= _ROWS:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def _locked(folder: Path, meta: dict[str, Any]) -> dict[str, Any]:
    said = {name: meta[name] for name in ("recipe", "built", "changes", "sentences") if name in meta}
    skipped = pq.read_table(folder / "skipped.parquet", columns=["source"])["source"].unique().to_pylist()
    return {"geomim_version": __version__, **said, "skipped": skipped, "versions": versions()}


def versions() -> dict[str, str]:
    """Versions of all that decides the bytes of a corpus."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "rasterio": rasterio.__version__,
        "gdal": rasterio.__gdal_version__,
        "zarr": version("zarr"),
        "pyarrow": pa.__version__,
    }


def _facts(folder: Path, meta: dict[str, Any], sums: list[dict[str, Any]]) -> dict[str, Any]:
    """What the decisions say, for `corpus.json`."""
    names = {name: sorted({value for one in sums for value in one["names"][name]}) for name in sums[0]["names"]}
    stored, kept = (sum((one[what] for one in sums), Counter()) for what in ("stored", "kept"))
    return {
        "format_version": FORMAT_VERSION,
        "geomim_version": __version__,
        "statistics": _statistics(sums),
        "licences": names["licence"],
        "attributions": names["attribution"],
        "sizes": {str(size): {"tiles": stored[size], "kept": kept[size]} for size in sorted(stored)},
        "classes": meta["classes"] or names["label"],
        "audit": _audit(folder),
        "versions": versions(),
    }


def _audit(folder: Path) -> str | None:
    """Checksum of the evidence of all benchmarks that were excluded, or None."""
    files = [file for name in ("audit.json", "matches.parquet") for file in sorted(folder.glob(f"audit/*/{name}"))]
    files = [file for file in files if file.parent.suffix != ".part"]  # which a kill left half-way
    state = xxhash.xxh3_128()
    for file in files:
        state.update(file.read_bytes())
    return state.hexdigest() if files else None
