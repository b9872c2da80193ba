import json
import shutil
import tarfile
import zipfile
from datetime import datetime

import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS
from rasterio.transform import from_origin
from rasterio.windows import Window

from geomim.corpus.scenes import find_scenes, open_scene
from geomim.errors import BandError, InputError
from geomim.sensors import get_sensor

EDGE = 600  # metres: 60 pixels of 10 m
L2A = "S2B_MSIL2A_20230405T102559_N0509_R108_T32UNU_20230405T134213.SAFE"
L1C = "S2A_MSIL1C_20190102T105431_N0207_R051_T31UDQ_20190102T124523.SAFE"
LANDSAT = "LC08_L2SP_193024_20200802_20200908_02_T1"


def band(path, metres, seed, dtype="uint16", pixels=None, edge=EDGE, **profile):
    path.parent.mkdir(parents=True, exist_ok=True)
    size = edge // metres
    if pixels is None:
        pixels = np.random.default_rng(seed).integers(1100, 9000, (1, size, size)).astype(dtype)
    profile = {"driver": "GTiff", "crs": "EPSG:32632", "transform": from_origin(5e5, 54e5, metres, metres)} | profile
    shape = dict(zip(("count", "height", "width"), pixels.shape, strict=True))
    with rasterio.open(path, "w", dtype=pixels.dtype.name, **shape, **profile) as file:
        file.write(pixels)
    return pixels


def metadata(level, offset):
    names = (
        ("BOA_QUANTIFICATION_VALUE", "BOA_ADD_OFFSET") if level == 2 else ("QUANTIFICATION_VALUE", "RADIO_ADD_OFFSET")
    )
    offsets = "".join(f'<{names[1]} band_id="{place}">{offset}</{names[1]}>' for place in range(13) if offset)
    return (
        f'<n1:Product xmlns:n1="https://psd"><Product_Info><PRODUCT_START_TIME>2023-04-05T10:25:59.024Z'
        f"</PRODUCT_START_TIME></Product_Info><{names[0]} unit='none'>10000</{names[0]}>{offsets}</n1:Product>"
    )


@pytest.fixture
def level2(tmp_path):
    """A Sentinel-2 L2A folder; its pixels by band and metres."""
    root = tmp_path / "l2a" / L2A
    images = root / "GRANULE" / "L2A_T32UNU_A031780_20230405T102954" / "IMG_DATA"
    held = {}
    for metres, names in {
        10: ("B02", "B03", "B04", "B08"),
        20: ("B02", "B05", "B8A", "B11"),
        60: ("B01", "B09"),
    }.items():
        for place, name in enumerate(names):
            path = images / f"R{metres}m" / f"T32UNU_20230405T102559_{name}_{metres}m.tif"
            held[name, metres] = band(path, metres, 100 * metres + place)
    classes = np.zeros((1, 30, 30), np.uint8)
    classes[0, :10] = 9
    classes[0, 10:12, :15] = 3
    classes[0, 20:] = 4
    band(images / "R20m" / "T32UNU_20230405T102559_SCL_20m.tif", 20, 0, pixels=classes)
    (root / "MTD_MSIL2A.xml").write_text(metadata(2, -1000))
    return root, held, classes


def test_sentinel2_bands_of_one_grid_are_one_scene(level2):
    root, held, classes = level2
    with open_scene(root, bands=["B04", "B03", "B02", "B08"]) as scene:
        pixels, valid = scene.read_valid()
        assert np.array_equal(pixels, np.concatenate([held[name, 10] for name in ("B04", "B03", "B02", "B08")]))
        assert valid.all() and scene.dtype == np.uint16 and scene.nodata == 0
        assert scene.sensor.name == "sentinel2_l2a" and scene.sensor.names == ("B04", "B03", "B02", "B08")
        assert (scene.sensor.scale, scene.sensor.offset) == (1e-4, -0.1)  # from baseline 04.00 on
        assert scene.time == datetime(2023, 4, 5, 10, 25, 59) and "Copernicus" in scene.licence
        assert scene.crs == CRS.from_epsg(32632) and scene.gsd == pytest.approx(10, rel=1e-3)
        cloudy = np.kron(np.isin(classes[0], (3, 8, 9, 10)), np.ones((2, 2), bool))
        assert np.array_equal(scene.clouds(), cloudy)
        window = Window(3, 15, 21, 12)
        assert np.array_equal(scene.clouds(window), cloudy[15:27, 3:24])
        assert np.array_equal(scene.read(window), pixels[:, 15:27, 3:24])
        assert scene.footprint().is_valid


