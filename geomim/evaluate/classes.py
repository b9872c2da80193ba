"""What is taken for what, and how well each class is found."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ClassScores:
    """One class.

    Attributes:
        precision: Share of the images called so that are; None where none is.
        recall: Share of its images that are called so; None where the test split has none.
        f1: Harmonic mean of both, 2 * found / (its images + those called so); None where there is neither.
        support: Test images of it.
    """

    precision: float | None
    recall: float | None
    f1: float | None
    support: int


def confusion(answers: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Test images of each true class that were given each class, the mean over seeds.

    Args:
        answers: `(S, N)` int64 in `0..classes-1`.
        labels: `(N,)` likewise.
        classes: Number of classes.

    Returns:
        `(C, C)` float64, a row a true class: of its sum the diagonal is the accuracy that stands in the table.
    """
    pairs = (labels * classes + answers).flatten().bincount(minlength=classes**2)
    return pairs.view(classes, classes).double() / len(answers)


def class_scores(counts: Tensor) -> list[ClassScores]:
    """Precision, recall and F1 of each class from what `confusion` counted."""
    found, support, called = counts.diagonal(), counts.sum(1), counts.sum(0)
    columns = ((found, called), (found, support), (2 * found, support + called))
    precision, recall, f1 = (
        [a / b if b else None for a, b in zip(x.tolist(), y.tolist(), strict=True)] for x, y in columns
    )
    return [ClassScores(*row) for row in zip(precision, recall, f1, map(round, support.tolist()), strict=True)]
