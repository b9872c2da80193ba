"""`geomim corpus caption`: what it writes, replaces, drops, refuses, and that merge, filter and rebuild carry it on."""

import json
import re
import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
from caption_truth import Objects, prove_cover
from rasterio.transform import from_origin

from geomim.cli import main
from geomim.corpus.build import build
from geomim.corpus.captions.caption import caption
from geomim.corpus.captions.files import became, stated
from geomim.corpus.combine import filter as choose
from geomim.corpus.combine import merge
from geomim.corpus.lock import file_hash, read_lock
from geomim.corpus.pipeline.conclude import conclude
from geomim.corpus.report.report import write_report
from geomim.corpus.store import CATALOGUE, Corpus
from geomim.corpus.verify import rebuild, verify
from geomim.errors import CorpusError, InputError

SIDE = 64
WORDS = {"storage-tank": ("a storage tank", "storage tanks"), "ship": ("a ship", "ships")}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Two scenes of 12 bands in UTM with masks of forest and water, and a layer of a river through farmland."""
    folder, random = tmp_path_factory.mktemp("scenes"), np.random.default_rng(0)
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    for number in range(2):
        kinds = random.integers(0, 2, (4, 4)).repeat(48, 0).repeat(48, 1)
        spectra = np.array([[500] * 3 + [200] + [3500] * 8, [900] * 3 + [600] + [200] * 8])
        pixels = spectra[kinds].transpose(2, 0, 1) + random.integers(0, 90, (12, 192, 192))
        place = {"crs": "EPSG:32632", "transform": from_origin(500_000 + 2000 * number, 5_300_000, 10, 10)}
        for name, values in (("images", pixels.astype(np.uint16)), ("masks", kinds[None].astype(np.uint8))):
            profile = {"count": len(values), "height": 192, "width": 192, "dtype": values.dtype, **place}
            with rasterio.open(folder / name / f"s{number}.tif", "w", **profile) as to:
                to.write(values)
    (folder / "masks" / "classes.json").write_text(json.dumps({"0": "forest", "1": "water"}))
    fields = [shapely.box(500_000 + 640 * n, 5_298_080, 500_400 + 640 * n, 5_300_000) for n in range(3)]
    river = shapely.LineString([(499_900, 5_299_000), (502_000, 5_299_100)])
    shapes = geopandas.GeoSeries([*fields, river], crs=32632).to_crs(4326)
    values = ["farmland"] * 3 + ["river"]
    geopandas.GeoDataFrame({"class": values}, geometry=shapes).to_file(folder / "map.gpkg")
    return folder


@pytest.fixture(scope="module")
def built(scenes, tmp_path_factory):
    """Eighteen tiles with masks, a third of them with boxes, some across a border."""
    bands = "B01,B02,B03,B04,B05,B06,B07,B08,B8A,B09,B11,B12"
    out = build([str(scenes / "images")], str(tmp_path_factory.mktemp("built") / "c"), tile=SIDE, sensor="sentinel2",
                bands=bands.split(","), masks=str(scenes / "masks"), near=None, overlap=None, workers=1)  # fmt: skip
    with_boxes(out, {n: boxes(n) for n in range(0, 18, 3)})
    return out


@pytest.fixture
def corpus(built, tmp_path, monkeypatch):
    """A copy of it, whose report takes no time."""
    monkeypatch.setattr("geomim.corpus.captions.caption.report", lambda folder: None)
    shutil.copytree(built, tmp_path / "c")
    return str(tmp_path / "c")


def state(corpus):
    return [file.read_bytes() for file in sorted(Path(corpus).rglob("*")) if file.is_file()]


def boxes(number):
    random = np.random.default_rng(number)
    for _ in range(int(random.integers(1, 30))):
        x, y = random.uniform(0, SIDE, 2)
        w, h = random.uniform(2, 9, 2)
        yield {"polygon": [x - w, y - h, x + w, y - h, x + w, y + h, x - w, y + h],
               "label": ["storage-tank", "ship"][int(random.integers(2))]}  # fmt: skip


def with_boxes(folder, found):
    """Write boxes into the facts of tiles, as sources with boxes bring them."""
    (file,) = (folder / "catalogue").glob("tiles-*.parquet")
    table = pq.read_table(file)
    field = table.schema.field("boxes")
    column = pa.array([list(found[n]) if n in found else None for n in range(len(table))], field.type)
    pq.write_table(table.set_column(table.schema.get_field_index("boxes"), field, column), file)
    conclude(folder)


def with_column(folder, name, values):
    """Write other facts of tiles."""
    (file,) = (folder / "catalogue").glob("tiles-*.parquet")
    table = pq.read_table(file)
    place = table.schema.get_field_index(name)
    field = table.schema.field(place)
    pq.write_table(table.set_column(place, field, pa.array(values, field.type)), file)


def said(corpus, *more):
    rows = Corpus.open(corpus).table(["id", "captions", "caption_origins", *more]).to_pylist()
    for row in rows:
        row["said"] = list(zip(row["captions"] or [], row["caption_origins"] or [], strict=True))
    return rows


def origins(corpus):
    return {origin for row in said(corpus) for _, origin in row["said"]}


def test_all_origins_are_true_and_done_again(corpus, scenes, tmp_path, capsys):
    pixels = sorted((file, file.stat().st_mtime_ns) for file in (tmp_path / "c" / "tiles.zarr").rglob("*"))
    caption(corpus, of=["boxes", "masks", "cover"], placed=True, seed=5)
    caption(corpus, vector=[str(scenes / "map.gpkg")])
    caption(corpus, of=["index"])
    assert "b2c: " in (err := capsys.readouterr().err) and "column 'class' (farmland, river)" in err
    assert sorted((file, file.stat().st_mtime_ns) for file in (tmp_path / "c" / "tiles.zarr").rglob("*")) == pixels
    rows = said(corpus, "size", "slot", "boxes")
    every = {origin for row in rows for _, origin in row["said"]}
    assert every == {"b2c", "b2c-placed", "m2b", "m2b-placed", "landcover", "vector", "index"}
    masks = Corpus.open(corpus).array("mask", SIDE)
    objects = Objects(WORDS, SIDE, gsd=10.0)
    for row in rows:
        mask = masks.read([row["slot"]])[0]
        water = float((mask == 1).mean())
        for text, origin in row["said"]:
            if origin.startswith("b2c"):
                objects.prove(text, [{"what": b["label"], "polygon": b["polygon"]} for b in row["boxes"]])
            if origin == "landcover":
                prove_cover(text, {"water": water, "forest": 1 - water})
            if origin == "index":  # the spectra follow the masks
                prove_cover(text, {"open water": water, "dense vegetation": 1 - water})
    assert sum("crosses farmland" in text for row in rows for text, _ in row["said"]) >= 2
    verify(corpus)
    page = write_report(corpus).read_text()
    counts = Counter(origin for row in rows for _, origin in row["said"])
    assert all(f"<td>{origin}</td><td>{count:,}</td>" in page for origin, count in counts.items())
    some = sum(bool(row["said"]) for row in rows)
    assert f"{some} kept tiles have sentences, {len(rows) - some} have none" in page
    shown = re.findall(r'<img src="said-(\d+)\.png" alt="([^"]+)"', page)
    assert len(shown) >= 4 and all((tmp_path / "c" / "report" / f"said-{tile}.png").exists() for tile, _ in shown)
    texts = {str(row["id"]): {f"{origin}: {text}" for text, origin in row["said"]} for row in rows}
    parts = {tile: set(re.split(r" (?=[\w-]+: )", text)) for tile, text in shown}
    assert all(parts[tile] <= texts[tile] for tile in parts)
    assert {one.partition(":")[0] for some in parts.values() for one in some} == set(counts)


def test_rebuild_repeats_it(scenes, corpus, tmp_path):
    caption(corpus, of=["masks"], seed=2)
    caption(corpus, of=["index"])
    caption(corpus, drop=["m2b"])
    caption(corpus, vector=[str(scenes / "map.gpkg")], names={"river": "stream"})
    again = rebuild(corpus, str(tmp_path / "again"), workers=1)
    assert [row["said"] for row in said(again)] == [row["said"] for row in said(corpus)] and origins(again) == {
        "index", "vector"}  # fmt: skip
    assert any("stream" in text for row in said(again) for text, _ in row["said"])


def test_runs_add_up_and_replace_their_own(corpus, tmp_path):
    caption(corpus, of=["boxes", "masks"], placed=True)
    first = [row["said"] for row in said(corpus)]
    caption(corpus, of=["boxes"], seed=1)
    assert origins(corpus) == {"b2c", "m2b", "m2b-placed"}  # a family goes with its placed sentences
    other = [row["said"] for row in said(corpus)]
    keep = [[one for one in row if one[1].startswith("m2b")] for row in first]
    assert [[one for one in row if one[1].startswith("m2b")] for row in other] == keep
    assert other != first
    caption(corpus, of=["boxes", "masks"], placed=True)
    assert [sorted(row["said"]) for row in said(corpus)] == [sorted(row) for row in first]
    caption(corpus, drop=["m2b"])
    assert origins(corpus) == {"b2c", "b2c-placed"}
    caption(corpus, drop=["b2c-placed"])
    assert origins(corpus) == {"b2c"}
    caption(corpus, of=["boxes", "index"], names={"storage-tank": None, "ship": None})
    assert origins(corpus) == {"index"}  # what was said of classes that are left out now is gone
    caption(corpus, drop=["index"])
    assert not origins(corpus) and not (tmp_path / "c" / "catalogue" / "captions.parquet").exists()


def test_imported_sentences_join_by_path(corpus, tmp_path, capsys):
    table = [{"image": "s0.tif", "sentences": ["Eine Stadt 🏙️"] * 2 + [""]}, {"image": "gone.tif", "raw": "x"}]
    (tmp_path / "mine.json").write_text(json.dumps(table))
    before = state(corpus)
    caption(corpus, imported=str(tmp_path / "mine.json"), show=2)
    assert state(corpus) == before  # show changes nothing
    assert capsys.readouterr().out.count("\tmine\tEine Stadt 🏙️\n") == 2
    caption(corpus, imported=str(tmp_path / "mine.json"))
    err = capsys.readouterr().err
    assert "name no source: 1 (gone.tif)" in err and "9 tiles are parts of an image" in err
    assert "empty sentences are left out, the first in" in err
    rows = said(corpus, "source")
    assert all(row["said"] == ([("Eine Stadt 🏙️", "mine")] if row["source"].endswith("s0.tif") else []) for row in rows)


def test_merge_and_filter_carry_sentences(corpus, scenes, tmp_path):
    caption(corpus, of=["boxes", "cover"])
    parts = [choose(corpus, f"row {sign} 64", str(tmp_path / name)) for name, sign in (("a", "<="), ("b", ">="))]
    caption(str(parts[1]), of=["cover"], seed=9)  # tiles that both have keep what the first says of an origin
    both = merge([str(part) for part in parts], str(tmp_path / "m"))
    key = ("source", "row", "col")
    one, two, rows = (
        {tuple(row[name] for name in key): row["said"] for row in said(path, *key)} for path in (corpus, parts[1], both)
    )
    assert rows.keys() == one.keys()
    for place, mine in rows.items():
        assert sorted(mine) == sorted(one[place] if place[1] <= 64 else two[place])
    assert any(rows[place] for place in rows) and one != two


def test_bad_input_changes_nothing(corpus, scenes, tmp_path):
    before = state(corpus)
    (tmp_path / "index.csv").write_text("image,caption\ns0.tif,x\n")
    for wrong, words in [
        ({}, "say what to write of"),
        ({"of": ["boxes"], "imported": "x.csv"}, "--imported is joined by itself"),
        ({"of": ["boxes"], "middle": 1.5}, "--middle lies between 0 and 1"),
        ({"of": ["boxes"], "min_area": 0}, "--min-area is 1 or more"),
        ({"of": ["boxes"], "column": "class"}, "--column goes with"),
        ({"of": ["index"], "names": {"open water": "sea"}}, "--names goes with"),
        ({"of": ["cover"], "placed": True}, "--placed goes with"),
        ({"of": ["cover"], "landcover": "x.tif"}, "give one of them"),
        ({"landcover": "x.tif"}, r"x.tif' cannot be read"),
        ({"vector": [str(tmp_path / "x.gpkg")]}, r"x.gpkg' cannot be read"),
        ({"imported": str(tmp_path / "index.csv")}, "rename it"),
        ({"drop": ["b2c"]}, "no sentence of origin b2c was written"),
        ({"of": ["masks"], "names": {"forrest": "wood"}}, r"no class is called forrest.*forest"),
        ({"vector": [str(scenes / "map.gpkg")], "names": {"sea": "x"}}, "no class is called sea"),
        ({"of": ["masks"], "names": {"forest": None, "water": None}}, "nothing of that kind"),
        ({"of": ["masks"], "licence": "CC0-1.0"}, "--licence goes with"),
        ({"vector": ["a.gpkg"], "landcover": "b.tif", "licence": "CC0-1.0"}, "run --vector and --landcover apart"),
        ({"of": ["masks"], "show": -1}, "--show is 1 or more; given -1"),
    ]:
        with pytest.raises(InputError, match=words):
            caption(corpus, **wrong)
        assert state(corpus) == before, wrong


def test_names_of_no_class_are_refused_before_tiles_are_read(corpus, scenes, monkeypatch):
    def unread(*_):
        raise AssertionError("a tile was read")

    monkeypatch.setattr("geomim.corpus.captions.caption.write_part", unread)
    for kinds, near in [({"of": ["boxes"]}, "shipp.*'ship'"), ({"of": ["cover"]}, "forrest.*'forest'"),
                        ({"vector": [str(scenes / "map.gpkg")]}, "rivver.*'river'")]:  # fmt: skip
        with pytest.raises(InputError, match=f"no class is called {near}"):
            caption(corpus, names={near.partition(".")[0]: "x"}, **kinds)


def test_names_are_taken_in_any_spelling(corpus):
    caption(corpus, of=["boxes"], names={"Storage_Tank": "oil tank", "ship": None})
    texts = [text for row in said(corpus) for text, _ in row["said"]]
    assert texts and all("oil tank" in text for text in texts)


def test_what_a_tile_lacks_is_said_with_how_many(corpus, scenes, tmp_path, capsys):
    cover = str(scenes / "masks" / "s0.tif")
    caption(corpus, of=["index"], vector=[str(scenes / "map.gpkg")], landcover=cover, show=1)
    err = capsys.readouterr().err
    assert err.count("18 tiles have no mask of clouds, and are taken for clear") == 1 and "no place" not in err
    with_column(tmp_path / "c", "cloud_fraction", [0.0] * 5 + [0.2] * 3 + [None] * 10)
    with_column(tmp_path / "c", "geometry", [None] * 4 + [shapely.box(9, 47.8, 9.01, 47.81).wkb] * 14)
    with_column(tmp_path / "c", "transform", [None] * 7 + [[10.0, 0, 500_000, 0, -10, 5_300_000]] * 11)
    with_column(tmp_path / "c", "valid_fraction", [0.5] * 6 + [1.0] * 12)
    whole, padding = Corpus.array, SimpleNamespace(read=lambda slots: np.tri(SIDE, dtype=bool)[None])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Corpus, "array", lambda *given: padding if given[1] == "valid" else whole(*given))
        caption(corpus, of=["index"], vector=[str(scenes / "map.gpkg")], landcover=cover, show=1)
    err = capsys.readouterr().err
    assert "10 tiles have no mask of clouds" in err and "3 tiles have clouds, of which no index tells" in err
    assert "4 tiles have no place on Earth, and get nothing of --vector" in err
    assert "2 tiles are padded and placed by ground control points, and get nothing of --vector" in err
    assert "7 tiles have no grid on Earth, and get nothing of --landcover" in err


def test_files_of_sentences_are_stated_with_their_licence(corpus, scenes, tmp_path, capsys):
    (tmp_path / "mine.csv").write_text("image,caption\ns0.tif,x\n")
    caption(corpus, vector=[str(scenes / "map.gpkg")], licence="ODbL-1.0")
    caption(corpus, of=["cover"])
    caption(corpus, imported=str(tmp_path / "mine.csv"))
    layer, table = (file_hash(file) for file in (scenes / "map.gpkg", tmp_path / "mine.csv"))
    told = {"vector": [{"file": "map.gpkg", "xxh3_parts": layer, "licence": "ODbL-1.0"}],
            "mine": [{"file": "mine.csv", "xxh3_parts": table, "licence": "unknown"}]}  # fmt: skip
    assert read_lock(corpus)[0]["sentences"] == Corpus.open(corpus).meta["sentences"] == told
    page = write_report(corpus).read_text()
    assert re.search(r"<td>vector</td><td>\d+</td><td>map.gpkg</td><td>ODbL-1.0</td>", page)
    assert re.search(
        r"<td>landcover</td><td>\d+</td><td>came with the imagery</td><td>the imagery.+s licence</td>", page
    )
    part, rest = (choose(corpus, f"row {sign} 64", str(tmp_path / name)) for name, sign in (("a", "<="), ("b", ">")))
    caption(str(rest), vector=[str(scenes / "map.gpkg")])
    both = told | {"vector": [told["vector"][0], told["vector"][0] | {"licence": "unknown"}]}
    assert Corpus.open(part).meta["sentences"] == told
    assert Corpus.open(merge([str(part), str(rest)], str(tmp_path / "m"))).meta["sentences"] == both
    caption(str(rest), of=["cover"])
    caption(str(part), landcover=str(scenes / "masks" / "s0.tif"), licence="CC0-1.0")
    kinds = Corpus.open(merge([str(part), str(rest)], str(tmp_path / "n"))).meta["sentences"]["landcover"]
    assert [one["licence"] for one in kinds] == ["CC0-1.0", "the imagery's licence"]  # one of a map, one of masks
    caption(corpus, drop=["vector", "mine"])
    assert not Corpus.open(corpus).meta["sentences"]


def test_a_file_of_sentences_that_was_changed_is_named(corpus, scenes, tmp_path, capsys):
    for file in ("map.gpkg", "masks/s0.tif", "masks/classes.json"):
        shutil.copy(scenes / file, tmp_path)
    shape, cover, table = (str(tmp_path / name) for name in ("map.shp", "s0.tif", "mine.csv"))
    geopandas.read_file(tmp_path / "map.gpkg").iloc[:3].to_file(shape)
    Path(table).write_text("image,caption\ns0.tif,x\n")
    for given in ({"vector": [str(tmp_path / "map.gpkg")]}, {"vector": [shape]}, {"landcover": cover},
                  {"imported": table}):  # fmt: skip
        caption(corpus, **given)
    (tmp_path / "map.gpkg").unlink()  # what it said is replaced
    verify(corpus, sources=True)
    assert ", 3 files of sentences\n" in capsys.readouterr().out
    data = (tmp_path / "map.dbf").read_bytes()
    (tmp_path / "map.dbf").write_bytes(data.replace(b"farmland", b"orchards"))
    (tmp_path / "classes.json").write_text(json.dumps({"0": "forest", "1": "lake"}))
    Path(table).unlink()
    for check in (partial(verify, sources=True), partial(rebuild, out=str(tmp_path / "again"), workers=1)):
        with pytest.raises(CorpusError) as error:
            check(corpus)
        for what in (f"'{shape}', which sentences of vector come from, was changed",
                     f"'{cover}', which sentences of landcover come from, was changed",
                     f"'{table}', which sentences of mine come from, vanished"):  # fmt: skip
            assert what in str(error.value)
    assert "map.gpkg', which sentences of vector come from, vanished" in str(error.value)  # it is asked again
    assert not (tmp_path / "again.part").exists()


def test_files_of_sentences_that_a_lock_gives_no_path_of_are_counted(corpus, scenes, tmp_path, capsys):
    caption(corpus, vector=[str(scenes / "map.gpkg")])
    caption(corpus, of=["cover"])
    part = str(choose(corpus, "row <= 64", str(tmp_path / "a")))
    verify(part, sources=True)
    assert "0 of 1 files of sentences (of the others the lock has no path or no hash)" in capsys.readouterr().out
    caption(part, landcover=str(scenes / "masks" / "s0.tif"))
    verify(part, sources=True)
    assert "1 of 2 files of sentences" in capsys.readouterr().out


def test_older_locks_have_the_hash_of_the_file_alone(scenes, tmp_path):
    cover = str(shutil.copy(scenes / "masks" / "s0.tif", tmp_path))
    known = {"file": "s0.tif", "xxh3": file_hash(cover), "licence": "unknown"}
    (tmp_path / "classes.json").write_text("{}")
    assert not became("landcover", cover, known)
    Path(cover).write_bytes(b"other")
    assert became("landcover", cover, known) == "was changed"


def test_a_file_of_sentences_that_cannot_be_read_is_said(tmp_path, monkeypatch):
    (tmp_path / "map.json").write_text("{}")
    known, path = stated("vector", str(tmp_path / "map.json"), None), str(tmp_path / "map.json")

    def hash_of(_):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("geomim.corpus.captions.files.files_hash", hash_of)
    assert became("vector", path, known) == "cannot be read (Permission denied)"


@pytest.mark.parametrize(("origin", "file", "beside"), [
    ("vector", "map.TAB", "map.DAT"), ("vector", "map.mif", "map.mid"), ("landcover", "map.tif", "map.tfw"),
    ("landcover", "map.jpeg", "map.jgw"), ("landcover", "map.png", "map.wld"), ("landcover", "map.img", "map.hdr"),
])  # fmt: skip
def test_a_file_of_sentences_has_parts(tmp_path, origin, file, beside):
    for name in (file, beside, "map.v2.dat", "map.tif.aux.xml"):
        (tmp_path / name).write_text("is")
    known, path = stated(origin, str(tmp_path / file), None), str(tmp_path / file)
    for name in ("map.v2.dat", "map.tif.aux.xml"):
        (tmp_path / name).write_text("other")
    assert not became(origin, path, known)
    (tmp_path / beside).write_text("other")
    assert became(origin, path, known) == "was changed"


def test_locks_in_an_open_folder_say_nothing(tmp_path):
    (tmp_path / "map.gdb").mkdir()
    (tmp_path / "map.gdb" / "a.gdbtable").write_text("is")
    known, path = stated("vector", str(tmp_path / "map.gdb"), None), str(tmp_path / "map.gdb")
    (tmp_path / "map.gdb" / "a.sr.lock").touch()
    assert not became("vector", path, known)
    (tmp_path / "map.gdb" / "a.gdbtable").write_text("other")
    assert became("vector", path, known) == "was changed"


def test_labels_that_fit_no_tile_are_named(corpus, tmp_path, capsys):
    folder = tmp_path / "c"
    square = {"label": "ship"}
    good, flat = [4, 4, 8, 4, 8, 8, 4, 8], [9, 9, 9, 9, 9, 20, 9, 20]
    inverted, outside = [8, 8, 4, 8, 4, 4, 8, 4], [90, 90, 99, 90, 99, 99, 90, 99]
    diagonal = [0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.7, 0.7]
    with_boxes(folder, {0: [square | {"polygon": one} for one in (good, flat, inverted, outside, diagonal)]})
    caption(corpus, of=["boxes"])
    err = capsys.readouterr().err
    assert "2 boxes of no area are left out" in err and "1 boxes are left out, as their middle lies outside" in err
    text = [text for row in said(corpus) for text, _ in row["said"]]
    assert any(re.search(r"\b(2|two) ships", one, re.IGNORECASE) for one in text)  # turned round is the same box
    assert not any(re.search(r"\b(3|three|4|four) ships", one, re.IGNORECASE) for one in text)
    for polygon, words in [
        ([4, 4, 8, 8], r"box 2 of tile 0 of '.*s0.tif' has no four corners"),
        ([4, 4, 8, 4, 8, float("nan"), 4, 8], r"box 2 of tile 0 of '.*s0.tif' has a corner that is no finite number"),
    ]:
        with_boxes(folder, {0: [square | {"polygon": good}, square | {"polygon": polygon}]})
        with pytest.raises(InputError, match=words):
            caption(corpus, of=["boxes"])
    meta = json.loads((folder / "corpus.json").read_text())
    (folder / "corpus.json").write_text(json.dumps(meta | {"classes": ["forest"]}))
    with pytest.raises(CorpusError, match=r"the mask of tile \d+ of '.*tif' holds class 1, and the corpus names 1"):
        caption(corpus, of=["masks"])


def test_masks_of_another_size_are_named(corpus, monkeypatch):
    whole, smaller = Corpus.array, SimpleNamespace(shape=(18, 32, 32), path="tiles.zarr/64/mask")
    monkeypatch.setattr(Corpus, "array", lambda *given: smaller if given[1] == "mask" else whole(*given))
    with pytest.raises(CorpusError, match=r"holds masks of 32 x 32 pixels for tiles of 64 x 64"):
        caption(corpus, of=["masks"])


def test_a_size_of_pixels_that_is_guessed_is_said(corpus, tmp_path, capsys):
    caption(corpus, of=["boxes"], placed=True, show=1)
    assert "tell no size" not in capsys.readouterr().err
    with_column(tmp_path / "c", "gsd", [None] * 18)
    caption(corpus, of=["boxes"], placed=True, show=1)
    assert "18 tiles tell no size of a pixel, and are taken for 10 m as sentinel2 has" in capsys.readouterr().err


def test_the_command_line(corpus, capsys):
    main(["corpus", "caption", "--corpus", corpus, "--of", "boxes", "--show", "3", "--names", '{"ship": "boat"}'])
    lines = capsys.readouterr().out.strip().split("\n")
    assert len(lines) == 3 and all(line.split("\t")[1] == "b2c" for line in lines)
    assert not origins(corpus)
    assert CATALOGUE.field("caption_origins").type == pa.list_(pa.string())
