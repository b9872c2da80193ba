import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_corpus import write_corpus

from geomim.corpus.build import build
from geomim.corpus.store import Corpus
from geomim.data.labelled import LabelledData, open_labelled
from geomim.errors import CorpusError
from geomim.verbs.evaluate import evaluate
from geomim.verbs.trained_on import seen_in_training


def draw(path: Path, seed: int, side: int = 32) -> None:
    """A picture of noise with as much structure as a tile must have to be kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8)).save(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Corpus, LabelledData, dict]:
    """A corpus, pictures of which 3 of 8 test ones and all train ones are in it, and weights that name it.

    Of the three one is a JPEG, which libraries decode differently, and one is larger than a tile.
    """
    root = tmp_path_factory.mktemp("trained")
    names = {9: "9.jpg"}
    sides = {11: 64}
    for number in range(12):
        draw(root / "scenes" / names.get(number, f"{number}.png"), number, sides.get(number, 32))
    corpus = Corpus.open(build([str(root / "scenes")], str(root / "corpus"), tile=32))
    assert corpus.table(["kept", "split"]).to_pylist() == [{"kept": True, "split": "train"}] * 15
    for number in range(8):
        kind = ("sea", "land")[number % 2]
        draw(root / "data" / "train" / kind / f"{number}.png", number)
        test = root / "data" / "test" / kind
        draw(test / names.get(number + 9, f"{number}.png"), number + 9, sides.get(number + 9, 32))
    details = {
        "corpus": [str(corpus.path)],
        "settings": {"data.corpus": [f"15 tiles of lock {corpus.meta['lock']}"], "data.split": "train"},
    }
    return corpus, open_labelled(root / "data"), details


def test_pictures_among_the_tiles_are_counted(trained):
    _, images, details = trained
    (sentence,) = seen_in_training(details, images, "data", [])
    assert sentence == "3 of the 8 test images are among the tiles of corpus that the encoder trained on"
    (other,) = seen_in_training(details, replace(images, test=images.train), "data", [])
    assert other.startswith("8 of the 8")


def test_none_is_said_with_how_it_was_looked_for(trained, tmp_path):
    details = trained[2]
    for number in range(4):
        draw(tmp_path / "data" / "train" / "ab"[number % 2] / f"{number}.png", number)
        draw(tmp_path / "data" / "test" / "ab"[number % 2] / f"{number}.png", 100 + number)
    (sentence,) = seen_in_training(details, open_labelled(tmp_path / "data"), "data", [])
    assert (
        sentence.startswith("none of the 4 test images is among the 15 tiles of corpus") and "equal pixels" in sentence
    )
    for number in range(4):
        draw(tmp_path / "data" / "test" / "ab"[number % 2] / f"{number}.png", 100 + number, side=64)
        draw(tmp_path / "data" / "train" / "ab"[number % 2] / f"{number}.png", number, side=64)
    (sentence,) = seen_in_training(details, open_labelled(tmp_path / "data"), "data", [])
    assert sentence.startswith("none of the 4")  # tiles would have been cut of them
    for number in range(4):
        draw(tmp_path / "data" / "test" / "ab"[number % 2] / f"{number}.png", 100 + number, side=24)
        draw(tmp_path / "data" / "train" / "ab"[number % 2] / f"{number}.png", number, side=24)
    (sentence,) = seen_in_training(details, open_labelled(tmp_path / "data"), "data", [])
    assert "cannot be told" in sentence and "24 px and 3 bands against 32 px and 3" in sentence


def test_what_cannot_be_told_is_said_so(trained, tmp_path):
    corpus, images, details = trained
    (sentence,) = seen_in_training({}, images, "data", [])
    assert "cannot be told: its weights name no corpus" in sentence and "--trained_on" in sentence
    other = details["settings"] | {"data.corpus": ["12 tiles of lock 0123"]}
    (sentence,) = seen_in_training(details | {"settings": other}, images, "data", [])
    assert f"'{corpus.path}' is not the corpus of lock 0123 any more" in sentence
    (sentence,) = seen_in_training({}, images, "data", [Corpus.open(write_corpus(tmp_path / "old"))])
    assert "cannot be told" in sentence and "tiles of old are of other shapes" in sentence


def test_a_moved_corpus_is_known_by_its_lock_and_the_users_word_counts_first(trained, tmp_path):
    corpus, images, details = trained
    shutil.copytree(corpus.path, tmp_path / "moved")
    gone = details | {"corpus": ["somewhere/else"]}
    assert "cannot be told" in seen_in_training(gone, images, "data", [])[0]
    assert seen_in_training(gone, images, str(tmp_path / "moved"), [])[0].startswith("3 of the 8")
    assert seen_in_training({}, images, "data", [Corpus.open(tmp_path / "moved")])[0].startswith("3 of the 8")


def test_a_named_corpus_that_is_none_is_refused_before_the_work(tmp_path):
    with pytest.raises(CorpusError, match="no corpus"):
        evaluate("missing.ckpt", "missing", trained_on=[str(tmp_path)])
