"""What looks at windows, and what is made of it: mirrored, by pixel, for another scale."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from drawn_scenes import CONTRACT

from geomim.maps.walk.looker import Looker

CPU = torch.device("cpu")


def lopsided(cell=4, side=16) -> Looker:
    """A model that answers by what it sees and by where it sees it."""
    count = side // cell
    lean = torch.arange(count * count).view(count, count).float() / count**2

    def look(images, valid):
        seen = torch.nn.functional.avg_pool2d(images[:, 0] * valid[:, 0], cell)
        sure = torch.sigmoid(seen + lean)
        return torch.stack([sure, 1 - sure], 1)

    return Looker(CONTRACT, side, cell, ("a", "b"), "lopsided", look, CPU)


def drawn():
    draws = torch.Generator().manual_seed(0)
    return torch.randn(3, 4, 16, 16, generator=draws), torch.rand(3, 1, 16, 16, generator=draws) > 0.2


def test_flipped_is_the_mean_of_four_looks_each_turned_back():
    looker, (images, valid) = lopsided(), drawn()
    turned = []
    for axes in ([], [-1], [-2], [-2, -1]):
        found = looker.look(torch.flip(images, axes), torch.flip(valid, axes))
        turned.append(torch.flip(found, axes))
    found = looker.flipped().look(images, valid)
    torch.testing.assert_close(found, torch.stack(turned).mean(0))
    assert not torch.allclose(found, turned[0], atol=0.01)
    mirrored = looker.flipped().look(images.flip(-1), valid.flip(-1)).flip(-1)
    torch.testing.assert_close(mirrored, found, msg="it does not matter which way a scene lies")


def test_several_dates_are_mirrored_together():
    def look(images, valid):
        change = (images[:, 1] - images[:, 0])[:, :1]
        return torch.cat([change, change * torch.arange(16)], 1)

    looker, pairs = replace(lopsided(1), look=look, dates=2), torch.randn(2, 2, 4, 16, 16)
    expected = torch.cat([(pairs[:, 1] - pairs[:, 0])[:, :1]] * 2, 1) * torch.tensor([1, 7.5])[:, None, None]
    torch.testing.assert_close(looker.flipped().look(pairs, torch.ones(2, 1, 16, 16, dtype=torch.bool)), expected)


def test_by_pixel_the_middle_of_a_patch_keeps_its_answer_and_between_two_it_goes_over():
    looker, (images, _) = lopsided(), drawn()
    valid = torch.ones(3, 1, 16, 16, dtype=torch.bool)
    patches, pixels = looker.look(images, valid), looker.per_pixel().look(images, valid)
    assert pixels.shape == (3, 2, 16, 16) and looker.per_pixel().side == 16
    middles = pixels.unfold(2, 4, 4).unfold(3, 4, 4)[..., 1:3, 1:3].mean((-2, -1))  # of four pixels around it
    torch.testing.assert_close(middles[..., 1:3, 1:3], _around(patches)[..., 1:3, 1:3], atol=1e-6, rtol=0)
    torch.testing.assert_close(pixels.sum(1), torch.ones(3, 16, 16))
    assert pixels.amin() >= patches.amin() - 1e-6 and pixels.amax() <= patches.amax() + 1e-6
    same = lopsided(1)
    assert same.per_pixel() is same


def test_by_pixel_what_is_said_of_nodata_does_not_reach_into_image():
    def look(images, valid):
        cells = torch.nn.functional.avg_pool2d(images[:, :1], 4)
        return torch.cat([cells, 1 - cells], 1)

    looker = replace(lopsided(), look=look).per_pixel()
    images, valid = torch.zeros(1, 4, 16, 16), torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    images[..., :8], valid[..., :8] = 0.75, True  # right of it is nodata, of which a model says anything
    found = looker.look(images, valid)
    torch.testing.assert_close(found[:, 0, :, :8], torch.full((1, 16, 8), 0.75))
    assert found.dtype == torch.float32 and found.isfinite().all()
    mirrored = looker.flipped().look(images, valid)
    torch.testing.assert_close(mirrored[..., :8], found[..., :8])
    short = replace(lopsided(), look=lambda images, valid: look(images, valid).bfloat16()).per_pixel()
    half = short.look(images, valid)
    assert half.dtype == torch.bfloat16 and (half[:, 0, :, :8] == 0.75).all()


def test_by_pixel_what_no_patch_of_image_is_around_stays_unknown():
    looker, valid = lopsided().per_pixel(), torch.zeros(1, 16, 16, dtype=torch.bool)
    valid[0, :, :9], valid[0, 0, 15] = True, True  # two patches, a column of the third, and a pixel alone
    values, known = looker.on(lambda numbers, valid: (numbers.float(), valid[:, None]))(torch.ones(1, 4, 16, 16), valid)
    assert values.shape == (1, 2, 16, 16) and known[0, :, :9].all() and not known[0, :, 9:].any()
    torch.testing.assert_close(values.sum(1)[known], torch.ones(9 * 16))


def _around(patches):
    """Means of what is 1/8 of a patch to either side of its middle: 7/8 its own, 1/16 of each neighbour."""
    padded = torch.nn.functional.pad(patches, (1, 1, 1, 1), mode="replicate")
    weights = torch.tensor([1 / 16, 7 / 8, 1 / 16])
    kernel = torch.outer(weights, weights).expand(2, 1, 3, 3)
    return torch.nn.functional.conv2d(padded, kernel, groups=2)


def test_positions_follow_the_scene_whatever_else_is_asked_for():
    plain, asked = lopsided(), []

    def scaled(gsd):
        asked.append(gsd)
        return replace(plain, look=lambda images, valid: plain.look(images * gsd, valid))

    looker, scene, (images, valid) = replace(plain, scaled=scaled), SimpleNamespace(gsd=3.0), drawn()
    assert plain.at(scene) is plain
    expected = plain.look(images * 3, valid)
    torch.testing.assert_close(looker.at(scene).look(images, valid), expected)
    threefold = replace(plain, look=lambda images, valid: plain.look(images * 3, valid))
    for change in (Looker.flipped, Looker.per_pixel, lambda one: one.per_pixel().flipped()):
        here = change(looker).at(scene)
        torch.testing.assert_close(here.look(images, valid), change(threefold).look(images, valid))
        assert here.cell == change(plain).cell and here.made_by == change(plain).made_by
    assert asked == [3.0] * 4


def test_whoever_looks_otherwise_makes_another_map():
    looker = lopsided()
    ways = (looker, looker.flipped(), looker.per_pixel(), looker.per_pixel().flipped())
    assert len({one.made_by for one in ways}) == 4


@pytest.mark.parametrize(("side", "cell", "overlap", "cells"), [(16, 4, 0, 0), (16, 4, 0.5, 2), (16, 4, 0.9, 3),
                                                                (16, 16, 0.9, 0), (16, 1, 0.9, 14)])  # fmt: skip
def test_windows_share_what_is_asked_for_and_always_go_on(side, cell, overlap, cells):
    walk = lopsided(cell, side).walk(SimpleNamespace(height=100, width=33), overlap)
    assert (walk.overlap, walk.side, walk.cell) == (cells, side // cell, cell) and walk.overlap < walk.side
    assert walk.columns == sorted(set(walk.columns)) and walk.columns[-1] + walk.side == walk.shape[1]


def test_a_patch_counts_as_seen_where_half_of_it_is():
    looker, seen = lopsided(), torch.zeros(1, 16, 16, dtype=torch.bool)
    seen[0, :4, :8], seen[0, 4, 8:] = True, True
    values, cells = looker.on(lambda numbers, valid: (numbers.float(), valid[:, None]))(torch.ones(1, 4, 16, 16), seen)
    assert values.shape == (1, 2, 4, 4)
    assert cells[0].tolist() == [[True, True, False, False]] + [[False] * 4] * 3
