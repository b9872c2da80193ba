"""Detection of rotated boxes without anchors, on a pyramid of maps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import sigmoid_focal_loss

from geomim.finetune.necks import Pyramid
from geomim.finetune.rotated import canonical, in_frame, nms

OVERLAP = 0.1
"""Intersection over union above which two turned boxes of a class are one."""
_CANDIDATES, _SCORE, _MOST = 1000, 0.05, 300


class OrientedDetector(nn.Module):
    """A class, a rotated box and how central it lies, at each position of each map of a pyramid, the finest first.

    After FCOS (Tian et al., ICCV 2019), but for two things: a box is its centre and its sides, not four distances,
    which would trade places where a square turns past 45 degrees; and its level is that of the root of its area, not of
    the longest distance, so that long thin boxes keep a grid that is fine enough.

    An angle is two vectors, of twice and of four times the angle (the dual frequency of PSC, Yu and Da, CVPR 2023, with
    sine and cosine for its phases). Neither jumps anywhere. The second does not tell w from h, which a square does not
    either; the first does.

    The loss of a box is the divergence D of Gaussians (Yang et al., NeurIPS 2021) as 1 - 1 / (1 + ln(1 + D)), that of
    its angle 1 less the cosine of four times the difference. Losses are means over images, however a batch is divided.
    """

    def __init__(self, pyramid: Pyramid, classes: int) -> None:
        super().__init__()
        self.pyramid, self.classes = pyramid, classes
        self.class_tower, self.box_tower = (_tower(pyramid.channels) for _ in range(2))
        self.class_logits = nn.Conv2d(pyramid.channels, classes, 3, padding=1)
        self.box_values = nn.Conv2d(pyramid.channels, 9, 3, padding=1)  # centre 2, sides 2, angle 2 + 2, centreness
        for layer in (self.class_logits, self.box_values):
            nn.init.normal_(layer.weight, std=0.01)
        nn.init.constant_(self.class_logits.bias, math.log(0.01 / 0.99))
        self.box_values.bias.data = torch.tensor([0.0, 0, 0, 0, 1, 0, 1, 0, 0])

    def forward(self, images: Tensor, targets: Sequence[dict[str, Tensor]] | None = None) -> Any:
        """In training the losses by name, else of each image `boxes`, `scores` and `labels`, by falling score.

        Targets, which training needs, are of each image `boxes` `(N, 5)` and `labels` `(N,)`.
        """
        step = max(self.pyramid.strides)
        maps = self.pyramid(F.pad(images, (0, -images.shape[-1] % step, 0, -images.shape[-2] % step)))
        logits = _rows(self.class_logits(self.class_tower(one)) for one in maps)
        values = _rows(self.box_values(self.box_tower(one)) for one in maps)
        grid = grid_of([one.shape[-2:] for one in maps], self.pyramid.strides, images.device)
        if self.training:
            return losses(logits, values, *_stack(targets or ()), grid)
        return [self._detect(one, its, grid) for one, its in zip(logits, values, strict=True)]

    def _detect(self, logits: Tensor, values: Tensor, grid: Grid) -> dict[str, Tensor]:
        scores = (logits.sigmoid() * values[:, 8:].sigmoid()).sqrt().flatten()
        scores, chosen = scores.topk(min(_CANDIDATES, len(scores)))
        places, labels = chosen // self.classes, chosen % self.classes
        boxes = decode(values[places], grid.places[places], grid.strides[places])
        kept = nms(boxes, scores, labels, OVERLAP)[:_MOST]
        kept = kept[scores[kept] > _SCORE]
        return {"boxes": boxes[kept], "scores": scores[kept], "labels": labels[kept]}


class Grid(NamedTuple):
    """Positions of all levels in a row: the middle of each, `(L, 2)` x, y, and its `(L,)` stride; strides of levels."""

    places: Tensor
    strides: Tensor
    levels: tuple[int, ...]


def grid_of(shapes: Iterable[Sequence[int]], levels: tuple[int, ...], device: torch.device | str = "cpu") -> Grid:
    """Positions of levels with these rows and columns and these ascending strides."""
    places, strides = [], []
    for (rows, columns), stride in zip(shapes, levels, strict=True):
        y, x = (torch.arange(0.5, count, device=device) * stride for count in (rows, columns))
        places.append(torch.cartesian_prod(y, x).flip(1))
        strides.append(torch.full_like(places[-1][:, 0], stride))
    return Grid(torch.cat(places), torch.cat(strides), levels)


def assign(boxes: Tensor, labels: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """Which box of one image each position answers for: of those that fit it, the smallest.

    The root of a box's area is 4 to 8 strides of its level, or what is beyond of the first and the last. A position of
    that level fits if it lies in the box and within 1.5 strides of its centre along w and h. A side shorter than 1.5
    strides counts as so long, since that holds a position whatever the angle.

    Labels `(M,)` of boxes `(M, 5)` are -1 where there is no box. Returned are, `(L,)` each, the index of the box,
    whether there is one, and how central the position is: 1 at the centre, 0 at the border.
    """
    away = in_frame(grid.places[:, None] - boxes[:, :2], boxes[:, 4]).abs()  # (L, M, 2)
    size, stride = boxes[:, 2:4].prod(-1).sqrt(), grid.strides[:, None, None]
    own = grid.levels[0] + sum((size >= 4 * after) * (after - before) for before, after in pairwise(grid.levels))
    reach = torch.maximum(boxes[:, 2:4] / 2, 0.75 * stride)
    fits = (away < reach.clamp(max=1.5 * stride)).all(-1) & (grid.strides[:, None] == own) & (labels >= 0)
    smallest, index = size.where(fits, math.inf).min(1)
    away, reach = (one.take_along_dim(index[:, None, None], 1).squeeze(1) for one in (away, reach))
    return index, smallest.isfinite(), ((reach - away) / (reach + away)).clamp(min=0).prod(-1).sqrt()


def losses(logits: Tensor, values: Tensor, boxes: Tensor, labels: Tensor, grid: Grid) -> dict[str, Tensor]:
    """Losses by name of answers `(B, L, classes)` and `(B, L, 9)`; boxes `(B, M, 5)` and labels are as for `assign`."""
    assigned = (assign(*one, grid) for one in zip(boxes, labels, strict=True))
    index, answers, central = (torch.stack(one) for one in zip(*assigned, strict=True))
    true = boxes.take_along_dim(index[..., None], 1)
    kinds = labels.take_along_dim(index, 1)[..., None] == torch.arange(logits.shape[-1], device=labels.device)
    focal = sigmoid_focal_loss(logits, (kinds & answers[..., None]).float(), reduction="none").sum(-1)
    away = in_frame(grid.places + values[..., :2] * grid.strides[:, None] - true[..., :2], true[..., 4])
    twice, fourfold = (_cosine(values[..., at : at + 2], true[..., 4] * by) for at, by in _ANGLES)
    apart = divergence(away, _sides(values, grid.strides), twice, true[..., 2:4])
    parts = {
        "box": 1 - 1 / (1 + apart.clamp(min=0).log1p()),
        "angle": 1 - fourfold,
        "centreness": F.binary_cross_entropy_with_logits(values[..., 8], central, reduction="none"),
    }
    parts = {"classification": focal} | {name: part.where(answers, 0) for name, part in parts.items()}
    count = answers.sum(1).clamp(min=1)
    return {name: (part.sum(1) / count).mean() for name, part in parts.items()}


def divergence(away: Tensor, sides: Tensor, cosine: Tensor, true: Tensor) -> Tensor:
    """Kullback-Leibler divergence of boxes from true ones, as Gaussians whose deviation along a side is half of it.

    What they are `away` is from the true centre, along the true w and h, all `(..., 2)` as their sides and the true
    ones are; the cosine `(...)` is that of twice the angle between the two.
    """
    squares = sides.square()
    total, excess = squares.sum(-1), (squares[..., 0] - squares[..., 1]) * cosine
    spread = (total + excess) / true[..., 0].square() + (total - excess) / true[..., 1].square()
    return 2 * (away / true).square().sum(-1) + spread / 4 + (true / sides).log().sum(-1) - 1


def decode(values: Tensor, places: Tensor, strides: Tensor) -> Tensor:
    """Canonical boxes `(..., 5)` that positions `(..., 2)` with these strides `(...)` answer with.

    Values `(..., 9)` are the centre from the position in strides, the logarithms of w and h over four strides, the
    codes of twice and of four times the angle, and a centreness, which is not read.
    """
    coarse, fine = (torch.atan2(values[..., at + 1], values[..., at]) / by for at, by in _ANGLES)
    angle = fine + ((coarse - fine) / (math.pi / 2)).round() * (math.pi / 2)
    centre = places + values[..., :2] * strides[..., None]
    return canonical(torch.cat([centre, _sides(values, strides), angle[..., None]], -1))


_ANGLES = ((4, 2), (6, 4))
"""Where the two codes of an angle lie, and what multiple of it each holds."""


def _cosine(code: Tensor, angle: Tensor) -> Tensor:
    """Of the difference between the angle of a code and another; its gradient is bounded, at a code of 0 too."""
    length = (code.square().sum(-1) + 1e-6).sqrt()
    return (code[..., 0] * angle.cos() + code[..., 1] * angle.sin()) / length


def _sides(values: Tensor, strides: Tensor) -> Tensor:
    return 4 * strides[..., None] * values[..., 2:4].clamp(-8, 8).exp()


def _tower(channels: int) -> nn.Sequential:
    norm = partial(nn.GroupNorm, math.gcd(32, channels), channels)
    return nn.Sequential(*chain(*((nn.Conv2d(channels, channels, 3, padding=1), norm(), nn.ReLU()) for _ in range(4))))


def _rows(maps: Iterable[Tensor]) -> Tensor:
    """`(B, L, K)` float32, all positions of all levels in a row."""
    return torch.cat([one.flatten(2).mT.float() for one in maps], 1)


def _stack(targets: Sequence[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """`(B, M, 5)` boxes and `(B, M)` labels, -1 where there is none; M is a multiple of 32, for few shapes."""
    most = -(-max(1, *(len(one["boxes"]) for one in targets)) // 32) * 32
    boxes, labels = ([one[key] for one in targets] for key in ("boxes", "labels"))
    boxes, labels = [*boxes, boxes[0].new_ones(most, 5)], [*labels, labels[0].new_full((most,), -1)]
    return pad_sequence(boxes, True, 1.0)[:-1], pad_sequence(labels, True, -1)[:-1]
