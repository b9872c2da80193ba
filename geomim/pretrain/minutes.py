"""How many steps fill some minutes: timed before training, with the machine, the data and the model of the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, islice, repeat
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_only

from geomim.errors import ConfigError
from geomim.pretrain.module import PretrainModule
from geomim.pretrain.objective import Term
from geomim.pretrain.scaling import local

SHARE, LONGEST = 0.02, 30.0
"""What is timed lasts about this share of the minutes, and about as many seconds at most."""


class Minutes(pl.Callback):
    """Fixes the steps of a run by the time that they may take.

    Its first steps are rehearsed, with their reading, and all that they changed is put back: the run is the one of so
    many steps, to the bit. Were they kept, their schedule would be that of a length which nobody knew yet. A term that
    starts late in training makes steps slower from there on: they are timed with and without it, and count by the share
    of training that they are.

    The minutes count the rehearsal and the steps with their reading. They do not count start-up, what `Watch` looks at,
    and checkpoints. A machine that becomes busier or slower later changes when the run ends, not its steps. Where steps
    differ, as those of several sensors may, each counts as the mean of those that were timed; where they are compiled,
    a graph that none of these needed comes on top.

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
            rehearsal = _Rehearsal(trainer, pl_module)
            for done, share in shares.items():
                pl_module.rehearsed = done
                some = min(60 * self.minutes * SHARE, LONGEST) / len(shares)
                seconds += share * rehearsal(some, until=start + 60 * self.minutes)
        spent = time.perf_counter() - start
        count = trainer.strategy.broadcast(max(0, int((60 * self.minutes - spent) / seconds)))
        if not count:
            raise ConfigError(
                f"training.minutes {self.minutes:g}: a step takes {seconds:.3g} s here, and finding that out took "
                f"{spent:.3g} s of them: give more minutes, or training.max_steps"
            )
        trainer.fit_loop.epoch_loop.max_steps = count
        self.fixed(count)
        several = ", on average over the sensors that came up" * (len(pl_module.origin.contracts) > 1)
        rank_zero_only(print)(
            f"{self.minutes:g} minutes of training: {count} steps of {pl_module.images_per_step} images, "
            f"{seconds:.3g} s each{several}, after {spent:.3g} s of timing"
        )


class _Rehearsal:
    """Steps that will be forgotten, called for the seconds that one of them takes."""

    def __init__(self, trainer: pl.Trainer, module: PretrainModule) -> None:
        loader: Any = trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
        self.steps: Iterator[Any] = iter(chain.from_iterable(repeat(loader)))
        self.strategy, self.clock = trainer.strategy, module.pace.clock
        self.round = max(1, -(-loader.num_workers // module.accumulate))  # what readers bring at a time
        self.ahead = -(-loader.num_workers * (loader.prefetch_factor or 0) // module.accumulate)

    def __call__(self, seconds: float, until: float) -> float:
        """Seconds a step, over as many as fill some seconds, none of which needed a new graph unless time was up.

        Where reading processes work ahead, steps are whole rounds of them, however long those take.
        """
        while True:
            graphs = _graphs()
            self._run(1)  # memory, kernels and graphs are made
            for _ in islice(self.steps, self.ahead):
                pass  # what was read meanwhile would hide how long reading takes
            took = self._run(1)
            count = self.strategy.broadcast(min(max(round(seconds / took), 1), 1000))
            if self.ahead or count > 1:
                took = self._run(-(-count // self.round) * self.round)
            if self.strategy.reduce_boolean_decision(graphs == _graphs() or time.perf_counter() > until):
                return took

    def _run(self, count: int) -> float:
        """Seconds a step."""
        device = self.strategy.root_device
        wait = torch.cuda.synchronize if device.type == "cuda" else lambda _: None
        wait(device)
        start = self.clock()
        for _ in range(count):
            self.strategy.training_step(next(self.steps), 0)
        wait(device)
        return (self.clock() - start) / count


def _graphs() -> int:
    """How many were compiled so far."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


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
