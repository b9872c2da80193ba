"""Pictures of rasters and outlines: in their place, in their colours, with the names of what they show."""

from types import SimpleNamespace

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
from rasterio.transform import from_origin

from geomim.corpus.synthetic.files import write_classes
from geomim.errors import InputError, MissingExtraError
from geomim.maps import look as looking
from geomim.maps.look import look, web_map

PLACE = from_origin(500000, 6150000, 10, 10)
NAMES = ("none", "water", "forest")


@pytest.fixture
def classes(tmp_path):
    """40 x 60: water left, forest right, nothing on top."""
    ids = np.ones((40, 60), np.uint8)
    ids[:, 30:], ids[:10] = 2, 0
    write_classes(tmp_path / "classes.tif", ids, PLACE, NAMES)
    return tmp_path / "classes.tif"


@pytest.fixture
def outlines(tmp_path):
    """Two squares of 100 m, in degrees: one within the raster, one far away."""
    squares = [shapely.box(x, 6149800, x + 100, 6149900) for x in (500100, 900000)]
    frame = gpd.GeoDataFrame({"class": ["in", "out"]}, geometry=squares, crs=32719).to_crs(4326)
    frame.to_file(tmp_path / "squares.gpkg")
    return tmp_path / "squares.gpkg"


def numbers(path, values, **profile):
    given = {"driver": "GTiff", "count": 1, "dtype": values.dtype, "crs": 32719, "transform": PLACE} | profile
    with rasterio.open(path, "w", height=values.shape[0], width=values.shape[1], **given) as raster:
        raster.write(values, 1)
    return path


def test_classes_have_their_colours_and_names_and_the_rest_is_clear(classes):
    layer = looking._layer(classes, None, None, None, {})
    with rasterio.open(classes) as raster:
        colours = raster.colormap(1)
    assert tuple(layer.picture[20, 10]) == colours[1] and tuple(layer.picture[20, 50]) == colours[2]
    assert (layer.picture[:10, :, 3] == 0).all()
    assert list(layer.legend) == ["water", "forest"]  # what is there


def test_a_class_has_one_colour_in_all_panels_whatever_its_id(classes, tmp_path):
    write_classes(tmp_path / "other.tif", np.full((40, 60), 3, np.uint8), PLACE, ("none", "forest", "rock", "water"))
    named = {}
    first, second = (looking._layer(path, None, None, None, named) for path in (classes, tmp_path / "other.tif"))
    assert tuple(second.picture[20, 10]) == tuple(first.picture[20, 10]) and list(second.legend) == ["water"]
    assert tuple(second.legend["water"]) == tuple(first.legend["water"])


def test_numbers_span_the_colours_and_nodata_is_clear(tmp_path):
    values = np.linspace(0, 1, 2400, dtype=np.float32).reshape(40, 60)
    values[0, 0] = np.nan
    layer = looking._layer(numbers(tmp_path / "heat.tif", values, nodata=np.nan), None, None, None, {})
    assert layer.picture[0, 0, 3] == 0 and layer.picture[1:, :, 3].all()
    assert tuple(layer.picture[0, 1, :3]) == (68, 1, 84) and tuple(layer.picture[-1, -1, :3]) == (253, 231, 36)
    lowest, *_, highest = map(float, layer.legend)
    assert lowest < 0.02 and highest > 0.98


def test_bounds_are_of_the_ground_and_large_rasters_are_thinned(classes, tmp_path):
    layer = looking._layer(classes, (500200, 6149600, 500400, 6149700), None, None, {})
    assert layer.picture.shape[:2] == (10, 20) and layer.transform * (0, 0) == (500200, 6149700)
    big = numbers(tmp_path / "big.tif", np.zeros((100, 4000), np.float32))
    thin = looking._layer(big, None, None, None, {})
    assert max(thin.picture.shape) <= 900 and thin.transform * (thin.picture.shape[1], 0) == (540000, 6150000)
    with pytest.raises(InputError, match="does not lie within the bounds"):
        look(classes, bounds=(0, 0, 1, 1))


