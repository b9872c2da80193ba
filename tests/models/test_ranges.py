import dataclasses
import re

import pytest
import torch

from geomim.errors import InputError
from geomim.models.inputs import ContractInput
from geomim.models.ranges import check_range
from geomim.sensors import SENSORS, Band, BandContract, Sensor, get_sensor

NAMES = ("B02", "B03", "B04", "B08")
REFLECTANCE = BandContract(
    SENSORS["sentinel2"].select(NAMES), (900.0, 1000.0, 1100.0, 2500.0), (450.0, 430.0, 500.0, 900.0)
)
LANDSAT = BandContract(SENSORS["landsat8"].select(("B4", "B5")), (10000.0, 14000.0), (1500.0, 2500.0))
BYTES = BandContract(SENSORS["rgb"], (110.0, 115.0, 100.0), (55.0, 50.0, 52.0))
FRACTIONS = BandContract(SENSORS["rgb"], (0.43, 0.45, 0.4), (0.2, 0.19, 0.2))
RADAR = Sensor("s1", (Band("VV"), Band("VH")))
DECIBELS = BandContract(RADAR, (-11.0, -18.0), (3.5, 4.0))
LINEAR = BandContract(RADAR, (0.1, 0.02), (0.12, 0.025))


def like(contract: BandContract, count: int = 6, side: int = 32) -> torch.Tensor:
    """Numbers with the contract's statistics, in its unit."""
    torch.manual_seed(0)
    deviations = torch.randn(count, len(contract.names), side, side).clamp(-1.9, 3)
    mean, std = (torch.tensor(values)[:, None, None] for values in (contract.mean, contract.std))
    return mean + deviations * std


def check(contract: BandContract, numbers: torch.Tensor, sensor: Sensor | None = None) -> tuple[str, ...]:
    return check_range(ContractInput(contract, sensor or contract.sensor), [(numbers, None)], "'a.tif'")


@pytest.mark.parametrize(
    ("contract", "numbers"),
    [
        (REFLECTANCE, like(REFLECTANCE) / 10000),
        (REFLECTANCE, like(REFLECTANCE) / 100),
        (REFLECTANCE, (like(REFLECTANCE) / 3500 * 255).clamp(0, 255).to(torch.uint8)),
        (LANDSAT, like(LANDSAT) * 2.75e-5 - 0.2),
        (FRACTIONS, like(BYTES).clamp(0, 255).to(torch.uint8)),
        (BYTES, like(FRACTIONS)),
        (BYTES, like(REFLECTANCE)[:, :3]),
        (dataclasses.replace(DECIBELS, mean=(15.0, 16.0)), like(DECIBELS) + 400),
    ],
)
def test_another_unit_is_refused_and_the_file_that_the_sentence_writes_is_accepted(tmp_path, contract, numbers):
    with pytest.raises(InputError, match=r"'a\.tif'.*holds .* where the encoder knows .*--sensor") as refused:
        check(contract, numbers)
    written = tmp_path / "mine.yaml"
    written.write_text(re.search(r"FILE\.yaml: (\{.*\})", str(refused.value))[1])
    sensor = get_sensor(written)
    assert sensor.names == contract.names
    check(contract, numbers, sensor)


@pytest.mark.parametrize(
    ("wrong", "band", "said"),
    [
        ((1, 100), "B31", "100 times too large.*unit: kelvin, scale: 0.01"),
        ((0.01, 1), "B1", "as reflectance itself does.*unit: reflectance, scale: 1.0"),
        ((0.1, 1), "B1", None),
    ],
)
def test_bands_of_each_unit_are_judged_alone_and_the_file_corrects_them_alone(tmp_path, wrong, band, said):
    mixed = BandContract(SENSORS["modis_toa"].select(("B1", "B26", "B31")), (20.0, 4.0, 280.0), (10.0, 5.0, 15.0))
    assert check(mixed, like(mixed)) == ()
    numbers = like(mixed) * torch.tensor([wrong[0], wrong[0], wrong[1]])[:, None, None]
    if said is None:
        assert f"band {band} holds" in check(mixed, numbers)[0]  # odd, and no more
        return
    with pytest.raises(InputError, match=f"band {band} holds .*{said}") as refused:
        check(mixed, numbers)
    written = tmp_path / "mine.yaml"
    written.write_text(re.search(r"FILE\.yaml: (\{.*\})", str(refused.value))[1])
    assert check(mixed, numbers, get_sensor(written)) == ()


def test_the_likely_factor_is_named():
    for contract, numbers, scale in ((BYTES, like(FRACTIONS), 255.0), (LANDSAT, like(LANDSAT) * 2.75e-5 - 0.2, 1.0)):
        with pytest.raises(InputError, match=f"scale: {scale}"):
            check(contract, numbers)
    with pytest.raises(InputError, match=r"255 times too large.*scale: 0\.00392157"):
        check(FRACTIONS, like(BYTES))


