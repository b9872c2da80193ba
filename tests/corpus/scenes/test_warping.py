import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.rpc import RPC
from rasterio.transform import from_origin
from rasterio.windows import Window

from geomim.corpus.scenes import find_scenes, open_scene
from geomim.errors import InputError

UTM = CRS.from_epsg(32632)


def raster(path, pixels, **profile):
    shape = dict(zip(("count", "height", "width"), pixels.shape, strict=True))
    profile = {"crs": UTM, "transform": from_origin(5e5, 54e5, 10, 10)} | profile
    with rasterio.open(path, "w", driver="GTiff", dtype=pixels.dtype.name, **shape, **profile) as file:
        file.write(pixels)
        file.descriptions = [f"V{place}" for place in range(len(pixels))]
    return path


def smooth(count=1, size=60):
    """A plane, which bilinear resampling keeps."""
    rows, cols = np.mgrid[:size, :size]
    return np.stack([100 + 2 * cols + 3 * rows + 7 * band for band in range(count)]).astype(np.int16)


def test_north_up_rasters_stay_as_they_are(tmp_path):
    path = raster(tmp_path / "a.tif", smooth(2))
    for asked in ({"warp": "auto"}, {"warp": "32632"}, {"resolution": 10}, {"warp": "EPSG:32632", "resolution": 10.0}):
        with open_scene(path, **asked) as scene:
            assert np.array_equal(scene.read(), smooth(2)) and scene.transform == from_origin(5e5, 54e5, 10, 10)


@pytest.mark.parametrize(("metres", "size"), [(20, 30), (5, 120), (7, 86), (600, 1), (9999, 1)])
def test_a_resolution_keeps_the_place_and_the_numbers(tmp_path, metres, size):
    with open_scene(raster(tmp_path / "a.tif", smooth(2)), resolution=metres) as scene:
        pixels, valid = scene.read_valid()
        assert pixels.shape == (2, size, size) and scene.dtype == np.int16
        assert scene.transform == from_origin(5e5, 54e5, metres, metres) and scene.crs == UTM
        if metres <= 20:
            inside = np.s_[3:-3, 3:-3]
            rows, cols = (np.mgrid[:size, :size] + 0.5) * metres / 10 - 0.5
            assert np.abs(pixels[0] - (100 + 2 * cols + 3 * rows))[inside].max() <= 1
            assert valid[inside].all()


@pytest.mark.parametrize("nodata", [-9999, None])
def test_rotated_rasters_are_warped_with_invalid_corners(tmp_path, nodata):
    turned = Affine(8.66, 5, 5e5, 5, -8.66, 54e5)
    pixels = smooth(2)
    pixels[:, :20] = -9999
    pixels[0, 40, 40] = -9999  # in one band only
    path = raster(tmp_path / "turned.tif", pixels, transform=turned, nodata=nodata)
    with open_scene(path) as scene:  # as it is
        assert np.array_equal(scene.read(), pixels) and scene.transform == turned
        outline = scene.footprint()
    with open_scene(path, warp="auto") as scene:
        read, valid = scene.read_valid()
        assert scene.crs == UTM and scene.transform.b == scene.transform.d == 0
        assert scene.gsd == pytest.approx(10, rel=0.01)
        assert scene.footprint().buffer(1e-6).contains(outline)
        assert valid.mean() == pytest.approx(0.535 * (2 / 3 if nodata else 1), abs=0.03)
        if nodata:
            assert (read[:, ~valid] == -9999).all()
            measured = read[1][valid]
            assert measured.min() >= smooth(2)[1].min() and measured.max() <= smooth(2)[1].max()  # no nodata mixed in
        part = Window(20, 10, 33, 21)
        again, valid_again = scene.read_valid(part)
        assert np.array_equal(again, read[:, 10:31, 20:53]) and np.array_equal(valid_again, valid[10:31, 20:53])


def test_masks_alpha_and_nan_stay_outside(tmp_path):
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        masked = raster(tmp_path / "masked.tif", smooth())
        with rasterio.open(masked, "r+") as file:
            file.write_mask(np.arange(3600).reshape(60, 60) >= 1800)
    numbers = smooth().astype(np.float32)
    numbers[:, :30] = np.nan
    floats = raster(tmp_path / "floats.tif", numbers)
    alpha = raster(
        tmp_path / "alpha.tif", np.concatenate([smooth(), np.where(np.isnan(numbers), 0, 255).astype(np.int16)])
    )
    with rasterio.open(alpha, "r+") as file:
        file.colorinterp = [rasterio.enums.ColorInterp.gray, rasterio.enums.ColorInterp.alpha]
        file.descriptions = ["V0", None]
    for path in (masked, floats, alpha):
        with open_scene(path, warp="EPSG:3035", resolution=10) as scene:
            pixels, valid = scene.read_valid()
            assert valid.mean() == pytest.approx(0.45, abs=0.05), path
            assert pixels[0][valid].min() >= 100 + 3 * 29, path


def test_control_points_are_warped_on_request(data_dir):
    (path,) = find_scenes([str(data_dir / "geotiff_quirks" / "*" / "cog_gcps.tif")])
    with open_scene(path) as scene:
        outline, whole = scene.footprint(), scene.read()
    with open_scene(path, warp="auto", resolution=500) as scene:
        assert scene.crs == CRS.from_epsg(32643) and scene.gsd == pytest.approx(500, rel=0.01)
        pixels, valid = scene.read_valid()
        assert 0.6 < valid.mean() < 0.8 and (pixels[:, ~valid] == 0).all()
        assert pixels[0][valid].mean() == pytest.approx(whole.mean(), rel=0.05)
        assert scene.footprint().contains(outline.buffer(-0.01))
    with pytest.raises(InputError, match="give --warp auto with --resolution"):
        open_scene(path, resolution=500)


