from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import rasterio.shutil
import shapely
import torch
from colour_model import CONTRACT, ColourModel
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin

from geomim.cli import main, parse
from geomim.corpus.scenes import Scene, open_scene
from geomim.errors import BandError, CheckpointError, ConfigError, InputError
from geomim.maps import query as asking
from geomim.maps.files import rasters
from geomim.maps.files.pictures import quick_look
from geomim.maps.files.rasters import open_map
from geomim.maps.query import BACKGROUND, query
from geomim.models.image_text import open_image_text

OWN = ("error", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
"""Warnings are errors, but those of arrays that an earlier test left open, which come at any time."""
PLACE = {"transform": from_origin(500000, 4000000, 2, 2), "crs": "EPSG:32632"}


@pytest.fixture(autouse=True)
def model(monkeypatch):
    monkeypatch.setattr(asking, "open_image_text", lambda source, quickgelu: ColourModel())
    monkeypatch.setattr(asking, "fast_half", lambda device: False)


def halves(height=64, width=96, border=48) -> np.ndarray:
    """Red on the left, blue on the right."""
    pixels = np.full((4, height, width), 100, np.uint8)
    pixels[0, :, :border], pixels[2, :, border:] = 200, 200
    return pixels


def write(path: Path, pixels: np.ndarray, names=("red", "green", "blue", "nir"), **profile) -> str:
    count, height, width = pixels.shape
    profile = {"driver": "GTiff", "dtype": pixels.dtype, "count": count, "height": height, "width": width, **profile}
    with rasterio.open(path, "w", **profile) as raster:
        raster.write(pixels)
        raster.descriptions = names
    return str(path)


def relevance(cosine, background, scale=10.0):
    return 1 / (1 + np.exp(-scale * (cosine - background)))


def test_two_halves_are_hot_where_they_are_to_the_pixel(tmp_path):
    scene, out = write(tmp_path / "scene.tif", halves(), **PLACE), tmp_path / "maps" / "heat.tif"
    written = query(scene, "m", ["red", "blue"], str(out))
    assert written == [out, out.with_suffix(".png")] and sorted(out.parent.iterdir()) == sorted(written)
    with rasterio.open(out) as raster, rasterio.open(scene) as source:
        heat = raster.read()
        assert raster.descriptions == ("red", "blue") and raster.crs == source.crs and np.isnan(raster.nodata)
        assert raster.transform == source.transform * rasterio.Affine.scale(4) and raster.bounds == source.bounds
        assert raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert raster.tags()["ENCODER"] == "colours" and raster.tags()["SCORE"] == "relevance"
    hot, cold = relevance(1, 0.5), relevance(0, 0.5)
    np.testing.assert_allclose(heat[0], np.where(np.arange(24) < 12, hot, cold)[None].repeat(16, 0), rtol=1e-4)
    np.testing.assert_allclose(heat[1], heat[0, :, ::-1], rtol=1e-4)
    assert Image.open(out.with_suffix(".png")).width > 400


def test_the_activation_that_is_asked_for_is_the_models(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(asking, "open_image_text", lambda *given: asked.append(given) or ColourModel())
    scene = write(tmp_path / "scene.tif", halves(), **PLACE)
    query(scene, "remoteclip:a.pt", ["red"], str(tmp_path / "heat.tif"), quickgelu=False)
    assert asked == [("remoteclip:a.pt", False)]


@pytest.mark.filterwarnings(*OWN)
def test_pictures_show_texts_as_they_are_and_scenes_of_which_no_patch_is_drawn(tmp_path, monkeypatch):
    scene = write(tmp_path / "scene.tif", halves(), **PLACE)
    query(scene, "m", ["red $x_^$", "blue $1 and $2"], str(tmp_path / "heat$_$.tif"))  # neither is mathematics
    heat = write(tmp_path / "none.tif", np.full((1, 8, 8), np.nan, np.float32), ("red",), **PLACE)
    with open_scene(scene) as opened:
        quick_look(tmp_path / "none.png", opened, Path(heat), ["red"], "relevance")
    assert (tmp_path / "none.png").exists()


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6, 0.9])
def test_overlapping_windows_say_what_one_pass_over_the_scene_says(overlap, tmp_path):
    pixels = np.random.default_rng(0).integers(1, 255, (4, 100, 132)).astype(np.uint8)
    query(write(tmp_path / "s.tif", pixels, **PLACE), "m", ["red", "nir"], str(tmp_path / "h.tif"), overlap=overlap)
    means = (pixels.reshape(4, 25, 4, 33, 4).mean((2, 4)) - 100) / 50
    unit = means / np.linalg.norm(means, axis=0)
    expected = relevance(unit[[0, 3]], unit.mean(0) * 2)  # the background is all four bands alike
    np.testing.assert_allclose(rasterio.open(tmp_path / "h.tif").read(), expected, rtol=1e-4)


