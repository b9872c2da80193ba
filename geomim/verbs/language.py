"""`geomim evaluate-text`: what a model of images and sentences can do, beside chance and published figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from rich.console import Console
from rich.progress import track
from torch import Tensor

from geomim import __version__
from geomim.corpus.store import write_json, write_text
from geomim.data.described import Described, open_described
from geomim.data.labelled import Labelled
from geomim.errors import BandError, ConfigError, InputError
from geomim.evaluate.features import pixel_statistics
from geomim.evaluate.fewshot import draw, few_shot, possible
from geomim.evaluate.figures import CHANCE, Figure, LanguageScores, published
from geomim.evaluate.retrieval import mean_average_precision, recalls
from geomim.evaluate.scores import PIXELS
from geomim.evaluate.sentences import class_vectors, class_words, encode_sentences, read_prompts, unit
from geomim.evaluate.zeroshot import classification, confusion, counted, counting, segmentation
from geomim.models.inputs import ContractInput
from geomim.models.ranges import check_range
from geomim.sensors import BandContract
from geomim.verbs.evaluate import Batches

Task = Literal["zeroshot", "map", "retrieval", "retrieval-official", "counting", "fewshot", "segmentation"]


def evaluate_text(
    model: str,
    data: str,
    tasks: list[Task] | None = None,
    out: str = "evaluation-text",
    pictures: str | None = None,
    prompts: str = "remoteclip",
    names: str | None = None,
    published_as: str | None = None,
    shots: list[int] = [1, 4, 8, 16, 32],  # noqa: B006  # never changed; jsonargparse shows it in help
    seeds: int = 3,
    train_split: str = "train",
    test_split: str = "test",
    sensor: str | None = None,
    device: str = "auto",
) -> LanguageScores:
    """Score a model of images and sentences on images with classes, sentences, objects or masks.

    zeroshot: accuracy of the class whose sentence is nearest. map: text-to-image mAP@100 of classes, and mAP of several
    an image. retrieval: recall both ways, where a sentence that several images share is a hit of each;
    retrieval-official: as RemoteCLIP's script counts. counting: RemoteCount's protocol, on sentences with one number.
    fewshot: linear probes on a few images a class. segmentation: patches against classes.

    Args:
        model: A geomim checkpoint or export that was trained with sentences, `remoteclip:PATH` or
            `open_clip:NAME/PRETRAINED`.
        data: A corpus; a folder with a folder of pictures for each class; or a file of sentences (RSICD's and UCM's
            JSON, CSV, JSONL) that names pictures.
        tasks: What to score; all that the data allow where not given, but counting.
        out: Folder for `language.json` and `language.csv`.
        pictures: Folder of the pictures that a file of sentences names.
        prompts: Sentences of classes: remoteclip, clip, clip-eurosat, clip-resisc45, aerial, or a text file with
            `{class}` in each line.
        names: YAML file with words for classes whose names are none, as `{denseresidential: dense residential}`.
        published_as: Name of an evaluation set (rsicd, rsitmd, ucm, aid, eurosat ...) whose published figures are to
            stand beside.
        shots: Images a class for fewshot.
        seeds: How many draws for fewshot, from 0.
        train_split: Split that fewshot draws from.
        test_split: Split to score on.
        sensor: Name or YAML file of a sensor that says what the images' numbers mean, where they say it wrongly.
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
    beside = published(published_as) if published_as else None
    from geomim.models.image_text import open_image_text

    run = _Run(read_prompts(prompts), _read_names(names), shots, list(range(seeds)))
    target = torch.device("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else torch.device(device)
    opened = open_image_text(model)
    said = open_described(data, train_split, test_split, pictures, opened.image_size)
    said = replace(said, images=said.images.told(sensor)) if sensor else said
    run.check(said, tasks, beside is not None)
    figures = run.score(opened.to(target), said, target)
    protocol = {
        "model": model,
        "fingerprint": opened.fingerprint,
        "data": data,
        "test_images": len(said.images.test),
        "image_size": opened.image_size,
        "prompts": list(run.prompts),
        "classes": dict(zip(said.images.classes, run.words, strict=False)),
        "shots": run.shots if "fewshot" in run.tasks else [],
        "seeds": run.seeds,
        "interval": "95 %, bootstrap over test images (and draws)",
        "geomim_version": __version__,
    }
    notes = (*said.images.notes, *opened.notes, *run.notes, *(beside.notes if beside else ()))
    scores = LanguageScores(said.images.name, protocol, beside.beside(figures) if beside else tuple(figures), notes)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "language.csv", scores.to_csv())
    write_json(folder / "language.json", scores.to_dict())
    Console().print(scores.table())
    print(f"wrote {out}: language.json and language.csv")
    return scores


