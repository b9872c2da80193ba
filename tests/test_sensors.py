import dataclasses
import json
from pathlib import Path

import pytest

from geomim.errors import BandError, InputError
from geomim.sensors import SENSORS, Band, BandContract, Sensor, get_sensor, match_bands


@pytest.mark.parametrize("name", SENSORS)
def test_sensors_round_trip_and_are_physical(name: str) -> None:
    sensor = get_sensor(name)
    assert Sensor.from_dict(json.loads(json.dumps(sensor.to_dict()))) == sensor
    for band in sensor.bands:
        assert band.wavelength is not None and band.bandwidth is not None
        if band.polarisation:
            assert 2e7 < band.wavelength < 1e9 and band.bandwidth < band.wavelength / 10  # X band to P band
        else:
            assert 400 < band.wavelength < 15000 and 10 <= band.bandwidth < band.wavelength


def test_bands_match_by_name_alias_and_wavelength_never_by_position() -> None:
    sentinel = get_sensor("sentinel2").bands
    assert match_bands(["B4", "b03", "blue"], sentinel) == [3, 2, 1]
    naip = get_sensor("naip").bands
    assert [sentinel[i].name for i in match_bands(naip, sentinel)] == ["B04", "B03", "B02", "B08"]
    unnamed = [Band("one", 1610, 90), Band("two", 665, 30)]
    assert match_bands([sentinel[3], sentinel[11]], unnamed) == [1, 0]


def test_a_number_that_another_sensor_gives_to_another_band_is_no_name() -> None:
    of = {name: {band.name: band for band in sensor.bands} for name, sensor in SENSORS.items()}
    offered = SENSORS["sentinel2"].bands
    for sensor, wanted in (
        ("landsat8", {"B2": "B02", "B3": "B03", "B4": "B04", "B5": "B08"}),
        ("landsat7", {"B1": "B02", "B2": "B03", "B3": "B04", "B4": "B08"}),
    ):
        places = match_bands([of[sensor][name] for name in wanted], offered)
        assert [offered[place].name for place in places] == list(wanted.values())
    assert match_bands(["B5"], offered) == [offered.index(of["sentinel2"]["B05"])]  # whoever says no wavelength


def test_a_missing_band_is_named_with_what_was_given() -> None:
    with pytest.raises(BandError, match=r"expected bands B04, B11; given red, green, blue, nir; missing B11"):
        match_bands(get_sensor("sentinel2", ["B04", "B11"]).bands, get_sensor("naip").bands)


def test_one_offered_band_is_not_used_twice() -> None:
    with pytest.raises(BandError, match="expected 2 different bands"):
        match_bands(["red", "B04"], get_sensor("sentinel2").bands)


def test_user_s_own_sensor(tmp_path: Path) -> None:
    path = tmp_path / "drone.yaml"
    path.write_text("name: drone\nunit: reflectance\nbands:\n- {name: r, wavelength: 660, bandwidth: 20}\n- n\n")
    sensor = get_sensor(path)
    assert sensor.names == ("r", "n") and sensor.bands[0].wavelength == 660
    path.write_text("name: drone\nbandes: [r]\n")
    with pytest.raises(InputError, match="unknown key 'bandes'; did you mean 'bands'"):
        get_sensor(path)
    path.write_text("name: drone\n")
    with pytest.raises(InputError, match="key 'bands' is missing"):
        get_sensor(path)
    path.write_text("name: drone\nbands: [r, r]\n")
    with pytest.raises(BandError, match="names a band twice"):
        get_sensor(path)
    with pytest.raises(InputError, match="unknown sensor 'sentinel3'; did you mean 'sentinel2'"):
        get_sensor("sentinel3")
    with pytest.raises(InputError, match="does not exist"):
        get_sensor(tmp_path / "none.yaml")


def test_a_deviation_is_told_by_what_differs() -> None:
    usual = get_sensor("rgb")
    assert usual.deviation(usual) == ""
    bands = (usual.bands[0], *(dataclasses.replace(band, wavelength=1.0) for band in usual.bands[1:]))
    other = dataclasses.replace(usual, bands=bands, nodata=0, unit="radiance")
    one, two = (f"{usual.unit})", f"{usual.bands[1].wavelength})")
    told = f"unit radiance (not {one}, nodata 0 (not None), wavelength of green 1.0 (not {two} and 1 more"
    assert other.deviation(usual) == told


def test_contract_checks_and_round_trips() -> None:
    contract = BandContract(get_sensor("rgb"), (1.0, 2.0, 3.0), (1.0, 1.0, 1.0), ("CC0",), ("me",))
    assert BandContract.from_dict(json.loads(json.dumps(contract.to_dict()))) == contract
    assert contract.indices(["nir", "blue", "green", "red"]) == [3, 2, 1]
    with pytest.raises(BandError, match="expected 3 means"):
        BandContract(get_sensor("rgb"), (1.0,), (1.0, 1.0, 1.0))
