import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from photographs import photograph, resized, save
from rasterio.transform import from_origin

from geomim.corpus.audit import audit
from geomim.corpus.comparison import collection
from geomim.corpus.duplicates.fingerprint import ORIENTATIONS, orient
from geomim.errors import CorpusError, InputError


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Two folders of ten photographs each; some of `b` are made of those of `a`."""
    folder = tmp_path_factory.mktemp("sets")
    for number in range(10):
        save(folder / "a" / f"{number}.png", photograph(number))
        save(folder / "b" / f"other-{number}.png", photograph(100 + number))
    save(folder / "b" / "same.tif", photograph(0))
    save(folder / "b" / "recompressed.jpg", photograph(1), quality=60)
    save(
        folder / "b" / "turned.png",
        np.ascontiguousarray(orient(photograph(2).transpose(2, 0, 1), 6).transpose(1, 2, 0)),
    )
    save(folder / "b" / "smaller.png", resized(photograph(3), 73))
    return folder


def _found(out):
    rows = pq.read_table(out / "matches.parquet").to_pylist()
    return {(row["item_a"], row["item_b"]): row for row in rows}


def test_finds_copies_in_every_form_and_nothing_else(sets, tmp_path, capsys):
    page = audit(str(sets / "a"), str(sets / "b"), str(tmp_path / "out"), crops="off", workers=1)
    found = _found(page.parent)
    planted = {("0.png", "same.tif"): "exact", ("1.png", "recompressed.jpg"): "perceptual"}
    planted |= {("2.png", "turned.png"): "perceptual", ("3.png", "smaller.png"): "perceptual"}
    assert {pair: row["kind"] for pair, row in found.items()} == planted
    assert found["2.png", "turned.png"]["orientation"] == 6  # the left one, so turned, looks like the right one
    text = page.read_text()
    assert ORIENTATIONS[6] in text and text.count("<figure>") == 4 and "http" not in text
    record = json.loads((page.parent / "audit.json").read_text())
    assert record["a"]["images"] == 10 and record["b"]["images"] == 14
    assert sum(row["images"] for row in record["found"]) == 4
    assert "exact (same pixels)" in capsys.readouterr().out


def test_a_set_beside_itself_lists_each_pair_once_and_no_file_with_itself(sets, tmp_path):
    save(tmp_path / "c" / "x.png", photograph(50))
    save(tmp_path / "c" / "y.png", photograph(50))
    save(tmp_path / "c" / "z.jpg", photograph(50), quality=70)
    page = audit(str(tmp_path / "c"), str(tmp_path / "c"), str(tmp_path / "out"), workers=1)
    found = _found(page.parent)
    assert set(found) == {("x.png", "y.png"), ("x.png", "z.jpg"), ("y.png", "z.jpg")}
    assert "never compared with itself" in page.read_text()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    page = audit(str(tmp_path / "c" / "x.png"), str(tmp_path / "c"), str(tmp_path / "link"), workers=1)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "elsewhere" / "audit.json").is_file()
    assert {pair[1] for pair in _found(page.parent)} == {"y.png", "z.jpg"}


def test_does_not_depend_on_workers(sets, tmp_path):
    outs = []
    for workers in (1, 2):
        out = tmp_path / str(workers)
        audit(str(sets / "a"), str(sets / "b"), str(out), workers=workers)
        outs.append([(out / name).read_bytes() for name in ("matches.parquet", "audit.json", "index.html")])
    assert outs[0] == outs[1]


def test_unreadable_images_are_listed_and_the_rest_is_done(sets, tmp_path):
    save(tmp_path / "b" / "0.png", photograph(0))
    (tmp_path / "b" / "<broken>.png").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"1 of 2 images of 'b' cannot be read.*broken.*--skip-unreadable"):
        audit(str(sets / "a"), str(tmp_path / "b"), str(tmp_path / "out"), workers=1)
    assert len(_found(tmp_path / "out")) == 1
    page = audit(str(sets / "a"), str(tmp_path / "b"), str(tmp_path / "out"), workers=1, skip_unreadable=True)
    assert "&lt;broken&gt;.png" in page.read_text()
    (tmp_path / "b" / "0.png").unlink()
    with pytest.raises(InputError, match="none of the 1 images"):
        audit(str(sets / "a"), str(tmp_path / "b"), str(tmp_path / "out"), workers=1)


def test_larger_images_are_seen_as_tiles_too(tmp_path):
    large = photograph(60, (300, 420))
    save(tmp_path / "a" / "large.png", large)
    save(tmp_path / "b" / "part.png", np.ascontiguousarray(large[128:256, 256:384]))
    page = audit(str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "out"), tile=128, crops="off", workers=1)
    (row,) = _found(page.parent).values()
    assert row["kind"] == "exact" and row["window_a"] == [128, 256, 128, 128] and row["window_b"] == [0, 0, 128, 128]


def _placed(path, date, east, north, seed):
    picture = photograph(seed, 64).transpose(2, 0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "count": 3, "height": 64, "width": 64, "dtype": "uint8", "crs": "EPSG:32633"}
    with rasterio.open(path, "w", transform=from_origin(east, north, 10, 10), photometric="RGB", **profile) as file:
        file.write(picture)
        if date:
            file.update_tags(ACQUISITIONDATETIME=date)
    return path


def test_places_of_any_date_or_of_one_acquisition(tmp_path):
    _placed(tmp_path / "a" / "x.tif", "2020-05-01T10:00:00", 500000, 5500000, 1)
    _placed(tmp_path / "b" / "half.tif", "2020-05-01T10:00:00", 500320, 5500000, 2)
    _placed(tmp_path / "b" / "later.tif", "2021-05-01T10:00:00", 500000, 5500000, 3)
    _placed(tmp_path / "b" / "beside.tif", "2020-05-01T10:00:00", 500640, 5500000, 4)
    _placed(tmp_path / "b" / "far.tif", "2020-05-01T10:00:00", 501640, 5500000, 5)

    def names(**options):
        page = audit(str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "out"), workers=1, **options)
        return {pair[1]: row for pair, row in _found(page.parent).items()}

    found = names()
    assert set(found) == {"half.tif", "later.tif"}
    assert found["half.tif"]["share"] == pytest.approx(0.5, abs=0.01)
    assert set(names(footprint="acquisition")) == {"half.tif"}
    assert set(names(buffer=50)) == {"half.tif", "later.tif", "beside.tif"}
    assert not names(footprint="off")


def test_what_is_too_large_to_be_seen_whole_has_a_place_too(tmp_path, monkeypatch):
    monkeypatch.setattr(collection, "WHOLE", 64 * 64 - 1)
    _placed(tmp_path / "a" / "x.tif", None, 500000, 5500000, 1)
    _placed(tmp_path / "b" / "half.tif", None, 500320, 5500000, 2)
    _placed(tmp_path / "b" / "far.tif", None, 502000, 5500000, 3)

    def found(one, two, tile):
        page = audit(str(tmp_path / one), str(tmp_path / two), str(tmp_path / "out"), tile=tile, crops="off", workers=1)
        return pq.read_table(page.parent / "matches.parquet").to_pylist()

    for tile, windows in ((32, 2), (48, 4), (100, 1)):
        rows = found("a", "b", tile)
        assert {(row["item_b"], row["kind"]) for row in rows} == {("half.tif", "footprint")}
        assert len({(*row["window_a"], *row["window_b"]) for row in rows}) >= windows
    assert not found("b", "b", 48)  # whose windows overlap


def test_what_has_no_date_is_said_where_dates_are_asked_for(tmp_path, capsys):
    for folder, date in (("a", "2020-05-01T10:00:00"), ("b", None)):
        _placed(tmp_path / folder / "x.tif", date, 500000, 5500000, len(folder + str(date)))

    def said(footprint):
        page = audit(str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "out"), footprint=footprint, crops="off")
        return "1 of 1 windows of b with a place have no date", page.read_text(), capsys.readouterr().err

    sentence, page, terminal = said("acquisition")
    assert sentence in page and sentence in terminal and " of a with" not in terminal
    sentence, page, terminal = said("any")
    assert sentence not in page and sentence not in terminal


def test_other_bands_are_compared_by_place_alone(tmp_path):
    _placed(tmp_path / "a" / "x.tif", "2020-05-01T10:00:00", 500000, 5500000, 1)
    profile = {"driver": "GTiff", "count": 1, "height": 64, "width": 64, "dtype": "float32", "crs": "EPSG:32633"}
    (tmp_path / "b").mkdir()
    with rasterio.open(
        tmp_path / "b" / "radar.tif", "w", transform=from_origin(500000, 5500000, 10, 10), **profile
    ) as file:
        file.write(photograph(1, 64).transpose(2, 0, 1)[:1].astype(np.float32))
        file.set_band_description(1, "VV")
    page = audit(str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "out"), workers=1)
    assert [row["kind"] for row in _found(page.parent).values()] == ["footprint"]
    assert "no band in common" in page.read_text()


def test_refuses_what_makes_no_sense(sets, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("")
    with pytest.raises(CorpusError, match="no audit"):
        audit(str(sets / "a"), str(sets / "b"), str(tmp_path / "out"))
    with pytest.raises(InputError, match="no split 'test'"):
        audit(f"{sets / 'a'}:test", str(sets / "b"), str(tmp_path / "fresh"))
    with pytest.raises(InputError, match="does not exist"):
        audit(str(tmp_path / "nowhere"), str(sets / "b"), str(tmp_path / "fresh"))
    with pytest.raises(CorpusError, match="radius"):
        audit(str(sets / "a"), str(sets / "b"), str(tmp_path / "fresh"), radius=30, workers=1)


@pytest.mark.parametrize("where", ["audit", "audit/aid", "audit/new", "copied"])
def test_the_evidence_of_a_corpus_is_never_written_over(tmp_path, where):
    save(tmp_path / "a" / "0.png", photograph(0))
    (tmp_path / "corpus" / "audit" / "aid").mkdir(parents=True)
    (tmp_path / "corpus" / "corpus.json").write_text("{}")
    (tmp_path / "corpus" / "audit" / "audit.json").write_text('{"benchmarks": []}')
    (tmp_path / "corpus" / "audit" / "aid" / "audit.json").write_text('{"benchmark": "aid"}')
    shutil.copytree(tmp_path / "corpus" / "audit", tmp_path / "corpus" / "copied")
    before = {file: file.read_text() for file in tmp_path.rglob("*.json")}
    with pytest.raises(CorpusError, match="give another --out"):
        audit(str(tmp_path / "a"), str(tmp_path / "a"), str(tmp_path / "corpus" / where), workers=1)
    assert {file: file.read_text() for file in tmp_path.rglob("*.json")} == before


@pytest.mark.parametrize(
    ("option", "value"),
    [("buffer", -1.0), ("buffer", float("nan")), ("buffer", float("inf")), ("tile", 0), ("tile", -5)],
)
def test_numbers_that_make_no_sense_are_refused(tmp_path, option, value):
    with pytest.raises(InputError, match=f"--{option} is a number .* given {value}"):
        audit(str(tmp_path), str(tmp_path), str(tmp_path / "out"), **{option: value})
