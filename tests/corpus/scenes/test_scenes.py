import dataclasses
import re
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from PIL import Image
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin
from rasterio.windows import Window

from geomim.corpus.scenes import find_scenes, open_scene
from geomim.errors import BandError, InputError
from geomim.sensors import Band, Sensor, get_sensor

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def test_rgb_colours_are_found_by_their_colour_and_not_by_position(data_dir):
    (path,) = find_scenes([str(data_dir / "geotiff_quirks" / "*" / "RGBA.uint16.tif")])  # blue, green, red, alpha
    with open_scene(path) as scene, rasterio.open(path) as raster:
        assert np.array_equal(scene.read(), raster.read([3, 2, 1]))
        assert np.array_equal(scene.valid(), raster.read(4) > 0)


def test_naip_needs_its_flag(data_dir):
    path = find_scenes([data_dir / "naip"])[0]
    with pytest.raises(BandError, match=r"--sensor NAME .*naip"):
        open_scene(path)
    with pytest.raises(BandError, match="4 bands; --bands gives 3"):
        open_scene(path, bands=["red", "green", "blue"])
    with pytest.raises(BandError, match="4 bands without names; sensor 'rgb' has 3"):
        open_scene(path, get_sensor("rgb"))
    with open_scene(path, get_sensor("naip")) as scene, rasterio.open(path) as raster:
        assert scene.sensor == get_sensor("naip")
        assert np.array_equal(scene.read(), raster.read())
        assert scene.time == datetime(2009, 8, 18)
        assert scene.gsd == pytest.approx(5, rel=1e-3)
    with open_scene(path, bands=["red", "green", "-", "nir"]) as scene, rasterio.open(path) as raster:
        assert scene.sensor.names == ("red", "green", "nir")
        assert np.array_equal(scene.read(), raster.read([1, 2, 4]))
    with open_scene(path, get_sensor("naip"), ["nir", "", "", "blue"]) as scene, rasterio.open(path) as raster:
        assert scene.sensor == get_sensor("naip", ["nir", "blue"])
        assert np.array_equal(scene.read(), raster.read([1, 4]))


def test_landsat7_bands_are_found_by_their_descriptions(data_dir):
    for path in find_scenes([data_dir / "landsat7"]):
        with pytest.raises(BandError, match="--sensor"):
            open_scene(path)
        with open_scene(path, get_sensor("landsat7")) as scene, rasterio.open(path) as raster:
            assert scene.sensor == get_sensor("landsat7")
            assert np.array_equal(scene.read(), raster.read([1, 2, 3, 4, 5, 6]))  # the sixth is band 7
            assert scene.nodata == -9999  # one file declares it, the other leaves it to the sensor
            assert scene.dtype == np.int16 and scene.valid().all()
        with open_scene(path, get_sensor("landsat7"), ["B7", "B4"]) as scene, rasterio.open(path) as raster:
            assert np.array_equal(scene.read(), raster.read([6, 4]))
    assert scene.time == datetime(2002, 4, 16)  # day 106


def test_sen1floods11_names_identify_sentinel2(data_dir):
    path = find_scenes([str(data_dir / "sen1floods11" / "*S2*")])[0]
    for sensor in (None, get_sensor("sentinel2")):
        with open_scene(path, sensor) as scene, rasterio.open(path) as raster:
            assert scene.sensor == get_sensor("sentinel2")
            assert np.array_equal(scene.read(), raster.read())
    with (
        open_scene(path, bands=["B4", "B3", "B2"], sensor=get_sensor("sentinel2")) as scene,
        rasterio.open(path) as raster,
    ):
        assert scene.sensor.names == ("B04", "B03", "B02")
        assert np.array_equal(scene.read(), raster.read([4, 3, 2]))
    with pytest.raises(BandError, match="VV, VH"):
        open_scene(find_scenes([str(data_dir / "sen1floods11" / "*S1*")])[0], get_sensor("sentinel2"))


