"""What lets a larger model train: blocks that are computed again, and weights that ranks share."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The transformer blocks of encoder, decoders and teachers."""
    for part in model.modules():
        listed = getattr(part, "blocks", None)
        if isinstance(listed, (nn.ModuleList, nn.Sequential)):
            yield from listed


def recompute(model: nn.Module) -> None:
    """Keep what goes into a block and not what is inside it: computed again for the gradient, in less memory."""
    for block in blocks(model):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
