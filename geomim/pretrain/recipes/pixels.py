"""Methods that predict the pixels of hidden patches."""

from __future__ import annotations

from typing import Literal

from geomim.models.decoders import CrossAttention, SelfAttention
from geomim.models.vit import ViT
from geomim.pretrain.losses import mse
from geomim.pretrain.masking import Phases, Random, Selective
from geomim.pretrain.objective import MaskedImageModel, Term
from geomim.pretrain.targets import Pixels


def mae(
    encoder: ViT,
    visible: float = 0.25,
    decoder_depth: int = 8,
    decoder_width: int = 512,
    decoder_heads: int = 16,
    normalise: Literal["patch", "none"] = "patch",
) -> MaskedImageModel:
    """MAE (He et al., CVPR 2022): see a quarter of the patches, predict the pixels of all the others.

    Verified against the published code: latent, prediction, both losses.

    Args:
        encoder: The encoder to train.
        visible: Share of the patches that is seen.
        decoder_depth: Blocks of the decoder.
        decoder_width: Token width of the decoder.
        decoder_heads: Attention heads of the decoder.
        normalise: Target pixels normalised per patch, or as they are.
    """
    pixels = Pixels(normalise)
    decoder = SelfAttention(encoder, "pixels", decoder_depth, decoder_width, decoder_heads)
    return MaskedImageModel(encoder, Random(visible), [Term(decoder, pixels, mse)])


def cross_mae(
    encoder: ViT,
    visible: float = 0.25,
    predict: float = 0.25,
    decoder_depth: int = 12,
    decoder_width: int = 512,
    decoder_heads: int = 16,
    normalise: Literal["patch", "none"] = "patch",
) -> MaskedImageModel:
    """CrossMAE (Fu et al., TMLR 2025): predict some of the hidden patches, each on its own, from a mix of levels.

    Verified against the published code: token sets, levels, mix, prediction, both losses. Deviates: the encoder's
    final norm, which the method never reads, is kept as it starts, since timm expects one.

    Args:
        encoder: The encoder to train.
        visible: Share of the patches that is seen.
        predict: Share of all patches that is predicted.
        decoder_depth: Blocks of the decoder.
        decoder_width: Token width of the decoder.
        decoder_heads: Attention heads of the decoder.
        normalise: Target pixels normalised per patch, or as they are.
    """
    encoder.norm.requires_grad_(False)
    pixels = Pixels(normalise)
    decoder = CrossAttention(encoder, "pixels", decoder_depth, decoder_width, decoder_heads, mix_levels=True)
    return MaskedImageModel(encoder, Random(visible, predict), [Term(decoder, pixels, mse)])


def selective_mae(
    encoder: ViT,
    visible: float = 0.15,
    predict: float = 0.25,
    decoder_depth: int = 12,
    decoder_width: int = 512,
    decoder_heads: int = 16,
    score: Literal["hog_energy", "published"] = "hog_energy",
    normalise: Literal["patch", "none"] = "patch",
    phases: Phases = Phases(),  # noqa: B008 (frozen)
) -> MaskedImageModel:
    """SelectiveMAE (Wang et al., ICCV 2025): see 15 % of the patches, predict another 25 %.

    Verified against the published code: growth of the token set, latent, prediction, both losses. Deviates:
    `hog_energy` draws patches by their gradient energy, since the published score is constant (the mean of
    standardised values) and draws uniformly (`score: published`); phases are shares of training, not absolute
    epochs; random growth draws for every image, not once a batch; the parameters that the published model never
    trains are left out; no sample is pruned (the published loader drops half of the easy ones without saying so).

    Args:
        encoder: The encoder to train.
        visible: Share of the patches that is seen.
        predict: Share of all patches that is predicted.
        decoder_depth: Blocks of the decoder.
        decoder_width: Token width of the decoder.
        decoder_heads: Attention heads of the decoder.
        score: How seeds and predicted patches are drawn.
        normalise: Target pixels normalised per patch, or as they are.
        phases: When growth goes from near to far to random.
    """
    pixels = Pixels(normalise)
    decoder = CrossAttention(encoder, "pixels", decoder_depth, decoder_width, decoder_heads)
    masking = Selective(visible, predict, score, phases)
    return MaskedImageModel(encoder, masking, [Term(decoder, pixels, mse)])
