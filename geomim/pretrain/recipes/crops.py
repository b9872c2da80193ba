"""Methods that tell crops of one tile from those of others."""

from __future__ import annotations

from geomim.models.crops import CropSpace, PooledCrop
from geomim.models.decoders import CrossAttention
from geomim.models.vit import ViT
from geomim.pretrain.contrast import Contrast
from geomim.pretrain.losses import mse
from geomim.pretrain.masking import Random
from geomim.pretrain.objective import MaskedImageModel, Term
from geomim.pretrain.targets import OtherCrop, Pixels


def can_inspired(
    encoder: ViT,
    visible: float = 0.5,
    predict: float = 0.25,
    decoder_depth: int = 1,
    decoder_width: int = 512,
    decoder_heads: int = 16,
    head_width: int = 2048,
    dim: int = 128,
    temperature: float = 0.1,
    pixels: float = 1.0,
) -> MaskedImageModel:
    """After CAN (Mishra et al., arXiv 2210.16870): tell crops of one tile from those of others, and predict pixels.

    Half of the patches of two crops is seen; the means of what is seen are told apart as in SimCLR, and some of the
    hidden patches of both are predicted, each on its own.

    Verified: the contrast equals open_clip's in value and gradient, in each micro-batch and rank; nothing else, as no
    number of the method's code is at hand. Deviates: a crop is told from the other crops of all other tiles, not from
    both of them; contrast and pixels weigh the same, and no noise is added to be predicted (published: 0.03 and 0.67,
    and 0.3 of the noise); the head has norms of vectors, not of the batch; patches are predicted by cross-attention.
    What crops have in common besides their ground is soon told: give `--data.jitter 0.5 --data.scale '[0.2,1]'`.

    Args:
        encoder: The encoder to train.
        visible: Share of the patches that is seen of each crop.
        predict: Share of the patches that is predicted of each crop.
        decoder_depth: Blocks of the decoder.
        decoder_width: Token width of the decoder.
        decoder_heads: Attention heads of the decoder.
        head_width: Width between the two maps of the head, behind which crops are told apart.
        dim: Width of what they are told apart by.
        temperature: What cosines are divided by.
        pixels: Weight of predicted pixels beside the contrast; none where 0.
    """
    space, views = CropSpace(encoder.width, head_width, dim, temperature), ("image", "second")
    crops = Contrast(space, "contrast", equal="negatives")
    answers = PooledCrop(space), OtherCrop(space)
    terms = [Term(*answers, crops, "image", "second", memory=views, name="contrast", step=("contrast",))]
    if pixels:
        decoder = CrossAttention(encoder, "pixels", decoder_depth, decoder_width, decoder_heads)
        terms += [Term(decoder, Pixels(), mse, view=view, weight=pixels / 2, name=f"pixels_{view}") for view in views]
    return MaskedImageModel(encoder, Random(visible, predict, views=views), terms, needs=frozenset({"second"}))
