"""Land cover by the pixel: a linear head on what the frozen encoder says and on band values, beside its floors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from geomim.finetune.labels.items import Asked
from geomim.finetune.places import Split
from geomim.finetune.run import PIXELS, RANDOM, Model, Running
from geomim.finetune.training import Training
from geomim.verbs.finetune_stages import Cutting, Job, Opened, close, keep


@dataclass(frozen=True)
class Cover:
    """How well a head tells land cover on scenes that nothing was fitted to.

    Attributes:
        train: Windows that it was fitted to.
        pixels: Labelled pixels of the held-out scenes.
        right: Share of these that are right, by what the head read.
        mean_iou: Mean intersection over union of the classes, likewise.
        most_frequent: Share that would be right if all were said to be of the most frequent class.
    """

    train: int
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
    sensor: str | None = None,
    bands: list[str] | None = None,
) -> Cover:
    """Fit a head at once on some scenes and score it on others, from the encoder, random weights and band values.

    Args:
        train: Scenes to fit on.
        test: Scenes to score on.
        labels: Folder of their label rasters.
        encoder: A checkpoint.
        name: What it is called.
        out: Folder for the task of the encoder's weights, which `geomim predict` takes.
        side: Of windows in pixels.
        sensor: What took the scenes.
        bands: Names of their bands in file order.
    """
    job = Job(
        scenes=[*train, *test], encoder=encoder, labels=labels, out=str(out), training=Training("all"),
        model=Model(head="both"), reading=Asked(sensor=sensor, bands=bands), windows=Cutting(side),
        split=Split(test=tuple(Path(scene).name for scene in test), val=False), run=Running(probe=True),
    )  # fmt: skip
    opened = Opened(job)
    windows = opened.windows(job.split)
    found = {}
    for called, start in ((name, ""), (RANDOM, RANDOM), (PIXELS, PIXELS)):
        task = opened.tuning.test(opened.tuning.train(windows, 0, start), windows.test_dataloader())
        found[called] = {one["metric"]: one for one in task.figures() if one["class"] == "all"}
        if not start:
            keep(out, task, windows)
    close(job)
    right = {called: float(one["accuracy"]["value"]) for called, one in found.items()}
    overlap = {called: float(one["mean IoU"]["value"]) for called, one in found.items()}
    whole = found[name]["accuracy"]
    return Cover(len(windows.parts["train"]), int(whole["count"]), right, overlap, float(whole["floor"]))
