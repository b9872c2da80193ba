import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import xarray as xr
from colour_model import CONTRACT, ColourModel
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.errors import RasterioIOError
from rasterio.transform import Affine, from_origin
from rio_cogeo import cog_validate
from tiny_encoder import S2, checkpoint

from geomim.corpus.scenes import find_scenes
from geomim.errors import BandError, CheckpointError, ConfigError, CorpusError, InputError
from geomim.evaluate.features import encode
from geomim.maps.embeddings import rows as patch_rows
from geomim.maps.embeddings import scene as embedding
from geomim.maps.embeddings.patches import open_patches, write_patches
from geomim.maps.embeddings.vectors import Rounding, described
from geomim.maps.scenes.opening import open_for
from geomim.maps.walk.strips import Strips
from geomim.maps.walk.windows import read_window
from geomim.models import ranges
from geomim.models.weights import read_encoder
from geomim.verbs import search as searching
from geomim.verbs.embed import embed
from geomim.verbs.search import search

CELL, PLACE = 8, from_origin(500000, 4000000, 2, 2)
MIDDLE = (500000 + 32.5 * 16, 4000000 - 3.5 * 16)
"""Of the patch in row 3 and column 32 of a scene that lies at `PLACE`."""


def scene(path: Path, height: int = 100, width: int = 300, place: Affine | None = PLACE, **profile) -> str:
    """Four bands that differ from place to place; the upper left corner is nodata."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / a + columns / b) for a, b in ((9, 31), (23, 11), (15, 80), (60, 17))]
    pixels = (100 + 60 * np.stack(waves)).round().astype(np.uint8)
    pixels[:, :24, :16] = 0
    given = {"crs": "EPSG:32632", "transform": place} if place else {}
    kind = {"driver": "GTiff", "dtype": "uint8", "count": 4, "height": height, "width": width, "nodata": 0}
    with rasterio.open(path, "w", **kind, **given, **profile) as raster:
        raster.write(pixels)
        raster.descriptions = ("red", "green", "blue", "nir")
    return str(path)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "naip.ckpt"
    checkpoint(file, depth=1)
    return str(file)


@pytest.fixture
def raster(tmp_path):
    return scene(tmp_path / "scene.tif")


def embedded(raster: str, encoder: str, out: Path, dtype: str = "float16", **options) -> Path:
    return embed(raster, encoder, str(out), dtype, sensor="naip", device="cpu", **options)


def whole(path: Path) -> np.ndarray:
    with open_patches(path) as patches:
        found = np.full(patches.shape, np.inf, np.float32)
        for window, block in patches.blocks():
            found[(slice(None), *window.toslices())] = block
    return found


@pytest.mark.parametrize("ending", [".tif", ".zarr"])
def test_a_pixel_is_a_patch_of_the_window_that_sees_it(raster, encoder, tmp_path, ending, capsys):
    out = embedded(raster, encoder, tmp_path / "new" / f"patches{ending}", overlap=0)
    assert "13 x 38 patches of 8 px, 32 values each, float16" in capsys.readouterr().out
    found, loaded = whole(out), read_encoder(encoder)
    opened, prepare = open_for(next(iter(loaded.contracts.values())), raster, None, None)
    with opened, torch.inference_mode():
        pixels, valid = (torch.from_numpy(part)[None] for part in read_window(opened, 0, 128, 64))
        tokens = encode(loaded.encoder.eval(), prepare(pixels, valid)[0])[1]
    expected = tokens[0].T.unflatten(1, (8, 8)).numpy()
    assert found[:, :5, 16:24] == pytest.approx(expected[:, :5], abs=0.01)  # the next row of windows is moved inside
    assert np.isnan(found[:, :3, :2]).all() and np.isfinite(found[:, :12, 2:]).all()
    assert [one.name for one in out.parent.iterdir()] == [out.name]


def test_a_geotiff_lies_on_its_scene_and_is_told_of(raster, encoder, tmp_path):
    for dtype, kind, nodata in (("float16", "float32", np.nan), ("int8", "int8", -128)):
        out = embedded(raster, encoder, tmp_path / f"{dtype}.tif", dtype)
        with rasterio.open(out) as found:
            assert (found.transform, found.crs) == (PLACE @ Affine.scale(CELL), CRS.from_epsg(32632))
            assert {*found.dtypes} == {kind} and found.nodata == pytest.approx(nodata, nan_ok=True)
            assert found.descriptions[31] == "dimension 31" and found.profile["interleave"] == "pixel"
            assert found.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
            said = json.loads(found.tags()["EMBEDDING"])
            assert found.scales == pytest.approx(said["geomim"]["scale"] or [1] * 32)
        assert said["geoemb:chip_layout"] == {"layout_type": "regular_grid", "chip_size": [8, 8], "stride": [8, 8]}
        assert (said["geoemb:data_type"], said["geoemb:gsd"]) == (dtype, pytest.approx(2, rel=0.001))
        assert said["geomim"]["source"] == raster and len(said["geomim"]["encoder"]) == 32
    half, rounded = whole(tmp_path / "float16.tif"), whole(tmp_path / "int8.tif")
    assert np.array_equal(np.isnan(half), np.isnan(rounded))
    lengths = np.linalg.norm(half, axis=0) * np.linalg.norm(rounded, axis=0)
    assert np.nanmin((half * rounded).sum(0) / lengths) > 0.9999


def test_xarray_opens_zarr_with_coordinates_and_crs(raster, encoder, tmp_path):
    halves = whole(embedded(raster, encoder, tmp_path / "half.zarr"))
    file = embedded(raster, encoder, tmp_path / "patches.zarr", "int8")
    found = xr.open_dataset(file, engine="zarr", consolidated=True)
    assert found.embedding.dims == ("band", "y", "x")
    assert (found.x[32].item(), found.y[3].item()) == MIDDLE
    reference = found.embedding.spatial_ref.attrs
    assert CRS.from_wkt(reference["crs_wkt"]) == CRS.from_epsg(32632)
    assert Affine.from_gdal(*map(float, reference["GeoTransform"].split())) == PLACE @ Affine.scale(CELL)
    assert found.attrs["geoemb:quantization"]["method"] == "per_dimension_scale"
    assert found.attrs["zarr_conventions"][0]["name"] == "geoemb:"
    np.testing.assert_array_equal((found.embedding * found.embedding.scale).values, whole(file))
    np.testing.assert_allclose(whole(file), halves, atol=0.05)


@pytest.mark.parametrize("ending", [".tif", ".zarr"])
def test_scenes_of_control_points_rotated_ones_and_those_without_place(encoder, tmp_path, ending):
    turned = PLACE @ Affine.rotation(30)
    points = [GroundControlPoint(r, c, *(turned @ (c, r))) for r in (0, 50, 100) for c in (0, 150, 300)]
    for name, given in (("turned", {"place": turned}), ("points", {"gcps": points}), ("none", {"place": None})):
        given = given | ({"place": None} if name == "points" else {})
        raster = scene(tmp_path / f"{name}.tif", **given, **({"crs": "EPSG:32632"} if name == "points" else {}))
        out = embedded(raster, encoder, tmp_path / f"{name}_patches{ending}")
        with open_patches(out) as patches:
            x, y = (32.5, 3.5) if name == "none" else turned @ (32.5 * CELL, 3.5 * CELL)
            assert patches.locate(x, y) == (3, 32) and patches.locate(x - 10**4, y) is None
            assert ("gcps" in patches.place) == (name == "points")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a copy of this process")
@pytest.mark.parametrize("ending", [".tif", ".zarr"])
def test_killed_in_mid_scene_it_comes_to_the_same_vectors(encoder, tmp_path, ending):
    raster = scene(tmp_path / "tall.tif", 300, 100)
    expected, out = whole(embedded(raster, encoder, tmp_path / f"whole{ending}")), tmp_path / f"patches{ending}"
    original = Strips.add
    for left in (2, 1):
        if (child := os.fork()) == 0:
            done = []

            def add(self, values, done=done, left=left):
                done.append(original(self, values))
                if len(done) > left:
                    os.kill(os.getpid(), signal.SIGKILL)

            Strips.add = add
            embedded(raster, encoder, out)
            os._exit(0)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1]) and not out.exists()
    assert len([*(tmp_path / f".patches{ending}.work").glob("*.tif")]) == 5
    np.testing.assert_array_equal(whole(embedded(raster, encoder, out)), expected)


def test_a_corrupt_block_is_told_with_its_place_and_the_rest_goes_on_when_it_is_mended(
    encoder, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(ranges, "LOOKS", 2)  # of the windows that are looked at before the walk
    raster = Path(scene(tmp_path / "tall.tif", 576, 96, tiled=True, blockxsize=16, blockysize=16, compress="deflate"))
    expected, content = whole(embedded(str(raster), encoder, tmp_path / "whole.tif")), raster.read_bytes()
    with rasterio.open(raster) as opened:
        start = int(opened.get_tag_item("BLOCK_OFFSET_0_33", "TIFF", bidx=1))
    raster.write_bytes(content[:start] + bytes(60) + content[start + 60 :])
    out, work = tmp_path / "patches.tif", tmp_path / ".patches.tif.work"
    with pytest.raises(InputError, match=r"tall\.tif' cannot be read at row \d+, column \d+"):
        embedded(str(raster), encoder, out, batch=2)
    kept = [*work.glob("0*.tif")]
    assert kept and not out.exists()
    raster.write_bytes(content)
    original, added = Strips.add, []
    monkeypatch.setattr(Strips, "add", lambda self, values: added.append(original(self, values)))
    embedded(str(raster), encoder, out, batch=2)
    assert "its rows before that are kept" in capsys.readouterr().out and not work.exists()
    assert len(kept) + len(added) == 17  # rows of windows: none is looked at twice
    np.testing.assert_array_equal(whole(out), expected)


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_wide_geotiff_is_cloud_optimised_with_means_as_overviews(tmp_path, dtype):
    vectors = np.random.default_rng(0).standard_normal((5, 141, 1101)).astype(np.float32)
    vectors[:, :3, :3] = np.nan
    strips = np.array_split(vectors, 9, 1)
    rounding = Rounding.of(dtype, (strip.reshape(5, -1).T for strip in strips))
    card = {"encoder": "a", "checkpoint": "a.ckpt", "source": "a.tif", "shape": [141, 1101]}
    said, out = described(card, 5, rounding, {}), tmp_path / "patches.tif"
    write_patches(out, {"transform": PLACE, "crs": "EPSG:32632"}, said, rounding, strips)
    assert cog_validate(out, strict=True, quiet=True) == (True, [], [])
    assert [one.name for one in tmp_path.iterdir()] == ["patches.tif"]
    step = 0.002 if dtype == "float16" else rounding.scale.max()
    np.testing.assert_allclose(whole(out), vectors, atol=step)
    padded = np.pad(vectors, ((0, 0), (0, 1), (0, 1)), constant_values=np.nan)
    mean = np.nanmean(padded.reshape(5, 71, 2, 551, 2), axis=(2, 4))
    with rasterio.open(out, overview_level=0) as found:
        assert found.shape == (71, 551) and found.block_shapes[0] == (128, 128)
        np.testing.assert_allclose(rounding.restore(found.read().T).T, mean, atol=2 * step)
    with rasterio.open(out) as found:
        assert found.overviews(5) == [2, 4] and found.profile["compress"] == "zstd"


def test_a_geotiff_of_very_many_values_is_said_to_be_slow_and_does_without_zstd(monkeypatch):
    (note,) = patch_rows.slow_note(Path("patches.tif"), (768, 140, 1250))
    assert "a GeoTIFF of 768 bands" in note and "50 MB" in note and ".zarr is the better form" in note
    for path, shape in (("a.zarr", (768, 140, 1250)), ("a.tif", (512, 140, 1250)), ("a.tif", (768, 38, 13))):
        assert not patch_rows.slow_note(Path(path), shape)

    def lacking(*given, **profile):
        raise RasterioIOError("missing codec")

    monkeypatch.setattr(patch_rows, "open_map", lacking)
    assert patch_rows._compression() == {"compress": "deflate", "level": 1}


def test_what_is_there_already_is_kept_and_another_scene_is_refused(raster, encoder, tmp_path, capsys):
    out = embedded(raster, encoder, tmp_path / "patches.tif")
    before = out.stat().st_mtime_ns
    embedded(raster, encoder, out)
    assert "is there already" in capsys.readouterr().out and out.stat().st_mtime_ns == before
    embedded(raster, encoder, out, "int8")
    assert "is replaced (dtype float16 -> int8)" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"holds vectors of '.*scene.tif', not of '.*other.tif'"):
        embedded(scene(tmp_path / "other.tif"), encoder, out)
    with pytest.raises(ConfigError, match="is there, and holds no vectors of patches"):
        embedded(raster, encoder, tmp_path / "other.tif")
    with pytest.raises(ConfigError, match="would be written over the scene"):
        embedded(raster, encoder, Path(raster))


def test_scenes_that_cannot_be_embedded_leave_nothing(raster, encoder, tmp_path):
    checkpoint(tmp_path / "s2.ckpt", S2, depth=1)
    with pytest.raises(BandError):
        embedded(raster, str(tmp_path / "s2.ckpt"), tmp_path / "patches.tif")
    with pytest.raises(ConfigError, match=r"--overlap: .*0 to 0\.9; given 0\.95"):
        embedded(raster, encoder, tmp_path / "patches.tif", overlap=0.95)
    with rasterio.open(raster, "r+") as opened:
        opened.write(np.zeros((4, *opened.shape), np.uint8))
    with pytest.raises(InputError, match="no patch holds image"):
        embedded(raster, encoder, tmp_path / "patches.tif")
    assert not [*tmp_path.glob("*patches*")] and not [*tmp_path.glob(".*")]


def test_a_full_disk_keeps_what_was_there(raster, encoder, tmp_path, monkeypatch):
    out = embedded(raster, encoder, tmp_path / "patches.tif")
    before = out.read_bytes()

    def full(self, values):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Strips, "add", full)
    with pytest.raises(InputError, match=r"no space is left for '.*patches.tif': free some, and the same"):
        embedded(raster, encoder, out, overlap=0.25)
    monkeypatch.undo()
    monkeypatch.setattr(patch_rows, "_same", lambda given, written: False)  # as where GDAL kept a full disk to itself
    with pytest.raises(InputError, match="no space is left"):
        embedded(raster, encoder, out, overlap=0.25)
    assert out.read_bytes() == before and len([*tmp_path.glob(".*")]) == 1
    monkeypatch.undo()
    embedded(raster, encoder, out, overlap=0.25)
    assert not [*tmp_path.glob(".*")]


@pytest.mark.parametrize("ending", [".tif", ".zarr"])
def test_an_example_is_sought_at_its_place(raster, encoder, tmp_path, ending, capsys):
    patches, x, y = embedded(raster, encoder, tmp_path / f"patches{ending}"), *MIDDLE
    out = search(str(patches), like=f"{x},{y}", out=str(tmp_path / "heat.tif"))
    vectors = whole(patches)
    example = vectors[:, 3, 32, None, None]
    expected = (vectors * example).sum(0) / np.linalg.norm(vectors, axis=0) / np.linalg.norm(example)
    with rasterio.open(out) as found:
        assert (found.transform, found.crs) == (PLACE @ Affine.scale(CELL), CRS.from_epsg(32632))
        assert found.read(1) == pytest.approx(expected, abs=1e-5, nan_ok=True)
        assert found.read(1)[3, 32] == pytest.approx(1)
    capsys.readouterr()
    search(str(patches), like="9.0058,36.14421", out=str(tmp_path / "again.tif"))
    said = capsys.readouterr().out
    assert "9.0058,36.14421 is taken as longitude and latitude: 50052" in said and "of EPSG:32632" in said
    with rasterio.open(tmp_path / "again.tif") as again, rasterio.open(out) as found:
        np.testing.assert_array_equal(again.read(), found.read())
    search(str(patches), like=f"{x},{y}", out=str(out))
    assert f"note: '{out}' is there already: it is replaced" in capsys.readouterr().out
    with rasterio.open(out, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as found:
        found.update_tags(SCENE="/other.tif")
    with pytest.raises(InputError, match=r"heat\.tif' is of '/other\.tif', not of '.*': name another file with --out"):
        search(str(patches), like=f"{x},{y}", out=str(out))


@pytest.mark.parametrize(
    ("like", "error", "sentence"),
    [
        ("7", ConfigError, "expected coordinates X,Y"),
        ("a,b", ConfigError, "expected coordinates X,Y"),
        ("1,2", InputError, r"no patch of 'patches.tif' lies there; expected X,Y in 500000..500608, 3999792..4000000"),
        ("500001,3999999", InputError, "holds no image"),
    ],
)
def test_examples_that_are_none_are_refused(raster, encoder, tmp_path, like, error, sentence):
    patches = embedded(raster, encoder, tmp_path / "patches.tif")
    with pytest.raises(error, match=sentence):
        search(str(patches), like=like, out=str(tmp_path / "heat.tif"))
    with pytest.raises(ConfigError, match="--embedding, --count, --places and --kept_only are of tiles"):
        search(str(patches), like=like, count=3)
    with pytest.raises(ConfigError, match="written over the vectors"):
        search(str(patches), like=like, out=str(patches))


def test_sentences_are_compared_in_the_space_of_the_model_that_made_the_vectors(tmp_path, encoder, monkeypatch):
    models = {"colours": ColourModel(), "other": ColourModel("other")}
    for module in (embedding, searching):
        monkeypatch.setattr(module, "open_image_text", lambda source, quickgelu=None: models[source])
    monkeypatch.setattr(embedding, "fast_half", lambda device: False)
    raster = scene(tmp_path / "scene.tif", 64, 128)
    with rasterio.open(raster, "r+") as opened:
        pixels = np.full((4, 64, 128), 100, np.uint8)
        pixels[0, :, :64] += 80  # red in the west, blue in the east
        pixels[2, :, 64:] += 80
        opened.write(pixels)
    patches = embedded(raster, "colours", tmp_path / "patches.tif", joint=True)
    search(str(patches), ["red", "blue"], out=str(tmp_path / "heat.tif"))
    with rasterio.open(tmp_path / "heat.tif") as found:
        assert found.descriptions == ("red", "blue")
        red, blue = found.read()
    assert red.shape == (16, 32) and red[:, :16].min() > 0.99 and abs(red[:, 16:]).max() < 0.1
    assert blue[:, 16:].min() > 0.99
    with open_patches(patches) as opened_patches:
        assert opened_patches.card["contract"] == CONTRACT.to_dict() | {}
    with pytest.raises(CheckpointError, match=r"made by 'colours' \(colours\).*'other' \(other\).*do not compare"):
        search(str(patches), ["red"], model="other", out=str(tmp_path / "no.tif"))
    plain = embedded(raster, encoder, tmp_path / "plain.tif")
    with pytest.raises(CorpusError, match=r"no sentence can.*geomim embed .*scene.tif --model MODEL --joint"):
        search(str(plain), ["red"], out=str(tmp_path / "no.tif"))
    assert not (tmp_path / "no.tif").exists()


def test_maps_of_vectors_are_known_from_their_tags(raster, encoder, tmp_path, capsys):
    out = embedded(raster, encoder, tmp_path / "patches.tif")
    with rasterio.open(out) as found:
        assert found.tags()["GEOMIM_MAP"] == "embeddings"
    embedded(raster, encoder, tmp_path / "patches.zarr")
    capsys.readouterr()
    assert find_scenes(tmp_path) == find_scenes(str(tmp_path / "*")) == [raster]
    assert capsys.readouterr().out.count(f"note: 2 maps that geomim made are left out, such as '{out}'") == 2
    with pytest.raises(InputError, match="holds no vectors: expected a file that `geomim embed` wrote"):
        search(raster, like="1,2", out=str(tmp_path / "heat.tif"))
