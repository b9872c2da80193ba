"""The loops of `hamming`, compiled: keys, sorting by key, and pairs of near keys."""

from __future__ import annotations

import numba
import numpy as np
from numba.extending import intrinsic

_BLOCK = 1024  # keys that are walked at once: with their hashes they fit into the nearest caches


@numba.njit(cache=True, nogil=True)
def key_of(hash_, bits):  # pragma: no cover - compiled
    """The bits at some places, the first one lowest."""
    key = np.uint64(0)
    for place in range(len(bits)):
        key |= ((hash_ >> bits[place]) & np.uint64(1)) << np.uint64(place)
    return np.int64(key)


@numba.njit(cache=True, nogil=True)
def keys_of(hashes, bits):  # pragma: no cover - compiled
    """Key of each hash, `(n,)` uint32."""
    keys = np.empty(len(hashes), np.uint32)
    for n in range(len(hashes)):
        keys[n] = key_of(hashes[n], bits)
    return keys


@numba.njit(cache=True, nogil=True)
def sort(hashes, bits, order, starts, sorted_):  # pragma: no cover - compiled
    """Counting sort by key; while hashes are placed, `starts[key]` is the end of what is placed, shifted by one key."""
    for n in range(len(hashes)):
        starts[key_of(hashes[n], bits) + 1] += 1
    total = 0
    for key in range(len(starts) - 1):
        count = starts[key + 1]
        starts[key + 1] = total
        total += count
    for n in range(len(hashes)):
        key = key_of(hashes[n], bits) + 1
        order[starts[key]] = n
        sorted_[starts[key]] = hashes[n]
        starts[key] += 1


@intrinsic
def ones(_context, number):  # pragma: no cover - compiled
    """Number of ones in a uint64, one instruction."""

    def code(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return numba.types.uint64(numba.types.uint64), code


@numba.njit(cache=True, nogil=True)
def scan(
    hashes, places, keys, begins, others, other_places, other_starts, masks, earlier, radii, radius, most, limit,
    pairs, distances, tally,
):  # pragma: no cover - compiled  # fmt: skip
    """Pairs of some keys with all near keys; counts on where `pairs` is full, up to `limit`.

    `tally` counts the pairs of each hash; one that has more than `most` is left at that.
    """
    found = 0
    first = begins[0]
    tally[:] = 0
    for block in range(0, len(keys), _BLOCK):
        for mask in masks:
            for n in range(block, min(block + _BLOCK, len(keys))):
                other = keys[n] ^ mask
                begin, stop = other_starts[other], other_starts[other + 1]
                for a in range(begins[n], begins[n + 1]):
                    hash_ = hashes[a]
                    if tally[a - first] > most or not _any_near(hash_, others, begin, stop, radius):
                        continue
                    for b in range(begin, stop):
                        if ones(hash_ ^ others[b]) > radius or _seen(hash_ ^ others[b], earlier, radii):
                            continue
                        if found < len(pairs):
                            pairs[found, 0], pairs[found, 1] = places[a], other_places[b]
                            distances[found] = ones(hash_ ^ others[b])
                        found += 1
                        if found > limit:
                            return found
                        tally[a - first] += 1
                        if tally[a - first] > most:
                            break
    return found


@numba.njit(cache=True, nogil=True)
def _any_near(hash_, others, begin, stop, radius):  # pragma: no cover - compiled
    """Without a branch inside, so that several are compared at once."""
    near = 0
    for b in range(begin, stop):
        near += ones(hash_ ^ others[b]) <= radius
    return near > 0


@numba.njit(cache=True, nogil=True)
def _seen(difference, earlier, radii):  # pragma: no cover - compiled
    """Whether an earlier band finds the pair."""
    for band in range(len(earlier)):
        if ones(difference & earlier[band]) <= radii[band]:
            return True
    return False
