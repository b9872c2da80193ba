import json
import shutil
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import torch
from colour_model import ColourModel
from PIL import Image
from pyproj import Transformer
from rasterio.transform import from_origin

from geomim.cli import main
from geomim.corpus.build import build
from geomim.corpus.changes import decide
from geomim.corpus.store import Corpus
from geomim.errors import CheckpointError, ConfigError, CorpusError, InputError
from geomim.models.vit import ViT
from geomim.sensors import SENSORS, BandContract
from geomim.verbs import search as searching
from geomim.verbs import tile_vectors as embedding
from geomim.verbs.corpus_embed import embed
from geomim.verbs.embed import embed as write_file
from geomim.verbs.search import nearest, search

PLACE = from_origin(500000, 4000000, 2, 2)
COLOURS = (0, 1, 2, 2, 1, 0, 3, 0)
"""Which band is the highest in each tile of the scene, row by row of four."""


@pytest.fixture(autouse=True)
def model(monkeypatch):
    models = {"colours": ColourModel(), "other": ColourModel("other")}

    def opened(source, quickgelu=None):
        if source not in models:
            raise CheckpointError(f"'{source}' is not there")
        return models[source]

    for module in (embedding, searching):
        monkeypatch.setattr(module, "open_image_text", opened)
    monkeypatch.setattr(embedding, "fast_half", lambda device: False)
    return models


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Eight tiles of one colour each, ever less purely."""
    folder = tmp_path_factory.mktemp("search")
    pixels = np.random.default_rng(0).integers(80, 120, (4, 64, 128)).astype(np.uint8)
    for tile, band in enumerate(COLOURS):
        rows, columns = (slice(32 * place, 32 * place + 32) for place in divmod(tile, 4))
        pixels[[band, (band + 1) % 4], rows, columns] += np.array([120, 15 * tile], np.uint8)[:, None, None]
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 4, "height": 64, "width": 128}
    with rasterio.open(folder / "scene.tif", "w", crs="EPSG:32632", transform=PLACE, **profile) as raster:
        raster.write(pixels)
    options = {"tile": 32, "sensor": "naip", "near": None, "crops": False, "workers": 1}
    build([str(folder / "scene.tif")], str(folder / "corpus"), **options)
    return folder / "corpus"


@pytest.fixture
def corpus(built, tmp_path):
    return shutil.copytree(built, tmp_path / "corpus")


@pytest.fixture
def asked(corpus):
    """A corpus with vectors of the joint space."""
    embed(str(corpus), "colours", joint=True, device="cpu")
    return str(corpus)


def tile(corpus, number: int) -> int:
    """The id of a tile of the scene, by its place in it."""
    table = Corpus.open(corpus).table(["id", "row", "col"]).to_pylist()
    return next(one["id"] for one in table if (one["row"], one["col"]) == tuple(32 * p for p in divmod(number, 4)))


def printed(said: str) -> list[list[str]]:
    """Words of the lines that tell of tiles."""
    return [line.split() for line in said.splitlines() if line.startswith("  ")]


def test_a_text_finds_the_tiles_it_speaks_of_the_nearest_first_and_says_where_they_lie(asked, tmp_path, capsys):
    out, places = tmp_path / "new" / "found.png", tmp_path / "new" / "found.geojson"
    assert search(asked, ["red", "blue"], count=3, out=str(out), places=str(places)) == out
    said = capsys.readouterr().out
    lines = printed(said)
    expected = [tile(asked, number) for number in (0, 5, 7, 2, 3)]
    assert [int(line[3]) for line in lines[:5]] == expected and [line[0] for line in lines] == ["1", "2", "3"] * 2
    cosines = [float(line[1]) for line in lines]
    assert cosines[:3] == sorted(cosines[:3], reverse=True) and cosines[2] > 0.5
    there = Transformer.from_crs("EPSG:32632", "EPSG:4326", always_xy=True).transform(500000 + 32, 4000000 - 32)
    assert (float(lines[0][4]), float(lines[0][6])) == pytest.approx(there[::-1], abs=1e-4)
    assert (lines[0][5], lines[0][7]) == ("N", "E") and lines[0][-1] == "scene.tif"
    frame = gpd.read_file(places)
    assert frame["asked"].tolist() == ["red"] * 3 + ["blue"] * 3 and frame["tile"].tolist()[:5] == expected
    assert frame.geometry[0].centroid.coords[0] == pytest.approx(there, abs=1e-6)
    assert frame["score"].tolist() == pytest.approx(cosines, abs=1e-3)
    assert sorted(out.parent.iterdir()) == [places, out]


def test_the_contact_sheet_shows_each_tile_with_its_id_score_and_coordinates(asked, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(searching, "contact_sheet", lambda path, groups: drawn.append(groups))
    search(asked, ["red", "nir"], count=2, out=str(tmp_path / "found.png"))
    ((first, reds), (second, nirs)) = drawn[0]
    assert (first, second) == ("red", "nir") and len(reds) == len(nirs) == 2
    picture, words = reds[0]
    assert picture.shape == (32, 32, 3) and picture[..., 0].mean() > 60 + picture[..., 1].mean()
    assert words.startswith(f"{tile(asked, 0)}: 1.000") and words.endswith("36.1444 N 9.0004 E")
    assert nirs[0][1].startswith(f"{tile(asked, 6)}: ")
    monkeypatch.undo()
    searching.contact_sheet(tmp_path / "sheet.png", drawn[0])
    assert Image.open(tmp_path / "sheet.png").height > Image.open(tmp_path / "sheet.png").width  # two rows of two


def test_a_tile_finds_those_alike_and_comes_first_by_any_encoders_vectors(asked, tmp_path, capsys):
    torch.manual_seed(0)
    encoder, contract = ViT(4, 32, 8, 48, 1, 3), BandContract(SENSORS["naip"], (100.0,) * 4, (50.0,) * 4)
    state = {f"model.encoder.{name}": value for name, value in encoder.state_dict().items()}
    details = {"format_version": 1, "encoder": encoder.config, "contract": contract.to_dict()}
    torch.save({"state_dict": state, "geomim": details}, tmp_path / "plain.ckpt")
    embed(asked, str(tmp_path / "plain.ckpt"), device="cpu")
    for name, alike in (("colours", {0, 5, 7}), ("plain", None)):
        search(asked, like=tile(asked, 5), embedding=name, count=3, out=str(tmp_path / "found.png"))
        lines = printed(capsys.readouterr().out)
        assert int(lines[0][3]) == tile(asked, 5) and float(lines[0][1]) == 1
        assert alike is None or {int(line[3]) for line in lines} == {tile(asked, number) for number in alike}


def test_tiles_that_training_does_not_read_are_left_out_but_for_the_one_that_is_given(asked, tmp_path, capsys):
    dropped = tile(asked, 5)
    decide(asked, where=f"id <> {dropped}")
    capsys.readouterr()
    for arguments, there in (
        ({"text": ["red"]}, False),
        ({"text": ["red"], "kept_only": False}, True),
        ({"like": dropped}, True),
    ):
        search(asked, count=8, out=str(tmp_path / "found.png"), **arguments)
        assert (dropped in [int(line[3]) for line in printed(capsys.readouterr().out)]) == there


def test_where_no_tile_is_kept_the_flag_that_searches_all_is_told(asked, tmp_path):
    file = str(write_file(asked, "colours", str(tmp_path / "tiles.parquet"), joint=True, device="cpu"))
    table = pq.read_table(file)
    kept = table.schema.get_field_index("kept")
    pq.write_table(table.set_column(kept, table.field(kept), pa.array([False] * len(table))), file)
    with pytest.raises(InputError, match="has no tile that training reads: --kept_only false searches the others"):
        search(file, ["red"], out=str(tmp_path / "found.png"))
    search(file, ["red"], out=str(tmp_path / "found.png"), kept_only=False)


def test_a_file_of_vectors_answers_as_the_corpus_does(asked, tmp_path, capsys):
    file = str(write_file(asked, "colours", str(tmp_path / "tiles.parquet"), joint=True, device="cpu"))
    for question in (
        {"text": ["red", "blue"]},
        {"like": tile(asked, 5)},
        {"like": str(tile(asked, 0)), "kept_only": False},
    ):
        answers = []
        for source in (asked, file):
            assert search(source, count=3, out=str(tmp_path / "found.png"), **question) == tmp_path / "found.png"
            answers.append(printed(capsys.readouterr().out))
        assert answers[0] == answers[1]
    with pytest.raises(
        CheckpointError, match=r"'tiles.parquet' were made by 'colours'.*run geomim embed .*--model other"
    ):
        search(file, ["red"], model="other", out=str(tmp_path / "no.png"))
    with pytest.raises(ConfigError, match="--embedding names vectors beside a corpus"):
        search(file, ["red"], embedding="colours")
    with pytest.raises(ConfigError, match="--like: expected the id of a tile"):
        search(file, like="1,2")
    for number in (999, 2**63, "99999999999999999999"):
        with pytest.raises(InputError, match=f"has no tile {number} "):
            search(file, like=number)


def test_without_its_corpus_a_file_of_vectors_still_tells_where_tiles_lie(asked, tmp_path, capsys):
    file = str(write_file(asked, "colours", str(tmp_path / "tiles.parquet"), "int8", joint=True, device="cpu"))
    expected, places = [tile(asked, number) for number in (0, 5, 7)], tmp_path / "found.geojson"
    shutil.rmtree(asked)
    capsys.readouterr()
    assert search(file, ["red"], count=3, places=str(places)) is None
    said = capsys.readouterr().out
    assert [int(line[3]) for line in printed(said)] == expected and "is not at hand, or has changed" in said
    assert gpd.read_file(places)["tile"].tolist() == expected
    with pytest.raises(CorpusError, match=r"--out found.png: .* is not at hand"):
        search(file, ["red"], out="found.png")


def test_a_block_of_vectors_at_a_time_finds_what_all_at_once_would():
    random = np.random.default_rng(0)
    vectors, asked = random.normal(size=(100, 5)).astype(np.float32), random.normal(size=(3, 5)).astype(np.float32)
    vectors[40:50] = vectors[3]  # equals come in their order
    rows = np.flatnonzero(random.random(100) < 0.8)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = asked / np.linalg.norm(asked, axis=1, keepdims=True) @ unit[rows].T
    order = np.argsort(-cosines.round(6), 1, kind="stable")[:, :30]
    for block in (7, 1000):
        some = [rows[at : at + block] for at in range(0, len(rows), block)]
        found, scores = nearest(((ids, vectors[ids]) for ids in some), asked, 30)
        np.testing.assert_allclose(scores, np.take_along_axis(cosines, order, 1), atol=1e-6)
        assert np.array_equal(found, rows[order])


def test_vectors_of_another_model_are_refused_with_both_names_and_the_remedy_works(asked, tmp_path, model, capsys):
    with pytest.raises(CheckpointError, match=r"made by 'colours' \(colours\).*'other' \(other\).*embed") as refused:
        search(asked, ["red"], model="other", out=str(tmp_path / "found.png"))
    assert not (tmp_path / "found.png").exists()
    remedy = str(refused.value).split("run geomim ")[1].split(",")[0].split()
    assert main([*remedy, "--name", "new"]) == 0
    assert main(["search", asked, "--text", "red", "--embedding", "new", "--out", str(tmp_path / "found.png")]) == 0
    model["colours"] = ColourModel("trained on")  # the file is now another model
    with pytest.raises(CheckpointError, match=r"'colours' \(colours\).*'colours' \(trained on\)"):
        search(asked, ["red"], embedding="colours", out=str(tmp_path / "found.png"))


def test_a_model_that_moved_is_asked_for_and_taken(asked, tmp_path, model):
    model["moved"] = model.pop("colours")
    with pytest.raises(CheckpointError, match=r"'colours' is not there; name the model of 'colours' with --model"):
        search(asked, ["red"], out=str(tmp_path / "found.png"))
    search(asked, ["red"], model="moved", out=str(tmp_path / "found.png"))


def test_sentences_have_the_activation_that_the_vectors_were_made_with(corpus, tmp_path, model, monkeypatch):
    asked, out = [], str(tmp_path / "found.png")

    def opened(source, quickgelu=None):
        asked.append(quickgelu)
        return model["colours"]

    for module in (embedding, searching):
        monkeypatch.setattr(module, "open_image_text", opened)
    embed(str(corpus), "remoteclip:a.pt", name="a", joint=True, quickgelu=False, device="cpu")
    search(str(corpus), ["red"], out=out)
    search(str(corpus), ["red"], model="remoteclip:b.pt", quickgelu=True, out=out)
    search(str(corpus), ["red"], model="last.ckpt", out=out)  # states its own
    assert asked == [False, False, True, None]
    with pytest.raises(ConfigError, match="--quickgelu is of models of images and text"):
        embed(str(corpus), "a.ckpt", quickgelu=True)


def test_the_tile_itself_comes_first_also_among_equal_ones(asked, tmp_path, capsys):
    file = Path(asked) / "embeddings" / "colours.npy"
    np.save(file, np.ones_like(np.load(file)))
    for number in (3, 5):
        search(asked, like=tile(asked, number), count=3, out=str(tmp_path / "found.png"))
        lines = printed(capsys.readouterr().out)
        found = [int(line[3]) for line in lines]
        assert found[0] == tile(asked, number) and len({*found}) == 3 and float(lines[0][1]) == 1
    search(asked, like=tile(asked, 3), count=1, out=str(tmp_path / "found.png"))
    assert [int(line[3]) for line in printed(capsys.readouterr().out)] == [tile(asked, 3)]


def test_vectors_that_no_sentence_compares_with_are_refused(asked, tmp_path):
    card = Path(asked) / "embeddings" / "colours.json"
    card.write_text(json.dumps({k: v for k, v in json.loads(card.read_text()).items() if k != "joint"}))
    with pytest.raises(CorpusError, match=r"'colours' are those of the encoder.*corpus embed .* MODEL --joint"):
        search(asked, ["red"], out=str(tmp_path / "found.png"))


def test_without_vectors_or_with_several_the_way_is_told(asked, corpus, tmp_path):
    embed(asked, "other", joint=True, device="cpu")
    with pytest.raises(CorpusError, match=r"colours, other: say which with --embedding"):
        search(asked, ["red"], out=str(tmp_path / "found.png"))
    with pytest.raises(InputError, match=r"no tile 99 with a vector"):
        search(asked, like=99, embedding="other", out=str(tmp_path / "found.png"))
    shutil.rmtree(corpus / "embeddings")
    with pytest.raises(CorpusError, match=r"run geomim corpus embed first"):
        search(asked, ["red"], out=str(tmp_path / "found.png"))
    assert not (tmp_path / "found.png").exists()


def test_pictures_without_a_place_say_so(tmp_path, capsys, monkeypatch):
    random = np.random.default_rng(0)
    for number in range(6):
        pixels = random.integers(0, 256, (32, 32, 3)).astype(np.uint8)
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number}.png")
    corpus = str(tmp_path / "corpus")
    build([str(tmp_path / "pictures")], corpus, tile=32, near=None, crops=False, workers=1)
    rgb = ColourModel(contract=BandContract(SENSORS["rgb"], (100.0,) * 3, (50.0,) * 3))
    for module in (embedding, searching):
        monkeypatch.setattr(module, "open_image_text", lambda source, quickgelu=None: rgb)
    embed(corpus, "m", joint=True, device="cpu")
    capsys.readouterr()
    search(corpus, ["red"], count=9, out=str(tmp_path / "found.png"), places=str(tmp_path / "found.parquet"))
    said = capsys.readouterr().out
    assert said.count("no place  ") == 6 and "6 of 6 tiles have no place on Earth" in said
    assert len(gpd.read_parquet(tmp_path / "found.parquet")) == 6


def test_only_what_a_search_wrote_is_written_over(asked, tmp_path, capsys):
    file = str(write_file(asked, "colours", str(tmp_path / "tiles.parquet"), joint=True, device="cpu"))
    (tmp_path / "link.parquet").symlink_to(file)
    gpd.GeoDataFrame({"road": ["A1"]}, geometry=gpd.points_from_xy([9], [50]), crs=4326).to_file(tmp_path / "a.geojson")
    (tmp_path / "words.geojson").write_text("no places")
    Image.new("RGB", (8, 8)).save(tmp_path / "own.png")
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    found = {"out": str(tmp_path / "found.png"), "places": str(tmp_path / "found.geojson")}
    other = [("places", name) for name in ("tiles.parquet", "link.parquet", "a.geojson", "words.geojson")]
    for flag, name in (*other, ("out", "own.png")):
        with pytest.raises(InputError, match=rf"{name}' is there .*another.* --{flag}"):
            search(file, ["red"], **found | {flag: str(tmp_path / name)})
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    for places, read in (("found.geojson", gpd.read_file), ("found.parquet", gpd.read_parquet)):
        search(file, ["red"], count=1, **found | {"places": str(tmp_path / places)})
        capsys.readouterr()
        search(file, ["red"], count=2, **found | {"places": str(tmp_path / places)})  # says that it replaces both
        said = capsys.readouterr().out
        assert f"{places}' is there already" in said and "found.png' is there already" in said
        assert len(read(tmp_path / places)) == 2


def test_a_picture_that_fails_leaves_the_one_that_was_there(asked, tmp_path, monkeypatch):
    out = tmp_path / "found.png"
    search(asked, ["red"], out=str(out))
    before = out.read_bytes()

    def full(self, file, **options):
        Path(file).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="no space"):
        search(asked, ["blue"], out=str(out))
    assert out.read_bytes() == before and list(tmp_path.glob("*found*")) == [out]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"text": None}, "--text .*--like"),
        ({"like": 3}, "--text .*--like"),
        ({"text": None, "like": 3, "model": "m"}, "--model, --quickgelu and --prompt are of --text"),
        ({"text": [" "]}, "text: expected words"),
        ({"text": []}, "text: expected words"),
        ({"count": 0}, "--count"),
        ({"count": 301}, "--count of 1 to 300 for 1; given 301"),
        ({"text": ["red", "blue"], "count": 151}, "--count of 1 to 150 for 2; given 151"),
        ({"text": [f"red {number}" for number in range(51)], "count": 1}, "at most 50 texts"),
        ({"text": None, "like": 3, "quickgelu": True}, "--quickgelu"),
        ({"prompt": "a photo"}, "--prompt"),
        ({"out": "found.jpg"}, r"--out: .*\.png"),
        ({"places": "found.shp"}, r"--places: .*\.geojson or \.parquet"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_before_anything_is_read(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        search(**{"source": "/nowhere", "text": ["red"]} | changes)


@pytest.mark.parametrize(("changes", "sentence"), [({"pool": "class"}, "--pool"), ({"image_size": 30}, "multiple")])
def test_a_joint_space_states_how_it_pools(corpus, changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        embed(str(corpus), "colours", joint=True, device="cpu", **changes)
    assert not (corpus / "embeddings").exists()
