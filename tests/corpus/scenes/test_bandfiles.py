import zipfile
from datetime import datetime

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from geomim.corpus.build import build
from geomim.corpus.scenes import find_scenes, open_scene, scene_name, source_files
from geomim.corpus.store import Corpus
from geomim.corpus.verify import rebuild, verify
from geomim.errors import BandError, InputError
from geomim.sensors import get_sensor

S2_NAME = "T32UPU_20210601T101031"
ESPA = "LC08_L1TP_193024_20200802_20200908_01_T1"
HLS = "HLS.L30.T10SEG.2021032T184559.v2.0"


def bands(folder, *names, size=64, count=1, dtype=np.uint16, west=5e5, **profile):
    """A file of noise for each name; the pixels of each."""
    folder.mkdir(parents=True, exist_ok=True)
    held = {}
    for seed, name in enumerate(names):
        held[name] = np.random.default_rng(seed).integers(300, 3000, (count, size, size)).astype(dtype)
        place = {"crs": "EPSG:32632", "transform": from_origin(west, 54e5, 10, 10)} | profile
        with rasterio.open(
            folder / name, "w", driver="GTiff", count=count, height=size, width=size, dtype=held[name].dtype, **place
        ) as file:
            file.write(held[name])
    return held


@pytest.mark.parametrize(
    ("folder", "names", "beside", "address", "sensor", "codes", "time"),
    [
        ("R10m", [f"{S2_NAME}_{b}_10m.tif" for b in ("B02", "B03", "B08")], [f"{S2_NAME}_TCI_10m.tif"],
         f"R10m/{S2_NAME}", "sentinel2_l2a", ("B02", "B03", "B08"), datetime(2021, 6, 1, 10, 10, 31)),
        ("S2B_20210704_T33UVP", ["B02.tif", "B04.tif", "B8A.tif"], ["SCL.tif"],
         "S2B_20210704_T33UVP", "sentinel2", ("B02", "B04", "B8A"), datetime(2021, 7, 4)),
        ("S2B_33UVP_20210704_0_L2A", ["green.tif", "nir08.tif", "swir16.tif"], ["thumbnail.jpg"],
         "S2B_33UVP_20210704_0_L2A", "sentinel2_l2a", ("B03", "B8A", "B11"), datetime(2021, 7, 4)),
        ("hls", [f"{HLS}.{b}.tif" for b in ("B02", "B04", "B10")], [f"{HLS}.Fmask.tif", f"{HLS}.SAA.tif"],
         "hls", "hls_l30", ("B2", "B4"), datetime(2021, 2, 1)),
        ("espa", [f"{ESPA}_sr_band{n}.tif" for n in (2, 4)], [f"{ESPA}_pixel_qa.tif", f"{ESPA}_solar_zenith_band4.tif"],
         "espa", "landsat8", ("B2", "B4"), datetime(2020, 8, 2)),
        ("old", ["LC80140312018006LGN00_B2.TIF", "LC80140312018006LGN00_B3.TIF"], ["LC80140312018006LGN00_BQA.TIF"],
         "old", "landsat8", ("B2", "B3"), datetime(2018, 1, 6)),
        ("planet", [f"20210601_scene_{b}.tif" for b in ("blue", "green", "nir", "red")], ["20210601_scene_udm2.tif"],
         "planet/20210601_scene", "custom", ("blue", "green", "nir", "red"), datetime(2021, 6, 1)),
        ("radar", ["S1A_20210101_VH.tif", "S1A_20210101_VV.tif"], [],
         "radar/S1A_20210101", "custom", ("vh", "vv"), datetime(2021, 1, 1)),
        ("middle", ["S2A_B03_20210101.tif", "S2A_B04_20210101.tif"], [],
         "middle/S2A_20210101", "sentinel2", ("B03", "B04"), datetime(2021, 1, 1)),
    ],
)  # fmt: skip
def test_files_that_differ_by_a_band_are_one_scene(tmp_path, folder, names, beside, address, sensor, codes, time):
    held = bands(tmp_path / folder, *names)
    bands(tmp_path / folder, *beside, dtype=np.uint8)
    (uri,) = find_scenes(tmp_path)
    assert uri == str(tmp_path / address) == find_scenes(uri)[0]
    assert find_scenes([str(tmp_path / folder / name) for name in (*names, *beside)]) == [uri]  # one by one
    assert source_files(uri) == sorted(str(tmp_path / folder / name) for name in (*names, *beside))
    with open_scene(uri) as scene:
        assert (scene.sensor.name, scene.sensor.names, scene.time) == (sensor, codes, time)
        pixels = np.concatenate([held[name] for name in names])
        assert np.array_equal(scene.read(), pixels[: len(codes)])


