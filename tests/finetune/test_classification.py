import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_encoder import checkpoint
from tiny_tasks import TINY, fitted, loader, reloaded, trainer
from tiny_tasks import tested as rows_of
from torch.utils.data import DataLoader

from geomim.errors import ConfigError, InputError
from geomim.finetune.backbones import Encoder, open_backbone
from geomim.finetune.classification import Classification, Regression
from geomim.finetune.figures import class_figures, value_figures
from geomim.finetune.segmentation import Segmentation
from geomim.finetune.training import Training

CLASSES = ["field", "town", "water"]
QUICK = Training(learning_rate=2e-3, layer_decay=0.9)


def batch(labels: list[Any]) -> dict[str, Any]:
    torch.manual_seed(3)
    images = torch.randn(len(labels), 3, 32, 32)
    return {"image": images, "label": torch.tensor(labels), "id": [str(i) for i in range(len(labels))]}


EIGHT = batch([0, 1, 1, 0, 1, 1, 0, 1])  # no water


@pytest.fixture(scope="module")
def task() -> Classification:
    torch.manual_seed(1)
    return fitted(Classification(**TINY, classes=CLASSES, training=QUICK), [EIGHT], 40)


def test_eight_images_are_learnt_and_figured_by_class(task: Classification):
    rows = rows_of(task, EIGHT)
    assert rows["all", "accuracy"]["value"] == 1 and rows["all", "accuracy"]["floor"] == 5 / 8
    assert rows["all", "mean IoU"]["value"] == 1 and rows["all", "mean IoU"]["floor"] == pytest.approx(5 / 16)
    assert [rows[name]["count"] for name in (("field", "F1"), ("town", "F1"), ("all", "accuracy"))] == [3, 5, 8]
    assert rows["water", "recall"]["count"] == 0 and math.isnan(rows["water", "recall"]["value"])


def test_every_epoch_has_all_images_though_reading_processes_stay(monkeypatch: pytest.MonkeyPatch):
    seen: list[list[int]] = []
    images = [{"image": torch.randn(3, 32, 32), "label": torch.tensor(at % 3), "id": at} for at in range(6)]
    own = Classification.training_step
    monkeypatch.setattr(
        Classification, "training_step", lambda task, one, at: seen.append(one["id"].tolist()) or own(task, one, at)
    )
    read = DataLoader(images, 2, num_workers=1, persistent_workers=True, multiprocessing_context="fork")
    trainer(2).fit(Classification(**TINY, classes=CLASSES, training=Training(freeze="all")), read)
    assert seen == 2 * [[0, 1], [2, 3], [4, 5]]


def test_a_second_test_counts_from_nothing(task: Classification):
    assert rows_of(task, EIGHT)["all", "accuracy"]["count"] == rows_of(task, EIGHT)["all", "accuracy"]["count"] == 8


def test_checkpoint_reloads_to_the_same_from_plain_values(task: Classification, tmp_path: Any):
    again = reloaded(task, tmp_path)
    task.eval()
    assert torch.equal(again(EIGHT["image"]), task(EIGHT["image"]))
    assert again.hparams["training"] == task.hparams["training"] and isinstance(again.hparams["training"], dict)


def test_predictions_carry_their_images_names(task: Classification):
    (said,) = trainer().predict(task, loader(EIGHT))
    assert said["id"] == EIGHT["id"] and torch.equal(said["prediction"], EIGHT["label"])
    torch.testing.assert_close(said["probability"].sum(1), torch.ones(8))


def test_reloads_with_its_low_rank_matrices(tmp_path: Any):
    task = fitted(Classification(**TINY, classes=CLASSES, training=Training(lora=2, learning_rate=0.01)), [EIGHT], 2)
    again = reloaded(task, tmp_path)
    assert torch.equal(again(EIGHT["image"]), task.eval()(EIGHT["image"]))


