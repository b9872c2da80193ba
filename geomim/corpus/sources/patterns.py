"""Sources that are files under a root: images by pattern, their classes and sentences, and WebDataset archives."""

from __future__ import annotations

import glob
import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from geomim.corpus.joining import Joined, Row, join
from geomim.corpus.scenes import SUFFIXES
from geomim.corpus.sources.cards import Card
from geomim.corpus.sources.items import Item
from geomim.errors import InputError


def list_files(
    card: Card, root: str, blank: Item, splits: Sequence[str] | None = None, joined: list[Joined] | None = None
) -> list[Item]:
    """Items of a card that is opened as `folder`, `geotiff`, `zarr`, `stac` or `webdataset`.

    Args:
        card: `images` is a pattern under the root (`**` is any depth), or one a split.
        root: Folder of the source.
        blank: What all items have in common.
        splits: Only these.
        joined: Receives how the publisher's sentences and splits were joined with the images.

    Raises:
        InputError: The folder is not laid out as the card says.
    """
    if not os.path.isdir(root):
        raise InputError(f"{card.name}: '{root}' is no folder; expected {card.title} as published in it")
    images = card.options["images"]
    only = next(iter(card.splits)) if len(card.splits) == 1 else None  # a source published as one whole
    patterns = images if isinstance(images, Mapping) else {only: images}
    items: list[Item] = []
    for split, pattern in patterns.items():
        if splits is not None and len(patterns) > 1 and split not in splits:
            continue
        paths = sorted(glob.glob(pattern, root_dir=root, recursive=True))
        if not paths:
            raise InputError(f"{card.name}: '{root}' holds no {pattern}; expected {card.title} as published")
        for path in paths:
            found = replace(blank, uri=os.path.join(root, path), split=split, held_out=split in card.held_out)
            items.extend(_members(found) if card.way == "webdataset" else [found])
    if card.options.get("label") == "folder":
        items = [replace(item, label=Path(item.uri).parent.name) for item in items]
    if card.options.get("captions"):
        table = _captions(card, root, items, splits)
        items = [
            replace(item, split=split, captions=captions, held_out=split in card.held_out)
            for item, said in zip(items, table.values, strict=True)
            for split, captions in [said or (item.split, ())]
        ]
        if joined is not None:
            joined.append(table)
    return [item for item in items if splits is None or item.split in splits]


def _captions(card: Card, root: str, items: list[Item], splits: Sequence[str] | None) -> Joined:
    """Split and sentences of each image, from the publisher's JSON; none of images that it does not name."""
    file = os.path.join(root, card.options["captions"])
    try:
        table = list(_sentences(json.loads(Path(file).read_text(encoding="utf-8-sig"))))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{card.name}: '{file}' cannot be read as captions; expected JSON with a list 'images' of 'filename', "
            f"'split' and 'sentences' ({type(error).__name__}: {error})"
        ) from error
    asked = set(card.held_out) & set(card.held_out if splits is None else splits)
    rows = [Row(name, said, said[0] in asked) for name, said in table]
    return join(file, rows, [item.uri for item in items], "they have neither split nor sentences")


def _sentences(table: Any) -> Iterator[tuple[str, tuple[str, tuple[str, ...]]]]:
    """The form that RSICD, RSITMD and UCM captions share: a file, its split, and its sentences."""
    for image in table["images"]:
        yield (
            Path(image["filename"]).name,
            (str(image["split"]), tuple(str(sentence["raw"]) for sentence in image["sentences"])),
        )


def _members(archive: Item) -> Iterator[Item]:
    """Images inside a tar archive, which GDAL reads in place; `.cls` and `.txt` beside them are class and sentences."""
    try:
        with tarfile.open(archive.uri) as tar:
            names = {member.name: member for member in tar if member.isfile()}
            for name in sorted(names):
                stem, suffix = os.path.splitext(name)
                if suffix.lower() not in SUFFIXES:
                    continue
                if os.path.isabs(name) or ".." in Path(name).parts:
                    raise InputError(f"'{archive.uri}' holds '{name}', a path that leads out of it: do not trust it")
                text = {
                    end: tar.extractfile(names[stem + end]).read().decode()  # type: ignore[union-attr]
                    for end in (".cls", ".txt")
                    if stem + end in names
                }
                yield replace(
                    archive,
                    uri=f"/vsitar/{os.path.abspath(archive.uri)}/{name}",
                    label=text.get(".cls", "").strip() or None,
                    captions=tuple(line for line in text.get(".txt", "").splitlines() if line.strip()),
                )
    except (tarfile.TarError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"'{archive.uri}' cannot be read as a tar archive ({error})") from error
