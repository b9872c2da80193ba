import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.io import MemoryFile

from geomim.corpus.scenes import find_scenes
from geomim.errors import InputError
from geomim.maps.scenes.ground import Ground

UTM, DEGREES, MERCATOR = (rasterio.CRS.from_epsg(code) for code in (32633, 4326, 3857))


def ground(crs, transform=None, points=None, height=300, width=400) -> Ground:
    with MemoryFile() as file:
        with file.open(driver="GTiff", height=height, width=width, count=1, dtype="uint8") as raster:
            if transform is not None:
                raster.transform, raster.crs = transform, crs
            if points is not None:
                raster.gcps = points, crs
        with file.open() as raster:
            return Ground.of_raster("memory", raster)


def bent(column, row):
    """A swath that turns and bends a little."""
    x = 500000 + 10 * column - 2 * row + 4e-4 * row**2
    return x, 5500000 - 10 * row - 3 * column + 3e-4 * column * row


def control_points():
    return [GroundControlPoint(r, c, *bent(c, r)) for r in range(0, 301, 30) for c in range(0, 401, 40)]


def test_pixels_cover_their_ground_whatever_the_system():
    """A degree, a metre of UTM and one of Mercator: the same ellipsoid."""
    geod = pyproj.Geod(ellps="WGS84")
    for crs, transform in (
        (DEGREES, Affine(1e-3, 0, 15, 0, -1e-3, 60.5)),
        (MERCATOR, Affine(100, 0, 1670000, 0, -100, 8400000)),
        (UTM, Affine(10, 2, 500000, 2, -10, 6650000)),
    ):
        own = ground(crs, transform)
        areas = own.window_areas(0, 0, 300, 400)
        lonlat = pyproj.Transformer.from_crs(crs.to_wkt(), "OGC:CRS84", always_xy=True)
        ring = shapely.get_coordinates(shapely.segmentize(own.outline, own.outline.length / 4000))
        true = abs(geod.polygon_area_perimeter(*lonlat.transform(*ring.T))[0])
        assert areas.shape == (300, 400)
        assert areas.sum() == pytest.approx(true, rel=2e-6)


@pytest.mark.parametrize(("north", "rows"), [(90, 180), (90, 30), (-60, 30)])
def test_pixels_up_to_a_pole_cover_their_ground_however_they_are_read(north, rows):
    """Half a pixel beyond the pole there is no ground to compare theirs with."""
    own = ground(DEGREES, Affine(1, 0, -180, 0, -1, north), height=rows, width=360)
    areas, parts = own.window_areas(0, 0, rows, 360), own.window_areas(0, 100, rows, 50)
    edges = np.radians(north - np.arange(rows + 1.0))
    geod, eccentricity = pyproj.Geod(ellps="WGS84"), pyproj.Geod(ellps="WGS84").es ** 0.5
    sine = np.sin(edges)
    zones = geod.b**2 / 2 * (sine / (1 - geod.es * sine**2) + np.arctanh(eccentricity * sine) / eccentricity)
    np.testing.assert_allclose(areas, np.repeat(np.radians(1) * -np.diff(zones)[:, None], 360, 1), rtol=1e-4)
    np.testing.assert_allclose(parts, areas[:, 100:150], rtol=1e-6)


def test_a_pixel_of_mercator_is_not_what_its_system_says():
    assert ground(MERCATOR, Affine(100, 0, 0, 0, -100, 8400000)).areas(*np.zeros((2, 1))) < 0.3 * 100**2


def test_without_a_place_rows_lie_below_zero_and_nothing_has_metres():
    own = ground(None)
    assert not own.known and not own.measured and own.crs is None
    (shape,) = own.shapes(np.array([shapely.box(1, 2, 3, 5)]))
    assert shape.bounds == (1, -5, 3, -2)
    assert shapely.equals(own.pixels(np.array([shape]))[0], shapely.box(1, 2, 3, 5))


def test_a_local_system_counts_its_plane():
    mars = rasterio.CRS.from_wkt(pyproj.CRS.from_proj4("+proj=eqc +R=3396190 +units=m").to_wkt())
    assert ground(mars, Affine(5, 0, 0, 0, -5, 0)).areas(np.zeros(1), np.zeros(1)) == pytest.approx(25)


def test_control_points_lead_there_and_back():
    own = ground(UTM, points=control_points())
    columns, rows = np.random.default_rng(0).uniform(0, [400, 300], (200, 2)).T
    points = shapely.points(*own.place(columns, rows))
    back = shapely.get_coordinates(own.pixels(points))
    assert np.abs(back - np.stack([columns, rows], 1)).max() < 1e-3
    assert own.measured and own.areas(np.array([200.0]), np.array([150.0]))[0] == pytest.approx(106, rel=0.02)


def test_edges_bend_with_control_points():
    own = ground(UTM, points=control_points())
    x, y = bent(np.full(301, 400.0), np.arange(301.0))
    assert shapely.distance(own.outline.exterior, shapely.points(x, y)).max() < 1.5  # of pixels of 10 m


def test_bearings_are_from_north_or_from_the_upper_side():
    starts, ends = np.zeros((4, 2)), np.array([[0.0, -1], [1, 0], [1, 1], [-1, -1]])
    assert ground(None).bearings(starts, ends).tolist() == [0, 90, 135, -45]
    turned = ground(UTM, Affine(0, 10, 500000, 10, 0, 5500000))  # columns run north, rows east
    assert turned.bearings(starts, ends) == pytest.approx([-90, 0, 45, -135], abs=0.01)


def test_real_scenes_of_every_placement_lead_there_and_back(data_dir):
    """By an affine, a turned one, and control points: 0.001 pixels at most."""
    found = []
    for uri in find_scenes([str(data_dir / "geotiff_quirks")]):
        try:
            with rasterio.open(uri) as raster:
                own = Ground.of_raster(uri, raster)
        except (InputError, rasterio.errors.RasterioError):
            continue
        columns, rows = np.random.default_rng(0).uniform(0, [own.width, own.height], (50, 2)).T
        back = own.back(*own.place(columns, rows))
        assert np.abs(back - np.stack([columns, rows])).max() < 1e-3, uri
        found.append(own.transform is None)
    assert len(found) > 10 and any(found)
