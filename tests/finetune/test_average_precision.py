"""Average precision: hand cases, and pycocotools on unturned boxes."""

import math

import pytest
import torch
from torchmetrics.detection import MeanAveragePrecision

from geomim.finetune.average_precision import AveragePrecision
from geomim.finetune.rotated import box_iou

HERE, THERE = [10.0, 10.0, 8.0, 4.0, 0.5], [40.0, 10.0, 8.0, 4.0, -0.5]


def image(boxes, labels, scores=None):
    one = {"boxes": torch.tensor(boxes).reshape(-1, 5), "labels": torch.tensor(labels, dtype=torch.int64)}
    return one if scores is None else one | {"scores": torch.tensor(scores)}


def measure(answer, truth, classes=2):
    metric = AveragePrecision(classes, box_iou)
    metric.update([answer], [truth])
    return metric


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (image([HERE, THERE], [0, 0], [0.9, 0.8]), 1.0),
        (image([HERE], [0], [0.9]), 51 / 101),  # recalls 0 to .5 are reached
        (image([HERE, HERE, THERE], [0, 0, 0], [0.9, 0.8, 0.7]), (51 + 50 * 2 / 3) / 101),  # the second is a repetition
        (image([THERE, HERE], [1, 0], [0.9, 0.8]), 51 / 101),  # right place, other class
        (image([[*HERE[:4], 0.5 + torch.pi / 2]], [0], [0.9]), 0.0),  # across: 16 of 48 shared
        (image([], [], []), 0.0),
    ],
)
def test_hand_cases(answer, expected):
    metric = measure(answer, image([HERE, THERE], [0, 0]))
    assert metric.compute()["map_50"].item() == pytest.approx(expected)
    assert metric.compute()["per_class"][1].isnan().all()  # the second class does not occur


def test_a_threshold_is_reached_at_its_value():
    less, whole = [10.0, 10.0, 8.0, 3.0, 0.0], [10.0, 10.0, 8.0, 4.0, 0.0]
    found = measure(image([less], [0], [0.9]), image([whole], [0])).compute()
    assert found["per_class"][0].tolist() == [1.0] * 6 + [0.0] * 4  # .5 to .75


def test_nothing_to_find_is_no_number():
    metric = measure(image([HERE], [0], [0.9]), image([], []))
    assert [metric.compute()[key].item() for key in ("map", "map_50", "map_75")] == [-1, -1, -1]
    first = metric.figures(["ship", "plane"])[0]
    assert math.isnan(first["value"]) and (first["class"], first["metric"], first["count"]) == ("ship", "AP50", 0)


def test_one_class_alone_has_figures():
    found = measure(image([HERE], [0], [0.9]), image([HERE], [0]), classes=1).figures(["ship"])
    assert [(row["class"], row["metric"], row["value"], row["count"]) for row in found] == [
        (name, metric, 1.0, 1) for name in ("ship", "all") for metric in ("AP50", "AP")
    ]


def test_figures_name_classes_and_counts():
    found = measure(image([HERE], [1], [0.9]), image([HERE, THERE], [1, 1])).figures(["plane", "ship"])
    counts = [("plane", 0), ("ship", 2), ("all", 2)]
    expected = [(name, metric, count) for name, count in counts for metric in ("AP50", "AP")]
    assert [(one["class"], one["metric"], one["count"]) for one in found] == expected
    assert found[2]["value"] == found[4]["value"] == pytest.approx(51 / 101)  # planes do not occur


def test_ranks_count_together():
    metric = measure(image([HERE], [0], [0.9]), image([HERE, THERE], [0, 0]))
    metric.distributed_available_fn, metric.dist_sync_fn = lambda: True, lambda tensor, group: [tensor, tensor]
    found = metric.compute()
    assert found["counts"].tolist() == [4, 0] and found["map_50"].item() == pytest.approx(51 / 101)


def test_unturned_boxes_score_as_with_pycocotools():
    draw = torch.Generator().manual_seed(0)
    ours, theirs = AveragePrecision(4), MeanAveragePrecision()
    for _ in range(8):
        corner, side = torch.rand(12, 2, generator=draw) * 80, 5 + torch.rand(12, 2, generator=draw) * 20
        true = torch.cat([corner, corner + side], 1)
        near = torch.cat([true, true[:6]]) + torch.randn(18, 4, generator=draw)
        labels = torch.randint(3, (12,), generator=draw)
        guessed = torch.cat([labels, torch.randint(4, (6,), generator=draw)])
        answer = [{"boxes": near, "labels": guessed, "scores": torch.rand(18, generator=draw)}]
        for metric in (ours, theirs):
            metric.update(answer, [{"boxes": true, "labels": labels}])
    expected, found = theirs.compute(), ours.compute()
    assert 0.2 < found["map"] < 0.8
    for key in ("map", "map_50", "map_75"):
        assert found[key].item() == pytest.approx(expected[key].item(), abs=1e-6)
