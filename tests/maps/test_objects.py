import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import torch
from affine import Affine
from scipy.ndimage import find_objects, label
from torchvision.ops import batched_nms

from geomim.corpus.scenes.arrays import array_scene
from geomim.finetune import rotated
from geomim.maps.areas import Area
from geomim.maps.objects import Finder, corners, find, merged, write_objects
from geomim.maps.windows import Walk
from geomim.sensors import Band, BandContract, Sensor

GREY = Sensor("grey", (Band("red"),))
UTM = {"crs": rasterio.CRS.from_epsg(32633), "transform": Affine(10, 0, 500000, 0, -10, 5500000)}


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


def crowd(count=1600, turned=False, seed=0):
    """Boxes in heaps, as many windows would give them; `(N, 4 or 5)`, scores, labels, sorted by row of windows."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(20, 980, (count // 8, 2)).repeat(8, 0) + rng.normal(0, 3, (count, 2))
    size = rng.uniform(8, 30, (count // 8, 2)).repeat(8, 0) * rng.uniform(0.8, 1.2, (count, 2))
    score, kind = rng.random(count), rng.integers(0, 3, count // 8).repeat(8)
    if turned:
        angle = rng.uniform(0, 3, count // 8).repeat(8) + rng.normal(0, 0.1, count)
        return np.concatenate([centre, size, angle[:, None]], 1), score, kind
    return np.concatenate([centre - size / 2, centre + size / 2], 1), score, kind


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("overlap", [0.1, 0.5])
def test_row_by_row_is_what_suppression_of_all_at_once_gives(turned, overlap):
    boxes, scores, labels = crowd(turned=turned)
    given = tuple(map(torch.from_numpy, (boxes, scores, labels)))
    expected = (rotated.nms if turned else batched_nms)(*given, overlap).numpy()
    walk = Walk(1000, 1000, 1, 128, 64)
    table = np.concatenate([corners(boxes).reshape(-1, 8), scores[:, None], labels[:, None]], 1)
    rows = np.searchsorted(walk.rows, np.maximum(table[:, 1:8:2].min(1), 0), "right") - 1
    strips = list(merged([table[rows == row] for row in range(len(walk.rows))], walk, overlap))
    assert sorted(np.concatenate(strips)[:, 8]) == sorted(scores[expected])
    assert sum(len(strip) > 0 for strip in strips) > 10  # they are let go as the walk goes on


def test_corners_are_those_of_detectors():
    boxes, _, _ = crowd(80, turned=True)
    assert np.allclose(corners(boxes), rotated.corners(torch.from_numpy(boxes)).numpy())


@pytest.mark.parametrize("ending", [".gpkg", ".parquet"])
def test_a_table_of_objects_on_the_ground(tmp_path, ending):
    pixels, true = blocks()
    scene = array_scene("town.tif", pixels[None], GREY, **UTM)
    boxes = found_in(scene, finder())
    (said,) = write_objects(tmp_path / f"out{ending}", [boxes[:30], boxes[30:]], scene, ("car", "house"))
    table = (geopandas.read_file if ending == ".gpkg" else geopandas.read_parquet)(tmp_path / f"out{ending}")
    assert f"{len(true)} objects (" in said and f"{len(table[table['class'] == 'car'])} car" in said
    assert table.crs == "EPSG:32633" and [*table.columns] == ["class", "score", "area_m2", "scene", "geometry"]
    assert set(table["scene"]) == {"town.tif"} and (table.geometry.geom_type == "Polygon").all()
    back = (~UTM["transform"]) * table.geometry.bounds.to_numpy()[:, [0, 3, 2, 1]].reshape(-1, 2).T
    assert sorted(map(tuple, np.stack(back, 1).round(6).reshape(-1, 4).astype(int))) == [one[:4] for one in true]
    assert np.allclose(table["area_m2"], table.area / 0.9996**2, rtol=1e-4)


def test_angles_are_from_north(tmp_path):
    scene = array_scene("x", np.zeros((1, 100, 100), np.uint8), GREY, **UTM)
    turned = np.array([[50, 50, 20, 5, 0], [50, 50, 20, 5, np.pi / 4], [50, 50, 20, 5, -np.pi / 3.0]])
    rows = np.concatenate([corners(turned).reshape(-1, 8), np.ones((3, 1)), np.zeros((3, 1))], 1)
    write_objects(tmp_path / "a.gpkg", [rows], scene, ("ship",), rotated=True)
    assert geopandas.read_file(tmp_path / "a.gpkg")["angle"].tolist() == pytest.approx([90, 135, 30], abs=0.1)


def test_scores_an_area_and_a_scene_without_place(tmp_path):
    scene = array_scene("x", np.zeros((1, 100, 100), np.uint8), GREY)
    upright = np.array([[10, 10, 20, 30], [50, 50, 60, 60], [70, 70, 80, 80.0]])
    rows = np.concatenate([corners(upright).reshape(-1, 8), [[0.9], [0.8], [0.2]], np.zeros((3, 1))], 1)
    area = Area(np.array([shapely.box(0, 0, 40, 40)]))
    note, said = write_objects(tmp_path / "a.gpkg", [rows], scene, ("ship",), threshold=0.5, area=area)
    assert "columns and rows" in note and "1 objects (1 ship); 1 that score below 0.5 are left out" in said
    (row,) = geopandas.read_file(tmp_path / "a.gpkg").itertuples()
    assert row.area_px == 200 and row.geometry.bounds == (10, -30, 20, -10)


def test_nothing_found_is_a_table_without_rows(tmp_path):
    scene = array_scene("x", np.zeros((1, 100, 100), np.uint8), GREY, **UTM)
    (said,) = write_objects(tmp_path / "a.parquet", [np.zeros((0, 10))], scene, ("ship",))
    assert said.endswith("0 objects") and not len(geopandas.read_parquet(tmp_path / "a.parquet"))
