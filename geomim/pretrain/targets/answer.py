"""What a target gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from geomim.pretrain.context import View


class Answer(NamedTuple):
    """The right answers at some positions.

    Attributes:
        values: `(B, P, T)` float32.
        element: `(B, P, T)` float, 0 for values that were not measured; None where all were.
        key: `(B,)` int64, equal where answers about whole images are one and the same, -1 where there is none; None
            where nobody asks.
        prototype: Gives `(B, 1, T)`, what stands for values about whole images where other terms compare with them,
            computed only where they do; the values themselves where None.
    """

    values: Tensor
    element: Tensor | None = None
    key: Tensor | None = None
    prototype: Callable[[], Tensor] | None = None


class Target(Protocol):
    """Anything that knows the answers; one that has weights is an `nn.Module`, and trains none of them.

    One that does not know all images says so: `knows(view)` gives `(B,)` float, 0 where it has no answer.
    """

    @property
    def dim(self) -> int | None:
        """Values a patch; None for the pixels of whatever sensor was seen."""
        ...

    def __call__(self, view: View, positions: Tensor) -> Answer:
        """Answers at `positions (B, P)`."""
        ...