def test_what_the_names_tell_of_numbers_counts(tmp_path):
    bands(tmp_path / ESPA, *(f"{ESPA}_sr_band{n}.tif" for n in (2, 4)))
    bands(tmp_path / "gee", *(f"LC08_193024_20200802.SR_B{n}.tif" for n in (2, 4)))
    bands(tmp_path / "raw", *(f"LC08_193024_20200802_B{n}.tif" for n in (2, 4)))
    bands(tmp_path / "S2B_MSIL2A_20230405T102559_N0509_R108_T32UNU_20230405T134213", "B02.tif", "B03.tif")
    found = {}
    for uri in find_scenes(tmp_path):
        with open_scene(uri) as scene:
            found[scene_name(uri)[:4]] = scene.sensor.scale, scene.sensor.offset, scene.sensor.unit
    assert found == {
        "LC08": (1e-4, 0, "reflectance"),
        "gee": (2.75e-5, -0.2, "reflectance"),
        "raw": (1, 0, "digital number"),
        "S2B_": (1e-4, -0.1, "reflectance"),
    }


def test_metadata_beside_bands_of_sentinel2_say_what_their_numbers_are(tmp_path):
    stack, late = "T32UPU_20230601T101031", "T32UPU_20230611T101031"
    names = [f"{day}_{band}.tif" for day in (stack, late) for band in ("B02", "B03")]
    bands(tmp_path, *names)
    bands(tmp_path, "other.tif", count=2)
    bands(tmp_path / "plain", "B02.tif", "B03.tif")
    bands(tmp_path / "float", *(f"{stack}_{band}.tif" for band in ("B02", "B03")), dtype=np.float32)
    offsets = "".join(f'<BOA_ADD_OFFSET band_id="{n}">-1000</BOA_ADD_OFFSET>' for n in range(13))
    time = "<PRODUCT_START_TIME>2023-06-01T10:10:31.024Z</PRODUCT_START_TIME>"
    for folder in (tmp_path, tmp_path / "plain", tmp_path / "float"):
        (folder / "MTD_MSIL2A.xml").write_text(f"<Product>{time}{offsets}</Product>")
    found = dict.fromkeys(find_scenes(tmp_path))
    assert [scene_name(uri) for uri in found] == [stack, late, stack, "other.tif", "plain"]  # nothing is left out
    for uri in found:
        with open_scene(uri, get_sensor("sentinel2", ["B02", "B03"])) as scene:
            found[uri] = scene.sensor.offset, bool(scene.notes), scene.time and scene.time.day
    assert list(found.values()) == [
        (-0.1, False, 1),
        (0.0, True, 11),  # of another day than the metadata
        (0.0, True, 1),  # not as the agency writes numbers
        (0.0, False, None),
        (-0.1, False, 1),
    ]
    assert str(tmp_path / "plain" / "MTD_MSIL2A.xml") in source_files(str(tmp_path / "plain"))
    with open_scene(tmp_path / stack, harmonise=True) as scene:
        assert scene.taken_off == 1000


def test_several_scenes_of_one_folder_and_other_rasters_stay_apart(tmp_path):
    bands(tmp_path, *(f"{day}_{b}.tif" for day in ("20210101", "20210111") for b in ("red", "nir")), "dem.tif")
    bands(tmp_path, "stack.tif", count=2)
    assert [scene_name(uri) for uri in find_scenes(tmp_path)] == ["20210101", "20210111", "dem.tif", "stack.tif"]
    assert len(source_files(str(tmp_path / "20210111"))) == 2


def test_rasters_of_several_bands_and_pictures_are_no_bands(tmp_path):
    bands(tmp_path, "b1.tif", "b2.tif", count=3, photometric="RGB")
    for name in ("house_red.jpg", "house_blue.jpg"):
        (tmp_path / name).touch()
    assert len(find_scenes(tmp_path)) == 4


