"""However an optimiser step is divided over processes and micro-batches, its gradients and losses are the same."""

import os
import socket
from contextlib import ExitStack
from functools import partial

import numpy as np
import pytest
import torch
from tiny_corpus import write_corpus
from tiny_recipes import annotated, encoder, method
from tiny_teacher import write_teacher
from two_ranks import two_ranks

from geomim.data.datamodule import TileDataModule
from geomim.data.sampler import Stream
from geomim.pretrain.recipes import RECIPES
from geomim.verbs import pretrain as verb

OTHERS = [("mae", "whole"), *((recipe, "mute") for recipe in ("remote_clip", "rils", "selective_rils"))]
"""Corpora of which nothing is missing, and of which the second of two ranks sees no tile with a sentence."""
ACCUMULATE = ("mae", "latent_mim", "mask_align", "selective_rils")
"""Recipes whose two ranks have micro-batches as well: without and with a copy, a teacher, and all of it with words."""


class Probe(verb.Watch):
    """Stands in for the look at pictures: keeps gradient and loss of every step."""

    kept: dict[str, np.ndarray] = {}  # noqa: RUF012

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        step = trainer.global_step
        for name, parameter in pl_module.model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, f"{name} has no gradient"
                self.kept[f"{step}/{name}"] = parameter.grad.numpy().copy()

    def on_train_batch_end(self, trainer, pl_module, *_):
        pass


def run(corpus, folder, recipe, devices, batch_size, accumulate, resume=None):
    """Train two steps of 8 images and return every step's gradient and mean loss."""
    Probe.kept = {}
    verb.Watch = Probe
    training = verb.Training(
        max_steps=2,
        accumulate=accumulate,
        precision="32-true",
        accelerator="cpu",
        devices=devices,
        progress_bar=False,
        log_every=1,
        checkpoint_every=2,
        milestones=2,
    )
    pairs = "place" if recipe == "croco" else None
    data = TileDataModule(str(corpus), batch_size=batch_size, image_size=16, workers=0, pairs=pairs)
    given = method(recipe, f"timm:local-dir:{corpus.parent / 'teacher'}")
    verb.train(data, folder, recipe, given, encoder(recipe), training=training, resume=resume)
    losses = [line.split(",")[1] for line in (folder / "metrics.csv").read_text().split()[1:]]
    return Probe.kept | {"loss": np.array(losses, float)}


def as_a_rank(cases):
    """What each of two processes does."""
    for corpus, folder, recipe, batch_size, accumulate, port in cases:
        os.environ["MASTER_PORT"] = port  # another each time: a rank may be ahead of the one that listens
        kept = run(corpus, folder, recipe, "auto", batch_size, accumulate)
        if os.environ["RANK"] == "0":
            np.savez(folder / "kept.npz", **kept)
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Run every case in one pair of processes."""
    root = tmp_path_factory.mktemp("ddp")
    second = np.r_[4:8, 12:16]  # what the second of two ranks sees in two steps
    mute = {"mute": Stream([18], block=8)(second)[1].tolist()}
    corpora = {
        kind: annotated(write_corpus(root / kind, nodata=kind == "holes"), mute.get(kind))
        for kind in ("whole", "holes", "mute")
    }
    write_teacher(root / "teacher")
    cases = {(recipe, "holes", 1): root / f"{recipe}1" for recipe in RECIPES}
    cases |= {(recipe, "holes", 2): root / f"{recipe}2" for recipe in ACCUMULATE}
    cases |= {(recipe, kind, 1): root / f"{recipe}-{kind}" for recipe, kind in OTHERS}
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in cases]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        ports = [str(free.getsockname()[1]) for free in sockets]
    listed = [
        (corpora[kind], folder, recipe, 4 // parts, parts, port)
        for ((recipe, kind, parts), folder), port in zip(cases.items(), ports, strict=True)
    ]
    two_ranks(partial(as_a_rank, listed), root)
    return corpora, cases


@pytest.mark.parametrize(("recipe", "kind"), [*((recipe, "holes") for recipe in RECIPES), *OTHERS])
def test_one_process_equals_two_and_micro_batches(two_processes, tmp_path, monkeypatch, recipe, kind):
    corpora, cases = two_processes
    monkeypatch.setattr(verb, "Watch", Probe)
    whole = run(corpora[kind], tmp_path / "whole", recipe, 1, 8, 1)
    divided = {"1 x 8": run(corpora[kind], tmp_path / "micro", recipe, 1, 1, 8)}
    for (name, of, parts), folder in cases.items():
        if (name, of) == (recipe, kind):
            with np.load(folder / "kept.npz") as kept:
                divided[f"2 ranks x {4 // parts} x {parts}"] = dict(kept)
    if recipe in ("rils", "selective_rils"):  # whose second term begins with the second step
        learns = [any(value.any() for name, value in whole.items() if f"{n}/terms.1." in name) for n in "01"]
        assert learns == [recipe == "rils", True]
    assert len(whole) > 10 and len(divided) == 2 + ((recipe, kind, 2) in cases)
    for how, kept in divided.items():
        assert set(kept) == set(whole)
        for name in whole:
            atol = 1e-5 * max(1.0, np.abs(whole[name]).max())  # gradients of a new text tower are large
            np.testing.assert_allclose(kept[name], whole[name], atol=atol, rtol=1e-5, err_msg=f"{how}: {name}")


@pytest.mark.parametrize("recipe", ["mae", "latent_mim"])  # without and with a copy that follows
def test_a_run_of_two_processes_goes_on_in_one_with_micro_batches(two_processes, tmp_path, monkeypatch, recipe):
    corpora, cases = two_processes
    folder = cases[recipe, "holes", 1] / "checkpoints"
    monkeypatch.setattr(verb, "Watch", Probe)
    run(corpora["holes"], tmp_path, recipe, 1, 4, 2, resume=folder / "step-0000001.ckpt")
    one, two = (
        torch.load(path, weights_only=True) for path in (tmp_path / "checkpoints/last.ckpt", folder / "last.ckpt")
    )
    assert one["global_step"] == two["global_step"] == 2
    for name, weight in two["state_dict"].items():
        torch.testing.assert_close(one["state_dict"][name], weight, atol=1e-6, rtol=1e-5, msg=name)
    assert one["geomim"]["history"][0]["step"] == 1
    assert one["geomim"]["history"][0]["changed"]["training.accumulate"] == [1, 2]
