import numpy as np
import pyarrow as pa

from geomim.corpus.pipeline.decide import counting, settle
from geomim.corpus.pipeline.edges import EDGES
from geomim.corpus.pipeline.rules import Rules


def members(ids, original=None, split=None, valid=None, usable=None):
    count = len(ids)
    return pa.table(
        {
            "id": pa.array(ids, pa.int64()),
            "original": pa.array(original or ids, pa.int64()),
            "split": split or ["train"] * count,
            "valid_fraction": valid or [1.0] * count,
            "cloud_fraction": pa.nulls(count, pa.float64()),
            "usable": usable or [True] * count,
        }
    )


def edges(*rows):
    """Rows of `(a, b, kind, distance, share)`."""
    names = ("a", "b", "kind", "distance", "share")
    columns = dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else {key: [] for key in names}
    columns |= {"orientation": [0] * len(rows), "correlation": [0.99] * len(rows)}
    return pa.table({name: pa.array(columns[name], EDGES.field(name).type) for name in EDGES.names})


def fates(*given, **rules):
    return {row["id"]: row for row in settle(*given, Rules(**rules)).to_pylist()}


def test_a_chain_of_copies_keeps_both_ends():
    found = fates(members([1, 2, 3]), edges((1, 2, "perceptual", 3, 1.0), (2, 3, "perceptual", 3, 1.0)))
    assert {number: row["keeper"] for number, row in found.items()} == {2: 1}
    assert found[2]["distance"] == 3
    assert found[2]["exact"] is None


def test_exact_copies_follow_their_representative():
    given = members([1, 2, 3], original=[1, 2, 2])
    found = fates(given, edges((1, 2, "perceptual", 4, 1.0)))
    assert found[3] == found[2] | {"id": 3, "exact": 2}
    assert found[2]["keeper"] == 1


def test_the_more_valid_copy_stays_and_an_unusable_one_counts_for_nothing():
    assert fates(members([1, 2], original=[1, 1], valid=[0.8, 0.9]), edges())[1]["keeper"] == 2
    assert not fates(members([1, 2], original=[1, 1], usable=[False, True]), edges())
    assert not fates(members([1, 2], usable=[False, True]), edges((1, 2, "perceptual", 0, 1.0)))


def test_copies_leave_train_and_a_protected_split_stays_whole():
    given = members([1, 2, 3], original=[1, 1, 1], split=["train", "test", "test"])
    assert {number: row["keeper"] for number, row in fates(given, edges(), protect=True).items()} == {1: 2}
    assert {number: row["keeper"] for number, row in fates(given, edges()).items()} == {1: 2, 3: 2}


def test_the_outcome_does_not_depend_on_the_order_of_the_edges():
    rng = np.random.default_rng(0)
    pairs = np.unique(np.sort(rng.integers(0, 60, (150, 2)), axis=1), axis=0)
    pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    rows = [(int(a), int(b), "perceptual", int((a + b) % 5), 1.0) for a, b in pairs]
    one = settle(members(list(range(60))), edges(*rows), Rules())
    two = settle(members(list(range(60))), edges(*[rows[i] for i in rng.permutation(len(rows))]), Rules())
    assert one.equals(two)
    kept = set(range(60)) - set(one["id"].to_pylist())
    joined = {(a, b) for a, b, *_ in rows} | {(b, a) for a, b, *_ in rows}
    assert not any((a, b) in joined for a in kept for b in kept)
    assert all((row["id"], row["keeper"]) in joined and row["keeper"] in kept for row in one.to_pylist())


def test_which_edges_count():
    table = edges(
        (1, 2, "perceptual", 4, 1.0),
        (1, 3, "perceptual", 5, 1.0),
        (1, 4, "crop", -1, 0.6),
        (1, 5, "footprint", -1, 0.4),
        (1, 6, "embedding", -1, 1.0),
    )
    assert counting(table, Rules())["b"].to_pylist() == [2, 4, 6]
    assert counting(table, Rules(near=8, overlap=0.3))["b"].to_pylist() == [2, 3, 4, 5, 6]
    assert counting(table, Rules(near=None, overlap=None))["b"].to_pylist() == [6]
