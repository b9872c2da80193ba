"""Sources that are files under a root: images by pattern, their classes and sentences, and WebDataset archives."""

from __future__ import annotations

import glob
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from geomim.corpus.scenes import SUFFIXES
from geomim.corpus.sources.cards import Card
from geomim.corpus.sources.items import Item
from geomim.errors import InputError


def list_files(card: Card, root: str, blank: Item) -> list[Item]:
    """Items of a card that is opened as `folder`, `geotiff`, `zarr`, `stac` or `webdataset`.

    Args:
        card: `images` is a pattern under the root (`**` is any depth), or one a split.
        root: Folder of the source.
        blank: What all items have in common.

    Raises:
        InputError: The folder is not laid out as the card says.
    """
    if not os.path.isdir(root):
        raise InputError(f"{card.name}: '{root}' is no folder; expected {_expected(card)} in it")
    items: list[Item] = []
    for split, pattern in _patterns(card):
        for path in sorted(glob.glob(pattern, root_dir=root, recursive=True)):
            uri = os.path.join(root, path)
            found = replace(blank, uri=uri, split=split, held_out=split in card.held_out)
            items.extend(_members(found) if card.way == "webdataset" else [found])
    if not items:
        raise InputError(f"{card.name}: nothing in '{root}' is laid out as published; expected {_expected(card)}")
    if card.options.get("label") == "folder":
        items = [replace(item, label=Path(item.uri).parent.name) for item in items]
    if card.options.get("captions"):
        items = _with_captions(card, root, items)
    return items


def _patterns(card: Card) -> list[tuple[str | None, str]]:
    images = card.options["images"]
    if isinstance(images, Mapping):
        return list(images.items())
    only = next(iter(card.splits)) if len(card.splits) == 1 else None  # a source published as one whole
    return [(only, images)]


def _expected(card: Card) -> str:
    return f"{card.title} as published ({', '.join(pattern for _, pattern in _patterns(card))})"


def _with_captions(card: Card, root: str, items: list[Item]) -> list[Item]:
    """Add sentences and splits from the publisher's JSON; images that it does not name keep theirs."""
    file = os.path.join(root, card.options["captions"])
    try:
        table = dict(_sentences(json.loads(Path(file).read_text(encoding="utf-8"))))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{card.name}: '{file}' cannot be read as captions; expected JSON with a list 'images' of 'filename', "
            f"'split' and 'sentences' ({type(error).__name__}: {error})"
        ) from error
    found = []
    for item in items:
        split, captions = table.get(Path(item.uri).name, (item.split, ()))
        found.append(replace(item, split=split, captions=captions, held_out=split in card.held_out))
    return found


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
