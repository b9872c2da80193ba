import numpy as np
import pytest

from geomim.corpus.duplicates.keep import components, keep_one


def random_edges(count=300, edges=500, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, count, (edges, 2)), rng.permutation(count), rng.random(count) < 0.1


@pytest.mark.parametrize("seed", range(5))
def test_every_dropped_tile_is_joined_to_a_kept_one_and_no_two_kept_are_joined(seed):
    edges, rank, protected = random_edges(seed=seed)
    keeper = keep_one(edges, rank, protected)
    places = np.arange(len(rank))
    kept = keeper == places
    assert kept[keeper].all() and kept[protected].all() and 0 < kept.sum() < len(kept)
    joined = {tuple(sorted(edge)) for edge in edges.tolist()}
    assert all(tuple(sorted((int(place), int(keeper[place])))) in joined for place in places[~kept])
    one, two = edges[edges[:, 0] != edges[:, 1]].T
    assert not (kept[one] & kept[two] & ~(protected[one] & protected[two])).any()


def test_the_best_ranked_kept_neighbour_stands_for_a_tile_whatever_the_order_of_edges():
    edges, rank, protected = random_edges()
    keeper = keep_one(edges, rank, protected)
    again = np.random.default_rng(1).permutation(np.concatenate([edges[:, ::-1], edges]))
    np.testing.assert_array_equal(keep_one(again, rank, protected), keeper)
    for place in np.flatnonzero(keeper != np.arange(len(keeper))):
        others = np.concatenate([edges[edges[:, 0] == place, 1], edges[edges[:, 1] == place, 0]])
        kept = others[keeper[others] == others]
        assert keeper[place] == min(kept, key=lambda other: (not protected[other], rank[other]))


def test_chains_are_not_followed():
    edges, protected = np.array([[0, 1], [1, 2]]), np.zeros(3, bool)
    assert keep_one(edges, np.arange(3), protected).tolist() == [0, 0, 2]
    assert keep_one(edges, np.array([1, 0, 2]), protected).tolist() == [1, 1, 1]


def test_protected_tiles_stay_and_stand_for_others_first():
    edges = np.array([[0, 1], [1, 2], [0, 3], [2, 3]])
    assert keep_one(edges, np.arange(4), np.array([False, True, True, False])).tolist() == [1, 1, 2, 2]


def test_without_edges_all_are_kept():
    none = np.empty((0, 2), np.int64)
    assert keep_one(none, np.arange(3), np.zeros(3, bool)).tolist() == [0, 1, 2]
    assert components(3, none).tolist() == [0, 1, 2]


def test_components_follow_chains_and_are_named_by_their_lowest_place():
    assert components(6, np.array([[5, 1], [4, 1], [3, 2]])).tolist() == [0, 1, 2, 2, 1, 1]
