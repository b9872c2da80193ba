"""Detection: labels, anchors, empty images, half precision, bad boxes, figures, and that it learns."""

import math
from typing import Any

import pytest
import tiny_tasks
import torch
from tiny_tasks import fitted, loader, reloaded, trainer

from geomim.errors import ConfigError, InputError
from geomim.finetune.backbones import Encoder
from geomim.finetune.detection import Detection
from geomim.finetune.training import Training

CLASSES = ["ship", "plane"]
SMALL: dict[str, Any] = {
    "encoder": Encoder("timm:test_vit", image_size=64, seed=0),
    "classes": CLASSES,
    "channels": 32,
    "training": Training(learning_rate=3e-3, layer_decay=0.9),
}
HEADS = ["faster-rcnn", "fcos", "retinanet", "oriented"]


def scene(count: int = 2, side: int = 64, turned: bool = False) -> dict[str, Any]:
    """Squares of two colours on noise; the second image has none."""
    torch.manual_seed(4)
    images, boxes, labels = torch.randn(count, 3, side, side) * 0.1, [], []
    for place in range(count):
        corner = torch.tensor([[4.0, 8], [36, 20], [12, 40]])
        own = torch.cat([corner, corner + torch.tensor([[20.0, 12], [16, 16], [24, 12]])], 1)[: 0 if place == 1 else 3]
        for (left, top, right, bottom), kind in zip(own.int().tolist(), (0, 1, 0), strict=False):
            images[place, kind, top:bottom, left:right] = 2
        labels.append(torch.tensor([0, 1, 0])[: len(own)])
        middle = torch.cat([(own[:, :2] + own[:, 2:]) / 2, own[:, 2:] - own[:, :2], torch.zeros(len(own), 1)], 1)
        boxes.append(middle if turned else own)
    key = "obox" if turned else "bbox_xyxy"
    return {"image": images, key: boxes, "label": labels, "id": [f"scene{place}" for place in range(count)]}


@pytest.mark.parametrize("head", HEADS)
def test_every_trained_parameter_has_a_finite_gradient_without_boxes_too(head: str):
    task, batch = Detection(**SMALL, head=head), scene(turned=head == "oriented")
    for only in (slice(0, 2), slice(1, 2)):  # the second image has no box
        task.zero_grad()
        losses = task(batch["image"][only], task.targets(batch)[only])
        sum(losses.values()).backward()
        assert all(one.grad.isfinite().all() for one in task.parameters() if one.grad is not None)
        silent = [name for name, one in task.named_parameters() if one.requires_grad and one.grad is None]
        assert not silent


@pytest.mark.parametrize("head", ["fcos", "oriented"])
def test_it_learns(head: str, tmp_path: Any):
    torch.manual_seed(0)
    batch = scene(turned=head == "oriented")
    task = fitted(Detection(**SMALL, head=head), [batch], 60)
    rows = tiny_tasks.tested(task, batch)
    assert rows["all", "AP50"]["value"] > 0.9
    assert (rows["ship", "AP50"]["count"], rows["plane", "AP50"]["count"]) == (2, 1)
    (said,) = trainer().predict(task, loader(batch))
    assert said["id"] == batch["id"] and said["label"][0][:3].sort().values.tolist() == [0, 0, 1]
    again = reloaded(task, tmp_path)(batch["image"])
    torch.testing.assert_close(again[0]["boxes"], said[task.key][0])


def test_labels_count_from_0_for_every_head():
    """The surest class of a head whose last layer says only the first one."""
    batch = scene()
    for head, bias in (("faster-rcnn", "model.model.roi_heads.box_predictor.cls_score.bias"),
                       ("fcos", "model.model.head.classification_head.cls_logits.bias")):  # fmt: skip
        task = Detection(**SMALL, head=head).eval()
        first = int(head == "faster-rcnn")
        task.get_parameter(bias).data[first] = 9.0
        with torch.no_grad():
            found = task(batch["image"])
        assert set(found[0]["labels"][:5].tolist()) == {0}
        losses = task.train()(
            batch["image"], task.targets(batch | {"label": [torch.tensor([1, 1, 1]), batch["label"][1]]})
        )
        assert all(one.isfinite() for one in losses.values())


