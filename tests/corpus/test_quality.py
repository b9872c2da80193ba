import numpy as np
import pytest

from geomim.corpus.quality import LOW_INFORMATION, assess, information, valid_fraction
from geomim.corpus.scenes import find_scenes, open_scene
from geomim.corpus.slicing import slice_scene
from geomim.sensors import get_sensor


def noise(scale, size=256, bands=3, seed=0):
    return np.random.default_rng(seed).normal(1000, scale, (2, bands, size, size)).astype(np.float32)


def test_valid_fraction_counts_pixels():
    valid = np.ones((2, 8, 8), bool)
    valid[1, :2] = False
    assert valid_fraction(valid).tolist() == [1.0, 0.75]


@pytest.mark.parametrize("size", [16, 30, 64, 100, 256, 500])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32])
def test_information_of_known_patterns(size, dtype):
    flat = np.full((1, 2, size, size), 100, dtype)
    halves = flat.copy()
    halves[..., size // 2 // 8 * 8 :] = 120  # a step of a sixth of the mean, on a block edge or near it
    assert information(flat)[0] == 0
    assert 0.05 < information(halves)[0] < 0.12


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
    with np.errstate(all="raise"):
        assert information(broken, valid) == pytest.approx(information(pixels[:, :, 16:]), rel=1e-5)
    assert information(broken, np.zeros_like(valid)).tolist() == [0, 0]


def test_scale_does_not_matter():
    pixels = noise(100) + 300 * (np.arange(256) > 30)
    assert information(pixels) == pytest.approx(information(pixels * 1e-4), rel=1e-4)
    whole = pixels.astype(np.uint16)
    assert information(whole) == pytest.approx(information(whole.astype(np.float32)))


def test_a_tile_does_not_depend_on_its_batch():
    pixels = np.concatenate([noise(100, size=64), noise(5, size=64, seed=1)])
    valid = np.ones((4, 64, 64), bool)
    valid[0, :10] = False
    together = information(pixels, valid)
    alone = [information(pixels[i : i + 1], valid[i : i + 1])[0] for i in range(4)]
    assert together.tolist() == alone


def test_real_tiles_are_informative(data_dir):
    lowest = []
    for path in find_scenes([data_dir / "naip"]):
        with open_scene(path, get_sensor("naip")) as scene:
            tiles = list(slice_scene(scene, 128))
        quality = assess(np.stack([tile.pixels for tile in tiles]), np.stack([tile.valid for tile in tiles]))
        assert not quality.low_information[quality.valid_fraction > 0.5].any()
        lowest.append(quality.information[quality.valid_fraction > 0.5].min())
    assert min(lowest) > 2 * LOW_INFORMATION
