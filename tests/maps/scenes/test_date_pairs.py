import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from pyproj import Transformer
from rasterio.control import GroundControlPoint
from rasterio.windows import Window

from geomim.corpus.scenes import open_scene
from geomim.corpus.scenes.arrays import array_scene
from geomim.errors import InputError
from geomim.maps.scenes.pairs import PairInput, pair
from geomim.models.inputs import ContractInput
from geomim.sensors import Band, BandContract, Sensor

UTM33, UTM32, DEGREES = (rasterio.CRS.from_epsg(code) for code in (32633, 32632, 4326))
GRID = Affine(10, 0, 300000, 0, -10, 5500000)
TWO = Sensor("two", (Band("red"), Band("nir")))
ONE = Sensor("one", (Band("red"),))


def smooth(x, y):
    """Something that bilinear means keep: planes of metres of UTM 33."""
    return np.stack([100 + 0.05 * (x - 300000) + 0.02 * (y - 5500000), 50 - 0.03 * (x - 300000)]).astype(np.float32)


def scene(transform, height=80, width=90, crs=UTM33, name="x", valid=None):
    """A scene of `smooth` on any grid."""
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    x, y = transform * (columns, rows)
    if crs != UTM33:
        x, y = Transformer.from_crs(crs.to_wkt(), UTM33.to_wkt(), always_xy=True).transform(x, y)
    return array_scene(name, smooth(x, y), TWO, crs=crs, transform=transform, valid=valid)


GRIDS = {
    "shifted": (GRID @ Affine.translation(-7, 12), 80, 90, UTM33),
    "between pixels": (GRID @ Affine.translation(3.3, -5.7), 80, 90, UTM33),
    "finer": (GRID @ Affine.translation(10, 10) @ Affine.scale(1 / 3), 300, 200, UTM33),
    "coarser": (GRID @ Affine.translation(-20, -20) @ Affine.scale(2.5), 60, 60, UTM33),
    "turned": (GRID @ Affine.translation(20, 5) @ Affine.rotation(30), 80, 90, UTM33),
    "another zone": (Affine(12, 0, 733150, 0, -12, 5501250), 120, 120, UTM32),
    "degrees": (Affine(1.5e-4, 0, 12.2235, 0, -1e-4, 49.618), 120, 120, DEGREES),
}


@pytest.mark.parametrize("name", [*GRIDS])
def test_the_second_date_lies_where_the_first_does(name):
    transform, height, width, crs = GRIDS[name]
    first, second = scene(GRID), scene(transform, height, width, crs, "y")
    both = pair(first, second)
    numbers, valid = both.read_valid()
    assert numbers.shape == (4, 80, 90) and numbers.dtype == np.float32 and both.transform == GRID
    assert 0.2 < valid.mean() and np.array_equal(numbers[:2], first.read())
    within = valid & ~_rim(valid)
    assert np.abs(numbers[2:] - numbers[:2])[:, within].max() < 0.05  # the planes rise by half of one a pixel
    assert np.abs(numbers[2:] - numbers[:2])[:, valid].max() < 1.5


def _rim(valid):
    """Two pixels along the border of what is valid."""
    inner = valid.copy()
    for step in (1, 2):
        for axis in (0, 1):
            for by in (-step, step):
                inner &= np.roll(valid, by, axis)
    return ~inner


@pytest.mark.parametrize("turns", [(0, 0), (-360, 0), (0, -360)])
def test_longitudes_on_either_side_of_180_degrees_meet(turns):
    numbers = np.random.default_rng(0).integers(0, 10000, (2, 20, 40)).astype(np.uint16)
    dates = [
        array_scene("x", values, TWO, crs=DEGREES, transform=Affine(0.01, 0, west + turn, 0, -0.01, 5))
        for turn, west, values in zip(turns, (179.9, 180), (numbers, numbers[:, :, 10:]), strict=True)
    ]
    values, valid = pair(*dates).read_valid()
    assert np.array_equal(values[2:, :, 10:], numbers[:, :, 10:]) and valid[:, 10:].all() and not valid[:, :10].any()


EARTH = (Affine(0.5, 0, -180, 0, -0.5, 90), 360, 720, 4326)
UTM = (Affine(10, 0, 500000, 0, -10, 5300000), 64, 64, 32633)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (UTM, EARTH),
        (UTM, (Affine(200375, 0, -20037508, 0, -200375, 20037508), 200, 200, 3857)),
        (UTM, (Affine(0.5, 0, -90, 0, -0.5, 90), 360, 360, 4326)),
        ((Affine(0.01, 0, 10, 0, -0.01, 80), 64, 64, 4326), (Affine(60000, 0, -3e6, 0, -60000, 3e6), 100, 100, 3413)),
        ((Affine(0.5, 0, 350, 0, -0.5, 50), 64, 64, 4326), EARTH),
        ((Affine(0.5, 0, 164.25, 0, -0.5, 50), 64, 63, 4326), EARTH),  # its middle pixel is on either side of 180
    ],
)
def test_a_date_that_reaches_beyond_the_firsts_system_covers_what_it_covers(one, other):
    first, second = (
        array_scene(name, np.ones((2, height, width)), TWO, crs=rasterio.CRS.from_epsg(code), transform=transform)
        for name, (transform, height, width, code) in zip("xy", (one, other), strict=True)
    )
    both = pair(first, second)
    assert both.read_valid()[1].all() and both.notes == ()


