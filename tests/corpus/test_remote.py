import errno
import json
import os
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
import xarray
from parts_corpus import textures, write_parts
from tiny_corpus import write_corpus

from geomim.corpus.changes import decide
from geomim.corpus.publish import publish
from geomim.corpus.remote import Url, aside, place
from geomim.corpus.store import Corpus
from geomim.errors import CorpusError, InputError, MissingExtraError


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "corpus", count=80, nodata=True)


@pytest.fixture
def url(tmp_path):
    yield f"memory://{tmp_path.name}/corpus"
    fsspec.filesystem("memory").store.clear()


def sent(monkeypatch):
    """Names of the files that are sent from now on."""
    names = []
    files = type(fsspec.filesystem("memory"))
    put = files.put_file

    def watched(self, lpath, rpath, *args, **options):
        names.append(Path(lpath).name)
        return put(self, lpath, rpath, *args, **options)

    monkeypatch.setattr(files, "put_file", watched)
    return names


def test_names_are_files_here_or_addresses(tmp_path):
    assert place("a/b") == Path("a/b") and place(Path("a")) == Path("a") and place("file:///a/b") == Path("/a/b")
    url = place("s3://bucket/corpus/")
    assert isinstance(url, Url) and place(url) is url
    assert str(url / "corpus.json") == "s3://bucket/corpus/corpus.json" and url.name == "corpus"
    assert str(url.joinpath("a", "b")) == "s3://bucket/corpus/a/b"


def test_a_published_corpus_reads_like_the_one_here(corpus, url):
    (corpus / "work").mkdir()
    with pytest.raises(CorpusError, match="unfinished corpus"):
        publish(str(corpus), url)
    (corpus / "work").rename(corpus / "work.done")  # all that is left to do is to remove it
    (corpus / "work.done" / "scan.json").write_text("{}")
    publish(str(corpus), url)
    here, there = Corpus.open(corpus), Corpus.open(url)
    assert there.table().equals(here.table()) and there.contract == here.contract
    assert there.table(["id", "cloud_fraction"])["cloud_fraction"].null_count == 80
    one, two = here.tiles(), there.tiles()
    rows = np.random.default_rng(0).permutation(80)
    np.testing.assert_array_equal(one.read(rows), two.read(rows))
    np.testing.assert_array_equal(one.valid(rows), two.valid(rows))
    assert two.mask([0]) is None
    assert not Url(f"{url}/work.done").exists()
    image = xarray.open_zarr(f"{url}/tiles.zarr", group="24")["image"]
    np.testing.assert_array_equal(image.values, here.array("image", 24).read(np.arange(80)))


def test_publishing_goes_on_where_it_was(corpus, url, monkeypatch):
    files = fsspec.filesystem("memory")
    names = sent(monkeypatch)

    def fail(self, lpath, rpath, **_):
        raise OSError("connection lost")

    with monkeypatch.context() as patch:
        patch.setattr(type(files), "put_file", fail)
        with pytest.raises(CorpusError, match=r"cannot be reached \(OSError: connection lost\)"):
            publish(str(corpus), url)
    with pytest.raises(CorpusError, match="is no corpus"):
        Corpus.open(url)
    assert not names
    publish(str(corpus), url)
    assert names[-1] == "corpus.json" and len(names) == sum(file.is_file() for file in corpus.rglob("*"))
    names.clear()
    publish(str(corpus), url)
    assert names == ["corpus.json"]
    shard = next(name for name in files.find(url) if "/image/c/0" in name)
    raw = bytearray(files.cat_file(shard))
    raw[0] ^= 1
    files.pipe_file(shard, bytes(raw))
    names.clear()
    publish(str(corpus), url)
    assert names == ["0", "corpus.json"]


def test_what_an_older_state_left_there_goes(corpus, url):
    stale = corpus / "catalogue" / "split.parquet"
    stale.parent.mkdir()
    stale.write_bytes(b"drawn")
    publish(str(corpus), url)
    assert Url(f"{url}/catalogue/split.parquet").is_file()
    stale.unlink()
    publish(str(corpus), url)
    assert not Url(f"{url}/catalogue/split.parquet").is_file()


