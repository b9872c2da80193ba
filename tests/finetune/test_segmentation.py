from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning import LightningDataModule
from tiny_tasks import TINY, fitted, loader, reloaded, trainer
from tiny_tasks import tested as rows_of
from torch.nn import functional as F
from torchgeo.datamodules import NonGeoDataModule
from torchgeo.datasets import NonGeoDataset

from geomim.errors import ConfigError, InputError
from geomim.finetune.backbones import Encoder
from geomim.finetune.classification import CrossEntropy
from geomim.finetune.heads import Head
from geomim.finetune.registry import Normalise
from geomim.finetune.segmentation import Segmentation
from geomim.finetune.training import Training

CLASSES = ["field", "road", "roof"]
SMALL: dict[str, Any] = {**TINY, "classes": CLASSES, "channels": 16}
QUICK = Training(learning_rate=5e-3, layer_decay=0.9, epochs=1)


def batch(count: int = 4, side: int = 32) -> dict[str, Any]:
    """Halves of two colours, road on the left or the right; the last row has no label and no roof is anywhere."""
    torch.manual_seed(3)
    mask = torch.zeros(count, side, side, dtype=torch.long)
    for i in range(count):
        mask[i, :, side // 2 * (i % 2) : side // 2 * (i % 2 + 1)] = 1
    images = 0.2 * torch.randn(count, 3, side, side) + 2 * mask[:, None]
    mask[:, -1] = -1
    return {"image": images, "mask": mask, "id": [str(i) for i in range(count)]}


@pytest.fixture(scope="module")
def task() -> Segmentation:
    torch.manual_seed(1)
    return fitted(Segmentation(**SMALL, head="linear", training=QUICK), [batch()], 40)


def test_figures_of_each_class_stand_beside_the_most_frequent_one(task: Segmentation):
    rows = rows_of(task, batch())
    assert rows["all", "accuracy"]["value"] > 0.95 and rows["all", "accuracy"]["floor"] == 0.5
    assert rows["all", "mean IoU"]["floor"] == 0.25 and rows["road", "IoU"]["value"] > 0.9
    labelled = 4 * 31 * 32
    assert [rows[name, "recall"]["count"] for name in (*CLASSES, "all")[:3]] == [labelled // 2, labelled // 2, 0]
    assert rows["all", "accuracy"]["count"] == labelled
    assert torch.isnan(torch.tensor(rows["roof", "F1"]["value"]))


def test_torchgeo_s_own_metrics_are_kept(task: Segmentation):
    (logged,) = trainer().test(task, loader(batch()), verbose=False)
    rows = {(row["class"], row["metric"]): row["value"] for row in task.figures()}
    accuracy = next(value for name, value in logged.items() if "Accuracy" in name)
    assert accuracy == pytest.approx(rows["all", "accuracy"])
    assert any("Jaccard" in name for name in logged) and "test_loss" in logged


def test_checkpoint_reloads_to_the_same_from_plain_values(task: Segmentation, tmp_path: Any):
    again = reloaded(task, tmp_path)
    assert torch.equal(again(batch()["image"]), task.eval()(batch()["image"]))
    assert again.hparams["head"] == "linear" and isinstance(again.hparams["training"], dict)


def test_predictions_carry_their_images_names(task: Segmentation):
    four = batch()
    (said,) = trainer().predict(task, loader(four))
    assert said["id"] == four["id"] and said["probability"].shape == (4, 3, 32, 32)
    assert torch.equal(said["prediction"], said["probability"].argmax(1))
    assert said["prediction"][:, :-1].eq(four["mask"][:, :-1]).float().mean() > 0.95


@pytest.mark.parametrize("head", get_args(Head))
def test_torchgeo_s_steps_run_with_every_head(head: str):
    torch.manual_seed(0)
    task = Segmentation(**SMALL, head=head, training=QUICK)
    loss = task.training_step(batch(2, 40), 0)
    loss.backward()
    moves = {name: one.grad for name, one in task.named_parameters() if one.requires_grad}
    assert loss.isfinite() and [name for name, grad in moves.items() if grad is None] == []


@pytest.mark.parametrize(
    ("training", "moves"),
    [(Training(freeze="all"), "none"), (Training(lora=2), "lora_"), (Training(freeze="first"), "all")],
)
def test_what_trains_gets_a_gradient_and_nothing_else_trains(training: Training, moves: str):
    task = Segmentation(**SMALL, head="upernet", training=training)
    task.training_step(batch(2), 0).backward()
    named = dict(task.named_parameters())
    inside = {name for name in named if name.startswith("model.encoder.network.")}
    trained = {name for name, one in named.items() if one.grad is not None}
    assert trained == {name for name, one in named.items() if one.requires_grad}
    assert trained - inside == set(named) - inside
    expected = {"none": set(), "all": inside, "lora_": {name for name in inside if "lora_" in name}}[moves]
    assert trained & inside == expected


def test_loss_is_that_of_labelled_pixels_however_a_batch_is_divided():
    torch.manual_seed(0)
    logits, mask = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randint(-1, 3, (2, 8, 8))
    mask[1, 1:] = -1
    for weights in (None, [1.0, 0.5, 4.0]):
        loss = CrossEntropy(weights)
        each = F.cross_entropy(logits, mask, reduction="none", ignore_index=-1)
        each = each if weights is None else each * torch.tensor(weights)[mask.clamp_min(0)]
        torch.testing.assert_close(loss(logits, mask), each.mean())
        halves = [loss(logits[at : at + 1], mask[at : at + 1]) for at in range(2)]
        torch.testing.assert_close(sum(halves) / 2, loss(logits, mask))
        assert loss(logits.bfloat16(), mask).dtype == torch.float32
    nothing = CrossEntropy()(logits, torch.full_like(mask, -1))
    nothing.backward()
    assert nothing == 0 and not logits.grad.any()
    assert CrossEntropy()(logits * torch.nan, mask).isnan()


def test_an_epoch_of_windows_without_labels_does_no_harm():
    empty = batch(2) | {"mask": torch.full((2, 32, 32), -1)}
    task = fitted(Segmentation(**SMALL, head="linear", training=QUICK), [empty, batch(2)], 1)
    assert all(one.isfinite().all() for one in task.parameters())


@pytest.mark.parametrize("value", [-2, 3, 255])
def test_masks_of_no_class_are_refused_with_their_image(value: int):
    bad = batch()
    bad["mask"][2, 5, 5] = value
    said = f"mask of image 2: expected 0 to 2, places in field, road, roof, or -1 for .*; given {value}"
    for stage in (trainer().fit, trainer().test):
        with pytest.raises(InputError, match=said):
            stage(Segmentation(**SMALL, head="linear", training=QUICK), loader(bad))


def test_images_that_are_not_in_the_contract_are_refused_or_said(caplog: Any):
    task, images = Segmentation(**SMALL, head="linear"), batch()["image"]
    with pytest.raises(InputError, match=r"images of 3 bands \(red, green, blue\); given 4"):
        task(images[:, [0, 1, 2, 0]])
    task(images)
    assert not caplog.records
    for stored in (images.sigmoid(), 100 * images):  # as torchgeo's datamodules give them, and as they are
        Segmentation(**SMALL, head="linear")(stored)
        assert "hardly are normalised" in caplog.text
        caplog.clear()

    class Windows(LightningDataModule):
        contract = replace(task.contract, mean=(1.0, 2.0, 3.0))

        def train_dataloader(self) -> Any:
            return loader(batch())

    with pytest.raises(ConfigError, match=r"normalised for red, green, blue of mean \(1.0, 2.0, 3.0\)"):
        trainer().fit(task, datamodule=Windows())
    Windows.contract = task.contract
    trainer().fit(task, datamodule=Windows())


class Stored(NonGeoDataset):
    """Numbers from 0 to 255, as torchgeo's datasets have them."""

    def __init__(self, split: str = "train") -> None:
        self.images, self.masks = (batch()[key] for key in ("image", "mask"))
        self.images = (128 + 30 * self.images).clamp(0, 255)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "mask": self.masks[index]}


def test_torchgeo_s_datamodules_are_told_and_can_be_brought_to_the_contract(caplog: Any):
    for own in (False, True):
        task, data = Segmentation(**SMALL, head="linear", training=QUICK), NonGeoDataModule(Stored, 4, 0)
        if own:
            data.aug = Normalise(task.contract)
        seen: list[torch.Tensor] = []
        task.model.register_forward_pre_hook(lambda module, given, seen=seen: seen.append(given[0]))
        trainer().fit(task, datamodule=data)
        assert ("as `aug` of torchgeo's datamodules" in caplog.text) == (not own)
        mean, std = (torch.tensor(one)[:, None, None] for one in (task.contract.mean, task.contract.std))
        expected = (Stored().images - mean) / std if own else Stored().images / 255
        torch.testing.assert_close(seen[-1].sum((0, 2, 3)), expected.sum((0, 2, 3)), rtol=1e-4, atol=1e-2)
        caplog.clear()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"head": "upernett"}, "unknown head 'upernett'; did you mean 'upernet'?"),
        ({"neck": "fpn"}, "unknown neck 'fpn'; valid: simple, taps"),
        ({"head": "efficient", "neck": "simple"}, "expected neck taps, given simple"),
        ({"classes": ["road", "road"]}, "each once; given road, road"),
        ({"classes": ["road"]}, "at least 2"),
        ({"class_weights": [1.0, 2.0]}, "one a class"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")):
        Segmentation(**(SMALL | given))


def test_an_encoder_is_a_source_or_its_arguments_in_a_config_too():
    parser = ArgumentParser()
    parser.add_class_arguments(Segmentation, "model")
    for given, size in (("timm:resnet10t", None), ("{source: timm:test_vit, image_size: 32, seed: 0}", 32)):
        found = parser.parse_args([f"--model.encoder={given}", "--model.classes=[field, road]"])
        encoder = found.model.encoder
        assert (encoder, size) == (given, None) or Encoder(**vars(encoder)) == Encoder(
            "timm:test_vit", image_size=32, seed=0
        )
    task = parser.instantiate_classes(found).model
    assert task.hparams["encoder"]["image_size"] == 32 and len(task.contract.names) == 3
