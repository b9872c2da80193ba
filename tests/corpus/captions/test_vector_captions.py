"""What vector layers say of tiles is true of their geometries, measured in the plane and not on the ellipsoid."""

from functools import partial

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from caption_truth import Untrue, prove_ground
from pyproj import Transformer
from rasterio.crs import CRS

from geomim.corpus.captions.chance import Chance
from geomim.corpus.captions.seen import place_of
from geomim.corpus.captions.vector import Layer
from geomim.errors import InputError

EPSG, GSD, SIDE = 32632, 2.0, 128
WORDS = {
    "building": ("a building", "buildings"),
    "oil-tank": ("an oil tank", "oil tanks"),
    "farmland": ("an area of farmland", "areas of farmland", "mass", "farmland"),
    "residential": ("a residential area", "residential areas", "mass", "residential areas"),
    "river": ("a river", "rivers"),
    "road": ("a road", "roads"),
    "well": ("a well", "wells"),
}


def square(x, y, side):
    return shapely.box(x, y, x + side, y + side)


def scene(random, corner):
    """Geometries in metres around a tile, and their classes: no one of a class overlaps another of it."""
    x, y = corner
    edge = GSD * SIDE
    places = iter(random.permutation(25).tolist())
    for what, count in (("building", 6), ("oil-tank", 1), ("farmland", 3), ("residential", 1)):
        for _ in range(random.integers(0, count + 1)):
            row, col = divmod(next(places), 5)
            yield what, square(x - 20 + col * 60 + random.uniform(0, 9), y - 20 + row * 60, random.uniform(20, 50))
    for _ in range(random.integers(0, 4)):
        yield "well", shapely.Point(random.uniform(x - 30, x + edge + 30), random.uniform(y - 30, y + edge + 30))
    for what in ("river", "road"):
        if random.random() < 0.7:
            yield what, shapely.LineString(random.uniform(-40, edge + 40, (2, 2)) + np.array([x, y]))


def cut_by(random, tile, number):
    """Which pixels of a tile are valid, None where all, and these as one shape: every second tile ends at a slant."""
    if number % 2:
        return None, tile
    turn, far = random.uniform(0, 2 * np.pi), random.uniform(-0.25, 0.4) * SIDE
    rows, cols = np.mgrid[:SIDE, :SIDE] + 0.5 - SIDE / 2
    valid = cols * np.cos(turn) + rows * np.sin(turn) < far
    return valid, ground(valid, tile.bounds[0], tile.bounds[3])


def ground(valid, west, north, gsd=GSD):
    """Valid pixels, side by side in each row, as one shape in metres."""
    runs = [(n, *np.flatnonzero(row)[[0, -1]]) for n, row in enumerate(valid) if row.any()]
    rows = [(west + a * gsd, north - (n + 1) * gsd, west + (b + 1) * gsd, north - n * gsd) for n, a, b in runs]
    return shapely.union_all([shapely.box(*row) for row in rows])


def row_of(tile, gsd, crs, size):
    """What the catalogue says of a tile."""
    to_degrees = Transformer.from_crs(crs, "OGC:CRS84", always_xy=True)
    footprint = shapely.transform(shapely.segmentize(tile, 5), lambda xy: np.stack(to_degrees.transform(*xy.T), 1))
    west, _, _, north = tile.bounds
    place = {"transform": [gsd, 0, west, 0, -gsd, north], "epsg": crs.to_epsg(), "crs_wkt": None}
    return {"size": size, "gsd": gsd, "geometry": footprint.wkb, **place}


def inside(tile, shape, margin):
    return tile.buffer(-margin, join_style="mitre").covers(shape)


def on_the_border(shape, tile, gsd=GSD):
    """Whether it ends about a pixel from the border, which degrees and metres may tell differently."""
    return inside(tile, shape, 0.98 * gsd) != inside(tile, shape, 1.02 * gsd)


def as_seen(geometries, tile, gsd=GSD):
    """What of the geometries lies in a tile, by plane geometry."""
    seen, sizes = [], {}
    for what, shape in geometries:
        part = shape.intersection(tile)
        kind = {"Point": "point", "LineString": "line"}.get(shape.geom_type, "area")
        least = {"point": 0, "line": 2 * gsd, "area": (2 * gsd) ** 2}[kind]
        size = part.length if kind == "line" else part.area
        if not part.is_empty and size >= least:
            cut = not inside(tile, shape, gsd) and len(WORDS[what]) == 2
            seen.append({"what": what, "cut": cut, "kind": kind, "shape": part, "crosses": set()})
            sizes[what] = sizes.get(what, 0.0) + size
    for one in seen:
        if one["kind"] == "line":
            areas = {}
            for other in seen:
                if other["kind"] == "line" and one["shape"].crosses(other["shape"]):
                    one["crosses"].add(other["what"])
                areas.setdefault(other["what"], []).append(other["shape"])
            one["crosses"] |= {what for what, own in areas.items() if shapely.get_dimensions(own[0]) == 2
                               and one["shape"].crosses(shapely.union_all(own))}  # fmt: skip
    return seen, sizes


