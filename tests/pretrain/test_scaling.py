"""Compiled, recomputed and shared out: the same losses and weights."""

import csv
from functools import partial
from itertools import islice

import pytest
import torch
from tiny_corpus import write_corpus
from tiny_recipes import TEXT, annotated
from torch.utils.checkpoint import checkpoint

from geomim.data.datamodule import TileDataModule
from geomim.pretrain import scaling
from geomim.verbs.pretrain import Training, train

ENCODER = {"patch_size": 4, "width": 24, "depth": 2, "heads": 2}
METHOD = {"decoder_depth": 1, "decoder_width": 16, "decoder_heads": 2}
TEXTS = {"selective_rils": {"text": TEXT, "starts": 0.5, "gate": False}}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("scaling") / "corpus", nodata=True)


def run(corpus, folder, recipe, **options):
    """Losses and weights of three steps, or as many as are said."""
    quick = {
        "max_steps": 3,
        "precision": "32-true",
        "accelerator": "cpu",
        "progress_bar": False,
        "log_every": 1,
        "accumulate": 2,
    }
    data = TileDataModule(str(corpus), batch_size=4, image_size=16, workers=0)
    last = train(data, folder, recipe, METHOD | TEXTS.get(recipe, {}), ENCODER, training=Training(**quick | options))
    with (folder / "metrics.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    return losses, torch.load(last, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def plain(corpus, tmp_path_factory):
    return {recipe: run(corpus, tmp_path_factory.mktemp(recipe), recipe) for recipe in ("mae", "selective_mae")}


def same(given, expected):
    assert given[0] == pytest.approx(expected[0], rel=1e-5) and set(given[1]) == set(expected[1])
    for name, weight in expected[1].items():
        if name.endswith(("kv.bias", "in_proj_bias")):  # without those of keys: see test_torchrun
            for one in (weight, given[1][name]):
                one.chunk(2 if name.endswith(".kv.bias") else 3)[-2].zero_()
        torch.testing.assert_close(given[1][name], weight, atol=1e-6, rtol=1e-5, msg=name)


def test_recomputed_blocks_train_alike_and_their_insides_are_not_kept(corpus, tmp_path, plain, monkeypatch):
    calls = []
    monkeypatch.setattr(scaling, "checkpoint", lambda *given, **how: (calls.append(1), checkpoint(*given, **how))[1])
    same(run(corpus, tmp_path, "mae", checkpointing=True), plain["mae"])
    assert len(calls) >= 3 * 2 * 3  # steps, micro-batches, blocks


@pytest.fixture
def quick(monkeypatch):
    """The default backend takes minutes on a CPU."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))


@pytest.mark.parametrize("recipe", ["mae", "selective_mae"])
def test_a_compiled_step_gives_the_same_losses_in_one_graph(corpus, tmp_path, plain, quick, recipe):
    same(run(corpus, tmp_path, recipe, compile=True), plain[recipe])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_a_term_that_begins_later_has_a_graph_of_its_own(tmp_path, quick, capsys):
    corpus = annotated(write_corpus(tmp_path / "corpus", nodata=True), mute=())
    plain = run(corpus, tmp_path / "plain", "selective_rils", max_steps=2)
    same(run(corpus, tmp_path / "compiled", "selective_rils", max_steps=2, compile=True), plain)
    assert "step 2: 'language' is asked from here on, and compiled with all others anew" in capsys.readouterr().out
    data = TileDataModule(str(corpus), batch_size=4, image_size=16, workers=0)
    data.provide(frozenset({"text"}), tokenizer=TEXT.build(), few_shapes=True)
    batches = list(islice(data.train_dataloader(), 4))
    shapes = {(number < 2, batch["text"]["tokens"].shape) for number, batch in enumerate(batches)}
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == len(shapes) == 2
