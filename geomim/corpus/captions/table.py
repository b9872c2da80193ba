"""The small table of sentences that were written: a row a tile that has some."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import pyarrow as pa

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


def rows_of(table: pa.Table) -> dict[int, Said]:
    """The sentences of each tile."""
    columns = (table[name].to_pylist() for name in CAPTIONS.names)
    return {number: list(zip(said, origins, strict=True)) for number, said, origins in zip(*columns, strict=True)}


def without(table: pa.Table, origins: Collection[str]) -> pa.Table:
    """The sentences of other origins; the placed ones of a family go with it."""
    gone = {*origins, *(f"{origin}-placed" for origin in origins)}
    return table_of((number, [one for one in said if one[1] not in gone]) for number, said in rows_of(table).items())


def joined(table: pa.Table, more: pa.Table) -> pa.Table:
    """Both; of a tile that has sentences of one origin in both, those of the second count."""
    rows = rows_of(table)
    for number, said in rows_of(more).items():
        origins = {origin for _, origin in said}
        rows[number] = [one for one in rows.get(number, []) if one[1] not in origins] + said
    return table_of(rows.items())


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
