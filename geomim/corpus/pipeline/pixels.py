"""Staged tiles into the pixel arrays of the corpus, shard after shard; most are taken over as they were staged."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from geomim.corpus.pipeline.executor import Workers
from geomim.corpus.pipeline.raw import image_at, image_file, read_raw
from geomim.corpus.pipeline.staged import staged
from geomim.corpus.shards import (
    ArrayLayout,
    copy_runs,
    create_array,
    link_shard,
    missing_shards,
    tiles_per_shard,
    whole_shard,
    write_groups,
    write_shard,
)
from geomim.corpus.store import IGNORE


@dataclass(frozen=True)
class Pixels:
    """What all tiles of a corpus share: type and number of bands, and how archives are compressed."""

    dtype: str
    bands: int
    compression: str | None = None


def write_pixels(work: Path, out: Path, pixels: Pixels, workers: Workers, inline: bool) -> None:
    """Write `tiles.zarr`: an array of images a size, of validity where not all is valid, of masks where there are any.

    A shard is a task and a file: one that is there is done, and so is all where `tiles.zarr` is there.
    """
    if (out / "tiles.zarr").exists():
        return
    folder, tasks = work / "tiles.zarr", staged(work).folders
    parts = [out / "catalogue" / f"tiles-{number:06d}.parquet" for number in range(len(tasks))]
    slots = workers.run("counting tiles", _slots, [(part,) for part in parts], inline)
    where = list(zip(zip(tasks, parts, strict=True), slots, strict=True))
    calls = []
    for size in sorted({size for some in slots for size in some}):
        calls += _arrays(folder, size, [(part, some[size]) for part, some in where if size in some], pixels)
    workers.run("writing tiles", _write, calls, inline=len(calls) < _INLINE_SHARDS)
    for rest in folder.rglob("*.partial"):  # zarr's own, of a group that was written when the build was stopped
        rest.unlink()
    write_groups(folder)
    os.replace(folder, out / "tiles.zarr")


_INLINE_SHARDS = 4  # a small corpus has one of images, validity and masks each


class _Slots(NamedTuple):
    """Tiles of one size in one part of the catalogue."""

    runs: np.ndarray  # (k, 2), first slot and one behind the last of each run
    all_valid: bool
    masked: bool  # whether any has a mask


def _slots(part: Path) -> dict[int, _Slots]:
    tiles = _with_pixels(part)
    result = {}
    for size in tiles["size"].unique().to_pylist():
        some = tiles.filter(pc.equal(tiles["size"], size)).sort_by("slot")
        slot, full = some["slot"].to_numpy(), pc.equal(some["pixels"], size**2)
        runs = np.split(slot, np.flatnonzero(np.diff(slot) != 1) + 1)
        spans = np.array([(run[0], run[-1] + 1) for run in runs], np.int64)
        result[size] = _Slots(spans, pc.all(full).as_py(), some["mask_place"].null_count < len(some))
    return result


def _with_pixels(part: Path) -> pa.Table:
    """Tiles of a part that have pixels of their own."""
    columns = ["id", "original", "size", "slot", "place", "mask_place", "pixels"]
    tiles = pq.read_table(part, columns=columns)
    return tiles.filter(pc.equal(tiles["id"], tiles["original"]))


_Parts = list[tuple[Path, Path]]
"""Folder of each task and its part of the catalogue."""


def _arrays(
    folder: Path, size: int, found: list[tuple[tuple[Path, Path], _Slots]], pixels: Pixels
) -> list[tuple[Any, ...]]:
    """Describe the arrays of one size; a call of `_write` for each shard that is missing."""
    count, bands = max(int(slots.runs.max()) for _, slots in found), pixels.bands
    path, small = folder / str(size), (count, size, size)
    per_shard = tiles_per_shard((count, bands, size, size), pixels.dtype)  # the same for all, for merge
    wanted = [("image", (count, bands, size, size), pixels.dtype, ("tile", "band", "y", "x"), 0)]
    if not all(slots.all_valid for _, slots in found):
        wanted.append(("valid", small, "bool", ("tile", "y", "x"), True))
    if any(slots.masked for _, slots in found):
        wanted.append(("mask", small, "uint8", ("tile", "y", "x"), IGNORE))
    parts: dict[int, _Parts] = defaultdict(list)
    for part, slots in found:
        touched = [range(first // per_shard, (end - 1) // per_shard + 1) for first, end in slots.runs.tolist()]
        for number in sorted(set(chain(*touched))):
            parts[number].append(part)
    calls = []
    for name, shape, dtype, dimensions, fill in wanted:
        layout = create_array(path / name, shape, dtype, dimensions, fill, pixels.compression, per_shard)
        calls += [(path / name, layout, number, parts[number]) for number in missing_shards(path / name, layout)]
    return calls


def _write(path: Path, layout: ArrayLayout, number: int, parts: _Parts) -> None:
    tiles = _tiles_of(layout, number, parts)
    if path.name != "image" or layout.compression is not None:
        write_shard(path, layout, number, _values(path.name, layout, tiles, parts))
        return
    runs = _runs(layout, tiles, parts)
    whole = layout.per_shard * layout.tile_bytes
    if len(runs) == 1 and runs[0][1:] == (0, whole) and whole_shard(layout.tile_bytes) == layout.per_shard:
        link_shard(path, layout, number, runs[0][0])
    else:
        copy_runs(path, layout, number, runs)


def _tiles_of(layout: ArrayLayout, number: int, parts: _Parts) -> pa.Table:
    """The tiles of a shard in the order of their slots; `part` says where each one comes from."""
    span, found = layout.slots(number), []
    for place, (_, part) in enumerate(parts):
        tiles = _with_pixels(part)
        inside = pc.and_(pc.greater_equal(tiles["slot"], span.start), pc.less(tiles["slot"], span.stop))
        tiles = tiles.filter(pc.and_(pc.equal(tiles["size"], layout.tile[-1]), inside))
        found.append(tiles.append_column("part", pa.array(np.full(len(tiles), place))))
    return pa.concat_tables(found).sort_by("slot")


def _runs(layout: ArrayLayout, tiles: pa.Table, parts: _Parts) -> list[tuple[Path, int, int]]:
    """File, first byte and bytes of the tiles of a shard; neighbours in one run."""
    part, size = tiles["part"].to_numpy(), layout.tile[-1]
    number, place = np.divmod(tiles["place"].to_numpy(), whole_shard(layout.tile_bytes))
    breaks = (np.diff(part) != 0) | (np.diff(number) != 0) | (np.diff(place) != 1)
    starts = np.r_[0, np.flatnonzero(breaks) + 1]
    return [
        (image_file(parts[part[start]][0], size, int(number[start])), int(place[start]) * layout.tile_bytes, length)
        for start, length in zip(starts, (np.diff(np.r_[starts, len(part)]) * layout.tile_bytes).tolist(), strict=True)
    ]


def _values(name: str, layout: ArrayLayout, tiles: pa.Table, parts: _Parts) -> Iterator[np.ndarray | None]:
    """A shard's tiles, None where one is all fill."""
    size, mapped = layout.tile[-1], lru_cache(maxsize=64)(read_raw)
    bits = (-(-(size**2) // 8),)
    for row in tiles.to_pylist():
        folder = parts[row["part"]][0]
        if name == "image":
            file, place = image_at(folder, size, row["place"], layout.tile_bytes)
            yield mapped(file, layout.dtype, layout.tile)[place]
        elif name == "mask":
            place = row["mask_place"]
            yield None if place is None else mapped(folder / f"mask-{size}.raw", "uint8", layout.tile)[place]
        elif row["pixels"] == size**2:
            yield None
        else:
            packed = mapped(folder / f"valid-{size}.raw", "uint8", bits)[row["place"]]
            yield np.unpackbits(packed, count=size**2).astype(bool).reshape(size, size)
