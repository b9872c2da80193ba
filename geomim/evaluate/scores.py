"""The score table: every probe of an encoder beside its floors, with confidence intervals, and in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from geomim.evaluate.features import Features
from geomim.evaluate.instances import fit_instances, tile_shares
from geomim.evaluate.intervals import LEVEL, TEST, balanced_interval, interval, mcnemar, tile_test
from geomim.evaluate.knn import knn
from geomim.evaluate.linear import Fit, fit_linear
from geomim.evaluate.probes import Progress, efficient_logits, fit_efficient

PIXELS = "pixel statistics"
RANDOM = "random initialisation"
MAJORITY = "majority class"


@dataclass(frozen=True)
class Row:
    """One probe on one encoder.

    Attributes:
        encoder: Name of the encoder or of a floor.
        probe: `knn`, `linear` or `efficient`.
        accuracy: Mean over seeds of the share of test images classified rightly, in 0..1.
        low: Lower end of its 95 % confidence interval.
        high: Upper end.
        per_seed: Accuracy of each seed.
        recall: Share of the test images of each class that is found, mean over seeds; classes without one left out.
        balanced_low: Lower end of the 95 % confidence interval of `balanced`.
        balanced_high: Upper end.
        answers: `(S, N)` int64 predicted classes of each seed, where they are known.
        labels: `(N,)` int64, where they are known.
        groups: `(N,)` int64, the tile of each, where patches were scored in place of images.
    """

    encoder: str
    probe: str
    accuracy: float
    low: float
    high: float
    per_seed: tuple[float, ...]
    recall: dict[int, float] = field(default_factory=dict)
    balanced_low: float = 0.0
    balanced_high: float = 1.0
    answers: Tensor | None = field(default=None, repr=False, compare=False)
    labels: Tensor | None = field(default=None, repr=False, compare=False)
    groups: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def balanced(self) -> float:
        """Mean of the classes' recall: what accuracy would be were all classes as frequent."""
        return sum(self.recall.values()) / max(len(self.recall), 1)

    @property
    def correct(self) -> Tensor | None:
        """`(S, N)` bool, whether each seed has each test image right."""
        return None if self.answers is None or self.labels is None else self.answers.eq(self.labels)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        kept = {one.name: getattr(self, one.name) for one in fields(self) if one.compare}
        return kept | {"per_seed": list(self.per_seed), "balanced": self.balanced}


_SAID = {
    "<": "{encoder} falls below {floor}",
    "~": "no difference is shown between {encoder} and {floor}",
    ">": "{encoder} stands above {floor}",
}


@dataclass(frozen=True)
class Scores:
    """The result of an evaluation.

    Attributes:
        data: What was evaluated on, in words.
        protocol: How, as plain values.
        rows: One a probe and encoder, the encoder first and the floors below it.
        notes: What a reader should know beside the numbers.
        majority: What calls all test images by the class that most training images are of.
    """

    data: str
    protocol: dict[str, Any]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    majority: Row | None = None

    def find(self, encoder: str, probe: str) -> Row | None:
        """The row of an encoder and a probe, or None; the majority class has one for all probes."""
        if encoder == MAJORITY:
            return self.majority
        return next((row for row in self.rows if (row.encoder, row.probe) == (encoder, probe)), None)

    def comparisons(self) -> list[dict[str, Any]]:
        """Every probe on an encoder against the same probe on each floor and the majority class, as plain values.

        `sign` is `<` or `>` where the paired test says so of their accuracies, and `~` where it shows no difference.
        Pixel statistics have no patches to attend to, so no efficient probe, and are not held against one.
        """
        found = []
        for row in self.rows:
            for floor in (RANDOM, PIXELS, MAJORITY) if row.encoder not in (RANDOM, PIXELS) else ():
                other = self.find(floor, row.probe)
                if other and row.correct is not None and other.correct is not None:
                    both = row.correct, other.correct
                    p = mcnemar(*both) if row.groups is None else tile_test(*both, row.groups)
                    sign = "~" if p >= LEVEL else "<" if row.accuracy < other.accuracy else ">"
                    names = {"encoder": row.encoder, "floor": floor, "probe": row.probe}
                    found.append(names | {"accuracy": row.accuracy, "other": other.accuracy, "p": p, "sign": sign})
        return found

    def sentences(self, signs: str = "<~>") -> list[str]:
        """What the paired tests say of an encoder and its floors, a sentence a floor and outcome, falls first."""
        said: dict[tuple[str, str], list[str]] = {}
        for one in sorted(self.comparisons(), key=lambda one: "<~>".find(one["sign"])):
            p = f"p = {one['p']:.2g}" if one["p"] >= 0.001 else "p < 0.001"
            between = one["sign"].replace("~", "and")
            figures = f"{one['probe']} {one['accuracy']:.3f} {between} {one['other']:.3f} ({p})"
            said.setdefault((one["sign"], _SAID[one["sign"]].format(**one)), []).append(figures)
        return [f"{words}: {', '.join(figures)}" for (sign, words), figures in said.items() if sign in signs]

    def warnings(self) -> list[str]:
        """A sentence for every floor that an encoder falls below, as the paired test says; empty if there is none."""
        return self.sentences("<")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "data": self.data,
            "protocol": self.protocol,
            "rows": [row.to_dict() for row in self.rows],
            "majority": self.majority and self.majority.to_dict(),
            "comparisons": self.comparisons(),
            "warnings": self.warnings(),
            "notes": list(self.notes),
        }

    def cells(self) -> list[list[str]]:
        """The table in words: a head, then accuracy and balanced accuracy of each encoder, the majority class last."""
        probes = list(dict.fromkeys(row.probe for row in self.rows))
        lines = [["frozen encoder", "", *(f"{probe} (95 %)" for probe in probes)]]
        for encoder in [*dict.fromkeys(row.encoder for row in self.rows), *([MAJORITY] if self.majority else [])]:
            found = [self.find(encoder, probe) for probe in probes]
            plain = [f"{one.accuracy:.3f} ({one.low:.3f}-{one.high:.3f})" if one else "-" for one in found]
            alike = [f"{r.balanced:.3f} ({r.balanced_low:.3f}-{r.balanced_high:.3f})" if r else "-" for r in found]
            lines += [[encoder, "accuracy", *plain], ["", "balanced", *alike]]
        return lines

    def table(self) -> Table:
        """A table for the terminal; below it what the paired tests say, and the notes."""
        head, *lines = self.cells()
        said = self.sentences()
        below = "\n".join([*said, *([f"p: {self.protocol.get('test', TEST)}"] if said else []), *self.notes])
        table = Table(title=f"Accuracy on {self.data}", caption=below or None, caption_justify="left")
        for place, title in enumerate(head):
            table.add_column(title, justify="left" if place < 2 else "right")
        for line in lines:
            table.add_row(*line, end_section=not line[0])
        return table


