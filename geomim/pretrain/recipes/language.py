"""Methods that learn from sentences about images."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from geomim.errors import ConfigError
from geomim.models.decoders import CrossAttention, Pooled, SelfAttention, Spoken
from geomim.models.image_text import start_space
from geomim.models.joint import Joint, Pool
from geomim.models.text import Text
from geomim.models.vit import ViT
from geomim.pretrain.contrast import Contrast, Equal, LanguageSpace
from geomim.pretrain.losses import discriminate, mse
from geomim.pretrain.masking import Phases, Random, Selective, Told, Whole
from geomim.pretrain.objective import MaskedImageModel, Mix, Term
from geomim.pretrain.targets import EmaLatent, Meanings, Pixels, Sentences

TEXT = frozenset({"text"})
_OFF = (0, (0, 0))  # weights of terms that are left out


def shared_space(encoder: ViT, text: Text, pool: Pool = "mean", temperature: float = 0.07) -> Joint:
    """What images and sentences share; where encoder and text tower start from one model, as it is there."""
    joint = Joint(text.build(), encoder.width, pool, temperature)
    if text.weights and text.weights == encoder.source:
        encoder.notes += (start_space(joint, text.weights, text.quickgelu),)
    return joint


def contrast(
    joint: Joint,
    memory: str,
    loss: Literal["softmax", "sigmoid"] = "softmax",
    equal: Equal = "positives",
    followed: Meanings | None = None,
) -> Term:
    """The term that tells images and sentences apart; `memory` is what an image's vector is made of."""
    said, told_apart = Sentences(joint, followed), Contrast(joint, "contrast", loss, equal)
    return Term(Pooled(joint), said, told_apart, "image", memory=memory, name="contrast", step=("contrast",))


@torch.no_grad()
def prototypes(joint: Joint, sentences: list[str]) -> Tensor:
    """Unit vectors `(K, D)` of sentences, as the text tower says them now; of those that it reads alike, one.

    Raises:
        ConfigError: There are less than two, which all patches would say alike, or one is empty.
    """
    tokens = joint.text.tokenize(sentences)
    rows = list({tuple(one): row for row, one in enumerate(tokens.tolist())}.values())
    if len(rows) < 2 or not all(map(str.strip, sentences)):
        raise ConfigError(
            f"--method.bank: expected at least two different sentences; given {sentences}: leave it out for those of "
            "the batch"
        )
    return joint.sentences(tokens[rows])


def remote_clip(
    encoder: ViT,
    text: Text = Text(),  # noqa: B008 (frozen)
    visible: float = 1.0,
    pool: Pool = "mean",
    temperature: float = 0.07,
    loss: Literal["softmax", "sigmoid"] = "softmax",
    equal: Equal = "positives",
) -> MaskedImageModel:
    """RemoteCLIP (Liu et al., TGRS 2024): tell images and sentences of a batch apart, as CLIP does.

    Verified: the loss equals open_clip's in value and gradient. Deviates: an image's vector is the mean of its patches
    (`pool: class` as published); equal sentences are positives of each other's images, since sentences made from labels
    repeat (`equal: negatives` as published); it starts from whatever encoder and text tower are given, as published
    from CLIP's: `--encoder.weights` and `--method.text.weights`.

    Args:
        encoder: The encoder to train.
        text: The text tower.
        visible: Share of the patches that is seen; less than 1 is FLIP (Li et al., CVPR 2023), more images a second.
        pool: What an image's vector is made of.
        temperature: Divides cosines at the start; learned.
        loss: `softmax` over the batch, or `sigmoid` of each pair (SigLIP), which starts best at temperature 0.1.
        equal: What pairs of an image and another's equal sentence are.

    Raises:
        ConfigError: The class token is asked for and the encoder has none.
    """
    if pool == "class" and not encoder.class_tokens:
        raise ConfigError("--method.pool class needs a class token: give --encoder.class_token true, or pool mean")
    joint = shared_space(encoder, text, pool, temperature)
    masking, memory = (Whole(), "image:all") if visible == 1 else (Random(visible), "image")
    return MaskedImageModel(encoder, masking, [contrast(joint, memory, loss, equal)], needs=TEXT, joint=joint)


