"""Rotated boxes: conventions, corners, overlap against shapely, suppression."""

import math

import numpy as np
import pytest
import shapely
import torch

from geomim.finetune.rotated import box_iou, canonical, corners, from_corners, nms


def boxes(count: int, seed: int, spread: float = 20.0, least: float = 0.5) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    places, sides, angle = (torch.rand(count, size, generator=draw, dtype=torch.float64) for size in (2, 2, 1))
    return torch.cat([places * spread, least + sides**2 * spread, (angle * 4 - 2) * math.pi], 1)


def by_shapely(first: torch.Tensor, second: torch.Tensor) -> np.ndarray:
    one, other = (shapely.polygons(corners(each.double()).numpy()) for each in (first, second))
    one, other = one[:, None], other[None]
    shared = shapely.area(shapely.intersection(one, other))
    return shared / np.maximum(shapely.area(one) + shapely.area(other) - shared, 1e-300)


def test_corners_of_a_box_turned_clockwise_on_screen():
    found = corners(torch.tensor([10.0, 20.0, 4.0, 2.0, math.pi / 2]))
    # the side w points down now, so the upper left corner has come to the upper right
    torch.testing.assert_close(found, torch.tensor([[11.0, 18.0], [11.0, 22.0], [9.0, 22.0], [9.0, 18.0]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_canonical_keeps_the_rectangle_and_bounds_the_angle(dtype):
    edges = torch.tensor([-math.pi / 2, math.pi / 2, -math.pi / 2 - 1e-17, 0.0, math.pi, 1e-17, -1e-17], dtype=dtype)
    same = edges.new_tensor([[3.0, 4.0, 5.0, 2.0]]).expand(len(edges), -1)
    given = torch.cat([boxes(500, 0).to(dtype), torch.cat([same, edges[:, None]], 1)])
    found = canonical(given)
    assert (found[:, 2] >= found[:, 3]).all()
    assert (found[:, 4] < torch.tensor(math.pi / 2, dtype=dtype)).all() and (found[:, 4] >= -math.pi / 2 - 1e-6).all()
    assert box_iou(found, given).diagonal().min() > 1 - 1e-4
    torch.testing.assert_close(canonical(found), found)


def test_corners_in_any_order_give_the_box_back():
    given = canonical(boxes(300, 1))
    for order in ([0, 1, 2, 3], [2, 0, 3, 1], [3, 2, 1, 0]):
        found = from_corners(corners(given)[:, order])
        assert box_iou(found, given).diagonal().min() > 1 - 1e-9
        torch.testing.assert_close(found[:, :4], given[:, :4])


def test_a_quadrilateral_gets_its_rectangle_of_least_area():
    draw = torch.Generator().manual_seed(2)
    points = torch.rand(200, 4, 2, generator=draw, dtype=torch.float64) * 50
    found = from_corners(points)
    expected = shapely.area(shapely.minimum_rotated_rectangle(shapely.multipoints(points.numpy())))
    np.testing.assert_allclose(found[:, 2] * found[:, 3], expected, rtol=1e-9)
    around = shapely.buffer(shapely.polygons(corners(found).numpy()), 1e-9)
    assert shapely.covers(around, shapely.multipoints(points.numpy())).all()


def test_corners_on_a_line_or_a_point_have_no_area():
    line = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0], [3.0, 4.0]])
    torch.testing.assert_close(from_corners(line)[:4], torch.tensor([3.0, 4.0, 10.0, 0.0]))
    torch.testing.assert_close(from_corners(torch.ones(4, 2)), torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_overlap_is_that_of_shapely(dtype):
    first, second = boxes(120, 3).to(dtype), boxes(150, 4).to(dtype)
    found = box_iou(first, second)
    assert 0.1 < found.count_nonzero() / found.numel() < 0.9
    np.testing.assert_allclose(found, by_shapely(first, second), atol=1e-6)


def test_overlap_where_edges_coincide():
    """Sides on one line, shared corners, quarter turns, one within the other: where clipping by cases goes wrong."""
    grid = torch.cartesian_prod(torch.arange(0, 6.0, 2), torch.arange(0, 6.0, 2), torch.tensor([2.0, 4.0]))
    unturned = torch.cat([grid, torch.full((len(grid), 1), 2.0), torch.zeros(len(grid), 1)], 1)
    for angle in (0.0, math.pi / 2, math.pi / 4, 0.3, -1.2):
        c, s = math.cos(angle), math.sin(angle)
        turned = unturned.double().clone()
        turned[:, :2] = turned[:, :2] @ torch.tensor([[c, s], [-s, c]], dtype=torch.float64)
        turned[:, 4] = angle
        np.testing.assert_allclose(box_iou(turned, turned), by_shapely(unturned, unturned), atol=1e-9)


def test_overlap_of_squares_an_eighth_turned():
    one, turned = (torch.tensor([[1e4, 1e4, 2.0, 2.0, angle]]) for angle in (0.0, math.pi / 4))
    octagon = 8 * (math.sqrt(2) - 1)
    assert box_iou(one, turned).item() == pytest.approx(octagon / (8 - octagon), rel=1e-5)


def test_boxes_without_area_overlap_nothing_and_give_no_nan():
    flat = torch.tensor([[5.0, 5.0, 4.0, 0.0, 0.2], [5.0, 5.0, 0.0, 0.0, 0.0], [5.0, 5.0, 4.0, 4.0, 0.0]])
    found = box_iou(flat, flat)
    expected = torch.zeros(3, 3, dtype=torch.float64)
    expected[2, 2] = 1
    torch.testing.assert_close(found, expected)
    assert box_iou(flat[:0], flat).shape == (0, 3)
    assert box_iou(flat[2:].where(torch.tensor(False), torch.nan), flat).count_nonzero() == 0


def test_suppression_is_the_greedy_one(monkeypatch):
    monkeypatch.setattr("geomim.finetune.rotated._BLOCK", 16)  # several blocks, so that one reads what others kept
    given = boxes(200, 5, spread=40, least=4).float()
    draw = torch.Generator().manual_seed(6)
    scores, labels = torch.rand(200, generator=draw), torch.randint(3, (200,), generator=draw)
    overlap, kept = box_iou(given, given), []
    for place in scores.argsort(descending=True).tolist():
        if all(labels[place] != labels[other] or overlap[place, other] <= 0.3 for other in kept):
            kept.append(place)
    assert 20 < len(kept) < 180
    assert nms(given, scores, labels, 0.3).tolist() == kept
    assert nms(given[:0], scores[:0], labels[:0], 0.3).tolist() == []
