"""Average precision of detections, as COCO defines it, for any kind of box."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchvision.ops import box_iou

Boxes = Sequence[dict[str, Tensor]]


class AveragePrecision(Metric):
    """COCO's average precision over a whole set: 101 recalls, thresholds .5 to .95, the mean over classes that occur.

    Equal to `pycocotools`, but for its limit of 100 detections an image: there is none. Each detection, the surest
    first, takes the free box of its class that it overlaps most.

    Args:
        classes: How many classes there are; labels are 0 to `classes` - 1.
        iou: Overlap of two sets of boxes, `(N, ...), (M, ...) -> (N, M)`.
    """

    full_state_update = False
    found: list[Tensor]
    counts: Tensor

    def __init__(self, classes: int, iou: Callable[[Tensor, Tensor], Tensor] = box_iou) -> None:
        super().__init__()
        self.classes, self.iou = classes, iou
        self.thresholds = torch.linspace(0.5, 0.95, 10, dtype=torch.float64)
        self.add_state("found", [], dist_reduce_fx="cat")  # a row a detection: label, score, right at each threshold
        self.add_state("counts", torch.zeros(classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Boxes, target: Boxes) -> None:
        """Match the detections of images.

        Args:
            preds: An image each: `boxes`, `scores` and `labels`.
            target: An image each: `boxes` and `labels`.
        """
        for answer, truth in zip(preds, target, strict=True):
            boxes, scores, labels = (answer[key].detach().cpu() for key in ("boxes", "scores", "labels"))
            true, kinds = truth["boxes"].cpu(), truth["labels"].cpu()
            self.counts += torch.bincount(kinds, minlength=self.classes).to(self.counts.device)
            order = scores.argsort(descending=True, stable=True)
            boxes, scores, labels = boxes[order], scores[order], labels[order]
            overlap = self.iou(boxes.double(), true.double()).where(labels[:, None] == kinds, -1)
            rows = torch.cat([torch.stack([labels, scores], 1).double(), _matches(overlap, self.thresholds)], 1)
            self.found.append(rows.to(self.counts.device))

    def per_class(self) -> Tensor:
        """`(classes, 10)` average precision of each class at each threshold; nan for classes that do not occur."""
        rows = torch.cat(list(self.found)).cpu() if len(self.found) else torch.zeros(0, 12, dtype=torch.float64)
        rows = rows[rows[:, 1].argsort(descending=True, stable=True)]
        hits = [rows[rows[:, 0] == label, 2:] for label in range(self.classes)]
        return torch.stack([_average(one, count) for one, count in zip(hits, self.counts.tolist(), strict=True)])

    def compute(self) -> dict[str, Tensor]:
        """`map` over all thresholds, `map_50` and `map_75`; -1 where nothing was to be found."""
        mean = self.per_class().nanmean(0).nan_to_num(nan=-1.0).float()
        return {"map": mean.mean(), "map_50": mean[0], "map_75": mean[5]}

    def figures(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """AP50 and AP of each class, with how often it occurs; a class that does not has the value None.

        Args:
            names: Names of the classes.
        """
        columns = {"AP50": self.per_class()[:, 0], "AP": self.per_class().mean(1)}
        return [
            {"class": name, "metric": metric, "value": None if value.isnan() else float(value), "count": int(count)}
            for metric, values in columns.items()
            for name, value, count in zip(names, values, self.counts, strict=True)
        ]


def _matches(overlap: Tensor, thresholds: Tensor) -> Tensor:
    """`(N, T)` whether each of N detections finds one of M boxes that was free, for `(N, M)` overlaps."""
    found = torch.zeros(len(overlap), len(thresholds), dtype=torch.float64)
    if not overlap.numel():
        return found
    free = torch.ones(len(thresholds), overlap.shape[1], dtype=torch.bool)
    for place, row in enumerate(overlap):
        best, column = row.where(free & (row >= thresholds[:, None]), -1).max(1)
        found[place] = best >= 0
        free[torch.arange(len(thresholds)), column] &= best < 0
    return found


def _average(hits: Tensor, count: int) -> Tensor:
    """`(T,)` average precision of `(N, T)` hits by falling score, for `count` boxes to find."""
    if not count:
        return hits.new_full(hits.shape[1:], float("nan"))
    true = hits.cumsum(0).T.contiguous()
    precision = true / torch.arange(1, len(hits) + 1)
    precision = precision.flip(1).cummax(1).values.flip(1) if len(hits) else precision
    levels = torch.linspace(0, 1, 101, dtype=torch.float64).expand(len(true), -1).contiguous()
    places = torch.searchsorted(true / count, levels)
    return torch.nn.functional.pad(precision, (0, 1)).gather(1, places).mean(1)