def test_a_scene_is_read_a_window_or_a_strip_at_a_time(tmp_path, monkeypatch):
    scene, asked = write(tmp_path / "long.tif", halves(1024, 64, 32), **PLACE), []
    for name in ("read_valid", "valid"):
        reading = getattr(Scene, name)

        def noted(self, window=None, reading=reading):
            asked.append(window.height * window.width)
            return reading(self, window)

        monkeypatch.setattr(Scene, name, noted)
    files = {"classes": str(tmp_path / "c.tif"), "polygons": str(tmp_path / "p.gpkg")}
    query(scene, "m", ["red"], str(tmp_path / "h.tif"), resolution="pixel", **files)
    assert len(asked) > 40 and max(asked) <= 256 * 64  # of 1024 * 64


def test_what_fails_half_way_leaves_what_was_there(tmp_path, monkeypatch):
    scene, out = write(tmp_path / "scene.tif", halves(), **PLACE), tmp_path / "maps" / "heat.tif"
    query(scene, "m", ["red"], str(out))
    before = {file: file.read_bytes() for file in out.parent.iterdir()}

    def full(source, target, **options):
        Path(target).write_bytes(b"half")
        raise OSError("no space left")

    def stopped(self, images, valid=None, sensor=None):
        raise KeyboardInterrupt

    for place, name, failing, kind in (
        (ColourModel, "encode_patches", stopped, KeyboardInterrupt),
        (rasters.rasterio.shutil, "copy", full, OSError),
    ):
        with monkeypatch.context() as patch, pytest.raises(kind):
            patch.setattr(place, name, failing)
            query(scene, "m", ["blue"], str(out))
        assert {file: file.read_bytes() for file in out.parent.iterdir() if file.is_file()} == before
    query(scene, "m", ["blue"], str(out))
    assert sorted(out.parent.iterdir()) == sorted(before)


def test_what_is_stopped_goes_on_to_the_same_bytes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(asking, "_BATCH", 1)
    scene, encode, seen = write(tmp_path / "scene.tif", halves(96), **PLACE), ColourModel.encode_patches, []

    def counted(self, images, valid=None, sensor=None):
        if len(seen) == stop:
            raise KeyboardInterrupt
        seen.append(len(images))
        return encode(self, images, valid, sensor)

    monkeypatch.setattr(ColourModel, "encode_patches", counted)
    stop = None
    query(scene, "m", ["red", "blue"], str(tmp_path / "heat.tif"))
    whole = (tmp_path / "heat.tif").read_bytes()
    (tmp_path / "heat.tif").unlink()
    stop, looks = len(seen) + len(seen) // 2, len(seen)
    with pytest.raises(KeyboardInterrupt):
        query(scene, "m", ["red", "blue"], str(tmp_path / "heat.tif"))
    assert not (tmp_path / "heat.tif").exists() and [*tmp_path.glob(".heat.tif.work/0*.tif")]
    stop, before = None, len(seen)
    query(scene, "m", ["red", "blue"], str(tmp_path / "heat.tif"))
    assert (tmp_path / "heat.tif").read_bytes() == whole and len(seen) - before < looks
    assert not [*tmp_path.glob(".*")]


def test_a_raster_of_another_scene_is_not_written_over(tmp_path, capsys):
    scene, out = write(tmp_path / "scene.tif", halves(), **PLACE), tmp_path / "heat.tif"
    query(scene, "m", ["red"], str(out))
    assert "replaced" not in capsys.readouterr().out
    query(scene, "m", ["blue"], str(out))
    assert f"note: '{out}' is there already: it is replaced" in capsys.readouterr().out
    before, other = out.read_bytes(), write(tmp_path / "other.tif", halves(), **PLACE)
    with pytest.raises(InputError, match=r"heat\.tif' is of '.*scene\.tif', not of '.*other\.tif': name another file"):
        query(other, "m", ["blue"], str(out))
    assert out.read_bytes() == before
    (words := tmp_path / "words.tif").write_text("words")
    for file in (Path(other), words):  # a scene, and no raster at all
        before = file.read_bytes()
        with pytest.raises(InputError, match=r"is there and is nothing that geomim made of a scene.*with --out"):
            query(scene, "m", ["blue"], str(file))
        assert file.read_bytes() == before


