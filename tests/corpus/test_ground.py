import csv
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
from affine import Affine
from parts_corpus import textures, write_parts

from geomim.corpus import changes
from geomim.corpus.build import build
from geomim.corpus.changes import decide, split
from geomim.corpus.pipeline import conclude as conclusion
from geomim.corpus.pipeline.conclude import conclude
from geomim.corpus.pipeline.ground import shared_pixels
from geomim.corpus.store import Corpus
from geomim.errors import CorpusError, InputError

DEGREE = 1e-4  # of a pixel


@pytest.fixture
def unseen(monkeypatch):
    """Without the page, which takes longest."""
    monkeypatch.setattr(changes, "report", lambda folder: None)


def box(row, col, size, at):
    """Footprint of a tile in a scene whose upper left corner lies at `at`, in pixels; divided at the antimeridian."""
    west, north = (at[0] + col) * DEGREE, (at[1] - row) * DEGREE
    east, south = west + size * DEGREE, north - size * DEGREE
    if west < 180 < east:
        return shapely.MultiPolygon([shapely.box(west, south, 180, north), shapely.box(-180, south, east - 360, north)])
    turn = 360 if west >= 180 else 0
    return shapely.box(west - turn, south, east - turn, north)


def random_corpus(folder, seed):
    """Scenes at few places and dates, with or without a place, cut with different sizes and strides."""
    rng = np.random.default_rng(seed)
    rows = []
    count = rng.integers(3, 7)
    for scene in range(count):  # tiles are stored by size, and those of a source together: one scene has both
        placed, stride = rng.random() < 0.7, int(rng.choice([16, 24, 32]))
        at = np.array([1_799_900 if seed % 2 else 0, 0]) + rng.integers(0, 3, 2) * 40 + rng.integers(0, 2) * 7
        day = datetime(2020, 1, 1) + timedelta(days=int(rng.integers(0, 3)) * 30)
        for size in (32,) if scene < count - 2 else (32, 64) if scene == count - 2 else (64,):
            for row in range(0, 97, stride):
                for col in range(0, 65, stride):
                    outline = shapely.to_wkb(box(row, col, size, at)) if placed else None
                    rows.append((size, f"{scene}.tif", row, col, outline, day if placed else None))
    names = ("size", "source", "row", "col", "geometry", "time")
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    sizes = columns.pop("size")
    tiles = {size: textures(sizes.count(size), size, seed) for size in sorted(set(sizes))}
    return write_parts(folder, tiles, columns.pop("source"), **columns)


def share(one, two):
    """Whether two tiles share ground or pixels, by plain rectangles and polygons."""
    if one["geometry"] and two["geometry"]:
        a, b = (shapely.from_wkb(tile["geometry"]) for tile in (one, two))
        return a.intersection(b).area > 1e-4 * min(a.area, b.area)  # a pixel is more
    gap = [max(one[key], two[key]) < min(one[key] + one["size"], two[key] + two["size"]) for key in ("row", "col")]
    return one["source"] == two["source"] and all(gap)


def check(folder, whole=True):
    """No kept train tile shares ground with a held-out one, and no other tile left train for it; returns the rows."""
    rows = Corpus.open(folder).table().to_pylist()
    usable = [row for row in rows if row["kept"] or row["reason"].startswith("shares")]
    held = [row for row in usable if row["split"] in ("val", "test")]
    by_id = {row["id"]: row for row in rows}
    for row in usable:
        if row["split"] == "train":
            assert row["kept"] == (not any(share(row, other) for other in held)), row["reason"]
        if not row["kept"]:
            other = by_id[int(row["reason"].rsplit(" ", 1)[1])]
            assert row["split"] == "train" and other["split"] in row["reason"] and share(row, other)
    assert all(row["kept"] for row in held)
    kept = [row["split"] for row in usable if row["kept"]]
    assert "train" in kept and (not whole or "test" in kept)
    assert Corpus.open(folder).meta["shared"] == (0 if held else None)
    return rows


@pytest.mark.parametrize("seed", range(4))
def test_no_split_lets_train_see_ground_that_is_held_out(tmp_path, seed, unseen):
    folder = random_corpus(tmp_path / "c", seed)
    assert Corpus.open(folder).meta["shared"] is None
    drawn = {}
    for by in ("cluster", "place", "source", "cluster"):
        try:
            split(str(folder), by=by, test_share=0.2, val_share=0.1 if seed % 3 else 0.0, block=0.3, seed=seed)
        except InputError as error:  # followed below
            assert by != "cluster" and ("try --by cluster" in str(error) or "(--by cluster)" in str(error))
            continue
        rows = check(folder)
        tests = [row["split"] for row in rows].count("test")
        assert 0.1 * len(rows) < tests <= 0.2 * len(rows)
        drawn.setdefault(by, []).append([row["split"] for row in rows])
    assert len(drawn["cluster"]) == 2 and drawn["cluster"][0] == drawn["cluster"][1]  # whatever was drawn between


