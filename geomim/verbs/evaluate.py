"""`geomim evaluate`: how good is a frozen encoder, beside its floors?"""

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, track
from torch import Tensor

from geomim import __version__
from geomim.corpus.store import Corpus, check_folder, write_json
from geomim.data.labelled import Labelled, LabelledData, open_labelled
from geomim.data.masked import choose_patches, open_patches
from geomim.errors import ConfigError
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
from geomim.evaluate.instances import METHOD
from geomim.evaluate.intervals import INTERVALS, TEST, TILE_INTERVALS, TILE_TEST
from geomim.evaluate.saved import ProbeCard, fingerprint, save_probe
from geomim.evaluate.scores import PIXELS, RANDOM, Probed, Scores, majority, probe_features
from geomim.models.inputs import ContractInput
from geomim.models.ranges import check_range
from geomim.verbs.candidate import Batches, Candidate, open_candidate
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

    With --dense a linear probe is fitted and scored on single patches, which maps are made of. A patch is of the class
    that alone covers at least half of its labelled pixels. At most 20,000 are fitted on, in which classes and scenes
    share evenly; then the probe is moved to the classes' natural shares. Intervals are those of drawing whole tiles.
    Where there are no masks, patches are fitted so that the mean of their probabilities says the tile's class (by
    multiple instance), and tiles are scored.

    Args:
        checkpoint: A geomim checkpoint, an exported folder, a published MAE or SelectiveMAE file, or `timm:NAME` for
            any pretrained timm model.
        data: A corpus with labels, or a folder with a folder of pictures for each class.
        out: Folder for the page `index.html`, `evaluation.json`, `classes.csv` (precision, recall, F1), `confusion.csv`
            and `.png`, and the fitted probes (`linear.safetensors`, `efficient.safetensors`, each with a `.json` that
            names classes, bands and encoder).
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
        dense: Fit patches, of a corpus with masks (`geomim corpus build --masks`) or else of tiles with a class each.
        device: `auto`, `cpu`, `cuda` or another torch device.

    Returns:
        The scores, which are also printed.

    Raises:
        CheckpointError: The checkpoint cannot be read.
        BandError: The images lack bands that the encoder needs.
        InputError: There are no labelled images, or their numbers are far from those the encoder was trained on.
    """
    if dense and (pool != "mean" or probes not in ([*get_args(Probe)], ["linear"])):
        raise ConfigError("--dense fits the linear probe on patches: leave out --pool and --probes")
    if seeds < 1 or not probes:
        raise ConfigError(f"expected at least one seed and one probe; given {seeds} and {probes}")
    check_folder(out)
    target, given = device_of(device), [Corpus.open(one) for one in trained_on or ()]
    images = (open_patches if dense else open_labelled)(data, train_split, test_split, image_size)
    images = images.told(sensor) if sensor else images
    candidate = open_candidate(checkpoint, images, image_size, heads, all_bands)
    prepare = ContractInput(candidate.contract, images.sensor)
    parts = {"train": images.train, "test": images.test}
    ranges = [check_range(prepare, part.sample(), f"{images.name}, {name}") for name, part in parts.items()]
    seen = seen_in_training(candidate.details, images, data, given)
    masked = images.train.masks is not None
    fitted = (["linear"] if masked else ["instances"]) if dense else probes
    grid = _grid(candidate) if dense else (1, 1)
    chosen = choose_patches(images, grid) if masked else None
    features = _features(candidate, parts, prepare, fitted, floors, pool, target, chosen, grid)
    train, test = features[candidate.name]
    probed = _probe(candidate, features, len(images.classes), fitted, range(seeds), target)
    beside = _beside(candidate, images.classes, probed, train, test)
    notes = (*images.notes, *seen, *candidate.notes, *itertools.chain(*ranges), *beside)
    floor = majority(train.labels if train.counts is None else train.counts.argmax()[None], test.labels, test.groups)
    about = {"checkpoint": checkpoint, **_protocol(candidate, images, probed), "pool": pool, "seeds": [*range(seeds)]}
    if masked:
        about |= {"pool": "patch", "train_patches": len(train), "test_patches": len(test)}
        about |= {"interval": TILE_INTERVALS, "test": TILE_TEST}
    elif dense:
        about |= {"pool": "patch", "fitted": METHOD}
    about |= {"precision": "bfloat16" if fast_half(target) else "float32", "geomim_version": __version__}
    scores = Scores(images.name, about, tuple(probed.rows), notes, floor)
    console = Console(markup=False, highlight=False)  # brackets in names are no style
    console.print(scores.table())
    _save(candidate, images, scores, probed, Path(out))
    console.print(f"wrote {out}: evaluation.json, tables, and the fitted probes {', '.join(probed.fits) or '(none)'}")
    console.print(f"look at: {Path(out) / 'index.html'}", soft_wrap=True)
    return scores


def _features(
    candidate: Candidate,
    images: Mapping[str, Labelled],
    prepare: ContractInput,
    probes: Sequence[str],
    floors: bool,
    pool: Pool,
    device: torch.device,
    chosen: Mapping[str, tuple[Tensor, ...]] | None = None,
    grid: tuple[int, int] = (1, 1),
) -> dict[str, tuple[Features, Features]]:
    """Features of the encoder and of its floors on both splits, or of `chosen` patches, decoding every image once."""
    half, instances = fast_half(device), "instances" in probes
    tokens = instances or "efficient" in probes
    extractors = {candidate.name: frozen(candidate.encoder.to(device), pool, tokens, half)}
    if floors:
        extractors[RANDOM] = frozen(candidate.fresh(0).to(device), pool, tokens, half)
        extractors[PIXELS] = replace(pixel_statistics(grid), keep_tokens=instances)
    parts = []
    for split, part in images.items():
        batches = Batches(part, prepare, candidate.image_size)
        shown = track(batches, f"features of {len(part)} {split} images", total=len(batches), transient=True)
        patches, groups, counts = chosen[split] if chosen else (None, None, None)
        found = extract_all(extractors, shown, device, len(part), patches)
        parts.append({name: replace(one, groups=groups, counts=counts) for name, one in found.items()})
    return {name: (parts[0][name], parts[1][name]) for name in extractors}


@torch.no_grad()
def _grid(candidate: Candidate) -> tuple[int, int]:
    """Rows and columns of patches."""
    side, device = candidate.image_size, next(candidate.encoder.parameters()).device
    grid = encode(candidate.encoder, torch.zeros(1, len(candidate.contract.names), side, side, device=device))[2]
    if side % grid[0] or side % grid[1]:
        raise ConfigError(f"--dense: expected images of a multiple of {grid[0]} pixels, not {side}: give --image_size")
    return grid


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
    return {
        "classes": len(images.classes),
        "train_images": len(images.train),
        "test_images": len(images.test),
        "image_size": candidate.image_size,
        "chosen": {kind: fit.chosen for kind, fit in probed.fits.items()},
        "interval": INTERVALS,
        "test": TEST,
    }


def _beside(candidate: Candidate, classes: Sequence[str], probed: Probed, train: Features, test: Features) -> list[str]:
    """What the table does not compare, and what accuracy hides where classes are of very different sizes."""
    counts = np.bincount(test.labels)
    share, largest = counts.max() / counts.sum(), classes[counts.argmax()]
    notes, unit = [], "images" if test.groups is None else "patches"
    if any(row.probe == "efficient" for row in probed.rows) and any(row.encoder == PIXELS for row in probed.rows):
        notes.append(f"{PIXELS} have no patches to attend to, so no efficient probe to hold one against")
    if share > 2 / np.count_nonzero(counts) or share > 0.75:
        notes.append(f"{share:.0%} of the test {unit} are {largest}: look at balanced accuracy")
    if train.counts is not None and test.counts is not None:
        lacking = [classes[kind] for kind in (test.counts * (train.counts == 0)).nonzero()]
        notes += [f"test patches of {one} are not scored: no training patch is of it" for one in lacking]
    for row in (row for row in probed.rows if row.encoder == candidate.name):
        unfound = [classes[label] for label, found in row.recall.items() if found == 0]
        if unfound:
            notes.append(f"the {row.probe} probe never finds {', '.join(unfound)}")
    return notes


def _save(candidate: Candidate, images: LabelledData, scores: Scores, probed: Probed, out: Path) -> None:
    """Write the probes, then the scores that name them, and the page."""
    out.mkdir(parents=True, exist_ok=True)
    source, pool, digest = scores.protocol["checkpoint"], scores.protocol["pool"], fingerprint(candidate.encoder)
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
            fitted_at=images.metres(candidate.image_size),
            checkpoint=os.path.abspath(source) if os.path.exists(source) else source,
        )
        save_probe(out / f"{kind}.safetensors", fit.probe, card)
    write_json(out / "evaluation.json", scores.to_dict())
    write_page(out, scores, probed.shares, images)
