from datetime import datetime

import numpy as np
import pytest
import xarray
from rasterio.crs import CRS
from rasterio.transform import from_origin
from rasterio.windows import Window

from geomim.corpus.scenes import find_scenes, open_scene
from geomim.errors import BandError, InputError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

UTM = CRS.from_epsg(32632).to_wkt()
HEIGHT, WIDTH = 40, 50


def coordinates(step=10):
    return {
        "y": 54e5 - step * (np.arange(HEIGHT) + 0.5),
        "x": 5e5 + step * (np.arange(WIDTH) + 0.5),
        "spatial_ref": ((), 0, {"crs_wkt": UTM, "grid_mapping_name": "transverse_mercator"}),
    }


def numbers(*shape, dtype="int16", seed=0):
    return np.random.default_rng(seed).integers(0, 9000, (*shape, HEIGHT, WIDTH)).astype(dtype)


def write(cube, path, **encoding):
    if path.suffix == ".zarr":
        cube.to_zarr(path, encoding={name: dict(value) for name, value in encoding.items()})
    else:
        renamed = {"chunks": "chunksizes"}
        cube.to_netcdf(
            path, encoding={n: {renamed.get(k, k): v for k, v in value.items()} for n, value in encoding.items()}
        )
    return path


@pytest.mark.parametrize("suffix", [".zarr", ".nc"])
def test_a_variable_with_bands_is_a_scene_of_stored_numbers(tmp_path, suffix):
    pixels = numbers(3)
    pixels[:, 5, 6] = -7
    told = {"scale_factor": 1e-4, "add_offset": 0.1, "_FillValue": np.int16(-7), "grid_mapping": "spatial_ref"}
    cube = xarray.Dataset(
        {"reflectance": (("band", "y", "x"), pixels, told)},
        coordinates() | {"band": ["red", "green", "blue"], "time": np.datetime64("2021-05-06T07:08:09", "ns")},
        {"license": "CC-BY-4.0"},
    )
    path = write(cube, tmp_path / f"cube{suffix}", reflectance={"chunks": (1, 16, 32)})
    assert find_scenes(tmp_path) == [str(path)] and find_scenes(path) == [str(path)]
    with open_scene(path) as scene:
        read, valid = scene.read_valid()
        assert read.dtype == scene.dtype == np.int16 and np.array_equal(read, pixels)
        assert not valid[5, 6] and valid.sum() == HEIGHT * WIDTH - 1
        assert scene.nodata == -7 and (scene.sensor.scale, scene.sensor.offset) == (1e-4, 0.1)
        assert scene.sensor.names == ("red", "green", "blue") and scene.block == (16, 32)
        assert scene.crs == CRS.from_epsg(32632) and scene.transform == from_origin(5e5, 54e5, 10, 10)
        assert scene.time == datetime(2021, 5, 6, 7, 8, 9) and scene.licence == "CC-BY-4.0"
        assert scene.gsd == pytest.approx(10, rel=1e-3) and scene.footprint().is_valid
        window = Window(31, 9, 12, 17)
        assert np.array_equal(scene.read(window), pixels[:, 9:26, 31:43])
        with pytest.raises(InputError, match="not inside"):
            scene.read(Window(45, 0, 10, 10))
    with open_scene(path, bands=["blue", "red"]) as scene:
        assert np.array_equal(scene.read(), pixels[[2, 0]])
    with pytest.raises(InputError, match="own grid"):
        open_scene(path, resolution=20)
    with open_scene(path, resolution=10, warp="auto") as scene:
        assert scene.height == HEIGHT


@pytest.mark.parametrize("suffix", [".zarr", ".nc"])
def test_a_variable_a_band_and_a_cloud_mask_beside_them(tmp_path, suffix):
    classes = np.full((HEIGHT, WIDTH), 4, np.uint8)
    classes[:10], classes[10:12] = 9, 3
    bands = {
        name: (("y", "x"), numbers(seed=place)[...], {"wavelength": wavelength, "grid_mapping": "spatial_ref"})
        for place, (name, wavelength) in enumerate({"B04": 664.6, "B03": 559.8, "B02": 492.4}.items())
    }
    cube = xarray.Dataset(bands | {"SCL": (("y", "x"), classes)}, coordinates())
    with open_scene(write(cube, tmp_path / f"cube{suffix}")) as scene:
        assert scene.sensor.name == "sentinel2" and scene.sensor.names == ("B02", "B03", "B04")
        assert np.array_equal(scene.read()[2], bands["B04"][1])
        assert np.array_equal(scene.clouds(), classes != 4)
        assert np.array_equal(scene.clouds(Window(3, 8, 5, 6)), classes[8:14, 3:8] != 4)
    with pytest.raises(BandError, match="SCL"):
        open_scene(tmp_path / f"cube{suffix}", bands=["B05", "B04"])


def test_several_times_are_chosen_in_the_address(tmp_path):
    pixels = numbers(3, 2)
    times = np.array(["2021-01-01", "2021-02-01", "2021-03-01"], "datetime64[ns]")
    cube = xarray.Dataset(
        {"data": (("time", "band", "y", "x"), pixels)}, coordinates() | {"band": ["VV", "VH"], "time": times}
    )
    path = write(cube, tmp_path / "cube.zarr")
    with pytest.raises(InputError, match=r"holds 3 places along 'time' .* '.*cube\.zarr#time=0'"):
        open_scene(path)
    assert find_scenes(f"{path}#time=1") == [f"{path}#time=1"]
    with open_scene(f"{path}#time=1") as scene:
        assert np.array_equal(scene.read(), pixels[1]) and scene.time == datetime(2021, 2, 1)
        assert scene.uri == f"{path}#time=1"
    for place in ("3", "-1", "june"):
        with pytest.raises(InputError, match="'time' has the places 0 to 2"):
            open_scene(f"{path}#time={place}")


