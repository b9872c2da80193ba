"""Average precision of detections, as COCO defines it, for any kind of box."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from torchvision.ops import box_iou


class AveragePrecision(Metric):
    """COCO's average precision over a whole set: 101 recalls, thresholds .5 to .95, the mean over classes that occur.

    Equal to `pycocotools`, but for its limit of 100 detections an image: there is none. Each detection, the surest
    first, takes the free box of its class that it overlaps most.

    Args:
        classes: How many there are; labels count from 0.
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

    def update(self, preds: Sequence[dict[str, Tensor]], target: Sequence[dict[str, Tensor]]) -> None:
        """Match `boxes`, `scores` and `labels` that were found in images with the true `boxes` and `labels`."""
        for answer, truth in zip(preds, target, strict=True):
            order = answer["scores"].cpu().argsort(descending=True, stable=True)
            boxes, scores, labels = (
                answer[key].detach().cpu().double()[order] for key in ("boxes", "scores", "labels")
            )
            true, kinds = truth["boxes"].cpu().double(), truth["labels"].cpu()
            overlap = self.iou(boxes, true).where(labels[:, None] == kinds, -1)
            rows = torch.cat([labels[:, None], scores[:, None], _matches(overlap, self.thresholds)], 1)
            self.found.append(rows.to(self.counts.device))
            self.counts += kinds.bincount(minlength=self.classes).to(self.counts.device)

    def compute(self) -> dict[str, Tensor]:
        """`map` over all thresholds, `map_50` and `map_75`, -1 where there was nothing to find; and of each class.

        `per_class` is `(classes, 10)`, by threshold, NaN where `counts`, how often a class occurs, is 0.
        """
        rows = dim_zero_cat(self.found).cpu() if len(self.found) else torch.zeros(0, 12)  # not a list after ranks meet
        rows = rows[rows[:, 1].argsort(descending=True, stable=True)]
        counts = enumerate(self.counts.tolist())
        each = torch.stack([_average(rows[rows[:, 0] == label, 2:], count) for label, count in counts])
        mean = each.nanmean(0).nan_to_num(nan=-1.0).float()
        summary = {"map": mean.mean(), "map_50": mean[0], "map_75": mean[5]}
        return summary | {"per_class": each, "counts": self.counts.clone()}

    def figures(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """AP50 and AP of each class of these names, and last their means over classes that occur, as class `all`.

        `value` is NaN where `count`, that of boxes, is 0; the `floor` of 0 is for finding nothing.
        """
        each, counts = (self.compute()[key] for key in ("per_class", "counts"))
        counts = counts.reshape(-1)  # torchmetrics makes a number of that of one class
        rows, counts = torch.cat([each, each.nanmean(0)[None]]), torch.cat([counts, counts.sum()[None]])
        return [
            {"class": name, "metric": metric, "value": float(value), "count": int(count), "floor": 0.0}
            for name, row, count in zip([*names, "all"], rows, counts, strict=True)
            for metric, value in (("AP50", row[0]), ("AP", row.mean()))
        ]


def _matches(overlap: Tensor, thresholds: Tensor) -> Tensor:
    """`(N, T)` whether each of N detections, the surest first, finds a free one of M boxes, for `(N, M)` overlaps."""
    found = torch.zeros(len(overlap), len(thresholds), dtype=torch.float64)
    free = torch.ones(len(thresholds), overlap.shape[1], dtype=torch.bool)
    for place, row in enumerate(overlap if overlap.numel() else ()):
        best, column = row.where(free & (row >= thresholds[:, None]), -1).max(1)
        found[place] = best >= 0
        free[torch.arange(len(thresholds)), column] &= best < 0
    return found


def _average(hits: Tensor, count: int) -> Tensor:
    """`(T,)` average precision of `(N, T)` hits by falling score, for `count` boxes to find."""
    if not count:
        return hits.new_full(hits.shape[1:], float("nan"))
    true = F.pad(hits.cumsum(0).T, (0, 1))  # behind the last one precision is 0
    precision = (true / torch.arange(1, len(hits) + 2)).flip(1).cummax(1).values.flip(1)
    levels = torch.linspace(0, 1, 101, dtype=torch.float64).expand(len(true), -1).contiguous()
    return precision.gather(1, torch.searchsorted((true[:, :-1] / count).contiguous(), levels)).mean(1)
