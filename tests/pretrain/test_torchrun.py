"""A shipped config in two processes, also by torchrun from the shell: a run goes on in two, then in one, as one."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from test_replay import broken_corpus
from tiny_corpus import write_corpus
from tiny_recipes import TEXT, annotated
from two_ranks import two_ranks

from geomim.cli import main
from geomim.models.weights import read_encoder

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "geomim.cli"]
FLAGS = [
    *("pretrain", "--config", str(REPOSITORY / "configs/pretrain/small_cpu.yaml"), "--recipe", "selective_mae"),
    *"--method.decoder_depth 1 --method.decoder_width 16 --method.decoder_heads 2 --encoder.image_size 16".split(),
    *"--encoder.patch_size 4 --encoder.width 24 --encoder.depth 1 --encoder.heads 2 --training.max_steps 6".split(),
    *"--training.milestones 6 --training.progress_bar false --training.accelerator cpu".split(),
    *"--training.precision 32-true".split(),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def torchrun(*flags):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*TORCHRUN, *FLAGS, *flags], env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def both(folder, *flags, code=0):
    return two_ranks(lambda: main([*FLAGS, *flags]), folder, code)


def read(name):
    """What a run says of itself, and its weights and moments.

    Without the biases of keys: attention does not depend on them, so rounding is their gradient, which Adam scales up.
    """
    content = torch.load(f"runs/{name}/checkpoints/last.ckpt", weights_only=True)
    for key, values in content["state_dict"].items():
        if key.endswith(("kv.bias", "in_proj_bias")):
            values.chunk(2 if key.endswith(".kv.bias") else 3)[-2].zero_()
    moments = content["optimizer_states"][0]["state"]
    return content["geomim"], content["state_dict"] | {
        f"{key}.{moment}": values[moment] for key, values in moments.items() for moment in ("exp_avg", "exp_avg_sq")
    }


def same(name, other, steps=6):
    (entry, one), (_, two) = read(name), read(other)
    assert entry["step"] == steps and set(one) == set(two)
    for key, values in one.items():
        torch.testing.assert_close(values, two[key], atol=1e-5, rtol=1e-5, msg=f"{name}, {other}: {key}")
    return entry


def flops(name):
    with Path(f"runs/{name}/metrics.csv").open() as file:
        return {row["flops_per_image"] for row in csv.DictReader(file)}


def test_two_processes_equal_one_from_and_to_the_middle_of_an_epoch(folder, capsys):
    write_corpus(folder / "corpus", nodata=True)  # 18 tiles, 8 a step
    assert main([*FLAGS, "--name", "one", "--data.batch_size", "8"]) == 0
    step = "runs/{}/checkpoints/step-000000{}.ckpt"
    said = torchrun("--name", "two", "--data.batch_size", "4", "--resume", step.format("one", 1))
    assert said.returncode == 0 and said.stdout.count("encoder: runs/two/checkpoints/last.ckpt") == 1, said.stderr
    same("two", "one")
    on = [*FLAGS, "--data.batch_size", "4", "--resume", step.format("two", 4)]
    assert main([*on, "--name", "three", "--training.accumulate", "2"]) == 0
    entry = same("three", "one")
    assert [one["step"] for one in entry["history"]] == [1, 4]
    assert entry["history"][1]["changed"] == {"training.accumulate": [1, 2]}
    assert main([*on, "--name", "other"]) == 2
    assert "batch_size * devices * nodes * accumulate 8, this run has 4" in capsys.readouterr().err


def test_weights_that_processes_share_train_alike_and_are_stored_whole(folder, capsys):
    write_corpus(folder / "corpus", nodata=True)
    one = [*FLAGS, "--data.batch_size", "8"]
    assert main([*one, "--name", "one"]) == 0
    fsdp = ["--training.strategy", "fsdp"]
    step = "runs/{}/checkpoints/step-000000{}.ckpt"
    divided = ["--data.batch_size", "2", "--training.accumulate", "2", "--training.clip", "100"]
    both(folder, "--name", "shared", *fsdp, *divided, "--resume", step.format("one", 1))
    same("shared", "one")
    assert flops("shared") == flops("one")
    read_encoder(step.format("shared", 4))
    assert main([*one, "--name", "back", "--resume", step.format("shared", 4)]) == 0
    same("back", "one")
    assert main([*one, "--name", "alone", *fsdp]) == 2
    assert "expected several devices to share weights among; there is one" in capsys.readouterr().err


def test_a_space_of_images_and_sentences_that_processes_share_trains_alike(folder):
    annotated(write_corpus(folder / "corpus", nodata=True))
    space = ["--recipe", "selective_rils", "--method.text.name", TEXT.name]
    space += "--method.starts 0.5 --method.gate false --method.teacher ema --method.latents 0.1".split()
    space += "--training.max_steps 4 --training.milestones 4".split()
    assert main([*FLAGS, *space, "--name", "one", "--data.batch_size", "8"]) == 0
    divided = ["--training.strategy", "fsdp", "--data.batch_size", "2", "--training.accumulate", "2"]
    both(folder, *space, *divided, "--name", "shared", "--resume", "runs/one/checkpoints/step-0000002.ckpt")
    same("shared", "one", 4)


def test_a_spectral_encoder_that_processes_share_is_looked_at_whole(folder):
    write_corpus(folder / "corpus")
    few = ["--training.max_steps", "2", "--training.milestones", "0", "--encoder.spectral", "true"]
    few += ["--watch.every", "2", "--watch.data", "corpus", "--watch.test_split", "val"]
    assert main([*FLAGS, *few, "--name", "one", "--data.batch_size", "8"]) == 0
    both(folder, *few, "--name", "shared", "--data.batch_size", "4", "--training.strategy", "fsdp")
    assert flops("shared") == flops("one")
    one, shared = (read(name)[0]["provenance"]["evaluation"]["rows"] for name in ("one", "shared"))
    assert shared == one and len(one) == 6


def test_processes_that_meet_a_tile_that_is_not_finite_stop_together_with_one_file(folder):
    broken = broken_corpus(folder / "broken")
    said = both(folder, "--name", "broken", "--data.batch_size", "2", "--data.corpus", "broken", code=1)
    assert all(f"the loss of tiles {broken} is not finite in step 3 of 6" in one for one in said)
    assert [path.name for path in Path("runs/broken/failures").iterdir()] == ["step-0000003.pt"]
    assert not Path("runs/broken/checkpoints/last.ckpt").exists()