def _read_names(file: str | None) -> dict[str, str]:
    if file is None:
        return {}
    try:
        names = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"--names: '{file}' cannot be read as YAML ({error})") from error
    if not isinstance(names, dict) or not all(isinstance(word, str) and word.strip() for word in names.values()):
        raise InputError(f"--names: '{file}' must give words by class, as denseresidential: dense residential")
    return {str(name): word.strip() for name, word in names.items()}


@dataclass
class _Vectors:
    """What is computed once of some images: vectors `(N, D)`, mean and deviation of their bands, and counted pixels."""

    images: Tensor
    pixels: Tensor
    confusion: Tensor


class _Run:
    """What is asked for, and what of it has been found."""

    def __init__(self, prompts: Sequence[str], names: Mapping[str, str], shots: list[int], seeds: list[int]) -> None:
        self.prompts, self.names, self.shots, self.seeds = prompts, names, shots, seeds
        self.tasks: list[str] = []
        self.words: list[str] = []
        self.notes: list[str] = []

    def check(self, said: Described, asked: list[Task] | None, compare: bool) -> None:
        """Choose tasks, and refuse what the data cannot answer."""
        data, test, train = said.images, said.images.test, said.images.train
        sentences = any(said.captions)
        lacks = {
            "zeroshot": "classes" if not (test.labels >= 0).any() else "",
            "map": "classes" if said.kinds is None and not (test.labels >= 0).any() else "",
            "retrieval": "" if sentences else "sentences",
            "retrieval-official": "" if sentences else "sentences",
            "counting": "" if any(map(counted, _flat(said)[0])) else "sentences with one number from one to ten",
            "fewshot": "" if len(train) and (test.labels >= 0).any() else "classes in both its splits",
            "segmentation": "masks" if said.masks is None else "",
        }
        for task in asked or ():
            if lacks[task]:
                raise InputError(f"{data.name} has no {lacks[task]}, which task '{task}' needs; see --tasks")
        usual = [task for task in lacks if not lacks[task] and task != "counting"]
        self.tasks = list(asked or [task for task in usual if compare or task != "retrieval-official"])
        if not self.tasks:
            raise InputError(f"{data.name} has no classes, sentences or masks: nothing can be scored")
        if {"zeroshot", "fewshot", "segmentation"} & {*self.tasks} or ("map" in self.tasks and said.kinds is None):
            self.words = class_words(data.classes, self.names)
        if "fewshot" in self.tasks:
            labels = torch.from_numpy(train.labels)
            self.shots, notes = possible(labels, data.classes, self.shots)
            self.notes += notes

    def score(self, model: Any, said: Described, device: torch.device) -> list[Figure]:
        """All figures; every image and sentence is encoded once."""
        data, labels = said.images, torch.from_numpy(said.images.test.labels)
        key, contract = _contract(model, said, self.notes)
        prepare = ContractInput(contract, data.sensor)
        self.notes += check_range(prepare, data.test.sample(), data.name)
        classes = class_vectors(model.encode_text, self.words, self.prompts) if self.words else None
        masks = said.masks if "segmentation" in self.tasks else None
        encode = _Encoder(model, key, prepare, device)
        test, known = encode(data.test, classes, masks), labels >= 0
        figures: list[Figure] = []
        if "zeroshot" in self.tasks and classes is not None:
            figures += classification(test.images[known], labels[known], classes)
        if "map" in self.tasks:
            figures += self._map(model, said, test.images, classes)
        figures += self._sentences(model, said, test.images)
        if "fewshot" in self.tasks:
            figures += self._few_shot(encode, said, test)
        return figures + (segmentation(test.confusion) if masks else [])

    def _map(self, model: Any, said: Described, images: Tensor, classes: Tensor | None) -> list[Figure]:
        if said.kinds is not None:
            words = class_words(said.kinds[0], {k: v for k, v in self.names.items() if k in said.kinds[0]})
            several = class_vectors(model.encode_text, words, self.prompts)
            return mean_average_precision(images, several, torch.from_numpy(said.kinds[1]))
        labels = torch.from_numpy(said.images.test.labels)
        relevant = labels[:, None] == torch.arange(len(self.words))
        assert classes is not None
        return mean_average_precision(images[labels >= 0], classes, relevant[labels >= 0])

    def _sentences(self, model: Any, said: Described, images: Tensor) -> list[Figure]:
        """Tasks of sentences, of the images that have any."""
        texts, of = _flat(said)
        figures: list[Figure] = []
        if silent := sum(not one for one in said.captions):
            self.notes += [f"{silent} of {len(said.captions)} images have no sentence"] * any(said.captions)
        for task in ("retrieval", "retrieval-official"):
            if task in self.tasks:
                own = task == "retrieval-official"
                shown = [text.capitalize() if own else text for text in texts]
                first = {text: place for place, text in enumerate(dict.fromkeys(shown))}
                same = None if own else torch.tensor([first[text] for text in shown])
                there, places = torch.unique(of, return_inverse=True)
                figures += recalls(task, images[there], encode_sentences(model.encode_text, shown), places, same)
        if "counting" in self.tasks:
            rows = [place for place, text in enumerate(texts) if counted(text)]
            self.notes.append(f"counting: {len(rows)} of {len(texts)} sentences have one number from one to ten")
            figures += counting(images, of[rows], [texts[row] for row in rows], model.encode_text)
        return figures

    def _few_shot(self, encode: "_Encoder", said: Described, test: _Vectors) -> list[Figure]:
        train, labels = said.images.train, torch.from_numpy(said.images.test.labels)
        drawn = [draw(torch.from_numpy(train.labels), len(self.words), self.shots[-1], seed) for seed in self.seeds]
        rows, draws = torch.unique(torch.stack(drawn), return_inverse=True)
        few = encode(Labelled(train.labels[rows], lambda wanted: train.read(rows.numpy()[wanted])))
        known = labels >= 0
        found, floor = (
            few_shot(one, draws, other[known], labels[known], self.shots, self.seeds)
            for one, other in ((few.images, test.images), (few.pixels, test.pixels))
        )
        return [
            Figure("fewshot", row.probe, row.accuracy, row.low, row.high, {CHANCE: 1 / len(self.words), PIXELS: low})
            for row, low in zip(found, (row.accuracy for row in floor), strict=True)
        ]


