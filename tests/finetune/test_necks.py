import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from geomim.errors import ConfigError
from geomim.finetune.necks import Depths, Pyramid, taps


def vit(patch: int = 8, size: int = 32, depth: int = 2, **arguments) -> VisionTransformer:
    torch.manual_seed(0)
    fixed = {"patch_size": patch, "img_size": size // patch * patch, "embed_dim": 32, "depth": depth, "num_heads": 2}
    return VisionTransformer(**fixed, num_classes=0, **({"dynamic_img_size": True} | arguments))


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("resnet10t", num_classes=0)


def swin(size: int = 64) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2), "window_size": 2}
    return timm.create_model(
        "swin_tiny_patch4_window7_224", num_classes=0, img_size=size, strict_img_size=False, **sizes
    )


def still(patch: int) -> VisionTransformer:
    """A plain encoder without places and without attention: what it says of a patch, it says of it anywhere."""
    network = vit(patch)
    nn.init.zeros_(network.pos_embed)
    for block in network.blocks:
        nn.init.zeros_(block.attn.proj.weight)
    return network.eval()


@pytest.mark.parametrize(("depth", "read"), [(12, (2, 5, 8, 11)), (6, (1, 2, 4, 5)), (2, (0, 0, 1, 1)), (1, (0,) * 4)])
def test_taps_end_each_quarter(depth: int, read: tuple[int, ...]) -> None:
    assert taps(vit(depth=depth)) == read
    assert taps(vit(depth=depth), 1) == (depth - 1,)


def test_taps_of_a_hierarchical_model_are_its_last_stages() -> None:
    assert taps(resnet()) == (1, 2, 3, 4)
    assert taps(swin()) == (0, 1, 2, 3)


