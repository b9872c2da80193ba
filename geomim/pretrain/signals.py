"""Signals while an encoder trains: the step is finished, and every rank stops after the same one."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import distributed as dist

from geomim.errors import STOPS, Interrupted


class Signals(pl.Callback):
    """A context that keeps a signal until a step is done; a second Ctrl-C, or one before training, ends it at once.

    Launchers signal some ranks and not others. So ranks tell each other after every step, and act on what was told a
    step ago: none waits for another, or for its device.

    Attributes:
        received: The signal that asks to stop; 0 where none came.
    """

    def __init__(self) -> None:
        self.received = 0
        self._training = False
        self._before: dict[signal.Signals, Any] = {}
        self._group: Any = None
        self._told: tuple[torch.Tensor, Any] | None = None

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # Python lets no other
            self._before = {one: signal.signal(one, self._note) for one in STOPS}
        return self

    def __exit__(self, *_: object) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if not self._training or (self.received and number == signal.SIGINT):
            raise interrupted(number, "; the last checkpoint is as it was")
        self.received = self.received or number

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen alone: Lightning has put a handler of its own in front, which stops single ranks."""
        for one in self._before:
            signal.signal(one, self._note)
        self._training = True
        if trainer.world_size > 1:
            self._group = dist.new_group(backend="gloo")  # from host to host

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hear what was told last, so that no rank leaves another waiting."""
        if self._told is not None:
            self._told[1].wait()

    def agreed(self, world: int) -> bool:
        """Whether to stop after this step; each of the `world` ranks asks once a step."""
        if world == 1:
            return bool(self.received)
        before, told = self._told, torch.tensor(self.received)
        self._told = told, dist.all_reduce(told, dist.ReduceOp.MAX, self._group, async_op=True)
        if before is None:
            return False
        before[1].wait()
        self.received = self.received or int(before[0])
        return bool(before[0])


def interrupted(number: int, said: str) -> Interrupted:
    """What ends a run: the signal's name and what is `said` of it; SIGUSR1 has SLURM queue the job again."""
    name = signal.Signals(number).name
    said = f"stopped by {name}{said}"
    job = os.environ.get("SLURM_JOB_ID")
    if getattr(rank_zero_only, "rank", 0):
        said = ""  # told by the first
    elif name == "SIGUSR1" and job:
        try:
            subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
            said += f"; job {job} is queued again"
        except (OSError, subprocess.CalledProcessError) as error:
            why = (getattr(error, "stderr", "") or str(error)).strip()
            said += f"; job {job} could not be queued again ({why}): start it again"
    return Interrupted(number, said)
