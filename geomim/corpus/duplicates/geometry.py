"""Footprints that overlap: the same ground in the same acquisition, delivered twice.

The rule for near copies and overlaps alike: one ground on different days is new data, no duplicate, unless its pixels
are equal. What one sensor took of one ground on one day is one acquisition, however it is delivered.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely


def same_day(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Whether two times, `(n,)` datetime64 in UTC, may be those of one acquisition; False where one is not known (NaT).

    They are on one day, or less than an hour apart across midnight; a date without a time of day (00:00:00) is its day.
    """
    days = [times.astype("datetime64[D]") for times in (one, two)]
    timed = (one != days[0]) & (two != days[1])
    return (days[0] == days[1]) | (timed & (np.abs(one - two) < HOUR))


HOUR = np.timedelta64(1, "h")


def another_day(one: np.ndarray, two: np.ndarray, times: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Whether tiles show one ground on different days, and so are no duplicates however alike they look.

    What looks alike and lies elsewhere, or has no place (None for a shape) or date (NaT), may be a copy.
    """
    found = ~(np.isnat(times[0]) | np.isnat(times[1]) | same_day(*times))
    found[found] = shapely.area(shapely.intersection(one[found], two[found])) > 0
    return found


def overlapping(
    geometries: Sequence[bytes | None], groups: np.ndarray, sources: np.ndarray, min_share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of tiles whose footprints overlap, of one group but different sources.

    Only an acquisition can repeat itself. Tiles of one source are left out, since their overlap is the stride that was
    asked for.

    Args:
        geometries: `n` footprints as WKB in one planar or geographic reference system; None has no place.
        groups: `(n,)` numbers, equal where sensor and day of acquisition are.
        sources: `(n,)` numbers, equal where the source file is.
        min_share: Least share of the smaller footprint that must be covered, 0..1; touching edges never count.

    Returns:
        Pairs `(m, 2)` int64 of places `i < j`, sorted, and the shares `(m,)` float64. Areas are in the units of the
        reference system: in degrees, the share is right as long as a tile is small against the globe.
    """
    shapes = shapely.from_wkb(np.asarray(geometries, object))
    place = np.flatnonzero(~(shapely.is_missing(shapes) | shapely.is_empty(shapes)))
    place = place[np.argsort(np.asarray(groups)[place], kind="stable")]
    edges = np.flatnonzero(np.diff(np.asarray(groups)[place])) + 1
    found = [np.empty((0, 2), np.int64)]
    for members in np.split(place, edges):
        if len(members) > 1 and (np.asarray(sources)[members] != sources[members[0]]).any():
            one, two = members[shapely.STRtree(shapes[members]).query(shapes[members], "intersects")]
            kept = (one < two) & (np.asarray(sources)[one] != np.asarray(sources)[two])
            found.append(np.stack([one[kept], two[kept]], 1))
    pairs = np.concatenate(found)
    one, two = shapes[pairs[:, 0]], shapes[pairs[:, 1]]
    smaller = np.minimum(shapely.area(one), shapely.area(two))
    shares = shapely.area(shapely.intersection(one, two)) / np.where(smaller > 0, smaller, 1)
    kept = (shares >= min_share) & (shares > 0)
    pairs, shares = pairs[kept], np.minimum(shares[kept], 1)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return pairs[order], shares[order]
