"""`geomim evaluate-text`: what a model of images and sentences can do, beside chance and published figures."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
import yaml
from pyarrow.csv import write_csv
from rich.console import Console
from rich.progress import track
from torch import Tensor

from geomim import __version__
from geomim.corpus.store import write_json
from geomim.data.described import Described, Masks, open_described
from geomim.data.labelled import Labelled, LabelledData
from geomim.errors import ConfigError, InputError
from geomim.evaluate.features import pixel_statistics, random_like
from geomim.evaluate.fewshot import draw, few_shot, possible
from geomim.evaluate.figures import Figure, LanguageScores, beside_published
from geomim.evaluate.retrieval import mean_average_precision, recalls
from geomim.evaluate.scores import PIXELS, RANDOM
from geomim.evaluate.sentences import class_vectors, class_words, encode_sentences, read_prompts, unit
from geomim.evaluate.zeroshot import classification, confusion, counted, counting, segmentation
from geomim.models.clip import Visual
from geomim.models.fitting import contract_for
from geomim.models.image_text import ImageText, open_image_text
from geomim.models.inputs import ContractInput
from geomim.models.ranges import check_range
from geomim.verbs.evaluate import Batches

Task = Literal["zeroshot", "map", "retrieval", "retrieval-official", "counting", "fewshot", "segmentation"]
_OF_CLASSES = {"zeroshot", "map", "fewshot", "segmentation"}


def evaluate_text(
    model: str,
    data: str,
    tasks: list[Task] | None = None,
    out: str = "evaluation-text",
    pictures: str | None = None,
    prompts: str = "remoteclip",
    names: str | None = None,
    beside: str | None = None,
    shots: list[int] = [1, 4, 8, 16, 32],  # noqa: B006  # never changed; jsonargparse shows it in help
    seeds: int = 3,
    train_split: str = "train",
    test_split: str = "test",
    sensor: str | None = None,
    quickgelu: bool | None = None,
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
        out: Folder for `language.json` and `language.csv`.
        pictures: Folder of the pictures that a file of sentences names; its own where not given.
        prompts: Sentences of classes: remoteclip, clip, clip-eurosat, clip-resisc45, aerial, or a text file with
            `{class}` in each line.
        names: YAML file with words for classes whose names are none, as `denseresidential: dense residential`.
        beside: Evaluation set (rsicd, rsitmd, ucm, aid, eurosat ...) whose published figures stand beside.
        shots: Images a class for fewshot.
        seeds: How many draws for fewshot, from 0.
        train_split: Split that fewshot draws from.
        test_split: Split to score on.
        sensor: Name or YAML file of a sensor that says what the images' numbers mean, where they say it wrongly.
        quickgelu: Activation of a CLIP model, which its file does not tell; as its source says where not given.
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
    templates, renamed = read_prompts(prompts), _read_names(names)
    target = torch.device("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else torch.device(device)
    opened = open_image_text(model, quickgelu)
    said = open_described(data, train_split, test_split, pictures, opened.image_size)
    said = replace(said, images=said.images.told(sensor)) if sensor else said
    images, chosen = said.images, _tasks(said, tasks, beside is not None)
    words = class_words(images.classes, renamed) if _OF_CLASSES & {*chosen} else []
    able, few = possible(images.train.labels, images.classes, shots) if "fewshot" in chosen else ([], ())
    fitted, prepare, notes = _fitted(opened, model, images)
    fitted = fitted.to(target)
    classes = class_vectors(fitted.encode_text, words, templates) if words else torch.zeros(0, 0)
    encode = _Encoder(fitted, prepare, classes, bool(able), target)
    test = encode(images.test, said.masks if "segmentation" in chosen else None)
    figures = _of_classes(chosen, test[""], said, classes) + _of_sentences(chosen, test[""], said, fitted)
    figures += segmentation(encode.pixels) if "segmentation" in chosen else []
    figures += _few_shot(encode, images, test, able, range(seeds)) if able else []
    beside_them, sources = beside_published(beside, figures) if beside else (tuple(figures), ())
    protocol = {
        **{"model": model, "fingerprint": opened.fingerprint, "data": data, "test_images": len(images.test)},
        **{"image_size": opened.image_size, "prompts": list(templates), "classes": words, "seeds": seeds},
        **{"interval": "95 %, bootstrap over test images and draws", "geomim_version": __version__},
    }
    silent, counts = len(images.test) - len(set(said.of.tolist())), sum(map(bool, map(counted, said.texts)))
    few += (f"{silent} of {len(images.test)} images have no sentence",) * bool(said.texts and silent)
    few += (f"{counts} of {len(said.texts)} sentences have one number, and are counted",) * ("counting" in chosen)
    scores = LanguageScores(images.name, protocol, beside_them, (*images.notes, *notes, *few, *sources))
    _save(scores, Path(out))
    return scores


def _save(scores: LanguageScores, out: Path) -> None:
    rows = scores.rows()
    out.mkdir(parents=True, exist_ok=True)
    write_csv(pa.Table.from_pylist(rows), out / "language.csv")
    plain = {"data": scores.data, "protocol": scores.protocol, "figures": rows, "notes": list(scores.notes)}
    write_json(out / "language.json", plain)
    console = Console()
    console.print(f"on {scores.data}:", *scores.tables(), *scores.notes, sep="\n")
    console.print(f"wrote {out}: language.json and language.csv")


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


def _tasks(said: Described, asked: list[Task] | None, compare: bool) -> list[str]:
    """Those asked for, or that the data can answer.

    Raises:
        InputError: They cannot.
    """
    labelled, texts = bool((said.images.test.labels >= 0).any()), said.texts
    lacks = {
        "zeroshot": "" if labelled else "classes",
        "map": "" if said.kinds.any() else "classes",
        "retrieval": "" if texts else "sentences",
        "retrieval-official": "" if texts else "sentences",
        "counting": "" if any(map(counted, texts)) else "sentences with one number from one to ten",
        "fewshot": "" if labelled and len(said.images.train) else "classes in a train and a test split",
        "segmentation": "masks" if said.masks is None else "",
    }
    for task in asked or ():
        if lacks[task]:
            raise InputError(f"{said.images.name} has no {lacks[task]}, which '{task}' needs: leave it out of --tasks")
    unusual = {"counting"} if compare else {"counting", "retrieval-official"}
    chosen = list(asked or [task for task, lack in lacks.items() if not lack and task not in unusual])
    if not chosen:
        raise InputError(f"{said.images.name} has no classes, sentences or masks: nothing can be scored")
    return chosen


def _fitted(model: ImageText, source: str, images: LabelledData) -> tuple[ImageText, ContractInput, tuple[str, ...]]:
    """The model for the images' bands, what brings the images to it, and what was assumed."""
    contract, notes = contract_for(model.loaded, source, images.sensor, images.contract)
    gsd = None
    if model.encoder.config.get("gsd_positions"):
        gsd, told = images.gsd_at(model.image_size, contract)
        notes = (*notes, told)
    prepare = ContractInput(contract, images.sensor)
    notes += check_range(prepare, images.test.sample(), images.name)
    return model.fitted(contract, gsd), prepare, notes