def test_outlines_of_another_reference_system_lie_where_they_are(classes, outlines):
    plain, drawn = (np.asarray(look(one)).astype(int) for one in (classes, (classes, outlines)))
    height = min(len(plain), len(drawn))
    rows, columns = np.nonzero(np.abs(plain[:height] - drawn[:height]).sum(2)[: height // 2] > 200)
    width = plain.shape[1] / 60  # of a pixel, but for the margins
    assert abs(columns.min() / width - 10) < 1.5 and abs(columns.max() / width - 20) < 1.5
    assert len({*zip(rows.tolist(), columns.tolist(), strict=True)}) > 50  # an outline


def test_what_has_no_place_takes_no_outlines(tmp_path, outlines):
    raster = numbers(tmp_path / "plain.tif", np.zeros((20, 20), np.float32), crs=None, transform=None)
    assert look(raster).size[0] > 100
    with pytest.raises(InputError, match=r"has no place: .*cannot be laid over it"):
        look((raster, outlines))
    with pytest.raises(InputError, match="expected a raster, or several; given none"):
        look()


def test_a_picture_for_web_maps_lies_where_the_raster_does(classes):
    picture, (west, south, east, north) = looking._mercator(looking._layer(classes, None, None, None, {}))
    x, y = rasterio.warp.transform("EPSG:32719", "EPSG:4326", [500000, 500600], [6149600, 6150000])
    np.testing.assert_allclose([west, east, south, north], [*x, *y], atol=2e-4)
    shares = (picture[..., 3] > 0).mean()
    assert 0.7 < shares < 0.78  # three quarters hold classes


def test_a_map_to_move_needs_folium_or_says_so(classes, outlines):
    try:
        import folium
    except ModuleNotFoundError:
        with pytest.raises(MissingExtraError, match=r"pip install 'geomim\[notebooks\]'"):
            web_map(classes)
        return
    shown = web_map(classes, outlines, background=None)
    assert isinstance(shown, folium.Map)
    page = shown.get_root().render()
    assert "classes.tif" in page and "squares.gpkg" in page and "data:image/png;base64" in page
    gpd.read_file(outlines)[:0].to_file(outlines.with_name("none.gpkg"))
    assert "none.gpkg" not in web_map(classes, outlines.with_name("none.gpkg"), background=None).get_root().render()


def test_times_and_lists_of_a_table_do_not_stop_a_map_to_move(classes, tmp_path):
    pytest.importorskip("folium")
    times, kinds = pd.to_datetime(["2021-06-01", None]), ["river", None]
    frame = gpd.GeoDataFrame(
        {"time": times, "embedding": [[1.0, 2.0]] * 2, "class": kinds, "id": [7, 8], "at": [{"a": 1}] * 2},
        geometry=[shapely.box(x, 6149800, x + 100, 6149900) for x in (500100, 500300)], crs=32719,
    )  # fmt: skip
    frame["middle"] = frame.centroid
    frame.to_parquet(tmp_path / "tiles.parquet")
    shown, colours = looking._frame(tmp_path / "tiles.parquet")
    assert list(shown.columns) == ["time", "class", "id", "geometry"] and list(shown["id"]) == [7, 8]
    assert shown["time"][0] == "2021-06-01 00:00:00" and list(colours) == ["none", "river"]
    page = web_map(classes, tmp_path / "tiles.parquet", background=None).get_root().render()
    assert "2021-06-01 00:00:00" in page and "embedding" not in page
    frame[["geometry"]].to_parquet(tmp_path / "plain.parquet")
    assert "plain.parquet" in web_map(tmp_path / "plain.parquet", background=None).get_root().render()
    assert look((classes, tmp_path / "tiles.parquet")).size[0] > 100


@pytest.mark.parametrize("name", ["a.gpkg", "a.geojson", "a.parquet", "gone.gpkg", "gone.parquet"])
def test_outlines_that_cannot_be_read_are_named(classes, tmp_path, name):
    if name.startswith("a"):
        (tmp_path / name).write_text("no outlines")
    with pytest.raises(InputError, match=rf"vector file '.*{name}' cannot be read"):
        look((classes, tmp_path / name))


def test_a_table_without_outlines_is_named(classes, tmp_path):
    (tmp_path / "a.csv").write_text("class,count\nriver,1\n")
    with pytest.raises(InputError, match=r"vector file '.*a.csv' holds no geometry"):
        look((classes, tmp_path / "a.csv"))


def test_palettes_of_more_than_256_colours_are_shown(tmp_path):
    ids = np.full((20, 20), 300, np.uint16)
    ids[:, 10:], ids[10:] = 2, 5000
    path = numbers(tmp_path / "many.tif", ids, photometric="palette")
    with rasterio.open(path, "r+") as raster:
        raster.write_colormap(1, {2: (1, 2, 3, 255), 300: (9, 8, 7, 255)})
    layer = looking._layer(path, None, None, None, {})
    assert tuple(layer.picture[0, 0]) == (9, 8, 7, 255) and tuple(layer.picture[0, 15]) == (1, 2, 3, 255)
    assert {"2", "300"} <= {*layer.legend}
    bare = SimpleNamespace(colormap=lambda _: {2: (1, 2, 3, 255)}, tags=lambda *_: {})
    picture, legend = looking._classes(bare, np.ma.array(ids), {})  # which has numbers without a colour
    assert not picture[0, 0].any() and tuple(picture[0, 15]) == (1, 2, 3, 255) and list(legend) == ["2"]