def test_a_small_date_is_found_in_a_large_one():
    second = scene(Affine(10, 0, 300730, 0, -10, 5499870), 3, 3, name="y")
    both = pair(scene(GRID, 400, 500), second)
    assert both.valid().sum() == 9 and both.notes == ("'y' covers 0% of 'x': the rest is nodata",)


def test_pixels_of_one_grid_stay_as_they_are_and_windows_agree():
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 10000, (2, 70, 80)).astype(np.uint16)
    first = scene(GRID)
    second = array_scene("y", numbers, TWO, crs=UTM33, transform=GRID @ Affine.translation(30, 20))
    values, valid = pair(first, second).read_valid()
    assert (
        np.array_equal(values[2:, 20:, 30:], numbers[:, :60, :60]) and not valid[:20].any() and not valid[:, :30].any()
    )
    assert valid[20:, 30:].all()
    for window in (Window(25, 15, 20, 10), Window(0, 0, 5, 5), Window(89, 79, 1, 1)):
        part, seen = pair(first, second).read_valid(window)
        rows, columns = window.toslices()
        assert np.array_equal(part[:, seen], values[:, rows, columns][:, seen])
        assert np.array_equal(seen, valid[rows, columns])


def test_a_finer_date_is_averaged_over_each_pixel_without_what_is_nodata():
    fine = np.random.default_rng(0).integers(1, 255, (2, 60, 90)).astype(np.uint8)
    valid = np.ones((60, 90), bool)
    valid[:3, :3], valid[3:6, :1] = False, False
    second = array_scene("y", fine, TWO, crs=UTM33, transform=GRID @ Affine.scale(1 / 3), valid=valid)
    values, seen = pair(scene(GRID, 20, 30), second).read_valid()
    assert not seen[0, 0] and seen.sum() == 599
    assert np.allclose(values[2:, :, 1:], fine.reshape(2, 20, 3, 30, 3).mean((2, 4))[..., 1:], rtol=1e-5)
    assert np.allclose(values[2:, 1, 0], fine[:, 3:6, 1:3].mean((1, 2)), rtol=1e-5)


def test_a_coarser_date_reaches_to_its_very_corners():
    coarse = np.arange(1, 25, dtype=np.float32).reshape(1, 4, 6).repeat(2, 0)
    second = array_scene("y", coarse, TWO, crs=UTM33, transform=GRID @ Affine.scale(10))
    values, seen = pair(scene(GRID, 40, 60), second).read_valid()
    assert seen.all() and np.allclose(values[2, ::39, ::59], coarse[0, ::3, ::5])


def test_scenes_without_a_common_ground_are_told_with_both_extents():
    with pytest.raises(
        InputError,
        match=r"'x' and 'y' have no ground in common; .* 300000..300900, 5499200..5500000 and 400000..400900,",
    ):
        pair(scene(GRID), scene(Affine(10, 0, 400000, 0, -10, 5500000), name="y"))


def test_scenes_without_a_place():
    plain = [array_scene(name, np.full((2, 5, 6), 7.0), TWO) for name in "xy"]
    both = pair(*plain)
    assert both.read().shape == (4, 5, 6) and "laid on each other" in both.notes[0]
    with pytest.raises(InputError, match="5 x 6 and 6 x 5"):
        pair(plain[0], array_scene("z", np.full((2, 6, 5), 7.0), TWO))
    with pytest.raises(InputError, match="one has a place on Earth and the other none"):
        pair(plain[0], scene(GRID))


def test_what_is_much_finer_is_refused():
    with pytest.raises(InputError, match="pixels of 'x' are 20 times smaller"):
        pair(scene(GRID), scene(GRID @ Affine.scale(0.05), 500, 500))


def test_how_much_the_second_covers_is_said():
    (note,) = pair(scene(GRID), scene(GRID @ Affine.translation(45, 0), name="y")).notes
    assert note == "'y' covers 50% of 'x': the rest is nodata"


def test_control_points_place_a_date(tmp_path):
    turned = GRID @ Affine.translation(10, 5) @ Affine.rotation(10)
    second = scene(turned)
    points = [GroundControlPoint(r, c, *(turned * (c, r))) for r in range(0, 81, 20) for c in range(0, 91, 30)]
    profile = {"driver": "GTiff", "dtype": "float32", "count": 2, "height": 80, "width": 90}
    with rasterio.open(tmp_path / "y.tif", "w", **profile, gcps=points, crs=UTM33) as raster:
        raster.write(second.read())
    with open_scene(tmp_path / "y.tif", bands=["red", "nir"]) as placed:
        values, valid = pair(scene(GRID), placed).read_valid()
    expected, there = pair(scene(GRID), second).read_valid()
    assert (valid != there).mean() < 0.01
    assert np.allclose(values[:, valid & there], expected[:, valid & there], atol=0.01)


def test_each_date_is_brought_to_the_contract_from_its_own_bands():
    swapped = Sensor("swapped", (Band("nir"), Band("blue"), Band("red")))
    contract = BandContract(TWO, (10.0, 20.0), (2.0, 4.0))
    prepare = PairInput(ContractInput(contract, TWO), ContractInput(contract, swapped))
    numbers = torch.tensor([10.0, 20, 24, 99, 14])[None, :, None, None].expand(1, 5, 3, 3).clone()
    numbers[0, 4, 0, 0] = torch.nan
    images, seen = prepare(numbers, torch.ones(1, 3, 3, dtype=torch.bool))
    assert images.shape == (1, 2, 2, 3, 3) and seen.sum() == 8 and not seen[0, 0, 0, 0]
    assert images[0, :, :, 1, 1].tolist() == [[0.0, 0.0], [2.0, 1.0]] and not images[..., 0, 0].any()
