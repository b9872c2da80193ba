import numpy as np
import pytest
import torch

from geomim.data.pruning import Pruning


def begun(share=0.5, seed=0, tiles=1000):
    """A second epoch over a made-up table."""
    pruning = Pruning(tiles, share, seed)
    _, end = pruning.begin(0, 10_000, 8)
    assert end == -(-tiles // 8)
    pruning.losses = torch.from_numpy(np.random.default_rng(3).gamma(2.0, size=tiles).astype("float32"))
    pruning.begin(end, 10_000, 8)
    return pruning


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_in_expectation_every_tile_weighs_one_and_the_mean_is_that_of_all(share):
    tables = [begun(share, seed) for seed in range(400)]
    losses, weights = tables[0].losses, torch.stack([one.stream.weights for one in tables])
    easy = losses < losses.mean()
    assert (weights[:, ~easy] == 1).all() and weights[:, easy].unique().tolist() == pytest.approx([0, 1 / (1 - share)])
    error = (share / (1 - share) / 400) ** 0.5  # of the mean weight of a tile over the draws
    assert (weights.mean(0) - 1).abs().max() < 5 * error
    means = (weights * losses).sum(1) / weights.sum(1)
    plain = torch.stack([losses[weight > 0].mean() for weight in weights]).mean()
    assert abs(means.mean() - losses.mean()) < 4 * means.std() / 20 and means.std() / 20 < 0.004
    assert plain > losses.mean() + 10 * means.std() / 20  # without weights it would be another one


def test_an_epoch_is_every_kept_tile_and_no_other():
    pruning = begun()
    kept = pruning.stream.weights.nonzero()[:, 0].numpy()
    positions = pruning.first * 8 + np.arange(len(kept))
    corpora, rows = pruning.stream(positions)
    assert not corpora.any() and sorted(rows) == kept.tolist() and rows.tolist() != kept.tolist()
    np.testing.assert_array_equal(pruning.stream(positions[::-3])[1], rows[::-3])  # a position has one tile
    assert pruning.figures(pruning.first)["pruned"] == 1 - len(kept) / 1000
    assert pruning.skipped(pruning.first) == 0 and pruning.skipped(pruning.first + 10**6) == 1000 - len(kept)


def test_each_epoch_is_drawn_anew():
    pruning = begun()
    one, end = pruning.begin(pruning.first, 10_000, 8)
    other, _ = pruning.begin(end, 10_000, 8)
    assert pruning.first == end
    left, again = (set(np.flatnonzero(epoch.weights.numpy() == 0)) for epoch in (one, other))
    assert 0.4 * len(left) < len(left & again) < 0.6 * len(left)


def test_an_epoch_that_would_reach_into_the_last_eighth_is_cut_and_nothing_is_left_out_there():
    pruning = begun()
    first = pruning.first
    for steps in (160, 200, 10_000):
        stream, end = pruning.begin(first, steps, 8)
        assert end == min(int(0.875 * steps), first - (-len(stream.rows) // 8))
    stream, end = pruning.begin(140, 160, 8)
    assert (stream.weights == 1).all() and end == 140 + 125 and pruning.figures(150)["pruned"] == 0
    assert pruning.figures(150)["images_skipped"] == pruning.figures(265)["images_skipped"] > 0  # those of before


def test_the_later_loss_of_a_tile_stays_and_a_state_goes_on_likewise():
    pruning = begun(tiles=5)
    places = pruning.first * 8 + torch.arange(len(pruning.stream.rows) + 1)  # the last is the next turn's first
    pruning.noted.append((places[3:], 100.0 + torch.arange(len(places))[3:]))
    pruning.noted.append((places[:3], 100.0 + torch.arange(3)))
    pruning.read(1)
    losses = dict(zip(pruning.stream(places.numpy())[1].tolist(), range(100, 100 + len(places)), strict=True))
    assert {row: pruning.losses[row] for row in losses} == losses
    other = Pruning(5, 0.5, 0)
    other.load_state_dict(pruning.state_dict())
    stream, _ = other.begin(pruning.first, 10_000, 8)
    assert torch.equal(stream.weights, pruning.stream.weights) and torch.equal(other.losses, pruning.losses)
    assert other.figures(pruning.first) == pruning.figures(pruning.first)


def test_losses_that_are_all_the_same_leave_nothing_out():
    pruning = Pruning(1000, 0.5, 0)
    pruning.losses = torch.full((1000,), 0.1)
    assert (pruning.begin(0, 10_000, 8)[0].weights == 1).all()
    assert (pruning.begin(125, 10_000, 8)[0].weights == 1).all()
