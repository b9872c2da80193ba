"""Two processes that share a batch out compute what one process computes with all of it."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny_corpus import write_corpus

from geomim.data.datamodule import TileDataModule
from geomim.pretrain.recipes import RECIPES
from geomim.verbs import pretrain as verb

METHOD = {"decoder_depth": 1, "decoder_width": 16, "decoder_heads": 2}
ENCODER = {"patch_size": 4, "width": 24, "depth": 1, "heads": 2}


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


def run(corpus, folder, recipe, devices, batch_size, accumulate):
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
    )
    data = TileDataModule(str(corpus), batch_size=batch_size, image_size=16, workers=0)
    verb.train(data, folder, recipe, METHOD, ENCODER, training=training)
    losses = [line.split(",")[1] for line in (folder / "metrics.csv").read_text().split()[1:]]
    return Probe.kept | {"loss": np.array(losses, float)}


def main():
    """What each of the two processes does."""
    from pathlib import Path

    for corpus, folder, recipe in json.loads(sys.argv[1]):
        kept = run(corpus, Path(folder), recipe, 2, 4, 1)
        if os.environ["RANK"] == "0":
            np.savez(Path(folder) / "kept.npz", **kept)
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Run every case in one pair of processes: starting them is what takes time."""
    root = tmp_path_factory.mktemp("ddp")
    corpora = {nodata: write_corpus(root / f"corpus{nodata}", nodata=nodata) for nodata in (False, True)}
    cases = {(recipe, True): root / recipe for recipe in RECIPES} | {("mae", False): root / "plain"}
    listed = json.dumps([(str(corpora[nodata]), str(folder), recipe) for (recipe, nodata), folder in cases.items()])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in ("0", "1"):
        torchrun = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
        torchrun |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
        path = os.pathsep.join(sys.path)
        environment = os.environ | torchrun | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        ranks.append(subprocess.Popen([sys.executable, __file__, listed], env=environment, stderr=subprocess.PIPE))
    for process in ranks:
        _, said = process.communicate(timeout=180)
        assert process.returncode == 0, said.decode()[-3000:]
    return corpora, cases


@pytest.mark.parametrize(("recipe", "nodata"), [(recipe, True) for recipe in RECIPES] + [("mae", False)])
def test_two_processes_equal_one(two_processes, tmp_path, monkeypatch, recipe, nodata):
    corpora, cases = two_processes
    monkeypatch.setattr(verb, "Watch", Probe)
    one = run(corpora[nodata], tmp_path, recipe, 1, 8, 1)
    with np.load(cases[recipe, nodata] / "kept.npz") as two:
        assert set(two) == set(one) and len(one) > 10
        for name in one:
            np.testing.assert_allclose(two[name], one[name], atol=1e-5, rtol=1e-5, err_msg=name)


def test_accumulation_equals_one_batch_where_all_images_weigh_the_same(two_processes, tmp_path, monkeypatch):
    corpora, _ = two_processes
    monkeypatch.setattr(verb, "Watch", Probe)
    whole = run(corpora[False], tmp_path / "whole", "mae", 1, 8, 1)
    parts = run(corpora[False], tmp_path / "parts", "mae", 1, 4, 2)
    for name in whole:
        if name != "loss":
            np.testing.assert_allclose(parts[name], whole[name], atol=1e-5, rtol=1e-5, err_msg=name)
