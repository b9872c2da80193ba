import json
import shutil

import numpy as np
import pytest
import rasterio
from affine import Affine

from geomim.corpus.labels import draw_splits
from geomim.corpus.scenes import find_scenes, scene_name, source_files
from geomim.corpus.scenes.files import gdal_address, is_same
from geomim.corpus.scenes.maps import MADE
from geomim.errors import InputError


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [str(folder / name) for name in names]


def test_stores_and_cubes_are_one_scene_each(tmp_path):
    touch(tmp_path, "a.zarr/zarr.json", "a.zarr/red/c/0.tif", "store/.zgroup", "store/x.tif", "b.nc", "c.tif", "d.txt")
    assert find_scenes(tmp_path) == [str(tmp_path / name) for name in ("a.zarr", "b.nc", "c.tif", "store")]
    assert find_scenes(tmp_path / "a.zarr") == [str(tmp_path / "a.zarr")]


def test_a_corpus_is_no_scene(tmp_path):
    touch(tmp_path, "corpus/corpus.json", "corpus/tiles.zarr/zarr.json", "corpus/report/a.png", "a.png")
    assert find_scenes(tmp_path) == [str(tmp_path / "a.png")]


def test_folders_of_other_agencies_are_searched(tmp_path):
    (path,) = touch(tmp_path, "S1A_IW_GRDH_1SDV_20200101.SAFE/measurement/vv.tiff")
    assert find_scenes(tmp_path) == [path]


def test_single_bands_of_landsat_are_rasters(tmp_path):
    (path,) = touch(tmp_path, "LC08_L2SP_193024_20200802_20200908_02_T1_SR_B4.TIF")
    assert find_scenes(tmp_path) == [path]


def test_files_called_nearly_as_those_of_a_product_leave_their_folder_a_folder(tmp_path):
    names = ("a/IMG_DATA_7.tif", "a/b.tif", "b/MTD_MSIL2A.xml.tif", "c/zarr.json.tif", "d/MTD_MSIL2A.xml", "d/e.tif")
    images = [path for path in touch(tmp_path, *names) if path.endswith(".tif")]
    assert find_scenes(tmp_path) == images
    touch(tmp_path, "p/MTD_MSIL2A.xml", "p/GRANULE/L2A_x/IMG_DATA/x_B02.tif", "q/L1C_y/IMG_DATA/y_B02.jp2")
    found = [path.removeprefix(f"{tmp_path}/") for path in find_scenes(tmp_path)]
    assert found[len(images) :] == ["p", "q/L1C_y"]
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path)
    assert [path.partition(".zip/")[2] for path in find_scenes(packed)] == found


def test_addresses_pass_unchecked():
    for uri in ("s3://bucket/key.tif", "https://example.org/a.tif?layer=1", "/vsigs/b/k.tif", "torchgeo://x@y#1"):
        assert find_scenes(uri) == [uri]
    with pytest.raises(InputError, match="does not exist"):
        find_scenes("#time=1")


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("s3://bucket/a/b.tif", "/vsis3/bucket/a/b.tif"),
        ("gs://bucket/b.tif", "/vsigs/bucket/b.tif"),
        ("https://example.org/b.tif", "/vsicurl/https://example.org/b.tif"),
        ("file:///data/b.tif", "/data/b.tif"),
        ("/vsis3/bucket/b.tif", "/vsis3/bucket/b.tif"),
        ("folder/b.tif", "folder/b.tif"),
    ],
)
def test_addresses_are_those_of_gdal(uri, address):
    assert gdal_address(uri) == address


