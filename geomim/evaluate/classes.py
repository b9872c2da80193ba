"""What is taken for what, and how well each class is found."""

from __future__ import annotations

from torch import Tensor


def confusion(answers: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Test images of each true class that were given each class, the mean over seeds.

    Args:
        answers: `(S, N)` int64 in `0..classes-1`.
        labels: `(N,)` likewise.
        classes: Number of classes.

    Returns:
        `(C, C)` float64, a row a true class: the diagonal's share of the sum is the accuracy.
    """
    pairs = (labels * classes + answers).flatten().bincount(minlength=classes**2)
    return pairs.view(classes, classes).double() / len(answers)


def class_scores(counts: Tensor, overlap: bool = False) -> dict[str, list[float | None]]:
    """`precision`, `recall` and `f1` of each class from what `confusion` counted; None where there is nothing to count.

    Precision is the share of the images called so that are, recall that of its images that are called so, F1 their
    harmonic mean. `support` is the number of its images. With `overlap` also `iou`, intersection over union.
    """
    found, support, called = counts.diagonal(), counts.sum(1), counts.sum(0)
    shares = {"precision": (found, called), "recall": (found, support), "f1": (2 * found, support + called)}
    shares |= {"iou": (found, support + called - found)} if overlap else {}
    divided = {
        name: [a / b if b else None for a, b in zip(part.tolist(), whole.tolist(), strict=True)]
        for name, (part, whole) in shares.items()
    }
    return divided | {"support": [round(images) for images in support.tolist()]}
