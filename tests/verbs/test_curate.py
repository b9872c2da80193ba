import json
import shutil

import numpy as np
import pytest
from embedded_corpus import vectors

from geomim.corpus.pipeline import conclude as conclusion
from geomim.corpus.store import Corpus
from geomim.errors import CorpusError, InputError
from geomim.verbs import curate
from geomim.verbs.curate import balance, semantic


def catalogue(corpus):
    return Corpus.open(corpus).table(["id", "source", "kept", "reason", "split", "cluster"]).to_pydict()


def test_tiles_that_the_encoder_cannot_tell_apart_are_dropped_and_taken_back(corpus):
    before = (corpus / "catalogue.parquet").read_bytes()
    _, found = vectors(corpus)
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    cosine = unit @ unit.T
    threshold = float(np.sort(cosine[np.arange(4), np.arange(20, 24)])[0]) - 1e-4
    semantic(str(corpus), threshold, clusters=3, probes=3)
    table = catalogue(corpus)
    dropped = [number for number, kept in zip(table["id"], table["kept"], strict=True) if not kept]
    assert set(dropped) <= set(range(4)) | set(range(20, 24)) and len(dropped) == 4
    assert all("embedding near that of" in table["reason"][number] for number in dropped)
    semantic(str(corpus), 1.1)
    assert (corpus / "catalogue.parquet").read_bytes() == before


def test_a_balanced_choice_is_kept_and_taken_back(corpus):
    before = (corpus / "catalogue.parquet").read_bytes()
    table = catalogue(corpus)
    train = [number for number, split in zip(table["id"], table["split"], strict=True) if split == "train"]
    for keep, count in ((8, 8), (0.5, len(train) // 2), (len(train), len(train))):  # chosen anew of all, each time
        balance(str(corpus), keep)
        table = catalogue(corpus)
        kept = [number for number, is_kept in zip(table["id"], table["kept"], strict=True) if is_kept]
        assert len(set(kept) & set(train)) == count and len(set(kept) - set(train)) == 24 - len(train)
    balance(str(corpus), 8)
    assert sum(reason == "balance: not among the chosen" for reason in catalogue(corpus)["reason"]) == len(train) - 8
    balance(str(corpus), 0)
    assert (corpus / "catalogue.parquet").read_bytes() == before


def test_a_choice_that_keeps_nothing_changes_nothing(corpus, monkeypatch):
    balance(str(corpus), 8)
    files = [corpus / "corpus.json", *sorted((corpus / "catalogue").glob("*.parquet"))]
    before = [file.read_bytes() for file in files]
    monkeypatch.setattr(curate, "choose", lambda subset, *_: np.zeros(len(subset), bool))
    monkeypatch.setattr(conclusion, "_check_some_kept", refused)
    for change in (
        lambda: balance(str(corpus), 4),
        lambda: balance(str(corpus), 0),
        lambda: semantic(str(corpus), 0.5),
    ):
        with pytest.raises(InputError, match="no tile is kept"):
            change()
        assert [file.read_bytes() for file in files] == before


def refused(*_):
    raise InputError("no tile is kept")


def test_a_corpus_at_an_address_is_not_changed():
    for change in (lambda: balance("s3://bucket/corpus", 4), lambda: semantic("s3://bucket/corpus", 0.5)):
        with pytest.raises(InputError, match=r"'s3://bucket/corpus' lies in a remote store.*copy it here"):
            change()


def test_what_is_missing_is_named(corpus, encoder):
    with pytest.raises(CorpusError, match=r"no embedding 'b'.*it has a"):
        semantic(str(corpus), 0.9, "b")
    with pytest.raises(InputError, match="--keep 100 asks for 100 of"):
        balance(str(corpus), 100)
    with pytest.raises(InputError, match="cosine"):
        semantic(str(corpus), -1.0)
    card = (corpus / "embeddings" / "a.json").read_text()
    (corpus / "embeddings" / "a.json").write_text(json.dumps(json.loads(card) | {"tiles": "others"}))
    with pytest.raises(CorpusError, match="embed again"):
        balance(str(corpus), 3)
    shutil.rmtree(corpus / "embeddings")
    with pytest.raises(CorpusError, match="run geomim corpus embed first"):
        balance(str(corpus), 3)
