"""Staged tiles into the pixel arrays of the corpus: a slot for each tile, then shard after shard."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from geomim.corpus.pipeline.executor import Workers
from geomim.corpus.pipeline.staged import staged
from geomim.corpus.pipeline.staging import read_raw
from geomim.corpus.shards import (
    ArrayLayout,
    copy_runs,
    create_array,
    missing_shards,
    tiles_per_shard,
    write_groups,
    write_shard,
)
from geomim.corpus.store import IGNORE, write_table


@dataclass(frozen=True)
class Pixels:
    """What all tiles of a corpus share.

    Attributes:
        dtype: Of the pixels.
        bands: How many.
        compression: Of the arrays, for archives; None where training reads them.
    """

    dtype: str
    bands: int
    compression: str | None = None


def assign_slots(work: Path, folder: Path, copies: pa.Table, workers: Workers, inline: bool) -> None:
    """Write `tiles-*.parquet`: the facts of each task with `slot` and `original`; and `copies.parquet`.

    Tiles with pixels of their own get slots in id order, from 0 for each size; exact copies share that of their
    original.

    Args:
        work: Folder of the build.
        folder: Where to.
        copies: Exact copies.
        workers: Runs it.
        inline: Stay in this process.
    """
    write_table(folder / "copies.parquet", copies)
    tasks = staged(work).folders
    counts = workers.run("counting tiles", _originals, [(task, folder) for task in tasks], inline)
    calls, next_slot = [], Counter[int]()
    for number, (task, count) in enumerate(zip(tasks, counts, strict=True)):
        calls.append((task, folder, number, dict(next_slot)))
        next_slot.update(count)
    workers.run("numbering tiles", _number, calls, inline)
    _share_slots(folder, copies)


def _own(ids: np.ndarray, copies: pa.Table) -> np.ndarray:
    """The original of each tile: itself where it is no copy."""
    original, known = ids.copy(), copies["id"].to_numpy()
    at = np.searchsorted(known, ids)
    copy = (
        (at < len(known)) & (known[np.minimum(at, len(known) - 1)] == ids) if len(known) else np.zeros(len(ids), bool)
    )
    original[copy] = copies["original"].to_numpy()[at[copy]]
    return original


def _originals(task: Path, folder: Path) -> dict[int, int]:
    """How many tiles of each size have pixels of their own."""
    tiles = pq.read_table(task / "tiles.parquet", columns=["id", "size"])
    ids = tiles["id"].to_numpy()
    own = tiles.filter(pa.array(_own(ids, pq.read_table(folder / "copies.parquet")) == ids))
    return {row["values"]: row["counts"] for row in pc.value_counts(own["size"]).to_pylist()}


def _number(task: Path, folder: Path, number: int, first: dict[int, int]) -> None:
    tiles = pq.read_table(task / "tiles.parquet")
    ids, sizes = tiles["id"].to_numpy(), tiles["size"].to_numpy()
    original = _own(ids, pq.read_table(folder / "copies.parquet"))
    slot = np.full(len(ids), -1, np.int64)
    for size in np.unique(sizes):
        own = (sizes == size) & (original == ids)
        slot[own] = first.get(int(size), 0) + np.arange(own.sum())
    tiles = tiles.append_column("slot", pa.array(slot)).append_column("original", pa.array(original))
    write_table(folder / f"tiles-{number:06d}.parquet", tiles)


def _share_slots(folder: Path, copies: pa.Table) -> None:
    """Give exact copies the slot of their original, which may lie in another part."""
    if not len(copies):
        return
    wanted = np.unique(copies["original"].to_numpy())
    files = sorted(folder.glob("tiles-*.parquet"))
    found = pa.concat_tables(
        pq.read_table(file, columns=["id", "slot"], filters=pc.field("id").isin(wanted)) for file in files
    )
    numbers, slots = found["id"].to_numpy(), found["slot"].to_numpy()
    for file in files:
        tiles = pq.read_table(file)
        slot, original = tiles["slot"].to_numpy().copy(), tiles["original"].to_numpy()
        copy = slot < 0
        if copy.any():
            slot[copy] = slots[np.searchsorted(numbers, original[copy])]
            write_table(file, tiles.set_column(tiles.column_names.index("slot"), "slot", pa.array(slot)))


def write_pixels(work: Path, out: Path, pixels: Pixels, workers: Workers, inline: bool) -> None:
    """Write `tiles.zarr`: an array of images a size, of validity where not all is valid, of masks where there are any.

    A shard is a task and a file: one that is there is done.

    Args:
        work: Folder of the build.
        out: Folder of the corpus, whose `catalogue` is there; nothing happens where `tiles.zarr` is, too.
        pixels: What all tiles share.
        workers: Runs it.
        inline: Count in this process.
    """
    if (out / "tiles.zarr").exists():
        return
    folder = work / "tiles.zarr"
    parts = sorted((out / "catalogue").glob("tiles-*.parquet"))
    found = workers.run("counting tiles", _slots, [(part,) for part in parts], inline)
    calls = []
    for size in sorted({size for some in found for size in some}):
        slots = [some.get(size, _NONE) for some in found]
        calls += _arrays(work, out / "catalogue", folder, size, slots, pixels)
    workers.run("writing tiles", _write, calls, inline=len(calls) < _INLINE_SHARDS)
    for rest in folder.rglob("*.partial"):  # zarr's own, of a group that was written when the build was stopped
        rest.unlink()
    write_groups(folder)
    os.replace(folder, out / "tiles.zarr")


_INLINE_SHARDS = 3


@dataclass(frozen=True)
class Slots:
    """Tiles of one size in one part of the catalogue: first slot, one behind the last, and what else they have."""

    first: int = 0
    end: int = 0
    all_valid: bool = True
    masked: bool = False


_NONE = Slots()


def _slots(part: Path) -> dict[int, Slots]:
    tiles = _with_pixels(part)
    result = {}
    for size in tiles["size"].unique().to_pylist():
        some = tiles.filter(pc.equal(tiles["size"], size))
        slot, full = some["slot"].to_numpy(), pc.equal(some["pixels"], size**2)
        masked = some["mask_place"].null_count < len(some)
        result[size] = Slots(int(slot[0]), int(slot[-1]) + 1, pc.all(full).as_py(), masked)
    return result


def _with_pixels(part: Path) -> pa.Table:
    """Tiles of a part that have pixels of their own, in the order of their slots within each size."""
    columns = ["id", "original", "size", "slot", "place", "mask_place", "pixels"]
    tiles = pq.read_table(part, columns=columns)
    return tiles.filter(pc.equal(tiles["id"], tiles["original"]))


def _arrays(
    work: Path, catalogue: Path, folder: Path, size: int, slots: list[Slots], pixels: Pixels
) -> list[tuple[Any, ...]]:
    """Describe the arrays of one size; a call of `_write` for each shard that is missing."""
    count, bands = max(some.end for some in slots), pixels.bands
    path, small = folder / str(size), (count, size, size)
    shards = tiles_per_shard((count, bands, size, size), pixels.dtype)  # the same for all, so that a corpus can grow
    wanted = [("image", (count, bands, size, size), pixels.dtype, ("tile", "band", "y", "x"), 0)]
    if not all(some.all_valid for some in slots):
        wanted.append(("valid", small, "bool", ("tile", "y", "x"), True))
    if any(some.masked for some in slots):
        wanted.append(("mask", small, "uint8", ("tile", "y", "x"), IGNORE))
    ends = np.array([some.end for some in slots])
    begins = np.array([some.first if some.end else count for some in slots])
    calls = []
    for name, shape, dtype, dimensions, fill in wanted:
        layout = create_array(path / name, shape, dtype, dimensions, fill, pixels.compression, shards)
        for number in missing_shards(path / name, layout):
            span = layout.slots(number)
            places = np.flatnonzero((begins < span.stop) & (ends > span.start)).tolist()
            parts = [(staged(work).folders[part], catalogue / f"tiles-{part:06d}.parquet") for part in places]
            calls.append((path / name, layout, number, parts, size))
    return calls


_Parts = list[tuple[Path, Path]]
"""Folder of each task and its part of the catalogue."""


def _write(path: Path, layout: ArrayLayout, number: int, parts: _Parts, size: int) -> None:
    """Write one shard from the staged tiles of some parts."""
    if path.name == "image" and layout.compression is None:
        copy_runs(path, layout, number, _runs(layout, number, parts, size))
    else:
        write_shard(path, layout, number, _tiles(path.name, layout, number, parts, size))


def _places(layout: ArrayLayout, number: int, parts: _Parts, size: int) -> Iterator[tuple[Path, pa.Table]]:
    """Folder of each task and its tiles that belong to a shard."""
    span = layout.slots(number)
    for folder, part in parts:
        tiles = _with_pixels(part)
        inside = pc.and_(pc.greater_equal(tiles["slot"], span.start), pc.less(tiles["slot"], span.stop))
        tiles = tiles.filter(pc.and_(pc.equal(tiles["size"], size), inside))
        if len(tiles):
            yield folder, tiles


def _runs(layout: ArrayLayout, number: int, parts: _Parts, size: int) -> Iterator[tuple[Path, int, int]]:
    """Where the bytes of a shard's tiles lie; neighbours in one run."""
    for folder, tiles in _places(layout, number, parts, size):
        place = tiles["place"].to_numpy()
        for run in np.split(place, np.flatnonzero(np.diff(place) != 1) + 1):
            start, length = int(run[0]) * layout.tile_bytes, len(run) * layout.tile_bytes
            yield folder / f"image-{size}.raw", start, length


def _tiles(name: str, layout: ArrayLayout, number: int, parts: _Parts, size: int) -> Iterator[np.ndarray | None]:
    """A shard's tiles, None where one is all fill."""
    for folder, tiles in _places(layout, number, parts, size):
        if name == "image":
            raw = read_raw(folder, f"image-{size}", np.dtype(layout.dtype), layout.tile)
            yield from (raw[place] for place in tiles["place"].to_pylist())
        elif name == "valid":
            raw = read_raw(folder, f"valid-{size}", np.dtype(np.uint8), (-(-(size**2) // 8),))
            full = size**2
            for place, pixels in zip(tiles["place"].to_pylist(), tiles["pixels"].to_pylist(), strict=True):
                bits = None if pixels == full else np.unpackbits(raw[place], count=full).astype(bool)
                yield None if bits is None else bits.reshape(size, size)
        else:
            raw = read_raw(folder, f"mask-{size}", np.dtype(np.uint8), (size, size))
            yield from (None if place is None else raw[place] for place in tiles["mask_place"].to_pylist())
