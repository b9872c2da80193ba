"""From scenes to files by models that are known: what is asked for in an area, between two dates, of objects."""

from dataclasses import replace

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import torch
from affine import Affine
from drawn_scenes import PLACE, write
from rasterio.features import rasterize
from scipy.ndimage import find_objects, label
from torch.nn import functional as F

from geomim.errors import InputError
from geomim.maps.drawing import Asked, make
from geomim.maps.scenes.areas import NoGroundError
from geomim.maps.walk.finder import Finder
from geomim.maps.walk.looker import Looker
from geomim.sensors import SENSORS, BandContract

RED = BandContract(SENSORS["naip"].select(("red",)), (40.0,), (20.0,))
CLASSES = ("none", "one", "two", "three")
SIDE = 32


class Model:
    """Knows the class of a pixel by its number, times 20, and counts what it looks at."""

    def __init__(self):
        self.count, self.most = 0, 10**9

    def seen(self, levels):
        self.count += len(levels)
        if self.count > self.most:
            raise KeyboardInterrupt
        return levels.round().long().clamp(0, 3)

    def look(self, images, valid):
        ids = self.seen(images[:, 0] + 2 if images.ndim == 4 else (images[:, 0] - images[:, 1]).abs()[:, 0])
        return F.one_hot(ids, 4).permute(0, 3, 1, 2).float()

    def find(self, images, valid):
        answers = []
        for ids in self.seen(images[:, 0] + 2).numpy():
            boxes = [(x.start, y.start, x.stop, y.stop) for y, x in find_objects(label(ids == 3)[0])]
            boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
            answers.append({"boxes": boxes, "scores": torch.full((len(boxes),), 0.8), "labels": torch.ones(len(boxes))})
        return answers

    def looker(self, dates=1):
        return Looker(RED, SIDE, 1, CLASSES, "x", self.look, torch.device("cpu"), dates=dates)

    def finder(self, made_by="x"):
        return Finder(RED, SIDE, CLASSES, made_by, self.find, torch.device("cpu"))


