"""One side of a comparison: the fingerprints of a set of images, or of the tiles of a corpus, whose pixels stay put.

An image is seen as a whole, and where it is larger than a tile also as tiles; each of these is a view. Pixels are read
once to take the fingerprints, and again only for the few views that a match is to be verified on.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from geomim.corpus.comparison.sides import Side
from geomim.corpus.duplicates.blocks import block_hashes
from geomim.corpus.duplicates.fingerprint import block_means, content_hash, perceptual_hash
from geomim.corpus.duplicates.votes import Blocks
from geomim.corpus.pipeline.executor import Workers
from geomim.corpus.quality import assess
from geomim.corpus.scenes import Scene
from geomim.corpus.slicing import starts
from geomim.corpus.sources.items import Item
from geomim.corpus.store import Corpus
from geomim.errors import CorpusError, GeomimError, InputError
from geomim.sensors import Sensor, match_bands

VIEWS = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("item", pa.string(), nullable=False),
        pa.field("split", pa.string()),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("col", pa.int64(), nullable=False),
        pa.field("height", pa.int64(), nullable=False),
        pa.field("width", pa.int64(), nullable=False),
        pa.field("whole", pa.bool_(), nullable=False),
        pa.field("xxh3", pa.string(), nullable=False),
        pa.field("phash", pa.uint64(), nullable=False),
        pa.field("low_information", pa.bool_(), nullable=False),
        pa.field("geometry", pa.binary()),
        pa.field("sensor", pa.string()),
        pa.field("time", pa.timestamp("us")),
    ]
)
"""A row a view: `id` is that of a corpus's tile, else the place of the view; `item` the image, as a path below the
folder that was given; `row`, `col`, `height`, `width` the window in it; `low_information`: its hash means nothing.
`geometry` is the outline of a whole image, or, where it is too large to be seen as one, that of each window."""

WHOLE = 2**26
"""Pixels of the largest image that is also seen as a whole, beside tiles of it: 67 million."""
_PER_TASK = 256  # images
_PIXELS_A_BLOCK = 4096  # 16 patches for 256 x 256 pixels; smaller views have 16 too


class Reader(Protocol):
    """Reads the pixels of views."""

    def __call__(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """Pixels `(C, h, w)` of a view, and which of them are measurements `(h, w)`."""
        ...

    def some(self, places: np.ndarray) -> Reader:
        """A reader of these views alone, counted from 0: small enough to be sent to another process."""
        ...


@dataclass(frozen=True)
class Collection:
    """Fingerprints of one side.

    Attributes:
        name: How to call it.
        views: Rows of `VIEWS`.
        read: Reads the pixels of a view.
        sensor: What the pixels are, or None where there is none in common with the other side.
        items: How many images were read.
        unreadable: Images that could not be read, and why.
        paths: The file of each view that is one, so that nothing is compared with itself.
    """

    name: str
    views: pa.Table
    read: Reader = field(repr=False)
    sensor: Sensor | None
    items: int
    unreadable: tuple[tuple[str, str], ...] = ()
    paths: tuple[str, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.views)


def collect(of: Side, bands: Sequence[str], tile: int, workers: Workers) -> Collection:
    """Take the fingerprints of one side.

    Args:
        of: What the user named.
        bands: Bands to look at; all sides of a comparison must look at the same ones. Empty: only places count.
        tile: Edge in pixels; larger images are also seen as tiles of this size.
        workers: Runs it.

    Raises:
        InputError: Nothing of it can be read.
    """
    if of.corpus is not None:
        return _collect_tiles(of, of.corpus, bands, workers)
    chunks = [of.items[start : start + _PER_TASK] for start in range(0, len(of.items), _PER_TASK)]
    calls = [(of, chunk, tuple(bands), tile) for chunk in chunks]
    parts = workers.run(f"reading {of.name}", fingerprint, calls, inline=len(of.items) < _PER_TASK)
    rows = [row for part in parts for row in part[0]]
    unreadable = tuple(one for part in parts for one in part[1])
    if not rows:
        uri, reason = unreadable[0]
        raise InputError(f"none of the {len(of.items)} images of '{of.given}' can be read, such as '{uri}': {reason}")
    root = _root([item.uri for item in of.items])
    paths = tuple(row["item"] for row in rows)
    for place, row in enumerate(rows):
        row |= {"id": place, "item": os.path.relpath(row["item"], root) if root else row["item"]}
    views = pa.Table.from_pylist(rows, VIEWS)
    read = _ImageReader(of, {item.uri: item for item in of.items}, paths, views, tuple(bands))
    sensor = of.found()
    shown = sensor.select(bands) if sensor and bands else None
    return Collection(of.name, views, read, shown, len(of.items) - len(unreadable), unreadable, paths)


def _root(uris: Sequence[str]) -> str:
    """Folder that all files lie in; "" for addresses."""
    if any("://" in uri or uri.startswith("/vsi") for uri in uris):
        return ""
    return os.path.commonpath([os.path.dirname(uri) for uri in uris]) or "."


def fingerprint(
    of: Side, items: Sequence[Item], bands: tuple[str, ...], tile: int
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Views of some images, as rows of `VIEWS`, and those that cannot be read; a task."""
    rows: list[dict[str, Any]] = []
    unreadable = []
    for item in items:
        try:
            with of.open(item) as scene:
                rows.extend(_views(item, scene, bands, tile))
        except GeomimError as error:
            unreadable.append((item.uri, str(error)))
    return rows, unreadable