def test_landsat_false_colour_needs_names(data_dir):
    path = find_scenes([data_dir / "landsat"])[0]
    with pytest.raises(BandError, match="--bands"):
        open_scene(path)
    with open_scene(path, bands=["swir1", "nir", "red", "-"]) as scene:
        assert scene.sensor.names == ("swir1", "nir", "red") and scene.sensor.name == "custom"


def test_ten_thousand_small_images_are_found_and_open(data_dir):
    paths = find_scenes([data_dir / "rsicd" / "classes"])
    assert len(paths) == 10000 and paths == sorted(paths)
    with open_scene(paths[0]) as scene:
        assert scene.sensor == get_sensor("rgb") and scene.read().shape == (3, 128, 128)
        assert scene.crs is None and scene.transform is None and scene.footprint() is None


def raster(path, pixels, descriptions=None, tags=None, colours=None, **profile):
    """Write `(C, H, W)` pixels; placed in UTM at 10 m unless told otherwise."""
    profile = {"driver": "GTiff", "crs": "EPSG:32632", "transform": from_origin(5e5, 54e5, 10, 10)} | profile
    count, height, width = pixels.shape
    shape = {"count": count, "height": height, "width": width, "dtype": pixels.dtype.name}
    with rasterio.open(
        path, "w", **shape, **{key: value for key, value in profile.items() if value is not None}
    ) as file:
        if colours:
            file.colorinterp = colours
        file.write(pixels)
        for place, name in enumerate(descriptions or [], start=1):
            file.set_band_description(place, name)
        file.update_tags(**(tags or {}))
    return str(path)


def image(count, dtype=np.uint8, size=40, seed=0):
    return np.random.default_rng(seed).integers(1, 200, (count, size, size)).astype(dtype)


@pytest.mark.parametrize(("suffix", "driver"), [("png", "PNG"), ("jpg", "JPEG"), ("tif", "GTiff")])
def test_truncated_files_are_refused_and_never_read_as_pixels(tmp_path, suffix, driver):
    whole = raster(tmp_path / f"whole.{suffix}", image(3, size=200), driver=driver, crs=None, transform=None)
    content = Path(whole).read_bytes()
    for share in (0.9, 0.5):
        cut = tmp_path / f"cut.{suffix}"
        cut.write_bytes(content[: int(share * len(content))])
        with pytest.raises(InputError, match="cannot be"), open_scene(cut) as scene:
            scene.read()


def test_what_is_no_raster_is_refused(tmp_path):
    for name, content in (("empty.tif", b""), ("text.tif", b"hello"), ("gone.tif", None)):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name}' cannot be opened as a raster"):
            open_scene(tmp_path / name)


def test_numbers_that_would_be_misread_are_refused(tmp_path):
    with pytest.raises(InputError, match="complex numbers"):
        open_scene(raster(tmp_path / "c.tif", image(1, np.complex64)))
    path = raster(tmp_path / "scaled.tif", image(1), descriptions=["B04"])
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (2.75e-5,), (-0.2,)
    mine = Sensor("mine", (Band("B04"),), scale=1e-4)
    with pytest.raises(InputError, match=r"2.75e-05 \+ -0.2; sensor 'mine' says \* 0.0001 .* YAML with the scale of"):
        open_scene(path, mine)
    asked = Sensor("mine", (Band("B04"),), scale=2.75e-5, offset=-0.2)
    for sensor in (asked, Sensor("mine", (Band("B04"),)), get_sensor("sentinel2", ["B04"])):  # a default gives way
        with open_scene(path, sensor) as scene:
            assert (scene.sensor.scale, scene.sensor.offset) == (2.75e-5, -0.2)


def test_rotated_raster_has_a_turned_footprint(tmp_path):
    turned = rasterio.Affine(8.66, 5, 5e5, 5, -8.66, 54e5)
    with open_scene(raster(tmp_path / "turned.tif", image(1), transform=turned)) as scene:
        outline = scene.footprint(Window(0, 0, 10, 10))
        west, south, east, north = outline.bounds
        assert outline.area / ((east - west) * (north - south)) == pytest.approx(0.54, abs=0.05)
        assert scene.gsd == pytest.approx(10, rel=1e-3)


