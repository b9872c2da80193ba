"""Sentences for classes: prompt sets, class names as words, and their vectors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from geomim.errors import InputError, nearest
from geomim.resources import root

EncodeText = Callable[[list[str]], Tensor]
"""Sentences to vectors `(n, D)`."""


def read_prompts(prompts: str) -> tuple[str, ...]:
    """A prompt set that ships with geomim, or the lines of a text file.

    `remoteclip` is RemoteCLIP's own (Liu et al., TGRS 2024, section IV-B); `clip`, `clip-eurosat` and `clip-resisc45`
    are those published with CLIP (Radford et al., ICML 2021); `aerial` suits any overhead image.

    Raises:
        InputError: There is no such set or file, it is empty, or a line does not hold `{class}`.
    """
    sets = {file.stem: file for file in (root() / "datasets" / "prompts").glob("*.txt")}
    file = sets.get(prompts, Path(prompts))
    if not file.is_file():
        raise InputError(f"no prompt set and no text file is called '{prompts}'{nearest(prompts, sets)}")
    lines = [line.strip() for line in file.read_text("utf-8-sig", "replace").splitlines()] or [""]
    for number, line in enumerate(lines, 1):
        if "{class}" not in line:
            raise InputError(f"'{prompts}': line {number} is '{line}'; expected '{{class}}' where the class stands")
    return tuple(lines)


def class_words(classes: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """Class names as words in a sentence: `DenseResidential`, `dense_residential`, `03-Dense Residential` alike.

    Args:
        classes: As folders or catalogues name them.
        names: Words for some of them, which are taken as they are.

    Raises:
        InputError: A given name is of no class, there are less than two classes, or two have the same words, or none.
    """
    for name in names:
        if name not in classes:
            raise InputError(f"words are given for a class '{name}' that the data lack{nearest(name, classes)}")
    if len(classes) < 2:
        raise InputError(f"expected at least two classes to tell apart; given {', '.join(classes) or 'none'}")
    words: dict[str, str] = {}
    for name in classes:
        parted = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
        plain = " ".join(re.sub(r"^\d+(?=[\W_])|[_\W]+", " ", parted).split()).lower()
        word = names.get(name, plain)
        if not word or word in words:
            what = f"classes '{words[word]}' and '{name}' are both" if word else f"class '{name}' is"
            raise InputError(f"the {what} '{word}' in words: say which as --names.{name} 'other words'")
        words[word] = name
    return list(words)


def encode_sentences(encode_text: EncodeText, sentences: Sequence[str], block: int = 256) -> Tensor:
    """Unit vectors `(n, D)` float32 on the CPU; equal sentences are encoded once.

    Raises:
        InputError: A vector is not finite.
    """
    places: dict[str, int] = {}
    rows = [places.setdefault(sentence, len(places)) for sentence in sentences]
    distinct = list(places)
    parts = [encode_text(distinct[at : at + block]).float().cpu() for at in range(0, len(distinct), block)]
    return unit(torch.cat(parts), "sentence")[rows]


def unit(vectors: Tensor, what: str) -> Tensor:
    """Vectors `(n, D)` at length one.

    Raises:
        InputError: One is not finite.
    """
    if bad := int((~vectors.isfinite().all(1)).sum()):
        raise InputError(f"{bad} of {len(vectors)} {what} vectors of the model are not finite: see its weights")
    return F.normalize(vectors, dim=1)


def class_vectors(encode_text: EncodeText, words: Sequence[str], prompts: Sequence[str]) -> Tensor:
    """A unit vector a class `(C, D)`: the mean of its prompts' unit vectors, at length one (Radford et al., 2021)."""
    sentences = [prompt.replace("{class}", word) for word in words for prompt in prompts]
    vectors = encode_sentences(encode_text, sentences)
    return F.normalize(vectors.view(len(words), len(prompts), -1).mean(1), dim=1)
