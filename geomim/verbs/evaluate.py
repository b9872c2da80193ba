"""`geomim evaluate`: how good is a frozen encoder, beside its floors?"""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, track

from geomim import __version__
from geomim.corpus.store import Corpus
from geomim.data.labelled import LabelledData, open_labelled
from geomim.errors import ConfigError
from geomim.evaluate.classes import class_scores, confusion
from geomim.evaluate.dense import extract_patches, patch_statistics
from geomim.evaluate.features import (
    Features,
    Pool,
    device_of,
    encode,
    extract_all,
    fast_half,
    frozen,
    pixel_statistics,
)
from geomim.evaluate.intervals import INTERVALS, TEST, TILE_INTERVALS, TILE_TEST
from geomim.evaluate.saved import ProbeCard, fingerprint, save_probe
from geomim.evaluate.scores import PIXELS, RANDOM, Probed, Row, Scores, majority, probe_features
from geomim.models.inputs import ContractInput
from geomim.models.ranges import check_range
from geomim.verbs.candidate import Batches, Candidate, open_candidate
from geomim.verbs.dense import choose_patches, open_dense
from geomim.verbs.scores_page import write_page
from geomim.verbs.trained_on import seen_in_training

Probe = Literal["knn", "linear", "efficient"]


def evaluate(
    checkpoint: str,
    data: str,
    out: str = "evaluation",
    image_size: int | None = None,
    probes: list[Probe] = ["knn", "linear", "efficient"],  # noqa: B006  # never changed; jsonargparse shows it in help
    seeds: int = 3,
    train_split: str = "train",
    test_split: str = "test",
    pool: Pool = "mean",
    floors: bool = True,
    sensor: str | None = None,
    heads: int | None = None,
    all_bands: bool = False,
    trained_on: list[str] | None = None,
    dense: bool = False,
    device: str = "auto",
) -> Scores:
    """Score a frozen encoder on labelled images with kNN, linear and efficient probes.

    Probes are fitted on the train split, their settings chosen on a held-out fifth of it, and scored once on the test
    split. Beside the encoder stand three floors: the same architecture with random weights, mean and standard deviation
    of each band, and the most frequent class for all. Balanced accuracy, the mean of the classes' recall, stands below
    accuracy, both with 95 % intervals; what stands above or falls below a floor is what a paired test shows.

    With --dense single patches are fitted on and scored, which is what a map is made of: give `geomim predict` the
    outcome. A patch is of the class that covers at least half of its labelled pixels. At most 20,000 patches are fitted
    on, of all classes and scenes alike where there are more, and intervals are those of drawing whole tiles.

    Args:
        checkpoint: A geomim checkpoint, an exported folder, a published MAE or SelectiveMAE file, or `timm:NAME` for
            any pretrained timm model.
        data: A corpus with labels, or a folder with a folder of pictures for each class.
        out: Folder for the page `index.html`, `evaluation.json`, `classes.csv` (precision, recall, F1), `confusion.csv`
            and `.png`, and the fitted probes (`linear.safetensors`, `efficient.safetensors`, each with a `.json` that
            names classes, bands and encoder). With --dense of the linear probe, and with IoU a class.
        image_size: Side that images are resized to, in pixels; the encoder's own where not given.
        probes: Which probes to fit.
        seeds: How many seeds, from 0.
        train_split: Split to fit on. Folders may have it under another usual name, such as `Training`.
        test_split: Split to score on, likewise; `val` only where it is named here.
        pool: Image vector for kNN and the linear probe: the mean of the patch tokens, or the class token.
        floors: Score the floors too.
        sensor: Name or YAML file of a sensor that says what the images' numbers mean, where they say it wrongly.
        heads: Attention heads of a published file, which does not state them.
        all_bands: Give an encoder of any sensor all bands of the images, not only those it was trained on.
        trained_on: Corpora that the encoder trained on, among whose tiles test images are looked for; those that its
            weights name, where not given.
        dense: Fit the linear probe on patches of a corpus with masks (`geomim corpus build --masks`).
        device: `auto`, `cpu`, `cuda` or another torch device.

    Returns:
        The scores, which are also printed.

    Raises:
        CheckpointError: The checkpoint cannot be read.
        BandError: The images lack bands that the encoder needs.
        InputError: There are no labelled images, or their numbers are far from those the encoder was trained on.
        CorpusError: There are no masks for --dense.
    """
    if dense and (pool != "mean" or "linear" not in probes):
        raise ConfigError(
            "--dense fits the linear probe on patch tokens: leave out --pool, and --probes without linear"
        )
    if seeds < 1 or not probes:
        raise ConfigError(f"expected at least one seed and one probe; given {seeds} and {probes}")
    target, given = device_of(device), [Corpus.open(one) for one in trained_on or ()]
    images = (open_dense if dense else open_labelled)(data, train_split, test_split, image_size)
    images = images.told(sensor) if sensor else images
    candidate = open_candidate(checkpoint, images, image_size, heads, all_bands)
    prepare = ContractInput(candidate.contract, images.sensor)
    parts = {"train": images.train, "test": images.test}
    ranges = [check_range(prepare, part.sample(), f"{images.name}, {name}") for name, part in parts.items()]
    seen = seen_in_training(candidate.details, images, data, given)
    probes = ["linear"] if dense else probes
    features = _features(candidate, images, prepare, "efficient" in probes, floors, pool, dense, target)
    train, test = features[candidate.name]
    probed = _probe(candidate, features, len(images.classes), probes, range(seeds), target)
    beside = _beside(candidate, images.classes, probed)
    notes = (*images.notes, *seen, *candidate.notes, *itertools.chain(*ranges), *beside)
    floor = majority(train.labels, test.labels, test.groups)
    of = "patch" if dense else pool
    about = {"checkpoint": checkpoint, **_protocol(candidate, images, probed), "pool": of, "seeds": [*range(seeds)]}
    about |= {"train_patches": len(train), "test_patches": len(test)} if dense else {}
    about |= {"precision": "bfloat16" if fast_half(target) else "float32", "geomim_version": __version__}
    scores = Scores(images.name, about, tuple(probed.rows), notes, floor)
    console = Console(markup=False, highlight=False)  # brackets in names are no style
    console.print(scores.table())
    _save(candidate, images, scores, probed, of, Path(out))
    console.print(f"wrote {out}: evaluation.json, tables, and the fitted probes {', '.join(probed.fits) or '(none)'}")
    console.print(f"look at: {Path(out) / 'index.html'}", soft_wrap=True)
    return scores


