"""A step that is not finite: the tiles to blame, the weights of before it, and the same step again from its file."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_corpus import NAMES, write_corpus
from tiny_recipes import annotated, encoder, method
from tiny_teacher import write_teacher
from torch import nn
from whole_arrays import write_array

from geomim.cli import main
from geomim.corpus.store import Corpus
from geomim.data.datamodule import TileDataModule
from geomim.errors import GeomimError, ResumeError
from geomim.models.weights import read_checkpoint
from geomim.pretrain.module import PretrainModule
from geomim.pretrain.objective import MaskedImageModel
from geomim.pretrain.recipes import RECIPES
from geomim.pretrain.replay import describe
from geomim.randomness import Draws
from geomim.verbs.pretrain import Training, train
from geomim.verbs.replay import rebuild

SIZES = {"method": method("mae", ""), "encoder": encoder("mae") | {"image_size": 16}}
FLAGS = (
    "pretrain --recipe mae --training.precision 32-true --training.accelerator cpu --training.progress_bar false "
    "--data.batch_size 2 --data.workers 0 --training.accumulate 2 --training.max_steps 8 --training.log_every 4 "
    "--training.milestones 8"
).split()
FLAGS += [f"--{part}.{name}={value}" for part, given in SIZES.items() for name, value in given.items()]


def broken_corpus(path: Path) -> int:
    """A corpus of decimal numbers, and the id of its one tile that is not finite: the last of step 3."""
    write_corpus(path)
    stream = iter(TileDataModule(str(path), batch_size=4, workers=0).train_dataloader())
    broken = [next(stream)["id"] for _ in range(3)][-1][-1].item()
    tiles = Corpus.open(path).tiles()
    images = tiles.read(np.arange(24)).astype("float32")
    images[broken - 100, 1, 8:16, 8:16] = np.inf
    shutil.rmtree(path / "tiles.zarr/24/image")
    write_array(path / "tiles.zarr/24/image", images, NAMES)
    return broken


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_tile_that_is_not_finite_is_named_kept_and_found_again(folder, capsys, monkeypatch):
    broken = broken_corpus(folder / "corpus")
    assert main([*FLAGS, "--data.corpus", "corpus", "--name", "run"]) == 1
    said = capsys.readouterr().err
    file = Path("runs/run/failures/step-0000003.pt")
    assert f"the loss of tiles {broken} is not finite in step 3 of 8: 'geomim replay {file}' runs it again" in said
    assert said.count("\n") == 1
    content = read_checkpoint(file)
    failure = content["failure"]
    assert [batch["id"].tolist().count(broken) for batch in failure["raw"]] == [1]  # its micro-batch alone
    assert failure["raw"][0]["image"].isinf().any() and failure["batches"][0]["image"].shape[2:] == (16, 16)
    assert content["geomim"]["step"] == 2 and content["geomim"]["recipe"] == "mae"

    shutil.rmtree("corpus")  # the file is enough
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["replay", str(file), "--accelerator", "gpu"]) == 2 and "give cpu" in capsys.readouterr().err
    for accelerator in ("auto", "cpu"):
        assert main(["replay", str(file), "--accelerator", accelerator]) == 1
        out, err = capsys.readouterr()
        assert f"not finite: input of tiles {broken}\n" in out and f"reconstruction: loss of tiles {broken}\n" in out
        assert "not finite: gradient of encoder.patch_embed" in out and "step 3 is not finite" in err
        losses = {line.split(":")[0]: float(line.split()[-1]) for line in out.splitlines() if line.startswith("tile ")}
        assert len(losses) == 2 and [name for name, loss in losses.items() if not np.isfinite(loss)] == [
            f"tile {broken}"
        ]


class Follower(nn.Module):
    """Counts the steps it followed."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def before_step(self, progress):
        self.seen += 1


