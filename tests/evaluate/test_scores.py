import json

import pytest
import torch
from rich.console import Console

from geomim.evaluate.features import Features
from geomim.evaluate.intervals import interval
from geomim.evaluate.scores import MAJORITY, PIXELS, RANDOM, Row, Scores, majority, probe_features, row


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


def scored(name: str, probe: str, right: int) -> Row:
    """A row that has the first `right` of 100 images right."""
    labels = torch.zeros(100, dtype=torch.int64)
    return row(name, probe, [(torch.arange(100) >= right).long()], labels)


def table(efficient: int) -> Scores:
    rows = (
        scored("mae", "knn", 50),
        scored("mae", "linear", 60),
        scored("mae", "efficient", efficient),
        scored(RANDOM, "knn", 30),
        scored(RANDOM, "linear", 57),
        scored(RANDOM, "efficient", 50),
        *(scored(PIXELS, probe, 40) for probe in ("knn", "linear")),
    )
    return Scores("data", {}, rows, ("a note",))


def test_a_fallen_floor_is_said_in_words():
    assert table(70).warnings() == []
    (sentence,) = table(35).warnings()
    assert sentence == "mae falls below random initialisation: efficient 0.350 < 0.500 (p < 0.001)"
    console = Console(record=True, width=120)
    console.print(table(35).table())
    shown = console.export_text()
    assert "falls below random initialisation" in shown and "a note" in shown and RANDOM in shown
    values = json.loads(json.dumps(table(35).to_dict()))
    assert values["warnings"] == [sentence]
    assert {"encoder", "probe", "accuracy", "low", "high", "balanced", "per_seed"} <= set(values["rows"][0])


def test_only_what_a_paired_test_shows_is_called_above_or_below():
    """57 against 60 right of the same 100, the 57 among the 60: three images differ, p = 2 / 2^3."""
    said = table(51).sentences()
    assert said == [
        "no difference is shown between mae and random initialisation: linear 0.600 and 0.570 (p = 0.25), "
        "efficient 0.510 and 0.500 (p = 1)",
        "mae stands above random initialisation: knn 0.500 > 0.300 (p < 0.001)",
        "mae stands above pixel statistics: knn 0.500 > 0.400 (p = 0.002), linear 0.600 > 0.400 (p < 0.001)",
    ]
    one = table(51).to_dict()["comparisons"][2]
    assert one.pop("p") == pytest.approx(0.25)
    names = {"encoder": "mae", "floor": RANDOM, "probe": "linear"}
    assert one == names | {"accuracy": 0.6, "other": 0.57, "sign": "~"}


def test_the_efficient_probe_is_held_against_efficient_ones_alone():
    compared = {(one["probe"], one["floor"]) for one in table(35).comparisons()}
    assert ("efficient", RANDOM) in compared and ("efficient", PIXELS) not in compared
    assert not any(one["encoder"] in (RANDOM, PIXELS) for one in table(35).comparisons())


def test_where_one_class_has_nearly_all_the_table_says_so():
    labels = (torch.arange(100) >= 95).long()
    always, finds = torch.zeros_like(labels), (torch.arange(100) >= 93).long()
    rows = (
        row("mae", "knn", [always], labels),
        row("mae", "linear", [finds], labels),
        row(PIXELS, "knn", [always], labels),
    )
    scores = Scores("data", {}, rows, (), majority(labels, labels))
    head, plain, alike, _, pixels, floor, level = scores.cells()
    assert head == ["frozen encoder", "", "knn (95 %)", "linear (95 %)"]
    assert plain[:2] == ["mae", "accuracy"] and plain[2].startswith("0.950 (0.888-0.978)")
    assert alike[:2] == ["", "balanced"] and [cell[:7] for cell in alike[2:]] == ["0.500 (", "0.989 ("]
    assert pixels[2][:5] == "0.500" and pixels[3] == "-"
    assert floor[0] == MAJORITY and [cell[:5] for cell in floor[2:]] == ["0.950"] * 2
    assert [cell[:5] for cell in level[2:]] == ["0.500"] * 2
    assert scores.sentences() == [
        "no difference is shown between mae and pixel statistics: knn 0.950 and 0.950 (p = 1)",
        "no difference is shown between mae and majority class: knn 0.950 and 0.950 (p = 1), "
        "linear 0.980 and 0.950 (p = 0.45)",
    ]
    values = scores.to_dict()
    assert values["majority"]["accuracy"] == 0.95 and values["majority"]["balanced"] == 0.5


def test_the_majority_is_that_of_the_training_images():
    floor = majority(torch.tensor([1, 1, 0]), torch.tensor([0, 0, 0, 1]))
    assert (floor.encoder, floor.accuracy, floor.balanced) == (MAJORITY, 0.25, 0.5)


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
    for one in probed.rows:
        assert one.balanced_low <= one.balanced <= one.balanced_high
        assert probed.shares[one.probe].shape == (45, 3)
        assert torch.allclose(probed.shares[one.probe].sum(1), torch.ones(45))
        assert torch.equal((one.answers == one.labels).double().mean(1), torch.tensor(one.per_seed).double())
    without = Features(train.pooled, train.labels)
    assert [one.probe for one in probe_features("x", without, test, 3, ("efficient", "knn"), (0,)).rows] == ["knn"]
    assert row("x", "knn", [labels], labels).accuracy == 1.0
