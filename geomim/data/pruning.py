"""Tiles that are learned well are shown less often, and weigh more where they are shown."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from geomim.data.sampler import permute
from geomim.randomness import Draws

END = 0.875  # share of training after which nothing is left out


class Kept:
    """The stream of tiles of an epoch, called like `Stream`: each kept tile once, some again to fill the last step.

    Args:
        weights: `(N,)` what each tile of the corpus weighs; 0 for those that are left out.
        start: First position of the epoch.
        seed: Seed of the run.
    """

    def __init__(self, weights: Tensor, start: int, seed: int) -> None:
        self.weights, self.start, self.seed = weights, start, seed
        self.rows = np.flatnonzero(weights.numpy())

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Corpus, which is the only one, and row in it of each position, `(B,)` int64 each."""
        turns, indices = np.divmod(positions - self.start, len(self.rows))
        rows = self.rows[permute(indices, turns + self.start, len(self.rows), self.seed)]
        return np.zeros_like(rows), rows


class Pruning:
    """Sample pruning in the manner of InfoBatch (Qin et al., ICLR 2024).

    Training goes through epochs. As one begins, each tile whose last loss lies below the mean of all is left out of it
    with probability `share`, drawn anew, and weighs 1 / (1 - share) where it stays: weighted sums over an epoch are, in
    expectation, those over all tiles. Nothing is left out of the first epoch, nor in the last eighth of training.

    What a position holds is a function of the seed and of a table, which is in the checkpoint. Deviations from the
    paper: a step divides by what its images weigh, so that its size stays; training has as many steps as without, so
    there are more epochs; an epoch that reaches into the last eighth is cut short; where a term of the loss begins late
    in training, all losses are forgotten, since those with it and those without are not to be compared.

    Args:
        tiles: Number of tiles of the corpus, N.
        share: Probability of being left out, in [0, 1).
        seed: Seed of the run.

    Attributes:
        losses: `(N,)` float32, the last loss of each tile; NaN where there is none, and it stays in.
        below: `(N,)` bool, whether it was below the mean as the epoch began.
        first: First step of the epoch.
        stream: The tiles of the epoch, once there is one.
        noted: Positions of a micro-batch on the CPU and its losses, `(B,)` each, until they are read.
    """

    def __init__(self, tiles: int, share: float, seed: int) -> None:
        self.share, self.seed, self.first = share, seed, 0
        self.losses, self.below = torch.full((tiles,), torch.nan), torch.zeros(tiles, dtype=torch.bool)
        self.stream: Kept
        self._images, self._before = 1, 0.0  # images a step; images left out of earlier epochs
        self.noted: list[tuple[Tensor, Tensor]] = []

    def begin(self, step: int, steps: int, images: int) -> tuple[Kept, int]:
        """Go on with the epoch, or with the next one where it is over.

        Args:
            step: The step to come, from 0.
            steps: Steps in all.
            images: Images a step.

        Returns:
            Its stream, and the step with which the next one begins.
        """
        self._images = images
        self.stream = self._epoch()
        if step >= self._end(steps):
            self._before, self.first = self.skipped(step), step
            mean = self.losses.double().nanmean()
            self.below = self.losses < mean if step < int(END * steps) else torch.zeros_like(self.below)
            self.stream = self._epoch()
        return self.stream, self._end(steps)

    def _epoch(self) -> Kept:
        drawn = Draws(self.seed, torch.arange(len(self.below)))(f"prune {self.first}")
        weights = torch.where(self.below, (drawn >= self.share).float() / (1 - self.share), 1.0)
        return Kept(weights, self.first * self._images, self.seed)

    def _end(self, steps: int) -> int:
        end = self.first - (-len(self.stream.rows) // self._images)
        return min(end, int(END * steps)) if self.below.any() else end

    def read(self, world: int) -> None:
        """Enter in the table what all of `world` ranks noted; this waits for the device."""
        if not self.noted:
            return
        mine = [torch.cat(one).cpu() for one in zip(*self.noted, strict=True)]
        every = [mine] * world
        if world > 1:
            dist.all_gather_object(every, mine)
        positions, losses = (torch.cat(one).numpy() for one in zip(*every, strict=True))
        order = positions.argsort()  # of a tile that came twice the later loss stays
        self.losses.numpy()[self.stream(positions[order])[1]] = losses[order]
        self.noted = []

    def forget(self) -> None:
        """Know no loss any more, so that no tile is left out before it has one again."""
        self.losses.fill_(torch.nan)
        self.noted = []

    def skipped(self, step: int) -> float:
        """Images left out before a step: of this epoch as large a part as is over."""
        kept, every = len(self.stream.rows), len(self.below)
        return self._before + min(1.0, (step - self.first) * self._images / kept) * (every - kept)

    def figures(self, step: int) -> dict[str, float]:
        """What to log after a step: the share left out of this epoch, and images left out so far."""
        skipped = float(round(self.skipped(step)))
        return {"pruned": 1 - len(self.stream.rows) / len(self.below), "images_skipped": skipped}

    def state_dict(self) -> dict[str, Any]:
        """The table, and where the epoch is, once all losses are read."""
        return {"losses": self.losses, "below": self.below, "first": self.first, "skipped": self._before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.losses, self.below = state["losses"], state["below"]
        self.first, self._before = state["first"], state["skipped"]
