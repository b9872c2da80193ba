"""Land cover by the pixel: the encoder tuned under a linear head that reads band values, too, beside its floors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from geomim.finetune.labels.items import Asked
from geomim.finetune.places import Split
from geomim.finetune.run import PIXELS, RANDOM, Model, Running
from geomim.finetune.training import Training
from geomim.verbs.finetune_stages import Cutting, Job, Opened, close, keep

TUNING = Training(learning_rate=1e-3, layer_decay=1.0)
"""All of the encoder moves, and fast: two minutes of pretraining are little to lose."""


@dataclass(frozen=True)
class Cover:
    """How well land cover is told on scenes that nothing was fitted to.

    Attributes:
        train: Windows that are learned from.
        steps: How many steps of how many windows each.
        pixels: Labelled pixels of the held-out scenes.
        right: Share of these that are right: of the encoder, of as much training from random weights, and of a linear
            head on band values alone, which is fitted at once.
        mean_iou: Mean intersection over union of the classes, likewise.
        most_frequent: Share that would be right if all were said to be of the most frequent class.
    """

    train: int
    steps: tuple[int, int]
    pixels: int
    right: dict[str, float]
    mean_iou: dict[str, float]
    most_frequent: float


def fit_cover(
    train: Sequence[str],
    test: Sequence[str],
    labels: str,
    encoder: str,
    name: str,
    out: Path,
    side: int,
    steps: int,
    sensor: str | None = None,
    bands: list[str] | None = None,
) -> Cover:
    """Tune an encoder on some scenes and score it on others, beside as much training of random weights and band values.

    Args:
        train: Scenes to learn from.
        test: Scenes to score on.
        labels: Folder of their label rasters.
        encoder: A checkpoint.
        name: What it is called.
        out: Folder for the task of the encoder's weights, which `geomim predict` takes.
        side: Of windows in pixels.
        steps: Of training.
        sensor: What took the scenes.
        bands: Names of their bands in file order.
    """
    job = Job(
        scenes=[*train, *test], encoder=encoder, labels=labels, out=str(out), training=TUNING, model=Model(head="both"),
        reading=Asked(sensor=sensor, bands=bands), windows=Cutting(side),
        split=Split(test=tuple(Path(scene).name for scene in test), val=False), run=Running(max_steps=steps),
    )  # fmt: skip
    opened = Opened(job)
    at_once = opened.tuner(replace(job, training=Training("all"), run=Running(probe=True)))
    windows = opened.windows(job.split)
    found = {}
    for called, start in ((name, ""), (RANDOM, RANDOM), (PIXELS, PIXELS)):
        tuning = at_once if start == PIXELS else opened.tuning
        task = tuning.test(tuning.train(windows, steps, start), windows.test_dataloader())
        found[called] = {one["metric"]: one for one in task.figures() if one["class"] == "all"}
        if not start:
            keep(out, task, windows)
    close(job)
    right = {called: float(one["accuracy"]["value"]) for called, one in found.items()}
    overlap = {called: float(one["mean IoU"]["value"]) for called, one in found.items()}
    whole = found[name]["accuracy"]
    learned = len(windows.parts["train"])
    return Cover(learned, (steps, job.windows.batch_size), int(whole["count"]), right, overlap, float(whole["floor"]))