@pytest.mark.parametrize("training", [Training(), Training(lora=2, learning_rate=0.01)], ids=["all", "lora"])
def test_a_tuned_encoder_stays_with_its_task_and_leaves_it_too(training: Training, tmp_path: Any):
    checkpoint(tmp_path / "a.ckpt", image_size=32)
    images, file = EIGHT["image"][:, [0, 1]], str(tmp_path / "a.ckpt")
    task = Classification(Encoder(file, bands=["nir", "red"]), CLASSES, training=training)
    fitted(task, [EIGHT | {"image": images}], 2)
    Path(file).unlink()  # as on another machine
    again = reloaded(task, tmp_path)
    assert torch.equal(again(images), task.eval()(images))
    assert (again.contract, again.notes) == (task.contract, task.notes) and again.hparams["encoder"]["source"] == file
    out = open_backbone(str(again.export_encoder(tmp_path / "out")))
    torch.testing.assert_close(out.network(images), task.model.network(images), rtol=1e-4, atol=1e-5)
    assert (
        out.contract == task.contract
        and out.network.state_dict().keys()
        == Classification(str(tmp_path / "out"), CLASSES).model.network.state_dict().keys()
    )


def test_a_part_of_the_encoder_that_the_head_cuts_off_is_not_made_up():
    task = Segmentation(Encoder("timm:vit_tiny_patch16_224", image_size=32, seed=0), CLASSES, head="linear")
    task.hparams["encoder"]["opened"]["arguments"] |= {"fc_norm": True, "global_pool": "avg"}
    with pytest.raises(ConfigError, match=r"the head reads it without .*fc_norm\.weight"):
        task.export_encoder("nowhere")


def test_several_classes_at_once():
    some = batch([[1, 0, 1], [0, 0, 1], [1, 1, 0], [0, 0, 0]])
    task = fitted(Classification(**TINY, classes=CLASSES, several=True, training=QUICK), [some], 40)
    rows = rows_of(task, some)
    assert rows["all", "micro F1"]["value"] == 1 and rows["water", "F1"]["count"] == 2
    (said,) = trainer().predict(task, loader(some))
    assert torch.equal(said["prediction"], some["label"])
    with torch.no_grad():  # logits between 0 and 1 are no probabilities
        task.model.head.weight.zero_()
        task.model.head.bias.copy_(torch.tensor([0.2, -0.2, 0.4]))
    assert [rows_of(task, some)[name, "recall"]["value"] for name in CLASSES] == [1, 0, 1]


def test_says_what_it_expects_of_images():
    task = Classification(**TINY, classes=CLASSES)
    assert len(task.contract.names) == 3 and task.notes
    every = {name for name, one in task.named_parameters() if one.requires_grad}
    task(EIGHT["image"]).square().sum().backward()
    assert {name for name, one in task.named_parameters() if one.grad is not None} == every


def test_figures_of_a_confusion():
    confusion = torch.tensor([[3, 1, 0], [2, 4, 0], [0, 0, 0]])
    rows = {(row["class"], row["metric"]): (row["value"], row["floor"]) for row in class_figures(confusion, CLASSES)}
    assert rows["all", "accuracy"] == (0.7, 0.6) and rows["field", "precision"] == (
        0.6,
        pytest.approx(math.nan, nan_ok=True),
    )
    assert rows["field", "recall"] == (0.75, 0) and rows["town", "recall"] == (pytest.approx(2 / 3), 1)
    assert rows["town", "IoU"] == (pytest.approx(4 / 7), 0.6) and rows["field", "IoU"] == (0.5, 0)
    assert rows["all", "mean IoU"] == (pytest.approx((0.5 + 4 / 7) / 2), 0.3)  # water is nowhere
    both = torch.tensor([[[5, 1], [1, 3]], [[2, 0], [4, 4]]])  # of each class: no and yes, truth down
    rows = {(row["class"], row["metric"]): row for row in class_figures(both, CLASSES[:2])}
    assert (
        rows["field", "F1"]["value"] == 0.75 and rows["field", "F1"]["floor"] == 0 and rows["field", "F1"]["count"] == 4
    )
    assert rows["town", "F1"]["value"] == pytest.approx(2 / 3) and rows["town", "F1"]["floor"] == pytest.approx(16 / 18)
    assert rows["all", "micro F1"]["value"] == pytest.approx(14 / 20)


