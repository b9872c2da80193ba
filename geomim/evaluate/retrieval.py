"""Images and sentences that find each other: recall both ways, and average precision of classes as queries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from geomim.evaluate.figures import CHANCE, Figure
from geomim.evaluate.intervals import interval
from geomim.evaluate.sentences import EncodeText, encode_sentences

CELLS = 2**25
"""Similarities that are held at a time, which bounds the memory whatever is compared."""


def retrieval(
    images: Tensor,
    texts: Sequence[str],
    of: Tensor,
    encode_text: EncodeText,
    official: bool = False,
    ks: Sequence[int] = (1, 5, 10),
) -> list[Figure]:
    """Share of queries with a hit among the k nearest, both ways, and the mean of all; images without a sentence aside.

    An image is a hit of its sentences, and a sentence of its image; any of several counts. A sentence that several
    images share cannot tell them apart, and is a hit of each. Equal sentences have one vector and so stand together,
    also in the chance that an image finds one of its own. Intervals are 95 % ones of Wilson, over images with all their
    sentences.

    Args:
        images: `(N, D)` unit vectors.
        texts: Sentences.
        of: `(T,)` int64, the image of each.
        encode_text: Sentences to vectors.
        official: As RemoteCLIP's script counts: sentences are capitalised, and an image's own are its only hits. Equal
            ones of other images tie with them, and which comes first is arbitrary, there as here.
        ks: How many nearest ones are looked at.
    """
    there, of = torch.unique(of, return_inverse=True)
    images, keys = images[there], range(len(texts)) if official else texts
    number = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    same, kinds = torch.tensor([number[key] for key in keys]), len(number)
    sentences = encode_sentences(encode_text, [text.capitalize() for text in texts] if official else texts)
    pairs = torch.unique(of * kinds + same)  # which image owns which sentence, equal ones being one
    forth = torch.isin(torch.arange(len(images))[:, None] * kinds + same[_nearest(images, sentences, max(ks))], pairs)
    back = torch.isin(_nearest(sentences, images, max(ks)) * kinds + same[:, None], pairs)
    owned, owners = (pairs // kinds).bincount(same.bincount()[pairs % kinds]), (pairs % kinds).bincount()[same]
    hits = [forth[:, :k].any(1).double() for k in ks]
    chance = [_chance(owned, len(texts), k) for k in ks] if kinds == len(texts) else _chance_together(pairs, same, ks)
    for k in ks:  # what an image's sentences find is its own, which is what the bootstrap draws
        found = back[:, :k].any(1).double() * len(images) / len(texts)
        hits.append(torch.zeros(len(images), dtype=torch.float64).index_add(0, of, found))
        chance.append(_chance(owners, len(images), k))
    hits.append(torch.stack(hits).mean(0))
    chance.append(sum(chance) / len(chance))
    names = [f"{way} R@{k}" for way in ("i2t", "t2i") for k in ks] + ["mean recall"]
    task = "retrieval-official" if official else "retrieval"
    return [
        Figure(task, name, float(hit.mean()), *interval(hit[None]), {CHANCE: luck})
        for name, hit, luck in zip(names, hits, chance, strict=True)
    ]


def _nearest(queries: Tensor, gallery: Tensor, count: int) -> Tensor:
    blocks = torch.split(queries, max(1, CELLS // len(gallery)))
    return torch.cat([(block @ gallery.T).topk(min(count, len(gallery))).indices for block in blocks])


def _chance_together(pairs: Tensor, same: Tensor, ks: Sequence[int], orders: int = 1000) -> list[float]:
    """Mean probability that an image finds a sentence of its own among the first k, where equal ones stand together.

    Over some orders of the different sentences, the same ones at each call.

    Args:
        pairs: `(P,)` image times kinds plus sentence, of who owns which.
        same: `(T,)` which of the different sentences each is.
        ks: How many are looked at.
        orders: How many orders are drawn.
    """
    sizes, draw = same.bincount(), torch.Generator().manual_seed(0)
    kinds = len(sizes)
    image, kind = pairs // kinds, pairs % kinds
    owners = torch.split(image[kind.argsort(stable=True)], kind.bincount(minlength=kinds).tolist())
    count = len(torch.unique(image))
    found = torch.zeros(len(ks), dtype=torch.float64)
    for _ in range(orders):
        first = torch.randperm(kinds, generator=draw)[: max(ks)]
        before = sizes[first].cumsum(0) - sizes[first]
        for place, k in enumerate(ks):
            seen = torch.cat([owners[kind] for kind in first[before < k].tolist()])
            found[place] += len(torch.unique(seen)) / count
    return (found / orders).tolist()


def _chance(good: Tensor, count: int, k: int) -> float:
    """Mean probability of a hit among k of `count` that are drawn, of which `good (Q,)` are hits."""
    left = count - torch.arange(min(k, count), dtype=torch.float64)
    return float(1 - ((left - good[:, None]).clamp_min(0) / left).prod(1).mean())


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

    MS-CLIP (Marimo et al., 2025) gives mAP@100, and for several labels the accuracy of yes and no a class, which is
    high of a model that finds nothing, and left out. Chance is that of random scores, the mean of ten.

    Args:
        images: `(N, D)` unit vectors.
        classes: `(C, D)` likewise.
        relevant: `(N, C)` bool, which classes an image has.
    """

    def mean(scores: Tensor, top: int | None) -> float:
        return float(average_precision(scores, relevant, top).nanmean())

    tops = {"t2i mAP@100": 100} | ({"multi-label mAP": None} if bool((relevant.sum(1) > 1).any()) else {})
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.rand(relevant.shape, generator=generator) for _ in range(10)]
    chance = {name: sum(mean(one, top) for one in drawn) / len(drawn) for name, top in tops.items()}
    scores = images @ classes.T
    return [Figure("map", name, mean(scores, top), beside={CHANCE: chance[name]}) for name, top in tops.items()]
