"""Runs that leave tiles out: the same however they are divided or interrupted, and whole at the end."""

import csv
import os
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from test_replay import broken_corpus
from tiny_corpus import write_corpus
from two_ranks import two_ranks

from geomim.cli import main
from geomim.data.datamodule import TileDataModule
from geomim.errors import ConfigError
from geomim.pretrain.context import Context
from geomim.verbs import pretrain as verb

FLAGS = (
    "pretrain --recipe mae --method.decoder_depth 1 --method.decoder_width 16 --method.decoder_heads 2 "
    "--encoder.image_size 16 --encoder.patch_size 4 --encoder.width 24 --encoder.depth 1 --encoder.heads 2 "
    "--training.precision 32-true --training.accelerator cpu --training.max_steps 16 --training.milestones 16 "
    "--training.log_every 3 --optimizer.warmup 0 --data.corpus corpus"
).split()
PRUNE = ["--training.prune", "0.5"]


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


def test_tiles_are_left_out_weighed_counted_and_none_in_the_last_eighth(whole):
    firsts = [read("whole", f"step-{step:07d}")["pruning"]["first"] for step in range(1, 17)]
    starts = sorted(set(firsts))
    assert (starts[:2] == [0, 3] and firsts[13:] == [13, 14, 14]) or firsts[12:] == [12, 12, 14, 14]
    for start, end in zip(starts, [*starts[1:], 16], strict=True):
        weights = {}
        for step in range(start, end):
            assert len(whole[step][0]) == 8
            weights |= dict(zip(*whole[step], strict=True))
        assert set(weights.values()) == ({1.0, 2.0} if 0 < start < 14 else {1.0})
        assert len(weights) < 18 or start == 0
    assert len({tile for ids, _ in (whole[14], whole[15]) for tile in ids}) == 16
    with open("runs/whole/metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["images"]]
    assert [float(row["images"]) for row in rows] == [8.0 * step for step in (3, 6, 9, 12, 15, 16)]
    assert float(rows[0]["pruned"]) == float(rows[-1]["pruned"]) == 0 < float(rows[1]["pruned"]) < 1
    skipped = [float(row["images_skipped"]) for row in rows]
    assert skipped == sorted(skipped) and skipped[0] == 0 < skipped[1] and skipped[-2] == skipped[-1] <= 7 * 18


def test_until_the_first_epoch_is_over_it_is_a_run_without(whole):
    plain = run("off", "--data.workers", "0", "--data.batch_size", "8")
    assert [ids for ids, _ in plain.values()][:3] == [ids for ids, _ in whole.values()][:3]
    assert "pruning" not in read("off")
    for name, weight in read("off", "step-0000003")["state_dict"].items():
        assert torch.equal(weight, read("whole", "step-0000003")["state_dict"][name]), name


def same(name, exactly):
    one, two = read("whole"), read(name)
    close = {"atol": 0, "rtol": 0} if exactly else {"atol": 1e-5, "rtol": 1e-5}
    assert one["global_step"] == two["global_step"] == 16
    assert one["pruning"]["first"] == two["pruning"]["first"] and one["pruning"]["skipped"] == two["pruning"]["skipped"]
    torch.testing.assert_close(one["pruning"]["losses"], two["pruning"]["losses"], equal_nan=True, **close)
    for key, weight in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][key], weight, msg=f"{name}: {key}", **close)


@pytest.mark.parametrize("step", [2, 3, 4, 12, 14, 15])
def test_a_run_that_goes_on_in_the_middle_or_at_the_end_of_an_epoch_is_an_undisturbed_one(whole, step):
    path = f"runs/whole/checkpoints/step-{step:07d}.ckpt"
    seen = run(f"from{step}", *PRUNE, "--data.workers", "0", "--data.batch_size", "8", "--resume", path)
    assert seen == {place: held for place, held in whole.items() if place >= step}
    same(f"from{step}", exactly=True)


def test_micro_batches_and_two_processes_are_one(whole):
    parts = run("parts", *PRUNE, "--data.workers", "1", "--data.batch_size", "2", "--training.accumulate", "4")
    assert parts == whole
    same("parts", exactly=False)
    flags = [*PRUNE, "--data.workers", "0", "--data.batch_size", "2", "--training.accumulate", "2", "--name", "both"]
    said = two_ranks(lambda: main([*FLAGS, *flags, "--training.progress_bar", "false"]), Path.cwd())
    assert "".join(said).count("pruning: a tile") == 1
    same("both", exactly=False)


def test_a_step_that_is_not_finite_is_found_before_its_epoch_is_gone(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    broken = broken_corpus(tmp_path / "corpus")
    flags = ["--training.log_every", "50", "--training.milestones", "0", "--data.workers", "0", "--name", "broken"]
    assert main([*FLAGS, *flags, *PRUNE, "--data.batch_size", "8", "--training.progress_bar", "false"]) == 1
    assert f"the loss of tiles {broken} is not finite in step 2 of 16" in capsys.readouterr().err
    assert main(["replay", "runs/broken/failures/step-0000002.pt"]) == 1
    assert f"not finite: input of tiles {broken}\n" in capsys.readouterr().out


def test_what_cannot_be_pruned_is_refused(whole, capsys):
    with pytest.raises(ConfigError, match=r"training\.prune: expected 0 \(off\) to 0\.9; given 0\.95"):
        verb.Training(prune=0.95)
    data = TileDataModule(["corpus", "corpus"], image_size=16, workers=0)
    with pytest.raises(ConfigError, match=r"training\.prune goes by the epochs of one corpus; given 2"):
        data.prune(0.5)
    last = ["--data.workers", "0", "--data.batch_size", "8", "--resume", "runs/whole/checkpoints/last.ckpt"]
    assert main([*FLAGS, "--name", "other", *last, "--training.prune", "0.4"]) == 2
    assert "training.prune 0.5, this run has 0.4" in capsys.readouterr().err


def test_a_weight_of_a_batch_multiplies_what_is_valid():
    class Encoder:
        patch_size, band_dropout, training = 4, 0.0, True

    batch = {"image": torch.zeros(2, 3, 8, 8), "weight": torch.tensor([1.0, 2.0])}
    assert Context(batch, Encoder(), None).image_weight("image").tolist() == [1, 2]
    batch["valid"] = torch.tensor([True, False]).view(2, 1, 1, 1).expand(2, 1, 8, 8)
    assert Context(batch, Encoder(), None).image_weight("image").tolist() == [1, 0]