def rils(
    encoder: ViT,
    text: Text = Text(),  # noqa: B008 (frozen)
    visible: float = 0.25,
    decoder_depth: int = 1,
    decoder_width: int | None = None,
    decoder_heads: int | None = None,
    weight: float = 0.5,
    temperature: float = 0.1,
    answer_temperature: float = 0.04,
    gate: bool = True,
    equal: Equal = "positives",
) -> MaskedImageModel:
    """RILS (Yang et al., CVPR 2023): predict of hidden patches what they say of the sentences of the batch.

    Verified against the published code: both losses. Deviates: prototypes are constants on one device as on many (the
    published code lets a gradient through on one); equal sentences are one prototype, and positives of each other's
    images (`equal: negatives` as published); a plain encoder has biases on its keys, and MAE's positions.

    Args:
        encoder: The encoder to train; it sees every image whole as well.
        text: The text tower.
        visible: Share of the patches that is seen.
        decoder_depth: Blocks of the decoder.
        decoder_width: Token width of the decoder; the encoder's where not given.
        decoder_heads: Attention heads of the decoder; the encoder's where not given.
        weight: Weight of the prediction beside the contrast.
        temperature: Divides the cosines of predicted patches and sentences.
        answer_temperature: Divides those of what the whole image makes of a patch.
        gate: Only images that find their own sentence in the batch count.
        equal: What pairs of an image and another's equal sentence are.
    """
    joint = shared_space(encoder, text)
    size = decoder_depth, decoder_width or encoder.width, decoder_heads or encoder.heads
    decoder = Spoken(SelfAttention(encoder, encoder.width, *size), joint)
    space = LanguageSpace("contrast", temperature, answer_temperature, gate)
    terms = [
        contrast(joint, "image:all", equal=equal),
        Term(decoder, Meanings(encoder, joint), space, weight=weight, name="language", step=("contrast",)),
    ]
    return MaskedImageModel(encoder, Random(visible), terms, needs=TEXT, joint=joint)


def _check_bank(bank: list[str] | None, weight: Mix, text: Text) -> None:
    """Refuse a bank of sentences that nothing is predicted in, or that the text tower cannot know."""
    if bank is not None and weight in _OFF:
        raise ConfigError("--method.bank is what patches are predicted in, and --method.weight is 0: leave one out")
    if bank is not None and not text.weights:
        raise ConfigError(
            "--method.bank needs a text tower that knows its sentences, and this one starts untrained: give "
            "--method.text.weights remoteclip:PATH or open_clip:NAME/PRETRAINED"
        )