def test_an_offset_of_the_sensor_does_not_hide_another_unit():
    landsat = SENSORS["landsat8"].select(("B2", "B3", "B4", "B5"))
    stored = (like(REFLECTANCE) * 1e-4 + 0.2) / 2.75e-5
    assert check(REFLECTANCE, stored, landsat) == ()
    with pytest.raises(InputError, match=r"as reflectance itself does"):
        check(REFLECTANCE, stored * 2.75e-5 - 0.2, landsat)
    with pytest.raises(InputError, match=r"about 100 times too small.*scale: 0\.00275, offset: -0\.2"):
        check(REFLECTANCE, (stored / 100).to(torch.uint8), landsat)


def test_the_file_that_the_sentence_writes_finds_the_bands_of_another_sensor(tmp_path):
    landsat = SENSORS["landsat8"]
    four = (like(REFLECTANCE) * 1e-4 + 0.2) / 2.75e-5
    numbers = torch.zeros(6, 7, 32, 32)
    numbers[:, 1:5] = four
    for given, scale in ((numbers * 2.75e-5 - 0.2, 1.0), (numbers / 100, 0.00275)):
        with pytest.raises(InputError, match=rf"scale: {scale}\b.*name: B5, alias: nir, wavelength: 865") as refused:
            check(REFLECTANCE, given, landsat)
        written = tmp_path / "mine.yaml"
        written.write_text(re.search(r"FILE\.yaml: (\{.*\})", str(refused.value))[1])
        assert check(REFLECTANCE, given, get_sensor(written)) == ()


def test_a_spread_that_makes_one_class_is_refused():
    usual = torch.tensor(REFLECTANCE.mean)[:, None, None]
    with pytest.raises(InputError, match="varies more than 2,000 times less"):
        check(REFLECTANCE, usual + like(REFLECTANCE) * 1e-4)
    counts = usual.repeat(4, 1, 32, 32)
    counts[0, 0, 0, 0] += 1
    assert len(check(REFLECTANCE, counts)) == 1
    assert len(check(REFLECTANCE, usual.repeat(4, 1, 32, 32))) == 1


def test_decibels_and_linear_numbers_are_told_apart():
    with pytest.raises(InputError, match="linear numbers for an encoder of decibels"):
        check(DECIBELS, 10 ** (like(DECIBELS) / 10))
    with pytest.raises(InputError, match="decibels for an encoder of linear numbers"):
        check(LINEAR, like(DECIBELS))


@pytest.mark.parametrize("contract", [REFLECTANCE, LANDSAT, BYTES, FRACTIONS, DECIBELS])
def test_what_the_encoder_knows_passes_without_a_word(contract):
    assert check(contract, like(contract)) == ()


def test_units_that_files_declare_are_converted_not_refused():
    told = dataclasses.replace(REFLECTANCE.sensor, scale=1.0)
    assert check(REFLECTANCE, like(REFLECTANCE) / 10000, told) == ()


def test_snow_and_lakes_are_unusual_but_not_refused():
    torch.manual_seed(0)
    snow = 8500 + 900 * torch.rand(4, 4, 32, 32)
    lake = torch.tensor([300.0, 220, 120, 60])[:, None, None] + 8 * torch.rand(4, 4, 32, 32)
    for numbers in (snow, lake, lake.to(torch.int16), torch.full((2, 4, 32, 32), 900.0)):
        assert len(check(REFLECTANCE, numbers)) == 1
    assert check(BYTES, torch.zeros(2, 3, 8, 8, dtype=torch.uint8))[0].endswith("the same number")


def test_the_offset_of_newer_sentinel2_products_is_asked_about():
    assert "offset: -0.1" in check(REFLECTANCE, like(REFLECTANCE).clamp_min(50) + 1000)[0]
    told = dataclasses.replace(REFLECTANCE.sensor, offset=-0.1)
    assert check(REFLECTANCE, like(REFLECTANCE).clamp_min(50) + 1000, told) == ()


def test_only_valid_pixels_of_varying_bands_count():
    numbers = like(BYTES)
    numbers[:, :, :8] = 60000
    valid = torch.ones(len(numbers), 32, 32, dtype=torch.bool)
    valid[:, :8] = False
    prepare = ContractInput(BYTES, BYTES.sensor)
    assert check_range(prepare, [(numbers, valid)], "a") == ()
    assert check_range(prepare, [(numbers, torch.zeros_like(valid))], "a") == ()
    flat = dataclasses.replace(BYTES, std=(55.0, 0.0, 52.0))
    numbers = like(BYTES)
    numbers[:, 1] = 20000
    assert check(flat, numbers) == ()
