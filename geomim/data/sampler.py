"""Which tile stands at which place of the endless training stream.

A position is a place in that stream. The tile at a position is a function of (seed, position) and of how the corpora
are mixed: no state to save, none to lose. Ranks, workers and micro-batches only share out positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np

from geomim.errors import ConfigError

_ROUNDS = 6
_PERIOD = 4096  # blocks after which the mixture of corpora repeats; a share is exact to 1 / 4096


def _mix(x: np.ndarray) -> np.ndarray:
    """Scramble uint64 (the `splitmix64` finaliser of S. Vigna, public domain)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(indices: np.ndarray, epochs: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Where each index goes in its epoch's shuffle, without storing the shuffle.

    A Feistel network over the next power of four, walked until it lands below `count`: a bijection at any size, so
    thirteen million tiles need no array in any worker.

    Args:
        indices: `(B,)` int64 in `[0, count)`.
        epochs: `(B,)` int64; every epoch is another permutation.
        count: Number of things shuffled, at least 1.
        seed: Seed of the run.

    Returns:
        `(B,)` int64 in `[0, count)`.
    """
    half = np.uint64(max(1, ((count - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    with np.errstate(over="ignore"):  # integers wrap round on purpose
        key = _mix(_mix(np.uint64(seed & (2**64 - 1)) + np.uint64(0x9E3779B97F4A7C15)) ^ epochs.astype(np.uint64))
        x = indices.astype(np.uint64)
        outside = np.ones(len(x), bool)
        while outside.any():
            left, right = x[outside] >> half, x[outside] & mask
            for turn in range(_ROUNDS):
                left, right = right, left ^ (_mix(right ^ _mix(key[outside] + np.uint64(turn))) & mask)
            x[outside] = (left << half) | right
            outside[outside] = x[outside] >= count
    return x.astype(np.int64)


class Stream:
    """The endless stream of tiles over one or several corpora.

    Positions come in blocks, and a block is of one corpus, so that a batch is of one sensor. With the block as large
    as the batch of an optimiser step, the stream is the same however that batch is split over ranks and
    accumulation. Within its corpus a sample goes through whole epochs, each shuffled anew.

    Args:
        counts: Number of tiles of each corpus.
        weights: Share of each corpus in the stream; in proportion to `counts` where None.
        block: Positions a block: the batch of an optimiser step.
        seed: Seed of the run.

    Raises:
        ConfigError: A corpus is empty, or a weight is missing or too small to ever be drawn.
    """

    def __init__(
        self, counts: Sequence[int], weights: Sequence[float] | None = None, block: int = 1, seed: int = 0
    ) -> None:
        weights = list(counts if weights is None else weights)
        if len(weights) != len(counts) or min(counts, default=0) < 1 or min(weights) <= 0:
            raise ConfigError(
                f"expected at least one tile and one positive weight a corpus; given {list(counts)} tiles and "
                f"weights {weights}"
            )
        self.counts, self.block, self.seed = list(counts), block, seed
        self._corpus = _mixture(np.array(weights, float), seed)  # (period,) corpus of each block
        chosen = self._corpus[:, None] == np.arange(len(counts))
        self._before = np.concatenate([np.zeros((1, len(counts)), np.int64), chosen.cumsum(0)])  # blocks before

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find the tiles at some positions.

        Args:
            positions: `(B,)` int64.

        Returns:
            Corpus and row in it, `(B,)` int64 each.
        """
        blocks, inside = np.divmod(positions, self.block)
        periods, phases = np.divmod(blocks, len(self._corpus))
        corpora = self._corpus[phases]
        earlier = periods * self._before[-1, corpora] + self._before[phases, corpora]
        rows = np.empty(len(positions), np.int64)
        for corpus in np.unique(corpora):
            mine = corpora == corpus
            epochs, indices = np.divmod(earlier[mine] * self.block + inside[mine], self.counts[corpus])
            rows[mine] = permute(indices, epochs, self.counts[corpus], self.seed + int(corpus))
        return corpora, rows


def _mixture(weights: np.ndarray, seed: int) -> np.ndarray:
    """The corpus of each block of a period: shares rounded by largest remainder, in shuffled order."""
    if len(weights) == 1:
        return np.zeros(1, np.int64)
    exact = weights / weights.sum() * _PERIOD
    shares = np.floor(exact).astype(np.int64)
    shares[np.argsort(shares - exact)[: _PERIOD - shares.sum()]] += 1
    if not shares.all():
        raise ConfigError(f"a weight is below 1/{_PERIOD} of the whole; given weights {weights.tolist()}")
    order = permute(np.arange(_PERIOD), np.zeros(_PERIOD, np.int64), _PERIOD, seed)
    return np.repeat(np.arange(len(weights)), shares)[order]


class PositionBatches:
    """Batch sampler: micro-batch `m` of a rank holds the positions `(m * world + rank) * size` and on.

    It has no length. Training that goes on after s optimiser steps starts at `s * accumulate`.

    Args:
        size: Samples a micro-batch on one rank.
        rank: This process, in `[0, world)`.
        world: Number of processes.
        start: First micro-batch.
        stop: The one behind the last; endless where None.
    """

    def __init__(self, size: int, rank: int = 0, world: int = 1, start: int = 0, stop: int | None = None) -> None:
        self.size, self.rank, self.world, self.start, self.stop = size, rank, world, start, stop

    def __iter__(self) -> Iterator[range]:
        for batch in count(self.start) if self.stop is None else range(self.start, self.stop):
            first = (batch * self.world + self.rank) * self.size
            yield range(first, first + self.size)
