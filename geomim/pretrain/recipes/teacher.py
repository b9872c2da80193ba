"""Methods that follow a trained network."""

from __future__ import annotations

from geomim.errors import ConfigError
from geomim.models.decoders import LevelHeads
from geomim.models.vit import ViT
from geomim.pretrain.losses import smooth_l1
from geomim.pretrain.masking import Attention
from geomim.pretrain.objective import MaskedImageModel, Term
from geomim.pretrain.targets import FrozenTeacher, TeacherLevels


def mask_align(
    encoder: ViT,
    teacher: str,
    visible: float = 0.3,
    levels: int = 5,
    cache: str | None = None,
    quickgelu: bool | None = None,
) -> MaskedImageModel:
    """MaskAlign (Xue et al., CVPR 2023): see what a trained network looks at, and agree with it on several levels.

    Nothing is reconstructed. The teacher may see three bands where the encoder sees all.

    Verified against the published code: student levels, their mix, heads, standardised targets, loss, sampling.
    Deviates: rows of the mix for levels that the loss never asks for are left out, and the mix starts as the identity
    counted from the last level where depths differ; the encoder's final norm, which the method never reads, is kept
    as it starts, since timm expects one; no drop path. With a cache the teacher sees every tile once, whole, scaled to
    the encoder's image size, without flips or jitter, and its features and attention are resampled to the crop, where
    the method shows it the crop: blurred the more, the smaller crops are, and the class token is the whole tile's.

    Args:
        encoder: The encoder to train.
        teacher: `timm:NAME`, `timm:local-dir:FOLDER`, `open_clip:NAME/PRETRAINED`, `remoteclip:PATH[@ARCH]`, or a
            checkpoint of geomim.
        visible: Share of the patches that is seen.
        levels: How many of the teacher's last blocks to agree with.
        cache: Folder for the teacher's features in float16, computed before the first step: for a teacher that costs
            more than reading `levels` times its tokens of each tile. It runs in every step where not given.
        quickgelu: Activation of a CLIP, which its file does not tell; as its source says where not given.
    """
    if not encoder.class_tokens:
        raise ConfigError("mask_align compares class tokens: expected an encoder with one (--encoder.class_token true)")
    frozen = FrozenTeacher(teacher, encoder, levels, cache, quickgelu)
    encoder.norm.requires_grad_(False)
    heads = LevelHeads(encoder, levels, frozen.width)
    loss = smooth_l1(factor=2.0)
    term = Term(heads, TeacherLevels(frozen), loss, "visible", name="alignment", with_class=True)
    return MaskedImageModel(encoder, Attention(frozen, visible), [term], teacher=frozen)
