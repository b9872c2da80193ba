"""No tile that is trained on shares ground or pixels with one that is held out, whatever the thresholds say.

Tiles of one source are compared by row and column; those of different ones by their footprints on the Earth, whatever
their time, or in the plane of their reference system where that is of no place on Earth. Outlines are drawn in by a
hundredth of a pixel, so borders that touch are no overlap.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely
import xxhash

from geomim.corpus.pipeline.executor import Workers
from geomim.corpus.pipeline.shuffle import gather, parts, scatter, stage_folder
from geomim.corpus.pipeline.slots import originals
from geomim.errors import CorpusError

SHARED = pa.schema([("id", pa.int64()), ("other", pa.int64()), ("split", pa.string()), ("what", pa.string())])
"""A row a tile of train that leaves it: `other` is held out in `split`, and both hold `what` (ground or pixels)."""

PLACE = ["id", "split", "size", "source", "gsd", "row", "col", "transform", "epsg", "crs_wkt", "geometry"]
"""Columns that say where a tile lies."""
_KEYS = pa.schema(
    [("id", pa.int64()), ("split", pa.string()), ("grid", pa.string()), ("key", pa.int64()), ("shape", pa.binary())]
)
_DEGREES = 1.0  # edge of a cell of the Earth; what is larger lies in several
_QUERIES = 16384  # tiles that are looked up at once, of each of which many may lie on one ground


def shared_ground(
    tiles: Callable[..., pa.Table], calls: Sequence[tuple], count: int, aside: Path, workers: Workers, inline: bool
) -> pa.Table:
    """Tiles of train that lie on the ground of others that are held out.

    Args:
        tiles: A task that gives the tiles that count of one part, with the columns `PLACE`.
        calls: Its arguments for each part.
        count: How many tiles there are.
        aside: Folder for what is moved between parts; it goes.
        workers: Runs it.
        inline: Stay in this process.

    Returns:
        Rows of `SHARED`, those of a tile perhaps several times.
    """
    folder, of = stage_folder(aside), parts(3 * count)
    asked = [(tiles, call, folder, f"{number:06d}", of) for number, call in enumerate(calls)]
    workers.run("placing tiles", _scatter, asked, inline)
    found = workers.run("comparing splits", _meet, [(folder, part) for part in range(of)], inline)
    shutil.rmtree(folder)
    return pa.concat_tables(found)


def first_of(shared: pa.Table) -> pa.Table:
    """One row a tile, that with the lowest `other`."""
    shared = shared.sort_by([("id", "ascending"), ("other", "ascending")])
    return shared.take(np.unique(shared["id"].to_numpy(), return_index=True)[1])


def _scatter(tiles: Callable[..., pa.Table], call: tuple, folder: Path, name: str, count: int) -> None:
    table = tiles(*call)
    at, plane, grid, shapes = _outlines(table)
    shapes = _drawn_in(shapes, table["size"].to_numpy()[at])
    of, key = _cells(plane, shapes)
    rows = {name: table[name].take(at[of]) for name in ("id", "split")}
    rows |= {"grid": grid[of], "key": key, "shape": shapely.to_wkb(shapes[of])}
    scatter(folder, name, pa.table(rows, _KEYS), key % count, count)


def _outlines(table: pa.Table) -> tuple[np.ndarray, ...]:
    """Places of tiles in a table, the planes that they lie in ("" is the Earth), their pixel grids, and outlines there.

    Every tile lies in the plane of its grid, and there the grid is "": elsewhere its own tiles are not compared.
    """
    columns = (table[name].to_pylist() for name in ("source", "gsd"))
    grid = np.array([f"{source} {gsd}" for source, gsd in zip(*columns, strict=True)], object)
    row, col, size = (table[name].to_numpy() for name in ("row", "col", "size"))
    earth = np.full(len(table), "", object)
    found = [(np.arange(len(table)), grid, earth, shapely.box(col, row, col + size, row + size))]
    outline = shapely.from_wkb(np.array(table["geometry"].to_pylist(), object))
    bare = shapely.is_missing(outline) | shapely.is_empty(outline)
    placed = np.flatnonzero(~bare)
    shapes, part = shapely.get_parts(outline[placed], return_index=True)  # two of a tile across the antimeridian
    found.append((placed[part], earth[placed[part]], grid[placed[part]], shapes))
    crs = pc.coalesce(table["crs_wkt"], pc.cast(table["epsg"], pa.string()))
    local = np.flatnonzero(bare & pc.and_(crs.is_valid(), table["transform"].is_valid()).to_numpy())
    if len(local):  # another planet, or a system of its own
        a, b, c, d, e, f = np.array(table["transform"].take(local).to_pylist()).T[:, :, None]
        x, y = (np.array(corner) * size[local, None] for corner in ((0, 1, 1, 0), (0, 0, 1, 1)))
        corners = np.stack([a * x + b * y + c, d * x + e * y + f], 2)
        found.append((local, np.array(crs.take(local).to_pylist(), object), grid[local], shapely.polygons(corners)))
    return tuple(np.concatenate(column) for column in zip(*found, strict=True))


def _drawn_in(shapes: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Outlines of tiles of so many pixels an edge, a hundredth of a pixel smaller on each side."""
    middle = shapely.get_coordinates(shapely.centroid(shapes))
    corners, of = shapely.get_coordinates(shapes, return_index=True)
    return shapely.set_coordinates(shapes.copy(), middle[of] + (corners - middle[of]) * (1 - 0.02 / size[of, None]))


