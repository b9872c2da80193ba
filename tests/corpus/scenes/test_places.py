"""Cubes as agencies write them: packed coordinates, units, words for a reference system, integers marked unsigned."""

import shutil

import netCDF4
import numpy as np
import pyproj
import pytest
import xarray
from rasterio.crs import CRS
from rasterio.transform import from_origin
from rasterio.windows import Window

from geomim.corpus.scenes import find_scenes, open_scene
from geomim.errors import InputError

ROWS, COLS = 40, 50
UTM = pyproj.CRS.from_epsg(32632)
X, Y = 500005 + 10.0 * np.arange(COLS), 5400000 - 5 - 10.0 * np.arange(ROWS)
PLACE = from_origin(5e5, 54e5, 10, 10)


def cf(crs, *without):
    told = pyproj.CRS.from_user_input(crs).to_cf()
    return {key: value for key, value in told.items() if isinstance(value, str | float | int) and key not in without}


def numbers(seed=0, dtype="int16"):
    return np.random.default_rng(seed).integers(1, 9000, (ROWS, COLS)).astype(dtype)


def netcdf(path, x=X, y=Y, *, names=("y", "x"), kind="f8", units=None, mapping=None, crs=None, packed=None, **told):
    """One band `a`, coordinates as told; `crs` are the attributes of a variable of that name."""
    with netCDF4.Dataset(path, "w") as file:
        for name, values in zip(names, (y, x), strict=True):
            file.createDimension(name, len(values))
            axis = file.createVariable(name, kind, (name,))
            if packed:  # scale and offset
                axis.scale_factor, axis.add_offset = (np.float32(value) for value in packed[name])
            if units:
                axis.units = units
            axis[:] = values
        if crs is not None:
            file.createVariable("crs", "i4").setncatts(crs)
        band = file.createVariable("a", "i2", names)
        band.setncatts(told | ({"grid_mapping": mapping} if mapping else {}))
        band.set_auto_maskandscale(False)
        band[:] = numbers()
    return path


def zarr(path, attributes=None, told=None, coords=True, group=None, seed=0, step=1, mode="w"):
    place = {"x": X[::step], "y": Y[::step]} if coords else {}
    band = (("y", "x"), numbers(seed)[::step, ::step], told or {})
    xarray.Dataset({"a": band}, place, attributes or {}).to_zarr(path, group=group, mode=mode, consolidated=False)
    return path


@pytest.mark.parametrize(
    "mapping", ["crs", "crs: x y", "crs : x y", "wgs: lat lon crs: x y", "crs: y x wgs: lat lon", None]
)
@pytest.mark.parametrize("without", [(), ("crs_wkt",)])
def test_grid_mappings_in_both_forms(tmp_path, mapping, without):
    with open_scene(netcdf(tmp_path / "a.nc", mapping=mapping, crs=cf(UTM, *without))) as scene:
        assert scene.transform == PLACE and not scene.notes
        assert scene.footprint().bounds == pytest.approx((9.0, 48.749, 9.0068, 48.7527), abs=1e-3)


WORDS = {
    "proj:code": "EPSG:32632",
    "proj:epsg": 32632,
    "proj:wkt2": UTM.to_wkt(),
    "proj:projjson": UTM.to_json_dict(),
    "spatial_ref": UTM.to_wkt("WKT1_GDAL"),
    "crs": "EPSG:32632",
    "epsg": "32632",
    "other_metadata": {"horizontal_CRS_code": "EPSG:32632"},
    "stac_discovery": {"properties": {"proj:epsg": 32632}},
}


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("where", ["array", "group", "above"])
def test_a_system_in_attributes_of_array_group_or_those_above(tmp_path, word, where):
    told, path = {word: WORDS[word]}, tmp_path / "a.zarr"
    if where == "array" and isinstance(WORDS[word], dict) and word != "proj:projjson":
        pytest.skip("of products only")
    xarray.Dataset(attrs=told if where == "above" else {}).to_zarr(path, consolidated=False)
    zarr(path, told if where == "group" else {}, told if where == "array" else {}, group="r10m", mode="a")
    with open_scene(f"{path}#group=r10m") as scene:
        assert scene.crs == CRS.from_epsg(32632) and scene.transform == PLACE and not scene.notes


