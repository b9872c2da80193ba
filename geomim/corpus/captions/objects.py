"""Objects in tiles: from the boxes of the catalogue, and from the connected parts of label masks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely

from geomim.corpus.captions.grammar import Noun, noun
from geomim.corpus.captions.seen import FACTS, outline, read_valid, within
from geomim.corpus.store import IGNORE, Corpus
from geomim.errors import CorpusError, InputError

NOTHING = frozenset(
    "background other others unknown unlabeled unlabelled unclassified nodata ignore void clutter none"
    " unchanged".split()
)
"""Classes that are no objects, unless `names` says what they are called; and all that begin with `no`, `non`, `not`."""
_READ = 64  # masks at once
_FLAT = 1e-6  # square pixels of a box whose corners lie on one line, by rounding


@dataclass
class Objects:
    """Objects of some tiles, tile after tile.

    Attributes:
        tile: `(n,)` place of the tile.
        kind: `(n,)` place in `nouns`.
        centre: `(n, 2)` mean of the corners in pixels of the tile, x from left, y from top.
        length: `(n,)` longest edge in pixels.
        cut: `(n,)` whether it reaches to less than a pixel from the tile's border, or from what of the tile is not
            valid: nobody knows whether it goes on there.
        nouns: What the classes are called.
    """

    tile: np.ndarray
    kind: np.ndarray
    centre: np.ndarray
    length: np.ndarray
    cut: np.ndarray
    nouns: list[Noun]

    def by_tile(self) -> Iterator[tuple[int, Objects]]:
        """The objects of each tile that has some."""
        starts = np.flatnonzero(np.diff(self.tile, prepend=-1)).tolist()
        for start, end in pairwise([*starts, len(self.tile)]):
            own = slice(start, end)
            parts = (self.kind, self.centre, self.length, self.cut)
            yield int(self.tile[start]), Objects(self.tile[own], *(part[own] for part in parts), self.nouns)


def called(classes: list[str | None], names: Mapping[str, str | None]) -> list[Noun | None]:
    """A noun a class; None for those that are no objects.

    Args:
        classes: Class names; None is an object of no name.
        names: What classes are called instead, or None to leave them out.
    """
    found: list[Noun | None] = []
    words = {spelled(name): value for name, value in names.items()}
    for name in classes:
        given = plain_class(name or "")
        plain = spelled(given)
        nothing = plain in NOTHING or plain.split(" ")[0] in ("no", "non", "not")
        other = words.get(plain, None if nothing else given)
        called_so = names.get(name or "", words.get(spelled(name or ""), other))
        found.append(noun(called_so) if called_so is not None else None)
    return found


def spelled(name: str) -> str:
    """A class name as all its spellings are compared: `Small-Vehicle` is `small vehicle`."""
    return " ".join(re.split(r"[\s_-]+", name.lower().strip(" _-")))


def plain_class(name: str) -> str:
    """A class without the prefix that says of its objects that they are cut off."""
    return name[len(_TRUNCATED) :].lstrip("_- ") if name.lower().startswith(_TRUNCATED) else name


_TRUNCATED = "truncated"  # Truncated_airplane: a class of the Airbus sample


def from_boxes(corpus: Corpus, tiles: pa.Table, names: Mapping[str, str | None], said: Counter[str]) -> Objects:
    """Objects that are boxes, upright or turned.

    Args:
        corpus: Of the tiles.
        tiles: Rows with `id`, `size`, `slot`, `source`, `valid_fraction` and `boxes`.
        names: See `called`.
        said: Counts boxes that are left out: of no area, with their middle outside the tile or in its padding.

    Raises:
        InputError: A box has no four corners, or one that is no number.
    """
    boxes = tiles["boxes"].combine_chunks()
    tile = np.repeat(np.arange(len(tiles)), pc.fill_null(pc.list_value_length(boxes), 0).to_numpy())
    flat = boxes.flatten()
    polygons, labels = (pc.struct_field(flat, name) for name in ("polygon", "label"))
    numbers = pc.fill_null(pc.list_value_length(polygons), 0).to_numpy()
    _refuse(tiles, tile, numbers != 8, "has no four corners x1, y1, ..., x4, y4")
    corners = polygons.flatten().to_numpy(zero_copy_only=False).astype(float).reshape(-1, 4, 2)
    _refuse(tiles, tile, ~np.isfinite(corners).all((1, 2)), "has a corner that is no finite number")
    centre, size = corners.mean(1), tiles["size"].to_numpy()[tile]
    length = np.hypot(*np.moveaxis(np.roll(corners, -1, 1) - corners, 2, 0)).max(1)
    label = pc.dictionary_encode(pc.fill_null(labels, ""))
    classes = label.dictionary.to_pylist()
    nouns, kind = called([name or None for name in classes], names), label.indices.to_numpy()
    truncated = np.array([name.lower().startswith(_TRUNCATED) for name in classes], bool)
    flat_ones = shapely.area(_hulls(corners)) < _FLAT
    outside = ((centre < 0) | (centre >= size[:, None])).any(1) & ~flat_ones
    said["boxes of no area are left out"] += int(flat_ones.sum())
    said["boxes are left out, as their middle lies outside the tile"] += int(outside.sum())
    cut, nothing = _hidden(corpus, tiles, tile, corners)
    cut |= truncated[kind] if len(kind) else False
    nothing &= ~flat_ones & ~outside
    said["boxes are left out, as their middle lies where the tile has no measurement"] += int(nothing.sum())
    named = np.array([one is not None for one in nouns], bool)
    use = ~flat_ones & ~outside & ~nothing & (named[kind] if len(kind) else True)
    parts = (part[use] for part in (tile, kind, centre, length, cut))
    return _merged(Objects(*parts, [one or noun("") for one in nouns]))


def _merged(objects: Objects) -> Objects:
    """Classes of one noun as one kind, in the order of their nouns, which no order of tiles changes."""
    nouns = sorted(set(objects.nouns), key=lambda one: (one.one, one.many))
    objects.kind = np.array([nouns.index(one) for one in objects.nouns], int)[objects.kind]
    objects.nouns = nouns
    return objects


def _refuse(tiles: pa.Table, tile: np.ndarray, wrong: np.ndarray, what: str) -> None:
    for row in np.flatnonzero(wrong).tolist():
        place = int(tile[row])
        number = row - int(np.searchsorted(tile, place)) + 1
        source, tile_id = (tiles[name][place].as_py() for name in ("source", "id"))
        raise InputError(f"box {number} of tile {tile_id} of '{source}' {what}: correct the labels and build again")


def _hidden(corpus: Corpus, tiles: pa.Table, tile: np.ndarray, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which boxes are not seen whole, and of which not even the middle is seen.

    The catalogue keeps a box that lies across a tile's border whole, where its middle is inside. At the border of a
    scene publishers clip boxes, so that those of objects that go on end there.

    Args:
        corpus: Of the tiles.
        tiles: As for `from_boxes`.
        tile: `(n,)` place of the tile, sorted.
        corners: `(n, 4, 2)`.
    """
    low, high = corners.min(1), corners.max(1)
    cut = ((low < 1) | (high > tiles["size"].to_numpy()[tile, None] - 1)).any(1)
    nothing = np.zeros(len(cut), bool)
    for place, facts in enumerate(tiles.select(FACTS).to_pylist()):
        own = slice(*np.searchsorted(tile, [place, place + 1]))
        valid = read_valid(corpus, facts) if own.start < own.stop else None
        if valid is not None:
            cut[own] = ~shapely.covers(outline(within(valid)), _hulls(corners[own]))
            col, row = corners[own].mean(1).clip(0, facts["size"] - 1).astype(int).T
            nothing[own] = ~valid[row, col]
    return cut, nothing


