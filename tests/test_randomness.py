import torch

from geomim.randomness import Draws


def test_a_sample_s_numbers_do_not_depend_on_its_batch() -> None:
    positions = torch.tensor([5, 0, 2**40 + 7])
    whole = Draws(3, positions)("mask", 4, 5)
    assert whole.shape == (3, 4, 5)
    assert torch.equal(whole[2:], Draws(3, positions[2:])("mask", 4, 5))
    assert torch.equal(whole, Draws(3, positions)("mask", 4, 5))


def test_seed_purpose_and_position_all_matter() -> None:
    positions = torch.arange(2)
    base = Draws(0, positions)("mask", 8)
    others = [
        Draws(1, positions)("mask", 8),
        Draws(0, positions)("crop", 8),
        Draws(0, positions + 2)("mask", 8),
        Draws(0, positions + 2**32)("mask", 8),
    ]
    assert all(not torch.equal(base, other) for other in others)
    assert not torch.equal(base[0], base[1])


def test_numbers_are_uniform_and_unrelated() -> None:
    numbers = Draws(0, torch.arange(20000))("mask", 12)
    assert 0 < numbers.min() and numbers.max() < 1
    counts = torch.histc(numbers, 16, 0, 1) / numbers.numel() * 16
    assert (counts - 1).abs().max() < 0.02
    across_columns = torch.corrcoef(numbers.T).fill_diagonal_(0)
    across_positions = torch.corrcoef(torch.stack([numbers[:-1].flatten(), numbers[1:].flatten()])).fill_diagonal_(0)
    assert across_columns.abs().max() < 0.03 and across_positions.abs().max() < 0.01


def test_the_greatest_number_is_below_one() -> None:
    numbers = Draws(4, torch.tensor([3301]))("x", 1024)
    assert numbers.max() == 1 - 2.0**-24  # the bits are all ones, which a float rounds up
    assert numbers.min() > 0
