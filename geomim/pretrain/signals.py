"""SIGTERM and Ctrl-C while an encoder trains: the step is finished, and every rank stops after the same one."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from torch import distributed as dist

from geomim.errors import Interrupted


class Signals(pl.Callback):
    """Keeps a signal until a step is done; a second Ctrl-C ends the run at once, and so does any before the first step.

    Use as a context around the training. Cluster schedulers and launchers signal some ranks and not others, so ranks
    tell each other after every step, and act on what was told a step ago: no rank waits for another, and none for its
    device.

    Attributes:
        received: The signal that asks to stop; 0 where none came.
    """

    def __init__(self) -> None:
        self.received = 0
        self._training = False
        self._before: dict[signal.Signals, Any] = {}
        self._group: dist.ProcessGroup | None = None
        self._told: tuple[torch.Tensor, Any] | None = None

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread
            self._before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
            self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)

    def _listen(self) -> None:
        for one in self._before:
            signal.signal(one, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        again = self.received and number == signal.SIGINT
        if again or not self._training:
            raise Interrupted(number, f"stopped by {signal.Signals(number).name}; the last checkpoint is as it was")
        self.received = self.received or number

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen alone: Lightning has put a handler of its own in front, which stops single ranks."""
        self._listen()
        self._training = True
        if trainer.world_size > 1:
            self._group = dist.new_group(backend="gloo")  # signals are told from host to host

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hear what was told last: no rank leaves another waiting."""
        if self._told is not None:
            self._told[1].wait()

    def agreed(self, world: int) -> bool:
        """Whether to stop after this step; every rank asks once a step.

        Args:
            world: Number of ranks.
        """
        if world == 1:
            return bool(self.received)
        before = self._told
        told = torch.tensor(self.received)
        self._told = told, dist.all_reduce(told, dist.ReduceOp.MAX, self._group, async_op=True)
        if before is None:
            return False
        value, work = before
        work.wait()
        self.received = self.received or int(value)
        return bool(value)