def _views(item: Item, scene: Scene, bands: tuple[str, ...], tile: int) -> list[dict[str, Any]]:
    from rasterio.windows import Window

    chosen = match_bands(bands, scene.sensor.bands) if bands else []
    windows = _windows(scene.height, scene.width, tile)
    if (0, 0, scene.height, scene.width) in windows:
        outlines = [scene.footprint(), *[None] * (len(windows) - 1)]  # the tiles of it lie in the same place
    else:
        outlines = scene.footprints([Window(col, row, width, height) for row, col, height, width in windows]).tolist()
    rows = []
    for (row, col, height, width), outline in zip(windows, outlines, strict=True):
        pixels, valid = scene.read_valid(Window(col, row, width, height))
        rows.append(
            {
                "item": item.uri,
                "split": item.split,
                "row": row,
                "col": col,
                "height": height,
                "width": width,
                "whole": (height, width) == (scene.height, scene.width),
                "geometry": None if outline is None else outline.wkb,
                "sensor": scene.sensor.name,
                "time": scene.time,
                **fingerprints(pixels[chosen], valid),
            }
        )
    return rows


def fingerprints(pixels: np.ndarray, valid: np.ndarray) -> dict[str, Any]:
    """Hashes of one view.

    Args:
        pixels: `(C, h, w)`; without bands nothing is hashed.
        valid: `(h, w)` bool.
    """
    if not len(pixels):
        return {"xxh3": "", "phash": 0, "low_information": True}
    quality = assess(pixels[None], valid[None])
    means = block_means(pixels[None], valid[None])
    return {
        "xxh3": content_hash(pixels),
        "phash": int(perceptual_hash(means)[0]),
        "low_information": bool(np.ravel(quality.low_information)[0])
        or float(np.ravel(quality.valid_fraction)[0]) < 0.5,
    }


def _windows(height: int, width: int, tile: int) -> list[tuple[int, int, int, int]]:
    """The whole image first, unless it is too large; where it is larger than a tile, tiles that end at its edge."""
    whole = [(0, 0, height, width)]
    if height <= tile and width <= tile:
        return whole
    return (whole if height * width <= WHOLE else []) + [
        (row, col, min(tile, height), min(tile, width))
        for row in starts(height, tile, tile, "shift")
        for col in starts(width, tile, tile, "shift")
    ]


