import json
import shutil

import numpy as np
import pytest
import rasterio
from parts_corpus import textures, write_parts

from geomim.corpus import geotiff
from geomim.corpus.build import build
from geomim.corpus.geotiff import to_geotiff
from geomim.corpus.scenes import open_scene
from geomim.corpus.store import CATALOGUE, Corpus
from geomim.corpus.synthetic import write_scenes
from geomim.errors import InputError
from geomim.sensors import Band, Sensor


@pytest.fixture
def corpus(tmp_path):
    """Eight tiles: the first four are placed, 1 has nodata, 2 labels; 7 is a copy of 3."""
    tiles = textures(8).astype(np.uint16)
    tiles[7] = tiles[3]
    valid = np.ones((8, 32, 32), bool)
    valid[1, :10] = False
    masks = np.full((8, 32, 32), 255, np.uint8)
    masks[2, :5] = 1
    some = [[10.0, 0.0, 500000.0 + 320 * number, 0.0, -10.0, 5600000.0] for number in range(4)]
    return write_parts(
        tmp_path / "corpus",
        tiles,
        valid=valid,
        masks=masks,
        classes=("water, deep", "forest"),
        transform=some + [None] * 4,
        epsg=[32632] * 4 + [None] * 4,
        licence=["CC-BY-4.0"] * 8,
        attribution=["somebody"] * 8,
        label=["a", "b"] * 4,
    )


def test_tiles_open_as_placed_rasters(corpus, tmp_path):
    out = to_geotiff(str(corpus), str(tmp_path / "tif"))
    names = sorted(file.name for file in out.iterdir())
    assert names == sorted([f"{number:09d}.tif" for number in range(7)] + ["000000002_labels.tif"])
    opened = Corpus.open(corpus)
    with rasterio.open(out / "000000001.tif") as raster:
        np.testing.assert_array_equal(raster.read(), opened.array("image", 32).read([1])[0])
        assert raster.crs.to_epsg() == 32632 and raster.transform == rasterio.Affine(10, 0, 500320, 0, -10, 5600000)
        assert raster.descriptions == opened.sensor.names
        assert (raster.dataset_mask() > 0).sum() == 22 * 32 and not (raster.dataset_mask()[:10]).any()
        tags = raster.tags()
        assert tags["LICENCE"] == "CC-BY-4.0" and tags["TIFFTAG_COPYRIGHT"] == "somebody, CC-BY-4.0"
        assert raster.profile["compress"] == "deflate" and raster.block_shapes[0] == (32, 32)
        assert [c.name for c in raster.colorinterp] == ["red", "green", "blue"]
    with rasterio.open(out / "000000005.tif") as raster:
        assert raster.crs is None and raster.dataset_mask().all()
    with rasterio.open(out / "000000002_labels.tif") as raster:
        assert raster.nodata == 255 and (raster.read(1)[:5] == 1).all()
        assert json.loads(raster.tags()["CLASSES"]) == opened.classes == ["water, deep", "forest"]
    with open_scene(str(out / "000000001.tif")) as scene:  # and geomim itself takes them back
        assert scene.sensor.names == opened.sensor.names


def test_bands_of_several_sensors_keep_their_wavelengths(tmp_path):
    drawn = write_scenes(tmp_path / "drawn", scenes=1, size=256, bands=["B02", "B04", "B08"])
    corpus = build([str(drawn.scenes[0])], str(tmp_path / "corpus"), tile=64)
    tile = sorted(to_geotiff(str(corpus), str(tmp_path / "tif")).iterdir())[0]
    with open_scene(drawn.scenes[0]) as scene, open_scene(tile) as again:
        assert [band.wavelength for band in again.sensor.bands] == [band.wavelength for band in scene.sensor.bands]


def test_some_tiles_are_chosen_and_files_that_are_there_stay(corpus, tmp_path):
    out = to_geotiff(str(corpus), str(tmp_path / "tif"), where="label = 'b'", kept_only=False)
    assert sorted(int(file.stem) for file in out.iterdir()) == [1, 3, 5, 7]
    before = (out / "000000001.tif").stat().st_mtime_ns
    to_geotiff(str(corpus), str(out))
    assert (out / "000000001.tif").stat().st_mtime_ns == before and (out / "000000006.tif").exists()
    with pytest.raises(InputError, match="no tile of"):
        to_geotiff(str(corpus), str(tmp_path / "none"), where="label = 'c'")
    with pytest.raises(InputError, match="did you mean 'label'"):
        to_geotiff(str(corpus), str(tmp_path / "none"), where="lable = 'c'")
    assert not (tmp_path / "none").exists()


