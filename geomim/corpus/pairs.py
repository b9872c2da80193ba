"""Tiles that show one place at several times: by where they lie, or by what a column of the catalogue says.

It needs no geo stack, as a machine that trains has none: tiles are compared on the pixel grid that they share.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from geomim.corpus.store import Corpus
from geomim.errors import ConfigError, nearest

_SHARE = 0.9  # least part of a tile's ground that another one must cover to show the same place
_AT_ONCE = 2**20  # tiles that are compared with those near them


class Pairs(NamedTuple):
    """Tiles that have a partner, `rows (p,)` int64 among all, and who the others of their place are.

    Tiles of a place are beside each other in `members`, as places in `rows`: those of a tile start at its `first`, are
    `count` with itself, which is the one at `own`, and lie `offsets (m, 2)` float32 pixels below and right of it.
    """

    rows: np.ndarray
    members: np.ndarray
    first: np.ndarray
    count: np.ndarray
    own: np.ndarray
    offsets: np.ndarray | None = None

    def partner(self, tiles: np.ndarray, draw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One of the others of each tile `(B,)` by a number in [0, 1), and its offset `(B, 2)` float32."""
        count = self.count[tiles]
        step = 1 + (draw.astype(float) * (count - 1)).astype(np.int64)
        at = self.first[tiles] + (self.own[tiles] + step) % count
        return self.members[at], np.zeros((len(at), 2), np.float32) if self.offsets is None else self.offsets[at]


def find_pairs(corpus: Corpus, size: int, rows: np.ndarray, column: str | None = None) -> Pairs:
    """Find the partners of some kept tiles of one size.

    Args:
        corpus: The corpus.
        size: Side of the tiles.
        rows: `(n,)` int64, which of the kept tiles of that size are paired.
        column: Of `catalogue.parquet`, also one added to it: tiles of one value are a place, whatever their time. Where
            None: tiles of different days that lie on one pixel grid and cover nine tenths of each other.

    Raises:
        ConfigError: There is no such column, or it holds lists.
    """
    catalogue = corpus.rows()
    if column:
        there = next(catalogue.get_fragments()).physical_schema
        names = [field.name for field in there if not pa.types.is_nested(field.type)]
        if column not in names:
            raise ConfigError(f"data.pairs: '{corpus.path}' has no column '{column}' of values{nearest(column, names)}")
        catalogue = catalogue.replace_schema(there)
    names = [column] if column else ["time", "transform", "epsg", "crs_wkt"]
    table = catalogue.to_table(columns=names, filter=pc.field("kept") & (pc.field("size") == size)).take(rows)
    return _by_value(table[column]) if column else _by_place(table, size)


def _by_value(values: pa.ChunkedArray) -> Pairs:
    codes = values.combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False)
    rows = np.flatnonzero((codes >= 0) & (_groups(codes)[2] > 1))
    members, first, count = _groups(codes[rows])
    return Pairs(rows, members, first, count, np.argsort(members) - first)


def _by_place(table: pa.Table, size: int) -> Pairs:
    crs = pc.coalesce(table["crs_wkt"], pc.cast(table["epsg"], pa.string()))
    able = pc.and_(pc.and_(crs.is_valid(), table["transform"].is_valid()), table["time"].is_valid())
    a, b, c, d, e, f = table["transform"].filter(able).combine_chunks().flatten().to_numpy().reshape(-1, 6).T
    corner = np.stack([f, c], 1)
    inverse = np.stack([a, -d, -b, e], 1).reshape(-1, 2, 2) / (a * e - b * d)[:, None, None]  # y, x to rows, columns
    code = crs.filter(able).combine_chunks().dictionary_encode().indices.to_numpy()
    grid = _hash(code, *(np.stack([a, b, d, e]) + 0.0).astype(np.float32).view(np.int32))  # rounded, and no -0.0
    time = table["time"].filter(able).to_numpy()
    days = time.astype("datetime64[D]")
    found, offsets = [np.empty(0, np.int64)], [np.empty((0, 2), np.float32)]
    for one, two in _near(grid, (inverse @ corner[..., None])[..., 0] / size):
        lag = (inverse[one] @ (corner[two] - corner[one])[..., None])[..., 0]
        share = np.clip(1 - np.abs(lag) / size, 0, None).prod(1)
        apart = (days[one] != days[two]) & (np.abs(time[one] - time[two]) >= np.timedelta64(1, "h"))  # over midnight
        good = (grid[one] == grid[two]) & (share >= _SHARE) & (apart | (one == two))
        found.append(one[good] * len(grid) + two[good])
        offsets.append(lag[good].astype(np.float32))
    unique, at = np.unique(np.concatenate(found), return_index=True)  # most are found in several coverings
    one, two = np.divmod(unique, max(1, len(grid)))
    several = np.bincount(one, minlength=1)[one] > 1
    one, two, offset = one[several], two[several], np.concatenate(offsets)[at[several]]
    rows, first, count = np.unique(one, return_index=True, return_counts=True)
    placed, own = np.flatnonzero(able)[rows], np.flatnonzero(one == two) - first
    return Pairs(placed, np.searchsorted(rows, two), first, count, own, offset)


def _near(grid: np.ndarray, corners: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tiles and those in their cell of four coverings: corners less than half a tile apart share one of the cells."""
    for shift in ((0, 0), (0, 0.5), (0.5, 0), (0.5, 0.5)):
        members, first, count = _groups(_hash(grid, *np.floor(corners + shift).astype(np.int64).T))
        for low in range(0, len(grid), _AT_ONCE):
            some = slice(low, low + _AT_ONCE)
            before = np.cumsum(count[some]) - count[some]
            one = np.repeat(np.arange(len(before)), count[some])
            yield low + one, members[np.arange(len(one)) - before[one] + first[some][one]]


def _groups(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places in the order of their keys; and of each, where its group starts in that order, and how many are in it."""
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order], prepend=~keys[order[:1]]))
    sizes = np.diff(starts, append=len(keys))
    first, count = np.empty_like(order), np.empty_like(order)
    first[order], count[order] = np.repeat(starts, sizes), np.repeat(sizes, sizes)
    return order, first, count


def _hash(*columns: np.ndarray) -> np.ndarray:
    """One uint64 of several integers."""
    key = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        key = (key ^ column.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> np.uint64(29)
    return key
