import numpy as np
import pytest

from geomim.corpus.duplicates.fingerprint import (
    ORIENTATIONS,
    block_means,
    content_hash,
    inverse,
    orient,
    orientations,
    perceptual_hash,
    signature,
)


def scenes(count=20, bands=3, size=96, seed=0):
    """Smooth random fields, `(n, C, H, W)` uint16."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None]) + 1 / size
    noise = np.fft.fft2(rng.normal(size=(count, bands, size, size))) / frequency**1.5
    field = np.fft.ifft2(noise).real
    field = (field - field.mean((2, 3), keepdims=True)) / field.std((2, 3), keepdims=True)
    return np.clip(3000 + 600 * field, 0, 65535).astype(np.uint16)


def fingerprint(tiles, valid=None):
    valid = np.ones((len(tiles), *tiles.shape[2:]), bool) if valid is None else valid
    return perceptual_hash(block_means(tiles, valid))


def distance(one, two):
    return np.bitwise_count(one ^ two)


def test_content_hash_sees_pixels_shape_and_dtype_but_not_memory_layout():
    tile = scenes(1)[0]
    same = np.asfortranarray(tile).astype(">u2")
    assert content_hash(tile) == content_hash(same) and len(content_hash(tile)) == 32
    changed = tile.copy()
    changed[2, 95, 95] += 1
    others = [changed, tile.reshape(3, 48, 192), tile.view(np.int16), tile.view(np.uint8)]
    assert len({content_hash(tile), *map(content_hash, others)}) == 5


@pytest.mark.parametrize("size", [32, 64, 100, 7])
def test_block_means_are_means(size):
    tiles = scenes(2, 4, size)
    means = block_means(tiles, np.ones((2, size, size), bool))
    if size % 32 == 0:
        step = size // 32
        expected = tiles.reshape(2, 4, 32, step, 32, step).mean((1, 3, 5))
        np.testing.assert_allclose(means, expected, rtol=1e-6)
    assert tiles.min() <= means.min() and means.max() <= tiles.max()


def test_invalid_pixels_do_not_count():
    tiles = scenes(3).astype(np.float32)
    valid = np.ones((3, 96, 96), bool)
    valid[:, :10, :40] = False
    hidden = tiles.copy()
    hidden[:, :, :10, :40] = np.nan
    np.testing.assert_array_equal(block_means(hidden, valid), block_means(tiles, valid))
    means = block_means(hidden, valid)
    np.testing.assert_allclose(means[0, 0, 0], tiles[0][:, valid[0]].mean(), rtol=1e-5)  # a cell without valid pixels
    assert (block_means(tiles, np.zeros_like(valid)) == 0).all()


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "i4", "f4", ">u2"])
@pytest.mark.parametrize("size", [40, 64])
def test_block_means_of_any_type_are_those_of_a_plain_loop(dtype, size):
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 100, (2, 3, size, size)).astype(dtype)
    if np.dtype(dtype).kind == "i":
        tiles -= 50
    valid = rng.random((2, size, size)) < 0.3
    valid[1] = True
    means = block_means(tiles, valid)
    for n in range(2):
        for i, j in [(0, 0), (3, 17), (15, 16), (31, 31)]:
            y, x = (slice(k * size // 32, -(-(k + 1) * size // 32)) for k in (i, j))
            inside = tiles[n, :, y, x][:, valid[n, y, x]]
            expected = inside if inside.size else tiles[n][:, valid[n]]
            np.testing.assert_allclose(means[n, i, j], expected.astype(float).mean(), rtol=1e-5, atol=1e-4)


def test_large_numbers_do_not_overflow():
    tiles = np.full((1, 12, 1024, 1024), 65535, np.uint16)
    assert (block_means(tiles) == 65535).all()
    assert (block_means(tiles, np.ones((1, 1024, 1024), bool)) == 65535).all()
    assert (block_means(tiles.repeat(4, 1)) == 65535).all()  # does not fit 32 bits


def test_perceptual_hash_survives_gain_noise_and_a_small_shift_but_tells_places_apart():
    tiles = scenes()
    noise = np.random.default_rng(1).normal(0, 30, tiles.shape)
    base = fingerprint(tiles)
    assert (distance(base, fingerprint(tiles * 1.2 + 100)) <= 1).all()
    assert (distance(base, fingerprint(tiles + noise)) <= 4).mean() > 0.9
    assert (distance(base, fingerprint(np.roll(tiles, 1, 3))) <= 8).mean() > 0.9
    apart = distance(base[:, None], base[None])[~np.eye(len(base), dtype=bool)]
    assert apart.min() > 8 and 26 < apart.mean() < 38


def test_perceptual_hash_has_no_brightness_bit_and_no_bit_that_tells_nothing():
    hashes = fingerprint(scenes(200))
    assert ((hashes & np.uint64(1)) == 0).all()
    share = np.unpackbits(hashes.view(np.uint8)).reshape(200, 64).mean(0)
    assert np.sort(share)[1] > 0.3 and share.max() < 0.7
    flat = np.full((2, 3, 64, 64), 7, np.uint8)
    assert fingerprint(flat).tolist() == [0, 0]


@pytest.mark.parametrize("size", [64, 100, 33])
def test_hashes_of_all_orientations_follow_from_one(size):
    tiles = scenes(12, 2, size)
    predicted = orientations(fingerprint(tiles))
    for k in range(8):
        turned = orient(tiles, k)
        np.testing.assert_array_equal(fingerprint(turned), predicted[k], ORIENTATIONS[k])
        np.testing.assert_array_equal(orient(turned, inverse(k)), tiles)
    assert len(np.unique(predicted)) == predicted.size


def test_orientations_have_the_names_they_deserve():
    tile = np.arange(6).reshape(2, 3)
    turned = dict(zip(ORIENTATIONS, (orient(tile, k).tolist() for k in range(8)), strict=True))
    assert turned["rotated by 90 degrees clockwise"] == np.rot90(tile, -1).tolist()
    assert turned["rotated by 90 degrees counter-clockwise"] == np.rot90(tile).tolist()
    assert turned["rotated by 180 degrees"] == np.rot90(tile, 2).tolist()
    assert turned["flipped left-right"] == tile[:, ::-1].tolist()
    assert turned["flipped top-bottom"] == tile[::-1].tolist()
    assert turned["transposed"] == tile.T.tolist() and turned["anti-transposed"] == tile[::-1, ::-1].T.tolist()


def test_frequencies_that_are_zero_give_zero_bits_whatever_the_last_digit_says():
    stripes = np.tile(np.sin(np.arange(64) / 5), (1, 1, 64, 1))
    noise = np.random.default_rng(0).normal(0, 1e-9, stripes.shape)
    assert fingerprint(stripes) == fingerprint(stripes + noise)
    assert np.bitwise_count(fingerprint(stripes)) <= 7  # only waves across: the others are nothing


def test_signature_product_is_the_correlation():
    tiles = scenes(4)
    means = block_means(tiles, np.ones((4, 96, 96), bool))
    signatures = signature(means).astype(np.float64)
    expected = np.corrcoef(means.reshape(4, -1))
    np.testing.assert_allclose(signatures @ signatures.T, expected, atol=2e-3)
    assert (signature(np.full((1, 32, 32), 5.0)) == 0).all()
