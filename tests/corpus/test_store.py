import json
import multiprocessing
import pickle

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import shapely
import xarray
import zarr

from geomim.corpus import shards
from geomim.corpus.shards import TileArray, TileWriter
from geomim.corpus.store import CATALOGUE, Corpus, write_catalogue, write_json
from geomim.errors import CorpusError
from geomim.sensors import get_sensor

NAMES = ("tile", "band", "y", "x")


def rows(count, **columns):
    """Catalogue rows with the columns given and null or a plain value elsewhere."""
    plain = {
        "id": np.arange(count),
        "slot": np.arange(count),
        "size": [8] * count,
        "source": ["a.tif"] * count,
        "kept": [True] * count,
        "reason": [""] * count,
        "split": ["train"] * count,
    } | columns
    return pa.table(
        {field.name: pa.array(plain.get(field.name, [None] * count), field.type) for field in CATALOGUE}, CATALOGUE
    )


def write_tiles(path, tiles, chunk=7, fill=0, stored=None):
    with TileWriter(path, tiles.shape, tiles.dtype, NAMES[: tiles.ndim], fill) as writer:
        for start in range(0, len(tiles), chunk):
            part = slice(start, start + chunk)
            writer.append(tiles[part], None if stored is None else stored[part])


@pytest.fixture
def tiles():
    return np.random.default_rng(0).integers(0, 60000, (150, 3, 8, 8), dtype=np.uint16)


@pytest.fixture
def corpus(tmp_path, tiles):
    path = tmp_path / "corpus"
    path.mkdir()
    zarr.create_group(str(path / "tiles.zarr"), zarr_format=3).create_group("8")
    write_tiles(path / "tiles.zarr" / "8" / "image", tiles)
    label = ["b", "a", None] * 50
    kept = np.arange(150) != 4
    write_catalogue(path / "catalogue.parquet", [rows(150, label=label, kept=kept)])
    meta = {
        "format_version": 1,
        "geomim_version": "0",
        "sensor": get_sensor("rgb").to_dict(),
        "statistics": {"mean": [1.0, 2.0, 3.0], "std": [1.0, 1.0, 1.0], "split": "train", "pixels": 1},
        "licences": ["CC0"],
        "attributions": [],
        "recipe": {},
        "versions": {},
        "sizes": {"8": {"tiles": 150}},
        "classes": ["a", "b"],
    }
    write_json(path / "corpus.json", meta)
    return path


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_reader_gives_what_zarr_and_xarray_read(tmp_path, dtype):
    # 150 tiles in shards of 64: the last one is partly filled
    tiles = np.random.default_rng(1).normal(0, 3000, (150, 3, 8, 8)).astype(dtype)
    zarr.create_group(str(tmp_path / "t.zarr"), zarr_format=3).create_group("8")
    shard_bytes, shards.SHARD_BYTES = shards.SHARD_BYTES, 1
    try:
        write_tiles(tmp_path / "t.zarr" / "8" / "image", tiles)
    finally:
        shards.SHARD_BYTES = shard_bytes
    array = TileArray(tmp_path / "t.zarr" / "8" / "image")
    assert array._per_shard == 64
    order = np.random.default_rng(2).permutation(150)
    np.testing.assert_array_equal(array.read(order), tiles[order])
    np.testing.assert_array_equal(array.read([130, 149, 128]), tiles[[130, 149, 128]])
    np.testing.assert_array_equal(zarr.open_array(str(tmp_path / "t.zarr" / "8" / "image"), mode="r")[:], tiles)
    image = xarray.open_zarr(tmp_path / "t.zarr", group="8", consolidated=False)["image"]
    assert image.dims == NAMES
    np.testing.assert_array_equal(image.values, tiles)
    out = np.empty((2, 3, 8, 8), dtype)
    assert array.read([5, 70], out) is out
    np.testing.assert_array_equal(out, tiles[[5, 70]])
    with pytest.raises(IndexError, match=r"0\.\.149"):
        array.read([150])


def test_missing_chunks_read_as_the_fill_value(tmp_path):
    valid = np.ones((100, 8, 8), bool)
    valid[[3, 90], :4] = False
    stored = ~valid.all((1, 2))
    write_tiles(tmp_path / "valid", valid, fill=True, stored=stored)
    np.testing.assert_array_equal(TileArray(tmp_path / "valid").read(np.arange(100)), valid)
    np.testing.assert_array_equal(zarr.open_array(str(tmp_path / "valid"), mode="r")[:], valid)
    assert (tmp_path / "valid" / "c" / "0" / "0" / "0").stat().st_size == 2 * 64 + 100 * 16 + 4


def test_no_shard_at_all_reads_as_the_fill_value(tmp_path):
    write_tiles(tmp_path / "valid", np.ones((10, 8, 8), bool), fill=True, stored=np.zeros(10, bool))
    assert TileArray(tmp_path / "valid").read([0, 9]).all()


