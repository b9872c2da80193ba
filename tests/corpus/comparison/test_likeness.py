import io

import numpy as np
import pytest
from photographs import photograph, resized
from PIL import Image

from geomim.corpus.comparison.likeness import MIN_LIKENESS, details, likeness
from geomim.corpus.duplicates.fingerprint import orient


def _seen(picture: np.ndarray) -> np.ndarray:
    return details(picture.transpose(2, 0, 1), np.ones(picture.shape[:2], bool))


def _score(one: np.ndarray, two: np.ndarray, turn: int = 0) -> float:
    return float(likeness(_seen(one)[None], _seen(two)[None], np.array([turn]))[0])


def _jpeg(picture: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=50)
    return np.asarray(Image.open(file))


def _noise(picture: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 2.55, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


CHANGES = {
    "jpeg": _jpeg,
    "noise": _noise,
    "brighter": lambda picture: np.clip(picture * 0.6 + 60, 0, 255).astype(np.uint8),
    "smaller": lambda picture: resized(picture, 73),
    "shifted": lambda picture: np.roll(picture, (6, -5), (0, 1)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_like_its_original(change):
    picture = photograph(1)
    assert _score(picture, CHANGES[change](picture)) > MIN_LIKENESS + 0.1


def test_others_are_not_even_where_broad_shapes_agree():
    sand = np.arange(128)[:, None, None] + np.arange(128)[None, :, None] > 120
    black = [photograph(seed) * sand for seed in (4, 5)]  # nodata that is not declared
    assert _score(*black) < MIN_LIKENESS
    scores = [_score(photograph(seed), photograph(seed + 1)) for seed in range(10, 20)]
    assert max(scores) < MIN_LIKENESS


@pytest.mark.parametrize("turn", range(8))
def test_orientation_turns_the_second_view(turn):
    picture = photograph(4)
    turned = orient(picture.transpose(2, 0, 1), turn).transpose(1, 2, 0)
    assert _score(turned, picture, turn) == pytest.approx(1, abs=1e-5)
    if turn:
        assert _score(turned, picture) < MIN_LIKENESS


def test_nothing_to_see_is_like_nothing():
    flat = np.full((40, 40, 3), 9, np.uint8)
    assert _score(flat, flat) == 0
    assert _score(flat, photograph(5)) == 0
    nothing = details(photograph(6).transpose(2, 0, 1), np.zeros((128, 128), bool))
    assert not nothing.any()


def test_invalid_pixels_add_nothing():
    picture = photograph(7).transpose(2, 0, 1).astype(np.float32)
    valid = np.ones(picture.shape[1:], bool)
    valid[:, :32] = False
    spoiled = picture.copy()
    spoiled[:, :, :32] = np.nan
    assert np.allclose(details(picture, valid), details(spoiled, valid), atol=1e-3)