def test_a_scene_s_own_files_are_told(tmp_path):
    product = "LC08_L2SP_193024_20200802_20200908_02_T1"
    other = product.replace("193024", "193025")
    bands = touch(tmp_path, *(f"both/{name}_SR_B{band}.TIF" for name in (product, other) for band in (4, 5)))
    assert find_scenes(tmp_path / "both") == [str(tmp_path / "both" / name) for name in (product, other)]
    assert source_files(str(tmp_path / "both" / product)) == bands[:2]
    store = touch(tmp_path, "a.zarr/red/c/0", "a.zarr/zarr.json")
    assert source_files(str(tmp_path / "a.zarr")) == source_files(f"{tmp_path}/a.zarr#time=1") == store
    image, item = touch(tmp_path, "item/red.tif", "item/scene.json")
    assets = {
        "red": {"href": "./red.tif"},
        "gone": {"href": "./gone.tif"},
        "far": {"href": "https://example.org/a.tif"},
    }
    (tmp_path / "item" / "scene.json").write_text(
        json.dumps({"type": "Feature", "stac_version": "1.0.0", "assets": assets})
    )
    assert source_files(item) == [image, item] and source_files(image) == [image]
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "item")
    assert source_files(find_scenes(packed)[0]) == [packed]
    assert source_files("https://example.org/a.tif") == []


def test_a_scene_is_called_the_same_wherever_its_data_lie():
    sample = "torchgeo://EuroSAT/train/3?root={}&args=%7B%22split%22%3A%20%22train%22%7D&card={}&date=1"
    here, there = sample.format("%2Fdata", "eurosat"), sample.format("%2Fmoved%2Fdata", "%2Fmine%2Feurosat.yaml")
    assert scene_name(here) == scene_name(there) != scene_name(here.replace("/3?", "/4?"))
    assert scene_name(here) != scene_name(here.replace("date=1", "date=2"))
    assert scene_name("/data/a.tif") == scene_name("b/a.tif") == "a.tif"
    assert scene_name("/data/x.zarr/") == "x.zarr" and scene_name("/data/a.nc#time=1") == "a.nc#time=1"


def test_held_out_scenes_stay_held_out_when_their_data_move():
    roots = ("%2Fdata", "%2Fscratch%2Fmoved")
    drawn = [
        draw_splits([f"torchgeo://EuroSAT/all/{n}?root={root}&args=%7B%7D" for n in range(40)], 0.3) for root in roots
    ]
    assert drawn[0] == drawn[1] and drawn[0].count("test") == 12


