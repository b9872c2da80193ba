"""Semantically rich patches that grow near, then far, then at random."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from geomim.errors import ConfigError
from geomim.models.patches import patchify, take
from geomim.pretrain.context import Context, View
from geomim.pretrain.masking.split import INVALID, TokenSplit, counts, draw, split_of

Score = Literal["hog_energy", "published"]


@dataclass(frozen=True)
class Phases:
    """When the growth of the visible set changes, in shares of training; between two ends it blends.

    The defaults are the published epochs 280, 300, 580 and 600 over its 800.

    Attributes:
        near_until: Nearest patches alone up to here.
        far_from: Farthest patches alone from here.
        far_until: Farthest patches alone up to here.
        random_from: Random patches alone from here.
    """

    near_until: float = 0.35
    far_from: float = 0.375
    far_until: float = 0.725
    random_from: float = 0.75

    def __post_init__(self) -> None:
        ends = (self.near_until, self.far_from, self.far_until, self.random_from)
        if not 0 <= ends[0] < ends[1] <= ends[2] < ends[3] <= 1:
            raise ConfigError(f"phases: expected 0 <= near < far <= far < random <= 1; given {ends}")

    def shares(self, progress: Tensor) -> tuple[Tensor, Tensor]:
        """Share of the picks that is near, and share of the others that is far; both 0-dim in [0, 1]."""
        far = ((progress - self.near_until) / (self.far_from - self.near_until)).clamp(0, 1)
        random = ((progress - self.far_until) / (self.random_from - self.far_until)).clamp(0, 1)
        return 1 - far, 1 - random


@dataclass(frozen=True)
class Selective:
    """Semantically rich seeds that grow near, then far, then at random (SelectiveMAE, Wang et al., ICCV 2025, 3.2).

    Half of the visible patches are seeds, drawn without replacement with probability proportional to their score;
    the rest is added in two steps by cosine similarity of patch tokens to what is already selected. Predicted
    patches are drawn from the others by the same score.

    Attributes:
        visible: Share of the patches that is seen.
        predict: Share of all patches that is predicted.
        score: `hog_energy` (gradient energy) or `published` (constant, as the released code computes it).
        phases: When growth goes from near to far to random.
    """

    visible: float = 0.15
    predict: float = 0.25
    score: Score = "hog_energy"
    phases: Phases = Phases()

    def __call__(self, context: Context, progress: Tensor) -> dict[str, TokenSplit]:
        """Split the image."""
        view, draws = context.views["image"], context.draws
        seen, asked = counts(view.length, self.visible, self.predict)
        with torch.no_grad():
            score = SCORES[self.score](view)
            if view.patch_valid is not None:
                score = score.masked_fill(~view.patch_valid, INVALID)
            first = max(1, seen // 2)
            seeds = draw(score, draws("seeds", view.length), first)
            near, far = self.phases.shares(progress)
            noise = draws("growth", view.length)
            visible = grow(view.tokens(), seeds, seen - first, near, far, noise, view.patch_valid)
            rest = score.scatter(1, visible, -torch.inf)
            predict = draw(rest, draws("predict", view.length), asked)
        return {"image": split_of(view, visible, predict)}


def grow(
    tokens: Tensor,
    seeds: Tensor,
    count: int,
    near: Tensor,
    far: Tensor,
    noise: Tensor,
    valid: Tensor | None = None,
) -> Tensor:
    """Add patches to a selected set by their cosine similarity to its most similar member.

    Args:
        tokens: `(B, L, D)`.
        seeds: `(B, S)` selected patches.
        count: How many to add, in two rounds of equal size (the second takes the remainder).
        near: 0-dim, share of the picks that are the most similar.
        far: 0-dim, share of the other picks that are the least similar; the rest are random.
        noise: `(B, L)` in (0, 1) for the random picks.
        valid: `(B, L)` bool; patches that are False are taken last.

    Returns:
        `(B, S + count)`: the seeds, then what was added.
    """
    tokens = F.normalize(tokens, dim=-1)
    taken = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device).scatter(1, seeds, True)
    late = 0.0 if valid is None else (~valid).float() * INVALID
    nearest = torch.full(tokens.shape[:2], -2.0, device=tokens.device)
    selected, added = [seeds], seeds
    for size in (count // 2, count - count // 2):
        if size == 0:
            continue
        nearest = torch.maximum(nearest, (tokens @ take(tokens, added).transpose(1, 2)).amax(-1))
        from_near = (near * size).round()
        from_far = (far * (size - from_near)).round()
        slot = torch.arange(size, device=tokens.device)
        added = seeds.new_zeros(seeds.shape[0], size)
        # three picks of the full static size; each fills its own share of the slots, and what it fills is taken
        for rank, first, amount in (
            (nearest, 0 * from_near, from_near),
            (-nearest, from_near, from_far),
            (noise, from_near + from_far, size - from_near - from_far),
        ):
            picked = (rank + late).masked_fill(taken, -torch.inf).topk(size, dim=1).indices
            chosen = slot < amount
            taken = taken.scatter(1, picked, taken.gather(1, picked) | chosen)
            here = (slot >= first) & (slot < first + amount)
            index = (slot - first).clamp(0, size - 1).long()
            added = torch.where(here, picked[:, index], added)
        selected.append(added)
    return torch.cat(selected, 1)


def hog_energy(view: View) -> Tensor:
    """Log of the gradient energy of each patch: the magnitudes a histogram of oriented gradients would bin.

    Sobel gradients of the normalised image, summed over bands, averaged over a patch's pixels whose neighbourhood
    was measured, as a log-probability of selection.

    Returns:
        `(B, L)`.
    """
    image = F.pad(view.image.float(), (1, 1, 1, 1), mode="replicate")
    smooth_rows = image[:, :, :-2] + 2 * image[:, :, 1:-1] + image[:, :, 2:]
    across = smooth_rows[..., 2:] - smooth_rows[..., :-2]
    smooth_columns = image[..., :-2] + 2 * image[..., 1:-1] + image[..., 2:]
    down = smooth_columns[:, :, 2:] - smooth_columns[:, :, :-2]
    magnitude = torch.hypot(across, down).sum(1, keepdim=True)
    size = view.encoder.patch_size
    if view.valid is None:
        energy = patchify(magnitude, size).mean(-1)
    else:
        # the edge of nodata is no edge of the scene
        invalid = F.pad((~view.valid).float(), (1, 1, 1, 1), mode="replicate")
        inside = (F.max_pool2d(invalid, 3, stride=1) == 0).float()
        weight = patchify(inside, size)
        energy = (patchify(magnitude, size) * weight).sum(-1) / weight.sum(-1).clamp(min=1)
    return (energy + 1e-3 * energy.mean(1, keepdim=True) + 1e-12).log()


def published_score(view: View) -> Tensor:
    """The score of the released code: the mean of standardised values, which is 0 for every patch.

    Returns:
        `(B, L)` zeros.
    """
    return torch.zeros(view.image.shape[0], view.length, device=view.image.device)


SCORES: dict[str, Callable[[View], Tensor]] = {"hog_energy": hog_energy, "published": published_score}
"""Log-probability of selection of every patch, by name."""
