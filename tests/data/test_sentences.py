import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny_corpus import write_corpus
from tiny_recipes import TEXT as TEXT_TOWER

from geomim.corpus.captions.origins import OF_TILES
from geomim.corpus.store import Corpus
from geomim.data.datamodule import TileDataModule
from geomim.data.sampler import PositionBatches
from geomim.data.text import Sentences
from geomim.data.tiles import TileSet
from geomim.errors import ConfigError, CorpusError
from geomim.sensors import get_sensor

TEXT = frozenset({"text"})


class Words:
    """A tokenizer as CLIP's: a start, a number a word, an end which stays where a sentence is cut, and padding."""

    context_length, causal, identity, blank = 20, True, "words", 0

    def __init__(self):
        self.number, self.seen = {}, []

    def tokenize(self, sentences):
        self.seen += sentences
        tokens = torch.full((len(sentences), self.context_length), self.blank)
        for row, sentence in zip(tokens, sentences, strict=True):
            words = [self.number.setdefault(word, len(self.number) + 3) for word in sentence.split()]
            line = [1, *words[: self.context_length - 2], 2]
            row[: len(line)] = torch.tensor(line)
        return tokens

    def read(self, tokens):
        names = {number: word for word, number in self.number.items()}
        return " ".join(names[number] for number in tokens.tolist() if number > 2)


def captioned(path, captions, origins=None, **options):
    """A corpus of 24 tiles, of which the first 18 are for training, with these lists of sentences."""
    write_corpus(path, **options)
    file = path / "catalogue.parquet"
    table = pq.read_table(file)
    for name, values in (("captions", captions), ("caption_origins", origins)):
        if values is not None:
            column = pa.array([values[row] if row < len(values) else None for row in range(24)], pa.list_(pa.string()))
            kept = [one for one in table.column_names if one != name]
            table = table.select(kept).append_column(name, column)
    pq.write_table(table, file)
    return str(path)


def module(paths, tokenizer=None, batch=6, workers=0, **options):
    made = TileDataModule(paths, batch_size=batch, image_size=16, workers=workers, **options)
    made.said = made.provide(TEXT, tokenizer=tokenizer or Words())
    return made


def batches(made, count):
    for batch, _ in zip(made.train_dataloader(), range(count), strict=False):
        yield batch


def pairs(batches):
    """The key of each position over some batches, and the words of each key."""
    keys, tokens = {}, {}
    for batch in batches:
        text = batch["text"]
        for position, row in zip(batch["position"].tolist(), text["of"].tolist(), strict=True):
            keys[position] = text["key"][row].item() if row >= 0 else None
            if row >= 0:
                said = [token for token in text["tokens"][row].tolist() if token]  # as far as its batch reaches
                assert tokens.setdefault(keys[position], said) == said
    return keys, tokens


