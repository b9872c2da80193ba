"""A tuned segmentation as a graph: probabilities of its classes by pixel, for torch.export and QGIS."""

import json
from pathlib import Path

import lightning.pytorch as pl
import pytest
import tiny_encoder
import torch

from geomim.cli import main
from geomim.finetune.backbones import Encoder
from geomim.finetune.segmentation import Segmentation
from geomim.finetune.training import Training
from geomim.sensors import BandContract

CLASSES = ["water", "wood", "town"]


def keep(task, folder: Path, name: str = "segmentation") -> None:
    """What `geomim finetune` leaves of a task."""
    folder.mkdir()
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.strategy.connect(task)
    trainer.save_checkpoint(folder / "task.ckpt")
    state = torch.load(folder / "task.ckpt", weights_only=True)
    torch.save(state | {"geomim_task": name}, folder / "task.ckpt")


@pytest.mark.parametrize(("lora", "head"), [(0, "unet"), (2, "linear")])
@torch.no_grad()
def test_a_tuned_segmentation_leaves_with_its_classes_and_the_encoders_origin(tmp_path: Path, lora: int, head) -> None:
    tiny_encoder.checkpoint(tmp_path / "a.ckpt", depth=2)
    options = {"head": head, "channels": 16, "training": Training(lora=lora)}
    task = Segmentation(Encoder(str(tmp_path / "a.ckpt"), image_size=32), CLASSES, **options).eval()
    for name, value in task.named_parameters():
        if "lora_B" in name:
            value.normal_()
    keep(task, tmp_path / "tuned")
    said, out = ["export", str(tmp_path / "tuned"), "--out", str(tmp_path / "out")], tmp_path / "out"
    assert main([*said, "--format", "torch-export"]) == 0
    images, extra = torch.randn(2, 4, 32, 32), {"geomim.json": ""}
    program = torch.export.load(out / "model.pt2", extra_files=extra).module()
    torch.testing.assert_close(program(images), task(images).softmax(1), rtol=1e-4, atol=1e-4)
    told = json.loads(extra["geomim.json"])
    assert told["model_type"] == "Segmentor" and told["tiles_overlap"] == 25
    assert BandContract.from_dict(told["geomim"]["contract"]) == tiny_encoder.NAIP and told["geomim"]["recipe"] == "mae"
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "item.json", "model.pt2"]
    card = (out / "README.md").read_text()
    assert "probabilities (batch, 3, 32, 32); classes water, wood, town" in card and "public domain" in card
    assert "tuned on a.ckpt" in card and str(tmp_path) not in card


def test_other_tasks_and_flags_are_refused(tmp_path: Path, capsys) -> None:
    tiny_encoder.checkpoint(tmp_path / "a.ckpt", depth=2)
    keep(Segmentation(str(tmp_path / "a.ckpt"), CLASSES, head="linear"), tmp_path / "tuned", "detection")
    for flags, said in (
        ([], "is a tuned task: give --format onnx or torch-export"),
        (["--format", "onnx", "--gsd", "1"], "is a tuned task"),
        (["--format", "onnx"], "is a task of detection: of tuned tasks segmentation alone"),
    ):
        assert main(["export", str(tmp_path / "tuned"), "--out", str(tmp_path / "out"), *flags]) == 2
        assert said in capsys.readouterr().err and not (tmp_path / "out").exists()
