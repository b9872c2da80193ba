"""Staged and decided tiles into the corpus: pixel arrays, catalogue, statistics, and `corpus.json` last."""

from __future__ import annotations

import os
import platform
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
import zarr
from rich.progress import Progress

from geomim import __version__
from geomim.corpus.labels import Masks
from geomim.corpus.pipeline.staging import read_raw
from geomim.corpus.shards import TileWriter
from geomim.corpus.store import (
    CATALOGUE,
    FORMAT_VERSION,
    IGNORE,
    SKIPPED,
    write_catalogue,
    write_json,
    write_table,
)
from geomim.errors import InputError
from geomim.sensors import Sensor

_ROWS = 65536  # of a row group of the catalogue


class Staged:
    """All finished tasks with the decisions about their tiles.

    Args:
        folders: The tasks, in order.
        decisions: Written by `decide`.
        sensor: Of all scenes.
        dtype: Of all pixels.
        tile: Edge in pixels.
    """

    def __init__(self, folders: Sequence[Path], decisions: Path, sensor: Sensor, dtype: str, tile: int) -> None:
        self.folders = list(folders)
        self.decisions = pq.read_table(decisions)
        self.sensor, self.dtype, self.tile = sensor, np.dtype(dtype), tile
        self._shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
            "image": (self.dtype, (len(sensor.bands), tile, tile)),
            "valid": (np.uint8, (-(-tile * tile // 8),)),
            "mask": (np.uint8, (tile, tile)),
            "moments": (np.float64, (len(sensor.bands), 2)),
        }

    def parts(self) -> Iterator[tuple[Path, pa.Table]]:
        """Each task's folder and the rows of its tiles, with all columns of the catalogue."""
        first = 0
        for folder in self.folders:
            facts = pq.read_table(folder / "tiles.parquet")
            decided = self.decisions.slice(first, len(facts)).drop_columns("id")
            first += len(facts)
            columns = dict(zip(facts.column_names, facts.columns, strict=True))
            columns |= dict(zip(decided.column_names, decided.columns, strict=True))
            yield folder, pa.table({name: columns[name] for name in CATALOGUE.names}).cast(CATALOGUE)

    def raw(self, folder: Path, name: str) -> np.ndarray:
        """One raw file of a task."""
        return read_raw(folder, name, *self._shapes[name])


def finish(
    out: Path,
    staged: Staged,
    recipe: dict[str, Any],
    refused: Sequence[tuple[str, str]],
    progress: Progress,
) -> None:
    """Write what a reader sees; `corpus.json` comes last and says that all is there.

    Args:
        out: Folder of the corpus.
        staged: Tiles.
        recipe: What made them.
        refused: Sources that were not cut, and why.
        progress: Shows how far it is.

    Raises:
        InputError: No tile is kept.
    """
    skipped = _skipped(staged, refused)
    _check_some_kept(staged, skipped)
    if not (out / "tiles.zarr").exists():
        _store(out, staged, recipe["masks"] is not None, progress)
    parts = out / "work" / "catalogue"
    if not (out / "catalogue").exists():
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir()
        for folder in staged.folders:
            shutil.copyfile(folder / "tiles.parquet", parts / f"tiles-{folder.name}.parquet")
        write_table(parts / "decisions.parquet", staged.decisions)
        os.replace(parts, out / "catalogue")
    write_catalogue(out / "catalogue.parquet", _row_groups(staged))
    write_table(out / "skipped.parquet", skipped)
    write_json(out / "corpus.json", _meta(out, staged, recipe))


def _skipped(staged: Staged, refused: Sequence[tuple[str, str]]) -> pa.Table:
    table = pa.Table.from_pylist([{"source": uri, "reason": reason} for uri, reason in refused], SKIPPED)
    tables = [table, *(pq.read_table(folder / "skipped.parquet") for folder in staged.folders)]
    return pa.concat_tables(tables).sort_by("source")


def _check_some_kept(staged: Staged, skipped: pa.Table) -> None:
    if np.any(staged.decisions["kept"].to_numpy()):
        return
    reasons = [*staged.decisions["reason"].to_pylist(), *skipped["reason"].to_pylist()]
    listed = "; ".join(list(dict.fromkeys(reasons))[:5])
    raise InputError(f"no tile is kept, of {len(staged.decisions)} tiles and {len(skipped)} skipped sources: {listed}")


def _store(out: Path, staged: Staged, masks: bool, progress: Progress) -> None:
    """Write the pixel arrays aside, then rename."""
    part = out / "work" / "tiles.zarr"
    shutil.rmtree(part, ignore_errors=True)
    zarr.create_group(str(part), zarr_format=3).create_group(str(staged.tile))
    folder, tile, bands = part / str(staged.tile), staged.tile, len(staged.sensor.bands)
    stored = staged.decisions["slot"].to_numpy() >= 0
    count = int(stored.sum())
    bar = progress.add_task("writing tiles", total=len(staged.folders))
    partly = 0
    with (
        TileWriter(folder / "image", (count, bands, tile, tile), staged.dtype, ("tile", "band", "y", "x")) as image,
        TileWriter(folder / "valid", (count, tile, tile), bool, ("tile", "y", "x"), True) as valid,
        TileWriter(folder / "mask", (count, tile, tile), np.uint8, ("tile", "y", "x"), IGNORE) as mask,
    ):
        first = 0
        for source in staged.folders:
            pixels = staged.raw(source, "image")
            places = np.flatnonzero(stored[first : first + len(pixels)])
            first += len(pixels)
            image.append(pixels[place] for place in places)
            bits = np.unpackbits(staged.raw(source, "valid")[places], axis=1, count=tile * tile).astype(bool)
            some = ~bits.all(1)
            partly += int(some.sum())
            valid.append(bits.reshape(-1, tile, tile), some)
            labels = staged.raw(source, "mask")[places] if masks else np.empty((len(places), 0))
            mask.append(labels, np.full(len(places), masks))
            progress.advance(bar)
    if not partly:
        shutil.rmtree(folder / "valid")
    if not masks:
        shutil.rmtree(folder / "mask")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr says that v3 does not specify this yet; xarray warns where it is missing
        for group in (folder, part):
            zarr.consolidate_metadata(str(group))
    os.replace(part, out / "tiles.zarr")


def _row_groups(staged: Staged) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    for _, table in staged.parts():
        waiting.append(table)
        if sum(map(len, waiting)) >= _ROWS:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def _meta(out: Path, staged: Staged, recipe: dict[str, Any]) -> dict[str, Any]:
    facts = [set(), set(), set()]
    for _, table in staged.parts():
        for found, name in zip(facts, ("licence", "attribution", "label"), strict=True):
            found.update(value for value in table[name].unique().to_pylist() if value is not None)
    licences, attributions, labels = map(sorted, facts)
    tiles = int((staged.decisions["slot"].to_numpy() >= 0).sum())
    return {
        "format_version": FORMAT_VERSION,
        "geomim_version": __version__,
        "sensor": staged.sensor.to_dict(),
        "statistics": statistics(staged),
        "licences": licences,
        "attributions": attributions,
        "sizes": {str(staged.tile): {"tiles": tiles, "kept": int(staged.decisions["kept"].to_numpy().sum())}},
        "classes": Masks(recipe["masks"]).classes if recipe["masks"] else labels,
        "recipe": recipe,
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "rasterio": rasterio.__version__,
            "gdal": rasterio.__gdal_version__,
            "zarr": zarr.__version__,
            "pyarrow": pa.__version__,
        },
    }


def statistics(staged: Staged) -> dict[str, Any]:
    """Mean and standard deviation of each band over valid pixels of kept train tiles (of all kept where none is).

    Tiles are merged in the order of the tasks (Chan et al., 1983), so the outcome does not depend on who cut them.

    Returns:
        `mean`, `std` (a number a band, in stored numbers), `split`, and the number of `pixels` a band.
    """
    for split in ("train", "all"):
        count, mean, squares = 0, np.zeros(len(staged.sensor.bands)), np.zeros(len(staged.sensor.bands))
        for folder, table in staged.parts():
            wanted = table["kept"].to_numpy()
            if split != "all":
                wanted = wanted & (np.array(table["split"].to_pylist()) == split)
            pixels = np.round(table["valid_fraction"].to_numpy() * staged.tile**2).astype(np.int64)[wanted]
            moments = staged.raw(folder, "moments")[wanted]
            more = int(pixels.sum())
            if more == 0:
                continue
            part_mean = (pixels[:, None] * moments[..., 0]).sum(0) / more
            part = moments[..., 1].sum(0) + (pixels[:, None] * (moments[..., 0] - part_mean) ** 2).sum(0)
            delta = part_mean - mean
            squares += part + delta**2 * (count * more / (count + more))
            mean += delta * (more / (count + more))
            count += more
        if count:
            break
    return {"mean": mean.tolist(), "std": np.sqrt(squares / count).tolist(), "split": split, "pixels": count}
