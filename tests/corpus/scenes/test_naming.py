"""Whose word counts for what a band is, and that a refusal names a flag that then works."""

import re

import numpy as np
import pytest

from geomim.corpus.scenes.naming import Offer, choose
from geomim.errors import BandError
from geomim.sensors import SENSORS, Band, get_sensor

S2 = SENSORS["sentinel2"]
FOUR = ("B02", "B03", "B04", "B08")


def offer(*names, described=True, alpha=None):
    codes = [re.search(r"(?:^|[_ ])[Bb](?:and)?[_ ]?0*(\d+A?)$", name or "") for name in names]
    bands = [Band(n, alias=f"B{c[1]}" if c else None) if n else None for n, c in zip(names, codes, strict=True)]
    return Offer("x.tif", tuple(bands), described and any(names), alpha)


def chosen(given, sensor=None, bands=None):
    choice = choose(given, get_sensor(sensor) if sensor else None, bands.split(",") if bands else None)
    return choice.sensor.names, choice.places


@pytest.mark.parametrize("label", ["Band_{}", "band {}", "Layer_{}", "B{}", "{}", "Band_0{}", "channel{}"])
@pytest.mark.parametrize("first", [0, 1])
def test_labels_that_only_count_say_nothing_against_the_user(label, first):
    given = offer(*(label.format(n) for n in range(first, first + 4)))
    assert chosen(given, "landsat8", "red,green,blue,-") == (("B4", "B3", "B2"), (0, 1, 2))
    assert chosen(given, bands="red,green,blue,nir") == (("red", "green", "blue", "nir"), (0, 1, 2, 3))
    for sensor in (None, "landsat8", "sentinel2"):
        with pytest.raises(BandError, match=r"without (a name|names).* and so on only count them.*--bands"):
            chosen(given, sensor)
    with pytest.raises(BandError, match="--bands"):
        chosen(given, bands="red,green")


def test_labels_that_only_count_are_names_where_the_user_writes_them():
    given = offer("Band_1", "Band_2", "Band_3", "Band_4")
    assert chosen(given, bands="Band_4,Band_1") == (("Band_4", "Band_1"), (3, 0))
    assert chosen(given, bands="Band_4,Band_3,Band_2,Band_1") == (
        ("Band_4", "Band_3", "Band_2", "Band_1"),
        (3, 2, 1, 0),
    )
    assert chosen(offer("B1", "B2", "B3", "B4"), "landsat8", "B4,B3") == (("B4", "B3"), (3, 2))


def test_labels_that_are_more_than_a_count_are_names():
    assert chosen(offer("B01", "B02", "B03"), "sentinel2") == (("B01", "B02", "B03"), (0, 1, 2))
    assert chosen(offer("B2", "B3", "B4"), "landsat8") == (("B2", "B3", "B4"), (0, 1, 2))
    seven = offer(*(f"B{n}" for n in range(1, 8)))  # as many as the sensor has, called as it calls them
    assert not choose(seven, get_sensor("landsat8")).assumed
    assert chosen(seven, "landsat8", "red,green,blue") == (("B4", "B3", "B2"), (3, 2, 1))
    waves = Offer("x.tif", (Band("Band 1", 650.0, 80), Band("Band 2", 550.0, 80)), True, None)
    assert chosen(waves, "rgb") == (("red", "green"), (0, 1))


def test_a_file_order_outranks_descriptions_and_a_choice_by_name_a_file_order():
    given = offer("red", "green", "blue", "nir")
    assert chosen(given, bands="nir,red,green,blue") == (("nir", "red", "green", "blue"), (3, 0, 1, 2))
    assert chosen(given, bands="swir1,nir,red,-") == (("swir1", "nir", "red"), (0, 1, 2))
    assert chosen(given, "naip", "red,green,blue,-") == (("red", "green", "blue"), (0, 1, 2))
    with pytest.raises(BandError, match=r"chooses others than in file order: choose with --bands red,green,nir"):
        chosen(given, bands="red,green,nir,-")
    with pytest.raises(BandError, match="asks for nirr: choose among them"):
        chosen(given, bands="nirr,red,green,blue")


def test_two_readings_that_differ_are_refused_and_those_that_agree_are_not():
    given = offer(*FOUR)
    assert chosen(given, "sentinel2", "blue,green,red,nir") == (FOUR, (0, 1, 2, 3))
    with pytest.raises(BandError, match=r"--bands red,green,blue,nir chooses others .* --bands B04,B03,B02,B08"):
        chosen(given, "sentinel2", "red,green,blue,nir")
    assert chosen(given, "sentinel2", "B04,B03,B02,B08") == (("B04", "B03", "B02", "B08"), (2, 1, 0, 3))
    assert chosen(given, bands="red,green,blue,nir")[1] == (0, 1, 2, 3)  # without the sensor: file order


