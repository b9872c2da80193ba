import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.control import GroundControlPoint
from scipy.ndimage import gaussian_filter, label

from geomim.errors import ConfigError, InputError
from geomim.maps.outlines import hanging, regions, write_polygons
from geomim.maps.scenes.ground import Ground

NAMES = ["water", "forest", "town", "field"]


def blobs(height: int, width: int, classes: int = 4, smooth: float = 5, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    ids = np.stack([gaussian_filter(rng.normal(size=(height, width)), smooth) for _ in range(classes)]).argmax(0)
    ids[10:30, 5:18] = 255
    return ids.astype(np.uint8)


def write(path, ids, sure=None, **place):
    if not place:
        place = {"crs": "EPSG:32633", "transform": Affine(10, 0, 500000, 0, -10, 5500000)}
    bands = [ids] if sure is None else [ids, sure]
    height, width = ids.shape
    profile = {"driver": "GTiff", "dtype": "uint8", "nodata": 255, "height": height, "width": width}
    with rasterio.open(path, "w", count=len(bands), **profile, **place) as raster:
        raster.write(np.stack(bands))
    return path


def burnt(table, ids, transform):
    """The classes of polygons at the middles of pixels."""
    pairs = zip(table.geometry, table["id"], strict=True)
    return rasterio.features.rasterize(pairs, ids.shape, 255, transform=transform, dtype="uint8")


def test_sets_hang_together_by_their_sides():
    ids = np.random.default_rng(1).integers(0, 3, (60, 70))
    count, sets = hanging(ids)
    expected = sum(label(ids == value)[1] for value in range(3))
    assert count == expected == len(np.unique(sets))
    for one in range(count):
        assert len(np.unique(ids[sets == one])) == 1 and label(sets == one)[1] == 1


@pytest.mark.parametrize("tolerance", [0.0, 2.5])
@pytest.mark.parametrize("block", [16, 37, 500])
def test_blocks_of_any_size_give_the_same_regions(tmp_path, block, tolerance):
    """Whole and cut anyhow: as many regions, of as many pixels, and all the ground is covered once."""
    ids = blobs(100, 130)
    with rasterio.open(write(tmp_path / "map.tif", ids)) as raster:
        found = list(regions(raster, Ground.of_raster("map", raster), tolerance, block))
    assert len(found) == sum(label(ids == value)[1] for value in range(4))
    assert sum(one.pixels for one in found) == (ids != 255).sum()
    outlines = np.array([one.outline for one in found])
    assert shapely.is_valid(outlines).all() and {one.geom_type for one in outlines} == {"Polygon"}
    whole = shapely.union_all(outlines)
    assert shapely.area(outlines).sum() == pytest.approx(whole.area, rel=1e-12)  # no overlap
    gaps = shapely.box(0, 0, 130, 100) - whole
    if not tolerance:
        assert shapely.area(outlines).tolist() == [one.pixels for one in found]
        assert gaps.equals(shapely.box(5, 10, 18, 30))
    else:
        assert gaps.geom_type == "Polygon" and not gaps.interiors and gaps.area == pytest.approx(13 * 20, rel=0.3)
        wrong = burnt(
            geopandas.GeoDataFrame({"id": [one.value for one in found]}, geometry=outlines), ids, Affine.scale(1)
        )
        assert (wrong != ids).mean() < 0.06


def test_simplified_outlines_have_fewer_corners(tmp_path):
    path = write(tmp_path / "map.tif", blobs(200, 200, smooth=8))
    corners = []
    for metres in (None, 25, 60):
        write_polygons(path, tmp_path / "out.gpkg", NAMES, metres)
        corners.append(shapely.get_num_coordinates(geopandas.read_file(tmp_path / "out.gpkg").geometry).sum())
    assert corners[0] > 2 * corners[1] > 2.5 * corners[2]


@pytest.mark.parametrize("ending", [".gpkg", ".parquet"])
def test_a_table_lies_on_its_map_with_hectares_and_confidence(tmp_path, ending):
    ids = blobs(90, 120)
    sure = np.where(ids == 255, 255, 30 + 10 * ids).astype(np.uint8)
    path = write(tmp_path / "map.tif", ids, sure)
    said = write_polygons(path, tmp_path / f"out{ending}", NAMES)
    read = geopandas.read_file if ending == ".gpkg" else geopandas.read_parquet
    table = read(tmp_path / f"out{ending}")
    assert said == [f"wrote {tmp_path / 'out'}{ending}: {len(table)} polygons"]
    assert table.crs == "EPSG:32633" and [*table.columns] == ["class", "id", "hectares", "confidence", "geometry"]
    with rasterio.open(path) as raster:
        assert np.array_equal(burnt(table, ids, raster.transform), ids)
    scale = 0.9996**2  # of the plane of UTM on its middle meridian
    for value, name in enumerate(NAMES):
        own = table[table["id"] == value]
        assert set(own["class"]) == {name} and set(own["confidence"]) == {30 + 10 * value}
        assert own["hectares"].sum() == pytest.approx((ids == value).sum() / 100 / scale, rel=1e-4)
        assert np.allclose(own["hectares"], own.area / 1e4 / scale, rtol=1e-4)
    assert {file.name for file in tmp_path.iterdir()} == {"map.tif", f"out{ending}"}


def test_a_turned_map_and_one_placed_by_points(tmp_path):
    ids = blobs(60, 80)
    turned = Affine(8, 3, 500000, 3, -8, 5500000)
    corners = [(r, c, *(turned * (c, r))) for r in range(0, 61, 20) for c in range(0, 81, 20)]
    points = [GroundControlPoint(*one) for one in corners]
    for place in ({"crs": "EPSG:32633", "transform": turned}, {"crs": "EPSG:32633", "gcps": points}):
        write_polygons(write(tmp_path / "map.tif", ids, **place), tmp_path / "out.gpkg", NAMES)
        table = geopandas.read_file(tmp_path / "out.gpkg")
        assert table.crs == "EPSG:32633"
        assert np.array_equal(burnt(table, ids, turned), ids)
        assert table["hectares"].sum() == pytest.approx((ids != 255).sum() * 73 / 1e4, rel=2e-3)


def test_without_a_place_columns_and_rows_are_said(tmp_path):
    ids = blobs(40, 50)
    path = write(tmp_path / "map.tif", ids, crs=None)
    note, _ = write_polygons(path, tmp_path / "out.gpkg", NAMES)
    assert "columns and rows, these below 0" in note
    table = geopandas.read_file(tmp_path / "out.gpkg")
    assert table.crs is None and table["pixels"].sum() == (ids != 255).sum()
    assert np.array_equal(burnt(table, ids, Affine.scale(1, -1)), ids)
    with pytest.raises(InputError, match="leave --simplify out"):
        write_polygons(path, tmp_path / "other.gpkg", NAMES, 10)
    assert not (tmp_path / "other.gpkg").exists()


def test_metres_below_a_pixel_and_below_nothing(tmp_path):
    path = write(tmp_path / "map.tif", blobs(40, 50))
    note, _ = write_polygons(path, tmp_path / "out.gpkg", NAMES, 5)
    assert "less than a pixel of 10 m" in note
    with pytest.raises(ConfigError, match="above 0"):
        write_polygons(path, tmp_path / "out.gpkg", NAMES, 0)


@pytest.mark.parametrize("ending", [".gpkg", ".parquet"])
def test_a_map_of_nothing_has_a_table_of_nothing(tmp_path, ending):
    path = write(tmp_path / "map.tif", np.full((20, 30), 255, np.uint8))
    assert write_polygons(path, tmp_path / f"out{ending}", NAMES)[-1].endswith("0 polygons")
    read = geopandas.read_file if ending == ".gpkg" else geopandas.read_parquet
    table = read(tmp_path / f"out{ending}")
    assert not len(table) and {"class", "id", "hectares"} <= {*table.columns} and table.crs == "EPSG:32633"