def _flat(said: Described) -> tuple[list[str], Tensor]:
    """All sentences, and the test image of each."""
    texts = [(text, image) for image, one in enumerate(said.captions) for text in one]
    return [text for text, _ in texts], torch.tensor([image for _, image in texts], dtype=torch.long)


class _Encoder:
    """Images to what is kept of them, each read and encoded once."""

    def __init__(self, model: Any, key: str, prepare: ContractInput, device: torch.device) -> None:
        self.model, self.key, self.prepare, self.device = model, key, prepare, device

    @torch.inference_mode()
    def __call__(self, images: Labelled, classes: Tensor | None = None, masks: Any = None) -> _Vectors:
        batches = Batches(images, self.prepare, self.model.image_size)
        count = 0 if classes is None else len(classes)
        vectors, pixels, pairs = [], [], torch.zeros(count, count, dtype=torch.long)
        statistics, start = pixel_statistics(), 0
        for batch in track(batches, f"vectors of {len(images)} images", total=len(batches), transient=True):
            image, valid = batch["image"].to(self.device), batch["valid"].to(self.device)
            vectors.append(self.model.encode_image(image, valid, self.key).float().cpu())
            pixels.append(statistics.forward(image, valid)[0].cpu())
            if masks is not None and classes is not None:
                patches = self.model.encode_patches(image, valid, self.key).float().cpu()
                grid = tuple(side // self.model.patch_size for side in image.shape[-2:])
                rows = np.arange(start, start + len(image))
                pairs += confusion(patches, grid, classes, torch.from_numpy(masks(rows)), batch["valid"])
            start += len(image)
        return _Vectors(unit(torch.cat(vectors), "image"), torch.cat(pixels), pairs)


def _contract(model: Any, said: Described, notes: list[str]) -> tuple[str, BandContract]:
    """Which of a model's sensors the images are seen as: that of their name, or of most bands that they have.

    Raises:
        BandError: They lack bands of every one.
    """
    faults: list[BandError] = []
    able = {}
    for key, contract in model.contracts.items():
        try:
            ContractInput(contract, said.images.sensor)
            able[key] = contract
        except BandError as error:
            faults.append(error)
    if not able:
        raise faults[0]
    best = max(able, key=lambda key: (able[key].sensor.name == said.images.sensor.name, len(able[key].names)))
    notes.append(f"the images are seen as '{best}' ({', '.join(able[best].names)})")
    return best, able[best]