def test_one_band_alone_is_named_by_its_file(tmp_path):
    bands(tmp_path, f"{S2_NAME}_B04.tif", "x_B04.tif", "y_red.tif", "dem.tif")
    with open_scene(tmp_path / f"{S2_NAME}_B04.tif") as scene:
        assert (scene.sensor.name, scene.sensor.names) == ("sentinel2", ("B04",))
    with open_scene(tmp_path / "y_red.tif") as scene:
        assert scene.sensor.names == ("red",)
    with pytest.raises(BandError, match="names its bands B04, as several sensors do: say which with --sensor"):
        open_scene(tmp_path / "x_B04.tif")
    with open_scene(tmp_path / "x_B04.tif", get_sensor("landsat8")) as scene:
        assert scene.sensor.names == ("B4",)
    with open_scene(tmp_path / "x_B04.tif", bands=["gray"]) as scene:  # the user's word
        assert scene.sensor.names == ("gray",)
    with open_scene(tmp_path / "dem.tif") as scene:
        assert scene.sensor.names == ("gray",)


def test_several_resolutions_of_a_band_are_refused_with_both_flags(tmp_path):
    bands(tmp_path, f"{S2_NAME}_B02_10m.tif", f"{S2_NAME}_B03_10m.tif")
    bands(
        tmp_path, f"{S2_NAME}_B02_20m.tif", f"{S2_NAME}_B05_20m.tif", size=32, transform=from_origin(5e5, 54e5, 20, 20)
    )
    (uri,) = find_scenes(tmp_path)
    with pytest.raises(InputError, match=r"B02, B03 at 10 m; B05 at 20 m.*--bands.*--resolution METRES"):
        open_scene(uri)
    with open_scene(uri, bands=["B02", "B03"]) as scene:
        assert scene.read().shape == (2, 64, 64)
    with open_scene(uri, resolution=20) as scene:
        assert scene.sensor.names == ("B02", "B03", "B05") and scene.read().shape == (3, 32, 32)


def test_bands_in_degrees_are_brought_together_with_the_flags_of_the_refusal(tmp_path):
    for size, name in ((64, "S2A_B02.tif"), (32, "S2A_B05.tif")):
        step = 0.0064 / size
        bands(tmp_path, name, size=size, crs="EPSG:4326", transform=from_origin(9, 48, step, step))
    with pytest.raises(InputError, match=r"on 2 grids: .* with --warp auto --resolution METRES"):
        open_scene(find_scenes(tmp_path)[0])
    with open_scene(find_scenes(tmp_path)[0], resolution=10, warp="auto") as scene:
        assert scene.sensor.names == ("B02", "B05") and scene.valid().any()


def test_what_is_not_certain_is_refused_by_name(tmp_path):
    bands(tmp_path / "twice", "S2A_B02.tif", "S2A_B02.tiff", "S2A_B03.tif")
    with pytest.raises(InputError, match="holds B02 twice"):
        open_scene(tmp_path / "twice" / "S2A")
    held = bands(tmp_path / "some", *(f"{S2_NAME}_B0{n}.tif" for n in (2, 3, 4)))
    with pytest.raises(InputError, match=r"2 of the 3 files of one scene are given: give the scene.*--bands B02,B03"):
        find_scenes([str(tmp_path / "some" / name) for name in list(held)[:2]])
    (tmp_path / "some" / S2_NAME).mkdir()
    with pytest.raises(InputError, match=f"{S2_NAME}' is there, and would be the name of the scene"):
        find_scenes(tmp_path / "some")
    bands(tmp_path / "wide", "S2A_B02.tif", "S2A_B03.tif")
    bands(tmp_path / "wide", "S2A_B04.tif", count=3)
    with pytest.raises(InputError, match=r"B04\.tif' holds 3 bands"):
        open_scene(tmp_path / "wide" / "S2A")


def test_a_granule_of_an_old_product_is_a_scene(tmp_path):
    root = tmp_path / "S2A_OPER_PRD_MSIL1C_PDMC_20160103T154021_R022_V20151230T101030_20151230T101030.SAFE"
    for tile in ("T32TQM", "T32TQN"):
        granule = f"S2A_OPER_MSI_L1C_TL_EPA__20160103T154021_A001234_{tile}"
        folder = root / "GRANULE" / f"{granule}_N02.01" / "IMG_DATA"
        held = bands(folder, *(f"{granule}_{band}.tif" for band in ("B02", "B03", "B04", "B08")))
    with pytest.raises(InputError, match=r"2 granules, a scene each: give them, such as '.*T32TQM_N02.01'") as refusal:
        open_scene(root)
    told = str(refusal.value).rpartition("such as '")[2].rstrip("'").replace("TQM", "TQN")
    assert find_scenes(told) == [told]
    with open_scene(told) as scene:
        assert scene.sensor.names == ("B02", "B03", "B04", "B08") and scene.sensor.name == "sentinel2"
        assert np.array_equal(scene.read(), np.concatenate(list(held.values())))


