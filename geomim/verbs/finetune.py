"""`geomim finetune`: scenes, labels and an encoder in; a tuned task and its figures by class out."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from inspect import signature
from pathlib import Path
from textwrap import dedent
from typing import Any, Literal

import torch
import yaml
from rich.console import Console
from rich.table import Table

from geomim.addresses import split_list
from geomim.corpus.scenes import find_scenes
from geomim.corpus.store import write_text
from geomim.errors import CheckpointError, ConfigError, InputError
from geomim.finetune.backbones import open_backbone
from geomim.finetune.datamodule import Cut, Windows
from geomim.finetune.labels import Labels, open_labels
from geomim.finetune.labels.items import Asked, Outside
from geomim.finetune.places import Split
from geomim.finetune.predict import predicted
from geomim.finetune.run import TASK_OF, TASKS, Model, Running, Tuning
from geomim.finetune.training import Training
from geomim.sensors import get_sensor
from geomim.verbs.finetune_page import RANDOM, Tested, rows_of, write_page

FEW = 200
"""Labelled windows from which on a test of its own is held out and the whole encoder is tuned."""


@dataclass(frozen=True)
class Cutting:
    """Windows that scenes are cut to; see `geomim.finetune.datamodule.Windows`.

    Args:
        size: Side in pixels; that of the images which the encoder was made for where not given.
        batch_size: Windows of a batch.
        workers: Reading processes.
        turn: Mirror and turn windows for training.
        empty: Greatest share of windows without a box in training.
    """

    size: int | None = None
    batch_size: int = 16
    workers: int = 0
    turn: bool = True
    empty: float = 0.5


@dataclass(frozen=True)
class Job:
    """What `fit`, `test` and `predict` are given.

    Args:
        scenes: Images, folders of them, or patterns.
        encoder: A run folder, a checkpoint, an exported folder, or `timm:NAME`.
        labels: A file or a folder of labels; looked for among the scenes if not given.
        out: Folder of the run.
        task: What is to be learned; the kind of the labels says so, and must not say otherwise.
        seed: Of the head, of the order, and of all that is drawn.
        places: Table of columns `path` and `place`: images of one place are never divided.
        model: The head, and what the encoder is given.
        training: What trains, and how.
        reading: What is to be known of scenes and labels.
        split: How places are shared out to train, val and test.
        windows: What scenes are cut to.
        run: How long, and on what.
    """

    scenes: list[str]
    encoder: str
    labels: str | None = None
    out: str = "finetuned"
    task: Literal["auto", "classification", "segmentation", "detection", "change"] = "auto"
    seed: int = 0
    places: str | None = None
    model: Model = Model()  # noqa: RUF009  # frozen
    training: Training = Training()  # noqa: RUF009  # frozen
    reading: Asked = Asked()  # noqa: RUF009  # frozen
    split: Split = Split()  # noqa: RUF009  # frozen
    windows: Cutting = Cutting()  # frozen
    run: Running = Running()  # noqa: RUF009  # frozen


class _Opened:
    """Labels, encoder and windows of a job."""

    def __init__(self, job: Job) -> None:
        own = job.reading
        self.labels = open_labels(
            job.scenes, job.labels, own.class_column, own.outside, job.places, own.sensor, own.bands
        )
        self.task = TASK_OF[self.labels.kind]
        if job.task not in ("auto", self.task):
            raise ConfigError(f"task {job.task}: the labels are of kind {self.labels.kind}, which is for {self.task}")
        self.model = job.model.arguments(self.labels.kind)
        self.backbone = open_backbone(job.encoder, job.model.sensor, job.model.bands, job.model.image_size)
        embed = getattr(self.backbone.network, "patch_embed", None)
        made = getattr(embed, "img_size", None) or (224,)
        self.size = job.windows.size or int(made[0])
        self.cutting = asdict(job.windows) | {"size": self.size, "seed": job.seed}
        given = {"encoder": job.encoder, "classes": list(self.labels.classes), "training": job.training}
        self.tuning = Tuning(self.labels.kind, self.model | given, job.run, job.seed)

    def windows(self, split: Split) -> Windows:
        """The windows, shared out as a split says."""
        return Windows(self.labels, self.backbone.contract, split=split, **self.cutting)


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

    Of fewer than 200 labelled windows the encoder stays as it is under a small head, and folds by place take turns as
    the test, so that each label is tested once; what is kept is trained on all of them. Of more the whole encoder is
    tuned, and one fold is the test.

    Args:
        scenes: An image, a folder, or a pattern; several between commas.
        labels: A file or a folder of labels.
        encoder: A run folder, a checkpoint, an exported folder, or `timm:NAME`.
        out: Folder to write: the task, its config, figures, pictures and a page.
        minutes: Time of training, for both sides and all folds together; reading once and testing come on top.
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
    given = [scenes] if Path(scenes).exists() else split_list(scenes)
    job = Job(
        scenes=given,
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
    _check_free(out)
    opened = _Opened(job)
    plans, words = _plans(opened, job.split)
    few = _count(plans[0]) < FEW
    if few:
        words.append(
            f"{_count(plans[0])} labelled windows are fewer than {FEW}: the encoder stays as it is under a small head, "
            + (f"and {len(plans)} folds by place take turns as the test" if len(plans) > 1 else "tested as told")
        )
    else:
        words.append(f"{_count(plans[0])} labelled windows: the whole encoder is tuned, and tested on one fold")
    words = [*opened.backbone.notes, *plans[0].notes, *words]
    _say(opened, words)
    job = replace(job, **_recipe(opened.labels, few))
    share = minutes / (2 * len(plans) + (len(plans) > 1))
    opened.tuning = Tuning(
        opened.labels.kind,
        opened.tuning.arguments | job.model.arguments(opened.labels.kind) | {"training": job.training},
        Running(minutes=share),
        seed,
    )
    steps = opened.tuning.steps(plans[0])
    print(f"{minutes:g} minutes of training: {2 * len(plans) + (len(plans) > 1)} runs of {steps} steps")
    found = {
        opened.backbone.name: _crossed(opened.tuning, plans, steps, None),
        RANDOM: _crossed(opened.tuning, plans, steps, seed),
    }
    task, last = found[opened.backbone.name].task, plans[0]
    if len(plans) > 1:
        last.parts["train"] = [cut for plan in plans for cut in plan.parts["test"]]
        task = opened.tuning.train(last, steps)
    job = replace(job, windows=replace(job.windows, size=opened.size), run=Running(max_steps=steps))
    _keep(job, task, last)
    _report(Path(out), opened, found, words)
    print(f"next: geomim finetune predict --config {out}/config.yaml --scenes NEW_SCENES")
    return found


def _staged(stage: Callable[..., Any]) -> Callable[..., Any]:
    """Give a stage the fields of a job for its arguments."""
    stage.__signature__ = signature(Job)  # type: ignore[attr-defined]
    stage.__annotations__ = dict(Job.__annotations__)
    stage.__doc__ = f"{stage.__doc__}\n\n{dedent(str(Job.__doc__)).partition(chr(10))[2].strip()}\n"
    return stage


@_staged
def fit(**given: Any) -> Any:
    """Tune an encoder on labels as a config says, and score it on the places that are held out for validation."""
    job = Job(**given)
    _check_free(job.out)
    opened = _Opened(job)
    windows = opened.windows(job.split)
    words = [*opened.backbone.notes, *windows.notes]
    _say(opened, words)
    steps = opened.tuning.steps(windows)
    print(f"training: {steps} steps")
    task = opened.tuning.train(windows, steps)
    _keep(replace(job, windows=replace(job.windows, size=opened.size)), task, windows)
    if windows.parts["val"]:
        _scored(opened, task, windows, "val", Path(job.out) / "val", words)
    print(f"next: geomim finetune test --config {job.out}/config.yaml")
    return task


@_staged
def test(**given: Any) -> Any:
    """Score what `fit` left in its folder on the places of the test, which must be none that it was trained on."""
    job = Job(**given)
    opened = _Opened(job)
    task = _stored(job, opened.task)
    if [*opened.labels.classes] != (own := [*task.hparams["classes"]]):
        raise InputError(f"the labels are of {', '.join(opened.labels.classes)}; the task knows {', '.join(own)}")
    windows = opened.windows(job.split)
    _check_unseen(job, windows)
    words = [*opened.backbone.notes, *windows.notes]
    _say(opened, words)
    return _scored(opened, task, windows, "test", Path(job.out) / "test", words)


@_staged
def predict(**given: Any) -> list[str]:
    """Write what the task of a folder says of scenes: maps of classes as GeoTIFF, boxes or classes as CSV."""
    job = Job(**given)
    task = _stored(job)
    own, out = job.reading, Path(job.out) / "predicted"
    uris = find_scenes(job.scenes)
    sensor = get_sensor(own.sensor) if own.sensor else None
    files = predicted(task, uris, out, job.windows.size or 224, sensor, own.bands)
    print("\n".join(f"wrote {file}" for file in files))
    return files


def _stored(job: Job, task: str | None = None) -> Any:
    """The task that a folder holds."""
    path = Path(job.out) / "task.ckpt"
    if not path.is_file():
        raise CheckpointError(f"'{path}' does not exist: run geomim finetune fit first, or give its --out")
    state = torch.load(path, map_location="cpu", weights_only=True)
    name = state["geomim_task"]
    if task not in (None, name):
        raise ConfigError(f"'{path}' is of {name}; the labels are for {task}")
    return TASKS[name].load_from_checkpoint(path, map_location="cpu", weights_only=True).eval()


def _check_unseen(job: Job, windows: Windows) -> None:
    """Refuse a test on ground that was trained on."""
    seen: dict[str, list[list[int]]] = {}
    for image, *place in json.loads((Path(job.out) / "trained.json").read_text()):
        seen.setdefault(image, []).append(place)

    def touches(cut: Cut) -> bool:
        there = seen.get(windows.labels.items[cut.item].image, ())
        near = (top < cut.top + cut.side and cut.top < top + side and left < cut.left + cut.side
                and cut.left < left + side for top, left, side in there)  # fmt: skip
        return any(near)

    if count := sum(map(touches, windows.parts["test"])):
        raise InputError(
            f"{count} of {len(windows.parts['test'])} windows of the test were trained on: give --scenes and --labels "
            "of other places, or the split that it was trained with"
        )


def _scored(opened: _Opened, task: Any, windows: Windows, part: str, out: Path, words: Sequence[str]) -> Tested:
    loader = windows.test_dataloader() if part == "test" else windows.val_dataloader()
    opened.tuning.test(task, loader)
    shown = opened.tuning.shown(task, windows, windows.parts[part])
    tested = Tested(task, task.figures(), shown)
    _report(out, opened, {opened.backbone.name: tested}, words)
    return tested


def _recipe(labels: Labels, few: bool) -> dict[str, Any]:
    """Head and training by how many labels there are."""
    dense = labels.kind in ("mask", "change")
    if few:
        return {"model": Model(head="linear" if dense else None), "training": Training("all", learning_rate=3e-3)}
    return {"training": Training("none", learning_rate=5e-4)}


def _plans(opened: _Opened, split: Split) -> tuple[list[Windows], list[str]]:
    """Windows of each fold, or of the one test that folders tell or that many labels need; what folds cannot be."""
    plans, lost = [opened.windows(split)], []
    if _count(plans[0]) >= FEW or any(item.split == "test" for item in opened.labels.items):
        return plans, lost
    for fold in range(1, split.folds):
        try:
            plan = opened.windows(replace(split, fold=fold))
        except InputError as error:
            lost.append(f"fold {fold} is left out: {error}")
            continue
        if plan.parts["test"] == plans[0].parts["test"]:
            break  # there are fewer places than folds, and it begins again
        plans.append(plan)
    return plans, lost


def _count(windows: Windows) -> int:
    return sum(map(len, windows.parts.values()))


def _crossed(tuning: Tuning, plans: Sequence[Windows], steps: int, seed: int | None) -> Tested:
    """Trained and tested on each fold, and counted as one test."""
    first, shown = None, []
    for windows in plans:
        task = tuning.train(windows, steps, seed)
        tuning.test(task, windows.test_dataloader())
        shown += tuning.shown(task, windows, windows.parts["test"], -(-24 // len(plans))) if seed is None else []
        if first is None:
            first = task
        else:
            first.tally.merge_state(task.tally)
            first.tally._computed = None  # merging keeps the answer from before
    return Tested(first, first.figures(), shown)


def _check_free(out: str) -> None:
    if (Path(out) / "config.yaml").exists():
        raise ConfigError(f"'{out}' holds a run already: give another --out")


def _say(opened: _Opened, words: Sequence[str]) -> None:
    console = Console(highlight=False, markup=False)
    console.print(f"{opened.labels.kind} labels of {len(opened.labels.items)} images: {opened.task}", soft_wrap=True)
    for one in words:
        console.print(f"note: {one}", soft_wrap=True)


def _keep(job: Job, task: Any, windows: Windows) -> None:
    """Write the task, how it came to be, and which windows it saw."""
    out = Path(job.out)
    out.mkdir(parents=True, exist_ok=True)
    task.trainer.save_checkpoint(part := out / ".task.part")
    state = torch.load(part, map_location="cpu", weights_only=True)
    kept = {key: state[key] for key in ("state_dict", "hyper_parameters", "pytorch-lightning_version") if key in state}
    torch.save(kept | {"geomim_task": TASK_OF[windows.labels.kind]}, part)
    part.replace(out / "task.ckpt")
    seen = [[windows.labels.items[cut.item].image, *cut[1:]] for cut in windows.parts["train"]]
    write_text(out / "trained.json", json.dumps(seen))
    plain = json.loads(json.dumps(asdict(job)))
    write_text(out / "config.yaml", yaml.safe_dump(plain, sort_keys=False))


def _report(out: Path, opened: _Opened, found: dict[str, Tested], words: Sequence[str]) -> None:
    """Print figures and write the page."""
    head, *rows = rows_of(opened.labels.kind, found)
    table = Table(*head)
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, markup=False).print(table)
    notes = [*words, *(f"'{name}' is left out: {why}" for name, why in opened.labels.refused)]
    for one in write_page(out, opened.labels, found, notes):
        print(one)
    print(f"wrote {out}/index.html, {out}/figures.csv")