def test_weights_and_what_follows_them_stay_those_of_before_the_step_which_runs_again_to_the_bit(folder, monkeypatch):
    write_corpus(folder / "corpus", nodata=True)
    flags = [*FLAGS, "--data.corpus", "corpus"]
    assert main([*flags, "--name", "whole", "--training.log_every", "1"]) == 0
    check = PretrainModule._check

    def fail(self, losses):
        wrong = torch.nan if self.trainer.global_step == 4 else 0.0
        return check(self, [one + wrong for one in losses])

    with monkeypatch.context() as patch:
        patch.setattr(PretrainModule, "_check", fail)
        initialise = MaskedImageModel.__init__

        def follow(self, *args, **options):
            initialise(self, *args, **options)
            self.follower = Follower()

        patch.setattr(MaskedImageModel, "__init__", follow)
        patch.setattr(MaskedImageModel, "before_step", lambda self, progress: self.follower.before_step(progress))
        assert main([*flags, "--name", "cut", "--training.log_every", "8", "--training.milestones", "0"]) == 1
    assert not list(Path("runs/cut/checkpoints").iterdir())  # it is read at step 8 only
    content = read_checkpoint("runs/cut/failures/step-0000005.pt")
    assert content["state_dict"].pop("model.follower.seen") == 5  # it moves before the step
    before = read_checkpoint("runs/whole/checkpoints/step-0000004.ckpt")["state_dict"]
    assert set(before) == set(content["state_dict"])
    for name, weight in before.items():
        assert torch.equal(weight, content["state_dict"][name]), name

    failure = content["failure"]
    assert failure["tiles"] == [] and len(failure["batches"]) == 2  # no loss is to blame: all of the step is kept
    model = rebuild("runs/cut/failures/step-0000005.pt", content).train()
    progress = torch.full((), failure["progress"])
    contexts = [model.context(batch, Draws(0, batch["position"])) for batch in failure["batches"]]
    loss = sum(model.compare(one, model.plan(one, progress), progress, failure["totals"]).loss for one in contexts)
    with Path("runs/whole/metrics.csv").open() as file:
        logged = {row["step"]: row["loss"] for row in csv.DictReader(file)}
    assert f"{loss.item():.6g}" == logged["5"]


def train_as(recipe, folder, corpus, teacher, log_every, resume=None):
    """Three small steps of two micro-batches, with bands dropped."""
    arguments = method(recipe, teacher) | ({"bands": ["red"]} if recipe == "dmjd" else {})
    data = TileDataModule(str(corpus), 2, 16, workers=0, pairs="place" if recipe == "croco" else None)
    training = Training(3, 2, "32-true", "cpu", log_every=log_every, progress_bar=False)
    dropping = encoder(recipe) | {"band_dropout": 0.6}
    train(data, folder, recipe, arguments, dropping, training=training, resume=resume)


def fail_in_step_2(monkeypatch):
    check = PretrainModule._check
    monkeypatch.setattr(
        PretrainModule,
        "_check",
        lambda self, losses: check(self, [one * torch.nan if self.trainer.global_step == 1 else one for one in losses]),
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_step_of_every_recipe_runs_again(folder, monkeypatch, recipe):
    corpus, teacher = annotated(write_corpus(folder / "corpus", nodata=True)), write_teacher(folder / "teacher")
    train_as(recipe, folder / "whole", corpus, teacher, 1)
    fail_in_step_2(monkeypatch)
    with pytest.raises(GeomimError, match="not finite in step 2"):  # read at step 3
        train_as(recipe, folder / "cut", corpus, teacher, 3)
    file = folder / "cut" / "failures" / "step-0000002.pt"
    content = read_checkpoint(file)
    failure, progress = content["failure"], torch.full((), content["failure"]["progress"])
    model = rebuild(file, content).train()
    given = (failure[name] for name in ("totals", "steps"))
    lines, finite = describe(model, failure["batches"], failure["seed"], progress, *given)
    assert finite and len([line for line in lines if line.startswith("tile")]) == 4
    norm = torch.nn.utils.get_total_norm([one.grad for one in model.parameters() if one.grad is not None])
    with (folder / "whole" / "metrics.csv").open() as table:
        logged = {row["step"]: float(row["gradient_norm"]) for row in csv.DictReader(table)}
    assert norm.item() == pytest.approx(logged["2"], rel=1e-5)


def test_a_teacher_of_other_weights_is_refused_on_resume_and_said_at_replay(folder, monkeypatch, capsys):
    corpus, teacher = write_corpus(folder / "corpus"), write_teacher(folder / "teacher")
    train_as("mask_align", folder / "whole", corpus, teacher, 1)
    with monkeypatch.context() as patch, pytest.raises(GeomimError):
        fail_in_step_2(patch)
        train_as("mask_align", folder / "cut", corpus, teacher, 1)
    said, file = "has other weights than it had in the run", str(folder / "cut" / "failures" / "step-0000002.pt")
    assert main(["replay", file]) == 0 and said not in capsys.readouterr().out
    write_teacher(folder / "teacher", mlp_ratio=2.0)
    with pytest.raises(ResumeError, match=r"weights of method\.teacher \w{32}, this run has"):
        train_as("mask_align", folder / "whole", corpus, teacher, 1, resume="last")
    assert main(["replay", file]) == 0 and said in capsys.readouterr().out


def test_a_file_that_is_no_failure_is_refused(folder, capsys):
    torch.save({"geomim": {}}, "other.pt")
    assert main(["replay", "other.pt"]) == 1
    assert "expected failures/step-NNNNNNN.pt" in capsys.readouterr().err
