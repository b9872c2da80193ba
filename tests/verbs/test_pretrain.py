"""The verb as a user meets it: exit codes, sentences, and what a resumed run may change."""

import csv
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml
from tiny_corpus import write_corpus

from geomim.cli import main
from geomim.data.datamodule import TileDataModule
from geomim.data.tiles import TileSet
from geomim.errors import CorpusError
from geomim.models.text import Text
from geomim.pretrain.module import PretrainModule
from geomim.verbs.pretrain import build

FLAGS = (
    "pretrain --recipe mae --method.decoder_depth 1 --method.decoder_width 16 --method.decoder_heads 2 "
    "--encoder.image_size 16 --encoder.patch_size 4 --encoder.width 24 --encoder.depth 1 --encoder.heads 2 "
    "--training.precision 32-true --training.accelerator cpu --training.progress_bar false --data.corpus corpus "
    "--data.batch_size 4 --data.workers 0 --training.max_steps 4 --training.log_every 1 --name run"
).split()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of four steps, with its second as a checkpoint."""
    root = tmp_path_factory.mktemp("verb")
    write_corpus(root / "corpus", nodata=True)
    here = Path.cwd()
    os.chdir(root)
    assert main([*FLAGS, "--training.milestones", "2"]) == 0
    os.chdir(here)
    return root


@pytest.fixture
def half(trained, tmp_path, monkeypatch):
    """A copy of it that stopped after two steps."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "run" / "checkpoints"
    (folder / "step-0000002.ckpt").replace(folder / "last.ckpt")
    return folder / "last.ckpt"


