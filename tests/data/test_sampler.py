import itertools

import numpy as np
import pytest

from geomim.data.sampler import PositionBatches, Stream, permute
from geomim.errors import ConfigError


@pytest.mark.parametrize("count", [1, 2, 3, 16, 17, 1000, 8828])
def test_every_epoch_is_a_permutation_of_its_own(count):
    shuffles = [permute(np.arange(count), np.full(count, epoch), count, seed=3) for epoch in range(3)]
    for shuffle in shuffles:
        assert np.array_equal(np.sort(shuffle), np.arange(count))
    if count > 10:
        assert not np.array_equal(shuffles[0], shuffles[1])
        assert not np.array_equal(shuffles[0], permute(np.arange(count), np.zeros(count), count, seed=4))


def test_a_shuffle_is_well_mixed():
    count = 10_000
    shuffle = permute(np.arange(count), np.zeros(count, np.int64), count, seed=0)
    assert abs(np.corrcoef(np.arange(count), shuffle)[0, 1]) < 0.03
    assert abs(np.corrcoef(shuffle[:-1], shuffle[1:])[0, 1]) < 0.03
    assert abs((shuffle == np.arange(count)).sum() - 1) < 6  # fixed points are Poisson(1)


def test_a_position_has_one_tile_whatever_it_is_asked_with():
    stream = Stream([101], block=8, seed=5)
    together = stream(np.arange(400))[1]
    alone = [stream(np.array([position]))[1][0] for position in range(400)]
    assert np.array_equal(together, alone)
    for epoch in range(3):  # whole epochs, although 8 does not divide 101
        assert np.array_equal(np.sort(together[epoch * 101 : (epoch + 1) * 101]), np.arange(101))


def test_several_corpora_share_the_stream_by_weight_in_whole_epochs():
    stream = Stream([30, 200], weights=[1, 3], block=4, seed=1)
    corpora, rows = stream(np.arange(4 * 4096 * 2))
    assert (corpora.reshape(-1, 4) == corpora.reshape(-1, 4)[:, :1]).all()  # one corpus a block
    assert np.mean(corpora == 1) == 0.75
    assert 0.6 < np.mean(corpora[:2000] == 1) < 0.9  # mixed from the start
    small = rows[corpora == 0]
    for epoch in range(len(small) // 30):
        assert np.array_equal(np.sort(small[epoch * 30 : (epoch + 1) * 30]), np.arange(30))


def test_impossible_mixtures_are_refused():
    for counts, weights in (([], None), ([5, 0], None), ([5, 5], [1.0]), ([5, 5], [1.0, 0.0]), ([5, 5], [1e-9, 1.0])):
        with pytest.raises(ConfigError):
            Stream(counts, weights)


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)])
def test_ranks_and_micro_batches_share_out_the_same_steps(world, accumulate):
    size = 16 // world // accumulate
    for step in (0, 7):
        seen = []
        for rank in range(world):
            batches = PositionBatches(size, rank, world, start=step * accumulate)
            seen += itertools.chain.from_iterable(itertools.islice(batches, accumulate))
        assert sorted(seen) == list(range(step * 16, (step + 1) * 16))
