"""Images become shards where they were staged; what is left over fills the holes that exact copies leave."""

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

from geomim.corpus import shards
from geomim.corpus.build import build
from geomim.corpus.pipeline import pixels, plan
from geomim.corpus.pipeline.slots import _Count, _share
from geomim.corpus.store import Corpus
from geomim.corpus.verify import verify


@pytest.mark.parametrize("seed", range(20))
def test_every_slot_is_taken_once_and_full_files_stay_where_they_are(seed):
    rng = np.random.default_rng(seed)
    counts = []
    for tiles in rng.integers(0, 30, rng.integers(1, 6)).tolist():
        copied = rng.random(tiles) < rng.choice([0, 0.1, 0.9])
        counts.append(_Count(tiles, np.flatnonzero(copied)))
    slots = []
    for count, room in zip(counts, _share(counts, 4), strict=True):
        place = np.setdiff1d(np.arange(count.tiles), count.copies)
        home = place < room.home
        assert room.home % 4 == 0 and room.first % 4 == 0 and room.home <= count.tiles
        assert (~home).sum() == len(room.others)
        slots += [room.first + place[home], room.others]
    slots = np.concatenate(slots)
    assert sorted(slots.tolist()) == list(range(len(slots)))
    homes = sum(room.home for room in _share(counts, 4))
    assert homes == min(sum(count.tiles // 4 for count in counts), len(slots) // 4) * 4


def write_scene(path, blocks, masked=False):
    """A row of 16 px blocks, each of a number of its own; georeferenced by nothing."""
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 50, (1, 16, 16))
    image = np.concatenate([(texture + 100 * block).astype(np.uint16) for block in blocks], 2)
    if masked:
        image[:, :5, 3::16] = 0
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint16", "height": 16, "width": image.shape[2]}
    with rasterio.open(path, "w", nodata=0 if masked else None, **profile) as raster:
        raster.write(image)
        raster.set_band_description(1, "red")


@pytest.fixture
def four_a_shard(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 4 * 16 * 16 * 2)
    monkeypatch.setattr(shards, "_LEAST_TILES", 1)
    monkeypatch.setattr(plan, "SCENES_PER_TASK", 1)


@pytest.fixture
def scenes(tmp_path):
    folder = tmp_path / "scenes"
    folder.mkdir()
    write_scene(folder / "a.tif", range(1, 11))  # two files of four and a rest of two
    write_scene(folder / "b.tif", [11, 2, 12, 13, 14, 15, 16])  # one with a copy, and a rest
    write_scene(folder / "c.tif", range(20, 28), masked=True)  # two full files, not all valid
    return folder


def read_back(folder):
    """Every catalogue row's pixels beside those of its source."""
    corpus = Corpus.open(folder)
    array, valid = corpus.array("image", 16), corpus.array("valid", 16)
    for row in corpus.table(["source", "row", "col", "slot", "valid_fraction"]).to_pylist():
        with rasterio.open(row["source"]) as raster:
            expected = raster.read(window=Window(row["col"], row["row"], 16, 16))
        np.testing.assert_array_equal(array.read([row["slot"]])[0], expected)
        assert valid.read([row["slot"]]).mean() == pytest.approx(row["valid_fraction"])
    return corpus


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_pixels_are_found_at_their_slots(scenes, tmp_path, four_a_shard, monkeypatch, compression):
    linked = []
    take_over = pixels.link_shard
    monkeypatch.setattr(pixels, "link_shard", lambda *given: linked.append(given[2]) or take_over(*given))
    options = {"tile": 16, "near": None, "crops": False, "quota": 100, "min_valid": 0.0, "workers": 1}
    corpus = read_back(build([str(scenes)], str(tmp_path / "c"), compression=compression, **options))
    assert len(corpus.array("image", 16)) == 24  # 25 and one copy
    assert linked == ([] if compression else [0, 1, 3, 4])  # all full files but the one with the copy
    verify(str(corpus.path))


def test_where_files_have_no_second_names_bytes_are_copied(scenes, tmp_path, four_a_shard, monkeypatch):
    options = {"tile": 16, "near": None, "crops": False, "quota": 100, "min_valid": 0.0, "workers": 1}
    linked = build([str(scenes)], str(tmp_path / "c"), **options)

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(shards.os, "link", refuse)
    copied = build([str(scenes)], str(tmp_path / "d"), **options)
    files = [file.relative_to(linked) for file in sorted(linked.rglob("c/*")) if file.is_file()]
    assert all((linked / file).read_bytes() == (copied / file).read_bytes() for file in files)
    read_back(copied)


def test_a_scene_that_breaks_off_leaves_nothing_in_the_files(scenes, tmp_path, four_a_shard, monkeypatch):
    monkeypatch.setattr(plan, "SCENES_PER_TASK", 10)
    monkeypatch.setattr("geomim.corpus.pipeline.staging._BATCH_BYTES", 3 * 512)
    with open(scenes / "b.tif", "r+b") as file:
        file.truncate(scenes.joinpath("b.tif").stat().st_size // 2)
    options = {"tile": 16, "near": None, "crops": False, "quota": 100, "min_valid": 0.0, "workers": 1}
    corpus = read_back(build([str(scenes)], str(tmp_path / "c"), **options))
    assert len(corpus.array("image", 16)) == 18
