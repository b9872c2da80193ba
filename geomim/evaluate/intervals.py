"""How sure a share is: Wilson's interval, over seeds and classes; and whether two shares differ: McNemar's test.

None of it draws anything, and none of it is sure of what was seen without exception: 37 right of 37 is 0.906 to 1.
"""

from __future__ import annotations

import math

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
TILE_INTERVALS = f"{INTERVALS}; drawing whole tiles, as the patches of one are not independent"
TILE_TEST = f"z test of how many more patches of a test tile are right, {100 * LEVEL:g} % level, in every seed"


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

    Patches of a tile are not independent: their variance is that of drawing whole tiles, as in a bootstrap of tiles;
    where nothing differs, a tile counts once.

    Args:
        correct: `(S, N)`, whether each seed classified each test image rightly, or weights whose mean is a share.
        groups: `(N,)` int64, the tile of each, where they are patches.
    """
    seeds, images = correct.shape
    right = correct.double()
    share = min(max(float(right.mean()), 0.0), 1.0)
    each, count = right.mean(0), images
    if groups is not None:
        tiles = groups.unique(return_inverse=True)[1]  # type: ignore[no-untyped-call]
        count = int(tiles.max()) + 1
        each = each.new_zeros(count).index_add(0, tiles, each - each.mean()) * count / images
    variance = float(each.var(correction=0)) / count
    variance += float(right.mean(1).var()) / seeds if seeds > 1 else 0.0
    binomial = share * (1 - share) / images
    return wilson(share, images * min(1.0, binomial / variance) if binomial and variance else count)


def balanced_interval(correct: Tensor, labels: Tensor, groups: Tensor | None = None) -> tuple[float, float]:
    """95 % interval of the mean of the classes' recall: their own ones, squared and added.

    Both arms of it are the root of the summed squares of the classes' arms (Newcombe, Statistics in Medicine 17, 1998;
    as a sum of any number, MOVER of Zou and Donner, ibid. 27, 2008). Of one class it is `interval`.

    Args:
        correct: `(S, N)` bool.
        labels: `(N,)` int64; classes without an image count nothing.
        groups: As for `interval`.
    """
    own = [labels == label for label in set(labels.tolist())]
    parts = [(correct[:, rows], None if groups is None else groups[rows]) for rows in own]
    ends = torch.tensor([(float(part[0].double().mean()), *interval(*part)) for part in parts], dtype=torch.float64)
    middle, low, high = ends.T
    arms = [float((middle - end).norm()) / len(parts) for end in (low, high)]
    return float(middle.mean()) - arms[0], float(middle.mean()) + arms[1]


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


def tile_test(one: Tensor, other: Tensor) -> float:
    """Two-sided p of a z test that two classifiers have equally many patches right, were other tiles drawn.

    Both are `(S, T)` int64, how many patches of each tile each seed has right; seeds are joined as in `mcnemar`.
    """
    apart = (one - other).double()
    apart = apart if apart.mean() >= 0 else -apart
    z = apart.mean(1) * (apart.shape[1] - 1) ** 0.5 / apart.std(1, correction=0)
    return min(1.0, float(torch.erfc(z.nan_to_num(0.0) / 2**0.5).max()))  # no number where no tile or only one differs


def _tail(most: int, count: int) -> float:
    """Probability of at most so many heads of `count` coins."""
    heads = torch.arange(most + 1, dtype=torch.float64)
    ways = math.lgamma(count + 1) - torch.lgamma(heads + 1) - torch.lgamma(count - heads + 1)
    return float((ways - count * math.log(2)).exp().sum())
