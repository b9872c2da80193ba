from functools import cache

import numpy as np
import pytest

from geomim.corpus.duplicates.fingerprint import orientations
from geomim.corpus.duplicates.hamming import Band, index_band
from geomim.corpus.duplicates.votes import (
    Blocks,
    choose_form_bands,
    composed,
    crop_matches,
    crop_pairs,
    search_forms,
    upright,
)


def hashes_with_kin(count=3000, seed=0):
    """Random hashes, and as many that are some of them turned and with up to six bits changed."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 2**63, count, np.uint64) << np.uint64(1)
    second = orientations(first)[rng.integers(0, 8, count), np.arange(count)]
    for _ in range(6):
        flip = np.uint64(1) << rng.integers(1, 64, count).astype(np.uint64)
        second = np.where(rng.random(count) < 0.5, second ^ flip, second)
    return np.concatenate([first, second])


@cache
def all_near():
    """Every pair of hashes within six bits when the first is turned: both places, the turn, the bits that differ."""
    hashes, found = hashes_with_kin(), []
    for k, turned in enumerate(orientations(hashes)):
        differ = np.bitwise_count(turned[:, None] ^ hashes[None])
        query, place = np.nonzero(differ <= 6)
        found.append((query, place, np.full(len(query), k), differ[query, place]))
    return [np.concatenate(column) for column in zip(*found, strict=True)]


@pytest.mark.parametrize("radius", [0, 1, 2, 4, 6])
def test_a_search_of_forms_finds_what_eight_searches_of_hashes_find(radius):
    hashes = hashes_with_kin()
    forms, flips = upright(hashes)
    bands = choose_form_bands(len(forms), radius)
    found = set()
    for k in range(8):
        for which, band in enumerate(bands):
            query, place = search_forms(forms, k, bands, which, index_band(forms, band), 10**6)
            turn = composed(np.full(len(query), k), flips[place], flips[query])
            new = set(zip(query.tolist(), place.tolist(), turn.tolist(), strict=True))
            assert not found & new
            found |= new
    *pairs, differ = all_near()
    brute = set(zip(*(column[differ <= radius].tolist() for column in pairs), strict=True))
    assert found == brute and len(brute) > len(hashes)


def test_a_crowd_has_one_entry_and_does_not_hide_others():
    rng = np.random.default_rng(0)
    crowd = upright(np.unique(np.uint64(0x123456789ABCDEF0) ^ (np.uint64(1) << np.arange(10, 60, dtype=np.uint64))))[0]
    alone = upright(rng.integers(0, 2**63, 500, np.uint64))[0]
    forms = np.unique(np.concatenate([crowd, alone]))
    bands = (Band((), 4),)  # all with all
    query, place = search_forms(forms, 0, bands, 0, index_band(forms, bands[0]), 20)
    full = np.isin(forms[query], crowd)
    assert full.sum() == 50 and (place[full] == -1).all()
    assert np.array_equal(query[~full], place[~full]) and (~full).sum() == len(alone)


def test_a_patch_of_a_crowd_has_no_say_on_either_side():
    xy, shape = np.full((30, 2), 50, np.int16), np.full((30, 2), 100, np.int32)
    blocks = Blocks(np.arange(30), np.full(30, 0x0123456789ABCDE2, np.uint64), xy, shape)
    assert len(crop_pairs(blocks, min_votes=1, crowd=30).one) == 30 * 29 // 2
    assert len(crop_pairs(blocks, min_votes=1, crowd=29).one) == 0
    one = blocks[np.arange(2)]
    assert len(crop_matches(one, blocks, min_votes=1, crowd=30).one) == 60
    assert len(crop_matches(one, blocks, min_votes=1, crowd=29).one) == 0
    assert len(crop_matches(blocks, one, min_votes=1, crowd=29).one) == 0
