"""Vector files over scenes: any coordinate reference system, and whatever is wrong with polygons, told."""

import geopandas
import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from rasterio.transform import from_origin

from geomim.errors import InputError
from geomim.finetune.labels import Item, Labels, open_labels, rasters, vectors
from geomim.finetune.labels.rasters import read_mask
from geomim.maps.scenes.areas import on_scene
from geomim.maps.scenes.ground import Ground

WEST, NORTH, METRES, SIDE = 500_000, 4_000_000, 10, 60


def scene(path, east=0, crs="EPSG:32633", place=None):
    path.parent.mkdir(exist_ok=True)
    place = place or from_origin(WEST + east, NORTH, METRES, METRES)
    options = {"height": SIDE, "width": SIDE, "count": 3, "dtype": "uint8", "crs": crs, "transform": place}
    with rasterio.open(path, "w", driver="GTiff", photometric="RGB", **options) as raster:
        raster.write(np.random.default_rng(0).integers(1, 255, (3, SIDE, SIDE), np.uint8))
    return str(path)


def ground(left, top, right, bottom):
    """A rectangle of pixels."""
    return shapely.box(WEST + left * METRES, NORTH - bottom * METRES, WEST + right * METRES, NORTH - top * METRES)


def layer(path, shapes, classes, crs="EPSG:32633", column="class", to=None):
    table = geopandas.GeoDataFrame({column: classes}, geometry=shapes, crs=crs)
    (table if to is None else table.to_crs(to)).to_file(path)
    return str(path)


def mask(labels, at=0):
    return read_mask(labels, labels.items[at], 0, 0, SIDE)


FIELD, LAKE = ground(30, 10, 50, 20), ground(5, 40, 15, 55)
EXPECTED = np.full((SIDE, SIDE), -1)
EXPECTED[10:20, 30:50], EXPECTED[40:55, 5:15] = 0, 1


@pytest.mark.parametrize(
    ("name", "to"), [("a.gpkg", None), ("a.geojson", "OGC:CRS84"), ("a.shp", "EPSG:3857"), ("a.fgb", "EPSG:4326")]
)
def test_polygons_of_any_system_label_the_pixels_that_they_cover(tmp_path, name, to):
    file = layer(tmp_path / name, [FIELD, LAKE], ["field", "lake"], to=to)
    labels = open_labels([scene(tmp_path / "scene.tif")], file)
    assert (labels.kind, labels.classes) == ("mask", ("field", "lake"))
    assert (mask(labels) == EXPECTED).all()
    assert any("column 'class'" in note for note in labels.notes)
    assert any("are brought from" in note for note in labels.notes) == (to is not None)


def test_a_file_of_no_system_or_of_a_wrong_one_is_taken_to_be_in_the_scenes_where_it_lies_on_it(tmp_path):
    image = scene(tmp_path / "scene.tif")
    bare = layer(tmp_path / "bare.shp", [FIELD, LAKE], ["field", "lake"], crs=None)
    labels = open_labels([image], bare)
    assert (mask(labels) == EXPECTED).all() and "tells no coordinate reference system" in labels.notes[0]
    wrong = tmp_path / "wrong.geojson"  # projected coordinates, and GeoJSON's own longitude and latitude
    layer(wrong, [FIELD, LAKE], ["field", "lake"])
    text = wrong.read_text()
    start = text.index('"crs"')
    wrong.write_text(text[:start] + text[text.index('"features"') :])
    labels = open_labels([image], str(wrong))
    assert (mask(labels) == EXPECTED).all()
    assert "tells WGS 84" in labels.notes[0] and "taken to be in that of" in labels.notes[0]
    far = layer(tmp_path / "far.shp", [shapely.transform(FIELD, lambda xy: xy + 1e6)], ["field"], crs=None)
    with pytest.raises(InputError, match="lie on no scene, neither as longitude and latitude nor in the scene's own"):
        open_labels([image], far)


def test_labels_outside_all_scenes_are_refused_and_some_outside_are_counted(tmp_path):
    image, away = scene(tmp_path / "scene.tif"), ground(900, 10, 920, 20)
    with pytest.raises(
        InputError, match=r"none of the 1 geometries .* columns and rows .* of 60 x 60, they lie in 900\.\.920"
    ):
        open_labels([image], layer(tmp_path / "away.gpkg", [away], ["field"]))
    labels = open_labels(
        [image, scene(tmp_path / "other.tif", 5000)],
        layer(tmp_path / "a.gpkg", [FIELD, LAKE, away], ["field", "lake", "lake"]),
    )
    assert "1 of 3 geometries lie on no scene, and are left out" in labels.notes
    assert labels.refused == ((str(tmp_path / "other.tif"), "no label lies on it"),)


