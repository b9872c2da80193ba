"""How many steps fill some minutes: by a clock of the tests, which training itself moves."""

import csv
import os
import time
from types import SimpleNamespace

import pytest
import torch
import yaml
from tiny_corpus import write_corpus
from tiny_recipes import DECODER, ENCODER, TEXT, annotated
from two_ranks import two_ranks

from geomim.cli import main
from geomim.data.datamodule import Steps, TileDataModule
from geomim.errors import CheckpointError, ConfigError, ResumeError
from geomim.pretrain import module
from geomim.pretrain.checkpoints import Checkpoints
from geomim.pretrain.module import PretrainModule
from geomim.pretrain.monitor import MetricsTable
from geomim.sensors import get_sensor
from geomim.verbs import pretrain as verb
from geomim.verbs.config import Training, read_config
from geomim.verbs.pretrain import train

QUICK = {"precision": "32-true", "accelerator": "cpu", "progress_bar": False, "log_every": 1}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return str(annotated(write_corpus(tmp_path_factory.mktemp("minutes") / "corpus")))


@pytest.fixture
def clock(monkeypatch):
    """A clock that a step moves by 2 s, and by `whole` seconds where all terms are asked; the first takes longer."""
    clock = SimpleNamespace(now=0.0, steps=[], whole=4.0)
    plain = PretrainModule.training_step

    def step(self, *given):
        plain(self, *given)
        seconds = 2.0 if any(term.silent for term in self.model.terms) else clock.whole
        clock.now += seconds + (4.0 if not clock.steps else 0.0)
        clock.steps.append((self.rehearsed, seconds))

    monkeypatch.setattr(PretrainModule, "training_step", step)
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    return clock


def run(corpus, folder, recipe="mae", resume=None, config=None, method=(), **training):
    data = TileDataModule(corpus, batch_size=4, image_size=16, workers=0)
    given = Training(**QUICK | training)
    train(data, folder, recipe, DECODER | dict(method), ENCODER, training=given, resume=resume, config=config)
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def test_a_run_of_minutes_ends_on_time_and_is_the_one_of_so_many_steps(corpus, clock, tmp_path, capsys):
    last = run(corpus, tmp_path / "timed", minutes=1)
    steps, said = last["geomim"]["step"], capsys.readouterr().out
    assert len(clock.steps) - steps == 2  # a step is longer than what is to be timed
    assert 56 < clock.now <= 60 and steps == clock.steps.count((None, 4.0))
    assert (
        f"1 minutes of training: {steps} steps of 4 images, 4 s each, after {clock.now - 4 * steps:g} s of timing"
        in said
    )
    same = run(corpus, tmp_path / "counted", max_steps=steps)
    assert all(torch.equal(last["state_dict"][name], one) for name, one in same["state_dict"].items())
    tables = [(tmp_path / name / "metrics.csv").open() for name in ("timed", "counted")]
    for one, other in zip(*map(csv.DictReader, tables), strict=True):
        assert all(one[name] == other[name] for name in ("step", "loss", "learning_rate", "images"))


def test_terms_that_start_late_count_by_the_share_in_which_they_are_asked(corpus, clock, tmp_path):
    last = run(corpus, tmp_path, "selective_rils", method={"text": TEXT, "gate": False, "starts": 0.75}, minutes=2)
    rehearsed = [step for step in clock.steps if step[0] is not None]
    assert rehearsed == [(0.0, 2.0)] * 2 + [(0.75, 4.0)] * 2
    assert 115 < clock.now <= 120 and last["geomim"]["step"] == len(clock.steps) - len(rehearsed)


def test_graphs_and_flops_of_a_sensor_that_comes_later_are_no_part_of_a_step(
    corpus, clock, tmp_path, monkeypatch, capsys
):
    stats, plain, known, first = torch._dynamo.utils.counters["stats"], PretrainModule._survey, set(), []
    monkeypatch.setitem(stats, "unique_graphs", 7)

    def compiled(self, parts, progress):
        if parts[0]["sensor"] not in known:
            known.add(parts[0]["sensor"])
            stats["unique_graphs"] += 1
            clock.now += 40.0
            first.append(len(clock.steps))
        return plain(self, parts, progress)

    def counted(*_):
        clock.now += 10.0
        return 1.0

    monkeypatch.setattr(PretrainModule, "_survey", compiled)
    monkeypatch.setattr(module, "count_flops", counted)
    other = write_corpus(tmp_path / "s2", sensor=get_sensor("sentinel2", ["B02", "B03", "B04", "B08"]), seed=1)
    data = TileDataModule([corpus, str(other)], batch_size=4, image_size=16, workers=0)
    train(data, tmp_path / "run", "mae", DECODER, ENCODER | {"spectral": True}, training=Training(**QUICK, minutes=5))
    assert first[0] == 0 < first[1] < sum(rehearsed is not None for rehearsed, _ in clock.steps)
    assert 296 < clock.now <= 300 and "4 s each, on average over the sensors that came up" in capsys.readouterr().out


def test_what_is_read_ahead_does_not_hide_how_long_reading_takes(corpus, clock, tmp_path, monkeypatch):
    """A step is read in 4 s and computed in 1 s; two of them wait while the first one is computed."""
    clock.whole, plain = 1.0, Steps.__iter__

    def read(self):
        ready, taken = clock.now, []
        for step in plain(self):
            ready = max([ready, *taken[-2:-1]]) + 4.0
            clock.now = max(clock.now, ready)
            taken.append(clock.now)
            yield step

    monkeypatch.setattr(Steps, "__iter__", read)
    data = TileDataModule(corpus, batch_size=2, image_size=16, workers=2)
    train(data, tmp_path, "mae", DECODER, ENCODER, training=Training(**QUICK, accumulate=2, minutes=2))
    assert 114 < clock.now < 123 and sum(rehearsed is not None for rehearsed, _ in clock.steps) == 3


