import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import xxhash
from photographs import photograph, resized, save

from geomim.corpus.build import build
from geomim.corpus.duplicates.fingerprint import orient
from geomim.corpus.exclusion import EXCLUSIONS, exclude
from geomim.corpus.store import Corpus
from geomim.errors import CorpusError, InputError


def _turned(picture, orientation):
    return np.ascontiguousarray(orient(picture.transpose(2, 0, 1), orientation).transpose(1, 2, 0))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A corpus of twelve photographs, and two benchmarks that hold some of them in other forms."""
    folder = tmp_path_factory.mktemp("exclusion")
    for number in range(12):
        save(folder / "images" / f"{number:02d}.png", photograph(number))
    build([str(folder / "images")], str(folder / "corpus"), tile=[128], workers=1)
    save(folder / "one" / "same.png", photograph(0))
    save(folder / "one" / "turned.jpg", _turned(photograph(1), 5), quality=80)
    save(folder / "one" / "other.png", photograph(100))
    save(folder / "two" / "smaller.png", resized(photograph(2), 80))
    save(folder / "two" / "also.jpg", photograph(1), quality=90)
    large = photograph(200, (200, 240))
    large[40:168, 60:188] = photograph(3)
    save(folder / "two" / "scene.png", large)
    return folder


@pytest.fixture
def corpus(made, tmp_path):
    return shutil.copytree(made / "corpus", tmp_path / "corpus")


def _touched(corpus):
    """Source of each tile that is dropped for a benchmark, and the reason."""
    rows = Corpus.open(corpus).table(["source", "kept", "reason"]).to_pylist()
    return {row["source"].split("/")[-1]: row["reason"] for row in rows if not row["kept"]}


def test_tiles_that_touch_a_benchmark_are_dropped_with_reason_and_evidence(made, corpus):
    page = exclude(str(corpus), [str(made / "one")], workers=1)
    reasons = _touched(corpus)
    assert reasons.keys() == {"00.png", "01.png"}
    assert reasons["00.png"] == "touches one: exact"
    assert reasons["01.png"].startswith("touches one: perceptual, distance ")
    table = pq.read_table(corpus / "catalogue" / "exclusions.parquet")
    assert table.schema.equals(EXCLUSIONS)
    assert dict(zip(table["item"].to_pylist(), table["orientation"].to_pylist(), strict=True)) == {
        "same.png": 0,
        "turned.jpg": 5,
    }
    assert page == corpus / "audit" / "index.html" and "excluded" in page.read_text()
    pictures = (corpus / "audit" / "one" / "index.html").read_text()
    assert pictures.count("<figure>") == 2 and "http" not in pictures
    record = json.loads((corpus / "audit" / "audit.json").read_text())
    assert record["matches"] == xxhash.xxh3_128_hexdigest((corpus / "audit" / "matches.parquet").read_bytes())
    (benchmark,) = record["benchmarks"]
    assert benchmark["tiles"] == 2 and benchmark["excluded"] and benchmark["images"] == 3
    assert Corpus.open(corpus).meta["audit"]  # its digest travels on
    assert "touching a benchmark" in (corpus / "report" / "index.html").read_text()


def test_benchmarks_add_up_and_the_same_one_replaces_itself(made, corpus, tmp_path):
    exclude(str(corpus), [str(made / "one")], workers=1)
    exclude(str(corpus), [str(made / "two")], crops="thorough", workers=1)
    assert _touched(corpus).keys() == {"00.png", "01.png", "02.png", "03.png"}
    table = pq.read_table(corpus / "catalogue" / "exclusions.parquet").to_pylist()
    assert {(row["benchmark"], row["item"], row["kind"]) for row in table} == {
        ("one", "same.png", "exact"),
        ("one", "turned.jpg", "perceptual"),
        ("two", "smaller.png", "perceptual"),
        ("two", "also.jpg", "perceptual"),
        ("two", "scene.png", "crop"),
    }
    together = {str(path.relative_to(corpus)): path.read_bytes() for path in sorted((corpus / "audit").rglob("*.*"))}
    again = shutil.copytree(made / "corpus", tmp_path / "again" / "corpus")
    exclude(str(again), [str(made / "two"), str(made / "one")], crops="thorough", workers=1)
    known = pq.read_table(again / "catalogue" / "exclusions.parquet")
    assert known.to_pylist() == table
    shutil.rmtree(made / "gone", ignore_errors=True)
    empty = save(tmp_path / "one" / "unrelated.png", photograph(300)).parent
    exclude(str(corpus), [f"one={empty}"], workers=1)
    assert _touched(corpus).keys() == {"01.png", "02.png", "03.png"}
    assert "audit/two/index.html" in together and (corpus / "audit" / "two" / "index.html").is_file()


def test_report_only_drops_nothing(made, corpus):
    before = Corpus.open(corpus).table().to_pylist()
    part = corpus / "audit" / "gone.part"  # of a run that was stopped
    part.mkdir(parents=True)
    (part / "audit.json").write_text('{"benchmark": "one", "given": "elsewhere"}')
    exclude(str(corpus), [str(made / "one")], report_only=True, workers=1)
    assert Corpus.open(corpus).table().to_pylist() == before
    assert not (corpus / "catalogue" / "exclusions.parquet").exists()
    record = json.loads((corpus / "audit" / "audit.json").read_text())
    assert record["benchmarks"][0]["tiles"] == 2 and not record["benchmarks"][0]["excluded"]


def test_a_corpus_as_benchmark_counts_by_its_splits(made, corpus, tmp_path):
    save(tmp_path / "images" / "a.png", photograph(4))
    save(tmp_path / "images" / "b.png", photograph(5))
    (tmp_path / "split.csv").write_text("image,split\na.png,train\nb.png,test\n")
    build([str(tmp_path / "images")], str(tmp_path / "b"), tile=[128], split=str(tmp_path / "split.csv"), workers=1)
    exclude(str(corpus), [str(tmp_path / "b" / "catalogue.parquet")], report_only=True, workers=1)
    found = pq.read_table(corpus / "audit" / "matches.parquet").to_pylist()
    assert [(row["item_a"].split("/")[-1], row["split_b"]) for row in found] == [("05.png", "test")]
    exclude(str(corpus), [f"b={tmp_path / 'b'}:train+test"], workers=1)
    assert _touched(corpus) == {"04.png": "touches b train: exact", "05.png": "touches b test: exact"}


def test_only_part_of_a_benchmark_can_be_read(made, corpus, tmp_path):
    folder = shutil.copytree(made / "one", tmp_path / "bench")
    (folder / "broken.png").write_bytes(b"")
    with pytest.raises(InputError, match="1 of 4 images of 'bench' cannot be read"):
        exclude(str(corpus), [str(folder)], workers=1)
    assert _touched(corpus).keys() == {"00.png", "01.png"}  # what could be done is done
    exclude(str(corpus), [str(folder)], skip_unreadable=True, workers=1)
    assert "broken.png" in (corpus / "audit" / "bench" / "index.html").read_text()
    changes = Corpus.open(corpus).meta["changes"]
    assert [change["asked"]["skip_unreadable"] for change in changes] == [True, True]  # a rebuild is content, too


def test_refuses_names_that_clash_and_foreign_exclusions(made, corpus, tmp_path):
    exclude(str(corpus), [str(made / "one")], report_only=True, workers=1)
    other = shutil.copytree(made / "two", tmp_path / "one")
    with pytest.raises(InputError, match=r"would both be called 'one'.*NAME="):
        exclude(str(corpus), [str(other)], workers=1)
    with pytest.raises(InputError, match="the corpus itself"):
        exclude(str(corpus), [f"{corpus}:train"], workers=1)
    with pytest.raises(InputError, match=r"no tile of .* is in val or test"):
        exclude(str(corpus), [str(made / "corpus")], workers=1)
    foreign = {name: [None] for name in EXCLUSIONS.names} | {"id": [12345], "benchmark": ["x"], "kind": ["exact"]}
    pq.write_table(pa.table(foreign).cast(EXCLUSIONS), corpus / "catalogue" / "exclusions.parquet")
    with pytest.raises(CorpusError, match=r"12345.*another corpus"):
        exclude(str(corpus), [str(made / "one")], workers=1)


def test_a_benchmark_of_fewer_bands_is_compared_over_those_it_has(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(3):
        four = np.concatenate([photograph(number), photograph(number + 50)[..., :1]], -1).transpose(2, 0, 1)
        profile = {
            "driver": "GTiff",
            "count": 4,
            "height": 128,
            "width": 128,
            "dtype": "uint8",
            "photometric": "MINISBLACK",
        }
        with rasterio.open(tmp_path / "images" / f"{number}.tif", "w", **profile) as file:
            file.write(four)
    build([str(tmp_path / "images")], str(tmp_path / "c"), tile=[128], sensor="naip", workers=1)
    save(tmp_path / "bench" / "colours.jpg", photograph(1), quality=85)
    exclude(str(tmp_path / "c"), [str(tmp_path / "bench")], workers=1)
    assert _touched(tmp_path / "c").keys() == {"1.tif"}


def _evidence(corpus):
    return {str(file.relative_to(corpus)): file.read_bytes() for file in (corpus / "audit").rglob("*.*")}


def test_a_mere_report_never_stands_for_what_is_dropped(made, corpus, tmp_path):
    exclude(str(corpus), [str(made / "one")], crops="off", workers=1)
    before = _evidence(corpus)
    with pytest.raises(InputError, match=r"'one' is excluded already, and --report-only .* NAME="):
        exclude(str(corpus), [str(made / "one")], report_only=True, radius=0, workers=1)
    assert _evidence(corpus) == before
    save(tmp_path / "none" / "other.png", photograph(100))
    more = [f"again={made / 'one'}", str(tmp_path / "none")]
    exclude(str(corpus), more, report_only=True, crops="off", workers=1)
    records = {record["benchmark"]: record for record in Corpus.open(corpus).provenance["benchmarks"]}
    assert {name: (record["tiles"], record["excluded"]) for name, record in records.items()} == {
        "one": (2, True),
        "again": (2, False),
        "none": (0, False),
    }


def test_where_nothing_is_dropped_in_the_end_the_evidence_stays_as_it_was(made, corpus):
    with pytest.raises(InputError, match="no tile is kept"):
        exclude(str(corpus), [str(made / "images")], crops="off", workers=1)
    assert not _evidence(corpus)
    exclude(str(corpus), [str(made / "one")], crops="off", workers=1)
    before = _evidence(corpus)
    with pytest.raises(InputError, match="no tile is kept"):
        exclude(str(corpus), [f"one={made / 'images'}"], crops="off", workers=1)
    assert _evidence(corpus) == before


def test_a_benchmark_counts_as_excluded_only_where_all_that_touches_it_is_out(made, corpus):
    exclude(str(corpus), [str(made / "one")], crops="off", workers=1)
    table = pq.read_table(corpus / "catalogue" / "exclusions.parquet")
    pq.write_table(table.slice(1), corpus / "catalogue" / "exclusions.parquet")
    exclude(str(corpus), [str(made / "two")], crops="off", workers=1)
    records = Corpus.open(corpus).provenance["benchmarks"]
    assert {record["benchmark"]: record["excluded"] for record in records} == {"one": False, "two": True}


def test_a_buffer_that_makes_no_sense_is_refused(corpus):
    for metres in (-100000.0, float("nan")):
        with pytest.raises(InputError, match="--buffer is a number of metres"):
            exclude(str(corpus), ["nowhere"], buffer=metres)
