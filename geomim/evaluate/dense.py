"""Patches in place of images: their labels, from masks, and their features."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from geomim.evaluate.features import Batch, Extractor, Features


def patch_labels(masks: Tensor, valid: Tensor, grid: tuple[int, int], classes: int) -> Tensor:
    """The class of each patch: the one that covers at least half of its valid pixels that have a class.

    Args:
        masks: `(B, H, W)` places in the class list; any other number means that the pixel has none.
        valid: `(B, H, W)` bool.
        grid: Rows and columns of patches that the pixels are divided into.
        classes: Number of classes.

    Returns:
        `(B, L)` int64 in raster order; -1 where no class covers half, or the patch holds more nodata than image.
    """
    covers = [F.adaptive_avg_pool2d(((masks == place) & valid).float(), grid) for place in range(classes)]
    shares = torch.stack(covers, 1)
    share, kind = shares.max(1)
    clear = (share > 0) & (2 * share >= shares.sum(1) - 1e-6)  # rounding
    seen = F.adaptive_avg_pool2d(valid.float(), grid) >= 0.5
    return torch.where(clear & seen, kind, -1).flatten(1)


def patch_statistics(grid: tuple[int, int]) -> Extractor:
    """The floor of patches: mean and standard deviation of each band over the valid pixels of each."""

    def forward(images: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        weight = valid.to(images.dtype)
        count = F.adaptive_avg_pool2d(weight, grid).clamp_min(1e-6)
        mean, square = (F.adaptive_avg_pool2d(one * weight, grid) / count for one in (images, images.square()))
        both = torch.cat([mean, (square - mean.square()).clamp_min(0).sqrt()], 1).flatten(2).transpose(1, 2)
        return both.mean(1), both

    return Extractor(forward)


@torch.no_grad()
def extract_patches(
    extractors: Mapping[str, Extractor],
    loader: Iterable[Batch],
    labels: Tensor,
    groups: Tensor,
    device: torch.device | str = "cpu",
) -> dict[str, Features]:
    """Features of chosen patches, of several extractors in one pass over the images.

    Args:
        extractors: By name, as for `extract_all`; their tokens are taken.
        loader: Batches of N images.
        labels: `(N, L)` int64, -1 where a patch is not chosen.
        groups: `(N,)` int64, what the images stand together in.
        device: Where images go.

    Returns:
        Features of the chosen patches on the CPU, by name.
    """
    vectors: dict[str, list[Tensor]] = {name: [] for name in extractors}
    chosen, start = labels >= 0, 0
    for batch in loader:
        images, valid = batch["image"].to(device), batch["valid"].to(device)
        rows = chosen[start : start + len(images)]
        start += len(images)
        for name, extractor in extractors.items():
            tokens = extractor.forward(images, valid)[1]
            assert tokens is not None
            vectors[name].append(tokens.float().cpu()[rows])
    tile = groups[chosen.nonzero()[:, 0]]
    return {name: Features(torch.cat(parts), labels[chosen], groups=tile) for name, parts in vectors.items()}
