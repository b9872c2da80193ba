"""What a task says of its test: a figure a class and metric, beside what the most frequent answer would get."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from geomim.errors import InputError

ALL = "all"
"""The class of figures over all classes."""


def class_figures(confusion: Tensor, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Figures of a task that tells classes apart.

    Precision of a class that is never said, recall of one that does not occur, and F1 and IoU of one that is neither
    are NaN; means leave them out. The F1 of change is that of the class of change.

    Args:
        confusion: Counts `(K, K)`, truth down and answers across; or `(K, 2, 2)` where several classes hold at once.
        classes: K names.

    Returns:
        `class`, `metric`, `value` and `count` of what is of that class, and as `floor` the value where everybody is
        given the most frequent class (or, where several hold, each class the more frequent of yes and no). Figures over
        all come last, with the class `all`.

    Raises:
        InputError: Nothing was counted.
    """
    confusion = confusion.double().cpu()
    if not confusion.sum():
        raise InputError("no figures: expected labelled images in `trainer.test`, and none was counted")
    truth = confusion.sum(-1)
    floor = torch.zeros_like(confusion)
    floor.scatter_(-1, truth.argmax(-1, keepdim=True)[..., None].expand(*truth.shape, 1), truth[..., None])
    counts = truth if confusion.ndim == 2 else truth[:, 1]
    names, heights = [*classes, ALL], [*counts.tolist(), float(counts.sum())]
    floors = dict(_rates(floor, names))
    return [
        {"class": name, "metric": metric, "value": value, "count": round(count), "floor": floors[name, metric]}
        for name, count in zip(names, heights, strict=True)
        for (of, metric), value in _rates(confusion, names)
        if of == name
    ]


def _rates(confusion: Tensor, names: Sequence[str]) -> list[tuple[tuple[str, str], float]]:
    if single := confusion.ndim == 2:
        hit, said, truth = confusion.diag(), confusion.sum(0), confusion.sum(1)
    else:
        hit, said, truth = confusion[:, 1, 1], confusion[:, :, 1].sum(1), confusion[:, 1].sum(1)
    rates = {
        "precision": hit / said,
        "recall": hit / truth,
        "F1": 2 * hit / (said + truth),
        "IoU": hit / (said + truth - hit),
    }
    over = {"accuracy": hit.sum() / confusion.sum()} if single else {"micro F1": 2 * hit.sum() / (said + truth).sum()}
    over |= {f"mean {metric}": rates[metric].nanmean() for metric in ("recall", "F1", "IoU")}
    each = [((name, metric), float(one)) for metric, ones in rates.items() for name, one in zip(names, ones)]  # noqa: B905
    return each + [((ALL, metric), float(one)) for metric, one in over.items()]


def value_figures(truth: Tensor, said: Tensor, targets: Sequence[str]) -> list[dict[str, Any]]:
    """Figures of a task that says values: RMSE, MAE and R2 of each, beside what their mean would get.

    Args:
        truth: `(N, T)`.
        said: The same.
        targets: T names.

    Raises:
        InputError: There is no value.
    """
    if not len(truth):
        raise InputError("no figures: expected labelled images in `trainer.test`, and none was counted")
    truth, said = truth.double().cpu(), said.double().cpu()
    least = truth - truth.mean(0)

    def rates(error: Tensor) -> dict[str, Tensor]:
        squares = error.square().sum(0)
        return {
            "RMSE": (squares / len(error)).sqrt(),
            "MAE": error.abs().mean(0),
            "R2": 1 - squares / least.square().sum(0),
        }

    found, floors = rates(said - truth), rates(least)
    return [
        {
            "class": name,
            "metric": metric,
            "value": float(found[metric][place]),
            "count": len(truth),
            "floor": float(floors[metric][place]),
        }
        for place, name in enumerate(targets)
        for metric in found
    ]
