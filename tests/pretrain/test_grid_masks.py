"""Masks of square units and of rectangles."""

import math

import pytest
import torch
from torch import Tensor

from geomim.errors import ConfigError
from geomim.models.hierarchical import Hierarchical, swin_v2
from geomim.models.vit import ViT
from geomim.pretrain.context import Context
from geomim.pretrain.losses import l1
from geomim.pretrain.masking import Blocks, Units
from geomim.pretrain.monitor import reconstructions
from geomim.pretrain.recipes import satvision, simmim
from geomim.pretrain.targets import Pixels
from geomim.randomness import Draws
from geomim.sensors import Band, BandContract, Sensor

NOW = torch.tensor(0.5)


@pytest.fixture(scope="module")
def plain() -> ViT:
    return ViT(in_chans=2, image_size=48, patch_size=4, width=24, depth=1, heads=2)


@pytest.fixture(scope="module")
def swin() -> Hierarchical:
    return swin_v2(in_chans=2, image_size=64, embed_size=4, width=24, depths=(1, 1, 1), heads=(1, 2, 4))


def context(encoder, shape: tuple[int, int], valid: Tensor | None = None, seed: int = 0) -> Context:
    batch = {"image": torch.randn(6, 2, *shape)} | ({} if valid is None else {"valid": valid})
    return Context(batch, encoder, Draws(seed, torch.arange(6)))


def some_nodata(shape: tuple[int, int]) -> Tensor:
    valid = torch.ones(6, 1, *shape, dtype=torch.bool)
    for row in range(6):
        valid[row, :, :, : 10 * row] = False
    return valid


def cells_of(indices: Tensor, length: int) -> Tensor:
    return torch.zeros(len(indices), length, dtype=torch.bool).scatter(1, indices, True)