def test_a_band_marked_as_alpha_by_habit_is_told_by_its_numbers(tmp_path):
    colours = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    path = raster(tmp_path / "four.tif", image(4), colours=colours)
    with open_scene(path) as scene:
        assert scene.sensor == get_sensor("rgb") and "give --sensor naip" in scene.notes[0]
    with open_scene(path, get_sensor("naip")) as scene, rasterio.open(path) as file:
        assert np.array_equal(scene.read(), file.read()) and scene.valid().all()
        assert re.search("band 4 is marked as alpha and holds .* different numbers: it is read as nir", scene.notes[0])
    pixels = image(4)
    pixels[3] = np.where(pixels[3] > 99, 255, 0)
    path = raster(tmp_path / "alpha.tif", pixels, colours=colours)
    with open_scene(path) as scene:
        assert np.array_equal(scene.valid(), pixels[3] > 0) and not scene.notes
    with pytest.raises(BandError, match="red, green, blue and alpha; sensor 'naip' has red, green, blue, nir"):
        open_scene(path, get_sensor("naip"))
    with open_scene(path, get_sensor("naip"), ["red", "green", "blue", "nir"]) as scene, rasterio.open(path) as file:
        assert np.array_equal(scene.read(), file.read()) and scene.valid().all()


def test_names_in_another_order_are_followed(tmp_path):
    pixels = image(4)
    path = raster(tmp_path / "bgrn.tif", pixels, descriptions=["blue", "green", "red", "nir"])
    with open_scene(path, get_sensor("naip")) as scene:
        assert np.array_equal(scene.read(), pixels[[2, 1, 0, 3]])
    with open_scene(path) as scene:
        assert scene.sensor.name == "custom" and scene.sensor.names == ("blue", "green", "red", "nir")
    with open_scene(path, bands=["nir", "red"]) as scene:  # the file names its bands: a choice by name
        assert np.array_equal(scene.read(), pixels[[3, 2]])
    with pytest.raises(BandError, match="--bands asks for nirr: choose among them"):
        open_scene(path, bands=["blue", "green", "red", "nirr"])
    with open_scene(path, bands=["a", "b", "c", "-"]) as scene:  # the user renames them
        assert np.array_equal(scene.read(), pixels[:3])


@pytest.mark.parametrize("names", [["blue", "green", "red"], ["B8A", "B04", "B03"], ["x", "red", "blue"]])
def test_names_given_in_any_order_go_with_their_pixels(tmp_path, names):
    pixels = image(3, np.uint16)
    path = raster(tmp_path / "none.tif", pixels)
    with open_scene(path, bands=names) as scene:
        assert list(scene.sensor.names) == names and np.array_equal(scene.read(), pixels)
    path = raster(tmp_path / "named.tif", pixels, descriptions=names[::-1])
    with open_scene(path, bands=names) as scene:
        assert list(scene.sensor.names) == names and np.array_equal(scene.read(), pixels[::-1])
    with open_scene(path) as scene, rasterio.open(path) as file:
        for name, band in zip(scene.sensor.names, scene.read(), strict=True):
            assert np.array_equal(band, file.read(file.descriptions.index(name) + 1)), name


def test_codes_that_several_sensors_use_are_refused(tmp_path):
    path = raster(tmp_path / "codes.tif", image(3), descriptions=["B2", "B3", "B4"])
    with pytest.raises(BandError, match="as several sensors do: say which with --sensor"):
        open_scene(path)
    with pytest.raises(BandError, match="as several sensors do"):
        open_scene(raster(tmp_path / "none.tif", image(3, np.uint16)), bands=["B2", "B3", "B4"])


