import sys
import types

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.windows import Window

from geomim.corpus.scenes import detector, open_scene
from geomim.corpus.scenes.arrays import array_scene
from geomim.corpus.scenes.clouds import KINDS, named_kind, with_clouds
from geomim.corpus.scenes.scene import UNKNOWN
from geomim.errors import BandError, InputError, MissingExtraError
from geomim.sensors import get_sensor


def raster(path, pixels, names=None, metres=10, north=54e5, **profile):
    path.parent.mkdir(exist_ok=True, parents=True)
    shape = dict(zip(("count", "height", "width"), pixels.shape, strict=True))
    profile = {"driver": "GTiff", "crs": "EPSG:32632", "transform": Affine(metres, 0, 5e5, 0, -metres, north)} | profile
    with rasterio.open(path, "w", dtype=pixels.dtype.name, **shape, **profile) as file:
        file.write(pixels)
        for place, name in enumerate(names or [], start=1):
            file.set_band_description(place, name)
    return path


def image(count=1, height=40, width=60):
    return np.random.default_rng(0).integers(1, 200, (count, height, width)).astype(np.uint8)


@pytest.mark.parametrize(
    ("kind", "cloudy", "clear"),
    [
        ("scl", (3, 8, 9, 10), (0, 1, 2, 4, 5, 6, 7, 11)),
        ("fmask", (2, 4), (0, 1, 3, 255)),
        ("hls", (1, 2, 4, 8, 2 | 16, 8 | 192), (0, 16, 32, 64, 192, 255)),
        ("qa_pixel", (2, 4, 8, 16, 22280, 55052), (0, 1, 32, 64, 21824, 21952, 30048)),
        ("qa60", (1024, 2048, 3072), (0, 1, 512, 4096)),
        ("msk_classi", (1,), (0,)),
        ("omnicloudmask", (1, 2, 3), (0,)),
        ("binary", (1, 255), (0,)),
    ],
)
def test_codes_mean_what_their_providers_say(kind, cloudy, clear):
    assert KINDS[kind](np.array(cloudy, np.uint16)).all()
    assert not KINDS[kind](np.array(clear, np.uint16)).any()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("T32UNU_20200101_SCL_20m.jp2", "scl"),
        ("HLS.S30.T32UNU.2020001.v2.0.Fmask.tif", "hls"),
        ("LC08_fmask4.tif", "fmask"),
        ("LC08_L2SP_193024_20200802_20200908_02_T1_QA_PIXEL.TIF", "qa_pixel"),
        ("QA60", "qa60"),
        ("scene_cloud_mask.tif", "binary"),
        ("disclaimer.tif", None),
        ("clouds.tif", None),
    ],
)
def test_names_tell_kinds(name, kind):
    assert named_kind(name) == kind


def test_a_band_of_the_file_is_its_cloud_mask_and_no_measurement(tmp_path):
    pixels = image(4).astype(np.uint16)
    pixels[3] = 4
    pixels[3, :10] = 9
    path = raster(tmp_path / "scene.tif", pixels, ["B04", "B03", "B02", "SCL"])
    with open_scene(path, get_sensor("sentinel2", ["B02", "B03", "B04"])) as scene:
        assert np.array_equal(scene.clouds(), pixels[3] == 9)
        assert np.array_equal(scene.clouds(Window(5, 5, 7, 9)), pixels[3, 5:14, 5:12] == 9)
    path = raster(tmp_path / "named.tif", pixels, ["red", "green", "blue", "SCL"])
    with open_scene(path) as scene:
        assert scene.sensor.names == ("red", "green", "blue") and scene.clouds().mean() == 0.25
    with open_scene(path, bands=["SCL"]) as scene:  # unless asked for
        assert scene.sensor.names == ("SCL",)
    with open_scene(path, warp="EPSG:3035") as scene:
        read, valid = scene.read_valid()
        assert scene.clouds().shape == read.shape[1:] and not scene.clouds()[~valid].any()
        assert scene.clouds()[valid].mean() == pytest.approx(0.25, abs=0.03)


