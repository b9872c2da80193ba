import dataclasses
import json

import numpy as np
import pytest
import rasterio

from geomim.corpus.scenes import find_scenes, open_scene
from geomim.corpus.slicing import Grid, slice_scene
from geomim.corpus.synthetic import CLASSES, write_scenes
from geomim.errors import BandError, InputError


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("synthetic"), scenes=3, size=768)


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
    assert len(planted.exact) == len(planted.near) == 2
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


def test_boxes_hold_bright_objects(planted):
    boxes = json.loads(planted.boxes.read_text())["features"]
    assert {box["properties"]["class"] for box in boxes} == {"ship", "storage tank"}
    for box in boxes:
        values = box["properties"]
        path = planted.scenes[0].parent / values["source"]
        height, width = values["y2"] - values["y1"], values["x2"] - values["x1"]
        assert 2 <= min(height, width) and max(height, width) <= 24
        with rasterio.open(path) as raster:
            inside = raster.read(
                1, window=rasterio.windows.Window(values["x1"], values["y1"], width, height), boundless=True
            )
        assert (inside > 4000).mean() > 0.1
        with open_scene(path) as scene:
            lon, lat = np.array(box["geometry"]["coordinates"][0]).mean(0)
            west, south, east, north = scene.footprint().bounds
            assert west < lon < east and south < lat < north


def test_pixel_statistics_say_nothing_and_texture_says_much(planted):
    statistics, spectra, kinds, scenes = tile_features(planted)
    chance = 1 / len(KINDS)
    assert len(kinds) > 100
    assert centroid_accuracy(statistics, kinds, scenes) < 2 * chance
    assert centroid_accuracy(spectra, kinds, scenes) > 4 * chance


def test_band_statistics_are_equal_across_kinds(planted):
    statistics, _, kinds, _ = tile_features(planted)
    spread = statistics.std(axis=0)
    for kind in np.unique(kinds):
        apart = np.abs(statistics[kinds == kind].mean(axis=0) - statistics.mean(axis=0)) / spread
        assert apart.max() < 1


def tile_features(planted, size=64):
    """Mean and deviation a band, and a radial power spectrum, of the tiles that hold one kind."""
    statistics, spectra, kinds, scenes = [], [], [], []
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None])
    ring = np.digitize(frequency, np.linspace(0, 0.5, 17))
    for index, (path, labels) in enumerate(zip(planted.scenes, planted.labels, strict=True)):
        with rasterio.open(labels) as raster:
            label = raster.read(1)
        with open_scene(path) as scene:
            for tile in slice_scene(scene, Grid((size,))):
                count = np.bincount(label[tile.row : tile.row + size, tile.col : tile.col + size].ravel())
                if count.argmax() == 0 or count.max() < 0.95 * size**2:
                    continue
                pixels = tile.pixels.astype(float)
                statistics.append([*pixels.mean((1, 2)), *pixels.std((1, 2))])
                power = np.abs(np.fft.fft2(pixels[0] - pixels[0].mean())) ** 2
                logarithms = np.log([power[ring == k].mean() + 1 for k in range(1, 17)])
                spectra.append(logarithms - logarithms.mean())
                kinds.append(count.argmax())
                scenes.append(index)
    return np.array(statistics), np.array(spectra), np.array(kinds), np.array(scenes)


def centroid_accuracy(features, kinds, scenes):
    train = scenes < scenes.max()
    features = (features - features[train].mean(0)) / features[train].std(0)
    names = np.unique(kinds[train])
    centroids = np.stack([features[train & (kinds == name)].mean(0) for name in names])
    distance = ((features[~train][:, None] - centroids) ** 2).sum(-1)
    return (names[distance.argmin(1)] == kinds[~train]).mean()


def test_same_seed_same_bytes_and_other_seed_other_scene(tmp_path):
    one = write_scenes(tmp_path / "one", scenes=2, size=256)
    two = write_scenes(tmp_path / "two", scenes=2, size=256)
    other = write_scenes(tmp_path / "other", scenes=1, size=256, seed=1)
    for mine, again in zip((*one.scenes, *one.labels, one.boxes), (*two.scenes, *two.labels, two.boxes), strict=True):
        assert mine.read_bytes() == again.read_bytes()
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
