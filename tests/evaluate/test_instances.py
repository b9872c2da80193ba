from dataclasses import replace

import pytest
import torch

from geomim.evaluate import instances
from geomim.evaluate.features import Features, extract_all, frozen, pixel_statistics
from geomim.evaluate.instances import fit_instances, tile_shares
from geomim.evaluate.linear import fit_linear
from geomim.evaluate.scores import probe_features
from geomim.models.vit import ViT

KINDS = torch.eye(3, 6)
SHARED = torch.tensor([2.0, -1, 0.5, 2, 0, 0])  # nearer to the first class than to the others


def half_shared(count: int = 120, patches: int = 8, noise: float = 0.3, seed: int = 0) -> tuple[Features, torch.Tensor]:
    """Tiles of three classes, half of whose patches are of the class and half of what all share; which are its own."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    own = torch.rand(count, patches, generator=generator).argsort(1) < patches // 2
    tokens = torch.where(own[..., None], KINDS[labels][:, None], SHARED)
    tokens = (tokens + noise * torch.randn(tokens.shape, generator=generator)).half()
    seen = torch.ones(count, patches, dtype=torch.bool)
    return Features(tokens.float().mean(1), labels, tokens, seen), own


def right(probe: torch.nn.Module, tiles: Features, own: torch.Tensor) -> float:
    """Of patches of a class alone the share called so."""
    return float((probe(tiles.tokens.float()).argmax(-1) == tiles.labels[:, None])[own].double().mean())


def test_patches_of_the_class_are_found_where_the_probe_of_means_misses_them():
    tiles, _ = half_shared()
    others, own = half_shared(seed=1)
    pooled, patches = fit_linear(tiles.pooled, tiles.labels, 3).probe, fit_instances(tiles, 3).probe
    assert (pooled(others.pooled).argmax(1) == others.labels).double().mean() > 0.9  # of tiles it knows
    assert right(patches, others, own) > 0.9 > right(pooled, others, own) + 0.15


def test_the_share_of_a_tile_is_the_mean_of_its_patches_that_see_something():
    tiles, _ = half_shared(6)
    tiles.seen[0, 3:], tiles.seen[1] = False, False
    probe = fit_instances(half_shared()[0], 3, strengths=(1e-2,)).probe
    each = probe(tiles.tokens.float()).softmax(-1)
    shares = tile_shares(probe, tiles)
    torch.testing.assert_close(shares[0], each[0, :3].mean(0))
    torch.testing.assert_close(shares[1:], each[1:].mean(1))  # of a tile that sees nothing all count
    assert torch.equal(tile_shares(probe, tiles, torch.tensor([4, 0])), shares[[4, 0]])


def test_it_is_a_maximum_of_the_likelihood_that_it_claims_to_be():
    tiles, _ = half_shared(60)
    tiles.seen[::2, 5:] = False
    probe = fit_instances(tiles, 3, strengths=(1e-2,)).probe
    counted = tiles.tokens.float()[tiles.seen]
    mean, std = counted.mean(0), counted.std(0, unbiased=False)
    weight = (probe.weight * std).requires_grad_()
    bias = (probe.bias + probe.weight @ mean).requires_grad_()
    each = ((tiles.tokens.float() - mean) / std @ weight.T + bias).softmax(-1)
    shares = (each * tiles.seen[..., None]).sum(1) / tiles.seen.sum(1, keepdim=True)
    (-shares[range(60), tiles.labels].log().mean() + 1e-2 / 2 * weight.square().sum()).backward()
    assert weight.grad.abs().max() < 1e-3 and bias.grad.abs().max() < 1e-3


def test_nodata_and_the_size_of_batches_change_nothing(monkeypatch):
    tiles, _ = half_shared(30)
    tiles.seen[:, 6:] = False
    fit = fit_instances(tiles, 3, strengths=(1e-1, 1e-2))
    other = replace(tiles, tokens=tiles.tokens.masked_fill(~tiles.seen[..., None], 500.0))
    again = fit_instances(other, 3, strengths=(1e-1, 1e-2))
    assert torch.equal(fit.probe.weight, again.probe.weight) and torch.equal(fit.probe.bias, again.probe.bias)
    monkeypatch.setattr(instances, "_PATCHES", 20)
    small = fit_instances(tiles, 3, strengths=(1e-1, 1e-2))
    assert small.chosen == fit.chosen
    torch.testing.assert_close(small.probe.weight, fit.probe.weight, rtol=0.02, atol=0.02)


def test_features_tell_which_patches_see_more_image_than_nodata():
    torch.manual_seed(0)
    valid = torch.ones(2, 1, 16, 16, dtype=torch.bool)
    valid[1, :, 3:, :8] = False
    loader = [{"image": torch.randn(1, 3, 16, 16), "valid": one[None], "label": torch.zeros(1)} for one in valid]
    floor = replace(pixel_statistics((2, 2)), keep_tokens=True)
    extractors = {
        "vit": frozen(ViT(3, 16, 8, 24, 1, 3), keep_tokens=True),
        "pixels": floor,
        "plain": frozen(ViT(3, 16)),
    }
    found = extract_all(extractors, loader)
    for name in ("vit", "pixels"):
        assert found[name].seen.tolist() == [[True] * 4, [False, True, False, True]]
    assert found["plain"].seen is None


def test_its_row_is_of_tiles_and_its_probe_of_patches():
    tiles, others = half_shared(45)[0], half_shared(30, seed=1)[0]
    probed = probe_features("x", tiles, others, 3, ("instances",), (0, 1))
    (row,) = probed.rows
    assert (row.probe, row.groups, len(row.per_seed)) == ("linear", None, 2)
    assert row.accuracy == pytest.approx(row.balanced) and row.accuracy > 0.8
    assert probed.fits["linear"].probe.weight.shape == (3, 6)
