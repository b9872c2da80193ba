"""`geomim finetune SCENES LABELS --encoder PATH`: the task that labels are for, tuned beside random weights."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from geomim.addresses import split_list
from geomim.errors import ConfigError, InputError
from geomim.finetune.datamodule import Windows
from geomim.finetune.labels import Labels
from geomim.finetune.labels.items import Asked, Outside
from geomim.finetune.places import Split
from geomim.finetune.run import PIXELS, RANDOM, Model, Running, Tuning
from geomim.finetune.training import Training
from geomim.verbs.finetune_page import Tested, means
from geomim.verbs.finetune_stages import Cutting, Job, Opened, check_free, close, keep, report, say

FEW = 200
"""Labelled windows from which on one part is the test, and the whole encoder is tuned."""
_SHORT = 100  # steps below which figures say little


def finetune(
    scenes: str,
    labels: str,
    encoder: str,
    out: str = "finetuned",
    minutes: float = 5.0,
    size: int | None = None,
    folds: int = 5,
    class_column: str | None = None,
    outside: Outside = "auto",
    places: str | None = None,
    sensor: str | None = None,
    bands: list[str] | None = None,
    batch_size: int = 16,
    workers: int = 0,
    seed: int = 0,
) -> dict[str, Tested]:
    """Tune an encoder on labels, and say what that is worth beside the same from random weights.

    Task and head follow from the labels: masks and polygons give segmentation, boxes Faster R-CNN, rotated boxes an
    oriented detector, a folder a class classification, pairs change. Train and test are of different places.

    Of fewer than 200 labelled windows the encoder stays as it is under a linear head, and folds by place take turns as
    the test, so that each label is tested once; what is kept is fitted to all of them, and reads pixel statistics
    where these tell more. Of more the whole encoder is tuned, and one fold is the test.

    Args:
        scenes: An image, a folder, or a pattern; several between commas.
        labels: A file or a folder of labels; FILE:LAYER of a vector file of several layers.
        encoder: A run folder, a checkpoint, an exported folder, or `timm:NAME`.
        out: Folder to write: the task, its config, figures, pictures and a page.
        minutes: Time of training where it goes by steps, for both sides and all folds together; of linear heads none.
        size: Side of windows in pixels; that of the images which the encoder was made for if not given.
        folds: Parts that places are shared out to.
        class_column: Column of a vector file that holds the class.
        outside: What no polygon covers: `unlabelled`, `background`, or the latter where there is one class (`auto`).
        places: Table of columns `path` and `place`: images of one place are never divided.
        sensor: What took the scenes.
        bands: Names of their bands in file order.
        batch_size: Windows of a batch.
        workers: Reading processes.
        seed: Of head, order and random weights.

    Returns:
        What was tested, by the name of the encoder's weights.

    Raises:
        ConfigError: A value is out of its range, or the folder holds a run.
        InputError: Scenes or labels cannot be used; the sentence says why.
    """
    if folds < 2:
        raise ConfigError(f"folds: expected at least 2; given {folds}")
    check_free(out)
    job = Job(
        scenes=[scenes] if Path(scenes).exists() else split_list(scenes),
        encoder=encoder,
        labels=labels,
        out=out,
        seed=seed,
        places=places,
        model=Model(sensor=sensor),
        reading=Asked(class_column, outside, sensor, None if bands is None else tuple(bands)),
        split=Split(folds=folds, val=False),
        windows=Cutting(size, batch_size, workers),
        run=Running(minutes=minutes),
    )
    opened = Opened(job)
    plans, lost = _plans(opened, job.split)
    count = sum(map(len, plans[0].parts.values()))
    job, rule = _recipe(job, opened.labels, plans, count)
    words = [*opened.backbone.notes, *plans[0].notes, *lost, rule]
    say(opened, words)
    return _beside(job, opened, plans, words)


def _beside(job: Job, opened: Opened, plans: Sequence[Windows], words: list[str]) -> dict[str, Tested]:
    """Train and test from the encoder's weights and from its floors, keep a task, and report."""
    out, minutes, again = job.out, job.run.minutes or 0, len(plans) > 1  # what is kept is trained on all
    times = 2 * len(plans) + again
    tuning = opened.tuner(replace(job, run=replace(job.run, minutes=minutes / times)))
    if steps := tuning.steps(plans[0]):
        print(f"{minutes:g} minutes of training: {times} times {steps} steps")
    if 0 < steps < _SHORT:
        words.append(f"{steps} steps are hardly a training: give more --minutes, a smaller --size or fewer --folds")
        print(f"note: {words[-1]}")
    found = {opened.backbone.name: _crossed(tuning, plans, steps), RANDOM: _crossed(tuning, plans, steps, RANDOM)}
    kind, start = opened.labels.kind, ""
    if kind not in ("boxes", "oboxes"):
        floor = tuning if job.run.probe else opened.tuner(_probed(job, kind))
        found[PIXELS] = _crossed(floor, plans, 0, PIXELS)
    score = means(kind, found)
    if job.run.probe and kind != "class" and score[PIXELS] > score[opened.backbone.name]:
        start, job = PIXELS, replace(job, model=replace(job.model, head="pixels"))
        words.append("the task that is kept reads pixel statistics: they tell more here than the encoder does")
        print(f"note: {words[-1]}")
    windows = plans[0].undivided() if again else plans[0]
    task = tuning.train(windows, steps, start) if again else found[start or opened.backbone.name].task
    keep(Path(out), task, windows)
    report(Path(out), opened, found, words, start)
    run = Running(max_steps=steps or None, probe=job.run.probe)
    close(replace(job, windows=replace(job.windows, size=opened.size), run=run))
    alone = opened.labels.kind != "change"  # which is of pairs
    print(f"next: geomim finetune predict --config {out}/config.yaml --scenes NEW_SCENES" if alone else f"page: {out}")
    return found


