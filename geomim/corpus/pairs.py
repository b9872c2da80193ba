"""Tiles that show one place at several times: by where they lie, or by what a column of the catalogue says.

It needs no geo stack, so that a machine that trains need not have one: tiles are one place where they lie on one pixel
grid (reference system, size and direction of pixels), and their corners are near each other there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from geomim.corpus.store import Corpus
from geomim.errors import ConfigError, nearest

SHARE = 0.9
"""Least share of a tile's ground that another one must cover to show the same place."""

_PLACE = ["time", "transform", "epsg", "crs_wkt"]
_AT_ONCE = 2**20  # tiles that are compared with those near them


@dataclass(frozen=True)
class Pairs:
    """Tiles that have a partner, and who their partners are.

    Attributes:
        rows: `(p,)` int64, these tiles, as places among all.
        members: Tiles of a place beside each other, as places in `rows`.
        first: `(p,)` int64, where a tile's place starts in `members`.
        count: `(p,)` int64, how many it has, itself included; at least 2.
        own: `(p,)` int64, where it stands itself, counted from `first`.
        offsets: A row a member, float32: pixels that its corner lies below and to the right of the tile's.
    """

    rows: np.ndarray
    members: np.ndarray
    first: np.ndarray
    count: np.ndarray
    own: np.ndarray
    offsets: np.ndarray | None = None

    def partner(self, tiles: np.ndarray, draw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One of the others, by numbers drawn from [0, 1).

        Args:
            tiles: `(B,)` int64, places in `rows`.
            draw: `(B,)` float.

        Returns:
            The partners, `(B,)` int64, and their offsets, `(B, 2)` float32.
        """
        count = self.count[tiles]
        step = 1 + (draw.astype(float) * (count - 1)).astype(np.int64)
        at = self.first[tiles] + (self.own[tiles] + step) % count
        return self.members[at], np.zeros((len(at), 2), np.float32) if self.offsets is None else self.offsets[at]


def find_pairs(corpus: Corpus, size: int, rows: np.ndarray, column: str | None = None) -> Pairs:
    """Find the partners of some kept tiles of one size.

    Args:
        corpus: The corpus.
        size: Side of the tiles.
        rows: `(n,)` int64, places among the kept tiles of that size; only these are paired.
        column: Tiles with one value there are a place, whatever their time; a column of `catalogue.parquet`, also one
            that was added to it. Where None: tiles that cover each other to `SHARE`, of different days.

    Raises:
        ConfigError: There is no such column, or it holds lists.
    """
    catalogue = corpus.rows()
    there = next(catalogue.get_fragments()).physical_schema
    if column is not None:
        if column not in there.names or pa.types.is_nested(there.field(column).type):
            flat = [field.name for field in there if not pa.types.is_nested(field.type)]
            raise ConfigError(f"data.pairs: '{corpus.path}' has no column '{column}' of values{nearest(column, flat)}")
        if column not in catalogue.schema.names:
            catalogue = catalogue.replace_schema(catalogue.schema.append(there.field(column)))
    wanted = pc.field("kept") & (pc.field("size") == size)
    table = catalogue.to_table(columns=_PLACE if column is None else [column], filter=wanted).take(rows)
    return _by_place(table, size) if column is None else _by_value(table[column])


def _by_value(values: pa.ChunkedArray) -> Pairs:
    codes = values.combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False)
    rows = np.flatnonzero((codes >= 0) & (_groups(codes)[2] > 1))
    members, first, count = _groups(codes[rows])
    own = np.empty_like(first)
    own[members] = np.arange(len(rows)) - first[members]
    return Pairs(rows, members, first, count, own)


def _by_place(table: pa.Table, size: int) -> Pairs:
    crs = pc.coalesce(table["crs_wkt"], pc.cast(table["epsg"], pa.string()))
    able = pc.and_(pc.and_(crs.is_valid(), table["transform"].is_valid()), table["time"].is_valid())
    a, b, c, d, e, f = table["transform"].filter(able).combine_chunks().flatten().to_numpy().reshape(-1, 6).T
    corner = np.stack([f, c], 1)
    inverse = np.stack([a, -d, -b, e], 1).reshape(-1, 2, 2) / (a * e - b * d)[:, None, None]  # y, x to rows, columns
    code = crs.filter(able).combine_chunks().dictionary_encode().indices.to_numpy()
    spacing = (np.stack([a, b, d, e]) + 0.0).astype(np.float32).view(np.int32)  # so that rounding makes no difference
    grid = _hash(code, *spacing)
    time = table["time"].filter(able).to_numpy()
    days = time.astype("datetime64[D]")
    found, offsets = [np.empty(0, np.int64)], [np.empty((0, 2), np.float32)]
    for one, two in _near(grid, (inverse @ corner[..., None])[..., 0] / size):
        lag = (inverse[one] @ (corner[two] - corner[one])[..., None])[..., 0]
        share = np.clip(1 - np.abs(lag) / size, 0, None).prod(1)
        apart = (days[one] != days[two]) & (np.abs(time[one] - time[two]) >= np.timedelta64(1, "h"))  # over midnight
        good = (grid[one] == grid[two]) & (share >= SHARE) & (apart | (one == two))
        found.append(one[good] * len(grid) + two[good])
        offsets.append(lag[good].astype(np.float32))
    unique, at = np.unique(np.concatenate(found), return_index=True)  # most are found in several coverings
    one, two = np.divmod(unique, max(1, len(grid)))
    several = np.bincount(one, minlength=1)[one] > 1
    one, two, offset = one[several], two[several], np.concatenate(offsets)[at[several]]
    rows, first, count = np.unique(one, return_index=True, return_counts=True)
    own = np.flatnonzero(one == two) - first
    return Pairs(np.flatnonzero(able)[rows], np.searchsorted(rows, two), first, count, own, offset)


def _near(grid: np.ndarray, corners: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tiles and those in their cell of four coverings of the plane: what lies within half a cell is in one of them.

    Args:
        grid: `(n,)` uint64, the pixel grid.
        corners: `(n, 2)` row and column of the corner there, in tiles.
    """
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
