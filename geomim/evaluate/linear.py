"""Linear probes on frozen features: multinomial logistic regression, and what all probes are chosen by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geomim.errors import InputError

L2_STRENGTHS = tuple(10.0**exponent for exponent in (0, -1, -2, -3, -4, -5, -6))
"""Penalties that the linear probe chooses from, strongest first."""


@dataclass(frozen=True)
class Fit:
    """A fitted probe.

    Attributes:
        probe: Takes what it was fitted on and gives `(N, classes)` logits.
        chosen: The setting chosen on held-out training images.
        held_out: Accuracy there, in 0..1.
    """

    probe: nn.Module
    chosen: float
    held_out: float


def hold_out(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split training images in two, class by class.

    Args:
        labels: `(N,)` int64.
        share: Share of each class to hold out; a class with one image keeps it.
        seed: Of the choice.

    Returns:
        Indices to fit on and indices held out, ascending.

    Raises:
        InputError: No class has two images.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(int(labels.max()) + 1):
        members = order[labels[order] == label]
        if len(members) < 2:
            continue
        held[members[: min(max(1, round(share * len(members))), len(members) - 1)]] = True
    if not held.any():
        raise InputError("expected at least two training images of some class, to choose a probe's strength on")
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of images whose largest logit is the label's."""
    return float((logits.argmax(1) == labels).double().mean())


class LinearProbe(nn.Linear):
    """A linear classifier of one vector an image.

    It is affine, so applied to each patch token its mean over the patches is the image's answer: that is what
    makes maps of it.
    """


def fit_linear(
    vectors: Tensor,
    labels: Tensor,
    classes: int,
    seed: int = 0,
    strengths: Sequence[float] = L2_STRENGTHS,
    held_out: tuple[Tensor, Tensor] | None = None,
    groups: Tensor | None = None,
    counts: Tensor | None = None,
) -> Fit:
    """Multinomial logistic regression on standardised features, by L-BFGS.

    The penalty is chosen on a fifth of the training images, then all of them are used. The standardisation is
    folded into the weights, so the probe takes features as they are.

    Args:
        vectors: `(N, D)` features.
        labels: `(N,)` int64 in `0..classes-1`.
        classes: Number of classes.
        seed: Of the choice of the fifth; the rest is deterministic.
        strengths: Factors of half the squared weights, strongest first.
        held_out: Other features and labels to choose on; then none of `vectors` is set aside.
        groups: `(N,)` int64, a fifth of which is set aside, each as a whole: scenes or tiles that patches are of.
        counts: `(classes,)` how many there are of each class, where N were chosen to be more alike: once fitted, the
            probe is moved to these frequencies (Saerens et al., Neural Computation 14, 2002).

    Returns:
        A `LinearProbe` and the strength chosen.
    """
    tried, others = (vectors, labels), held_out
    if others is None:
        if groups is None:
            fit, held = hold_out(labels, 0.2, seed)
        else:
            names = groups.unique()  # type: ignore[no-untyped-call]
            fit, held = (torch.isin(groups, names[part]) for part in hold_out(torch.zeros_like(names), 0.2, seed))
        tried, others = (vectors[fit], labels[fit]), (vectors[held], labels[held])
    chosen, best = strengths[0], -1.0
    found: LinearProbe | None = None
    for strength, one in zip(strengths, solutions(*tried, classes, strengths), strict=True):
        score = accuracy(one(others[0]), others[1])
        if score > best:  # at equal accuracy the stronger penalty stays
            chosen, best, found = strength, score, one
    (probe,) = solutions(vectors, labels, classes, [chosen], found)
    if counts is not None:
        # 0 for a class that there is not
        probe.bias.add_((counts / labels.bincount(minlength=classes)).log().nan_to_num(0.0, 0.0, 0.0))
    return Fit(probe, chosen, best)


