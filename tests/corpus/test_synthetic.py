import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio
import rasterio.features
import shapely
from affine import Affine
from scipy import ndimage

import geomim
from geomim.corpus.build import build
from geomim.corpus.captions.caption import caption
from geomim.corpus.scenes import find_scenes, open_scene
from geomim.corpus.slicing import Grid, slice_scene
from geomim.corpus.store import Corpus
from geomim.corpus.synthetic import CHANGES, CLASSES, light, write_scenes
from geomim.corpus.synthetic.cover import Cover
from geomim.corpus.synthetic.drafts import Draft, plant
from geomim.corpus.synthetic.files import placed, transform_of, write_map, write_scene
from geomim.corpus.synthetic.land import ID, burn, draw_land
from geomim.corpus.synthetic.light import Look, expose
from geomim.corpus.synthetic.spectra import BANDS, CLOUD
from geomim.errors import BandError, InputError
from geomim.sensors import SENSORS


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    bands = ["B02", "B03", "B04", "B08", "B11", "B12"]
    return write_scenes(tmp_path_factory.mktemp("synthetic"), scenes=4, size=640, bands=bands)


def square(path, row, col, size):
    with rasterio.open(path) as raster:
        return raster.read(window=rasterio.windows.Window(col, row, size, size))


def test_scenes_name_their_bands_and_open_without_a_flag(planted):
    assert find_scenes([planted.scenes[0].parent]) == [str(path) for path in planted.scenes]
    with open_scene(planted.scenes[0]) as scene:
        assert scene.sensor == planted.sensor and scene.sensor.name == "sentinel2"
        assert scene.dtype == np.uint16 and scene.nodata == 0 and scene.block == (256, 256)
        assert scene.gsd == pytest.approx(2.5, rel=1e-3)
        assert scene.time is not None and scene.licence == "CC0-1.0"
        assert scene.footprint().geom_type == "Polygon"
        assert 0.02 < 1 - scene.valid().mean() < 0.2  # nodata wedges


def test_scenes_lie_side_by_side(planted):
    with open_scene(planted.scenes[0]) as one, open_scene(planted.scenes[1]) as two:
        assert not one.footprint().intersects(two.footprint())


def test_copies_are_what_they_say(planted):
    assert len(planted.exact) == len(planted.near) == 3
    for copy in planted.exact + planted.near:
        here = square(copy.source, copy.source_row, copy.source_col, copy.size).astype(float)
        there = square(copy.target, copy.target_row, copy.target_col, copy.size).astype(float)
        assert copy.target_row % copy.size == copy.target_col % copy.size == 0 and copy.size >= 128
        assert (here > 0).all()
        if copy in planted.exact:
            assert np.array_equal(here, there)
        else:
            assert not np.array_equal(here, there)
            assert np.median(there / here) == pytest.approx(1.04, abs=0.01)
            assert np.corrcoef(here.ravel(), there.ravel())[0, 1] > 0.99


def test_labels_hold_every_kind_with_names_and_colours(planted):
    assert len(CLASSES) > 10 and planted.classes == CLASSES
    seen = set()
    for scene, path in zip(planted.scenes, planted.labels, strict=True):
        with rasterio.open(path) as raster, rasterio.open(scene) as image:
            labels = raster.read(1)
            assert raster.transform == image.transform and raster.crs == image.crs
            assert json.loads(raster.tags()["CLASSES"]) == list(CLASSES)
            assert raster.colormap(1)[1][:3] != raster.colormap(1)[2][:3]
            assert (labels[image.read(1) == 0] == 0).all()
        seen.update(np.unique(labels))
    assert seen == set(range(len(CLASSES)))


def test_boxes_hold_objects_that_can_be_seen(planted):
    boxes = json.loads(planted.boxes.read_text())["features"]
    assert {box["properties"]["class"] for box in boxes} == {"house", "warehouse", "ship", "storage tank"}
    pictures, bright = {}, []
    for path in planted.scenes:
        with open_scene(path) as scene, rasterio.open(path) as raster:
            pictures[path.name] = raster.read(1), scene.footprint().bounds
    for box in boxes:
        values = box["properties"]
        pixels, (west, south, east, north) = pictures[values["source"]]
        height, width = values["y2"] - values["y1"], values["x2"] - values["x1"]
        assert 2 <= min(height, width) and max(height, width) <= 32
        inside = pixels[values["y1"] : values["y2"], values["x1"] : values["x2"]]
        assert inside.shape == (height, width) and (inside > 0).all()
        if values["class"] in ("ship", "storage tank"):
            bright.append(inside.max() > 1.3 * np.median(pixels[pixels > 0]))
        lon, lat = np.array(box["geometry"]["coordinates"][0]).mean(0)
        assert west < lon < east and south < lat < north
    assert np.mean(bright) > 0.8  # the others lie in the shadow of a cloud


