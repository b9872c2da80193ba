from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import find_objects, label

from geomim.corpus.scenes.arrays import array_scene
from geomim.errors import InputError
from geomim.maps.objects import merged
from geomim.maps.walk.finder import Finder, find
from geomim.sensors import Band, BandContract, Sensor

GREY = Sensor("grey", (Band("red"),))


def seen_boxes(images, _valid):
    """What lies together of one brightness, as far as a window shows it: brightness is the class, and the score."""
    answers = []
    for image in images[:, 0].numpy().astype(int):
        found = [
            (*(s[1].start, s[0].start, s[1].stop, s[0].stop), v)
            for v in (1, 2)
            for s in find_objects(label(image == v)[0])
        ]
        table = torch.tensor(found, dtype=torch.float32).reshape(-1, 5)
        answers.append({"boxes": table[:, :4], "scores": 0.5 + 0.1 * table[:, 4], "labels": table[:, 4].long() - 1})
    return answers


def finder(side=64, **given):
    contract = BandContract(GREY, (0.0,), (1.0,))
    return Finder(contract, side, ("car", "house"), "x", seen_boxes, torch.device("cpu"), **given)


def prepare(numbers, valid):
    return numbers.float() * valid[:, None], valid[:, None]


def blocks(height=300, width=260, most=20, seed=0):
    """A scene with rectangles that do not touch, and their sides and class."""
    rng, pixels, true = np.random.default_rng(seed), np.zeros((height, width), np.uint8), []
    for _ in range(400):
        (h, w), value = rng.integers(4, most, 2), int(rng.integers(1, 3))
        y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        if not pixels[max(y - 1, 0) : y + h + 1, max(x - 1, 0) : x + w + 1].any():
            pixels[y : y + h, x : x + w] = value
            true.append((x, y, x + w, y + h, value - 1))
    return pixels, sorted(true)


def sides(boxes):
    points = boxes[:, :8].reshape(-1, 4, 2)
    return sorted(
        tuple(map(int, (*one.min(0), *one.max(0), last))) for one, last in zip(points, boxes[:, 9], strict=True)
    )


def found_in(scene, own, overlap=0.5, **given):
    walk = own.walk(scene, overlap)
    return np.concatenate([*merged(find(scene, walk, own, prepare, 3, **given), walk, own.overlap)])


@pytest.mark.parametrize("overlap", [0.4, 0.5, 0.75])
def test_each_object_is_found_once_and_whole_wherever_windows_cut_it(overlap):
    pixels, true = blocks()
    scene = array_scene("x", pixels[None], GREY)
    assert len(true) > 60
    assert sides(found_in(scene, finder(), overlap)) == true


def test_what_no_window_holds_whole_is_kept_in_parts():
    pixels = np.zeros((64, 200), np.uint8)
    pixels[20:40, 10:190] = 1
    boxes = found_in(array_scene("x", pixels[None], GREY), finder())
    assert {box[:2] + box[2:4] for box in sides(boxes)} and min(box[0] for box in sides(boxes)) == 10
    assert max(box[2] for box in sides(boxes)) == 190


def test_a_scene_smaller_than_a_window_shows_no_object_beyond_its_border():
    pixels = np.zeros((30, 40), np.uint8)
    pixels[5:15, 30:40] = 2
    assert sides(found_in(array_scene("x", pixels[None], GREY), finder())) == [(30, 5, 40, 15, 1)]


def test_windows_that_nobody_looks_at_hold_nothing():
    """What only they would hold whole is kept as their neighbour sees it."""
    pixels = np.zeros((64, 128), np.uint8)
    pixels[20:40, 50:80] = 1
    scene = array_scene("x", pixels[None], GREY)
    assert sides(found_in(scene, finder())) == [(50, 20, 80, 40, 0)]
    assert sides(found_in(scene, finder(), wanted=lambda top, left: left == 0)) == [(50, 20, 64, 40, 0)]


def test_an_object_whose_middle_is_nodata_is_none():
    pixels, true = blocks(64, 64)
    x1, y1, x2, y2, _ = true[0]
    valid = np.ones((64, 64), bool)
    valid[y1:y2, x1:x2] = False
    assert sides(found_in(array_scene("x", pixels[None], GREY, valid=valid), finder())) == true[1:]


def test_boxes_that_are_no_numbers_are_refused_with_their_place():
    def broken(images, valid):
        return [one | {"scores": one["scores"] * np.nan} for one in seen_boxes(images, valid)]

    pixels, _ = blocks(64, 128)
    with pytest.raises(InputError, match="'x': boxes at row 0, column 0 are not finite"):
        found_in(array_scene("x", pixels[None], GREY), replace(finder(), find=broken))


def test_boxes_without_area_are_none():
    def flat(images, valid):
        box = torch.tensor([[5.0, 5, 5, 20], [5, 5, 9, 20]])
        return [{"boxes": box, "scores": torch.ones(2), "labels": torch.zeros(2)} for _ in images]

    boxes = found_in(array_scene("x", np.ones((1, 64, 64), np.uint8), GREY), replace(finder(), find=flat))
    assert sides(boxes) == [(5, 5, 9, 20, 0)]
