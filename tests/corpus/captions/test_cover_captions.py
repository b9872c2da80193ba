"""Shares of the ground: from a land-cover map in another projection, and from thresholds of the spectrum."""

import json
from collections import Counter

import numpy as np
import pytest
import rasterio
from caption_truth import prove_cover
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.transform import from_origin
from rasterio.warp import transform as warped

from geomim.corpus.captions.chance import Chance
from geomim.corpus.captions.cover import NOUNS, bands_of, classify, open_cover
from geomim.corpus.captions.templates import covering
from geomim.errors import BandError, InputError
from geomim.sensors import Sensor, get_sensor

SOIL, CANOPY, LAKE, SNOW, ROOF, FLOOD = range(6)
SPECTRA = {  # blue, green, red, nir, swir1
    SOIL: (0.08, 0.12, 0.18, 0.25, 0.35),
    CANOPY: (0.02, 0.05, 0.03, 0.40, 0.18),
    LAKE: (0.06, 0.06, 0.03, 0.02, 0.01),
    SNOW: (0.85, 0.85, 0.84, 0.80, 0.10),
    ROOF: (0.30, 0.30, 0.30, 0.30, 0.25),
    FLOOD: (0.13, 0.14, 0.15, 0.14, 0.05),  # muddy, of Sen1Floods11: no index tells it from snow
}


def pictured(sensor, kinds):
    """Stored numbers of ground of some kinds, `(C, *kinds)`."""
    spectra = np.array([SPECTRA[kind] for kind in range(6)])
    pixels = np.zeros((len(sensor.bands), *kinds.shape))
    for place, name in enumerate(("blue", "green", "red", "nir", "swir1")):
        if name in (bands := bands_of(sensor)):
            _, scale, offset = sensor.meaning(bands[name])
            pixels[bands[name]] = (spectra[kinds, place] - offset) / scale
    return pixels.round().astype("int32")


@pytest.mark.parametrize("name", ["sentinel2", "sentinel2_l2a_n0400", "landsat8", "landsat7"])
def test_what_a_spectrum_says(name):
    sensor, kinds = get_sensor(name), np.arange(6).reshape(1, 6)
    found = classify(pictured(sensor, kinds), sensor, bands_of(sensor))[0]
    told = [NOUNS[number].stuff if number < 255 else None for number in found]
    assert told == ["bare soil", "dense vegetation", "open water", "snow", None, None]


def test_what_bands_do_not_allow_is_not_said():
    sensor = get_sensor("sentinel2", ["B03", "B04", "B08"])
    found = classify(pictured(sensor, np.arange(6).reshape(1, 6)), sensor, bands_of(sensor))[0]
    assert [NOUNS[number].stuff if number < 255 else None for number in found] == [
        None, "dense vegetation", "open water", None, None, None]  # fmt: skip
    with pytest.raises(BandError, match=r"nir and green or red as reflectance; naip has of them .*digital number"):
        bands_of(get_sensor("naip"))
    with pytest.raises(BandError, match="rgb has of them"):
        bands_of(get_sensor("rgb"))
    dark = classify(np.zeros((len(sensor.bands), 2, 2), int), sensor, bands_of(sensor))
    assert (dark == 255).all()  # no reflectance, no class


def test_shares_of_a_spectrum_are_true():
    sensor, random, count = get_sensor("sentinel2"), np.random.default_rng(0), 0
    for number in range(300):
        kinds = random.choice(6, (16, 16), p=random.dirichlet(np.full(6, 0.5)))
        found = classify(pictured(sensor, kinds), sensor, bands_of(sensor))
        shares = {NOUNS[n]: float((found == n).mean()) for n in range(4) if (found == n).any()}
        truth = dict(zip(("bare soil", "dense vegetation", "open water", "snow"),
                         ((kinds == n).mean() for n in range(4)), strict=True))  # fmt: skip
        for sentence in covering(shares, Chance(0, number)):
            prove_cover(sentence, truth)
            count += 1
    assert count > 500


def write_map(file, numbers, transform, crs, classes=None, nodata=None):
    profile = {"driver": "GTiff", "count": 1, "dtype": str(numbers.dtype), "crs": crs, "transform": transform}
    with rasterio.open(file, "w", height=numbers.shape[0], width=numbers.shape[1], nodata=nodata, **profile) as to:
        to.write(numbers, 1)
        if classes:
            to.update_tags(CLASSES=json.dumps(classes))
    return str(file)