def test_tiles_are_as_natural_pictures(planted):
    """Power falls with the square of the frequency (Field 1987, JOSA A 4(12)), and neighbours are more alike."""
    slopes, blocks = [], []
    for path in planted.scenes:
        with open_scene(path) as scene:
            for tile in slice_scene(scene, Grid((64,))):
                if tile.valid.all():
                    seen = tile.pixels[[2, 3]].mean(0)
                    frequency = np.log((np.arange(1, 13) - 0.5) / 32)
                    slopes.append(np.polyfit(frequency, np.log(rings(seen)[0][:12]), 1)[0])
                    means = seen.reshape(8, 8, 8, 8).mean((1, 3))
                    blocks.append(means - means.mean())
    blocks = np.array(blocks)
    assert -2.5 < np.median(slopes) < -1.5
    near, far = ((blocks[..., :-step] * blocks[..., step:]).mean() / (blocks**2).mean() for step in (1, 4))
    assert near > 0.5 and near > far + 0.4


PAIRS = (("woodland", "orchard"), ("meadow", "cropland"), ("bare soil", "dunes"), ("rock", "settlement"))


def test_a_spectrum_says_little_of_a_class_in_another_light_and_layout_says_much(planted):
    spectra, layouts, kinds, scenes = tile_features(planted)
    assert len(kinds) > 400
    names = range(1, len(CLASSES))
    assert balanced_accuracy(spectra, kinds, scenes, names) < 0.7
    pairs = [[CLASSES.index(name) for name in pair] for pair in PAIRS]
    by_spectrum, by_layout = (
        np.array([balanced_accuracy(features, kinds, scenes, pair) for pair in pairs])
        for features in (spectra, layouts)
    )
    assert by_spectrum.mean() < 0.7
    assert by_layout.mean() > 0.8 and by_layout.mean() > by_spectrum.mean() + 0.15


def rings(band):
    """Mean power of 16 rings of frequency, and how far the strongest wave of each stands out."""
    size = len(band)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None])
    ring = np.digitize(frequency, np.linspace(0, 0.5, 17))
    window = np.outer(np.hanning(size), np.hanning(size))
    power = np.abs(np.fft.fft2((band - band.mean()) * window)) ** 2 + 1
    mean = np.array([power[ring == k].mean() for k in range(1, 17)])
    return mean, np.array([power[ring == k].max() for k in range(1, 17)]) / mean


