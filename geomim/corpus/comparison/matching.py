"""What two sets of images have in common: copies, near-copies in any orientation, crops that overlap, equal places."""

from __future__ import annotations

import os
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely

from geomim.corpus.comparison.collection import Collection, contents, image_names
from geomim.corpus.comparison.likeness import CELLS, MIN_LIKENESS, details, likeness
from geomim.corpus.comparison.parts import BACK, Crops, find_parts
from geomim.corpus.duplicates.fingerprint import orientations
from geomim.corpus.duplicates.geometry import same_day
from geomim.corpus.duplicates.hamming import cross_pairs
from geomim.corpus.pipeline.edges import EDGES, edge_table
from geomim.corpus.pipeline.executor import Workers
from geomim.errors import CorpusError, InputError

MATCHES = EDGES
"""A row a pair of views, `a` of one side and `b` of the other, and a way in which they match. `kind` is one of `KINDS`;
`distance` in bits, -1 where no hash decides; `orientation` turns `a` so that it looks like `b`; `correlation` of
pixels, NaN unknown; `share` of the smaller one that both hold."""

KINDS = ("exact", "perceptual", "crop", "footprint")
"""How two views match, the most certain first."""

Footprint = Literal["any", "acquisition", "off"]
"""Which footprints count: of any date, of one acquisition (the same sensor on the same day), or none."""

MAX_MATCHES = 20_000_000
_AT_ONCE = 10_000  # candidate pairs verified together
_DEGREE = 111_320.0  # metres


def check_buffer(metres: float) -> None:
    """Refuse footprints that would vanish, or cover all.

    Raises:
        InputError: The buffer is negative or no number.
    """
    if not 0 <= metres < np.inf:
        raise InputError(f"--buffer is a number of metres, 0 or more; given {metres}")


def match(
    a: Collection,
    b: Collection,
    workers: Workers,
    radius: int = 8,
    crops: Crops = "thorough",
    footprint: Footprint = "any",
    buffer: float = 0.0,
) -> pa.Table:
    """Find everything that two sets have in common.

    Exact copies stand for each other: of every group each copy is listed with the first one of the other side.
    Tiles of little information (water, sand, haze) are compared exactly and by place only, for their perceptual hash
    means nothing.

    Args:
        a: One side.
        b: The other; where it is `a` itself, pairs within it are found, each once.
        workers: Runs what reads many pixels.
        radius: Bits in which perceptual hashes may differ, 0 to 12.
        crops: How to look for parts that overlap at any offset; see `parts.Crops`.
        footprint: Which footprints count.
        buffer: Metres by which the footprints of `b` grow.

    Returns:
        Rows of `MATCHES`, sorted by kind, then by certainty.

    Raises:
        CorpusError: The radius is out of range, or so many pairs are alike that a list of them makes no sense.
    """
    found = [_exact(a, b)]
    one, two = _representatives(a), _representatives(b)
    low = [side.views["low_information"].to_numpy() for side in (a, b)]
    usable_a, usable_b = one[~low[0][one]], two[~low[1][two]]
    near = _perceptual(a, b, usable_a, usable_b, radius)
    found.append(_spread(near, a, b))
    if crops != "off":
        parts = _best(find_parts(a, b, usable_a, usable_b, crops, workers))
        unknown = ~np.isin(*(table["a"].to_numpy() << 32 | table["b"].to_numpy() for table in (parts, near)))
        found.append(_spread(parts.filter(pa.array(unknown)), a, b))
    if footprint != "off":
        found.append(_footprints(a, b, footprint, buffer))
    table = _without_itself(pa.concat_tables(found), a, b)
    if len(table) > MAX_MATCHES:
        raise CorpusError(f"{len(table):,} pairs of '{a.name}' and '{b.name}' match: nearly all images are alike")
    return order(table)


def order(table: pa.Table) -> pa.Table:
    """Sort matches: the most certain kind first, then by distance, correlation and share."""
    ranked = table.append_column("rank", pc.index_in(table["kind"], value_set=pa.array(KINDS)))
    ways = [("rank", "ascending"), ("distance", "ascending"), ("correlation", "descending"), ("share", "descending")]
    return table.take(pc.sort_indices(ranked, [*ways, ("a", "ascending"), ("b", "ascending")]))


