import numpy as np
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.windows import Window

from geomim.corpus.scenes import footprints
from geomim.corpus.scenes.footprints import affine


def footprint(crs, transform, height, width):
    return footprints.footprints(crs, transform and affine(transform), [Window(0, 0, width, height)])[0]


def ground_sample_distance(crs, transform, height, width):
    return footprints.ground_sample_distance(crs, transform and affine(transform), height, width)


def grid(west, north, pixel):
    return Affine(pixel, 0, west, 0, -pixel, north)


def test_small_windows_have_four_corners_and_the_right_area():
    outline = footprint(CRS.from_epsg(32632), grid(5e5, 54e5, 10), 256, 256)
    assert len(outline.exterior.coords) == 5 and outline.is_valid
    metres = outline.area * 111195**2 * np.cos(np.deg2rad(outline.centroid.y))
    assert metres == pytest.approx(2560**2, rel=0.01)


def test_edges_that_are_curves_are_densified():
    outline = footprint(CRS.from_epsg(3035), grid(2.5e6, 5.5e6, 1000), 2000, 4000)
    assert len(outline.exterior.coords) == 4 * 16 + 1


def test_dateline_splits_and_pole_has_none():
    outline = footprint(CRS.from_epsg(3857), grid(20037508 - 5e4, 5e6, 100), 1000, 1000)
    assert outline.geom_type == "MultiPolygon" and outline.is_valid
    assert outline.bounds[0] == -180 and outline.bounds[2] == 180
    assert outline.area == pytest.approx(footprint(CRS.from_epsg(3857), grid(0, 5e6, 100), 1000, 1000).area, rel=1e-6)
    assert footprint(CRS.from_epsg(3031), grid(-5e4, 5e4, 100), 1000, 1000) is None
    beside = footprint(CRS.from_epsg(3031), grid(2e5, 5e4, 100), 1000, 1000)
    assert beside.is_valid and beside.bounds[3] < -85


def test_longitudes_beyond_180_come_home():
    outline = footprint(CRS.from_epsg(4326), grid(200, 10, 0.01), 100, 100)
    assert outline.bounds == pytest.approx((-160, 9, -159, 10))


def test_whole_earth_and_nonsense():
    whole = footprint(CRS.from_epsg(4326), grid(-180, 90, 1), 180, 360)
    assert whole.bounds == (-180, -90, 180, 90)
    assert footprint(CRS.from_epsg(4326), grid(0, 0, 1), 512, 512) is None  # pixels taken for degrees


def test_a_shape_that_leaves_the_projection_has_no_place():
    disc, place = CRS.from_proj4("+proj=geos +h=35785831 +lon_0=0"), affine(grid(0, 5.5e6, 1e5))
    assert footprints.on_ground(disc, place, shapely.box(0, 0, 10, 10)) is None  # the Earth ends at 5.4e6
    inside = footprints.on_ground(disc, place, shapely.box(0, 50, 10, 60))
    assert inside.is_valid and inside.bounds[:2] == pytest.approx((0, -4.54), abs=0.01)


def test_no_place_on_earth_is_none():
    mars = CRS.from_proj4("+proj=eqc +R=3396190 +units=m")
    for crs, transform in ((mars, grid(0, 0, 5)), (None, grid(0, 0, 5)), (CRS.from_epsg(4326), None)):
        assert footprint(crs, transform, 10, 10) is None
        assert ground_sample_distance(crs, transform, 10, 10) is None


def test_ground_sample_distance_is_true_and_not_nominal():
    web = CRS.from_epsg(3857)
    assert ground_sample_distance(web, grid(0, 0, 10), 2, 2) == pytest.approx(10, rel=5e-3)
    assert ground_sample_distance(web, grid(0, 8.4e6, 10), 2, 2) == pytest.approx(10 * np.cos(np.deg2rad(60)), rel=0.01)
    assert ground_sample_distance(CRS.from_epsg(4326), grid(0, 0, 1 / 3600), 2, 2) == pytest.approx(30.8, rel=5e-3)


def test_mirrored_grids_give_valid_polygons():
    upside_down = footprint(CRS.from_epsg(32632), Affine(10, 0, 5e5, 0, 10, 54e5), 100, 100)
    upright = footprint(CRS.from_epsg(32632), Affine(10, 0, 5e5, 0, -10, 54e5 + 1000), 100, 100)
    assert shapely.equals_exact(upside_down, upright, 1e-8, normalize=True)
