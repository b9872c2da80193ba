import numpy as np
import pytest
import timm
import torch

from geomim.errors import ConfigError
from geomim.models.patches import patchify, sincos_positions, unpatchify
from geomim.models.vit import ViT


@pytest.fixture
def encoder() -> ViT:
    torch.manual_seed(0)
    return ViT(in_chans=5, image_size=32, patch_size=8, width=48, depth=2, heads=3)


def test_patchify_round_trips_on_oblong_multiband_images() -> None:
    images = torch.arange(2 * 5 * 16 * 24.0).view(2, 5, 16, 24)
    patches = patchify(images, 8)
    assert patches.shape == (2, 6, 320)
    assert torch.equal(patches[0, 4].view(8, 8, 5)[3, 2], images[0, :, 8 + 3, 8 + 2])
    assert torch.equal(unpatchify(patches, (2, 3), 8), images)


def test_patchify_names_sides_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="multiples of the patch size 16; given 20x32"):
        patchify(torch.zeros(1, 3, 20, 32), 16)


def test_embedding_a_patch_equals_timm_s_convolution(encoder: ViT) -> None:
    images = torch.randn(2, 5, 32, 32)
    expected = encoder.patch_embed.proj(images).flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder.patch_embed(patchify(images, 8)), expected, rtol=1e-5, atol=1e-5)


def test_hidden_pixels_do_not_reach_the_encoder(encoder: ViT) -> None:
    images = torch.randn(2, 5, 32, 32)
    visible = torch.tensor([[3, 0, 9], [15, 2, 7]])
    hidden = torch.ones(2, 16, dtype=torch.bool).scatter(1, visible, False)
    patches = patchify(images, 8)
    changed = torch.where(hidden[..., None], 1e6, patches)
    one = encoder(images, visible).tokens
    two = encoder(unpatchify(changed, (4, 4), 8), visible).tokens
    assert torch.equal(one, two)


def test_masked_keys_do_not_change_the_others(encoder: ViT) -> None:
    images = torch.randn(1, 5, 32, 32)
    few = encoder(images, torch.tensor([[3, 0]])).tokens
    padded = encoder(images, torch.tensor([[3, 0, 9]]), torch.tensor([[True, True, False]])).tokens
    torch.testing.assert_close(padded[:, :3], few, rtol=1e-5, atol=1e-5)


def test_any_order_and_any_size(encoder: ViT) -> None:
    images = torch.randn(1, 5, 32, 32)
    order = torch.randperm(16)[None]
    shuffled = encoder(images, order).tokens[:, 1:]
    torch.testing.assert_close(shuffled[:, order[0].argsort()], encoder(images).tokens[:, 1:], rtol=1e-4, atol=1e-5)
    assert encoder(torch.randn(1, 5, 48, 16)).tokens.shape == (1, 1 + 12, 48)
    with pytest.raises(ConfigError, match=r"expected images \(B, 5, H, W\); given \(1, 3, 32, 32\)"):
        encoder(torch.randn(1, 3, 32, 32))


def test_levels_start_before_the_first_block(encoder: ViT) -> None:
    latents = encoder(torch.randn(1, 5, 32, 32), levels=True)
    assert len(latents.levels) == 3
    torch.testing.assert_close(encoder.norm(latents.levels[-1]), latents.tokens)


def test_state_dict_is_timm_s(encoder: ViT) -> None:
    peer = timm.create_model(
        "vit_small_patch16_224",
        in_chans=5,
        img_size=32,
        patch_size=8,
        embed_dim=48,
        depth=2,
        num_heads=3,
        num_classes=0,
    )
    peer.load_state_dict(encoder.state_dict())
    images = torch.randn(2, 5, 32, 32)
    torch.testing.assert_close(peer.forward_features(images), encoder(images).tokens, rtol=1e-4, atol=1e-5)


def test_positions_tell_rows_from_columns() -> None:
    table = sincos_positions(48, (2, 3))[0, 1:].view(2, 3, 48)
    assert torch.equal(table[0, 1, 24:], table[0, 2, 24:]) and torch.equal(table[0, 1, :24], table[1, 1, :24])
    assert not np.allclose(table[0, 1], table[1, 0])
