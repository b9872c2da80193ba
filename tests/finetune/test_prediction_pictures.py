"""Pictures of predictions show boxes and masks where they are, and the best beside the worst."""

import numpy as np
import torch
from PIL import Image

from geomim.finetune.labels import Labels
from geomim.finetune.pictures import COLOURS, Shown, best_and_worst, draw
from geomim.finetune.run import judged


def test_masks_are_coloured_where_they_are_known():
    grey, mask = np.full((8, 8, 3), 100, np.uint8), np.full((8, 8), -1)
    mask[2:4, 5:7] = 11
    found = draw(grey, mask)
    assert ((found != grey).any(-1) == (mask >= 0)).all() and (found[2, 5] == 50 + COLOURS[1] // 2).all()


def test_upright_turned_and_cornered_boxes_are_drawn_alike():
    black, places = np.zeros((40, 40, 3), np.uint8), np.array([0])
    upright = np.array([[10.0, 12, 30, 20]])
    turned = np.array([[20.0, 16, 8, 20, np.pi / 2]])
    points = np.array([[[10.0, 12], [30, 12], [30, 20], [10, 20]]])
    first, *others = (draw(black, (boxes, places)) for boxes in (upright, turned, points))
    assert all((first == other).all() for other in others)
    assert (first[12, 10:31] == COLOURS[0]).all() and (first[16, 15] == 0).all() and (first[:11] == 0).all()
    assert (draw(black, (np.zeros((0, 5)), np.zeros(0, int))) == 0).all()


def test_the_best_and_the_worst_are_on_the_page_once(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr("geomim.finetune.pictures.contact_sheet", lambda path, groups, item: seen.update(dict(groups)))
    image, mask = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), int)
    shown = [Shown(image, mask, mask, score, f"{score}") for score in (0.1, 0.9, 0.5, 0.2, 0.7)]
    best_and_worst(tmp_path / "page.png", shown, ["a", "b"], count=2)
    names = {title: [said for _, said in panels][::3] for title, panels in seen.items()}
    assert names == {"best: a (blue), b (orange)": ["0.9", "0.7"], "worst: a (blue), b (orange)": ["0.1", "0.2"]}


def test_pages_of_change_and_of_classes_are_written(tmp_path):
    pair, image, mask = np.zeros((2, 6, 6, 3), np.uint8), np.zeros((6, 6, 3), np.uint8), np.zeros((6, 6), int)
    best_and_worst(tmp_path / "change.png", [Shown(pair, mask, mask, 1.0, "pair")], ["no change", "change"])
    best_and_worst(
        tmp_path / "classes.png", [Shown(image, "farm", "port", s, "one") for s in (0.0, 1.0)], ["farm", "port"]
    )
    assert all(min(Image.open(tmp_path / f"{name}.png").size) > 50 for name in ("change", "classes"))


def test_a_window_is_not_judged_by_boxes_that_another_one_answers_for():
    """As in the figures: an object in the border that two windows share is found by both, and counted in one."""
    boxes = torch.tensor([[2.0, 2, 8, 8], [22, 2, 28, 8]])
    answer = {"bbox_xyxy": boxes, "score": torch.tensor([0.9, 0.8]), "label": torch.tensor([0, 0])}
    sample = {"bbox_xyxy": boxes[:1], "label": torch.tensor([0]), "beside": torch.tensor([[20.0, 0, 32, 32]])}
    labels = Labels("boxes", ("ship",), ())
    _, (shown, _), score = judged(sample, answer, labels)
    assert score == 1 and shown.tolist() == boxes[:1].tolist()
    assert judged(sample | {"beside": torch.zeros(0, 4)}, answer, labels)[2] == 2 / 3