def test_masks_written_as_floats_count(tmp_path):
    pixels = image(2).astype(np.float32)
    pixels[1] = 0
    pixels[1, :10] = 1024
    pixels[1, 10:12] = np.nan
    with open_scene(raster(tmp_path / "gee.tif", pixels, ["red", "QA60"])) as scene:
        assert scene.clouds()[:10].all() and not scene.clouds()[10:].any()


def test_a_folder_of_masks_named_like_the_scenes(tmp_path):
    path = raster(tmp_path / "scene.tif", image())
    codes = np.full((1, 20, 30), 4, np.uint8)
    codes[0, :5] = 8
    raster(tmp_path / "masks" / "scene_SCL.tif", codes, metres=20)
    raster(tmp_path / "masks" / "other_SCL.tif", codes, metres=20)
    raster(tmp_path / "masks" / "scene2.tif", codes, metres=20)
    with open_scene(path, clouds=str(tmp_path / "masks")) as scene:
        cloudy = scene.clouds()
        assert cloudy[:10].all() and not cloudy[10:].any()  # nearest, on the scene's grid
    with open_scene(raster(tmp_path / "none.tif", image()), clouds=str(tmp_path / "masks")) as scene:
        assert scene.clouds() is None
    for name in ("scene_fmask.tif", "scene_copy_SCL.tif"):
        raster(tmp_path / "masks" / name, codes)
    with pytest.raises(InputError, match=r"several masks for .*scene_SCL"):
        open_scene(path, clouds=str(tmp_path / "masks"))


def test_masks_that_cover_a_part_say_nothing_of_the_rest(tmp_path):
    path = raster(tmp_path / "scene.tif", image())
    raster(tmp_path / "masks" / "scene.tif", np.ones((1, 40, 60), np.uint8), north=54e5 - 200)
    with open_scene(path, clouds=str(tmp_path / "masks")) as scene:
        assert not scene.clouds()[:20].any() and scene.clouds()[20:].all()
        assert (scene.cloud_codes() == np.repeat([[UNKNOWN], [1]], 20, axis=0)).all()
    raster(tmp_path / "masks" / "scene.tif", np.ones((1, 40, 60), np.uint8), north=54e5 - 400)
    with pytest.raises(InputError, match=r"masks/scene\.tif' lies elsewhere: it shares no ground with its scene"):
        open_scene(path, clouds=str(tmp_path / "masks"))