def _representatives(side: Collection) -> np.ndarray:
    """The first view of each content, `(k,)` places."""
    hashes = contents(side)
    _, first = np.unique(hashes, return_index=True)
    return np.sort(first[hashes[first] != b""])


def _exact(a: Collection, b: Collection) -> pa.Table:
    """Copies: each one of `a` with the first of `b`, and each one of `b` with the first of `a`."""
    groups_a, groups_b = _groups(a, b.views["xxh3"]), _groups(b, a.views["xxh3"])
    pairs = set()
    for content in groups_a.keys() & groups_b.keys():
        one, two = groups_a[content], groups_b[content]
        pairs |= {(x, two[0]) for x in one} | {(one[0], y) for y in two}
        if a is not b and len(two) > 1:  # the first of b may be the very file
            pairs |= {(x, two[1]) for x in one}
    if a is b:
        pairs = {(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]}
    places = np.array(sorted(pairs), np.int64).reshape(-1, 2)
    return edge_table(places[:, 0], places[:, 1], "exact", 0, 0, 1.0)


def _groups(side: Collection, among: pa.ChunkedArray) -> dict[str, list[int]]:
    """Places of the views of each content, of those that occur in a list."""
    hashes = side.views["xxh3"]
    places = np.flatnonzero(pc.is_in(hashes, pc.unique(among)).to_numpy())
    groups: dict[str, list[int]] = {}
    for place, content in zip(places.tolist(), hashes.take(places).to_pylist(), strict=True):
        if content:
            groups.setdefault(content, []).append(place)
    return groups


def _perceptual(a: Collection, b: Collection, one: np.ndarray, two: np.ndarray, radius: int) -> pa.Table:
    """Near-copies among views of different content."""
    hashes_a, hashes_b = (side.views["phash"].to_numpy() for side in (a, b))
    queries = orientations(hashes_b[two])
    pairs, distance = cross_pairs(queries.ravel(), hashes_a[one], radius)
    turn, place = np.divmod(pairs[:, 0], max(len(two), 1))
    first, second = one[pairs[:, 1]], two[place]
    wanted = contents(a)[first] != contents(b)[second]
    if a is b:
        wanted &= first < second
    first, second, turn, distance = first[wanted], second[wanted], turn[wanted], distance[wanted]
    correlated = _verify(a, b, first, second, turn)
    good = correlated >= MIN_LIKENESS
    return _best(edge_table(first, second, "perceptual", distance, BACK[turn], correlated).filter(pa.array(good)))


