import io
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from photographs import photograph, save
from rich.console import Console

from geomim.corpus.build import build
from geomim.corpus.duplicates.fingerprint import orient
from geomim.corpus.report import facts
from geomim.corpus.report.facts import KINDS, as_funnel, crossing, funnel, gather, kind_of, scramble
from geomim.corpus.report.report import print_summary, write_report
from geomim.corpus.store import Corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Six photographs; copies of one in train and test, and three turned ones of another in train."""
    folder = tmp_path_factory.mktemp("facts")
    for number in range(6):
        save(folder / "images" / f"{number}.png", photograph(number))
    save(folder / "images" / "copy-of-0.png", photograph(0))
    for turn in (3, 5, 6):
        turned = np.ascontiguousarray(orient(photograph(1).transpose(2, 0, 1), turn).transpose(1, 2, 0))
        save(folder / "images" / f"turned-{turn}.jpg", turned, quality=90)
    save(folder / "images" / "again-2.jpg", photograph(2), quality=80)
    splits = {"copy-of-0.png": "test", "again-2.jpg": "test"}
    lines = [f"{path.name},{splits.get(path.name, 'train')}" for path in sorted((folder / "images").iterdir())]
    (folder / "split.csv").write_text("\n".join(["image,split", *lines]) + "\n")
    build([str(folder / "images")], str(folder / "c"), tile=[128], split=str(folder / "split.csv"), workers=1)
    return Corpus.open(folder / "c")


def test_facts_do_not_depend_on_the_pieces_they_are_read_in(corpus, monkeypatch):
    whole = gather(corpus)
    monkeypatch.setattr(facts, "_ROWS", 3)
    pieces = gather(corpus)
    for name in ("tiles", "kinds", "examples", "sample", "classes", "sources", "clusters", "grouped"):
        assert getattr(whole, name) == getattr(pieces, name), name
    assert whole.tiles == 11 and whole.sources == 11
    assert as_funnel(whole.tiles, whole.kinds) == funnel(corpus)
    assert sum(funnel(corpus).values()) == 2 * whole.tiles


def test_examples_are_drawn_evenly_and_always_the_same():
    order = np.argsort(scramble(np.arange(10_000)))[:1000]
    assert abs(order.mean() - 5000) < 300 and len(set(order.tolist())) == 1000


def test_every_kind_of_reason_has_its_words():
    reasons = {
        "valid fraction 0.2 < 0.5": "too few valid pixels",
        "cloud fraction 0.9 > 0.5": "too cloudy",
        "quota of 16 tiles a scene": "low information, over the quota",
        "exact duplicate of 5, near duplicate of 3 (distance 2)": "exact duplicates",
        "touches aid test: perceptual, distance 3": "touching a benchmark",
        "something new": "something new",
    }
    assert {reason: kind_of(reason) for reason in reasons} == reasons
    assert list(dict.fromkeys(KINDS.values()))[-1] == "touching a benchmark"


def test_pairs_between_splits_are_listed_with_their_kind(corpus):
    pairs = crossing(corpus).to_pylist()
    names = dict(zip(*(corpus.table(["id", "source"])[name].to_pylist() for name in ("id", "source")), strict=True))
    found = {(frozenset(names[row[end]].split("/")[-1] for end in "ab"), row["kind"]) for row in pairs}
    assert (frozenset({"0.png", "copy-of-0.png"}), "exact") in found
    assert (frozenset({"2.png", "again-2.jpg"}), "perceptual") in found
    assert {name for pair, _ in found for name in pair} == {"0.png", "copy-of-0.png", "2.png", "again-2.jpg"}
    assert all({row["split_a"], row["split_b"]} == {"train", "test"} for row in pairs)
    dropped = {names[row["a"]].split("/")[-1] for row in pairs}
    assert dropped == {"0.png", "2.png"}  # those of train


def test_page_shows_groups_splits_and_orientation(corpus):
    page = write_report(corpus.path).read_text()
    assert "0 kept pairs in two splits" in page and "<td>test and train</td><td>exact</td><td>1</td>" in page
    assert "What was dropped for a tile of another split" in page
    assert "stands for 3 tiles" in page and page.count('class="strip"') == 1
    assert "; shown rotated by" in page or "; shown flipped" in page or "; shown transposed" in page
    assert "not compared with any benchmark" in page


def test_an_old_corpus_lacks_columns_and_edges(corpus, tmp_path):
    folder = shutil.copytree(corpus.path, tmp_path / "old")
    (folder / "catalogue" / "edges.parquet").unlink()
    table = pq.read_table(folder / "catalogue.parquet")
    new = ["cloud_fraction", "captions", "boxes", "sensor", "dataset", "non_commercial"]
    pq.write_table(
        table.drop_columns([name for name in new if name in table.column_names]), folder / "catalogue.parquet"
    )
    old = Corpus.open(folder)
    assert funnel(old) == funnel(corpus)
    assert {row["kind"] for row in crossing(old).to_pylist()} == {"exact", "perceptual"}
    assert write_report(folder).is_file()


def test_terminal_says_the_same(corpus, tmp_path):
    folder = shutil.copytree(corpus.path, tmp_path / "c")
    (folder / "audit").mkdir()
    record = {"benchmark": "aid", "splits": ["test"], "images": 7, "tiles": 2, "unreadable": [], "excluded": True}
    (folder / "audit" / "audit.json").write_text(json.dumps({"benchmarks": [record]}))
    console = Console(width=150, record=True, file=io.StringIO())
    print_summary(Corpus.open(folder), console)
    text = console.export_text()
    assert "exact duplicates" in text and "up to 3 for one" in text and "none stated" in text
    assert "aid" in text and "excluded" in text
