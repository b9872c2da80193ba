"""What tests of tasks share: a tiny backbone, a trainer that says nothing, and batches from a list."""

from collections.abc import Sequence
from typing import Any

import lightning
from torch.utils.data import DataLoader

from geomim.finetune.backbones import Encoder

TINY: dict[str, Any] = {"encoder": Encoder("timm:test_vit", image_size=32, seed=0)}


def trainer(steps: int = 1) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu",
        max_epochs=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def loader(*batches: Any) -> DataLoader:
    return DataLoader(batches, batch_size=None)


def fitted(task: Any, batches: Sequence[Any], epochs: int) -> Any:
    trainer(epochs).fit(task, loader(*batches))
    return task


def tested(task: Any, *batches: Any) -> dict[tuple[str, str], dict[str, Any]]:
    trainer().test(task, loader(*batches), verbose=False)
    return {(row["class"], row["metric"]): row for row in task.figures()}


def reloaded(task: Any, folder: Any) -> Any:
    task.trainer.save_checkpoint(folder / "task.ckpt")
    return type(task).load_from_checkpoint(folder / "task.ckpt", weights_only=True).eval()
