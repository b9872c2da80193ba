import shutil
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny_corpus import write_corpus

from geomim.corpus.scenes import open_scene
from geomim.corpus.store import Corpus
from geomim.data.labelled import Labelled, _unscored, open_labelled
from geomim.errors import CorpusError, InputError


def pictures(folder: Path, classes=("field", "water"), count: int = 6, side: int = 16) -> Path:
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("RGB", (side, side), (10 * number, 20, 30)).save(folder / name / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    ("train", "test"),
    [("train", "test"), ("Train", "Test"), ("TRAINING", "testing"), ("trn", "TEST"), ("train", "tst")],
)
def test_folders_named_as_splits_are_splits(tmp_path, train, test):
    pictures(tmp_path / train, count=3), pictures(tmp_path / test, count=2), pictures(tmp_path / "Validation", count=1)
    data = open_labelled(tmp_path)
    assert (data.classes, len(data.train), len(data.test)) == (("field", "water"), 6, 4)
    assert len(open_labelled(tmp_path, test_split="val").test) == 2


@pytest.mark.parametrize("val", ["val", "Valid", "validation", "dev", "eval_1"])
def test_without_a_test_split_one_is_asked_for_and_naming_it_works(tmp_path, val):
    pictures(tmp_path / "train"), pictures(tmp_path / val, count=2), pictures(tmp_path / "meta", ())
    if val == "eval_1":
        assert len(open_labelled(tmp_path, test_split=val).test) == 4
        return
    with pytest.raises(InputError, match=f"train, {val}, and none for test.*--train-split train --test-split {val}"):
        open_labelled(tmp_path)
    for name in (val, "val"):
        assert len(open_labelled(tmp_path, test_split=name).test) == 4


def test_splits_that_are_not_there_are_refused(tmp_path):
    pictures(tmp_path / "one" / "train")
    with pytest.raises(InputError, match=r"split folders train, .* give .*train to have a fifth"):
        open_labelled(tmp_path / "one")
    assert len(open_labelled(tmp_path / "one" / "train").test) == 4
    with pytest.raises(InputError, match="without --train-split and --test-split"):
        open_labelled(tmp_path / "one" / "train", test_split="tset")
    pictures(tmp_path / "one" / "val")
    for name in ("train", "Training"):
        with pytest.raises(InputError, match="--test-split"):
            open_labelled(tmp_path / "one", test_split=name)


def test_a_class_may_be_called_as_a_split(tmp_path):
    data = open_labelled(pictures(tmp_path, ("bus", "train")))
    assert data.classes == ("bus", "train") and "fifth of each class" in data.notes[0]


@pytest.mark.parametrize(
    ("train", "test"), [("train_set", "test_set"), ("train2017", "val2017"), ("trainingData", "testData"), ("x", "y")]
)
def test_folders_with_the_same_folders_in_each_are_no_classes(tmp_path, train, test):
    pictures(tmp_path / train, ("field", "port", "water")), pictures(tmp_path / test, count=2)
    with pytest.raises(InputError, match=rf"\(field, port, water\)\..*--train-split {train} --test-split {test}\."):
        open_labelled(tmp_path)
    data = open_labelled(tmp_path, train_split=train, test_split=test)
    assert (len(data.classes), len(data.train), len(data.test)) == (3, 18, 4)


def test_splits_inside_classes_are_refused(tmp_path):
    pictures(tmp_path / "field", ("train", "test")), pictures(tmp_path / "water", ("Train", "Val"))
    with pytest.raises(InputError, match=r"field' holds the splits test, train: expected SPLIT/CLASS/picture"):
        open_labelled(tmp_path)


def test_classes_may_be_nested(tmp_path):
    pictures(tmp_path / "a" / "farm", ("wheat", "maize")), pictures(tmp_path / "a" / "water", ("lake", "pond"))
    pictures(tmp_path / "b" / "farm", ("images",)), pictures(tmp_path / "b" / "water", ("images",))
    pictures(tmp_path / "c" / "farm", ("old", "new")), pictures(tmp_path / "c" / "water", ("old", "new"))
    pictures(tmp_path / "c", ("farm",))  # some lie in the class itself
    pictures(tmp_path / "d" / "vehicle", ("bus", "train")), pictures(tmp_path / "d", ("farm",))
    for name in "abcd":
        assert open_labelled(tmp_path / name).classes == ("farm", "vehicle" if name == "d" else "water")


def test_a_test_class_that_train_lacks_is_refused_and_the_converse_said(tmp_path):
    pictures(tmp_path / "a" / "train"), pictures(tmp_path / "a" / "test", ("field", "port"))
    with pytest.raises(InputError, match=r"train split lacks \(port\)"):
        open_labelled(tmp_path / "a")
    pictures(tmp_path / "b" / "train"), pictures(tmp_path / "b" / "test", ("field",))
    assert "no test image is of water" in open_labelled(tmp_path / "b").notes
    corpus = write_corpus(tmp_path / "corpus")
    assert open_labelled(corpus, test_split="val").notes == ()
    parts = [Labelled(np.array(labels), lambda rows: []) for labels in ([0, 0], [1, 0])]
    with pytest.raises(InputError, match=r"lacks \(forest\): geomim corpus"):
        _unscored("'c'", Corpus.open(corpus).classes, *parts, "geomim corpus split")


