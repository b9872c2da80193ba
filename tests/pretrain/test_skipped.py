"""Tiles that cannot be read: skipped, named once, counted; too many end the run."""

import csv

import numpy as np
import pytest
import torch
from tiny_corpus import write_corpus

from geomim.data.datamodule import TileDataModule
from geomim.data.tiles import TileSet
from geomim.errors import GeomimError
from geomim.verbs.pretrain import Training, train

ENCODER = {"patch_size": 8, "width": 24, "depth": 1, "heads": 2}
METHOD = {"decoder_depth": 1, "decoder_width": 16, "decoder_heads": 2}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("skipped") / "corpus", count=1600)  # 1,200 to train on


@pytest.fixture
def run(corpus, tmp_path, monkeypatch):
    """Three steps over half of the tiles, some of which cannot be read."""
    read = TileSet.read

    def start(*broken, filled=0):
        def fail(self, *given):
            batch = read(self, *given)
            lost = torch.isin(batch["id"], torch.tensor(broken, dtype=torch.int64))
            if lost.any():
                shape = batch["image"].shape
                batch["image"] = torch.where(lost[:, None, None, None], filled, batch["image"]).to(torch.uint8)
                batch |= {"unreadable": lost, "valid": ~lost[:, None, None, None].expand(-1, 1, *shape[2:])}
            return batch

        monkeypatch.setattr(TileSet, "read", fail)
        data = TileDataModule(str(corpus), batch_size=200, image_size=16, workers=0)
        quick = {"precision": "32-true", "accelerator": "cpu", "progress_bar": False, "log_every": 1}
        folder = tmp_path / str(filled)
        last = train(data, folder, "mae", METHOD, ENCODER, training=Training(max_steps=3, **quick))
        with (folder / "metrics.csv").open() as file:
            return torch.load(last, weights_only=True)["state_dict"], list(csv.DictReader(file))

    return start


def first(corpus, count):
    """Ids of the first tiles of the first step."""
    stream = iter(TileDataModule(str(corpus), batch_size=200, image_size=16, workers=0).train_dataloader())
    return next(stream)["id"][:count].tolist()


def test_one_tile_of_a_thousand_is_skipped_named_once_and_counted(corpus, run, caplog):
    (broken,) = first(corpus, 1)
    weights, rows = run(broken)
    assert [row["unreadable"] for row in rows] == ["1"] * 3
    assert [one.getMessage() for one in caplog.records if "skipped" in one.getMessage()] == [
        f"skipped, since their shard is damaged: tiles {broken} of rgb"
    ]
    for name, weight in run(broken, filled=200)[0].items():  # whatever stands in its place
        np.testing.assert_array_equal(weight, weights[name], err_msg=name)


def test_more_of_them_end_the_run_by_name(corpus, run):
    one, two = sorted(first(corpus, 2))
    said = rf"2 of 1200 tiles cannot be read, more than 0.1%: {one} of rgb, {two} of rgb. 'geomim corpus verify"
    with pytest.raises(GeomimError, match=said):
        run(one, two)
