from itertools import pairwise

import numpy as np
import pytest

from geomim.corpus.duplicates import hamming
from geomim.corpus.duplicates.hamming import (
    Band,
    BandIndex,
    choose_bands,
    cross_pairs,
    index_band,
    search_band,
)
from geomim.errors import CorpusError


def brute_force(queries, hashes, radius):
    distance = np.bitwise_count(queries[:, None] ^ hashes[None])
    near = distance <= radius
    if queries is hashes:
        near = np.triu(near, 1)
    return np.argwhere(near), distance[near]


def flipped(hashes, bits, rng):
    for _ in range(bits):
        hashes = hashes ^ (np.uint64(1) << rng.integers(0, 64, len(hashes), dtype=np.uint64))
    return hashes


def planted(kind, count=1200, seed=0):
    """Different hashes with neighbours planted at 0 to 12 bits."""
    rng = np.random.default_rng(seed)
    if kind == "uniform":
        base = rng.integers(0, 2**64, count, dtype=np.uint64)
    elif kind == "skewed":  # a few prototypes, most bits shared: buckets as crowded as those of real hashes, and more
        base = rng.integers(0, 2**64, 5, dtype=np.uint64)[rng.integers(0, 5, count)]
        base = base ^ (rng.integers(0, 2**64, count, dtype=np.uint64) & np.uint64(0x0F0000F0000F00F0))
    else:  # all agree on half of the bits
        base = rng.integers(0, 2**32, count, dtype=np.uint64)
    near = [flipped(base[: count // 12], bits, rng) for bits in range(1, 13)]
    hashes = np.unique(np.concatenate([base, *near]))
    return rng.permutation(hashes)


def bands_of(radius, count):
    """Bands for a radius, with keys as long as those of large joins."""
    share, more = divmod(radius + 1, count)
    return tuple(Band(tuple(range(b, 64, count))[:20], share - 1 + (b < more)) for b in range(count))


def near_pairs(hashes, radius):
    """Each pair within one set once."""
    pairs, distances = cross_pairs(hashes, hashes, radius)
    once = pairs[:, 0] < pairs[:, 1]
    return pairs[once], distances[once]


def in_pieces(hashes, bands, edges):
    for which in range(len(bands)):
        index = index_band(hashes, bands[which])
        for start, stop in pairwise(edges):
            pairs, distances = search_band(bands, which, index, hashes[start:stop])
            yield pairs + np.array([start, 0]), distances


def put_together(pieces):
    pairs, distances = (np.concatenate(list(column)) for column in zip(*pieces, strict=True))
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return pairs[order], distances[order]


@pytest.mark.parametrize("kind", ["uniform", "skewed", "half"])
@pytest.mark.parametrize("radius", [*range(9), 12])
def test_every_pair_is_found(kind, radius):
    hashes = planted(kind)
    pairs, distances = near_pairs(hashes, radius)
    expected, apart = brute_force(hashes, hashes, radius)
    np.testing.assert_array_equal(pairs, expected)
    np.testing.assert_array_equal(distances, apart)
    queries = np.concatenate([flipped(hashes[:200], 3, np.random.default_rng(1)), hashes[:3], hashes[:3]])
    pairs, distances = cross_pairs(queries, hashes, radius)
    expected, apart = brute_force(queries, hashes, radius)
    np.testing.assert_array_equal(pairs, expected)
    np.testing.assert_array_equal(distances, apart)


@pytest.mark.parametrize("kind", ["uniform", "skewed"])
@pytest.mark.parametrize("radius, count", [(0, 1), (3, 1), (3, 2), (4, 3), (4, 5), (8, 3), (8, 4), (8, 9)])
def test_any_bands_and_any_pieces_find_the_same_without_repeats(kind, radius, count):
    hashes = planted(kind, 600)
    bands = bands_of(radius, count)
    expected, apart = brute_force(hashes.copy(), hashes, radius)
    for edges in ([0, len(hashes)], [0, 100, 350, len(hashes)], [*range(0, len(hashes), 90), len(hashes)]):
        pairs, distances = put_together(in_pieces(hashes, bands, edges))
        np.testing.assert_array_equal(pairs, expected)
        np.testing.assert_array_equal(distances, apart)


def test_many_queries_are_searched_a_piece_at_a_time(monkeypatch):
    hashes = planted("skewed")
    expected, apart = near_pairs(hashes, 6)
    monkeypatch.setattr(hamming, "_PIECE", 50)
    pairs, distances = near_pairs(hashes, 6)
    np.testing.assert_array_equal(pairs, expected)
    np.testing.assert_array_equal(distances, apart)


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("radius", [2, 4, 12])
def test_few_hashes(count, radius):
    hashes = np.array([5, 4], np.uint64)[:count]
    pairs, distances = near_pairs(hashes, radius)
    assert pairs.shape == (count == 2 and radius > 0, 2) and pairs.dtype == np.int64
    assert distances.dtype == np.uint8
    pairs, _ = cross_pairs(hashes, np.array([5], np.uint64), radius)
    assert len(pairs) == min(count, 1 + (radius > 0))
    assert len(put_together(in_pieces(hashes, bands_of(radius, 3), [0, 0, 1, 2]))[0]) == count * (
        1 + (count == 2 and radius > 0)
    )


def test_extreme_bits_are_searched():
    hashes = np.array([0, 1 << 63, 1, 2**64 - 1, 2**64 - 2], np.uint64)
    pairs, _ = near_pairs(hashes, 2)
    assert pairs.tolist() == [[0, 1], [0, 2], [1, 2], [3, 4]]


def test_bands_complete_each_other_and_share_no_bit():
    for count in (1, 1000, 100_000, 10**6, 10**7, 10**9):
        for radius in range(13):
            bands = choose_bands(count, radius)
            assert sum(band.radius + 1 for band in bands) >= radius + 1
            bits = [bit for band in bands for bit in band.bits]
            assert len(bits) == len(set(bits))
    assert choose_bands(100, 4) == (Band((), 4),)  # comparing all is fastest
    assert len(choose_bands(10**7, 8)) == 3 and len(choose_bands(10**6, 8)) == 4  # as measured


def test_an_index_is_a_stable_sort_by_key():
    hashes = np.random.default_rng(0).integers(0, 2**64, 5000, dtype=np.uint64)
    band = Band((3, 20, 41, 63), 1)
    index = index_band(hashes, band)
    key = sum(((hashes >> np.uint64(bit)) & np.uint64(1)).astype(int) << place for place, bit in enumerate(band.bits))
    np.testing.assert_array_equal(index.order, np.argsort(key, kind="stable"))
    np.testing.assert_array_equal(index.starts, np.searchsorted(np.sort(key), np.arange(17)))
    np.testing.assert_array_equal(index.hashes, hashes[index.order])


def test_an_index_can_be_stored_and_mapped(tmp_path):
    hashes = planted("uniform")
    bands = bands_of(8, 3)
    expected = search_band(bands, 1, index_band(hashes, bands[1]), hashes)
    names = ("order", "starts", "hashes")
    for name in names:
        np.save(tmp_path / name, getattr(index_band(hashes, bands[1]), name))
    mapped = BandIndex(*(np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in names))
    np.testing.assert_array_equal(search_band(bands, 1, mapped, hashes)[0], expected[0])


def test_too_many_pairs_are_an_error_never_cut_off():
    hashes = np.arange(64, dtype=np.uint64)
    count = len(brute_force(hashes, hashes.copy(), 3)[0])
    assert len(cross_pairs(hashes, hashes, 3, limit=count)[0]) == count
    with pytest.raises(CorpusError, match=f"more than {count - 1:,} pairs of hashes lie within 3 bits"):
        cross_pairs(hashes, hashes, 3, limit=count - 1)
    with pytest.raises(CorpusError, match="more than 10 pairs"):
        cross_pairs(hashes, hashes, 2, limit=10)
    with pytest.raises(CorpusError, match=r"0\.\.12 bits, given 13"):
        near_pairs(hashes, 13)
