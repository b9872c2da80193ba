"""Probes on frozen features: multinomial logistic regression, and efficient probing by multi-query attention.

A probe never sees the encoder: linear probes take one vector an image, efficient ones its patch tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geomim.errors import ConfigError, InputError

L2_STRENGTHS = tuple(10.0**exponent for exponent in (0, -1, -2, -3, -4, -5, -6))
"""Penalties that the linear probe chooses from, strongest first."""
LEARNING_RATES = (3e-3, 1e-2, 3e-2)
"""Learning rates that the efficient probe chooses from."""

Progress = Callable[[float], None]


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
    start: LinearProbe | None = None
    found = start
    for strength in strengths:
        start = _logistic(*tried, classes, strength, start)
        score = accuracy(start(others[0]), others[1])
        if score > best:  # at equal accuracy the stronger penalty stays
            chosen, best, found = strength, score, start
    probe = _logistic(vectors, labels, classes, chosen, found)
    if counts is not None:
        # 0 for a class that there is not
        probe.bias.add_((counts / labels.bincount(minlength=classes)).log().nan_to_num(0.0, 0.0, 0.0))
    return Fit(probe, chosen, best)


def _logistic(vectors: Tensor, labels: Tensor, classes: int, strength: float, start: LinearProbe | None) -> LinearProbe:
    """Fit from zero, or from a solution at another strength, which saves iterations.

    Features of encoders are so correlated that plain L-BFGS stops far from the optimum. So it works along their
    principal axes, each scaled by the curvature that the loss and the penalty have there at first. The rotation
    leaves the penalty as it is; the scaling only changes the path.
    """
    vectors = vectors.float()
    mean, std = vectors.mean(0), vectors.std(0, unbiased=False)
    std = torch.where(std > 1e-6 * (mean.abs() + 1), std, torch.inf)  # what does not vary says nothing
    standard = (vectors - mean) / std
    spread, axes = torch.linalg.eigh(standard.T @ standard / len(standard))
    scale = (spread.clamp_min(0) * (classes - 1) / classes**2 + strength).rsqrt()
    turned = standard @ axes * scale
    steps, bias = vectors.new_zeros(classes, vectors.shape[1]), vectors.new_zeros(classes)
    if start is not None:
        finite = torch.where(std.isinf(), 0.0, std)
        steps, bias = (start.weight * finite) @ axes / scale, start.bias + start.weight @ mean
    steps, bias = steps.detach().clone().requires_grad_(), bias.detach().clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [steps, bias], max_iter=80, history_size=20, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        penalty = strength / 2 * (steps * scale).square().sum()
        loss: Tensor = F.cross_entropy(F.linear(turned, steps, bias), labels) + penalty
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimiser.step(closure)  # type: ignore[no-untyped-call]
    folded = (steps.detach() * scale) @ axes.T / std
    probe = LinearProbe(vectors.shape[1], classes)
    probe.load_state_dict({"weight": folded, "bias": bias.detach() - folded @ mean})
    return probe.eval().requires_grad_(False)


class EfficientPooling(nn.Module):
    """Attention pooling with several queries, each for its own slice of the values (Psomas et al., 2025).

    Neither queries nor keys are projected, and tokens are not normalised. Query q pools columns
    `q*D/(d*Q)` to `(q+1)*D/(d*Q)` of the values. Verified against the published code. The sums are taken over raw
    tokens before the value projection, which is the same number for less work.

    Args:
        width: Channels D of a token.
        num_queries: Q.
        d_out: d, how much narrower than the tokens the answer is; d*Q divides D.

    Raises:
        ConfigError: d*Q does not divide D.
    """

    def __init__(self, width: int, num_queries: int = 32, d_out: int = 1) -> None:
        super().__init__()
        if width % (num_queries * d_out):
            raise ConfigError(
                f"efficient probing: expected num_queries * d_out to divide the width {width}; "
                f"given {num_queries} * {d_out}"
            )
        self.num_queries = num_queries
        self.cls_token = nn.Parameter(torch.randn(1, num_queries, width) * 0.02)
        self.v = nn.Linear(width, width // d_out, bias=False)

    def attention(self, tokens: Tensor) -> Tensor:
        """Weights `(B, Q, L)` of the tokens `(B, L, D)`, which sum to one over L."""
        logits = tokens @ self.cls_token[0].T * tokens.shape[-1] ** -0.5
        weights: Tensor = logits.transpose(1, 2).softmax(-1)
        return weights

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool tokens `(B, L, D)` to `(B, D/d)`."""
        pooled = self.attention(tokens) @ tokens  # (B, Q, D)
        values = self.v.weight.view(self.num_queries, -1, tokens.shape[-1])
        return torch.einsum("bqd,qed->bqe", pooled, values).flatten(1)


