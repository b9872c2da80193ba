"""Sentences for classes: prompt sets, class names as words, and their vectors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from geomim.errors import InputError, nearest

EncodeText = Callable[[list[str]], Tensor]
"""Sentences to unit vectors `(n, D)`."""

_ARTICLES = ("", "a ", "the ")
_VIEWS = ("satellite imagery", "aerial imagery", "satellite photo", "aerial photo", "satellite view", "aerial view")

PROMPTS = {
    "remoteclip": ("a satellite photo of {class}.",),
    "clip": ("a photo of a {class}.",),
    "clip-eurosat": tuple(f"a centered satellite photo of {article}{{class}}." for article in _ARTICLES),
    "clip-resisc45": tuple(f"{view} of {article}{{class}}." for article in _ARTICLES for view in _VIEWS),
    "aerial": (
        "a satellite image of {class}.",
        "an aerial photograph of {class}.",
        "a remote sensing image of {class}.",
        "an overhead view of {class}.",
        "a top-down view of {class}.",
        "satellite imagery showing {class}.",
    ),
}
"""RemoteCLIP's own (Liu et al., 2024, §IV-B); CLIP's general one, and those it was scored with on EuroSAT and RESISC45
(Radford et al., 2021, published prompts); and a set that suits any overhead image."""


def read_prompts(prompts: str) -> tuple[str, ...]:
    """A prompt set by name, or the lines of a text file.

    Raises:
        InputError: There is no such set or file, it is empty, or a line does not hold `{class}`.
    """
    if prompts in PROMPTS:
        return PROMPTS[prompts]
    if not Path(prompts).is_file():
        raise InputError(f"no prompt set and no text file is called '{prompts}'{nearest(prompts, PROMPTS)}")
    lines = Path(prompts).read_text(encoding="utf-8-sig").splitlines()
    for number, line in enumerate(lines, 1):
        if "{class}" not in line:
            given = f"line {number} is '{line}'" if line.strip() else f"line {number} is empty"
            raise InputError(f"'{prompts}': {given}; expected '{{class}}' in every line, where the class is to stand")
    if not lines:
        raise InputError(f"'{prompts}' holds no prompt: expected one a line, such as '{PROMPTS['remoteclip'][0]}'")
    return tuple(line.strip() for line in lines)


def class_words(classes: Sequence[str], names: Mapping[str, str] | None = None) -> list[str]:
    """Class names as words in a sentence: `DenseResidential`, `dense_residential`, `03-Dense Residential` alike.

    Args:
        classes: As folders or catalogues name them.
        names: Words for some of them, which are taken as they are.

    Raises:
        InputError: A given name is of no class, there are less than two classes, or two have the same words.
    """
    names = names or {}
    for name in names:
        if name not in classes:
            raise InputError(f"words are given for a class '{name}' that the data lack{nearest(name, classes)}")
    if len(classes) < 2:
        raise InputError(f"expected at least two classes to tell apart; given {', '.join(classes) or 'none'}")
    words = [names.get(name) or _words(name) for name in classes]
    for place, word in enumerate(words):
        if word in words[:place]:
            both = f"'{classes[words.index(word)]}' and '{classes[place]}'"
            raise InputError(f"the classes {both} are both '{word}' in words: tell them apart with --names FILE.yaml")
        if not word:
            raise InputError(f"the class '{classes[place]}' has no words: give it some with --names FILE.yaml")
    return words


def _words(name: str) -> str:
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    return " ".join(re.sub(r"^\d+(?=[\W_])|[_\W]+", " ", parted).split()).lower()


def encode_sentences(encode_text: EncodeText, sentences: Sequence[str], block: int = 256) -> Tensor:
    """Unit vectors `(n, D)` float32 on the CPU; equal sentences are encoded once.

    Raises:
        InputError: A vector is not finite.
    """
    distinct = list(dict.fromkeys(sentences))
    parts = [encode_text(distinct[at : at + block]).float().cpu() for at in range(0, len(distinct), block)]
    vectors, places = unit(torch.cat(parts), "sentence"), {sentence: at for at, sentence in enumerate(distinct)}
    return vectors[[places[sentence] for sentence in sentences]]


def unit(vectors: Tensor, what: str) -> Tensor:
    """Vectors `(n, D)` at length one.

    Raises:
        InputError: One is not finite.
    """
    bad = int((~vectors.isfinite().all(1)).sum())
    if bad:
        raise InputError(f"the model gives {bad} of {len(vectors)} {what} vectors that are not finite: its weights are")
    return F.normalize(vectors, dim=1)


def class_vectors(encode_text: EncodeText, words: Sequence[str], prompts: Sequence[str]) -> Tensor:
    """A unit vector a class `(C, D)`: the mean of its prompts' unit vectors, at length one (Radford et al., 2021)."""
    sentences = [prompt.replace("{class}", word) for word in words for prompt in prompts]
    vectors = encode_sentences(encode_text, sentences)
    return F.normalize(vectors.view(len(words), len(prompts), -1).mean(1), dim=1)
