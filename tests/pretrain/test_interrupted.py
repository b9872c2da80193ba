"""Signals and launchers, with real processes."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from tiny_corpus import write_corpus

from geomim.cli import main
from geomim.errors import Interrupted
from geomim.pretrain.signals import Signals

FLAGS = (
    "pretrain --recipe mae --method.decoder_depth 1 --method.decoder_width 16 --method.decoder_heads 2 "
    "--encoder.image_size 16 --encoder.patch_size 4 --encoder.width 24 --encoder.depth 1 --encoder.heads 2 "
    "--training.precision 32-true --training.accelerator cpu --training.progress_bar false --data.corpus corpus"
).split()
GEOMIM = [sys.executable, "-m", "geomim.cli"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "geomim.cli"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("signals")
    write_corpus(root / "corpus", nodata=True)
    return root


def start(folder, program, *flags):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*program, *FLAGS, *flags],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(path: Path, process) -> None:
    for _ in range(2400):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


def step_of(path: Path) -> int:
    return torch.load(path, weights_only=True)["geomim"]["step"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_ends_a_run_at_a_step(folder, monkeypatch, number):
    name = number.name
    flags = ["--name", name, "--data.workers", "1", "--data.batch_size", "4", "--training.checkpoint_every", "1"]
    process = start(folder, GEOMIM, *flags, "--training.max_steps", "1000000")
    last = folder / "runs" / name / "checkpoints" / "last.ckpt"
    wait_for(last, process)
    os.killpg(process.pid, number)  # the reading processes, too
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + number, said
    step = int(
        re.fullmatch(rf"geomim: stopped by {name} at step (\d+) of 1000000; go on with --resume last\n", said)[1]
    )
    assert step_of(last) == step
    assert [path.name for path in last.parent.iterdir()] == ["last.ckpt"]
    monkeypatch.chdir(folder)
    assert main([*FLAGS, *flags, "--training.max_steps", str(step + 1), "--resume", "last"]) == 0
    assert step_of(last) == step + 1


class StopAfter(pl.Callback):
    """Signals its own process in the last step of a run that another one was stopped after."""

    step, number = 0, signal.SIGTERM

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step - 1:
            os.kill(os.getpid(), self.number)


def test_torchrun_alone_makes_one_run_of_the_doubled_batch_whose_ranks_stop_together(folder, monkeypatch):
    flags = ["--data.workers", "0", "--training.checkpoint_every", "2", "--training.max_steps", "1000000"]
    both = start(folder, TORCHRUN, *flags, "--name", "both", "--data.batch_size", "4")
    last = folder / "runs" / "both" / "checkpoints" / "last.ckpt"
    wait_for(last, both)
    ranks = subprocess.run(["pgrep", "-P", str(both.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(ranks[-1]), signal.SIGTERM)  # one of them
    said, _ = both.communicate(timeout=300)
    found = re.search(r"geomim: stopped by SIGTERM at step (\d+) of 1000000", said)
    assert both.returncode != 0 and found and said.count("geomim: stopped") == 1, said
    assert step_of(last) == int(found[1])

    monkeypatch.chdir(folder)
    monkeypatch.setattr(StopAfter, "step", int(found[1]))
    monkeypatch.setattr("geomim.verbs.pretrain.Bar", StopAfter)
    alone = ["--name", "one", "--data.batch_size", "8", "--training.progress_bar", "true"]
    assert main([*FLAGS, *flags, *alone]) == 143
    one, two = (
        torch.load(folder / "runs" / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("one", "both")
    )
    assert one["global_step"] == two["global_step"] == int(found[1])
    for name, weight in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], weight, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("job", "said"),
    [("77", "job 77 is queued again"), ("78", r"\(no job 78\): start it again"), ("", "")],
)
def test_a_job_whose_time_is_up_keeps_its_step_and_is_queued_again(folder, tmp_path, monkeypatch, capsys, job, said):
    stand_in = tmp_path / "scontrol"
    stand_in.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n[ $2 = 77 ] || {{ echo no job $2 >&2; exit 1; }}\n')
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(StopAfter, "step", 2)
    monkeypatch.setattr(StopAfter, "number", signal.SIGUSR1)
    monkeypatch.setattr("geomim.verbs.pretrain.Bar", StopAfter)
    flags = f"--name job{job} --data.workers 1 --data.batch_size 4 --training.max_steps 3".split()
    assert main([*FLAGS, *flags, "--training.progress_bar", "true"]) == 138
    assert re.search(rf"stopped by SIGUSR1 at step 2 of 3; go on with --resume last.*{said}\n", capsys.readouterr().err)
    assert step_of(Path(f"runs/job{job}/checkpoints/last.ckpt")) == 2
    asked = tmp_path / "asked"
    assert asked.read_text() == f"requeue {job}\n" if job else not asked.exists()
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert main([*FLAGS, *flags, "--resume", "last"]) == 0


def test_a_second_interrupt_or_one_before_training_ends_at_once():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Signals() as signals:
        with pytest.raises(Interrupted, match="stopped by SIGTERM"):
            os.kill(os.getpid(), signal.SIGTERM)
        signals.on_train_start(SimpleNamespace(world_size=1), None)
        for number in (signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert signals.received == signal.SIGTERM and signals.agreed(1)
        with pytest.raises(Interrupted) as stopped:
            os.kill(os.getpid(), signal.SIGINT)
        assert stopped.value.signal == signal.SIGINT
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
