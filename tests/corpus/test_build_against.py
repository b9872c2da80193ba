"""A build that keeps clear of a benchmark, and the trace it leaves."""

import json
import shutil

import numpy as np
import pytest
import rasterio

from geomim.corpus import exclusion
from geomim.corpus.build import build
from geomim.corpus.exclusion import exclude
from geomim.corpus.lock import read_lock
from geomim.corpus.pipeline import conclude
from geomim.corpus.store import Corpus
from geomim.corpus.verify import rebuild
from geomim.errors import CorpusError, InputError


def write(file, pixels):
    file.parent.mkdir(exist_ok=True)
    count, height, width = pixels.shape
    with rasterio.open(file, "w", driver="PNG", count=count, height=height, width=width, dtype="uint8") as raster:
        raster.write(pixels)


@pytest.fixture
def folders(tmp_path):
    """Eight textured pictures to train on, and a benchmark that holds the second, turned, and one of its own."""
    rng = np.random.default_rng(5)
    pictures = [np.kron(rng.integers(0, 256, (3, 16, 16), dtype=np.uint8), np.ones((6, 6), np.uint8)) for _ in range(9)]
    for number, pixels in enumerate(pictures[:8]):
        write(tmp_path / "train" / f"{number}.png", pixels)
    write(tmp_path / "bench" / "a.png", np.rot90(pictures[1], axes=(1, 2)))
    write(tmp_path / "bench" / "b.png", pictures[8])
    return tmp_path


def test_a_corpus_keeps_clear_of_a_benchmark_and_says_so(folders, monkeypatch):
    with monkeypatch.context() as patch:  # the build's own workers do it, which may be a cluster
        patch.setattr(exclusion, "Workers", None)
        patch.setattr(conclude, "Workers", None)
        out = build([str(folders / "train")], str(folders / "c"), tile=96, against=[str(folders / "bench")], workers=1)
    corpus = Corpus.open(out)
    rows = {row["source"][-5]: row for row in corpus.table().to_pylist()}
    assert [number for number, row in rows.items() if not row["kept"]] == ["1"]
    assert rows["1"]["reason"].startswith("touches bench")
    assert json.loads((out / "audit" / "audit.json").read_text())
    assert corpus.meta["audit"] in corpus.contract.corpora[0]
    assert corpus.meta["lock"] in corpus.contract.corpora[0]
    assert read_lock(out)[0]["changes"] == []  # the recipe says it already
    again = rebuild(str(out), str(folders / "again"), workers=1)
    assert (again / "catalogue.parquet").read_bytes() == (out / "catalogue.parquet").read_bytes()
    exclude(str(out), [str(folders / "bench")], radius=0, crops="off", workers=1)  # in another way than the recipe's
    (change,) = read_lock(out)[0]["changes"]
    assert change["verb"] == "exclude" and change["asked"]["against"] == [str(folders / "bench")]


@pytest.mark.parametrize("way", ["mended", "accepted"])
def test_a_benchmark_that_is_partly_unreadable_is_an_error_but_loses_nothing(folders, way):
    (folders / "bench" / "c.png").write_text("no picture")
    arguments = {"tile": 96, "against": [str(folders / "bench")], "workers": 1}
    with pytest.raises(InputError, match=r"c\.png.*--skip-unreadable"):
        build([str(folders / "train")], str(folders / "c"), **arguments)
    with pytest.raises(CorpusError, match="unfinished corpus: run its `geomim corpus build` again"):
        Corpus.open(folders / "c")
    if way == "mended":
        (folders / "bench" / "c.png").unlink()
    build([str(folders / "train")], str(folders / "c"), skip_unreadable=way == "accepted", **arguments)
    assert Corpus.open(folders / "c").table(["kept"])["kept"].to_pylist().count(False) == 1
    assert not (folders / "c" / "work").exists()
    shutil.rmtree(folders / "bench")
    with pytest.raises(InputError, match="bench"):
        build([str(folders / "train")], str(folders / "d"), **arguments)
