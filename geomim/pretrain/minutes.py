"""How many steps fill some minutes: timed before training, with the machine, the data and the model of the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, repeat
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_only

from geomim.errors import ConfigError
from geomim.pretrain.module import PretrainModule
from geomim.pretrain.objective import Term
from geomim.pretrain.scaling import local

SHARE, LONGEST = 0.02, 30.0
"""What is timed lasts this share of the minutes, and at most as many seconds."""


class Minutes(pl.Callback):
    """Fixes the steps of a run by the time that they may take.

    Its first steps are rehearsed, with their reading, and all that they changed is put back: the run is the one of so
    many steps, to the bit. Were they kept, their schedule would be that of a length which nobody knew yet. A term that
    starts late in training makes steps slower from there on: they are timed with and without it, and count by the share
    of training that they are.

    The minutes count the rehearsal and the steps with their reading. They do not count start-up, what `Watch` looks at,
    and checkpoints. A machine that becomes busier or slower later changes when the run ends, not its steps.

    Args:
        minutes: How long to train.
        fixed: Told the steps once they are known, on all ranks, which have those of the first.
    """

    def __init__(self, minutes: float, fixed: Callable[[int], None]) -> None:
        self.minutes, self.fixed = minutes, fixed

    def on_fit_start(self, trainer: pl.Trainer, pl_module: PretrainModule) -> None:  # type: ignore[override]
        """Time some steps, and fix how many there are before anything is made for so many.

        Raises:
            ConfigError: The time is over before a step is trained.
        """
        start, shares = time.perf_counter(), _shares(pl_module)
        seconds = 0.0
        with _put_back(pl_module):
            steps = iter(chain.from_iterable(repeat(trainer.datamodule.train_dataloader())))  # type: ignore[attr-defined]
            for done, share in shares.items():
                pl_module.rehearsed = done
                seconds += share * self._time(trainer, steps, min(60 * self.minutes * SHARE, LONGEST) / len(shares))
        spent = time.perf_counter() - start
        count = trainer.strategy.broadcast(max(0, int((60 * self.minutes - spent) / seconds)))
        if not count:
            raise ConfigError(
                f"training.minutes {self.minutes:g}: a step takes {seconds:.3g} s here, and finding that out took "
                f"{spent:.3g} s of them: give more minutes, or training.max_steps"
            )
        trainer.fit_loop.epoch_loop.max_steps = count
        self.fixed(count)
        rank_zero_only(print)(
            f"{self.minutes:g} minutes of training: {count} steps of {pl_module.images_per_step} images, "
            f"{seconds:.3g} s each, after {spent:.3g} s of timing"
        )

    def _time(self, trainer: pl.Trainer, steps: Iterator[Any], seconds: float) -> float:
        """Seconds a step, over as many as fill some seconds."""
        self._run(trainer, steps, 2)  # memory, kernels and graphs are made
        count = round(seconds / self._run(trainer, steps, 1))
        return self._run(trainer, steps, trainer.strategy.broadcast(min(max(count, 3), 1000)))

    def _run(self, trainer: pl.Trainer, steps: Iterator[Any], count: int) -> float:
        device = trainer.strategy.root_device
        wait = torch.cuda.synchronize if device.type == "cuda" else lambda _: None
        wait(device)
        start = time.perf_counter()
        for _ in range(count):
            trainer.strategy.training_step(next(steps), 0)
        wait(device)
        return (time.perf_counter() - start) / count


def _shares(module: PretrainModule) -> dict[float, float]:
    """By where each begins, the shares of training in which the same terms are asked."""
    starts = sorted({0.0, *(term.starts for term in cast(list[Term], module.model.terms))})
    return {start: end - start for start, end in zip(starts, [*starts[1:], 1.0], strict=True)}


@contextmanager
def _put_back(module: PretrainModule) -> Iterator[None]:
    """Train for a while as if it had not been."""
    optimizer: Any = module.trainer.optimizers[0]
    state = [local(one.detach()) for one in (*module.parameters(), *module.buffers())]
    before = [one.to("cpu", copy=True) for one in state]
    devices = [module.device] if module.device.type == "cuda" else []
    module.on_train_start()
    with torch.random.fork_rng(devices):
        yield
    for one, old in zip(state, before, strict=True):
        one.copy_(old)
    optimizer.zero_grad()
    optimizer.state.clear()
    module.forget()
