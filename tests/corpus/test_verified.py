"""What `verify` calls right it has looked at; what it could not look at it says."""

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from parts_corpus import textures, write_parts

from geomim.corpus.changes import decide
from geomim.corpus.store import Corpus
from geomim.corpus.verify import verify
from geomim.errors import CorpusError


@pytest.fixture
def corpus(tmp_path):
    return write_parts(tmp_path / "corpus", textures(6), licence=["CC-BY-4.0"] * 6, gsd=[None, *[10.0] * 5])


def said_of(corpus, capsys, **asked):
    capsys.readouterr()
    verify(str(corpus), **asked)
    return capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    ("name", "value"), [("licence", "CC0-1.0"), ("gsd", 1.0), ("geometry", b"\0"), ("split", "train"), ("mine", "1")]
)
def test_every_column_of_the_catalogue_is_compared(corpus, name, value, capsys):
    table = pq.read_table(file := corpus / "catalogue.parquet")
    values = pa.array([value] * len(table))
    if name in table.column_names:
        table = table.set_column(table.column_names.index(name), table.schema.field(name), values)
    else:
        table = table.append_column(name, values)  # one of the user's own, as `pairs` takes it
    pq.write_table(table, file)
    if name in ("split", "mine"):
        assert said_of(corpus, capsys) == f"'{corpus}' is what its lock says: 6 tiles"
    else:
        with pytest.raises(CorpusError, match=rf"'{name}' of tiles 0 to 5 in .* was changed \(columns: 1\)"):
            verify(str(corpus))


def test_what_the_corpus_says_of_itself_is_compared(corpus, capsys):
    said = json.loads((corpus / "corpus.json").read_text())
    for name, value in {"statistics": said["statistics"] | {"mean": [0, 0, 0]}, "classes": ["a"]}.items():
        (corpus / "corpus.json").write_text(json.dumps(said | {name: value}))
        with pytest.raises(CorpusError, match=r"what '.*corpus\.json' says was changed \(facts: 1\)"):
            verify(str(corpus))
    (corpus / "corpus.json").write_text(json.dumps(said, sort_keys=True))
    assert said_of(corpus, capsys).endswith(" 6 tiles")


def test_a_corpus_of_an_earlier_release_says_what_has_no_hash(corpus, capsys):
    said = json.loads((corpus / "corpus.json").read_text())
    del said["facts"], said["tables"]
    (corpus / "corpus.json").write_text(json.dumps(said))
    words = (
        "6 tiles; geomim .* left no hash of what is said in corpus.json and the columns of the catalogue that decide"
    )
    assert re.search(words, said_of(corpus, capsys))


def test_sources_without_a_hash_are_not_counted_as_sound(corpus, tmp_path, capsys):
    words = "6 tiles, 0 of 6 sources (the lock has no hash of 6 that were not on this machine)"
    assert said_of(corpus, capsys, sources=True).endswith(words)
    file = tmp_path / "labels.csv"
    file.write_text(
        "image,label\n" + "".join(f"{uri},a\n" for uri in Corpus.open(corpus).table()["source"].to_pylist())
    )
    decide(str(corpus), labels=str(file))
    assert f"0 of 7 sources (the lock has no hash of 6 that were not on this machine, '{file}')" in said_of(
        corpus, capsys, sources=True
    )
    file.unlink()
    with pytest.raises(CorpusError, match=r"table '.*labels\.csv' vanished \(sources: 1\)"):
        verify(str(corpus), sources=True)
