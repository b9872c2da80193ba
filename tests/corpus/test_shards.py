import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import xarray
import zarr
from whole_arrays import write_array

from geomim.corpus import shards
from geomim.corpus.reader import TileArray
from geomim.corpus.shards import (
    copy_runs,
    create_array,
    find_layout,
    missing_shards,
    read_meta,
    write_groups,
    write_shard,
)
from geomim.errors import ConfigError, CorpusError

NAMES = ("tile", "band", "y", "x")


@pytest.fixture
def tiles():
    return np.random.default_rng(0).integers(0, 60000, (150, 3, 8, 8), dtype=np.uint16)


@pytest.fixture
def small_shards(monkeypatch):
    """64 tiles a shard: 150 tiles fill two of them and a part of a third."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 1)


def fill_shards(path, layout, tiles, numbers=None):
    for number in range(layout.shards) if numbers is None else numbers:
        write_shard(path, layout, number, (tiles[slot] for slot in layout.slots(number)))


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_zarr_and_xarray_read_what_is_written(tmp_path, small_shards, dtype, compression):
    tiles = np.random.default_rng(1).normal(0, 3000, (150, 3, 8, 8)).astype(dtype)
    path = tmp_path / "t.zarr" / "8" / "image"
    layout = write_array(path, tiles, NAMES, compression=compression)
    write_groups(tmp_path / "t.zarr")
    assert layout.per_shard == 64 and layout.shards == 3 and find_layout(read_meta(path)) == layout
    np.testing.assert_array_equal(zarr.open_array(str(path), mode="r")[:], tiles)
    for consolidated in (True, False):
        image = xarray.open_zarr(tmp_path / "t.zarr", group="8", consolidated=consolidated)["image"]
        assert image.dims == NAMES
        np.testing.assert_array_equal(image.values, tiles)
    array = TileArray(path)
    order = np.random.default_rng(2).permutation(150)
    np.testing.assert_array_equal(array.read(order), tiles[order])


def test_bytes_do_not_depend_on_the_order_of_the_shards(tmp_path, tiles, small_shards):
    files = {}
    for name, numbers in {"forth": [0, 1, 2], "back": [2, 0, 1]}.items():
        layout = create_array(tmp_path / name, tiles.shape, tiles.dtype, NAMES, compression="lz4")
        fill_shards(tmp_path / name, layout, tiles, numbers)
        files[name] = {
            str(file.relative_to(tmp_path / name)): file.read_bytes()
            for file in (tmp_path / name).rglob("*")
            if file.is_file()
        }
    assert files["forth"] == files["back"] and len(files["forth"]) == 4


def test_shards_are_written_side_by_side_and_what_is_there_is_done(tmp_path, tiles, small_shards):
    path = tmp_path / "image"
    layout = create_array(path, tiles.shape, tiles.dtype, NAMES)
    assert missing_shards(path, layout) == [0, 1, 2]
    with pytest.raises(CorpusError, match="c/0/0/0/0' is missing"):
        TileArray(path).read([0])
    write_shard(path, layout, 1, list(tiles[64:128]))
    assert create_array(path, tiles.shape, tiles.dtype, NAMES) == layout  # a build that goes on
    assert missing_shards(path, layout) == [0, 2]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda number: fill_shards(path, layout, tiles, [number]), [0, 2]))
    np.testing.assert_array_equal(TileArray(path).read(np.arange(150)), tiles)


def test_tiles_of_fill_values_take_no_bytes(tmp_path):
    valid = np.ones((100, 8, 8), bool)
    valid[[3, 90], :4] = False
    write_array(tmp_path / "valid", valid, ("tile", "y", "x"), fill=True)
    np.testing.assert_array_equal(TileArray(tmp_path / "valid").read(np.arange(100)), valid)
    np.testing.assert_array_equal(zarr.open_array(str(tmp_path / "valid"), mode="r")[:], valid)
    assert (tmp_path / "valid" / "c" / "0" / "0" / "0").stat().st_size == 2 * 64 + 100 * 16 + 4


def staged(folder, tiles):
    """Tiles as the bytes of two files, with something else between them; runs of the shards."""
    runs = []
    for name, start, count in (("one", 0, 40), ("one", 40, 24), ("two", 64, 64), ("two", 128, 22)):
        with open(folder / name, "ab") as file:
            file.write(b"not a tile")
            runs.append((folder / name, file.tell(), tiles[start : start + count].nbytes))
            file.write(tiles[start : start + count].tobytes())
    return [runs[:2], runs[2:3], runs[3:]]


@pytest.mark.parametrize("kernel", [True, False])
def test_copied_runs_equal_written_tiles(tmp_path, tiles, small_shards, kernel, monkeypatch):
    if not kernel:

        def refuse(*_):
            raise OSError(errno.EXDEV, "between file systems")

        monkeypatch.setattr(os, "copy_file_range", refuse)
    runs = staged(tmp_path, tiles)
    for name in ("copied", "written"):
        layout = create_array(tmp_path / name, tiles.shape, tiles.dtype, NAMES)
    for number in range(3):
        copy_runs(tmp_path / "copied", layout, number, runs[number])
        write_shard(tmp_path / "written", layout, number, [tiles[slot] for slot in layout.slots(number)])
        one, two = ((tmp_path / name / layout.file(number)).read_bytes() for name in ("copied", "written"))
        assert one == two


def test_a_staged_file_that_was_cut_off_is_named(tmp_path, tiles, small_shards):
    runs = staged(tmp_path, tiles)
    layout = create_array(tmp_path / "image", tiles.shape, tiles.dtype, NAMES)
    os.truncate(tmp_path / "two", 1000)
    with pytest.raises(CorpusError, match="two' is cut off"):
        copy_runs(tmp_path / "image", layout, 1, runs[1])
    assert missing_shards(tmp_path / "image", layout) == [0, 1, 2] and not list((tmp_path / "image").rglob("*.part"))
    with pytest.raises(FileNotFoundError, match="gone"):
        copy_runs(tmp_path / "image", layout, 1, [(tmp_path / "gone", 0, 1)])


def test_a_wrong_number_of_tiles_is_an_error(tmp_path, tiles, small_shards):
    layout = create_array(tmp_path / "image", tiles.shape, tiles.dtype, NAMES)
    with pytest.raises(ValueError, match="shard 2 holds 22 tiles, given 3"):
        write_shard(tmp_path / "image", layout, 2, list(tiles[:3]))
    with pytest.raises(ValueError, match=r"expected tiles of \(3, 8, 8\)"):
        write_shard(tmp_path / "image", layout, 2, [tiles[0, :, :4]])
    assert not list((tmp_path / "image").rglob("0/0/0/*"))
    with pytest.raises(ConfigError, match="unknown compression 'zst'; did you mean 'zstd'"):
        create_array(tmp_path / "other", tiles.shape, tiles.dtype, NAMES, compression="zst")


@pytest.mark.parametrize("call", ["write", "replace"])
def test_a_full_disk_leaves_what_was_there(tmp_path, tiles, small_shards, monkeypatch, call):
    path = tmp_path / "image"
    layout = write_array(path, tiles, NAMES)
    before = (path / layout.file(0)).read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def tiles_until_full():
        yield tiles[0]
        full()

    if call == "replace":
        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(CorpusError, match=r"0/0/0' cannot be written \(No space left on device\): make room"):
            write_shard(path, layout, 0, list(tiles[64:128]))
    else:
        with pytest.raises(CorpusError, match="No space left"):
            write_shard(path, layout, 0, tiles_until_full())
    assert (path / layout.file(0)).read_bytes() == before and not list(path.rglob("*.part"))


def test_other_layouts_are_told(tmp_path, tiles):
    zarr.create_array(str(tmp_path / "image"), shape=tiles.shape, chunks=(1, 3, 8, 8), dtype="uint16")
    assert find_layout(read_meta(tmp_path / "image")) is None
    (tmp_path / "image" / "zarr.json").write_text(json.dumps({"shape": 3}))
    with pytest.raises(CorpusError, match="is no zarr v3 array"):
        read_meta(tmp_path / "image")
