import numpy as np
import pytest

from geomim.corpus.duplicates.dedupe import correlation_at_least, keep_first, keep_one, near_pairs
from geomim.errors import CorpusError


def brute_force(hashes, radius):
    distance = np.bitwise_count(hashes[:, None] ^ hashes[None])
    i, j = np.nonzero(np.triu(distance <= radius, 1))
    return np.stack([i, j], 1), distance[i, j]


def planted(kind, count=1500, seed=0):
    """Random hashes with neighbours planted at 0 to 6 bits."""
    rng = np.random.default_rng(seed)
    if kind == "uniform":
        base = rng.integers(0, 2**63, count, dtype=np.uint64)
    else:  # a few prototypes, most bits shared: buckets as crowded as those of real hashes, and more
        prototypes = rng.integers(0, 2**63, 5, dtype=np.uint64)
        base = prototypes[rng.integers(0, 5, count)] ^ (rng.integers(0, 2**63, count, dtype=np.uint64) & 0xFFF)
    flips = np.zeros(count // 3, np.uint64)
    for _ in range(6):
        flips ^= np.uint64(1) << rng.integers(0, 64, len(flips), dtype=np.uint64)
        base[rng.integers(0, count, len(flips) // 6)] ^= flips[: len(flips) // 6]
    near = base[: len(flips)] ^ flips
    return np.concatenate([base, near])


@pytest.mark.parametrize("kind", ["uniform", "skewed"])
@pytest.mark.parametrize("radius", [0, 1, 2, 3, 4])
def test_the_join_finds_what_brute_force_finds(kind, radius):
    hashes = np.unique(planted(kind))
    pairs, distances = near_pairs(hashes, radius)
    expected, apart = brute_force(hashes, radius)
    np.testing.assert_array_equal(pairs, expected)
    np.testing.assert_array_equal(distances, apart)
    assert radius < 4 or len(pairs) > 5


def test_too_many_pairs_are_an_error_never_cut_off():
    with pytest.raises(CorpusError, match="more than 10"):
        near_pairs(np.arange(64, dtype=np.uint64), 3, limit=10)
    with pytest.raises(CorpusError, match=r"0\.\.4 bits, given 9"):
        near_pairs(np.arange(64, dtype=np.uint64), 9)


@pytest.mark.parametrize("kind", ["uniform", "skewed"])
def test_every_dropped_tile_is_near_a_kept_one_and_no_two_kept_are_near(kind):
    hashes = np.repeat(planted(kind, 600), 2)
    order = np.random.default_rng(3).permutation(len(hashes))
    result = keep_one(hashes, order, 4, np.zeros(len(hashes), bool))
    kept = result.keeper == np.arange(len(hashes))
    assert kept[result.keeper].all()
    distance = np.bitwise_count(hashes ^ hashes[result.keeper])
    assert (distance <= 4).all()
    np.testing.assert_array_equal(distance, result.distance)
    pairs, _ = brute_force(hashes[kept], 4)
    assert len(pairs) == 0
    assert kept[order[0]]


def test_chains_are_not_followed():
    hashes = np.array([0, 0b1111, 0b11111111], np.uint64)  # 0 - 4 bits - 4 bits: the ends are 8 apart
    assert keep_one(hashes, np.arange(3), 4, np.zeros(3, bool)).keeper.tolist() == [0, 0, 2]
    assert keep_one(hashes, np.array([1, 0, 2]), 4, np.zeros(3, bool)).keeper.tolist() == [1, 1, 1]


def test_protected_tiles_stay():
    hashes = np.zeros(4, np.uint64)
    protected = np.array([False, True, True, False])
    order = np.array([1, 2, 0, 3])
    assert keep_one(hashes, order, 4, protected).keeper.tolist() == [1, 1, 2, 1]
    assert keep_first(np.array(["a"] * 4), order, protected).tolist() == [1, 1, 2, 1]
    assert keep_first(np.array(["a", "b", "a", "b"]), np.array([3, 2, 1, 0]), np.zeros(4, bool)).tolist() == [
        2,
        3,
        2,
        3,
    ]


def test_candidates_are_verified_by_correlation():
    rng = np.random.default_rng(0)
    field = rng.normal(size=(3, 1024))
    field[1] = field[0] + 0.1 * field[1]
    signatures = (field / np.linalg.norm(field, axis=1, keepdims=True)).astype(np.float16)
    similar = correlation_at_least(signatures)
    keeper = keep_one(np.zeros(3, np.uint64), np.arange(3), 4, np.zeros(3, bool), similar).keeper
    assert keeper.tolist() == [0, 0, 2]


def test_a_crowd_of_equal_hashes_is_cheap():
    hashes = np.concatenate([np.zeros(100_000, np.uint64), np.arange(1, 100, dtype=np.uint64) << np.uint64(20)])
    result = keep_one(hashes, np.arange(len(hashes)), 4, np.zeros(len(hashes), bool))
    assert (result.keeper[:100_000] == 0).all()