def selective_rils(
    encoder: ViT,
    text: Text = Text(),  # noqa: B008 (frozen)
    visible: float = 0.5,
    predict: float = 0.25,
    decoder_depth: int = 1,
    decoder_width: int = 512,
    decoder_heads: int = 16,
    weight: Mix = 0.25,
    pixels: Mix = 1.0,
    latents: Mix = 0.0,
    starts: float = 0.9,
    teacher: Literal["encoder", "ema"] = "encoder",
    bank: list[str] | None = None,
    gate: bool = True,
    equal: Equal = "positives",
    score: Literal["hog_energy", "published"] = "hog_energy",
    phases: Phases = Phases(),  # noqa: B008 (frozen)
) -> MaskedImageModel:
    """Language-space targets of patches drawn as in SelectiveMAE, with the contrast made of what is seen.

    Ours: nobody has published it. Verified each against its own published code: the selection (Wang et al., ICCV 2025)
    and both losses (Yang et al., CVPR 2023). Deviates from RILS: the image is never seen whole with a gradient; the
    contrast is made of the visible patches, as in FLIP; only some patches are predicted, each on its own, and their
    pixels too, which costs next to nothing; the answers come from a pass without gradient, late in training: before,
    few images find their sentence, and that pass costs half as much as the rest of a step and pays back nothing in
    minutes.

    Args:
        encoder: The encoder to train.
        text: The text tower.
        visible: Share of the patches that is seen.
        predict: Share of all patches that is predicted.
        decoder_depth: Blocks of the decoder.
        decoder_width: Token width of the decoder.
        decoder_heads: Attention heads of the decoder.
        weight: Weight of predictions in the space of images and sentences, beside the contrast. A pair, of this and the
            next two, goes from the first to the second over training.
        pixels: Weight of predicted pixels, by a decoder of their own; none where 0.
        latents: Weight of predicted latents, told apart as in `selective_latent`, but without projectors; none where 0.
        starts: Share of training from which on patches are predicted in the space of images and sentences.
        teacher: Who sees the whole image: the encoder itself, or `ema`, a copy that follows it; then a copy of the text
            tower, where that learns, says the prototypes.
        bank: Sentences to be the prototypes instead of the batch's, as the text tower says them at the start, such as
            one of each class; then no image is gated, and those without a sentence are predicted, too. It needs a tower
            that knows them, `text.weights`, and suits one that stays where they are, `text.frozen`.
        gate: Only images that find their own sentence in the batch count.
        equal: What pairs of an image and another's equal sentence are.
        score: How seeds and predicted patches are drawn.
        phases: When growth goes from near to far to random.

    Raises:
        ConfigError: A bank is given that would say nothing.
    """
    _check_bank(bank, weight, text)
    joint, size = shared_space(encoder, text), (decoder_depth, decoder_width, decoder_heads)
    following = EmaLatent(encoder) if latents not in _OFF else None
    copied = following.encoder if following else None
    asked = weight not in _OFF
    meanings = Meanings(encoder, joint, teacher, needs_text=bank is None, copied=copied) if asked else None
    terms = [contrast(joint, "image", equal=equal, followed=meanings)]
    if meanings:
        decoder = Spoken(CrossAttention(encoder, encoder.width, *size), joint)
        space = LanguageSpace("contrast", gate=gate, bank=None if bank is None else prototypes(joint, bank))
        step = ("contrast",) if bank is None else ()
        terms.append(Term(decoder, meanings, space, weight=weight, name="language", step=step, starts=starts))
    if pixels not in _OFF:
        terms.append(Term(CrossAttention(encoder, "pixels", *size), Pixels(), mse, weight=pixels, name="pixels"))
    if following:
        told_apart = partial(discriminate, temperature=0.2, same=0.999)
        decoder_of = CrossAttention(encoder, encoder.width, *size)
        terms.append(Term(decoder_of, following, told_apart, weight=latents, name="latents"))
    masking = Selective(visible, predict, score, phases)
    return MaskedImageModel(encoder, masking, terms, needs=TEXT, joint=joint)


def sycoca_inspired(
    encoder: ViT,
    text: Text = Text(),  # noqa: B008 (frozen)
    visible: float = 0.5,
    decoder_depth: int = 1,
    decoder_width: int = 512,
    decoder_heads: int = 16,
    pixels: float = 1.0,
    flat: float = 0.98,
) -> MaskedImageModel:
    """After SyCoCa (Ma et al., arXiv 2401.02137): hide the patches that the sentence speaks of, and predict them.

    Verified: nothing; the formula is taken from the paper's words. Deviates: no captions are written, the decoder of
    pixels reads no words, a sentence is compared as a whole, not word by word, and images whose patches all fit the
    sentence alike are masked at random.

    Args:
        encoder: The encoder to train; it sees every image whole as well.
        text: The text tower.
        visible: Share of the patches that is seen.
        decoder_depth: Blocks of the decoder.
        decoder_width: Token width of the decoder.
        decoder_heads: Attention heads of the decoder.
        pixels: Weight of the predicted pixels beside the contrast.
        flat: Entropy of a sentence over patches, as a share of the greatest, from which on masks are random.
    """
    joint = shared_space(encoder, text)
    decoder = SelfAttention(encoder, "pixels", decoder_depth, decoder_width, decoder_heads)
    terms = [contrast(joint, "image:all"), Term(decoder, Pixels(), mse, weight=pixels, name="pixels")]
    return MaskedImageModel(encoder, Told(joint, visible, flat), terms, needs=TEXT, joint=joint)
