import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from geomim.errors import BandError, InputError
from geomim.sensors import SENSORS, Band, BandContract, Sensor, get_sensor, match_bands, stated_contract


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


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("sentinel2", "134746d47895c4f0"),
        ("landsat7", "88cc4bde4ddacff5"),
        ("landsat8", "0908039b05f68b54"),
        ("naip", "6faecf9360a10ef4"),
        ("rgb", "90ae6239aca7bbe2"),
    ],
)
def test_the_first_sensors_are_written_as_ever_since_locks_hold_them(name: str, digest: str) -> None:
    assert hashlib.sha256(json.dumps(SENSORS[name].to_dict()).encode()).hexdigest()[:16] == digest


def test_files_of_one_instrument_agree_on_its_bands() -> None:
    names = [name for name in SENSORS if name.startswith("sentinel2") or name == "hls_s30"]
    known: dict[str, tuple] = {}
    for name in names:
        for band in get_sensor(name).bands:
            physical = (band.wavelength, band.bandwidth, band.gsd, band.alias)
            assert known.setdefault(band.name, physical) == physical, f"{name}: {band.name}"
    assert len(names) == 6 and len(known) == 13


REFLECTANCE, COLLECTION2, COUNTS = ("reflectance", 1e-4, 0.0), ("reflectance", 2.75e-5, -0.2), (Sensor.unit, 1.0, 0.0)
LIMITS = [  # band limits in nanometres as the providers print them, and what the numbers mean
    ("landsat5", "B1", 450, 520, COLLECTION2),
    ("landsat5", "B4", 760, 900, COLLECTION2),
    ("landsat5", "B7", 2080, 2350, COLLECTION2),
    ("landsat7", "B4", 770, 900, REFLECTANCE),
    ("landsat9", "B1", 435, 451, COLLECTION2),
    ("landsat9", "B5", 851, 879, COLLECTION2),
    ("landsat9", "B7", 2107, 2294, COLLECTION2),
    ("hls_l30", "B4", 636, 673, REFLECTANCE),
    ("hls_s30", "B8A", 854, 875, REFLECTANCE),
    ("sentinel2_l1c", "B10", 1358, 1389, REFLECTANCE),
    ("sentinel2_l2a", "B05", 697, 712, REFLECTANCE),
    ("sentinel2_l2a_n0400", "B12", 2115, 2290, ("reflectance", 1e-4, -0.1)),
    ("planetscope4", "blue", 464, 517, REFLECTANCE),
    ("planetscope4", "nir", 846, 888, REFLECTANCE),
    ("planetscope8", "coastal_blue", 431, 452, REFLECTANCE),
    ("planetscope8", "rededge", 697, 713, REFLECTANCE),
    ("planetscope8", "nir", 845, 885, REFLECTANCE),
    ("worldview2", "yellow", 585, 625, COUNTS),
    ("worldview3", "nir1", 770, 895, COUNTS),
    ("worldview3_swir", "SWIR-8", 2295, 2365, COUNTS),
    ("modis_toa", "B1", 620, 670, ("reflectance", 0.01, 0.0)),
    ("modis_toa", "B21", 3929, 3989, ("kelvin", 1.0, 0.0)),
    ("modis_toa", "B26", 1360, 1390, ("reflectance", 0.01, 0.0)),
    ("modis_toa", "B33", 13185, 13485, ("kelvin", 1.0, 0.0)),
]


@pytest.mark.parametrize(("name", "band", "low", "high", "meaning"), LIMITS)
def test_what_the_handbooks_print(name: str, band: str, low: float, high: float, meaning: tuple) -> None:
    sensor = SENSORS[name]
    place = sensor.names.index(band)
    found = sensor.bands[place]
    assert found.wavelength is not None and found.bandwidth is not None
    assert found.wavelength - found.bandwidth / 2 == pytest.approx(low, abs=10)
    assert found.wavelength + found.bandwidth / 2 == pytest.approx(high, abs=10)
    assert sensor.meaning(place) == meaning


