"""`geomim sources list|show|check`: what public sources there are, and whether one on this disk is as its card says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from geomim.corpus.scenes import Scene
from geomim.corpus.sources.cards import Card, cards, is_non_commercial, load_card
from geomim.corpus.sources.items import Item, list_card, open_item, split_source
from geomim.errors import ConfigError
from geomim.sensors import SENSORS


def list_(task: str | None = None, licence: str | None = None) -> None:
    """List the source cards that ship with geomim.

    Args:
        task: Only those whose task contains these words.
        licence: Only those whose licence contains these words; `commercial` for those that allow commercial use,
            `non-commercial` for all others.

    Raises:
        ConfigError: No card fits.
    """
    named = [card for card in cards() if task is None or task.lower() in ", ".join(card.task).lower()]
    found = [card for card in named if _fits_licence(card, licence)]
    if not found:
        asked = [f"--{name} {value}" for name, value in (("task", task), ("licence", licence)) if value]
        raise ConfigError(f"no source card fits {' '.join(asked)}: geomim sources list shows all {len(cards())}")
    table = Table(title=f"{len(found)} sources", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("name", "task", "sensor", "sold", "licence"):
        table.add_column(column, min_width=18 if column == "task" else 4, overflow="fold", no_wrap=column == "name")
    for card in found:
        sold = {"allowed": "yes", "forbidden": "no", "unknown": "?"}[_commercial(card)]
        table.add_row(card.name, ", ".join(card.task), card.sensor, sold, card.licence.replace("unverified", "?"))
    console = Console()
    console.print(table)
    console.print("sold: commercial use is allowed; ?: not verified. All else: geomim sources show NAME")


def show(name: str) -> None:
    """Print one source card.

    Args:
        name: Name of a shipped card, or the path of one.

    Raises:
        InputError: There is no such card.
    """
    card = load_card(name)
    console = Console(highlight=False, markup=False)
    console.print(f"{card.title} ({card.name})", style="bold")
    for key, value in _rows(card):
        console.print(f"{key:>14}  {value}", soft_wrap=True)
    if card.citation not in ("", "unverified"):
        console.print(f"\n{card.citation}", soft_wrap=True)


def check(source: str, download: bool = False) -> None:
    """Check a source card, and the source itself where a folder is given.

    Args:
        source: `CARD`; `CARD@ROOT` opens the source in that folder, `CARD@ROOT:SPLIT+SPLIT` some splits of it.
        download: Let torchgeo fetch a source that is not there.

    Raises:
        InputError: The card is wrong, or the folder does not hold the source as published.
        BandError: The images have other bands than the card says.
    """
    console = Console(highlight=False, markup=False)
    named = split_source(source)
    if named is None:
        card = load_card(source)
        if card.way == "torchgeo":
            from geomim.corpus.sources.torchgeo import check_class

            check_class(card)
        console.print(f"card '{card.name}' is valid; give {card.name}@ROOT to open the source itself", soft_wrap=True)
        return
    card = named.card
    items = list_card(named, download)
    table = Table("split", "images", "published", "first image", "labels", title=f"{card.title} in {named.root}")
    for split, count in Counter(item.split for item in items).items():
        item = next(item for item in items if item.split == split)
        with open_item(item) as scene:
            first = f"{len(scene.sensor.bands)} x {scene.height} x {scene.width} {scene.dtype}"
            labels = _labels(item, scene)
        published = str(card.splits.get(split or "", "none")) + (" (held out)" if split in card.held_out else "")
        table.add_row(split or "", str(count), published, first, labels)
    console.print(table)
    console.print(f"bands {', '.join(band.name for band in card.bands)}: as the card says", soft_wrap=True)


def _labels(item: Item, scene: Scene) -> str:
    """What the first image of a split carries, in words."""
    found = scene.annotations
    label = item.label or (found.label if found else None)
    captions = item.captions or (found.captions if found else ())
    parts = [f"class {label}"] if label else []
    parts += [f"{len(captions)} captions"] if captions else []
    if found and found.boxes:
        parts.append(f"{len(found.boxes)} boxes")
    if found and found.mask is not None:
        parts.append(f"mask of {len(found.classes)} classes")
    return ", ".join(parts) or "none"


def _fits_licence(card: Card, licence: str | None) -> bool:
    if licence in ("commercial", "non-commercial"):
        return is_non_commercial(card) == (licence == "non-commercial")
    return licence is None or licence.lower() in card.licence.lower()


def _commercial(card: Card) -> str:
    if card.non_commercial is True:
        return "forbidden"
    return "unknown" if is_non_commercial(card) else "allowed"


def _metres(card: Card) -> str:
    given = card.gsd if isinstance(card.gsd, tuple) else (card.gsd,)
    return " to ".join(one if isinstance(one, str) else f"{one:g}" for one in given)


def _rows(card: Card) -> Iterable[tuple[str, str]]:
    """What a card says, in the order in which one asks."""
    built_in = "" if card.sensor in SENSORS else " (not built in)"
    yield "task", ", ".join(card.task)
    yield "sensor", f"{card.sensor}{built_in}: {', '.join(band.name for band in card.bands)}"
    yield "GSD", f"{_metres(card)} m" if card.gsd != "unverified" else "unverified"
    yield "size", _flat(card.size)
    yield "format", card.format
    yield "coverage", card.coverage
    yield "licence", f"{card.licence}{f' ({card.licence_url})' if card.licence_url else ''}"
    yield "commercial use", _commercial(card)
    yield "attribution", card.attribution
    yield "splits", _flat(card.splits)
    yield "held out", ", ".join(card.held_out) or "none"
    yield "labels", "; ".join(f"{kind.replace('_', ' ')}: {_names(card, kind)}" for kind in card.labels)
    yield "duplicates", card.duplicates
    yield "homepage", card.homepage
    yield "paper", card.paper
    yield "opened by", f"{card.way} {_flat(card.options)}".strip()
    yield "opened", card.opened
    if card.notes:
        yield "notes", card.notes


def _names(card: Card, kind: str) -> str:
    names = card.names(kind)
    return ", ".join(names.values()) if names else str(card.labels[kind]).lower()


def _flat(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())