def test_a_picture_of_the_users_own_is_not_drawn_over(tmp_path, capsys):
    scene, out = write(tmp_path / "scene.tif", halves(), **PLACE), tmp_path / "heat.tif"
    Image.new("RGB", (8, 8)).save(picture := tmp_path / "heat.png")
    before = picture.read_bytes()
    with pytest.raises(InputError, match=r"heat\.png' is there and is no picture that this geomim drew.*with --out"):
        query(scene, "m", ["red"], str(out))
    assert picture.read_bytes() == before and not out.exists()
    picture.unlink()
    for times in (0, 1):
        query(scene, "m", ["red"], str(out))
        assert capsys.readouterr().out.count(f"'{picture}' is there already: it is replaced") == times


@pytest.mark.parametrize("scene", ["scene.png", "link.tif"])
def test_a_scene_is_not_written_over_by_another_name(scene, tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "link.tif").symlink_to("scene.tif")
    with pytest.raises(ConfigError, match="would be written over"):
        query(str(tmp_path / scene), "m", ["red"], str(tmp_path / "b" / ".." / "scene.tif"))


@pytest.mark.parametrize(("flag", "ending"), [("classes", ".tif"), ("polygons", ".gpkg")])
def test_nor_are_classes_and_polygons_of_another_scene_or_of_somebody_else(flag, ending, tmp_path, capsys):
    scene, out, file = write(tmp_path / "scene.tif", halves(), **PLACE), tmp_path / "heat.tif", tmp_path / f"c{ending}"
    query(scene, "m", ["red"], str(out), **{flag: str(file)})
    assert "replaced" not in capsys.readouterr().out
    query(scene, "m", ["blue"], str(out), **{flag: str(file)})
    assert f"note: '{file}' is there already: it is replaced" in capsys.readouterr().out
    before, other = file.read_bytes(), write(tmp_path / "other.tif", halves(), **PLACE)
    with pytest.raises(InputError, match=rf"is of '.*scene\.tif', not of '.*other\.tif': name another.*--{flag}"):
        query(other, "m", ["blue"], str(tmp_path / "new.tif"), **{flag: str(file)})
    assert file.read_bytes() == before and not (tmp_path / "new.tif").exists()
    (mine := tmp_path / f"mine{ending}").write_text("drawn by hand")
    with pytest.raises(InputError, match=f"is nothing that geomim made of a scene: name another file with --{flag}"):
        query(scene, "m", ["blue"], str(tmp_path / "new.tif"), **{flag: str(mine)})
    assert mine.read_text() == "drawn by hand"


def test_a_model_that_knows_no_sentences_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "open_image_text", open_image_text)
    model = ColourModel()
    state = {f"model.encoder.{name}": value for name, value in model.encoder.state_dict().items()}
    details = {"format_version": 1, "recipe": "mae", "encoder": model.encoder.config, "contract": CONTRACT.to_dict()}
    torch.save({"state_dict": state, "geomim": details}, tmp_path / "mae.ckpt")
    scene = write(tmp_path / "scene.tif", halves(), **PLACE)
    with pytest.raises(CheckpointError, match=r"mae\.ckpt' knows images and no sentences \(recipe mae\).*remote_clip"):
        query(scene, str(tmp_path / "mae.ckpt"), ["red"], str(tmp_path / "maps" / "heat.tif"))
    assert not (tmp_path / "maps").exists()


def test_texts_do_not_change_each_others_scores_and_cosines_are_as_they_are(tmp_path):
    scene = write(tmp_path / "scene.tif", halves(), **PLACE)
    for name, arguments in (
        ("both", {"text": ["red", "blue"]}),
        ("one", {"text": ["red"]}),
        ("raw", {"text": ["red", "blue"], "score": "cosine"}),
        ("bare", {"text": ["red"], "background": ["bare"]}),
    ):
        query(scene, "m", out=str(tmp_path / f"{name}.tif"), **arguments)
    both, one, raw, bare = (rasterio.open(tmp_path / f"{name}.tif").read() for name in ("both", "one", "raw", "bare"))
    assert np.array_equal(both[:1], one)
    np.testing.assert_allclose(raw[:, 0, 0], [1, 0], atol=1e-6)
    np.testing.assert_allclose(bare[0, 0, [0, -1]], relevance(np.array([1, 0]), 3**-0.5), rtol=1e-4)


