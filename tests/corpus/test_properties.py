"""What holds for every corpus, on small random ones: scenes, copies, dates, gaps in the ids, benchmarks, kills."""

import os
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from rasterio.transform import from_origin

from geomim.corpus import assemble, audit, exclusion
from geomim.corpus import build as building
from geomim.corpus.build import build
from geomim.corpus.combine import filter, merge
from geomim.corpus.duplicates.fingerprint import orient
from geomim.corpus.exclusion import exclude
from geomim.corpus.report.facts import kind_of
from geomim.corpus.store import Corpus
from geomim.corpus.verify import verify
from geomim.errors import CorpusError

TILE = 64
SOME = "(row + 3 * col) % 320 <> 64"


def texture(rng, height, width):
    coarse = rng.integers(0, 256, (3, height // 4, width // 4), dtype=np.uint8)
    return np.kron(coarse, np.ones((4, 4), np.uint8))


def save(file, pixels, place=None):
    """A picture, or a raster of a place (column and row of a grid of 4 m)."""
    options = {"driver": "PNG"} if place is None else {"driver": "GTiff", "crs": "EPSG:32633", "compress": "deflate"}
    if place is not None:
        options |= {"transform": from_origin(500000 + 4 * place[1], 5600000 - 4 * place[0], 4, 4), "blockysize": 32}
    count, height, width = pixels.shape
    with rasterio.open(file, "w", count=count, height=height, width=width, dtype="uint8", **options) as raster:
        raster.write(pixels)
    return str(file)


def draw_scenes(folder, rng):
    """Files of one folder: textures, their copies as they are, turned or moved, frames that overlap, flat ones, one
    that cannot be read to its end; and the held-out picture of a benchmark."""
    folder.mkdir()
    names = iter(f"{number:02d}" for number in rng.permutation(50))
    ground = texture(rng, 256, 256)
    known = [texture(rng, 128, 192) for _ in range(2)]
    files = [save(folder / f"{next(names)}.png", pixels) for pixels in known]
    for kind in rng.permutation([0, 1, 2, 3, 4, 4, *rng.integers(0, 5, 2)]).tolist():
        pixels = known[rng.integers(2)]
        if kind == 1:
            pixels = orient(pixels, int(rng.integers(1, 8)))
        elif kind == 2:
            left = 36 + 4 * int(rng.integers(3))
            pixels = pixels[:, :, left : left + 128]
        elif kind == 3:
            pixels = rng.normal(100, 0.7, (3, 64, 128)).astype(np.uint8)
        if kind < 4:
            files.append(save(folder / f"{next(names)}.png", pixels))
            continue
        row, col = (4 * int(one) for one in rng.integers(0, 30, 2))
        file = folder / f"{next(names)}_2020060{rng.integers(1, 3)}.tif"
        files.append(save(file, ground[:, row : row + 128, col : col + 128], (row, col)))
    for number in range(2):  # one for either corpus
        broken = Path(save(folder / f"{next(names)}_20200601.tif", texture(rng, 256, 64), (500 + 500 * number, 500)))
        raw = bytearray(broken.read_bytes())
        start = len(raw) * 2 // 3
        raw[start : start + 300] = bytes(300)
        broken.write_bytes(raw)
        files.insert(0, str(broken))
    (folder.parent / "benchmark").mkdir()
    save(folder.parent / "benchmark" / "held.png", orient(known[0][:, :TILE, :TILE], int(rng.integers(8))))
    return files, files[2]


def make(files, out, held_out=(), stride=TILE):
    """Build a corpus, of which some files are a published test split."""
    rows = "".join(f"{file},{'test' if file in held_out else 'train'}\n" for file in files)
    table = out.parent / f"{out.name}.csv"
    table.write_text("image,split\n" + rows)
    against = [str(out.parent / "benchmark")]
    return build(files, str(out), tile=TILE, stride=stride, quota=1, split=str(table), against=against, workers=1)


def killed(function, out, at):
    """Run something in a process that kills itself before or behind a rename below `out`."""
    child = os.fork()
    if child == 0:
        count, replace = 0, os.replace

        def fatal(one, two, **options):
            nonlocal count
            if not str(two).startswith(str(out)):
                return replace(one, two, **options)
            if count == at and at % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(one, two, **options)
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

        os.replace = fatal
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.dup2(2, 1)
        function()
        os._exit(0)
    os.waitpid(child, 0)


def check_clear(out, held):
    """Whether a corpus opens; one that does keeps nothing of the benchmark, and its files are of one state."""
    try:
        rows = Corpus.open(out).table().to_pylist()
    except CorpusError as refused:
        assert "unfinished corpus" in str(refused) or "is no corpus" in str(refused)
        return False
    touched = [row for row in rows if row["source"] == held and (row["row"], row["col"]) == (0, 0)]
    assert not any(row["kept"] for row in touched)
    verify(str(out))
    return True


def name_of(row):
    return os.path.basename(row["source"]), row["size"], row["row"], row["col"]


def decided(corpus):
    """Tile by tile in id order: which it is, and what was decided about it; no id is told."""
    rows = Corpus.open(corpus).table().to_pylist()
    names = {row["id"]: name_of(row) for row in rows}
    return [
        (names[row["id"]], row["split"], row["kept"], kind_of(row["reason"]), names.get(row["duplicate_of"]))
        for row in rows
    ]


def edges_of(corpus):
    """Edges by the names of their tiles."""
    names = {row["id"]: name_of(row) for row in Corpus.open(corpus).table().to_pylist()}
    edges = pq.read_table(corpus / "catalogue" / "edges.parquet").to_pylist()
    return Counter(
        (names[edge["a"]], names[edge["b"]], edge["kind"], edge["distance"], edge["orientation"]) for edge in edges
    )


def check_edges(corpus):
    """Tiles that an edge calls the same picture look alike."""
    opened = Corpus.open(corpus)
    slots = {row["id"]: row["slot"] for row in opened.table(["id", "slot"]).to_pylist()}
    image = opened.array("image", TILE)
    for edge in pq.read_table(corpus / "catalogue" / "edges.parquet").to_pylist():
        one, two = (image.read([slots[edge[end]]])[0].mean(0) for end in ("a", "b"))
        if edge["kind"] == "perceptual":
            assert np.corrcoef(orient(one, edge["orientation"]).ravel(), two.ravel())[0, 1] > 0.9


@pytest.fixture(autouse=True)
def no_pages(monkeypatch):
    """Reports and pictures take most of the time."""
    monkeypatch.setattr(audit, "figures", lambda *_: "")
    for module in (assemble, building, exclusion):
        monkeypatch.setattr(module, "write_report", lambda folder: None)


@pytest.mark.parametrize("seed", range(2))
def test_a_merged_corpus_decides_as_a_joint_build(tmp_path, seed):
    rng = np.random.default_rng(seed)
    files, held = draw_scenes(tmp_path / "scenes", rng)
    first = rng.random(len(files)) < 0.5
    first[:4] = True, False, True, False
    share = [[file for file, mine in zip(files, first, strict=True) if mine == side] for side in (True, False)]
    share[1].append(share[0][-1])  # one is in both
    how = (files[2:4], 48) if seed % 2 else ((), TILE)
    parts = [tmp_path / name for name in ("one", "two")]
    for part, some in zip(parts, share, strict=True):
        killed(lambda part=part, some=some: make(some, part, *how), part, int(rng.integers(1, 40)))
        check_clear(part, held)
        make(some, part, *how)
        assert check_clear(part, held)
    joint = make(files, tmp_path / "joint", *how)
    both = tmp_path / "both"
    killed(lambda: merge([str(part) for part in parts], str(both)), both, int(rng.integers(1, 60)))
    check_clear(both, held)
    if not (both / "corpus.json").exists() or (both / "work").exists():
        merge([str(part) for part in parts], str(both))
    again = merge([str(part) for part in reversed(parts)], str(tmp_path / "again"))
    expected, edges = decided(joint), edges_of(joint)
    assert Corpus.open(joint).skipped().num_rows == 2
    assert any(not row[2] for row in expected) and edges
    for out in (both, again):
        assert check_clear(out, held)
        assert decided(out) == expected and edges_of(out) == edges
        check_edges(out)
        one, two = Corpus.open(out), Corpus.open(joint)
        np.testing.assert_allclose(one.contract.mean, two.contract.mean, rtol=1e-12)
        np.testing.assert_allclose(one.contract.std, two.contract.std, rtol=1e-12)
        assert one.classes == two.classes and one.meta["statistics"]["pixels"] == two.meta["statistics"]["pixels"]
    some = [filter(str(part), SOME, str(tmp_path / f"some-{part.name}")) for part in parts]
    out = merge([str(part) for part in some], str(tmp_path / "some"))
    of_joint = filter(str(joint), SOME, str(tmp_path / "some-joint"))
    assert decided(out) == decided(of_joint)
    for one in (*some, out, of_joint):
        check_edges(one)


def test_a_benchmark_that_one_part_was_never_compared_with_is_named_and_can_be_excluded(tmp_path, capsys):
    files, held = draw_scenes(tmp_path / "scenes", np.random.default_rng(5))
    parts = [
        build(some, str(tmp_path / name), tile=TILE, workers=1) for name, some in (("a", files[2:4]), ("b", files[4:]))
    ]
    benchmark = str(tmp_path / "benchmark")
    exclude(str(parts[1]), [benchmark], workers=1)
    out = merge([str(part) for part in parts], str(tmp_path / "both"))
    said = " ".join(capsys.readouterr().err.split())
    assert f"do not cover all tiles of '{out}': `geomim corpus exclude {out} --against {benchmark}` does it" in said
    exclude(str(out), [benchmark], workers=1)
    assert check_clear(out, held)
