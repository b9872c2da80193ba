import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely

from geomim.corpus.build import build
from geomim.corpus.changes import _places, decide, split
from geomim.corpus.exclusion import exclude
from geomim.corpus.lock import read_lock
from geomim.corpus.pipeline import conclude as conclusion
from geomim.corpus.pipeline.conclude import conclude
from geomim.corpus.store import Corpus
from geomim.corpus.synthetic import write_scenes
from geomim.corpus.verify import rebuild
from geomim.errors import CorpusError, InputError


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Procedural scenes beside each other, with copies between them."""
    folder = tmp_path_factory.mktemp("synthetic")
    write_scenes(folder, scenes=6, size=256)
    return folder / "scenes"


@pytest.fixture(scope="module")
def strict(scenes):
    """Cut into 64 px tiles."""
    return build([str(scenes)], str(scenes.parent / "strict"), tile=64, min_valid=0.9, workers=1)


@pytest.fixture(scope="module")
def lenient(scenes):
    return build([str(scenes)], str(scenes.parent / "lenient"), tile=64, min_valid=0.2, workers=1)


@pytest.fixture
def corpus(strict, tmp_path):
    """One of its own for a test to change."""
    return copied(strict, tmp_path)


def copied(built, folder):
    return Path(shutil.copytree(built, folder / "corpus"))


def together(folder):
    """Pairs of ids that no split may divide."""
    edges = pq.read_table(folder / "catalogue" / "edges.parquet").to_pylist()
    copies = pq.read_table(folder / "catalogue" / "copies.parquet").to_pylist()
    return [(row["a"], row["b"]) for row in edges] + [(row["id"], row["original"]) for row in copies]


def test_a_threshold_lets_a_tile_back_in_and_the_bytes_are_those_of_such_a_build(scenes, lenient, tmp_path):
    corpus = decide(str(copied(lenient, tmp_path)), min_valid=0.9)
    before = Corpus.open(corpus).table(["kept"])["kept"].to_pylist()
    pixels = sorted((file, file.stat().st_mtime_ns) for file in (corpus / "tiles.zarr").rglob("*"))
    decide(str(corpus), min_valid=0.2, where="row < 192", near=-1)
    after = Corpus.open(corpus).table(["kept", "row", "reason"]).to_pylist()
    assert any(row["kept"] and not old for row, old in zip(after, before, strict=True))
    assert all(row["reason"].startswith(("where row < 192", "valid", "exact")) for row in after if not row["kept"])
    assert sorted((file, file.stat().st_mtime_ns) for file in (corpus / "tiles.zarr").rglob("*")) == pixels
    same = build([str(scenes)], str(tmp_path / "same"), tile=64, min_valid=0.2, where="row < 192", near=None, workers=1)
    names = [file.relative_to(same) for file in (same / "tiles.zarr").rglob("*") if file.is_file()]
    for name in ("catalogue.parquet", *names):
        assert (corpus / name).read_bytes() == (same / name).read_bytes()
    assert Corpus.open(corpus).meta["recipe"] == Corpus.open(same).meta["recipe"]


def test_what_was_done_one_after_the_other_is_done_again_in_that_order(lenient, tmp_path):
    corpus = decide(str(copied(lenient, tmp_path)), min_valid=0.3, near=-1)
    split(str(corpus), by="cluster", test_share=0.3)
    decide(str(corpus), min_valid=0.9, near=4)
    split(str(corpus), by="place", block=0.5, test_share=0.4, seed=3)
    decide(str(corpus), quota=3, min_valid=0.5)
    head = read_lock(corpus)[0]
    assert [change["verb"] for change in head["changes"]] == ["decide", "split", "decide", "split", "decide"]
    assert head["changes"][0]["asked"] == {"min_valid": 0.3, "near": None}
    assert head["built"]["quota"] == 16 and head["built"]["near"] == 4 and head["recipe"]["quota"] == 3
    again = rebuild(str(corpus), str(tmp_path / "again"), workers=1)
    for name in ("catalogue.parquet", "corpus.json", "corpus.lock"):
        assert (again / name).read_bytes() == (corpus / name).read_bytes()


def test_a_source_that_was_added_since_is_named_before_anything_is_built(tmp_path):
    scenes = tmp_path / "scenes"
    write_scenes(tmp_path, scenes=1, size=256)
    corpus = build([str(scenes)], str(tmp_path / "corpus"), tile=64, workers=1)
    file = sorted(scenes.iterdir())[0]
    shutil.copy(file, scenes / f"added{file.suffix}")
    with pytest.raises(CorpusError, match=r"cannot be rebuilt: source '.*added.*' was added \(added sources: 1\)"):
        rebuild(str(corpus), str(tmp_path / "again"), workers=1)
    assert not (tmp_path / "again").exists()


def test_an_unreadable_source_is_none_that_was_added(tmp_path):
    write_scenes(tmp_path / "synthetic", scenes=2, size=256)
    (tmp_path / "synthetic" / "scenes" / "broken.tif").write_text("no raster")
    out = build([str(tmp_path / "synthetic" / "scenes")], str(tmp_path / "c"), tile=64, workers=1)
    assert len(read_lock(out)[0]["skipped"]) == 1
    rebuild(str(out), str(tmp_path / "again"), workers=1)


def test_a_wrong_threshold_changes_nothing(corpus):
    before = (corpus / "corpus.json").read_bytes()
    for wrong, words in [
        ({"near": 9}, "within 8 bits"),
        ({"where": "colour = 'red'"}, "no condition"),
        ({"where": "false"}, "no tile is kept"),
        ({"quota": -1}, "--quota"),
        ({"min_valid": 5}, "--min-valid"),
        ({"min_valid": 0.8}, "compared tiles of which 0.9 or more is valid.*build again with --min-valid 0.8"),
        ({"max_cloud": -1}, "--max-cloud"),
        ({"near": -2}, "-1 keeps them"),
    ]:
        with pytest.raises(InputError, match=words):
            decide(str(corpus), **wrong)
    assert (corpus / "corpus.json").read_bytes() == before
    decide(str(corpus), min_valid=0.9)
    assert (corpus / "corpus.json").read_bytes() == before


@pytest.mark.parametrize("by", ["place", "cluster"])
def test_no_split_divides_what_is_alike(corpus, by):
    split(str(corpus), by=by, test_share=0.4, block=0.5)
    opened = Corpus.open(corpus)
    table = opened.table()
    of = dict(zip(table["id"].to_pylist(), table["split"].to_pylist(), strict=True))
    assert together(corpus) and all(of[one] == of[two] for one, two in together(corpus))
    kept = table.filter(table["kept"])["split"].to_pylist()
    assert 0 < kept.count("test") <= 0.4 * len(kept)
    tiles = opened.tiles()
    train = np.flatnonzero(tiles.splits == "train")
    pixels = tiles.read(train).transpose(1, 0, 2, 3)[:, tiles.valid(train)]
    np.testing.assert_allclose(opened.contract.mean, pixels.mean(1, dtype=float), rtol=1e-12)


def test_a_split_that_cannot_be_concluded_leaves_the_one_before(corpus, monkeypatch):
    split(str(corpus), by="cluster", test_share=0.3)
    files = [corpus / "corpus.json", corpus / "catalogue" / "split.parquet", corpus / "catalogue.parquet"]
    before = [file.read_bytes() for file in files]

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(conclusion, "write_lock", killed)
        with pytest.raises(KeyboardInterrupt):
            split(str(corpus), by="cluster", test_share=0.3, seed=1)
    assert [file.read_bytes() for file in files] == before


def test_a_change_that_was_stopped_between_two_files_is_finished_by_the_next(corpus, monkeypatch):
    ids = Corpus.open(corpus).table(["id"])["id"]
    conclude(corpus, tables={"balance": pa.table({"id": ids[:4], "chosen": [False] * 4})})
    drawn = pa.table({"id": ids, "split": ["test"] * 5 + ["train"] * (len(ids) - 5)})
    original, renamed = os.replace, []

    def stops(one, two):
        if Path(two).parent == corpus and Path(two).name == "corpus.lock":
            raise KeyboardInterrupt
        renamed.append(Path(two).name)
        original(one, two)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stops)
        with pytest.raises(KeyboardInterrupt):
            conclude(corpus, {"split": {}}, {"split": drawn, "balance": None})
    assert "split.parquet" in renamed and (corpus / "next" / "catalogue" / "balance.removed").exists()
    with pytest.raises(CorpusError, match="was being changed when that was stopped") as refused:
        Corpus.open(corpus)
    assert f"`geomim corpus decide {corpus}` finishes it" in str(refused.value)
    decide(str(corpus))
    rows = Corpus.open(corpus).table(["split", "reason"]).to_pydict()
    assert rows["split"] == drawn["split"].to_pylist() and not any("balance" in reason for reason in rows["reason"])
    assert not (corpus / "next").exists() and not (corpus / "catalogue" / "balance.parquet").exists()
    assert [change["verb"] for change in Corpus.open(corpus).meta["changes"]] == ["split"]


def test_copies_go_from_a_split_that_was_drawn_and_stay_in_a_published_one(tmp_path):
    pixels = np.kron(np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8), np.ones((8, 8), np.uint8))
    for name in "ab":
        write_picture(tmp_path / f"{name}.png", pixels)
    for number in range(6):
        other = np.kron(np.random.default_rng(number + 1).integers(0, 256, (3, 8, 8)), np.ones((8, 8))).astype(np.uint8)
        write_picture(tmp_path / f"{number}.png", other)
    names = [*"012345ab"]
    table = "image,split\n" + "".join(f"{name}.png,{'test' if name in 'ab' else 'train'}\n" for name in names)
    (tmp_path / "split.csv").write_text(table)
    out = build([str(tmp_path / "*.png")], str(tmp_path / "c"), tile=64, split=str(tmp_path / "split.csv"), workers=1)
    assert all(Corpus.open(out).table(["kept"])["kept"].to_pylist())
    split(str(out), by="cluster", test_share=0.4)
    assert Corpus.open(out).table(["kept"])["kept"].to_pylist().count(False) == 1


def test_a_corpus_at_an_address_is_not_changed():
    for verb in (decide, split):
        with pytest.raises(InputError, match=r"'s3://bucket/corpus' lies in a remote store.*copy it here"):
            verb("s3://bucket/corpus")


def test_a_tile_across_the_antimeridian_is_where_its_first_part_is():
    across = shapely.MultiPolygon([shapely.box(179.99, 10, 180, 10.01), shapely.box(-180, 10, -179.99, 10.01)])
    beside = shapely.box(179.98, 10, 179.99, 10.01)
    wkb = [shapely.to_wkb(one) for one in (across, beside, shapely.box(0, 10, 0.01, 10.01))]
    tiles = pa.table({"id": range(3), "source": ["a"] * 3, "geometry": wkb})
    names = _places(tiles, "place", 100.0)
    assert names[0] == names[1] != names[2]


def write_picture(file, pixels):
    count, height, width = pixels.shape
    with rasterio.open(file, "w", driver="PNG", count=count, height=height, width=width, dtype="uint8") as raster:
        raster.write(pixels)


def test_files_that_share_a_tile_go_to_one_split(tmp_path):
    rng = np.random.default_rng(0)
    pictures = [np.kron(rng.integers(0, 256, (3, 16, 16), dtype=np.uint8), np.ones((8, 8), np.uint8)) for _ in range(8)]
    pictures[5][:, :64, :64] = pictures[2][:, 64:, 64:]
    for number, pixels in enumerate(pictures):
        write_picture(tmp_path / f"{number}.png", pixels)
    out = build([str(tmp_path / "*.png")], str(tmp_path / "c"), tile=64, workers=1)
    for seed in range(4):
        split(str(out), by="source", test_share=0.4, seed=seed)
        rows = Corpus.open(out).table(["source", "split"]).to_pylist()
        of = {number: {row["split"] for row in rows if row["source"].endswith(f"{number}.png")} for number in range(8)}
        assert all(len(splits) == 1 for splits in of.values()) and of[2] == of[5]


def test_tiles_of_one_square_stay_together(corpus):
    split(str(corpus), by="place", test_share=0.4, block=0.64)
    table = Corpus.open(corpus).table(["bbox", "split"]).to_pylist()
    squares = {}
    for row in table:
        box = row["bbox"]
        height = 0.64 / 111.2
        line = np.floor((box["ymin"] + box["ymax"]) / 2 / height)
        width = height / np.cos(np.radians((line + 0.5) * height))
        squares.setdefault((line, np.floor((box["xmin"] + box["xmax"]) / 2 / width)), set()).add(row["split"])
    assert len(squares) > 6 and all(len(splits) == 1 for splits in squares.values())


def test_a_split_repeats_and_follows_its_seed(corpus):
    draws = []
    for seed in (0, 0, 1):
        split(str(corpus), by="cluster", test_share=0.3, val_share=0.2, seed=seed)
        draws.append(Corpus.open(corpus).table(["split"])["split"].to_pylist())
    assert draws[0] == draws[1] != draws[2]
    assert set(draws[0]) == {"train", "val", "test"}


def test_what_cannot_be_divided_is_said(corpus, tmp_path):
    with pytest.raises(InputError, match=r"--by cluster|no group is small enough"):
        split(str(corpus), by="place", test_share=0.1, block=20_000)
    with pytest.raises(InputError, match="leave something to train on"):
        split(str(corpus), test_share=0.6, val_share=0.6)
    for block in (0.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match=f"a block have an edge; .* block {block} km"):
            split(str(corpus), block=block)
    with pytest.raises(CorpusError, match="no corpus"):
        split(str(tmp_path))


def test_a_quota_of_flat_tiles_a_scene(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(2):
        pixels = np.full((3, 256, 256), 90 + number, np.uint8) + rng.integers(0, 2, (3, 256, 256), dtype=np.uint8)
        pixels[:, :64, :64] = rng.integers(0, 256, (3, 8, 8), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
        write_picture(tmp_path / f"{number}.png", pixels)
    out = build([str(tmp_path / "*.png")], str(tmp_path / "c"), tile=64, quota=3, workers=1)
    table = Corpus.open(out).table()
    low = table.filter(table["low_information"]).to_pylist()
    assert len(low) == 30
    assert [row["kept"] for row in low].count(True) == 6
    assert {row["reason"] for row in low} == {"", "quota of 3 tiles a scene"}  # and none is a near duplicate
    decide(str(out), quota=100)
    table = Corpus.open(out).table()
    assert all(table["kept"].to_pylist())


def test_exclusions_are_done_again_each_as_it_was_asked_for(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(8):
        pixels = np.kron(rng.integers(0, 256, (3, 8, 8), dtype=np.uint8), np.ones((8, 8), np.uint8))
        for folder in ("train", *(("a",) if number == 1 else ()), *(("b",) if number == 2 else ())):
            (tmp_path / folder).mkdir(exist_ok=True)
            write_picture(tmp_path / folder / f"{number}.png", pixels)
    out = build([str(tmp_path / "train")], str(tmp_path / "c"), tile=64, workers=1)
    exclude(str(out), [str(tmp_path / "a")], radius=2, crops="off", workers=1)
    exclude(str(out), [str(tmp_path / "b")], radius=4, crops="off", workers=1)
    done = [change["asked"] for change in read_lock(out)[0]["changes"]]
    assert [(one["against"], one["radius"]) for one in done] == [
        ([str(tmp_path / "a")], 2),
        ([str(tmp_path / "b")], 4),
    ]
    again = rebuild(str(out), str(tmp_path / "again"), workers=1)
    assert (again / "catalogue.parquet").read_bytes() == (out / "catalogue.parquet").read_bytes()
    assert Corpus.open(again).table(["kept"])["kept"].to_pylist().count(False) == 2