def test_pixels_are_interpolated_and_nodata_stays_to_the_pixel(tmp_path):
    pixels = halves(50, 70, 36)
    pixels[:, :7, :10] = 0
    scene = write(tmp_path / "scene.tif", pixels, nodata=0, **PLACE)
    query(scene, "m", ["red"], str(tmp_path / "p.tif"), resolution="pixel")
    query(scene, "m", ["red"], str(tmp_path / "c.tif"))
    with rasterio.open(tmp_path / "p.tif") as raster, rasterio.open(tmp_path / "c.tif") as coarse:
        fine, patches = raster.read(1), coarse.read(1)
        assert raster.shape == (50, 70) and raster.transform == PLACE["transform"] and raster.count == 1
    assert patches.shape == (13, 18)
    none = np.zeros((13, 18), bool)
    none[:2, :2] = none[-1, -1] = True  # of other patches at least half is image
    assert np.array_equal(np.isnan(patches), none)
    expected = np.isnan(patches).repeat(4, 0).repeat(4, 1)[:50, :70].copy()
    expected[:7, :10] = True
    assert np.array_equal(np.isnan(fine), expected)
    hot, cold = relevance(1, 0.5), relevance(0, 0.5)
    np.testing.assert_allclose(fine[20, [0, 33, 38, 69]], [hot, hot, cold, cold], rtol=1e-3)
    between = np.interp([34.5, 35.5, 36.5, 37.5], [33.5 + 0.5, 37.5 + 0.5], [hot, cold])  # of the middles of patches
    np.testing.assert_allclose(fine[20, 34:38], between, rtol=1e-4)


def test_classes_have_names_and_colours_and_none_where_nothing_fits(tmp_path):
    pixels = halves()
    pixels[:, :16] = 100
    pixels[3, :16] = 200  # near infrared, which nobody asks for
    pixels[:, 48:] = 0
    scene, out = write(tmp_path / "scene.tif", pixels, nodata=0, **PLACE), tmp_path / "heat.tif"
    for score, threshold in (("relevance", None), ("cosine", 0.6)):
        query(scene, "m", ["red", "blue"], str(out), score=score, threshold=threshold, classes=str(tmp_path / "c.tif"))
        with rasterio.open(tmp_path / "c.tif") as raster:
            ids = raster.read(1)
            assert raster.nodata == 255 and raster.transform == PLACE["transform"] * rasterio.Affine.scale(4)
            assert len({raster.colormap(1)[number] for number in (0, 1, 2, 255)}) == 4
            assert [raster.tags(1)[f"CLASS_{number}"] for number in range(3)] == ["red", "blue", "none of these"]
            assert raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert (ids[:4] == 2).all() and (ids[4:12, :12] == 0).all() and (ids[4:12, 12:] == 1).all()
        assert (ids[12:] == 255).all()
    rasterio.shutil.copy(tmp_path / "c.tif", tmp_path / "c.vrt", driver="VRT")  # GDAL, so QGIS, finds names and colours
    told = (tmp_path / "c.vrt").read_text()
    assert [f"<Category>{name}</Category>" in told for name in ("red", "blue", "none of these")] == [True] * 3
    assert "<ColorInterp>Palette" in told and "<ColorTable>" in told
    query(scene, "m", ["red", "blue"], str(out), score="cosine", classes=str(tmp_path / "c.tif"))
    assert set(np.unique(rasterio.open(tmp_path / "c.tif").read(1))) == {0, 1, 255}  # without threshold, the highest


def outlines(scene, folder, texts=("red", "green"), **arguments) -> gpd.GeoDataFrame:
    query(scene, "m", list(texts), str(folder / "heat.tif"), polygons=str(folder / "found.gpkg"), **arguments)
    return gpd.read_file(folder / "found.gpkg")


def test_polygons_lie_around_what_scores_above_the_threshold(tmp_path):
    found = outlines(write(tmp_path / "scene.tif", halves(), **PLACE), tmp_path)
    assert found.crs == "EPSG:32632" and found["text"].tolist() == ["red"] and found["patches"].tolist() == [16 * 12]
    assert found.geometry[0].equals(shapely.box(500000, 4000000 - 128, 500000 + 96, 4000000))
    assert found["highest"][0] == pytest.approx(relevance(1, 0.5), rel=1e-4)
    none = outlines(write(tmp_path / "scene.tif", halves(), **PLACE), tmp_path, ["green"])
    assert len(none) == 0 and none.crs == "EPSG:32632" and {"text", "mean", "highest"} <= set(none.columns)