def test_without_metadata_the_name_tells_the_baseline(level2):
    root, _, _ = level2
    (root / "MTD_MSIL2A.xml").unlink()
    older = root.rename(root.parent / root.name.replace("N0509", "N0301"))
    with open_scene(older, bands=["B04"]) as scene:
        assert scene.sensor.offset == 0 and scene.time == datetime(2023, 4, 5, 10, 25, 59)
    with open_scene(older.rename(root), bands=["B04"]) as scene:
        assert scene.sensor.offset == -0.1 and scene.sensor.name == "sentinel2_l2a"


def test_bands_of_several_grids_are_refused_with_both_flags(level2):
    with pytest.raises(InputError) as refusal:
        open_scene(level2[0])
    sentence = str(refusal.value)
    assert "B02, B03, B04, B08 at 10 m" in sentence and "B05, B8A, B11 at 20 m" in sentence
    assert "--bands" in sentence and "--resolution METRES" in sentence and "\n" not in sentence


def test_a_resolution_takes_the_provider_s_file_or_resamples(level2):
    root, held, _ = level2
    with open_scene(root, bands=["B02", "B05"], resolution=20) as scene:
        assert np.array_equal(scene.read(), np.concatenate([held["B02", 20], held["B05", 20]]))
    with open_scene(root, bands=["B02", "B11", "B01"], resolution=10) as scene:
        pixels, valid = scene.read_valid()
        assert pixels.shape == (3, 60, 60) and valid.all()
        assert np.array_equal(pixels[0], held["B02", 10][0])
        for place, name, metres in ((1, "B11", 20), (2, "B01", 60)):
            assert pixels[place].mean() == pytest.approx(held[name, metres].mean(), rel=0.02)
            assert pixels[place].std() < held[name, metres].std()  # bilinear
        window = Window(7, 30, 40, 23)
        assert np.array_equal(scene.read(window), pixels[:, 30:53, 7:47])  # whatever the window
    with open_scene(root, bands=["B02", "B08"], resolution=60) as scene:
        assert scene.read().shape == (2, 10, 10) and scene.gsd == pytest.approx(60, rel=1e-3)
    with pytest.raises(InputError, match="above 0 metres"):
        open_scene(root, resolution=-1)


def test_a_sensor_chooses_bands_and_the_product_says_what_numbers_mean(level2):
    with open_scene(level2[0], get_sensor("sentinel2", ["B08", "B04"])) as scene:
        assert scene.sensor.name == "sentinel2" and scene.sensor.names == ("B08", "B04")
        assert scene.sensor.offset == -0.1
    with pytest.raises(BandError, match="asks for B10: choose"):
        open_scene(level2[0], bands=["B04", "B10"])
    with pytest.raises(BandError, match="asks for purple: choose"):
        open_scene(level2[0], bands=["red", "green", "blue", "purple"])
    with open_scene(level2[0], bands=["red", "-", "nir"]) as scene:
        assert scene.sensor.names == ("B04", "B08")


def test_level1_without_offset_and_with_cloud_bands(tmp_path):
    root = tmp_path / L1C
    granule = root / "GRANULE" / "L1C_T31UDQ_A018443_20190102T105525"
    metres = {"B02": 10, "B03": 10, "B04": 10, "B08": 10, "B10": 60}
    for place, (name, size) in enumerate(metres.items()):
        held = band(
            granule / "IMG_DATA" / f"T31UDQ_20190102T105431_{name}.jp2", size, place, driver="JP2OpenJPEG",
            QUALITY="100", REVERSIBLE="YES",
        )  # fmt: skip
        if name == "B04":
            red = held
    clouds = np.zeros((3, 10, 10), np.uint8)
    clouds[0, :2], clouds[1, :, 0], clouds[2, 5:] = 1, 1, 1  # opaque, cirrus, snow
    band(granule / "QI_DATA" / "MSK_CLASSI_B00.jp2", 60, 0, pixels=clouds, driver="JP2OpenJPEG", QUALITY="100",
         REVERSIBLE="YES")  # fmt: skip
    with open_scene(root, bands=["B04", "B08"]) as scene:
        assert np.array_equal(scene.read()[0], red[0])
        assert scene.sensor.name == "sentinel2" and scene.sensor.offset == 0
        assert scene.time == datetime(2019, 1, 2, 10, 54, 31)  # from the name
        assert scene.clouds().mean() == pytest.approx(1 - 0.8 * 0.9)
    (root / "MTD_MSIL1C.xml").write_text(metadata(1, 0).replace("10000", "5000"))
    with open_scene(root, bands=["B04"]) as scene:
        assert (scene.sensor.scale, scene.sensor.offset) == (2e-4, 0)
    (root / "MTD_MSIL1C.xml").write_text("<broken")
    with pytest.raises(InputError, match=r"MTD_MSIL1C\.xml' is no metadata"):
        open_scene(root)
    shutil.copytree(granule, granule.parent / "another")
    with pytest.raises(InputError, match="2 granules"):
        open_scene(root)


