import geopandas
import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.windows import Window

from geomim.corpus.scenes import open_scene
from geomim.errors import InputError
from geomim.maps.scenes.areas import NoGroundError, open_area

UTM = Affine(10, 0, 500000, 0, -10, 5500000)
HOLED = shapely.Polygon([(3.1, 4.2), (60, 8), (55, 70.3), (10, 66)], [[(20.13, 20), (40, 22.07), (30, 50.9)]])
ISLAND = shapely.box(80.2, 10.1, 95.7, 30.6)


def scene(path, height=90, width=120, **place):
    place = place or {"crs": "EPSG:32633", "transform": UTM}
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=1, dtype="uint8", **place
    ) as raster:
        raster.write(np.ones((1, height, width), np.uint8))
    return open_scene(path, bands=["red"])


def vector(path, shapes, transform=UTM, crs="EPSG:32633", to=None):
    """Geometries in columns and rows as a file."""
    placed = [shapely.transform(one, lambda xy: np.stack(transform * xy.T, 1)) for one in shapes]
    table = geopandas.GeoDataFrame({"name": ["x"] * len(placed)}, geometry=placed, crs=crs)
    (table.to_crs(to) if to else table).to_file(path)
    return str(path)


def inside(shapes, height=90, width=120):
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return shapely.contains_xy(shapely.union_all(shapes), columns, rows)


def whole(area, height=90, width=120):
    return area.mask(Window(0, 0, width, height))


@pytest.mark.parametrize("ending", [".gpkg", ".geojson", ".shp"])
@pytest.mark.parametrize("to", [None, "EPSG:4326", "EPSG:3857", "EPSG:3035"])
def test_pixels_are_those_whose_middle_lies_inside(tmp_path, ending, to):
    if ending == ".geojson" and to != "EPSG:4326":
        to = "OGC:CRS84"
    parts = [shapely.MultiPolygon([HOLED, ISLAND])]
    area = open_area(vector(tmp_path / f"area{ending}", parts, to=to), scene(tmp_path / "scene.tif"))
    expected = inside(parts)
    assert (whole(area) != expected).sum() <= 2  # middles that lie on an edge
    assert 2000 < expected.sum() < 3500


def test_windows_see_the_same_as_the_whole_scene(tmp_path):
    area = open_area(vector(tmp_path / "area.gpkg", [HOLED, ISLAND]), scene(tmp_path / "scene.tif"))
    mask = whole(area)
    windows = [Window(left, top, 13, 17) for top in range(0, 90, 17) for left in range(0, 120, 13)]
    for window, touched in zip(windows, area.touches(windows), strict=True):
        part = mask[window.row_off : window.row_off + 17, window.col_off : window.col_off + 13]
        got = area.mask(window)[: part.shape[0], : part.shape[1]]
        assert np.array_equal(got, part)
        assert touched or not part.any()
    assert not area.touches([Window(100, 50, 10, 10), Window(28, 26, 3, 3)]).any()  # beside, and in the hole


def test_a_window_that_shares_a_border_alone_is_not_touched(tmp_path):
    area = open_area(vector(tmp_path / "a.gpkg", [shapely.box(32, 32, 64, 64)]), scene(tmp_path / "scene.tif"))
    windows = [Window(0, 32, 32, 32), Window(32, 32, 32, 32), Window(64, 64, 32, 32)]
    assert area.touches(windows).tolist() == [False, True, False]


def test_points_are_held_as_pixels_are(tmp_path):
    area = open_area(vector(tmp_path / "a.gpkg", [HOLED, ISLAND]), scene(tmp_path / "scene.tif"))
    points = np.random.default_rng(0).uniform(0, [120, 90], (500, 2))
    assert np.array_equal(area.holds(points), shapely.contains_xy(shapely.union_all([HOLED, ISLAND]), points))