def tile_features(planted, size=64):
    """Mean spectra, and shapes of the power spectrum in red and NIR, of tiles of which most is of one class."""
    spectra, layouts, kinds, scenes = [], [], [], []
    for index, (path, labels) in enumerate(zip(planted.scenes, planted.labels, strict=True)):
        with rasterio.open(labels) as raster:
            label = raster.read(1)
        with open_scene(path) as scene:
            for tile in slice_scene(scene, Grid((size,), stride=size // 2)):
                count = np.bincount(label[tile.row : tile.row + size, tile.col : tile.col + size].ravel())
                if not tile.valid.all() or count.argmax() == 0 or count.max() < 0.6 * size**2:
                    continue
                spectra.append(np.log(tile.pixels.astype(float).mean((1, 2))))
                found = [np.log(values) for band in (2, 3) for values in rings(tile.pixels[band].astype(float))]
                layouts.append(np.concatenate([values - values.mean() for values in found[::2]] + found[1::2]))
                kinds.append(count.argmax())
                scenes.append(index)
    return np.array(spectra), np.array(layouts), np.array(kinds), np.array(scenes)


def balanced_accuracy(features, kinds, scenes, names):
    """Nearest centroid, each scene by what the others say of the classes that both show."""
    hits = {name: [] for name in names}
    for scene in np.unique(scenes):
        here, there = (np.isin(kinds, list(names)) & known for known in (scenes == scene, scenes != scene))
        scaled = (features - features[there].mean(0)) / features[there].std(0)
        seen = [name for name in names if (there & (kinds == name)).any()]
        centroids = np.stack([scaled[there & (kinds == name)].mean(0) for name in seen])
        nearest = np.array(seen)[((scaled[here][:, None] - centroids) ** 2).sum(-1).argmin(1)]
        for name in names:
            hits[name] += list(nearest[kinds[here] == name] == name)
    return np.mean([np.mean(found) for found in hits.values() if found])


@pytest.fixture(scope="module")
def dated(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("dated"), scenes=2, size=512, later=True)


def test_two_dates_show_what_changed(dated):
    assert len(dated.later) == len(dated.changes) == 2
    for first, second in zip(dated.scenes, dated.later, strict=True):
        with open_scene(first) as one, open_scene(second) as two:
            assert one.time < two.time and one.transform == two.transform
    before, after, changes = (
        np.concatenate([rasterio.open(path).read() for path in paths], 2).astype(float)
        for paths in (dated.scenes, dated.later, dated.changes)
    )
    assert not changes[0][(before[0] == 0) | (after[0] == 0)].any()

    labels = np.concatenate([rasterio.open(path).read(1) for path in dated.labels], 1)

    def moved(up, down, kind, among=True):
        """How an index of two bands moved where something changed, against where nothing did."""
        up, down = dated.sensor.names.index(up), dated.sensor.names.index(down)
        one, two = ((image[up] - image[down]) / (image[up] + image[down] + 1) for image in (before, after))
        there = changes[0] == CHANGES.index(kind)
        assert there.sum() > 30
        return (two - one)[there].mean() - (two - one)[(changes[0] == CHANGES.index("unchanged")) & among].mean()

    assert moved("B08", "B04", "harvest") < -0.05
    assert moved("B03", "B08", "flood") > 0.1
    assert moved("B08", "B04", "construction", labels == CLASSES.index("settlement")) < -0.05
    for copy in dated.exact + dated.near:  # another place is shown there on the first date
        with rasterio.open(dated.changes[dated.scenes.index(copy.target)]) as raster:
            change = raster.read(1, window=rasterio.windows.Window(copy.target_col, copy.target_row, *[copy.size] * 2))
        assert not change.any()


def test_the_map_is_that_of_the_labels(dated):
    table = geopandas.read_file(dated.map)
    assert {"field", "meadow", "orchard", "river", "road", "track"} <= set(table["class"])
    lines = table["class"].isin(["river", "road", "street", "track"])
    assert set(table.geom_type[lines]) == {"LineString"} and set(table.geom_type[~lines]) == {"Polygon"}
    assert table.length[lines].min() > 8 * 2.5 and table.area[~lines].min() > 20 * 2.5**2
    for _, own in table.groupby("source"):
        lakes, rivers = (own.geometry[own["class"] == kind].union_all() for kind in ("lake", "river"))
        assert rivers.intersection(lakes).length < 1
    for name, path in zip([path.name for path in dated.scenes], dated.labels, strict=True):
        with rasterio.open(path) as raster:
            own = table[(table["source"] == name) & ~lines]
            areas = rasterio.features.rasterize(own.geometry, raster.shape, transform=raster.transform) > 0
            hidden = ndimage.binary_erosion(raster.read(1) == 0, iterations=3)  # wider than a road
        assert hidden.any() and not (areas & hidden).any()
    with rasterio.open(dated.labels[0]) as raster:
        labels = raster.read(1)
        own = table[(table["source"] == dated.scenes[0].name) & (table["class"] == "field")]
        assert own.crs == raster.crs and own.geometry.is_valid.all()
        fields = rasterio.features.rasterize(own.geometry, labels.shape, transform=raster.transform) > 0
    assert (labels[fields] == CLASSES.index("cropland"))[labels[fields] > 0].mean() > 0.95
    assert fields[labels == CLASSES.index("cropland")].mean() > 0.9


def test_the_map_and_the_boxes_become_sentences(dated, tmp_path):
    folder = dated.map.parent
    corpus = build([str(folder / "scenes")], str(tmp_path / "c"), tile=64, masks=str(folder / "labels"), workers=1)
    caption(str(corpus), of=["masks", "cover"], vector=[str(dated.map), str(dated.boxes)])
    table = Corpus.open(corpus).table(["captions", "caption_origins"]).to_pylist()
    said = " ".join(text for row in table for text in row["captions"] or ())
    assert {"m2b", "landcover", "vector"} == {origin for row in table for origin in row["caption_origins"] or ()}
    for word in ("house", "orchard", "river", "road", "forest", "storage tank", "crosses"):
        assert word in said


def test_same_seed_same_bytes_and_other_seed_other_scene(tmp_path):
    one = write_scenes(tmp_path / "one", scenes=2, size=256, later=True)
    two = write_scenes(tmp_path / "two", scenes=2, size=256, later=True)
    other = write_scenes(tmp_path / "other", scenes=1, size=256, seed=1)
    mine, again = (
        [path.read_bytes() for path in (*it.scenes, *it.labels, *it.later, *it.changes, it.boxes, it.map)]
        for it in (one, two)
    )
    assert len(mine) == 10 and mine == again
    assert one.scenes[0].read_bytes() != other.scenes[0].read_bytes()
    assert not list(tmp_path.rglob(".*.tif"))


def test_a_longer_run_begins_with_the_same_scenes(tmp_path):
    short = write_scenes(tmp_path / "short", scenes=1, size=256)
    long = write_scenes(tmp_path / "long", scenes=2, size=256)
    assert short.scenes[0].read_bytes() == long.scenes[0].read_bytes()


def test_bands_can_be_chosen_and_wrong_arguments_are_named(tmp_path):
    planted = write_scenes(tmp_path, scenes=1, size=256, bands=["B04", "B03"])
    assert planted.sensor.names == ("B04", "B03")
    assert dataclasses.asdict(planted)["exact"] == ()
    with pytest.raises(BandError, match="B99"):
        write_scenes(tmp_path, bands=["B99"])
    with pytest.raises(InputError, match="multiple of 64"):
        write_scenes(tmp_path, size=300)


def draft(path, size, free=slice(None), shapes=()):
    """Bare but for labels, with pictures where a copy may lie."""
    pixels, labels = np.zeros((1, size, size), np.uint16), np.arange(size * size, dtype=np.uint8).reshape(size, size)
    pixels[:, free, free] = 500
    return Draft(path, pixels, labels % 3 + 1, transform_of(0, size), [], list(shapes))


def test_copies_fit_sizes_that_are_no_multiple_of_their_edge(tmp_path):
    source, target = draft("a", 576), draft("b", 576)
    copies = [copy for _ in range(17) for copy in plant(source, target, np.random.default_rng(0), changed=False)]
    assert {(copy.target_row, copy.target_col) for copy in copies} == {
        (row, col) for row in range(0, 512, 128) for col in range(0, 512, 128)
    }


def test_planting_leaves_neither_points_nor_specks_in_the_map():
    touching = shapely.box(20, 64, 64, 100)  # along the square from 64 to 128
    corner = shapely.union(shapely.box(130, 130, 140, 140), shapely.box(100, 100, 131, 131))
    river = shapely.LineString([(70, 70), (128.2, 70)])
    road = shapely.LineString([(64, 90), (20, 90)])  # only its end lies in the square
    source = draft("a", 256, slice(64, 128), [("field", touching), ("field", corner), ("road", road)])
    target = draft("b", 256, slice(64, 128), [("river", river), ("field", touching), ("road", road)])
    assert plant(source, target, np.random.default_rng(0), changed=False)
    assert [(kind, shape.geom_type, round(shape.area or shape.length)) for kind, shape in target.shapes] == [
        ("field", "Polygon", 44 * 36),
        ("road", "LineString", 44),
        ("field", "Polygon", 28 * 28),
    ]


def test_roofs_are_settlement_and_only_roads_have_no_class():
    for seed in (0, 4, 5):
        land = draw_land(np.random.default_rng(seed), 320)
        roofs = burn([one.shape for one in land.buildings if one.kind != "ship" and not one.new], 320) > 0
        assert roofs.any() and (land.label[roofs] == ID["settlement"]).all()
        assert (land.paved[land.label == 0] > 0).all()


def picture(tall=0.0, cloudy=0.0):
    """Soil under a low sun."""
    field = np.zeros((128, 128), np.float32)
    look = Look(elevation=0.6, azimuth=0.9, aod=0.28, gain=1.0, cloudy=cloudy)
    cover = Cover({"soil": field + 1, "water": field, "mud": field}, field + tall, field + 1)
    return expose(np.random.default_rng(0), field, cover, look, list(range(len(BANDS))))[0]


def test_air_does_not_dim_clouds_whose_reflectance_is_that_above_it():
    np.testing.assert_allclose(np.median(picture(cloudy=1.0), (1, 2)), CLOUD, rtol=0.05)


def test_shadows_do_not_come_from_the_opposite_border():
    tower = np.zeros((128, 128), np.float32)
    tower[40:60, :3] = 9
    flat, tall = picture(), picture(tower)
    assert (tall != flat)[:, :, :20].any() and np.array_equal(tall[:, :, 64:], flat[:, :, 64:])


def test_nor_do_shadows_of_clouds(monkeypatch):
    clear = np.zeros((128, 128), np.float32)
    cloud = clear + (np.arange(128) < 8)
    flat, clouded = (
        (monkeypatch.setattr(light, "_clouds", lambda *_, sky=sky: sky), picture())[1] for sky in (clear, cloud)
    )
    assert (clouded != flat)[:, :, :8].any() and np.array_equal(clouded[:, :, 32:], flat[:, :, 32:])


def test_an_empty_map_is_a_map_and_settings_stay(tmp_path):
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": "2001-01-01T00:00:00.000Z"})
    try:
        write_map(tmp_path / "map.gpkg", placed(draft(tmp_path / "a", 64)))
        assert pyogrio.get_gdal_config_option("OGR_CURRENT_DATE") == "2001-01-01T00:00:00.000Z"
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})
    table = geopandas.read_file(tmp_path / "map.gpkg")
    assert len(table) == 0 and {"class", "source"} <= set(table)