def test_a_map_in_another_projection(tmp_path):
    """Each pixel of a tile has the class of the map's pixel that its middle lies in, by pyproj's own arithmetic."""
    random = np.random.default_rng(1)
    numbers = random.choice([10, 20, 0, 99], (400, 400)).repeat(4, 0).repeat(4, 1).astype(np.uint8)
    west, north, step = 9.0, 48.1, 0.0001
    names = {"10": "forest", "20": "Water", "0": "no data"}
    file = write_map(tmp_path / "m.tif", numbers, from_origin(west, north, step, step), "EPSG:4326", names, nodata=0)
    with open_cover(file) as cover:
        check_map(cover, numbers, west, north, step)


def check_map(cover, numbers, west, north, step):
    assert cover.classes == ["forest", "Water"]
    assert cover.said.endswith("m.tif': classes are forest, Water; it lies in 9..9.16, 47.94..48.1 of EPSG:4326")
    transform, crs, size = from_origin(505_000, 5_325_000, 10, 10), CRS.from_epsg(32632), 64
    found = cover.read(transform, crs, size)
    cols, rows = np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5)
    lon, lat = map(np.array, warped(crs, "EPSG:4326", (505_000 + 10 * cols).ravel(), (5_325_000 - 10 * rows).ravel()))
    truth = numbers[((north - lat) / step).astype(int), ((lon - west) / step).astype(int)].reshape(size, size)
    expected = np.select([truth == 10, truth == 20], [0, 1], 255)
    assert (found == expected).mean() > 0.999 and set(np.unique(found)) == {0, 1, 255}
    assert (cover.read(from_origin(0, 0, 10, 10), crs, 8) == 255).all()  # far from the map


def opened(file):
    """The map, closed again."""
    with open_cover(file) as cover:
        return cover


def test_maps_of_fractions(tmp_path):
    """Whole numbers stored as floats are classes; fractions, such as scores, are refused, and NaN is none."""
    values, place = np.array([[1, 2], [np.nan, 7]], np.float32).repeat(4, 0).repeat(4, 1), from_origin(0, 80, 10, 10)
    file = write_map(tmp_path / "f.tif", values, place, "EPSG:32632", {"1": "forest", "2": "water"})
    with open_cover(file) as cover:
        found = cover.read(place, CRS.from_epsg(32632), 8)
    assert found[::4, ::4].tolist() == [[0, 1], [255, 255]]
    file = write_map(tmp_path / "g.tif", values * np.float32(0.35), place, "EPSG:32632", {"1": "forest", "2": "water"})
    words = r"g.tif' holds 0.35, and expected are whole numbers of classes \(forest, water\)"
    with open_cover(file) as cover, pytest.raises(InputError, match=words):
        cover.read(place, CRS.from_epsg(32632), 8)
    with pytest.raises(RasterioError):  # it is closed
        cover.read(place, CRS.from_epsg(32632), 8)


def test_maps_are_refused_by_name(tmp_path):
    ones, place = np.ones((4, 4), np.uint8), from_origin(9, 48, 0.1, 0.1)
    with pytest.raises(InputError, match=r"none.tif' cannot be read"):
        opened(str(tmp_path / "none.tif"))
    with pytest.raises(InputError, match=r"placeless.tif' has no coordinate reference system"):
        opened(write_map(tmp_path / "placeless.tif", ones, place, None, {"1": "a"}))
    with pytest.raises(InputError, match=r"classes.json' must give class names by number"):
        opened(write_map(tmp_path / "nameless.tif", ones, place, "EPSG:4326"))


def test_real_scenes(data_dir):
    """Water of a hand-drawn mask and of the index agree where nothing but land and water is (Sen1Floods11, Spain)."""
    folder = data_dir / "sen1floods11"
    with rasterio.open(folder / "Spain_7370579_S2Hand.tif") as scene:
        pixels = scene.read()
    with rasterio.open(folder / "Spain_7370579_LabelHand.tif") as labels:
        water = labels.read(1)
    sensor: Sensor = get_sensor("sentinel2_l1c")
    found = classify(pixels, sensor, bands_of(sensor))
    told = Counter(zip((found == 0)[water >= 0].tolist(), (water == 1)[water >= 0].tolist(), strict=True))
    assert (found == 1).sum() < 10  # no snow in a Spanish flood
    assert told[True, True] > 0.9 * (told[True, True] + told[True, False])  # what is said to be water is
