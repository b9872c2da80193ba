from dataclasses import replace

import pytest
import torch
from torch import Tensor

from geomim.errors import BandError, ConfigError
from geomim.models.build import build_encoder, from_config
from geomim.models.fitting import nearest_band
from geomim.models.patches import Patches, patchify
from geomim.models.spectral import BandKernels, SpectralPatchEmbed, band_codes, keep_bands
from geomim.models.vit import ViT
from geomim.pretrain.context import Context
from geomim.pretrain.objective import MaskedImageModel
from geomim.pretrain.recipes import RECIPES
from geomim.randomness import Draws
from geomim.sensors import Band, BandContract, Sensor, get_sensor

SIZES = {"image_size": 32, "patch_size": 4, "width": 48, "depth": 2, "heads": 3}
UNSEEN = Sensor("mine", (Band("a", 500, 40), Band("b", 1100, 60), Band("c", 11000, 900), Band("HV", polarisation="HV")))


def contract(name: str | Sensor) -> BandContract:
    sensor = name if isinstance(name, Sensor) else get_sensor(name)
    return BandContract(sensor, (0.0,) * len(sensor.bands), (1.0,) * len(sensor.bands))


def contracts(*names: str) -> dict[str, BandContract]:
    return {name: contract(name) for name in names}


def spectral(*names: str, **options) -> ViT:
    torch.manual_seed(0)
    encoder = build_encoder(contracts(*names), **SIZES, spectral=True, **options)
    torch.nn.init.normal_(encoder.patch_embed.bias, std=0.1)
    return encoder


def told(encoder: ViT, sensor: Sensor) -> ViT:
    """The same encoder, told of a further sensor."""
    other = from_config(encoder.config, {"it": contract(sensor)})
    other.load_state_dict(encoder.state_dict())
    return other


@pytest.mark.parametrize("sensor", ["rgb", "sentinel2", "modis_toa", "sentinel1", UNSEEN])
@pytest.mark.parametrize("size", [32, 48])
def test_baked_equals_unbaked_for_any_sensor(sensor: str | Sensor, size: int) -> None:
    encoder, asked = spectral("rgb", "sentinel2"), contract(sensor)
    plain = encoder.bake(asked)
    images = torch.randn(2, len(asked.names), size, size)
    assert not plain.spectral and plain.config["in_chans"] == len(asked.names)
    expected = told(encoder, asked.sensor)(images, sensor="it").tokens
    torch.testing.assert_close(plain(images).tokens, expected, rtol=1e-5, atol=1e-5)


def test_order_of_bands_is_of_no_account() -> None:
    sensor = get_sensor("sentinel2")
    order = torch.randperm(len(sensor.bands)).tolist()
    shuffled = replace(sensor, bands=tuple(sensor.bands[place] for place in order))
    encoder, images = spectral("sentinel2"), torch.randn(2, len(order), 32, 32)
    one, two = encoder.bake(contract(sensor))(images), encoder.bake(contract(shuffled))(images[:, order])
    torch.testing.assert_close(one.tokens, two.tokens, rtol=1e-5, atol=1e-5)


def test_tokens_start_equally_large_for_few_and_many_bands() -> None:
    names = ("rgb", "naip", "sentinel2", "modis_toa", "sentinel1")
    torch.manual_seed(0)
    embed = SpectralPatchEmbed({name: get_sensor(name) for name in names}, 192, 8)
    variance = [embed(torch.randn(64, 64, 64 * embed.channels(name)), name).var().item() for name in names]
    expected = 2 * 64 / (192 + 64)
    assert variance == pytest.approx([expected] * len(names), rel=0.05)


def test_bands_close_in_wavelength_have_close_kernels() -> None:
    torch.manual_seed(0)
    bands = [Band(str(nm), nm, 30) for nm in (655, 665, 700, 865, 2200)]
    near = torch.nn.functional.normalize(
        BandKernels({}, (48, 4, 4), 1.0)(band_codes(Sensor("x", tuple(bands)))).flatten(1)
    )
    alike = (near @ near[0]).tolist()
    assert alike[1] > 0.95 > alike[2] > max(alike[3:])
    radar = [Band(name, 55465765, 579799, polarisation=name) for name in ("VV", "VH")]
    one, two = torch.nn.functional.normalize(
        BandKernels({}, (48, 4, 4), 1.0)(band_codes(Sensor("x", tuple(radar)))).flatten(1)
    )
    assert one @ two < 0.8


def test_bands_of_no_wavelength_are_refused_by_name() -> None:
    sensor = Sensor("mine", (Band("red", 650, 80), Band("dem"), Band("VV", polarisation="VV")))
    with pytest.raises(BandError, match=r"'mine' gives none for dem: .*geomim corpus build.*--encoder.spectral false"):
        build_encoder({"mine": contract(sensor)}, **SIZES, spectral=True)
    with pytest.raises(ConfigError, match=r"rgb, naip.*--encoder.spectral true"):
        build_encoder(contracts("rgb", "naip"), **SIZES)
    with pytest.raises(ConfigError, match=r"rgb, naip\); given None"):
        spectral("rgb", "naip")(torch.zeros(1, 3, 32, 32))