def _hulls(corners: np.ndarray) -> np.ndarray:
    """Boxes as polygons, whatever the order of their corners `(n, 4, 2)`."""
    return shapely.convex_hull(shapely.multipoints(corners))


def from_masks(
    corpus: Corpus, tiles: pa.Table, names: Mapping[str, str | None], said: Counter[str], min_area: int
) -> Objects:
    """Mask-to-Box of RemoteCLIP (Section III-B): the upright box around each connected part of a class.

    Parts are 8-connected, as the outer contours of Suzuki's border following are; holes do not matter.

    Args:
        corpus: Of the tiles; its `classes` are those of its masks.
        tiles: Rows with `id`, `size`, `slot`, `source` and `valid_fraction`.
        names: See `called`.
        said: Counts parts that are left out.
        min_area: Least pixels of a part.

    Raises:
        CorpusError: A mask is of another size than its tile, or holds a class that has no name.
    """
    from scipy import ndimage

    nouns, found = called(list(corpus.classes), names), []
    facts = tiles.select(FACTS).to_pylist()
    for place, mask in masks(corpus, tiles):
        valid = read_valid(corpus, facts[place])
        valid = np.ones(mask.shape, bool) if valid is None else valid
        border = ~within(valid)
        for number in np.unique(mask).tolist():
            if number == IGNORE or nouns[number] is None:
                continue
            parts, count = ndimage.label(mask == number, np.ones((3, 3)))
            parts[~valid] = 0  # after they were told apart: nodata does not divide an object
            areas, cut = (np.bincount(parts[where], minlength=count + 1)[1:] for where in (valid, border))
            said[f"parts smaller than {min_area} pixels are left out"] += int(((areas > 0) & (areas < min_area)).sum())
            places = ndimage.find_objects(parts)
            for one in np.flatnonzero(areas >= min_area).tolist():
                rows, cols = places[one]
                found.append((place, number, cols.start, rows.start, cols.stop, rows.stop, cut[one] > 0))
    table = np.array(found, int).reshape(-1, 7)
    tile, kind, box, cut = table[:, 0], table[:, 1], table[:, 2:6].astype(float), table[:, 6] > 0
    sides = box[:, 2:] - box[:, :2]
    own = [one or noun("") for one in nouns]
    return _merged(Objects(tile, kind, box[:, :2] + sides / 2, sides.max(1, initial=0), cut, own))


