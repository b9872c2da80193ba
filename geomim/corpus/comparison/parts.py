"""Views that hold the same in part, at any offset and in any orientation: proposed by corners, checked on pixels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Literal

import numpy as np
import pyarrow as pa

from geomim.corpus.comparison.collection import Collection, Reader, contents, gather_blocks, image_names
from geomim.corpus.comparison.likeness import CELLS, MIN_LIKENESS, details, likeness
from geomim.corpus.duplicates import votes as voting
from geomim.corpus.duplicates.fingerprint import inverse, orient
from geomim.corpus.pipeline.edges import edge_table
from geomim.corpus.pipeline.executor import Workers

Crops = Literal["off", "fast", "thorough"]
"""How to look for overlapping parts. `fast` compares views of which two corners agree; `thorough` those of which one
does: of 46 overlaps in RSICD it finds all in place of 26, and compares 5,000 pairs in place of 50."""

RADIUS = 6
"""Bits that the hashes of one corner may differ by."""
CROWD = 16
"""Corners that may look alike, in any orientation, before they tell nothing: in RSICD 12 lose a match, and 24 give a
third more candidates and no match more."""
MIN_SHARE = 0.1
"""Share of the smaller view from which an overlap counts."""
_PART = 32  # pixels: a smaller part tells nothing
_CHUNK = 16_384  # views whose corners are held together
_PER_TASK = 1000  # pairs
_CACHED = 256  # views


BACK = np.array([inverse(k) for k in range(8)])
"""How one side of a pair must be turned, by how the other must be."""


def find_parts(
    a: Collection, b: Collection, one: np.ndarray, two: np.ndarray, crops: Crops, workers: Workers
) -> pa.Table:
    """Views of different images and different content that share a part.

    Args:
        a: One side.
        b: The other, or `a` itself.
        one: Places of `a` to look at.
        two: Places of `b`.
        crops: How thoroughly.
        workers: Runs it.

    Returns:
        Rows of `EDGES` of the kind crop; a pair may be there in several orientations.
    """
    names, hashes = [(of(a), of(b)) for of in (image_names, contents)]
    found = []
    for candidates in _propose(a, b, one, two, 2 if crops == "fast" else 1, workers):
        apart = names[0][candidates.one] != names[1][candidates.two]  # windows of one image overlap, of course
        apart &= hashes[0][candidates.one] != hashes[1][candidates.two]
        found.append(_check(a, b, candidates[np.flatnonzero(apart)], workers))
    return pa.concat_tables(found)


def _propose(
    a: Collection, b: Collection, one: np.ndarray, two: np.ndarray, votes: int, workers: Workers
) -> Iterator[voting.Crops]:
    """Candidates; of two different sides a chunk at a time, so that memory does not grow with the first."""
    if a is b:
        yield voting.crop_pairs(gather_blocks(a, one, workers), RADIUS, votes, CROWD)
        return
    theirs = gather_blocks(b, two, workers)
    for start in range(0, max(len(one), 1), _CHUNK):
        mine = gather_blocks(a, one[start : start + _CHUNK], workers)
        yield voting.crop_matches(mine, theirs, RADIUS, votes, CROWD)


def _check(a: Collection, b: Collection, pairs: voting.Crops, workers: Workers) -> pa.Table:
    """The candidates whose pixels agree."""
    calls = []
    for start in range(0, len(pairs.one), _PER_TASK):
        some = pairs[np.arange(start, min(start + _PER_TASK, len(pairs.one)))]
        first, at = np.unique(some.one, return_inverse=True)
        second, to = np.unique(some.two, return_inverse=True)
        calls.append((a.read.some(first), b.read.some(second), at, to, some.orientation, some.offset))
    results = workers.run("comparing parts", compare, calls, inline=len(calls) < 2)
    share, alike = np.concatenate([np.empty((2, 0), np.float32), *results], axis=1)
    good = (share >= MIN_SHARE) & (alike >= MIN_LIKENESS)
    pairs = pairs[np.flatnonzero(good)]
    turn = BACK[pairs.orientation]
    return edge_table(pairs.one, pairs.two, "crop", orientation=turn, correlation=alike[good], share=share[good])


def compare(
    read_one: Reader, read_two: Reader, one: np.ndarray, two: np.ndarray, turn: np.ndarray, offset: np.ndarray
) -> np.ndarray:
    """Share and likeness of the parts that pairs of views have in common; a task.

    Args:
        read_one: Reads views of one side.
        read_two: Reads views of the other.
        one: `(m,)` places, in order.
        two: `(m,)` places.
        turn: `(m,)` 0..7: how `two` must be turned.
        offset: `(m, 2)` column and row in `one` of the first pixel of `two`, turned.

    Returns:
        `(2, m)` float32; 0 where the part is too small to tell.
    """
    first, second = (lru_cache(_CACHED)(partial(_grey, read)) for read in (read_one, read_two))
    share, views = np.zeros(len(one), np.float32), np.zeros((2, len(one), CELLS, CELLS), np.float32)
    for row in range(len(one)):
        grey, valid = first(int(one[row]))
        other, measured = (orient(array, int(turn[row])) for array in second(int(two[row])))
        here, there = common_part(valid.shape, measured.shape, offset[row])
        if min(valid[here].shape) < _PART:
            continue
        share[row] = valid[here].size / min(valid.size, measured.size)
        views[0, row] = details(grey[None][:, *here], valid[here])
        views[1, row] = details(other[None][:, *there], measured[there])
    return np.stack([share, likeness(views[0], views[1], np.zeros(len(one), np.int64))])


def _grey(read: Reader, place: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean of the bands of a view, and what is measured of it."""
    pixels, valid = read(place)
    return pixels.mean(0, dtype=np.float32), valid


def common_part(
    one: tuple[int, ...], two: tuple[int, ...], offset: np.ndarray
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Rows and columns of what two views have in common, in either.

    Args:
        one: Height and width.
        two: Height and width.
        offset: Column and row in `one` of the first pixel of `two`.
    """
    here, there = [], []
    for length, other, start in zip(one, two, (int(offset[1]), int(offset[0])), strict=True):
        low = max(start, 0)
        high = max(min(length, start + other), low)
        here.append(slice(low, high))
        there.append(slice(low - start, high - start))
    return (here[0], here[1]), (there[0], there[1])
