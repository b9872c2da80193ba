"""English of labels: class names as nouns, articles, plurals, numbers, lists, shares and measures."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

EXACT = 10
"""Up to so many things are counted, more are `MANY`, as RemoteCLIP has it (Section III-B)."""
MANY = ("many", "a lot of", "lots of", "a large number of")
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
SHARES = {
    0.1: "a tenth", 0.2: "a fifth", 0.25: "a quarter", 0.3: "three tenths", 1 / 3: "a third", 0.4: "two fifths",
    0.5: "half", 0.6: "three fifths", 2 / 3: "two thirds", 0.7: "seven tenths", 0.75: "three quarters",
    0.8: "four fifths", 0.9: "nine tenths",
}  # fmt: skip
"""Words for shares; "about" one of them is within 0.05 of it."""

_SAME = frozenset(
    "aircraft hovercraft spacecraft watercraft craft sheep fish series species works roadworks waterworks gasworks "
    "headquarters barracks crossroads means rapids".split()
)
_IRREGULAR = {
    "person": "people", "man": "men", "woman": "women", "child": "children", "foot": "feet", "goose": "geese",
    "leaf": "leaves", "shelf": "shelves", "wharf": "wharves", "calf": "calves", "volcano": "volcanoes",
    "gas": "gases", "canvas": "canvases", "bus": "buses", "atlas": "atlases", "lens": "lenses", "house": "houses",
}  # fmt: skip
_SINGULAR = {many: one for one, many in _IRREGULAR.items()}
_MASS = frozenset(
    "water seawater floodwater sea ocean forest woodland farmland cropland grassland shrubland rangeland wetland land "
    "parkland soil sand snow ice mud gravel grass vegetation greenery agriculture savanna tundra scrub cover ground "
    "pavement asphalt concrete debris rubble change traffic infrastructure housing peat lava ash smoke".split()
)
_ADJECTIVES = frozenset(
    "residential industrial commercial urban suburban rural agricultural developed vegetated flooded burned burnt "
    "barren recreational military herbaceous deciduous coniferous evergreen arable cultivated irrigated paved unpaved "
    "forested wooded".split()
)
_SPELLED = {
    "bareland": "bare land", "parking": "parking lot", "denseresidential": "dense residential",
    "mediumresidential": "medium residential", "sparseresidential": "sparse residential",
    "railwaystation": "railway station", "storagetank": "storage tank", "storagetanks": "storage tanks",
    "baseballfield": "baseball field", "built up": "built-up area",
}  # fmt: skip
_LINKS = re.compile(r" (?=(?:of|with|without|for|under|over|in|on|at|along|by) )")
_AS_VOWEL = re.compile(r"[aeiou]|hour|heir|honest|8|11\b|18\b")
_AS_CONSONANT = re.compile(r"uni[tvfcqo]|us[aeiu]|us\b|ut[aei]|eu|ewe|one\b|once")


@dataclass(frozen=True)
class Noun:
    """What a class is called.

    Attributes:
        one: A single one, without an article: `storage tank`; of a mass noun, `area of water`.
        many: Several: `storage tanks`, `areas of water`.
        stuff: What covers ground: `storage tanks`, `water`.
        mass: Whether it is no thing of a size: an area of water that the border cuts is still an area of water.
    """

    one: str
    many: str
    stuff: str
    mass: bool = False

    @property
    def cover(self) -> str:
        """The verb that goes with `stuff`."""
        return "cover" if self.stuff == self.many else "covers"


@lru_cache(4096)
def noun(name: str) -> Noun:
    """A class name as a noun: `storage-tank`, `StorageTank`, `large_vehicle`, `vehicles`, `bareland`, `residential`.

    Args:
        name: As a publisher writes it, in any language (plurals are English ones), or `singular|plural`.

    Returns:
        Its forms; `object` where the name has no letter.
    """
    if "|" in name:
        one, many = (part.strip() for part in name.split("|", 1))
        return Noun(one, many, many) if one and many else noun(one or many)
    words = _words(name)
    if not words:
        return Noun("object", "objects", "objects")
    head, *rest = _LINKS.split(words, 1)
    tail = f" {rest[0]}" if rest else ""
    last = _singular(head.rpartition(" ")[2])
    if last in _MASS:
        stuff = head.removesuffix(head.rpartition(" ")[2]) + last + tail
        return Noun(f"area of {stuff}", f"areas of {stuff}", stuff, True)
    # of "tree or shrub" both are inflected
    parts = re.split(r"( or | and )", head)
    one, many = ("".join(_last(part, form) for part in parts) + tail for form in (_singular, _plural))
    return Noun(one, many, many, last == "area")


def _words(name: str) -> str:
    text = re.sub(r"\(.*?\)|\[.*?\]|[\"<>{}]", " ", unicodedata.normalize("NFC", name))
    text = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", text)
    text = re.sub(r"\s*[/,]\s*", " or ", re.sub(r"\s*[&+]\s*", " and ", text))
    words = re.sub(r"[\s_\-.:;]+", " ", text).strip().split(" ")
    text = " ".join(word if any(map(str.isdigit, word)) else word.lower() for word in words)
    text = _SPELLED.get(text, text)
    if text.replace(" ", "").isdigit():
        return ""  # a number names nothing
    return f"{text} area" if text.rpartition(" ")[2] in _ADJECTIVES else text


def _last(part: str, form) -> str:
    """A part of a name with its last word in another form; joining words stay."""
    before, space, word = part.rpartition(" ")
    return part if part in (" or ", " and ") or not word else f"{before}{space}{form(word)}"


def _singular(word: str) -> str:
    if word in _SINGULAR:
        return _SINGULAR[word]
    if word in _SAME or word in _IRREGULAR or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-2] if word.endswith(("sses", "ches", "shes", "xes", "zes")) else word[:-1]


def _plural(word: str) -> str:
    word = _singular(word)
    if word in _SAME or unicodedata.category(word[-1]) not in ("Ll", "Lu", "Nd"):  # a script or sign without an -s
        return word
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "z", "ch", "sh")) else "s")


def with_article(words: str) -> str:
    """`a ship`, `an airport`, `an hour`, `a university`, `another building`."""
    plain = unicodedata.normalize("NFD", words).lower()
    if re.match(r"other\b", plain):
        return f"an{words}"
    return f"{'an' if _AS_VOWEL.match(plain) and not _AS_CONSONANT.match(plain) else 'a'} {words}"


def counted(what: Noun, count: int, spelled: bool = False, many: str = MANY[0]) -> str:
    """`a ship`, `4 ships` (`four ships` where spelled), `many ships`.

    Args:
        what: Is counted.
        count: 1 or more.
        spelled: Write the number as a word.
        many: One of `MANY`.
    """
    if count == 1:
        return with_article(what.one)
    return f"{many if count > EXACT else _NUMBERS[count] if spelled else count} {what.many}"


def listed(items: Sequence[str], both: bool = False) -> str:
    """`A`, `A and B` (`both A and B`), `A, B and C`."""
    if len(items) < 2:
        return "".join(items)
    return ("both " if both and len(items) == 2 else "") + f"{', '.join(items[:-1])} and {items[-1]}"


def share(part: float) -> str:
    """A share in 0.05..0.95 in the words of the nearest of `SHARES`."""
    return SHARES[min(SHARES, key=lambda one: abs(one - part))]


def rounded(value: float) -> str:
    """A positive quantity to two digits, which is within 5 % of it: `0.42`, `12`, `1,300`."""
    number = float(f"{value:.1e}")
    return f"{number:,.0f}" if number >= 10 else f"{number:g}"


def length(metres: float) -> str:
    """A length, within 5 %: `45 m`, `1.2 km`."""
    return f"{rounded(metres / 1000)} km" if metres >= 995 else f"{rounded(metres)} m"


def sentence(text: str) -> str:
    """With a capital at its beginning and a stop at its end."""
    return f"{text[:1].upper()}{text[1:]}."
