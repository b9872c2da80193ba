import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_corpus import write_corpus

from geomim.corpus.pairs import _by_place, find_pairs
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
    assert len(find_pairs(placed(tmp_path / "d", [None] * 4), 24, np.arange(4)).rows) == 0


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


@pytest.mark.parametrize(("at_once", "seed"), [(2**18, 0), (50, 1), (1, 2)])
def test_all_partners_of_every_tile_are_those_that_a_comparison_of_all_finds(tmp_path, monkeypatch, at_once, seed):
    monkeypatch.setattr("geomim.corpus.pairs._AT_ONCE", at_once)
    random = np.random.default_rng(seed)
    n = 250
    x, y = random.integers(-1, 2, (2, n)) * 240 + random.choice([0, 0, 0, 10, 15, 20, -10], (2, n))
    hours = random.integers(0, 96, n) * random.choice([1, 0.5], n)
    epsg = random.choice([32633, 32633, 32633, 32634], n)
    tiles = [(float(one), float(two), hour / 24) for one, two, hour in zip(x, y, hours, strict=True)]
    found = find_pairs(placed(tmp_path / "c", tiles, epsg=epsg.tolist()), 24, np.arange(n))
    right, down = (x[None] - x[:, None]) / 10, (y[:, None] - y[None]) / 10
    near = (1 - np.abs(right) / 24).clip(0) * (1 - np.abs(down) / 24).clip(0) >= 0.9
    apart = (hours[:, None] // 24 != hours // 24) & (np.abs(hours[:, None] - hours) >= 1)
    expected = near & apart & (epsg[:, None] == epsg)
    assert expected.sum() > 1000 and found.rows.tolist() == np.flatnonzero(expected.any(1)).tolist()
    for place, tile in enumerate(found.rows):
        number = found.count[place] - found.skip[place]
        draws = (np.arange(number) + 0.5) / number
        others, lag = found.partner(np.full(number, place), draws)
        others = found.rows[others]
        assert sorted(others.tolist()) == np.flatnonzero(expected[tile]).tolist()
        np.testing.assert_allclose(lag, np.stack([down[tile, others], right[tile, others]], 1), atol=1e-4)


@pytest.mark.parametrize("shifted", [False, True])
def test_many_dates_of_a_place_take_little_memory(shifted):
    random = np.random.default_rng(0)
    places, dates = 300, 60
    corner = np.stack(np.meshgrid(np.arange(places) * 240.0, np.zeros(dates)), -1).reshape(-1, 2)
    corner += random.integers(0, 5000, corner.shape) / 1000 if shifted else 0
    number = places * dates
    transform = np.stack([np.full(number, 10.0), np.zeros(number), corner[:, 0]], 1)
    transform = np.concatenate([transform, np.stack([np.zeros(number), np.full(number, -10.0), corner[:, 1]], 1)], 1)
    table = pa.table(
        {
            "time": pa.array(np.repeat(np.arange(dates) * DAY, places), pa.timestamp("us")),
            "transform": pa.FixedSizeListArray.from_arrays(pa.array(transform.ravel()), 6),
            "epsg": pa.array(np.full(number, 32633), pa.int32()),
            "crs_wkt": pa.nulls(number, pa.string()),
        }
    )
    tracemalloc.start()
    found = _by_place(table, 24)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found.rows) == number and (found.count - found.skip == dates - 1).all()
    assert peak < (150e6 if shifted else 40e6)
    assert shifted or len(found.members) == number  # one list a place


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
