import duckdb
import geopandas
import numpy as np
import pyproj
import pytest
import rasterio
import shapely

from geomim.maps.files.layers import layer, tags_of

CRS = rasterio.CRS.from_epsg(32633)
BOXES = shapely.box(np.arange(5.0), 0, np.arange(5.0) + 1, 2)
TAGS = {"GEOMIM_MAP": "abc", "SCENE": "/a/ü.tif"}


def columns(count):
    return {"class": np.array(["ü"] * count, object), "score": np.linspace(0, 1, count)}


def read(path):
    return (geopandas.read_parquet if path.suffix == ".parquet" else geopandas.read_file)(path)


@pytest.mark.parametrize("ending", [".gpkg", ".parquet"])
@pytest.mark.parametrize("crs", [CRS, None])
def test_batches_become_one_layer_with_its_system_and_its_tags(tmp_path, ending, crs):
    path = tmp_path / f"out{ending}"
    with layer(path, crs, TAGS) as write:
        write(columns(0), BOXES[:0])
        write(columns(2), BOXES[:2])
        write(columns(3), BOXES[2:])
        assert not path.exists()
    table = read(path)
    assert table.crs == (crs and pyproj.CRS.from_epsg(32633))
    assert shapely.equals(table.geometry.to_numpy(), BOXES).all() and set(table["class"]) == {"ü"}
    assert table["score"].tolist() == [0, 1, 0, 0.5, 1]
    assert tags_of(path) == TAGS


@pytest.mark.parametrize("ending", [".gpkg", ".parquet"])
def test_what_fails_leaves_what_was_there(tmp_path, ending):
    path = tmp_path / f"out{ending}"
    with layer(path, CRS) as write:
        write(columns(5), BOXES)
    with pytest.raises(RuntimeError), layer(path, CRS) as write:
        write(columns(1), BOXES[:1])
        raise RuntimeError
    assert len(read(path)) == 5 and [file.name for file in tmp_path.iterdir()] == [path.name]


def test_duckdb_counts_rows_and_knows_the_extent(tmp_path):
    with layer(tmp_path / "out.parquet", CRS) as write:
        write(columns(5), BOXES)
    query = f"SELECT count(*), min(score) FROM '{tmp_path}/out.parquet' WHERE \"class\" = 'ü'"
    assert duckdb.sql(query).fetchall() == [(5, 0.0)]


def test_other_files_have_no_tags(tmp_path):
    for name in ("a.gpkg", "a.parquet"):
        (tmp_path / name).write_text("x")
        assert tags_of(tmp_path / name) == {}
