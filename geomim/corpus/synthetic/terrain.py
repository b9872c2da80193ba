"""Relief and what water makes of it: valleys, rivers that gather on their way, lakes where it stands."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from shapely import LineString

from geomim.corpus.synthetic.fields import enlarged, fractal, ranked, smooth

_COARSE = 4  # pixels of a cell on which water flows
_SPRING = 1300  # cells whose rain makes a river
_PIECE = 24  # points of a river of one width


@dataclass(frozen=True)
class Terrain:
    """Ground before anything grows on it.

    Attributes:
        height: `(S, S)` float32 in pixels.
        hand: `(S, S)` float32, height above the nearest drainage (HAND), in pixels.
        lake: `(S, S)` bool.
        rivers: Courses and their widths, in pixels.
    """

    height: np.ndarray
    hand: np.ndarray
    lake: np.ndarray
    rivers: list[tuple[LineString, float]]


def draw_terrain(rng: np.random.Generator, size: int) -> Terrain:
    """Fractal relief, worn by the water that runs down it: valleys are deeper the more of it gathers in them."""
    n = size // _COARSE + 2  # with a frame that nothing flows through
    axis = np.linspace(-1, 1, n, dtype=np.float32)
    turn = rng.uniform(0, 2 * np.pi)
    tilt = np.cos(turn) * axis[None] + np.sin(turn) * axis[:, None]
    raw = fractal(rng, n, 2.1) + 0.9 * tilt
    raw = 0.12 * raw + 2.2 * ranked(raw) ** 2.5  # plains below, mountains above
    raw += 0.015 * fractal(rng, n, 1)
    filled, receiver, order = _drain(raw, rng)
    accumulation = np.ones(n * n)
    edge = _edge(n)
    uphill = edge & (tilt > np.quantile(tilt[edge], 0.6))
    accumulation[np.where(uphill, filled, np.inf).argmin()] += 0.7 * n * n  # a river from beyond
    for cell in order[::-1]:
        accumulation[receiver[cell]] += accumulation[cell]
    accumulation = accumulation.reshape(n, n)
    worn = smooth(filled - 0.07 * np.log(accumulation) * (0.15 + ranked(filled)), 1.2)
    channel = (accumulation > _SPRING).ravel()
    base = worn.ravel().copy()  # height of the channel that a cell drains to
    for cell in order:
        if not channel[cell] and receiver[cell]:
            base[cell] = base[receiver[cell]]
    inner = (slice(1, -1), slice(1, -1))
    depth = smooth(filled - raw, 1)[inner]
    lake = enlarged(depth, size) > max(0.05, float(np.quantile(depth, 0.95)))
    height = enlarged(worn[inner], size, order=3)
    height += 2.5 * smooth(np.hypot(*np.gradient(height)), 6) * fractal(rng, size, 1.6, longest=120)
    hand = smooth(np.maximum(enlarged((worn - base.reshape(n, n))[inner], size), 0), 3)
    scale = np.float32(0.09 * size)
    return Terrain(scale * height, scale * hand, lake, _rivers(receiver, order, channel, accumulation))


def _edge(n: int) -> np.ndarray:
    """The outermost cells within the frame."""
    edge = np.zeros((n, n), bool)
    edge[1:-1, 1:-1] = True
    edge[2:-2, 2:-2] = False
    return edge


def _drain(height: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[int], list[int]]:
    """Fill depressions by priority flood, so that every cell has a way out.

    Barnes, Lehman and Mulla (2014), Computers & Geosciences 62, their algorithm 4.

    Returns:
        Height without depressions, the cell that each cell drains to (0, a corner of the frame, where it flows out),
        and cells from the outlets upward.
    """
    n, edge = len(height), _edge(len(height))
    level, order = height.ravel().tolist(), []
    rise = (1e-2 * rng.random(len(level)) ** 2).tolist()  # uneven, so that no river runs straight where it is flat
    receiver = np.zeros((n, n), int)
    receiver[1:-1, 1:-1] = -1  # not known yet
    outlets = np.flatnonzero(edge & (height <= np.quantile(height[edge], 0.2)))
    receiver.ravel()[outlets] = 0
    receiver = receiver.ravel().tolist()
    queue = [(level[cell], cell) for cell in outlets.tolist()]
    heapq.heapify(queue)
    while queue:
        here, cell = heapq.heappop(queue)
        order.append(cell)
        for other in (cell - 1, cell + 1, cell - n, cell + n, cell - n - 1, cell - n + 1, cell + n - 1, cell + n + 1):
            if receiver[other] < 0:
                receiver[other] = cell
                level[other] = max(level[other], here + rise[other])
                heapq.heappush(queue, (level[other], other))
    return np.array(level).reshape(n, n), receiver, order


def _rivers(
    receiver: list[int], order: list[int], channel: np.ndarray, accumulation: np.ndarray
) -> list[tuple[LineString, float]]:
    """Smooth courses from each spring to the border or to a river that comes from higher, wider downstream."""
    rivers: list[tuple[LineString, float]] = []
    seen: set[int] = set()
    for spring in order[::-1]:
        line = [spring]
        while channel[spring] and line[-1] not in seen and receiver[line[-1]]:
            seen.add(line[-1])
            line.append(receiver[line[-1]])
        if len(line) < 5:
            continue
        row, col = np.unravel_index(line, accumulation.shape)
        steps = np.linspace(0, len(line) - 1, 3 * len(line))
        x, y = (np.interp(steps, np.arange(len(line)), (axis - 0.5) * _COARSE) for axis in (col, row))
        points = np.stack([x, y], 1)
        for _ in range(24):
            points[1:-1] = (points[:-2] + 2 * points[1:-1] + points[2:]) / 4
        width = smooth(np.clip(0.085 * np.sqrt(accumulation[row, col]), 2.5, 26), 3)
        for at in range(0, len(points) - 1, _PIECE):
            rivers.append((LineString(points[at : at + _PIECE + 1]), float(width[at // 3])))
    return rivers
