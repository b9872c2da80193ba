"""A corpus that is built again is there when all is done again, and not before."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from geomim.corpus import changes as changing
from geomim.corpus import exclusion
from geomim.corpus.build import build
from geomim.corpus.changes import decide, split
from geomim.corpus.exclusion import exclude
from geomim.corpus.store import Corpus
from geomim.corpus.verify import rebuild
from geomim.errors import CorpusError


def picture(path, pixels):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Eight pictures, of which a benchmark holds one, excluded and split; given by a relative path."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for number in range(8):
        pixels = np.kron(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
        picture(tmp_path / "train" / f"{number}.png", pixels)
        if number == 1:
            picture(tmp_path / "bench" / "1.png", pixels)
    out = build(["train"], "c", tile=64, workers=1)
    exclude(str(out), ["bench"], radius=2, crops="off", workers=1)
    split(str(out), by="source", test_share=0.3)
    return decide(str(out), quota=3)


@pytest.mark.parametrize("verb", ["exclude", "split"])
def test_nothing_opens_before_all_is_done_again(corpus, tmp_path, monkeypatch, verb):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(exclusion if verb == "exclude" else changing, verb, stop)
        with pytest.raises(KeyboardInterrupt):
            rebuild(str(corpus), "again", workers=1)
    with pytest.raises(CorpusError):
        Corpus.open("again")
    again = rebuild(str(corpus), "again", workers=1)
    names = ["corpus.json", "corpus.lock", "catalogue.parquet", "report/index.html"]
    for name in (*names[:3], "audit/matches.parquet"):
        assert (again / name).read_bytes() == (corpus / name).read_bytes()
    assert "<title>Corpus again" in (again / names[3]).read_text() and sorted(os.listdir(tmp_path)) == [
        "again", "bench", "c", "train"
    ]  # fmt: skip


def test_what_differs_does_not_become_the_corpus_and_is_begun_anew(corpus, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(changing, "split", lambda *_, **__: None)
        with pytest.raises(CorpusError, match=r"differs from 'c' and does not become 'again'"):
            rebuild(str(corpus), "again", workers=1)
    assert not os.path.exists("again")
    assert rebuild(str(corpus), "again", workers=1).name == "again"


def test_a_rebuild_needs_a_free_place(corpus, tmp_path):
    with pytest.raises(CorpusError, match="holds something already"):
        rebuild(str(corpus), "c", workers=1)
    picture(tmp_path / "again.part" / "mine.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(CorpusError, match=r"again\.part' is needed for unfinished work"):
        rebuild(str(corpus), "again", workers=1)
    assert (tmp_path / "again.part" / "mine.png").exists()


def test_changes_that_a_lock_does_not_tell_are_refused_before_anything_is_built(corpus, tmp_path):
    first, *others = (corpus / "corpus.lock").read_text().splitlines()
    head = json.loads(first)
    head["changes"].insert(1, {"verb": "semantic", "asked": {"threshold": 0.9}})
    (tmp_path / "other.lock").write_text("\n".join([json.dumps(head), *others]) + "\n")
    with pytest.raises(CorpusError, match="cannot be rebuilt: semantic changed the corpus"):
        rebuild("other.lock", "again", workers=1)
    assert not {"again", "again.part"} & set(os.listdir(tmp_path))
