import errno
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import xarray
from parts_corpus import textures, write_parts

from geomim.corpus import assemble
from geomim.corpus.combine import filter, merge
from geomim.corpus.exclusion import EXCLUSIONS
from geomim.corpus.lock import read_lock
from geomim.corpus.pipeline.conclude import conclude
from geomim.corpus.store import Corpus, write_json, write_table
from geomim.corpus.verify import rebuild, verify
from geomim.errors import BandError, CorpusError, InputError


def pixels_by_hash(corpus):
    """Every tile of a corpus: content hash to pixels, read through the slots."""
    found = {}
    opened = Corpus.open(corpus)
    for row in opened.table().to_pylist():
        found[row["id"]] = opened.array("image", row["size"]).read([row["slot"]])[0]
    return found


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    """The report takes most of the time; one test looks at it."""
    if "hold_all_tiles_once" not in request.node.name:
        monkeypatch.setattr(assemble, "write_report", lambda folder: None)


@pytest.fixture
def two(tmp_path):
    """Two corpora of 70 and 20 tiles; one tile is in both."""
    first, second = textures(70), textures(20, seed=1)
    second[3] = first[5]
    return write_parts(tmp_path / "one", first), write_parts(tmp_path / "two", second)


def test_merged_corpora_hold_all_tiles_once(two, tmp_path):
    out = merge([str(path) for path in two], str(tmp_path / "all"))
    opened = Corpus.open(out)
    table = opened.table()
    assert table["id"].to_pylist() == list(range(90))
    one, other, both = (pixels_by_hash(path) for path in (*two, out))
    for number in range(90):
        expected = one[number] if number < 70 else other[number - 70]
        np.testing.assert_array_equal(both[number], expected)
    dropped = table.filter(pc.invert(table["kept"]))
    assert dropped["reason"].to_pylist() == ["exact duplicate of 5"] and dropped["id"].to_pylist() == [73]
    assert len(opened.tiles()) == 89
    verify(str(out))
    image = xarray.open_zarr(out / "tiles.zarr", group="32")["image"]
    np.testing.assert_array_equal(image.values[:70], np.stack([one[number] for number in range(70)]))
    assert [made["corpus"] for made in opened.meta["recipe"]["merged"]] == ["one", "two"]
    assert (out / "report" / "index.html").exists() and not (tmp_path / "all.part").exists()
    with pytest.raises(CorpusError, match="put together from others"):
        rebuild(str(out), str(tmp_path / "again"))


@pytest.mark.parametrize("old", [False, True])
def test_equal_pixels_under_another_mask_are_no_exact_copies(tmp_path, old):
    masks = np.random.default_rng(0).integers(0, 2, (6, 32, 32), dtype=np.uint8)
    others = masks.copy()
    others[4] = 1 - others[4]
    paths = []
    for name, labels in (("one", masks), ("two", others)):
        paths.append(write_parts(tmp_path / name, textures(6), masks=labels, classes=("a", "b")))
    if old:  # built before tiles said what lies beside their pixels
        file = paths[1] / "catalogue" / "tiles-000000.parquet"
        write_table(file, pq.read_table(file).drop_columns("beside"))
    out = Corpus.open(merge([str(path) for path in paths], str(tmp_path / "all")))
    reasons = out.table(["reason"])["reason"].to_pylist()
    expected = [f"exact duplicate of {number}" for number in range(6)]
    expected[4] = "near duplicate of 4 (distance 0)"
    assert reasons == [""] * 6 + expected