def test_holes_crossings_overlaps_and_missing_classes_are_mended_and_counted(tmp_path):
    holed = shapely.difference(ground(0, 0, 30, 30), ground(10, 10, 20, 20))
    bow = shapely.Polygon(
        [(WEST + x * METRES, NORTH - y * METRES) for x, y in ((40, 40), (50, 50), (50, 40), (40, 50))]
    )
    shapes, classes = [ground(2, 2, 6, 6), holed, bow, LAKE, None], ["lake", "field", "field", None, "lake"]
    labels = open_labels([scene(tmp_path / "scene.tif")], layer(tmp_path / "a.gpkg", shapes, classes))
    found = mask(labels)
    assert (found[10:20, 10:20] == -1).all() and found[0, 0] == 0
    assert (found[2:6, 2:6] == 1).all(), "the smaller one counts, though it stands first"
    assert found[45, 41] == 0 and found[41, 45] == -1, "the two halves of the bow"
    for note in (
        "1 geometries cross themselves, and are made valid", "1 polygons have holes, which are not of their class",
        "1 geometries have no class: what they alone cover is not labelled", "1 geometries are empty, and left out",
        "1 pairs of geometries of different classes overlap: the smaller one counts",
    ):  # fmt: skip
        assert note in labels.notes


def test_what_no_polygon_of_one_class_covers_is_background_unless_said_otherwise(tmp_path):
    image, file = scene(tmp_path / "scene.tif"), layer(tmp_path / "buildings.gpkg", [FIELD], [1], column="number")
    labels = open_labels([image], file)
    assert labels.classes == ("background", "buildings") and (mask(labels) == (EXPECTED == 0)).all()
    assert any("the layer's name" in note for note in labels.notes) and any(
        "--outside" in note for note in labels.notes
    )
    assert set(np.unique(mask(open_labels([image], file, outside="unlabelled")))) == {-1, 0}
    two = layer(tmp_path / "two.gpkg", [FIELD, LAKE], ["field", "lake"])
    assert set(np.unique(mask(open_labels([image], two, outside="background")))) == {0, 1, 2}
    own = layer(tmp_path / "own.gpkg", [FIELD, LAKE], ["field", "background"])
    labels = open_labels([image], own, outside="background")
    assert labels.classes == ("background", "field") and set(np.unique(mask(labels))) == {0, 1}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["1", "forest"], r"holds numbers \(1\) and words \(forest\), and a class is one of them"),
        ([250.9, 3.5], r"holds measurements \(250.9, 3.5\), and no classes"),
        (["1", "1.0"], r"holds one number written in several ways \(1, 1.0\)"),
        ([None, None], "holds nothing"),
    ],
)
def test_columns_that_hold_no_classes_are_refused_by_name(tmp_path, values, said):
    file = layer(tmp_path / "a.gpkg", [FIELD, LAKE], values, column="cover")
    with pytest.raises(InputError, match=rf"column 'cover' of '.*a.gpkg' {said}.*--class-column"):
        open_labels([scene(tmp_path / "scene.tif")], file, class_column="cover")
    with pytest.raises(InputError, match="has no column 'colour'"):
        open_labels([scene(tmp_path / "scene.tif")], file, class_column="colour")


def test_points_label_the_pixel_that_they_lie_in(tmp_path):
    points = [shapely.Point(WEST + 125, NORTH - 37), shapely.Point(WEST + 301, NORTH - 309)]
    labels = open_labels([scene(tmp_path / "scene.tif")], layer(tmp_path / "p.gpkg", points, ["a", "b"]))
    assert (
        np.argwhere(mask(labels) >= 0) == [[3, 12], [30, 30]]
    ).all() and "2 points label the pixel that they lie in" in labels.notes
    with pytest.raises(InputError, match="points or lines of one class, a: nothing says what is not of it"):
        open_labels([scene(tmp_path / "scene.tif")], layer(tmp_path / "q.gpkg", points, ["a", "a"]))


def test_each_scene_asks_for_the_shapes_around_it_alone(tmp_path, monkeypatch):
    images = [scene(tmp_path / f"{east}.tif", east) for east in range(0, 12_000, 600)]
    away = [scene(tmp_path / f"zone34_{number}.tif", 600 * number, "EPSG:32634") for number in range(2)]
    shapes = [ground(60 * number + 10, 10, 60 * number + 20, 20) for number in range(20)]
    file = layer(tmp_path / "a.gpkg", shapes, ["field"] * 20, to="OGC:CRS84")
    placed = []
    monkeypatch.setattr(vectors, "on_scene", lambda *given: placed.append(on_scene(*given)) or placed[-1])
    labels = open_labels([*images, *away], file)
    assert [len(shapes) for shapes, _ in placed] == [1] * 20 + [0] * 2 and len(labels.items) == 20
    for at in (0, 7, 19):
        found = np.argwhere(mask(labels, at) == 1)
        assert (
            found.min(0).tolist() == [10, 10]
            and found.max(0).tolist() == [19, 19]
            and len(labels.items[at].labels) == 1
        )
    assert {uri for uri, why in labels.refused} == {*away}