def test_nothing_is_left_of_a_file_that_could_not_be_written(tmp_path):
    with pytest.raises(IndexError):  # more names than bands
        write_scene(tmp_path / "a.tif", np.ones((1, 16, 16), np.uint16), Affine.identity(), SENSORS["sentinel2"], 0)
    with pytest.raises(TypeError):
        write_map(tmp_path / "a.gpkg", [("field", "a", "no shape")])
    assert not list(tmp_path.iterdir())


ON_A_FULL_DISK = """
import resource, sys
import numpy as np
from pathlib import Path
from shapely import box
from geomim.corpus.synthetic.files import transform_of, write_classes, write_map
from geomim.errors import CorpusError
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
noise = np.random.default_rng(0).integers(1, 3, (384, 384), np.uint8)
for write in (
    lambda: write_classes(Path("a.tif"), noise, transform_of(0, 384), ["none", "water", "forest"]),
    lambda: write_map(Path("a.gpkg"), [("water", "a.tif", box(0, 0, 1, 1))]),
):
    try:
        write()
    except CorpusError as error:
        assert "cannot be written (File too large): make room" in str(error)
    else:
        sys.exit("written")
assert not list(Path().iterdir())
"""


def test_a_disk_that_is_full_is_said(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(geomim.__file__).parents[1])}
    run = subprocess.run([sys.executable, "-c", ON_A_FULL_DISK], cwd=tmp_path, env=environment, capture_output=True)
    assert run.returncode == 0, run.stderr.decode()


def test_many_scenes_stay_in_their_utm_zone_and_apart():
    for size in (256, 1024, 8192):
        places = [transform_of(index, size) for index in range(400)]
        assert len({(place.c, place.f) for place in places}) == 400
        assert all(500000 <= place.c and place.c + size * place.a < 760000 for place in places)


def test_a_folder_with_other_scenes_is_refused(tmp_path):
    write_scenes(tmp_path, scenes=2, size=256)
    again = write_scenes(tmp_path, scenes=2, size=256)  # the same set may be written anew
    before = again.map.read_bytes()
    with pytest.raises(InputError, match=r"scene_001.tif' is not of the scenes to be drawn"):
        write_scenes(tmp_path, scenes=1, size=256)
    assert again.map.read_bytes() == before
