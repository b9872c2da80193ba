"""How pictures are cut where nobody says how: whole where they are alike, to the border where they are not."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio

from geomim.corpus import build as building
from geomim.corpus.build import build
from geomim.corpus.lock import read_lock
from geomim.corpus.store import Corpus
from geomim.corpus.verify import rebuild
from geomim.errors import CorpusError, InputError


def pictures(folder, sizes):
    folder.mkdir()
    for number, (height, width) in enumerate(sizes):
        coarse = np.random.default_rng(number).integers(0, 256, (3, -(-height // 8), -(-width // 8)), np.uint8)
        pixels = np.kron(coarse, np.ones((8, 8), np.uint8))[:, :height, :width]
        with rasterio.open(
            folder / f"{number}.png", "w", driver="PNG", count=3, height=height, width=width, dtype="uint8"
        ) as to:
            to.write(pixels)
    return str(folder)


def windows(out):
    return [
        (row["source"][-5:-4], row["row"], row["col"], row["size"], round(row["valid_fraction"], 3))
        for row in Corpus.open(out).table().to_pylist()
    ]


def test_equal_pictures_are_taken_whole(tmp_path, capsys):
    source = pictures(tmp_path / "p", [(100, 100)] * 3)
    out = build([source], str(tmp_path / "c"), workers=1)
    assert windows(out) == [(str(number), 0, 0, 100, 1.0) for number in range(3)]
    assert "all 3 pictures are 100 x 100: each is one tile" in capsys.readouterr().err
    assert Corpus.open(out).meta["recipe"]["tile"] == [100] == read_lock(out)[0]["recipe"]["tile"]
    build([source], str(tmp_path / "c"), workers=1)
    assert "built already" in capsys.readouterr().err
    rebuild(str(out), str(tmp_path / "again"), workers=1)
    assert windows(tmp_path / "again") == windows(out)
    with pytest.raises(CorpusError, match=r"tile: \[100\] there, \[64\] given"):
        build([source], str(tmp_path / "c"), tile=64, workers=1)
    assert len(windows(build([source], str(tmp_path / "c"), tile=64, workers=1, overwrite=True))) == 12


def test_pictures_below_a_tile_are_said(tmp_path, capsys):
    said = "pictures are smaller than a tile of 256 and are padded: --tile {} cuts them without padding"
    for name, sizes, edge in (("a", [(200, 200), (200, 210), (300, 400)], 200), ("b", [(150, 200)] * 2, 150)):
        source = pictures(tmp_path / name, sizes)
        build([source], str(tmp_path / f"{name}1"), min_valid=0.1, workers=1)
        assert f"2 of {len(sizes)} {said.format(edge)}" in capsys.readouterr().err
        out = build([source], str(tmp_path / f"{name}2"), tile=edge, workers=1)
        assert {row[4] for row in windows(out)} == {1.0} and "padded" not in capsys.readouterr().err
    with pytest.raises(InputError, match="no tile is kept"):
        build([source], str(tmp_path / "c"), workers=1)
    assert f"2 of 2 {said.format(150)}" in capsys.readouterr().err


def test_a_window_that_is_moved_inside_is_no_copy_of_its_neighbour(tmp_path):
    y, x = np.mgrid[:128, :130]
    waves = sum(np.sin(a * y + b * x + a) for a, b in np.random.default_rng(0).uniform(-0.3, 0.3, (40, 2)))
    folder = Path(pictures(tmp_path / "p", [(128, 130)]))
    with rasterio.open(folder / "0.png", "w", driver="PNG", count=3, height=128, width=130, dtype="uint8") as to:
        to.write(np.broadcast_to(128 + 6 * waves, (3, 128, 130)).astype(np.uint8))
    out = build([str(folder)], str(tmp_path / "c"), tile=128, workers=1)
    assert [row[2] for row in windows(out)] == [0, 2]
    assert Corpus.open(out).table()["reason"].to_pylist() == ["", ""]
    assert len(pq.read_table(out / "catalogue" / "edges.parquet")) == 1  # they do look alike


def test_others_are_cut_to_their_borders(tmp_path):
    source = pictures(tmp_path / "p", [(300, 300), (100, 600)])
    shifted = [("0", row, col, 256, 1.0) for row in (0, 44) for col in (0, 44)]
    shifted += [("1", 0, col, 256, 0.391) for col in (0, 256, 344)]
    assert windows(build([source], str(tmp_path / "a"), min_valid=0.3, workers=1)) == shifted
    padded = windows(build([source], str(tmp_path / "b"), edge="pad", min_valid=0.1, workers=1))
    assert [row[1:3] for row in padded[:4]] == [(0, 0), (0, 256), (256, 0), (256, 256)] and padded[1][4] == 0.172
    out = build([source], str(tmp_path / "d"), edge="drop", workers=1)
    assert windows(out) == [("0", 0, 0, 256, 1.0)]
    (skipped,) = Corpus.open(out).skipped().to_pylist()
    assert "1.png' is smaller than a tile, and --edge drop leaves nothing of it" in skipped["reason"]
    with pytest.raises(InputError, match="--edge drop leaves nothing of it"):
        build([pictures(tmp_path / "q", [(20, 30)])], str(tmp_path / "e"), edge="drop", workers=1)


def test_a_stopped_build_goes_on_with_the_size_it_settled_on(tmp_path, monkeypatch):
    source = pictures(tmp_path / "p", [(100, 100)] * 3)

    def stop(*_, **__):
        raise CorpusError("stopped")

    for overwrite in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(building, "write_pixels", stop)
            with pytest.raises(CorpusError, match="stopped"):
                build([source], str(tmp_path / "c"), workers=1, overwrite=overwrite)
        with monkeypatch.context() as patch:
            patch.setattr(building, "cut", stop)  # what is cut is cut
            build([source], str(tmp_path / "c"), workers=1, overwrite=overwrite)
        assert Corpus.open(tmp_path / "c").meta["recipe"]["tile"] == [100]


def test_older_locks_were_padded(tmp_path):
    out = build([pictures(tmp_path / "p", [(100, 100)])], str(tmp_path / "c"), tile=64, edge="pad", workers=1)
    first, *others = (out / "corpus.lock").read_text().splitlines()
    head = json.loads(first)
    del head["recipe"]["edge"], head["recipe"]["allow_unmatched"]
    (tmp_path / "old.lock").write_text("\n".join([json.dumps(head), *others]) + "\n")
    rebuild(str(tmp_path / "old.lock"), str(tmp_path / "d"), workers=1)
    assert windows(tmp_path / "d") == windows(out)
