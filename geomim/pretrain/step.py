"""What terms said of all images of an optimiser step, on all ranks and in all micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

T = TypeVar("T")


class Said(NamedTuple):
    """What a term that asks about whole images said, without gradient.

    Attributes:
        prediction: `(N, T)`.
        answer: `(N, T)`.
        key: `(N,)` int64, equal where answers are one and the same; -1 where there is none.
        prototype: `(N, T)`, see `Answer`; None where it is the answer, or nobody asks.
    """

    prediction: Tensor
    answer: Tensor
    key: Tensor
    prototype: Tensor | None = None

    @classmethod
    def of(cls, parts: Sequence[Said], put: Callable[[list[Tensor]], Tensor]) -> Said:
        """Several as one, by what puts the tensors of a field together."""
        fields = (list(one) for one in zip(*parts, strict=True))
        return cls(*(None if one[0] is None else put(one) for one in fields))  # type: ignore[arg-type]


class Step:
    """The images of an optimiser step, in one order on all ranks.

    Args:
        said: What terms said of the N images, by name.
        weights: `(T, N)`, what each image weighs in each term.
        own: `(B,)` int64, where the images of a batch stand among them.
        ranks: Whether other ranks take part in it.
        term: Place of the term that asks.
        known: What was computed of the step already.
    """

    def __init__(
        self,
        said: Mapping[str, Said],
        weights: Tensor,
        own: Tensor,
        ranks: bool = False,
        term: int = 0,
        known: dict[Hashable, Any] | None = None,
    ) -> None:
        self.said, self.weights, self.own, self.ranks, self.term = said, weights, own, ranks, term
        self._known: dict[Hashable, Any] = {} if known is None else known

    @property
    def weight(self) -> Tensor:
        """`(N,)`, what each image weighs in the term that asks."""
        return self.weights[self.term]

    def of(self, term: int) -> Step:
        """The same for another term."""
        return type(self)(self.said, self.weights, self.own, self.ranks, term, self._known)

    def plain(self) -> dict[str, Any]:
        """Plain values and tensors, to be kept in a file."""
        said = {name: one._asdict() for name, one in self.said.items()}
        return {"said": said, "weights": self.weights, "own": self.own}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Step:
        """What `plain` gave, on a process that is alone."""
        said = {name: Said(**one) for name, one in plain["said"].items()}
        return cls(said, plain["weights"], plain["own"])

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """What `compute` gives, computed at the first asking of the whole step; `key` says what it is."""
        if key not in self._known:
            self._known[key] = compute()
        known: T = self._known[key]
        return known

    @property
    def rows(self) -> Tensor:
        """`(n,)`: images of which this rank computes what all ranks read."""
        count = self.weights.shape[1] // (dist.get_world_size() if self.ranks else 1)
        return torch.arange(count, device=self.own.device) + (dist.get_rank() * count if self.ranks else 0)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all ranks `(W*n, ...)`, without gradient."""
        return _gather(rows) if self.ranks else rows.detach()


def join(parts: Sequence[tuple[Mapping[str, Said], Tensor]], ranks: bool = True) -> list[Step]:
    """The step of each of some micro-batches.

    Args:
        parts: What terms said of each, and what its images weigh `(T, B)`.
        ranks: Whether other ranks have micro-batches of the step, as many and as large.
    """
    ranks = ranks and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    join_rows: Callable[[Tensor], Tensor] = _gather if ranks else Tensor.detach
    names = parts[0][0].keys()
    said = {
        name: Said.of([one[name] for one, _ in parts], lambda values: join_rows(torch.cat(values))) for name in names
    }
    weights = join_rows(torch.cat([one for _, one in parts], 1).T).T
    first = dist.get_rank() * (weights.shape[1] // dist.get_world_size()) if ranks else 0
    known: dict[Hashable, Any] = {}
    steps = []
    for _, one in parts:
        own = torch.arange(one.shape[1], device=one.device) + first
        steps.append(Step(said, weights, own, ranks, known=known))
        first += one.shape[1]
    return steps


def _gather(rows: Tensor) -> Tensor:
    """The rows of all ranks `(W*n, ...)`, without gradient."""
    out = rows.new_empty(dist.get_world_size() * len(rows), *rows.shape[1:])
    dist.all_gather_into_tensor(out, rows.detach().contiguous())
    return out