@pytest.mark.parametrize(
    "layout",
    [
        {"compressors": zarr.codecs.ZstdCodec(level=1), "shards": (64, 3, 8, 8)},
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
    assert reader._per_shard == 0
    np.testing.assert_array_equal(reader.read([149, 3]), tiles[[149, 3]])


def test_shards_that_zarr_wrote_are_read_directly(tmp_path, tiles):
    tiles[10] = 0  # zarr-python leaves out chunks that equal the fill value
    array = zarr.create_array(
        str(tmp_path / "image"),
        shape=tiles.shape,
        chunks=(1, 3, 8, 8),
        shards=(64, 3, 8, 8),
        dtype="uint16",
        compressors=None,
        filters=None,
    )
    array[:] = tiles
    reader = TileArray(tmp_path / "image")
    assert reader._per_shard == 64
    np.testing.assert_array_equal(reader.read(np.arange(150)), tiles)


@pytest.mark.parametrize(("damage", "words"), [("flip", "checksum"), ("cut", "cut off|checksum|outside")])
def test_a_damaged_shard_is_named(tmp_path, tiles, damage, words):
    write_tiles(tmp_path / "image", tiles)
    shard = tmp_path / "image" / "c" / "0" / "0" / "0" / "0"
    raw = bytearray(shard.read_bytes())
    if damage == "flip":
        raw[-10] ^= 1
    else:
        raw = raw[: len(raw) // 2]
    shard.write_bytes(raw)
    with pytest.raises(CorpusError, match=words) as error:
        TileArray(tmp_path / "image").read([0])
    assert str(shard) in str(error.value)


def test_a_writer_left_early_is_an_error(tmp_path, tiles):
    with pytest.raises(ValueError, match="expected 150 tiles, given 3"):
        with TileWriter(tmp_path / "image", tiles.shape, tiles.dtype, NAMES) as writer:
            writer.append(tiles[:3])
    assert not list((tmp_path / "image").rglob("0/0/0/0"))


def test_kept_tiles_labels_and_pickle(corpus, tiles):
    opened = Corpus.open(corpus)
    read = opened.tiles()
    assert len(read) == 149 and read.size == 8 and read.bands == 3 and read.dtype == np.uint16
    assert read.slots[4] == 5
    assert read.labels[:6].tolist() == [1, 0, -1, 1, -1, 1]
    assert opened.contract.mean == (1.0, 2.0, 3.0)
    np.testing.assert_array_equal(read.read([4, 0]), tiles[[5, 0]])
    assert read.valid([0, 1]).shape == (2, 8, 8) and read.valid([0]).all()
    assert read.mask([0]) is None
    again = pickle.loads(pickle.dumps(read))
    np.testing.assert_array_equal(again.read([4, 0]), tiles[[5, 0]])
    assert len(pickle.dumps(read)) < 20000  # no pixels travel to a worker
    with pytest.raises(CorpusError, match="no tiles of 64 pixels; it holds 8"):
        opened.tiles(64)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(read.read, ([148],)), tiles[[149]])


def test_table_reads_columns_and_rows(corpus):
    table = Corpus.open(corpus).table(["id", "label"], where=pc.field("label") == "a")
    assert table.column_names == ["id", "label"] and table["id"].to_pylist()[:2] == [1, 4]


def test_a_newer_format_is_refused(corpus):
    meta = json.loads((corpus / "corpus.json").read_text())
    write_json(corpus / "corpus.json", meta | {"format_version": 2, "geomim_version": "9.1"})
    with pytest.raises(CorpusError, match=r"format 2, written by geomim 9\.1.*up to 1.*upgrade"):
        Corpus.open(corpus)


def test_a_folder_that_is_no_corpus_is_refused(tmp_path, corpus):
    with pytest.raises(CorpusError, match="is no corpus"):
        Corpus.open(tmp_path)
    (corpus / "corpus.json").write_text("{}")
    with pytest.raises(CorpusError, match="format_version"):
        Corpus.open(corpus)
    write_json(corpus / "corpus.json", {"format_version": 1})
    with pytest.raises(CorpusError, match="lacks 'sensor'"):
        Corpus.open(corpus)


def test_geopandas_and_duckdb_open_the_catalogue(tmp_path):
    duckdb = pytest.importorskip("duckdb")
    box = shapely.box(10, 50, 11, 51)
    bounds = dict(zip(("xmin", "ymin", "xmax", "ymax"), box.bounds, strict=True))
    half = {"geometry": [box.wkb, None], "bbox": [bounds, None], "transform": [[1.0, 0, 0, 0, -1, 0], None]}
    for name, columns in {"some": half, "none": {}}.items():
        path = tmp_path / f"{name}.parquet"
        write_catalogue(path, [rows(2, **columns), rows(2, id=[2, 3])])
        frame = geopandas.read_parquet(path)
        assert len(frame) == 4 and frame.crs.equals("OGC:CRS84")
        assert frame.geometry.isna().sum() == (3 if name == "some" else 4)
        assert duckdb.connect().execute(f"SELECT count(*), sum(id) FROM '{path}' WHERE kept").fetchall() == [(4, 6)]
    frame = geopandas.read_parquet(tmp_path / "some.parquet", bbox=(10.5, 50.5, 12, 52))
    assert len(frame) == 1 and frame.geometry.iloc[0].equals(box)
    assert duckdb.connect().execute(
        f"SELECT bbox.xmax FROM '{tmp_path / 'some.parquet'}' WHERE id = 0 AND bbox IS NOT NULL"
    ).fetchall() == [(11.0,)]
