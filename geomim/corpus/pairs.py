"""Tiles that show one place at several times: by where they lie, or by what a column of the catalogue says.

It needs no geo stack, as a machine that trains has none: tiles are compared on the pixel grid that they share.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from geomim.corpus.store import Corpus
from geomim.errors import ConfigError, nearest

_SHARE = 0.9  # least part of a tile's ground that another one must cover to show the same place
_AT_ONCE = 2**18  # pairs that are compared with each other
_HOUR, _DAY = 3_600_000_000, 86_400_000_000  # microseconds


class Pairs(NamedTuple):
    """Tiles that have a partner, `rows (p,)` int64 among all, and who the others of their place are.

    Tiles of a place are beside each other in `members`, as places in `rows`: those of a tile start at its `first` and
    are `count`. Of these, those from `own` on, `skip` many, are no partners: itself, and of a list by time those of its
    day. They lie `offsets (m, 2)` float32 pixels below and right of it.
    """

    rows: np.ndarray
    members: np.ndarray
    first: np.ndarray
    count: np.ndarray
    own: np.ndarray
    skip: np.ndarray
    offsets: np.ndarray | None = None

    def partner(self, tiles: np.ndarray, draw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One of the others of each tile `(B,)` by a number in [0, 1), and its offset `(B, 2)` float32."""
        count, skip = self.count[tiles], self.skip[tiles]
        step = skip + (draw.astype(float) * (count - skip)).astype(np.int64)
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
    return Pairs(rows, members, first, count, np.argsort(members) - first, np.ones_like(first))


def _by_place(table: pa.Table, size: int) -> Pairs:
    """Tiles of one corner share one list, by time, so that memory does not grow with the square of the dates."""
    crs = pc.coalesce(table["crs_wkt"], pc.cast(table["epsg"], pa.string()))
    able = pc.and_(pc.and_(crs.is_valid(), table["transform"].is_valid()), table["time"].is_valid())
    a, b, c, d, e, f = table["transform"].filter(able).combine_chunks().flatten().to_numpy().reshape(-1, 6).T
    corner = np.stack([f, c], 1) + 0.0  # no -0.0
    inverse = np.stack([a, -d, -b, e], 1).reshape(-1, 2, 2) / (a * e - b * d)[:, None, None]  # y, x to rows, columns
    code = crs.filter(able).combine_chunks().dictionary_encode().indices.to_numpy()
    grid = _hash(code, *(np.stack([a, b, d, e]) + 0.0).astype(np.float32).view(np.int32))  # rounded
    _, stand, stack = np.unique(_hash(grid, *corner.view(np.int64).T), return_index=True, return_inverse=True)
    one, two, offset = _near(grid[stand], corner[stand], inverse[stand], size)
    # the list of a corner: its own tiles, and those of the corners near it
    here, there = np.concatenate([[np.arange(len(stand))] * 2, (one, two), (two, one)], axis=1)
    offset = np.concatenate([np.zeros((len(stand), 2), np.float32), offset, -offset])
    tiles, sizes = np.argsort(stack, kind="stable"), np.bincount(stack, minlength=len(stand))
    link, members = _spread((np.cumsum(sizes) - sizes)[there], sizes[there])
    time = table["time"].filter(able).cast(pa.int64()).to_numpy()
    times, later, members = np.sort(time), len(time) + 1, tiles[members]
    key = here[link] * later + np.searchsorted(times, time)[members]
    order = np.argsort(key, kind="stable")
    key, members, offset = key[order], members[order], offset[link[order]]

    def place(moment: np.ndarray | int) -> np.ndarray:
        return np.searchsorted(key, stack * later + moment)

    # of its day are those of the same date, and those of the hour around it, as a pass may be over midnight
    midnight = time // _DAY * _DAY
    low, high = np.minimum(midnight, time - _HOUR + 1), np.maximum(midnight + _DAY, time + _HOUR)
    bounds = np.stack([place(0), place(np.searchsorted(times, low)), place(np.searchsorted(times, high)), place(later)])
    paired = bounds[2] - bounds[1] < bounds[3] - bounds[0]
    kept = paired[members]  # others of one day with all tiles of a corner may have no partner themselves
    first, own, after, end = np.concatenate([[0], np.cumsum(kept)])[bounds[:, paired]]
    rows = np.cumsum(paired) - 1
    placed = np.flatnonzero(able)[paired]
    return Pairs(placed, rows[members[kept]], first, end - first, own - first, after - own, offset[kept])


def _near(
    grid: np.ndarray, corner: np.ndarray, inverse: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Corners, each pair once as `one < two`, whose tiles cover enough of each other; and how far two is from one.

    Those less than half a tile apart share a cell of one of four coverings; a pair counts in the first that has it.
    """
    at = (inverse @ corner[..., None])[..., 0] / size
    shifts = ((0, 0), (0, 0.5), (0.5, 0), (0.5, 0.5))
    coverings = [_hash(grid, *np.floor(at + shift).astype(np.int64).T) for shift in shifts]
    found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 2), np.float32))]
    for number, cells in enumerate(coverings):
        members, first, count = _groups(cells)
        own = np.argsort(members)  # members of a cell are in order: those behind are compared
        later = first + count - own - 1
        ends = np.cumsum(later)
        low = 0
        while low < len(grid):
            high = max(low + 1, int(np.searchsorted(ends, ends[low] - later[low] + _AT_ONCE, "right")))
            one, two = _spread(own[low:high] + 1, later[low:high])
            one, two = one + low, members[two]
            new = grid[one] == grid[two]
            for earlier in coverings[:number]:
                new &= earlier[one] != earlier[two]
            one, two = one[new], two[new]
            lag = np.einsum("nij,nj->ni", inverse[one], corner[two] - corner[one])
            good = np.clip(1 - np.abs(lag) / size, 0, None).prod(1) >= _SHARE
            found.append((one[good], two[good], lag[good].astype(np.float32)))
            low = high
    one, two, offset = (np.concatenate(part) for part in zip(*found, strict=True))
    return one, two, offset


def _spread(first: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places of runs that are `count` long: which run each is of, and the place."""
    run = np.repeat(np.arange(len(count)), count)
    return run, np.arange(len(run)) + (first - np.cumsum(count) + count)[run]


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
