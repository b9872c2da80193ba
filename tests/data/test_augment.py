import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as V

from geomim.data.augment import Augment, crop_both, draw_crops, resample, resampling, whole
from geomim.randomness import Draws
from geomim.sensors import BandContract, get_sensor


@pytest.fixture
def contract():
    return BandContract(get_sensor("rgb"), (100.0, 110.0, 120.0), (50.0, 60.0, 70.0))


@pytest.fixture
def contracts(contract):
    return {"rgb": contract}


def smooth(batch=4, size=32, seed=0):
    noise = torch.rand(batch, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 255
    return torch.nn.functional.interpolate(noise, size=(size, size), mode="bicubic").clamp(0, 255)


def raw(images, **more):
    return {"image": images, "position": torch.arange(len(images)), "sensor": "rgb", **more}


@pytest.mark.parametrize("out", [16, 23, 32, 48])
def test_whole_image_equals_torchvisions_antialiased_resize(out):
    images = smooth()
    start, length = torch.zeros(4), torch.full((4,), 32.0)
    weights = resampling(start, length, 32, out)
    expected = V.resize(images, [out, out], antialias=True)
    torch.testing.assert_close(resample(images, weights, weights), expected, atol=2e-3, rtol=1e-4)


def test_a_crop_on_whole_pixels_is_that_crop():
    images = smooth()
    rows = resampling(torch.full((4,), 3.0), torch.full((4,), 16.0), 32, 16)
    columns = resampling(torch.full((4,), 7.0), torch.full((4,), 16.0), 32, 16, torch.tensor([True] * 4))
    expected = images[:, :, 3:19, 7:23].flip(3)
    torch.testing.assert_close(resample(images, rows, columns), expected, atol=1e-3, rtol=1e-4)


def test_boxes_lie_inside_and_spread_over_scale():
    top, left, height, width, _ = draw_crops(Draws(0, torch.arange(4000)), (40, 60), (0.2, 1.0), (3 / 4, 4 / 3))
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= 40 + 1e-3).all() and (left + width <= 60 + 1e-3).all()
    share = height * width / 2400
    assert share.min() >= 0.199 and share.max() > 0.85 and 0.5 < share.mean() < 0.62


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_every_number_type_gives_the_same_image(contracts, dtype):
    images = smooth().round()
    given = torch.from_numpy(images.numpy().astype(dtype))
    expected = Augment(contracts, 16)(raw(images))["image"]
    result = Augment(contracts, 16)(raw(given))
    assert result["image"].dtype == torch.float32 and "valid" not in result
    torch.testing.assert_close(result["image"], expected)


def test_a_sample_is_the_same_in_any_batch_and_differs_by_seed(contracts):
    images, augment = smooth(), Augment(contracts, 16, turn=True)
    together = augment(raw(images))["image"]
    alone = augment({"image": images[2:3], "position": torch.tensor([2]), "sensor": "rgb"})["image"]
    torch.testing.assert_close(together[2:3], alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together, Augment(contracts, 16, turn=True, seed=1)(raw(images))["image"], atol=0.1)


def test_flips_and_turns_occur_as_asked(contracts):
    ramp = torch.linspace(0, 255, 32).expand(3, 32, 32)  # grows to the right
    batch = raw(ramp.expand(400, 3, 32, 32))
    for options, directions in (({"flip": "horizontal"}, 2), ({}, 2), ({"turn": True}, 4)):
        image = Augment(contracts, 16, **options)(batch)["image"][:, 0]
        right = (image[:, :, -1] - image[:, :, 0]).mean(1).round().sign()
        down = (image[:, -1] - image[:, 0]).mean(1).round().sign()
        kinds, counts = torch.unique(torch.stack([right, down]), dim=1, return_counts=True)
        assert kinds.shape[1] == directions and counts.min() > 400 / directions * 0.7
    ramp_down = raw(ramp.transpose(1, 2).expand(400, 3, 32, 32))
    for flip, kinds in (("horizontal", 1), ("both", 2)):
        image = Augment(contracts, 16, flip=flip)(ramp_down)["image"][:, 0]
        assert len((image[:, -1] - image[:, 0]).mean(1).round().sign().unique()) == kinds


def test_no_invalid_number_leaks(contracts):
    images, valid = smooth(64), torch.ones(64, 1, 32, 32, dtype=torch.bool)
    valid[:, :, :13] = False
    valid[::2, :, 20:22, 5] = False
    hidden = ~valid.expand_as(images)
    results = []
    for filling in (0.0, 1e30, float("nan"), float("inf")):
        results.append(Augment(contracts, 16, turn=True)(raw(images.masked_fill(hidden, filling), valid=valid)))
    for result in results:
        assert torch.equal(result["image"], results[0]["image"])
        assert (result["image"].masked_select(~result["valid"].expand_as(result["image"])) == 0).all()
    share = results[0]["valid"].float().mean()
    assert 0.3 < share < 0.7
    untouched = Augment(contracts, 16, turn=True)(raw(images))["image"]
    good = results[0]["valid"].expand_as(untouched)
    torch.testing.assert_close(results[0]["image"][good], untouched[good])  # weights of valid pixels are unchanged


def test_whole_tiles_are_normalised_by_the_contract(contract):
    images = torch.tensor([100.0, 110.0, 120.0])[:, None, None].expand(2, 3, 8, 8) + 50
    image = whole(images, None, 4, contract)["image"]
    torch.testing.assert_close(image[0, :, 0, 0], torch.tensor([1.0, 50 / 60, 50 / 70]))
