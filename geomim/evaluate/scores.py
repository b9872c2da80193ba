"""The score table: every probe of an encoder beside its floors, with confidence intervals, and in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from geomim.evaluate.features import Features
from geomim.evaluate.knn import knn
from geomim.evaluate.probes import Fit, Progress, efficient_logits, fit_efficient, fit_linear

PIXELS = "pixel statistics"
RANDOM = "random initialisation"


@dataclass(frozen=True)
class Row:
    """One probe on one encoder.

    Attributes:
        encoder: Name of the encoder or of a floor.
        probe: `knn`, `linear` or `efficient`.
        accuracy: Mean over seeds of the share of test images classified rightly, in 0..1.
        low: Lower end of the 95 % confidence interval.
        high: Upper end.
        per_seed: Accuracy of each seed.
        recall: Share of the test images of each class that is found, mean over seeds; classes without one left out.
    """

    encoder: str
    probe: str
    accuracy: float
    low: float
    high: float
    per_seed: tuple[float, ...]
    recall: dict[int, float] = field(default_factory=dict)

    @property
    def balanced(self) -> float:
        """Mean of the classes' recall: what accuracy would be were all classes as frequent."""
        return sum(self.recall.values()) / max(len(self.recall), 1)


@dataclass(frozen=True)
class Scores:
    """The result of an evaluation.

    Attributes:
        data: What was evaluated on, in words.
        protocol: How, as plain values.
        rows: One a probe and encoder, the encoder first and the floors below it.
        notes: What a reader should know beside the numbers.
    """

    data: str
    protocol: dict[str, Any]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def find(self, encoder: str, probe: str) -> Row | None:
        """The row of an encoder and a probe, or None."""
        return next((row for row in self.rows if (row.encoder, row.probe) == (encoder, probe)), None)

    def warnings(self) -> list[str]:
        """A sentence for every probe with which an encoder does not reach its floors; empty if there is none."""
        return [sentence for row in self.rows for sentence in self._below(row)]

    def _below(self, row: Row) -> list[str]:
        if row.encoder in (PIXELS, RANDOM):
            return []
        sentences = []
        for floor in (PIXELS, RANDOM):
            # pixel statistics have no patches to attend to: efficient probing is held against their linear probe
            other = self.find(floor, row.probe) or (self.find(floor, "linear") if row.probe == "efficient" else None)
            if other is not None and row.accuracy < other.accuracy:
                sentences.append(
                    f"{row.encoder} falls below {floor} with the {row.probe} probe: "
                    f"{row.accuracy:.3f} < {other.accuracy:.3f}"
                )
        return sentences

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "data": self.data,
            "protocol": self.protocol,
            "rows": [asdict(row) | {"per_seed": list(row.per_seed), "balanced": row.balanced} for row in self.rows],
            "warnings": self.warnings(),
            "notes": list(self.notes),
        }

    def table(self) -> Table:
        """A table for the terminal: an encoder a row, a probe a column; sentences on fallen floors below it."""
        probes = list(dict.fromkeys(row.probe for row in self.rows))
        below = "\n".join([*self.warnings(), *self.notes])
        table = Table(title=f"Accuracy on {self.data}", caption=below or None, caption_justify="left")
        table.add_column("frozen encoder")
        for probe in probes:
            table.add_column(f"{probe} (95 %)", justify="right")
        for encoder in dict.fromkeys(row.encoder for row in self.rows):
            found = [self.find(encoder, probe) for probe in probes]
            cells = [f"{row.accuracy:.3f}  ({row.low:.3f}-{row.high:.3f})" if row else "-" for row in found]
            table.add_row(encoder, *cells)
        return table


def interval(correct: Tensor, replicates: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95 % confidence interval of the accuracy over seeds and test images, by a two-way bootstrap.

    Each replicate draws test images with replacement and, independently, seeds with replacement; its accuracy is the
    mean over both. So the interval holds the luck of the test images and that of the probe's training. It does not
    hold the luck of pretraining, for which encoders would have to be trained again.

    Args:
        correct: `(S, N)` bool, whether each seed classified each test image rightly.
        replicates: Number of draws.
        seed: Of the draws.

    Returns:
        The 2.5 and 97.5 percentile.
    """
    seeds, images = correct.shape
    generator = torch.Generator().manual_seed(seed)
    right = correct.double()
    answers = torch.empty(replicates, dtype=torch.float64)
    for index in range(replicates):
        drawn = torch.randint(images, (images,), generator=generator).bincount(minlength=images)
        accuracies = right @ drawn.double() / images
        answers[index] = accuracies[torch.randint(seeds, (seeds,), generator=generator)].mean()
    low, high = answers.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def row(encoder: str, probe: str, predictions: Sequence[Tensor], labels: Tensor) -> Row:
    """Score one probe.

    Args:
        encoder: Name of the encoder or floor.
        probe: Name of the probe.
        predictions: Predicted classes `(N,)`, one tensor a seed.
        labels: `(N,)`.
    """
    correct = torch.stack([prediction == labels for prediction in predictions])
    per_seed = tuple(correct.double().mean(1).tolist())
    low, high = interval(correct)
    right = correct.double().mean(0)
    recall = {label: float(right[labels == label].mean()) for label in sorted(set(labels.tolist()))}
    return Row(encoder, probe, sum(per_seed) / len(per_seed), low, high, per_seed, recall)


@dataclass
class Probed:
    """What probing one encoder gives.

    Attributes:
        rows: One a probe.
        fits: The probe to keep of each kind, chosen by held-out training images only; kNN fits nothing.
    """

    rows: list[Row] = field(default_factory=list)
    fits: dict[str, Fit] = field(default_factory=dict)


def probe_features(
    encoder: str,
    train: Features,
    test: Features,
    classes: int,
    probes: Sequence[str],
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Probed:
    """Fit probes on training features and score them on test features.

    Args:
        encoder: Name for the rows.
        train: Features to fit on.
        test: Features to score on.
        classes: Number of classes.
        probes: Some of `knn`, `linear`, `efficient`; the last is passed over where no tokens were kept.
        seeds: Seeds of the probes.
        device: Where efficient probes are trained.
        progress: Called with the share of the efficient probe's training that is done.
    """
    result = Probed()
    if "knn" in probes:
        nearest = knn(train.pooled, train.labels, test.pooled, classes)
        result.rows.append(row(encoder, "knn", [nearest], test.labels))
    if "linear" in probes:
        fits = [fit_linear(train.pooled, train.labels, classes, seed) for seed in seeds]
        answers = [fit.probe(test.pooled).argmax(1) for fit in fits]
        result.rows.append(row(encoder, "linear", answers, test.labels))
        result.fits["linear"] = max(fits, key=lambda fit: fit.held_out)
    if "efficient" in probes and train.tokens is not None and test.tokens is not None:
        fits = fit_efficient(train.tokens, train.labels, classes, seeds, device=device, progress=progress)
        answers = [efficient_logits(fit.probe, test.tokens).argmax(1) for fit in fits]
        result.rows.append(row(encoder, "efficient", answers, test.labels))
        result.fits["efficient"] = fits[0]
    return result