def test_a_granule_inside_a_product_has_its_offset(tmp_path):
    root = tmp_path / "S2B_MSIL2A_20230405T102559_N0509_R108_T32UNU_20230405T134213.SAFE"
    granule = root / "GRANULE" / "L2A_T32UNU_A031780_20230405T102954"
    bands(granule / "IMG_DATA" / "R10m", *(f"T32UNU_20230405T102559_{band}_10m.tif" for band in ("B02", "B03")))
    for uri in (root, granule):
        with open_scene(find_scenes(uri)[0]) as scene:
            assert (scene.sensor.name, scene.sensor.offset) == ("sentinel2_l2a", -0.1)


def test_a_scene_in_an_archive(tmp_path):
    held = bands(tmp_path / "in", f"{S2_NAME}_B02.tif", f"{S2_NAME}_B03.tif")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for name in held:
            packed.write(tmp_path / "in" / name, f"x/{name}")
    (uri,) = find_scenes(tmp_path / "a.zip")
    assert uri.endswith(f"a.zip/x/{S2_NAME}") and source_files(uri) == [str(tmp_path / "a.zip")]
    with open_scene(uri) as scene:
        assert np.array_equal(scene.read(), np.concatenate(list(held.values())))


def test_a_corpus_of_them_is_verified_and_rebuilt(tmp_path):
    for place, day in enumerate(("20210601", "20210611")):
        bands(tmp_path / "s" / f"S2B_{day}", "B02.tif", "B03.tif", west=5e5 + 1e4 * place)
    out = build([str(tmp_path / "s")], str(tmp_path / "c"), tile=32, workers=1)
    assert Corpus.open(out).sensor.names == ("B02", "B03") and len(Corpus.open(out).table()) == 8
    verify(str(out), sources=True)
    rebuild(str(out / "corpus.lock"), str(tmp_path / "again"))
    changed = tmp_path / "s" / "S2B_20210611" / "B03.tif"
    changed.write_bytes(changed.read_bytes() + b" ")
    with pytest.raises(Exception, match="S2B_20210611"):
        verify(str(out), sources=True)


def test_a_hash_in_a_name_is_part_of_it(tmp_path):
    for name in ("s/a.tif", "s/a#1.tif"):
        bands(tmp_path / "s", name.rpartition("/")[2], count=3, dtype=np.uint8, photometric="RGB")
    for value, name in enumerate(("a.tif", "a#1.tif")):
        bands(tmp_path / "m", name)
        with rasterio.open(tmp_path / "m" / name, "w", driver="GTiff", count=1, height=64, width=64, dtype="uint8",
                           crs="EPSG:32632", transform=from_origin(5e5, 54e5, 10, 10)) as file:  # fmt: skip
            file.write(np.full((1, 64, 64), value, np.uint8))
    path = str(tmp_path / "s" / "a#1.tif")
    assert find_scenes(path) == [path] and path in find_scenes(f"{tmp_path}/s/*.tif") and source_files(path) == [path]
    for name, cloudy in (("a.tif", 0), ("a#1.tif", 1)):
        with open_scene(tmp_path / "s" / name, clouds=f"{tmp_path / 'm'}:binary") as scene:
            assert scene.clouds().mean() == cloudy


def test_linked_folders_are_searched_once(tmp_path):
    bands(tmp_path / "disk" / "far", "one.tif")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "far").symlink_to(tmp_path / "disk" / "far")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    assert find_scenes(tmp_path / "data") == [str(tmp_path / "data" / "far" / "one.tif")]


def test_rasters_of_rarer_formats_are_found_and_other_files_of_their_name_are_not(tmp_path):
    for name, driver in (("a.img", "HFA"), ("b.dat", "ENVI"), ("c.bmp", "BMP")):
        with rasterio.open(tmp_path / name, "w", driver=driver, count=3, height=32, width=32, dtype="uint8") as file:
            file.write(np.full((3, 32, 32), 7, np.uint8))
    (tmp_path / "log.dat").write_text("no raster")
    assert [scene_name(uri) for uri in find_scenes(tmp_path)] == ["a.img", "b.dat", "c.bmp"]
