"""The small table of sentences that were written: a row a tile that has some."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from geomim.corpus.captions.origins import ORIGINS

ROWS = 65536
"""Tiles whose sentences are looked at together: a table of millions of them is never one of Python's objects."""
CAPTIONS = pa.schema(
    [("id", pa.int64()), ("captions", pa.list_(pa.string())), ("caption_origins", pa.list_(pa.string()))]
)
Said = list[tuple[str, str]]
"""Sentences of a tile, each with its origin."""


def table_of(rows: Iterable[tuple[int, Said]]) -> pa.Table:
    """Rows of `CAPTIONS` of the tiles that have sentences, in the order of their ids."""
    some = sorted((number, said) for number, said in rows if said)
    columns = [number for number, _ in some], *([[one[at] for one in said] for _, said in some] for at in (0, 1))
    return pa.table([pa.array(*pair) for pair in zip(columns, CAPTIONS.types, strict=True)], CAPTIONS)


def of_one(ids: pa.Array, captions: pa.Array, origin: str) -> pa.Table:
    """Rows of `CAPTIONS` of the tiles that have sentences, all of one origin; null where a tile has none."""
    some = captions.is_valid()
    ids, captions = ids.filter(some), captions.filter(some)
    origins = pa.ListArray.from_arrays(captions.offsets, pa.repeat(origin, len(captions.values)))
    return pa.table([ids, captions, origins], CAPTIONS)


def flat(table: pa.Table) -> pa.Table:
    """A row a sentence: its tile's id, the sentence, its origin, in columns of the same names."""
    kinds = [pa.int64(), pa.string(), pa.string()]
    parts = [pa.table([pa.array([], kind) for kind in kinds], CAPTIONS.names)]
    for ids, *lists in (batch.columns for batch in table.select(CAPTIONS.names).to_batches()):
        rows = ids.take(pc.list_parent_indices(lists[0]))
        parts.append(pa.table([rows, *(pc.list_flatten(one) for one in lists)], CAPTIONS.names))
    return pa.concat_tables(parts)


def origins_of(table: pa.Table | None) -> set[str]:
    """The origins of its sentences; none of no table."""
    return set() if table is None else set(pc.unique(pc.list_flatten(table["caption_origins"])).to_pylist())


def without(table: pa.Table, origins: Collection[str]) -> pa.Table:
    """The sentences of other origins; the placed ones of a family that geomim writes go with it."""
    placed = {f"{origin}-placed" for origin in origins} & {*ORIGINS}
    gone = pa.array(sorted({*origins, *placed}), pa.string())
    parts = (flat(table[start : start + ROWS]) for start in range(0, len(table), ROWS))
    return _together(one.filter(pc.invert(pc.is_in(one["caption_origins"], gone))) for one in parts)


def joined(table: pa.Table, more: pa.Table) -> pa.Table:
    """Both; of a tile that has sentences of one origin in both, those of the second count."""
    tables = [_in_order(one) for one in (table, more)]
    ids = [one["id"].to_numpy() for one in tables]
    starts = np.union1d(*ids)[::ROWS]
    cuts = [[*np.searchsorted(own, starts), len(own)] for own in ids]
    windows = zip(*(pairwise(own) for own in cuts), strict=True)
    return _together(
        _both(*(flat(one[low:high]) for one, (low, high) in zip(tables, at, strict=True))) for at in windows
    )


def _in_order(table: pa.Table) -> pa.Table:
    ids = table["id"].to_numpy()
    return table if (np.diff(ids) > 0).all() else table.take(np.argsort(ids))


def _both(old: pa.Table, new: pa.Table) -> pa.Table:
    """Sentences of some tiles by their ids: those of the first whose tile has none of their origin in the second."""
    both = pa.concat_tables([old, new])
    origins = pc.dictionary_encode(both["caption_origins"].combine_chunks())
    key = both["id"].to_numpy() * len(origins.dictionary) + origins.indices.to_numpy()
    stays = np.append(~np.isin(key[: len(old)], key[len(old) :]), np.ones(len(new), bool))
    places = np.flatnonzero(stays)
    return both.take(places[np.argsort(both["id"].to_numpy()[places], kind="stable")])


def _together(parts: Iterable[pa.Table]) -> pa.Table:
    """Rows of `CAPTIONS` of sentences that come by the ids of their tiles."""
    tables = [CAPTIONS.empty_table()]
    for said in parts:
        ids, counts = np.unique(said["id"].to_numpy(), return_counts=True)
        ends = pa.array(np.append(0, np.cumsum(counts)), pa.int32())
        lists = (pa.ListArray.from_arrays(ends, said[name].combine_chunks()) for name in CAPTIONS.names[1:])
        tables.append(pa.table([ids, *lists], CAPTIONS))
    return pa.concat_tables(tables)


def captioned(tiles: pa.Table, written: Collection[dict]) -> pa.Table:
    """Tiles with the sentences that were written behind their own, which are `human`.

    Args:
        tiles: With columns `id` and `captions`.
        written: Rows of `CAPTIONS`; where a tile has none, its origins are null.
    """
    captions, row = tiles["captions"].to_pylist() if written else [], {}
    origins: list[list[str] | None] = [None] * len(tiles)
    if written:
        row = {number: place for place, number in enumerate(tiles["id"].to_pylist())}
    for one in written:
        if (place := row.get(one["id"])) is not None:
            own = captions[place] or []
            captions[place] = own + one["captions"]
            origins[place] = ["human"] * len(own) + one["caption_origins"]
    columns = {"caption_origins": origins} | ({"captions": captions} if written else {})
    for name, values in columns.items():
        column = pa.array(values, CAPTIONS.field(name).type)
        at = tiles.column_names.index(name) if name in tiles.column_names else -1
        tiles = tiles.append_column(name, column) if at < 0 else tiles.set_column(at, name, column)
    return tiles
