"""`geomim evaluate-text`: what a model of images and sentences can do, beside chance and published figures."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from geomim import __version__
from geomim.corpus.store import Corpus, write_json
from geomim.data.described import Described, Masks, open_described
from geomim.data.labelled import Labelled, LabelledData
from geomim.errors import ConfigError, InputError
from geomim.evaluate.features import device_of
from geomim.evaluate.fewshot import VALIDATION, draw, few_shot, possible
from geomim.evaluate.figures import Figure, LanguageScores, beside_published
from geomim.evaluate.intervals import INTERVALS
from geomim.evaluate.retrieval import mean_average_precision, retrieval
from geomim.evaluate.scores import MAJORITY, majority
from geomim.evaluate.sentences import class_vectors, class_words, read_prompts, unit
from geomim.evaluate.zeroshot import classification, count_pixels, counted, counting, segmentation
from geomim.models.image_text import ImageText, open_image_text
from geomim.models.inputs import ContractInput
from geomim.models.ranges import check_range
from geomim.verbs.candidate import Batches, suited
from geomim.verbs.trained_on import seen_in_training

Task = Literal["zeroshot", "map", "retrieval", "retrieval-official", "counting", "fewshot", "segmentation"]
_OF_CLASSES = {"zeroshot", "map", "fewshot", "segmentation"}


def evaluate_text(
    model: str,
    data: str,
    tasks: list[Task] | None = None,
    out: str = "evaluation-text",
    pictures: str | None = None,
    prompts: str = "remoteclip",
    names: dict[str, str] | None = None,
    beside: str | None = None,
    shots: list[int] = [1, 4, 8, 16, 32],  # noqa: B006  # never changed; jsonargparse shows it in help
    seeds: int = 3,
    train_split: str = "train",
    test_split: str = "test",
    sensor: str | None = None,
    all_bands: bool = False,
    quickgelu: bool | None = None,
    trained_on: list[str] | None = None,
    device: str = "auto",
) -> LanguageScores:
    """Score a model of images and sentences on images with classes, sentences, objects or masks.

    zeroshot: accuracy of the class whose sentence is nearest. map: text-to-image mAP@100 of classes, and mAP of several
    an image. retrieval: recall both ways, where a sentence that several images share is a hit of each;
    retrieval-official: as RemoteCLIP's script counts. counting: RemoteCount's protocol, on sentences with one number.
    fewshot: linear probes on a few images a class. segmentation: patches against classes.

    Args:
        model: A geomim checkpoint or export of a recipe with sentences, `remoteclip:PATH` or
            `open_clip:NAME/PRETRAINED`.
        data: A corpus; a folder with a folder of pictures for each class; or a file of sentences (RSICD's and UCM's
            JSON, CSV, JSONL) that names pictures.
        tasks: What to score; all that the data allow where not given, but counting.
        out: Folder for `language.json`.
        pictures: Folder of the pictures that a file of sentences names; its own where not given.
        prompts: Sentences of classes: remoteclip, clip, clip-eurosat, clip-resisc45, aerial, or a text file with
            `{class}` in each line.
        names: Words for classes whose names are none, as `--names.denseresidential "dense residential"`, or under
            `names:` in a `--config` file.
        beside: Evaluation set (rsicd, rsitmd, ucm, aid, eurosat ...) whose published figures stand beside.
        shots: Images a class for fewshot.
        seeds: How many draws for fewshot, from 0.
        train_split: Split that fewshot draws from.
        test_split: Split to score on.
        sensor: Name or YAML file of a sensor that says what the images' numbers mean, where they say it wrongly.
        all_bands: Give an encoder of any sensor all bands of the images, not only those it was trained on.
        quickgelu: Activation of a CLIP model, which its file does not tell; as its source says where not given.
        trained_on: Corpora that the model trained on, among whose tiles test images are looked for; those that its
            weights name, where not given.
        device: `auto`, `cpu`, `cuda` or another torch device.

    Returns:
        The scores, which are also printed.

    Raises:
        InputError: The data lack what a task needs, or a set, prompt or class is none.
        CheckpointError: The model cannot be read.
        BandError: The images lack bands that the model needs.
    """
    if seeds < 1 or tasks == []:
        raise ConfigError(f"expected at least one task and one seed; given {tasks} and {seeds}")
    _ = beside and beside_published(beside)  # that there are any is known before the work
    templates, target, given = read_prompts(prompts), device_of(device), [Corpus.open(one) for one in trained_on or ()]
    opened = open_image_text(model, quickgelu)
    said = open_described(data, train_split, test_split, pictures, opened.image_size)
    said = replace(said, images=said.images.told(sensor)) if sensor else said
    images, chosen = said.images, _tasks(said, tasks)
    words = class_words(images.classes, names or {}) if _OF_CLASSES & {*chosen} else []
    able, few = possible(images.train.labels, images.classes, shots) if "fewshot" in chosen else ([], ())
    fitted, prepare, notes = _fitted(opened, model, images, all_bands, target)
    seen = seen_in_training(opened.loaded.details, images, data, given)
    classes = class_vectors(fitted.encode_text, words, templates) if words else torch.zeros(0, 0)
    figures = _score(fitted, prepare, said, chosen, classes, able, seeds, target)
    beside_them, sources = beside_published(beside, figures) if beside else (tuple(figures), ())
    protocol = {"model": model, "fingerprint": opened.fingerprint, "image_size": opened.image_size, "data": data}
    protocol |= {"split": test_split, "test_images": len(images.test), "classes": words, "prompts": list(templates)}
    protocol |= {"seeds": seeds, "interval": INTERVALS, "geomim_version": __version__}
    asked = (f"classes are asked for as '{templates[0]}', of {', '.join(words)}",) * bool(words)
    notes = (*images.notes, *seen, *notes, *few, *asked, *_left_out(said, chosen), *sources)
    scores = LanguageScores(images.name, protocol, beside_them, notes)
    _publish(scores, Path(out) / "language.json")
    return scores


def _publish(scores: LanguageScores, file: Path) -> None:
    write_json(file, asdict(scores))
    console = Console(markup=False, highlight=False)  # brackets in names are no style
    count, split = scores.protocol["test_images"], scores.protocol["split"]
    console.print(f"{scores.data}, {count} images of split '{split}':", *scores.tables(), sep="\n")
    console.print(*scores.notes, f"wrote {file}", sep="\n")


def _tasks(said: Described, asked: list[Task] | None) -> list[str]:
    """Those asked for, or that the data can answer.

    Raises:
        InputError: They cannot.
    """
    labelled, texts, classes = bool((said.images.test.labels >= 0).any()), said.texts, len(said.images.classes)
    alone = "two classes to tell apart" if classes < 2 else ""
    few = classes and np.bincount(said.images.train.labels, minlength=classes).min() <= VALIDATION
    enough = f"{VALIDATION + 1} images of every class in a train split, and classes in a test split"
    lacks = {
        "zeroshot": alone if labelled else "classes",
        "map": alone if said.kinds.any() else "classes",
        "retrieval": "" if texts else "sentences",
        "retrieval-official": "" if texts else "sentences",
        "counting": "" if any(map(counted, texts)) else "sentences with one number from one to ten",
        "fewshot": enough if few or not labelled else alone,
        "segmentation": "masks" if said.masks is None else alone or _unmasked(said),
    }
    for task in asked or ():
        if lacks[task]:
            raise InputError(f"{said.images.name} has no {lacks[task]}, which '{task}' needs: leave it out of --tasks")
    chosen = list(asked or [task for task, lack in lacks.items() if not lack and task != "counting"])
    if not chosen:
        raise InputError(f"{said.images.name} has no classes, sentences or masks: nothing can be scored")
    return chosen


def _unmasked(said: Described) -> str:
    """What masks lack of which no pixel has a class."""
    count = len(said.images.test)
    parts = (np.arange(start, min(start + 64, count)) for start in range(0, count, 64))
    known = any((said.masks(rows) < len(said.images.classes)).any() for rows in parts)
    return "" if known else "pixel of a class in its masks"


def _left_out(said: Described, tasks: list[str]) -> list[str]:
    """How much of the data a task leaves out."""
    count, silent = len(said.kinds), len(said.kinds) - len(np.unique(said.of))
    lost = {"zeroshot": (int((said.images.test.labels < 0).sum()), "class of their own")}
    lost |= {"map": (int((~said.kinds.any(1)).sum()), "class"), "retrieval": (silent, "sentence")}
    lost |= {"fewshot": lost["zeroshot"], "retrieval-official": lost["retrieval"]}
    notes = [
        f"{task}: {lost[task][0]} of {count} images have no {lost[task][1]}, and are left out"
        for task in tasks
        if lost.get(task, (0,))[0]
    ]
    numbered = f"counting: {sum(map(bool, map(counted, said.texts)))} of {len(said.texts)} sentences have one number"
    return notes + [numbered] * ("counting" in tasks)


def _fitted(
    model: ImageText, source: str, images: LabelledData, all_bands: bool, device: torch.device
) -> tuple[ImageText, ContractInput, tuple[str, ...]]:
    """The model for the images' bands, what brings the images to it, and what was assumed."""
    contract, gsd, notes = suited(model.loaded, source, images, all_bands)
    prepare = ContractInput(contract, images.sensor)
    notes += check_range(prepare, images.test.sample(), images.name)
    return model.fitted(contract, gsd).to(device), prepare, notes