def test_every_sentence_is_true_in_the_plane(tmp_path):
    random, said = np.random.default_rng(0), []
    corners = [(500_000 + 1000 * col, 5_300_000 + 1000 * row) for row in range(12) for col in range(12)]
    squares = [square(*corner, GSD * SIDE) for corner in corners]
    tiles = [(whole, *cut_by(random, whole, n), list(scene(random, corners[n]))) for n, whole in enumerate(squares)]
    tiles = [one for one in tiles if not any(on_the_border(shape, one[2]) for _, shape in one[3])]
    table = [pair for *_, own in tiles for pair in own]
    shapes = geopandas.GeoSeries([shape for _, shape in table], crs=EPSG)
    layer_file = str(tmp_path / "layer.gpkg")
    frame = geopandas.GeoDataFrame({"class": [what for what, _ in table]}, geometry=shapes)
    frame.to_crs(3035).to_file(layer_file, layer="ground")
    layer = Layer((layer_file,), None, {})
    for number, (whole, valid, tile, own) in enumerate(tiles):
        place = place_of(row_of(whole, GSD, CRS.from_epsg(EPSG), SIDE), valid)
        sentences = layer.sentences(place, GSD, partial(Chance, 0, number, "vector"))
        seen, sizes = as_seen(own, tile)
        for sentence in sentences:
            prove_ground(sentence, WORDS, seen, sizes)
        assert bool(sentences) == bool(seen)
        said += sentences
    text = "\n".join(said)
    assert len(said) > 250 and "crosses farmland" in text and "crosses a r" in text.lower() and "hectares" in text
    assert "square metres" in text and "Part of a" in text and " wells" in text and "of river can be seen" in text
    with pytest.raises(Untrue):
        prove_ground("Farmland covers about 3 hectares.", WORDS, [{"what": "farmland", "kind": "area", "cut": False}],
                     {"farmland": 2e4})  # fmt: skip


@pytest.mark.parametrize("west", [24.0, 179.995])
def test_a_pixel_from_the_border_is_one_in_degrees_too(tmp_path, west):
    """At 60 degrees north a degree of longitude has half the metres; the date line cuts a tile, and no object."""
    step = 0.0001
    row = {"size": 100, "gsd": 7.9, "transform": [step, 0, west, 0, -step, 60.0], "epsg": 4326, "crs_wkt": None}
    valid = np.arange(100)[None] + np.zeros((100, 1)) < 90
    for end, margin, padding, what in [
        (100, 0.8, None, "Part of a building"), (100, 1.2, None, "A building"),
        (90, 0.8, valid, "Part of a building"), (90, 1.2, valid, "A building"),
    ]:  # fmt: skip
        east = west + (end - margin) * step
        house = shapely.box(east - 8 * step, 59.994, east, 59.995)
        over = [shapely.transform(part, lambda xy: xy - [360, 0]) for part in [house & shapely.box(180, 0, 360, 90)]]
        file = tmp_path / f"{end}-{margin}.gpkg"
        write(file, ["building"], [shapely.union_all([house & shapely.box(0, 0, 180, 90), *over])])
        tile = shapely.box(west, 59.99, west + 100 * step, 60.0)
        beyond = shapely.transform(tile & shapely.box(180, 0, 360, 90), lambda xy: xy - [360, 0])
        footprint = shapely.union_all([tile & shapely.box(0, 0, 180, 90), beyond])
        place = place_of(row | {"geometry": footprint.wkb}, padding)
        said = Layer((str(file),), None, {}).sentences(place, 7.9, partial(Chance, 0))
        assert said[1].startswith(f"{what} covers about "), (end, margin, said)


def write(file, values, shapes, crs=4326, column="class"):
    geopandas.GeoDataFrame({column: values}, geometry=shapes, crs=crs).to_file(file)
    return str(file)


