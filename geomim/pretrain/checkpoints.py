"""When a run is stored, and under which names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from geomim.errors import GeomimError
from geomim.pretrain.module import PretrainModule
from geomim.pretrain.signals import Signals


class Checkpoints(pl.Callback):
    """Keeps `last.ckpt` fresh, and milestones `step-0001000.ckpt` that stay.

    A file is written whole and then renamed, so a run killed while saving resumes from the one before.

    Args:
        folder: Where they go.
        every: Steps between two `last.ckpt`.
        milestones: Number of checkpoints to keep, evenly over the run; the last step is one of them.
        signals: Where they ask to stop, `last.ckpt` is written and the run ends.
    """

    def __init__(self, folder: Path, every: int, milestones: int, signals: Signals) -> None:
        self.folder, self.every, self.milestones, self.signals = folder, every, milestones, signals

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: PretrainModule, *_: Any) -> None:  # type: ignore[override]
        """Save when it is time; the clock of images/s stands still meanwhile."""
        step, steps = trainer.global_step, trainer.max_steps
        kept = {round(steps * part / self.milestones) for part in range(1, self.milestones + 1)}
        stop = self.signals.agreed(trainer.world_size) and step < steps
        names = [f"step-{step:07d}.ckpt"] if step in kept else []
        names += ["last.ckpt"] if step % self.every == 0 or step == steps or stop else []
        for name in names:
            with pl_module.aside():
                self._save(trainer, name)
        trainer.should_stop = trainer.should_stop or stop

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        part = self.folder / f"{name}.part"
        try:
            trainer.save_checkpoint(part)
            if trainer.is_global_zero:
                part.replace(self.folder / name)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise GeomimError(
                f"cannot save '{self.folder / name}' at step {trainer.global_step}: {error.strerror or error}. Earlier "
                "checkpoints are as they were: make room and go on with --resume last"
            ) from error
