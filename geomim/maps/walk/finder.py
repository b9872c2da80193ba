"""What finds objects in windows of a scene, and the walk over the scene that keeps what is found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from geomim.corpus.scenes import Scene
from geomim.errors import InputError
from geomim.maps.walk.looker import Prepare
from geomim.maps.walk.windows import Walk, batches
from geomim.sensors import BandContract

SCORE, LABEL = 8, 9
"""Places in a row of boxes `(N, 10)`: x and y of four corners in columns and rows of the scene, score and label."""

_LEAST = 0.01  # square pixels of an object


@dataclass(frozen=True)
class Finder:
    """What finds objects in windows of a scene.

    Attributes:
        contract: Bands and statistics of its input.
        side: Of a window in pixels.
        classes: Names in the order of the labels.
        made_by: Digest of encoder and head.
        find: Normalised images `(B, C, S, S)` and validity `(B, 1, S, S)` bool, on `device`, to `boxes`, `scores`
            `(N,)` and `labels` `(N,)` of each image; boxes as `corners` takes them.
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
        return Walk.over(scene, 1, self.side, overlap)


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

    Raises:
        InputError: The scene cannot be read somewhere, or the model's answers are not finite.
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
                if not np.isfinite(boxes).all():
                    place = f"row {tops[row]}, column {left}"
                    raise InputError(f"'{scene.uri}': boxes at {place} are not finite: look at the model's weights")
                boxes = boxes[_has_area(boxes)]
                boxes = boxes[_on_image(boxes, here)]
                boxes[:, :SCORE] += [left, tops[row]] * 4
                found.append(boxes[_kept(boxes, walk, tops[row], left, looked)])
        if last:
            yield np.concatenate([np.zeros((0, 10)), *found])
            found = []


def _rows(answer: dict[str, Tensor]) -> np.ndarray:
    boxes, scores, labels = (answer[key].double().cpu().numpy() for key in ("boxes", "scores", "labels"))
    return np.concatenate([corners(boxes).reshape(-1, 8), scores[:, None], labels[:, None]], 1)


def _has_area(boxes: np.ndarray) -> np.ndarray:
    """Which boxes are more than a line; one beyond a window may have been cut to that."""
    (x1, y1), (x2, y2), _, (x4, y4) = boxes[:, :SCORE].reshape(-1, 4, 2).transpose(1, 2, 0)
    return np.abs((x2 - x1) * (y4 - y1) - (x4 - x1) * (y2 - y1)) > _LEAST


def _on_image(boxes: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Which boxes of a window have a middle that is image."""
    x, y = np.floor(boxes[:, :SCORE].reshape(-1, 4, 2).mean(1)).astype(int).T
    inside = (x >= 0) & (y >= 0) & (x < seen.shape[1]) & (y < seen.shape[0])
    inside[inside] = seen[y[inside], x[inside]]
    return inside


def _kept(boxes: np.ndarray, walk: Walk, top: int, left: int, looked: np.ndarray) -> np.ndarray:
    """Which boxes of a window no border of it cuts, or no window that is looked at holds whole."""
    points = boxes[:, :SCORE].reshape(-1, 4, 2)
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


def corners(boxes: np.ndarray) -> np.ndarray:
    """Corners `(N, 4, 2)` of boxes, clockwise on screen; those of the first side come first.

    Args:
        boxes: `(N, 4)` x1, y1, x2, y2, or `(N, 5)` centre, sides, and the angle of the first side in radians, clockwise
            on screen.
    """
    if boxes.shape[1] == 4:
        return boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]
    centre, sides, angle = boxes[:, None, :2], boxes[:, 2:4], boxes[:, 4]
    along = np.stack([np.cos(angle), np.sin(angle)], 1) * sides[:, :1] / 2
    across = np.stack([-np.sin(angle), np.cos(angle)], 1) * sides[:, 1:] / 2
    return centre + np.stack([-along - across, along - across, along + across, across - along], 1)
