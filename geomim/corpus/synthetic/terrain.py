"""Relief and what water makes of it: valleys, rivers that gather on their way, lakes where it stands."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from shapely import LineString

from geomim.corpus.synthetic.fields import enlarged, fractal, ranked, smooth

COARSE = 4  # pixels of a cell on which water flows
_PIECE = 24  # points of a river of one width


@dataclass(frozen=True)
class Terrain:
    """Ground before anything grows on it.

    Attributes:
        height: `(S, S)` float32 in pixels.
        above: `(S, S)` float32, height over the river that a place drains to, in pixels.
        lake: `(S, S)` bool.
        rivers: Courses and their widths, in pixels.
    """

    height: np.ndarray
    above: np.ndarray
    lake: np.ndarray
    rivers: list[tuple[LineString, float]]


def draw_terrain(rng: np.random.Generator, size: int) -> Terrain:
    """Fractal relief, worn by the water that runs down it.

    Depressions are filled and drained by priority flood (Barnes, Lehman and Mulla 2014, Computers & Geosciences 62), so
    that every cell has a way out; valleys are deeper the more water gathers in them.
    """
    n = size // COARSE
    axis = np.linspace(-1, 1, n, dtype=np.float32)
    turn = rng.uniform(0, 2 * np.pi)
    tilt = np.cos(turn) * axis[None] + np.sin(turn) * axis[:, None]
    raw = fractal(rng, n, 2.1) + 0.9 * tilt
    raw = 0.12 * raw + 2.2 * ranked(raw) ** 2.5  # plains below, mountains above
    raw += 0.015 * fractal(rng, n, 1)
    filled, receiver, order = _drain(raw, rng)
    rain = np.ones(n * n)
    rain[_source(filled, tilt)] += 0.7 * n * n  # a river from beyond
    for cell in order[::-1]:
        if receiver[cell] >= 0:
            rain[receiver[cell]] += rain[cell]
    gathered = rain.reshape(n, n)
    worn = smooth(filled - 0.07 * np.log(gathered) * (0.15 + ranked(filled)), 1.2)
    channel = gathered > 0.02 * n * n
    base = _base(worn, receiver, order, channel)
    depth = smooth(filled - raw, 1)
    lake = enlarged(depth, size) > max(0.05, float(np.quantile(depth, 0.95)))
    height = enlarged(worn, size, order=3)
    steep = smooth(np.hypot(*np.gradient(height)), 6)
    height += steep * 2.5 * fractal(rng, size, 1.6, longest=120)
    scale = np.float32(0.09 * size)
    above = smooth(np.maximum(enlarged(worn - base, size), 0), 3)
    rivers = [piece for line in _lines(receiver, order, channel) for piece in _course(line, gathered)]
    return Terrain(scale * height, scale * above, lake, rivers)


def _drain(height: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Height without depressions, the cell that each cell drains to (-1: out), and cells from the outlets upward."""
    n = height.shape[0]
    wide = np.full((n + 2, n + 2), -np.inf)
    wide[1:-1, 1:-1] = height
    edge = np.zeros((n, n), bool)
    edge[[0, -1]] = edge[:, [0, -1]] = True
    outlet = edge & (height <= np.quantile(height[edge], 0.2))
    level, width = wide.ravel().tolist(), n + 2
    rise = (1e-2 * rng.random(len(level)) ** 2).tolist()  # uneven, so that no river runs straight where it is flat
    receiver, order = [-2] * len(level), []
    queue = [(level[cell], cell) for cell in np.flatnonzero(np.pad(outlet, 1)).tolist()]
    for _, cell in queue:
        receiver[cell] = -1
    heapq.heapify(queue)
    steps = (-1, 1, -width, width, -width - 1, -width + 1, width - 1, width + 1)
    while queue:
        here, cell = heapq.heappop(queue)
        order.append(cell)
        for step in steps:
            other = cell + step
            if receiver[other] == -2 and level[other] > -np.inf:
                receiver[other] = cell
                level[other] = max(level[other], here + rise[other])
                heapq.heappush(queue, (level[other], other))
    inner = np.arange(width * width).reshape(width, width)[1:-1, 1:-1]
    number = np.full(width * width, -1)
    number[inner.ravel()] = np.arange(n * n)
    ways = np.array(receiver)[inner].ravel()
    return np.array(level)[inner], np.where(ways >= 0, number[ways], -1), number[order].tolist()


def _source(height: np.ndarray, tilt: np.ndarray) -> int:
    """Where a river comes in: the lowest cell of the border that lies uphill."""
    edge = np.zeros(height.shape, bool)
    edge[[0, -1]] = edge[:, [0, -1]] = True
    uphill = edge & (tilt > np.quantile(tilt[edge], 0.6))
    return int(np.where(uphill, height, np.inf).argmin())


def _base(height: np.ndarray, receiver: np.ndarray, order: list[int], channel: np.ndarray) -> np.ndarray:
    """Height of the channel that each cell drains to; of its outlet where it meets none."""
    base, wet, ways = height.ravel().tolist(), channel.ravel().tolist(), receiver.tolist()
    for cell in order:
        if not wet[cell] and ways[cell] >= 0:
            base[cell] = base[ways[cell]]
    return np.array(base, np.float32).reshape(height.shape)


def _lines(receiver: np.ndarray, order: list[int], channel: np.ndarray) -> list[list[int]]:
    """Cells of each river from its spring, or where it begins, to the sea, or to a river that is longer."""
    wet = channel.ravel()
    fed = np.zeros(wet.shape, bool)
    fed[receiver[wet & (receiver >= 0)]] = True
    far = np.zeros(wet.size)
    for cell in order[::-1]:
        if receiver[cell] >= 0:
            far[receiver[cell]] = max(far[receiver[cell]], far[cell] + 1)
    lines, seen, depth = [], set(), dict(zip(order, range(len(order)), strict=True))
    for cell in sorted(np.flatnonzero(wet & ~fed).tolist(), key=lambda cell: -depth[cell]):
        line = [cell]
        while receiver[line[-1]] >= 0 and line[-1] not in seen:
            seen.add(line[-1])
            line.append(int(receiver[line[-1]]))
        if len(line) > 4:
            lines.append(line)
    return lines


def _course(line: list[int], gathered: np.ndarray) -> list[tuple[LineString, float]]:
    """A smooth course through cells, in pieces that grow wider downstream."""
    row, col = np.unravel_index(line, gathered.shape)
    steps = np.linspace(0, len(line) - 1, 3 * len(line))
    x, y = (np.interp(steps, np.arange(len(line)), (axis + 0.5) * COARSE) for axis in (col, row))
    points = np.stack([x, y], 1)
    for _ in range(24):
        points[1:-1] = (points[:-2] + 2 * points[1:-1] + points[2:]) / 4
    share = gathered[row, col] / gathered.size
    width = smooth(np.clip(22 * np.sqrt(share), 2.5, 26), 3)
    cuts = range(0, len(points) - 1, _PIECE)
    return [(LineString(points[at : at + _PIECE + 1]), float(width[min(at // 3, len(line) - 1)])) for at in cuts]
