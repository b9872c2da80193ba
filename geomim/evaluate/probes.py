"""Efficient probing of frozen patch tokens by multi-query attention, and what any probe says of single patches.

A probe never sees the encoder: linear probes take one vector an image, efficient ones its patch tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geomim.errors import ConfigError, InputError
from geomim.evaluate.linear import Fit, LinearProbe, accuracy, hold_out

LEARNING_RATES = (3e-3, 1e-2, 3e-2)
"""Learning rates that the efficient probe chooses from."""

Progress = Callable[[float], None]


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
