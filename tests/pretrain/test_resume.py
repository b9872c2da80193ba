import lightning.pytorch as pl
import pytest
import torch
from tiny_corpus import write_corpus
from tiny_recipes import annotated, encoder, method
from tiny_teacher import write_teacher

from geomim.data.datamodule import TileDataModule
from geomim.pretrain.recipes import RECIPES
from geomim.verbs import pretrain as verb

TRAINING = verb.Training(
    max_steps=5,
    accumulate=2,
    precision="32-true",
    accelerator="cpu",
    progress_bar=False,
    log_every=2,
    checkpoint_every=2,
)


class Killed(BaseException):
    """What a signal does to the process."""


class Kill(pl.Callback):
    """Ends the run in the middle of an accumulation, after the last checkpoint and a step that it does not hold."""

    seen = 0

    def on_before_backward(self, trainer, pl_module, loss):
        self.seen += 1
        if self.seen == 8:
            raise Killed


def run(corpus, folder, recipe, resume=None, kill=False, monkeypatch=None):
    # 18 training tiles, 8 a step: epochs end inside micro-batches, the first one in step 3
    pairs = "place" if recipe == "croco" else None
    workers = 2 if recipe == "selective_mae" else 0  # to start them takes time
    data = TileDataModule(str(corpus), batch_size=4, image_size=16, workers=workers, pairs=pairs)
    if kill:
        monkeypatch.setattr(verb, "Bar", Kill)
        training = verb.Training(**{**TRAINING.__dict__, "progress_bar": True})
    else:
        training = TRAINING
    given = method(recipe, f"timm:local-dir:{corpus.parent / 'teacher'}")
    if recipe == "latent_mim":
        given |= {"gap": 1}
    verb.train(data, folder, recipe, given, encoder(recipe), training=training, resume=resume)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    write_teacher(folder / "teacher")
    return annotated(write_corpus(folder / "corpus", nodata=True))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_killed_run_resumes_into_the_weights_of_an_undisturbed_one(corpus, tmp_path, monkeypatch, recipe):
    run(corpus, tmp_path / "whole", recipe)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        run(corpus, tmp_path / "cut", recipe, kill=True, monkeypatch=patch)
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["geomim"]["step"] == 2
    run(corpus, tmp_path / "cut", recipe, resume="last")
    whole, cut = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "cut")
    )
    assert whole["global_step"] == cut["global_step"] == 5
    for name, weight in whole["state_dict"].items():
        assert torch.equal(weight, cut["state_dict"][name]), name
    figures = [(tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("whole", "cut")]
    steps = [[line.split(",")[0] for line in lines] for lines in figures]
    assert steps[0] == steps[1] == ["step", "2", "4", "5"]
    assert figures[0][2].split(",")[1] == figures[1][2].split(",")[1]  # the loss of steps 3 and 4
