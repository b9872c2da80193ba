"""Land divided by people: one recursive subdivision gives roads, fields, streets and building lots."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import shapely
from scipy import ndimage

from geomim.corpus.synthetic.fields import noise

_STEP = 10.0  # pixels between the points of a line that bends with the land


class Cut(NamedTuple):
    """A line along which land was divided, `(2, 2)` or bent to `(n, 2)` points, and the area that it divided."""

    line: np.ndarray
    area: float


def divide(
    rng: np.random.Generator, lands: list[np.ndarray], goal: Callable[[np.ndarray], float]
) -> tuple[list[np.ndarray], list[Cut]]:
    """Divide land into parcels by cuts across its longest side, each nearly square to it.

    Args:
        rng: Source of randomness.
        lands: Convex polygons, `(n, 2)` corners `(x, y)` in pixels.
        goal: Area of a parcel around a point, in pixels.

    Returns:
        Parcels, and the cuts between them.
    """
    queue, parcels, cuts = list(lands), [], []
    while queue:
        land = queue.pop()
        centre, area = land.mean(0), _area(land)
        if area < goal(centre) * rng.uniform(0.8, 1.6):
            parcels.append(land)
            continue
        ways = np.roll(land, -1, 0) - land
        long = ways[np.hypot(*ways.T).argmax()]
        angle = np.arctan2(long[1], long[0]) + np.pi / 2 + rng.normal(0, 0.09)
        point = centre + rng.uniform(-0.18, 0.18) * long
        one, two, ends = _halves(land, point, np.array([np.cos(angle), np.sin(angle)]))
        cuts.append(Cut(ends, area))
        queue += [one, two]
    return parcels, cuts


def turned_square(rng: np.random.Generator, size: int) -> np.ndarray:
    """Corners of a square that lies askew and reaches far beyond the scene."""
    turn, half = rng.uniform(-0.6, 0.6), 0.8 * size
    corners = np.array([(-half, -half), (half, -half), (half, half), (-half, half)])
    return corners @ np.array([(np.cos(turn), -np.sin(turn)), (np.sin(turn), np.cos(turn))]) + size / 2


class Bend:
    """Moves points as land bends, so that no road is straight for long."""

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self._moves = [16 * noise(rng, size, 200, 700) for _ in range(2)]

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """`(n, 2)` points of a line, more of them, moved."""
        points = shapely.get_coordinates(shapely.segmentize(shapely.LineString(points), _STEP))
        moves = [ndimage.map_coordinates(axis, points.T[::-1], order=1, mode="nearest") for axis in self._moves]
        return points + np.stack(moves, 1)

    def area(self, corners: np.ndarray) -> shapely.Polygon:
        """A polygon of moved corners."""
        return shapely.Polygon(self(np.vstack([corners, corners[:1]])))


def _area(land: np.ndarray) -> float:
    x, y = land.T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def _halves(land: np.ndarray, point: np.ndarray, way: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two sides of a line through a convex polygon, and where the line meets its border."""
    side = (land - point) @ np.array([-way[1], way[0]])
    halves, ends = ([], []), []
    for here, there, one, two in zip(land, np.roll(land, -1, 0), side, np.roll(side, -1), strict=True):
        halves[int(one > 0)].append(here)
        if (one > 0) != (two > 0):
            meet = here + (there - here) * one / (one - two)
            ends.append(meet)
            halves[0].append(meet)
            halves[1].append(meet)
    return np.array(halves[0]), np.array(halves[1]), np.array(ends)


def extent(shape: shapely.Polygon) -> tuple[float, float, float]:
    """Angle of a parcel's longer side in radians, and the lengths of both."""
    ways = np.diff(shapely.get_coordinates(shapely.oriented_envelope(shape))[:3], axis=0)
    short, long = sorted(ways, key=lambda way: float(np.hypot(*way)))
    return float(np.arctan2(long[1], long[0])), float(np.hypot(*long)), float(np.hypot(*short))