@pytest.mark.parametrize(("head", "times"), [("faster-rcnn", [8]), ("fcos", [1]), ("retinanet", [4, 5, 6])])
def test_anchors_grow_with_strides(head: str, times: list[int]):
    model = Detection(**SMALL, head=head).model.model
    sizes = (model.rpn if head == "faster-rcnn" else model).anchor_generator.sizes
    assert [[size // stride for size in level] for level, stride in zip(sizes, (4, 8, 16, 32), strict=True)] == [
        times
    ] * 4


def test_images_stay_as_they_are_and_odd_sides_are_filled_up():
    task, seen = Detection(**SMALL, head="fcos"), []
    task.model.model.backbone.pyramid.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    images = torch.randn(2, 3, 50, 70)
    found = task.eval()(images)
    assert torch.equal(seen[0][..., :50, :70], images) and seen[0].shape == (2, 3, 64, 96)
    for one in found:
        assert (one["boxes"][:, 2] <= 70).all() and (one["boxes"][:, 3] <= 50).all()


@pytest.mark.parametrize("head", HEADS)
def test_half_precision_holds_coordinates_in_full(head: str):
    task = Detection(**SMALL, head=head).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = task(scene()["image"])
    assert {value.dtype for key in ("boxes", "scores") for value in (found[0][key],)} == {torch.float32}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("column", "value", "label", "said"),
    [(2, 0.0, 0, "image scene0: the box .* of label 0, ship, has no area"), (0, math.nan, 0, "has no area"),
     (0, 1.0, 2, "of label 2: expected 0 to 1, places in ship, plane")],
)  # fmt: skip
def test_bad_boxes_are_refused_with_image_and_box(turned: bool, column: int, value: float, label: int, said: str):
    batch, task = scene(turned=turned), Detection(**SMALL, head="oriented" if turned else "fcos")
    batch[task.key][0][1, column], batch["label"][0][1] = value, label
    with pytest.raises(InputError, match=said):
        trainer().fit(task, loader(batch))


def test_boxes_of_another_kind_are_refused():
    with pytest.raises(InputError, match="the head oriented learns obox; the batch has image, bbox_xyxy"):
        Detection(**SMALL, head="oriented").training_step(scene(), 0)


def test_classes_and_channels_that_cannot_be_meant():
    with pytest.raises(ConfigError, match="each once"):
        Detection(encoder="nowhere", classes=["ship", "ship"])
    with pytest.raises(ConfigError, match="unknown head 'orientated'; did you mean 'oriented'"):
        Detection(encoder="nowhere", classes=["ship"], head="orientated")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="multiple of 32 for the head retinanet; given 20"):
        Detection(**{**SMALL, "channels": 20}, head="retinanet")


def test_validation_is_of_the_whole_set():
    """The image of one of two batches has nothing to find, which is not a batch of average precision 0 or 1."""
    batch, task = scene(turned=True), Detection(**SMALL, head="oriented")
    known = [
        {"boxes": boxes[:2], "labels": labels[:2]} for boxes, labels in zip(batch["obox"], batch["label"], strict=True)
    ]
    known = [one | {"scores": torch.linspace(0.9, 0.5, len(one["labels"]))} for one in known]
    task.model.forward = lambda images: [known[int(image.max() < 1)] for image in images]  # type: ignore[method-assign]
    halves = [{key: value[place : place + 1] for key, value in batch.items()} for place in range(2)]
    (found,) = trainer().validate(task, loader(*halves), verbose=False)
    assert found == pytest.approx(dict.fromkeys(("val_map", "val_map_50", "val_map_75"), (51 / 101 + 1) / 2))


@pytest.mark.parametrize("turned", [False, True])
def test_what_is_found_in_what_another_window_answers_for_is_neither_right_nor_wrong(turned: bool, monkeypatch: Any):
    task = Detection(**SMALL, head="oriented" if turned else "fcos")
    corners = torch.tensor([[4.0, 4, 20, 20], [40, 0, 64, 12], [44, 2, 52, 10], [24, 40, 36, 52]])
    sides = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2], torch.zeros(4, 1)], 1)
    boxes, labels = sides if turned else corners, torch.zeros(4, dtype=torch.int64)
    monkeypatch.setattr(
        task, "forward", lambda _: [{"boxes": boxes, "scores": torch.linspace(0.9, 0.6, 4), "labels": labels}]
    )
    true = boxes[[0, 2]]  # a part of a large box of another window lies around the second one
    batch = {"image": torch.zeros(1, 3, 64, 64), task.key: [true], "label": [labels[:2]], "id": ["a"]}
    task.test_step(batch, 0)
    assert next(row["value"] for row in task.figures()) == pytest.approx((51 + 50 * 2 / 3) / 101), "the second is wrong"
    task.tally.reset()
    task.test_step(batch | {"beside": [torch.tensor([[40.0, 0, 64, 12], [0, 60, 64, 64]])]}, 0)
    assert next(row["value"] for row in task.figures()) == 1
    task.tally.reset()
    task.test_step(batch | {"beside": [torch.zeros(0, 4)], task.key: [boxes[:0]], "label": [labels[:0]]}, 0)
    assert len(torch.cat(list(task.tally.found))) == 4, "where nothing is beside, all counts"