def landsat(folder, product, prefix="SR_", thermal=True, pan=False):
    held = {number: band(folder / f"{product}_{prefix}B{number}.TIF", 30, number) for number in (1, 2, 3, 4, 5, 6, 7)}
    if thermal:
        band(folder / f"{product}_ST_B10.TIF", 30, 10)
    if pan:
        band(folder / f"{product}_B8.TIF", 15, 8)
    quality = np.full((1, 20, 20), 21824, np.uint16)  # clear
    quality[0, 0], quality[0, 1], quality[0, 2], quality[0, 3] = 22280, 23888, 55052, 1  # cloud, shadow, cirrus, fill
    band(folder / f"{product}_QA_PIXEL.TIF", 30, 0, pixels=quality)
    return held


MTL = """GROUP = LANDSAT_METADATA_FILE
  GROUP = IMAGE_ATTRIBUTES
    DATE_ACQUIRED = 2020-08-02
    SCENE_CENTER_TIME = "10:09:24.2354390Z"
  END_GROUP = IMAGE_ATTRIBUTES
  GROUP = LEVEL2_SURFACE_REFLECTANCE_PARAMETERS
{level2}
  END_GROUP = LEVEL2_SURFACE_REFLECTANCE_PARAMETERS
  GROUP = LEVEL1_RADIOMETRIC_RESCALING
{level1}
  END_GROUP = LEVEL1_RADIOMETRIC_RESCALING
END_GROUP = LANDSAT_METADATA_FILE
END
"""


def rescaling(scale, offset):
    lines = [
        f"    REFLECTANCE_{what}_BAND_{n} = {value}"
        for n in range(1, 8)
        for what, value in (("MULT", scale), ("ADD", offset))
    ]
    return "\n".join(lines)


def test_landsat_level2_folder_is_one_scene(tmp_path):
    held = landsat(tmp_path, LANDSAT)
    (tmp_path / f"{LANDSAT}_MTL.txt").write_text(
        MTL.format(level2=rescaling(2.75e-05, -0.2), level1=rescaling(2e-05, -0.1))
    )
    with open_scene(tmp_path) as scene:
        assert scene.sensor == get_sensor("landsat8")
        assert np.array_equal(scene.read(), np.concatenate(list(held.values())))
        assert scene.time == datetime(2020, 8, 2, 10, 9, 24) and "USGS" in scene.licence
        cloudy = scene.clouds()
        assert cloudy[:3].all() and not cloudy[3:].any()
    with open_scene(tmp_path, bands=["red", "nir"]) as scene:
        assert scene.sensor.names == ("B4", "B5")
    (tmp_path / f"{LANDSAT}_MTL.txt").unlink()
    groups = {"LEVEL2_SURFACE": {"REFLECTANCE_MULT_BAND_4": "3e-05", "REFLECTANCE_ADD_BAND_4": "-0.3"},
              "IMAGE_ATTRIBUTES": {"DATE_ACQUIRED": "2020-08-01"}}  # fmt: skip
    (tmp_path / f"{LANDSAT}_MTL.json").write_text(json.dumps({"LANDSAT_METADATA_FILE": groups}))
    with open_scene(tmp_path, bands=["B4"]) as scene:
        assert (scene.sensor.scale, scene.sensor.offset) == (3e-5, -0.3)
        assert scene.time == datetime(2020, 8, 1)


