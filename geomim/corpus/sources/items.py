"""What a corpus is made of, one by one: an image of a folder, a pattern or a source card, and what is known of it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geomim.corpus.joining import Joined
from geomim.corpus.scenes import Scene, find_scenes, open_scene
from geomim.corpus.sources.cards import Card, folder, is_non_commercial, load_card
from geomim.errors import InputError, nearest
from geomim.sensors import Sensor

_SPLITS = re.compile(r"(?P<root>.*):(?P<splits>[A-Za-z][\w-]*(?:[+,][A-Za-z][\w-]*)*)")


@dataclass(frozen=True)
class Item:
    """One image of a source, not opened yet. Its `uri` is its key: no two images share one.

    Attributes:
        uri: What `open_scene` opens.
        split: Split as the publisher names it, or None.
        label: Class, where it is known without opening the image; an opened scene's annotations say the rest.
        captions: Sentences, likewise.
        licence: Licence of the source, or None where nothing is known.
        attribution: Who is to be credited, or None.
        sensor: Name of the sensor to open it with, or None where it is opened without: it says itself what it is.
        dataset: Name of the card, or None for plain files.
        card: What `load_card` finds the card by: its name, or its path where it is not a shipped one.
        non_commercial: Commercial use is forbidden, or not known to be allowed.
        held_out: The image is in a split that benchmarks are scored on.
    """

    uri: str
    split: str | None = None
    label: str | None = None
    captions: tuple[str, ...] = ()
    licence: str | None = None
    attribution: str | None = None
    sensor: str | None = None
    dataset: str | None = None
    card: str | None = None
    non_commercial: bool = False
    held_out: bool = False


@dataclass(frozen=True)
class Source:
    """What `CARD@ROOT` or `CARD@ROOT:SPLIT+SPLIT` says.

    Attributes:
        card: The card.
        root: Folder that holds the source as it is published.
        splits: The splits asked for, or None for all of them.
    """

    card: Card
    root: str
    splits: tuple[str, ...] | None = None


def list_items(source: str | Sequence[str], download: bool = False, joined: list[Joined] | None = None) -> list[Item]:
    """List the images of a source, or of several together, without opening them.

    Args:
        source: A raster, a folder, a pattern or an address as `find_scenes` takes them; or `CARD@ROOT`, where CARD is
            the name of a source card or the path of one (`eurosat@/data/eurosat`) and ROOT the folder that holds the
            source as it is published; or some splits of it (`loveda@/data/loveda:train+val`).
        download: Let torchgeo fetch a source that is not there.
        joined: Receives how the publisher's table was joined with the images, where there is one.

    Returns:
        At least one, sorted by path or in the source's own order; no `uri` twice.

    Raises:
        InputError: There is no such card, split, folder or file, or the folder is laid out otherwise.
    """
    given = [source] if isinstance(source, str) else source
    cards = [named for one in given if (named := split_source(one))]
    plain = [one for one in given if split_source(one) is None]  # files named one by one may be bands of one scene
    found = [Item(uri) for uri in find_scenes(plain)] if plain or not cards else []
    return found + [item for card in cards for item in list_card(card, download, joined)]


def split_source(source: str) -> Source | None:
    """Card, root and splits of `CARD@ROOT[:SPLIT+SPLIT]`; None for any other source.

    Raises:
        InputError: The card or a split does not exist, or no root is given.
    """
    name, at, root = source.partition("@")
    is_file = name.endswith((".yaml", ".yml"))
    if not at or os.path.exists(source) or "://" in name or (os.sep in name and not is_file):
        return None
    card = load_card(name)
    chosen = None if os.path.exists(root) else _SPLITS.fullmatch(root)
    splits = tuple(re.split("[+,]", chosen["splits"])) if chosen else None
    for split in splits or ():
        if split not in card.splits:
            raise InputError(f"{card.name} has no split '{split}'{nearest(split, card.splits or ['none at all'])}")
    root = chosen["root"] if chosen else root
    if not root:
        raise InputError(f"'{source}' names no folder: give {name}@ROOT")
    return Source(card, os.path.expanduser(root), splits)


def list_card(source: Source, download: bool = False, joined: list[Joined] | None = None) -> list[Item]:
    """Items of a source that a card describes; see `list_items`.

    Raises:
        InputError: The root is not laid out as the card says, or the card knows no way of opening it.
    """
    card = source.card
    if card.way == "none":
        raise InputError(f"{card.name} cannot be opened by its card: give the folder of its images as a source")
    if card.way == "torchgeo":
        from geomim.corpus.sources.torchgeo import list_samples

        return list_samples(card, source.root, download, source.splits)
    from geomim.corpus.sources.patterns import list_files

    return list_files(card, source.root, blank_item(card), source.splits, joined)


def open_item(item: Item, sensor: Sensor | None = None, bands: Sequence[str] | None = None, **options: Any) -> Scene:
    """Open an item with the bands that its card names, where the caller names none.

    Args:
        item: What to open.
        sensor: As `open_scene` takes it.
        bands: Likewise.
        options: Likewise: `resolution`, `warp`, `clouds`, `harmonise`.

    Raises:
        InputError: The image cannot be opened.
        BandError: It has other bands than its card says.
    """
    product = os.path.isdir(item.uri)  # a folder of bands names them itself
    if item.card and sensor is None and not bands and not product and not item.uri.startswith("torchgeo://"):
        sensor = load_card(item.card).to_sensor()
        bands = sensor.names
    return open_scene(item.uri, sensor, bands, **options)


def blank_item(card: Card) -> Item:
    """What all items of a card have in common."""
    return Item(
        uri="",
        licence=card.licence,
        attribution=card.attribution,
        sensor=card.sensor,
        dataset=card.name,
        card=card.name if Path(card.file).parent == folder() else card.file,
        non_commercial=is_non_commercial(card),
    )
