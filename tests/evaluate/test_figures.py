from typing import get_args

import pytest
import yaml
from rich.console import Console

from geomim.errors import InputError
from geomim.evaluate.figures import CHANCE, Figure, LanguageScores, beside_published
from geomim.resources import root
from geomim.verbs.language import Task

KNOWN = yaml.safe_load((root() / "datasets" / "published" / "language.yaml").read_text())
AVERAGES = {
    "CLIP RN50": 50.61,
    "RemoteCLIP RN50": 53.46,
    "CLIP ViT-B-32": 56.02,
    "RemoteCLIP ViT-B-32": 62.41,
    "CLIP ViT-L-14": 65.67,
    "RemoteCLIP ViT-L-14": 71.30,
}
"""As the paper prints them."""


def test_published_figures_have_the_averages_that_the_paper_prints():
    tables = [(table, models) for tables in KNOWN["sets"].values() for table, models in tables.items()]
    for table, models in tables:
        about = KNOWN["tables"][table]
        assert about["task"] in get_args(Task) and about["source"]
        assert all(len(values) == len(about["metrics"]) for values in models.values())
        if table == "remoteclip-retrieval":
            for values in models.values():
                assert sum(values[:6]) / 6 == pytest.approx(values[6], abs=0.15)
    zeroshot = [models for table, models in tables if table == "remoteclip-zeroshot"]
    assert len(zeroshot) == 12
    for model, average in AVERAGES.items():
        assert sum(models[model][0] for models in zeroshot) / 12 == pytest.approx(average, abs=0.01)


def test_figures_stand_beside_the_published_ones_of_their_task_and_metric():
    measured = Figure("zeroshot", "top-1", 0.5, 0.4, 0.6, {CHANCE: 0.1}), Figure("zeroshot", "mean of classes", 0.4)
    figures, sources = beside_published("WHU_RS19", measured)
    assert figures[0].beside["RemoteCLIP ViT-B-32"] == pytest.approx(0.9612) and figures[0].beside[CHANCE] == 0.1
    assert figures[1].beside == {} and "table III" in sources[0]
    scores = LanguageScores("data", {}, figures, sources)
    console = Console(record=True, width=100)
    console.print(*scores.tables())
    shown = console.export_text()
    assert "96.12" in shown and "40.0-60.0" in shown and "50.00" in shown
    _, sources = beside_published("WHU_RS19", measured[1:])
    assert sources == ("nothing published stands beside: what is known of 'WHU_RS19' is of zeroshot",)
    with pytest.raises(InputError, match="did you mean 'optimal-31'"):
        beside_published("optimal")
