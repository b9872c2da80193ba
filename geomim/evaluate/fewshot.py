"""Linear probes on a few images a class, their strength chosen on others of the train split."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from geomim.errors import InputError
from geomim.evaluate.probes import fit_linear
from geomim.evaluate.scores import Row, row

VALIDATION = 4
"""Images a class that a probe's strength is chosen on, in every draw; the most that CoOp takes."""


def possible(labels: Tensor, classes: Sequence[str], shots: Sequence[int]) -> tuple[list[int], tuple[str, ...]]:
    """Those numbers of images a class that every class has, beside those to choose on; and what a reader should know.

    Args:
        labels: `(N,)` int64 of the train split.
        classes: Class names.
        shots: Numbers asked for.

    Raises:
        InputError: There is none.
    """
    counts = labels.bincount(minlength=len(classes))
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
    name: str, train: Tensor, draws: Tensor, test: Tensor, labels: Tensor, shots: Sequence[int], seeds: Sequence[int]
) -> list[Row]:
    """Score probes on few images; the test split has no say in them.

    Args:
        name: Of the encoder, for the rows.
        train: `(M, D)` features.
        draws: `(S, C, V+n)` rows of it, as `draw` gives them.
        test: `(N, D)` features.
        labels: `(N,)` int64.
        shots: Images a class to fit on.
        seeds: One a draw.
    """

    def part(rows: Tensor) -> tuple[Tensor, Tensor]:
        return train[rows.flatten()], torch.arange(len(rows)).repeat_interleave(rows.shape[1])

    rows = []
    for number in shots:
        answers = []
        for drawn, seed in zip(draws, seeds, strict=True):
            held, fit = part(drawn[:, :VALIDATION]), part(drawn[:, VALIDATION : VALIDATION + number])
            answers.append(fit_linear(*fit, drawn.shape[0], seed, held_out=held).probe(test).argmax(1))
        rows.append(row(name, f"{number}-shot", answers, labels))
    return rows
