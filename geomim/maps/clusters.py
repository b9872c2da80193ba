"""k-means in torch, for maps without labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class KMeans:
    """Fitted clusters.

    Attributes:
        mean: `(D,)` taken off every vector.
        std: `(D,)` that it is then divided by.
        centres: `(K, D)` of the standardised vectors, the most frequent cluster first.
    """

    mean: Tensor
    std: Tensor
    centres: Tensor

    def scores(self, vectors: Tensor) -> Tensor:
        """How near `(..., D)` vectors are to each centre, `(..., K)`: less their squared distance, up to a constant."""
        return 2 * (vectors - self.mean) / self.std @ self.centres.T - self.centres.square().sum(1)


def fit_kmeans(vectors: Tensor, clusters: int, seed: int = 0, rounds: int = 50) -> KMeans:
    """Fit k-means with a k-means++ start (Arthur and Vassilvitskii, 2007) on standardised vectors.

    Args:
        vectors: `(N, D)`.
        clusters: Number of clusters; fewer where there are fewer different vectors.
        seed: Of the start; the result depends on it and the vectors only.
        rounds: At most this many of Lloyd's iterations.
    """
    mean, std = vectors.mean(0), vectors.std(0, unbiased=False)
    std = torch.where(std > 1e-6, std, 1.0)
    points = (vectors - mean) / std
    centres = _start(points, clusters, seed)
    labels = torch.full((len(points),), -1)
    for _ in range(rounds):
        before, labels = labels, _assign(points, centres)[1]
        if torch.equal(before, labels):
            break
        counts = labels.bincount(minlength=len(centres))
        sums = torch.zeros_like(centres).index_add_(0, labels, points)
        centres = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp_min(1), centres)
    order = labels.bincount(minlength=len(centres)).argsort(descending=True, stable=True)
    return KMeans(mean, std, centres[order])


def _start(points: Tensor, clusters: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    distance = (points - points[chosen[0]]).square().sum(1)
    while len(chosen) < clusters and float(distance.max()) > 1e-12:
        chosen.append(int(torch.multinomial(distance, 1, generator=generator)))
        distance = torch.minimum(distance, (points - points[chosen[-1]]).square().sum(1))
    return points[chosen]


def _assign(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance (less the points' own norm) and number of the nearest centre."""
    scores = centres.square().sum(1) - 2 * points @ centres.T
    return scores.min(1)