def solutions(
    vectors: Tensor, labels: Tensor, classes: int, strengths: Iterable[float], start: LinearProbe | None = None
) -> Iterator[LinearProbe]:
    """Logistic regressions on standardised features at one penalty after the other, each from the one before.

    Args:
        vectors: `(N, D)` features.
        labels: `(N,)` int64 in `0..classes-1`.
        classes: Number of classes.
        strengths: Factors of half the squared weights; strongest first saves the most iterations.
        start: A solution at another penalty or of other rows to begin with; zeros where None.

    Yields:
        A probe for each strength, as it is fitted.
    """
    vectors = vectors.float()
    mean = vectors.mean(0)
    std = varied(mean, vectors.std(0, unbiased=False))
    turned = (vectors - mean) / std
    plain = Axes.of(mean, std, turned.T @ turned / len(turned))
    turned = turned @ plain.axes
    for strength in strengths:
        axes = plain.scaled(strength, classes)
        steps, bias = axes.start(start, classes)
        minimise([steps, bias], partial(_loss, turned, labels, strength, axes.scale, steps, bias))
        start = axes.probe(steps, bias)
        yield start


def _loss(turned: Tensor, labels: Tensor, strength: float, scale: Tensor, steps: Tensor, bias: Tensor) -> Tensor:
    """Loss with its penalty, of features along scaled axes; leaves gradients."""
    weight = steps * scale
    loss: Tensor = F.cross_entropy(F.linear(turned, weight, bias), labels) + strength / 2 * weight.square().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


@dataclass(frozen=True)
class Axes:
    """Where L-BFGS works: standardised features along their principal axes, each scaled by the curvature at first.

    Features of encoders are so correlated that plain L-BFGS stops far from the optimum. The curvature is that of the
    loss and the penalty. The rotation leaves the penalty as it is; the scaling only changes the path.

    Attributes:
        mean: `(D,)` of the features.
        std: `(D,)` likewise, infinite where a feature does not vary and so says nothing.
        axes: `(D, D)`, a column each.
        spread: `(D,)` variance along each axis.
        scale: `(D,)` of each axis.
    """

    mean: Tensor
    std: Tensor
    axes: Tensor
    spread: Tensor
    scale: Tensor

    @classmethod
    def of(cls, mean: Tensor, std: Tensor, correlation: Tensor) -> Axes:
        """Axes of features with such moments, not scaled."""
        spread, axes = torch.linalg.eigh(correlation)
        return cls(mean, std, axes, spread.clamp_min(0), torch.ones_like(spread))

    def scaled(self, strength: float, classes: int) -> Axes:
        """The same for a penalty of some strength."""
        return replace(self, scale=(self.spread * (classes - 1) / classes**2 + strength).rsqrt())

    def start(self, probe: LinearProbe | None, classes: int) -> tuple[Tensor, Tensor]:
        """Weights and bias there of a probe, or zeros; both want gradients."""
        if probe is None:
            steps, bias = self.mean.new_zeros(classes, len(self.mean)), self.mean.new_zeros(classes)
        else:
            finite = torch.where(self.std.isinf(), 0.0, self.std)
            weight = probe.weight.to(self.mean.device)
            steps, bias = (weight * finite) @ self.axes / self.scale, probe.bias.to(weight.device) + weight @ self.mean
        return steps.detach().clone().requires_grad_(), bias.detach().clone().requires_grad_()

    def fold(self, steps: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and bias that take features as they are."""
        weight = (steps * self.scale) @ self.axes.T / self.std
        return weight, bias - weight @ self.mean

    def probe(self, steps: Tensor, bias: Tensor) -> LinearProbe:
        """Those, on the CPU."""
        weight, offset = self.fold(steps.detach(), bias.detach())
        probe = LinearProbe(weight.shape[1], len(weight))
        probe.load_state_dict({"weight": weight, "bias": offset})
        return probe.eval().requires_grad_(False)


def minimise(parameters: Sequence[Tensor], closure: Callable[[], Tensor]) -> None:
    """Move parameters to where `closure`, which sets their gradients, is least; deterministic."""
    optimiser = torch.optim.LBFGS(
        parameters, max_iter=80, history_size=20, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def cleared() -> Tensor:
        optimiser.zero_grad()
        return closure()

    with torch.enable_grad():
        optimiser.step(cleared)  # type: ignore[no-untyped-call]


def varied(mean: Tensor, std: Tensor) -> Tensor:
    """Deviations `(D,)`, infinite where a feature does not vary."""
    return torch.where(std > 1e-6 * (mean.abs() + 1), std, torch.inf)