def test_units_are_those_of_their_wavelengths_and_files_are_called_as_their_sensors() -> None:
    assert len(SENSORS) == len({sensor.name for sensor in SENSORS.values()}) >= 15
    for name, sensor in SENSORS.items():
        assert sensor.name == name
        for band, (unit, _, _) in zip(sensor.bands, sensor.meanings, strict=True):
            assert band.wavelength is not None
            assert unit != "reflectance" or band.wavelength < 3000
            assert unit != "kelvin" or band.wavelength > 3500
            assert (unit == "dB") == bool(band.polarisation)
    assert "B10" not in SENSORS["sentinel2_l2a"].names and len(SENSORS["sentinel2_l2a"].names) == 12
    radar = SENSORS["sentinel1"]
    assert [band.polarisation for band in radar.bands] == ["VV", "VH"]
    assert radar.bands[0].wavelength == pytest.approx(299792458 / 5.405e9 * 1e9)
    cold = [unit == "kelvin" for unit, _, _ in SENSORS["modis_toa"].meanings]
    assert [place for place, one in enumerate(cold) if not one] == [0, 1, 2, 3, 4, 6]  # as SatVision-TOA scales them


def test_a_name_may_be_written_with_hyphens() -> None:
    assert get_sensor("modis-toa") is SENSORS["modis_toa"] and "sentinel2-l2a" in SENSORS
    assert "../rgb" not in SENSORS and SENSORS.get("landsat") is None


def test_what_a_band_says_itself_counts_before_its_sensor_and_is_kept() -> None:
    warm = Band("t", 11000, 900, unit="kelvin", scale=0.01, offset=150.0)
    sensor = Sensor("mixed", (Band("red", 650, 30), warm), "reflectance", 1e-4)
    assert sensor.meanings == (("reflectance", 1e-4, 0.0), ("kelvin", 0.01, 150.0))
    assert sensor.select(["t"]).meaning(0) == sensor.meaning(1)
    assert sensor.rescaled(1.0, 0.0).meanings == (("reflectance", 1.0, 0.0), ("kelvin", 1.0, 0.0))
    written = sensor.to_dict()
    assert list(written["bands"][0]) == ["name", "wavelength", "bandwidth", "gsd", "alias"]  # as ever
    assert written["bands"][1]["offset"] == 150.0 and "polarisation" not in written["bands"][1]
    contract = BandContract(sensor, (1000.0, 14000.0), (300.0, 700.0))
    assert BandContract.from_dict(json.loads(json.dumps(contract.to_dict()))) == contract
    told = contract.as_stored(Sensor("file", (Band("t"), Band("dem"), Band("red"))))
    assert told.name == "file" and told.names == ("t", "dem", "red")
    assert (told.meaning(0), told.meaning(2)) == (sensor.meaning(1), sensor.meaning(0))


def test_radar_bands_match_by_polarisation_and_wavelength_class() -> None:
    ours = SENSORS["sentinel1"].bands
    assert match_bands(ours, [Band("vh"), Band("VV")]) == [1, 0]
    sigma = [Band("sigma0_2", polarisation="VH"), Band("sigma0_1", 5.55e7, polarisation="VV")]
    assert match_bands(ours, sigma) == [1, 0] and match_bands(["VV"], sigma) == [1]
    with pytest.raises(BandError, match="missing VH"):  # all bands of a radar have one wavelength
        match_bands(ours, [ours[0], Band("HH", ours[0].wavelength, polarisation="HH")])
    with pytest.raises(BandError, match="missing VV, VH"):  # L band
        match_bands(ours, [Band(name, 2.36e8, polarisation=name) for name in ("VV", "VH")])


def test_bands_match_by_name_alias_and_wavelength_never_by_position() -> None:
    sentinel = get_sensor("sentinel2").bands
    assert match_bands(["B4", "b03", "blue"], sentinel) == [3, 2, 1]
    naip = get_sensor("naip").bands
    assert [sentinel[i].name for i in match_bands(naip, sentinel)] == ["B04", "B03", "B02", "B08"]
    unnamed = [Band("one", 1610, 90), Band("two", 665, 30)]
    assert match_bands([sentinel[3], sentinel[11]], unnamed) == [1, 0]


@pytest.mark.parametrize(
    ("wanted", "offered"),
    [
        ("B04", ["B4", "B04"]),
        ("VV_2020-11-1", ["VV_2020-1-11", "VV_2020-11-1"]),
        ("t+1", ["t-1", "t+1"]),
        ("B1_0", ["B10", "B1_0"]),
        ("p25", ["p2.5", "p25"]),
        ("温度", ["湿度", "温度"]),
        ("--", ["..", "--"]),
    ],
)
def test_a_name_as_it_is_written_wins_and_other_names_are_no_spelling_of_it(wanted: str, offered: list[str]) -> None:
    bands = [Band(name) for name in offered]
    assert match_bands([wanted], bands) == [1] and match_bands(offered, bands) == [0, 1]
    if wanted != "B04":
        with pytest.raises(BandError, match="missing"):
            match_bands([wanted], bands[:1])


