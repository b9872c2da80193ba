"""What a task says of its test: a figure a class and metric, beside what the most frequent answer would get."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from geomim.errors import InputError
from geomim.evaluate.classes import class_scores

_METRICS = ("precision", "recall", "F1", "IoU")
_NOTHING = "no figures: expected a test of images with labels; none was counted"


def class_figures(confusion: Tensor, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Figures of a task that tells classes apart; the F1 of change is that of the class of change.

    Precision of a class that is never said, recall of one that does not occur, and F1 and IoU of one that is neither
    are NaN, and means leave them out.

    Args:
        confusion: Counts `(K, K)`, truth down and answers across; or `(K, 2, 2)` where several classes hold at once.
        classes: K names.

    Returns:
        `class`, `metric`, `value`, `count` of what is of that class, and as `floor` the value if all were said to be of
        the most frequent class (where several hold, of each class the more frequent of yes and no). What is over all
        comes last, as class `all`.

    Raises:
        InputError: Nothing was counted.
    """
    confusion = confusion.double().cpu()
    if not confusion.sum():
        raise InputError(_NOTHING)
    truth = confusion.sum(-1)
    floor = truth[..., None] * F.one_hot(truth.argmax(-1), truth.shape[-1])[..., None, :]
    of = truth if confusion.ndim == 2 else truth[:, 1]
    counts = dict(zip([*classes, "all"], [*of.tolist(), float(of.sum())], strict=True))
    floors = _rates(floor, classes)
    return [
        {"class": name, "metric": metric, "value": value, "count": round(counts[name]), "floor": floors[name, metric]}
        for (name, metric), value in _rates(confusion, classes).items()
    ]


def _rates(confusion: Tensor, classes: Sequence[str]) -> dict[tuple[str, str], float]:
    if confusion.ndim == 2:
        scores, over = class_scores(confusion, overlap=True), {"accuracy": confusion.trace() / confusion.sum()}
    else:  # yes is the second of two classes
        tables = [class_scores(one, overlap=True) for one in confusion]
        scores = {key: [one[key][1] for one in tables] for key in tables[0]}
        over = {"micro F1": 2 * confusion[:, 1, 1].sum() / (confusion[:, 1].sum() + confusion[:, :, 1].sum())}
    rates = {metric: torch.from_numpy(np.array(scores[metric.lower()], float)) for metric in _METRICS}  # None is NaN
    over |= {f"mean {metric}": rates[metric].nanmean() for metric in _METRICS[1:]}
    each = {(name, metric): float(rates[metric][i]) for i, name in enumerate(classes) for metric in _METRICS}
    return each | {("all", metric): float(value) for metric, value in over.items()}


def value_figures(truth: Tensor, said: Tensor, targets: Sequence[str]) -> list[dict[str, Any]]:
    """The same of values `(N, T)`: RMSE, MAE and R2 of each of T targets; the floor says the mean of the truth.

    Raises:
        InputError: There is no value.
    """
    if not len(truth):
        raise InputError(_NOTHING)
    truth, said = truth.double().cpu(), said.double().cpu()
    spread = truth - truth.mean(0)
    found, floors = (
        {
            "RMSE": error.square().mean(0).sqrt(),
            "MAE": error.abs().mean(0),
            "R2": 1 - error.square().sum(0) / spread.square().sum(0),
        }
        for error in (said - truth, spread)
    )
    return [
        {"class": name, "metric": metric, "value": float(values[i]), "count": len(truth), "floor": float(floor[i])}
        for i, name in enumerate(targets)
        for (metric, values), floor in zip(found.items(), floors.values(), strict=True)
    ]