@pytest.mark.parametrize("names", [("reflectance",) * 4, ("",) * 4, (None,) * 4, ("a", "a", "b", "b")])
def test_stacks_that_name_nothing_can_be_named(names):
    given = offer(*names)
    assert chosen(given, "sentinel2", ",".join(FOUR)) == (FOUR, (0, 1, 2, 3))
    assert chosen(given, bands="red,green,-,nir") == (("red", "green", "nir"), (0, 1, 3))
    assert choose(given, get_sensor("naip")).assumed


def test_a_sensor_takes_of_its_bands_those_that_the_file_names():
    twelve = tuple(name for name in S2.names if name != "B10")
    assert chosen(offer(*twelve), "sentinel2") == (twelve, tuple(range(12)))
    with pytest.raises(BandError, match="red, green, blue and alpha; sensor 'naip' has"):
        chosen(offer("red", "green", "blue", None, described=False, alpha=3), "naip")


def test_an_order_is_shown_and_not_recommended():
    with pytest.raises(BandError) as refusal:
        chosen(offer(*[None] * 13))
    told = str(refusal.value)
    order = "B01, B02, B03, B04, B05, B06, B07, B08, B8A, B09, B10, B11, B12"
    assert f"--sensor would assume their order (sentinel2: {order})" in told
    assert "--bands, a name each in file order" in told and "eurosat@FOLDER" in told


REFUSED = [  # a file, the flags given, and those that the refusal says
    (offer(None, None, None, None), None, None, None, "red,green,blue,nir"),
    (offer(None, None, None, None), None, None, "naip", None),
    (offer(None, None, None), "naip", None, "naip", "red,green,blue"),
    (offer("Band_1", "Band_2"), None, None, None, "red,-"),
    (offer("Band_1", "Band_2"), "landsat8", None, "landsat8", "B4,B3"),
    (offer("a", "a"), None, None, None, "red,nir"),
    (offer("red", None), None, None, None, "red,nir"),
    (offer("B2", "B3", "B4"), None, None, "landsat8", None),
    (offer("B2", "B3", "B4"), None, "B4,B3", "landsat7", "B4,B3"),
    (offer("VV", "VH"), "sentinel2", None, "sentinel2", "B02,-"),
    (offer(*FOUR), "sentinel2", "red,green,blue,nir", "sentinel2", "B04,B03,B02,B08"),
    (offer(*FOUR), "sentinel2", "red,green,blue,nir", None, "red,green,blue,nir"),
    (offer(*FOUR), "sentinel2", "B02,purple", "sentinel2", "B02,B08"),
    (offer("red", "green", "nir"), None, "red,purple", None, "red,nir"),
    (offer("red", "green", "nir"), None, "red,purple", None, "one,two,-"),
    (offer("red", "green", "blue", "nir"), None, "red,green,nir,-", None, "red,green,nir"),
    (offer("red", "green", "blue", "nir"), None, "nirr,red", None, "nir,red"),
    (offer("red", "green", "blue", None, described=False, alpha=3), "naip", None, "naip", "red,green,blue,nir"),
    (offer("red", "green", "blue", described=False), None, "red", None, "red,-,-"),
    (offer("B8A", "B04", "NDVI"), None, None, None, "B8A,B04"),
    (offer("red", "green"), None, "-,-", None, "red,-"),
]


@pytest.mark.parametrize(("given", "sensor", "bands", "then", "names"), REFUSED)
def test_the_flag_that_a_refusal_names_works(given, sensor, bands, then, names):
    with pytest.raises(BandError) as refusal:
        chosen(given, sensor, bands)
    told = str(refusal.value)
    assert "\n" not in told and (not names or names == bands or "--bands" in told)
    assert not then or then == sensor or "--sensor" in told
    assert chosen(given, then, names)


@pytest.mark.parametrize("bands", [["B02", "B10"], ["purple"]])
def test_bands_of_a_product_are_chosen_among_those_it_has(bands):
    given = Offer("x.SAFE", tuple(band for band in S2.bands if band.name in FOUR), True, None, (), S2)
    with pytest.raises(BandError, match=f"asks for {bands[-1]}: choose among them"):
        choose(given, None, bands)
    assert np.all(choose(given, None, ["nir", "B02"]).places == (3, 0))