def test_figures_of_values():
    truth, said = torch.tensor([[1.0], [2.0], [6.0]]), torch.tensor([[1.0], [3.0], [6.0]])
    rows = {row["metric"]: (row["value"], row["floor"]) for row in value_figures(truth, said, ["height"])}
    assert rows["MAE"] == pytest.approx((1 / 3, 2)) and rows["RMSE"] == pytest.approx(
        (math.sqrt(1 / 3), math.sqrt(14 / 3))
    )
    assert rows["R2"] == pytest.approx((1 - 1 / 14, 0))


def test_values_start_at_their_mean_and_are_learnt(tmp_path: Any):
    tall = batch([[300.0, 0.1], [310.0, 0.3], [290.0, 0.2], [305.0, 0.4]])
    task = Regression(**TINY, targets=["height", "share"], loss="mae", training=QUICK)
    rows = rows_of(fitted(task, [tall], 60), tall)
    torch.testing.assert_close(task.model.shift, tall["label"].mean(0))
    torch.testing.assert_close(task.model.scale, tall["label"].std(0, correction=0), rtol=1e-2, atol=1e-3)
    assert rows["height", "R2"]["value"] > 0.8 and rows["height", "RMSE"]["floor"] == pytest.approx(7.395, abs=1e-3)
    (said,) = trainer().predict(task, loader(tall))
    assert torch.equal(reloaded(task, tmp_path)(tall["image"]), said["prediction"]) and said["id"] == tall["id"]


def test_features_are_standardised_by_the_training_images_once():
    halves = [{name: EIGHT[name][part] for name in ("image", "label")} for part in (slice(0, 7), slice(7, 8))]
    task = fitted(Classification(**TINY, classes=CLASSES, training=Training(freeze="all")), halves, 1)
    with torch.no_grad():
        features = task.model.network(EIGHT["image"])
    torch.testing.assert_close(task.model.mean, features.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(task.model.deviation, features.std(0, correction=0), rtol=1e-2, atol=1e-3)
    before = task.model.mean.clone()
    fitted(task, halves[:1], 1)  # a head has learnt what these features are
    assert torch.equal(task.model.mean, before)


def test_standardising_draws_nothing_which_a_resumed_run_would_not():
    class Watched(Classification):
        def on_train_start(self) -> None:
            before = torch.get_rng_state()
            super().on_train_start()
            assert self.model.mean.any() and torch.equal(before, torch.get_rng_state())

    rows = [{name: EIGHT[name][at] for name in ("image", "label")} for at in range(8)]
    task = Watched(**TINY, classes=CLASSES, training=Training(freeze="all"))
    trainer().fit(task, torch.utils.data.DataLoader(rows, 4, shuffle=True))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"classes": ["a", "b", "a"]}, "each once; given a, b, a"),
        ({"classes": ["a"]}, "at least 2"),
        ({"classes": ["a", "b"], "class_weights": [1.0]}, "one a class"),
        ({"classes": ["a", "b"], "class_weights": [1.0, 2.0], "several": True}, "several classes"),
    ],
)
def test_classes_that_cannot_be_meant_are_refused(given: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        Classification(encoder="nowhere", **given)  # before the encoder is looked for


def test_labels_of_no_class_and_values_that_are_none_are_refused_with_their_image():
    with pytest.raises(
        InputError, match="label of image 1, 2: expected 0 to 2, places in field, town, water; given -1, 3"
    ):
        trainer().fit(Classification(**TINY, classes=CLASSES), loader(batch([0, 3, -1])))
    with pytest.raises(InputError, match="label of image 0: expected 0 or 1 of each of field, town, water; given 2"):
        trainer().fit(Classification(**TINY, classes=CLASSES, several=True), loader(batch([[0, 2, 1], [0, 0, 1]])))
    for value in (math.nan, math.inf):
        with pytest.raises(InputError, match=f"label of image 1: expected finite values of height; given {value}"):
            trainer().fit(Regression(**TINY, targets=["height"]), loader(batch([1.0, value])))


def test_figures_before_a_test_are_refused():
    with pytest.raises(InputError, match="none was counted"):
        class_figures(torch.zeros(2, 2), ["a", "b"])