def test_landsat_level1_and_older_instruments(tmp_path):
    eight = LANDSAT.replace("L2SP", "L1TP")
    landsat(tmp_path / "8", eight, "", thermal=False, pan=True)
    with open_scene(tmp_path / "8") as scene:
        assert scene.sensor.unit == "digital number" and (scene.sensor.scale, scene.sensor.offset) == (1, 0)
        assert scene.time == datetime(2020, 8, 2) and len(scene.sensor.bands) == 7
    (tmp_path / "8" / f"{eight}_MTL.txt").write_text(MTL.format(level2="", level1=rescaling(2e-05, -0.1)))
    with open_scene(tmp_path / "8", bands=["pan", "B4"], resolution=15) as scene:
        assert scene.read().shape == (2, 40, 40) and scene.sensor.offset == -0.1
    with pytest.raises(InputError, match="B8 at 15 m; B4 at 30 m"):
        open_scene(tmp_path / "8", bands=["B8", "B4"])
    for number, name in (("LE07", "landsat7"), ("LT05", "landsat5"), ("LC09", "landsat9")):
        landsat(tmp_path / name, LANDSAT.replace("LC08", number))
        with open_scene(tmp_path / name) as scene:
            assert scene.sensor.name == name and (scene.sensor.scale, scene.sensor.offset) == (2.75e-5, -0.2)
    landsat(tmp_path / "1", LANDSAT.replace("LC08", "LM01"))
    with pytest.raises(InputError, match="Landsat 1; known are"):
        open_scene(tmp_path / "1")


def test_products_are_found_as_one_scene_each(level2, tmp_path):
    one, two = LANDSAT, LANDSAT.replace("20200802", "20200818")
    landsat(tmp_path / "one", one)
    for product in (one, two):
        landsat(tmp_path / "both", product)
    (tmp_path / "both" / "other.tif").touch()
    found = [
        *(str(tmp_path / "both" / product) for product in (one, two)),
        str(tmp_path / "both" / "other.tif"),
        str(level2[0]),
        str(tmp_path / "one"),
    ]
    assert find_scenes(tmp_path) == sorted(found)
    assert find_scenes(tmp_path / "one") == [str(tmp_path / "one")]
    assert find_scenes(level2[0]) == [str(level2[0])]
    with open_scene(found[1]) as scene:
        assert scene.time == datetime(2020, 8, 18)
    with pytest.raises(InputError, match="2 scenes"):
        open_scene(tmp_path / "both")


def test_warping_a_product(level2):
    with open_scene(level2[0], bands=["B04", "B08"], warp="EPSG:3035", resolution=20) as scene:
        pixels, valid = scene.read_valid()
        assert scene.crs == CRS.from_epsg(3035) and 0.5 < valid.mean() < 1
        assert (pixels[:, ~valid] == 0).all() and scene.clouds().shape == valid.shape
        assert not scene.clouds()[~valid].any()


def test_archives_are_searched_and_opened(level2, tmp_path):
    folder = tmp_path / "packed"
    landsat(folder / "landsat", LANDSAT)
    band(folder / "plain.tif", 10, 0)
    shutil.copytree(level2[0], folder / L2A)
    packed = shutil.make_archive(str(tmp_path / "scenes"), "zip", folder)
    found = find_scenes(packed)
    assert found == [f"/vsizip/{packed}/{name}" for name in (L2A, "landsat", "plain.tif")]
    for uri, bands in zip(found, (["B04", "B08"], ["B4"], ["gray"]), strict=True):
        with open_scene(uri, bands=bands) as scene:
            assert scene.read().min() > 0
    tarred = shutil.make_archive(str(tmp_path / "scenes"), "tar", folder)
    assert find_scenes([tarred]) == [uri.replace("vsizip", "vsitar").replace(packed, tarred) for uri in found]
    with open_scene(find_scenes(tarred)[1]) as scene:
        assert len(scene.sensor.bands) == 7 and scene.clouds().any()


def test_an_archive_that_is_a_product_itself_is_one_scene(level2, tmp_path):
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", level2[0])
    assert find_scenes(packed) == [f"/vsizip/{packed}"]
    with open_scene(f"/vsizip/{packed}", bands=["B04"]) as scene, open_scene(level2[0], bands=["B04"]) as own:
        assert np.array_equal(scene.read(), own.read()) and scene.sensor == own.sensor


@pytest.mark.parametrize("name", ["/etc/scene.tif", "../scene.tif", "a/../../scene.tif", "C:/scene.tif"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archives_that_lead_out_of_themselves_are_refused(tmp_path, name, kind):
    band(tmp_path / "a.tif", 10, 0)
    path = tmp_path / f"bad.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("good.tif", b"")
            file.writestr(name, b"")
    else:
        with tarfile.open(path, "w") as file:
            member = file.gettarinfo(tmp_path / "a.tif")
            member.name = name
            file.addfile(member)
    with pytest.raises(InputError, match="leads out of it"):
        find_scenes(path)


def test_broken_archives_are_refused(tmp_path):
    (tmp_path / "broken.zip").write_bytes(b"PK nothing")
    with pytest.raises(InputError, match=r"broken\.zip' cannot be opened as an archive"):
        find_scenes(tmp_path / "broken.zip")
