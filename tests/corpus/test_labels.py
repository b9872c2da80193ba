"""Label rasters beside scenes: each is read by its own names and its own nodata value."""

import json

import numpy as np
import pytest
import rasterio

from geomim.corpus.labels import Masks, open_masks
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
