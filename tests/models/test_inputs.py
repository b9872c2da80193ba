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


def test_bands_of_several_units_are_brought_together_one_by_one():
    bands = ("B1", "B31", "B26")
    contract = BandContract(SENSORS["modis_toa"].select(bands), (20.0, 280.0, 2.0), (10.0, 15.0, 4.0))
    numbers = torch.tensor([35.0, 250.0, 6.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)  # percent, kelvin, percent
    ours, _ = ContractInput(contract, contract.sensor)(numbers)
    torch.testing.assert_close(ours[0, :, 0, 0], torch.tensor([1.5, -2.0, 1.0]))
    packed = Sensor(  # as a file packs them: other scales, an offset, and another order
        "packed",
        (
            Band("B26", 1375, 30, unit="reflectance", scale=2e-5),
            Band("B31", 11030, 500, unit="kelvin", scale=0.01, offset=150.0),
            Band("B1", 645, 50, unit="reflectance", scale=5e-5, offset=-0.1),
        ),
    )
    stored = torch.tensor([0.06 / 2e-5, 100 / 0.01, 0.45 / 5e-5]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    torch.testing.assert_close(ContractInput(contract, packed)(stored)[0], ours, rtol=1e-4, atol=1e-4)
    celsius = dataclasses.replace(packed.bands[1], unit="celsius")
    wrong = dataclasses.replace(packed, bands=(packed.bands[0], celsius, packed.bands[2]))
    with pytest.raises(BandError, match=r"expected numbers in kelvin .*'modis_toa'.*given celsius of 'packed' for B31"):
        ContractInput(contract, wrong)


def test_decibels_are_not_taken_for_other_numbers():
    contract = BandContract(SENSORS["sentinel1"], (-11.0, -18.0), (4.0, 4.0))
    tenths = Sensor("tenths", (Band("vh"), Band("vv")), unit="dB", scale=0.1)
    images, _ = ContractInput(contract, tenths)(torch.tensor([-220.0, -110.0]).view(1, 2, 1, 1).expand(1, 2, 4, 4))
    torch.testing.assert_close(images[0, :, 0, 0], torch.tensor([0.0, -1.0]))
    with pytest.raises(BandError, match=r"expected numbers in dB .* given digital number"):
        ContractInput(contract, Sensor("linear", (Band("VV"), Band("VH"))))


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
