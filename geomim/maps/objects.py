"""Objects of a scene: boxes that are found window by window become one table, each object once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import shapely
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from geomim.corpus.scenes import Scene
from geomim.maps.areas import Area
from geomim.maps.ground import Ground
from geomim.maps.layers import layer
from geomim.maps.looker import Prepare
from geomim.maps.windows import Walk, batches
from geomim.sensors import BandContract

_SCORE, _LABEL = 8, 9
"""Places in a row of boxes `(N, 10)`: x and y of four corners in columns and rows of the scene, score and label."""


@dataclass(frozen=True)
class Finder:
    """What finds objects in windows of a scene.

    Attributes:
        contract: Bands and statistics of its input.
        side: Of a window in pixels.
        classes: Names in the order of the labels.
        made_by: Digest of encoder and head.
        find: Normalised images `(B, C, S, S)` and validity `(B, 1, S, S)` bool, on `device`, to `boxes`, `scores`
            `(N,)` and `labels` `(N,)` of each image; boxes are `(N, 4)` x1, y1, x2, y2, or `(N, 5)` centre, sides and
            the angle of the first side in radians, clockwise on screen.
        device: Where it runs.
        overlap: Intersection over union above which two boxes of a class are one object.
        rotated: Boxes are turned.
        notes: What is to be said once.
        gsd: Metres a pixel of what it was fitted on, where they are known.
    """

    contract: BandContract
    side: int
    classes: tuple[str, ...]
    made_by: str
    find: Callable[[Tensor, Tensor], list[dict[str, Tensor]]]
    device: torch.device
    overlap: float = 0.5
    rotated: bool = False
    notes: tuple[str, ...] = ()
    gsd: float | None = None

    def walk(self, scene: Scene, overlap: float) -> Walk:
        """Where windows lie over a scene that share so much of their side with the next, from 0 to 0.9."""
        return Walk(scene.height, scene.width, 1, self.side, min(round(overlap * self.side), self.side - 1))


def find(
    scene: Scene,
    walk: Walk,
    finder: Finder,
    prepare: Prepare,
    batch: int = 16,
    start: int = 0,
    wanted: Callable[[int, int], bool] | None = None,
) -> Iterator[np.ndarray]:
    """Boxes `(N, 10)` of one row of windows after another; see `merged`.

    A box that a border of its window cuts gives way to the windows that hold it whole, whether these find it or not:
    they see more of it. Boxes whose middle is no image are left out.

    Args:
        scene: Read a window at a time.
        walk: Where the windows lie.
        finder: What finds.
        prepare: What brings the scene's numbers to the finder's contract.
        batch: Windows looked at together.
        start: Row of windows to go on with.
        wanted: Whether the window with this top and left is looked at; all are where None.
    """
    tops, lefts = walk.rows, walk.columns
    looked = np.array([[wanted is None or wanted(top, left) for left in lefts] for top in tops])
    found: list[np.ndarray] = []
    for row, columns, numbers, valid, last in batches(scene, walk, batch, start, wanted):
        if columns:
            # a border that is repeated repeats objects
            valid[:, scene.height - tops[row] :], valid[..., scene.width :] = False, False
            with torch.inference_mode():
                images, seen = prepare(numbers.to(finder.device), valid.to(finder.device))
                answers = finder.find(images, seen)
            for left, one, here in zip(columns, answers, seen[:, 0].cpu().numpy(), strict=True):
                boxes = _rows(one)
                boxes = boxes[_on_image(boxes, here)]
                boxes[:, :_SCORE] += [left, tops[row]] * 4
                found.append(boxes[_kept(boxes, walk, tops[row], left, looked)])
        if last:
            yield np.concatenate([np.zeros((0, 10)), *found])
            found = []


def _rows(answer: dict[str, Tensor]) -> np.ndarray:
    boxes, scores, labels = (answer[key].double().cpu().numpy() for key in ("boxes", "scores", "labels"))
    return np.concatenate([corners(boxes).reshape(-1, 8), scores[:, None], labels[:, None]], 1)


def corners(boxes: np.ndarray) -> np.ndarray:
    """Corners `(N, 4, 2)` of boxes as `Finder.find` gives them, clockwise on screen; the first side comes first."""
    if boxes.shape[1] == 4:
        return boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]
    centre, sides, angle = boxes[:, None, :2], boxes[:, 2:4], boxes[:, 4]
    along = np.stack([np.cos(angle), np.sin(angle)], 1) * sides[:, :1] / 2
    across = np.stack([-np.sin(angle), np.cos(angle)], 1) * sides[:, 1:] / 2
    return centre + np.stack([-along - across, along - across, along + across, across - along], 1)


def _on_image(boxes: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Which boxes of a window have a middle that is image."""
    x, y = np.floor(boxes[:, :_SCORE].reshape(-1, 4, 2).mean(1)).astype(int).T
    inside = (x >= 0) & (y >= 0) & (x < seen.shape[1]) & (y < seen.shape[0])
    inside[inside] = seen[y[inside], x[inside]]
    return inside


def _kept(boxes: np.ndarray, walk: Walk, top: int, left: int, looked: np.ndarray) -> np.ndarray:
    """Which boxes of a window no border of it cuts, or no window that is looked at holds whole."""
    points = boxes[:, :_SCORE].reshape(-1, 4, 2)
    held, whole = [], np.ones(len(boxes), bool)
    sides = ((1, walk.height, walk.rows, top), (0, walk.width, walk.columns, left))
    for axis, length, starts, own in sides:
        low, high = points[..., axis].min(1), points[..., axis].max(1)
        held.append(_holds(low[:, None], high[:, None], np.array(starts), walk.side, length))
        whole &= _holds(low, high, np.array(own), walk.side, length)
    rows, columns = held
    return whole | ~((rows.astype(int) @ looked > 0) & columns).any(1)


