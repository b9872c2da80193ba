"""When a run is stored, and under which names."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.plugins.io import TorchCheckpointIO

from geomim.errors import GeomimError
from geomim.pretrain.module import PretrainModule
from geomim.pretrain.signals import Signals


class _Writer(TorchCheckpointIO):
    """Keeps what went wrong instead of raising it: the one rank that writes must not leave the others waiting."""

    error: OSError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a file ending in `.part`, and rename it once it is whole."""
        self.error, path = None, Path(path)
        try:
            super().save_checkpoint(checkpoint, path, storage_options)
            path.replace(path.with_suffix(""))
        except OSError as error:
            self.error = error
            with suppress(OSError):
                path.unlink()


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
        self._writer = _Writer()

    def setup(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """Write files here."""
        trainer.strategy.checkpoint_io = self._writer

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
        trainer.save_checkpoint(self.folder / f"{name}.part")
        error = self._writer.error
        said = trainer.strategy.broadcast(error and (error.strerror or str(error)))  # all ranks end, or none
        if said:
            raise GeomimError(
                f"cannot save '{self.folder / name}' at step {trainer.global_step}: {said}. Earlier checkpoints are as "
                "they were: make room and go on with --resume last"
            ) from error