def test_bands_scaled_differently_are_read_as_what_they_mean(tmp_path):
    pixels = numbers(2, dtype="uint16")
    told = {
        "a": {"scale_factor": 0.5, "_FillValue": np.uint16(0)},
        "b": {"add_offset": 7.0, "_FillValue": np.uint16(0)},
    }
    cube = xarray.Dataset({n: (("y", "x"), pixels[i], told[n]) for i, n in enumerate("ab")}, coordinates())
    with open_scene(write(cube, tmp_path / "cube.nc")) as scene:
        read, valid = scene.read_valid()
        assert scene.dtype == np.float32 and np.array_equal(valid, (pixels > 0).all(axis=0))
        np.testing.assert_allclose(read[0][valid], 0.5 * pixels[0][valid])
        np.testing.assert_allclose(read[1][valid], 7.0 + pixels[1][valid])


def test_degrees_south_up_and_places_that_are_none(tmp_path):
    values = numbers(dtype="float32").astype("float32")
    values[3, 3] = np.nan
    south_up = {"lat": 40 + 0.01 * np.arange(HEIGHT), "lon": 5 + 0.01 * np.arange(WIDTH)}
    cube = xarray.Dataset({"temperature": (("lat", "lon"), values)}, south_up)
    with open_scene(write(cube, tmp_path / "degrees.nc")) as scene:
        assert scene.crs == CRS.from_epsg(4326) and scene.transform.e > 0
        assert scene.footprint().bounds == pytest.approx((4.995, 39.995, 5.495, 40.395))
        assert not scene.valid()[3, 3] and scene.sensor.names == ("temperature",)
    uneven = {"lat": np.sort(np.random.default_rng(0).uniform(0, 9, HEIGHT)), "lon": south_up["lon"]}
    cube = xarray.Dataset({"temperature": (("lat", "lon"), values)}, uneven)
    with open_scene(write(cube, tmp_path / "uneven.nc")) as scene:
        assert scene.transform is None and scene.footprint() is None
    cube = xarray.Dataset({"temperature": (("y", "x"), values)})
    with open_scene(write(cube, tmp_path / "nowhere.zarr")) as scene:
        assert scene.crs is None and scene.transform is None


def test_wavelengths_that_no_coordinate_tells_are_asked_for(tmp_path):
    path = write(xarray.Dataset({"cube": (("wavelength", "y", "x"), numbers(3))}, coordinates()), tmp_path / "cube.nc")
    with pytest.raises(BandError, match="3 bands, all without a name"):
        open_scene(path)


def test_wavelength_coordinates_and_groups(tmp_path):
    pixels = numbers(3, dtype="uint16")
    cube = xarray.Dataset(
        {"cube": (("wavelength", "y", "x"), pixels)}, coordinates() | {"wavelength": [492.4, 559.8, 664.6]}
    )
    path = tmp_path / "cube.zarr"
    cube.to_zarr(path, group="measurements/r10m")
    with pytest.raises(InputError, match="#group=NAME"):
        open_scene(path)
    with open_scene(f"{path}#group=measurements/r10m") as scene:
        assert [band.wavelength for band in scene.sensor.bands] == [492.4, 559.8, 664.6]
        assert np.array_equal(scene.read(), pixels)


def test_what_cannot_be_a_cube_is_refused(tmp_path):
    (tmp_path / "broken.nc").write_bytes(b"no cube")
    (tmp_path / "empty.zarr").mkdir()
    for name in ("broken.nc", "empty.zarr", "gone.nc"):
        with pytest.raises(InputError, match=f"{name}' cannot be opened"):
            open_scene(tmp_path / name)
    xarray.Dataset({"profile": (("depth",), np.arange(3.0))}).to_netcdf(tmp_path / "profile.nc")
    with pytest.raises(InputError, match=r"no variable with rows and columns.*profile"):
        open_scene(tmp_path / "profile.nc")
    sizes = {"a": (("y", "x"), np.ones((4, 4))), "b": (("lat", "lon"), np.ones((5, 5)))}
    xarray.Dataset(sizes).to_netcdf(tmp_path / "sizes.nc")
    with pytest.raises(InputError, match="2 sizes"):
        open_scene(tmp_path / "sizes.nc")
    unnamed = xarray.Dataset({"data": (("band", "y", "x"), numbers(4))}, coordinates())
    with pytest.raises(BandError, match="4 bands, all without a name"):
        open_scene(write(unnamed, tmp_path / "unnamed.nc"))


def test_only_the_chunks_of_a_window_are_read(tmp_path):
    cube = xarray.Dataset({"red": (("y", "x"), numbers())}, coordinates())
    path = write(cube, tmp_path / "cube.zarr", red={"chunks": (8, 8)})
    with open_scene(path) as scene:
        for chunk in (path / "red").rglob("*"):  # all but the first chunk are gone
            if (
                chunk.is_file()
                and chunk.name != "zarr.json"
                and chunk.relative_to(path / "red").parts[1:] != ("0", "0")
            ):
                chunk.unlink()
        assert np.array_equal(scene.read(Window(0, 0, 8, 8))[0], cube["red"].values[:8, :8])
