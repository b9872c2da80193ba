"""Files of a task: what is appended and cut off again is what is read."""

import numpy as np
import pytest

from geomim.corpus import shards
from geomim.corpus.pipeline.raw import ImageFiles, image_file, read_raw
from geomim.corpus.pipeline.shuffle import save, save_parts


@pytest.fixture
def three_a_file(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 3 * 16)
    monkeypatch.setattr(shards, "_LEAST_TILES", 1)


def read(folder):
    files = sorted(folder.glob("image-2-*.raw"))
    assert files == [image_file(folder, 2, number) for number in range(len(files))]
    return np.concatenate([np.empty((0, 4, 2, 2), np.uint8), *(read_raw(file, np.uint8, (4, 2, 2)) for file in files)])


@pytest.mark.parametrize("seed", range(30))
def test_images_are_those_that_were_kept(tmp_path, three_a_file, seed):
    rng = np.random.default_rng(seed)
    kept, files = np.empty((0, 4, 2, 2), np.uint8), ImageFiles(tmp_path, 2, 16)
    for _ in range(8):
        if rng.random() < 0.4:
            kept = kept[: rng.integers(len(kept) + 1)]
            files.truncate(len(kept))
        else:
            more = rng.integers(0, 256, (rng.integers(1, 8), 4, 2, 2), dtype=np.uint8)
            kept = np.concatenate([kept, more])
            files.append(more)
    files.close()
    np.testing.assert_array_equal(read(tmp_path), kept)
    for number in range(len(kept) // 3):  # a full one is a shard
        assert image_file(tmp_path, 2, number).read_bytes()[48:] == shards.full_index(3, 16)


def test_one_file_is_open_at_a_time(tmp_path, three_a_file):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = ImageFiles(tmp_path, 2, 16)
    with open(tmp_path / "last", "wb") as last:
        resource.setrlimit(resource.RLIMIT_NOFILE, (last.fileno() + 20, hard))
    try:
        files.append(np.zeros((300, 4, 2, 2), np.uint8))
        files.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(read(tmp_path)) == 300


def test_arrays_are_saved_whole_and_in_parts(tmp_path):
    pairs = np.array([(1, 2.5), (3, 4.5)], [("a", "<i8"), ("b", "<f4")])
    for array in (np.arange(5), np.empty(0, np.uint64), np.arange(3) > 1, pairs):
        save(tmp_path / "a.npy", array)
        found = np.load(tmp_path / "a.npy")
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
    save_parts(tmp_path / "b.npy", np.dtype(np.int64), 5, (np.arange(2), np.empty(0, np.int64), np.arange(3)))
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy", mmap_mode="r"), [0, 1, 0, 1, 2])
