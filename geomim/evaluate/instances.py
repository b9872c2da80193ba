"""Linear probes of patches where only the class of the tile they are of is known: by multiple instance.

A tile is a bag of patches (Dietterich et al., Artificial Intelligence 89, 1997). Each patch has probabilities of the
classes, and those of the tile are their mean: the instance-level mean of Ilse et al. (ICML 2018), here of several
classes and without a network. Dietterich's one patch that decides (a maximum) is not asked for: a class of land covers
much of its tile, and a maximum fits the few patches that are surest. A patch that tiles of every class have is of none,
and what it is called is chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geomim.evaluate.features import Features
from geomim.evaluate.linear import L2_STRENGTHS, Axes, Fit, LinearProbe, accuracy, hold_out, minimise, varied

_PATCHES = 32_768
"""Held in single precision at once."""

METHOD = "multiple instance: a tile's probabilities are the mean of its patches'; tiles are scored"


def fit_instances(
    tiles: Features,
    classes: int,
    seed: int = 0,
    strengths: Sequence[float] = L2_STRENGTHS,
    device: torch.device | str = "cpu",
) -> Fit:
    """Fit patches so that their mean probabilities say the tiles' classes: L-BFGS on the log-likelihood of tiles.

    The penalty is chosen on a fifth of the tiles, and then all are fitted on. Unlike the linear probe's it is chosen by
    likelihood: tiles are right long before their patches are. There are several maxima: every fit starts from that of
    the next stronger penalty, and the strongest from zero, where the gradient is that of mean-pooled tiles.

    Args:
        tiles: With tokens; patches that see nodata count nothing.
        classes: Number of classes.
        seed: Of the choice of the fifth; the rest is deterministic.
        strengths: Factors of half the squared weights of standardised features, strongest first.
        device: Where batches of tokens are moved.

    Returns:
        A `LinearProbe` of single patches, on the CPU, and the strength chosen.

    Raises:
        InputError: No class has two tiles.
    """
    fit, held = hold_out(tiles.labels, 0.2, seed)
    plain = _axes(tiles, device)
    labels, start, tried = tiles.labels[held], None, []
    for strength in strengths:
        start = _fit(tiles, fit, classes, strength, plain, start)
        shares = tile_shares(start, tiles, held, device)
        likelihood = float(shares[range(len(held)), labels].clamp_min(1e-12).log().mean())
        tried.append((likelihood, strength, start, accuracy(shares, labels)))
    _, chosen, found, right = max(tried, key=lambda one: one[0])  # of equal ones the strongest
    everything = torch.arange(len(tiles))
    return Fit(_fit(tiles, everything, classes, chosen, plain, found), chosen, right)


@torch.no_grad()
def tile_shares(
    probe: nn.Module, tiles: Features, rows: Tensor | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """Probabilities `(N, classes)` of tiles, or of some `rows` of them: the mean of their patches'."""
    rows = torch.arange(len(tiles)) if rows is None else rows
    weight, bias = (one.to(device) for one in probe.parameters())
    parts = [
        (F.linear(patches, weight, bias).softmax(-1) * seen[..., None]).sum(1) / seen.sum(1, keepdim=True)
        for patches, seen, _ in _batches(tiles, rows, device)
    ]
    return torch.cat(parts).cpu()


def _batches(tiles: Features, rows: Tensor, device: torch.device | str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Patches `(b, L, D)` float32, which of them count `(b, L)`, and labels `(b,)`; all count where none is seen."""
    assert tiles.tokens is not None and tiles.seen is not None
    for part in torch.split(rows, max(1, _PATCHES // tiles.tokens.shape[1])):
        seen = tiles.seen[part]
        seen = seen | ~seen.any(1, keepdim=True)
        yield tiles.tokens[part].to(device).float(), seen.to(device), tiles.labels[part].to(device)


def _axes(tiles: Features, device: torch.device | str) -> Axes:
    """Those of the patches that count; moments in two passes, for cancellation costs digits."""
    everything, count = torch.arange(len(tiles)), 0
    mean = torch.zeros((), dtype=torch.float64, device=device)
    for patches, seen, _ in _batches(tiles, everything, device):
        mean, count = mean + patches[seen].sum(0, dtype=torch.float64), count + int(seen.sum())
    mean = (mean / count).float()
    squares = torch.zeros((), dtype=torch.float64, device=device)
    for patches, seen, _ in _batches(tiles, everything, device):
        apart = patches[seen] - mean
        squares = squares + (apart.T @ apart).double()
    covariance = (squares / count).float()
    std = varied(mean, covariance.diagonal().sqrt())
    return Axes.of(mean, std, covariance / std / std[:, None])


def _fit(
    tiles: Features,
    rows: Tensor,
    classes: int,
    strength: float,
    plain: Axes,
    start: LinearProbe | None,
) -> LinearProbe:
    axes = plain.scaled(strength, classes)
    steps, bias = axes.start(start, classes)

    def closure() -> Tensor:
        penalty = strength / 2 * (steps * axes.scale).square().sum()
        folded = axes.fold(steps, bias)
        weight, offset = (one.detach().requires_grad_() for one in folded)
        total = penalty.detach()
        for patches, seen, labels in _batches(tiles, rows, axes.mean.device):
            loss = -_log_likelihood(F.linear(patches, weight, offset), seen, labels).sum() / len(rows)
            loss.backward()  # type: ignore[no-untyped-call]  # a batch at a time, so none of them is kept
            total = total + loss.detach()
        torch.autograd.backward([penalty, *folded], [None, weight.grad, offset.grad])
        return total

    minimise([steps, bias], closure)
    return axes.probe(steps, bias)


def _log_likelihood(logits: Tensor, seen: Tensor, labels: Tensor) -> Tensor:
    """`(B,)` of tiles, from logits `(B, L, C)` of patches."""
    place = labels[:, None, None].expand(*logits.shape[:2], 1)
    own = logits.log_softmax(-1).gather(-1, place)[..., 0]
    return own.masked_fill(~seen, -torch.inf).logsumexp(1) - seen.sum(1).log()
