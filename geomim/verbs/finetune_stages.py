"""`geomim finetune fit`, `test` and `predict`: a tuned task as a config says, its figures, and what it says."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from inspect import cleandoc, signature
from pathlib import Path
from textwrap import dedent
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from geomim.corpus.store import check_folder, write_text
from geomim.errors import CheckpointError, ConfigError, InputError
from geomim.finetune.backbones import Encoder, open_backbone
from geomim.finetune.datamodule import Cut, Windows
from geomim.finetune.labels import Item, open_labels
from geomim.finetune.labels.items import Asked, some
from geomim.finetune.places import Split
from geomim.finetune.predict import open_task
from geomim.finetune.probing import Probing
from geomim.finetune.run import TASK_OF, Model, Running, Tuning
from geomim.finetune.training import Training
from geomim.verbs.finetune_page import Tested, rows_of, verdict, write_page
from geomim.verbs.predict import predict as scenes_to_maps


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

    def __post_init__(self) -> None:
        least = min(1 if self.size is None else self.size, self.batch_size, self.workers + 1)
        if least < 1 or not 0 <= self.empty <= 1:
            expected = "size and batch_size at least 1, workers at least 0 and empty in [0, 1]"
            raise ConfigError(f"windows: expected {expected}; given {self}")


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

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"seed: expected at least 0; given {self.seed}")


class Opened:
    """Labels, encoder and windows of a job."""

    def __init__(self, job: Job) -> None:
        own = job.reading
        self.backbone = open_backbone(job.encoder, job.model.sensor, job.model.bands, job.model.image_size)
        self.labels = open_labels(
            job.scenes, job.labels, own.class_column, own.outside, job.places, own.sensor, own.bands
        )
        self.task = TASK_OF[self.labels.kind]
        if job.task not in ("auto", self.task):
            raise ConfigError(f"task {job.task}: the labels are of kind {self.labels.kind}, which is for {self.task}")
        embed = getattr(self.backbone.network, "patch_embed", None)
        made, patch = getattr(embed, "img_size", None) or (224,), getattr(embed, "patch_size", (1,))
        self.size = job.windows.size or int(made[0])
        divides = not any(self.size % side for side in patch)
        if self.labels.kind == "class" and not divides:
            raise ConfigError(f"size {self.size}: the encoder reads images whole: expected a multiple of {patch}")
        self.resized = self.size if divides and self.size != made[0] else None
        self.cutting = asdict(job.windows) | {"size": self.size, "seed": job.seed}
        self.tuning = self.tuner(job)

    def tuner(self, job: Job) -> Tuning:
        """What tunes the task of a job.

        Raises:
            ConfigError: A probe is asked for of another head, of boxes, or of an encoder that trains.
        """
        given, kind = self.arguments(job), self.labels.kind
        joined = "difference" if kind == "change" else None
        linear = kind == "class" or (given.get("head") in ("linear", "pixels", "both") and given.get("join") == joined)
        if job.run.probe and not (linear and job.training.freeze == "all"):
            raise ConfigError(
                "run.probe fits model.head linear, pixels or both on training.freeze all, of change by join difference"
            )
        return (Probing if job.run.probe else Tuning)(kind, given, job.run, job.seed)

    def arguments(self, job: Job) -> dict[str, Any]:
        """What the task of a job is made with."""
        own = job.model
        encoder = Encoder(job.encoder, own.sensor, own.bands, own.image_size or self.resized)
        given = {"encoder": encoder, "classes": list(self.labels.classes), "training": job.training}
        return own.arguments(self.labels.kind) | given

    def windows(self, split: Split, task: Any = None) -> Windows:
        """The windows, shared out as a split says, for the encoder or for that of a task."""
        contract = task.contract if task else self.backbone.contract
        metres = {"gsds": self.backbone.gsds, "trained_at": self.backbone.trained_at}
        return Windows(self.labels, contract, split=split, **metres, **self.cutting)


def _staged(stage: Callable[..., Any]) -> Callable[..., Any]:
    """Give a stage the fields of a job for its arguments."""
    stage.__signature__ = signature(Job)  # type: ignore[attr-defined]
    stage.__annotations__ = dict(Job.__annotations__)
    stage.__doc__ = f"{cleandoc(str(stage.__doc__))}\n\n{dedent(str(Job.__doc__)).partition(chr(10))[2].strip()}\n"
    return stage


@_staged
def fit(**given: Any) -> Any:
    """Tune an encoder on labels as a config says, and score it on the places that are held out for validation."""
    job = Job(**given)
    check_free(job.out)
    opened = Opened(job)
    windows = opened.windows(job.split)
    words = [*opened.backbone.notes, *windows.notes]
    say(opened, words)
    steps = opened.tuning.steps(windows)
    print(f"training: {steps or 'at once,'} {'steps' if steps else 'by logistic regression'}")
    task = opened.tuning.train(windows, steps)
    keep(Path(job.out), task, windows)
    if windows.parts["val"]:
        _scored(opened, task, windows, "val", Path(job.out) / "val", words)
    close(replace(job, windows=replace(job.windows, size=opened.size)))
    print(f"next: geomim finetune test --config {job.out}/config.yaml")
    return task


@_staged
def test(**given: Any) -> Any:
    """Score what `fit` left in its folder on the places of the test.

    Windows of a file that it was trained on are refused; whether other files show the same ground is for you to know.
    """
    job = Job(**given)
    opened = Opened(job)
    task = _stored(job, opened.task)
    if [*opened.labels.classes] != (own := [*task.hparams["classes"]]):
        raise InputError(f"the labels are of {', '.join(opened.labels.classes)}; the task knows {', '.join(own)}")
    windows = opened.windows(job.split, task)
    _check_unseen(job, windows)
    words = [*opened.backbone.notes, *windows.notes]
    say(opened, words)
    return _scored(opened, task, windows, "test", Path(job.out) / "test", words)


@_staged
def predict(**given: Any) -> list[Path]:
    """Write what the task of a folder says of scenes, into `predicted` there: see `geomim predict`, which this is.

    Give `--config FOLDER/config.yaml --scenes NEW`. Of the arguments below it reads `scenes`, `out`, `reading.sensor`
    and `reading.bands` alone, and takes the encoder from the task.
    """
    job = Job(**given)
    out = Path(job.out)
    if not (out / "task.ckpt").is_file():
        raise CheckpointError(f"'{out}/task.ckpt' does not exist: run geomim finetune fit first, or give its --out")
    bands = job.reading.bands and list(job.reading.bands)
    return scenes_to_maps(job.scenes, job.out, str(out / "predicted"), sensor=job.reading.sensor, bands=bands)


def _stored(job: Job, task: str | None = None) -> Any:
    """The task that a folder holds."""
    path = Path(job.out) / "task.ckpt"
    if not path.is_file():
        raise CheckpointError(f"'{path}' does not exist: run geomim finetune fit first, or give its --out")
    found = open_task(path)
    if task not in (None, found.name):
        raise ConfigError(f"'{path}' is of {found.name}; the labels are for {task}")
    return found.task


def _check_unseen(job: Job, windows: Windows) -> None:
    """Refuse a test on parts of files that were trained on."""
    seen: dict[str, list[list[int]]] = {}
    for image, *place in json.loads((Path(job.out) / "trained.json").read_text()):
        seen.setdefault(_real(image), []).append(place)

    def touches(cut: Cut) -> bool:
        there = [place for image in _dates(windows.labels.items[cut.item]) for place in seen.get(image, ())]
        near = (top < cut.top + cut.side and cut.top < top + side and left < cut.left + cut.side
                and cut.left < left + side for top, left, side in there)  # fmt: skip
        return any(near)

    if count := sum(map(touches, windows.parts["test"])):
        raise InputError(
            f"{count} of {len(windows.parts['test'])} windows of the test were trained on: give --scenes and --labels "
            "of other places, or the split that it was trained with"
        )


def _dates(item: Item) -> list[str]:
    """The images of an item, called alike from wherever one looks."""
    return [_real(uri) for uri in (item.image, item.after) if uri]


def _real(uri: str) -> str:
    return os.path.realpath(uri) if os.path.exists(uri) else uri  # which may be an address


def _scored(opened: Opened, task: Any, windows: Windows, part: str, out: Path, words: Sequence[str]) -> Tested:
    loader = windows.test_dataloader() if part == "test" else windows.val_dataloader()
    opened.tuning.test(task, loader)
    shown = opened.tuning.shown(task, windows, windows.parts[part])
    tested = Tested(task, task.figures(), shown)
    report(out, opened, {opened.backbone.name: tested}, words)
    return tested


def check_free(out: str) -> None:
    """Refuse a folder that holds a run, and a file in its place."""
    check_folder(out)
    if (Path(out) / "config.yaml").exists():
        raise ConfigError(f"'{out}' holds a run already: give another --out")


def say(opened: Opened, words: Sequence[str]) -> None:
    """Print what labels are, and what is to be known."""
    console = Console(highlight=False, markup=False)
    count = len(opened.labels.items)
    said = f"{opened.labels.kind} labels of {count} image{'s' * (count > 1)}: {opened.task}"
    console.print(said, soft_wrap=True)
    for one in words:
        console.print(f"note: {one}", soft_wrap=True)
    if refused := opened.labels.refused:
        why = some((f"'{name}': {reason}" for name, reason in refused), 3)
        console.print(f"note: {len(refused)} images and label files are left out ({why})", soft_wrap=True)


def keep(out: Path, task: Any, windows: Windows) -> None:
    """Write the task, the encoder where it was tuned, and which windows it saw."""
    out.mkdir(parents=True, exist_ok=True)
    kept = {"state_dict": task.state_dict(), "hyper_parameters": dict(task.hparams)}
    kept |= {"pytorch-lightning_version": pl.__version__, "geomim_task": TASK_OF[windows.labels.kind]}
    kept["geomim_size"], kept["geomim_gsd"] = windows.size, windows.gsd
    task.on_save_checkpoint(kept)
    torch.save(kept, part := out / ".task.part")
    part.replace(out / "task.ckpt")
    if task.tuning.freeze != "all":
        try:
            task.export_encoder(out / "encoder")
        except ConfigError as error:
            print(f"note: {error}")
    seen = [[uri, *cut[1:]] for cut in windows.parts["train"] for uri in _dates(windows.labels.items[cut.item])]
    write_text(out / "trained.json", json.dumps(seen))


def close(job: Job) -> None:
    """Write the config, which says that the folder is finished."""
    plain = json.loads(json.dumps(asdict(job)))
    write_text(Path(job.out) / "config.yaml", yaml.safe_dump(plain, sort_keys=False))


def report(out: Path, opened: Opened, found: Mapping[str, Tested], words: Sequence[str], kept: str = "") -> None:
    """Print figures and write the page, whose pictures are of the side that is kept, the first if not told."""
    head, *rows = rows_of(opened.labels.kind, found)
    columns = (Column(one, overflow="fold", min_width=max(map(len, one.split()))) for one in head)
    table = Table(*columns, box=SIMPLE_HEAD, padding=0, show_edge=False)
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, markup=False).print(table)
    for one in verdict(opened.labels.kind, found):
        print(one)
    notes = [*words, *(f"'{name}' is left out: {why}" for name, why in opened.labels.refused)]
    for one in write_page(out, opened.labels, found, notes, kept or next(iter(found))):
        print(one)
    print(f"wrote {out}/index.html, {out}/figures.csv")
