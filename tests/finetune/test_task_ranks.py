"""However a step is divided over processes and micro-batches, a task has the same gradient; ranks are tested as one."""

import math
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from tiny_tasks import TINY
from torch.utils.data import DataLoader

from geomim.finetune.classification import Classification
from geomim.finetune.segmentation import Segmentation
from geomim.finetune.training import Training

CLASSES = ["field", "road"]


def images(target: str) -> list[dict[str, Any]]:
    """Two classes of unequal weight; of pixels all, none, one and a row have a label."""
    torch.manual_seed(0)
    labels: Any = [0, 0, 1, 0]
    if target == "mask":
        labels = torch.randint(2, (4, 32, 32))
        labels[1], labels[2].view(-1)[1:], labels[3, 1:] = -1, -1, -1
    return [{"image": torch.randn(3, 32, 32), target: torch.as_tensor(one)} for one in labels]


def spied(kind: Any, folder: Path, **options: Any) -> Any:
    """A task that leaves its gradient and its figures."""

    class Spied(kind):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            if self.global_rank == 0:
                torch.save([one.grad for one in self.parameters() if one.requires_grad], folder / "gradient")

        def on_test_epoch_end(self) -> None:
            super().on_test_epoch_end()
            figures = self.figures()
            if self.global_rank == 0:
                torch.save(figures, folder / "figures")

    torch.manual_seed(0)
    return Spied(**TINY, classes=CLASSES, class_weights=[1.0, 5.0], training=Training(freeze="all"), **options)


def run(kind: Any, folder: Path, devices: int, accumulate: int, **options: Any) -> tuple[Any, Any]:
    folder.mkdir()
    task = spied(kind, folder, **options)
    strategy, batch = "ddp_fork" if devices > 1 else "auto", 4 // devices // accumulate
    trainer = lightning.Trainer(
        accelerator="cpu", devices=devices, strategy=strategy, accumulate_grad_batches=accumulate, max_steps=1,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    loader = DataLoader(images(task.target), batch, shuffle=False)
    trainer.fit(task, loader)
    torch.manual_seed(0)
    trainer.test(spied(kind, folder, **options), loader, verbose=False)
    return torch.load(folder / "gradient"), torch.load(folder / "figures")


@pytest.mark.parametrize(
    ("kind", "options"), [(Segmentation, {"head": "linear"}), (Classification, {})], ids=["pixels", "images"]
)
def test_ranks_and_micro_batches_make_no_difference(kind: Any, options: dict[str, Any], tmp_path: Path):
    whole, figures = run(kind, tmp_path / "1", 1, 1, **options)
    assert any(one.abs().max() > 1e-4 for one in whole)
    for devices, accumulate in ((1, 2), (2, 1)):
        gradient, again = run(kind, tmp_path / f"{devices}{accumulate}", devices, accumulate, **options)
        torch.testing.assert_close(gradient, whole, rtol=1e-4, atol=1e-6)
        assert [row["count"] for row in again] == [row["count"] for row in figures]
        for one, two in zip(again, figures, strict=True):
            assert one["value"] == pytest.approx(two["value"], nan_ok=True) or math.isnan(two["value"])