class EfficientProbe(nn.Sequential):
    """The whole head: pooling, batch normalisation without weights, linear; named as the published code names it.

    Args:
        width: Channels D of a token.
        classes: Number of classes.
        num_queries: Number of queries Q.
        d_out: How much narrower than the tokens the pooled vector is.
    """

    def __init__(self, width: int, classes: int, num_queries: int = 32, d_out: int = 1) -> None:
        super().__init__(
            EfficientPooling(width, num_queries, d_out),
            nn.BatchNorm1d(width // d_out, affine=False, eps=1e-6),
            nn.Linear(width // d_out, classes),
        )


def queries_for(width: int, wanted: int = 32) -> int:
    """The largest number of queries up to `wanted` that divides a token's width."""
    return max(number for number in range(1, wanted + 1) if width % number == 0)


def fit_efficient(
    tokens: Tensor,
    labels: Tensor,
    classes: int,
    seeds: Sequence[int] = (0,),
    epochs: int | None = None,
    batch: int | None = None,
    rates: Sequence[float] = LEARNING_RATES,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> list[Fit]:
    """Train efficient probes on cached patch tokens with AdamW, one a seed.

    The learning rate is chosen on a fifth of the training images with a third of the epochs; then every seed
    (start and order of the images) is trained on all of them. Deviates from the published schedule (LARS, 90 epochs,
    batches of 4096), which is cut for ImageNet.

    Args:
        tokens: `(N, L, D)` patch tokens, half precision.
        labels: `(N,)` int64 in `0..classes-1`.
        classes: Number of classes.
        seeds: One probe each.
        epochs: Passes over the images in the final training; 24, or as many as make 600 steps, where None.
        batch: Images a step; a sixteenth of the images, from 32 to 256, where None.
        rates: Learning rates to choose from.
        device: Where the probe is trained; tokens move a batch at a time.
        progress: Called with the share done, in 0..1.

    Raises:
        InputError: There are too few images to normalise a batch of them.
    """
    fit, held = hold_out(labels, 0.2, seeds[0])
    if len(fit) < 2:
        raise InputError(f"efficient probing: expected at least 3 training images; given {len(labels)}")
    batch = batch or min(256, max(32, len(labels) // 16))
    epochs = epochs or max(24, math.ceil(600 * batch / len(labels)))
    short = max(1, epochs // 3)
    total = len(rates) * short * len(fit) + len(seeds) * epochs * len(labels)
    meter = _Meter(total, progress)
    scores = []
    for rate in rates:
        probe = _train(tokens, labels, fit, classes, seeds[0], short, batch, rate, device, meter)
        scores.append(accuracy(efficient_logits(probe, tokens, held), labels[held]))
    best = max(range(len(rates)), key=scores.__getitem__)
    everything = torch.arange(len(labels))
    return [
        Fit(
            _train(tokens, labels, everything, classes, seed, epochs, batch, rates[best], device, meter),
            rates[best],
            scores[best],
        )
        for seed in seeds
    ]


class _Meter:
    def __init__(self, total: int, report: Progress | None) -> None:
        self.total, self.done, self.report = total, 0, report

    def add(self, images: int) -> None:
        self.done += images
        if self.report is not None:
            self.report(self.done / self.total)


def _train(
    tokens: Tensor,
    labels: Tensor,
    rows: Tensor,
    classes: int,
    seed: int,
    epochs: int,
    batch: int,
    rate: float,
    device: torch.device | str,
    meter: _Meter,
) -> EfficientProbe:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        width = tokens.shape[-1]
        probe = EfficientProbe(width, classes, queries_for(width)).to(device).train()
        optimiser = torch.optim.AdamW(probe.parameters(), lr=rate, weight_decay=0.01)
        steps_a_pass = max(1, len(rows) // batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, rate, total_steps=epochs * steps_a_pass + 1, pct_start=0.1, cycle_momentum=False
        )
        for _ in range(epochs):
            order = rows[torch.randperm(len(rows), generator=generator)]
            for chunk in order.tensor_split(steps_a_pass):
                # sorted: memory is read in one direction, and the order inside a batch does not matter
                part = chunk.sort().values
                logits = probe(tokens[part].to(device).float())
                loss = F.cross_entropy(logits, labels[part].to(device))
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
                meter.add(len(chunk))
    return probe.cpu().eval().requires_grad_(False)


@torch.no_grad()
def efficient_logits(probe: nn.Module, tokens: Tensor, rows: Tensor | None = None, batch: int = 512) -> Tensor:
    """Logits `(N, classes)` from cached tokens `(N, L, D)`, or from some `rows` of them, a batch at a time."""
    rows = torch.arange(len(tokens)) if rows is None else rows
    return torch.cat([probe(tokens[part].float()) for part in torch.split(rows, batch)])


@torch.no_grad()
def patch_logits(probe: nn.Module, tokens: Tensor) -> Tensor:
    """What a probe says of each single patch.

    Args:
        probe: `LinearProbe` or `EfficientProbe`; the latter attends to one token at a time.
        tokens: `(B, L, D)` patch tokens.

    Returns:
        `(B, L, classes)`.
    """
    if isinstance(probe, LinearProbe):
        logits: Tensor = probe(tokens)
        return logits
    single: Tensor = probe(tokens.flatten(0, 1)[:, None])
    return single.unflatten(0, tokens.shape[:2])  # type: ignore[no-untyped-call,no-any-return]