def _cells(plane: np.ndarray, shapes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cells that outlines touch, as places of the outlines and keys of cells; a plane but the Earth is one cell."""
    bounds = shapely.bounds(shapes)
    low, high = np.floor(bounds[:, :2] / _DEGREES).astype(int), np.floor(bounds[:, 2:] / _DEGREES).astype(int)
    low[plane != ""] = high[plane != ""] = 0
    wide, tall = (high - low + 1).T
    of = np.repeat(np.arange(len(plane)), wide * tall)
    step = np.arange(len(of)) - np.repeat(np.cumsum(wide * tall) - wide * tall, wide * tall)
    names, which = np.unique(plane.astype(str), return_inverse=True)
    own = np.array([xxhash.xxh3_64_intdigest(name.encode()) >> 2 for name in names], np.int64)[which[of]]
    return of, own + (low[of, 0] + step % wide[of] + 180) * 1000 + low[of, 1] + step // wide[of] + 90


def _meet(folder: Path, part: int) -> pa.Table:
    table = gather(folder, part, _KEYS)
    ids, split, shapes = table["id"].to_numpy(), table["split"].fill_null("train"), table["shape"].to_numpy()
    trained = pc.equal(split, "train").to_numpy()
    key, grid = table["key"].to_numpy(), table["grid"].to_numpy()
    order = np.argsort(key, kind="stable")
    found = [np.empty((2, 0), np.int64)]
    for rows in np.split(order, np.flatnonzero(np.diff(key[order])) + 1):
        held, train = rows[~trained[rows]], rows[trained[rows]]
        if not len(held) or not len(train):
            continue
        tree = shapely.STRtree(shapely.from_wkb(shapes[held]))
        for low in range(0, len(train), _QUERIES):
            some = train[low : low + _QUERIES]
            one, two = tree.query(shapely.from_wkb(shapes[some]), "intersects")
            other = (grid[some[one]] != grid[held[two]]) | (grid[some[one]] == "")
            one, two = one[other], two[other]
            lowest = np.argsort(ids[held[two]], kind="stable")
            one, first = np.unique(one[lowest], return_index=True)
            found.append(np.stack([some[one], held[two[lowest][first]]]))
    train, held = np.concatenate(found, 1)
    return pa.table([ids[train], ids[held], split.take(held), ["ground"] * len(train)], schema=SHARED)


def shared_pixels(members: pa.Table, edges: pa.Table) -> pa.Table:
    """Tiles of train that an edge joins to others that are held out, or to exact copies of such, as `SHARED`.

    Args:
        members: Columns `id`, `original`, `split` and `usable` of all ends of the edges, in id order.
        edges: Rows of `EDGES`.
    """
    ids, split = members["id"].to_numpy(), members["split"].fill_null("train")
    able, trained = members["usable"].to_numpy(), pc.equal(split, "train").to_numpy()
    _, group = np.unique(members["original"].to_numpy(), return_inverse=True)
    ends = [group[np.searchsorted(ids, edges[end].to_numpy())] for end in ("a", "b")]
    none = len(ids)
    held = np.full(none, none)  # the first of each group that is held out
    np.minimum.at(held, group[able & ~trained], np.flatnonzero(able & ~trained))
    other = np.full(none, none)
    for one, two in (ends, ends[::-1]):
        np.minimum.at(other, one, held[two])
    rows = np.flatnonzero(able & trained & (other[group] < none))
    there = other[group[rows]]
    return pa.table([ids[rows], ids[there], split.take(there), ["pixels"] * len(rows)], schema=SHARED)


def check_apart(folder: Path, edges: pa.Table, copies: pa.Table, workers: Workers, inline: bool) -> int | None:
    """How many kept tiles of train share something with kept ones that are held out, by the catalogue as written.

    Returns:
        0; None where nothing is held out.

    Raises:
        CorpusError: Some do.
    """
    file = folder / "catalogue.parquet"
    tiles = pq.read_table(file, columns=["id", "split", "kept"])
    if not is_divided(tiles.filter(tiles["kept"])):
        return None
    calls = [(file, group) for group in range(pq.read_metadata(file).num_row_groups)]
    ground = shared_ground(_kept_tiles, calls, len(tiles), folder / "shared", workers, inline)
    original = originals(tiles["id"].to_numpy(), copies)
    own = pa.table({"a": copies["id"], "b": copies["id"]})  # a copy in another split is one as well
    pairs = pa.concat_tables([own, edges.select(["a", "b"])])
    members = tiles.rename_columns(["id", "split", "usable"]).append_column("original", pa.array(original))
    count = len(np.union1d(ground["id"], shared_pixels(members, pairs)["id"]))
    if count:
        raise CorpusError(f"{count} kept tiles of train share ground or pixels with val or test: please report this")
    return 0


def _kept_tiles(file: Path, group: int) -> pa.Table:
    table = pq.ParquetFile(file).read_row_group(group, [*PLACE, "kept"])
    return table.filter(table["kept"])


def is_divided(tiles: pa.Table) -> bool:
    """Whether some tiles are held out of train."""
    return bool(pc.any(pc.not_equal(tiles["split"].fill_null("train"), "train")).as_py())