@pytest.mark.parametrize("neck", ["simple", "taps"])
@pytest.mark.parametrize("patch", [8, 14, 16])
def test_strides_are_what_they_say_for_any_sides(patch: int, neck: str) -> None:
    pyramid = Pyramid(vit(patch), neck, channels=8)
    assert (pyramid.channels, pyramid.strides, pyramid.widths) == (8, (4, 8, 16, 32), (8,) * 4)
    for height, width in ((32, 64), (50, 33), (14, 57)):
        sides = [tuple(one.shape) for one in pyramid(torch.randn(2, 3, height, width))]
        assert sides == [(2, 8, -(-height // s), -(-width // s)) for s in (4, 8, 16, 32)]


@pytest.mark.parametrize("build", [resnet, swin])
@pytest.mark.parametrize("sides", [(64, 64), (50, 70)])
def test_a_hierarchical_model_passes_its_own_stages(build, sides: tuple[int, int]) -> None:
    pyramid = Pyramid(build(), "simple", channels=8).eval()
    height, width = sides
    images = torch.randn(1, 3, *sides)
    maps = pyramid(images)
    assert [tuple(one.shape) for one in maps] == [(1, 8, -(-height // s), -(-width // s)) for s in (4, 8, 16, 32)]
    padded = torch.nn.functional.pad(images, (0, -width % 32, 0, -height % 32))
    own = pyramid.network.forward_intermediates(
        padded, indices=taps(pyramid.network), norm=True, intermediates_only=True
    )
    for level, stage, one in zip(pyramid.levels, own, maps, strict=True):
        assert isinstance(level[0], nn.Conv2d) and len(level) == 1
        torch.testing.assert_close(level(stage)[..., : one.shape[-2], : one.shape[-1]], one)


def test_strides_beyond_the_stages_are_resampled_from_the_nearest() -> None:
    maps = Pyramid(resnet(), channels=8, strides=(8, 32, 64))(torch.randn(1, 3, 64, 128))
    assert [tuple(one.shape[-2:]) for one in maps] == [(8, 16), (2, 4), (1, 2)]


@pytest.mark.parametrize("neck", ["simple", "taps"])
@pytest.mark.parametrize(("patch", "shift"), [(8, 32), (16, 32), (14, 28), (32, 32)])
def test_an_image_moved_by_a_stride_moves_its_maps(patch: int, shift: int, neck: str) -> None:
    pyramid = Pyramid(still(patch), neck, channels=8, strides=(4, 8, 16, 32) if patch != 14 else (4, 14, 28)).eval()
    scene = torch.randn(1, 3, 8 * shift, 6 * shift)
    with torch.no_grad():
        whole, moved = pyramid(scene[..., :-shift, :]), pyramid(scene[..., shift:, :])
    for stride, one, other in zip(pyramid.strides, whole, moved, strict=True):
        edge, by = 1 - (-patch // stride), shift // stride  # the last row of patches, and what a 3x3 adds to it
        one, other = one[..., by + edge : -edge, :], other[..., edge : -edge - by, :]
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert one.std() > 0.01


def test_what_is_padded_is_cut_and_moves_nothing_else() -> None:
    pyramid, images = Pyramid(still(8), channels=8).eval(), torch.randn(1, 3, 60, 44)
    padded = torch.nn.functional.pad(images, (0, 4, 0, 4))
    for cut, whole in zip(pyramid(images), pyramid(padded), strict=True):
        torch.testing.assert_close(cut, whole[..., : cut.shape[-2], : cut.shape[-1]])


@pytest.mark.parametrize("arguments", [{}, {"global_pool": "avg"}, {"class_token": False, "global_pool": "avg"}])
@pytest.mark.parametrize("neck", ["simple", "taps"])
def test_every_parameter_gets_a_gradient(arguments: dict, neck: str) -> None:
    pyramid = Pyramid(vit(16, **arguments), neck, channels=8)
    sum(one.square().sum() for one in pyramid(torch.randn(1, 3, 48, 48))).backward()
    assert [name for name, one in pyramid.named_parameters() if one.grad is None or not one.grad.any()] == []


@pytest.mark.parametrize(("build", "strides"), [(resnet, (4, 8, 16)), (swin, (4, 8, 16, 32)), (resnet, (16, 32))])
def test_no_parameter_of_a_hierarchical_model_is_unused(build, strides: tuple[int, ...]) -> None:
    pyramid = Pyramid(build(), channels=8, strides=strides)
    sum(one.square().sum() for one in pyramid(torch.randn(2, 3, 64, 64))).backward()
    assert [name for name, one in pyramid.named_parameters() if one.grad is None] == []


def test_depths_are_the_normalised_maps_of_the_model() -> None:
    network = vit(8, depth=3).eval()
    images = torch.randn(2, 3, 32, 32)
    tokens = network.forward_features(images)[:, network.num_prefix_tokens :]
    read = Depths(network, (0, 2, 2))
    maps = read(images)
    assert (read.widths, read.strides) == ((32,) * 3, (8,) * 3)
    torch.testing.assert_close(maps[1].flatten(2).transpose(1, 2), tokens)
    assert maps[1] is maps[2] and not torch.equal(maps[0], maps[1])


def test_a_model_without_maps_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="Identity: expected a timm model"):
        Pyramid(nn.Identity())


def test_a_model_for_one_size_says_which() -> None:
    network = vit(16, dynamic_img_size=False)
    assert Depths(network, (0,))(torch.randn(1, 3, 30, 32))[0].shape == (1, 32, 2, 2)
    with pytest.raises(ConfigError, match=r"32 x 32 pixels alone; given 50 x 32 pixels, in multiples of 16 64 x 32"):
        Depths(network, (0,))(torch.randn(1, 3, 50, 32))
    mixer = timm.create_model("mixer_s32_224", num_classes=0)
    with pytest.raises(ConfigError, match=r"224 x 224 pixels alone; given 64 x 64 .*: give 224 x 224 pixels"):
        Depths(mixer, (0,))(torch.randn(1, 3, 64, 64))