def levels(height=100, width=150, seed=0):
    """`(H, W)` classes in blocks, none of them 0."""
    blocks = np.random.default_rng(seed).integers(1, 4, (-(-height // 10), -(-width // 10)))
    return blocks.repeat(10, 0).repeat(10, 1)[:height, :width].astype(np.uint8)


def scene(path, ids, **given):
    return str(write(path, 20 * ids[None], ("red",), **given))


def area(path, shape, transform=PLACE["transform"]):
    placed = shapely.transform(shape, lambda xy: np.stack(transform * xy.T, 1))
    geopandas.GeoDataFrame(geometry=[placed], crs=PLACE["crs"]).to_crs("EPSG:4326").to_file(path)
    return str(path)


def test_an_area_is_the_part_of_the_map_that_lies_in_it(tmp_path):
    uri, shape = scene(tmp_path / "s.tif", levels()), shapely.Polygon([(12.2, 8), (70.3, 20), (40, 60.1)])
    whole, part = Model(), Model()
    make(whole.looker(), Asked("m"), uri, tmp_path / "whole.tif")
    aoi = area(tmp_path / "a.geojson", shape)
    make(part.looker(), Asked("m", aoi=aoi), uri, tmp_path / "part.tif")
    expected, found = (rasterio.open(tmp_path / f"{name}.tif").read() for name in ("whole", "part"))
    inside = rasterize([shape], (100, 150)) > 0
    assert np.array_equal(found, np.where(inside, expected, 255)) and inside.sum() > 1000
    assert part.count < 0.4 * whole.count
    far = area(tmp_path / "far.gpkg", shapely.box(900, 900, 950, 950))
    with pytest.raises(NoGroundError, match="no ground in common"):
        make(part.looker(), Asked("m", aoi=far), uri, tmp_path / "far.tif")
    assert not (tmp_path / "far.tif").exists() and not list(tmp_path.glob(".*"))


def test_an_area_between_the_middles_of_pixels_is_not_told_as_a_scene_without_image(tmp_path, capsys):
    uri, thin = scene(tmp_path / "s.tif", levels()), area(tmp_path / "a.gpkg", shapely.box(10.1, 10.51, 140, 10.99))
    make(Model().looker(), Asked("m", aoi=thin), uri, tmp_path / "map.tif")
    assert "holds no image, as far as middles of pixels lie in the area" in capsys.readouterr().out


def test_another_area_makes_another_map(tmp_path, capsys):
    uri, model = scene(tmp_path / "s.tif", levels()), Model()
    for side, again in ((20, False), (40, False), (40, True)):
        aoi = area(tmp_path / f"a{side}.gpkg", shapely.box(0, 0, side, side))
        make(model.looker(), Asked("m", aoi=aoi), uri, tmp_path / "map.tif")
        assert ("is there already" in capsys.readouterr().out) == again
        assert (rasterio.open(tmp_path / "map.tif").read(1) < 255).sum() == side**2


def test_outlines_come_with_the_map_and_once(tmp_path, capsys):
    ids = levels()
    uri, asked = scene(tmp_path / "s.tif", ids), Asked("m", simplify=None)
    given = Model().looker(), asked, uri, tmp_path / "map.tif", tmp_path / "map.gpkg"
    assert make(*given) == [tmp_path / "map.tif", tmp_path / "map.gpkg"]
    table = geopandas.read_file(tmp_path / "map.gpkg")
    shapes = zip(table.geometry, table["id"], strict=True)
    assert np.array_equal(rasterize(shapes, ids.shape, 255, transform=PLACE["transform"]), ids)
    told = capsys.readouterr().out
    for value, name in enumerate(CLASSES[1:], 1):
        hectares = table[table["class"] == name]["hectares"].sum()
        assert f"{name}: {hectares:.2f} ha" in told and hectares == pytest.approx((ids == value).sum() * 4e-4, rel=1e-2)
    make(*given)
    assert capsys.readouterr().out.count("is there already") == 2
    other = scene(tmp_path / "other.tif", ids)
    with pytest.raises(InputError, match=r"map.gpkg' is a map of '.*s.tif', not of '.*other.tif'"):
        make(Model().looker(), asked, other, tmp_path / "other_map.tif", tmp_path / "map.gpkg")
    assert not (tmp_path / "other_map.tif").exists(), "refused before the work"


def test_maps_and_outlines_of_patches_say_how_far_they_reach_beyond_the_scene(tmp_path, capsys):
    uri, looker = scene(tmp_path / "s.tif", levels(50, 60)), Model().looker()
    patches = replace(looker, cell=8, look=lambda images, valid: looker.look(images[..., 4::8, 4::8], valid))
    for name, outlines, times in (("a", None, 1), ("a", "a.gpkg", 1), ("a", "a.gpkg", 0), ("b", "b.gpkg", 1)):
        make(patches, Asked("m"), uri, tmp_path / f"{name}.tif", outlines and tmp_path / outlines)
        told = f"note: the last patches reach 6 rows and 4 columns beyond '{uri}': areas are those of whole patches"
        assert capsys.readouterr().out.count(told) == times


@pytest.mark.parametrize("finer", [1, 2])
def test_what_changed_lies_where_it_did_on_two_grids(tmp_path, finer):
    before = levels()
    after = before.copy()
    after[30:52, 60:90] = before[30:52, 60:90] % 3 + 1
    transform = PLACE["transform"] @ Affine.translation(20, 10) @ Affine.scale(1 / finer)
    part = after[10:80, 20:].repeat(finer, 0).repeat(finer, 1)
    paths = scene(tmp_path / "a.tif", before), scene(tmp_path / "b.tif", part, transform=transform)
    make(Model().looker(2), Asked("m", after=paths[1]), paths[0], tmp_path / "map.tif")
    with rasterio.open(tmp_path / "map.tif") as raster:
        found = raster.read(1)
        assert raster.transform == PLACE["transform"]
    expected = np.full(before.shape, 255)
    expected[10:80, 20:] = np.abs(after.astype(int) - before)[10:80, 20:]
    assert np.array_equal(found, expected)


def test_two_dates_without_a_common_ground_leave_nothing(tmp_path):
    far = PLACE["transform"] @ Affine.translation(1000, 0)
    paths = scene(tmp_path / "a.tif", levels()), scene(tmp_path / "b.tif", levels(), transform=far)
    with pytest.raises(InputError, match="no ground in common"):
        make(Model().looker(2), Asked("m", after=paths[1]), paths[0], tmp_path / "map.tif")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.tif", "b.tif"]


def test_a_map_of_other_dates_is_not_replaced(tmp_path, capsys):
    first, second, third = (scene(tmp_path / f"{name}.tif", levels(seed=seed)) for seed, name in enumerate("abc"))
    make(Model().looker(2), Asked("m", after=second), first, tmp_path / "map.tif")
    with pytest.raises(InputError, match=r"is a map of '.*a.tif and .*b.tif', not of '.*a.tif and .*c.tif'"):
        make(Model().looker(2), Asked("m", after=third), first, tmp_path / "map.tif")
    capsys.readouterr()
    make(Model().looker(2), Asked("m", overlap=0.25, after=second), first, tmp_path / "map.tif")
    assert "with other options: it is replaced" in capsys.readouterr().out


def things(height=150, width=120):
    """Boxes of 3 that do not touch, in a field of 1."""
    ids = np.ones((height, width), np.uint8)
    for top in range(3, height - 12, 16):
        for left in range(5, width - 12, 17):
            ids[top : top + 9, left : left + 7] = 3
    return ids


@pytest.mark.parametrize("ending", [".gpkg", ".parquet"])
def test_objects_go_on_where_they_were_stopped(tmp_path, ending):
    uri, models = scene(tmp_path / "s.tif", things()), (Model(), Model(), Model())
    make(models[0].finder(), Asked("m"), uri, tmp_path / f"whole{ending}")
    models[1].most = models[0].count // 2
    with pytest.raises(KeyboardInterrupt):
        make(models[1].finder(), Asked("m"), uri, tmp_path / f"out{ending}")
    assert not (tmp_path / f"out{ending}").exists() and list((tmp_path / f".out{ending}.work").glob("0*.tif"))
    make(models[2].finder(), Asked("m"), uri, tmp_path / f"out{ending}")
    assert 0 < models[2].count < 0.7 * models[0].count
    read = geopandas.read_file if ending == ".gpkg" else geopandas.read_parquet
    whole, found = (read(tmp_path / f"{name}{ending}") for name in ("whole", "out"))
    assert (
        found.equals(whole) and len(found) == label(things() == 3)[1] and not (tmp_path / f".out{ending}.work").exists()
    )


def test_objects_that_are_there_are_not_found_again_and_those_of_another_scene_stay(tmp_path, capsys):
    uri, other, model = scene(tmp_path / "s.tif", things()), scene(tmp_path / "o.tif", things()), Model()
    out = tmp_path / "out.gpkg"
    make(model.finder(), Asked("m"), uri, out)
    assert "(--threshold)" not in capsys.readouterr().out  # which left nothing out
    count = model.count
    make(model.finder(), Asked("m"), uri, out)
    assert model.count == count and "is there already" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"is a map of '.*s.tif', not of '.*o.tif'"):
        make(model.finder(), Asked("m"), other, out)
    make(model.finder(), Asked("m", threshold=0.9), uri, out)
    assert not len(geopandas.read_file(out)) and "(--threshold)" in capsys.readouterr().out
    (tmp_path / "mine.gpkg").write_bytes(b"x")
    with pytest.raises(InputError, match="no map that geomim made"):
        make(model.finder(), Asked("m"), uri, tmp_path / "mine.gpkg")


def test_objects_in_an_area_are_those_whose_middle_lies_there(tmp_path):
    uri, aoi = scene(tmp_path / "s.tif", things()), area(tmp_path / "a.gpkg", shapely.box(0, 0, 60, 70))
    whole, part = Model(), Model()
    make(whole.finder(), Asked("m"), uri, tmp_path / "whole.gpkg")
    make(part.finder(), Asked("m", aoi=aoi), uri, tmp_path / "part.gpkg")
    tables = [geopandas.read_file(tmp_path / f"{name}.gpkg") for name in ("whole", "part")]
    inside = tables[0][tables[0].centroid.within(shapely.box(500000, 4000000 - 140, 500120, 4000000))]
    assert sorted(tables[1].geometry.to_wkt()) == sorted(inside.geometry.to_wkt()) and 5 < len(inside) < 20
    assert part.count < 0.6 * whole.count