def test_a_rotated_scene_keeps_its_place(tmp_path):
    turned = rasterio.Affine.translation(500000, 4000000) * rasterio.Affine.rotation(30) * rasterio.Affine.scale(2, -2)
    found = outlines(write(tmp_path / "scene.tif", halves(), transform=turned, crs="EPSG:32632"), tmp_path)
    with rasterio.open(tmp_path / "heat.tif") as raster:
        assert raster.transform.almost_equals(turned * rasterio.Affine.scale(4))
    corners = [turned * corner for corner in ((0, 0), (48, 0), (48, 64), (0, 64))]
    assert found.geometry[0].symmetric_difference(shapely.Polygon(corners)).area < 1e-3


def test_a_scene_placed_by_control_points_gives_maps_placed_by_such(tmp_path):
    corners = [(0, 0), (0, 96), (64, 0), (64, 96)]
    points = [GroundControlPoint(row, column, 9 + column * 1e-3, 48 - row * 1e-3) for row, column in corners]
    scene = write(tmp_path / "scene.tif", halves(), gcps=points, crs="EPSG:4326")
    found = outlines(scene, tmp_path, classes=str(tmp_path / "c.tif"))
    for name in ("heat.tif", "c.tif"):
        with rasterio.open(tmp_path / name) as raster:
            given, crs = raster.gcps
        assert crs == "EPSG:4326" and len(given) >= 4
        for point in given:
            assert (point.x, point.y) == pytest.approx((9 + point.col * 4e-3, 48 - point.row * 4e-3), abs=1e-7)
    assert found.crs == "EPSG:4326"
    assert found.total_bounds == pytest.approx([9, 48 - 0.064, 9 + 0.048, 48], abs=1e-7)


@pytest.mark.filterwarnings(*OWN)
def test_a_scene_without_place_says_so_once(tmp_path, capsys):
    with pytest.warns(NotGeoreferencedWarning):
        scene = write(tmp_path / "scene.tif", halves())
    found = outlines(scene, tmp_path, resolution="pixel", classes=str(tmp_path / "c.tif"))
    with open_map(tmp_path / "heat.tif") as raster:
        assert raster.crs is None and raster.shape == (64, 96)
    assert found.total_bounds.tolist() == [0, -64, 48, 0] and found.crs is None
    assert capsys.readouterr().out.count("no place on Earth") == 1


def test_bands_are_found_by_name_and_one_that_is_missing_is_named(tmp_path):
    plain = write(tmp_path / "a.tif", halves(), **PLACE)
    shuffled = write(tmp_path / "b.tif", halves()[[3, 2, 1, 0]], ("nir", "blue", "green", "red"), **PLACE)
    for name, scene in (("a", plain), ("b", shuffled)):
        query(scene, "m", ["red"], str(tmp_path / f"{name}_heat.tif"))
    assert np.array_equal(*(rasterio.open(tmp_path / f"{name}_heat.tif").read() for name in "ab"))
    wrong = write(tmp_path / "c.tif", halves()[:2], ("VV", "VH"), **PLACE)
    with pytest.raises(BandError, match=r"c\.tif.*red.*VV"):
        query(wrong, "m", ["red"], str(tmp_path / "none" / "heat.tif"))
    assert not list(tmp_path.glob("none/*"))


