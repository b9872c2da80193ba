"""How sure a share is: Wilson's interval, over seeds and classes; and whether two shares differ: McNemar's test.

None of it draws anything, and none of it is sure of what was seen without exception: 37 right of 37 is 0.906 to 1.
"""

from __future__ import annotations

import math
from bisect import bisect

import torch
from torch import Tensor

LEVEL = 0.05
"""Two shares are said to differ where the test's p is below it, each test on its own."""
_Z = 1.959963984540054  # two-sided 95 % of the normal distribution

INTERVALS = (
    "95 %: of accuracy Wilson's, its images fewer where seeds differ; of balanced accuracy those of the classes, "
    "squared and added"
)
TEST = f"McNemar's exact test of accuracy on the same test images, {100 * LEVEL:g} % level, in every seed"
TILE_INTERVALS = "95 %: Wilson's, its patches as many as drawing whole tiles and seeds makes of them, by Student's t"
TILE_TEST = f"t test of how many more patches of a test tile are right, {100 * LEVEL:g} % level, in every seed"


def wilson(share: float, count: float) -> tuple[float, float]:
    """95 % score interval of a share of `count` (Wilson, JASA 22, 1927), which need not be whole."""
    width = _Z**2 / count
    middle, half = share + width / 2, _Z * math.sqrt(share * (1 - share) / count + width / (4 * count))
    low, high = (middle - half) / (1 + width), (middle + half) / (1 + width)
    return max(0.0, min(low, share)), min(1.0, max(high, share))  # rounding leaves 0, 1 and the share


def interval(correct: Tensor, groups: Tensor | None = None) -> tuple[float, float]:
    """95 % interval of the accuracy over seeds and test images: Wilson's, of fewer images where the seeds differ.

    The variance of the mean is that of images plus that of seeds; images are counted as the binomial distribution of
    that variance has them, and at most as they are (the design effect of Kish; Korn and Graubard, Survey Methodology
    24, 1998). So the interval holds the luck of the test images and that of the probe's training. It does not hold
    the luck of pretraining, for which encoders would have to be trained again.

    Patches of a tile are not independent, see `balanced_interval`.

    Args:
        correct: `(S, N)`, whether each seed classified each test image rightly, or weights whose mean is a share.
        groups: `(N,)` int64, the tile of each, from 0 without a gap, where they are patches.
    """
    if groups is not None:
        return balanced_interval(correct, torch.zeros_like(groups), groups)
    seeds, images = correct.shape
    right = correct.double()
    share = min(max(float(right.mean()), 0.0), 1.0)
    variance = float(right.mean(0).var(correction=0)) / images
    variance += float(right.mean(1).var()) / seeds if seeds > 1 else 0.0
    binomial = share * (1 - share) / images
    return wilson(share, images * min(1.0, binomial / variance) if binomial and variance else images)


def balanced_interval(correct: Tensor, labels: Tensor, groups: Tensor | None = None) -> tuple[float, float]:
    """95 % interval of the mean of the classes' recall: their own ones, squared and added.

    Both arms of it are the root of the summed squares of the classes' arms (Newcombe, Statistics in Medicine 17, 1998;
    as a sum of any number, MOVER of Zou and Donner, ibid. 27, 2008). Of one class it is `interval`.

    Classes of patches share tiles, so it is Wilson's interval with the variance of drawing whole tiles. Of few tiles
    that is unsure itself, for which Korn and Graubard divide the number by (t / z)^2; where no tile differs, each
    counts once.

    Args:
        correct: `(S, N)` bool.
        labels: `(N,)` int64; classes without an image count nothing.
        groups: As for `interval`.
    """
    if groups is not None:
        return _of_tiles(correct.double(), labels, groups)
    parts = [correct[:, labels == label] for label in set(labels.tolist())]
    ends = torch.tensor([(float(part.double().mean()), *interval(part)) for part in parts], dtype=torch.float64)
    middle, low, high = ends.T
    arms = [float((middle - end).norm()) / len(parts) for end in (low, high)]
    return float(middle.mean()) - arms[0], float(middle.mean()) + arms[1]


def _of_tiles(right: Tensor, labels: Tensor, groups: Tensor) -> tuple[float, float]:
    """Interval of the mean of the classes' recall, linear in what each tile adds to it."""
    counts, each = labels.bincount(), right.mean(0)
    weights = 1.0 / (counts.count_nonzero() * counts[labels].double())
    parts = groups.bincount((each - (labels.bincount(each) / counts)[labels]) * weights)
    seeds, count, squares = right @ weights, len(parts), float(parts.square().sum())
    share = min(max(float(seeds.mean()), 0.0), 1.0)
    binomial, number = share * (1 - share), float(count)
    if count > 1 and squares > 1e-12 * binomial:  # more than rounding
        number = min(len(labels), binomial * (count - 1) / (count * squares))
        number *= (1e4 * _Z / bisect(range(200_000), -0.05, key=lambda t: -_t_beyond(t / 1e4, count - 1))) ** 2
    unsure = float(seeds.var()) / len(seeds) if len(seeds) > 1 else 0.0
    return wilson(share, binomial / (binomial / number + unsure) if binomial else number)


def mcnemar(one: Tensor, other: Tensor) -> float:
    """Two-sided p of McNemar's exact test that two classifiers are as often right on the same images.

    Of images that one alone has right, half are expected to be its own (McNemar, Psychometrika 12, 1947). Of several
    seeds it is the largest p: that each of them shows the difference, in the direction of their mean.

    Args:
        one: `(S, N)` bool, whether each seed has each image right.
        other: `(S, N)` or `(1, N)` likewise, of the same images.
    """
    ahead, behind = (one, other) if one.double().mean() >= other.double().mean() else (other, one)
    more, less = (ahead & ~behind).sum(1).tolist(), (behind & ~ahead).sum(1).tolist()
    return max(min(1.0, 2 * _tail(lost, won + lost)) for won, lost in zip(more, less, strict=True))


def tile_test(one: Tensor, other: Tensor, groups: Tensor) -> float:
    """Two-sided p of a t test that two classifiers have equally many patches of a tile right.

    It is at least `2**(1 - T)`, as T tiles agree so often by chance. Arguments as of `mcnemar` and `interval`; seeds
    are joined as in the former.
    """
    apart = torch.stack([groups.bincount(seed) for seed in one.double() - other.double()])
    apart, count = apart if apart.mean() >= 0 else -apart, apart.shape[1]
    t = apart.mean(1) * (count - 1) ** 0.5 / apart.std(1, correction=0)
    least = float(t.nan_to_num(0.0, math.inf, -math.inf).min())  # no number where no tile differs
    return max(2.0 ** (1 - count), _t_beyond(max(least, 0.0), count - 1))


def _t_beyond(t: float, degrees: int) -> float:
    """Probability that Student's t is farther from 0 (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle, odd = math.atan2(t, degrees**0.5), degrees % 2
    term, total = math.cos(angle) if odd else 1.0, 0.0
    for step in range(1 + odd, degrees, 2):
        total, term = total + term, term * step / (step + 1) * math.cos(angle) ** 2
    within = math.sin(angle) * total
    return max(0.0, 1 - (2 / math.pi * (angle + within) if odd else within))


def _tail(most: int, count: int) -> float:
    """Probability of at most so many heads of `count` coins."""
    heads = torch.arange(most + 1, dtype=torch.float64)
    ways = math.lgamma(count + 1) - torch.lgamma(heads + 1) - torch.lgamma(count - heads + 1)
    return float((ways - count * math.log(2)).exp().sum())