@pytest.mark.parametrize("metres", [10, 20])
@pytest.mark.parametrize(
    ("kind", "nodata", "unknown", "clear"),
    [
        ("scl", None, 0, 4),
        ("fmask", 255, 255, 0),
        ("qa_pixel", None, 1, 64),
        ("omnicloudmask", 9, 9, 0),
        ("binary", 255, 255, 0),
        ("binary", 0, None, 0),  # which many programs declare
    ],
)
def test_codes_that_say_nothing_are_unknown(tmp_path, kind, nodata, unknown, clear, metres):
    codes = np.full((1, 400 // metres, 600 // metres), clear, np.uint8)
    codes[:, : 200 // metres] = clear if unknown is None else unknown
    raster(tmp_path / "masks" / "a.tif", codes, metres=metres, nodata=nodata)
    with open_scene(raster(tmp_path / "a.tif", image()), clouds=f"{tmp_path / 'masks'}:{kind}") as scene:
        read = scene.cloud_codes()
    assert (read[:20] == (0 if unknown is None else UNKNOWN)).all() and (read[20:] == 0).all()


def test_kinds_are_told_by_codes_or_by_the_user(tmp_path):
    path = raster(tmp_path / "scene.tif", image())
    masks = tmp_path / "masks"

    def share(codes, flag=None, **profile):
        raster(masks / "scene.tif", codes, **profile)
        with open_scene(path, clouds=f"{masks}{flag or ''}") as scene:
            return scene.clouds().mean()

    codes = np.zeros((1, 40, 60), np.uint8)
    codes[0, :4] = 255
    assert share(codes) == pytest.approx(0.1)
    codes[0, 4:8] = 1
    assert share(codes, nodata=255) == pytest.approx(0.1)  # nodata says nothing
    codes[0, :8] = np.repeat([3, 4, 8, 9], 2)[:, None]
    with pytest.raises(InputError, match=r"codes 0, 3, 4, 8, 9: say of which kind .* --clouds FOLDER:KIND"):
        share(codes)
    assert share(codes, ":scl") == pytest.approx(0.15)
    assert share(codes, ":binary") == pytest.approx(0.2)
    with pytest.raises(InputError, match="did you mean 'qa_pixel'"):
        share(codes, ":qapixel")


def test_fmask_files_of_both_kinds_are_told_apart(tmp_path):
    path = raster(tmp_path / "scene.tif", image())
    for codes, expected in (((0, 1, 2, 3, 4, 255), 2 / 6), ((0, 2, 64, 66, 192, 255), 2 / 6)):
        raster(tmp_path / "masks" / "scene_Fmask.tif", np.repeat(np.array(codes, np.uint8), 400).reshape(1, 40, 60))
        with open_scene(path, clouds=str(tmp_path / "masks")) as scene:
            assert scene.clouds().mean() == pytest.approx(expected)


def test_wrong_flags_are_refused(tmp_path):
    path = raster(tmp_path / "scene.tif", image())
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no raster in"):
        open_scene(path, clouds=str(tmp_path / "empty"))
    with pytest.raises(InputError, match="is no folder: give FOLDER, FOLDER:KIND"):
        open_scene(path, clouds=str(tmp_path / "gone"))
    raster(tmp_path / "masks" / "scene.tif", np.zeros((1, 4, 4), np.uint8), crs=None, transform=None)
    with pytest.raises(InputError, match="4 x 4 and its scene 40 x 60, and they share no place"):
        open_scene(path, clouds=str(tmp_path / "masks"))


def test_pictures_without_a_place_take_masks_of_their_size(tmp_path):
    plain = {"crs": None, "transform": None}
    path = raster(tmp_path / "scene.tif", image(3), ["red", "green", "blue"], **plain)
    raster(tmp_path / "masks" / "scene.tif", np.eye(40, 60, dtype=np.uint8)[None], **plain)
    with open_scene(path, clouds=str(tmp_path / "masks")) as scene:
        assert np.array_equal(scene.clouds(), np.eye(40, 60, dtype=bool))


def fake_library(monkeypatch, calls):
    def predict_from_array(pixels, no_data_value=None):
        calls.append(pixels.shape)
        assert pixels.dtype == np.float32 and no_data_value == 0
        bright = pixels[0] > 150  # the first is red
        return np.where(bright, 1, 0)[None].astype(np.uint8)

    library = types.ModuleType("omnicloudmask")
    library.predict_from_array = predict_from_array
    monkeypatch.setitem(sys.modules, "omnicloudmask", library)
    monkeypatch.setattr(detector, "_BLOCK", 64)
    monkeypatch.setattr(detector, "_MARGIN", 8)


def test_a_detector_sees_red_green_and_nir_block_by_block(monkeypatch):
    calls = []
    fake_library(monkeypatch, calls)
    pixels = image(4, 150, 200)
    valid = np.ones((150, 200), bool)
    valid[:30] = False
    scene = with_clouds(
        array_scene("a", pixels, get_sensor("naip", ["blue", "nir", "green", "red"]), valid=valid), "omnicloudmask"
    )
    bright = (pixels[3] > 150) & valid
    rows = [scene.clouds(Window(0, row, 200, 50)) for row in (0, 50, 100)]
    assert np.array_equal(np.concatenate(rows), bright)
    assert len(calls) == 12 and max(calls) <= (3, 80, 80)  # every block once
    assert np.array_equal(scene.clouds(Window(60, 60, 10, 70)), bright[60:130, 60:70])
    assert np.array_equal(scene.clouds(), bright)


def test_a_detector_that_is_missing_or_lacks_bands_is_a_sentence(monkeypatch):
    scene = array_scene("a", image(3), get_sensor("rgb"))
    monkeypatch.setitem(sys.modules, "omnicloudmask", None)
    with pytest.raises(MissingExtraError, match="pip install omnicloudmask"):
        with_clouds(scene, "omnicloudmask")
    fake_library(monkeypatch, [])
    with pytest.raises(BandError, match="red, green and nir; 'a' has red, green, blue"):
        with_clouds(scene, "omnicloudmask")
