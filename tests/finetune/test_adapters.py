"""What TerraTorch, PANGAEA and torchgeo-bench ask of an encoder, without any of them."""

from collections import namedtuple
from pathlib import Path

import pytest
import tiny_encoder
import torch

from geomim.errors import BandError, ConfigError, InputError
from geomim.finetune.adapters import BenchEncoder, PangaeaEncoder, TerraTorchBackbone

BandSpec = namedtuple("BandSpec", "sensor name source_name mean std min max wavelength_um")
NAIP = tiny_encoder.NAIP
SPECS = [
    BandSpec("aerial", name, source, mean, std, 0.0, 255.0, length)
    for name, source, mean, std, length in (
        ("nir", "04 - NIR", 110.0, 35.0, 0.83),
        ("red", "01 - Red", 90.0, 28.0, 0.66),
        ("green", "02 - Green", 95.0, 26.0, 0.56),
        ("blue", "03 - Blue", 85.0, 22.0, 0.48),
    )
]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("adapters") / "encoder"
    tiny_encoder.exported(folder)
    return str(folder)


@pytest.fixture(scope="module")
def own(source):
    from geomim.models.weights import read_encoder

    return read_encoder(source).encoder.eval()


@torch.no_grad()
def test_terratorch_is_given_a_list_of_maps_as_wide_as_it_says(source, own) -> None:
    backbone, images = TerraTorchBackbone(source).eval(), torch.randn(2, 4, 64, 64)
    maps = backbone(images)
    assert [one.shape for one in maps] == [(2, width, 8, 8) for width in backbone.out_channels]
    assert backbone.out_channels == [32] * 4 and backbone.contract == NAIP
    torch.testing.assert_close(maps[-1].flatten(2).transpose(1, 2), own(images).patches, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(maps[0], maps[-1], atol=1e-2)
    some = TerraTorchBackbone(source, bands=["red", "nir"])(images[:, :2])
    assert [one.shape[1:] for one in some] == [(32, 8, 8)] * 4


@torch.no_grad()
def test_pangaea_is_given_maps_of_its_modality(source, own) -> None:
    turned = ["nir", "blue", "green", "red"]
    encoder = PangaeaEncoder(source, {"optical": turned}, 32).eval()
    images = torch.randn(2, 4, 32, 32)
    maps = encoder({"optical": images[:, [3, 2, 1, 0]], "sar": torch.zeros(1)})
    assert len(maps) == len(encoder.output_layers) == len(encoder.output_dim) == 4
    assert all(one.shape == (2, width, 4, 4) for one, width in zip(maps, encoder.output_dim, strict=True))
    torch.testing.assert_close(maps[-1].flatten(2).transpose(1, 2), own(images).patches, rtol=1e-4, atol=1e-4)
    again = encoder({"optical": images[:, [3, 2, 1, 0], None]})
    torch.testing.assert_close(again[-1], maps[-1])
    facts = ("model_name", "input_bands", "input_size", "embed_dim", "multi_temporal", "multi_temporal_output")
    assert [getattr(encoder, fact) for fact in facts] == ["geomim", {"optical": turned}, 32, 32, False, False]
    assert not encoder.pyramid_output and encoder.download_url == ""
    encoder.freeze()
    encoder.enforce_single_temporal()
    assert not any(one.requires_grad for one in encoder.parameters())
    with pytest.raises(ConfigError, match="of one modality; given optical, sar"):
        PangaeaEncoder(source, {"optical": turned, "sar": ["VV"]}, 32)


@torch.no_grad()
def test_the_bench_gives_stored_numbers_and_gets_vectors(source, own) -> None:
    stored = 100 + 20 * torch.randn(2, 4, 64, 64)
    order = [1, 2, 3, 0]  # the encoder's bands among the dataset's
    for normalization, mean, std in (
        ("model_native", NAIP.mean, NAIP.std),
        ("bandspec_zscore", [SPECS[at].mean for at in order], [SPECS[at].std for at in order]),
    ):
        model = BenchEncoder(SPECS, source, normalization=normalization).eval()
        images = (stored[:, order] - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        torch.testing.assert_close(model.normalize_inputs(stored), images, rtol=1e-4, atol=1e-4)
        expected = own(images).patches.mean(1)
        torch.testing.assert_close(model.forward_patch_features(stored), expected, rtol=1e-4, atol=1e-4)
        assert model.num_channels == 4 and model.bands == SPECS
    with pytest.raises(ConfigError, match="expected model_native or bandspec_zscore; given minmax"):
        BenchEncoder(SPECS, source, normalization="minmax")


def test_numbers_of_another_unit_and_missing_bands_are_refused(source) -> None:
    shares = [one._replace(mean=one.mean / 255, std=one.std / 255, max=1.0) for one in SPECS]
    with pytest.raises(InputError, match=r"the dataset: band .* holds"):
        BenchEncoder(shares, source)
    assert BenchEncoder(shares, source, "bandspec_zscore").num_channels == 4
    radar = [
        one._replace(name=name, source_name=name, wavelength_um=None)
        for one, name in zip(SPECS[:2], ("VV", "VH"), strict=True)
    ]
    with pytest.raises(BandError, match="VV"):
        BenchEncoder(radar, source)


def test_an_encoder_of_several_sensors_is_baked_for_the_dataset(tmp_path: Path) -> None:
    file = tmp_path / "any.ckpt"
    encoder = tiny_encoder.checkpoint(file, NAIP, tiny_encoder.S2, spectral=True)
    stored = 100 + 20 * torch.randn(2, 4, 64, 64)
    images = (stored[:, [1, 2, 3, 0]] - torch.tensor(NAIP.mean)[:, None, None]) / torch.tensor(NAIP.std)[:, None, None]
    with torch.no_grad():
        found, expected = BenchEncoder(SPECS, str(file))(stored), encoder(images, sensor="naip").patches.mean(1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
