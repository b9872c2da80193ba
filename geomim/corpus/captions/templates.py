"""Sentences about objects and about what covers the ground.

The faithful family is Box-to-Caption of RemoteCLIP (arXiv 2306.11029, Section III-B): one sentence for objects in the
middle of the picture, one for the others, three with counts of classes drawn by chance. The paper shows no code and no
size of the middle. Other than there, objects that the border cuts off are no whole ones: they are "part of a plane".
No sentence says left, right, up or down but those of the placed family, which flips and turns would make untrue.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from geomim.corpus.captions.chance import Chance
from geomim.corpus.captions.grammar import (
    EXACT,
    MANY,
    Noun,
    counted,
    length,
    listed,
    sentence,
    share,
    with_article,
)
from geomim.corpus.captions.objects import Objects

CLASSES = 5
"""Classes that one sentence names at most: text towers read some 75 tokens."""
DRAWN = 3
"""Sentences with counts of classes that are drawn by chance."""
LEAST = 0.05
"""Least share of a tile that a sentence speaks of."""
WHOLE = 0.995
"""From this share on, what is listed is all there is."""
_MIDDLE = (
    "in the middle of the picture", "in the middle of this remote sensing picture", "in the centre of the image",
)  # fmt: skip
_AROUND = (
    "outside the middle of the picture", "away from the middle of this remote sensing picture",
    "away from the centre of the image",
)  # fmt: skip
HERE = ("in this picture", "in the remote sensing picture", "in this image")
"""True of tiles from the air and from space."""
_QUARTERS = (("upper left", "upper right"), ("lower left", "lower right"))

Count = tuple[Noun, int, int]
"""A class, how many whole ones, and how many that are cut off."""


def by_boxes(objects: Objects, size: int, middle: float, chance: Callable[[str], Chance]) -> list[str]:
    """The faithful family for the objects of one tile: up to five sentences.

    Args:
        objects: One or more.
        size: Edge of the tile in pixels.
        middle: Edge of the middle of the picture as a share of its own; an object is there if its centre is.
        chance: Draws for a purpose.
    """
    inside = (np.abs(objects.centre - size / 2) <= middle * size / 2).all(1)
    said = []
    for purpose, where, places in (("middle", inside, _MIDDLE), ("around", ~inside, _AROUND)):
        if where.any():
            draw = chance(purpose)
            said.append(stated(frequent(_counts(objects, where))[:CLASSES], draw.pick(places), draw))
    counts, draw, wanted = _counts(objects), chance("counts"), len(said) + DRAWN
    for _ in range(3 * DRAWN):  # few classes give few different sentences
        if len(said) < wanted:
            some = draw.some(counts, 1 + draw.below(min(len(counts), CLASSES)))
            said = list(dict.fromkeys([*said, stated(some, draw.pick(HERE), draw)]))
    return said


def _counts(objects: Objects, where: np.ndarray | None = None) -> list[Count]:
    """How many of each class there are, in the order of their names."""
    kind, cut = objects.kind, objects.cut
    if where is not None:
        kind, cut = kind[where], cut[where]
    every = np.bincount(kind, minlength=len(objects.nouns)).tolist()
    parts = np.bincount(kind[cut], minlength=len(objects.nouns)).tolist()
    return [
        (one, count, 0) if one.mass else (one, count - part, part)
        for one, count, part in zip(objects.nouns, every, parts, strict=True)
        if count
    ]


def frequent(counts: list[Count]) -> list[Count]:
    """The most frequent classes first."""
    return sorted(counts, key=lambda one: (-one[1], -one[2], one[0].one))


def stated(counts: Sequence[Count], where: str, draw: Chance) -> str:
    """That there are so many of some classes somewhere."""
    form = draw.below(4)
    spelled = form > 1 or draw.below(2) == 1  # a sentence begins with a word
    wholes = [(counted(one, whole, spelled, draw.pick(MANY)), whole) for one, whole, _ in counts if whole]
    other = len(counts) == 1 and bool(wholes)
    parts = [(_parts(one, part, spelled, other), part) for one, _, part in counts if part]
    items, numbers = zip(*wholes, *parts, strict=True)
    both = len(wholes) == len(items) == 2 and draw.below(2) == 1
    text, single = listed(items, both), numbers[0] == 1 and not both
    be, all_be = "is" if single else "are", "is" if single and len(items) == 1 else "are"
    forms = (
        f"there {be} {text} {where}",
        f"{where} there {be} {text}",
        f"{text} {all_be} located {where}",
        f"{text} can be seen {where}",
    )
    return sentence(forms[form])


def _parts(what: Noun, count: int, spelled: bool, other: bool) -> str:
    """`part of a ship`, `parts of 3 ships`; of `others` where whole ones were named just before."""
    what = Noun("other", "others", "others") if other else what
    return f"{'part' if count == 1 else 'parts'} of {counted(what, count, spelled)}"


def placed(objects: Objects, size: int, gsd: float | None, chance: Callable[[str], Chance]) -> list[str]:
    """The richer family for the objects of one tile: quarters of the picture, and sizes where a pixel's is known.

    Flips and turns make them untrue, which their origin tells.

    Args:
        objects: One or more.
        size: Edge of the tile in pixels.
        gsd: Metres of a pixel, or None.
        chance: Draws for a purpose.
    """
    right, low = (objects.centre >= size / 2).T.astype(int)
    said = []
    if len(whole := np.flatnonzero(~objects.cut)):
        draw = chance("one")
        one = draw.pick(whole.tolist())
        name = with_article(objects.nouns[objects.kind[one]].one)
        span = f" that spans about {length(objects.length[one] * gsd)}" if gsd else ""
        said.append(sentence(f"{name}{span} lies in the {_QUARTERS[low[one]][right[one]]} quarter of the picture"))
        kinds = [kind for kind in np.unique(objects.kind).tolist() if (objects.kind[whole] == kind).sum() > 1]
        if gsd and kinds:
            said.append(_largest(objects, draw.pick(kinds), gsd))
    draw = chance("quarter")
    quarter = 2 * low + right
    at = draw.pick(np.unique(quarter).tolist())
    where = f"in the {_QUARTERS[at // 2][at % 2]} quarter of the picture"
    said.append(stated(frequent(_counts(objects, quarter == at))[:CLASSES], where, draw))
    return list(dict.fromkeys(said))


def _largest(objects: Objects, kind: int, gsd: float) -> str:
    """How long the longest and the shortest of several whole objects of a class are."""
    own = objects.kind == kind
    spans = objects.length[own & ~objects.cut] * gsd
    what, low, high = objects.nouns[kind], length(spans.min()), length(spans.max())
    many = "many" if len(spans) > EXACT else f"the {counted(what, len(spans), True).split(' ')[0]}"
    whole = "whole " if (own & objects.cut).any() else ""
    large, small = ("larger", "smaller") if len(spans) == 2 else ("largest", "smallest")
    also = f", the {small} about {low}" if low != high else ""
    return sentence(f"the {large} of {many} {whole}{what.many} spans about {high}{also}")


def covering(shares: dict[Noun, float], draw: Chance) -> list[str]:
    """What covers the ground: up to three sentences.

    Args:
        shares: Of the tile's valid pixels, above 0, by what covers them.
        draw: Draws.
    """
    ranked = sorted(shares.items(), key=lambda one: (-one[1], one[0].stuff))
    told = [one for one in ranked if one[1] >= LEAST][:CLASSES]
    if not told:
        return []
    (first, most), *others = told
    if most >= 1 - LEAST:
        whole = (
            f"almost all of the picture is covered by {first.stuff}",
            f"the picture shows almost nothing but {first.stuff}",
        )
        return [sentence(draw.pick(whole))]
    begin = f"about {share(most)} of the picture is covered by {first.stuff}"
    if len(told) == 2 and most + told[1][1] >= WHOLE:
        said = [f"{begin}, the rest by {told[1][0].stuff}"]
    else:
        said = [listed([begin, *(f"{share(part)} by {other.stuff}" for other, part in others)])]
    if most > 0.5 and others:
        some = others[0][0].stuff
        forms = (f"mostly {first.stuff} with some {some}", f"the picture shows mostly {first.stuff} and some {some}")
        said.append(draw.pick(forms))
    one, part = draw.pick(told)
    said.append(f"{one.stuff} {one.cover} about {share(part)} of the picture")
    return [sentence(text) for text in said]
