"""Linear probes on a few images a class, their strength chosen on others of the train split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from geomim.errors import InputError
from geomim.evaluate.figures import CHANCE, Figure
from geomim.evaluate.linear import fit_linear
from geomim.evaluate.scores import row

VALIDATION = 4
"""Images a class that a probe's strength is chosen on, in every draw; the most that CoOp takes."""


def possible(labels: np.ndarray, classes: Sequence[str], shots: Sequence[int]) -> tuple[list[int], tuple[str, ...]]:
    """Those numbers of images a class that every class has, beside those to choose on; and what a reader should know.

    Args:
        labels: `(N,)` int64 of the train split.
        classes: Class names.
        shots: Numbers asked for.

    Raises:
        InputError: There is none.
    """
    counts = np.bincount(labels, minlength=len(classes))
    least = int(counts.argmin())
    few = f"'{classes[least]}' has {int(counts[least])} training images, {VALIDATION} of which a strength is chosen on"
    able = [number for number in sorted(set(shots)) if 1 <= number <= int(counts[least]) - VALIDATION]
    if not able:
        raise InputError(f"few-shot: none of {', '.join(map(str, shots))} images a class is possible: {few}")
    left = [str(number) for number in shots if number not in able]
    return able, (f"few-shot with {', '.join(left)} images a class is left out: {few}",) * bool(left)


def draw(labels: Tensor, classes: int, most: int, seed: int) -> Tensor:
    """Images of each class `(C, VALIDATION + most)`: those to choose on, then those to fit on, of which few are first.

    Args:
        labels: `(N,)` int64 of the train split.
        classes: Number of classes, each with that many images.
        most: The largest number to fit on.
        seed: Of the draw.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return torch.stack([order[labels[order] == label][: VALIDATION + most] for label in range(classes)])


def few_shot(
    train: Tensor, test: Tensor, draws: Tensor, labels: Tensor, shots: Sequence[int], floor: Mapping[str, float]
) -> list[Figure]:
    """Accuracy of probes on few images, and the mean of the classes' recall; the test split has no say in them.

    Args:
        train: `(M, D)` vectors of the drawn images.
        test: `(N, D)` vectors.
        draws: `(S, C, V+n)` rows of `train`, as `draw` gives them.
        labels: `(N,)` int64 of the test images.
        shots: Images a class to fit on.
        floor: Accuracy of the majority class of the whole train split, by its name; empty where it is not known.
    """
    figures, floors = [], {CHANCE: 1 / draws.shape[1], **floor}
    for number in shots:
        one = row("", "", [_answers(train, test, drawn, number) for drawn in draws], labels)
        figures.append(Figure("fewshot", f"{number}-shot", one.accuracy, one.low, one.high, floors, one.balanced))
    return figures


def _answers(train: Tensor, test: Tensor, drawn: Tensor, number: int) -> Tensor:
    held, fit = drawn[:, :VALIDATION], drawn[:, VALIDATION : VALIDATION + number]
    kinds = torch.arange(len(drawn))
    fitted = fit_linear(
        train[fit.flatten()],
        kinds.repeat_interleave(number),
        len(drawn),
        held_out=(train[held.flatten()], kinds.repeat_interleave(VALIDATION)),
    )
    return fitted.probe(test).argmax(1)  # type: ignore[no-any-return]
