import numpy as np
import pyarrow as pa
import pytest

from geomim.corpus.pipeline.rules import Rules, matching, reasons
from geomim.errors import InputError


def tiles(**columns):
    """Usable tiles of one scene, with some columns of their own."""
    count = len(next(iter(columns.values())))
    usual = {
        "id": pa.array(range(count), pa.int64()),
        "original": pa.array(range(count), pa.int64()),
        "source": ["a.tif"] * count,
        "xxh3": [f"{number:032x}" for number in range(count)],
        "valid_fraction": [1.0] * count,
        "cloud_fraction": pa.nulls(count, pa.float64()),
        "low_information": [False] * count,
        "licence": ["CC BY 4.0"] * count,
        "non_commercial": pa.nulls(count, pa.bool_()),
    }
    return pa.table(usual | columns)


def test_each_threshold_says_why():
    table = tiles(
        valid_fraction=[1.0, 0.4999, 0.0, 1.0, 1.0, 1.0],
        cloud_fraction=[None, None, None, 0.3001, 0.3, 0.0],
        non_commercial=[None, False, False, False, False, True],
    )
    assert reasons(table, Rules(min_valid=0.5, max_cloud=0.3)) == [
        "",
        "valid fraction 0.499 < 0.5",
        "no valid pixel",
        "cloud fraction 0.301 > 0.3",
        "",
        "licence forbids commercial use",
    ]
    assert reasons(table, Rules(min_valid=0.0, non_commercial=True))[5] == ""


def test_a_tile_without_a_valid_pixel_is_never_usable():
    assert reasons(tiles(valid_fraction=[0.0]), Rules(min_valid=0.0)) == ["no valid pixel"]


def test_licences_are_kept_as_spelled():
    table = tiles(licence=["CC BY 4.0", "CC BY-NC 4.0", None])
    assert reasons(table, Rules(licence=["CC BY 4.0"])) == ["", "licence CC BY-NC 4.0", "licence none stated"]
    assert reasons(table, Rules(licence=[])) == [""] * 3  # takes an earlier choice back


def test_the_quota_counts_low_information_in_each_scene_whatever_their_order():
    count = 40
    table = tiles(source=["a.tif", "b.tif"] * (count // 2), low_information=[True] * count)
    kept = np.array([not why for why in reasons(table, Rules(quota=3))])
    assert kept[0::2].sum() == kept[1::2].sum() == 3
    order = np.random.default_rng(0).permutation(count)
    again = np.array([not why for why in reasons(table.take(order), Rules(quota=3))])
    assert np.array_equal(again, kept[order])
    assert set(reasons(table, Rules(quota=3))) == {"", "quota of 3 tiles a scene"}


def test_informative_tiles_have_no_quota():
    assert not any(reasons(tiles(low_information=[False] * 9), Rules(quota=0)))


def test_where_is_sql_on_the_columns():
    table = tiles(valid_fraction=[1.0, 0.9, 0.8], cloud_fraction=[0.1, None, 0.5])
    assert reasons(table, Rules(where="cloud_fraction < 0.3")) == [
        "",
        "where cloud_fraction < 0.3",  # unknown is not true, as SQL has it
        "where cloud_fraction < 0.3",
    ]
    assert matching(table, "coalesce(cloud_fraction, 0) < 0.3 AND valid_fraction > 0.85").tolist() == [
        True,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("valid_fracton > 0.5", "valid_fraction"),
        ("1; DROP TABLE tiles", "no condition"),
        ("true) FROM tiles; SELECT (1", "one condition"),
        ("id IN (SELECT 1 FROM '/etc/passwd')", "no condition"),
        ("random() < 0.5", r"random is another each time; .* xxh3 < '8' takes half"),
        ("id > 3 OR time < ago(INTERVAL 1 DAY) AND main.Random() < 1", "ago, random is another"),
        ("time < CURRENT_TIMESTAMP", "CURRENT_TIMESTAMP is another"),
        ("id < (SELECT max(id) FROM tiles)", "no query can stand in it"),
        ("count(*) > 0", "cannot contain aggregates"),
        ("row_number() OVER (ORDER BY id) > 3", "cannot contain window functions"),
        ("unnest([true, false])", "UNNEST not supported"),
        ("true) FROM tiles UNION ALL SELECT (true", "no condition"),
    ],
)
def test_a_wrong_condition_is_one_sentence(where, words):
    with pytest.raises(InputError, match=words):
        matching(tiles(valid_fraction=[1.0]), where)


def test_a_condition_says_the_same_of_a_tile_whatever_the_others_are():
    table = tiles(xxh3=[f"{number:x}" * 32 for number in range(16)], label=["now() random()"] * 16)
    where = "xxh3 < '8' AND label LIKE '%random()%' AND if(id < 99, length(source) > 0, false)"
    assert matching(table, where).tolist() == [True] * 8 + [False] * 8
    assert matching(table.slice(7, 2), where).tolist() == [True, False]


@pytest.mark.parametrize("rules", [Rules(min_valid=2), Rules(max_cloud=-1), Rules(overlap=1.5), Rules(quota=-1)])
def test_thresholds_out_of_range_are_refused(rules):
    with pytest.raises(InputError, match="given"):
        rules.check()