def test_another_corpus_is_not_written_over(corpus, url):
    publish(str(corpus), url)
    meta = json.loads((corpus / "corpus.json").read_text())
    (corpus / "corpus.json").write_text(json.dumps(meta | {"recipe": {"source": ["b"]}}))
    with pytest.raises(CorpusError, match="holds another corpus"):
        publish(str(corpus), url)
    (corpus / "corpus.json").write_text(json.dumps(meta | {"classes": []}))
    publish(str(corpus), url)
    assert Corpus.open(url).classes == []
    with pytest.raises(InputError, match="is no address of a remote store"):
        publish(str(corpus), str(corpus / "copy"))
    with pytest.raises(CorpusError, match="is no corpus"):
        publish(str(corpus / "report"), url)


def test_other_tiles_of_the_same_sources_are_another_corpus(tmp_path, url):
    sources = ["a.tif"] * 6
    one = write_parts(tmp_path / "one", textures(6), sources)
    publish(str(one), url)
    decide(str(one), quota=3)  # other decisions about the same tiles
    publish(str(one), url)
    others = [write_parts(tmp_path / "two", textures(6, seed=1), sources)]
    others += [write_parts(tmp_path / "three", textures(4), sources[:4])]
    for other in others:
        with pytest.raises(CorpusError, match="holds another corpus"):
            publish(str(other), url)
    assert len(Corpus.open(url).tiles().read(range(6))) == 6


def test_what_lies_on_another_disk_is_published_too(corpus, url, tmp_path):
    (corpus / "tiles.zarr").rename(tmp_path / "disk")
    (corpus / "tiles.zarr").symlink_to(tmp_path / "disk")
    publish(str(corpus), url)
    np.testing.assert_array_equal(Corpus.open(url).tiles().read([3]), Corpus.open(corpus).tiles().read([3]))


def test_a_corpus_without_its_pixels_is_not_published(corpus, url, tmp_path):
    shard = next(file for file in (corpus / "tiles.zarr").rglob("image/c/*/*/*/*") if file.is_file())
    shard.rename(tmp_path / "shard")
    shard.symlink_to(tmp_path / "gone")
    with pytest.raises(CorpusError, match="link that leads nowhere"):
        publish(str(corpus), url)
    (corpus / "tiles.zarr").rename(tmp_path / "disk")
    (corpus / "tiles.zarr").symlink_to(tmp_path / "not-mounted")
    with pytest.raises(CorpusError, match=r"tiles\.zarr' is a link that leads nowhere"):
        publish(str(corpus), url)
    (corpus / "tiles.zarr").unlink()
    with pytest.raises(CorpusError, match="lacks the pixels of its 24 px tiles"):
        publish(str(corpus), url)
    assert not Url(f"{url}/corpus.json").exists()


def test_what_does_not_answer_gets_a_sentence(monkeypatch):
    with pytest.raises(CorpusError, match="is no corpus"):
        Corpus.open("memory://nothing/there")
    with pytest.raises(InputError, match="nosuch"):
        Corpus.open("nosuch://bucket/corpus")
    monkeypatch.setitem(sys.modules, "adlfs", None)
    with pytest.raises(MissingExtraError, match=r"adl://bucket/corpus.*adlfs.*geomim\[corpus\]"):
        Corpus.open("adl://bucket/corpus")

    def refuse(*_, **__):
        raise PermissionError("403")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "isfile", refuse)
    with pytest.raises(CorpusError, match=r"cannot be reached \(PermissionError: 403\): check the address"):
        Corpus.open("memory://bucket/corpus")


@pytest.mark.parametrize("moment", ["write", "replace"])
def test_a_full_disk_leaves_the_former_file(tmp_path, monkeypatch, moment):
    file = tmp_path / "a"
    file.write_bytes(b"before")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if moment == "replace":
        monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CorpusError, match=r"a' cannot be written \(No space left on device\): make room"):
        with aside(file) as out:
            out.write(b"after")
            if moment == "write":
                full()
    assert file.read_bytes() == b"before" and not list(tmp_path.glob("*.part"))


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        with aside(tmp_path / "a"):
            open(tmp_path / "gone", "rb")
    assert not list(tmp_path.iterdir())