def test_a_window_asks_for_the_shapes_that_reach_into_it_alone_and_is_as_of_the_whole(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(2, 56, 4), np.arange(2, 56, 4))
    at = np.stack([x.flat, y.flat], 1)[:, None] + random.uniform(0, 4, (x.size, 3, 2))
    fields = [shapely.Polygon(one) for one in at]
    coast = shapely.Point(30, 30).buffer(27.3, quad_segs=500).difference(shapely.Point(28, 33).buffer(20.2))
    line, point = shapely.LineString([(-5, 3), (44, 61)]), shapely.Point(33.5, 7.5)
    shapes = np.array([coast, *fields, line, point])
    item = Item("", SIDE, SIDE, shapes=shapes, labels=np.arange(len(shapes)) % 5)
    labels, counts, burn = Labels("mask", tuple("abcde"), (item,)), [], rasters.rasterize
    whole = burn(zip(shapes, item.labels.tolist(), strict=False), out=np.full((SIDE, SIDE), -1), all_touched=False)
    monkeypatch.setattr(rasters, "rasterize", lambda pairs, **how: counts.append(pairs) or burn(pairs, **how))
    found = np.full((SIDE + 4, SIDE + 4), -2)
    for top in range(0, SIDE, 16):
        for left in range(0, SIDE, 16):
            found[top : top + 16, left : left + 16] = read_mask(labels, item, top, left, 16)
    assert (found[:SIDE, :SIDE] == whole).all() and (found[SIDE:] == -1).all() and len({*whole.flat}) == 6
    assert max(map(len, counts)) < 40 < len(shapes) / 4, "fields, and not all"
    corners = [shapely.get_num_coordinates(shape) for pairs in counts for shape, _ in pairs]
    assert max(corners) < 1000 < shapely.get_num_coordinates(coast), "a coast is cut to the window"


def test_the_split_of_a_scene_is_its_folders_word_and_not_its_own(tmp_path):
    file = layer(tmp_path / "a.gpkg", [FIELD], ["field"])
    scene(tmp_path / "all" / "area_test.tif")
    scene(tmp_path / "all" / "val" / "a.tif")
    labels = open_labels([str(tmp_path / "all")], file)
    assert [item.split for item in labels.items] == [None, "val"]


def test_geometries_that_another_grid_rounds_to_cross_themselves_are_made_valid_again(tmp_path, monkeypatch):
    bow = shapely.Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])
    monkeypatch.setattr(Ground, "pixels", lambda self, shapes: np.array([bow, shapely.box(0, 0, 6, 6)]))
    labels = open_labels([scene(tmp_path / "scene.tif")], layer(tmp_path / "a.gpkg", [FIELD, FIELD], ["field", "lake"]))
    assert shapely.is_valid(labels.items[0].shapes).all()
    assert "1 pairs of geometries of different classes overlap: the smaller one counts" in labels.notes


@pytest.mark.parametrize(
    ("crs", "west", "step"),
    [
        ("EPSG:4326", 180 - 0.003, 1e-4),
        ("EPSG:4326", 285 - 0.003, 1e-4),  # counts from 0 to 360
        ("EPSG:3857", 20037508.342789244 - 300, 10),
        ("EPSG:32660", 829000 - 300, 10),
    ],
)
def test_scenes_across_the_date_line_or_a_turn_away_have_the_labels_of_both_sides(tmp_path, crs, west, step):
    place = from_origin(west, 1_100_000 if step == 10 else 10, step, step)
    lead, shapes = pyproj.Transformer.from_crs(crs, "OGC:CRS84", always_xy=True), []
    for left in (4, 36):
        column, row = np.array([(left, 10), (left + 20, 10), (left + 20, 50), (left, 50)]).T
        longitude, latitude = lead.transform(*(place * (column, row)))
        shapes.append(shapely.Polygon(np.stack([(longitude + 180) % 360 - 180, latitude], 1)))
    file = layer(tmp_path / "a.geojson", shapes, ["field", "lake"], crs="OGC:CRS84")
    labels = open_labels([scene(tmp_path / "scene.tif", crs=crs, place=place)], file)
    expected = np.full((SIDE, SIDE), -1)
    expected[10:50, 4:24], expected[10:50, 36:56] = 0, 1
    assert (mask(labels) == expected).all() and not any("lie on no scene" in note for note in labels.notes)


