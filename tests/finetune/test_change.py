from typing import Any

import pytest
import torch
from tiny_tasks import TINY, fitted, loader, reloaded, trainer
from tiny_tasks import tested as rows_of

from geomim.errors import ConfigError
from geomim.finetune.change import Change
from geomim.finetune.training import Training

CLASSES = ["unchanged", "changed"]
SMALL: dict[str, Any] = {**TINY, "classes": CLASSES, "channels": 16}


def pairs(count: int = 8) -> dict[str, Any]:
    """A quarter of every second image has another colour at the second date; its last row is not labelled."""
    torch.manual_seed(3)
    images = torch.randn(count, 1, 3, 32, 32).repeat(1, 2, 1, 1, 1)
    mask = torch.zeros(count, 32, 32, dtype=torch.long)
    for i in range(0, count, 2):
        rows, columns = (slice(16 * side, 16 * side + 16) for side in (i // 2 % 2, i // 4 % 2))
        images[i, 1, :, rows, columns] = torch.randn(3, 1, 1)
        mask[i, rows, columns] = 1
    mask[:, -1] = -1
    return {"image": images, "mask": mask, "id": [str(i) for i in range(count)]}


@torch.no_grad()
def logits(join: str, images: torch.Tensor, head: str = "upernet") -> torch.Tensor:
    torch.manual_seed(0)
    return Change(**SMALL, join=join, head=head).eval()(images)


def test_order_of_dates_matters_to_concatenation_alone():
    images = torch.randn(2, 2, 3, 32, 32)
    for join, same in (("difference", True), ("concatenation", False)):
        one, other = logits(join, images), logits(join, images.flip(1))
        assert one.shape == (2, 2, 32, 32) and torch.allclose(one, other, atol=1e-5) == same


@pytest.mark.parametrize("head", ["linear", "upernet"])
def test_equal_dates_differ_by_nothing_whatever_they_show(head: str):
    images = torch.randn(3, 1, 3, 32, 32).repeat(1, 2, 1, 1, 1)
    said = logits("difference", images, head)
    assert torch.allclose(said[:1], said[1:], atol=1e-4)
    assert not torch.allclose(*logits("concatenation", images[:2], head).unbind(), atol=1e-2)


@pytest.mark.parametrize("head", ["linear", "efficient"])
def test_probes_see_how_much_differs(head: str):
    before = torch.randn(1, 3, 32, 32)
    dates = [torch.stack((before, before + by * torch.ones(1, 1, 32, 32)), 1) for by in (0.0, 0.01, 1.0)]
    none, little, much = (logits("difference", one, head) for one in dates)
    assert (little - none).abs().mean() < 0.2 * (much - none).abs().mean()


@pytest.mark.parametrize("join", ["difference", "concatenation"])
def test_eight_pairs_are_learnt(join: str, tmp_path: Any):
    torch.manual_seed(1)
    eight, training = pairs(), Training(learning_rate=3e-3, layer_decay=0.9)
    task = fitted(Change(**SMALL, join=join, training=training), [eight], 40)
    rows = rows_of(task, eight)
    assert rows["changed", "F1"]["value"] > 0.9 and rows["changed", "F1"]["floor"] == 0
    assert rows["changed", "F1"]["count"] == int((eight["mask"] == 1).sum())
    assert rows["all", "accuracy"]["count"] == 8 * 31 * 32  # what is not labelled counts for nothing
    (said,) = trainer().predict(task, loader(eight))
    assert said["id"] == eight["id"] and said["prediction"].shape == (8, 32, 32)
    assert torch.equal(reloaded(task, tmp_path)(eight["image"]).argmax(1), said["prediction"])


def test_pixels_without_a_label_teach_nothing():
    torch.manual_seed(0)
    task, two = Change(**SMALL), pairs(2)
    said = task(two["image"]).detach().requires_grad_()
    task.criterion(said, two["mask"]).backward()
    assert (said.grad[:, :, -1] == 0).all() and (said.grad[:, :, :-1] != 0).all()
    assert task.criterion(said, torch.full_like(two["mask"], -1)) == 0


def test_every_trained_parameter_has_a_gradient():
    for head, training in (("upernet", Training()), ("linear", Training(lora=2)), ("unet", Training(freeze="all"))):
        task = Change(**SMALL, head=head, training=training)
        task(pairs(2)["image"]).square().sum().backward()
        silent = [name for name, one in task.named_parameters() if one.requires_grad and one.grad is None]
        assert not silent and any("encoder" in name for name, one in task.named_parameters() if one.grad is not None)


def test_one_class_is_refused():
    with pytest.raises(ConfigError, match="at least 2 names"):
        Change(encoder="nowhere", classes=["changed"])


def test_unknown_join_is_named():
    with pytest.raises(ConfigError, match="unknown join 'differences'; did you mean 'difference'"):
        Change(**SMALL, join="differences")
