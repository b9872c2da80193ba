import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geomim.data.described import open_described
from geomim.data.labelled import open_labelled
from geomim.errors import InputError


def picture(file: Path) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (10, 20, 30)).save(file)
    return file.name


def jsonl(folder: Path, *rows: dict) -> Path:
    (folder / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder / "t.jsonl"


def test_splits_by_other_usual_names_and_pictures_anywhere_in_a_folder(tmp_path):
    for number, place in enumerate(("a", "b/c", "d", "e")):
        picture(tmp_path / place / f"{number}.png")
    table = jsonl(
        tmp_path,
        {"image": "0.png", "split": "Training", "class": "sea", "caption": "a sea"},
        {"image": "1.png", "split": "testing", "class": "city", "caption": ["a  city ", "", "houses"]},
        {"image": "2.png", "split": "val", "class": "sea", "caption": "left out"},
        {"image": "3.png", "split": "train", "caption": "without a class"},
    )
    said = open_described(table)
    assert said.texts == ["a city", "houses"] and said.of.tolist() == [0, 0]
    assert said.images.classes == ("city", "sea") and said.images.test.labels.tolist() == [0]
    assert said.images.train.labels.tolist() == [1] and said.kinds.tolist() == [[True, False]]
    assert any("empty sentences are left out: 1, the first in" in note for note in said.images.notes)
    assert said.images.test.read(np.array([0]))[0][0].shape == (1, 3, 8, 8)
    assert open_described(table, test_split="val").texts == ["left out"]
    alone = open_described(table, pictures=str(tmp_path / "b"), train_split="none")
    assert alone.texts == said.texts  # of the other splits none is looked for


def test_two_splits_of_names_that_mean_the_same_share_no_image(tmp_path):
    names = ["train", "trn", "val", "dev", "test"]
    rows = [{"image": picture(tmp_path / f"{n}.png"), "split": n, "class": n, "caption": n} for n in names]
    table = jsonl(tmp_path, *rows)
    for train, test in (("train", "trn"), ("trn", "train"), ("val", "dev")):
        said = open_described(table, train, test)
        assert said.texts == [test] and len(said.images.train) == 1
        assert said.images.classes[said.images.train.labels[0]] == train
    assert open_described(table, "train", "validation").texts == ["val", "dev"]
    with pytest.raises(InputError, match="has no image in split 'validation'"):
        open_described(table, "val", "validation")


LAYOUTS = {
    "rsicd.json": {
        "images": [
            {"filename": "a.png", "imgid": 0, "split": "test", "sentences": [{"raw": "a pond .", "tokens": ["a"]}] * 2},
            {"filename": "b.png", "imgid": 1, "split": "train", "sentences": [{"raw": "a park ."}]},
        ],
        "dataset": "rsicd",
    },
    "nwpu.json": {
        "airplane": [{"filename": "a.png", "split": "test", "raw": "a pond .", "raw_1": "a pond .", "sentids": [0]}],
        "park": [{"filename": "b.png", "split": "train", "raw": "a park ."}],
    },
    "remoteclip.csv": "title\tfilename\na pond .\ta.png\na pond .\ta.png\n",
    "capital.csv": "Image,Split,Caption_1,Caption_2\na.png,test,a pond .,a pond .\nb.png,train,a park .,\n",
    "wide.csv": "image,split,caption_1,caption_2\na.png,test,a pond .,a pond .\nb.png,train,a park .,\n",
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_published_layouts_say_the_same(tmp_path, name):
    picture(tmp_path / "imgs" / "a.png"), picture(tmp_path / "imgs" / "b.png")
    content = LAYOUTS[name]
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    said = open_described(tmp_path / name)
    assert said.texts == ["a pond .", "a pond ."] and said.of.tolist() == [0, 0]  # equal sentences stay, as published
    assert len(said.images.test) == 1
    if name == "nwpu.json":  # the class that rows stand under
        assert said.images.classes == ("airplane", "park") and said.images.test.labels.tolist() == [0]


def test_what_is_odd_is_kept_or_said_with_its_row(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / name)
    rows = [
        {"image": "a.png", "split": "test", "caption": ["湖 🌊", "word " * 2000]},
        {"image": "b.png", "split": "test", "caption": []},
        {"image": "c.png", "caption": "of no split"},
    ]
    said = open_described(jsonl(tmp_path, *rows))
    assert said.texts[0] == "湖 🌊" and len(said.texts[1]) < 1001 and said.of.tolist() == [0, 0]
    assert len(said.images.test) == 2  # an image without a sentence is one
    notes = " ".join(said.images.notes)
    assert "cut at 1000 characters: 1, the first in" in notes and "left out, the first in" in notes and "row 3" in notes
    rows[1]["caption"] = 5
    with pytest.raises(InputError, match=r"t\.jsonl', row 2: 'caption' holds 5"):
        open_described(jsonl(tmp_path, *rows))
    rows[1] |= {"caption": "x", "labels": 7}
    assert open_described(jsonl(tmp_path, *rows)).images.classes == ("7",)
    rows[1] |= {"labels": None, "class": 0}
    assert open_described(jsonl(tmp_path, *rows)).images.classes == ("0",)


def test_rows_of_one_picture_are_put_together_and_must_agree(tmp_path):
    picture(tmp_path / "a.png")
    rows = [
        {"file": "a.png", "text": "one", "labels": "sea|ship"},
        {"file": "a.png", "text": "one", "labels": "city; sea"},
    ]
    said = open_described(jsonl(tmp_path, *rows))
    assert said.texts == ["one", "one"] and said.images.classes == ("city", "sea", "ship") and said.kinds.all()
    rows[1]["class"] = "city"
    with pytest.raises(InputError, match=r"row 2 gives 'a\.png' another split or class than row 1"):
        open_described(jsonl(tmp_path, *rows))


def test_pictures_that_are_not_there_or_twice_are_named_with_their_row(tmp_path):
    table = jsonl(tmp_path, {"image": "a.png", "caption": "x"})
    with pytest.raises(InputError, match=r"t\.jsonl', row 1: .* holds no picture 'a\.png': .*--pictures"):
        open_described(table)
    picture(tmp_path / "x" / "a.png"), picture(tmp_path / "y" / "a.png")
    with pytest.raises(InputError, match=r"row 1: .* holds 2 files called 'a\.png'"):
        open_described(table)
    assert open_described(table, pictures=str(tmp_path / "y")).texts == ["x"]
    with pytest.raises(InputError, match="both 'test'"):
        open_described(table, train_split="test")


def test_tiffs_of_three_bands_are_pictures_and_others_are_refused(tmp_path):
    for split in ("train", "test"):
        for name in ("sea", "city"):
            picture(tmp_path / split / name / "0.tif")
    assert len(open_labelled(tmp_path).test) == 2
    Image.new("RGBA", (8, 8), (10, 20, 30, 40)).save(tmp_path / "test" / "sea" / "0.tif")
    with pytest.raises(InputError, match="is a TIFF of RGBA: expected grey or RGB; build a corpus"):
        open_labelled(tmp_path)
    (tmp_path / "test" / "sea" / "0.tif").write_bytes(b"II*\0 none")
    with pytest.raises(InputError, match=r"0\.tif' cannot be read as a picture .* or build a corpus"):
        open_labelled(tmp_path)