def test_wavelengths_name_bands(tmp_path):
    path = raster(tmp_path / "cube.tif", image(3, np.uint16))
    with rasterio.open(path, "r+") as file:
        for place, micrometres in enumerate(("0.8328", "0.6646", "0.5598"), start=1):
            file.update_tags(place, ns="IMAGERY", CENTRAL_WAVELENGTH_UM=micrometres, FWHM_UM="0.03")
    with open_scene(path, get_sensor("sentinel2", ["B03", "B04", "B08"])) as scene, rasterio.open(path) as file:
        assert np.array_equal(scene.read(), file.read([3, 2, 1]))


def test_nodata_of_a_file_and_nan_count_in_any_band(tmp_path):
    pixels = image(2, np.float32)
    pixels[:, 0, 0] = -5
    pixels[0, 1, 1] = -5
    pixels[1, 2, 2] = np.nan
    pixels[0, 3, 3] = np.inf
    path = raster(tmp_path / "float.tif", pixels, nodata=-5, descriptions=["VV", "VH"])
    with open_scene(path) as scene:
        assert sorted(zip(*np.nonzero(~scene.valid()), strict=True)) == [(0, 0), (1, 1), (2, 2), (3, 3)]


def test_a_sensor_gives_nodata_only_where_the_file_gives_none(tmp_path):
    pixels = image(1, np.int16)
    pixels[:, 0, 0], pixels[:, 0, 1] = -9999, 7
    red = get_sensor("landsat7", ["B3"])
    with open_scene(raster(tmp_path / "a.tif", pixels), red) as scene:
        assert list(scene.valid()[0, :3]) == [False, True, True]
    with open_scene(raster(tmp_path / "b.tif", pixels, nodata=7), red) as scene:
        assert list(scene.valid()[0, :3]) == [True, False, True]
    with open_scene(raster(tmp_path / "c.tif", image(1), nodata=None), red) as scene:
        assert scene.nodata is None and scene.valid().all()  # uint8 cannot hold -9999


def test_masks_inside_and_beside_the_file_count(tmp_path):
    for internal in (True, False):
        folder = tmp_path / str(internal)
        folder.mkdir()
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal):
            path = raster(folder / "masked.tif", image(1))
            with rasterio.open(path, "r+") as file:
                file.write_mask(np.arange(1600).reshape(40, 40) >= 100)
        assert (folder / "masked.tif.msk").exists() != internal
        with open_scene(path) as scene:
            assert (~scene.valid()).sum() == 100 and not scene.valid(Window(0, 0, 40, 2)).any()


def test_pages_beside_the_first_are_not_lost_in_silence(tmp_path):
    first, *others = (Image.fromarray(band) for band in image(3))
    first.save(tmp_path / "pages.tif", save_all=True, append_images=others)
    with pytest.raises(InputError, match=r"pages\.tif' holds 3 pages.*as bands of one page"):
        open_scene(tmp_path / "pages.tif")
    (tmp_path / "stack").mkdir()
    for name in ("red.tif", "nir.tif"):  # a file a band
        first.save(tmp_path / "stack" / name, save_all=True, append_images=others)
    with pytest.raises(InputError, match=r"\w+\.tif' holds 3 pages"):
        open_scene(tmp_path / "stack")
    first.save(tmp_path / "small.tif", save_all=True, append_images=[first.resize((9, 9))])
    with open_scene(tmp_path / "small.tif") as scene:
        assert scene.notes == ("it holds 2 pages of several sizes: the first is read",)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        path = raster(tmp_path / "cog.tif", image(1, size=600))
        with rasterio.open(path, "r+") as file:  # its overviews and mask are no pages
            file.build_overviews([2, 4])
            file.write_mask(np.ones((600, 600), bool))
    with open_scene(path) as scene:
        assert scene.notes == ()


def test_world_file_places_a_picture(tmp_path):
    path = raster(tmp_path / "place.png", image(3), driver="PNG", crs=None, transform=None)
    (tmp_path / "place.pgw").write_text("10\n0\n0\n-10\n500005\n5399995\n")
    with open_scene(path) as scene:
        assert scene.transform == from_origin(5e5, 54e5, 10, 10)


