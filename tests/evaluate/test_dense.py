import pytest
import torch

from geomim.evaluate.dense import extract_patches, patch_labels, patch_statistics
from geomim.evaluate.features import frozen
from geomim.evaluate.intervals import balanced_interval, interval, mcnemar, wilson
from geomim.evaluate.probes import hold_out_groups
from geomim.evaluate.scores import Scores, row
from geomim.models.vit import ViT


def test_a_patch_is_of_the_class_that_covers_half_of_what_has_one():
    mask = torch.full((1, 4, 12), 255)
    valid = torch.ones(1, 4, 12, dtype=torch.bool)
    mask[0, :, :2], mask[0, :2, 2:4], mask[0, 2:, 2:4] = 1, 0, 2  # 8, 4, 4 of 16: half
    mask[0, :, 4:6], mask[0, :1, 6:8], mask[0, 1:, 6:8] = 1, 0, 2  # 8 of class 1, but half of them is nodata
    valid[0, :2, 4:6] = False
    mask[0, 0, 8:11] = 2  # three pixels that have a class, all of one
    assert patch_labels(mask, valid, (1, 3), 3).tolist() == [[1, 2, 2]]
    mask[0, :, 4:8] = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 1], [1, 1, 2, 2], [2, 2, 2, 2]])
    assert patch_labels(mask, torch.ones_like(valid), (1, 3), 3).tolist() == [[1, -1, 2]]  # 5, 5 and 6 of 16
    valid[0, :, 8:] = torch.arange(4)[:, None] < 1
    assert patch_labels(mask, valid, (1, 3), 3)[0, 2] == -1  # more nodata than image
    assert patch_labels(torch.full_like(mask, 255), torch.ones_like(valid), (2, 3), 3).eq(-1).all()


def test_statistics_of_patches_use_their_valid_pixels():
    torch.manual_seed(0)
    images, valid = torch.randn(2, 3, 8, 12), torch.ones(2, 1, 8, 12, dtype=torch.bool)
    valid[0, :, :, 5:] = False
    _, got = patch_statistics((2, 3)).forward(images * valid, valid)
    assert got.shape == (2, 6, 6)
    part = images[0, :, :4, 4:5].flatten(1)  # the second patch of the first row has one valid column
    expected = torch.cat([part.mean(1), part.std(1, unbiased=False)])
    torch.testing.assert_close(got[0, 1], expected, rtol=1e-4, atol=1e-5)
    part = images[1, :, 4:, 8:].flatten(1)
    torch.testing.assert_close(got[1, 5], torch.cat([part.mean(1), part.std(1, unbiased=False)]), rtol=1e-4, atol=1e-5)


def test_features_are_those_of_the_chosen_patches_with_their_tile():
    torch.manual_seed(0)
    encoder, images = ViT(3, 16, 8, 24, 1, 3).eval(), torch.randn(3, 3, 16, 16)
    valid = torch.ones(3, 1, 16, 16, dtype=torch.bool)
    labels = torch.tensor([[0, -1, -1, 2], [-1] * 4, [-1, 1, -1, -1]])
    loader = [{"image": images[rows], "valid": valid[rows]} for rows in (slice(2), slice(2, 3))]
    extractors = {"vit": frozen(encoder, keep_tokens=True), "pixels": patch_statistics((2, 2))}
    found = extract_patches(extractors, loader, labels, torch.tensor([7, 8, 9]))
    with torch.no_grad():
        tokens = encoder(images).patches
    torch.testing.assert_close(found["vit"].pooled, tokens[[0, 0, 2], [0, 3, 1]], rtol=1e-4, atol=1e-5)
    assert found["vit"].labels.tolist() == [0, 2, 1] and found["vit"].groups.tolist() == [7, 7, 9]
    assert found["pixels"].pooled.shape == (3, 6)


def clustered(tiles: int, each: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches of tiles that are all right or all wrong but for a few."""
    generator = torch.Generator().manual_seed(0)
    easy = torch.rand(tiles, generator=generator) < 0.7
    flip = torch.rand(tiles, each, generator=generator) < 0.1
    return (easy[:, None] ^ flip).flatten(), torch.arange(tiles).repeat_interleave(each)


def test_an_interval_of_patches_is_what_drawing_whole_tiles_gives():
    right, tiles = clustered(60, 16)
    low, high = interval(right[None], tiles)
    each = right.view(60, 16).double().mean(1)
    drawn = each[torch.randint(60, (20000, 60), generator=torch.Generator().manual_seed(1))].mean(1)
    ends = drawn.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    assert abs(low - ends[0]) < 0.02 and abs(high - ends[1]) < 0.02
    plain = interval(right[None])
    assert high - low > 2.5 * (plain[1] - plain[0])  # as if patches were independent
    assert interval(right[None], torch.arange(960)) == pytest.approx(plain)
    assert interval(right[None], tiles * 3 + 5) == (low, high)  # numbers are but names


def test_where_nothing_differs_a_tile_counts_once():
    right, tiles = torch.ones(1, 64, dtype=torch.bool), torch.arange(4).repeat_interleave(16)
    assert interval(right, tiles) == wilson(1.0, 4)
    assert interval(right[:, :16] & (torch.arange(16) < 8), tiles[:16]) == wilson(0.5, 1)
    low, high = balanced_interval(right, torch.arange(64) % 2, tiles)
    assert low < interval(right, tiles)[1] == high


def test_patches_are_compared_a_tile_at_a_time():
    """One tile where all 40 patches differ shows as much as one patch."""
    labels, tiles = torch.zeros(60, dtype=torch.int64), torch.cat([torch.zeros(40), torch.arange(1, 21)]).long()
    good, bad = torch.zeros(60, dtype=torch.int64), torch.cat([torch.ones(40), torch.zeros(20)]).long()
    one, other = (row(name, "linear", [answers], labels, tiles) for name, answers in (("a", good), ("b", bad)))
    assert one.correct.tolist() == [[40] + [1] * 20] and other.correct.tolist() == [[0] + [1] * 20]
    assert mcnemar(one.correct, other.correct) == 1.0
    worse = row("b", "linear", [bad + (tiles > 10)], labels, tiles)
    assert mcnemar(one.correct, worse.correct) == pytest.approx(2 * 0.5**11)
    values = Scores("data", {}, (one,)).to_dict()["rows"][0]
    assert "groups" not in values and values["accuracy"] == 1.0


def test_whole_groups_are_held_out():
    groups = torch.arange(5).repeat_interleave(torch.tensor([1, 9, 4, 4, 2]))
    fit, held = hold_out_groups(groups, 0.2, 3)
    assert len(set(groups[held].tolist())) == 1 and not set(groups[held].tolist()) & set(groups[fit].tolist())
    assert sorted([*fit.tolist(), *held.tolist()]) == list(range(20))