def test_what_cannot_be_answered_writes_nothing(tmp_path):
    empty = write(tmp_path / "empty.tif", np.zeros((4, 64, 64), np.uint8), nodata=0, **PLACE)
    with pytest.raises(InputError, match=r"empty\.tif.*nodata"):
        query(empty, "m", ["red"], str(tmp_path / "out" / "heat.tif"))
    fractions = write(tmp_path / "f.tif", halves().astype(np.float32) / 10000, **PLACE)
    with pytest.raises(InputError, match=r"f\.tif.*too small"):
        query(fractions, "m", ["red"], str(tmp_path / "out" / "heat.tif"))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"text": []}, "text: expected words"),
        ({"text": ["red", "  "]}, "text: expected words"),
        ({"text": ["red", "red "]}, "twice: 'red'"),
        ({"prompt": "a photo"}, "--prompt: expected {}"),
        ({"overlap": 1.0}, "--overlap"),
        ({"out": "heat.png"}, r"--out: .*\.tif"),
        ({"polygons": "a.shp"}, r"--polygons: .*\.gpkg"),
        ({"classes": "heat.tif"}, "one file"),
        ({"out": "none.tif"}, "the scene 'none.tif' would be written over"),
        ({"scene": "heat.png"}, "the scene 'heat.png' would be written over"),
        ({"threshold": 0.5}, "--threshold is of"),
        ({"score": "cosine", "polygons": "a.gpkg"}, "--threshold"),
        ({"threshold": 1.5, "polygons": "a.gpkg"}, "--threshold: a score of relevance lies in 0 to 1; given 1.5"),
        ({"threshold": -0.1, "classes": "c.tif"}, "--threshold: .* 0 to 1"),
        ({"threshold": float("nan"), "classes": "c.tif"}, "--threshold: .* 0 to 1"),
        ({"threshold": -2.0, "classes": "c.tif", "score": "cosine"}, "--threshold: .* -1 to 1"),
        ({"score": "cosine", "background": ["sea"]}, "--background"),
        ({"text": [f"red {number}" for number in range(255)], "classes": "c.tif"}, "at most 254"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_before_anything_is_read(changes, sentence, monkeypatch):
    monkeypatch.setattr(asking, "open_image_text", None)
    with pytest.raises(ConfigError, match=sentence):
        query(**{"scene": "none.tif", "model": "none", "text": ["red"], "out": "heat.tif"} | changes)


def test_what_fits_nearly_everywhere_is_said(tmp_path, capsys):
    scene, out = write(tmp_path / "scene.tif", halves(border=96), **PLACE), str(tmp_path / "heat.tif")
    query(scene, "m", ["red", "blue"], out)
    assert "note: 'red' fits better than the background nearly everywhere" in capsys.readouterr().out
    query(scene, "m", ["red", "blue"], out, score="cosine")
    query(scene, "m", ["blue"], out)
    assert "everywhere" not in capsys.readouterr().out


def test_a_sentence_that_is_cut_off_is_named(tmp_path, capsys):
    scene = write(tmp_path / "scene.tif", halves(), **PLACE)
    long = "río 🌊 " + "blue " * 2000
    query(scene, "m", ["red", long], str(tmp_path / "heat.tif"))
    said = capsys.readouterr().out
    assert said.count("cut off") == 1 and "río 🌊 blue blue" in said and len(said) < 1000
    assert rasterio.open(tmp_path / "heat.tif").descriptions == ("red", long.strip())
    assert Image.open(tmp_path / "heat.png").width < 2000


def test_the_command_line_takes_texts_one_by_one(tmp_path, monkeypatch):
    scene, out = write(tmp_path / "scene.tif", halves(), **PLACE), tmp_path / "heat.tif"
    said = ["query", scene, "--model", "m", "--text", "big red roof", "--text=blue", "--out", str(out)]
    assert main(said) == 0
    assert rasterio.open(out).descriptions == ("big red roof", "blue")
    given = parse(query, [scene, "--model", "m", "--text", "a,b", "--text", "c d", "--out", "x.tif"], "query")
    assert given["text"] == ["a", "b", "c d"] and given["background"] == BACKGROUND


def test_a_real_scene_with_a_real_model(data_dir, tmp_path, monkeypatch):
    """An untrained model says nothing of worth, but its answer lies where the scene lies."""
    pytest.importorskip("open_clip")
    from geomim.models.image_text import ImageText
    from geomim.models.joint import Joint
    from geomim.models.text import build_text

    spectral = ColourModel()
    monkeypatch.setattr(
        asking, "open_image_text", lambda source, quickgelu: ImageText(spectral.loaded, Joint(build_text("tiny"), 48))
    )
    (scene,) = (data_dir / "naip").glob("*2020*.tif")
    out, classes = tmp_path / "heat.tif", tmp_path / "classes.tif"
    arguments = {"sensor": "naip", "resolution": "pixel", "classes": str(classes)}
    query(str(scene), "m", ["a river", "farmland"], str(out), **arguments)
    with rasterio.open(scene) as source, rasterio.open(out) as raster, rasterio.open(classes) as ids:
        assert raster.crs == source.crs and raster.transform == source.transform and raster.shape == source.shape
        assert ids.transform == source.transform and len(raster.overviews(1)) >= 1
        heat, seen = raster.read(), source.dataset_mask() > 0
    assert np.isnan(heat[:, ~seen]).all() and np.isfinite(heat[:, seen]).mean() > 0.99
    assert (0 <= heat[np.isfinite(heat)]).all() and (heat[np.isfinite(heat)] <= 1).all()
