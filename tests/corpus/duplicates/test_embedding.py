import numpy as np
import pytest

from geomim.corpus.duplicates import embedding
from geomim.corpus.duplicates.embedding import balance, semantic_pairs
from geomim.errors import CorpusError, InputError


def kinds(sizes, width=16, spread=0.25, seed=0):
    """Vectors around random directions, `sizes[k]` of kind k; any length."""
    random = np.random.default_rng(seed)
    middles = random.normal(size=(len(sizes), width))
    middles /= np.linalg.norm(middles, axis=1, keepdims=True)
    kind = np.repeat(np.arange(len(sizes)), sizes)
    vectors = middles[kind] + spread / np.sqrt(width) * random.normal(size=(len(kind), width))
    order = random.permutation(len(kind))
    return (vectors * random.uniform(0.5, 20, (len(kind), 1))).astype(np.float32)[order], kind[order]


def brute(features, threshold):
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosine = unit @ unit.T
    return np.argwhere(np.triu(cosine >= threshold, 1)), cosine


@pytest.mark.parametrize("block", [7, 4096])
def test_with_all_clusters_probed_every_pair_is_found_once(monkeypatch, block):
    monkeypatch.setattr(embedding, "_BLOCK", block)
    monkeypatch.setattr(embedding, "_SCORES", 100)
    features, _ = kinds([40, 5, 30, 1, 24])
    expected, cosine = brute(features, 0.95)
    for clusters in (1, 6):
        pairs, found = semantic_pairs(features, 0.95, clusters, probes=clusters)
        assert len(expected) > 100 and pairs.tolist() == expected.tolist()
        assert found == pytest.approx(cosine[tuple(pairs.T)], abs=1e-5)


def test_without_probing_pairs_across_borders_are_missed_and_none_is_wrong():
    features = np.random.default_rng(1).normal(size=(400, 3)).astype(np.float32)  # no clusters: borders cut anywhere
    expected = {tuple(pair) for pair in brute(features, 0.99)[0].tolist()}
    found = [{tuple(pair) for pair in semantic_pairs(features, 0.99, 20, probes=n)[0].tolist()} for n in (1, 2, 20)]
    assert found[0] < found[1] <= expected == found[2]
    assert len(found[0]) > 0.6 * len(expected) and len(found[1]) > 0.9 * len(expected)


def test_planted_copies_are_found_among_kinds():
    features, _ = kinds([300, 200, 100])
    copies = features[:20] * 3 + 1e-4
    pairs, cosine = semantic_pairs(np.concatenate([features, copies]), 0.9999, 24, probes=3)
    assert pairs.tolist() == [[n, 600 + n] for n in range(20)] and (cosine > 0.9999).all()


def test_the_outcome_depends_on_the_seed_alone(tmp_path):
    features, _ = kinds([300, 200, 100])
    np.save(tmp_path / "features.npy", features)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    state = np.random.get_state()[1].tolist()
    for other in (features, mapped):
        assert np.array_equal(semantic_pairs(features, 0.97, 9, 5)[0], semantic_pairs(other, 0.97, 9, 5)[0])
        assert np.array_equal(balance(features, 100, [20, 4], 5), balance(other, 100, [20, 4], 5))
    assert not np.array_equal(balance(features, 100, [20, 4], 5), balance(features, 100, [20, 4], 6))
    assert np.random.get_state()[1].tolist() == state


def test_what_cannot_be_compared_is_refused():
    features, _ = kinds([30, 20])
    with pytest.raises(CorpusError, match="raise the threshold"):
        semantic_pairs(features, 0.5, 2, limit=10)
    with pytest.raises(InputError, match="a cosine lies in"):
        semantic_pairs(features, 1.5, 2)
    with pytest.raises(InputError, match="cannot be chosen"):
        balance(features, 51, [2])
    features[3, 3] = np.nan
    with pytest.raises(InputError, match="not finite"):
        semantic_pairs(features, 0.5, 1)


def test_nothing_and_zero_vectors_pair_with_none():
    assert semantic_pairs(np.empty((0, 4), np.float32), 0.9, 3)[0].shape == (0, 2)
    assert semantic_pairs(np.zeros((5, 4), np.float32), 0.9, 3)[0].shape == (0, 2)
    assert semantic_pairs(np.ones((1, 4), np.float32), 0.9, 3)[0].shape == (0, 2)


def test_balance_takes_equally_from_all_kinds():
    sizes = [2000, 600, 60, 20, 20]
    features, kind = kinds(sizes, spread=0.1)
    chosen = balance(features, 300, [40, 5])
    counts = np.bincount(kind[chosen], minlength=5)
    assert chosen.sum() == 300 and chosen.dtype == bool
    assert counts[2:].tolist() == [60, 20, 20]  # rare kinds give all they have
    assert abs(counts[0] - counts[1]) <= 1  # and the rest is shared out
    plain = np.bincount(kind[balance(features, 300, [])], minlength=5)
    assert plain[0] > 190 and plain[2] < 20


@pytest.mark.parametrize("count", [0, 1, 17, 599, 600])
@pytest.mark.parametrize("levels", [[], [7], [50, 7, 2], [10_000, 3]])
def test_balance_chooses_as_many_as_asked(count, levels):
    features, _ = kinds([300, 200, 100])
    assert balance(features, count, levels).sum() == count


@pytest.mark.parametrize("seed", range(20))
def test_shares_are_as_equal_as_sizes_allow(seed):
    random = np.random.default_rng(seed)
    sizes = random.integers(0, 30, random.integers(1, 12))
    wanted = int(random.integers(0, sizes.sum() + 1))
    shares = embedding._share_out(sizes, wanted, random)
    assert shares.sum() == wanted and (shares <= sizes).all() and (shares >= 0).all()
    for one, share in enumerate(shares):
        assert share == sizes[one] or share >= shares.max() - 1
