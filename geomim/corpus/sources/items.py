"""What a corpus is made of, one by one: an image of a folder, a pattern or a source card, and what is known of it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from geomim.corpus.scenes import find_scenes
from geomim.corpus.sources.cards import Card, is_non_commercial, load_card
from geomim.errors import InputError


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
        sensor: Name of the sensor, or None.
        dataset: Name of the card, or None for plain files.
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
    non_commercial: bool = False
    held_out: bool = False


def list_items(source: str, download: bool = False) -> list[Item]:
    """List the images of a source without opening them.

    Args:
        source: A raster, a folder, a pattern or an address as `find_scenes` takes them; or `CARD@ROOT`, where CARD is
            the name of a source card or the path of one (`eurosat@/data/eurosat`) and ROOT the folder that holds the
            source as it is published.
        download: Let torchgeo fetch a source that is not there.

    Returns:
        At least one, sorted by path or in the source's own order; no `uri` twice.

    Raises:
        InputError: There is no such card, folder or file, or the folder is laid out otherwise.
    """
    named = split_source(source)
    if named is None:
        return [Item(uri) for uri in find_scenes(source)]
    card, root = named
    return list_card(card, root, download)


def split_source(source: str) -> tuple[Card, str] | None:
    """Card and root of `CARD@ROOT`; None for any other source.

    Raises:
        InputError: The card does not exist, or no root is given.
    """
    name, at, root = source.partition("@")
    is_file = name.endswith((".yaml", ".yml"))
    if not at or os.path.exists(source) or "://" in name or (os.sep in name and not is_file):
        return None
    card = load_card(name)
    if not root:
        raise InputError(f"'{source}' names no folder: give {name}@ROOT")
    return card, os.path.expanduser(root)


def list_card(card: Card, root: str, download: bool = False) -> list[Item]:
    """Items of a source that a card describes; see `list_items`.

    Raises:
        InputError: The root is not laid out as the card says, or the card knows no way of opening it.
    """
    if card.way == "none":
        raise InputError(f"{card.name} cannot be opened by its card: give the folder of its images as a source")
    if card.way == "torchgeo":
        from geomim.corpus.sources.torchgeo import list_samples

        return list_samples(card, root, download)
    from geomim.corpus.sources.patterns import list_files

    return list_files(card, root, blank_item(card))


def blank_item(card: Card) -> Item:
    """What all items of a card have in common."""
    return Item(
        uri="",
        licence=card.licence,
        attribution=card.attribution,
        sensor=card.sensor,
        dataset=card.name,
        non_commercial=is_non_commercial(card),
    )
