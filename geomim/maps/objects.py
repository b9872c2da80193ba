"""Objects of a scene: boxes that are found window by window become one table, each object once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from geomim.corpus.scenes import Scene
from geomim.maps.classes import card_of, tags_for
from geomim.maps.files.layers import layer, say
from geomim.maps.scenes.areas import Area
from geomim.maps.scenes.ground import Ground
from geomim.maps.walk.finder import LABEL, SCORE, Finder, find
from geomim.maps.walk.looker import Prepare
from geomim.maps.walk.strips import Strips, told_when_full
from geomim.maps.walk.windows import Walk

_ROWS = 1 << 14  # of the table that are written at a time


def draw(
    scene: Scene,
    prepare: Prepare,
    finder: Finder,
    walk: Walk,
    path: Path,
    model: str,
    threshold: float = 0.0,
    also: Mapping[str, Any] | None = None,
    area: Area | None = None,
    batch: int = 16,
) -> None:
    """Write the objects of a scene; see `write_objects`.

    It goes on where an earlier call with the same arguments was stopped.

    Args:
        scene: What is looked at.
        prepare: Brings its numbers to the contract.
        finder: What finds.
        walk: Where its windows lie.
        path: The file.
        model: What the file says that it was made with.
        threshold: Objects of a lower score are left out.
        also: What else the file depends on, such as the threshold.
        area: Windows that it does not touch are not looked at, and objects whose middle lies outside are left out.
        batch: Windows looked at together.

    Raises:
        InputError: The scene cannot be read somewhere, another process writes the file, or the disk is full. What is
            found stays, and the same call goes on with it.
    """
    card = card_of(scene, finder, walk, also)
    with told_when_full(path), Strips(path, card | {"device": finder.device.type}) as strips:
        if strips.done < len(walk.rows):
            wanted = None if area is None else area.wants(finder.side)
            found = find(scene, walk, finder, prepare, batch, strips.done, wanted)
            strips.fill(found, _packed)
        rows = (strip[0, 1:] for strip in strips)
        tags = tags_for(scene, card, finder.made_by, model)
        low = any((strip[0, 1:, SCORE] < threshold).any() for strip in strips)
        once = merged(rows, walk, finder.overlap, threshold)
        said = write_objects(path, once, scene, finder.classes, finder.rotated, area, tags)
        strips.remove()
    say([*said[:-1], said[-1] + (f"; what scores below {threshold:g} is left out (--threshold)" if low else "")])


def _packed(boxes: np.ndarray) -> np.ndarray:
    """Boxes as a strip, below a row of zeros: a raster has one row at least."""
    return np.concatenate([np.zeros((1, 10)), boxes])[None]


def merged(rows: Iterable[np.ndarray], walk: Walk, overlap: float, threshold: float = 0.0) -> Iterator[np.ndarray]:
    """Boxes of a scene, each object once: non-maximum suppression of each class over all windows.

    What comes is what suppression of all boxes at once would give, but only those are in memory that rows to come may
    still touch. Boxes below the threshold suppress none above it, and are most of all: they are left out first.

    Args:
        rows: Boxes `(N, 10)` of each row of windows: corners in columns and rows of the scene, score and label.
        walk: Where the windows lie.
        overlap: Intersection over union above which two boxes of a class are one.
        threshold: Boxes of a lower score are left out.
    """
    waiting = np.zeros((0, 10))
    # a turned box may reach beyond its window
    below = [*(top - walk.side / 2 for top in walk.rows[1:]), np.inf]
    for boxes, border in zip(rows, below, strict=True):
        boxes = np.concatenate([waiting, boxes[boxes[:, SCORE] >= threshold]])
        complete = boxes[:, 1:SCORE:2].max(1) <= border
        stay, wait = decided(boxes[:, SCORE], alike(boxes, overlap), complete)
        yield boxes[stay]
        waiting = boxes[wait]


def alike(boxes: np.ndarray, overlap: float) -> np.ndarray:
    """Pairs `(P, 2)` of boxes `(N, 10)` of a class whose intersection over union is above `overlap`."""
    outlines = shapely.polygons(boxes[:, :SCORE].reshape(-1, 4, 2))
    areas, bounds = shapely.area(outlines), shapely.bounds(outlines)
    one, other = shapely.STRtree(outlines).query(outlines)
    near = (one < other) & (boxes[one, LABEL] == boxes[other, LABEL])
    one, other = one[near], other[near]

    low, high = np.maximum(bounds[one, :2], bounds[other, :2]), np.minimum(bounds[one, 2:], bounds[other, 2:])
    shared, both = (high - low).prod(1), areas[one] + areas[other]
    # what bounds share is no less than what boxes do, and far faster; of upright ones it is the same
    near = shared * (1 + 1e-9) > overlap * (both - shared)
    one, other, shared, both = one[near], other[near], shared[near], both[near]
    upright = np.isclose(areas, (bounds[:, 2:] - bounds[:, :2]).prod(1), rtol=1e-9)
    turned = ~(upright[one] & upright[other])
    shared[turned] = shapely.area(shapely.intersection(outlines[one[turned]], outlines[other[turned]]))
    same = shared > overlap * (both - shared)
    return np.stack([one[same], other[same]], 1)


def decided(scores: np.ndarray, pairs: np.ndarray, complete: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which boxes `(N,)` stay, and which have to wait: greedily by falling score, no pair of those that stay.

    A box goes as soon as one of its pairs that scores higher stays. It waits where such a one waits, or where others
    may still come that touch it.

    Args:
        scores: `(N,)`.
        pairs: `(P, 2)` of those that are one object.
        complete: `(N,)` whether all that touch a box are here.
    """
    rank = np.empty(len(scores), int)
    rank[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
    first = rank[pairs[:, 0]] < rank[pairs[:, 1]]
    higher, lower = np.where(first, pairs.T, pairs.T[::-1])
    above = dict[int, list[int]]()
    for one, other in zip(higher[order := np.argsort(rank[lower])].tolist(), lower[order].tolist(), strict=True):
        above.setdefault(other, []).append(one)
    stay, wait = complete.tolist(), (~complete).tolist()
    for one, others in above.items():  # by falling score
        if any(stay[other] for other in others):
            stay[one] = wait[one] = False
        elif any(wait[other] for other in others):
            stay[one], wait[one] = False, True
    return np.array(stay, bool), np.array(wait, bool)


def write_objects(
    out: Path,
    found: Iterable[np.ndarray],
    scene: Scene,
    classes: Sequence[str],
    rotated: bool = False,
    area: Area | None = None,
    tags: Mapping[str, str] | None = None,
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
        area: Objects whose middle lies outside are left out.
        tags: What is told beside.

    Returns:
        What is to be said, last what was written.
    """
    ground = Ground.of(scene)
    counts, names = np.zeros(len(classes), int), np.array(classes, object)
    with layer(out, ground.crs, tags) as write:
        for place, boxes in enumerate(_together(found)):
            points = boxes[:, :SCORE].reshape(-1, 4, 2)
            if area is not None:
                inside = area.holds(points.mean(1))
                boxes, points = boxes[inside], points[inside]
            labels = boxes[:, LABEL].astype(int)
            columns = {"class": names[labels], "score": boxes[:, SCORE].round(4)} | _measures(points, ground, rotated)
            columns["scene"] = np.full(len(boxes), scene.uri, object)
            if len(boxes) or not place:  # the first one says which columns there are
                write(columns, ground.shapes(shapely.polygons(points)))
            counts += np.bincount(labels, minlength=len(classes))
    each = ", ".join(f"{count} {name}" for name, count in zip(classes, counts, strict=True) if count)
    return [*ground.notes(str(out)), f"wrote {out}: {counts.sum()} objects" + (f" ({each})" if each else "")]


def _together(found: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Boxes in batches of some thousands, as opening a file takes its time; at least one, maybe without a box."""
    waiting = [np.zeros((0, 10))]
    for boxes in found:
        waiting.append(boxes)
        if sum(map(len, waiting)) >= _ROWS:
            yield np.concatenate(waiting)
            waiting = [np.zeros((0, 10))]
    yield np.concatenate(waiting)


def _measures(points: np.ndarray, ground: Ground, rotated: bool) -> dict[str, np.ndarray]:
    """What is measured of outlines `(N, 4, 2)`."""
    areas, middles = shapely.area(shapely.polygons(points)), points.mean(1)
    name, areas = ("area_m2", areas * ground.areas(*middles.T)) if ground.measured else ("area_px", areas)
    found = {name: areas.round(3)}
    if rotated:
        found["angle"] = (ground.bearings(points[:, 0], points[:, 1]) % 180).round(2)
    return found