def test_a_band_that_is_called_as_a_polarisation_is_one() -> None:
    stated, called, alias = Band("VV", polarisation="VV"), Band("vv"), Band("a", alias="VV")
    codes = [band_codes(Sensor("radar", (band,))) for band in (stated, called, alias)]
    assert torch.equal(codes[0], codes[1]) and torch.equal(codes[0], codes[2]) and codes[0].any()
    assert nearest_band(Band("vh", 55.5e6), [Band("red", 650), stated]) is None
    assert nearest_band(Band("red", 650), [Band("VH", 600), Band("nir", 850)]) == 1


def test_dropped_bands_are_addressed_and_never_all() -> None:
    numbers = Draws(0, torch.arange(1000))("bands image", 4)
    factor = keep_bands(numbers, 0.9)
    kept = (factor > 0).float()
    assert kept.sum(1).min() == 1 and torch.equal(factor, keep_bands(numbers, 0.9))
    assert kept.mean() == pytest.approx(0.1 + 0.9**4 / 4, abs=0.02)
    torch.testing.assert_close(factor.square().sum(1), torch.full((1000,), 4.0))  # the size of tokens stays


def test_an_encoder_sees_of_dropped_bands_what_a_sensor_of_the_others_gives() -> None:
    encoder = spectral("naip", band_dropout=0.5)
    images, draws = torch.randn(8, 4, 32, 32), Draws(1, torch.arange(8))
    view = Context({"image": images, "sensor": "naip"}, encoder, draws).views["image"]
    assert torch.equal(view.patches, patchify(images, 4))  # targets see all bands
    seen = keep_bands(draws("bands image", 4), 0.5) > 0
    assert 0 < seen.sum() < seen.numel()
    for row, bands in enumerate(seen):
        names = [name for name, kept in zip(get_sensor("naip").names, bands.tolist(), strict=True) if kept]
        some = encoder.bake(contract(get_sensor("naip", names)))
        one = encoder.encode(Patches(view.seen.values[row : row + 1], view.grid, "naip")).tokens
        torch.testing.assert_close(one, some(images[row : row + 1, bands]).tokens, rtol=1e-4, atol=1e-5)
    encoder.eval()
    view = Context({"image": images, "sensor": "naip"}, encoder, draws).views["image"]
    assert torch.equal(view.seen.values, view.patches)


def test_positions_follow_the_gsd_and_bake() -> None:
    encoder, images = spectral("rgb", gsd_positions=True), torch.randn(3, 3, 32, 32)
    gsd = torch.tensor([1.0, torch.nan, 10.0])
    tokens = encoder(images, gsd=gsd).tokens
    torch.testing.assert_close(tokens[:2], encoder(images[:2]).tokens, rtol=1e-5, atol=1e-5)  # 1 m is the reference
    assert (tokens[2] - encoder(images).tokens[2]).abs().max() > 1e-2
    baked = encoder.bake(contract("rgb"), gsd=10.0)
    torch.testing.assert_close(baked(images[2:]).tokens, tokens[2:], rtol=1e-5, atol=1e-5)
    small = encoder(images[:, :, :16], gsd=torch.tensor(10.0)).tokens
    assert small.shape == (3, 1 + 32, 48)


def test_another_patch_size_sees_the_same_in_a_resized_patch() -> None:
    encoder = spectral("rgb")
    baked = encoder.bake(contract("rgb"), patch_size=8)
    assert baked.patch_size == 8 and baked.grid == (4, 4) and baked.config["image_size"] == 32
    patch = torch.randn(6, 3, 4, 4)
    larger = torch.nn.functional.interpolate(patch, (8, 8), mode="bicubic", antialias=True)
    one = encoder.patch_embed(patchify(patch, 4))
    torch.testing.assert_close(baked.patch_embed(patchify(larger, 8)), one, rtol=1e-4, atol=1e-5)


def scenes(channels: int) -> Tensor:
    axis, rate = torch.linspace(0, 6.28, 32), torch.arange(1, 9)[:, None, None, None] * 0.25
    band = torch.arange(channels)[None, :, None, None]
    return torch.sin(rate * axis[:, None] + band) + torch.cos(rate * axis - band)


@pytest.mark.parametrize("name", ["mae", "selective_mae"])
def test_one_encoder_trains_on_two_sensors(name: str) -> None:
    encoder = spectral("naip", "sentinel2", band_dropout=0.2)
    model = RECIPES[name](encoder, decoder_depth=2, decoder_width=48, decoder_heads=4)
    batches = [{"image": scenes(4), "sensor": "naip"}, {"image": scenes(13), "sensor": "sentinel2"}]
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)

    def losses(model: MaskedImageModel) -> list[Tensor]:
        return [model(batch, torch.tensor(0.3), Draws(0, torch.arange(8))).loss for batch in batches]

    first = losses(model)
    sum(first).backward()
    silent = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert silent == []
    for _ in range(80):
        optimiser.zero_grad()
        last = losses(model)
        sum(last).backward()
        optimiser.step()
    assert all(after < 0.5 * before for before, after in zip(first, last, strict=True))
    picture = model.predict(batches[0], torch.tensor(0.3), Draws(0, torch.arange(8)))["image"]
    assert picture["prediction"].shape[-1] == 4 * 16
    graph = torch._dynamo.explain(
        lambda image: model(batches[0] | {"image": image}, torch.tensor(0.3), Draws(0, torch.arange(8))).loss
    )
    assert graph(batches[0]["image"]).graph_break_count == 0
