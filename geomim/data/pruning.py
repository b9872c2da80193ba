"""Tiles that are learned well are shown less often, and weigh more where they are shown."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from geomim.data.sampler import permute
from geomim.randomness import Draws

END = 0.875
"""Share of training after which nothing is left out."""


class Kept:
    """The stream of tiles of one epoch, called like `geomim.data.sampler.Stream`: each kept tile once.

    Where the last step of the epoch is not full, some come a second time.

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
    """Sample pruning in the manner of InfoBatch (Qin et al., ICLR 2024, section 3).

    Training goes through epochs. As one begins, each tile whose last loss lies below the mean of all is left out of it
    with probability `share`, drawn anew, and weighs 1 / (1 - share) where it stays: in expectation nothing changes for
    the sums over an epoch. Nothing is left out of the first epoch, nor in the last eighth of training.

    What a position holds is a function of the seed and of a table, which is in the checkpoint. An epoch begins once
    the losses of the one before are all known, on all ranks, and its tiles are read from then on.

    Deviations from the paper: a step divides by what its images weigh, so that its size stays; training has as many
    steps as without, so there are more epochs; an epoch that reaches into the last eighth is cut short.

    Args:
        tiles: Number of tiles of the corpus, N.
        share: Probability of being left out, in [0, 1).
        seed: Seed of the run.

    Attributes:
        losses: `(N,)` float32, the last loss of each tile; NaN where there is none, and it stays in.
        below: `(N,)` bool, whether it was below the mean as the epoch began.
        first: First step of the epoch.
        stream: The tiles of the epoch, once there is one.
    """

    def __init__(self, tiles: int, share: float, seed: int) -> None:
        self.share, self.seed, self.first = share, seed, 0
        self.losses, self.below = torch.full((tiles,), torch.nan), torch.zeros(tiles, dtype=torch.bool)
        self.stream: Kept
        self._images, self._before = 1, 0.0  # images a step; images left out of earlier epochs
        self._noted: list[tuple[Tensor, Tensor]] = []

    def begin(self, step: int, steps: int, images: int) -> tuple[Kept, int]:
        """Go on with the epoch, or with the next one where it is over.

        Args:
            step: The step to come, from 0.
            steps: Steps in all.
            images: Images a step.

        Returns:
            Its stream, and the step with which the next one begins.
        """
        self._images, self.stream = images, self._epoch(images)
        if step >= self._end(steps):
            self._before, self.first = self.skipped(step), step
            mean = self.losses.double().nanmean()
            self.below = self.losses < mean if step < int(END * steps) else torch.zeros_like(self.below)
            self.stream = self._epoch(images)
        return self.stream, self._end(steps)

    def weights(self) -> Tensor:
        """What each tile weighs in this epoch, `(N,)` float32; 0 where it is left out."""
        drawn = Draws(self.seed, torch.arange(len(self.below)))(f"prune {self.first}")
        return torch.where(self.below, (drawn >= self.share).float() / (1 - self.share), 1.0)

    def _epoch(self, images: int) -> Kept:
        return Kept(self.weights(), self.first * images, self.seed)

    def _end(self, steps: int) -> int:
        end = self.first - (-len(self.stream.rows) // self._images)
        return min(end, int(END * steps)) if self.below.any() else end

    def note(self, position: Tensor, losses: Tensor) -> None:
        """Keep the losses of a micro-batch `(B,)`, where they are, with their positions on the CPU."""
        self._noted.append((position, losses))

    def read(self, world: int) -> None:
        """Enter in the table what all of `world` ranks noted; this waits for the device."""
        if not self._noted:
            return
        noted: list[Any] = [[torch.cat(one).cpu() for one in zip(*self._noted, strict=True)]]
        if world > 1:
            mine, noted = noted[0], [None] * world
            dist.all_gather_object(noted, mine)
        positions, losses = (torch.cat(one).numpy() for one in zip(*noted, strict=True))
        order = positions.argsort()  # of a tile that came twice the later loss stays
        self.losses.numpy()[self.stream(positions[order])[1]] = losses[order]
        self._noted = []

    def skipped(self, step: int) -> float:
        """Images left out before a step: of this epoch as large a part as is over."""
        kept = len(self.stream.rows)
        over = min(1.0, (step - self.first) * self._images / kept)
        return self._before + over * (len(self.below) - kept)

    def figures(self, step: int) -> dict[str, float]:
        """What to log after a step."""
        return {"pruned": 1 - len(self.stream.rows) / len(self.below), "images_skipped": float(round(self.skipped(step)))}

    def state_dict(self) -> dict[str, Any]:
        """The table, and where the epoch is, once all losses are read."""
        return {"losses": self.losses, "below": self.below, "first": self.first, "skipped": self._before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.losses, self.below = state["losses"], state["below"]
        self.first, self._before = state["first"], state["skipped"]