@dataclass(frozen=True)
class _ImageReader:
    """Reads views of images."""

    of: Side
    items: dict[str, Item]
    paths: tuple[str, ...]
    views: pa.Table
    bands: tuple[str, ...]

    def __call__(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        from rasterio.windows import Window

        row, col, height, width = (self.views[name][place].as_py() for name in ("row", "col", "height", "width"))
        with self.of.open(self.items[self.paths[place]]) as scene:
            pixels, valid = scene.read_valid(Window(col, row, width, height))
            return pixels[match_bands(self.bands, scene.sensor.bands)], valid

    def some(self, places: np.ndarray) -> _ImageReader:
        """A reader of these views alone."""
        paths = tuple(self.paths[place] for place in places.tolist())
        items = {path: self.items[path] for path in paths}
        return _ImageReader(replace(self.of, items=()), items, paths, self.views.take(places), self.bands)


def contents(side: Collection) -> np.ndarray:
    """Hash of the pixels of each view, `(n,)` bytes; empty where nothing was hashed."""
    return np.asarray(side.views["xxh3"].to_pylist(), dtype="S32")


def image_names(side: Collection) -> np.ndarray:
    """The file of each view, `(n,)`; that of a tile of a corpus is its source."""
    names = [os.path.realpath(path) for path in side.paths] if side.paths else side.views["item"].to_pylist()
    return np.array(names, object)


def gather_blocks(side: Collection, places: np.ndarray, workers: Workers) -> Blocks:
    """Patches of some views, for crops that overlap; a whole image that is also seen as tiles is left out."""
    places = places[~_tiled(side)[places]]
    chunks = [places[start : start + _PER_TASK] for start in range(0, len(places), _PER_TASK)]
    calls = [(side.read.some(chunk), chunk) for chunk in chunks]
    parts = workers.run(f"looking for corners in {side.name}", take_blocks, calls, inline=len(places) < 4 * _PER_TASK)
    return Blocks(*(np.concatenate(column) for column in zip(_NO_BLOCKS, *parts, strict=True)))


_NO_BLOCKS = (np.empty(0, np.int64), np.empty(0, np.uint64), np.empty((0, 2), np.int16), np.empty((0, 2), np.int32))


def _tiled(side: Collection) -> np.ndarray:
    """Views of whole images that are seen as tiles too, `(n,)` bool."""
    if not side.paths:
        return np.zeros(len(side), bool)
    often = Counter(side.paths)
    return side.views["whole"].to_numpy() & np.array([often[path] > 1 for path in side.paths], bool)


def take_blocks(read: Reader, places: np.ndarray) -> tuple[np.ndarray, ...]:
    """Patches of some views as the columns of `Blocks`; a task. `read` counts them from 0."""
    tiles, hashes, corners, shapes = [], [], [], []
    for number, place in enumerate(places.tolist()):
        pixels, valid = read(number)
        found, xy = block_hashes(pixels.mean(0, dtype=np.float32), valid, max(16, valid.size // _PIXELS_A_BLOCK))
        tiles.append(np.full(len(found), place, np.int64))
        hashes.append(found)
        corners.append(xy)
        shapes.append(np.tile(np.array(valid.shape, np.int32), (len(found), 1)))
    return tuple(np.concatenate(column) for column in (tiles, hashes, corners, shapes))


def _collect_tiles(of: Side, corpus: Corpus, bands: Sequence[str], workers: Workers) -> Collection:
    table = corpus.table(where=pc.field("split").isin(list(of.splits)) if of.splits else None)
    read = CorpusReader(corpus, table, tuple(bands))
    columns = {name: table[name] for name in ("id", "split", "xxh3", "geometry", "sensor", "time")} | {
        "item": table["source"],
        "row": pc.fill_null(table["row"], 0),
        "col": pc.fill_null(table["col"], 0),
        "height": table["size"],
        "width": table["size"],
        "whole": pa.array(np.ones(len(table), bool)),
        "phash": pa.array(table["phash"].to_numpy().view(np.uint64)),
        "low_information": pc.or_(table["low_information"], pc.less(table["valid_fraction"], 0.5)),
    }
    views = pa.table({name: columns[name] for name in VIEWS.names}).cast(VIEWS)
    if bands and tuple(bands) != corpus.sensor.names:  # stored hashes are of all bands
        views = _rehash(views, read, workers)
    return Collection(of.name, views, read, corpus.sensor.select(bands) if bands else None, len(table))


def _rehash(views: pa.Table, read: Reader, workers: Workers) -> pa.Table:
    """Hashes of the tiles over some bands only."""
    count = len(views)
    chunks = [np.arange(start, min(start + _PER_TASK, count)) for start in range(0, count, _PER_TASK)]
    calls = [(read.some(chunk), len(chunk)) for chunk in chunks]
    parts = workers.run("hashing tiles over the common bands", _hash_views, calls, inline=count < 4 * _PER_TASK)
    rows = [row for part in parts for row in part]
    for name in ("xxh3", "phash", "low_information"):
        place = views.schema.get_field_index(name)
        values = pa.array([row[name] for row in rows], VIEWS.field(name).type)
        views = views.set_column(place, VIEWS.field(name), values)
    return views


def _hash_views(read: Reader, count: int) -> list[dict[str, Any]]:
    return [fingerprints(*read(place)) for place in range(count)]


class CorpusReader:
    """Reads tiles of a corpus by their place in a table.

    Args:
        corpus: Where they are.
        table: Rows of its catalogue.
        bands: Names of the bands to read, in order.
    """

    def __init__(self, corpus: Corpus, table: pa.Table, bands: tuple[str, ...]) -> None:
        self._path = corpus.path
        self._sizes: np.ndarray = table["size"].to_numpy()
        self._slots: np.ndarray = table["slot"].to_numpy()
        self._chosen = match_bands(bands, corpus.sensor.bands) if bands else []
        self._arrays = {size: (corpus.array("image", size), corpus.array("valid", size)) for size in corpus.sizes}

    def __call__(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """Pixels `(C, h, w)` and validity `(h, w)`."""
        slot, size = int(self._slots[place]), int(self._sizes[place])
        image, valid = self._arrays[size]
        if slot < 0 or image is None:
            raise CorpusError(f"'{self._path}' lacks the pixels of some of its {size} px tiles: build the corpus again")
        pixels = image.read([slot])[0][self._chosen]
        return pixels, np.ones(pixels.shape[1:], bool) if valid is None else valid.read([slot])[0].astype(bool)

    def some(self, places: np.ndarray) -> CorpusReader:
        """A reader of these tiles alone."""
        part = copy(self)
        part._sizes, part._slots = self._sizes[places], self._slots[places]
        return part