def _recipe(job: Job, labels: Labels, plans: Sequence[Windows], count: int) -> tuple[Job, str]:
    """The job with head and training by how many labels there are, and that in a sentence."""
    said = f"{count} labelled windows are {'fewer than' if count < FEW else 'at least'} {FEW}: "
    tested = f"{len(plans)} folds by place take turns as the test" if len(plans) > 1 else "one part is the test"
    if count >= FEW:
        return replace(job, training=Training()), f"{said}the encoder is tuned; {tested}"
    said += f"the encoder stays as it is under a head that {{}}; {tested}"
    if labels.kind in ("boxes", "oboxes"):
        return replace(job, training=Training("all")), said.format("trains")
    return _probed(job, labels.kind), said.format("logistic regression fits at once, without --minutes")


def _probed(job: Job, kind: str) -> Job:
    """A job whose head is fitted on a frozen encoder."""
    head = {"mask": {"head": "linear"}, "change": {"head": "linear", "join": "difference"}}.get(kind, {})
    run = replace(job.run, probe=True)
    return replace(job, model=replace(job.model, **head), training=Training("all"), run=run)


def _plans(opened: Opened, split: Split) -> tuple[list[Windows], list[str]]:
    """Windows of each fold, or of the one test that folders tell or that many labels need; what folds cannot be."""
    plans, lost = [opened.windows(split)], list[str]()
    if sum(map(len, plans[0].parts.values())) >= FEW or any(item.split == "test" for item in opened.labels.items):
        return plans, lost
    for fold in range(1, split.folds):
        try:
            plans.append(plans[0].shared(replace(split, fold=fold)))
        except InputError as error:
            lost.append(f"fold {fold} is left out: {error}")
        except ConfigError:  # folds are no more than places, which is said
            break
    return plans, lost


def _crossed(tuning: Tuning, plans: Sequence[Windows], steps: int, start: str = "") -> Tested:
    """Trained and tested on each fold, and counted as one test."""
    first, shown = None, []
    for windows in plans:
        task = tuning.train(windows, steps, start)
        tuning.test(task, windows.test_dataloader())
        shown += [] if start == RANDOM else tuning.shown(task, windows, windows.parts["test"], -(-24 // len(plans)))
        if first is None:
            first = task
        else:
            first.tally.merge_state(task.tally)
            first.tally._computed = None  # merging keeps the answer from before
    return Tested(first, first.figures(), shown)
