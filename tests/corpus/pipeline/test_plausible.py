import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from geomim.corpus.build import build
from geomim.corpus.pipeline.plausible import doubts
from geomim.corpus.store import Corpus
from geomim.errors import BandError
from geomim.sensors import SENSORS, Sensor, get_sensor

S2 = SENSORS["sentinel2"]
LAND = dict(zip(S2.names, (1350, 1120, 1040, 950, 1200, 2000, 2370, 2300, 2600, 730, 12, 1820, 1120), strict=True))
STORED = [*(name for name in S2.names if name != "B8A"), "B8A"]  # as some datasets store them


def means(names):
    return np.array([LAND[name] for name in names], float)


def scene(path, names, dtype="uint16", factor=1.0, descriptions=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).uniform(0.9, 1.1, (len(names), 64, 64))
    place = {"crs": "EPSG:32632", "transform": from_origin(5e5, 54e5, 10, 10)}
    with rasterio.open(path, "w", driver="GTiff", count=len(names), height=64, width=64, dtype=dtype, **place) as file:
        file.write((factor * means(names)[:, None, None] * noise).astype(dtype))
        for number, name in enumerate(descriptions, 1):
            file.set_band_description(number, name)
    return str(path.parent)


def test_a_sensor_s_own_order_and_unit_raise_no_doubt():
    assert doubts(S2, "uint16", means(S2.names), assumed=True) == ([], [])


def test_a_cirrus_band_brighter_than_green_is_no_cirrus_band():
    refused, _ = doubts(S2, "uint16", means(STORED), assumed=True)
    assert "B10 (cirrus) is brighter than B03 (green), which cannot be" in refused[0] and "--bands" in refused[0]
    refused, notes = doubts(S2, "uint16", means(STORED), assumed=False)  # the file or the user names them
    assert not refused and "B10 (cirrus)" in notes[0]


@pytest.mark.parametrize(
    ("sensor", "dtype", "mean", "said"),
    [
        ("sentinel2", "uint8", 120, "no uint8 number means more than 0.026"),
        ("sentinel2", "float32", 0.2, "the brightest band holds 0.2 on average, next to nothing"),
        ("landsat8", "float32", 0.2, "the brightest band holds 0.2 on average, next to nothing"),
        ("landsat8", "uint8", 200, "no uint8 number means more than -0.19"),
    ],
)
def test_numbers_of_another_scale_are_refused(sensor, dtype, mean, said):
    refused, _ = doubts(get_sensor(sensor), dtype, np.full(len(get_sensor(sensor).bands), mean), assumed=False)
    assert said in refused[0] and "--sensor FILE" in refused[0]


def test_bands_of_reflectance_are_looked_at_beside_those_of_other_units():
    modis = get_sensor("modis_toa")
    usual = [25.0 if unit == "reflectance" else 270.0 for unit, _, _ in modis.meanings]  # percent and kelvin
    assert doubts(modis, "float32", np.array(usual), assumed=False) == ([], [])
    fractions = [value / 100 if value < 100 else value for value in usual]
    _, notes = doubts(modis, "float32", np.array(fractions), assumed=False)
    assert "reflectance is number * 0.01 + 0; the mean of the brightest band is 0.0025" in notes[0]
    refused, _ = doubts(modis, "float32", np.array([value / 20 for value in fractions]), assumed=False)
    assert "next to nothing" in refused[0]


def test_odd_brightness_is_noted():
    refused, notes = doubts(Sensor("mine", S2.bands[:3], unit="reflectance"), "uint16", np.full(3, 1500.0), False)
    assert not refused and "brightest band is 1.5e+03" in notes[0]
    refused, notes = doubts(get_sensor("landsat8"), "uint16", np.full(7, 1500.0), False)  # of an older collection
    assert not refused and "brightest band is -0.16" in notes[0]
    assert doubts(get_sensor("rgb"), "uint8", np.array([90.0, 100.0, 80.0]), True) == ([], [])


def test_an_order_that_cannot_be_stops_a_build_before_it_cuts(tmp_path, capsys):
    folder = scene(tmp_path / "s" / "a.tif", STORED)
    with pytest.raises(BandError, match="cannot be: name them in file order with --bands"):
        build([folder], str(tmp_path / "c"), tile=32, sensor="sentinel2", workers=1)
    said = " ".join(capsys.readouterr().err.split())
    assert "the order of sensor 'sentinel2' is assumed. Means: B01 1350, B02 11" in said.replace("1349", "1350")
    out = build([folder], str(tmp_path / "d"), tile=32, sensor="sentinel2", bands=STORED, workers=1)
    assert list(Corpus.open(out).sensor.names) == STORED and "is assumed" not in capsys.readouterr().err


def test_an_assumed_order_is_printed_and_a_named_one_is_not(tmp_path, capsys):
    build([scene(tmp_path / "s" / "a.tif", S2.names)], str(tmp_path / "c"), tile=32, sensor="sentinel2", workers=1)
    assert "is assumed. Means:" in " ".join(capsys.readouterr().err.split())
    folder = scene(tmp_path / "n" / "a.tif", S2.names, descriptions=S2.names)
    build([folder], str(tmp_path / "d"), tile=32, workers=1)
    assert "is assumed" not in " ".join(capsys.readouterr().err.split())


def test_eight_bits_as_reflectance_are_refused_and_a_sensor_file_is_the_way_out(tmp_path):
    folder = scene(tmp_path / "s" / "a.tif", S2.names[1:4], "uint8", 0.1)
    with pytest.raises(BandError, match=r"no uint8 number means more than 0\.026: give a YAML file .*--sensor FILE"):
        build([folder], str(tmp_path / "c"), tile=32, sensor="sentinel2", bands=["B02", "B03", "B04"], workers=1)
    (tmp_path / "mine.yaml").write_text("name: mine\nbands: [blue, green, red]\n")
    assert build([folder], str(tmp_path / "c"), tile=32, sensor=str(tmp_path / "mine.yaml"), workers=1).is_dir()


def test_real_tiles_with_the_last_band_moved(data_dir, tmp_path):
    with pytest.raises(BandError, match=r"B10 \(cirrus\) is brighter than B03 \(green\)"):
        build([str(data_dir / "eurosat")], str(tmp_path / "c"), tile=64, sensor="sentinel2", workers=1)
