import numpy as np
import pytest

from geomim.corpus.quality import LOW_INFORMATION, assess
from geomim.corpus.scenes import find_scenes, open_scene
from geomim.corpus.scenes.scene import UNKNOWN
from geomim.corpus.slicing import Grid, slice_scene
from geomim.sensors import get_sensor


def information(pixels, valid=None):
    return assess(pixels, valid).information


def noise(scale, size=256, bands=3, seed=0):
    return np.random.default_rng(seed).normal(1000, scale, (2, bands, size, size)).astype(np.float32)


def holes(count=3, size=40, seed=0):
    """Validity of random pixels, tile by tile more."""
    return np.random.default_rng(seed).random((count, size, size)) < np.linspace(0.3, 1, count)[:, None, None]


def test_valid_fraction_counts_pixels():
    valid = np.ones((3, 8, 8), bool)
    valid[1, :2] = False
    valid[2] = False
    assert assess(np.zeros((3, 1, 8, 8)), valid).valid_fraction.tolist() == [1.0, 0.75, 0.0]
    assert assess(np.zeros((3, 1, 8, 8))).valid_fraction.tolist() == [1.0, 1.0, 1.0]


def test_clouds_are_counted_among_valid_pixels():
    valid, clouds = holes(), holes(seed=1)
    valid[0] = False
    found = assess(np.zeros((3, 2, 40, 40), np.uint8), valid, clouds).cloud_fraction
    assert found[0] == 0 and found[1:] == pytest.approx([clouds[n][valid[n]].mean() for n in (1, 2)])
    assert np.isnan(assess(np.zeros((3, 2, 40, 40)), valid).cloud_fraction).all()


def test_clouds_are_a_share_of_what_is_known_and_nothing_where_little_is():
    codes = np.zeros((3, 10, 10), np.uint8)
    codes[:, 0] = 1
    for tile, rows in enumerate((4, 5, 6)):
        codes[tile, 10 - rows :] = UNKNOWN
    pixels, valid = np.zeros((3, 1, 10, 10)), np.ones((3, 10, 10), bool)
    assert assess(pixels, None, codes).cloud_fraction == pytest.approx([1 / 6, 1 / 5, np.nan], nan_ok=True)
    valid[2, 9:] = False  # padding is nothing that should be known
    assert assess(pixels, valid, codes).cloud_fraction[2] == pytest.approx(np.nan, nan_ok=True)
    valid[2, 8:] = False
    assert assess(pixels, valid, codes).cloud_fraction[2] == 1 / 4


@pytest.mark.parametrize(
    ("dtype", "end"), [(np.uint8, 255), (np.uint16, 65535), (np.int16, 32767), (np.int32, 2**31 - 1)]
)
def test_a_pixel_is_saturated_where_any_band_is_at_the_end_of_its_type(dtype, end):
    pixels = np.random.default_rng(2).integers(0, 100, (3, 4, 40, 40)).astype(dtype)
    pixels[np.random.default_rng(3).random(pixels.shape) < 0.1] = end
    valid = holes()
    expected = [(pixels[n] == end).any(0)[valid[n]].mean() for n in range(3)]
    assert assess(pixels, valid).saturated_fraction == pytest.approx(expected)
    pixels[pixels == end] = end - 1
    assert assess(pixels, valid).saturated_fraction.tolist() == [0, 0, 0]


def test_an_end_of_the_scale_below_that_of_the_type_is_given():
    pixels = np.arange(400, dtype=np.int16).reshape(1, 1, 20, 20)
    assert assess(pixels).saturated_fraction[0] == 0
    assert assess(pixels, saturation=300).saturated_fraction[0] == 0.25
    assert assess(pixels.astype(np.float32)).saturated_fraction[0] == 0
    assert assess(pixels.astype(np.float32), saturation=300).saturated_fraction[0] == 0.25


