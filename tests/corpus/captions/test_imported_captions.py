"""Sentences of publishers' files: every form, every language, and what is wrong with them by file and row."""

import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from geomim.corpus.captions.imported import LONGEST, imported
from geomim.errors import InputError

URIS = ["/d/a.png", "/d/b.png", "/d/c.png"]


def read(file, column=None, said=None):
    values = imported(str(file), column, URIS, Counter() if said is None else said).values
    return [list(value) if value else None for value in values]


def write(file, content):
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return file


WANTED = [["A red roof.", "Two planes."], ["Water"], None]


def forms(folder):
    """The same sentences in the form of each publisher."""
    rows = {"a.png": ["A red roof.", "Two planes."], "b.png": ["Water"]}
    karpathy = [
        {"filename": name, "split": "train", "sentences": [{"raw": text, "tokens": text.split()} for text in texts]}
        for name, texts in rows.items()
    ]
    yield write(folder / "karpathy.json", {"dataset": "RSICD", "images": karpathy})
    nwpu = {"filename": "a.png", "raw": "A red roof.", "raw_1": "Two planes.", "raw_2": "", "split": "train"}
    yield write(folder / "nwpu.json", {"airplane": [nwpu], "lake": [{"filename": "b.png", "raw": "Water"}]})
    yield write(folder / "list.json", [{"image": name, "captions": texts} for name, texts in rows.items()])
    yield write(folder / "rows.jsonl", "".join(json.dumps({"image": n, "caption": t}) + "\n" for n, t in rows.items()))
    yield write(folder / "wide.csv", "path;caption_1;caption_2\na.png;A red roof.;Two planes.\nb.png;Water;\n")
    yield write(folder / "long.csv", "image,text\na.png,A red roof.\na.png,Two planes.\nb.png,Water\na.png,A red roof.")
    table = pa.table({"file": list(rows), "sentences": list(rows.values())})
    pq.write_table(table, folder / "t.parquet")
    yield folder / "t.parquet"


def test_every_form(tmp_path):
    for file in forms(tmp_path):
        assert read(file) == WANTED, file


def test_classes_that_stay_behind_are_said(tmp_path):
    table = {"airplane": [{"filename": "a.png", "raw": "x"}], "lake": [{"filename": "b.png", "raw": "y"}]}
    file, said = write(tmp_path / "nwpu.json", table), Counter()
    assert read(file, said=said) == [["x"], ["y"], None]
    what, other = (
        "classes that rows name stay behind (`geomim corpus build --labels` takes",
        "table of image and label)",
    )
    assert said[f"{what} a CSV or JSONL {other}, the first in '{file}', row 1"] == 2
    for name, content, which in [
        ("t.csv", "image,caption,class\na.png,x,\nb.png,y,lake\n", "it)"),
        ("s.csv", "image,caption,labels\na.png,x,\nb.png,y,lake\n", f"a CSV or JSONL {other}"),
    ]:
        file, said = write(tmp_path / name, content), Counter()
        read(file, said=said)
        assert said[f"{what} {which}, the first in '{file}', row 2"] == 1
    table = pa.table({"image": ["a.png"], "caption": ["x"], "label": [float("nan")]})
    pq.write_table(table, tmp_path / "t.parquet")
    said = Counter()
    read(tmp_path / "t.parquet", said=said)
    assert not any("stay behind" in one for one in said)


def test_a_column_by_name(tmp_path):
    file = write(tmp_path / "t.csv", "image,caption,note\na.png,no,A red roof.\nb.png,no,Water\n")
    said = Counter()
    assert read(file, "note", said) == [["A red roof."], ["Water"], None] and not said
    assert read(file, None, said) == [["no"], ["no"], None]
    assert said == {f"rows have their sentences in caption, the first in '{file}', row 1": 2}
    with pytest.raises(InputError, match=r"t.csv', row 1 names no column 'nots'.*'note'"):
        read(file, "nots")


def test_other_languages_emoji_and_lengths(tmp_path):
    long = "größer " * 1500  # 10,500 characters
    given = {
        "a.png": ["飞机停在机场。", "🛩️ zwei Flugzeuge\u200d 👨‍👩‍👧", "مدرج المطار", "می\u200cشود"],
        "b.png": [long, "  \n\t ", "x" * 3000],
    }
    file = write(tmp_path / "t.json", [{"image": name, "sentences": texts} for name, texts in given.items()])
    said = Counter()
    one, two, _ = read(file, said=said)
    assert one == given["a.png"]
    assert [len(text) <= LONGEST for text in two] == [True, True] and two[0].endswith(" größer")
    assert said[f"sentences are cut at {LONGEST} characters, the first in '{file}', row 2"] == 2
    assert said[f"empty sentences are left out, the first in '{file}', row 2"] == 1
    dirty = write(tmp_path / "d.json", [{"image": "a.png", "caption": "Cafe\u0301\x00 \u202eon\r\n the  roof"}])
    assert read(dirty) == [["Café on the roof"], None, None]  # one line, composed, nothing unprintable


def test_refusals_name_file_and_row(tmp_path):
    for name, content, words in [
        (
            "cell.json",
            [{"image": "a.png", "caption": "x"}, {"image": "b.png", "caption": 7}],
            r"cell.json', row 2: 'c",
        ),
        ("none.json", [{"image": "a.png", "caption": None}], r"none.json' holds no sentence"),
        ("row.json", [["a.png", "x"]], r"row.json', row 1: \['a.png', 'x'\] is no row"),
        (
            "nameless.json",
            [{"image": "a.png", "caption": "x"}, {"caption": "y"}],
            r"nameless.json', row 2 names no i",
        ),
        ("strange.json", {"a.png": "x"}, r"strange.json' has no list under 'a.png'"),
        ("broken.json", "{", r"broken.json' cannot be read as sentences"),
        ("wide.csv", "image,colour\na.png,red\n", r"wide.csv', row 1 names no image or sentence; it has image, colour"),
        ("more.csv", "image,caption\na.png,A roof, two planes\n", r"more.csv', row 1 has more cells than the header"),
        ("other.csv", "image,caption\nz.png,red\n", r"other.csv' names none of the 3 sources"),
        ("t.parquet", "no", r"t.parquet' cannot be read"),
    ]:
        with pytest.raises(InputError, match=words):
            read(write(tmp_path / name, content))
    with pytest.raises(InputError, match=r"gone.csv' cannot be read"):
        read(tmp_path / "gone.csv")


def test_rsicd(data_dir):
    """The whole of RSICD's table: five sentences an image, and each of its images is found."""
    file = data_dir / "rsicd" / "captions.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    uris = [f"/x/{row['image']}" for row in rows]
    found = imported(str(file), None, uris, Counter()).values
    key = next(key for key, value in rows[0].items() if isinstance(value, list))
    for row, value in zip(rows, found, strict=True):
        assert list(value) == list(dict.fromkeys(" ".join(text.split()) for text in row[key]))