def _features(
    candidate: Candidate,
    images: LabelledData,
    prepare: ContractInput,
    tokens: bool,
    floors: bool,
    pool: Pool,
    dense: bool,
    device: torch.device,
) -> dict[str, tuple[Features, Features]]:
    """Features of the encoder and of its floors on both splits, or of chosen patches, decoding every image once."""
    half, grid = fast_half(device), _grid(candidate) if dense else (1, 1)
    chosen = choose_patches(images, grid) if dense else {}
    extractors = {candidate.name: frozen(candidate.encoder.to(device), pool, tokens or dense, half)}
    if floors:
        extractors[RANDOM] = frozen(candidate.fresh(0).to(device), pool, tokens or dense, half)
        extractors[PIXELS] = patch_statistics(grid) if dense else pixel_statistics()
    parts = []
    for split, part in (("train", images.train), ("test", images.test)):
        batches = Batches(part, prepare, candidate.image_size)
        shown = track(batches, f"features of {len(part)} {split} images", total=len(batches), transient=True)
        if dense:
            parts.append(extract_patches(extractors, shown, *chosen[split], device))
        else:
            parts.append(extract_all(extractors, shown, device, len(part)))
    return {name: (parts[0][name], parts[1][name]) for name in extractors}


@torch.no_grad()
def _grid(candidate: Candidate) -> tuple[int, int]:
    """Rows and columns of its patches."""
    size = candidate.image_size
    return encode(candidate.encoder, torch.zeros(1, len(candidate.contract.names), size, size))[2]