def test_copies_are_on_one_side_of_a_drawn_split_and_counted_in_given_ones(tmp_path):
    every = {name: [tmp_path / "drawn" / name / f"{number}.png" for number in range(15)] for name in ("field", "water")}
    for seed, file in enumerate(file for files in every.values() for file in files):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)).save(file)
    first = open_labelled(tmp_path / "drawn")
    for name, files in every.items():
        fifth = sorted(files, key=lambda file: zlib.crc32(f"{name}/{file.name}".encode()))[::5]
        assert {file for file in first.test.paths if file.parent.name == name} == {*fifth}, "as ever, without copies"
        for number, file in enumerate(files):
            for other in every:  # a copy may be of another class
                shutil.copy(file, tmp_path / "drawn" / other / f"{name} {number}.png")
    data = open_labelled(tmp_path / "drawn")
    sides = [{path.read_bytes() for path in part.paths} for part in (data.train, data.test)]
    assert not sides[0] & sides[1] and len(data.train) + len(data.test) == 90 and len(data.notes) == 1
    for part, count in (("train", 5), ("test", 3)):
        for path in (path for files in every.values() for path in files[:count]):
            (there := tmp_path / "given" / part / path.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, there / f"{part} {path.name}")
        (there / f"{part}.png").symlink_to(tmp_path / "drawn" / "water" / f"{14 - count}.png")
    said = "6 of the 7 test images are among the training images: what is fitted scores too well"
    assert open_labelled(tmp_path / "given").notes == (said,)
    (tmp_path / "given" / "test" / "water" / "gone.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(InputError, match=r"gone\.png"):
        open_labelled(tmp_path / "given")


def test_equal_tiles_of_two_splits_of_a_corpus_are_counted(tmp_path):
    out = write_corpus(tmp_path / "corpus")
    table = pq.read_table(out / "catalogue.parquet")
    at = table.schema.get_field_index("xxh3")
    pq.write_table(table.set_column(at, table.field(at), pa.array(["same"] * len(table))), out / "catalogue.parquet")
    data = open_labelled(out, test_split="val")
    said = f"{(count := len(data.test))} of the {count} test images are among the training images"
    assert data.notes == (f"{said}: what is fitted scores too well",)


def odd_picture(path: Path, kind: str) -> Path:
    random = np.random.default_rng(0)
    colours, alpha = random.integers(0, 256, (16, 16, 3)).astype(np.uint8), random.integers(0, 3, (16, 16)) * 127
    picture = Image.fromarray(colours)
    options = {}
    if kind == "alpha":
        picture.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    if kind.startswith("palette"):
        picture = picture.quantize(8)
        options = {"transparency": 3} if kind == "palette key" else {}
    if kind == "colour key":
        options = {"transparency": tuple(colours[4, 5].tolist())}
    if kind.startswith("tiff"):
        modes = {"tiff": picture, "tiff grey": picture.convert("L"), "tiff palette": picture.quantize(8)}
        picture = modes[kind]
        options = {"format": "TIFF", "tiffinfo": {42113: str(np.array(picture).flat[5])}}
    if kind == "turned":
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6
    picture.save(path, **options)
    return path


KINDS = ["plain", "alpha", "palette", "palette key", "colour key", "turned", "tiff", "tiff grey", "tiff palette"]


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_read_as_corpora_read_them(tmp_path, kind):
    pictures(tmp_path / "in", side=16)
    path = odd_picture(tmp_path / "in" / "field" / "0.png", kind)
    data = open_labelled(tmp_path / "in")
    groups = [group for part in (data.train, data.test) for group in part.read(np.arange(len(part)))]
    numbers, valid = next(
        (image.numpy(), np.ones((16, 16), bool) if seen is None else seen[place].numpy())
        for images, seen in groups
        for place, image in enumerate(images)
        if image[0].float().std() > 0  # the only one that is not of one colour
    )
    with open_scene(path) as scene:
        pixels, there = scene.read_valid()
    assert np.array_equal(numbers, np.broadcast_to(pixels, numbers.shape))  # a grey one has one band there
    assert np.array_equal(valid, there) and valid.all() == (kind in ("plain", "palette", "turned"))


def test_deep_and_strange_pictures_are_refused_and_grey_ones_said(tmp_path):
    folder = pictures(tmp_path)
    Image.new("L", (16, 16), 7).save(folder / "field" / "grey.png")
    assert "1 of 13 pictures are grey" in open_labelled(folder).notes[1]
    Image.new("CMYK", (16, 16)).save(folder / "field" / "ink.jpg")
    with pytest.raises(InputError, match=r"ink\.jpg.*CMYK"):
        open_labelled(folder)
    (folder / "field" / "ink.jpg").unlink()
    write_16_bit(folder / "water" / "deep.png")
    with pytest.raises(InputError, match=r"deep\.png.*more than 8 bits"):
        open_labelled(folder)


def write_16_bit(path: Path) -> None:
    import rasterio

    with rasterio.open(path, "w", driver="PNG", dtype="uint16", count=3, height=16, width=16) as raster:
        raster.write(np.full((3, 16, 16), 3000, np.uint16))


def test_the_usual_side_is_known(tmp_path):
    assert open_labelled(pictures(tmp_path / "a", side=64)).side == 64
    pictures(tmp_path / "b", side=64)
    pictures(tmp_path / "b", count=2, side=32)
    data = open_labelled(tmp_path / "b")
    assert data.side == 64 and any("32 to 64 px" in note for note in data.notes)


@pytest.mark.parametrize("finished_once", [True, False])
def test_an_unfinished_corpus_is_refused_and_no_folder_of_pictures(tmp_path, finished_once):
    out = write_corpus(tmp_path / "corpus")
    (out / "work").mkdir()
    (out / "work" / "recipe.json").write_text('{"source": ["a"]}')
    if not finished_once:
        (out / "corpus.json").unlink()
    for name in ("a", "b"):
        (out / "report" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(out / "report" / name / "tile.png")
    with pytest.raises(CorpusError, match="is an unfinished corpus: run its `geomim corpus build` again"):
        open_labelled(out)
