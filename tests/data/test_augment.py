import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as V

from geomim.data.augment import Augment, boxes_on_both, crop_boxes, resample, resampling
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
    top, left, height, width = crop_boxes(Draws(0, torch.arange(4000)), (40, 60), (0.2, 1.0), (3 / 4, 4 / 3))
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


def test_whole_tiles_are_normalised_by_the_contract(contracts):
    images = torch.tensor([100.0, 110.0, 120.0])[:, None, None].expand(2, 3, 8, 8) + 50
    image = Augment(contracts, 4, turn=True, jitter=0.5).whole(raw(images))["image"]
    torch.testing.assert_close(image[0, :, 0, 0], torch.tensor([1.0, 50 / 60, 50 / 70]))


def test_crops_of_tiles_beside_each_other_show_one_ground():
    wide = smooth(64, 48)
    down, right = torch.arange(64) % 5 - 2, torch.arange(64) % 3 - 1
    one = wide[:, :, 4:36, 4:36]
    two = torch.stack([w[:, 4 + d : 36 + d, 4 + r : 36 + r] for w, d, r in zip(wide, down, right, strict=True)])
    offset = torch.stack([down, right], 1).float()
    for scale in ((0.2, 0.5), (1.0, 1.0)):
        boxes = crop_boxes(Draws(0, torch.arange(64)), (32, 32), scale, (3 / 4, 4 / 3))
        cut = []
        for images, (top, left, height, width) in zip((one, two), boxes_on_both(boxes, (32, 32), offset), strict=True):
            for start, length in ((top, height), (left, width)):
                assert (start > -1e-4).all() and (start + length < 32 + 1e-4).all()
            inside = resampling(top, height, 32, 8), resampling(left, width, 32, 8)
            cut.append(resample(images, *inside)[:, :, 1:-1, 1:-1])  # at the edge of a tile there is no beyond
        torch.testing.assert_close(*cut, atol=0.05, rtol=1e-3)


def test_another_date_without_offset_is_cut_alike_and_keeps_its_own_validity(contracts):
    images, valid = smooth(8), torch.ones(8, 1, 32, 32, dtype=torch.bool)
    valid[:, :, :20] = False
    date = {
        "image": images.clone(),
        "valid": valid,
        "offset": torch.zeros(8, 2),
        "gsd": torch.full((8,), 5.0),
        "sensor": "rgb",
    }
    batch = Augment(contracts, 16, turn=True)(raw(images, views={"date": date}))
    other = batch["views"]["date"]
    assert "valid" not in batch and 0 < other["valid"].float().mean() < 0.7
    good = other["valid"].expand_as(other["image"])
    assert torch.equal(other["image"][good], batch["image"][good]) and not other["image"][~good].any()


def test_jitter_scales_and_shifts_each_band_of_each_image(contracts):
    images, valid = smooth(200), torch.ones(200, 1, 32, 32, dtype=torch.bool)
    valid[:, :, :9] = False
    date = {"image": images, "offset": torch.zeros(200, 2), "sensor": "rgb"}
    batch = raw(images, valid=valid, views={"date": date})
    plain, changed = Augment(contracts, 16)(batch), Augment(contracts, 16, jitter=0.2)(batch)
    assert torch.equal(plain["valid"], changed["valid"])
    gains = []
    for before, after, good in (
        (plain["image"], changed["image"], plain["valid"]),
        (plain["views"]["date"]["image"], changed["views"]["date"]["image"], None),
    ):
        weight = torch.ones_like(before) if good is None else good.expand_as(before).float()
        count = weight.sum((2, 3)).clamp(min=1)
        x, y = (one - ((one * weight).sum((2, 3)) / count)[..., None, None] for one in (before, after))
        gain = (x * y * weight).sum((2, 3)) / (x * x * weight).sum((2, 3)).clamp(min=1e-9)
        summand = ((after - gain[..., None, None] * before) * weight).sum((2, 3)) / count
        residual = (after - gain[..., None, None] * before - summand[..., None, None]) * weight
        sure = count > 8
        assert residual[sure].abs().max() < 1e-3 and not after[weight == 0].any()
        for values, middle in ((gain[sure], 1.0), (summand[sure], 0.0)):
            assert (values - middle).abs().max() < 0.2 + 1e-3 and 0.1 < values.std() < 0.13
        gains.append(gain)
    assert abs(torch.corrcoef(torch.stack([gains[0].flatten(), gains[1].flatten()]))[0, 1]) < 0.15
    assert abs(torch.corrcoef(gains[1].T)[0, 1]) < 0.2  # bands are changed apart
    again = Augment(contracts, 16, jitter=0.2)(
        {name: one[5:6] for name, one in raw(images).items() if name != "sensor"} | {"sensor": "rgb"}
    )
    torch.testing.assert_close(again["image"], Augment(contracts, 16, jitter=0.2)(raw(images))["image"][5:6])
