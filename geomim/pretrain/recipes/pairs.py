"""Methods that complete one image of a place from another one."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from geomim.errors import ConfigError
from geomim.models.decoders import SelfAttention
from geomim.models.vit import ViT
from geomim.pretrain.losses import mse
from geomim.pretrain.masking import Random
from geomim.pretrain.objective import MaskedImageModel, Term
from geomim.pretrain.targets import Pixels
from geomim.randomness import Draws


def croco(
    encoder: ViT,
    visible: float = 0.1,
    decoder_depth: int = 8,
    decoder_width: int = 512,
    decoder_heads: int = 16,
    normalise: Literal["patch", "none"] = "patch",
) -> MaskedImageModel:
    """CroCo (Weinzaepfel et al., NeurIPS 2022): see a tenth of one date and all of another, predict the rest.

    Verified against the published code: latents of both images, memory, every decoder block, prediction, target, both
    losses. Deviates: the other image is the same place at another date under the same crop, where the published pairs
    are two viewpoints under a crop each; the colours of each published image are changed by factors of 0.6 to 1.4 on
    its own, here those of none are (`--data.jitter 0.4` comes near, band by band and for either date); dates are taken
    to lie exactly on each other (`--data.shift 2` moves the crops by up to 2 pixels); the time between the dates is
    not told to the decoder; a patch is predicted where both dates were measured; the share that is seen is rounded
    down, not the hidden one; the published encoder has no class token (`--encoder.class_token false`).
    `shuffled_date` among the figures tells whether the other date is used at all: it stays near 0 if not.

    Args:
        encoder: The encoder to train; both dates go through it.
        visible: Share of the patches that is seen of the first date.
        decoder_depth: Blocks of the decoder.
        decoder_width: Token width of the decoder.
        decoder_heads: Attention heads of the decoder.
        normalise: Target pixels normalised per patch, or as they are.
    """
    pixels = Pixels(normalise)
    decoder = SelfAttention(encoder, "pixels", decoder_depth, decoder_width, decoder_heads, cross=True)
    term = Term(decoder, pixels, mse, memory=("image", "date:all"))
    return MaskedImageModel(encoder, Random(visible, other="date"), [term], needs=frozenset({"date"}))


@torch.no_grad()
def shuffled_date(model: MaskedImageModel, batch: dict[str, Any], progress: Tensor, draws: Draws) -> Tensor:
    """How much worse a model does when every image is given the other date of its neighbour: about 0 if it uses none.

    Args:
        model: An objective that reads the view `date`.
        batch: At least two images with their other dates.
        progress: 0-dim float in [0, 1].
        draws: Addressed random numbers of the batch.

    Returns:
        0-dim: the loss with foreign dates minus the loss, over the same patches.

    Raises:
        ConfigError: There is but one image.
    """
    if len(batch["image"]) < 2:
        raise ConfigError("shuffled dates: expected at least 2 images in the batch; given 1")
    own = batch["views"]["date"]
    date = {key: value.roll(1, 0) if isinstance(value, Tensor) and value.ndim else value for key, value in own.items()}
    context = model.context(batch, draws)
    foreign = model.context(batch | {"views": batch["views"] | {"date": date}}, draws)
    plan = model.plan(context, progress)
    given, worse = (model.compare(one, plan, progress, plan.weights.sum(1)).loss for one in (context, foreign))
    return worse - given
