import pytest
import timm
import torch

from geomim.errors import CheckpointError, InputError
from geomim.evaluate import features as room
from geomim.evaluate.features import extract, extract_all, frozen, masked_mean, pixel_statistics, random_like
from geomim.evaluate.linear import LinearProbe
from geomim.evaluate.probes import EfficientProbe
from geomim.evaluate.saved import ProbeCard, fingerprint, load_probe, save_probe
from geomim.models.vit import ViT


def batches(count=5, size=32, channels=3, batch=2):
    torch.manual_seed(0)
    images = torch.randn(count, channels, size, size)
    valid = torch.ones(count, 1, size, size, dtype=torch.bool)
    labels = torch.arange(count) % 2
    parts = zip(images.split(batch), valid.split(batch), labels.split(batch), strict=True)
    return images, [{"image": image, "valid": seen, "label": label} for image, seen, label in parts]


def vit():
    torch.manual_seed(1)
    return ViT(3, 32, 8, 48, 2, 3).eval()


@pytest.mark.parametrize("count", [None, 5])
def test_features_of_a_geomim_encoder(count):
    images, loader = batches()
    encoder = vit()
    with torch.no_grad():
        tokens = encoder(images).tokens
    features = extract(encoder, loader, tokens=True, count=count)
    torch.testing.assert_close(features.pooled, tokens[:, 1:].mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features.tokens.float(), tokens[:, 1:], rtol=1e-2, atol=1e-2)
    assert features.labels.tolist() == [0, 1, 0, 1, 0]
    torch.testing.assert_close(extract(encoder, loader, pool="class").pooled, tokens[:, 0], rtol=1e-4, atol=1e-5)
    assert extract(encoder, loader).tokens is None


@pytest.mark.parametrize(
    ("name", "patches", "width"),
    [("vit_tiny_patch16_224", 4, 192), ("resnet18", 1, 512), ("swin_tiny_patch4_window7_224", 1, 768)],
)
def test_features_of_timm_models(name, patches, width):
    size = {} if name == "resnet18" else {"img_size": 32}
    encoder = timm.create_model(name, pretrained=False, **size)
    features = extract(encoder, batches(2)[1], tokens=True)
    assert features.tokens.shape == (2, patches, width)
    torch.testing.assert_close(features.tokens.float().mean(1), features.pooled, rtol=2e-2, atol=2e-2)


def test_a_pyramid_has_no_class_token():
    with pytest.raises(InputError, match="no class token"):
        extract(timm.create_model("resnet18"), batches(2)[1], pool="class")
    with pytest.raises(InputError, match="Linear"):
        extract(torch.nn.Linear(1, 1), batches(2)[1])
    with pytest.raises(InputError, match="no labelled images"):
        extract(vit(), [])


def test_patches_without_image_do_not_count():
    images, loader = batches(2)
    loader[0]["valid"][0, :, :16] = False
    encoder = vit()
    with torch.no_grad():
        tokens = encoder(images).tokens[:, 1:]
    pooled = extract(encoder, loader).pooled
    torch.testing.assert_close(pooled[0], tokens[0, 8:].mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pooled[1], tokens[1].mean(0), rtol=1e-4, atol=1e-5)
    nothing = masked_mean(tokens, torch.zeros(2, 16, dtype=torch.bool))
    torch.testing.assert_close(nothing, tokens.mean(1))


def test_pixel_statistics_use_valid_pixels_only():
    images, loader = batches(2)
    loader[0]["valid"][:, :, :, :10] = False
    got = extract_all({"pixels": pixel_statistics(), "encoder": frozen(vit())}, loader)["pixels"].pooled
    seen = images[..., 10:]
    expected = torch.cat([seen.mean((2, 3)), seen.flatten(2).std(2, unbiased=False)], 1)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_random_floor_has_the_architecture_and_leaves_the_random_state_alone():
    encoder = vit()
    state = torch.random.get_rng_state()
    one, same, other = (random_like(encoder, seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert one.config == encoder.config
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)


def test_many_tokens_go_to_a_mapped_file(monkeypatch):
    _, loader = batches()
    in_memory = extract(vit(), loader, tokens=True, count=5).tokens
    monkeypatch.setattr(room, "IN_MEMORY", 1)
    assert torch.equal(extract(vit(), loader, tokens=True, count=5).tokens, in_memory)


@pytest.mark.parametrize("probe", [LinearProbe(8, 3), EfficientProbe(8, 3, 2, 2)])
def test_saved_probes_come_back(tmp_path, probe):
    kind = "linear" if isinstance(probe, LinearProbe) else "efficient"
    card = ProbeCard(kind, ("a", "b", "c"), "mean", "0" * 32, None, 0.5)
    save_probe(tmp_path / f"{kind}.safetensors", probe.eval(), card)
    again, read = load_probe(tmp_path / f"{kind}.json")
    assert read == card
    tokens = torch.randn(4, 8) if kind == "linear" else torch.randn(4, 5, 8)
    assert torch.equal(again(tokens), probe(tokens))
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_no_probe_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no probe"):
        load_probe(tmp_path)
    card = ProbeCard("linear", ("a", "b", "c"), "mean", "", None, 0.5)
    path = save_probe(tmp_path / "linear.safetensors", LinearProbe(8, 2), card)
    (tmp_path / "new").touch()
    assert path.stat().st_mode == (tmp_path / "new").stat().st_mode  # as the umask says
    with pytest.raises(CheckpointError, match="no probe that geomim wrote"):
        load_probe(path)
    about = path.with_suffix(".json")
    about.write_text(about.read_text().replace('"format_version": 1', '"format_version": 9'))
    with pytest.raises(CheckpointError, match="upgrade"):
        load_probe(path)
