"""A Swin V2 of timm as an encoder: what is hidden, what it is told wrongly, and how it leaves."""

import json
from pathlib import Path

import pytest
import timm
import torch

from geomim.errors import CheckpointError, ConfigError
from geomim.evaluate.features import encode, extract, random_like
from geomim.evaluate.saved import fingerprint
from geomim.models.build import build_encoder, from_config
from geomim.models.hierarchical import Hierarchical, swin_v2
from geomim.models.patches import Patches, patchify
from geomim.models.weights import read_encoder
from geomim.pretrain.module import Origin, PretrainModule
from geomim.pretrain.recipes import cross_mae, mae, simmim
from geomim.randomness import Draws
from geomim.sensors import BandContract, get_sensor
from geomim.verbs.export import export

RGB = BandContract(get_sensor("rgb"), (120.0, 110.0, 100.0), (50.0, 55.0, 60.0))


def shaken(encoder: Hierarchical) -> Hierarchical:
    """A new Swin V2 starts with branches that add nothing; this one does not."""
    torch.manual_seed(3)
    with torch.no_grad():
        for value in encoder.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return encoder.eval()


@pytest.fixture
def encoder() -> Hierarchical:
    return shaken(swin_v2(3, 64, 4, 24, (1, 2, 1), (1, 2, 4)))


def test_tokens_are_of_the_output_grid(encoder: Hierarchical) -> None:
    latents = encoder(torch.randn(2, 3, 64, 64))
    assert (encoder.patch_size, encoder.embed_size, encoder.grid, encoder.num_patches) == (16, 4, (4, 4), 16)
    assert (encoder.width, encoder.embed_width, encoder.class_tokens, encoder.visible_only) == (96, 24, 0, False)
    assert latents.tokens.shape == latents.patches.shape == (2, 16, 96)
    with torch.no_grad():
        images = torch.randn(2, 3, 64, 64)
        expected = encoder.network.forward_features(images).flatten(1, 2)
        torch.testing.assert_close(encoder(images).tokens, expected)


