"""Rotated boxes `(cx, cy, w, h, angle)`: their corners, exact overlap and non-maximum suppression.

Centre and sides are in pixels, x to the right and y down, and the first pixel covers 0..1. The angle is in radians: how
far the side w is turned from the x axis towards the y axis, so a growing angle turns clockwise on screen. A box turned
by pi is the same box, and so is one turned by pi / 2 with w and h exchanged. `canonical` keeps one of them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_PAIRS = 1 << 16
_BLOCK = 512


def canonical(boxes: Tensor) -> Tensor:
    """Each box as w >= h with its angle in [-pi/2, pi/2); the angle of a square may lie anywhere there.

    Args:
        boxes: `(..., 5)` boxes.
    """
    cx, cy, w, h, angle = boxes.unbind(-1)
    angle = torch.where(w < h, angle + math.pi / 2, angle)
    angle = torch.remainder(angle + math.pi / 2, math.pi) - math.pi / 2
    angle = torch.where(angle >= math.pi / 2, angle - math.pi, angle)  # a remainder rounds up to its divisor
    return torch.stack([cx, cy, torch.maximum(w, h), torch.minimum(w, h), angle], -1)


def corners(boxes: Tensor) -> Tensor:
    """The four corners of boxes, clockwise on screen, the upper left one of an unturned box first.

    Args:
        boxes: `(..., 5)` boxes.

    Returns:
        `(..., 4, 2)` points x, y.
    """
    centre, sides, angle = boxes[..., None, :2], boxes[..., None, 2:4], boxes[..., None, 4]
    x, y = (sides / 2 * sides.new_tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]])).unbind(-1)
    cos, sin = angle.cos(), angle.sin()
    return centre + torch.stack([x * cos - y * sin, x * sin + y * cos], -1)


def from_corners(points: Tensor) -> Tensor:
    """The rectangles of least area around four points each, as canonical boxes.

    A side of the least rectangle lies on the line through two of its points, so all six pairs are tried.

    Args:
        points: `(..., 4, 2)` points x, y in any order; quadrilaterals (DOTA) need not be rectangles.

    Returns:
        `(..., 5)` boxes. Points on one line give h = 0.
    """
    exact = points.double()
    first, second = torch.triu_indices(4, 4, 1, device=points.device)
    along = exact[..., second, :] - exact[..., first, :]
    angle = torch.atan2(along[..., 1], along[..., 0])  # (..., 6); 0 for equal points, which is a direction as any
    axes = torch.stack([angle.cos(), angle.sin(), -angle.sin(), angle.cos()], -1).unflatten(-1, (2, 2))
    places = exact[..., None, :, :] @ axes.mT  # (..., 6, 4, 2): the points in the frame of each direction
    low, high = places.amin(-2), places.amax(-2)
    best = (high - low).prod(-1).argmin(-1)[..., None, None]
    low, high = (side.take_along_dim(best, -2) for side in (low, high))
    centre = ((low + high) / 2) @ axes.take_along_dim(best[..., None], -3).squeeze(-3)
    found = torch.cat([centre, high - low, angle.take_along_dim(best.squeeze(-1), -1)[..., None]], -1)
    return canonical(found.squeeze(-2)).to(points.dtype)


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of all pairs, exact; 0 for boxes without area.

    Args:
        first: `(N, 5)` boxes.
        second: `(M, 5)` boxes.

    Returns:
        `(N, M)` float64 in 0..1.
    """
    a, b = first.double(), second.double()
    result = a.new_zeros(len(a), len(b))
    distance = torch.cdist(a[:, :2], b[:, :2], compute_mode="donot_use_mm_for_euclid_dist")
    reach = a[:, 2:4].norm(dim=1)[:, None] / 2 + b[:, 2:4].norm(dim=1) / 2
    rows, columns = (distance < reach).nonzero(as_tuple=True)  # the others cannot meet
    for row, column in zip(rows.split(_PAIRS), columns.split(_PAIRS), strict=True):
        one, other = a[row], b[column]
        shared = _shared_area(one, other)
        union = one[:, 2] * one[:, 3] + other[:, 2] * other[:, 3] - shared
        result[row, column] = (shared / union.clamp(min=1e-300)).clamp(0, 1)
    return result


def _shared_area(a: Tensor, b: Tensor) -> Tensor:
    """`(P,)` areas that pairs of boxes share.

    By Green's theorem, in the frame of b: pulling every point of the outline of a to the nearest point of b leaves the
    intersection inside it and nothing else, so its area is the integral of x dy along the pulled outline. Each edge has
    at most three pieces where that is linear. No points are sorted and no tolerance is needed.
    """
    dx, dy = (corners(a) - b[:, None, :2]).unbind(-1)
    cos, sin = b[:, 4:].cos(), b[:, 4:].sin()
    x, y = dx * cos + dy * sin, dy * cos - dx * sin
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
    """Keep of overlapping boxes of one class the one with the highest score (greedy, class by class).

    Args:
        boxes: `(N, 5)` boxes.
        scores: `(N,)` scores.
        labels: `(N,)` classes.
        threshold: A box goes when its intersection over union with one that stays is above.

    Returns:
        `(K,)` indices that stay, by falling score.
    """
    apart = boxes.double()
    centre, reach = apart[:, :2], apart[:, 2:4].norm(dim=1, keepdim=True)
    span = ((centre + reach).amax() - (centre - reach).amin()) if len(boxes) else 0
    apart = torch.cat([centre + (labels * span)[:, None], apart[:, 2:]], 1)  # classes do not meet
    kept = labels.new_zeros(0, dtype=torch.int64)
    for block in scores.argsort(descending=True, stable=True).split(_BLOCK):
        block = block[~(box_iou(apart[block], apart[kept]) > threshold).any(1)]
        overlap = (box_iou(apart[block], apart[block]) > threshold).cpu()
        alive = torch.ones(len(block), dtype=torch.bool)
        for place in range(len(block)):
            if alive[place]:
                alive[place + 1 :] &= ~overlap[place, place + 1 :]
        kept = torch.cat([kept, block[alive.to(block.device)]])
    return kept