def test_what_pruning_noted_is_forgotten_and_its_epochs_are_those_of_the_steps(corpus, clock, tmp_path):
    last = run(corpus, tmp_path / "timed", minutes=1, prune=0.5)
    same = run(corpus, tmp_path / "counted", max_steps=last["geomim"]["step"], prune=0.5)
    assert torch.equal(last["pruning"]["losses"], same["pruning"]["losses"])


def test_steps_are_stored_and_a_resumed_run_has_them(corpus, clock, tmp_path, monkeypatch):
    config = {"recipe": "mae", "training": {"max_steps": 10_000, "minutes": 1.0}}
    save = Checkpoints._save
    told: list[dict] = []
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Checkpoints, "_save", lambda *given: save(*given) or 1 / 0)
        patch.setattr(verb, "WandbLogger", MetricsTable)
        patch.setattr(MetricsTable, "log_hyperparams", lambda _, config: told.append(config))
        run(corpus, tmp_path, config=config, minutes=1, checkpoint_every=3)
    text = (tmp_path / "config.yaml").read_text()
    stored = yaml.safe_load(text)["training"]
    assert text.startswith("# max_steps: what fills 1 minutes") and stored["minutes"] is None
    assert told == [config | {"training": stored}]
    half = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["geomim"]
    assert half["step"] == 3 and half["settings"]["training.max_steps"] == stored["max_steps"]
    assert half["provenance"]["config"]["training"] == stored and half["settings"]["training.minutes"] == 1
    clock.steps.clear()
    done = run(corpus, tmp_path, resume="last", config=config, minutes=1, checkpoint_every=3)["geomim"]
    assert done["step"] == stored["max_steps"] and not done["history"]
    assert [step for step, _ in clock.steps] == [None] * (stored["max_steps"] - 3)
    assert (tmp_path / "config.yaml").read_text() == text
    torch.save({"state_dict": {}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="not written by geomim pretrain"):
        run(corpus, tmp_path / "other", resume=tmp_path / "other.pth", minutes=1)
    with pytest.raises(ResumeError, match=r"fixed by training.minutes 1, this run has training.minutes 2.*max_steps"):
        run(corpus, tmp_path, resume="last", minutes=2)
    longer = run(corpus, tmp_path, resume="last", max_steps=done["step"] + 1)["geomim"]
    assert longer["step"] == done["step"] + 1 and longer["history"][0]["changed"]["training.minutes"] == [1.0, None]


def test_minutes_that_hold_no_step_are_refused(corpus, clock, tmp_path):
    with pytest.raises(ConfigError, match=r"training.minutes 0.1: a step takes 4 s here.*give more minutes, or"):
        run(corpus, tmp_path, minutes=0.1)
    assert not (tmp_path / "config.yaml").exists()
    with pytest.raises(ConfigError, match=r"training.milestones: expected 0 to training.max_steps, \d+; given 900"):
        run(corpus, tmp_path, minutes=1, milestones=900)


def test_minutes_and_steps_are_one_length_which_is_said_last(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("data: {corpus: c}\ntraining: {max_steps: 7}\n")
    asked = ["--config", str(file)]
    assert read_config(asked).training.max_steps == 7
    timed = read_config([*asked, "--training.minutes", "5"])
    assert timed.training.minutes == 5 and timed.written["training"]["max_steps"] == Training.max_steps
    for nothing in ("null", "~"):
        assert read_config([*asked, "--training.minutes", nothing]).training.max_steps == 7
    file.write_text("data: {corpus: c}\ntraining: {minutes: 5}\n")
    assert read_config([*asked, "--training.max_steps=9"]).training == Training(max_steps=9)
    with pytest.raises(ConfigError, match=r"command line: training.max_steps and training.minutes.* give one"):
        read_config([*asked, "--training.minutes", "5", "--training.max_steps", "10000"])
    file.write_text("training: {minutes: 5, max_steps: 4}\n")
    with pytest.raises(ConfigError, match=r"run.yaml: training.max_steps and training.minutes both"):
        read_config(asked)
    for wrong in ({"minutes": 0}, {"minutes": float("inf")}, {"minutes": 1, "max_steps": 4}):
        with pytest.raises(ConfigError, match=r"training.minutes: .*in place of training.max_steps"):
            Training(**wrong)


def test_ranks_have_the_steps_of_the_first(corpus, tmp_path, monkeypatch):
    plain, now = PretrainModule.training_step, [0.0]

    def slower_by_rank(self, *given):
        plain(self, *given)
        now[0] += 4.0 * (1 + int(os.environ["RANK"]))

    monkeypatch.setattr(PretrainModule, "training_step", slower_by_rank)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    flags = (
        "pretrain --recipe mae --method.decoder_depth 1 --method.decoder_width 16 --method.decoder_heads 2 "
        "--encoder.image_size 16 --encoder.patch_size 4 --encoder.width 24 --encoder.depth 1 --encoder.heads 2 "
        "--training.precision 32-true --training.accelerator cpu --training.progress_bar false --data.batch_size 4 "
        f"--data.workers 1 --training.minutes 1 --out {tmp_path} --name run --data.corpus {corpus}"
    ).split()
    two_ranks(lambda: main(flags), tmp_path)
    entry = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["geomim"]
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["training"]["max_steps"]
    assert entry["step"] == entry["settings"]["training.max_steps"] == stored == (60 - 3 * 4) // 4