def test_a_warped_control_point_lies_where_it_says(tmp_path):
    pixels = np.zeros((1, 100, 100), np.uint8)
    pixels[0, 60:63, 30:33] = 200
    points = [
        GroundControlPoint(row, col, 9 + col * 1e-4 + row * 2e-5, 48 - row * 1e-4 + col * 2e-5)
        for row in (0, 50, 100) for col in (0, 50, 100)
    ]  # fmt: skip
    path = raster(tmp_path / "gcps.tif", pixels, crs=None, transform=None)
    with rasterio.open(path, "r+") as file:
        file.gcps = (points, CRS.from_epsg(4326))
    with open_scene(path, warp="EPSG:4326") as scene:
        row, col = np.unravel_index(scene.read()[0].argmax(), (scene.height, scene.width))
        x, y = scene.grid.at(col + 0.5, row + 0.5)
    assert (x, y) == pytest.approx((9 + 31.5e-4 + 61.5 * 2e-5, 48 - 61.5e-4 + 31.5 * 2e-5), abs=2e-4)
    for few in (points[:2], points[:3]):  # two, and three on a line
        with rasterio.open(path, "r+") as file:
            file.gcps = (few, CRS.from_epsg(4326))
        with pytest.raises(InputError, match="these place nothing"):
            open_scene(path)


def test_polynomials_need_a_grid(tmp_path):
    path = raster(tmp_path / "rpc.tif", smooth().astype(np.uint8), crs=None, transform=None)
    lines = {"line_off": 30, "line_scale": 30, "samp_off": 30, "samp_scale": 30}
    line = {"line_num_coeff": [0, 0, -1] + [0] * 17, "line_den_coeff": [1] + [0] * 19}
    sample = {"samp_num_coeff": [0, 1] + [0] * 18, "samp_den_coeff": [1] + [0] * 19}
    place = {
        "lat_off": 48,
        "lat_scale": 0.01,
        "long_off": 9,
        "long_scale": 0.01,
        "height_off": 300,
        "height_scale": 100,
    }
    with rasterio.open(path, "r+") as file:
        file.rpcs = RPC(**lines, **line, **sample, **place)
    with pytest.raises(InputError, match=r"rational polynomials.*--warp"):
        open_scene(path)
    with open_scene(path, warp="auto") as scene:
        valid = scene.valid()
        west, south, east, north = scene.footprint().bounds
        assert (west, south, east, north) == pytest.approx((8.99, 47.99, 9.01, 48.01), abs=2e-3)
        assert valid.mean() > 0.9 and scene.crs == UTM


def test_palettes_are_warped_without_mixing_colours(tmp_path):
    path = tmp_path / "palette.tif"
    indices = np.arange(3600).reshape(1, 60, 60).astype(np.uint8) % 3
    place = {"crs": UTM, "transform": Affine(8.66, 5, 5e5, 5, -8.66, 54e5)}
    with rasterio.open(path, "w", driver="GTiff", count=1, height=60, width=60, dtype="uint8", **place) as file:
        file.write(indices)
        file.write_colormap(1, {0: (250, 0, 0, 255), 1: (0, 250, 0, 255), 2: (0, 0, 250, 255)})
    with open_scene(path, warp="auto") as scene:
        pixels, valid = scene.read_valid()
        assert set(map(tuple, pixels[:, valid].T.tolist())) == {(250, 0, 0), (0, 250, 0), (0, 0, 250)}
        assert 0.4 < valid.mean() < 0.7


def test_what_cannot_be_warped_is_refused(tmp_path):
    nowhere = raster(tmp_path / "nowhere.tif", smooth(), crs=None, transform=None)
    with open_scene(nowhere, warp="auto") as scene:  # leaves alone what has no place
        assert scene.transform is None
    degrees = raster(tmp_path / "degrees.tif", smooth(), crs="EPSG:4326", transform=from_origin(9, 48, 1e-4, 1e-4))
    cases = (
        (nowhere, {"warp": "EPSG:32632"}, "no place on Earth to warp from"),
        (nowhere, {"resolution": 10}, "no place on Earth, so --resolution"),
        (degrees, {"resolution": 10}, "placed in degrees"),
        (degrees, {"warp": "EPSG:4326", "resolution": 10}, "placed in degrees"),
        (degrees, {"warp": "EPSG:99999999"}, "no coordinate reference system: give auto"),
        (degrees, {"warp": "nonsense"}, "no coordinate reference system: give auto"),
    )
    for path, asked, sentence in cases:
        with pytest.raises(InputError, match=sentence):
            open_scene(path, **asked)
    mars = raster(tmp_path / "mars.tif", smooth(), crs="+proj=eqc +R=3396190 +units=m")
    with open_scene(mars, warp="auto") as scene:
        assert np.array_equal(scene.read(), smooth())
    with pytest.raises(InputError, match="no place on Earth to warp from"):
        open_scene(mars, warp="EPSG:4326")
    with open_scene(degrees, warp="auto", resolution=10) as scene:
        assert scene.crs == UTM and scene.gsd == pytest.approx(10, rel=1e-3)


def test_the_date_line_is_no_reason_for_coarse_pixels(data_dir):
    (path,) = find_scenes([str(data_dir / "geotiff_quirks" / "*" / "cog_dateline.tif")])
    with pytest.raises(InputError, match="from pixels of 100 m to 9456 m in EPSG:4326"):
        open_scene(path, warp="EPSG:4326")
    with open_scene(path, warp="EPSG:3832", resolution=1000) as scene:  # the Pacific
        assert scene.valid().mean() > 0.9 and scene.footprint().geom_type == "MultiPolygon"
