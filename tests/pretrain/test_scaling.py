"""Compiled, recomputed and shared out: the same losses and weights."""

import csv
from functools import partial

import pytest
import torch
from tiny_corpus import write_corpus
from torch.utils.checkpoint import checkpoint

from geomim.data.datamodule import TileDataModule
from geomim.pretrain import scaling
from geomim.verbs.pretrain import Training, train

ENCODER = {"patch_size": 4, "width": 24, "depth": 2, "heads": 2}
METHOD = {"decoder_depth": 1, "decoder_width": 16, "decoder_heads": 2}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("scaling") / "corpus", nodata=True)


def run(corpus, folder, recipe, **options):
    """Losses and weights of three steps."""
    quick = {"precision": "32-true", "accelerator": "cpu", "progress_bar": False, "log_every": 1, "accumulate": 2}
    data = TileDataModule(str(corpus), batch_size=4, image_size=16, workers=0)
    last = train(data, folder, recipe, METHOD, ENCODER, training=Training(max_steps=3, **quick, **options))
    with (folder / "metrics.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    return losses, torch.load(last, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def plain(corpus, tmp_path_factory):
    return {recipe: run(corpus, tmp_path_factory.mktemp(recipe), recipe) for recipe in ("mae", "selective_mae")}


def same(given, expected):
    assert given[0] == pytest.approx(expected[0], rel=1e-5) and set(given[1]) == set(expected[1])
    for name, weight in expected[1].items():
        if not name.endswith("kv.bias"):  # of keys: see test_torchrun
            torch.testing.assert_close(given[1][name], weight, atol=1e-6, rtol=1e-5, msg=name)


def test_recomputed_blocks_train_alike_and_their_insides_are_not_kept(corpus, tmp_path, plain, monkeypatch):
    calls = []
    monkeypatch.setattr(scaling, "checkpoint", lambda *given, **how: (calls.append(1), checkpoint(*given, **how))[1])
    same(run(corpus, tmp_path, "mae", checkpointing=True), plain["mae"])
    assert len(calls) >= 3 * 2 * 3  # steps, micro-batches, blocks


@pytest.mark.parametrize("recipe", ["mae", "selective_mae"])
def test_a_compiled_step_gives_the_same_losses_in_one_graph(corpus, tmp_path, plain, monkeypatch, recipe):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    quick = partial(torch.compile, backend="aot_eager", fullgraph=True)  # the default backend takes minutes on a CPU
    monkeypatch.setattr(torch, "compile", quick)
    same(run(corpus, tmp_path, recipe, compile=True), plain[recipe])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
