from typing import get_args

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from geomim.errors import ConfigError
from geomim.finetune.heads import Efficient, Head, Segmenter, values
from geomim.finetune.necks import Pyramid

HEADS = [head for head in get_args(Head) if head != "pixels"]  # which reads past the encoder: see test_probing


def segmenter(head: str, neck: str = "taps", patch: int = 8, classes: int = 3, network: nn.Module | None = None):
    torch.manual_seed(0)
    sizes = {"embed_dim": 32, "depth": 4, "num_heads": 2, "img_size": 32 // patch * patch, "patch_size": patch}
    network = network or VisionTransformer(**sizes, in_chans=5, num_classes=0, dynamic_img_size=True)
    return Segmenter(network, classes, head, neck, channels=16)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("patch", "sides"), [(8, (32, 32)), (14, (45, 70)), (16, (50, 33))])
def test_logits_have_the_sides_of_the_images(head: str, patch: int, sides: tuple[int, int]) -> None:
    with torch.no_grad():
        assert segmenter(head, patch=patch)(torch.randn(2, 5, *sides)).shape == (2, 3, *sides)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("neck", ["taps", "simple"])
def test_every_parameter_gets_a_gradient_of_one_image(head: str, neck: str) -> None:
    if (head, neck) == ("efficient", "simple"):
        pytest.skip("refused")
    model = segmenter(head, neck).train()
    model(torch.randn(1, 5, 40, 48)).square().mean().backward()
    assert [name for name, one in model.named_parameters() if one.grad is None] == []
    assert all(torch.isfinite(one.grad).all() for one in model.parameters())


@pytest.mark.parametrize("head", HEADS)
def test_a_hierarchical_model_carries_every_head(head: str) -> None:
    model = segmenter(head, network=timm.create_model("resnet10t", num_classes=0, in_chans=5))
    logits = model(torch.randn(2, 5, 50, 64))
    logits.mean().backward()
    assert logits.shape == (2, 3, 50, 64)
    assert [name for name, one in model.named_parameters() if one.grad is None] == []


@pytest.mark.parametrize("head", HEADS)
def test_an_image_is_answered_alike_in_any_batch(head: str) -> None:
    model, images = segmenter(head).eval(), torch.randn(3, 5, 32, 32)
    model.head.train()
    for part in model.head.modules():
        part.p = 0.0  # dropout alone is chance
    with torch.no_grad():
        torch.testing.assert_close(model(images)[1:2], model(images[1:2]), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(one, nn.modules.batchnorm._BatchNorm) for one in model.modules())


@pytest.mark.parametrize("head", HEADS)
def test_each_head_overfits_four_images(head: str) -> None:
    model = segmenter(head)
    images, cells = torch.randn(4, 5, 32, 32), torch.randint(0, 3, (4, 1, 4, 4))
    masks = F.interpolate(cells.float(), scale_factor=8)[:, 0].long()
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    for _ in range(60):
        optimiser.zero_grad()
        F.cross_entropy(model(images), masks).backward()
        optimiser.step()
    with torch.no_grad():
        assert model.eval()(images).argmax(1).eq(masks).float().mean() > 0.9


@pytest.mark.parametrize("head", HEADS)
def test_half_precision_keeps_the_answer(head: str) -> None:
    model, images = segmenter(head).eval(), torch.randn(2, 5, 36, 32)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(images)
        half.float().mean().backward()
    full = model(images)
    assert half.dtype == torch.bfloat16 or head == "efficient"
    assert (half.float() - full).abs().mean() < 0.1 * full.std()


def still(neck: str, head: str) -> Segmenter:
    model = segmenter(head, neck).eval()
    nn.init.zeros_(model.encoder.network.pos_embed)
    for block in model.encoder.network.blocks:
        nn.init.zeros_(block.attn.proj.weight)
    return model


@pytest.mark.parametrize("head", ["linear", "efficient"])
def test_an_image_moved_by_a_patch_moves_its_answer(head: str) -> None:
    model, scene = still("taps", head), torch.randn(1, 5, 72, 32)
    with torch.no_grad():
        whole, moved = model(scene[..., :-8, :]), model(scene[..., 8:, :])
    torch.testing.assert_close(whole[..., 12:-4, :], moved[..., 4:-12, :], rtol=1e-4, atol=1e-5)


def test_a_linear_head_is_linear_in_each_position() -> None:
    model = segmenter("linear", "simple").eval()
    tokens = model.encoder(torch.randn(1, 5, 32, 32))[0]
    logits = model.head.predict(F.layer_norm(tokens.permute(0, 2, 3, 1), (32,), eps=1e-6).permute(0, 3, 1, 2))
    torch.testing.assert_close(model.head([tokens], (32, 32)), F.interpolate(logits, (32, 32), mode="bilinear"))
    assert {name for name, _ in model.head.named_parameters()} == {"predict.weight", "predict.bias"}


def test_an_efficient_head_answers_equal_depths_as_one() -> None:
    torch.manual_seed(0)
    head, one = Efficient((32,) * 4, (8,) * 4, 3), torch.randn(2, 32, 4, 4)
    tokens = head.norm(one).permute(0, 2, 3, 1)
    logits = head.predict(F.linear(tokens, head.pool.v.weight)).permute(0, 3, 1, 2)
    torch.testing.assert_close(head([one] * 4, (32, 32)), F.interpolate(logits, (32, 32), mode="bilinear"))


def test_heads_read_the_pyramid_or_the_own_maps() -> None:
    assert segmenter("linear", "simple").encoder.depths == (3,)
    assert segmenter("linear").encoder.depths == segmenter("efficient").encoder.depths == (0, 1, 2, 3)
    assert isinstance(segmenter("dpt", "simple").encoder, Pyramid)
    with pytest.raises(ConfigError, match="efficient weighs four depths: expected neck taps, given simple"):
        segmenter("efficient", "simple")


def test_values_are_bands_then_products_of_two_in_the_order_that_stored_weights_have() -> None:
    a, b, c = images = torch.randn(3, 4, 5)
    expected = torch.stack([a, b, c, a * a, a * b, a * c, b * b, b * c, c * c])
    assert torch.equal(values(images[None]), expected[None])
