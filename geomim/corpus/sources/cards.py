"""Source cards: what a public source is, who may use it, and how it is opened; one YAML file a source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from geomim.errors import BandError, InputError, nearest
from geomim.resources import root
from geomim.sensors import SENSORS, Band, Sensor

UNVERIFIED = "unverified"
"""Stands where nobody has checked a fact yet."""
NONE_STATED = "none stated"
"""Stands where the publisher states no licence."""

LABELS = ("classes", "boxes", "oriented_boxes", "masks", "captions")
"""Kinds of labels that a source may carry."""
OPENED = ("miniature", "unopened")
"""`miniature`: a test opens a small copy of the publisher's layout by this card; `unopened`: nobody has tried."""

_PATTERNS = frozenset({"images"})
WAYS: dict[str, frozenset[str]] = {
    "folder": _PATTERNS | {"label", "captions"},
    "geotiff": _PATTERNS,
    "zarr": _PATTERNS,
    "stac": _PATTERNS,
    "webdataset": _PATTERNS,
    "torchgeo": frozenset({"dataset", "args", "splits", "dates", "dtype", "layers"}),
    "none": frozenset(),
}
"""Ways of opening a source and the options each of them takes."""


@dataclass(frozen=True)
class Card:
    """One public source. `unverified` stands for any fact that nobody has checked.

    Attributes:
        name: Short name, lower case: that of the file.
        title: Name as the publisher writes it.
        task: What it is made for, such as `scene classification`.
        sensor: A built-in sensor, or the name of another one whose `bands` are all given here.
        bands: Bands in the order in which the source is opened; names alone where the sensor is built in.
        gsd: Metres; a number, a list of the finest and the coarsest, or `unverified`.
        licence: SPDX identifier or words; `none stated` where the publisher states none.
        non_commercial: Whether the licence forbids commercial use; `unverified` counts as unknown.
        open: How it is opened: one way with its options, see `WAYS`.
        attribution: Who is to be credited.
        homepage: Address.
        opened: One of `OPENED`.
        size: Images, pixels, bytes, and the like.
        format: What the files are.
        coverage: Where on Earth.
        licence_url: Address of the licence.
        paper: Address of the paper.
        citation: BibTeX.
        splits: Published splits and their number of images.
        held_out: The splits that benchmarks are scored on: never train on them.
        labels: Kinds of `LABELS`; names as a list, or by the number that stands for them, or how many, or true.
        duplicates: What is known of copies inside the source.
        notes: What a user must know, contamination of other benchmarks above all.
        file: The YAML file it was read from.
    """

    name: str
    title: str
    task: tuple[str, ...]
    sensor: str
    bands: tuple[Band, ...]
    gsd: float | tuple[float, ...] | str
    licence: str
    non_commercial: bool | str
    open: Mapping[str, Any]
    attribution: str
    homepage: str
    opened: str
    size: Mapping[str, Any] = field(default_factory=dict)
    format: str = UNVERIFIED
    coverage: str = UNVERIFIED
    licence_url: str | None = None
    paper: str = UNVERIFIED
    citation: str = UNVERIFIED
    splits: Mapping[str, Any] = field(default_factory=dict)
    held_out: tuple[str, ...] = ()
    labels: Mapping[str, Any] = field(default_factory=dict)
    duplicates: str = UNVERIFIED
    notes: str = ""
    file: str = ""

    @property
    def way(self) -> str:
        """How it is opened: a key of `WAYS`."""
        return next(iter(self.open))

    @property
    def options(self) -> Mapping[str, Any]:
        """Options of the way of opening."""
        return self.open[self.way] or {}

    def to_sensor(self) -> Sensor:
        """The sensor with this source's bands, in the order in which it is opened."""
        if self.sensor in SENSORS:
            if said := [band.name for band in self.bands if {band.unit, band.scale, band.offset} != {None}]:
                told = f"sensor '{self.sensor}' is built in and says what its numbers mean, and so do {', '.join(said)}"
                raise InputError(f"'bands': {told}: leave that out, or name a sensor that is not built in")
            return SENSORS[self.sensor].select([band.name for band in self.bands])
        return Sensor(self.sensor, self.bands)

    def names(self, kind: str) -> dict[int, str]:
        """Names of one kind of label, by the number that stands for them; empty where the card does not list them."""
        given = self.labels.get(kind)
        if isinstance(given, Mapping):
            return {int(number): str(name) for number, name in given.items()}
        return dict(enumerate(map(str, given))) if isinstance(given, list) else {}


def is_non_commercial(card: Card) -> bool:
    """Whether commercial use is forbidden or not known to be allowed.

    A source that states no licence, or whose licence nobody has checked, allows nothing.
    """
    return card.non_commercial is not False or card.licence in (NONE_STATED, UNVERIFIED)


def folder() -> Path:
    """Where the shipped cards are."""
    return root() / "datasets"


def cards() -> list[Card]:
    """All shipped cards, sorted by name."""
    return [load_card(path) for _, path in sorted(_shipped().items())]


