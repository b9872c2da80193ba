"""Classes without training: of images, of counts in a sentence, and of patches."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from geomim.errors import InputError
from geomim.evaluate.figures import CHANCE, Figure
from geomim.evaluate.scores import row
from geomim.evaluate.sentences import EncodeText, encode_sentences

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
"""The counts of RemoteCount."""
DIGITS = tuple(str(place) for place in range(1, len(NUMBERS) + 1))
_OTHERS = r"\d+|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty"
_NUMBER = re.compile(rf"\b(?:{'|'.join(NUMBERS)}|{_OTHERS}|(?:hundred|thousand)s?)\b", re.IGNORECASE)


def classification(
    images: Tensor, labels: Tensor, classes: Tensor, floor: Mapping[str, float] | None = None
) -> list[Figure]:
    """Accuracy where an image is of the class with the most similar sentence.

    Args:
        images: `(N, D)` unit vectors.
        labels: `(N,)` int64.
        classes: `(C, D)` unit vectors, such as `class_vectors` gives.
        floor: Accuracy of the majority class of a train split, by its name, where there is one.
    """
    scored = row("", "", [(images @ classes.T).argmax(1)], labels)
    chance = {CHANCE: 1 / len(classes)}
    return [
        Figure("zeroshot", "top-1", scored.accuracy, scored.low, scored.high, {**chance, **(floor or {})}),
        Figure("zeroshot", "mean of classes", scored.balanced, beside=chance),
    ]


def counted(caption: str) -> int | None:
    """The only number of a sentence, from 1 to 10; None where there is none, another, or more than one."""
    found = [word.lower() for word in _NUMBER.findall(caption)]
    places = {name: place % len(NUMBERS) + 1 for place, name in enumerate((*NUMBERS, *DIGITS))}
    return places.get(found[0]) if len(found) == 1 else None


def counting(images: Tensor, texts: Sequence[str], of: Tensor, encode_text: EncodeText) -> list[Figure]:
    """Accuracy of the number that makes a sentence most similar to its image (RemoteCLIP, §IV-B2, RemoteCount).

    Of sentences that `counted` finds a number in, it is replaced by each of one to ten, the rest stays as it is, plural
    or not; once in words and once in digits.

    Args:
        images: `(N, D)` unit vectors.
        texts: Sentences.
        of: `(T,)` int64, the image of each.
        encode_text: Sentences to vectors.
    """
    rows = [place for place, text in enumerate(texts) if counted(text)]
    truth = torch.tensor([counted(texts[place]) for place in rows])
    figures = []
    for kind, numbers in (("words", NUMBERS), ("digits", DIGITS)):
        sentences = [_NUMBER.sub(number, texts[place]) for place in rows for number in numbers]
        vectors = encode_sentences(encode_text, sentences).view(len(rows), len(numbers), -1)
        answer = torch.einsum("td,tnd->tn", images[of[rows]], vectors).argmax(1) + 1
        scored = row("", "", [answer], truth)
        chance = {CHANCE: 1 / len(numbers)}
        figures.append(Figure("counting", f"top-1 ({kind})", scored.accuracy, scored.low, scored.high, chance))
    return figures


def count_pixels(patches: Tensor, grid: tuple[int, int], classes: Tensor, masks: Tensor, valid: Tensor) -> Tensor:
    """Pixels of each true class that were given each class, where a pixel is of the class nearest to its patch.

    Args:
        patches: `(B, h*w, D)` unit vectors in raster order.
        grid: `(h, w)`.
        classes: `(C, D)` unit vectors.
        masks: `(B, H, W)` places in `classes`; any other number means that the pixel has none.
        valid: `(B, 1, S, S)` bool; the rest is nodata, which is left out.

    Returns:
        `(C, C)` int64, a row a true class.
    """
    similar = (patches @ classes.T).transpose(1, 2).reshape(len(patches), len(classes), *grid)
    answer = F.interpolate(similar, masks.shape[-2:], mode="bilinear", align_corners=False).argmax(1)
    truth, count = masks.long(), len(classes)
    known = (truth < count) & (F.interpolate(valid.float(), masks.shape[-2:]) > 0.5)[:, 0]
    return (truth * count + answer)[known].bincount(minlength=count**2).view(count, count)


def segmentation(pixels: Tensor) -> list[Figure]:
    """Mean intersection over union of the classes that occur, and pixel accuracy, from what `count_pixels` counted.

    Raises:
        InputError: It counted nothing.
    """
    if not pixels.any():
        raise InputError("segmentation: no valid pixel of any mask has a class: leave it out of --tasks")
    random = (pixels.sum(1, keepdim=True) / len(pixels)).expand_as(pixels)
    found, chance = _overlap(pixels.double()), _overlap(random.double())
    names = ("mean IoU", "pixel accuracy")
    columns = zip(names, found, chance, strict=True)
    return [Figure("segmentation", name, value, beside={CHANCE: luck}) for name, value, luck in columns]


def _overlap(pixels: Tensor) -> tuple[float, float]:
    right, either = pixels.diagonal(), pixels.sum(0) + pixels.sum(1) - pixels.diagonal()
    return float((right / either)[either > 0].mean()), float(right.sum() / pixels.sum())