SOME = [[f"tile {row} says {one}" for one in range(row % 4)] for row in range(24)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return captioned(tmp_path_factory.mktemp("text") / "corpus", SOME)


def test_a_tile_at_a_position_has_one_sentence_whatever_the_batch_rank_or_worker(corpus):
    plain = pairs(batches(module(corpus), 12))
    assert len(plain[0]) == 72
    assert plain == pairs(batches(module(corpus, workers=2), 12))
    made = module(corpus)
    loader = made.train_dataloader()
    ranks = [iter(PositionBatches(3, rank, 2)) for rank in (1, 0)]
    split = [loader.dataset.__getitems__(next(rank)) for _ in range(12) for rank in ranks]
    assert plain == pairs(split)
    later = (loader.dataset.__getitems__(one) for one, _ in zip(PositionBatches(6, start=7), range(5), strict=False))
    assert pairs(later)[0] == {position: key for position, key in plain[0].items() if position >= 42}
    assert plain[0] != pairs(batches(module(corpus, seed=1), 12))[0]


def test_a_batch_says_what_its_tiles_say_and_all_of_it_about_equally(corpus):
    tokenizer, said = Words(), {}
    made = module(corpus, tokenizer)
    for batch in batches(made, 600):
        for tile, row in zip(batch["id"].tolist(), batch["text"]["of"].tolist(), strict=True):
            line = tokenizer.read(batch["text"]["tokens"][row]) if row >= 0 else None
            said.setdefault(tile - 100, []).append(line)
    for tile in range(18):
        lines, counts = np.unique([str(one) for one in said[tile]], return_counts=True)
        assert lines.tolist() == (SOME[tile] or ["None"]) and counts.sum() == 200
        assert (abs(counts - 200 / len(lines)) < 30).all()
    assert f"'{corpus}': 13 of 18 tiles have sentences" in made.said
    assert not set(tokenizer.seen) & {one for row in SOME[18:] for one in row}  # not of this split


def test_files_and_licences_are_those_of_what_is_taken(tmp_path):
    origins = [["human", "vector", "mine", "b2c-placed"]] * 24
    paths = [captioned(tmp_path / name, [list("wxyz")] * 24, origins, seed=at) for at, name in enumerate("ab")]
    file, meta = tmp_path / "a" / "corpus.json", json.loads((tmp_path / "a" / "corpus.json").read_text())
    stated = {"file": "roads.gpkg", "xxh3": "1f", "licence": "ODbL-1.0"}
    file.write_text(json.dumps(meta | {"sentences": {"vector": [stated]}}))
    tiles, lost = tuple(OF_TILES.values()), ("a file that is not stated", "unknown")
    found = [tuple(one.values()) for one in module(paths).sentences.files]
    mine = ("mine", *lost)
    assert found == [("human", *tiles), mine, ("vector", "roads.gpkg", "ODbL-1.0"), ("vector", *lost)]
    assert [one["origin"] for one in module(paths, captions=["mine"]).sentences.files] == ["mine"]
    placed = module(paths, captions=["b2c-placed"], flip="none").sentences.files
    assert placed == [{"origin": "b2c-placed", **OF_TILES}]


def test_an_origin_whose_sentences_are_blank_has_no_file(tmp_path):
    path = captioned(tmp_path / "c", [["a river", " \n", ""]] * 24, [["human", "mine", "b2c"]] * 24)
    assert module([path]).sentences.files == [{"origin": "human", **OF_TILES}]


def test_equal_sentences_are_one_row_and_one_key_in_all_corpora(tmp_path):
    same = [["a river", " a \n river", "", "   ", None]] * 12 + [["a road"]] * 12
    paths = [captioned(tmp_path / name, same, seed=seed) for seed, name in enumerate("ab")]
    made, keys = module(paths), set()
    assert made.sentences.texts.to_pylist() == ["a river", "a road"]
    for batch in batches(made, 8):
        text = batch["text"]
        assert torch.equal(text["key"][text["of"]], (batch["id"] >= 112).long())
        keys |= set(text["key"].tolist())
        assert len(set(text["key"][text["key"] >= 0].tolist())) == (text["key"] >= 0).sum()
    assert keys <= {-1, 0, 1}


@pytest.mark.parametrize("batch", [1, 5, 8, 18])
def test_shapes_are_as_few_as_promised_and_surplus_rows_are_the_empty_sentence(corpus, batch):
    made, step = module(corpus, batch=batch), -(-batch // 8)
    shapes = set()
    for one in batches(made, 12):
        text = one["text"]
        used = len(set(text["of"].tolist()) - {-1})
        rows = len(text["key"])
        assert rows == max(step, -(-used // step) * step) and text["tokens"].shape == (rows, 8)
        assert all(values.dtype == torch.int64 for values in text.values()) and text["of"].shape == (batch,)
        assert (text["key"][:used] >= 0).all() and (text["key"][used:] == -1).all()
        assert (text["tokens"][used:] == torch.tensor([1, 2] + [0] * 6)).all()
        assert (text["of"] <= torch.arange(batch)).all()  # so a batch may be cut short
        shapes.add(rows)
    assert len(shapes) <= 8


@pytest.mark.parametrize("causal", [True, False])
def test_where_every_shape_has_its_price_they_are_few(tmp_path, causal):
    path = captioned(tmp_path / "c", [[f"tile {row}", "w " * 7] if row % 3 else None for row in range(24)])
    tokenizer, shapes = Words(), {False: set(), True: set()}
    tokenizer.causal = causal
    made = module(path, tokenizer, batch=16)
    for few in (False, True):
        made.provide(TEXT, tokenizer=tokenizer, few_shapes=few)
        for batch in batches(made, 30):
            text = batch["text"]
            shapes[few].add(tuple(text["tokens"].shape))
            for tile, row in zip(batch["id"].tolist(), text["of"].tolist(), strict=True):
                said = tokenizer.read(text["tokens"][row]) if row >= 0 else None
                assert said in ((f"tile {tile - 100}", "w w w w w w w") if (tile - 100) % 3 else (None,))
    assert shapes[True] <= {(rows, 16 if causal else 20) for rows in (2, 4, 8, 16)}
    assert len(shapes[True]) < len(shapes[False])


@pytest.mark.parametrize(
    ("words", "causal", "blank", "width"),
    [(5, True, 0, 8), (6, True, 0, 8), (7, True, 0, 16), (6, True, 2, 8), (7, True, 2, 16), (1, False, 0, 20)],
)
def test_tokens_reach_as_far_as_the_longest_sentence_of_the_batch_or_as_the_tower(
    tmp_path, words, causal, blank, width
):
    path = captioned(tmp_path / "c", [["short"]] * 12 + [[" ".join("w" * words)]] * 12)
    tokenizer = Words()
    tokenizer.causal, tokenizer.blank = causal, blank
    widths = set()
    for batch in batches(module(path, tokenizer, batch=2), 12):
        text, read = batch["text"], [tokenizer.read(row) for row in batch["text"]["tokens"]]
        longest = max(len(sentence.split()) for sentence in read) + 2
        assert longest == 3 or longest == words + 2
        assert (text["tokens"] == 2).any(1).all()  # the end is there, whatever fills the rest
        widths.add((longest > 3, text["tokens"].shape[1]))
    assert widths == {(words > 1, width), (False, 8 if causal else 20)}


def test_a_tower_says_of_what_is_left_what_it_says_of_all(tmp_path):
    tower = TEXT_TOWER.build()
    path = captioned(tmp_path / "c", [["a road", "many planes"]] * 24)
    made = module(path, tower)
    text = next(batches(made, 1))["text"]
    said = [made.sentences.texts[key].as_py() if key >= 0 else "" for key in text["key"].tolist()]
    assert text["tokens"].shape[1] == 8 < tower.context_length
    with torch.no_grad():
        torch.testing.assert_close(tower(text["tokens"]), tower(tower.tokenize(said)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("blank", [0, 2])
def test_what_is_cut_is_said_and_what_just_fits_is_not(tmp_path, blank):
    fits = " ".join("w" for _ in range(18))
    huge, other = "z" * 40 + " word" * 2000, "Ölfelder 油 🛢️ naïve"
    path = captioned(tmp_path / "c", [[fits], [f"{fits} more"], [huge], [other]])
    tokenizer = Words()
    tokenizer.blank = blank  # 2, as the end
    made = module(path, tokenizer)
    said = made.sentences.fill(tmp_path / "tokens")
    assert said.startswith("sentences take up to 20 tokens; 2 of 4 are longer than the 20 that the text tower sees")
    assert f"'{f'{fits} more'[:60]}...', '{huge[:60]}...'" in said
    assert other in tokenizer.seen and made.sentences.fill(tmp_path / "tokens") == said
    assert {batch["text"]["tokens"].shape[1] for batch in batches(made, 12)} == {8, 20}


def test_a_corpus_without_sentences_goes_along(tmp_path, corpus):
    none = str(write_corpus(tmp_path / "none", sensor=get_sensor("sentinel2", ["B02", "B03"])))
    made = module([corpus, none])
    assert f"'{none}': 0 of 18 tiles have sentences" in made.said
    seen = set()
    for batch in batches(made, 12):
        seen.add(batch["sensor"])
        if batch["sensor"] == "sentinel2":
            assert (batch["text"]["of"] == -1).all() and batch["text"]["key"].tolist() == [-1]
    assert seen == {"rgb", "sentinel2"}


def test_origins_are_chosen_by_name(tmp_path):
    captions = [["by hand", "from boxes", "from a map, above"], ["older"], None] * 8
    origins = [["human", "b2c", "vector-placed"], None, None] * 8
    path = captioned(tmp_path / "c", captions, origins)

    def texts(**options):
        return sorted(module(path, **options).sentences.texts.to_pylist())

    assert texts() == ["by hand", "from boxes", "older"]  # flips are usual
    assert texts(flip="none") == ["by hand", "from a map, above", "from boxes", "older"]
    assert texts(flip="none", turn=True) == texts(flip="horizontal") == texts()
    assert texts(captions=["human"]) == ["by hand", "older"]
    assert texts(captions=["b2c", "vector-placed"], flip="none") == ["from a map, above", "from boxes"]
    said = module(path).said
    assert f"'{path}': 12 of 18 tiles have sentences" in said
    assert "3 different sentences are learned from; by origin there are 6 b2c, 12 human, 6 vector-placed" in said
    assert any("sentences of vector-placed say where" in one and "--data.flip none" in one for one in said)
    assert not any("placed say" in one for one in module(path, flip="none").said)
    with pytest.raises(ConfigError, match=r"origin \['m2b'\]; there are \['b2c', 'human', 'vector-placed'\]"):
        module(path, captions=["human", "m2b"])
    with pytest.raises(CorpusError, match=r"sentences of vector-placed say .* --data\.flip none"):
        module(path, captions=["vector-placed"])


def test_a_run_without_any_sentence_is_refused(tmp_path, corpus):
    paths = [captioned(tmp_path / "a", [["", " "], []]), str(write_corpus(tmp_path / "b", seed=1))]
    with pytest.raises(CorpusError, match=r"no tile of '.*a', '.*b' has a sentence.*geomim corpus caption"):
        module(paths)
    with pytest.raises(CorpusError, match="geomim corpus caption"):
        module(paths[1], captions=["human"])
    with pytest.raises(ConfigError, match=r"data\.captions is for recipes with sentences"):
        TileDataModule(corpus, image_size=16, captions=["human"]).provide(frozenset())


def test_tokens_are_made_once_a_sentence_and_kept(tmp_path, corpus):
    folder = tmp_path / "tokens"

    def fill(path=corpus, identity="words"):
        tokenizer = Words()
        tokenizer.identity = identity
        sentences = Sentences([TileSet(Corpus.open(path), split="train")], tokenizer)
        sentences.fill(folder)
        sentences.attach(folder)
        return [one for one in tokenizer.seen if one]

    first = fill()
    assert len(first) == len(set(first)) == sum(map(len, SOME[:18]))
    assert fill() == []
    assert fill(identity="others") == first
    assert len(fill(captioned(tmp_path / "c", [["a new one"], *SOME[1:]]))) == len(first) + 1
    assert sorted(one.suffix for one in folder.iterdir()) == [".i32"] * 3 + [".json"] * 3
    for one in folder.glob("*.json"):
        one.unlink()
    assert fill() == first  # what was stopped half-way is not taken
    with pytest.raises(ConfigError, match="that all machines share"):
        module(corpus).sentences.attach(tmp_path / "elsewhere")


def test_augmentation_carries_sentences(corpus):
    made = module(corpus)
    raw = next(iter(made.train_dataloader()))
    sent = made.transfer_batch_to_device(raw, torch.device("cpu"), 0)
    ready = made.on_after_batch_transfer(sent, 0)
    for name in ("tokens", "key", "of"):
        assert torch.equal(ready["text"][name], raw["text"][name])


def test_watched_tiles_say_their_first_sentence_one_row_a_tile(corpus):
    tokenizer = Words()
    made = module(corpus, tokenizer)
    watched = made.pictures(8)
    said = [(SOME[tile - 100 :] or [None])[0] for tile in watched["id"].tolist()]
    for row, sentences in enumerate(said):
        of = int(watched["text"]["of"][row])
        assert of == (row if sentences else -1)
        assert tokenizer.read(watched["text"]["tokens"][row]) == (sentences or [""])[0]
    assert any(said) and not all(said)


def test_a_picture_to_watch_has_the_first_sentence_that_training_takes(tmp_path):
    texts, origins = [[" ", "human", "left", "box"]] * 24, [["human", "human", "b2c-placed", "b2c"]] * 24
    path = captioned(tmp_path / "c", texts, origins)
    older = captioned(tmp_path / "older", texts, [None] * 24, seed=1)
    for given, options, wanted in [
        (path, {}, "human"),
        (path, {"captions": ["b2c", "b2c-placed"]}, "box"),
        (path, {"captions": ["b2c", "b2c-placed"], "flip": "none"}, "left"),
        (older, {"captions": ["human"]}, "human"),
    ]:
        tokenizer = Words()
        text = module(given, tokenizer, **options).pictures(8)["text"]
        assert {tokenizer.read(row) for row in text["tokens"]} == {wanted} and (text["of"] >= 0).all()


def test_of_two_dates_the_sentence_is_that_of_the_image(tmp_path):
    path = captioned(tmp_path / "c", [[f"tile {row}"] for row in range(24)])
    file = tmp_path / "c" / "catalogue.parquet"
    table = pq.read_table(file)
    cluster = pa.array([row // 3 if row < 15 else None for row in range(24)], pa.int64())
    pq.write_table(table.drop_columns("cluster").append_column("cluster", cluster), file)
    tokenizer = Words()
    made = TileDataModule(path, batch_size=5, image_size=16, workers=0, pairs="cluster")
    made.provide(frozenset({"date", "text"}), tokenizer=tokenizer)
    for batch in batches(made, 9):
        said = [tokenizer.read(batch["text"]["tokens"][row]) for row in batch["text"]["of"]]
        assert said == [f"tile {tile - 100}" for tile in batch["id"].tolist()]


def test_tiles_that_are_left_out_by_pruning_change_no_sentence(corpus):
    made = module(corpus)
    assert "all losses be forgotten" in made.prune(0.5)[0]
    made.pruning.losses = torch.arange(18.0)
    stream = made.pruning.begin(1, 10, 6)[0]
    loader = made.train_dataloader()
    loader.dataset.stream = stream
    batch = loader.dataset.__getitems__(range(6, 12))
    for tile, row in zip(batch["id"].tolist(), batch["text"]["of"].tolist(), strict=True):
        own = [made.sentences.texts.index(pa.scalar(one, pa.large_string())).as_py() for one in SOME[tile - 100]]
        assert (batch["text"]["key"][row].item() in own) if row >= 0 else not own