def test_files_of_another_corpus_are_not_taken_for_tiles(corpus, tmp_path):
    out = to_geotiff(str(corpus), str(tmp_path / "tif"))
    other = write_parts(tmp_path / "other", textures(2, seed=1).astype(np.uint16))
    with pytest.raises(InputError, match=r"another tile than 0 of 'other-000.tif'.*--out"):
        to_geotiff(str(other), str(out))
    (out / "000000000.tif").write_bytes(b"mine")
    with pytest.raises(InputError, match="or damaged"):
        to_geotiff(str(corpus), str(out))
    assert (out / "000000000.tif").read_bytes() == b"mine"


def test_labels_that_are_gone_do_not_stay(corpus, tmp_path):
    out = to_geotiff(str(corpus), str(tmp_path / "tif"), where="id = 2")
    shutil.rmtree(corpus / "tiles.zarr" / "32" / "mask")
    before = {file: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(InputError, match=r"2_labels\.tif' is there, and tile 2 has no labels"):
        to_geotiff(str(corpus), str(out), where="id = 2")
    assert {file: file.read_bytes() for file in out.iterdir()} == before


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"licence": "CC0", "attribution": " © me "}, r"\(LICENCE old, now CC0; ATTRIBUTION me, now © me\)"),
        ({"split": "test"}, r"\(SPLIT None, now test\)"),
        ({"transform": [20.0, 0.0, 5e5, 0.0, -20.0, 56e5]}, r"\(place, bands, valid pixels or labels\)"),
        ({"valid": np.eye(32, dtype=bool)}, r"\(place, bands, valid pixels or labels\)"),
        ({"pixels": np.full((1, 32, 32), 2, np.uint8)}, r"\(place, bands, valid pixels or labels\)"),
        ({"classes": ["a, b"]}, r"\(CLASSES \[\"a\", \"b\"\], now \[\"a, b\"\]\)"),
    ],
)
def test_files_of_a_corpus_that_was_changed_are_not_taken_for_it(tmp_path, other, words):
    def write(transform=(10.0, 0.0, 5e5, 0.0, -10.0, 56e5), valid=None, pixels=None, classes=("a", "b"), **said):
        row = dict.fromkeys(CATALOGUE.names) | {"id": 0, "xxh3": "a", "epsg": 32632, "licence": "old"}
        pixels = np.ones((1, 32, 32), np.uint8) if pixels is None else pixels
        row |= {"attribution": " me", "transform": transform} | said  # GDAL takes the blank off
        geotiff._write(tmp_path / "0.tif", pixels, None, row, None, classes)
        geotiff._write(tmp_path / "1.tif", np.ones_like(pixels), valid, row, Sensor("some", (Band("pan"),)), classes)

    write()
    write()
    before = [(tmp_path / name).read_bytes() for name in ("0.tif", "1.tif")]
    with pytest.raises(InputError, match=rf"{words}: it is of another corpus, or this one was changed since; give ano"):
        write(**other)
    assert [(tmp_path / name).read_bytes() for name in ("0.tif", "1.tif")] == before


@pytest.mark.parametrize("names", [["nir", "green", "swir1", "x"], ["blue", "green", "red", "nir"], ["nir", "red"]])
def test_no_band_is_taken_for_alpha(tmp_path, names):
    bands = tuple(Band(name) for name in names)
    pixels, valid = textures(1, bands=len(names))[0], np.ones((32, 32), bool)
    row = {name: None for name in CATALOGUE.names} | {"id": 0, "xxh3": "a"}
    for mask, share in ((None, 1.0), (valid & (np.arange(32) > 7), 0.75)):
        geotiff._write(file := tmp_path / f"{share}.tif", pixels, mask, row, Sensor("some", bands))
        with rasterio.open(file) as raster:
            assert (raster.dataset_mask() > 0).mean() == share
            colours = [name if name in ("red", "green", "blue") else "undefined" for name in names]
            colours = colours if "red" in colours else ["gray", *["undefined"] * (len(names) - 1)]
            assert [colour.name for colour in raster.colorinterp] == colours
            assert raster.tags(ns="IMAGE_STRUCTURE").get("INTERLEAVE") and raster.descriptions == tuple(names)
