"""Methods that predict what a slowly following copy of the encoder says of hidden patches."""

from __future__ import annotations

from typing import Literal

from geomim.models.decoders import Latent, Projector
from geomim.models.vit import ViT
from geomim.pretrain.losses import PatchDiscrimination, similarity
from geomim.pretrain.masking import Phases, Random, Selective
from geomim.pretrain.objective import MaskedImageModel, Term
from geomim.pretrain.targets import Alike, EmaLatent


def latent_mim(
    encoder: ViT,
    visible: float = 20 / 196,
    decoder_depth: int = 3,
    decoder_width: int = 512,
    decoder_heads: int = 16,
    projector_width: int = 4096,
    momentum: float = 0.99,
    temperature: float = 0.2,
    constraint: float = 0.1,
    gap: int = 4,
    same: float | None = None,
) -> MaskedImageModel:
    """Latent MIM (Wei et al., ECCV 2024): see a tenth of the patches, tell the latents of all the others apart.

    Verified against the published code: latent, target, prediction, loss; not the similarity constraint, of which no
    reference is at hand. Deviates: the constraint is on every image, not on the mean of a device's batch, so that it
    is the same however a step is divided, and on patches without the class token; encoder and decoder have the
    positions of MAE (the published grid runs from 0 to 14 in 13 steps); all tokens start from random numbers, the
    published mask token of the decoder from zeros; the patch embedding decays as other matrices do.

    Args:
        encoder: The encoder to train.
        visible: Share of the patches that is seen.
        decoder_depth: Blocks of the decoder.
        decoder_width: Token width of the decoder.
        decoder_heads: Attention heads of the decoder.
        projector_width: Hidden width of the projector behind the encoder and its copy.
        momentum: What the copy keeps of itself in the first step; rises to 1.
        temperature: Divides the cosines of patches that are told apart.
        constraint: Weight of how alike predicted and visible patches should be.
        gap: Greatest number of pixels between two patches, each cut at random from a cell of patch and gap.
        same: Patches whose targets are nearer than this cosine are not told apart (such as 0.999, for water and sand).
    """
    terms = _discriminate(
        encoder, (decoder_depth, decoder_width, decoder_heads), projector_width, momentum, temperature, constraint, same
    )
    return MaskedImageModel(encoder, Random(visible), terms, gap=gap)


def selective_latent(
    encoder: ViT,
    visible: float = 0.15,
    predict: float = 0.25,
    decoder_depth: int = 3,
    decoder_width: int = 512,
    decoder_heads: int = 16,
    projector_width: int = 4096,
    momentum: float = 0.99,
    temperature: float = 0.2,
    constraint: float = 0.1,
    gap: int = 0,
    same: float | None = 0.999,
    score: Literal["hog_energy", "published"] = "hog_energy",
    phases: Phases = Phases(),  # noqa: B008 (frozen)
) -> MaskedImageModel:
    """Semantic selection with latent targets: patches as SelectiveMAE draws them, told apart as Latent MIM does.

    Ours; published by nobody. Verified, each against its own published code: the selection (Wang et al., ICCV 2025)
    and the prediction and its loss (Wei et al., ECCV 2024). Deviates from both as `selective_mae` and `latent_mim` do.
    The copy of the encoder sees the predicted patches alone.

    Args:
        encoder: The encoder to train.
        visible: Share of the patches that is seen.
        predict: Share of all patches that is predicted.
        decoder_depth: Blocks of the decoder.
        decoder_width: Token width of the decoder.
        decoder_heads: Attention heads of the decoder.
        projector_width: Hidden width of the projector behind the encoder and its copy.
        momentum: What the copy keeps of itself in the first step; rises to 1.
        temperature: Divides the cosines of patches that are told apart.
        constraint: Weight of how alike predicted and visible patches should be.
        gap: Greatest number of pixels between two patches, each cut at random from a cell of patch and gap.
        same: Patches whose targets are nearer than this cosine are not told apart: water, sand.
        score: How seeds and predicted patches are drawn.
        phases: When growth goes from near to far to random.
    """
    terms = _discriminate(
        encoder, (decoder_depth, decoder_width, decoder_heads), projector_width, momentum, temperature, constraint, same
    )
    return MaskedImageModel(encoder, Selective(visible, predict, score, phases), terms, gap=gap)


def _discriminate(
    encoder: ViT,
    size: tuple[int, int, int],
    projector_width: int,
    momentum: float,
    temperature: float,
    constraint: float,
    same: float | None,
) -> list[Term]:
    """Tell the latents of predicted patches apart, and keep predicted and visible ones as alike as is wanted."""
    projector, alike = Projector(encoder.width, projector_width), Alike()
    decoder, target = Latent(encoder, projector, *size), EmaLatent(encoder, projector, momentum)
    return [
        Term(decoder, target, PatchDiscrimination(temperature, same), name="discrimination"),
        Term(decoder, alike, similarity, weight=constraint, name="similarity"),
        Term(projector, alike, similarity, where="visible", weight=constraint, name="similarity_visible"),
    ]