def test_damaged_tables_masks_and_validity_are_told_by_name(tmp_path):
    valid = np.ones((6, 32, 32), bool)
    valid[2, :9] = False
    masks = np.random.default_rng(0).integers(0, 2, (6, 32, 32), dtype=np.uint8)
    path = write_parts(tmp_path / "one", textures(6), valid=valid, masks=masks, classes=("a", "b"))
    verify(str(path))
    for name, number, at in (("mask", 4, 4 * 32 * 32), ("valid", 2, 0)):  # only one tile's validity is stored
        shard = path / "tiles.zarr" / "32" / name / "c" / "0" / "0" / "0"
        whole = shard.read_bytes()
        other = next(place for place in range(at, at + 1024) if whole[place] != whole[at])
        raw = bytearray(whole)
        raw[at], raw[other] = raw[other], raw[at]  # as many pixels as before are valid
        shard.write_bytes(raw)
        with pytest.raises(CorpusError, match=rf"valid pixels or labels of tile {number} .*\(tiles: 1\)"):
            verify(str(path))
        shard.write_bytes(whole)
    catalogue = path / "catalogue"
    (catalogue / "copies.parquet").unlink()
    write_table(catalogue / "exclusions.parquet", EXCLUSIONS.empty_table())
    raw = bytearray((catalogue / "tiles-000000.parquet").read_bytes())
    raw[len(raw) // 2] ^= 1
    (catalogue / "tiles-000000.parquet").write_bytes(raw)
    words = (
        r"copies\.parquet' is missing; .*exclusions\.parquet' was added; .*tiles-0+\.parquet' was changed \(tables: 3"
    )
    with pytest.raises(CorpusError, match=words):
        verify(str(path))


def test_statistics_of_a_merged_corpus_are_those_of_its_kept_tiles(two, tmp_path):
    out = Corpus.open(merge([str(path) for path in two], str(tmp_path / "all")))
    tiles = out.tiles()
    values = tiles.read(np.arange(len(tiles))).astype(float)
    np.testing.assert_allclose(out.contract.mean, values.mean((0, 2, 3)), rtol=1e-9)
    np.testing.assert_allclose(out.contract.std, values.std((0, 2, 3)), rtol=1e-9)


def test_shards_of_equal_layout_are_shared_not_written(two, tmp_path):
    second = write_parts(tmp_path / "three", textures(70, seed=3))
    out = merge([str(two[0]), str(second)], str(tmp_path / "all"))
    for shard, source in (("0", two[0]), ("1", second)):
        one = out / "tiles.zarr" / "32" / "image" / "c" / shard / "0" / "0" / "0"
        assert one.samefile(source / "tiles.zarr" / "32" / "image" / "c" / "0" / "0" / "0" / "0")
    verify(str(out))


def test_near_copies_between_the_corpora_are_found(tmp_path):
    first = textures(12)
    second = textures(12, seed=1)
    second[7] = np.rot90(first[2], axes=(1, 2)) // 2 + 40  # turned, and other gain and offset
    paths = [write_parts(tmp_path / name, tiles) for name, tiles in (("one", first), ("two", second))]
    out = Corpus.open(merge([str(path) for path in paths], str(tmp_path / "all")))
    table = out.table(["id", "kept", "duplicate_of", "reason"])
    dropped = table.filter(pc.invert(table["kept"])).to_pylist()
    assert [(row["id"], row["duplicate_of"]) for row in dropped] == [(19, 2)]
    assert dropped[0]["reason"].startswith("near duplicate of 2")


def test_several_sizes_validity_and_masks_come_along(tmp_path):
    valid = np.ones((10, 32, 32), bool)
    valid[4, :9] = False
    masks = np.random.default_rng(0).integers(0, 2, (10, 32, 32), dtype=np.uint8)
    masks[6] = 255
    one = write_parts(tmp_path / "one", textures(8))
    two = write_parts(tmp_path / "two", textures(10, seed=1), valid=valid, masks=masks, classes=("a", "b"))
    three = write_parts(tmp_path / "zebra", {32: textures(5, seed=2), 16: textures(6, 16, seed=3)})
    out = Corpus.open(merge([str(path) for path in (one, two, three)], str(tmp_path / "all")))
    assert out.sizes == (16, 32) and out.classes == ["a", "b"]
    tiles = out.tiles(32)
    assert len(tiles) == 23 and len(out.tiles(16)) == 6
    np.testing.assert_array_equal(tiles.valid(np.arange(8, 18)), valid)
    np.testing.assert_array_equal(tiles.mask(np.arange(8, 18)), masks)
    assert tiles.valid([0, 22]).all() and (tiles.mask([0, 22]) == 255).all()
    np.testing.assert_array_equal(out.tiles(16).read(np.arange(6)), textures(6, 16, seed=3))


def test_sources_that_are_named_alike_are_kept_apart(tmp_path, capsys, monkeypatch):
    paths = []
    for name, seed in (("one", 0), ("two", 1)):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        for file in ("a.tif", "same.tif"):
            with open(file, "wb") as out:
                out.write(b"same" if file == "same.tif" else name.encode())
        paths.append(write_parts(tmp_path / name / "corpus", textures(4, seed=seed), ["a.tif"] * 2 + ["same.tif"] * 2))
    out = merge([str(path) for path in paths], str(tmp_path / "all"))
    names = Corpus.open(out).table(["source"])["source"].to_pylist()
    assert sorted(names[:4]) == ["a.tif"] * 2 + ["corpus:a.tif"] * 2 and names[4:] == ["same.tif"] * 4
    assert "1 sources are named alike and are other files, such as 'a.tif'" in " ".join(capsys.readouterr().err.split())
    lines = list(read_lock(out)[1])
    assert sorted((line.uri, line.file, line.tiles) for line in lines) == [
        ("a.tif", None, 2),
        ("corpus:a.tif", "a.tif", 2),
        ("same.tif", None, 4),
    ]
    verify(str(out))


def _same_tiles(folder, name, **columns):
    """Four tiles, each of a source of its own, the same in every corpus that this writes."""
    return write_parts(folder / name, textures(4), [f"{letter}.tif" for letter in "abcd"], **columns)


def test_what_one_corpus_alone_says_of_a_tile_is_kept(tmp_path, capsys):
    said = {"label": ["x", "y", "x", "y"], "licence": ["CC0"] * 4, "attribution": ["me"] * 4}
    said |= {"captions": [["one"], None, ["two", "three"], None], "cloud_fraction": [0.1, 0.2, 0.3, 0.4]}
    said["boxes"] = [[{"polygon": [0.0] * 8, "label": "ship"}], None, None, None]
    one = _same_tiles(tmp_path, "one", split=["test", "train", "train", "train"])  # drawn there alone
    two = _same_tiles(tmp_path, "two", **said)
    out = Corpus.open(merge([str(one), str(two)], str(tmp_path / "all")))
    kept = out.table(where=pc.field("kept"))
    assert {name: kept[name].to_pylist() for name in said} == said
    assert out.classes == ["x", "y"] and kept["split"].to_pylist() == ["test", "train", "train", "train"]
    assert out.contract.licences == ("CC0",) and "another" not in capsys.readouterr().err


def test_a_ban_on_commercial_use_counts_whoever_says_it(tmp_path):
    free = {"non_commercial": [False, False, None, None]}
    one = _same_tiles(tmp_path, "one", **free)
    two = _same_tiles(tmp_path, "two", non_commercial=[True, None, False, None], recipe={"non_commercial": True})
    out = Corpus.open(merge([str(one), str(two)], str(tmp_path / "all")))
    assert out.table()["non_commercial"].to_pylist() == [True, False, False, None]
    assert out.table()["reason"].to_pylist() == ["licence forbids commercial use", "", "", ""]  # as the first asks
    verify(str(out.path))


def test_where_corpora_say_different_things_the_first_counts_and_it_is_said(tmp_path, capsys):
    one = _same_tiles(tmp_path, "one", label=["forest", "forest", None, "x"], licence=["CC0"] * 4)
    two = _same_tiles(tmp_path, "two", label=["water", "water", "water", "x"], licence=["MIT"] * 4)
    out = Corpus.open(merge([str(one), str(two)], str(tmp_path / "all")))
    assert out.table()["label"].to_pylist() == ["forest", "forest", "water", "x"]
    said = " ".join(capsys.readouterr().err.split())
    assert "2 tiles that several corpora hold have another label in a later one, such as 'water' for 'forest'" in said
    assert "4 tiles that several corpora hold have another licence" in said and "another split" not in said


def test_what_was_taken_off_a_source_is_still_told(two, tmp_path, capsys):
    file = two[1] / "catalogue" / "sources.parquet"
    table = pq.read_table(file)
    write_table(file, table.append_column("taken_off", pa.array([1000] * len(table), pa.int64())))
    meta = json.loads((two[1] / "corpus.json").read_text())
    meta["recipe"]["harmonise"] = True
    write_json(two[1] / "corpus.json", meta)
    out = merge([str(path) for path in two], str(tmp_path / "all"))
    told = {line.uri: line.taken_off for line in read_lock(out)[1]}
    assert told["one-000.tif"] is None and told["two-000.tif"] == 1000
    assert "other values of harmonise" in " ".join(capsys.readouterr().err.split())


def test_what_cannot_be_one_corpus_is_refused(two, tmp_path):
    with pytest.raises(InputError, match="two corpora or more; given 1"):
        merge([str(two[0])], str(tmp_path / "all"))
    wide = write_parts(tmp_path / "wide", textures(4).astype(np.uint16))
    with pytest.raises(CorpusError, match=r"holds uint8, '.*wide' uint16"):
        merge([str(two[0]), str(wide)], str(tmp_path / "all"))
    meta = json.loads((two[1] / "corpus.json").read_text())
    meta["sensor"]["bands"][0]["name"] = "infrared"
    (two[1] / "corpus.json").write_text(json.dumps(meta))
    with pytest.raises(BandError, match="holds one sensor"):
        merge([str(path) for path in two], str(tmp_path / "all"))
    with pytest.raises(CorpusError, match="holds something already"):
        merge([str(two[0])] * 2, str(two[1]))
    (two[0] / "catalogue" / "edges.parquet").unlink()
    with pytest.raises(CorpusError, match="holds no edges between its tiles: build it again"):
        merge([str(path) for path in two], str(tmp_path / "all"))
    assert not (tmp_path / "all").exists()


def audited(corpus):
    """Pretend that tile 2 was excluded for a benchmark."""
    write_json(corpus / "audit" / "audit.json", {"benchmarks": [{"given": "aid@data/aid", "benchmark": "aid"}]})
    write_json(corpus / "audit" / "aid" / "audit.json", {"given": "aid@data/aid", "benchmark": "aid"})
    row = dict.fromkeys(EXCLUSIONS.names) | {"id": 2, "benchmark": "aid", "item": "a.png", "kind": "exact"}
    write_table(corpus / "catalogue" / "exclusions.parquet", pa.Table.from_pylist([row], EXCLUSIONS))
    conclude(corpus)
    assert Corpus.open(corpus).meta["audit"] and not Corpus.open(corpus).table()["kept"][2].as_py()


def test_audits_of_the_parts_are_not_claimed_and_exclusions_stay(two, tmp_path, capsys):
    (two[0] / "audit" / "aid").mkdir(parents=True)
    audited(two[0])
    out = merge([str(path) for path in two], str(tmp_path / "all"))
    said = " ".join(capsys.readouterr().err.split())
    assert f"do not cover all tiles of '{out}': `geomim corpus exclude {out} --against aid@data/aid`" in said
    opened = Corpus.open(out)
    assert opened.meta["audit"] is None and not (out / "audit").exists()
    assert opened.table()["reason"][2].as_py().startswith("touches aid")


def test_a_full_disk_leaves_nothing(two, monkeypatch, tmp_path):
    done = os.replace

    def full(source, target):
        if str(target).endswith("edges.parquet"):
            raise OSError(errno.ENOSPC, "No space left on device")
        done(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(CorpusError, match=r"edges\.parquet' cannot be written \(No space left on device\)"):
            merge([str(path) for path in two], str(tmp_path / "all"))
    assert len(Corpus.open(two[0]).tiles()) == 70 and not (tmp_path / "all").exists()


@pytest.fixture
def one(tmp_path):
    """Ten tiles; 6 is a copy of 2, and 7 and 8 are joined by an edge."""
    tiles = textures(10)
    tiles[6] = tiles[2]
    path = write_parts(
        tmp_path / "one",
        tiles,
        licence=["CC0", "CC-BY-4.0"] * 5,
        attribution=[None, "somebody"] * 5,
        cloud_fraction=[number / 10 for number in range(10)],
        label=["a", "b"] * 5,
    )
    edge = {"a": 7, "b": 8, "kind": "perceptual", "distance": 1, "orientation": 0, "correlation": 0.99, "share": 1.0}
    edges = pq.read_table(path / "catalogue" / "edges.parquet")
    write_table(path / "catalogue" / "edges.parquet", pa.Table.from_pylist([edge], edges.schema))
    from geomim.corpus.pipeline.conclude import conclude

    conclude(path)
    return path


def test_a_filtered_corpus_holds_the_tiles_asked_for(one, tmp_path):
    out = filter(str(one), "cloud_fraction > 0.25 AND id <> 7", str(tmp_path / "some"))
    opened, before, after = Corpus.open(out), pixels_by_hash(one), pixels_by_hash(out)
    assert sorted(after) == [3, 4, 5, 6, 8, 9]
    for number, tile in after.items():
        np.testing.assert_array_equal(tile, before[number])
    # 6 was a copy of 2 and 8 a near copy of 7: both are out, so they are kept now
    assert opened.table(["kept"])["kept"].to_pylist() == [True] * 6
    assert len(opened.array("image", 32)) == 6
    verify(str(out))
    assert opened.meta["recipe"]["filtered"]["where"] == "cloud_fraction > 0.25 AND id <> 7"
    assert len(list(read_lock(out)[1])) == 6


def test_a_filtered_corpus_decides_as_before_where_both_are_in(one, tmp_path):
    out = Corpus.open(filter(str(one), "true", str(tmp_path / "all")))
    columns = ["id", "kept", "reason", "duplicate_of", "slot", "xxh3"]
    assert out.table(columns).equals(Corpus.open(one).table(columns))
    assert out.contract.mean == Corpus.open(one).contract.mean
    assert out.array("image", 32).layout == Corpus.open(one).array("image", 32).layout


def test_a_corpus_comes_to_where_a_link_leads_and_never_over_a_file(one, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    filter(str(one), "id < 2", str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink() and Corpus.open(tmp_path / "there").rows().count_rows() == 2
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CorpusError, match="holds something already"):
        filter(str(one), "id < 2", str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"


def test_licences_are_chosen_and_taken_back_and_those_that_no_tile_has_are_said(tmp_path, capsys):
    path = write_parts(tmp_path / "own", textures(3), licence=["CC-BY-4.0", "ODbL", None])
    conclude(path, only_licence=["CC-BY-4.0", "CC-BY-40"])
    assert Corpus.open(path).table(["kept"])["kept"].to_pylist() == [True, False, False]
    assert "--only-licence: no tile has CC-BY-40; did you mean 'CC-BY-4.0'?" in capsys.readouterr().err
    conclude(path, only_licence=[])
    assert Corpus.open(path).table(["kept"])["kept"].to_pylist() == [True] * 3
    assert "--only-licence" not in capsys.readouterr().err


def test_licences_are_chosen_and_attributions_follow(one, tmp_path):
    out = Corpus.open(filter(str(one), "true", str(tmp_path / "free"), licence=["CC0"]))
    assert out.contract.licences == ("CC0",) and out.contract.attributions == () and out.classes == ["a"]
    assert Corpus.open(one).contract.attributions == ("somebody",)
    with pytest.raises(InputError, match=r"CC-BY-4\.0, CC0"):
        filter(str(one), "true", str(tmp_path / "none"), licence=["MIT"])


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("clod_fraction < 0.1", "did you mean 'cloud_fraction'"),
        ("true; DROP TABLE tiles", "condition"),
        ("true); COPY tiles TO '/tmp/x.csv' (FORMAT csv", "condition"),
        ("id IN (SELECT id FROM read_parquet('/etc/passwd'))", "condition"),
        ("id > 1000", "no tile of"),
    ],
)
def test_a_wrong_condition_is_explained_and_leaves_nothing(one, tmp_path, where, words):
    with pytest.raises(InputError, match=words):
        filter(str(one), where, str(tmp_path / "some"))
    assert not (tmp_path / "some").exists() and not (tmp_path / "some.part").exists()
