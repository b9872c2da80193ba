import numpy as np
import shapely

from geomim.corpus.duplicates.geometry import another_day, overlapping


def boxes(corners, size=1.0):
    return [shapely.to_wkb(shapely.box(x, y, x + size, y + size)) for x, y in corners]


def test_pairs_and_shares_are_those_of_brute_force():
    rng = np.random.default_rng(0)
    corners, sizes = rng.uniform(0, 8, (200, 2)), rng.uniform(0.2, 1.5, 200)
    shapes = [
        shapely.affinity.rotate(shapely.box(x, y, x + s, y + s), a)
        for (x, y), s, a in zip(corners, sizes, range(200), strict=True)
    ]
    groups, sources = rng.integers(0, 3, 200), rng.integers(0, 5, 200)
    pairs, shares = overlapping(shapely.to_wkb(shapes), groups, sources, 0.25)
    expected = {}
    for i in range(200):
        for j in range(i + 1, 200):
            if groups[i] == groups[j] and sources[i] != sources[j]:
                share = shapes[i].intersection(shapes[j]).area / min(shapes[i].area, shapes[j].area)
                if share >= 0.25:
                    expected[i, j] = share
    assert list(map(tuple, pairs.tolist())) == list(expected)
    np.testing.assert_allclose(shares, list(expected.values()))
    assert len(pairs) > 100


def test_only_other_sources_of_the_same_acquisition_count():
    geometries = boxes([(0, 0), (0.5, 0), (0.5, 0), (0.5, 0), (1, 0)])
    pairs, shares = overlapping(geometries, np.array([0, 0, 0, 1, 0]), np.array([0, 0, 1, 1, 1]), 0.0)
    assert pairs.tolist() == [[0, 2], [1, 2], [1, 4]]  # 0 and 4 only touch
    np.testing.assert_allclose(shares, [0.5, 1, 0.5])


def test_tiles_without_a_place_have_no_neighbours():
    geometries = [None, *boxes([(0, 0)]), shapely.to_wkb(shapely.Polygon()), None]
    pairs, shares = overlapping(geometries, np.zeros(4, int), np.arange(4), 0.1)
    assert pairs.shape == (0, 2) and shares.shape == (0,)
    assert overlapping([], np.empty(0, int), np.empty(0, int), 0.1)[0].shape == (0, 2)


def test_one_ground_on_different_days_is_no_duplicate_and_all_else_may_be():
    times = ["2020-01-01T10:00", "2020-01-01T17:00", "2020-06-01", "2020-06-01", "NaT", "2020-06-01", "2020-06-01"]
    two = [*boxes([(0.2, 0), (0, 0), (0, 0), (1, 0), (0, 0), (9, 9)]), None]
    one, two = (shapely.from_wkb(np.array(side, object)) for side in (boxes([(0, 0)] * 7), two))
    first = np.full(7, np.datetime64("2020-01-01T09:00", "us"))
    second = np.array(times, "datetime64[us]")
    expected = [False, False, True, False, False, False, False]  # the fourth only touches, the sixth lies elsewhere
    assert another_day(one, two, (first, second)).tolist() == expected
    assert another_day(two, one, (second, first)).tolist() == expected
    assert another_day(one[:0], two[:0], (first[:0], first[:0])).tolist() == []
