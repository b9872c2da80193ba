"""Tables and rasters joined with sources: what matches nothing, or two things, is counted, named and never silent."""

import json

import numpy as np
import pytest
import rasterio

from geomim.corpus.build import build
from geomim.corpus.changes import decide
from geomim.corpus.joining import Row, join, read_rows
from geomim.corpus.labels import Masks, by_tables, class_folders
from geomim.corpus.lock import read_lock
from geomim.corpus.scenes.clouds import cloud_file
from geomim.corpus.store import Corpus
from geomim.corpus.verify import rebuild, verify
from geomim.errors import InputError

SOURCES = ["/d/a/1.tif", "/d/a/2.tif", "/d/b/1.tif", "/d/b/3.JPG"]


def table(tmp_path, text, name="t.csv", encoding="utf-8"):
    (tmp_path / name).write_bytes(text.encode(encoding))
    return str(tmp_path / name)


def assign_splits(uris, file, allow=False):
    columns, (joined,) = by_tables(uris, None, file, allow)
    return columns["split"], joined


def assign_labels(uris, file):
    columns, joined = by_tables(uris, file, None, False)
    return columns["label"], joined


def image(file, seed, count=3, size=64):
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.kron(np.random.default_rng(seed).integers(0, 256, (count, 8, 8), np.uint8), np.ones((size // 8,) * 2))
    with rasterio.open(file, "w", count=count, height=size, width=size, dtype="uint8") as to:
        to.write(pixels.astype(np.uint8))


def test_rows_name_sources_by_the_ends_of_their_paths():
    rows = [Row("a/1.tif", "x"), Row(".\\b\\1.tif", "y"), Row("3.png", "z"), Row("4.tif", "w", True)]
    joined = join("t", rows, SOURCES, "-")
    assert joined.values == ["x", None, "y", "z"]
    assert (joined.unmatched, joined.several, joined.guessed) == ([rows[3]], [], [rows[2]])
    assert joined.without == ["/d/a/2.tif"] and joined.torn == []
    said = str(joined)
    assert "3 of 4 match" in said and "name no source: 1 (4.tif)" in said and "(3.png)" in said
    assert "sources that it does not name (-): 1 (/d/a/2.tif)" in said


def test_what_is_not_certain_is_not_guessed():
    rows = [Row("1.png", "x"), Row("2.png", "x"), Row("2.jpg", "y")]
    joined = join("t", rows, SOURCES, "-")  # two sources for the first, two rows for the second
    assert joined.several == [rows[0]] and joined.torn == ["/d/a/2.tif"]
    joined = join("t", [Row("1.tif", "x"), Row("2.tiff", "x"), Row("b/1.tif", "x")], SOURCES, "-")
    assert joined.guessed == [Row("2.tiff", "x")] and joined.unmatched == []
    assert join("t", [Row("1.tif", "x")], SOURCES, "-").several == [Row("1.tif", "x")]
    assert join("t", [Row("1.tif", "x"), Row("a/1.tif", "x")], SOURCES, "-").torn == []
    assert join("t", [Row("A/1.TIF", "x")], SOURCES, "-").values == ["x", None, None, None]


def test_names_without_suffix_may_hold_dots():
    joined = join("t", [Row("tile.1", "test", True)], ["/d/tile.1.tif", "/d/tile.tif"], "-")
    assert joined.values == ["test", None] and joined.guessed == [Row("tile.1", "test", True)]
    assert join("t", [Row("S2_2021.06.01", "x")], ["/d/s2_2021.06.02.tif", "/d/s2_2021.06.01.tif"], "-").values == [
        None,
        "x",
    ]
    joined = join("t", [Row("tile.1.png", "x"), Row("tile", "y")], ["/d/tile.1.tif", "/d/tile.tif"], "-")
    assert joined.values == ["x", "y"] and joined.unmatched == joined.torn == []


def test_a_shorter_path_is_for_sources_that_no_longer_one_names():
    for given in (["test", "train"], ["train", "test"], ["test", "test"]):
        rows = [Row("a/x.tif", given[0], True), Row("x.tif", given[1], True)]
        for turned in (rows, rows[::-1]):
            joined = join("t", turned, ["/d/a/x.tif", "/d/b/x.tif"], "-").check()
            assert joined.values == given and joined.unmatched == joined.several == joined.guessed == joined.torn == []
        joined = join("t", rows, ["/d/a/x.tif"], "-")
        assert joined.values == given[:1] and joined.unmatched == ([] if given[0] == given[1] else rows[1:])
    assert join("t", [Row("1.tif", "x"), Row("a/1.tif", "y"), Row("a/1.tif", "z")], SOURCES, "-").torn == [SOURCES[0]]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("image,split\na/1.tif,test\n", "utf-8-sig"),
        ("Image ; Split\n a/1.tif ; Test \n", "utf-8"),
        ("x\tpath\tsplit\r\n0\ta\\1.tif\ttest\r\n", "utf-8"),
    ],
)
def test_tables_as_they_come(tmp_path, text, encoding):
    splits, joined = assign_splits(SOURCES, table(tmp_path, text, encoding=encoding))
    assert splits == ["test", "train", "train", "train"] and len(joined.without) == 3


def test_tables_that_are_none(tmp_path):
    assert read_rows(table(tmp_path, '\ufeff{"image": "1", "label": 0}\n{"image": "2"}', "t.jsonl"), ["label"]) == [
        Row("1", "0")
    ]
    for text, name in (("", "e.csv"), ("[1]", "e.jsonl"), ("image,x\n1,2\n", "e.csv"), ("\0\xff", "e.csv")):
        with pytest.raises(InputError, match=name):
            assign_splits(SOURCES, table(tmp_path, text, name, "latin-1"))
    with pytest.raises(InputError, match="names splits hold-out; expected train, val, test"):
        assign_splits(SOURCES, table(tmp_path, "image,split\na/1.tif,hold-out\n"))
    assert assign_splits(SOURCES, table(tmp_path, "image,split\na/1.tif,Validation\n"))[0][0] == "val"


def test_held_out_rows_without_one_source_are_refused_and_the_flag_works(tmp_path):
    for name, text in {"typo": "2.tif,test\n9.tif,test\n", "twice": "1.tif,val\n2.tif,train\n"}.items():
        file = table(tmp_path, f"image,split\n{text}", f"{name}.csv")
        with pytest.raises(InputError, match=r"holds out images.*--allow-unmatched"):
            assign_splits(SOURCES, file)
        splits, _ = assign_splits(SOURCES, file, allow=True)
        assert splits == {"typo": ["train", "test", "train", "train"], "twice": ["val", "train", "val", "train"]}[name]
    for text in ("1.tif,test\n1.tif,train\n", "a/1.tif,test\na/1.tif,train\n"):
        for allow in (False, True):
            with pytest.raises(InputError, match="give paths with folders"):
                assign_splits(SOURCES, table(tmp_path, f"image,split\n{text}"), allow)
    _, lost = assign_splits(SOURCES, table(tmp_path, "image,split\n9.tif,train\n2.tif,test\n"))  # no harm is done
    assert [row.name for row in lost.unmatched] == ["9.tif"]


def test_a_source_has_one_class(tmp_path):
    with pytest.raises(InputError, match=r"says different things of /d/a/2\.tif"):
        assign_labels(SOURCES, table(tmp_path, "image,class\n2.tif,plane\n2.tif,ship\n"))
    labels, (joined,) = assign_labels(SOURCES, table(tmp_path, "image,class\n2.tif,plane\n2.tif,plane\n7.tif,x\n"))
    assert labels == [None, "plane", None, None] and [row.name for row in joined.unmatched] == ["7.tif"]


def test_what_was_joined_stands_in_the_corpus(tmp_path, capsys):
    for number in range(4):
        image(tmp_path / "img" / f"000{number}.tif", number)
    rows = "0000.tif,train\n0001.tif,val\n0002.png,test\n0009.tif,test\n"
    file = table(tmp_path, f"image,split\n{rows}", "split.csv")
    given = {"source": [str(tmp_path / "img")], "tile": 64, "sensor": "rgb", "split": file, "workers": 1}
    with pytest.raises(InputError, match=r"0009\.tif.*--allow-unmatched"):
        build(**given, out=str(tmp_path / "c"))
    assert not (tmp_path / "c").exists()
    corpus = Corpus.open(build(**given, out=str(tmp_path / "c"), allow_unmatched=True))
    assert corpus.table(["split"])["split"].to_pylist() == ["train", "val", "test", "train"]
    (joined,) = corpus.meta["joined"]
    assert joined == (
        f"'{file}': 3 of 4 match; name no source: 1 (0009.tif); name a source of another suffix or case, and are "
        f"taken for it: 1 (0002.png); sources that it does not name (they are train): 1 ({tmp_path}/img/0003.tif)"
    )
    assert [line.uri for line in read_lock(corpus.path)[1] if not line.tiles] == [file]  # hashed with the sources
    assert "name no source: 1 (0009.tif)" in capsys.readouterr().err
    assert "name no source: 1 (0009.tif)" in (tmp_path / "c" / "report" / "index.html").read_text()
    assert corpus.meta["recipe"]["allow_unmatched"] is True


def test_rasters_by_name(tmp_path, capsys):
    for number, name in enumerate(("a/x", "b/x", "a/y", "a/Z")):
        image(tmp_path / "img" / f"{name}.tif", number)
    masks = tmp_path / "masks"
    for name in ("x", "z_mask", "lost"):
        image(masks / f"{name}.tif", 0, count=1)
    (masks / "classes.json").write_text(json.dumps([str(number) for number in range(255)]))
    image(tmp_path / "clouds" / "y_SCL.tif", 0, count=1)
    given = {"source": [str(tmp_path / "img")], "tile": 64, "sensor": "rgb", "workers": 1}
    given |= {"masks": str(masks), "clouds": str(tmp_path / "clouds")}
    corpus = Corpus.open(build(**given, out=str(tmp_path / "c")))
    labels, clouds = corpus.meta["joined"]
    assert labels == (
        f"'{masks}': 2 of 3 match; name no source: 1 (lost.tif); name several sources: 1 (x.tif); sources that it does "
        f"not name (they have no labels): 1 ({tmp_path}/img/a/y.tif)"
    )
    assert "1 of 1 match; sources that it does not name (their own masks count): 3" in clouds
    assert "lost.tif" in capsys.readouterr().err
    image(masks / "y.tif", 0, count=1)
    image(masks / "y.png", 0, count=1)
    with pytest.raises(InputError, match=r"several rasters for .*y\.png, y\.tif; keep one"):
        build(**given, out=str(tmp_path / "d"))
    assert not (tmp_path / "d").exists()
    (masks / "y.png").unlink()
    (tmp_path / "clouds" / "Y_SCL.png").touch()
    with pytest.raises(InputError, match=r"several masks for .*Y_SCL\.png, y_SCL\.tif; keep one"):
        build(**given, out=str(tmp_path / "d"))
    scene = str(masks / "y.tif")
    assert Masks(masks).find(scene) is None and cloud_file(str(masks), scene) is None  # no scene is its own mask


def test_folders_that_look_like_classes():
    several = [f"/d/{name}/{n}.jpg" for name in ("farm", "lake", "pier") for n in range(3)]
    assert class_folders(several) == ["farm", "lake", "pier"]
    assert class_folders([*several, "/d/one.jpg"]) == ["farm", "lake", "pier"]
    for other in ("Train/Test", "2019/2020", "A/B", "images/labels", "farm"):
        assert class_folders([f"/d/{name}/{n}.jpg" for name in other.split("/") for n in range(3)]) == []
    assert class_folders([f"/d/{name}/one.tif" for name in ("farm", "lake")]) == []


def test_the_folders_are_said(tmp_path, capsys):
    for number in range(4):
        image(tmp_path / "img" / ("farm", "lake")[number % 2] / f"{number}.tif", number)
    build([str(tmp_path / "img")], str(tmp_path / "c"), tile=64, sensor="rgb", workers=1)
    assert "2 folders look like classes, such as farm, lake: --labels folder" in capsys.readouterr().err


def test_publishers_tables_are_counted_too(tmp_path, capsys):
    images = [
        {"filename": f"{number}.jpg", "split": split, "sentences": [{"raw": "a lake."}]}
        for number, split in enumerate(("train", "test", "test"))
    ]
    (tmp_path / "dataset_rsicd.json").write_text(json.dumps({"images": images}))
    for number in (0, 1):
        image(tmp_path / "RSICD_images" / f"{number}.jpg", number)
    given = {"tile": 64, "non_commercial": True, "workers": 1}
    with pytest.raises(InputError, match=r"dataset_rsicd\.json' holds out images .*2\.jpg.*--allow-unmatched"):
        build([f"rsicd@{tmp_path}"], str(tmp_path / "c"), **given)
    corpus = Corpus.open(build([f"rsicd@{tmp_path}"], str(tmp_path / "c"), allow_unmatched=True, **given))
    assert "2 of 3 match; name no source: 1 (2.jpg)" in corpus.meta["joined"][0]
    capsys.readouterr()
    build([f"rsicd@{tmp_path}:train"], str(tmp_path / "e"), **given)  # what is not asked for may be away
    assert "name no source: 1 (2.jpg)" in capsys.readouterr().err


def test_labels_and_splits_of_a_finished_corpus(tmp_path, capsys):
    for number in range(6):
        image(tmp_path / "img" / ("farm", "lake")[number % 2] / f"{number}.tif", number, size=128)
    build([str(tmp_path / "img")], str(tmp_path / "c"), tile=64, sensor="rgb", workers=1)
    out = str(tmp_path / "c")
    assert Corpus.open(out).classes == []
    decide(out, labels="folder", min_valid=0.6)
    corpus = Corpus.open(out)
    assert corpus.classes == ["farm", "lake"] and corpus.meta["recipe"]["min_valid"] == 0.6
    for row in corpus.table(["source", "label"]).to_pylist():
        assert row["label"] in row["source"]
    verify(out)
    file = table(tmp_path, "image,split,class\n0.tif,test,wet\n1.tif,val,dry\n9.tif,test,dry\n")
    with pytest.raises(InputError, match=r"9\.tif.*--allow-unmatched"):
        decide(out, split=file)
    with pytest.raises(InputError, match="--min-valid is a share"):
        decide(out, labels=file, min_valid=3.0)
    assert Corpus.open(out).classes == ["farm", "lake"]  # nothing half
    decide(out, labels=file, split=file, allow_unmatched=True)
    corpus = Corpus.open(out)
    assert corpus.classes == ["dry", "wet"] and corpus.meta["protect"] is True
    assert corpus.meta["statistics"]["split"] == "train" and "name no source: 1 (9.tif)" in capsys.readouterr().err
    found = {(row["source"][-5], row["split"], row["label"]) for row in corpus.table().to_pylist()}
    assert found >= {("0", "test", "wet"), ("1", "val", "dry"), ("2", "train", None)} and len(found) == 6
    verify(out)
    rebuild(out, str(tmp_path / "again"), workers=1)
    assert Corpus.open(tmp_path / "again").classes == ["dry", "wet"]


def test_label_rasters_are_not_replaced(tmp_path):
    image(tmp_path / "img" / "x.tif", 1)
    image(tmp_path / "masks" / "x.tif", 0, count=1)
    (tmp_path / "masks" / "classes.json").write_text(json.dumps([str(number) for number in range(255)]))
    given = {"tile": 64, "sensor": "rgb", "workers": 1, "masks": str(tmp_path / "masks")}
    build([str(tmp_path / "img")], str(tmp_path / "c"), **given)
    with pytest.raises(InputError, match="has label rasters, whose classes count"):
        decide(str(tmp_path / "c"), labels="folder")