@pytest.mark.parametrize("driver", ["JP2OpenJPEG", "VRT"])
def test_jpeg2000_and_vrt_open(tmp_path, driver):
    pixels = image(2, np.uint16)
    source = raster(tmp_path / "source.tif", pixels, descriptions=["VV", "VH"])
    path = tmp_path / f"scene.{'vrt' if driver == 'VRT' else 'jp2'}"
    rasterio.shutil.copy(
        source, path, driver=driver, **({} if driver == "VRT" else {"REVERSIBLE": "YES", "QUALITY": "100"})
    )
    with open_scene(path, bands=["VV", "VH"]) as scene:
        assert np.array_equal(scene.read(), pixels) and scene.crs == CRS.from_epsg(32632)


def test_a_window_outside_is_refused(tmp_path):
    with open_scene(raster(tmp_path / "a.tif", image(1))) as scene:
        assert scene.read(Window(30, 30, 10, 10)).shape == (1, 10, 10)
        with pytest.raises(InputError, match="not inside"):
            scene.read(Window(30, 30, 11, 10))


def test_time_comes_from_acquisition_and_not_from_the_date_of_writing(tmp_path):
    written = {"TIFFTAG_DATETIME": "2021:01:01 00:00:00"}
    cases = {
        "a.tif": (written, None),
        "b.tif": (written | {"ACQUISITIONDATETIME": "2019-02-03T10:20:30Z"}, datetime(2019, 2, 3, 10, 20, 30)),
        "T32UNU_20190102T105441_B04.tif": ({}, datetime(2019, 1, 2, 10, 54, 41)),
        "tile_20199999.tif": ({}, None),
        "c.tif": ({"ACQUISITION_DATETIME": "2021-06-01T23:30:00-07:00"}, datetime(2021, 6, 2, 6, 30)),  # in UTC
        "d.tif": ({"ACQUISITION_DATETIME": "2021-06-01 01:30:00.25 +0200"}, datetime(2021, 5, 31, 23, 30)),
        "e.tif": ({"ACQUISITION_DATETIME": "2021-06-01 10:10:00-11:20:00"}, datetime(2021, 6, 1, 10, 10)),  # from, to
        "f.tif": ({"ACQUISITIONDATETIME": "2021:06:01 10:00:00"}, datetime(2021, 6, 1, 10)),
        "20211301_20210601T101031-0001.tif": ({}, datetime(2021, 6, 1, 10, 10, 31)),
        "20210601_256161.tif": ({}, datetime(2021, 6, 1)),
    }
    for name, (tags, expected) in cases.items():
        with open_scene(raster(tmp_path / name, image(1), tags=tags)) as scene:
            assert scene.time == expected, name


def test_opening_a_plain_picture_does_not_warn(tmp_path, recwarn):
    path = raster(tmp_path / "a.png", image(3), driver="PNG", crs=None, transform=None)
    recwarn.clear()
    with open_scene(path) as scene:
        scene.read()
    assert not [warning for warning in recwarn if warning.category is NotGeoreferencedWarning]


def test_scenes_are_found_in_order_without_hidden_files(tmp_path):
    for name in ("b.TIF", "a/c.png", "a/.hidden.tif", ".git/d.tif", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [str(tmp_path / "a/c.png"), str(tmp_path / "b.TIF")]
    assert find_scenes([tmp_path]) == find_scenes([tmp_path / "b.TIF", tmp_path]) == found
    assert find_scenes([str(tmp_path / "*.TIF")]) == found[1:]
    assert find_scenes(["/vsicurl/https://example.org/a.tif"]) == ["/vsicurl/https://example.org/a.tif"]
    with pytest.raises(InputError, match="does not exist"):
        find_scenes([tmp_path / "gone"])
    with pytest.raises(InputError, match="no raster in"):
        find_scenes([tmp_path / ".git" / ".." / "a" / "notes.txt"][:0])


def test_scene_is_frozen(tmp_path):
    with open_scene(raster(tmp_path / "a.tif", image(1))) as scene, pytest.raises(dataclasses.FrozenInstanceError):
        scene.height = 3
