import json

import torch
from rich.console import Console

from geomim.evaluate.features import Features
from geomim.evaluate.scores import PIXELS, RANDOM, Row, Scores, interval, probe_features, row


def test_interval_is_the_binomial_one_for_one_seed():
    torch.manual_seed(0)
    correct = torch.rand(1, 400) < 0.7
    low, high = interval(correct)
    accuracy = float(correct.double().mean())
    half = 1.96 * (accuracy * (1 - accuracy) / 400) ** 0.5
    assert abs(low - (accuracy - half)) < 0.01 and abs(high - (accuracy + half)) < 0.01
    assert interval(correct) == (low, high)


def test_seeds_that_differ_widen_the_interval():
    good, bad = torch.arange(400) < 360, torch.arange(400) < 200
    low, high = interval(torch.stack([good, bad]))
    assert low < 0.56 and high > 0.84
    assert interval(torch.stack([good, good]))[1] < 0.94


def table(encoder_accuracy: float) -> Scores:
    def one(name, probe, value):
        return Row(name, probe, value, value - 0.01, value + 0.01, (value,))

    rows = (
        one("mae", "knn", 0.5),
        one("mae", "linear", 0.6),
        one("mae", "efficient", encoder_accuracy),
        *(one(RANDOM, probe, 0.3) for probe in ("knn", "linear")),
        *(one(PIXELS, probe, 0.4) for probe in ("knn", "linear")),
    )
    return Scores("data", {}, rows, ("a note",))


def test_a_fallen_floor_is_said_in_words():
    assert table(0.7).warnings() == []
    (sentence,) = table(0.35).warnings()
    assert "mae falls below pixel statistics" in sentence and "0.350 < 0.400" in sentence
    console = Console(record=True, width=120)
    console.print(table(0.35).table())
    shown = console.export_text()
    assert "falls below pixel statistics" in shown and "a note" in shown and RANDOM in shown
    values = json.loads(json.dumps(table(0.35).to_dict()))
    assert values["warnings"] == [sentence]
    assert {"encoder", "probe", "accuracy", "low", "high"} <= set(values["rows"][0])


def test_probing_scores_every_probe():
    torch.manual_seed(0)
    labels = torch.arange(90) % 3
    tokens = (2 * torch.eye(3, 8)[labels][:, None] + torch.randn(90, 4, 8)).half()
    train, test = (Features(part.float().mean(1), labels[:45], part) for part in (tokens[:45], tokens[45:]))
    probed = probe_features("x", train, test, 3, ("knn", "linear", "efficient"), (0, 1))
    assert [one.probe for one in probed.rows] == ["knn", "linear", "efficient"]
    assert all(one.low <= one.accuracy <= one.high and one.accuracy > 0.6 for one in probed.rows)
    assert [len(one.per_seed) for one in probed.rows] == [1, 2, 2]
    assert set(probed.fits) == {"linear", "efficient"}
    without = Features(train.pooled, train.labels)
    assert [one.probe for one in probe_features("x", without, test, 3, ("efficient", "knn"), (0,)).rows] == ["knn"]
    assert row("x", "knn", [labels], labels).accuracy == 1.0