def test_an_affine_in_attributes_stands_in_for_coordinates(tmp_path):
    told = {"proj:code": "EPSG:32632", "proj:transform": [10.0, 0, 5e5, 0, -10.0, 54e5]}
    with open_scene(zarr(tmp_path / "a.zarr", told, coords=False)) as scene:
        assert scene.transform == PLACE and scene.crs == CRS.from_epsg(32632)
    with open_scene(zarr(tmp_path / "b.zarr", coords=False)) as scene:
        assert scene.crs is None and scene.transform is None and not scene.notes  # it never had a place


def test_coordinates_in_other_units_than_the_system(tmp_path):
    path = netcdf(tmp_path / "km.nc", X / 1000, Y / 1000, units="km", mapping="crs", crs=cf(UTM))
    with open_scene(path) as scene:
        assert scene.transform.almost_equals(PLACE, 1e-6) and scene.gsd == pytest.approx(10, rel=1e-2)
    feet = pyproj.CRS.from_epsg(2263)
    x, y, told = 1e6 + 10.0 * np.arange(COLS), Y - 52e5, {"mapping": "crs", "crs": cf(feet)}
    path = netcdf(tmp_path / "feet.nc", x, y, units="us-ft", **told)
    with open_scene(path) as scene:
        assert scene.gsd == pytest.approx(10 * 1200 / 3937, rel=1e-2)
    path = netcdf(tmp_path / "metres.nc", x, y, units="m", **told)
    with open_scene(path) as scene:
        assert scene.transform.a == pytest.approx(10 * 3937 / 1200)


@pytest.mark.parametrize(("units", "factor"), [("rad", 1), ("microradian", 1e6), ("radians", 1), (None, 1)])
def test_scanning_angles_of_a_geostationary_satellite_packed_as_integers(tmp_path, units, factor):
    height, step = 35786023.0, 5.6e-05
    crs = {
        "grid_mapping_name": "geostationary",
        "perspective_point_height": height,
        "semi_major_axis": 6378137.0,
        "semi_minor_axis": 6356752.31414,
        "longitude_of_projection_origin": -75.0,
        "latitude_of_projection_origin": 0.0,
        "sweep_angle_axis": "x",
    }
    x, y = (-0.05 + step * np.arange(COLS)) * factor, (0.08 - step * np.arange(ROWS)) * factor
    packed = {"x": (step * factor, -0.05 * factor), "y": (-step * factor, 0.08 * factor)}
    path = netcdf(tmp_path / "a.nc", x, y, kind="i2", units=units, mapping="goes", packed=packed)
    with netCDF4.Dataset(path, "a") as file:
        file.createVariable("goes", "i4").setncatts(crs)
    with open_scene(path) as scene:
        assert scene.transform.a == pytest.approx(step * height, rel=1e-4)
        assert scene.transform.c == pytest.approx((-0.05 - step / 2) * height, rel=1e-4)
        lon, lat = scene.footprint().centroid.coords[0]
        assert 2000 < scene.gsd < 3000 and -95 < lon < -85 and 25 < lat < 35


@pytest.mark.parametrize("start", [250.0, -110.0])
@pytest.mark.parametrize("kind", ["f8", "f4"])
@pytest.mark.parametrize("upward", [False, True])
def test_degrees_to_360_rounded_and_either_way_up(tmp_path, start, kind, upward):
    lon, lat = start + 1e-3 * np.arange(COLS), 10 - 1e-3 * np.arange(ROWS)
    path = netcdf(tmp_path / "a.nc", lon, lat[::-1] if upward else lat, names=("lat", "lon"), kind=kind)
    with open_scene(path) as scene:
        assert scene.crs == CRS.from_epsg(4326) and (scene.transform.e > 0) == upward
        assert scene.footprint().bounds == pytest.approx((-110.0005, 9.9605, -109.9505, 10.0005), abs=2e-5)


def test_projected_coordinates_rounded_to_32_bits_are_a_grid(tmp_path):
    x, y = 500000.15 + 0.3 * np.arange(COLS), 5400000 - 0.5 - 0.6 * np.arange(ROWS)
    with open_scene(netcdf(tmp_path / "a.nc", x, y, kind="f4", mapping="crs", crs=cf(UTM))) as scene:
        assert scene.transform.a == pytest.approx(0.3, rel=1e-2) and scene.transform.f == pytest.approx(54e5, abs=0.6)


