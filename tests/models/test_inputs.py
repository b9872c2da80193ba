import dataclasses

import pytest
import torch

from geomim.errors import BandError
from geomim.models.inputs import ContractInput, patch_validity, resize
from geomim.sensors import SENSORS, Band, BandContract, Sensor

RGB = BandContract(SENSORS["rgb"], (10.0, 20.0, 30.0), (1.0, 2.0, 3.0))


def test_bands_are_picked_by_name_and_normalised():
    numbers = torch.tensor([30.0, 20.0, 10.0, 99.0]).view(1, 4, 1, 1).expand(2, 4, 8, 8)
    bgr = Sensor("camera", tuple(Band(name) for name in ("blue", "green", "red", "nir")))
    images, valid = ContractInput(RGB, bgr)(numbers.to(torch.uint8))
    assert images.shape == (2, 3, 8, 8)
    assert images.abs().max() == 0
    assert valid.all()


def test_missing_bands_and_other_units_are_named():
    with pytest.raises(BandError, match="missing red"):
        ContractInput(RGB, Sensor("sar", (Band("VV"), Band("VH"))))
    with pytest.raises(BandError, match=r"digital number.*reflectance"):
        ContractInput(RGB, SENSORS["sentinel2"])


def test_scales_are_brought_together():
    sensor = SENSORS["landsat7"]
    contract = BandContract(sensor, (1000.0,) * 6, (500.0,) * 6)
    numbers = torch.full((1, 6, 4, 4), 2000.0)
    as_reflectance = dataclasses.replace(sensor, scale=2.75e-5, offset=-0.2)
    other = (numbers * sensor.scale + 0.2) / 2.75e-5
    torch.testing.assert_close(
        ContractInput(contract, as_reflectance)(other)[0], ContractInput(contract, sensor)(numbers)[0]
    )


def test_nodata_and_nan_become_zero_and_do_not_bleed():
    numbers = torch.full((1, 3, 16, 16), 40.0)
    numbers[..., :4] = float("nan")
    declared = torch.ones(1, 16, 16, dtype=torch.bool)
    declared[:, :4] = False
    images, valid = ContractInput(RGB, SENSORS["rgb"])(numbers, declared, size=8)
    assert valid.shape == (1, 1, 8, 8)
    assert not valid[..., :2].any() and not valid[:, :, :2].any() and valid[..., 3:, 3:].all()
    assert images[~valid.expand_as(images)].abs().max() == 0
    torch.testing.assert_close(images[:, 0][valid[:, 0]], torch.full_like(images[:, 0][valid[:, 0]], 30.0))
    assert patch_validity(valid, 4)[0, [0, 3]].tolist() == [False, True]


def test_resize_keeps_the_mean():
    images = torch.rand(2, 3, 32, 32)
    small, valid = resize(images, torch.ones(2, 1, 32, 32, dtype=torch.bool), (8, 8))
    assert valid.all()
    torch.testing.assert_close(small.mean((2, 3)), images.mean((2, 3)), rtol=0.05, atol=0.02)