def test_classes_are_found_as_openstreetmap_writes_them(tmp_path):
    box = shapely.box(9, 48, 9.001, 48.001)
    roads = write(tmp_path / "r.geojson", ["residential", "yes", "footpath", None], [box] * 4, column="highway")
    houses = write(tmp_path / "h.geojson", ["yes", "shed"], [box] * 2, column="building")
    assert Layer((roads,), "highway", {}).classes == ["footpath", "residential road", "road"]
    assert Layer((houses,), "building", {}).classes == ["building", "shed"]
    both = write(tmp_path / "b.geojson", ["lake", ""], [box] * 2), write(tmp_path / "n.geojson", [3, 4], [box] * 2)
    found = Layer(both, None, {"3": "mill"})
    assert found.classes == ["3", "4", "lake"] and "1 of 4 geometries are left out" in found.said[-1]
    assert "column 'class' (lake); it lies in 9..9.001 E, 48..48.001 N" in found.said[0]
    named = write(tmp_path / "oil_tanks.geojson", [1, 2], [box, box], column="number")
    assert Layer((named,), None, {}).classes == ["oil_tanks"]
    for column in ("type", "landuse"):  # says that it is of a kind, and not of which
        yes = write(tmp_path / "stadiums.geojson", ["yes", "arena"], [box, box], column=column)
        assert Layer((yes,), None, {}).classes == ["arena", "stadiums"]


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
def test_refusals_name_file_and_row(tmp_path):
    box, far = shapely.box(9, 48, 9.001, 48.001), shapely.box(500_000, 5e6, 500_100, 5e6 + 100)
    good = write(tmp_path / "good.geojson", ["lake"], [box])
    for files, column, words in [
        ((str(tmp_path / "none.gpkg"),), None, "none.gpkg' cannot be read"),
        ((good,), "klass", r"good.geojson' has no column 'klass'.*class"),
        (
            (write(tmp_path / "far.geojson", ["a", "b"], [box, far]),),
            None,
            r"far.geojson', row 2: 500000, 5e\+06 is no",
        ),
    ]:
        with pytest.raises(InputError, match=words):
            Layer(files, column, {})
    geopandas.GeoDataFrame({"class": ["a"]}, geometry=[box]).to_file(tmp_path / "no.gpkg")
    with pytest.raises(InputError, match=r"no.gpkg' tells no coordinate reference system"):
        Layer((str(tmp_path / "no.gpkg"),), None, {})
    for name in ("one", "two"):
        geopandas.GeoDataFrame({"class": ["a"]}, geometry=[box], crs=4326).to_file(tmp_path / "l.gpkg", layer=name)
    with pytest.raises(InputError, match=r"has layers one, two: give .*l.gpkg:one"):
        Layer((str(tmp_path / "l.gpkg"),), None, {})
    with pytest.raises(InputError, match=r"has no layer 'tow'.*two"):
        Layer((f"{tmp_path}/l.gpkg:tow",), None, {})
    assert Layer((f"{tmp_path}/l.gpkg:two",), None, {}).classes == ["a"]


def test_real_layers_are_counted(data_dir):
    with rasterio.open(data_dir / "solaris_vectors" / "sample_geotiff.tif") as raster:
        bounds, crs = raster.bounds, raster.crs
    file = data_dir / "solaris_vectors" / "geotiff_labels.geojson"
    tile = shapely.box(*bounds)
    place = place_of(row_of(tile, 0.5, crs, round((bounds[2] - bounds[0]) / 0.5)), None)
    layer = Layer((str(file),), "building", {})
    said = layer.sentences(place, 0.5, partial(Chance, 0))
    shapes = [(shape, shape.intersection(tile)) for shape in geopandas.read_file(file).to_crs(crs).geometry]
    seen = [{"what": "building", "kind": "area", "cut": not tile.buffer(-0.5).covers(shape)}
            for shape, part in shapes if part.area >= 1]  # fmt: skip
    for sentence in said:
        prove_ground(sentence, WORDS, seen, {"building": sum(part.area for _, part in shapes)})
    assert len(said) == 2


def test_the_place_of_a_padded_tile_is_curved_as_the_earth_is():
    size, gsd, crs = 256, 500.0, CRS.from_epsg(3035)
    tile = shapely.box(2_600_000, 1_500_000, 2_600_000 + size * gsd, 1_500_000 + size * gsd)
    valid = np.ones((size, size), bool)
    valid[:, 0] = False
    place = place_of(row_of(tile, gsd, crs, size), valid)
    west, south, east, north = tile.bounds
    truth = shapely.segmentize(shapely.box(west + gsd, south, east, north), gsd)
    back = Transformer.from_crs("OGC:CRS84", crs, always_xy=True)
    found = shapely.transform(shapely.segmentize(place.valid, 1e-3), lambda xy: np.stack(back.transform(*xy.T), 1))
    assert shapely.hausdorff_distance(found, truth) < 0.01 * gsd
    assert place.valid.covers(place.within)
