"""Torchgeo's own tasks with an exported encoder: the very lines that docs/toolkits.md shows, trained and tested."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_encoder import exported
from tiny_tasks import loader, trainer

from geomim.finetune import stock
from geomim.finetune.backbones import Encoder
from geomim.finetune.detection import Detection
from geomim.finetune.registry import register

PAGE = Path(__file__, "../../../docs/toolkits.md").resolve().read_text(encoding="utf-8").splitlines()
SHOWN = {line.split("=")[1].split("(")[0].strip(): line for line in PAGE if line.startswith("task = ")}
IMAGES, BOXES = torch.randn(2, 4, 64, 64), [torch.tensor([[4.0, 8, 40, 32]])] * 2
BATCHES: dict[str, dict[str, Any]] = {
    "Classification": {"image": IMAGES, "label": torch.tensor([0, 4])},
    "Regression": {"image": IMAGES, "label": torch.tensor([0.5, 2.0])},
    "Segmentation": {"image": IMAGES, "mask": torch.ones(2, 64, 64, dtype=torch.long)},
    "Change": {"image": torch.stack([IMAGES, IMAGES], 1), "mask": torch.ones(2, 1, 64, 64, dtype=torch.long)},
    "Detection": {"image": IMAGES, "bbox_xyxy": BOXES, "label": [torch.tensor([1])] * 2, "id": ["a", "b"]},
}


@pytest.mark.parametrize("name", BATCHES)
def test_a_line_of_the_page_is_a_task_that_trains(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kernel = exported(tmp_path / "encoder").patch_embed.proj.weight.detach()
    names = {"one": register("encoder", f"shown {name}"), "Encoder": Encoder, **vars(stock), "Detection": Detection}
    exec(SHOWN[name], names)
    task = names["task"]
    assert isinstance(task, getattr(stock, name))
    own = next(one for one in task.parameters() if one.shape == kernel.shape)
    assert torch.equal(own, kernel)
    batches = loader(BATCHES[name])
    trainer().fit(task, batches, batches)
    assert not torch.equal(own, kernel) and own.isfinite().all()
    (figures,) = trainer().test(task, batches, verbose=False)
    assert figures and trainer().predict(task, batches)
