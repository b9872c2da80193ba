from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from geomim.evaluate.features import extract_all, frozen, pixel_statistics
from geomim.evaluate.intervals import balanced_interval, interval, tile_test, wilson
from geomim.evaluate.linear import fit_linear
from geomim.evaluate.scores import PIXELS, Scores, row
from geomim.models.vit import ViT


def test_statistics_of_patches_use_their_valid_pixels():
    torch.manual_seed(0)
    images, valid = torch.randn(2, 3, 8, 12), torch.ones(2, 1, 8, 12, dtype=torch.bool)
    valid[0, :, :, 5:] = False
    _, got = pixel_statistics((2, 3)).forward(images * valid, valid)
    assert got.shape == (2, 6, 6)
    part = images[0, :, :4, 4:5].flatten(1)  # the second patch of the first row has one valid column
    expected = torch.cat([part.mean(1), part.std(1, unbiased=False)])
    torch.testing.assert_close(got[0, 1], expected, rtol=1e-4, atol=1e-5)
    part = images[1, :, 4:, 8:].flatten(1)
    torch.testing.assert_close(got[1, 5], torch.cat([part.mean(1), part.std(1, unbiased=False)]), rtol=1e-4, atol=1e-5)


def test_features_are_those_of_the_chosen_patches():
    torch.manual_seed(0)
    encoder, images = ViT(3, 16, 8, 24, 1, 3).eval(), torch.randn(3, 3, 16, 16)
    valid = torch.ones(3, 1, 16, 16, dtype=torch.bool)
    labels = torch.tensor([[0, -1, -1, 2], [-1] * 4, [-1, 1, -1, -1]])
    parts = (slice(2), slice(2, 3))
    loader = [{"image": images[rows], "valid": valid[rows], "label": torch.zeros(1)} for rows in parts]
    extractors = {"vit": frozen(encoder), "pixels": pixel_statistics((2, 2))}
    found = extract_all(extractors, loader, patches=labels)
    with torch.no_grad():
        tokens = encoder(images).patches
    torch.testing.assert_close(found["vit"].pooled, tokens[[0, 0, 2], [0, 3, 1]], rtol=1e-4, atol=1e-5)
    assert found["vit"].labels.tolist() == [0, 2, 1] and found["vit"].tokens is None
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
    assert interval(right[None], torch.arange(960)) == pytest.approx(plain, abs=1e-3)


def test_where_nothing_differs_a_tile_counts_once():
    right, tiles = torch.ones(1, 64, dtype=torch.bool), torch.arange(4).repeat_interleave(16)
    assert interval(right, tiles) == wilson(1.0, 4)
    assert interval(right[:, :16] & (torch.arange(16) < 8), tiles[:16]) == wilson(0.5, 1)
    low, high = balanced_interval(right, torch.arange(64) % 2, tiles)
    assert low < interval(right, tiles)[1] == high


@pytest.mark.parametrize("tiles", [2, 3, 6])
def test_an_interval_of_few_tiles_holds_the_truth_as_often_as_it_says(tiles):
    generator = torch.Generator().manual_seed(0)
    groups, labels, held = torch.arange(tiles).repeat_interleave(30), torch.arange(30 * tiles) % 2, [[], []]
    for _ in range(300):
        chance = torch.rand(tiles, 2, generator=generator)  # of tiles, in which classes fare alike
        chance = (0.3 + 0.5 * chance).mean(1).repeat_interleave(30)
        right = (torch.rand(30 * tiles, generator=generator) < chance)[None]
        for ends, found in zip((interval(right, groups), balanced_interval(right, labels, groups)), held, strict=True):
            found.append(ends[0] <= 0.55 <= ends[1])
    assert all(sum(found) / len(found) > 0.92 for found in held)


def test_a_balanced_interval_of_patches_is_what_drawing_whole_tiles_gives():
    """Classes share tiles, so their luck does not cancel out; one of them is rare."""
    right, tiles = clustered(60, 16)
    labels = (torch.arange(960) % 8 == 0).long()
    low, high = balanced_interval(right[None], labels, tiles)
    drawn = torch.randint(60, (20000, 60), generator=torch.Generator().manual_seed(1))
    parts = [right.view(60, 16)[:, (labels == kind).view(60, 16)[0]].double().mean(1) for kind in (0, 1)]
    means = (parts[0][drawn].mean(1) + parts[1][drawn].mean(1)) / 2
    ends = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    assert abs(low - ends[0]) < 0.02 and abs(high - ends[1]) < 0.02


def test_one_tile_counts_once_whatever_its_seeds():
    right = torch.arange(40)[None] < torch.tensor([[20], [21]])
    low, high = interval(right, torch.zeros(40, dtype=torch.int64))
    least = wilson(20.5 / 40, 1)
    assert low <= least[0] and high >= least[1]
    alike, apart = right[:1].expand(2, 40), torch.stack([right[0], right[0] & False])
    tiles, spans = torch.arange(40) // 4, []
    for seeds in (alike, apart):
        low, high = interval(seeds, tiles)
        spans.append(high - low)
    assert spans[1] > spans[0]  # of seeds that differ