def test_a_straight_edge_of_degrees_bends_over_a_large_scene(tmp_path):
    """Along a parallel the middle of 300 km lies 1.2 km from the straight line between its ends."""
    large = scene(tmp_path / "s.tif", 300, 300, crs="EPSG:32633", transform=Affine(1000, 0, 350000, 0, -1000, 5700000))
    table = geopandas.GeoDataFrame(geometry=[shapely.box(-170, 50, 170, 60)], crs="EPSG:4326")
    table.to_file(tmp_path / "area.gpkg")
    mask = whole(open_area(str(tmp_path / "area.gpkg"), large), 300, 300)
    columns, rows = np.meshgrid(np.arange(300) + 0.5, np.arange(300) + 0.5)
    lead = pyproj.Transformer.from_crs(32633, 4326, always_xy=True)
    latitude = lead.transform(350000 + 1000 * columns, 5700000 - 1000 * rows)[1]
    assert (mask != (latitude > 50)).sum() <= 3


def test_a_turned_scene_and_one_placed_by_points(tmp_path):
    turned = Affine(8, 3, 500000, 3, -8, 5500000)
    points = [GroundControlPoint(r, c, *(turned * (c, r))) for r in range(0, 91, 30) for c in range(0, 121, 30)]
    file = vector(tmp_path / "area.geojson", [HOLED, ISLAND], turned, to="EPSG:4326")
    for place in ({"transform": turned}, {"gcps": points}):
        area = open_area(file, scene(tmp_path / "s.tif", crs="EPSG:32633", **place))
        assert (whole(area) != inside([HOLED, ISLAND])).sum() <= 2


def test_a_scene_across_the_date_line(tmp_path):
    across = scene(tmp_path / "s.tif", 10, 40, crs="EPSG:4326", transform=Affine(0.1, 0, 178, 0, -0.1, 10))
    halves = [shapely.box(179, 9.5, 180, 10), shapely.box(-180, 9.5, -179, 10)]
    geopandas.GeoDataFrame(geometry=halves, crs="EPSG:4326").to_file(tmp_path / "a.gpkg")
    mask = whole(open_area(str(tmp_path / "a.gpkg"), across), 10, 40)
    assert np.array_equal(mask, inside([shapely.box(10, 0, 30, 5)], 10, 40))


def test_a_web_map_across_the_date_line(tmp_path):
    place = Affine(10, 0, 20037508.342789244 - 100, 0, -10, 1118889)
    halves = [shapely.box(179.9995, 9, 180, 11), shapely.box(-180, 9, -179.9995, 11)]  # 5.6 pixels each
    geopandas.GeoDataFrame(geometry=halves, crs="EPSG:4326").to_file(tmp_path / "a.gpkg")
    area = open_area(str(tmp_path / "a.gpkg"), scene(tmp_path / "s.tif", 10, 20, crs="EPSG:3857", transform=place))
    assert np.array_equal(whole(area, 10, 20), inside([shapely.box(4.4, 0, 15.6, 10)], 10, 20))


@pytest.mark.parametrize(("crs", "west", "step"), [
    ("EPSG:4326", -180, 3), ("EPSG:4326", 0, 3), ("EPSG:3857", -20037508.34, 333958.47)])  # fmt: skip
def test_a_scene_of_all_longitudes_or_nearly(tmp_path, crs, west, step):
    shapes = [shapely.box(170, 0, 180, 60), shapely.box(-180, 0, -170, 40), shapely.box(-60, -30, 20, 10)]
    geopandas.GeoDataFrame(geometry=shapes, crs="OGC:CRS84").to_file(tmp_path / "a.gpkg")
    place = Affine(step, 0, west, 0, -step, 30 * step)
    area = open_area(str(tmp_path / "a.gpkg"), scene(tmp_path / "s.tif", 60, 119, crs=crs, transform=place))
    columns, rows = np.meshgrid(np.arange(119) + 0.5, np.arange(60) + 0.5)
    lon, lat = pyproj.Transformer.from_crs(crs, "OGC:CRS84", always_xy=True).transform(*(place * (columns, rows)))
    expected = shapely.contains_xy(shapely.union_all(shapes), (lon + 180) % 360 - 180, lat)
    assert np.array_equal(whole(area, 60, 119), expected)


