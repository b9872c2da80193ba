"""Images and sentences that find each other: recall both ways, and average precision of classes as queries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from geomim.evaluate.figures import CHANCE, Figure
from geomim.evaluate.scores import interval

CELLS = 2**25
"""Similarities that are held at a time, which bounds the memory whatever is compared."""


def recalls(
    task: str, images: Tensor, sentences: Tensor, of: Tensor, same: Tensor | None = None, ks: Sequence[int] = (1, 5, 10)
) -> list[Figure]:
    """Share of queries with a hit among the k nearest, both ways, and the mean of all.

    An image is a hit of its sentences, and a sentence of its image; any of several counts. RemoteCLIP's script
    counts no others, though a sentence that several images share cannot tell them apart: `same` mends that. Intervals
    are 95 % by a bootstrap over images with all their sentences.

    Args:
        task: Name in the figures.
        images: `(N, D)` unit vectors; each has a sentence.
        sentences: `(T, D)` unit vectors.
        of: `(T,)` int64, the image of each sentence.
        same: `(T,)` int64 from 0, equal where two sentences are the same; all differ where None.
        ks: How many nearest ones are looked at.
    """
    same = torch.arange(len(of)) if same is None else same
    kinds = int(same.max()) + 1
    first = torch.full((kinds,), len(same)).scatter_reduce(0, same, torch.arange(len(same)), "amin")
    found, found_chance = _hits(images, sentences, torch.stack([of, same]), same, ks)
    asked, asked_chance = _hits(sentences[first], images, torch.stack([same, of]), torch.arange(len(images)), ks)
    # a sentence counts as often as it stands there; its image carries it through the bootstrap
    share = len(images) / len(of)
    by_image = torch.zeros(len(images), len(ks), dtype=torch.float64).index_add(0, of, asked[same].double() * share)
    chance = torch.cat([found_chance.mean(0), asked_chance[same].mean(0)])
    hits = torch.cat([found.double(), by_image], 1)
    names = [f"{way} R@{k}" for way in ("i2t", "t2i") for k in ks] + ["mean recall"]
    columns = zip(names, [*hits.T, hits.mean(1)], [*chance, chance.mean()], strict=True)
    return [
        Figure(task, name, float(hit.mean()), *interval(hit[None]), {CHANCE: float(luck)})
        for name, hit, luck in columns
    ]


def _hits(queries: Tensor, gallery: Tensor, pairs: Tensor, group: Tensor, ks: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Which queries have a hit among the k nearest `(Q, K)`, and how probable that is by chance.

    `pairs (2, P)` are queries and groups that belong together; `group (G,)` is that of each member of the gallery.
    """
    count, groups, most = len(gallery), int(group.max()) + 1, min(max(ks), len(gallery))
    wanted = torch.tensor(ks).clamp_max(most) - 1
    left = count - torch.arange(most, dtype=torch.float64)
    hits, chances = [], []
    for start in range(0, len(queries), step := max(1, CELLS // count)):
        part = queries[start : start + step]
        query, belongs = pairs[:, (pairs[0] >= start) & (pairs[0] < start + len(part))]
        known = torch.zeros(len(part), groups, dtype=torch.bool)
        known[query - start, belongs] = True
        good = known[:, group]
        found = good.gather(1, (part @ gallery.T).topk(most).indices).cummax(1).values
        hits.append(found[:, wanted])
        missed = ((left - good.sum(1, keepdim=True)).clamp_min(0) / left).cumprod(1)
        chances.append(1 - missed[:, wanted])
    return torch.cat(hits), torch.cat(chances)


def average_precision(scores: Tensor, relevant: Tensor, top: int | None = None) -> Tensor:
    """Average precision of each class as a query for images.

    Args:
        scores: `(N, C)`.
        relevant: `(N, C)` bool.
        top: Only so many nearest images are looked at, and precision is the mean over the hits among them, as
            torchmetrics' `RetrievalMAP(top_k)` and with it MS-CLIP have it; all where None.

    Returns:
        `(C,)` float64; NaN of a class without an image.
    """
    most = min(top or len(scores), len(scores))
    hit = relevant.gather(0, scores.topk(most, dim=0).indices).double()
    precision = hit.cumsum(0) / torch.arange(1, most + 1, dtype=torch.float64)[:, None]
    mean = (hit * precision).sum(0) / hit.sum(0).clamp_min(1)
    return torch.where(relevant.any(0), mean, torch.nan)


def mean_average_precision(images: Tensor, classes: Tensor, relevant: Tensor) -> list[Figure]:
    """Text-to-image mAP@100 with a sentence a class as the query, and of several labels an image their mAP.

    MS-CLIP (Marimo et al., 2025) gives mAP@100, and for several labels the accuracy of yes and no a class, which a
    model has that finds nothing; that is left out. Chance is that of random scores, the mean of ten.

    Args:
        images: `(N, D)` unit vectors.
        classes: `(C, D)` likewise.
        relevant: `(N, C)` bool, which classes an image has.
    """
    tops = {"t2i mAP@100": 100} | ({"multi-label mAP": None} if bool((relevant.sum(1) > 1).any()) else {})
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.rand(relevant.shape, generator=generator) for _ in range(10)]
    scores = images @ classes.T
    return [
        Figure(
            "map",
            name,
            float(average_precision(scores, relevant, top).nanmean()),
            beside={CHANCE: sum(float(average_precision(one, relevant, top).nanmean()) for one in drawn) / len(drawn)},
        )
        for name, top in tops.items()
    ]
