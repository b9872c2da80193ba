import numpy as np
import pytest

from geomim.corpus.duplicates.fingerprint import block_means, inverse, orient, signature
from geomim.corpus.duplicates.verify import MIN_CORRELATION, correlation


def scene(size=300, seed=0):
    """Rough random ground, `(H, W)` float64: detail of all sizes."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None]) + 1 / size
    field = np.fft.ifft2(np.fft.fft2(rng.normal(size=(size, size))) / frequency).real
    return 100 + 20 * field / field.std()


def signatures(tiles):
    tiles = np.stack(tiles)[:, None]
    return signature(block_means(tiles, np.ones((len(tiles), *tiles.shape[2:]), bool)))


def test_the_second_signature_is_turned():
    means = np.random.default_rng(0).normal(size=(8, 32, 32))
    turned = np.stack([orient(means[k], inverse(k)) for k in range(8)])
    one, two = signature(means), signature(turned)
    np.testing.assert_allclose(correlation(one, two, np.arange(8)), 1, atol=2e-3)
    assert (correlation(one, two, np.roll(np.arange(8), 1)) < MIN_CORRELATION).all()


@pytest.mark.parametrize("y, x", [(0, 0), (4, 0), (-4, 4), (8, -8), (3, 5)])
def test_a_shift_by_up_to_a_block_is_forgiven(y, x):
    scenes = [scene(seed=seed) for seed in range(10)]
    one = signatures([ground[20:276, 20:276] for ground in scenes])
    two = signatures([1.3 * ground[20 + y : 276 + y, 20 + x : 276 + x] - 9 for ground in scenes])
    same = np.zeros(10, int)
    assert correlation(one, two, same).min() > MIN_CORRELATION
    np.testing.assert_allclose(correlation(one, two, same), correlation(two, one, same), atol=0.03)
    assert correlation(one, np.roll(two, 1, 0), same).max() < 0.6


def test_a_shift_by_three_blocks_is_not():
    ground = scene()
    one, two = signatures([ground[:256, :256]]), signatures([ground[24:280, :256]])
    assert correlation(one, two, np.zeros(1, int))[0] < 0.7


def test_a_bright_half_and_a_dark_half_do_not_make_a_copy():
    shore = np.where(np.arange(256) < 128, 40, 160)
    one, two = (signatures([shore + scene(256, seed)]) for seed in (1, 2))
    assert (one.astype(float) @ two.astype(float).T).item() > 0.85
    assert correlation(one, two, np.zeros(1, int))[0] < 0.85


def lake(seed, waves, step, light, corner, edge=128):
    """Dark water with waves of its own, and a bright corner that all of them have, in whole numbers."""
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.normal(0, 1, (edge // step, edge // step)), np.ones((step, step)))
    pixels = 20 + waves * (coarse + rng.normal(0, 0.5, (edge, edge)))
    pixels[:corner, :corner] += light + 5 * rng.normal(size=(corner, corner))
    return np.clip(np.round(pixels), 0, 255)


@pytest.mark.parametrize("light", [40, 120, 200])
@pytest.mark.parametrize("corner", [6, 12, 24, 40])
def test_one_bright_corner_makes_no_copy_of_two_lakes(light, corner):
    close = 0
    for waves, step in [(0, 1), (0.3, 1), (1, 1), (3, 1), (3, 8), (6, 16)]:
        one, two = (signatures([lake(seed, waves, step, light, corner) for seed in range(k, k + 8)]) for k in (0, 8))
        close += (np.einsum("nk,nk->n", one.astype(float), two.astype(float)) > 0.9).sum()  # by the corner alone
        assert correlation(one, two, np.zeros(8, int)).max() < MIN_CORRELATION
    assert close > 8 or light * corner < 1000


@pytest.mark.parametrize("edge", ["shore", "corner", "road"])
def test_a_lake_beside_something_bright_is_still_its_own_copy(edge):
    rng = np.random.default_rng(1)
    bright = {"shore": np.s_[:16], "corner": np.s_[:24, :24], "road": np.s_[:, 60:66]}[edge]
    tiles = [scene(128, seed) / 5 for seed in range(10)]
    for tile in tiles:
        tile[bright] += 150
    again = [np.round(tile + rng.normal(0, 0.5, tile.shape)) for tile in tiles]
    same = correlation(signatures(tiles), signatures(again), np.zeros(10, int))
    others = correlation(signatures(tiles), np.roll(signatures(again), 1, 0), np.zeros(10, int))
    assert same.min() > MIN_CORRELATION and others.max() < MIN_CORRELATION


def test_a_copy_that_is_half_without_data_is_one():
    valid = np.ones((10, 128, 128), bool)
    valid[:, :, 66:] = False
    tiles = np.stack([scene(128, seed) for seed in range(10)])[:, None]
    noisy = tiles + np.random.default_rng(0).normal(0, 1, tiles.shape)
    one, two = (signature(block_means(side, valid)) for side in (tiles, noisy))
    assert correlation(one, two, np.zeros(10, int)).min() > MIN_CORRELATION


def test_flat_tiles_and_no_tiles():
    flat, other = signatures([np.full((64, 64), 5.0)]), signatures([scene(64)])
    for one, two in ((flat, flat), (flat, other), (other, flat)):
        assert correlation(one, two, np.zeros(1, int)).tolist() == [0]
    assert correlation(flat[:0], flat[:0], np.empty(0, int)).shape == (0,)


def test_many_pairs_are_the_same_as_few():
    one = np.random.default_rng(0).normal(size=(4100, 1024)).astype(np.float16) / 32
    two, turn = np.roll(one, 1, 0), np.arange(4100) % 8
    many = correlation(one, two, turn)
    some = [0, 2047, 2048, 4099]
    np.testing.assert_allclose(correlation(one[some], two[some], turn[some]), many[some], atol=1e-6)
