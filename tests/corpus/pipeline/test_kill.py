"""A build that is killed at any moment goes on, ends with the same bytes, and opens only when all is decided."""

import hashlib
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import rasterio

from geomim.corpus import assemble, exclusion
from geomim.corpus import build as building
from geomim.corpus.build import build
from geomim.corpus.changes import decide
from geomim.corpus.exclusion import exclude
from geomim.corpus.store import Corpus
from geomim.corpus.verify import verify
from geomim.errors import CorpusError


def photographs(folder, count=5, size=96):
    """Textured pictures; the third repeats the first, turned, and the last two overlap."""
    folder.mkdir()
    rng = np.random.default_rng(3)
    wide = np.kron(rng.integers(0, 256, (3, 24, 36), dtype=np.uint8), np.ones((6, 6), np.uint8))
    images = [np.kron(rng.integers(0, 256, (3, 16, 16), dtype=np.uint8), np.ones((6, 6), np.uint8)) for _ in range(3)]
    images[2] = np.rot90(images[0], axes=(1, 2))
    images += [wide[:, :size, :size], wide[:, 30 : 30 + size, 30 : 30 + size]]
    for number, pixels in enumerate(images[:count]):
        file = folder / f"{number}.png"
        with rasterio.open(file, "w", driver="PNG", **shape_of(pixels)) as raster:
            raster.write(pixels)
    return folder


def shape_of(pixels):
    return dict(zip(("count", "height", "width"), pixels.shape, strict=True)) | {"dtype": "uint8"}


def digest(folder):
    """Hash of every file's name and bytes; the report is not part of it."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.relative_to(folder).parts[0] != "report"
    }


def make(source, out):
    build([str(source)], str(out), tile=96, workers=1, quota=1, against=[str(source.parent / "benchmark")])


def check_whole(out):
    """Whether a corpus opens; one that does holds nothing of the benchmark, and its files are of one state."""
    try:
        corpus = Corpus.open(out)
    except CorpusError as refused:
        assert "is no corpus" in str(refused) or "run its `geomim corpus build` again" in str(refused)
        return False
    held = corpus.table(where=pc.ends_with(pc.field("source"), "1.png"))
    assert held["kept"].to_pylist() == [False] and held["reason"][0].as_py().startswith("touches benchmark")
    verify(str(out))
    return True


def names_of_renames(monkeypatch, source, out):
    """Targets of all renames of a build that nothing disturbs, without digests and most numbers."""
    seen = []
    replace = os.replace

    def noted(one, two, **options):
        if str(out) in str(two):  # others are those of caches
            seen.append(re.sub(r"-[0-9a-f]{16}", "", str(Path(two).relative_to(out))))
        replace(one, two, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", noted)
        make(source, out)
    return seen


def killed(source, out, at, after, function=make):
    """Run a build or another `function` in a process that kills itself at its `at`-th rename; its exit signal."""
    child = os.fork()
    if child == 0:
        count, replace = 0, os.replace

        def fatal(one, two, **options):
            nonlocal count
            if str(out) not in str(two):
                return replace(one, two, **options)
            if count == at and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(one, two, **options)
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

        os.replace = fatal
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        function(source, out)
        os._exit(0)
    return -os.WTERMSIG(os.waitpid(child, 0)[1])


@pytest.fixture(scope="module", autouse=True)
def no_pages():
    """Reports and pictures, which are no part of what is decided, take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "write_report", lambda folder: None)
        patch.setattr("geomim.corpus.audit.figures", lambda *_: "")
        patch.setattr(exclusion, "write_report", lambda folder: None)
        patch.setattr(assemble, "write_report", lambda folder: None)
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill")
    with pytest.MonkeyPatch.context() as patch:
        photographs(folder / "photographs")
        (folder / "benchmark").mkdir()
        with rasterio.open(folder / "photographs" / "1.png") as raster:
            turned = np.rot90(raster.read(), axes=(1, 2))
        with rasterio.open(folder / "benchmark" / "held.png", "w", driver="PNG", **shape_of(turned)) as raster:
            raster.write(turned)
        renames = names_of_renames(patch, folder / "photographs", folder / "corpus")
    return folder, renames, digest(folder / "corpus")


def test_killed_at_the_first_rename_of_every_stage(undisturbed, tmp_path):
    folder, renames, expected = undisturbed
    stages = {
        name: at
        for at, name in reversed(list(enumerate(renames)))
        if not name.startswith(("report", "audit/benchmark.part"))
    }
    assert {"tiles.zarr", "catalogue", "work/near", "corpus.json", "work/tasks/000000"} <= stages.keys()
    for number, at in enumerate(sorted(stages.values())):
        out = tmp_path / str(number) / "corpus"  # pages tell the name
        assert killed(folder / "photographs", out, at, after=bool(number % 2)) == -signal.SIGKILL
        check_whole(out)
        make(folder / "photographs", out)
        assert digest(out) == expected, renames[at]


def test_killed_again_and_again(undisturbed, tmp_path):
    folder, _renames, expected = undisturbed
    out, rng = tmp_path / "corpus", np.random.default_rng(0)
    for _ in range(6):
        killed(folder / "photographs", out, int(rng.integers(2, 8)), bool(rng.integers(2)))
        assert not check_whole(out)
    make(folder / "photographs", out)
    assert digest(out) == expected


def change(source, out):
    """Exclude another benchmark, which is the third picture."""
    exclude(str(out), [f"more={source / '2.png'}"], workers=1)


def test_a_change_that_is_killed_opens_as_it_was_or_is_finished_by_the_command_it_is_told(undisturbed, tmp_path):
    folder, _renames, _expected = undisturbed
    seen = set()
    for at in range(30):
        out = shutil.copytree(folder / "corpus", tmp_path / str(at) / "corpus")
        signalled = killed(folder / "photographs", out, at, bool(at % 2), change)
        try:
            before = Corpus.open(out).table(["kept"])["kept"].to_pylist()
            verify(str(out))
            seen.add("whole")
        except CorpusError as refused:
            assert f"`geomim corpus decide {out}` finishes it" in str(refused)
            seen.add("refused")
            before = None
        decide(str(out))
        verify(str(out))
        assert check_whole(out)
        assert before is None or Corpus.open(out).table(["kept"])["kept"].to_pylist() == before
        if signalled == 0:
            break
    assert signalled == 0 and seen == {"whole", "refused"}
