"""What a user names as one side of a comparison: images, or a corpus, and some of its splits."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc
from rich.console import Console

from geomim.addresses import full, keep
from geomim.corpus.remote import Place, place
from geomim.corpus.scenes import SUFFIXES, Scene
from geomim.corpus.sources.items import Item, list_items, open_item, split_source
from geomim.corpus.store import Corpus, holds_corpus
from geomim.errors import GeomimError, InputError, nearest
from geomim.sensors import Sensor, find_band, get_sensor


@dataclass(frozen=True)
class Side:
    """What a user named: images, or a corpus, and some of its splits.

    Attributes:
        name: How to call it.
        given: As it was given.
        items: Its images; empty for a corpus.
        corpus: Or the corpus.
        splits: Splits that count; all where None.
        sensor: What took the images, or None where the files say so.
        bands: Names of the files' bands, or None.
    """

    name: str
    given: str
    items: tuple[Item, ...] = ()
    corpus: Corpus | None = None
    splits: tuple[str, ...] | None = None
    sensor: Sensor | None = None
    bands: tuple[str, ...] | None = None

    def open(self, item: Item) -> Scene:
        """Open an image; what the user says of sensor and bands comes before the card."""
        return open_item(item, self.sensor, self.bands)

    def found(self) -> Sensor | None:
        """Sensor of the corpus, or of the first image that can be opened; None where none can."""
        if self.corpus is not None:
            return self.corpus.sensor
        for item in self.items:
            try:
                with self.open(item) as scene:
                    return scene.sensor
            except GeomimError:
                continue
        return None


_SPLITS = re.compile(r"(?P<path>.+?):(?P<splits>[A-Za-z_][\w-]*(?:[+,][A-Za-z_][\w-]*)*)")


def side(
    given: str,
    held_out: bool = False,
    sensor: str | None = None,
    bands: Sequence[str] | None = None,
    download: bool = False,
) -> Side:
    """Understand what a user names.

    Args:
        given: A corpus (or its `catalogue.parquet`), a raster, a folder, a pattern, or `CARD@ROOT`; with `NAME=` before
            it to call it so, and `:train+test` behind it for some of its splits.
        held_out: Where no splits are given, take those that a benchmark is scored on: a card's held-out ones, a
            corpus's val and test. Of plain images, all.
        sensor: Name of a built-in sensor or a YAML file, for rasters that do not name their bands.
        bands: Names of the rasters' bands in file order.
        download: Let torchgeo fetch a card's source that is not there.

    Raises:
        InputError: There is no such thing, it has no such split, or nothing of it is held out.
        CorpusError: A corpus of a newer format.
    """
    given = keep(given)
    name, path, splits = _parts(given)
    card = split_source(path)
    folder = _corpus_folder(path)
    known = get_sensor(sensor) if sensor else None
    if folder is not None:
        wanted = splits or (("val", "test") if held_out else None)
        return _of_corpus(name or _called(_resolved(folder).name, splits, held_out), given, Corpus.open(folder), wanted)
    items = list_items(path, download, joined := [])
    for one in joined:
        Console(stderr=True, markup=False, highlight=False).print(str(one.check(allow=True)), soft_wrap=True)
    if card is not None and card.splits:
        splits = card.splits  # those of the card are listed already
        if not items:
            raise InputError(f"'{path}' holds no image of {' or '.join(splits)}: its files do not say their splits")
    named = {item.split for item in items if item.split}
    if splits:
        for split in splits:
            if split not in named:
                offered = ", ".join(sorted(named)) or "none"
                raise InputError(f"'{path}' has no split '{split}'{nearest(split, named)}; it has {offered}")
        items = [item for item in items if item.split in splits]
    elif held_out and items[0].dataset:
        items = [item for item in items if item.held_out]
        if not items:
            raise InputError(
                f"'{path}': its card names no held-out split, or the folder holds none of it; say which splits count, "
                f"as {path}:test, or give the folder of its images to take all of them"
            )
    called = name or _called(items[0].dataset or os.path.basename(os.path.normpath(path)), splits, held_out)
    return Side(called, given, tuple(items), None, splits, known, tuple(bands) if bands else None)


def _corpus_folder(path: str) -> Place | None:
    """The corpus that a path names, or None."""
    if path.lower().endswith(SUFFIXES) or "@" in path.partition("://")[0]:
        return None
    folder = place(full(path).removesuffix("/catalogue.parquet"))
    return folder if holds_corpus(folder) else None


def _resolved(path: Place) -> Place:
    return path.resolve() if isinstance(path, Path) else path


def same_corpus(one: Corpus | None, two: Corpus | None) -> bool:
    """Whether both are the same folder."""
    return one is not None and two is not None and _resolved(one.path) == _resolved(two.path)


def _called(name: str, splits: tuple[str, ...] | None, held_out: bool) -> str:
    """A benchmark goes by its name; two sides of an audit may be two splits of one."""
    return f"{name}:{'+'.join(splits)}" if splits and not held_out else name


def _parts(given: str) -> tuple[str, str, tuple[str, ...] | None]:
    """`NAME=PATH:SPLITS` apart; what exists as it stands is a path, and a card takes its splits apart itself."""
    if os.path.exists(given):
        return "", given, None
    name, equals, path = given.partition("=")
    if not equals or "/" in name:
        name, path = "", given
    found = None if os.path.exists(path) or split_source(path) else _SPLITS.fullmatch(path)
    if found is None or found["path"].endswith(":"):
        return name, path, None
    return name, found["path"], tuple(re.split("[+,]", found["splits"]))


def _of_corpus(name: str, given: str, corpus: Corpus, splits: tuple[str, ...] | None) -> Side:
    if splits:
        there = set(pc.unique(corpus.table(["split"])["split"]).to_pylist()) - {None}
        if not there & set(splits):
            raise InputError(
                f"no tile of '{corpus.path}' is in {' or '.join(splits)}; its splits are {', '.join(sorted(there))}: "
                f"say which count, as {corpus.path}:train"
            )
    return Side(name, given, (), corpus, splits)


def common_bands(one: Sensor | None, two: Sensor | None) -> tuple[str, ...]:
    """Names, in `one`, of the bands that both have; by name, alias or wavelength."""
    offered = two.bands if two else ()
    return tuple(band.name for band in (one.bands if one else ()) if find_band(band, offered) is not None)