def _probe(
    candidate: Candidate,
    features: dict[str, tuple[Features, Features]],
    classes: int,
    probes: Sequence[str],
    seeds: Sequence[int],
    device: torch.device,
) -> Probed:
    """Rows of the encoder, then of the floors; the encoder's fitted probes."""
    train, test = features.pop(candidate.name)
    with Progress(transient=True) as bar:
        task = bar.add_task(f"probes on {candidate.name}", total=1.0)
        result = probe_features(
            candidate.name,
            train,
            test,
            classes,
            probes,
            seeds,
            device,
            lambda done: bar.update(task, completed=done),
        )
    for name, (train, test) in track(features.items(), "probes on the floors", transient=True):
        result.rows += probe_features(name, train, test, classes, probes, seeds, device).rows
    return result


def _protocol(candidate: Candidate, images: LabelledData, probed: Probed) -> dict[str, Any]:
    """How was scored, as plain values."""
    dense = probed.rows[0].groups is not None
    return {
        "classes": len(images.classes),
        "train_images": len(images.train),
        "test_images": len(images.test),
        "image_size": candidate.image_size,
        "chosen": {kind: fit.chosen for kind, fit in probed.fits.items()},
        "interval": TILE_INTERVALS if dense else INTERVALS,
        "test": TILE_TEST if dense else TEST,
    }


def _beside(candidate: Candidate, classes: Sequence[str], probed: Probed) -> list[str]:
    """What the table does not compare, and what accuracy hides where classes are of very different sizes."""
    labels, dense = probed.rows[0].labels, probed.rows[0].groups is not None
    assert labels is not None
    counts = np.bincount(labels)
    share, largest, notes = counts.max() / counts.sum(), classes[counts.argmax()], []
    if dense:
        notes.append(
            f"mean IoU: {', '.join(f'{row.encoder} {_mean_iou(row, len(classes)):.3f}' for row in probed.rows)}"
        )
    if any(row.probe == "efficient" for row in probed.rows) and any(row.encoder == PIXELS for row in probed.rows):
        notes.append(f"{PIXELS} have no patches to attend to, so no efficient probe to hold one against")
    if share > 2 / np.count_nonzero(counts) or share > 0.75:
        notes.append(
            f"{share:.0%} of the test {'patches' if dense else 'images'} are {largest}: look at balanced accuracy"
        )
    for row in (row for row in probed.rows if row.encoder == candidate.name):
        unfound = [classes[label] for label, found in row.recall.items() if found == 0]
        if unfound:
            notes.append(f"the {row.probe} probe never finds {', '.join(unfound)}")
    return notes


def _mean_iou(row: Row, classes: int) -> float:
    """Mean intersection over union of the classes that occur."""
    assert row.answers is not None and row.labels is not None
    found = class_scores(confusion(row.answers, row.labels, classes), overlap=True)["iou"]
    return float(np.mean([value for value in found if value is not None]))


def _save(candidate: Candidate, images: LabelledData, scores: Scores, probed: Probed, pool: str, out: Path) -> None:
    """Write the probes, then the scores that name them, and the page."""
    out.mkdir(parents=True, exist_ok=True)
    digest = fingerprint(candidate.encoder)
    for kind, fit in probed.fits.items():
        row = scores.find(candidate.name, kind)
        card = ProbeCard(
            kind=kind,
            classes=images.classes,
            pool=pool if kind == "linear" else "tokens",
            encoder=digest,
            contract=candidate.contract.to_dict(),
            accuracy=row.accuracy if row else 0.0,
            scale=images.side / candidate.image_size if images.side else 1.0,
            gsd=candidate.gsd,
        )
        save_probe(out / f"{kind}.safetensors", fit.probe, card)
    part = out / ".evaluation.json.part"
    part.write_text(json.dumps(scores.to_dict(), indent=2) + "\n", encoding="utf-8")
    part.replace(out / "evaluation.json")
    write_page(out, scores, probed.shares, images)
