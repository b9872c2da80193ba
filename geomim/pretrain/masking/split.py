"""The index tensors of static length that every masking returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from geomim.errors import ConfigError
from geomim.pretrain.context import Context, View


class TokenSplit(NamedTuple):
    """Seen and asked-for patches of one view.

    Attributes:
        visible: `(B, K)` int64 patch indices.
        predict: `(B, M)` int64 patch indices, none of them visible.
        visible_valid: `(B, K)` bool, False for surplus slots; None where all count.
        predict_weight: `(B, M)` float, 0 for surplus slots; None where all weigh 1.
        hidden: `(B, l)` bool, what is hidden on a grid finer than that of the patches, none of which is then visible as
            a whole; None where the patches say it.
    """

    visible: Tensor
    predict: Tensor
    visible_valid: Tensor | None = None
    predict_weight: Tensor | None = None
    hidden: Tensor | None = None

    def veil(self, length: int) -> Tensor:
        """What is hidden of `length` patches: `(B, length)` bool, or `hidden` on its finer grid."""
        if self.hidden is not None:
            return self.hidden
        everything = torch.ones(len(self.visible), length, dtype=torch.bool, device=self.visible.device)
        return everything.scatter(1, self.visible, False)


Masking = Callable[[Context, Tensor], dict[str, TokenSplit]]


def counts(length: int, visible: float, predict: float) -> tuple[int, int]:
    """Numbers of visible and predicted patches among `length`, rounded down as the published codes do.

    Raises:
        ConfigError: Nothing would be visible or predicted, or the shares overlap.
    """
    seen, asked = int(length * visible + 1e-9), int(length * predict + 1e-9)
    if seen < 1 or asked < 1 or seen + asked > length:
        raise ConfigError(
            f"masking: expected visible and predicted shares that give at least one patch each and at most "
            f"{length} together; given visible={visible} ({seen}) and predict={predict} ({asked})"
        )
    return seen, asked


def split_of(view: View, visible: Tensor, predict: Tensor) -> TokenSplit:
    """A split with the weights that follow from the view's nodata."""
    if view.patch_valid is None:
        return TokenSplit(visible, predict)
    return TokenSplit(
        visible, predict, view.patch_valid.gather(1, visible), view.patch_valid.gather(1, predict).float()
    )


INVALID = -1e4
"""A score below every valid patch's and above that of a patch already taken (-inf)."""


def draw(score: Tensor, noise: Tensor, count: int) -> Tensor:
    """Draw `count` patches without replacement, with probability proportional to `exp(score)` (Gumbel top-k).

    Args:
        score: `(B, L)` log-probabilities, not normalised; -inf is never drawn.
        noise: `(B, L)` uniform in (0, 1).
        count: How many, at most the number of finite scores.

    Returns:
        `(B, count)` int64.
    """
    return (score - (-noise.log()).log()).topk(count, dim=1).indices
