"""Methods that predict the pixels of patches, or their gradients."""

from __future__ import annotations

from typing import Literal

from geomim.models.decoders import CrossAttention, Linear, Pointwise, SelfAttention
from geomim.models.hierarchical import Encoder
from geomim.models.vit import ViT
from geomim.pretrain.losses import l1, mse, smooth_l1
from geomim.pretrain.masking import Blocks, Disjoint, Phases, Random, Selective, Units
from geomim.pretrain.objective import MaskedImageModel, Term
from geomim.pretrain.targets import HOG, Pixels


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
    decoder = CrossAttention(encoder, "pixels", decoder_depth, decoder_width, decoder_heads, mix_levels=True)
    model = MaskedImageModel(encoder, Random(visible, predict), [Term(decoder, Pixels(normalise), mse)])
    encoder.norm.requires_grad_(False)
    return model


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


def simmim(
    encoder: Encoder, visible: float = 0.4, unit: int = 32, shape: Literal["units", "blocks"] = "units"
) -> MaskedImageModel:
    """SimMIM (Xie et al., CVPR 2022): all patches go in, most of them as a mask token; one linear layer tells pixels.

    Verified against the published code, with Swin and with ViT: embedding, stages, features, prediction, loss.
    Deviates: no drop path, whose randomness would not be addressed; a plain ViT has sine-cosine positions, not the
    published shared relative bias. Pixels are standardised band by band with the corpus's statistics.

    Args:
        encoder: The encoder to train.
        visible: Share of the patches that is seen, in whole units.
        unit: Side of a unit that is seen or hidden as one, in pixels.
        shape: Hide square units, or rectangles of patches as BEiT does.
    """
    masking = Units(encoder, unit, 1 - visible) if shape == "units" else Blocks(1 - visible)
    term = Term(Linear(encoder, "pixels"), Pixels("none"), l1)
    return MaskedImageModel(encoder, masking, [term], mask_token=True)


def satvision(encoder: Encoder, visible: float = 0.4, unit: int = 8) -> MaskedImageModel:
    """SatVision-TOA (Spradlin et al., arXiv 2024): SimMIM with Swin V2 on the 14 channels of MODIS, in finer units.

    Verified: objective and loss are `simmim`'s, units and hyper-parameters the published ones; no number of its code
    is at hand. Deviates: pixels are standardised band by band, where the method scales reflectance and brightness
    temperature to 0..1 by fixed ranges, so that here all bands weigh alike; Swin V2 without the published extra norms
    and drop path. As published, a unit is smaller than what an answer covers, so every answer has seen some of its
    pixels; only hidden ones count.

    Args:
        encoder: The encoder to train, a Swin V2 for MODIS tiles as published.
        visible: Share of the patches that is seen, in whole units.
        unit: Side of a unit that is seen or hidden as one, in pixels.
    """
    return simmim(encoder, visible, unit)


def dmjd(
    encoder: ViT,
    visible: float = 0.4,
    block: int = 2,
    decoder_depth: int = 8,
    decoder_width: int = 512,
    decoder_heads: int = 16,
    theta: float = 1.0,
    bands: list[str] | None = None,
    cell: int = 8,
) -> MaskedImageModel:
    """DMJD (Ma et al., arXiv 2301.00230): two disjoint sets of one image tell the gradients of all patches.

    Verified against the published code: histograms, token sets, both branches, both losses. Deviates: a prediction of
    a visible patch is compared with that patch (the published code compares it with another one, in raster order);
    sets are drawn for every image, not once a batch; `theta` takes effect; gradients are those of the normalised
    image, not of 0..255, so flat cells are damped sooner; a plain encoder has no convolutions in front.
    The published code multiplies its learning rate, 6e-4 for 256 images, by the share that is predicted over the share
    that is hidden in a set; here nothing is scaled: give `--optimizer.base_learning_rate 1e-3`, which is 6e-4 / 0.6.

    Args:
        encoder: The encoder to train.
        visible: Share of the patches that is seen in each set.
        block: Side of a masked block in patches.
        decoder_depth: Blocks of the decoder.
        decoder_width: Token width of the decoder, and of the projector of visible tokens.
        decoder_heads: Attention heads of the decoder.
        theta: Weight of the visible patches beside the hidden ones.
        bands: Bands whose gradients are told, by name; all where not given.
        cell: Side of a histogram's cell in pixels, which divides a patch.
    """
    masking, target = Disjoint(visible, block), HOG(encoder, bands, cell=cell)
    masking.seen(encoder.grid)  # refuses what cannot be dealt before data loads
    decoder = SelfAttention(encoder, target.dim, decoder_depth, decoder_width, decoder_heads)
    pointwise = Pointwise(encoder, target.dim, decoder_width)
    terms = []
    for view, mark in (("image", ""), ("image/2", "_2")):
        terms.append(Term(decoder, target, mse, "predict", view, weight=0.5, name=f"hidden{mark}"))
        seen = Term(pointwise, target, smooth_l1(beta=2.0), "visible", view, weight=theta / 2, name=f"visible{mark}")
        terms.append(seen)
    return MaskedImageModel(encoder, masking, terms)
