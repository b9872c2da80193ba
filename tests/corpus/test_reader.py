import multiprocessing
import pickle

import numpy as np
import pytest
import zarr
from whole_arrays import write_array

from geomim.corpus import shards
from geomim.corpus.reader import TileArray
from geomim.errors import CorpusError

NAMES = ("tile", "band", "y", "x")


@pytest.fixture
def tiles():
    return np.random.default_rng(0).integers(0, 60000, (150, 3, 8, 8), dtype=np.uint16)


@pytest.fixture(params=[None, "lz4", "zstd"])
def compression(request):
    return request.param


@pytest.fixture(params=["here", "memory"])
def written(request, tmp_path, tiles, compression, monkeypatch):
    """The tiles in three shards, on the disk or in a remote store."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 1)
    path = tmp_path / "image"
    write_array(path, tiles, NAMES, compression=compression)
    if request.param == "here":
        return str(path)
    import fsspec

    url = f"memory://{tmp_path.name}/image"
    fsspec.filesystem("memory").put(str(path), url, recursive=True)
    return url


def test_tiles_are_read_in_any_order(written, tiles):
    array = TileArray(written)
    assert array.shape == tiles.shape and array.dtype == tiles.dtype and len(array) == 150
    order = np.random.default_rng(2).permutation(150)
    np.testing.assert_array_equal(array.read(order), tiles[order])
    np.testing.assert_array_equal(array.read([130, 149, 128, 130]), tiles[[130, 149, 128, 130]])
    out = np.empty((2, 3, 8, 8), np.uint16)
    assert array.read([5, 70], out) is out
    np.testing.assert_array_equal(out, tiles[[5, 70]])
    assert array.read([]).shape == (0, 3, 8, 8)
    for wrong in ([150], [-1]):
        with pytest.raises(IndexError, match=r"0\.\.149"):
            array.read(wrong)
    again = pickle.loads(pickle.dumps(array))
    np.testing.assert_array_equal(again.read([149]), tiles[149:])
    assert len(pickle.dumps(array)) < 1000
    with multiprocessing.get_context("fork").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(array.read, ([148],)), tiles[[148]])


def test_many_shards_keep_few_files_open(tmp_path, tiles, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 1)
    monkeypatch.setattr("geomim.corpus.reader._OPEN_SHARDS", 2)
    write_array(tmp_path / "image", tiles, NAMES)
    array = TileArray(tmp_path / "image")
    np.testing.assert_array_equal(array.read([0, 70, 140, 1]), tiles[[0, 70, 140, 1]])
    assert len(array._shards) == 2


def test_threads_share_a_large_batch_also_after_a_fork(tmp_path, tiles, compression, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 1)
    monkeypatch.setattr("geomim.corpus.reader._LARGE", 1)
    monkeypatch.setattr("geomim.corpus.reader._threads", lambda: 3)
    write_array(tmp_path / "image", tiles, NAMES, compression=compression)
    array = TileArray(tmp_path / "image")
    order = np.random.default_rng(2).permutation(150)
    for rows in (order, order[:2], order[:0]):
        np.testing.assert_array_equal(array.read(rows), tiles[rows])
    context = multiprocessing.get_context("fork")
    answer = context.SimpleQueue()
    child = context.Process(target=lambda: answer.put(np.array_equal(array.read(order), tiles[order])))
    child.start()
    assert answer.get()
    child.join()
    (tmp_path / "image" / "c" / "1" / "0" / "0" / "0").unlink()
    with pytest.raises(CorpusError, match="is missing"):
        TileArray(tmp_path / "image").read(order)


@pytest.mark.parametrize(
    "layout",
    [
        {"compressors": zarr.codecs.GzipCodec(level=1), "shards": (64, 3, 8, 8)},
        {"compressors": [zarr.codecs.ZstdCodec(), zarr.codecs.Crc32cCodec()], "shards": (64, 3, 8, 8)},
        {"compressors": None},
        {"compressors": None, "shards": (64, 3, 8, 8), "serializer": zarr.codecs.BytesCodec(endian="big")},
    ],
)
def test_other_layouts_fall_back_to_zarr(tmp_path, tiles, layout):
    array = zarr.create_array(
        str(tmp_path / "image"), shape=tiles.shape, chunks=(1, 3, 8, 8), dtype="uint16", filters=None, **layout
    )
    array[:] = tiles
    reader = TileArray(tmp_path / "image")
    assert reader.layout is None
    np.testing.assert_array_equal(reader.read([149, 3]), tiles[[149, 3]])
    import fsspec

    url = f"memory://{tmp_path.name}/other"
    fsspec.filesystem("memory").put(str(tmp_path / "image"), url, recursive=True)
    np.testing.assert_array_equal(TileArray(url).read([149, 3]), tiles[[149, 3]])


@pytest.mark.parametrize("codec", [None, zarr.codecs.BloscCodec(cname="zstd", shuffle="bitshuffle")])
def test_shards_that_zarr_wrote_are_read_directly(tmp_path, tiles, codec):
    tiles[10] = 0  # zarr-python leaves out chunks that equal the fill value
    tiles[64:128] = 0  # and shards
    array = zarr.create_array(
        str(tmp_path / "image"),
        shape=tiles.shape,
        chunks=(1, 3, 8, 8),
        shards=(64, 3, 8, 8),
        dtype="uint16",
        compressors=codec,
        filters=None,
    )
    array[:] = tiles
    reader = TileArray(tmp_path / "image")
    assert reader.layout is not None
    np.testing.assert_array_equal(reader.read(np.arange(150)), tiles)


def damage(shard, kind):
    raw = bytearray(shard.read_bytes())
    if kind == "flip":
        raw[-10] ^= 1
    elif kind == "cut":
        raw = raw[: len(raw) // 2]
    shard.write_bytes(raw)


@pytest.mark.parametrize("kind", ["flip", "cut", "lost"])
def test_a_damaged_shard_is_named(tmp_path, tiles, kind, compression):
    write_array(tmp_path / "image", tiles, NAMES, compression=compression)
    shard = tmp_path / "image" / "c" / "0" / "0" / "0" / "0"
    if kind == "lost":
        shard.unlink()
    else:
        damage(shard, kind)
    with pytest.raises(CorpusError, match=r"checksum|cut off|outside|is missing") as error:
        TileArray(tmp_path / "image").read([0])
    assert str(shard) in str(error.value)


def test_a_damaged_compressed_tile_is_named(tmp_path, tiles):
    write_array(tmp_path / "image", tiles, NAMES, compression="zstd")
    shard = tmp_path / "image" / "c" / "0" / "0" / "0" / "0"
    raw = bytearray(shard.read_bytes())
    raw[:4] = b"none"
    shard.write_bytes(raw)
    with pytest.raises(CorpusError, match="is damaged") as error:
        TileArray(tmp_path / "image").read([0])
    assert str(shard) in str(error.value)


@pytest.mark.parametrize("kind", ["cut", "garbled"])
def test_a_damaged_shard_of_another_layout_is_named(tmp_path, tiles, kind):
    codecs = [zarr.codecs.GzipCodec()]
    path = tmp_path / "image"
    array = zarr.create_array(path, shape=tiles.shape, dtype="u2", compressors=codecs, chunks=(1, 3, 8, 8))
    array[:] = tiles
    assert TileArray(path).layout is None
    chunk = path / "c" / "3" / "0" / "0" / "0"
    raw = chunk.read_bytes()
    chunk.write_bytes(raw[:100] if kind == "cut" else b"\xff" * len(raw))
    np.testing.assert_array_equal(TileArray(path).read([2]), tiles[[2]])
    with pytest.raises(CorpusError, match="image' is damaged"):
        TileArray(path).read([2, 3])
