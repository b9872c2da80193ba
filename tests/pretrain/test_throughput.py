"""How much arithmetic a step is: counted against the formula, and what a run says of its speed."""

import csv
import time
from types import SimpleNamespace

import pytest
import torch
from tiny_corpus import write_corpus
from tiny_recipes import TEXT, annotated

from geomim.data.datamodule import TileDataModule
from geomim.pretrain import throughput
from geomim.pretrain.checkpoints import Checkpoints
from geomim.pretrain.monitor import Bar, Watch
from geomim.pretrain.throughput import count_flops, few, peak
from geomim.verbs.pretrain import Training, build, train
from geomim.verbs.watching import Watching

ENCODER = {"patch_size": 4, "width": 24, "depth": 2, "heads": 2}
METHOD = {"decoder_depth": 1, "decoder_width": 16, "decoder_heads": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    corpus = write_corpus(tmp_path_factory.mktemp("throughput") / "corpus")
    return TileDataModule(str(corpus), batch_size=6, image_size=16, workers=0)


def mae_flops() -> int:
    """Forward and backward, 4 of 16 patches seen: a product of (n, d) and (d, m) is 2ndm, its gradients twice that."""

    def block(tokens, width):
        return 3 * 2 * (12 * tokens * width**2 + 2 * tokens**2 * width)

    embedding = 2 * 2 * 4 * 48 * 24  # pixels need no gradient
    readout = 3 * 2 * (5 * 24 * 16 + 12 * 16 * 48)
    return embedding + 2 * block(5, 24) + block(17, 16) + readout


def test_flops_of_an_image_are_those_of_the_formula_and_leave_no_trace(data):
    model = build(data, "mae", METHOD, ENCODER).model
    batch = data.augment(next(iter(data.train_dataloader())))
    before = torch.random.get_rng_state()
    assert count_flops(model, batch, torch.zeros(())) == pytest.approx(mae_flops(), rel=0.01)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(one.grad is None for one in model.parameters())


def test_a_run_says_its_speed_what_it_waited_and_how_long_it_will_take(data, tmp_path):
    training = Training(max_steps=4, log_every=2, precision="32-true", accelerator="cpu", progress_bar=False)
    train(data, tmp_path, "mae", METHOD, ENCODER, training=training)
    with (tmp_path / "metrics.csv").open() as file:
        rows = [{key: float(value or "nan") for key, value in row.items()} for row in csv.DictReader(file)]
    for row in rows:
        assert row["flops_per_image"] == pytest.approx(mae_flops(), rel=0.01) and "mfu" not in row
        assert row["flops_per_second"] == pytest.approx(row["images_per_second"] * row["flops_per_image"], rel=1e-3)
        assert 0 < row["wait"] < 1 and row["gradient_norm"] > 0
    assert rows[0]["hours_left"] * 3600 == pytest.approx(2 * 6 / rows[0]["images_per_second"], rel=0.2)
    assert rows[1]["hours_left"] == 0


def test_sentences_and_all_images_of_a_step_count_as_they_run(tmp_path):
    corpus = annotated(write_corpus(tmp_path / "corpus"))
    data = TileDataModule(str(corpus), batch_size=16, image_size=16, workers=0)
    model = build(data, "rils", METHOD | {"text": TEXT}, ENCODER).model
    data.provide(model.needs, tokenizer=model.joint.text)
    raw = next(iter(data.train_dataloader()))
    batch, dim, asked = few(data.augment(raw), 8), model.joint.dim, 12
    assert len(raw["image"]) == 16 and len(raw["text"]["key"]) == 2 * len(batch["text"]["key"])
    alone, many, divided = (
        count_flops(model, batch, torch.zeros(()), images, parts)
        for images, parts in ((8, False), (72, False), (8, True))
    )
    compared = 3 * asked * dim + dim + (1 + 4) * (dim + 8)  # patches and gate with sentences; the sums and their slopes
    one = 2 * (dim + 8)  # alone, sentences beside images are images beside sentences
    assert many - alone == pytest.approx(2 * (72 - 8) * compared + 8 * one)
    whole = (2 * 16 * 48 * 24 + 2 * 2 * (12 * 17 * 24**2 + 2 * 17**2 * 24)) + 2 * 24 * dim
    rows, length = batch["text"]["tokens"].shape
    words = rows / 8 * 2 * (12 * length * dim**2 + 2 * length**2 * dim + dim**2)
    assert divided - alone == pytest.approx(whole + words, rel=0.01)


def test_a_copy_of_the_text_tower_counts_once_however_a_step_is_divided(tmp_path):
    corpus = annotated(write_corpus(tmp_path / "corpus"))
    data = TileDataModule(str(corpus), batch_size=8, image_size=16, workers=0)
    models = [
        build(data, "selective_rils", METHOD | {"text": TEXT, "teacher": teacher}, ENCODER).model
        for teacher in ("encoder", "ema")
    ]
    data.provide(models[0].needs, tokenizer=models[0].joint.text)
    batch, dim = data.augment(next(iter(data.train_dataloader()))), models[0].joint.dim
    rows, length = batch["text"]["tokens"].shape
    words = rows / 8 * 2 * (12 * length * dim**2 + 2 * length**2 * dim + dim**2)
    for divided in (False, True):
        one, other = (count_flops(model, batch, torch.zeros(()), 8, divided) for model in models)
        assert other - one == pytest.approx(words, rel=0.01)


def test_what_is_not_asked_yet_is_not_counted(tmp_path):
    corpus = annotated(write_corpus(tmp_path / "corpus"))
    data = TileDataModule(str(corpus), batch_size=6, image_size=16, workers=0)
    training = Training(max_steps=4, log_every=2, precision="32-true", accelerator="cpu", progress_bar=False)
    given = METHOD | {"text": TEXT, "starts": 0.5}
    train(data, tmp_path / "run", "selective_rils", given, ENCODER, training=training)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        before, after = csv.DictReader(file)
    assert float(after["flops_per_image"]) > 1.3 * float(before["flops_per_image"])
    assert before["language"] == "" and float(after["language"]) >= 0


def test_looks_and_checkpoints_are_left_out_of_the_speed_but_not_of_the_time_that_is_left(data, tmp_path, monkeypatch):
    def slow(part, name):
        plain = getattr(part, name)
        monkeypatch.setattr(part, name, lambda *given: time.sleep(0.5) or plain(*given))

    slow(Watch, "_look")
    slow(Checkpoints, "_save")
    training = Training(
        max_steps=4, log_every=2, checkpoint_every=2, precision="32-true", accelerator="cpu", progress_bar=False
    )
    train(data, tmp_path, "mae", METHOD, ENCODER, training=training, watch=Watching(every=2))
    with (tmp_path / "metrics.csv").open() as file:
        row = next(csv.DictReader(file))
    assert float(row["hours_left"]) * 3600 > 2 * 6 / float(row["images_per_second"]) + 0.9


def test_the_pace_is_that_of_the_last_steps_and_what_is_left_counts_what_is_no_training(monkeypatch):
    now = 0.0
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: now))
    pace = throughput.Pace(100)
    assert pace.recent is None
    now, pace.idle = 20.0, 20.0  # FLOPs are counted, once
    for step in range(200):
        now += 4.0 if step < 100 else 1.0
        pace.note()
        if step == 99:
            assert pace.recent == pytest.approx(4) and pace.left(200, 300) == pytest.approx(400)
    assert pace.recent == pytest.approx(1, rel=0.03)
    now, pace.idle = now + 50, pace.idle + 50.0  # a look
    pace.note()
    assert pace.recent < 1.03
    assert pace.left(300, 340) == pytest.approx(40 * (pace.recent + 50 / 200))


def test_the_bar_shows_the_recent_pace(monkeypatch):
    now = 0.0
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: now))
    trainer = SimpleNamespace(is_global_zero=True, max_steps=3700, global_step=0, world_size=1)
    module = SimpleNamespace(latest={}, pace=throughput.Pace(), images_per_step=128)
    bar = Bar()
    bar.on_train_start(trainer, module)
    for trainer.global_step in range(1, 101):
        now += 8.0 if trainer.global_step == 1 else 1.0
        bar.on_train_batch_end(trainer, module)
        module.pace.note()
    bar.on_train_batch_end(trainer, module)
    assert bar._progress.tasks[0].fields["figures"] == "1:00:08 left  128 images/s"
    bar.on_train_end()


def test_the_peak_of_a_device_is_known_by_its_name(monkeypatch):
    assert peak(torch.device("cpu")) is None
    for name, expected in (("NVIDIA H100 PCIe", 756e12), ("NVIDIA H100 80GB HBM3", 989e12), ("Tesla T4", None)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        assert peak(torch.device("cuda")) == expected
