"""Scenes with bands that a model does not need, which are nodata where those that it needs are not."""

from dataclasses import replace

import numpy as np
import pytest
from drawn_scenes import CONTRACT, write

from geomim.maps.scenes.opening import open_for
from geomim.sensors import SENSORS, Band

FIVE = replace(CONTRACT.sensor, bands=(*CONTRACT.sensor.bands, Band("thermal")))
LANDSAT = replace(CONTRACT, sensor=SENSORS["landsat7"].select(("B1", "B2", "B3", "B4")))


@pytest.fixture(scope="module")
def pixels():
    """Five bands, the last of which holds numbers in one column of eight."""
    drawn = np.random.default_rng(0).integers(1, 255, (5, 16, 16)).astype(np.uint8)
    drawn[4, :, 2:] = 0
    return drawn


@pytest.mark.parametrize(
    ("names", "contract", "sensor"),
    [
        (("red", "green", "blue", "nir", "thermal"), CONTRACT, None),
        (("red", "green", "blue", "nir", "thermal"), CONTRACT, FIVE),
        (("B1", "B2", "B3", "B4", "thermal"), LANDSAT, None),  # names alone are those of several sensors
        (("", "", "", "", ""), CONTRACT, FIVE),  # assumed to be in its order
    ],
)
def test_nodata_in_a_band_that_is_not_needed_is_none_of_the_map(tmp_path, pixels, names, contract, sensor):
    scene, prepare = open_for(contract, str(write(tmp_path / "a.tif", pixels, names, nodata=0)), sensor, None)
    with scene:
        numbers, valid = scene.read_valid()
        assert valid.all() and np.array_equal(numbers, pixels[:4]) and scene.assumed == (not any(names))
        assert not any("does not need" in note for note in scene.notes) and prepare.indices == [0, 1, 2, 3]


def test_bands_in_the_users_own_order_stay_and_what_that_means_is_said(tmp_path, pixels):
    """Some of the names alone would be names in the file, of other bands."""
    path = str(write(tmp_path / "a.tif", pixels, ("blue", "green", "red", "nir", "x"), nodata=0))
    scene, prepare = open_for(CONTRACT, path, None, ["red", "green", "blue", "nir", "heat"])
    with scene:
        assert np.array_equal(scene.read()[prepare.indices], pixels[:4]) and scene.valid().mean() == 2 / 16
        assert any("does not need heat, but where nodata stands there" in one for one in scene.notes)
    path = str(write(tmp_path / "b.tif", pixels, ("", "", "", "", ""), nodata=0))
    with open_for(CONTRACT, path, None, ["red", "green", "blue", "nir", "-"])[0] as scene:
        assert np.array_equal(scene.read(), pixels[:4]) and scene.valid().all() and not scene.notes