@pytest.mark.parametrize("shape", [(48, 48), (24, 48)])  # oblong too
@pytest.mark.parametrize("size", [4, 8, 12])
def test_whole_units_of_the_exact_number_are_hidden(plain: ViT, shape: tuple[int, int], size: int) -> None:
    masking = Units(plain, size, 0.6)
    made = context(plain, shape)
    split, view = masking(made, NOW)["image"], made.views["image"]
    both = torch.cat([split.visible, split.predict], 1).sort(1).values
    assert torch.equal(both, torch.arange(view.length).expand(6, -1))
    hidden = cells_of(split.predict, view.length).view(6, 1, *view.grid).float()
    units = torch.nn.functional.avg_pool2d(hidden, size // 4).flatten(1)
    assert ((units == 0) | (units == 1)).all()
    assert units.sum(1).tolist() == [math.ceil(0.6 * units.shape[1])] * 6
    assert len(units.unique(dim=0)) > 1


def test_units_without_image_are_hidden_and_never_predicted(plain: ViT) -> None:
    valid = some_nodata((48, 48))
    made = context(plain, (48, 48), valid)
    split, view = Units(plain, 8, 0.6)(made, NOW)["image"], made.views["image"]
    patch_valid = view.patch_valid
    assert torch.equal(split.predict_weight, patch_valid.gather(1, split.predict).float())
    unit_valid = valid.float().view(6, 6, 8, 6, 8).mean((2, 4)).flatten(1) >= 0.5
    seen = cells_of(split.visible, 144).view(6, 6, 2, 6, 2)[:, :, 0, :, 0].flatten(1)
    # units with image are seen first: those without are seen only where there are too few others
    assert torch.equal((seen & unit_valid).sum(1), unit_valid.sum(1).clamp(max=36 - 22))


def test_a_unit_finer_than_the_answers_hides_inside_of_them(swin: Hierarchical) -> None:
    made = context(swin, (64, 64))
    view = made.views["image"]
    split = Units(swin, 8, 0.6)(made, NOW)["image"]
    assert swin.patch_size == 16 and split.hidden.shape == (6, 64) and split.visible.shape == (6, 0)
    assert split.hidden.sum(1).tolist() == [39] * 6  # ceil(0.6 * 64)
    assert torch.equal(split.predict, torch.arange(16).expand(6, -1))
    pixels = split.hidden.view(6, 8, 8).repeat_interleave(8, 1).repeat_interleave(8, 2)
    shares = pixels.view(6, 4, 16, 4, 16).float().mean((2, 4)).flatten(1)
    torch.testing.assert_close(split.predict_weight, shares)
    assert torch.equal(view.pixels_of(split.hidden)[2, 5], pixels[2, 16:32, 16:32].flatten())


@pytest.mark.parametrize("nodata", [False, True])
def test_the_loss_of_finer_units_is_the_mean_over_their_hidden_pixels(swin: Hierarchical, nodata: bool) -> None:
    valid = None
    if nodata:
        valid = torch.ones(6, 1, 64, 64, dtype=torch.bool)
        valid[2:4, :, :16, :24] = False
        valid[4, :, 40:43, 50:] = False
    made = context(swin, (64, 64), valid)
    view = made.views["image"]
    split = Units(swin, 8, 0.6)(made, NOW)["image"]
    view.hidden = split.hidden
    answer = Pixels("none")(view, split.predict)
    guess = torch.randn_like(answer.values)
    counted = split.hidden.view(6, 1, 8, 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    if valid is not None:
        empty = ~view.patch_valid.view(6, 1, 4, 4).repeat_interleave(16, 2).repeat_interleave(16, 3)
        counted = counted & valid & ~empty
    error = (guess - answer.values).abs().view(6, 4, 4, 16, 16, 2).permute(0, 5, 1, 3, 2, 4).reshape(6, 2, 64, 64)
    expected = (error * counted).sum((1, 2, 3)) / counted.sum((1, 2, 3)) / 2
    torch.testing.assert_close(l1(guess, answer, split.predict_weight), expected)


def test_the_picture_shows_what_is_hidden_inside_of_a_patch(swin: Hierarchical) -> None:
    model = satvision(swin)
    batch = {"image": torch.rand(2, 2, 64, 64), "position": torch.arange(2)}
    contract = BandContract(Sensor("two", (Band("a"), Band("b"))), (0.0, 0.0), (1.0, 1.0))
    image, visible, predicted = reconstructions(model, batch, contract).transpose(1, 0, 2, 3, 4)
    split = model.masking(model.context(batch, Draws(0, torch.arange(2))), NOW)["image"]
    hidden = split.hidden.view(2, 8, 8).repeat_interleave(8, 1).repeat_interleave(8, 2).numpy()
    assert (visible[hidden] == 0.5).all() and (visible[~hidden] == image[~hidden]).all()
    assert (predicted[~hidden] == image[~hidden]).all() and (predicted[hidden] != 0.5).mean() > 0.9


def test_units_that_do_not_fit_are_refused_with_the_numbers(plain: ViT, swin: Hierarchical, caplog) -> None:
    for encoder, size, said in (
        (plain, 6, "multiple of the encoder's 4 px patches, and a divisor of image_size 48; given 6"),
        (plain, 20, "divisor of image_size 48; given 20"),
        (swin, 6, "4 px patches, and a divisor or a multiple of its output's 16 px.*given 6"),
    ):
        with pytest.raises(ConfigError, match=said):
            Units(encoder, size)
    with pytest.raises(ConfigError, match="1 hides 16 of 16 units: expected some, but not all"):
        Units(swin, 16, 1.0)
    assert not caplog.records
    Units(swin, 8)
    assert "units of 8 px are hidden, the encoder answers by 16 px" in caplog.text


@pytest.mark.parametrize("shape", [(48, 48), (24, 48)])
def test_blocks_hide_an_exact_number_in_few_pieces(plain: ViT, shape: tuple[int, int]) -> None:
    made = context(plain, shape)
    view = made.views["image"]
    split = Blocks(0.4)(made, NOW)["image"]
    both = torch.cat([split.visible, split.predict], 1).sort(1).values
    assert torch.equal(both, torch.arange(view.length).expand(6, -1))
    assert split.predict.shape[1] == int(0.4 * view.length)
    assert len(cells_of(split.predict, view.length).unique(dim=0)) == 6

    def edges(indices: Tensor) -> float:
        hidden = cells_of(indices, view.length).view(6, *view.grid)
        return float(
            (hidden[:, 1:] != hidden[:, :-1]).float().mean() + (hidden[:, :, 1:] != hidden[:, :, :-1]).float().mean()
        )

    assert edges(split.predict) < 0.5 * edges(Units(plain, 4, 0.4)(made, NOW)["image"].predict)


def test_blocks_of_nodata_are_never_predicted(plain: ViT) -> None:
    made = context(plain, (48, 48), some_nodata((48, 48)))
    split = Blocks(0.4)(made, NOW)["image"]
    patch_valid = made.views["image"].patch_valid
    assert torch.equal(split.predict_weight, patch_valid.gather(1, split.predict).float())
    invalid = (~patch_valid).sum(1)
    assert torch.equal((split.predict_weight == 0).sum(1), invalid.clamp(max=split.predict.shape[1]))


@pytest.mark.parametrize("make", [lambda encoder: Units(encoder, 8), lambda encoder: Blocks()])
def test_the_same_address_is_hidden_alike(plain: ViT, make) -> None:
    images, masking = torch.randn(6, 2, 48, 48), make(plain)
    whole = masking(Context({"image": images}, plain, Draws(0, torch.arange(6))), NOW)["image"]
    part = masking(Context({"image": images[4:]}, plain, Draws(0, torch.arange(4, 6))), NOW)["image"]
    other = masking(Context({"image": images}, plain, Draws(1, torch.arange(6))), NOW)["image"]
    assert torch.equal(whole.predict[4:], part.predict) and not torch.equal(whole.predict, other.predict)


def test_simmim_trains_a_plain_transformer_and_hides_blocks(plain: ViT) -> None:
    for arguments in ({"unit": 8}, {"shape": "blocks"}):
        model = simmim(plain, **arguments)
        images = torch.randn(4, 2, 48, 48)
        loss = model({"image": images}, NOW, Draws(0, torch.arange(4))).loss
        loss.backward()
        assert loss > 0 and model.mask_token.grad.abs().sum() > 0