@pytest.mark.parametrize("cells", [16, 64, 256])
def test_hidden_numbers_do_not_go_on_whatever_the_grid_they_are_hidden_on(encoder: Hierarchical, cells: int) -> None:
    side = int(cells**0.5)
    hidden = torch.rand(2, cells, generator=torch.Generator().manual_seed(0)) < 0.5
    pixels = hidden.view(2, 1, side, side).repeat_interleave(64 // side, 2).repeat_interleave(64 // side, 3)
    images, token = torch.randn(2, 3, 64, 64), torch.randn(1, 1, 24)

    def tokens(images: torch.Tensor) -> torch.Tensor:
        patches = Patches(patchify(images, 16), (4, 4))
        return encoder.encode(patches, hidden=hidden, mask_token=token).tokens

    assert torch.equal(tokens(images), tokens(torch.where(pixels, 1e4, images)))
    assert not torch.equal(tokens(images), tokens(torch.where(pixels, images, images + 1)))
    assert not torch.equal(tokens(images), encoder(images).tokens)  # and the next image is seen whole


def test_what_is_not_measured_does_not_go_on(encoder: Hierarchical) -> None:
    model = simmim(encoder, unit=16)
    valid = torch.ones(4, 1, 64, 64, dtype=torch.bool)
    valid[:3, :, :, :48] = False  # more than is hidden at all
    images = torch.randn(4, 3, 64, 64)
    encoded = []
    for fill in (0.0, 1e4):
        batch = {"image": torch.where(valid, images, fill), "valid": valid}
        context = model.context(batch, Draws(0, torch.arange(4)))
        encoded.append(model.encode(context, model.masking(context, torch.tensor(0.0)), "image").tokens)
    assert torch.equal(*encoded)


@pytest.mark.parametrize(
    ("image_size", "window", "found"), [(224, None, 7), (192, None, 6), (256, None, 8), (128, None, 8), (192, 12, 12)]
)
def test_a_window_that_fits_every_stage_is_chosen(image_size: int, window: int | None, found: int) -> None:
    made = build_encoder({"rgb": RGB}, image_size, "swinv2", size="tiny", width=24, heads=1, window=window, depth=1)
    assert made.config["window"] == found and made.patch_size == 32 and made.config["depths"] == [2, 2, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"image_size": 100}, "image_size to be a multiple of 32 px.*; given 100"),
        ({"image_size": 224, "window": 8}, r"\(56, 28, 14, 7\) to divide into windows of 8, .*\[1, 7, 14, 28\].*224"),
        ({"image_size": 1184}, r"\(296, 148, 74, 37\) to divide into windows, .*\[1\].*given 1184"),
        ({"image_size": 64, "heads": 5}, r"width 96, .* heads \[5, 10, 20, 40\]"),
        ({"image_size": 64, "family": "vit", "window": 8}, "--encoder.family swinv2"),
        ({"image_size": 224, "family": "vit", "size": "giant"}, "unknown encoder size 'giant'"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_numbers(arguments: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_encoder({"rgb": RGB}, **{"family": "swinv2", "size": "tiny", **arguments})


def test_what_it_cannot_do_is_refused(encoder: Hierarchical) -> None:
    patches = Patches(torch.zeros(1, 16, 768), (4, 4))
    with pytest.raises(ConfigError, match="sees all patches"):
        encoder.encode(patches, torch.tensor([[1, 2]]))
    with pytest.raises(ConfigError, match="expected images of 64x64 px, as trained; given 64x96"):
        encoder(torch.zeros(1, 3, 64, 96))
    with pytest.raises(ConfigError, match=r"expected images \(B, 3, H, W\); given \(1, 4, 64, 64\)"):
        encoder(torch.zeros(1, 4, 64, 64))
    for recipe in (mae, cross_mae):
        with pytest.raises(ConfigError, match="such as simmim, or --encoder"):
            recipe(encoder)


def test_it_is_evaluated_as_any_encoder(encoder: Hierarchical) -> None:
    images = torch.randn(2, 3, 64, 64)
    class_token, tokens, grid = encode(encoder, images)
    assert class_token is None and grid == (4, 4) and torch.equal(tokens, encoder(images).tokens)
    valid = torch.ones(2, 1, 64, 64, dtype=torch.bool)
    valid[:, :, :, 32:] = False
    features = extract(encoder, [{"image": images, "valid": valid, "label": torch.tensor([0, 1])}])
    torch.testing.assert_close(features.pooled, tokens.view(2, 4, 4, -1)[:, :, :2].flatten(1, 2).mean(1))
    other = random_like(encoder, 1)
    assert other.config == encoder.config and fingerprint(other) != fingerprint(encoder)


def test_a_checkpoint_is_read_back_and_leaves_as_a_stock_timm_model(encoder: Hierarchical, tmp_path: Path) -> None:
    module = PretrainModule(simmim(encoder, unit=16), Origin("simmim", {}, {"rgb": RGB}), 2)
    checkpoint = {"state_dict": module.state_dict(), "geomim": module.description() | {"step": 3}}
    torch.save(checkpoint, tmp_path / "last.ckpt")
    images = torch.randn(2, 3, 64, 64)
    expected = encoder(images).tokens
    read = read_encoder(tmp_path / "last.ckpt")
    assert read.encoder.config == encoder.config == from_config(encoder.config).config and read.contract == RGB
    assert torch.equal(read.encoder(images).tokens, expected)

    folder = export(str(tmp_path / "last.ckpt"), str(tmp_path / "export"))
    stock = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    torch.testing.assert_close(stock.forward_features(images).flatten(1, 2), expected)
    torch.testing.assert_close(stock(images), expected.mean(1))
    assert type(stock).__module__.startswith("timm.")
    assert torch.equal(read_encoder(folder).encoder(images).tokens, expected)
    card = (folder / "README.md").read_text()
    assert "Swin V2 (24 wide, 1-2-1 deep, 1-2-4 heads)" in card and "(B, rows, columns, 96)" in card

    config = json.loads((folder / "config.json").read_text())
    config["geomim"]["encoder"]["family"] = "convnext"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="does not describe its encoder: unknown family of encoders 'convnext'"):
        read_encoder(folder)
