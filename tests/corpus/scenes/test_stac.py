import json
import threading
from datetime import datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin
from rasterio.windows import Window

from geomim.corpus.scenes import find_scenes, open_scene
from geomim.errors import BandError, InputError
from geomim.sensors import get_sensor

SPECTRAL = {"B02": ("blue", 0.4924), "B03": ("green", 0.5598), "B04": ("red", 0.6646), "B08": ("nir", 0.8328)}


def raster(path, pixels, metres=10):
    shape = dict(zip(("count", "height", "width"), pixels.shape, strict=True))
    place = {"crs": "EPSG:32632", "transform": from_origin(5e5, 54e5, metres, metres)}
    with rasterio.open(path, "w", driver="GTiff", dtype=pixels.dtype.name, **shape, **place) as file:
        file.write(pixels)
    return pixels


def item(assets, **properties):
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": "scene",
        "geometry": None,
        "properties": {"datetime": "2021-05-06T09:08:09.123+02:00", **properties},
        "links": [{"rel": "collection", "href": "./collection.json"}],
        "assets": assets,
    }


@pytest.fixture
def scene_folder(tmp_path):
    """An item with four bands, a picture, a scene classification and a thumbnail, and its pixels."""
    folder = tmp_path / "items"
    folder.mkdir()
    rng = np.random.default_rng(0)
    pixels, assets = {}, {"visual": {"href": "./visual.tif", "type": "image/tiff", "roles": ["visual"]}}
    for name, (common, centre) in SPECTRAL.items():
        pixels[name] = raster(folder / f"{name}.tif", rng.integers(1100, 9000, (1, 40, 50)).astype("uint16"))
        told = {"name": name, "common_name": common, "center_wavelength": centre, "full_width_half_max": 0.03}
        assets[common] = {
            "href": f"./{name}.tif",
            "type": "image/tiff; application=geotiff",
            "roles": ["data"],
            "eo:bands": [told],
            "raster:bands": [{"scale": 0.0001, "offset": -0.1, "nodata": 0}],
        }
    classes = np.zeros((1, 20, 25), np.uint8)
    classes[0, :5] = 8
    raster(folder / "SCL.tif", classes, 20)
    raster(folder / "visual.tif", np.zeros((3, 40, 50), np.uint8))
    assets["scl"] = {"href": "./SCL.tif", "type": "image/tiff", "roles": ["data"]}
    assets["aot"] = {"href": "./aot.tif", "type": "image/tiff", "roles": ["data"], "raster:bands": [{"scale": 0.001}]}
    assets["thumbnail"] = {"href": "./preview.jpg", "type": "image/jpeg", "roles": ["thumbnail"]}
    (folder / "scene.json").write_text(json.dumps(item(assets)))
    (folder / "collection.json").write_text(json.dumps({"type": "Collection", "license": "CC-BY-SA-4.0"}))
    return folder, pixels, assets


def check(uri, pixels):
    with open_scene(uri) as scene:
        assert scene.sensor.names == tuple(SPECTRAL) and scene.sensor.name == "sentinel2"
        assert np.array_equal(scene.read(), np.concatenate(list(pixels.values())))
        assert (scene.sensor.scale, scene.sensor.offset) == (1e-4, -0.1) and scene.nodata == 0
        assert scene.time == datetime(2021, 5, 6, 7, 8, 9)
        assert scene.clouds()[:10].all() and not scene.clouds()[10:].any()
        window = Window(3, 8, 20, 9)
        assert np.array_equal(scene.read(window), scene.read()[:, 8:17, 3:23])
        assert scene.clouds(window).shape == (9, 20)
        return scene


def test_a_local_item_is_one_scene(scene_folder):
    folder, pixels, _ = scene_folder
    scene = check(folder / "scene.json", pixels)
    assert scene.licence == "CC-BY-SA-4.0" and scene.gsd == pytest.approx(10, rel=1e-3)
    assert find_scenes(folder) == [str(folder / "scene.json")]
    raster(folder / "other.tif", np.ones((1, 4, 4), np.uint8))
    (folder / "labels.json").write_text('{"type": "FeatureCollection", "features": []}')
    assert find_scenes(folder) == [str(folder / "other.tif"), str(folder / "scene.json")]


def test_bands_are_chosen_by_name_common_name_or_sensor(scene_folder):
    folder, pixels, _ = scene_folder
    for choice in (
        {"bands": ["B08", "B04"]},
        {"bands": ["nir", "red"]},
        {"sensor": get_sensor("naip", ["nir", "red"])},
    ):
        with open_scene(folder / "scene.json", **choice) as scene:
            assert np.array_equal(scene.read(), np.concatenate([pixels["B08"], pixels["B04"]]))
    with pytest.raises(BandError, match="B11"):
        open_scene(folder / "scene.json", bands=["B04", "B11"])