def test_a_name_that_may_be_several_bands_is_none_of_them() -> None:
    with pytest.raises(BandError, match="band 'b4' may be any of 'B4', 'B04' by its name: give one of these names"):
        match_bands(["b4"], [Band("B4"), Band("B04")])
    with pytest.raises(BandError, match="band 'red' may be any of 'a', 'b' by its alias"):
        match_bands(["red"], [Band("a", alias="red"), Band("b", alias="red")])


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
    for line, named in (
        ("scale: none", "'scale' must be a number, given 'none'"),
        ("unit: 3", "'unit' must be text, given 3"),
        ("scale: 0", "'scale' of r is 0"),
        ("bands: [{name: r, scale: [1]}]", r"'scale' must be a number, given \[1\]"),
        ("bands: [{name: r, polarization: VV}]", "unknown key 'polarization'; did you mean 'polarisation'"),
        ("bands: [{name: r, polarisation: V}]", "'polarisation' must be one of VV, VH, HH, HV, given 'V'"),
        ("bands: [3]", "must be names or mappings with 'name', given 3"),
        ("bands: [", "is no YAML file"),
    ):
        path.write_text("name: drone\n" + ("" if line.startswith("bands") else "bands: [r]\n") + line + "\n")
        with pytest.raises((InputError, BandError), match=f"drone.yaml.*{named}"):
            get_sensor(path)
    path.write_text("name: drone\nbands: [r, {name: t, unit: kelvin, scale: 1e-2}]\n")  # which YAML takes for text
    assert get_sensor(path).meanings == ((Sensor.unit, 1.0, 0.0), ("kelvin", 0.01, 0.0))
    with pytest.raises(InputError, match="unknown sensor 'sentinel3'; did you mean 'sentinel2'"):
        get_sensor("sentinel3")
    with pytest.raises(InputError, match="does not exist"):
        get_sensor(tmp_path / "none.yaml")


def test_a_sensor_file_may_state_statistics(tmp_path: Path) -> None:
    path, head = tmp_path / "drone.yaml", "name: drone\nbands: [r, n]\n"
    assert stated_contract("rgb") is None
    path.write_text(head)
    assert stated_contract(path) is None
    path.write_text(head + "mean: [1e-4, 2]\nstd: [0, 4.5]\n")  # which YAML takes for text
    assert get_sensor(path).names == ("r", "n")
    assert stated_contract(path, ["n", "r"]) == BandContract(get_sensor(path, ["n", "r"]), (2.0, 1e-4), (4.5, 0.0))
    for text, named in (
        (head + "mean: 5\nstd: [1, 1]\n", "'mean' must be a list of numbers, one a band; given 5"),
        (head + "mean: [a, b]\nstd: [1, 1]\n", "'mean' of a band must be a number, given 'a'"),
        (head + "mean: [.nan, 1]\nstd: [1, 1]\n", "'mean' must be finite; given nan"),
        (head + "mean: [1, 1]\nstd: [1, -1]\n", "'std' must be finite and 0 or more; given -1"),
        (head + "mean: [1, 1]\n", "'mean' and 'std' go together"),
        (head + "mean: [1]\nstd: [1]\n", "expected 2 means and standard deviations"),
        ("- r\n- n\n", "expected a mapping with 'name' and 'bands'"),
    ):
        path.write_text(text)
        for read in (get_sensor, stated_contract):
            with pytest.raises((InputError, BandError), match=f"drone.yaml.*{named}"):
                read(path)


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
    assert contract.indices(["nir", "blue", "green", "red"]) == [3, 2, 1] and contract.eight_bit
    wide = dataclasses.replace(contract, dtype="float32")
    again = BandContract.from_dict(json.loads(json.dumps(wide.to_dict())))
    assert again.dtype == "float32" and not again.eight_bit and again == contract
    assert "dtype" not in contract.to_dict() and again.select(["red"]).dtype == "float32"
    with pytest.raises(BandError, match="expected 3 means"):
        BandContract(get_sensor("rgb"), (1.0,), (1.0, 1.0, 1.0))
