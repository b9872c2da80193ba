import json
import multiprocessing
import pickle

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import shapely
from whole_arrays import write_array

from geomim.corpus.shards import write_groups
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


@pytest.fixture
def tiles():
    return np.random.default_rng(0).integers(0, 60000, (150, 3, 8, 8), dtype=np.uint16)


@pytest.fixture
def corpus(tmp_path, tiles):
    path = tmp_path / "corpus"
    path.mkdir()
    write_array(path / "tiles.zarr" / "8" / "image", tiles, NAMES)
    write_groups(path / "tiles.zarr")
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


def test_what_is_no_evidence_of_exclusions_is_told(corpus):
    write_json(corpus / "audit" / "audit.json", {"a": {}, "b": {}})
    with pytest.raises(CorpusError, match=r"audit\.json' is not the evidence .* exclude again"):
        _ = Corpus.open(corpus).provenance


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
