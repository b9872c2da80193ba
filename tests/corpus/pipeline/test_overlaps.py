from datetime import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely

from geomim.corpus.pipeline.overlaps import _overlaps, _scatter


def found(folder, tiles, partitions=1):
    """Pairs among tiles `(sensor, time, west edge, source)` of one degree, the last one too empty where it says so."""
    rows = [
        {
            "id": number,
            "source": source,
            "sensor": sensor,
            "time": time and datetime.fromisoformat(time),
            "geometry": None if west is None else shapely.to_wkb(shapely.box(west, 0, west + 1, 1)),
            "valid_fraction": 0.2 if source.startswith("empty") else 1.0,
        }
        for number, (sensor, time, west, source) in enumerate(tiles)
    ]
    schema = pa.schema(
        {"id": pa.int64(), "source": pa.string(), "sensor": pa.string(), "time": pa.timestamp("us")}
        | {"geometry": pa.binary(), "valid_fraction": pa.float64()}
    )
    for number, part in enumerate((rows[::2], rows[1::2])):
        (folder / f"{number}").mkdir()
        pq.write_table(pa.Table.from_pylist(part, schema), folder / f"{number}" / "tiles.parquet")
        _scatter(folder / f"{number}", folder, partitions, 0.5)
    for part in range(partitions):
        _overlaps(folder, part)
    tables = [pq.read_table(file) for file in sorted(folder.glob("edges-*.parquet"))]
    return sorted((row["a"], row["b"], round(row["share"], 2)) for row in pa.concat_tables(tables).to_pylist())


@pytest.mark.parametrize("partitions", [1, 5])
def test_frames_of_one_pass_overlap_though_they_come_seconds_apart(tmp_path, partitions):
    tiles = [
        ("landsat8", "2018-04-28 15:33:40", 0, "row31.tif"),
        ("landsat8", "2018-04-28 15:34:04", 0.4, "row32.tif"),
        ("landsat8", "2018-04-28 23:10:00", 0.4, "evening.tif"),  # one day
        ("landsat8", "2018-04-29 15:33:40", 0, "next.tif"),
        ("landsat7", "2018-04-28 15:34:04", 0, "other.tif"),
        ("landsat8", "2018-04-28 15:34:04", 0, "row31.tif"),  # a stride
        ("landsat8", None, 0, "undated.tif"),
        ("landsat8", "2018-04-28 15:34:04", None, "unplaced.tif"),
        ("landsat8", "2018-04-28 15:34:04", 0, "empty.tif"),
    ]
    assert found(tmp_path, tiles, partitions) == [(0, 1, 0.6), (0, 2, 0.6), (1, 2, 1.0), (1, 5, 0.6), (2, 5, 0.6)]


@pytest.mark.parametrize("partitions", [1, 5])
def test_a_pass_goes_on_across_midnight_and_a_date_alone_is_its_day(tmp_path, partitions):
    tiles = [
        ("s", "2020-02-29 23:59:50", 0, "a.tif"),
        ("s", "2020-03-01 00:00:14", 0, "b.tif"),
        ("s", "2020-03-01 00:50:00", 0, "c.tif"),
        ("s", "2020-02-29 23:40:00", 0, "d.tif"),
        ("s", "2020-03-01 00:00:00", 5, "date.tif"),
        ("s", "2020-02-29 23:59:50", 5, "late.tif"),
        ("s", "2020-03-01 17:00:00", 5, "same-day.tif"),
    ]
    pairs = [pair[:2] for pair in found(tmp_path, tiles, partitions)]
    assert pairs == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (4, 6)]  # c and d are 70 minutes apart
