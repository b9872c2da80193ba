from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from rasterio.windows import Window

from geomim.corpus.scenes import find_scenes, open_scene
from geomim.errors import BandError, InputError

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

RGB = ("red", "green", "blue")
# What each quirk becomes: the start of the refusal, or (bands, share of valid pixels over the whole raster, footprint).
QUIRKS = {
    "GeogToWGS84GeoKey5.tif": (RGB, 1.0, "Polygon"),  # palette
    "vestfold.tif": (("gray",), 0.462, "Polygon"),
    "RGB.byte.tif": (RGB, 0.675, "Polygon"),
    "RGBA.uint16.tif": (RGB, 0.489, "Polygon"),
    "all-nodata.tif": (("blue", "green", "red", "nir"), 0.0, "Polygon"),
    "alpha.tif": (RGB, 0.016, "Polygon"),
    "corrupt.tif": "cannot be read at row 0, column 0",
    "float_nan.tif": (("gray",), 5 / 6, None),
    "float_raster_with_nodata.tif": (("gray",), 0.628, "Polygon"),
    "goes.tif": (RGB, 0.783, None),  # corners off the disc
    "rotated.tif": (("gray",), 1.0, None),  # no CRS
    "test_esri_wkt.tif": (("gray",), 1.0, "Polygon"),
    "cog_cmap.tif": (RGB, 0.555, "Polygon"),  # palette
    "cog_dateline.tif": (("gray",), 1.0, "MultiPolygon"),
    "cog_gcps.tif": (("gray",), 1.0, "Polygon"),  # 210 ground control points
    "cog_hirise_mars.tif": (RGB, 1.0, None),  # not on Earth
    "cog_int16.tif": (("gray",), 0.518, "Polygon"),
    "cog_nodata_nan.tif": (("Gamma0_VV",), 0.489, "Polygon"),
    "cog_rgb_mask.tif": (RGB, 0.969, "Polygon"),
    "cog_rgba.tif": (RGB, 0.887, "Polygon"),
    "cog_scale.tif": "has 2 bands, all without a name",
    "cog_uint8_rgb_nodata.tif": (RGB, 0.75, "Polygon"),
}


def quirk_files(data_dir: Path) -> dict[str, str]:
    return {Path(path).name: path for path in find_scenes([data_dir / "geotiff_quirks"])}


def test_every_quirk_is_known(data_dir):
    assert set(quirk_files(data_dir)) == set(QUIRKS)


@pytest.mark.parametrize("name", QUIRKS)
def test_quirk_opens_or_is_refused_with_a_sentence(data_dir, name):
    path, expected = quirk_files(data_dir)[name], QUIRKS[name]
    if isinstance(expected, str):
        with pytest.raises((InputError, BandError)) as refusal, open_scene(path) as scene:
            scene.read_valid()
        sentence = str(refusal.value)
        assert expected in sentence and name in sentence and "\n" not in sentence
        assert len(sentence.replace(path, "")) < 250
        return
    names, share, footprint = expected
    with open_scene(path) as scene:
        pixels, valid = scene.read_valid()
        assert scene.sensor.names == names
        assert pixels.dtype == scene.dtype and pixels.shape == (len(names), scene.height, scene.width)
        assert valid.mean() == pytest.approx(share, abs=0.002)
        outline = scene.footprint()
        assert (outline.geom_type if outline else None) == footprint
        assert outline is None or outline.is_valid
        assert scene.clouds() is None and scene.annotations is None


def test_bands_scaled_differently_are_read_as_what_they_mean(data_dir):
    path = quirk_files(data_dir)["cog_scale.tif"]
    with open_scene(path, bands=["one", "two"]) as scene, rasterio.open(path) as file:
        pixels, valid = scene.read_valid()
        stored = file.read().astype(np.float64)
        assert (scene.sensor.scale, scene.sensor.offset) == (1.0, 0.0) and scene.dtype == np.float32
        missing = stored == 0
        expected = stored * np.reshape(file.scales, (2, 1, 1)) + np.reshape(file.offsets, (2, 1, 1))
        np.testing.assert_allclose(pixels[~missing], expected[~missing], rtol=1e-6)
        assert np.isnan(pixels[missing]).all() and np.isnan(scene.nodata)
        assert np.array_equal(valid, ~missing.any(axis=0))
    with open_scene(path, bands=["one", "-"]) as scene:
        assert (scene.sensor.scale, scene.sensor.offset) == (pytest.approx(0.0001), 1000.0)
        assert scene.dtype == np.int16


def test_palettes_become_their_colours(data_dir):
    path = quirk_files(data_dir)["cog_cmap.tif"]
    window = Window(3000, 4000, 300, 200)
    with open_scene(path) as scene, rasterio.open(path) as file:
        pixels, valid = scene.read_valid(window)
        table, indices = file.colormap(1), file.read(1, window=window)
        for index in np.unique(indices):
            assert (pixels[:, indices == index] == np.array(table[index][:3])[:, None]).all()
        assert np.array_equal(valid, indices != 0)  # nodata
    with open_scene(path, bands=["blue", "red", "-"]) as scene:
        assert scene.read(window).shape == (2, 200, 300)


def test_control_points_place_each_window(data_dir):
    path = quirk_files(data_dir)["cog_gcps.tif"]
    with open_scene(path) as scene, rasterio.open(path) as file:
        points, _ = file.gcps
        assert scene.transform is None and scene.window_transform(Window(0, 0, 5, 5)) is None
        assert scene.crs == file.gcps[1]
        outline = scene.footprint()
        assert shapely.MultiPoint([(point.x, point.y) for point in points]).within(outline.buffer(1e-3))
        for point in points[::17]:  # a window that begins at a point has a corner there
            window = scene.footprint(Window(point.col, point.row, 64, 64))
            nearest = min(np.hypot(x - point.x, y - point.y) for x, y in window.exterior.coords)
            assert nearest < 1e-6, point
        halves = [scene.footprint(Window(col, 0, scene.width // 2, scene.height)) for col in (0, scene.width // 2)]
        assert shapely.union_all(halves).symmetric_difference(outline).area < 0.01 * outline.area


def test_dateline_footprints_lie_on_both_sides(data_dir):
    with open_scene(quirk_files(data_dir)["cog_dateline.tif"]) as scene:
        outlines = [
            scene.footprint(Window(col, row, 256, 256))
            for row in range(0, scene.height, 256)
            for col in range(0, scene.width, 256)
        ]
    whole = scene.footprint()
    assert all(outline.is_valid and outline.area < 0.3 for outline in outlines)
    assert {outline.geom_type for outline in outlines} == {"Polygon", "MultiPolygon"}
    assert whole.bounds[0] == -180 and whole.bounds[2] == 180 and whole.area < 20