@pytest.mark.parametrize("seed", range(3))
def test_a_split_given_tile_by_tile_is_no_exception(tmp_path, seed):
    folder = random_corpus(tmp_path / "c", seed)
    ids = Corpus.open(folder).table(["id"])["id"]
    names = np.random.default_rng(seed).choice(["train", "val", "test"], len(ids), p=[0.96, 0.02, 0.02])
    conclude(folder, tables={"split": pa.table({"id": ids, "split": names})})
    check(folder, whole=False)
    conclude(folder, min_valid=0.6, overlap=None, near=None)  # no threshold lets one back in
    check(folder, whole=False)
    conclude(folder, tables={"split": None})
    assert all(Corpus.open(folder).table(["kept"])["kept"].to_pylist())


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Three dates of one place whose grids differ by some pixels, the same twice without a place, and a place alone."""
    folder = tmp_path_factory.mktemp("ground")
    for number, (shift, date) in enumerate([(0, "20200101"), (5, "20200301"), (0, "20210101")]):
        write(folder / f"s_{date}.tif", number, Affine(10, 0, 500_000 + 10 * shift, 0, -10, 5_300_000), "EPSG:32632")
    write(folder / "far_20200101.tif", 3, Affine(10, 0, 700_000, 0, -10, 5_300_000), "EPSG:32632")
    for number in (4, 5):
        write(folder / f"plain_{number}.tif", number, Affine(10, 0, 500_000, 0, -10, 5_300_000), None)
    return folder


def write(path, seed, transform, crs, edge=160):
    coarse = np.random.default_rng(seed).integers(10, 250, (3, edge // 4, edge // 4), dtype=np.uint8)
    options = {"driver": "GTiff", "count": 3, "height": edge, "width": edge, "dtype": "uint8"}
    with rasterio.open(path, "w", transform=transform, crs=crs, **options) as file:
        file.write(coarse.repeat(4, 1).repeat(4, 2))


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_builds_keep_splits_apart_whichever_way_they_come(scenes, tmp_path, unseen):
    with open(tmp_path / "split.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image", "split"), ("s_20200301.tif", "test"), ("plain_4.tif", "val")])
    asked = {"tile": 64, "stride": 48, "sensor": "rgb", "workers": 1}
    out = build([str(scenes)], str(tmp_path / "a"), split=str(tmp_path / "split.csv"), **asked)
    rows = check(out)
    left = {row["source"].rsplit("/", 1)[1] for row in rows if row["kept"] and row["split"] == "train"}
    assert left == {"far_20200101.tif", "plain_5.tif"}
    out = build([str(scenes)], str(tmp_path / "b"), test_share=0.2, **asked)
    check(out)
    for by in ("place", "cluster"):
        split(str(out), by=by, test_share=0.2, block=0.7)
        rows = check(out)
        assert [row["kept"] for row in rows].count(True) > 0.4 * len(rows)
    decide(str(out), where="col < 90")
    check(out)


def test_a_build_whose_test_scene_lies_under_all_others_says_so_and_can_be_divided(scenes, tmp_path, unseen, capsys):
    out = build([str(scenes / "s_202?0?01.tif")], str(tmp_path / "c"), tile=32, sensor="rgb", test_share=0.3, workers=1)
    assert "no tile is left to train on" in capsys.readouterr().err.replace("\n", " ")
    split(str(out), by="cluster", test_share=0.3)
    check(out)


def test_a_refusal_to_divide_by_source_names_a_way_that_works(tmp_path, unseen):
    places = [(row, col) for row in range(0, 129, 16) for col in range(0, 129, 16)]
    outlines = [shapely.to_wkb(box(row, col, 32, (0, 0))) for row, col in places]
    row, col = map(list, zip(*places, strict=True))
    one = write_parts(
        tmp_path / "one",
        textures(81),
        ["a.tif"] * 81,
        row=row,
        col=col,
        geometry=outlines,
        time=[datetime(2020, 1, 1)] * 81,
    )
    with pytest.raises(InputError, match=r"smallest of 1 holds 1 of the kept tiles; try --by cluster"):
        split(str(one), by="source", test_share=0.1)
    split(str(one), by="cluster", test_share=0.1)
    check(one)
    two = write_parts(tmp_path / "two", textures(6), list("aaaabb"), row=[0, 32, 64, 96, 0, 32])
    with pytest.raises(InputError, match=r"smallest of 2 holds 0.333.*raise --test-share to 0.334"):
        split(str(two), by="source", test_share=0.1)
    split(str(two), by="source", test_share=0.334)
    check(two)
    dates = [datetime(2020, month, 1) for month in (1, 2, 3, 4) for _ in range(9)]
    series = write_parts(
        tmp_path / "series",
        textures(36),
        [f"{number // 9}.tif" for number in range(36)],
        row=[number % 9 * 32 for number in range(36)],
        geometry=[shapely.to_wkb(box(number % 9 * 32, 0, 32, (0, 0))) for number in range(36)],
        time=dates,
    )
    before = (series / "corpus.json").read_bytes()
    with pytest.raises(InputError, match=r"no tile would be left to train on.*--by cluster"):
        split(str(series), by="source", test_share=0.25)
    assert (series / "corpus.json").read_bytes() == before
    split(str(series), by="cluster", test_share=0.25)
    assert [row["kept"] for row in check(series)] == [True] * 36  # all dates of a place went together


def test_what_edges_tell_leaves_train_at_any_share_and_copies_of_it_too():
    members = pa.table(
        {
            "id": [1, 2, 3, 4, 5, 6],
            "original": [1, 1, 3, 3, 5, 6],
            "split": ["test", "train", "train", "train", None, "val"],
            "usable": [True, True, True, True, True, False],
        }
    )
    edges = pa.table({"a": [1, 5], "b": [3, 6]})
    found = shared_pixels(members, edges).to_pylist()
    assert [(row["id"], row["other"], row["split"]) for row in found] == [(3, 1, "test"), (4, 1, "test")]


def test_a_result_that_breaks_the_promise_is_refused_and_changes_nothing(tmp_path, monkeypatch):
    folder = random_corpus(tmp_path / "c", 2)
    before = (folder / "corpus.json").read_bytes()
    monkeypatch.setattr(conclusion, "first_of", lambda table: table.slice(0, 0))
    with pytest.raises(CorpusError, match="kept tiles of train share ground or pixels"):
        split(str(folder), by="cluster", test_share=0.2)
    assert (folder / "corpus.json").read_bytes() == before and not (folder / "next").exists()


def test_tiles_of_another_planet_are_compared_in_its_own_system(tmp_path):
    transforms = [[10.0, 0.0, float(x), 0.0, -10.0, 0.0] for x in (0, 320, 310, 5000)]
    folder = write_parts(
        tmp_path / "c", textures(4), list("abcd"), transform=transforms, crs_wkt=['LOCAL_CS["Mars"]'] * 4
    )
    ids = Corpus.open(folder).table(["id"])["id"]
    conclude(folder, tables={"split": pa.table({"id": ids, "split": ["test", "train", "train", "train"]})})
    reasons = Corpus.open(folder).table(["reason"])["reason"].to_pylist()
    assert reasons == ["", "", "shares ground with test tile 0", ""]
    assert pq.read_table(folder / "catalogue" / "shared.parquet")["id"].to_pylist() == [2]


def test_dates_of_one_place_stay_and_tiles_too_empty_are_never_compared(tmp_path):
    rng = np.random.default_rng(0)
    ground = np.kron(rng.integers(20, 200, (3, 40, 40)), np.ones((4, 4)))
    ground[:, 70:] = 0
    for year in (2019, 2021, 2022):
        pixels = np.where(ground > 0, np.clip(np.round(ground * 1.05 + rng.normal(0, 1, ground.shape)), 1, 255), 0)
        where = {"transform": Affine(10, 0, 500_000, 0, -10, 5_300_000), "crs": "EPSG:32632" if year < 2022 else None}
        options = {"driver": "GTiff", "count": 3, "height": 160, "width": 160, "dtype": "uint8", "nodata": 0}
        with rasterio.open(tmp_path / f"t_{year}0601.tif", "w", **options, **where) as file:
            file.write(pixels.astype(np.uint8))
    asked = {"tile": 32, "sensor": "rgb", "workers": 1}
    out = build([str(tmp_path / "*.tif")], str(tmp_path / "c"), **asked)
    rows = Corpus.open(out).table().to_pylist()
    usable = {row["id"] for row in rows if not row["reason"].startswith(("valid", "no valid"))}
    kept = [row["source"][-12:-8] for row in rows if row["kept"]]
    assert kept.count("2019") == kept.count("2021") == 10 and not kept.count("2022")  # a copy without a place
    edges = pq.read_table(out / "catalogue" / "edges.parquet").to_pylist()
    assert 0 < len(usable) < len(rows) and {row[end] for row in edges for end in "ab"} <= usable
    with pytest.raises(InputError, match=r"compared tiles of which 0.5 or more is valid.*--min-valid 0.1"):
        decide(str(out), min_valid=0.1)
    lower = build([str(tmp_path / "*.tif")], str(tmp_path / "lower"), min_valid=0.1, **asked)
    decide(str(lower), min_valid=0.5)
    decide(str(lower), min_valid=0.1)
    assert Corpus.open(lower).meta["sizes"]["32"]["kept"] > len(kept)