def test_axes_that_only_their_attributes_tell(tmp_path):
    with netCDF4.Dataset(tmp_path / "a.nc", "w") as file:
        for name, values, meaning in (("north_south", Y, "projection_y_coordinate"), ("west_east", X, "")):
            file.createDimension(name, len(values))
            axis = file.createVariable(name, "f8", (name,))
            axis.setncatts({"standard_name": meaning} if meaning else {"axis": "X"})
            axis[:] = values
        file.createVariable("crs", "i4").setncatts(cf(UTM))
        file.createVariable("a", "i2", ("north_south", "west_east"))[:] = numbers()
    with open_scene(tmp_path / "a.nc") as scene:
        assert scene.transform == PLACE and scene.crs == CRS.from_epsg(32632)


def test_what_is_lost_is_said(tmp_path):
    with open_scene(netcdf(tmp_path / "no.nc")) as scene:
        assert scene.crs is None and "tells no coordinate reference system" in scene.notes[0]
    wrong = {"grid_mapping_name": "of my own"}
    with open_scene(netcdf(tmp_path / "wrong.nc", mapping="crs", crs=wrong)) as scene:
        assert scene.crs is None and "cannot be understood (grid_mapping_name: of my own)" in scene.notes[0]
    with open_scene(zarr(tmp_path / "code.zarr", {"proj:code": "MINE:1"})) as scene:
        assert scene.crs is None and "proj:code: MINE:1" in scene.notes[0]
    with open_scene(netcdf(tmp_path / "uneven.nc", np.geomspace(5e5, 6e5, COLS), mapping="crs", crs=cf(UTM))) as scene:
        assert scene.transform is None and "no even grid" in scene.notes[0]
    with netCDF4.Dataset(tmp_path / "no.nc", "a") as file:
        file.createVariable("time", "f8").units = "fortnights since yesterday"
    with open_scene(tmp_path / "no.nc") as scene:
        assert "its times cannot be understood" in scene.notes


@pytest.mark.parametrize("listed", [True, False])
def test_the_places_of_a_swath_are_no_bands_and_that_it_has_no_grid_is_said(tmp_path, listed):
    lon, lat = np.meshgrid(10 + 0.01 * np.arange(COLS), 50 - 0.01 * np.arange(ROWS))
    told = {"coordinates": "lat lon"} if listed else {}
    cube = xarray.Dataset({name: (("y", "x"), numbers(), told) for name in ("red", "nir")})
    cube["lat"] = ("y", "x"), lat, {"units": "degrees_north"}
    cube["lon"] = ("y", "x"), lon + 0.3 * lat, {"standard_name": "longitude", "units": "degrees"}
    cube.to_netcdf(tmp_path / "swath.nc")
    with open_scene(tmp_path / "swath.nc") as scene:
        assert scene.sensor.names == ("red", "nir") and scene.transform is None and scene.footprint() is None
        assert any("two-dimensional" in note and "no place on Earth" in note for note in scene.notes)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("format", ["NETCDF4", "NETCDF3_CLASSIC"])
def test_integers_marked_unsigned_are(tmp_path, bits, format):
    stored = np.random.default_rng(0).integers(0, 2**bits - 6, (ROWS, COLS)).astype(f"u{bits // 8}")
    stored[0], stored[1] = 2**bits - 1, 2**bits - 3  # fill, and above the valid range
    with netCDF4.Dataset(tmp_path / "a.nc", "w", format=format) as file:
        file.createDimension("y", ROWS), file.createDimension("x", COLS)
        band = file.createVariable("a", f"i{bits // 8}", ("y", "x"), fill_value=-1)
        band.set_auto_maskandscale(False)
        band.setncatts({"_Unsigned": "true", "valid_range": np.array([0, -6], f"i{bits // 8}")})
        band.setncatts({"scale_factor": np.float32(0.5), "add_offset": np.float32(2)})
        band[:] = stored.view(f"i{bits // 8}")
    with open_scene(tmp_path / "a.nc") as scene:
        read, valid = scene.read_valid()
        assert read.dtype == scene.dtype == stored.dtype and np.array_equal(read[0], stored)
        assert not valid[:2].any() and valid[2:].all() and scene.nodata == 2**bits - 1
        assert (scene.sensor.scale, scene.sensor.offset) == (0.5, 2.0)
        assert np.array_equal(scene.read(Window(3, 4, 5, 6))[0], stored[4:10, 3:8])


