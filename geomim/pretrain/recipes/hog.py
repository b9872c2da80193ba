"""Methods that predict the gradients of patches."""

from __future__ import annotations

from geomim.models.decoders import Pointwise, SelfAttention
from geomim.models.vit import ViT
from geomim.pretrain.losses import mse, smooth_l1
from geomim.pretrain.masking import Disjoint
from geomim.pretrain.objective import MaskedImageModel, Term
from geomim.pretrain.targets import HOG


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
