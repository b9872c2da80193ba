import itertools
import math

import pytest
import torch

from geomim.evaluate.intervals import balanced_interval, interval, mcnemar, wilson


def pairs(both: int, one: int, other: int, neither: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two classifiers of one seed, by how many images each has right."""
    kinds = torch.tensor([[1, 1]] * both + [[1, 0]] * one + [[0, 1]] * other + [[0, 0]] * neither, dtype=torch.bool)
    return kinds[:, :1].T, kinds[:, 1:].T


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [
        (37, 37, 0.9059, 1.0),
        (0, 37, 0.0, 0.0941),
        (5, 10, 0.2366, 0.7634),
        (8, 10, 0.4902, 0.9433),
        (81, 263, 0.2553, 0.3662),
    ],
)
def test_wilson_is_the_published_one(right, count, low, high):
    """The last is the example of Newcombe, Statistics in Medicine 17 (1998) 857; the first is 37 / (37 + 1.96^2)."""
    got = wilson(right / count, count)
    assert got == pytest.approx((low, high), abs=5e-5)
    assert got == interval((torch.arange(count) < right)[None])
    assert 0 <= got[0] <= right / count <= got[1] <= 1


def test_nothing_is_certain_however_few_or_many_were_right():
    for count, seeds in itertools.product((1, 3, 37, 1000), (1, 3)):
        right = torch.ones(seeds, count, dtype=torch.bool)
        assert interval(right) == pytest.approx((1 / (1 + 3.8415 / count), 1.0), abs=1e-4)
        assert interval(~right)[1] > 0
        low, high = balanced_interval(right, torch.arange(count) % 2)
        assert low < 1 == high


def test_seeds_that_agree_say_no_more_than_one():
    one = torch.arange(40)[None] < 30
    assert interval(one.expand(5, 40)) == interval(one)
    wrong = torch.arange(40) != torch.arange(3)[:, None]  # each seed errs once, at another image
    assert interval(wrong)[1] - interval(wrong)[0] >= interval(wrong[:1])[1] - interval(wrong[:1])[0]


def test_weights_whose_mean_is_a_share_have_an_interval():
    hits = torch.tensor([[0.0, 2.0, 1.0, 0.5, 0.5]])
    low, high = interval(hits)
    assert 0 < low < 0.8 < high < 1
    assert interval(torch.tensor([[0.5, 1.5]])) == wilson(1.0, 2)  # all found, of which one image has more


def test_balanced_interval_joins_those_of_the_classes():
    labels = torch.tensor([0] * 10 + [1] * 10)
    correct = torch.cat([torch.arange(10) < 8, torch.arange(10) < 5])[None]
    low, high = balanced_interval(correct, labels)  # from 0.4902-0.9433 and 0.2366-0.7634, as above
    assert low == pytest.approx(0.65 - math.hypot(0.8 - 0.4902, 0.5 - 0.2366) / 2, abs=1e-4)
    assert high == pytest.approx(0.65 + math.hypot(0.9433 - 0.8, 0.7634 - 0.5) / 2, abs=1e-4)
    assert balanced_interval(correct[:, :10], labels[:10]) == pytest.approx(interval(correct[:, :10]))


def test_a_rare_class_makes_balanced_accuracy_less_certain():
    labels = torch.tensor([0] * 95 + [1] * 5)
    sea = (labels == 0)[None]
    low, high = balanced_interval(sea, labels)
    assert low <= 0.5 <= high and high - low > 0.2 and interval(sea)[0] > 0.88


@pytest.mark.parametrize(
    ("one", "other", "p"),
    [(8, 1, 20 / 512), (1, 8, 20 / 512), (8, 2, 112 / 1024), (6, 0, 2 / 64), (3, 3, 1.0), (0, 0, 1.0)],
)
def test_mcnemar_is_the_binomial_of_the_images_that_differ(one, other, p):
    for both, neither in ((20, 5), (0, 0) if one + other else (1, 1)):
        assert mcnemar(*pairs(both, one, other, neither)) == pytest.approx(p)


def test_mcnemar_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    for one, other in ((30, 14), (500, 430), (2100, 2000)):
        assert mcnemar(*pairs(9, one, other, 9)) == pytest.approx(stats.binomtest(one, one + other).pvalue, rel=1e-6)


def test_a_difference_must_show_in_every_seed_and_one_way():
    better, worse = pairs(20, 8, 0, 4)
    level, same = pairs(20, 4, 4, 4)
    assert mcnemar(better, worse) == pytest.approx(2 / 256)
    assert mcnemar(torch.cat([better, level]), torch.cat([worse, same])) == 1
    much, little = pairs(10, 20, 0, 2)
    assert mcnemar(torch.cat([much, worse]), torch.cat([little, better])) == 1  # the seeds contradict each other
    assert mcnemar(torch.cat([better, better]), worse) == pytest.approx(2 / 256)