def test_patches_are_compared_a_tile_at_a_time():
    """One tile where all 40 patches differ shows nothing; many where some do differ show something."""
    labels, tiles = torch.zeros(60, dtype=torch.int64), torch.cat([torch.zeros(40), torch.arange(1, 21)]).long()
    bad = torch.cat([torch.ones(40), torch.zeros(20)]).long()
    answers = {"good": labels, "bad": bad, "worse": (tiles > 8).long()}
    rows = {name: row(name, "linear", [each], labels, tiles) for name, each in answers.items()}
    right = {name: one.correct for name, one in rows.items()}
    assert all(one.shape == (1, 60) and one.dtype == torch.bool for one in right.values())
    assert tile_test(right["good"], right["bad"], tiles) == tile_test(right["bad"], right["good"], tiles) > 0.3
    assert tile_test(right["good"], right["worse"], tiles) < 0.001
    assert tile_test(right["good"], right["good"], tiles) == 1.0
    seeds = torch.cat([right["good"], right["bad"]])
    least = tile_test(right["good"], right["worse"], tiles)
    assert tile_test(seeds, right["worse"], tiles) >= least  # the seed that shows least
    values = Scores("data", {}, (rows["good"],)).to_dict()["rows"][0]
    assert "groups" not in values and values["accuracy"] == 1.0
    both = Scores("data", {}, (rows["good"], replace(rows["worse"], encoder=PIXELS)))
    assert [one["p"] for one in both.comparisons()] == [least]


def of_tiles(*apart: int) -> float:
    """P of tiles in which one classifier has so many more patches right than another."""
    tiles = torch.arange(len(apart)).repeat_interleave(2 * 9)
    first, second = torch.zeros(2, len(tiles), dtype=torch.bool)
    for tile, more in enumerate(apart):
        (first if more > 0 else second)[18 * tile : 18 * tile + abs(more)] = True
    return tile_test(first[None], second[None], tiles)


def test_the_p_of_tiles_is_what_drawing_them_again_gives():
    torch.manual_seed(0)
    apart = torch.randint(-3, 5, (80,))
    drawn = apart.double()[torch.randint(80, (20000, 80))].mean(1)
    beyond = 2 * float((drawn - drawn.mean() >= apart.double().mean()).double().mean())
    assert abs(of_tiles(*apart.tolist()) - beyond) < 0.01


def test_few_tiles_show_little():
    assert of_tiles(9) == 1.0 and of_tiles(9, 12) == 0.5 and of_tiles(3, 1, 4) == 0.25  # as likely by chance
    assert of_tiles(4, 4, 4, 4, 4) == of_tiles(-4, -4, -4, -4, -4) == 2**-4  # all differ alike
    assert of_tiles(1, -1, 2) == pytest.approx(0.528595, abs=1e-6)  # t = 0.7559 of 2 degrees
    assert of_tiles(5, -1, 2, 3, 0, 4, 1, 2) == pytest.approx(0.025464, abs=1e-6)  # t = 2.8284 of 7


def test_a_probe_of_an_even_choice_answers_as_often_as_classes_are():
    torch.manual_seed(0)
    labels = torch.arange(400) % 2
    vectors = torch.randn(400, 1) + labels[:, None]
    fit = [fit_linear(vectors, labels, 3, counts=counts).probe for counts in (None, torch.tensor([9000, 1000, 0]))]
    torch.testing.assert_close(fit[1].weight, fit[0].weight)
    shift = fit[1].bias - fit[0].bias
    torch.testing.assert_close(shift[0] - shift[1], torch.tensor(9.0).log(), rtol=1e-4, atol=1e-5)
    assert shift[2] == 0 and fit[1].bias.isfinite().all()
    alike = (vectors - 0.5).abs()[:, 0] < 0.3  # where either class is as likely in an even choice
    assert fit[1](vectors[alike]).argmax(1).eq(0).all()


def test_a_strength_is_chosen_on_whole_groups():
    """What tells classes apart within a group says nothing of another one: then the strongest penalty stays."""
    torch.manual_seed(0)
    labels, groups = torch.randint(0, 2, (200,)), torch.arange(200) // 40
    vectors = F.one_hot(groups * 2 + labels, 10).float() + 0.01 * torch.randn(200, 10)
    strengths = (1.0, 1e-3)
    assert fit_linear(vectors, labels, 2, strengths=strengths).held_out == 1.0
    fit = fit_linear(vectors, labels, 2, strengths=strengths, groups=groups * 7)
    assert fit.held_out < 0.7
    alone = {fit_linear(vectors, labels, 2, seed, strengths, groups=groups).held_out for seed in range(5)}
    assert len(alone) > 1  # another group each
