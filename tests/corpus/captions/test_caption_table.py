"""Tables of sentences are put together as rows of Python would be, and never are such."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest

from geomim.corpus.captions import table as tables
from geomim.corpus.captions.table import CAPTIONS, flat, joined, of_one, table_of, without

ORIGINS = ["human", "b2c", "b2c-placed", "index"]


def drawn(random, ids):
    """Some sentences of some tiles, as rows of Python."""
    return {
        number: [(f"{number} {n}", str(random.choice(ORIGINS))) for n in range(random.integers(1, 5))] for number in ids
    }


def rows(table):
    return {row["id"]: list(zip(row["captions"], row["caption_origins"], strict=True)) for row in table.to_pylist()}


@pytest.mark.parametrize("window", [1, 7, 1000])
def test_tables_are_joined_as_rows_are(monkeypatch, window):
    monkeypatch.setattr(tables, "ROWS", window)
    random = np.random.default_rng(0)
    one, two = (dict(drawn(random, random.choice(90, 60, replace=False).tolist())) for _ in range(2))
    a, b = (pa.concat_tables([table_of(said.items())[:25], table_of(said.items())[25:]]) for said in (one, two))
    gone = {"b2c", "b2c-placed"}
    left = {number: kept for number, said in one.items() if (kept := [pair for pair in said if pair[1] not in gone])}
    assert rows(without(a, ["b2c"])) == left and rows(without(a, [])) == one
    files = table_of([(1, [("a", "mine"), ("b", "mine-placed")])])  # of two files, which are no family
    assert rows(without(files, ["mine"])) == {1: [("b", "mine-placed")]}
    both = {number: list(said) for number, said in one.items()}
    for number, said in two.items():
        own = {origin for _, origin in said}
        both[number] = [pair for pair in both.get(number, []) if pair[1] not in own] + said
    mixed = b.take(random.permutation(len(b)))
    for found in (joined(a, b), joined(a, mixed)):
        assert rows(found) == both and found["id"].to_pylist() == sorted(both) and found.schema == CAPTIONS
    empty = CAPTIONS.empty_table()
    assert joined(a, empty).equals(joined(empty, a)) and rows(joined(a, empty)) == one
    assert not len(joined(empty, empty)) and not len(without(empty, ["b2c"])) and not len(flat(empty))
    every = [(number, *pair) for number in sorted(one) for pair in one[number]]
    assert [tuple(row.values()) for row in flat(a).to_pylist()] == every


def test_a_table_of_many_tiles_is_no_heap_of_objects():
    """Some 48 bytes a tile, its ids in numpy, where rows of Python took 2,000."""
    count = 100_000
    texts = pa.array([["There is a ship in this picture.", "A ship can be seen in this image."]] * count)
    one, two = (of_one(pa.array(range(count)), texts, origin) for origin in ("b2c", "index"))
    tracemalloc.start()
    both = joined(without(one, ["index"]), two)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(both) == count and len(flat(both)) == 4 * count
    assert peak < 200 * count, f"{peak / count:.0f} bytes a tile"