def row(encoder: str, probe: str, predictions: Sequence[Tensor], labels: Tensor, groups: Tensor | None = None) -> Row:
    """Score one probe.

    Args:
        encoder: Name of the encoder or floor.
        probe: Name of the probe.
        predictions: Predicted classes `(N,)`, one tensor a seed.
        labels: `(N,)`.
        groups: `(N,)` the tile of each, where they are patches.
    """
    answers = torch.stack(list(predictions))
    correct = answers == labels
    per_seed = tuple(correct.double().mean(1).tolist())
    right = correct.double().mean(0)
    recall = {label: float(right[labels == label].mean()) for label in sorted(set(labels.tolist()))}
    ends = (*interval(correct, groups), per_seed, recall, *balanced_interval(correct, labels, groups))
    return Row(encoder, probe, sum(per_seed) / len(per_seed), *ends, answers, labels, groups)


def majority(train: Tensor, test: Tensor, groups: Tensor | None = None) -> Row:
    """The floor that looks at no image: of labels `(M,)` the most frequent one, said of all images of labels `(N,)`."""
    return row(MAJORITY, "any", [torch.full_like(test, int(train.bincount().argmax()))], test, groups)


@dataclass
class Probed:
    """What probing one encoder gives.

    Attributes:
        rows: One a probe.
        fits: The probe to keep of each kind, chosen by held-out training images only; kNN fits nothing.
        shares: `(N, C)` of each kind, what it makes of each test image's classes: probabilities, the mean over seeds.
    """

    rows: list[Row] = field(default_factory=list)
    fits: dict[str, Fit] = field(default_factory=dict)
    shares: dict[str, Tensor] = field(default_factory=dict)

    def add(
        self, encoder: str, probe: str, shares: Sequence[Tensor], labels: Tensor, groups: Tensor | None = None
    ) -> None:
        """Score what a probe says, a tensor `(N, C)` of probabilities a seed."""
        self.rows.append(row(encoder, probe, [one.argmax(1) for one in shares], labels, groups))
        self.shares[probe] = torch.stack(list(shares)).mean(0)


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
        probes: Some of `knn`, `linear`, `efficient`; the last is passed over where no tokens were kept. Or `instances`:
            `linear` is then of patches, by multiple instance.
        seeds: Seeds of the probes.
        device: Where probes of tokens are trained.
        progress: Called with the share of the efficient probe's training that is done.
    """
    result = Probed()
    if "knn" in probes:
        nearest = knn(train.pooled, train.labels, test.pooled, classes)
        result.add(encoder, "knn", [nearest], test.labels)
    if "linear" in probes:
        data = train.pooled, train.labels, classes
        fits = [fit_linear(*data, seed, groups=train.groups, counts=train.counts) for seed in seeds]
        result.add(encoder, "linear", [fit.probe(test.pooled).softmax(1) for fit in fits], test.labels, test.groups)
        result.fits["linear"] = max(fits, key=lambda fit: fit.held_out)
    if "instances" in probes:
        fits = [fit_instances(train, classes, seed, device=device) for seed in seeds]
        shares = [tile_shares(fit.probe, test, device=device) for fit in fits]
        result.add(encoder, "linear", shares, test.labels)
        result.fits["linear"] = max(fits, key=lambda fit: fit.held_out)
    if "efficient" in probes and train.tokens is not None and test.tokens is not None:
        fits = fit_efficient(train.tokens, train.labels, classes, seeds, device=device, progress=progress)
        shares = [efficient_logits(fit.probe, test.tokens).softmax(1) for fit in fits]
        result.add(encoder, "efficient", shares, test.labels)
        result.fits["efficient"] = fits[0]
    return result
