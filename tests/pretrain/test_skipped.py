"""Tiles that cannot be read: skipped, named once, counted; too many end the run."""

import csv
import shutil

import numpy as np
import pytest
import torch
from tiny_corpus import NAMES, write_corpus
from whole_arrays import write_array

from geomim.corpus.reader import TileArray
from geomim.data.datamodule import TileDataModule
from geomim.errors import GeomimError
from geomim.pretrain.skipped import Skipped
from geomim.verbs.pretrain import Training, train

ENCODER = {"patch_size": 8, "width": 24, "depth": 1, "heads": 2}
METHOD = {"decoder_depth": 1, "decoder_width": 16, "decoder_heads": 2}


def data(path):
    return TileDataModule(str(path), batch_size=200, image_size=16, workers=0)


def damaged(path, count):
    """A corpus of 1,200 training tiles, compressed, and the ids of `count` of its first step that are damaged."""
    write_corpus(path, count=1600)
    broken = sorted(next(iter(data(path).train_dataloader()))["id"][:count].tolist())
    folder = path / "tiles.zarr" / "24" / "image"
    images = TileArray(folder).read(np.arange(1600))
    shutil.rmtree(folder)
    layout = write_array(folder, images, NAMES, compression="zstd")
    shard = folder / layout.file(0)
    raw = bytearray(shard.read_bytes())
    index = np.frombuffer(bytes(raw[-layout.per_shard * 16 - 4 : -4]), "<u8").reshape(-1, 2)
    for tile in broken:
        start, length = map(int, index[tile - 100])
        raw[start : start + length] = b"\xff" * length
    shard.write_bytes(raw)
    return broken


def run(path, folder, steps=3, resume=None):
    """Three steps over half of the tiles, or more."""
    quick = {"precision": "32-true", "accelerator": "cpu", "progress_bar": False, "log_every": 1}
    train(data(path), folder, "mae", METHOD, ENCODER, training=Training(max_steps=steps, **quick), resume=resume)


def test_one_tile_of_a_thousand_is_skipped_named_once_and_counted(tmp_path, caplog):
    (broken,) = damaged(tmp_path / "corpus", 1)
    run(tmp_path / "corpus", tmp_path / "run")
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert [row["unreadable"] for row in csv.DictReader(file)] == ["1"] * 3
    assert [one.getMessage() for one in caplog.records if "skipped" in one.getMessage()] == [
        f"skipped, since their shard is damaged: tiles {broken} of '{tmp_path / 'corpus'}'"
    ]


def test_more_of_them_end_the_run_by_name(tmp_path):
    one, two = damaged(tmp_path / "corpus", 2)
    where = tmp_path / "corpus"
    said = rf"2 of 1200 tiles cannot be read, more than 0.1%: {one} of '{where}', {two} of '{where}'. 'geomim corpus v"
    with pytest.raises(GeomimError, match=said):
        run(tmp_path / "corpus", tmp_path / "run")


def test_a_resumed_run_counts_on_each_corpus_by_itself(tmp_path):
    (broken,) = damaged(tmp_path / "corpus", 1)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    run(tmp_path / "corpus", tmp_path / "run")
    run(tmp_path / "corpus", tmp_path / "run", 4, "last")  # a step that does not meet it
    entry = torch.load(last, weights_only=True)["geomim"]
    assert entry["step"] == 4 and entry["unreadable"] == [[0, broken]]
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert [row["unreadable"] for row in csv.DictReader(file)] == ["1"] * 4
    counted, sets = Skipped(), data(tmp_path / "corpus").sets
    counted.restore([*entry["unreadable"], [1, broken]])  # of another corpus, with the same sensor and id
    assert counted.count(sets * 2, 1) == 2