class _Encoder:
    """Images to vectors `(N, D)` of the model, under "", and of floors by name; each image is read once.

    Args:
        model: Of the images' bands.
        prepare: Brings them to its contract.
        classes: `(C, D)` vectors that patches are compared with.
        floors: Encode with the floors too.
        device: Where the model is.
    """

    def __init__(
        self, model: ImageText, prepare: ContractInput, classes: Tensor, floors: bool, device: torch.device
    ) -> None:
        self.model, self.prepare, self.classes, self.device = model, prepare, classes, device
        self.forward: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"": model.encode_image}
        self.pixels = torch.zeros((len(classes),) * 2, dtype=torch.long)
        if floors and not isinstance(model.encoder, Visual):
            fresh = replace(model.loaded, encoder=random_like(model.encoder, 0))
            self.forward[RANDOM] = ImageText(fresh, model.joint).to(device).encode_image
        if floors:
            self.forward[PIXELS] = lambda images, valid: pixel_statistics().forward(images, valid)[0]

    @torch.inference_mode()
    def __call__(self, part: Labelled, masks: Masks | None = None) -> dict[str, Tensor]:
        """Encode; where there are `masks` their pixels are counted in `pixels`, by true and nearest class."""
        batches = Batches(part, self.prepare, self.model.image_size)
        vectors: dict[str, list[Tensor]] = {name: [] for name in self.forward}
        for number, batch in enumerate(track(batches, f"vectors of {len(part)} images", transient=True)):
            images, valid = batch["image"].to(self.device), batch["valid"].to(self.device)
            for name, forward in self.forward.items():
                vectors[name].append(forward(images, valid).float().cpu())
            if masks is not None:
                rows = np.arange(len(images)) + number * batches.batch
                patches = self.model.encode_patches(images, valid).cpu()
                side = batches.size // self.model.patch_size
                self.pixels += confusion(patches, (side, side), self.classes, torch.tensor(masks(rows)), valid.cpu())
        joined = {name: torch.cat(parts) for name, parts in vectors.items()}
        return joined | {"": unit(joined[""], "image")}


def _of_classes(tasks: list[str], images: Tensor, said: Described, classes: Tensor) -> list[Figure]:
    labels, kinds, figures = torch.from_numpy(said.images.test.labels), torch.from_numpy(said.kinds), []
    if "zeroshot" in tasks:
        figures += classification(images[labels >= 0], labels[labels >= 0], classes)
    if "map" in tasks:
        figures += mean_average_precision(images[kinds.any(1)], classes, kinds[kinds.any(1)])
    return figures


def _of_sentences(tasks: list[str], images: Tensor, said: Described, model: ImageText) -> list[Figure]:
    texts, of, figures = said.texts, torch.from_numpy(said.of), []
    there, places = torch.unique(of, return_inverse=True)
    for task in (task for task in tasks if task.startswith("retrieval")):
        shown = [text.capitalize() for text in texts] if task == "retrieval-official" else texts
        known: dict[str, int] = {}
        same = torch.tensor([known.setdefault(text, len(known)) for text in texts]) if task == "retrieval" else None
        figures += recalls(task, images[there], encode_sentences(model.encode_text, shown), places, same)
    if "counting" in tasks:
        rows = [row for row, text in enumerate(texts) if counted(text)]
        figures += counting(images, of[rows], [texts[row] for row in rows], model.encode_text)
    return figures


def _few_shot(
    encode: _Encoder, images: LabelledData, test: dict[str, Tensor], shots: list[int], seeds: range
) -> list[Figure]:
    """Only the images that are drawn are read."""
    train, labels = images.train, torch.from_numpy(images.test.labels)
    drawn = [draw(torch.from_numpy(train.labels), len(images.classes), shots[-1], seed) for seed in seeds]
    rows, draws = (one.numpy() for one in torch.unique(torch.stack(drawn), return_inverse=True))
    few = encode(Labelled(train.labels[rows], lambda wanted: train.read(rows[wanted])))
    features = {name: (few[name], vectors[labels >= 0]) for name, vectors in test.items()}
    return few_shot(features, torch.from_numpy(draws), labels[labels >= 0], shots)