def test_a_long_edge_lies_where_the_system_of_its_file_has_it(tmp_path):
    """Between its ends an edge of 2 degrees along a parallel leaves the straight line of UTM by half a kilometre."""
    x, y = pyproj.Transformer.from_crs("OGC:CRS84", "EPSG:32633", always_xy=True).transform(15.0, 46.0)
    image = scene(tmp_path / "scene.tif", place=from_origin(x - 300, y + 300, METRES, METRES))
    file = layer(tmp_path / "a.gpkg", [shapely.box(14, 45, 16, 46)], ["sea"], crs="OGC:CRS84")
    assert (mask(open_labels([image], file)) == (np.arange(SIDE) >= 30)[:, None]).all()


def test_where_areas_lie_on_one_another_the_whole_of_them_tells_the_smaller_one(tmp_path):
    long, broad = ground(0, 0, 40, 900), ground(-20, 0, 80, 40)  # the larger one has less of it around the scene
    file = layer(tmp_path / "a.gpkg", [broad, long], ["broad", "long"], to="OGC:CRS84")
    labels = open_labels([scene(tmp_path / "scene.tif")], file)
    assert labels.classes[mask(labels)[20, 20]] == "broad"


def test_what_no_class_is_told_of_is_neither_the_one_class_nor_what_lies_outside(tmp_path):
    both = ground(25, 5, 40, 15)
    file = layer(tmp_path / "a.gpkg", [FIELD, LAKE, both], ["field", None, None])
    labels = open_labels([scene(tmp_path / "scene.tif")], file)
    expected = (EXPECTED == 0).astype(int)
    expected[40:55, 5:15] = -1
    expected[5:15, 25:40] = np.where(expected[5:15, 25:40] == 1, 1, -1)
    assert labels.classes == ("background", "field") and (mask(labels) == expected).all()
    assert not any("overlap" in note for note in labels.notes)


@pytest.mark.parametrize(("given", "classes"), [([True, False], ("False", "True")), (["yes", "no"], ("no", "yes"))])
def test_yes_and_no_are_two_classes(tmp_path, given, classes):
    file = layer(tmp_path / "layer.gpkg", [FIELD, LAKE], given)
    assert open_labels([scene(tmp_path / "scene.tif")], file).classes == classes


def test_a_layer_of_several_is_given_as_the_refusal_says(tmp_path):
    image, file = scene(tmp_path / "scene.tif"), tmp_path / "a.gpkg"
    for name, shapes in (("fields", [FIELD, LAKE]), ("lakes", [LAKE, FIELD])):
        geopandas.GeoDataFrame({"class": ["field", "lake"]}, geometry=shapes, crs=32633).to_file(file, layer=name)
    with pytest.raises(InputError, match=r"give .*a\.gpkg:fields, or another"):
        open_labels([image], str(file))
    assert (mask(open_labels([image], f"{file}:fields")) == EXPECTED).all()
    with pytest.raises(InputError, match="has no layer 'field'"):
        open_labels([image], f"{file}:field")
    with pytest.raises(InputError, match=r"scene.tif' have no layer 'fields'"):
        open_labels([image], f"{image}:fields")
    with pytest.raises(InputError, match="do not exist"):
        open_labels([image], f"{tmp_path}:fields")


def test_a_scene_without_a_place_is_told(tmp_path):
    image, bare = scene(tmp_path / "scene.tif"), scene(tmp_path / "bare.tif", crs=None)
    file = layer(tmp_path / "a.gpkg", [FIELD], ["field"])
    assert open_labels([image, bare], file).refused[0][0] == bare
    with pytest.raises(InputError, match=r"no image is left .*it has no place on Earth"):
        open_labels([bare], file)


def test_a_label_raster_of_another_place_is_refused(tmp_path):
    for name, east in (("same", 0), ("away", 500)):
        image = scene(tmp_path / "images" / f"{name}.tif")
        mask_file = tmp_path / "masks" / f"{name}.tif"
        mask_file.parent.mkdir(exist_ok=True)
        with rasterio.open(image) as raster:
            profile = raster.profile | {"count": 1, "transform": from_origin(WEST + east, NORTH, METRES, METRES)}
        profile.pop("photometric", None)
        with rasterio.open(mask_file, "w", **profile) as raster:
            raster.write(np.eye(SIDE, dtype=np.uint8), 1)
    labels = open_labels([str(tmp_path / "images")], str(tmp_path / "masks"))
    assert len(labels.items) == 1
    assert labels.refused[0][1] == "its label raster lies at column 50, row 0 of it: bring it to the image's grid"


@pytest.mark.parametrize(("given", "classes"), [(["10-20", "20-"], ("10-20", "20-")),
                                                ([31112101.0, 31112102.0], ("31112101", "31112102"))])  # fmt: skip
def test_ranges_and_long_numbers_are_classes_as_they_stand(given, classes, tmp_path):
    file = layer(tmp_path / "own.gpkg", [FIELD, LAKE], given)
    assert open_labels([scene(tmp_path / "scenes" / "scene.tif")], file).classes == classes