def files(folder):
    return {path: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def rates(run):
    with (run / "metrics.csv").open() as file:
        return {int(row["step"]): float(row["learning_rate"]) for row in csv.DictReader(file)}


def test_the_rate_given_on_resume_is_used_said_stored_and_remembered(half, trained, capsys):
    run = half.parents[1]
    before = rates(run)
    assert main([*FLAGS, "--resume", "last", "--optimizer.base_learning_rate", "1e-6", "--training.clip", "1"]) == 0
    changed = "from step 2: optimizer.base_learning_rate 0.00015 -> 1e-06, training.clip None -> 1.0"
    assert f"other than before, {changed}, " in capsys.readouterr().out
    after = rates(run)
    assert [after[step] for step in (1, 2)] == [before[step] for step in (1, 2)]
    for step in (3, 4):
        assert after[step] == pytest.approx(before[step] * 1e-6 / 1.5e-4, rel=1e-4)
    stored = (run / "config.yaml").read_text()
    assert stored.startswith(f"# {changed}")
    assert yaml.safe_load(stored)["optimizer"]["base_learning_rate"] == 1e-6
    checkpoint = torch.load(half, weights_only=True)
    assert checkpoint["geomim"]["history"][0]["step"] == 2
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(after[4], rel=1e-4)


def test_more_steps_spread_the_schedule_anew(half):
    run = half.parents[1]
    assert main([*FLAGS, "--resume", "last", "--training.max_steps", "6"]) == 0
    whole = rates(run)
    assert main([*FLAGS, "--name", "fresh", "--training.max_steps", "6"]) == 0
    fresh = rates(run.with_name("fresh"))
    assert [whole[step] for step in (3, 4, 5, 6)] == [fresh[step] for step in (3, 4, 5, 6)]


def test_a_run_that_is_done_says_so_and_no_other_starts_from_it_without_more_steps(half, capsys):
    end = str(half.with_name("step-0000004.ckpt"))
    assert main([*FLAGS, "--name", "next", "--resume", end]) == 2
    assert re.search(r"step 4 already and --training.max_steps is 4: give more", capsys.readouterr().err)
    assert not Path("runs/next").exists()
    assert main([*FLAGS, "--name", "next", "--resume", end, "--training.max_steps", "5"]) == 0
    assert main([*FLAGS, "--resume", "last"]) == 0 and "the run is done" not in capsys.readouterr().out
    before = files(half.parents[1])
    for resume in ("last", str(half)):
        assert main([*FLAGS, "--resume", resume]) == 0
        said = capsys.readouterr().out
        assert "the run is done: step 4 of 4" in said and "encoder: runs/run/checkpoints/last.ckpt" in said
    assert files(half.parents[1]) == before


def test_another_runs_checkpoint_does_not_overwrite_a_run(half, capsys):
    shutil.copytree(half.parents[1], "runs/other")
    before = files(Path("runs"))
    for resume in ("step-0000004.ckpt", "last.ckpt"):
        other = Path("runs/other/checkpoints", resume)
        assert main([*FLAGS, "--resume", str(other), "--training.max_steps", "5"]) == 2
        assert "'runs/run' holds a run already: go on with --resume last" in capsys.readouterr().err
    assert files(Path("runs")) == before


def test_the_same_images_in_other_micro_batches_go_on_exactly(half, trained):
    assert main([*FLAGS, "--resume", "last", "--data.batch_size", "1", "--training.accumulate", "4"]) == 0
    whole = torch.load(trained / "runs" / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name, weight in torch.load(half, weights_only=True)["state_dict"].items():
        torch.testing.assert_close(weight, whole[name], atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--seed", "7"], "seed 0, this run has 7"),
        (["--data.batch_size", "8"], r"batch_size \* devices \* nodes \* accumulate 4, this run has 8"),
        (["--training.accumulate", "2"], r"batch_size \* devices \* nodes \* accumulate 4, this run has 8"),
        (["--data.scale", "[0.9,1.0]"], r"data.scale\[0\] 0.2, this run has 0.9"),
        (["--data.split", "val"], "data.corpus"),
        (["--optimizer.weight_decay", "0.5"], "optimizer.weight_decay 0.05, this run has 0.5"),
        (["--optimizer.warmup", "0.5"], "optimizer.warmup 0.05, this run has 0.5"),
        (["--method.visible", "0.5"], "method.visible 0.25, this run has 0.5"),
        (["--encoder.depth", "2"], "encoder.depth 1, this run has 2"),
        (["--encoder.band_dropout", "0.5"], r"encoder.band_dropout 0.0, this run has 0.5"),
        (["--recipe", "cross_mae"], "recipe mae, this run has cross_mae"),
        (["--data.corpus", "other"], "data.corpus"),
        (["--training.max_steps", "1"], "is at step 2: give more training.max_steps"),
    ],
)
def test_all_else_is_refused_by_name_and_leaves_every_file(half, capsys, flags, said):
    write_corpus(Path("other"), count=32, nodata=True)
    before = files(half.parents[1])
    assert main([*FLAGS, "--resume", "last", *flags]) == 2
    error = capsys.readouterr().err
    assert re.search(said, error) and error.count("\n") == 1
    assert files(half.parents[1]) == before
    assert main([*FLAGS, *flags, "--name", "another"]) == 0  # what the sentence says to do


def test_a_seed_of_more_than_64_bits_is_refused(half, capsys):
    assert main([*FLAGS, "--name", "new", "--seed", str(2**65)]) == 2
    assert "seed: expected a whole number of 64 bits" in capsys.readouterr().err and not Path("runs/new").exists()


def test_a_checkpoint_that_does_not_say_how_its_images_are_stored_goes_on(half):
    checkpoint = torch.load(half, weights_only=True)
    assert checkpoint["geomim"]["contracts"]["rgb"].pop("dtype") == "uint8"
    torch.save(checkpoint, half)
    assert main([*FLAGS, "--resume", "last"]) == 0


def test_a_moved_corpus_is_the_same_corpus(half):
    Path("corpus").rename("moved")
    assert main([*FLAGS, "--resume", "last", "--data.corpus", "moved"]) == 0


def test_weights_that_a_run_started_from_may_be_gone_and_stay_its_start(half, capsys):
    started = [*FLAGS, "--name", "started", "--encoder.weights"]
    half.rename("first.ckpt")
    assert main([*started, "first.ckpt", "--training.max_steps", "2"]) == 0
    last = Path("runs/started/checkpoints/last.ckpt")
    start = torch.load(last, weights_only=True)["geomim"]["provenance"]["start"]
    assert "started from first.ckpt" in start
    Path("first.ckpt").rename("other.ckpt")
    assert main([*started, "other.ckpt", "--resume", "last"]) == 2
    assert "encoder.weights first.ckpt, this run has other.ckpt" in capsys.readouterr().err
    assert main([*started, "first.ckpt", "--resume", "last"]) == 0
    entry = torch.load(last, weights_only=True)["geomim"]
    assert entry["step"] == 4 and entry["provenance"]["start"] == start


def test_a_damaged_checkpoint_is_named_and_nothing_is_written(half, capsys):
    half.write_bytes(half.read_bytes()[:-200])
    before = files(half.parents[1])
    assert main([*FLAGS, "--resume", "last"]) == 1
    assert f"'{half.relative_to(Path.cwd())}'" in (error := capsys.readouterr().err) and "damaged" in error
    assert files(half.parents[1]) == before


def test_the_advice_after_a_loss_that_is_not_finite_works(half, capsys, monkeypatch):
    check = PretrainModule._check

    def diverge(self, losses):
        return check(self, [one * torch.nan if self.optimisation.base_learning_rate > 1 else one for one in losses])

    monkeypatch.setattr(PretrainModule, "_check", diverge)
    before = files(half.parent)
    assert main([*FLAGS, "--resume", "last", "--optimizer.base_learning_rate", "2"]) == 1
    assert "half of optimizer.base_learning_rate" in capsys.readouterr().err and files(half.parent) == before
    for advice in (
        ["--optimizer.base_learning_rate", "1"],
        ["--training.clip", "1"],
        ["--training.precision", "32-true"],
    ):
        assert main([*FLAGS, "--resume", "last", *advice]) == 0


def test_weights_that_a_step_ruined_are_not_stored(half, capsys, monkeypatch):
    step = PretrainModule.training_step

    def ruin(self, parts, batch_idx):
        step(self, parts, batch_idx)
        if self.trainer.global_step == 4:
            next(self.model.parameters()).data.fill_(torch.nan)

    with monkeypatch.context() as patch:
        patch.setattr(PretrainModule, "training_step", ruin)
        assert main([*FLAGS, "--resume", "last", "--training.checkpoint_every", "1"]) == 1
    error = capsys.readouterr().err
    assert "weights are not finite after step 4. Try half of" in error and "milestone" in error
    assert torch.load(half, weights_only=True)["geomim"]["step"] == 3
    assert main([*FLAGS, "--resume", "last", "--optimizer.base_learning_rate", "1e-5"]) == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--data.batch_size", "0"], "data.batch_size: expected at least 1; given 0"),
        (["--data.batch_size", "-1"], "data.batch_size: expected at least 1; given -1"),
        (["--data.workers", "-1"], "data.workers: expected at least 0; given -1"),
        (["--data.scale", "[0.9,0.1]"], "data.scale and data.ratio: expected"),
        (["--training.accelerator", "mps"], "training.accelerator mps"),
        (["--training.devices", "0"], "training.devices: expected 1"),
        (["--training.nodes", "2"], "torchrun"),
        (["--training.max_steps", "0"], "training.max_steps: expected at least 1; given 0"),
        (["--training.accumulate", "0"], "training.accumulate: expected at least 1; given 0"),
        (["--training.clip", "-1"], "clip"),
        (["--training.clip", "0"], "training.clip: expected above 0, or left out; given 0.0"),
        (["--training.milestones", "5"], "training.milestones: expected 0 to training.max_steps, 4; given 5"),
        (["--optimizer.warmup", "1.5"], "warmup in [0, 1)"),
        (["--optimizer.layer_decay", "0"], "layer_decay in (0, 1]"),
        (["--encoder.patch_size", "7"], "given 16/7"),
        (["--encoder.heads", "5"], "and 24/5"),
        (["--encoder.heads", "0"], "at least 1"),
        (["--encoder.depth", "0"], "at least 1"),
        (["--method.decoder_heads", "5"], "given 16/5"),
        (["--data.corpus", "corpus", "corpus"], r"--data.corpus '[a,b]'"),
    ],
)
def test_wrong_arguments_are_sentences(trained, monkeypatch, capsys, flags, said):
    monkeypatch.chdir(trained)
    assert main([*FLAGS, "--name", "wrong", *flags]) == 2
    error = capsys.readouterr().err
    assert said in error and "unexpected" not in error and error.count("\n") == 1
    assert not Path("runs/wrong").exists()