def test_the_words_of_stac_1_1_and_bands_in_one_asset(scene_folder):
    folder, _, _ = scene_folder
    pixels = raster(folder / "image.tif", np.random.default_rng(1).integers(0, 255, (4, 30, 30)).astype("uint8"))
    bands = [
        {"name": name, "eo:common_name": name, "eo:center_wavelength": centre, "nodata": 0}
        for name, centre in {"red": 0.635, "green": 0.555, "blue": 0.465, "nir": 0.845}.items()
    ]
    assets = {"image": {"href": "./image.tif", "type": "image/tiff", "bands": bands, "roles": ["data"]}}
    content = item(assets, license="proprietary", datetime=None, start_datetime="2020-01-02T00:00:00Z")
    content["properties"]["end_datetime"] = "2020-01-03T00:00:00Z"
    content["stac_version"] = "1.1.0"
    (folder / "one.json").write_text(json.dumps(content))
    with open_scene(folder / "one.json", bands=["nir", "red"]) as scene:
        assert np.array_equal(scene.read(), pixels[[3, 0]]) and scene.nodata == 0
        assert scene.licence == "proprietary" and scene.time == datetime(2020, 1, 2) and scene.clouds() is None
    assets["image"]["bands"].append({"name": "swir", "eo:center_wavelength": 1.6})
    (folder / "one.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"image\.tif' holds 4 bands"):
        open_scene(folder / "one.json")


def test_assets_without_bands_are_named_by_their_keys(scene_folder):
    folder, pixels, _ = scene_folder
    assets = {"vv": {"href": "./B02.tif"}, "vh": {"href": "./B03.tif", "raster:bands": [{"nodata": 0}]}}
    cloudy = {"probability": {"href": "./B04.tif", "roles": ["cloud"], "type": "image/tiff"}}
    (folder / "sar.json").write_text(json.dumps(item(assets | cloudy)))
    with open_scene(folder / "sar.json") as scene:
        assert scene.sensor.names == ("vv", "vh") and scene.clouds() is None  # percentages are no mask
        assert np.array_equal(scene.read(), np.concatenate([pixels["B02"], pixels["B03"]]))


def one_asset(folder, pixels, names=(), colours=None, told=None, **properties):
    """An item of one image, of which it tells no bands or those of `told`."""
    raster(folder / "image.tif", pixels)
    with rasterio.open(folder / "image.tif", "r+") as file:
        file.colorinterp = colours or file.colorinterp
        for place, name in enumerate(names, start=1):
            file.set_band_description(place, name)
    asset = {"href": "./image.tif", "type": "image/tiff", "roles": ["data"], **(told or {})}
    (folder / "one.json").write_text(json.dumps(item({"image": asset}, **properties)))
    return folder / "one.json"


def test_an_image_of_which_the_item_tells_no_bands_has_those_of_its_file(tmp_path):
    pixels = np.random.default_rng(0).integers(1100, 9000, (4, 30, 30)).astype("uint16")
    told = {"platform": "Sentinel-2A", "s2:processing_baseline": "05.00", "license": "CC0-1.0"}
    uri = one_asset(tmp_path, pixels, tuple(SPECTRAL), **told)
    assert find_scenes(tmp_path) == [str(uri)]
    with open_scene(uri, get_sensor("sentinel2")) as scene:
        assert scene.sensor.names == tuple(SPECTRAL) and np.array_equal(scene.read(), pixels)
        assert (scene.sensor.scale, scene.sensor.offset) == (1e-4, -0.1)  # what the item tells counts as well
        assert scene.uri == str(uri) and scene.licence == "CC0-1.0" and scene.time == datetime(2021, 5, 6, 7, 8, 9)
    with pytest.raises(BandError, match="4 bands, all without a name"):
        open_scene(one_asset(tmp_path, pixels))
    with open_scene(tmp_path / "one.json", bands=["red", "green", "blue", "nir"]) as scene:
        assert np.array_equal(scene.read(), pixels)


@pytest.mark.parametrize("told", [{"raster:bands": [{"nodata": 0}]}, {"eo:bands": [{"name": "red"}]}])
def test_a_file_of_more_bands_than_the_one_that_is_told_is_refused(tmp_path, told):
    with pytest.raises(InputError, match=r"image\.tif' holds 3 bands, and .*one\.json' tells of one: .*'bands'"):
        open_scene(one_asset(tmp_path, np.ones((3, 8, 8), np.uint8), told=told))


def test_the_alpha_band_of_an_asset_is_no_band_and_hides_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(1, 200, (4, 8, 8)).astype("uint8")
    pixels[3] = np.where(np.arange(8) < 3, 0, 255)
    rgb = [ColorInterp.red, ColorInterp.green, ColorInterp.blue]
    names = [{"name": name} for name in ("red", "green", "blue", "nir")]
    for told in ({}, {"eo:bands": names[:3]}):
        with open_scene(one_asset(tmp_path, pixels, (), [*rgb, ColorInterp.alpha], told)) as scene:
            assert np.array_equal(scene.read(), pixels[:3]) and np.array_equal(scene.valid(), pixels[3] > 0)
    with open_scene(one_asset(tmp_path, pixels, (), [*rgb, ColorInterp.alpha], {"eo:bands": names})) as scene:
        assert np.array_equal(scene.read(), pixels) and scene.valid().all()  # the item says that it is none
    for told, name in (({"eo:bands": names[:1]}, "red"), ({}, "image")):
        grey = one_asset(tmp_path, pixels[[0, 3]], (), [ColorInterp.gray, ColorInterp.alpha], told)
        with open_scene(grey) as scene:
            assert scene.sensor.names == (name,) and np.array_equal(scene.valid(), pixels[3] > 0)


def test_indices_into_a_palette_are_the_colours_they_stand_for(tmp_path):
    uri = one_asset(tmp_path, np.array([[[0, 1]]], np.uint8))
    with rasterio.open(tmp_path / "image.tif", "r+") as file:
        file.write_colormap(1, {0: (9, 8, 7, 255), 1: (1, 2, 3, 255)})
    with open_scene(uri) as scene:
        assert scene.sensor == get_sensor("rgb") and scene.read().tolist() == [[[9, 1]], [[8, 2]], [[7, 3]]]


def test_an_offset_that_has_been_taken_off_is_not_taken_off_again(scene_folder):
    folder, _, assets = scene_folder
    (folder / "scene.json").write_text(json.dumps(item(assets, **{"earthsearch:boa_offset_applied": True})))
    with open_scene(folder / "scene.json") as scene:
        assert (scene.sensor.scale, scene.sensor.offset) == (1e-4, 0)


def test_what_is_no_item_is_refused(scene_folder):
    folder, _, assets = scene_folder
    (folder / "text.json").write_text("no JSON")
    (folder / "list.json").write_text("[1, 2]")
    (folder / "none.json").write_text(json.dumps(item({"thumbnail": assets["thumbnail"]})))
    cases = {
        "text.json": "cannot be read as a STAC item",
        "gone.json": "cannot be read as a STAC item",
        "collection.json": "is a Collection and no STAC item",
        "list.json": "is a JSON and no STAC item",
        "none.json": "no asset with image bands: found thumbnail",
    }
    for name, sentence in cases.items():
        with pytest.raises(InputError, match=sentence) as refusal:
            open_scene(folder / name)
        assert name in str(refusal.value) and "\n" not in str(refusal.value)


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder, with byte ranges, without a word."""

    def log_message(self, *parts):
        pass

    def send_head(self):
        wanted = self.headers.get("Range")
        path = self.translate_path(self.path)
        if not wanted or "-" not in wanted:
            return super().send_head()
        try:
            file = open(path, "rb")
        except OSError:
            self.send_error(404)
            return None
        content = file.read()
        file.close()
        first, last = wanted.removeprefix("bytes=").split("-")
        last = min(int(last or len(content) - 1), len(content) - 1)
        part = content[int(first) : last + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        self.wfile.write(part)
        return None

    def copyfile(self, source, outputfile):
        if source is not None:
            super().copyfile(source, outputfile)


@pytest.fixture
def server(scene_folder):
    running = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(scene_folder[0])))
    thread = threading.Thread(target=partial(running.serve_forever, 0.01), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


def test_items_and_rasters_at_addresses(scene_folder, server, monkeypatch):
    _, pixels, _ = scene_folder
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    scene = check(f"{server}/scene.json", pixels)
    assert scene.licence == "CC-BY-SA-4.0"
    assert find_scenes(f"{server}/B04.tif") == [f"{server}/B04.tif"]
    with open_scene(f"{server}/B04.tif", get_sensor("sentinel2")) as scene:
        assert scene.sensor.names == ("B04",)
        assert scene.uri == f"{server}/B04.tif" and np.array_equal(scene.read(), pixels["B04"])


def test_what_cannot_be_reached_is_one_sentence(scene_folder, server, monkeypatch):
    folder, _, assets = scene_folder
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assets["red"]["href"] = f"{server}/gone.tif"
    (folder / "scene.json").write_text(json.dumps(item(assets)))
    for uri, named in (
        (folder / "scene.json", f"{server}/gone.tif"),
        (f"{server}/nothing.tif", f"{server}/nothing.tif"),
        (f"{server}/nothing.json", f"{server}/nothing.json"),
        ("http://127.0.0.1:9/a.tif", "http://127.0.0.1:9/a.tif"),
    ):
        with pytest.raises(InputError) as refusal:
            open_scene(uri)
        sentence = str(refusal.value)
        assert sentence.startswith(f"'{named}' cannot be") and "\n" not in sentence
