import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import torch
from affine import Affine
from torchvision.ops import batched_nms

from geomim.corpus.scenes.arrays import array_scene
from geomim.finetune import rotated
from geomim.maps.objects import alike, merged, write_objects
from geomim.maps.scenes.areas import Area
from geomim.maps.walk.finder import corners
from geomim.maps.walk.windows import Walk
from geomim.sensors import Band, Sensor

GREY = Sensor("grey", (Band("red"),))
UTM = {"crs": rasterio.CRS.from_epsg(32633), "transform": Affine(10, 0, 500000, 0, -10, 5500000)}


def rows(boxes, scores, labels):
    """Boxes `(N, 10)`."""
    return np.concatenate([corners(np.asarray(boxes, float)).reshape(-1, 8), np.stack([scores, labels], 1)], 1)


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
    table = rows(boxes, scores, labels)
    places = np.searchsorted(walk.rows, np.maximum(table[:, 1:8:2].min(1), 0), "right") - 1
    given = [table[places == row] for row in range(len(walk.rows))]
    strips, sure = list(merged(given, walk, overlap)), np.concatenate(list(merged(given, walk, overlap, 0.4)))
    assert sorted(sure[:, 8]) == [score for score in sorted(scores[expected]) if score >= 0.4]
    assert sorted(np.concatenate(strips)[:, 8]) == sorted(scores[expected])
    assert sum(len(strip) > 0 for strip in strips) > 10  # they are let go as the walk goes on


@pytest.mark.parametrize("turned", [False, True])
def test_pairs_are_those_that_share_enough(turned):
    boxes, scores, labels = crowd(80, turned)
    table = np.concatenate([rows(boxes, scores, labels), rows(boxes[:20], scores[:20], labels[:20])])  # the same again
    outlines = shapely.polygons(table[:, :8].reshape(-1, 4, 2))
    shared = shapely.area(shapely.intersection(outlines[:, None], outlines))
    areas = shapely.area(outlines)
    same = (shared > 0.5 * (areas[:, None] + areas - shared)) & (table[:, None, 9] == table[:, 9])
    assert {*map(tuple, alike(table, 0.5).tolist())} == {*zip(*map(list, np.triu(same, 1).nonzero()), strict=True)}
    assert not len(alike(table[:0], 0.5))


def test_corners_are_those_of_detectors():
    boxes, _, _ = crowd(80, turned=True)
    assert np.allclose(corners(boxes), rotated.corners(torch.from_numpy(boxes)).numpy())


@pytest.mark.parametrize("ending", [".gpkg", ".parquet"])
def test_a_table_of_objects_on_the_ground(tmp_path, ending):
    scene = array_scene("town.tif", np.zeros((1, 300, 260), np.uint8), GREY, **UTM)
    sides = np.random.default_rng(0).integers(0, 200, (60, 2))
    sides = np.concatenate([sides, sides + np.random.default_rng(1).integers(4, 30, (60, 2))], 1)
    boxes = rows(sides, np.full(60, 0.7), np.arange(60) % 2)
    (said,) = write_objects(tmp_path / f"out{ending}", [boxes[:30], boxes[30:]], scene, ("car", "house"))
    table = (geopandas.read_file if ending == ".gpkg" else geopandas.read_parquet)(tmp_path / f"out{ending}")
    assert said.endswith("60 objects (30 car, 30 house)") and table["class"].tolist() == ["car", "house"] * 30
    assert table.crs == "EPSG:32633" and [*table.columns] == ["class", "score", "area_m2", "scene", "geometry"]
    assert set(table["scene"]) == {"town.tif"} and (table.geometry.geom_type == "Polygon").all()
    back = (~UTM["transform"]) * table.geometry.bounds.to_numpy()[:, [0, 3, 2, 1]].reshape(-1, 2).T
    assert np.allclose(np.stack(back, 1).reshape(-1, 4), sides)
    assert np.allclose(table["area_m2"], table.area / 0.9996**2, rtol=1e-4)


def test_angles_are_from_north(tmp_path):
    scene = array_scene("x", np.zeros((1, 100, 100), np.uint8), GREY, **UTM)
    turned = np.array([[50, 50, 20, 5, 0], [50, 50, 20, 5, np.pi / 4], [50, 50, 20, 5, -np.pi / 3.0]])
    write_objects(tmp_path / "a.gpkg", [rows(turned, np.ones(3), np.zeros(3))], scene, ("ship",), rotated=True)
    assert geopandas.read_file(tmp_path / "a.gpkg")["angle"].tolist() == pytest.approx([90, 135, 30], abs=0.1)


def test_an_area_and_a_scene_without_place(tmp_path):
    scene = array_scene("x", np.zeros((1, 100, 100), np.uint8), GREY)
    upright = np.array([[10, 10, 20, 30], [50, 50, 60, 60], [70, 70, 80, 80.0]])
    area = Area(np.array([shapely.box(0, 0, 40, 40)]))
    note, said = write_objects(
        tmp_path / "a.gpkg", [rows(upright, [0.9, 0.8, 0.2], [0, 0, 0])], scene, ("ship",), area=area
    )
    assert "columns and rows" in note and said.endswith("1 objects (1 ship)")
    (row,) = geopandas.read_file(tmp_path / "a.gpkg").itertuples()
    assert row.area_px == 200 and row.geometry.bounds == (10, -30, 20, -10)


def test_nothing_found_is_a_table_without_rows(tmp_path):
    scene = array_scene("x", np.zeros((1, 100, 100), np.uint8), GREY, **UTM)
    (said,) = write_objects(tmp_path / "a.parquet", [np.zeros((0, 10))], scene, ("ship",))
    assert said.endswith("0 objects") and not len(geopandas.read_parquet(tmp_path / "a.parquet"))
