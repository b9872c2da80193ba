"""Weighted nearest neighbours on frozen features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def knn(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    classes: int | None = None,
    k: int = 20,
    temperature: float = 0.07,
    batch: int = 1024,
) -> Tensor:
    """Classify by the k most similar training images (Wu et al., CVPR 2018; as DINO evaluates).

    Similarity is the cosine; a neighbour's vote weighs `exp(similarity / temperature)`.

    Args:
        train: `(N, D)` features.
        labels: `(N,)` int64.
        test: `(M, D)` features.
        classes: Number of classes; one more than the largest label where None.
        k: Neighbours, at most N are used.
        temperature: Smaller lets the nearest count more.
        batch: Test images compared at a time, which bounds the memory to `batch * N` similarities.

    Returns:
        `(M, C)` shares of the votes; the largest is the answer.
    """
    classes = int(labels.max()) + 1 if classes is None else classes
    train, test = F.normalize(train.float(), dim=1), F.normalize(test.float(), dim=1)
    answers = []
    for part in torch.split(test, batch):
        similarity, nearest = (part @ train.T).topk(min(k, len(train)), dim=1)
        # the largest similarity is taken off so that the exponential cannot overflow; votes keep their ratios
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weight.new_zeros(len(part), classes).scatter_add_(1, labels[nearest], weight)
        answers.append(votes / votes.sum(1, keepdim=True))
    return torch.cat(answers)
