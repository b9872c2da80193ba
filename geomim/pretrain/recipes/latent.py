"""Methods that predict what a slowly following copy of the encoder says of hidden patches."""

from __future__ import annotations

from functools import partial
from typing import Literal

from geomim.errors import ConfigError
from geomim.models.decoders import Latent, Projector
from geomim.models.vit import ViT
from geomim.pretrain.losses import discriminate, similarity
from geomim.pretrain.masking import Phases, Random, Selective
from geomim.pretrain.masking.split import counts
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

    Verified against the published code: latent, target, prediction, loss; not the constraint, for want of a reference.
    Deviates: the constraint is on every image, not on the mean of a device's batch, so that it does not depend on how
    a step is divided, and leaves out the class token; positions are those of MAE, not a grid from 0 to 14 in 13 steps;
    the decoder's mask token starts from random numbers, not zeros; the patch embedding decays like other matrices.

    Args:
        encoder: The encoder to train.
        visible: Share of the patches that is seen.
        decoder_depth: Blocks of the decoder.
        decoder_width: Token width of the decoder.
        decoder_heads: Attention heads of the decoder.
        projector_width: Hidden width of the projector behind the encoder and its copy.
        momentum: What the copy keeps of itself in the first step; rises to 1.
        temperature: Divides the cosines by which patches are told apart.
        constraint: Weight of the terms that keep predicted and visible patches from being all alike.
        gap: Each patch is cut at random from a cell that is this many pixels wider, so crops are larger.
        same: Patches with targets nearer than this cosine are not told apart, such as 0.999 for water and sand.
    """
    if not 0 <= momentum <= 1 or temperature <= 0 or projector_width < 1 or gap < 0:
        raise ConfigError(
            "method: expected momentum in [0, 1], temperature above 0, projector_width at least 1 and gap at least 0; "
            f"given {momentum}, {temperature}, {projector_width} and {gap}"
        )
    seen, _ = counts(length := encoder.num_patches, visible, 1 / length)
    if constraint and seen < 2:
        raise ConfigError(
            f"the constraint keeps visible patches from being all alike: expected 2 or more; given {seen}, visible "
            f"{visible:.2g} of {length}: raise --method.visible to {-(-2000 // length) / 1000:g}"
        )
    projector, alike = Projector(encoder.width, projector_width), Alike()
    decoder = Latent(encoder, projector, decoder_depth, decoder_width, decoder_heads)
    told_apart = partial(discriminate, temperature=temperature, same=same)
    terms = [
        Term(decoder, EmaLatent(encoder, projector, momentum), told_apart, name="discrimination"),
        Term(decoder, alike, similarity, weight=constraint, name="similarity"),
        Term(projector, alike, similarity, where="visible", weight=constraint, name="similarity_visible"),
    ]
    return MaskedImageModel(encoder, Random(visible), terms, gap=gap)


def selective_latent(
    encoder: ViT,
    visible: float = 0.15,
    predict: float = 0.25,
    decoder_depth: int = 3,
    decoder_width: int = 512,
    decoder_heads: int = 16,
    projector_width: int = 4096,
    same: float | None = 0.999,
    score: Literal["hog_energy", "published"] = "hog_energy",
    phases: Phases = Phases(),  # noqa: B008 (frozen)
) -> MaskedImageModel:
    """Semantic selection with latent targets: patches drawn as in SelectiveMAE, told apart as in Latent MIM.

    Ours: nobody has published it. Verified each against its own published code: the selection (Wang et al., ICCV 2025)
    and prediction and loss (Wei et al., ECCV 2024). Deviates from them as `selective_mae` and `latent_mim` do, and cuts
    no gaps, whose seams would count as the richest edges.

    Args:
        encoder: The encoder to train.
        visible: Share of the patches that is seen.
        predict: Share of all patches that is predicted; the copy of the encoder sees these alone.
        decoder_depth: Blocks of the decoder.
        decoder_width: Token width of the decoder.
        decoder_heads: Attention heads of the decoder.
        projector_width: Hidden width of the projector behind the encoder and its copy.
        same: Patches with targets nearer than this cosine are not told apart: water, sand.
        score: How seeds and predicted patches are drawn.
        phases: When growth goes from near to far to random.
    """
    model = latent_mim(encoder, visible, decoder_depth, decoder_width, decoder_heads, projector_width, gap=0, same=same)
    model.masking = Selective(visible, predict, score, phases)
    return model
