"""Which tiles are kept, and one reason for each that is not.

Decisions are a function of small tables: the tiles' columns, the verified edges between them, and the exclusions. So
thresholds change, benchmarks are added and splits are drawn without reading a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely

from geomim.corpus.captions.table import captioned
from geomim.corpus.duplicates.geometry import another_day
from geomim.corpus.duplicates.keep import keep_one
from geomim.corpus.labels import SPLITS
from geomim.corpus.pipeline.edges import EDGES
from geomim.corpus.pipeline.ground import PLACE
from geomim.corpus.pipeline.rules import Rules, reasons

_WORDS = {
    "perceptual": "near duplicate of {} (distance {distance})",
    "footprint": "overlap of {share:.0%} with {}",
    "crop": "crop that shares {share:.0%} with {}",
    "embedding": "embedding near that of {} (cosine {correlation:.3f})",
}


_WINDOW = ("row", "col", "size")


@dataclass(frozen=True)
class Tables:
    """The small tables that decide, as files; those that are missing say nothing.

    Attributes:
        catalogue: Folder with `tiles-*.parquet`, `edges.parquet`, and perhaps `exclusions.parquet`,
            `split.parquet` (`id`, `split`), `label.parquet` (`id`, `label`), `captions.parquet`, `balance.parquet`
            (`id`, `chosen`) and `shared.parquet` (`ground.SHARED`).
        staged: Folder with tables that are about to replace those, or None; an empty `NAME.removed` removes one.
    """

    catalogue: Path
    staged: Path | None = None

    def parts(self) -> list[Path]:
        """Files of tiles, in id order."""
        return sorted(self.catalogue.glob("tiles-*.parquet"))

    def all(self) -> list[Path]:
        """Files of all tables, by name."""
        folders = [folder for folder in (self.catalogue, self.staged) if folder is not None]
        names = sorted({file.stem for folder in folders for file in folder.glob("*.parquet")})
        return [file for name in names if (file := self.file(name)) is not None]

    def file(self, name: str) -> Path | None:
        """The file of a table, or None where there is no such table."""
        file = self.catalogue / f"{name}.parquet"
        if self.staged is not None:
            if (self.staged / f"{name}.removed").exists():
                return None
            staged = self.staged / file.name
            file = staged if staged.exists() else file
        return file if file.exists() else None

    def rows(self, name: str, tiles: pa.Table) -> list[dict[str, Any]]:
        """What a table says of the tiles of a part; nothing where there is no such table."""
        file = self.file(name)
        return [] if file is None else _rows(file, tiles)

    def part(self, file: Path, columns: list[str] | None = None, written: bool = True) -> pa.Table:
        """One file of tiles, with the split drawn last, the labels given last, and sentences `written` since."""
        tiles = pq.read_table(file, columns=columns)
        for name in {"split", "label"}.intersection(tiles.column_names):
            if values := {row["id"]: row[name] for row in self.rows(name, tiles)}:
                own = zip(tiles["id"].to_pylist(), tiles[name].to_pylist(), strict=True)
                column = pa.array([values.get(number, old) for number, old in own], pa.string())
                tiles = tiles.set_column(tiles.column_names.index(name), name, column)
        if "captions" in tiles.column_names:
            tiles = captioned(tiles, self.rows("captions", tiles) if written else [])
        return tiles


def _rows(file: Path, tiles: pa.Table) -> list[dict[str, Any]]:
    if not len(tiles):
        return []
    within = (pc.field("id") >= tiles["id"][0]) & (pc.field("id") <= tiles["id"][-1])
    rows: list[dict[str, Any]] = pq.read_table(file, filters=within).to_pylist()
    return rows


def usable(tables: Tables, tiles: pa.Table, rules: Rules) -> list[str]:
    """Why each tile cannot be used, contamination included; "" where it can."""
    why = reasons(tiles, rules)
    row = {number: place for place, number in enumerate(tiles["id"].to_pylist())}
    for match in tables.rows("exclusions", tiles):
        place = row.get(match["id"])
        if place is not None and not why[place]:
            why[place] = _touches(match)
    return why


def standing(tables: Tables, file: Path, rules: Rules) -> pa.Table:
    """Where the usable tiles of one part lie: columns `ground.PLACE`."""
    tiles = tables.part(file)
    return tiles.select(PLACE).filter(pa.array([not reason for reason in usable(tables, tiles, rules)], pa.bool_()))


def _touches(match: dict) -> str:
    split = f" {match['split']}" if match["split"] else ""
    how = {"perceptual": f", distance {match['distance']}", "exact": ""}.get(
        match["kind"], f", share {match['share'] or 0:.2f}"
    )
    return f"touches {match['benchmark']}{split}: {match['kind']}{how}"


def crowd(tables: Tables, file: Path, rules: Rules, wanted: Path) -> pa.Table:
    """What decides about the tiles of one part that have a copy or a neighbour: sorted ids in the file `wanted`.

    Returns:
        The columns `_CROWD`, and `usable`.
    """
    tiles = tables.part(file)
    ids, numbers = np.load(wanted, mmap_mode="r"), tiles["id"].to_numpy()
    there = np.searchsorted(ids, numbers, "right") > np.searchsorted(ids, numbers)
    why = pa.array([not reason for reason in usable(tables, tiles, rules)], pa.bool_())
    return tiles.select(_CROWD).append_column("usable", why).filter(pa.array(there))


_CROWD = ["id", "original", "split", "valid_fraction", "cloud_fraction", "time", "geometry", "source", *_WINDOW]
_EDGES = 2**20  # looked at at once
_TELLING = ("kind", "distance", "correlation", "share")  # columns of an edge
FATES = pa.schema(
    [("id", pa.int64()), ("keeper", pa.int64()), ("exact", pa.int64()), *(EDGES.field(name) for name in _TELLING)]
)
"""A row a usable tile that another stands for: `keeper` is kept; `exact` is the tile it is an exact copy of, or null;
the rest tells the edge that leads from it, or from `exact`, to the keeper, null where `exact` is the keeper."""


def settle(members: pa.Table, edges: pa.Table, rules: Rules) -> pa.Table:
    """Keep one of each group of copies, greedily.

    A tile is dropped only for a kept tile that an edge joins it to, so copies of copies never chain. Preferred are
    held-out tiles, so that copies leave train; then the more valid; then the less cloudy; then the lower id.

    Args:
        members: Rows of `crowd` of all parts, in id order.
        edges: Rows of `EDGES` that count.
        rules: Whether held-out tiles are protected.

    Returns:
        Rows of `FATES`, in id order.
    """
    ids: np.ndarray = members["id"].to_numpy()
    able = members["usable"].to_numpy(zero_copy_only=False)
    held = np.array([SPLITS.index(name or "train") for name in members["split"].to_pylist()], np.int64)
    cloud = pc.fill_null(members["cloud_fraction"], 0.0).to_numpy()
    rank = np.empty(len(ids), np.int64)
    rank[np.lexsort((ids, cloud, -members["valid_fraction"].to_numpy(), -held, ~able))] = np.arange(len(ids))
    protected = (held > 0) & rules.protect
    first = _first_of_group(members["original"].to_numpy(), rank)
    exact = np.where(able & able[first] & ~protected, first, np.arange(len(ids)))
    ends = np.stack([first[np.searchsorted(ids, edges[end].to_numpy())] for end in ("a", "b")], 1)
    counts = able[ends].all(1) & (ends[:, 0] != ends[:, 1])
    ends, edges = ends[counts], edges.filter(pa.array(counts))
    near = keep_one(ends, rank, protected)
    keeper = near[exact]
    dropped = np.flatnonzero(able & (keeper != np.arange(len(ids))))
    edge = _edge_between(exact[dropped], keeper[dropped], ends, edges)
    columns = {
        "id": ids[dropped],
        "keeper": ids[keeper[dropped]],
        "exact": pa.array(ids[exact[dropped]], mask=exact[dropped] == dropped),
        **{name: edge[name] for name in _TELLING},
    }
    return pa.table(columns).cast(FATES)


def _first_of_group(original: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """For each tile the one of the lowest rank among those with equal pixels."""
    _, group = np.unique(original, return_inverse=True)
    order = np.argsort(rank, kind="stable")
    _, at = np.unique(group[order], return_index=True)
    return order[at][group]


def _edge_between(one: np.ndarray, two: np.ndarray, ends: np.ndarray, edges: pa.Table) -> pa.Table:
    """The surest edge between each two tiles; null where they are the same."""
    size = int(max(ends.max(initial=0), one.max(initial=0), two.max(initial=0))) + 1
    keys = np.minimum(ends[:, 0], ends[:, 1]) * size + np.maximum(ends[:, 0], ends[:, 1])
    kind = pc.index_in(edges["kind"], value_set=pa.array(list(_WORDS))).to_numpy()
    order = np.lexsort((-edges["correlation"].to_numpy(), kind, keys))
    wanted = np.minimum(one, two) * size + np.maximum(one, two)
    at = np.searchsorted(keys[order], wanted)
    same = one == two
    rows = pa.array(order[np.where(same, 0, at)] if len(order) else np.zeros(len(one), int), mask=same)
    return edges.take(rows)


def repeating(edges: pa.Table, members: pa.Table) -> pa.Table:
    """The edges between tiles that may be duplicates.

    One ground on different days is new data; windows of one source that overlap were asked for, by stride or edge.
    """
    ids = members["id"].to_numpy()
    shapes = shapely.from_wkb(members["geometry"].to_numpy())
    source = pc.dictionary_encode(members["source"]).combine_chunks().indices.to_numpy()
    time, row, col, size = (members[name].to_numpy() for name in ("time", *_WINDOW))
    found = []
    for start in range(0, len(edges), _EDGES):
        some = edges.slice(start, _EDGES)
        one, two = (np.searchsorted(ids, some[end].to_numpy()) for end in ("a", "b"))
        asked = source[one] == source[two]
        for low in (row, col):
            asked &= (low[one] < low[two] + size[two]) & (low[two] < low[one] + size[one])
        other = another_day(shapes[one], shapes[two], (time[one], time[two]))
        found.append(some.filter(pa.array(~(other | asked))))
    return pa.concat_tables([edges.slice(0, 0), *found])


def counting(edges: pa.Table, rules: Rules) -> pa.Table:
    """The edges for which one tile of a pair goes."""
    kind, perceptual = edges["kind"], pc.equal(edges["kind"], "perceptual")
    near = pc.and_(perceptual, pc.less_equal(edges["distance"], -1 if rules.near is None else rules.near))
    share = pc.greater_equal(edges["share"], 2.0 if rules.overlap is None else rules.overlap)
    part = pc.and_(pc.is_in(kind, pa.array(["footprint", "crop"])), share)
    return edges.filter(pc.or_(pc.or_(near, part), pc.equal(kind, "embedding")))


def decide_part(tables: Tables, file: Path, rules: Rules, fates: Path) -> pa.Table:
    """All columns of one file of tiles, and the decisions: `kept`, `reason`, `duplicate_of`, `cluster`."""
    tiles = tables.part(file)
    why = usable(tables, tiles, rules)
    numbers = tiles["id"].to_pylist()
    row = {number: place for place, number in enumerate(numbers)}
    keeper: list[int | None] = [None] * len(tiles)
    for fate in _rows(fates, tiles):
        place = row[fate["id"]]
        why[place], keeper[place] = _copy_of(fate), fate["keeper"]
    for one in tables.rows("shared", tiles):
        why[row[one["id"]]] = f"shares {one['what']} with {one['split']} tile {one['other']}"
    for one in tables.rows("balance", tiles):
        if not one["chosen"] and one["id"] in row and not why[row[one["id"]]]:
            why[row[one["id"]]] = "balance: not among the chosen"
    cluster = [number if other is None else other for number, other in zip(numbers, keeper, strict=True)]
    decided = {
        "kept": pa.array([not reason for reason in why], pa.bool_()),
        "reason": pa.array(why, pa.string()),
        "duplicate_of": pa.array(keeper, pa.int64()),
        "cluster": pa.array(cluster, pa.int64()),
    }
    for name, values in decided.items():
        tiles = tiles.append_column(name, values)
    return tiles


def _copy_of(fate: dict) -> str:
    said = []
    if fate["exact"] is not None:
        said.append(f"exact duplicate of {fate['exact']}")
    if fate["kind"] is not None:
        said.append(_WORDS[fate["kind"]].format(fate["keeper"], **fate))
    return ", ".join(said)