@pytest.mark.parametrize("west", [-180, 180])
@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32601"])
def test_an_area_that_counts_on_beyond_the_date_line(tmp_path, west, crs):
    """It meets scenes to the east of the line, which count from -180, and those across it."""
    table = geopandas.GeoDataFrame(geometry=[shapely.box(west - 0.02, 9.98, west + 0.02, 10.02)], crs="EPSG:4326")
    table.to_file(tmp_path / "a.geojson")
    for left in (-1, 1):  # degrees of the line, about
        x, y = (171000 + 1000 * left, 1111000) if crs == "EPSG:32601" else (-180 + 0.01 * left, 10.045)
        step = 100 if crs == "EPSG:32601" else 0.001
        area = open_area(
            str(tmp_path / "a.geojson"),
            scene(tmp_path / "s.tif", crs=crs, transform=Affine(step, 0, x, 0, -step, y)),
        )
        columns, rows = np.meshgrid(np.arange(120) + 0.5, np.arange(90) + 0.5)
        lead = pyproj.Transformer.from_crs(crs, 4326, always_xy=True)
        lon, lat = lead.transform(x + step * columns, y - step * rows)
        expected = (np.abs((lon - 180 + 180) % 360 - 180) < 0.02) & (np.abs(lat - 10) < 0.02)
        assert 300 < expected.sum() < 2000 and (whole(area) != expected).sum() <= 45, "middles that lie on an edge"


def test_geometries_that_are_all_empty_are_no_area(tmp_path):
    geopandas.GeoDataFrame(geometry=[None, shapely.Polygon()], crs="EPSG:4326").to_file(tmp_path / "a.gpkg")
    with pytest.raises(InputError, match="holds no polygon: all of its geometries are empty"):
        open_area(str(tmp_path / "a.gpkg"), scene(tmp_path / "s.tif"))


def test_crossing_outlines_are_mended_and_other_things_left_out(tmp_path):
    bow = shapely.Polygon([(10, 10), (50, 50), (50, 10), (10, 50)])
    area = open_area(vector(tmp_path / "a.gpkg", [bow]), scene(tmp_path / "s.tif"))
    assert "1 geometries" in area.notes[0] and abs(int(whole(area).sum()) - 800) <= 40
    with pytest.raises(InputError, match="holds no polygon"):
        open_area(vector(tmp_path / "b.gpkg", [shapely.Point(3, 3)]), scene(tmp_path / "s.tif"))


def test_a_file_that_misses_the_scene_is_told_with_both_extents(tmp_path):
    file = vector(tmp_path / "a.gpkg", [shapely.box(500, 500, 600, 600)])
    with pytest.raises(
        InputError, match=r"no ground in common: in EPSG:32633 it covers 505000\.\.506000, .* the scene 5"
    ):
        open_area(file, scene(tmp_path / "s.tif"))
    tiny = vector(tmp_path / "b.gpkg", [shapely.box(5.1, 5.1, 5.4, 5.4)])
    with pytest.raises(NoGroundError, match="less than a pixel"):  # of many scenes this one is left out
        open_area(tiny, scene(tmp_path / "s.tif"))


def test_a_file_without_a_system_is_taken_to_be_in_the_scenes_and_said_or_refused(tmp_path):
    area = open_area(vector(tmp_path / "a.shp", [ISLAND], crs=None), scene(tmp_path / "s.tif"))
    assert "no coordinate reference system" in area.notes[0] and "taken to be in that of" in area.notes[0]
    assert np.array_equal(whole(area), inside([ISLAND]))
    with pytest.raises(InputError, match="lie on no scene"):
        open_area(vector(tmp_path / "b.shp", [shapely.box(1e6, 0, 1e6 + 5, 5)], crs=None), scene(tmp_path / "s.tif"))


def test_a_scene_without_a_place_is_refused(tmp_path):
    with pytest.raises(InputError, match="has no place on Earth"):
        open_area(vector(tmp_path / "a.gpkg", [ISLAND]), scene(tmp_path / "s.tif", crs=None))