@pytest.mark.parametrize(
    "told",
    [
        {"valid_range": np.array([100, 5000], "i2")},
        {"valid_min": np.int16(100), "valid_max": np.int16(5000)},
        {"valid_range": np.array([10.0, 500.0], "f4"), "scale_factor": 0.1},  # of the unpacked type
        {"valid_range": np.array([100, 5000], "i2"), "scale_factor": 0.1},
    ],
)
def test_numbers_outside_the_valid_range_are_no_measurements(tmp_path, told):
    with open_scene(netcdf(tmp_path / "a.nc", **told)) as scene:
        read, valid = scene.read_valid()
        assert np.array_equal(valid, (read[0] >= 100) & (read[0] <= 5000)) and 0.3 < valid.mean() < 0.7


def test_a_missing_value_beside_the_fill_value(tmp_path):
    stored = numbers()
    stored[0], stored[1], stored[2] = -1, -7, -8
    told = {"_FillValue": np.int16(-1), "missing_value": np.array([-7, -8], "i2")}
    xarray.Dataset({"a": (("y", "x"), stored, told)}).to_netcdf(tmp_path / "a.nc")
    with open_scene(tmp_path / "a.nc") as scene:
        assert not scene.valid()[:3].any() and scene.valid()[3:].all()


def test_a_pyramid_is_read_at_its_finest_level(tmp_path):
    path = tmp_path / "a.zarr"
    for level, step in (("0", 4), ("1", 2), ("2", 1)):
        zarr(path, group=f"r10m/{level}", seed=1, step=step, mode="a")
    for uri in (path, f"{path}#group=r10m"):
        with open_scene(uri) as scene:
            assert np.array_equal(scene.read()[0], numbers(1))
            assert "finest of 3 levels, 'r10m/2'" in scene.notes[0]
    with open_scene(f"{path}#group=r10m/0") as scene:
        assert scene.height == ROWS // 4 and "finest" not in str(scene.notes)
    zarr(path, group="other", mode="a")
    with pytest.raises(InputError, match=r"groups other, r10m/0, .* choose '.*#group=NAME'"):
        open_scene(path)
    with open_scene(f"{path}#group=other") as scene:
        assert scene.height == ROWS


def test_groups_of_netcdf_inherit_coordinates(tmp_path):
    with netCDF4.Dataset(tmp_path / "a.nc", "w") as file:
        for name, values in (("y", Y), ("x", X)):
            file.createDimension(name, len(values))
            file.createVariable(name, "f8", (name,))[:] = values
        file.createVariable("crs", "i4").setncatts(cf(UTM))
        band = file.createGroup("data").createVariable("a", "i2", ("y", "x"))
        band.grid_mapping = "crs"
        band[:] = numbers()
    with open_scene(f"{tmp_path / 'a.nc'}#group=data") as scene:
        assert scene.transform == PLACE and scene.crs == CRS.from_epsg(32632)
        assert np.array_equal(scene.read()[0], numbers())


def test_a_zipped_store_is_a_scene(tmp_path):
    zarr(tmp_path / "in" / "a.zarr", {"proj:code": "EPSG:32632"})
    path = shutil.make_archive(str(tmp_path / "out" / "a.zarr"), "zip", tmp_path / "in" / "a.zarr")
    assert find_scenes(tmp_path / "out") == find_scenes(path) == [path]
    with open_scene(path) as scene:
        assert np.array_equal(scene.read()[0], numbers()) and scene.transform == PLACE
    (tmp_path / "out" / "b.zarr.zip").write_bytes(b"PK nothing")
    with pytest.raises(InputError, match=r"b\.zarr\.zip' cannot be opened"):
        open_scene(tmp_path / "out" / "b.zarr.zip")