def load_card(name: str | Path) -> Card:
    """Read a card.

    Args:
        name: Name of a shipped card, in any case, or the path of a YAML file.

    Raises:
        InputError: There is no such card, or the file is none; the sentence names the file and the key.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        shipped = _shipped()
        key = str(name).lower()
        if key not in shipped:
            raise InputError(f"no source card '{name}'{nearest(key, shipped)} (or give the path of a YAML file)")
        path = shipped[key]
    if not path.is_file():
        raise InputError(f"source card '{path}' does not exist")
    return _read(str(path), path.stat().st_mtime_ns)


def _shipped() -> dict[str, Path]:
    """Shipped cards by name; YAML files of another kind beside them (corpus recipes) are left out."""
    return {path.stem: path for path in sorted(folder().glob("*.yaml")) if _is_card(str(path), path.stat().st_mtime_ns)}


@lru_cache(maxsize=1024)
def _is_card(path: str, changed: int) -> bool:
    """Whether a YAML file says `kind: source` on a line of its own."""
    return any(line.rstrip() == "kind: source" for line in Path(path).read_text(encoding="utf-8").splitlines())


@lru_cache(maxsize=1024)
def _read(path: str, changed: int) -> Card:
    """`changed` is the time the file was written at, so that an edited card is read again."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"source card '{path}' is no YAML file ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(values, dict) or values.pop("kind", None) != "source":
        raise InputError(f"'{path}' is no source card: expected a mapping with 'kind: source'")
    try:
        return _card(values, path)
    except (InputError, BandError) as error:
        raise InputError(f"source card '{path}': {error}") from error


def _card(values: dict[str, Any], path: str) -> Card:
    """The card that a mapping says, every key checked, and what one key says of another."""
    known = {one.name: one for one in fields(Card) if one.name != "file"}
    for key in values:
        if key not in known:
            raise InputError(f"unknown key '{key}'{nearest(str(key), known)}")
    needed = [key for key, one in known.items() if one.default is MISSING and one.default_factory is MISSING]
    if missing := [key for key in needed if key not in values]:
        raise InputError(f"missing {', '.join(missing)}")
    card = Card(**{key: _checked(key, value) for key, value in values.items()}, file=path)
    if card.name != Path(path).stem:
        raise InputError(f"'name' must be that of the file, '{Path(path).stem}', given '{card.name}'")
    unknown = [split for split in card.held_out if split not in card.splits]
    if unknown:
        raise InputError(f"'held_out' names {', '.join(unknown)}, which is not among the splits {list(card.splits)}")
    by_split = card.options.get("splits", card.options.get("images"))
    other = [split for split in by_split if split not in card.splits] if isinstance(by_split, list | dict) else []
    if other:
        raise InputError(f"'open' names splits {', '.join(map(str, other))}; 'splits' has {list(card.splits)}")
    card.to_sensor()
    return card


def _checked(key: str, value: Any) -> Any:
    try:
        return _CHECKS.get(key, _text)(value)
    except _WrongError as error:
        raise InputError(f"'{key}' must be {error}, given {value!r}") from error


class _WrongError(ValueError):
    """A value of the wrong type; says which type was expected."""


def _expected(words: str, fits: bool, value: Any) -> Any:
    if not fits:
        raise _WrongError(words)
    return value


def _text(value: Any) -> str:
    return str(_expected("text", isinstance(value, str), value)).strip()


def _words(value: Any) -> tuple[str, ...]:
    listed = isinstance(value, list) and all(isinstance(word, str) for word in value)
    return tuple(_expected("a list of words", listed, value))


def _mapping(value: Any) -> Mapping[str, Any]:
    named = isinstance(value, dict) and all(isinstance(key, str) for key in value)
    return dict(_expected("a mapping", named, value))


def _metres(value: Any) -> float | tuple[float, ...] | str:
    given = value if isinstance(value, list) else [value]
    if value == UNVERIFIED:
        return UNVERIFIED
    if not given or not all(isinstance(one, int | float) and not isinstance(one, bool) and one > 0 for one in given):
        raise _WrongError("metres, a list of metres, or unverified")
    return tuple(map(float, given)) if isinstance(value, list) else float(value)


def _bands(value: Any) -> tuple[Band, ...]:
    given = _expected("a list of bands", isinstance(value, list) and bool(value), value)
    return Sensor.from_dict({"name": "card", "bands": given}).bands


def _labels(value: Any) -> Mapping[str, Any]:
    for kind in _mapping(value):
        if kind not in LABELS:
            raise InputError(f"'labels': unknown kind '{kind}'{nearest(kind, LABELS)}")
    return _mapping(value)


def _open(value: Any) -> Mapping[str, Any]:
    if value == "none":
        return {"none": {}}
    single = isinstance(value, dict) and len(value) == 1
    [(way, options)] = _expected(f"one of {', '.join(WAYS)} with its options", single, value).items()
    if way not in WAYS:
        raise InputError(f"'open': unknown way '{way}'{nearest(str(way), WAYS)}")
    for key in _mapping(options or {}):
        if key not in WAYS[way]:
            raise InputError(f"'open': {way} takes no '{key}'{nearest(key, WAYS[way])}")
    needed = "dataset" if way == "torchgeo" else "images"
    if needed not in (options or {}):
        raise InputError(f"'open': {way} needs '{needed}'")
    return value


_CHECKS: dict[str, Any] = {
    "task": _words,
    "bands": _bands,
    "gsd": _metres,
    "non_commercial": lambda value: _expected(
        "true, false or unverified", isinstance(value, bool) or value == UNVERIFIED, value
    ),
    "open": _open,
    "opened": lambda value: _expected(" or ".join(OPENED), value in OPENED, value),
    "size": _mapping,
    "licence_url": lambda value: None if value is None else _text(value),
    "splits": _mapping,
    "held_out": _words,
    "labels": _labels,
}