def masks(corpus: Corpus, tiles: pa.Table) -> Iterator[tuple[int, np.ndarray]]:
    """Place and mask `(H, W)` uint8 of each tile that has one.

    Raises:
        CorpusError: A mask is of another size than its tile, or holds a class that has no name.
    """
    sizes, slots = tiles["size"].to_numpy(), tiles["slot"].to_numpy()
    for size in np.unique(sizes).tolist():
        array = corpus.array("mask", size)
        if array is None:
            continue
        if array.shape[1:] != (size, size):
            raise CorpusError(
                f"'{array.path}' holds masks of {' x '.join(map(str, array.shape[1:]))} pixels for tiles of {size} x "
                f"{size}: build the corpus again"
            )
        own = np.flatnonzero((sizes == size) & (slots >= 0))
        for start in range(0, len(own), _READ):
            places = own[start : start + _READ]
            for place, mask in zip(places.tolist(), array.read(slots[places]), strict=True):
                numbers = np.unique(mask)
                unknown = numbers[(numbers >= len(corpus.classes)) & (numbers != IGNORE)]
                if len(unknown):
                    source, tile = (tiles[name][place].as_py() for name in ("source", "id"))
                    raise CorpusError(
                        f"the mask of tile {tile} of '{source}' holds class {unknown[0]}, and the corpus names "
                        f"{len(corpus.classes)} ({', '.join(corpus.classes)}): build it again with all classes named"
                    )
                if len(numbers) > 1 or numbers[0] != IGNORE:
                    yield place, mask
