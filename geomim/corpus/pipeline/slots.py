"""A slot for each tile: its place in the arrays of its size.

Cutting stages images in files of a whole shard each. Those files become shards as they are, in the order of the tasks,
so most tiles are at home where they were staged. Exact copies leave holes there. What did not fill a file (the end of
each task) goes into the holes first and then behind: the slots 0, 1, 2, ... are all taken, and few images are copied.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from geomim.corpus.pipeline.executor import Workers
from geomim.corpus.pipeline.pixels import Pixels
from geomim.corpus.pipeline.staged import staged
from geomim.corpus.shards import whole_shard
from geomim.corpus.store import write_table


class _Count(NamedTuple):
    """Tiles of one size in a task."""

    tiles: int
    copies: np.ndarray  # places of those that are exact copies, ascending


class _Room(NamedTuple):
    """Slots for the tiles of one size of a task."""

    home: int  # tiles that stay in the files where they were staged: the first so many places
    first: int  # slot of the first of them
    others: np.ndarray  # slots of all other tiles that are no copies


def assign_slots(work: Path, folder: Path, copies: pa.Table, pixels: Pixels, workers: Workers, inline: bool) -> None:
    """Write `tiles-*.parquet`: the facts of each task with `slot` and `original`; and `copies.parquet`.

    Exact copies share the slot of their original.
    """
    write_table(folder / "copies.parquet", copies)
    tasks = staged(work).folders
    counts = workers.run("counting tiles", _count, [(task, folder) for task in tasks], inline)
    rooms: list[dict[int, _Room]] = [{} for _ in tasks]
    for size in sorted({size for some in counts for size in some}):
        holders = [number for number, some in enumerate(counts) if size in some]
        per_file = whole_shard(pixels.bands * size**2 * np.dtype(pixels.dtype).itemsize)
        for number, room in zip(holders, _share([counts[number][size] for number in holders], per_file), strict=True):
            rooms[number][size] = room
    calls = [(task, folder, number, rooms[number]) for number, task in enumerate(tasks)]
    workers.run("numbering tiles", _number, calls, inline)
    _share_slots(folder, copies)


def _count(task: Path, folder: Path) -> dict[int, _Count]:
    tiles = pq.read_table(task / "tiles.parquet", columns=["id", "size", "place"])
    ids = tiles["id"].to_numpy()
    copied = originals(ids, pq.read_table(folder / "copies.parquet")) != ids
    sizes, places = tiles["size"].to_numpy(), tiles["place"].to_numpy()
    return {size: _Count((sizes == size).sum(), places[(sizes == size) & copied]) for size in np.unique(sizes).tolist()}


def _share(counts: list[_Count], per_file: int) -> list[_Room]:
    """Slots of one size, task after task."""
    left = sum(count.tiles - len(count.copies) for count in counts) // per_file  # full shards of the outcome
    homes = []
    for count in counts:
        homes.append(min(count.tiles // per_file, left) * per_file)
        left -= homes[-1] // per_file
    starts, behind = np.cumsum(homes) - homes, sum(homes)
    inside = [count.copies[count.copies < home] for count, home in zip(counts, homes, strict=True)]
    holes = np.concatenate([places + start for places, start in zip(inside, starts, strict=True)])
    rooms, taken = [], 0
    for count, home, start, inner in zip(counts, homes, starts, inside, strict=True):
        end = taken + (count.tiles - home) - (len(count.copies) - len(inner))
        late = behind + np.arange(max(taken, len(holes)), max(end, len(holes))) - len(holes)
        rooms.append(_Room(home, int(start), np.concatenate([holes[taken:end], late])))
        taken = end
    return rooms


def _number(task: Path, folder: Path, number: int, rooms: dict[int, _Room]) -> None:
    """Write the facts of a task with the slot of each tile, -1 for copies."""
    tiles = pq.read_table(task / "tiles.parquet")
    ids, sizes, place = (tiles[name].to_numpy() for name in ("id", "size", "place"))
    original = originals(ids, pq.read_table(folder / "copies.parquet"))
    slot = np.full(len(ids), -1, np.int64)
    for size, room in rooms.items():
        own = (sizes == size) & (original == ids)
        home = own & (place < room.home)
        slot[home] = room.first + place[home]
        slot[own & ~home] = room.others
    tiles = tiles.append_column("slot", pa.array(slot)).append_column("original", pa.array(original))
    write_table(folder / f"tiles-{number:06d}.parquet", tiles)


def originals(ids: np.ndarray, copies: pa.Table) -> np.ndarray:
    """The original of each tile: itself where it is no copy."""
    if not len(copies):
        return ids
    known = copies["id"].to_numpy()
    at = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    return np.where(known[at] == ids, copies["original"].to_numpy()[at], ids)


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