def test_links_to_folders_are_followed_once(tmp_path):
    for name in ("data/one.tif", "disk/far/two.tif", "disk/far/deep/three.tif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    data = tmp_path / "data"
    (data / "a").symlink_to(tmp_path / "disk" / "far")
    (data / "b").symlink_to(tmp_path / "disk" / "far")  # the same again
    (tmp_path / "disk" / "far" / "up").symlink_to(data)  # and round in a circle
    assert find_scenes(data) == [str(data / name) for name in ("a/deep/three.tif", "a/two.tif", "one.tif")]
    (data / "real").mkdir()
    (data / "real" / "four.tif").touch()
    (data / "0").symlink_to(data / "real")
    assert str(data / "real" / "four.tif") in find_scenes(data)  # by its own name, not by the link's


def test_maps_are_no_scenes_unless_they_are_asked_for(tmp_path, capsys):
    profile = {"driver": "GTiff", "width": 8, "height": 8, "count": 1, "dtype": "uint8"}
    for name, tags in (("scene.tif", {}), ("map.tif", {MADE: "1"})):
        with rasterio.open(tmp_path / name, "w", **profile) as raster:
            raster.update_tags(**tags)
            raster.write(np.ones((1, 8, 8), np.uint8))
    scene, made = (str(tmp_path / name) for name in ("scene.tif", "map.tif"))
    for source in (tmp_path, str(tmp_path / "*.tif")):
        assert find_scenes(source) == [scene] and find_scenes(source, maps=True) == [made, scene]
    assert capsys.readouterr().out.count("1 map that geomim made is left out") == 2
    with pytest.raises(InputError, match=r"map\*' matches nothing but maps that geomim made: name one by itself"):
        find_scenes(str(tmp_path / "map*"))
    assert find_scenes(made) == find_scenes(str(tmp_path / "map*"), maps=True) == [made]
    with pytest.raises(InputError, match="does not exist"):
        find_scenes(str(tmp_path / "other*"))


def test_rasters_of_kinds_that_are_not_read_are_told(tmp_path, capsys):
    touch(tmp_path, "a.tif", "b.nitf", "c", "c.hdr", "d.dat", "d.hdr", "e.img", "f.zip", "sub/g.HDF")
    touch(tmp_path, "a.tfw", "a.tif.aux.xml", "a.tif.ovr", "notes.txt", "x.csv", "y.json", "z.dat", ".h.nitf", "v.gpkg")
    assert find_scenes(tmp_path) == [str(tmp_path / "a.tif")]
    said = "note: 6 files that may be rasters are left out, such as '{}': give those that are by name\n"
    assert capsys.readouterr().out == said.format(tmp_path / "b.nitf")
    packed = shutil.make_archive(str(tmp_path.parent / "packed"), "zip", tmp_path)
    assert find_scenes(packed) == [f"/vsizip/{packed}/a.tif"]
    assert capsys.readouterr().out == said.format(f"/vsizip/{packed}/b.nitf")
    find_scenes([tmp_path / "b.nitf", tmp_path / "a.tif"])
    assert not capsys.readouterr().out


def test_a_geopackage_of_several_rasters_is_told(tmp_path, capsys):
    profile = {"driver": "GPKG", "width": 8, "height": 8, "count": 3, "dtype": "uint8", "crs": "EPSG:4326"}
    for table in ("one", "two"):
        more = {"RASTER_TABLE": table, "APPEND_SUBDATASET": "YES" if table == "two" else "NO"}
        with rasterio.open(tmp_path / "a.gpkg", "w", **profile, transform=Affine(1, 0, 0, 0, -1, 8), **more) as raster:
            raster.write(np.ones((3, 8, 8), np.uint8))
    touch(tmp_path, "b.tif")
    assert find_scenes(tmp_path) == [str(tmp_path / "b.tif")]
    assert "note: 1 file that may be a raster is left out, such as" in capsys.readouterr().out


def test_what_a_scene_is_made_of_is_not_left_out(tmp_path, capsys):
    touch(tmp_path, "parts/red.nitf", "parts/blue.nitf", "parts/a.tif")
    assets = {
        "red": {"href": "parts/red.nitf"},
        "image": {"href": f"file://{tmp_path}/parts/a.tif"},
    }
    item = {"type": "Feature", "stac_version": "1.0.0", "assets": assets}
    (tmp_path / "scene.json").write_text(json.dumps(item))
    source = '<VRTDataset><SourceFilename relativeToVRT="1">parts/blue.nitf</SourceFilename></VRTDataset>'
    (tmp_path / "blue.vrt").write_text(source)
    assert find_scenes(tmp_path) == [str(tmp_path / name) for name in ("blue.vrt", "scene.json")]
    assert not capsys.readouterr().out


def test_a_corpus_is_left_out_aloud_and_a_file_of_its_name_is_none(tmp_path, capsys):
    touch(
        tmp_path, "c/corpus.json", "c/tiles.zarr/zarr.json", "c/report/a.png", "begun/work/recipe.json", "begun/a.png"
    )
    (path,) = touch(tmp_path, "words/a.png")
    (tmp_path / "words" / "corpus.json").write_text('{"texts": []}')
    assert find_scenes(tmp_path) == [path]
    assert capsys.readouterr().out == f"note: 2 corpora are left out, such as '{tmp_path / 'begun'}'\n"


def test_paths_lead_to_one_file_also_by_links(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    monkeypatch.chdir(tmp_path)
    for there in (False, True):
        for other in ("folder/../folder/a.tif", "link/a.tif", tmp_path / "folder" / "a.tif"):
            assert is_same("folder/a.tif", other)
        assert not is_same("folder/a.tif", "a.tif") and not is_same("folder/a.tif", "s3://bucket/folder/a.tif")
        if not there:
            (tmp_path / "folder" / "a.tif").write_text("")
