from datetime import datetime

import numpy as np
import pytest
from rasterio.crs import CRS
from rasterio.transform import from_origin
from rasterio.windows import Window

from geomim.corpus.scenes.annotations import Annotations
from geomim.corpus.scenes.arrays import array_scene
from geomim.errors import BandError, InputError
from geomim.sensors import get_sensor

RGB = get_sensor("rgb")


def image(dtype=np.uint8):
    return np.arange(1, 3 * 20 * 30 + 1).reshape(3, 20, 30).astype(dtype)


def test_an_array_is_read_like_a_file():
    labels = Annotations(label="harbour", captions=("ships",))
    transform = from_origin(5e5, 54e5, 10, 10)
    pixels = image(np.int16)
    scene = array_scene(
        "set://7", pixels, RGB, crs=CRS.from_epsg(32632), transform=transform, nodata=5, time=datetime(2020, 1, 2),
        licence="CC0-1.0", annotations=labels,
    )  # fmt: skip
    with scene:
        window = Window(4, 5, 6, 7)
        read, valid = scene.read_valid(window)
        assert np.array_equal(read, pixels[:, 5:12, 4:10]) and valid.all() and read.dtype == scene.dtype
        read[:] = 0  # its own memory
        assert np.array_equal(scene.read(), pixels)
        assert scene.gsd == pytest.approx(10, rel=1e-3) and scene.footprint(window).is_valid
        assert (scene.uri, scene.licence, scene.time) == ("set://7", "CC0-1.0", datetime(2020, 1, 2))
        assert scene.annotations is labels and scene.clouds() is None and scene.block == (20, 30)
        with pytest.raises(InputError, match="not inside"):
            scene.read(Window(0, 0, 31, 1))


def test_validity_is_what_is_given_and_nodata_and_nan():
    pixels = image(np.float32)
    pixels[:, 0, 0], pixels[1, 0, 1], pixels[0, 0, 2] = -1, np.nan, -1
    given = np.ones((20, 30), bool)
    given[5] = False
    valid = array_scene("a", pixels, RGB, valid=given, nodata=-1).valid()
    assert not valid[0, :3].any() and not valid[5].any() and valid.sum() == 600 - 3 - 30
    assert array_scene("a", image(), RGB).valid().all()
    assert array_scene("a", image(), RGB, nodata=-1).nodata is None  # uint8 cannot hold it


def test_arrays_that_are_no_image_are_refused():
    for pixels in (image()[0], image().astype(complex), np.zeros((3, 0, 5)), image().astype(str)):
        with pytest.raises(InputError, match="'a': expected real numbers"):
            array_scene("a", pixels, RGB)
    with pytest.raises(BandError, match="'a' has 2 bands; sensor 'rgb' has 3"):
        array_scene("a", image()[:2], RGB)
    with pytest.raises(InputError, match="validity is"):
        array_scene("a", image(), RGB, valid=np.ones((3, 3), bool))
