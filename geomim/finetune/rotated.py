"""Rotated boxes `(cx, cy, w, h, angle)`: their corners, exact overlap and non-maximum suppression.

Centre and sides are in pixels, x to the right and y down, and the first pixel covers 0..1. The angle is in radians: how
far the side w is turned from the x axis towards the y axis, so a growing angle turns clockwise on screen. A box turned
by pi is the same box, and so is one turned by pi / 2 with w and h exchanged; `canonical` chooses one of them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_PAIRS, _BLOCK = 1 << 16, 512


def canonical(boxes: Tensor) -> Tensor:
    """Boxes `(..., 5)` with w >= h and the angle in [-pi/2, pi/2), where that of a square may lie anywhere."""
    cx, cy, w, h, angle = boxes.unbind(-1)
    angle = torch.where(w < h, angle + math.pi / 2, angle)
    angle = torch.remainder(angle + math.pi / 2, math.pi) - math.pi / 2
    angle = torch.where(angle >= math.pi / 2, angle - math.pi, angle)  # a remainder may round up to its divisor
    return torch.stack([cx, cy, torch.maximum(w, h), torch.minimum(w, h), angle], -1)


def corners(boxes: Tensor) -> Tensor:
    """Corners `(..., 4, 2)` of boxes `(..., 5)`, clockwise on screen, the upper left of an unturned one first."""
    centre, sides, angle = boxes[..., None, :2], boxes[..., None, 2:4], boxes[..., None, 4]
    halves = sides / 2 * sides.new_tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    return centre + in_frame(halves, -angle)


def in_frame(points: Tensor, angle: Tensor) -> Tensor:
    """Points `(..., 2)`, x and y from a box's centre, along w and h of a box with this angle `(...)`."""
    (x, y), cos, sin = points.unbind(-1), angle.cos(), angle.sin()
    return torch.stack([x * cos + y * sin, y * cos - x * sin], -1)


def from_corners(points: Tensor) -> Tensor:
    """The rectangles of least area around four points `(..., 4, 2)` in any order, as canonical boxes `(..., 5)`.

    The points may be those of a quadrilateral (DOTA), or on a line, which gives h = 0. A side of the least rectangle
    lies on the line through two of them, so all six pairs are tried.
    """
    exact = points.double()
    first, second = torch.triu_indices(4, 4, 1, device=points.device)
    along = exact[..., second, :] - exact[..., first, :]
    angle = torch.atan2(along[..., 1], along[..., 0])  # (..., 6); 0 for equal points, which is as good as any
    places = in_frame(exact[..., None, :, :], angle[..., None])  # (..., 6, 4, 2)
    low, high = places.amin(-2), places.amax(-2)
    middle, sides = (low + high) / 2, high - low
    found = torch.cat([in_frame(middle, -angle), sides, angle[..., None]], -1)  # (..., 6, 5)
    best = sides.prod(-1).argmin(-1)[..., None, None]
    return canonical(found.take_along_dim(best, -2).squeeze(-2)).to(points.dtype)


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """Exact intersection over union `(N, M)`, float64, of boxes `(N, 5)` and `(M, 5)`; 0 for those without area."""
    a, b = first.double(), second.double()
    result = a.new_zeros(len(a), len(b))
    distance = torch.cdist(a[:, :2], b[:, :2], compute_mode="donot_use_mm_for_euclid_dist")
    reach = a[:, 2:4].norm(dim=1)[:, None] / 2 + b[:, 2:4].norm(dim=1) / 2
    rows, columns = (distance < reach).nonzero(as_tuple=True)  # the others cannot meet
    for row, column in zip(rows.split(_PAIRS), columns.split(_PAIRS), strict=True):
        one, other = a[row], b[column]
        shared = _shared_area(one, other)
        union = one[:, 2:4].prod(1) + other[:, 2:4].prod(1) - shared
        result[row, column] = (shared / union.clamp(min=1e-300)).clamp(0, 1)
    return result


def _shared_area(a: Tensor, b: Tensor) -> Tensor:
    """`(P,)` areas that pairs of boxes share.

    By Green's theorem, in the frame of b: pulling every point of the outline of a to the nearest point of b leaves the
    intersection inside it and nothing else, so its area is the integral of x dy along the pulled outline. Each edge has
    at most three pieces where that is linear. No points are sorted and no tolerance is needed.
    """
    x, y = in_frame(corners(a) - b[:, None, :2], b[:, 4:]).unbind(-1)
    dx, dy = x.roll(-1, 1) - x, y.roll(-1, 1) - y
    right, down = b[:, 2:3] / 2, b[:, 3:4] / 2

    def times(start: Tensor, step: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
        step = torch.where(step == 0, 1, step)  # without a step any time will do
        one, other = ((-side - start) / step).clamp(0, 1), ((side - start) / step).clamp(0, 1)
        return torch.minimum(one, other), torch.maximum(one, other)

    enter, leave = times(y, dy, down)
    cuts = [time.clamp(enter, leave) for time in times(x, dx, right)]
    time = torch.stack([enter, *cuts, leave])
    pulled = (x + time * dx).clamp(-right, right)
    return ((pulled[1:] + pulled[:-1]) / 2 * time.diff(dim=0) * dy).sum((0, 2)).abs()


def nms(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Indices of boxes `(N, 5)` that stay, by falling score: greedily, those that repeat none of their class.

    One repeats another when their intersection over union is above the threshold. Scores and labels are `(N,)`.
    """
    kept = labels.new_zeros(0, dtype=torch.int64)
    for block in scores.argsort(descending=True, stable=True).split(_BLOCK):
        block = block[~_repeats(boxes, labels, block, kept, threshold).any(1)]
        repeats, alive = (
            _repeats(boxes, labels, block, block, threshold).cpu(),
            torch.ones(len(block), dtype=torch.bool),
        )
        for place in range(len(block)):
            if alive[place]:
                alive[place + 1 :] &= ~repeats[place, place + 1 :]
        kept = torch.cat([kept, block[alive.to(block.device)]])
    return kept


def _repeats(boxes: Tensor, labels: Tensor, first: Tensor, second: Tensor, threshold: float) -> Tensor:
    return (box_iou(boxes[first], boxes[second]) > threshold) & (labels[first, None] == labels[second])