def _holds(low: np.ndarray, high: np.ndarray, start: np.ndarray, side: int, length: int) -> np.ndarray:
    """Whether windows hold what lies from `low` to `high` whole, a little off their borders inside the scene."""
    off = max(side // 32, 1)
    return ((start == 0) | (low >= start + off)) & ((start + side >= length) | (high <= start + side - off))


def merged(rows: Iterable[np.ndarray], walk: Walk, overlap: float) -> Iterator[np.ndarray]:
    """Boxes of a scene, each object once: non-maximum suppression of each class over all windows.

    What comes is what suppression of all boxes at once would give, but only those are in memory that rows to come may
    still touch.

    Args:
        rows: Boxes `(N, 10)` of each row of windows: corners in columns and rows of the scene, score and label.
        walk: Where the windows lie.
        overlap: Intersection over union above which two boxes of a class are one.
    """
    waiting = np.zeros((0, 10))
    # a turned box may reach beyond its window
    below = [*(top - walk.side / 2 for top in walk.rows[1:]), np.inf]
    for boxes, border in zip(rows, below, strict=True):
        boxes = np.concatenate([waiting, boxes])
        pairs = alike(boxes, overlap)
        links = coo_array((np.ones(len(pairs), bool), tuple(pairs.T)), shape=(len(boxes), len(boxes)))
        count, sets = connected_components(links, directed=False) if len(boxes) else (0, np.zeros(0, int))
        lowest = np.full(count, -np.inf)
        np.maximum.at(lowest, sets, boxes[:, 1:_SCORE:2].max(1))
        done = lowest[sets] <= border
        yield boxes[done & best(boxes[:, _SCORE], pairs)]
        waiting = boxes[~done]


def alike(boxes: np.ndarray, overlap: float) -> np.ndarray:
    """Pairs `(P, 2)` of boxes `(N, 10)` of a class whose intersection over union is above `overlap`."""
    outlines = shapely.polygons(boxes[:, :_SCORE].reshape(-1, 4, 2))
    one, other = shapely.STRtree(outlines).query(outlines, "intersects")
    near = (one < other) & (boxes[one, _LABEL] == boxes[other, _LABEL])
    one, other = one[near], other[near]
    shared, areas = shapely.area(shapely.intersection(outlines[one], outlines[other])), shapely.area(outlines)
    same = shared > overlap * (areas[one] + areas[other] - shared)
    return np.stack([one[same], other[same]], 1)


def best(scores: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Which boxes `(N,)` stay: greedily by falling score, those that are no pair with one that stays."""
    kept, partners = np.ones(len(scores), bool), dict[int, list[int]]()
    for one, other in pairs.tolist():
        partners.setdefault(one, []).append(other)
        partners.setdefault(other, []).append(one)
    members = np.array(sorted(partners), int)
    for one in members[np.argsort(-scores[members], kind="stable")].tolist():
        if kept[one]:
            kept[partners[one]] = False
    return kept


def write_objects(
    out: Path,
    found: Iterable[np.ndarray],
    scene: Scene,
    classes: Sequence[str],
    rotated: bool = False,
    threshold: float = 0.0,
    area: Area | None = None,
) -> list[str]:
    """Write objects as polygons in the scene's coordinate reference system.

    Args:
        out: A `.gpkg` or `.parquet` with columns `class`, `score`, `area_m2` on the ellipsoid (`area_px` where nothing
            tells metres), of turned boxes `angle`, degrees from 0 to 180 that the first side is turned clockwise from
            north (from the upper side of a scene without a place), and `scene`.
        found: Boxes as `merged` gives them.
        scene: What they were found in.
        classes: Names by label.
        rotated: Whether the boxes are turned.
        threshold: Boxes of a lower score are left out.
        area: Objects whose middle lies outside are left out.

    Returns:
        What is to be said.
    """
    ground = Ground.of(scene)
    counts, below, names = np.zeros(len(classes), int), 0, np.array(classes, object)
    with layer(out, ground.crs) as write:
        for place, boxes in enumerate(chain([np.zeros((0, 10))], found)):
            high = boxes[:, _SCORE] >= threshold
            below += int((~high).sum())
            boxes = boxes[high]
            points = boxes[:, :_SCORE].reshape(-1, 4, 2)
            if area is not None:
                inside = area.holds(points.mean(1))
                boxes, points = boxes[inside], points[inside]
            labels = boxes[:, _LABEL].astype(int)
            columns = {"class": names[labels], "score": boxes[:, _SCORE].round(4)} | _measures(points, ground, rotated)
            columns["scene"] = np.full(len(boxes), scene.uri, object)
            if len(boxes) or not place:  # the first one says which columns there are
                write(columns, ground.shapes(shapely.polygons(points)))
            counts += np.bincount(labels, minlength=len(classes))
    each = ", ".join(f"{count} {name}" for name, count in zip(classes, counts, strict=True) if count)
    said = f"wrote {out}: {counts.sum()} objects" + (f" ({each})" if each else "")
    left = f"; {below} that score below {threshold:g} are left out (--threshold)" if below else ""
    return [*ground.notes(str(out)), said + left]


def _measures(points: np.ndarray, ground: Ground, rotated: bool) -> dict[str, np.ndarray]:
    """What is measured of outlines `(N, 4, 2)`."""
    areas, middles = shapely.area(shapely.polygons(points)), points.mean(1)
    name, areas = ("area_m2", areas * ground.areas(*middles.T)) if ground.measured else ("area_px", areas)
    found = {name: areas.round(3)}
    if rotated:
        found["angle"] = (ground.bearings(points[:, 0], points[:, 1]) % 180).round(2)
    return found