@pytest.mark.parametrize("size", [16, 30, 64, 100, 256, 500])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32])
def test_information_of_known_patterns(size, dtype):
    flat = np.full((1, 2, size, size), 100, dtype)
    halves = flat.copy()
    halves[..., size // 2 // 8 * 8 :] = 120  # a step of a sixth of the mean, on a block edge or near it
    assert information(flat)[0] == 0
    assert 0.05 < information(halves)[0] < 0.12


@pytest.mark.parametrize("size", [40, 70, 512])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float64])
def test_information_is_the_contrast_of_block_means(size, dtype):
    pixels = np.random.default_rng(4).integers(0, np.iinfo(np.uint8).max, (2, 3, size, size)).astype(dtype)
    valid = holes(2, size)
    block = max(8, size // 32)
    for n in range(2):
        means = []
        for row in range(0, size, block):
            for col in range(0, size, block):
                inside = valid[n, row : row + block, col : col + block]
                if inside.mean() >= 0.5:
                    means.append(pixels[n, :, row : row + block, col : col + block][:, inside].mean(1))
        expected = np.sqrt(np.var(means, axis=0).mean()) / np.mean(means) if means else 0
        assert information(pixels, valid)[n] == pytest.approx(expected, rel=1e-9)


def test_noise_is_no_information():
    # A block of 8 x 8 pixels divides the deviation of noise by 8.
    assert information(noise(30)) == pytest.approx(0.03 / 8, rel=0.1)
    assert assess(noise(10)).low_information.all()
    assert not assess(noise(100) + 200 * (np.arange(256) > 100)).low_information.any()


def test_dark_noisy_band_does_not_count():
    pixels = noise(1)
    pixels[:, 2] = np.random.default_rng(0).normal(1, 2, (2, 256, 256))
    assert assess(pixels).low_information.all()


def test_invalid_pixels_change_nothing():
    pixels = noise(100, size=64) + 300 * (np.arange(64) > 30)
    valid = np.ones((2, 64, 64), bool)
    valid[:, :16] = False
    broken = pixels.copy()
    broken[:, :, :16] = np.nan
    assert information(broken, valid) == pytest.approx(information(pixels[:, :, 16:]), rel=1e-5)
    assert information(broken, np.zeros_like(valid)).tolist() == [0, 0]
    broken[:, :, :16] = np.inf
    assert assess(broken, valid).saturated_fraction.tolist() == [0, 0]


def test_scale_does_not_matter():
    pixels = noise(100) + 300 * (np.arange(256) > 30)
    assert information(pixels) == pytest.approx(information(pixels * 1e-4), rel=1e-4)
    whole = pixels.astype(np.uint16)
    assert information(whole) == pytest.approx(information(whole.astype(np.float32)))


def test_a_tile_does_not_depend_on_its_batch_or_its_place_in_memory():
    pixels = np.concatenate([noise(100, size=64), noise(5, size=64, seed=1)])
    valid = np.ones((4, 64, 64), bool)
    valid[0, :10] = False
    together = information(pixels, valid)
    assert together.tolist() == [information(pixels[i : i + 1], valid[i : i + 1])[0] for i in range(4)]
    assert together.tolist() == information(np.asfortranarray(pixels), np.asfortranarray(valid)).tolist()


def test_real_tiles_are_informative(data_dir):
    lowest = []
    for path in find_scenes([data_dir / "naip"]):
        with open_scene(path, get_sensor("naip")) as scene:
            tiles = list(slice_scene(scene, Grid((128,))))
        quality = assess(np.stack([tile.pixels for tile in tiles]), np.stack([tile.valid for tile in tiles]))
        assert not quality.low_information[quality.valid_fraction > 0.5].any()
        lowest.append(quality.information[quality.valid_fraction > 0.5].min())
    assert min(lowest) > 2 * LOW_INFORMATION


def test_few_real_tiles_are_low_and_most_of_those_desert(data_dir):
    """Of photographs cut to 64 pixels, calm water and sand; a town never."""
    low = {}
    for name in ("desert", "bareland", "church", "denseresidential"):
        pixels = []
        for path in find_scenes([data_dir / "rsicd" / "classes" / name])[::5]:
            with open_scene(path) as scene:
                pixels += [tile.pixels for tile in slice_scene(scene, Grid((64,)))]
        low[name] = assess(np.stack(pixels)).low_information.mean()
    assert 0.005 < low["desert"] < 0.2
    assert low["bareland"] < 0.01 and low["church"] == 0 and low["denseresidential"] == 0
