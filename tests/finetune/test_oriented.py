"""Oriented detection: assignment, codes, losses, and that it learns."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence

from geomim.finetune.average_precision import AveragePrecision
from geomim.finetune.oriented import OrientedDetector, assign, decode, divergence, grid_of, losses
from geomim.finetune.rotated import box_iou, canonical, in_frame

SIDE = 64
BOXES = torch.tensor(
    [
        [16.0, 18.0, 26.0, 9.0, 0.6],
        [46.0, 14.0, 12.0, 12.0, 0.5],
        [20.0, 48.0, 7.0, 22.0, 0.2],
        [48.0, 46.0, 20, 20, 0.8],
    ]
)
LABELS = torch.tensor([0, 1, 2, 1])


class Convolutions(nn.Module):
    """A pyramid of two levels."""

    def __init__(self):
        super().__init__()
        self.channels, self.strides = 32, (4, 8)
        self.fine = nn.Sequential(nn.Conv2d(3, 32, 4, 4), nn.GroupNorm(4, 32), nn.GELU())
        self.coarse = nn.Conv2d(32, 32, 2, 2)

    def forward(self, images):
        fine = self.fine(images)
        return [fine, self.coarse(fine)]


def picture(boxes, labels):
    middle = torch.arange(SIDE) + 0.5
    points = torch.stack(torch.meshgrid(middle, middle, indexing="xy"), -1)
    image = torch.zeros(3, SIDE, SIDE)
    for box, label in zip(boxes, labels, strict=True):
        image[label][(in_frame(points - box[:2], box[4]).abs() < box[2:4] / 2).all(-1)] = 1
    return image


def mirrored(boxes):
    cx, cy, w, h, angle = boxes.unbind(1)
    return torch.stack([SIDE - cx, cy, w, h, -angle], 1)


def turned(boxes):
    """As `torch.rot90` turns an image."""
    cx, cy, w, h, angle = boxes.unbind(1)
    return torch.stack([cy, SIDE - cx, w, h, angle - math.pi / 2], 1)


def test_it_learns_rectangles_and_squares_and_their_mirrored_and_turned_images():
    torch.manual_seed(0)
    image = picture(BOXES, LABELS)
    images = torch.stack([image, image.flip(2), torch.rot90(image, 1, (1, 2)), torch.zeros(3, SIDE, SIDE)])
    truth = [{"boxes": boxes, "labels": LABELS} for boxes in (BOXES, mirrored(BOXES), turned(BOXES))]
    truth.append({"boxes": torch.zeros(0, 5), "labels": torch.zeros(0, dtype=torch.int64)})
    model = OrientedDetector(Convolutions(), 3)
    steps = 80
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(model(images, truth).values()).backward()
        optimizer.step()
        schedule.step()
    metric = AveragePrecision(3, box_iou)
    with torch.no_grad():
        found = model.eval()(images)
    metric.update(found, truth)
    assert metric.compute()["map_50"] > 0.9
    assert metric.compute()["map_75"] > 0.8  # which a square 45 degrees off does not reach
    assert not (found[3]["scores"] > 0.5).any()


LEVELS = (4, 8, 16)


def grid(strides=LEVELS):
    return grid_of([(SIDE // stride, SIDE // stride) for stride in strides], strides)


def test_positions_are_the_middle_of_what_they_cover():
    found = grid_of([(2, 3), (1, 2)], (4, 8))
    expected = [[2, 2], [6, 2], [10, 2], [2, 6], [6, 6], [10, 6], [4, 4], [12, 4]]
    assert found.places.tolist() == expected
    assert found.strides.tolist() == [4] * 6 + [8] * 2


def test_a_box_belongs_to_the_level_of_its_size_and_to_positions_near_its_centre():
    boxes = torch.tensor([[32.0, 32.0, 20.0, 20.0, 0.4], [32.0, 32.0, 40.0, 40.0, 0.4], [0.0, 0.0, 1.0, 1.0, 0.0]])
    where = grid()
    index, answers, central = assign(boxes, torch.tensor([0, 1, -1]), where)
    assert set(index[answers & (where.strides == 4)].tolist()) == {0}
    assert set(index[answers & (where.strides == 8)].tolist()) == {1}
    assert not answers[where.strides == 16].any()
    away = in_frame(where.places - 32, torch.tensor(0.4)).abs().amax(1) / where.strides
    assert torch.equal(answers, (away < 1.5) & (where.strides < 16))
    assert ((central > 0) & (central <= 1))[answers].all()


@pytest.mark.parametrize("angle", [0.0, 0.3, math.pi / 4, -1.1])
def test_no_box_is_too_thin_or_too_small_for_the_grid(angle):
    draw = torch.Generator().manual_seed(0)
    for sides in ((30.0, 0.5), (1.0, 1.0)):
        centre = torch.rand(20, 2, generator=draw) * (SIDE - 8) + 4
        boxes = torch.cat([centre, torch.tensor([*sides, angle]).expand(20, 3)], 1)
        for box in boxes:
            _, answers, central = assign(box[None], torch.tensor([0]), grid())
            assert answers.any() and central[answers].max() > 0


def test_the_smallest_of_nested_boxes_is_answered_for():
    boxes = torch.tensor([[32.0, 32.0, 30.0, 30.0, 0.0], [36.0, 32.0, 8.0, 8.0, 0.0]])
    index, answers, _ = assign(boxes, torch.tensor([0, 1]), grid((4,)))
    inside = (grid((4,)).places - boxes[1, :2]).abs().amax(1) < 4
    assert (index[inside] == 1).all() and (index[answers & ~inside] == 0).all() and (answers & ~inside).any()


@pytest.mark.parametrize("change", [mirrored, turned])
def test_a_changed_image_is_assigned_its_changed_boxes(change):
    cells = SIDE // 4
    index, answers, central = (one.view(cells, cells) for one in assign(BOXES, LABELS, grid((4,))))
    expected = [one.flip(1) if change is mirrored else torch.rot90(one, 1, (0, 1)) for one in (index, answers, central)]
    found = [one.view(cells, cells) for one in assign(change(BOXES), LABELS, grid((4,)))]
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[0].where(found[1], 0), expected[0].where(expected[1], 0))
    torch.testing.assert_close(found[2].where(found[1], 0), expected[2].where(expected[1], 0), atol=1e-4, rtol=0)


def encoded(boxes, places, strides):
    centre, sides, angle = boxes[:, :2], boxes[:, 2:4], boxes[:, 4]
    codes = [(angle * times).cos() if which else (angle * times).sin() for times in (2, 4) for which in (1, 0)]
    offset, size = (centre - places) / strides[:, None], (sides / 4 / strides[:, None]).log()
    return torch.cat([offset, size, torch.stack(codes, 1), torch.zeros(len(boxes), 1)], 1)


def test_boxes_decode_as_they_are_coded():
    draw = torch.Generator().manual_seed(1)
    count = 100
    boxes = torch.rand(count, 5, generator=draw, dtype=torch.float64) * torch.tensor([64, 64, 30, 30, 8]) + 0.5
    strides = torch.tensor([4.0, 8.0]).double().repeat(count // 2)
    places = torch.rand(count, 2, generator=draw, dtype=torch.float64) * 64
    found = decode(encoded(boxes, places, strides), places, strides)
    assert box_iou(found, boxes).diagonal().min() > 1 - 1e-9
    torch.testing.assert_close(canonical(found), found)


def test_the_code_of_an_angle_has_no_jump():
    """Between codes of boxes a little apart, all that lies between decodes to a box that is like both."""
    angle = torch.linspace(-math.pi, math.pi, 181, dtype=torch.float64)
    here = torch.zeros(len(angle), 2, dtype=torch.float64)
    for sides in ((20.0, 8.0), (10.0, 10.0)):
        boxes = torch.cat([here, torch.tensor([sides], dtype=torch.float64).expand(len(angle), 2), angle[:, None]], 1)
        values = encoded(boxes, here, torch.ones_like(angle))
        between = (values[1:] + values[:-1]) / 2
        assert (values[1:] - values[:-1]).abs().max() < 0.15
        assert box_iou(decode(between, here[1:], torch.ones(180)), boxes[1:]).diagonal().min() > 0.95


def gaussian(box):
    """N(centre, R diag(w/2, h/2)^2 R^T)."""
    c, s = box[4].cos(), box[4].sin()
    turn = torch.stack([torch.stack([c, -s]), torch.stack([s, c])])
    return MultivariateNormal(box[:2], turn @ (box[2:4] / 2).square().diag() @ turn.T)


def test_divergence_is_that_of_the_gaussians():
    draw = torch.Generator().manual_seed(2)
    boxes = torch.rand(40, 5, generator=draw, dtype=torch.float64) * torch.tensor([10, 10, 20, 20, 6]) + 1
    first, true = boxes.chunk(2)
    away = in_frame(first[:, :2] - true[:, :2], true[:, 4])
    found = divergence(away, first[:, 2:4], (2 * (first[:, 4] - true[:, 4])).cos(), true[:, 2:4])
    expected = torch.stack([kl_divergence(gaussian(a), gaussian(b)) for a, b in zip(first, true, strict=True)])
    torch.testing.assert_close(found, expected)


def test_losses_are_means_over_images_and_right_answers_lose_nothing():
    where = grid()
    boxes = torch.stack([BOXES, mirrored(BOXES)])
    labels = torch.stack([LABELS, torch.tensor([0, -1, -1, -1])])
    torch.manual_seed(0)
    logits, values = torch.randn(2, len(where.places), 3), torch.randn(2, len(where.places), 9)
    both = losses(logits, values, boxes, labels, where)
    alone = [losses(logits[i : i + 1], values[i : i + 1], boxes[i : i + 1], labels[i : i + 1], where) for i in range(2)]
    for name, value in both.items():
        torch.testing.assert_close(value, (alone[0][name] + alone[1][name]) / 2)
    index, answers, central = assign(BOXES, LABELS, where)
    right = encoded(BOXES[index], where.places, where.strides)
    right[:, 8] = central.logit(eps=1e-6)
    kinds = torch.nn.functional.one_hot(LABELS[index], 3) * answers[:, None]
    found = losses(kinds[None] * 40.0 - 20, right[None], BOXES[None], LABELS[None], where)
    assert {name for name, value in found.items() if value > 1e-3} == {"centreness"}  # its least is an entropy
    swapped = BOXES[:, [0, 1, 3, 2, 4]] + torch.tensor([0, 0, 0, 0, math.pi / 2])
    again = losses(kinds[None] * 40.0 - 20, right[None], swapped[None], LABELS[None], where)
    for name, value in again.items():
        torch.testing.assert_close(value, found[name], atol=1e-4, rtol=1e-3)


def test_gradients_are_finite_for_images_without_boxes_and_codes_of_nothing():
    model = OrientedDetector(Convolutions(), 3)
    nn.init.zeros_(model.box_values.weight)
    nn.init.zeros_(model.box_values.bias)
    empty = {"boxes": torch.zeros(0, 5), "labels": torch.zeros(0, dtype=torch.int64)}
    for targets in ([empty, empty], [{"boxes": BOXES, "labels": LABELS}, empty]):
        model.zero_grad()
        sum(model(torch.randn(2, 3, 50, 62), targets).values()).backward()  # no multiples of the strides
        assert all(one.grad.isfinite().all() for one in model.parameters())
