import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_corpus import write_corpus

from geomim.corpus.pairs import find_pairs
from geomim.corpus.store import CATALOGUE, Corpus
from geomim.errors import ConfigError

DAY = 86_400_000_000


def placed(path, tiles, size=24, **columns):
    """A corpus whose tiles lie at `(x, y, day)` in metres of 10 m pixels; None has no place."""
    write_corpus(path, count=len(tiles), size=size)
    file = path / "catalogue.parquet"
    table = pq.read_table(file)
    columns = {
        "transform": [None if t is None else [10.0, 0.0, t[0], 0.0, -10.0, t[1]] for t in tiles],
        "epsg": [None if t is None else 32633 for t in tiles],
        "time": [None if t is None else int(t[2] * DAY) for t in tiles],
    } | columns
    for name, values in columns.items():
        field = CATALOGUE.field(name) if name in CATALOGUE.names else pa.field(name, pa.array(values).type)
        array = pa.array(values, field.type)
        there = name in table.column_names
        table = (
            table.set_column(table.column_names.index(name), field, array)
            if there
            else table.append_column(field, array)
        )
    pq.write_table(table, file)
    return Corpus.open(path)


def partners(pairs):
    """Partners of each tile with their offsets, by place among all tiles."""
    found = {}
    for tile in range(len(pairs.rows)):
        drawn = [pairs.partner(np.array([tile]), np.array([draw])) for draw in np.linspace(0, 0.999999, 97)]
        found[int(pairs.rows[tile])] = {(int(pairs.rows[one[0]]), *map(float, lag[0])) for one, lag in drawn}
    return found


def test_tiles_of_one_ground_on_other_days_are_partners(tmp_path):
    tiles = [
        (0, 0, 10),
        (0, 0, 20),  # the same ground
        (10, -10, 30),  # a pixel right, a pixel down
        (240, 0, 20),  # the neighbour
        (0, 0, 10.2),  # the first day again
        None,
        (1000, 0, 5),
        (1030, 0, 6),  # 87 % of it
        (2000, 0, 9 + 23.9 / 24),
        (2000, 0, 10 + 0.1 / 24),  # one pass over midnight
    ]
    found = partners(find_pairs(placed(tmp_path / "c", tiles), 24, np.arange(10)))
    assert found == {
        0: {(1, 0, 0), (2, 1, 1)},
        1: {(0, 0, 0), (4, 0, 0), (2, 1, 1)},
        2: {(0, -1, -1), (1, -1, -1), (4, -1, -1)},
        4: {(1, 0, 0), (2, 1, 1)},
    }


def test_only_tiles_that_take_part_are_paired(tmp_path):
    corpus = placed(tmp_path / "c", [(0, 0, 1), (0, 0, 2), (0, 0, 3), (500, 0, 3)])
    assert partners(find_pairs(corpus, 24, np.array([1, 2, 3]))) == {0: {(1, 0, 0)}, 1: {(0, 0, 0)}}
    assert len(find_pairs(corpus, 24, np.array([2, 3])).rows) == 0


def test_pixel_grids_that_differ_are_not_paired(tmp_path):
    coarse = [
        None,
        [10.0, 0.0, 0.0, 0.0, -10.0, 0.0],
        [20.0, 0.0, 0.0, 0.0, -20.0, 0.0],
        [0.0, 10.0, 0.0, 10.0, 0.0, 0.0],
    ]
    corpus = placed(tmp_path / "c", [(0, 0, day) for day in range(4)], transform=coarse)
    assert len(find_pairs(corpus, 24, np.arange(4)).rows) == 0
    other = placed(tmp_path / "d", [(0, 0, 1), (0, 0, 2)], epsg=[32633, 32634])
    assert len(find_pairs(other, 24, np.arange(2)).rows) == 0


def test_many_tiles_are_paired_as_one_by_one(tmp_path):
    random = np.random.default_rng(0)
    tiles = [(10.0 * x, 10.0 * y, day) for x, y, day in random.integers(0, (60, 60, 4), (400, 3)).tolist()]
    found = partners(find_pairs(placed(tmp_path / "c", tiles), 24, np.arange(400)))
    at = np.array(tiles)
    lag = np.abs(at[:, None, :2] - at[:, :2]) / 240
    near = (1 - lag).clip(0).prod(2) >= 0.9
    expected = near & (at[:, None, 2] != at[:, 2])
    for tile in range(400):
        seen = {one for one, *_ in found.get(tile, ())}
        assert seen <= set(np.flatnonzero(expected[tile])) and bool(seen) == expected[tile].any()


def test_a_column_says_what_is_one_place(tmp_path):
    place = ["a", "b", "a", None, "c", "a", "b", None]
    corpus = placed(tmp_path / "c", [None] * 8, place=place)
    found = partners(find_pairs(corpus, 24, np.arange(8), "place"))
    assert found == {
        0: {(2, 0, 0), (5, 0, 0)},
        2: {(0, 0, 0), (5, 0, 0)},
        5: {(0, 0, 0), (2, 0, 0)},
        1: {(6, 0, 0)},
        6: {(1, 0, 0)},
    }
    assert partners(find_pairs(corpus, 24, np.arange(3), "place")).keys() == {0, 2}
    assert set(find_pairs(corpus, 24, np.arange(8), "label").rows) == set(range(8))


def test_a_column_that_is_not_there_is_refused_by_name(tmp_path):
    corpus = placed(tmp_path / "c", [None] * 4, place=[1, 1, 2, 2])
    with pytest.raises(ConfigError, match=r"data\.pairs.*'plac'.*did you mean 'place'"):
        find_pairs(corpus, 24, np.arange(4), "plac")
    with pytest.raises(ConfigError, match="no column 'bbox' of values"):
        find_pairs(corpus, 24, np.arange(4), "bbox")