def _score(
    model: ImageText,
    prepare: ContractInput,
    said: Described,
    tasks: list[str],
    classes: Tensor,
    shots: list[int],
    seeds: int,
    device: torch.device,
) -> list[Figure]:
    def see(part: Labelled) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in track(Batches(part, prepare, model.image_size), f"{len(part)} images", transient=True):
            yield batch["image"].to(device), batch["valid"].to(device)

    def vectors(part: Labelled) -> Tensor:
        return unit(torch.cat([model.encode_image(*seen).float().cpu() for seen in see(part)]), "image")

    test, train, encode = said.images.test, said.images.train, model.encode_text
    images = vectors(test) if {*tasks} - {"segmentation"} else torch.zeros(0, 0)
    labels, kinds, of = map(torch.from_numpy, (test.labels, said.kinds, said.of))
    own, some = labels >= 0, kinds.any(1)
    known = len(train) and own.any()
    floor = {MAJORITY: majority(torch.from_numpy(train.labels), labels[own]).accuracy} if known else {}

    def few() -> list[Figure]:
        drawn = [draw(torch.from_numpy(train.labels), len(classes), shots[-1], seed) for seed in range(seeds)]
        rows, draws = torch.unique(torch.stack(drawn), return_inverse=True)  # only what is drawn is read
        part = Labelled(train.labels[rows], lambda wanted: train.read(rows.numpy()[wanted]))
        return few_shot(vectors(part), images[own], draws, labels[own], shots, floor)

    how = {
        "zeroshot": lambda: classification(images[own], labels[own], classes, floor),
        "map": lambda: mean_average_precision(images[some], classes, kinds[some]),
        "retrieval": lambda: retrieval(images, said.texts, of, encode),
        "retrieval-official": lambda: retrieval(images, said.texts, of, encode, official=True),
        "counting": lambda: counting(images, said.texts, of, encode),
        "fewshot": few,
        "segmentation": lambda: segmentation(_pixels(model, see(test), said.masks, classes)),
    }
    return [figure for task in tasks for figure in how[task]()]


def _pixels(model: ImageText, seen: Iterator[tuple[Tensor, Tensor]], masks: Masks, classes: Tensor) -> Tensor:
    """Pixels by true and nearest class."""
    pixels, row = torch.zeros((len(classes),) * 2, dtype=torch.long), 0
    for images, valid in seen:
        grid = images.shape[2] // model.patch_size, images.shape[3] // model.patch_size
        truth = torch.from_numpy(masks(np.arange(row, row + len(images))))
        pixels += count_pixels(model.encode_patches(images, valid).cpu(), grid, classes, truth, valid.cpu())
        row += len(images)
    return pixels
