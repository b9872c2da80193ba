import numpy as np
import pytest

from geomim.corpus.duplicates.blocks import MIN_CORRELATION, block_hashes, overlap
from geomim.corpus.duplicates.fingerprint import inverse, orient, orientations
from geomim.corpus.duplicates.votes import Blocks, crop_matches, crop_pairs


def ground(size=512, seed=0):
    """Smooth random ground with sharp roofs on it, `(H, W)` float32."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None]) + 1 / size
    field = np.fft.ifft2(np.fft.fft2(rng.normal(size=(size, size))) / frequency).real
    field = 100 + 20 * field / field.std()
    for y, x, height, width in rng.integers(4, [size - 30, size - 30, 30, 30], (size * size // 2000, 4)):
        field[y : y + height, x : x + width] += rng.normal(0, 40)
    return field.astype(np.float32)


def blocks_of(tiles, count=32, first=0):
    parts = []
    for number, gray in enumerate(tiles):
        hashes, xy = block_hashes(np.nan_to_num(gray), np.isfinite(gray), count)
        parts.append((np.full(len(hashes), first + number), hashes, xy, np.tile(gray.shape, (len(hashes), 1))))
    return Blocks(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def found(crops):
    return {
        (int(one), int(two)): (int(turn), tuple(offset), int(votes))
        for one, two, turn, offset, votes in zip(
            crops.one, crops.two, crops.orientation, crops.offset.tolist(), crops.votes, strict=True
        )
    }


def test_patches_lie_inside_and_are_many_and_spread():
    gray = ground(256)
    hashes, xy = block_hashes(gray, np.ones(gray.shape, bool))
    assert len(hashes) == len(xy) == 32 and xy.dtype == np.int16
    assert xy.min() >= 16 and xy.max() < 256 - 16
    assert len(np.unique(xy // 64, axis=0)) > 12


@pytest.mark.parametrize("k", range(8))
def test_corners_and_hashes_turn_with_the_tile(k):
    gray = ground(200)[:, :160]
    hashes, xy = block_hashes(gray, np.ones(gray.shape, bool))
    turned = np.ascontiguousarray(orient(gray, k))
    others, other_xy = block_hashes(turned, np.ones(turned.shape, bool))
    marks = np.zeros(gray.shape, int)
    marks[xy[:, 1], xy[:, 0]] = np.arange(len(xy)) + 1
    where = orient(marks, k)[other_xy[:, 1], other_xy[:, 0]]
    assert (where > 0).mean() > 0.9
    same = orientations(hashes)[k][where[where > 0] - 1] == others[where > 0]
    assert same.mean() > 0.9


def test_patches_keep_off_invalid_pixels():
    gray, valid = ground(256), np.ones((256, 256), bool)
    valid[100:110] = False
    _, xy = block_hashes(gray, valid)
    assert len(xy) and (np.abs(xy[:, 1] - 104.5) > 16).all()
    assert len(block_hashes(gray, np.zeros_like(valid))[0]) == 0
    assert len(block_hashes(gray[:30, :30], valid[:30, :30])[0]) == 0
    assert len(block_hashes(np.full((256, 256), 7, np.float32), valid)[0]) == 0


@pytest.mark.parametrize("k", range(8))
def test_crops_that_overlap_are_found_at_their_offset_in_any_orientation(k):
    scene = ground()
    first, second = scene[:256, :256], orient(scene[77 : 77 + 240, 111 : 111 + 256], inverse(k))
    other = ground(256, 5)
    blocks = blocks_of([first, other, np.ascontiguousarray(second)])
    pairs = found(crop_pairs(blocks))
    assert set(pairs) == {(0, 2)}
    turn, offset, votes = pairs[0, 2]
    assert turn == k and offset == (111, 77) and votes >= 4
    share, same = overlap(first, second, turn, offset)
    assert share == pytest.approx((256 - 111) * (256 - 77) / (240 * 256)) and same > 0.99
    # Seen from the other tile, and across two sets, it is the same.
    swapped = found(crop_pairs(blocks_of([np.ascontiguousarray(second), other, first])))[0, 2]
    assert swapped[0] == inverse(k) and swapped[2] == votes
    assert overlap(second, first, swapped[0], swapped[1])[1] > 0.99
    across = found(crop_matches(blocks_of([first]), blocks_of([other, np.ascontiguousarray(second)], first=7)))
    assert across == {(0, 8): (k, (111, 77), votes)}


def test_crops_of_a_third_and_with_noise_and_gain_are_found():
    scene = ground(768)
    noise = np.random.default_rng(0).normal(0, 2, (256, 256)).astype(np.float32)
    tiles = [scene[:256, :256], scene[:256, 170 : 170 + 256] * 1.2 - 9 + noise, scene[400:656, 400:656]]
    pairs = found(crop_pairs(blocks_of(tiles)))
    assert set(pairs) == {(0, 1)} and pairs[0, 1][:2] == (0, (170, 0))
    share, same = overlap(tiles[0], tiles[1], 0, (170, 0))
    assert share == pytest.approx(86 / 256) and same > MIN_CORRELATION
    assert overlap(tiles[0], tiles[1], 0, (160, 0))[1] < MIN_CORRELATION
    assert overlap(tiles[0], tiles[2], 0, (30, 30))[1] < MIN_CORRELATION


def test_overlap_leaves_out_invalid_pixels_and_answers_for_none():
    one = ground(128)
    two = one.copy()
    two[:40] = np.nan
    assert overlap(one, two, 0, (0, 0)) == (1.0, pytest.approx(1, abs=1e-3))
    assert overlap(one, np.full_like(one, np.nan), 0, (0, 0)) == (1.0, 0.0)
    assert overlap(one, one, 0, (120, 0)) == (8 / 128, 0.0)
    assert overlap(one, one, 0, (500, 500)) == (0.0, 0.0)
    assert overlap(np.ones_like(one), one, 0, (0, 0))[1] == 0


def test_patches_seen_everywhere_tell_nothing_and_cost_little():
    roof = ground(64, 3)
    crowd = [np.tile(roof, (3, 3))[s : s + 128, s : s + 128] for s in range(60)]
    scene = ground()
    tiles = [*crowd, scene[:256, :256], scene[100:356, 60:316]]
    blocks = blocks_of(tiles, 500)
    assert set(found(crop_pairs(blocks))) == {(60, 61)}
    assert len(crop_pairs(blocks, crowd=10**6).one) > 1000


def test_no_patches_no_pairs():
    none = blocks_of([np.zeros((64, 64), np.float32)])
    assert len(crop_pairs(none).one) == 0
    assert len(crop_matches(none, blocks_of([ground(128)])).one) == 0


@pytest.mark.parametrize("odd", [np.nan, np.inf, -3.4e38])
def test_numbers_that_are_no_measurements_do_no_harm(odd):
    gray = np.random.default_rng(0).random((96, 96)).astype(np.float32)
    valid = np.ones(gray.shape, bool)
    valid[:20] = False
    plain, xy = block_hashes(np.where(valid, gray, 0), valid)
    hashes, places = block_hashes(np.where(valid, gray, np.float32(odd)), valid)
    assert len(plain) and np.array_equal(plain, hashes) and np.array_equal(xy, places)
    huge, _ = block_hashes(gray * np.float32(1e30), valid)
    assert len(huge)


@pytest.mark.parametrize("corner", [12, 24, 40])
@pytest.mark.parametrize("waves, step", [(0, 1), (1, 1), (3, 4), (2, 8)])
def test_a_bright_corner_alike_does_not_make_crops_of_two_lakes(corner, waves, step):
    lakes = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        gray = 20 + waves * np.kron(rng.normal(size=(128 // step, 128 // step)), np.ones((step, step)))
        gray[:corner, :corner] += 150 + rng.normal(0, 4, (corner, corner))
        lakes.append(np.round(gray).astype(np.float32))
    assert overlap(*lakes, 0, (0, 0))[1] < 0.9
    again = np.round(ground(128, 3) + np.random.default_rng(9).normal(0, 1, (128, 128))).astype(np.float32)
    one = ground(128, 3)
    one[:corner, :corner] += 300
    again[:corner, :corner] += 300
    assert overlap(one[:, :100], again[:, 40:], 0, (40, 0))[1] > MIN_CORRELATION