def _verify(a: Collection, b: Collection, first: np.ndarray, second: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Correlation of candidates, `b` turned; pixels of each view of `b` are read once, of `a` once a run of pairs."""
    needed = np.unique(second)
    known = _details(b, needed)
    result = np.empty(len(first), np.float32)
    by_first = np.argsort(first, kind="stable")
    for start in range(0, len(first), _AT_ONCE):
        some = by_first[start : start + _AT_ONCE]
        places, inverse_ = np.unique(first[some], return_inverse=True)
        mine = _details(a, places)[inverse_]
        result[some] = likeness(mine, known[np.searchsorted(needed, second[some])], turn[some])
    return result


def _details(side: Collection, places: np.ndarray) -> np.ndarray:
    read = (details(*side.read(int(place))) for place in places)
    return np.fromiter(read, np.dtype((np.float32, (CELLS, CELLS))), len(places))


def _best(table: pa.Table) -> pa.Table:
    """The best orientation of each pair."""
    ways = [("a", "ascending"), ("b", "ascending"), ("correlation", "descending"), ("distance", "ascending")]
    table = table.sort_by([*ways, ("orientation", "ascending")])
    a, b = table["a"].to_numpy(), table["b"].to_numpy()
    first = np.ones(len(table), bool)
    first[1:] = (np.diff(a) != 0) | (np.diff(b) != 0)
    return table.filter(pa.array(first))


def _spread(table: pa.Table, a: Collection, b: Collection) -> pa.Table:
    """What holds for a view holds for its exact copies: those of `a` with the view of `b`, and the other way round."""
    names = [side.views["xxh3"].take(table[end]) for side, end in ((a, "a"), (b, "b"))]
    groups_a, groups_b = (_groups(side, some) for side, some in zip((a, b), names, strict=True))
    rows: list[dict[str, Any]] = []
    for row, name_a, name_b in zip(table.to_pylist(), *(some.to_pylist() for some in names), strict=True):
        one, two = groups_a[name_a], groups_b[name_b]
        rows.extend(row | {"a": x} for x in one)
        rows.extend(row | {"b": y} for y in two[1:])
    return pa.Table.from_pylist(rows, MATCHES)


def _footprints(a: Collection, b: Collection, which: Footprint, buffer: float) -> pa.Table:
    """Views whose outlines share ground."""
    places_a, shapes_a = _outlines(a)
    places_b, shapes_b = _outlines(b)
    if not len(places_a) or not len(places_b):
        return MATCHES.empty_table()
    grown = np.array([_grow(shape, buffer) for shape in shapes_b]) if buffer else shapes_b
    left, right = shapely.STRtree(shapes_a).query(grown, predicate="intersects")[::-1]
    if a is b:
        left, right = (side[places_a[left] < places_b[right]] for side in (left, right))
    area = shapely.area(shapely.intersection(shapes_a[left], shapes_b[right]))
    smaller = np.minimum(shapely.area(shapes_a)[left], shapely.area(shapes_b)[right])
    share = np.divide(area, smaller, out=np.zeros(len(area)), where=smaller > 0)
    wanted = (share > 1e-3) if not buffer else np.ones(len(share), bool)  # tiles of one grid touch along an edge
    first, second = places_a[left], places_b[right]
    if a.paths and b.paths:  # windows of one image overlap, of course
        names = (image_names(a), image_names(b))
        wanted &= names[0][first] != names[1][second]
    if which == "acquisition":
        wanted &= _same_acquisition(a, b, first, second)
    first, second, share = first[wanted], second[wanted], share[wanted]
    return edge_table(first, second, "footprint", share=share)


def _outlines(side: Collection) -> tuple[np.ndarray, np.ndarray]:
    """Places of the views that have an outline, and the outlines."""
    geometry = side.views["geometry"]
    places = np.flatnonzero(geometry.is_valid().to_numpy(zero_copy_only=False))
    return places, shapely.from_wkb(np.array(geometry.take(places).to_pylist(), object))


def _grow(shape: Any, metres: float) -> Any:
    """A buffer in metres, to a fraction that suits a safety margin: degrees of longitude shrink with latitude."""
    latitude = np.abs(shapely.get_coordinates(shape)[:, 1]).max()
    narrow = max(np.cos(np.radians(min(latitude, 89.0))), 0.01)
    squeezed = shapely.transform(shape, lambda xy: xy * [narrow, 1.0])
    grown = shapely.transform(shapely.buffer(squeezed, metres / _DEGREE), lambda xy: xy / [narrow, 1.0])
    west, _, east, _ = shapely.bounds(grown)
    turns = [turn for turn, beyond in ((360.0, west < -180), (-360.0, east > 180)) if beyond]
    beyond = [shapely.transform(grown, lambda xy, by=turn: xy + np.array([by, 0.0])) for turn in turns]
    return shapely.union_all([grown, *beyond])


def _same_acquisition(a: Collection, b: Collection, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    same = pc.equal(a.views["sensor"].take(first), b.views["sensor"].take(second))
    times = a.views["time"].take(first).to_numpy(), b.views["time"].take(second).to_numpy()
    return pc.fill_null(same, False).to_numpy(zero_copy_only=False) & same_day(*times)


def _without_itself(table: pa.Table, a: Collection, b: Collection) -> pa.Table:
    """Leave out a window of a file beside itself, where both sides hold the file."""
    if a is b or not a.paths or not b.paths:
        return table
    keys_a, keys_b = (_keys(side) for side in (a, b))
    if not set(keys_a) & set(keys_b):
        return table
    pairs = zip(table["a"].to_pylist(), table["b"].to_pylist(), strict=True)
    return table.filter(pa.array([keys_a[i] != keys_b[j] for i, j in pairs], pa.bool_()))


def _keys(side: Collection) -> list[tuple[Any, ...]]:
    columns = (side.views[name].to_pylist() for name in ("row", "col", "height", "width"))
    return list(zip(map(os.path.realpath, side.paths), *columns, strict=True))