def test_the_list_that_the_sentence_shows_is_read(trained, monkeypatch):
    monkeypatch.chdir(trained)
    assert main([*FLAGS, "--name", "list", "--data.corpus", "[corpus,corpus]", "--training.max_steps", "1"]) == 0


def test_no_gpu_is_a_sentence(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([*FLAGS, "--name", "gpu", "--training.accelerator", "gpu"]) == 2
    assert "cannot be had on this machine" in capsys.readouterr().err


def test_a_run_folder_that_cannot_be_written_is_a_sentence(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    Path("file").write_text("")
    assert main([*FLAGS, "--out", "file"]) in (1, 2)
    error = capsys.readouterr().err
    assert "file" in error and "unexpected" not in error


class Fails(pl.Callback):
    error: Exception

    def on_train_batch_start(self, *_):
        raise self.error


def test_a_gpu_without_memory_is_a_sentence(half, monkeypatch, capsys):
    monkeypatch.setattr(Fails, "error", torch.OutOfMemoryError("CUDA out of memory"), raising=False)
    monkeypatch.setattr("geomim.verbs.pretrain.Bar", Fails)
    assert main([*FLAGS, "--resume", "last", "--training.progress_bar", "true"]) == 1
    assert "--training.accumulate 2, which is the same training" in capsys.readouterr().err
    monkeypatch.undo()
    os.chdir(half.parents[3])
    assert main([*FLAGS, "--resume", "last", "--data.batch_size", "2", "--training.accumulate", "2"]) == 0


def test_a_killed_reading_process_is_a_sentence_that_names_memory(half, monkeypatch, capsys):
    monkeypatch.setattr(TileSet, "read", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    monkeypatch.setattr("geomim.data.datamodule.TileDataModule.pictures", lambda *_: {"sensor": "rgb"})
    monkeypatch.setattr("geomim.verbs.pretrain.Watch", lambda *_: pl.Callback())
    assert main([*FLAGS, "--resume", "last", "--data.workers", "1"]) == 1
    error = capsys.readouterr().err
    assert "memory" in error and "--data.workers" in error and "geomim: unexpected" not in error
    monkeypatch.undo()
    os.chdir(half.parents[3])
    assert main([*FLAGS, "--resume", "last", "--data.workers", "0"]) == 0


def test_a_fault_in_a_reading_process_is_its_sentence(half, monkeypatch, capsys):
    def read(*_):
        raise CorpusError("shard 3 is damaged")

    monkeypatch.setattr(TileSet, "read", read)
    monkeypatch.setattr("geomim.data.datamodule.TileDataModule.pictures", lambda *_: {"sensor": "rgb"})
    monkeypatch.setattr("geomim.verbs.pretrain.Watch", lambda *_: pl.Callback())
    assert main([*FLAGS, "--resume", "last", "--data.workers", "1"]) == 1
    assert capsys.readouterr().err.strip().splitlines()[-1] == "geomim: shard 3 is damaged"


FULL = """
import resource, sys
from pathlib import Path
from geomim.cli import main
limit = Path("runs/run/checkpoints/last.ckpt").stat().st_size // 2
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.exit(main(sys.argv[1:]))
"""


def test_a_full_disk_leaves_the_last_good_checkpoint(half):
    before = files(half.parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", FULL, *FLAGS, "--resume", "last", "--training.checkpoint_every", "1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "cannot save" in done.stderr and "last.ckpt' at step 3" in done.stderr, done.stderr
    assert files(half.parent) == before
    assert main([*FLAGS, "--resume", "last"]) == 0


def test_a_run_from_one_published_model_starts_as_that_model(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    sizes = {"embed_dim": 48, "text_cfg": {"context_length": 16, "width": 64, "heads": 1, "layers": 2}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": sizes}))
    vision = {"image_size": 16, "layers": 2, "width": 64, "patch_size": 8}
    published = open_clip.CLIP(48, vision, sizes["text_cfg"], quick_gelu=True).eval()
    published.logit_scale.data.fill_(3.0)
    torch.save(published.state_dict(), tmp_path / "published.pt")
    weights = f"remoteclip:{tmp_path / 'published.pt'}"
    data = TileDataModule(str(write_corpus(tmp_path / "corpus")), batch_size=2, image_size=16, workers=0)
    method = {"text": Text(f"local-dir:{tmp_path}", weights), "pool": "class"}
    encoder = {"width": 64, "depth": 2, "heads": 1, "patch_size": 8, "clip": "quick_gelu", "weights": weights}
    model = build(data, "remote_clip", method, encoder).model
    images, words = torch.randn(2, 3, 16, 16), model.joint.text.tokenize(["a river", "many planes"])
    with torch.no_grad():
        for ours, theirs in (
            (model.joint.image(model.encoder(images)), published.encode_image(images, normalize=True)),
            (model.joint.sentences(words), published.encode_text(words, normalize=True)),
            (model.joint.scale, published.logit_scale.exp()),
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert any("projection of images and temperature started from" in note for note in model.encoder.notes)
    alone = build(data, "remote_clip", method, encoder | {"weights": None}).model
    assert alone.joint.scale != published.logit_scale.exp()
