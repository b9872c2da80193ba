"""One rule for every reader: what a file declares counts in any band, what is merely usual in all bands."""

import json

import numpy as np
import pytest
import rasterio
import xarray
from rasterio.transform import from_origin

from geomim.corpus.scenes import open_scene
from geomim.corpus.scenes.arrays import array_scene
from geomim.corpus.scenes.validity import Nodata, measured
from geomim.errors import InputError
from geomim.sensors import Sensor, get_sensor

BANDS = ("red", "green", "blue")
PLACE = {"crs": "EPSG:32632", "transform": from_origin(5e5, 54e5, 10, 10)}


@pytest.fixture
def pixels():
    """Row 0 misses one band, row 1 all bands; the rest is measured."""
    numbers = np.random.default_rng(0).integers(5, 200, (3, 20, 30)).astype(np.int16)
    numbers[1, 0], numbers[:, 1] = 0, 0
    return numbers


def tif(path, numbers, nodata, **profile):
    shape = dict(zip(("count", "height", "width"), numbers.shape, strict=True))
    profile = {"driver": "GTiff", "dtype": numbers.dtype.name, "nodata": nodata, **shape, **PLACE, **profile}
    with rasterio.open(path, "w", **profile) as file:
        file.write(numbers)
        file.descriptions = BANDS[: len(numbers)]
    return path


def of_file(folder, numbers, nodata):
    return open_scene(tif(folder / "a.tif", numbers, nodata), SENSOR)


def of_bands_scaled_differently(folder, numbers, nodata):
    path = tif(folder / "scaled.tif", numbers, nodata)
    with rasterio.open(path, "r+") as file:
        file.scales = (1.0, 2.0, 3.0)
    return open_scene(path, SENSOR)


def of_array(_, numbers, nodata):
    return array_scene("a", numbers, SENSOR, nodata=nodata)


def of_cube(folder, numbers, nodata):
    told = {} if nodata is None else {"_FillValue": np.int16(nodata)}
    bands = {name: (("y", "x"), band, told) for name, band in zip(BANDS, numbers, strict=True)}
    path = folder / "cube.zarr"
    xarray.Dataset(bands).to_zarr(path, consolidated=False)
    return open_scene(path, SENSOR)


def of_files(folder, numbers, nodata):
    """A band a file, as a STAC item."""
    assets = {}
    for name, band in zip(BANDS, numbers, strict=True):
        tif(folder / f"{name}.tif", band[None], nodata)
        assets[name] = {"href": f"./{name}.tif", "type": "image/tiff", "eo:bands": [{"name": name}]}
    item = {"type": "Feature", "stac_version": "1.0.0", "id": "a", "geometry": None, "links": [], "assets": assets}
    (folder / "a.json").write_text(json.dumps(item | {"properties": {"datetime": "2020-01-01T00:00:00Z"}}))
    return open_scene(folder / "a.json", SENSOR)


def warped(folder, numbers, nodata):
    return open_scene(tif(folder / "a.tif", numbers, nodata), SENSOR, warp="EPSG:32632", resolution=5)


SENSOR = Sensor("usual", get_sensor("rgb").bands, nodata=0)
READERS = [of_file, of_bands_scaled_differently, of_array, of_cube, of_files, warped]


@pytest.mark.parametrize("opened", READERS)
@pytest.mark.parametrize("declared", [True, False])
def test_every_reader_keeps_to_it(tmp_path, pixels, opened, declared):
    with opened(tmp_path, pixels, 0 if declared else None) as scene:
        valid = scene.valid()
        step = scene.height // 20
        assert not valid[step : 2 * step].any() and valid[3 * step :].all()
        assert valid[0].any() != declared and valid[0].all() != declared


def test_values_limits_and_what_is_no_number():
    numbers = np.array([[[1.0, 2, 3, 4, np.nan, np.inf]]])
    assert measured(numbers, [Nodata()]).tolist() == [[True] * 4 + [False] * 2]
    assert measured(numbers, [Nodata((2.0, 4.0))]).tolist() == [[True, False, True, False, False, False]]
    assert measured(numbers, [Nodata(limits=(2, 3))]).tolist() == [[False, True, True, False, False, False]]
    assert measured(numbers, [Nodata((np.nan,))]).tolist() == [[True] * 4 + [False] * 2]
    assert Nodata.of(None, -9999, np.uint8) == Nodata((), False)  # the type cannot hold it
    both = np.array([[[0, 0, 7]], [[5, 0, 0]]], np.uint8)
    assert measured(both, [Nodata((0,), told=False), Nodata((0,))]).tolist() == [[True, False, False]]
    assert measured(both, [Nodata((0,), told=False)] * 2).tolist() == [[True, False, True]]


def test_each_band_may_declare_a_value_of_its_own(tmp_path, pixels):
    pixels[1, 0] = 250
    told = [{"_FillValue": np.int16(value)} for value in (-1, 250, -1)]
    bands = {n: (("y", "x"), band, fill) for n, band, fill in zip(BANDS, pixels, told, strict=True)}
    xarray.Dataset(bands).to_zarr(tmp_path / "cube.zarr", consolidated=False)
    with open_scene(tmp_path / "cube.zarr") as scene:
        assert not scene.valid()[0].any() and scene.valid()[1:].all()


def test_warping_refuses_to_mix_different_values_and_its_advice_works(tmp_path, pixels):
    path = tif(tmp_path / "a.vrt.tif", pixels, 0)
    bands = "".join(
        f'<VRTRasterBand dataType="Int16" band="{n}"><Description>{name}</Description>'
        f"<NoDataValue>{value}</NoDataValue>"
        f'<SimpleSource><SourceFilename relativeToVRT="1">{path.name}</SourceFilename><SourceBand>{n}</SourceBand>'
        "</SimpleSource></VRTRasterBand>"
        for n, (name, value) in enumerate(zip(BANDS, (0, 0, -5), strict=True), start=1)
    )
    vrt = tmp_path / "a.vrt"
    place = "<SRS>EPSG:32632</SRS><GeoTransform>500000,10,0,5400000,0,-10</GeoTransform>"
    vrt.write_text(f'<VRTDataset rasterXSize="30" rasterYSize="20">{place}{bands}</VRTDataset>')
    with pytest.raises(InputError, match=r"another nodata value in each band .*--bands"):
        open_scene(vrt, resolution=5)
    with open_scene(vrt, bands=["red", "green"], resolution=5) as scene:
        assert not scene.valid()[:4].any() and scene.valid()[6:].all()


@pytest.mark.parametrize("whole", [True, False])
def test_masks_of_the_file_count_in_any_band(tmp_path, pixels, whole):
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False):
        path = tif(tmp_path / "a.tif", pixels, None)
        shape = {"count": 1 if whole else 3, "height": 20, "width": 30, "dtype": "uint8"}
        masks = np.full((shape["count"], 20, 30), 255, np.uint8)
        masks[-1, 7] = 0
        with rasterio.open(f"{path}.msk", "w", driver="GTiff", **shape) as file:
            file.write(masks)
            flags = {f"INTERNAL_MASK_FLAGS_{n}": "2" if whole else "0" for n in range(1, 4)}
            file.update_tags(**flags)
    with open_scene(path) as scene:
        assert not scene.valid()[7].any() and scene.valid()[8:].all() and scene.valid()[2:7].all()
