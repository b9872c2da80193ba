"""Label rasters beside scenes: each is read by its own names and its own nodata value."""

import json

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS

from geomim.corpus import labels
from geomim.corpus.labels import Masks, open_masks
from geomim.corpus.scenes.footprints import Grid
from geomim.errors import InputError


@pytest.fixture
def mask(tmp_path):
    def written(name, numbers, classes=None, nodata=None):
        (tmp_path / "masks").mkdir(exist_ok=True)
        shape = {"count": 1, "height": 1, "width": len(numbers), "dtype": "uint8", "nodata": nodata}
        with rasterio.open(tmp_path / "masks" / f"{name}.tif", "w", driver="GTiff", **shape) as raster:
            raster.write(np.array([[numbers]], np.uint8))
            raster.update_tags(**({"CLASSES": json.dumps(classes)} if classes else {}))
        return tmp_path / "masks"

    return written


def read(masks, name, width):
    return [None if place == 255 else masks.classes[place] for place in masks.read(f"in/{name}.png", 1, width)[0]]


def test_each_raster_means_what_its_own_tag_says(mask):
    mask("a", [1, 2, 7], {"1": "forest", "2": "water"})
    mask("b", [1, 2, 7], {"1": "water", "2": "forest"})
    mask("c", [1, 2, 7], {"7": "snow"})
    masks = Masks(mask("scene", [1, 2, 7]))  # without names: as pictures that lie among their masks
    assert masks.classes == ["forest", "water", "snow"]
    assert read(masks, "a", 3) == ["forest", "water", None]
    assert read(masks, "b", 3) == ["water", "forest", None]
    assert read(masks, "c", 3) == [None, None, "snow"]
    with pytest.raises(InputError, match=r"classes\.json' must give class names by number"):
        masks.read("in/scene.png", 1, 3)


def test_nodata_is_each_rasters_own(mask):
    names = {"0": "background", "1": "forest", "2": "water"}
    mask("a", [0, 1, 2], names, nodata=0)
    mask("b", [0, 1, 2], names, nodata=2)
    masks = Masks(mask("c", [0, 1, 2], names))
    assert masks.classes == ["background", "forest", "water"]
    assert read(masks, "a", 3) == [None, "forest", "water"]
    assert read(masks, "b", 3) == ["background", "forest", None]
    assert read(masks, "c", 3) == ["background", "forest", "water"]


def test_one_file_of_names_and_a_number_that_is_nodata_elsewhere(mask):
    mask("a", [0, 1, 2], nodata=0)
    mask("b", [0, 1, 2])
    mask("c", [1, 1, 2])
    folder = mask("d", [0, 1, 2], nodata=2)
    (folder / "classes.json").write_text('["background", "forest", "water"]')
    masks = Masks(folder)
    assert masks.classes == ["forest", "water"]
    assert read(masks, "a", 3) == [None, "forest", "water"] and read(masks, "c", 3) == ["forest", "forest", "water"]
    for name in "bd":
        with pytest.raises(InputError, match=rf"{name}\.tif' holds 0 \('background'\), which '.*a\.tif' has as nodata"):
            masks.read(f"in/{name}.png", 1, 3)


def test_a_wrong_tag_is_told_by_its_raster_and_seen_when_mended(mask):
    mask("a", [1], {"1": "forest"})
    masks = open_masks(str(folder := mask("b", [1], {"one": "water"})))
    assert masks.classes == ["forest"]
    with pytest.raises(InputError, match=r"tag CLASSES of '.*b\.tif' must give class names by number"):
        masks.read("in/b.png", 1, 1)
    with rasterio.open(folder / "b.tif", "r+") as raster:
        raster.update_tags(CLASSES='{"1": "water"}')
    assert open_masks(str(folder), again=True).classes == ["forest", "water"]


def test_a_cut_off_raster_is_told(tmp_path):
    numbers = np.random.default_rng(0).integers(0, 2, (1, 256, 256), dtype=np.uint8)
    with rasterio.open(tmp_path / "a.png", "w", driver="PNG", count=1, height=256, width=256, dtype="uint8") as raster:
        raster.write(numbers)
    (tmp_path / "classes.json").write_text('["land", "water"]')
    masks, content = Masks(tmp_path), (tmp_path / "a.png").read_bytes()
    assert np.array_equal(masks.read("in/a.tif", 256, 256), numbers[0])
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"label raster '.*a\.png' cannot be read \(.*\): fetch it again"):
        masks.read("in/a.tif", 256, 256)


def test_a_raster_lies_where_its_scene_does(tmp_path):
    north_up = Affine(10, 0, 5e5, 0, -10, 54e5)
    grid = Grid(CRS.from_epsg(32632), north_up, 4, 3)
    (tmp_path / "classes.json").write_text('["land", "water"]')

    def read(transform, crs="EPSG:32632"):
        shape = {"count": 1, "height": 4, "width": 3, "dtype": "uint8", "crs": crs, "transform": transform}
        with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", **shape) as raster:
            raster.write(np.ones((1, 4, 3), np.uint8))
        return Masks(tmp_path).read("in/a.tif", 4, 3, grid)

    assert (read(north_up) == 1).all() and (read(Affine.translation(0.1, 0) @ north_up) == 1).all()
    assert (read(None, None) == 1).all()  # it says nothing of its place
    south_up = Affine(10, 0, 5e5, 0, 10, 54e5 - 40)
    for transform, crs in (
        (south_up, "EPSG:32632"),
        (north_up, "EPSG:32633"),
        (Affine.translation(30, 0) @ north_up, "EPSG:32632"),
    ):
        with pytest.raises(
            InputError, match="lies elsewhere than its scene, or is turned: bring it to the scene's grid"
        ):
            read(transform, crs)


def test_colours_are_no_class_numbers_and_what_a_mask_hides_is_no_label(tmp_path):
    (tmp_path / "classes.json").write_text('["land", "water"]')
    numbers = np.array([[[0, 1, 1]]], np.uint8)

    def read(bands, mask=None, **profile):
        shape = {"count": len(bands), "height": 1, "width": 3, "dtype": "uint8"}
        with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", **shape, **profile) as raster:
            raster.write(bands)
            if mask is not None:
                raster.write_mask(np.array([mask], np.uint8))
        return Masks(tmp_path).read("in/a.png", 1, 3)[0].tolist()

    assert read(numbers) == [0, 1, 1] and read(numbers, [0, 255, 0]) == [255, 1, 255]
    assert read(np.concatenate([numbers, [[[255, 255, 0]]]]).astype(np.uint8), alpha="yes") == [0, 1, 255]
    for count in (2, 3):
        with pytest.raises(InputError, match=f"has {count} bands; expected one of class numbers: colours are not read"):
            read(numbers.repeat(count, axis=0))


def test_a_large_raster_is_read_by_rows(tmp_path, monkeypatch):
    numbers = np.random.default_rng(0).integers(0, 3, (1, 70, 40), dtype=np.uint8)
    shape = {"count": 1, "height": 70, "width": 40, "dtype": "uint8", "blockysize": 16}
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", **shape) as raster:
        raster.write(numbers)
    (tmp_path / "classes.json").write_text('["land", "water", "snow"]')
    monkeypatch.setattr(labels, "_PIXELS", 16 * 40)
    assert np.array_equal(Masks(tmp_path).read("in/a.png", 70, 40), numbers[0])
