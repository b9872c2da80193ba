from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from timm.models._hub import save_for_hf
from torch import nn

from geomim.errors import BandError, CheckpointError
from geomim.models.build import build_encoder, from_config
from geomim.models.inflate import inflation, share_out
from geomim.models.vit import ViT
from geomim.sensors import BandContract, Sensor, get_sensor
from geomim.verbs.export import export

RGB, NAIP, S2 = (get_sensor(name) for name in ("rgb", "naip", "sentinel2"))
SIZES = {"image_size": 48, "patch_size": 8, "width": 48, "depth": 2, "heads": 3}


def saved(folder: Path, **changes) -> str:
    """A vision transformer of stock timm in a folder, with weights of some size."""
    args = {"img_size": 48, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3} | changes
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **args)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    save_for_hf(model, folder, model_args=args, safe_serialization=True)
    return f"timm:local-dir:{folder}"


def model(name: str) -> nn.Module:
    return timm.create_model(name.removeprefix("timm:"), pretrained=True).eval()


def contract(sensor: Sensor) -> BandContract:
    return BandContract(sensor, (0.0,) * len(sensor.bands), (1.0,) * len(sensor.bands))


def started(weights: str, *sensors: Sensor, **options) -> ViT:
    contracts = {sensor.name: contract(sensor) for sensor in sensors}
    return build_encoder(contracts, **SIZES | options, weights=weights).eval()


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("spectral", [True, False])
def test_rgb_weights_answer_rgb_images_as_they_did(tmp_path: Path, spectral: bool, class_token: bool) -> None:
    weights = saved(tmp_path, class_token=class_token, global_pool="avg", fc_norm=False)
    encoder, images = started(weights, RGB, spectral=spectral, class_token=class_token), torch.randn(2, 3, 48, 48)
    tolerance = 1e-3 if spectral else 1e-5
    torch.testing.assert_close(
        encoder(images).tokens, model(weights).forward_features(images), rtol=tolerance, atol=tolerance
    )
    assert any("red as red" in note for note in encoder.notes)
    mean, std = (
        ", ".join(f"{255 * value:.4g}" for value in model(weights).pretrained_cfg[key]) for key in ("mean", "std")
    )
    said = f"taken as 8-bit red, green, blue, of mean {mean} and std {std}"
    assert any(said in note for note in encoder.notes) and not any("ImageNet" in note for note in encoder.notes)


@pytest.mark.parametrize("spectral", [True, False])
def test_bands_filled_with_zero_change_nothing(tmp_path: Path, spectral: bool) -> None:
    weights = saved(tmp_path)
    encoder, images = started(weights, S2, spectral=spectral, fill="zero"), torch.randn(2, 13, 48, 48)
    rgb = images[:, [3, 2, 1]]  # B04, B03, B02
    expected = model(weights).patch_embed(rgb * (3 / 13) ** 0.5 if spectral else rgb)
    with torch.no_grad():
        kernel, bias = encoder.patch_embed.baked(S2)
        answer = nn.functional.conv2d(images, kernel, bias, stride=8).flatten(2).transpose(1, 2)
    torch.testing.assert_close(answer, expected, rtol=1e-3, atol=1e-3 if not spectral else 5e-3)
    assert any("B01 as zero" in note and "B8A as zero" in note for note in encoder.notes)


def test_a_grey_image_is_answered_as_before(tmp_path: Path) -> None:
    weights = saved(tmp_path)
    grey = torch.randn(2, 1, 48, 48)
    expected = model(weights).forward_features(grey.expand(-1, 3, -1, -1))
    for sensor in (S2, NAIP, S2.select(["B08", "B11"]), get_sensor("sentinel1")):
        encoder = started(weights, sensor)
        answer = encoder(grey.expand(-1, len(sensor.bands), -1, -1)).tokens
        torch.testing.assert_close(answer, expected, rtol=1e-3, atol=1e-4)


def test_kernels_are_shared_by_the_bands_that_take_them() -> None:
    shares = share_out(inflation(RGB, NAIP, "nearest")[0], RGB, NAIP)
    assert shares.tolist() == [[0.5, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0, 0]]
    assert inflation(RGB, NAIP, "zero")[0].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]
    radar = get_sensor("sentinel1")
    shares = share_out(inflation(RGB, radar, "nearest")[0], RGB, radar)
    torch.testing.assert_close(shares, torch.full((2, 3), 0.5))  # the mean of all, twice
    order = replace(RGB, bands=RGB.bands[::-1])
    assert torch.equal(inflation(RGB, order, "nearest")[0], torch.eye(3).flip(0))
    nir = S2.select(["B08"])
    assert share_out(inflation(RGB, nir, "nearest")[0], RGB, nir).tolist() == [[1, 1, 1]]


def test_bands_of_the_weights_keep_their_kernels_and_weigh_more_than_those_that_borrow(tmp_path: Path) -> None:
    weights = saved(tmp_path)
    encoder, rgb = started(weights, S2), model(weights).patch_embed.proj.weight
    kernels = dict(zip(S2.names, encoder.patch_embed.proj.weight.unbind(1), strict=True))
    borrowing = [name for name in S2.names if name not in ("B02", "B03", "B04")]
    for kernel, name in enumerate(["B04", "B03", "B02"]):
        share = (kernels[name] / rgb[:, kernel]).mean().item()
        torch.testing.assert_close(kernels[name], rgb[:, kernel] * share, rtol=1e-5, atol=1e-6)  # nothing mixed in
        assert share == pytest.approx(0.5, rel=1e-4) or share == pytest.approx(1.0, rel=1e-4)
        assert f"{name} = {share:.2g} {RGB.names[kernel]}" in " ".join(encoder.notes)
    assert all(kernels[name].norm() < min(kernels[one].norm() for one in ("B02", "B04")) for name in borrowing[1:])
    image = torch.randn(2, 3, 48, 48)
    taken = inflation(RGB, S2, "nearest")[0].argmax(1)  # every other band looks as its nearest one
    with torch.no_grad():
        torch.testing.assert_close(
            encoder(image[:, taken]).tokens, model(weights).forward_features(image), rtol=1e-3, atol=1e-4
        )


def test_kernels_that_no_band_takes_are_lent_or_left_out_and_said(tmp_path: Path) -> None:
    pair = RGB.select(["red"])
    assert share_out(inflation(RGB, pair, "nearest")[0], RGB, pair).tolist() == [[1, 0, 0]]
    both = S2.select(["B04", "B08"])
    shares = share_out(inflation(RGB, both, "nearest")[0], RGB, both)
    assert shares.tolist() == [[0.5, 0, 0], [0.5, 1, 1]]
    notes = started(saved(tmp_path), pair).notes
    assert any("are left out: green, blue" in note for note in notes)


def test_spectral_encoder_takes_kernels_for_all_its_sensors(tmp_path: Path) -> None:
    weights = saved(tmp_path)
    encoder = started(weights, NAIP, S2, spectral=True)
    rgb = model(weights).patch_embed.proj.weight
    for sensor, red, nir in ((NAIP, 0, 3), (S2, 3, 7)):
        made = encoder.patch_embed.baked(sensor)[0].detach() * (len(sensor.bands) / 3) ** 0.5
        for place in (red, nir):
            torch.testing.assert_close(made[:, place], rgb[:, 0], rtol=0.05, atol=0.01)
    assert any("differ by" in note for note in encoder.notes)


def test_positions_and_kernels_are_resampled(tmp_path: Path) -> None:
    weights = saved(tmp_path)
    images = torch.randn(2, 3, 64, 64)
    other = timm.create_model("local-dir:" + str(tmp_path), pretrained=True, img_size=64).eval()
    encoder = started(weights, RGB, image_size=64)
    torch.testing.assert_close(encoder(images).tokens, other.forward_features(images), rtol=1e-4, atol=1e-4)
    assert any("(6, 6) to (8, 8)" in note for note in encoder.notes)
    coarse = timm.create_model("local-dir:" + str(tmp_path), pretrained=True, patch_size=16).eval()
    encoder = started(weights, RGB, patch_size=16)
    torch.testing.assert_close(encoder.patch_embed.proj.weight, coarse.patch_embed.proj.weight, rtol=1e-4, atol=1e-5)
    assert any("from 8 to 16 px" in note for note in encoder.notes)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"init_values": 1e-5}, "layer scale"),
        ({"reg_tokens": 2}, "reg_token"),
        ({"pre_norm": True}, "a norm epsilon of 1e-06"),  # which no CLIP has
        ({"qk_norm": True}, "blocks.N.attn.k_norm.weight"),
        ({"act_layer": "relu"}, "the activation ReLU"),
        ({"depth": 3}, "depth 3.*--encoder.size"),
        (
            {"class_token": False, "global_pool": "avg", "fc_norm": False},
            "class_token False; the encoder has .*class_token True",
        ),
        ({"in_chans": 5}, "5 channels and names no bands"),
    ],
)
def test_what_the_encoder_lacks_is_refused_by_name(tmp_path: Path, changes: dict, found: str) -> None:
    error = BandError if "in_chans" in changes else CheckpointError
    with pytest.raises(error, match=found):
        started(saved(tmp_path, **changes), RGB)


def test_other_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = saved(tmp_path)
    with pytest.raises(CheckpointError, match="timm cannot give 'nothing'"):
        started("timm:nothing", RGB)
    with pytest.raises(CheckpointError, match="cannot follow the GSD"):
        started(weights, RGB, gsd_positions=True)
    with pytest.raises(BandError, match="none of the bands of 'sentinel1'"):
        started(weights, get_sensor("sentinel1"), fill="zero")
    other = model(weights)
    other.norm.eps = 1e-5
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: other)
    with pytest.raises(CheckpointError, match="a norm epsilon of 1e-05"):
        started(weights, RGB)


def test_own_exports_and_checkpoints_start_an_encoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = build_encoder({"naip": contract(NAIP), "s2": contract(S2)}, **SIZES, spectral=True).eval()
    entry = {"format_version": 2, "encoder": source.config, "recipe": "mae", "step": 1}
    rights = {"weights": "timm:vit", "licences": ["apache-2.0"], "attributions": []}
    made = {"sentence_files": [{"origin": "vector", "file": "roads.gpkg", "licence": "ODbL-1.0"}], "rights": [rights]}
    entry["provenance"] = made
    free = replace(contract(NAIP), licences=("public domain",), attributions=("USDA",))
    entry["contracts"] = {"naip": free.to_dict(), "s2": contract(S2).to_dict()}
    state = {f"model.encoder.{name}": value for name, value in source.state_dict().items()}
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": state, "geomim": entry}, path)
    images = torch.randn(2, 13, 48, 48)
    expected = source(images, sensor="s2").tokens
    again = started(str(path), S2, spectral=True)
    carried = ["public domain", "ODbL-1.0 (sentences of roads.gpkg)"]
    assert again.rights == ({"weights": str(path), "licences": carried, "attributions": ["USDA"]}, rights)
    torch.testing.assert_close(again(images).tokens, expected, rtol=1e-5, atol=1e-5)
    plain = started(str(path), S2)  # its kernels are made for the one sensor
    torch.testing.assert_close(plain(images).tokens, expected, rtol=1e-5, atol=1e-5)
    folder = export(str(path), str(tmp_path / "out"), sensor="s2")
    for weights in (str(folder), f"timm:local-dir:{folder}"):
        order = S2.select([*S2.names[::-1]])  # matched by name
        shuffled = started(weights, order)
        torch.testing.assert_close(shuffled(images.flip(1)).tokens, expected, rtol=1e-4, atol=1e-5)


def clip_in_file(folder: Path, quick_gelu: bool = True) -> tuple[str, nn.Module]:
    """A small CLIP in RemoteCLIP's layout."""
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    vision = {"image_size": 48, "layers": 2, "width": 64, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 50, "width": 64, "heads": 1, "layers": 1}
    tower = open_clip.CLIP(48, vision, text, quick_gelu=quick_gelu).eval()
    for parameter in tower.parameters():
        nn.init.normal_(parameter, std=0.1)
    torch.save(tower.state_dict(), folder / "clip.pt")
    return f"remoteclip:{folder / 'clip.pt'}", tower.visual


CLIP_SIZES = {"width": 64, "heads": 1}


@pytest.mark.parametrize("clip", ["quick_gelu", "gelu"])
def test_an_image_tower_of_clip_starts_an_encoder_that_answers_alike(tmp_path: Path, clip: str) -> None:
    weights, tower = clip_in_file(tmp_path, clip == "quick_gelu")
    encoder = started(weights, RGB, clip=clip, **CLIP_SIZES)  # its activation is the encoder's, whatever is usual
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images).tokens[:, 0] @ tower.proj, tower(images), rtol=1e-5, atol=1e-5)
        some = encoder(images, indices=torch.arange(36).expand(2, -1))  # as in training
        torch.testing.assert_close(some.tokens, encoder(images).tokens, rtol=1e-5, atol=1e-5)
    assert encoder.config["clip"] == clip and from_config(encoder.config).config == encoder.config
    said = f"activation {'QuickGELU' if clip == 'quick_gelu' else 'GELU'}"
    assert any(said in note for note in encoder.notes) and any("red as red" in note for note in encoder.notes)
    name, arguments = encoder.timm_arguments()
    plain = timm.create_model(name, num_classes=0, **arguments).eval()
    plain.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(plain.forward_features(images), encoder(images).tokens, rtol=1e-5, atol=1e-5)


def test_multispectral_encoders_start_from_an_image_tower_of_clip(tmp_path: Path) -> None:
    weights, tower = clip_in_file(tmp_path)
    grey = torch.randn(2, 1, 48, 48)
    with torch.no_grad():
        expected = tower(grey.expand(-1, 3, -1, -1))
        plain = started(weights, S2, clip="quick_gelu", **CLIP_SIZES)
        answer = plain(grey.expand(-1, 13, -1, -1)).tokens[:, 0] @ tower.proj
        torch.testing.assert_close(answer, expected, rtol=1e-3, atol=1e-4)
        spectral = started(weights, RGB, S2, spectral=True, clip="quick_gelu", **CLIP_SIZES)
        rgb = torch.randn(2, 3, 48, 48)
        answer = spectral(rgb, sensor="rgb").tokens[:, 0] @ tower.proj
        torch.testing.assert_close(answer, tower(rgb), rtol=1e-3, atol=1e-3)
        baked = spectral.bake(contract(S2))
        images = torch.randn(2, 13, 48, 48)
        torch.testing.assert_close(
            baked(images).tokens, spectral(images, sensor="sentinel2").tokens, rtol=1e-5, atol=1e-5
        )
    assert "patch_embed.bias" not in spectral.state_dict() and baked.patch_embed.proj.bias is None


def test_towers_of_clip_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    weights, _ = clip_in_file(tmp_path)
    with pytest.raises(CheckpointError, match=r"clip quick_gelu.*; the encoder has .*clip None.*: give .*and clip"):
        started(weights, RGB, **CLIP_SIZES)
    with pytest.raises(CheckpointError, match="give it as remoteclip:PATH"):
        started(weights.removeprefix("remoteclip:"), RGB)
    open_clip = pytest.importorskip("open_clip")
    text = {"context_length": 8, "vocab_size": 50, "width": 64, "heads": 1, "layers": 1}
    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64}
    torch.save(open_clip.CLIP(48, vision, text).state_dict(), tmp_path / "resnet.pt")
    with pytest.raises(CheckpointError, match="family ModifiedResNet"):
        started(f"remoteclip:{tmp_path / 'resnet.pt'}", RGB)


def test_clips_of_timm_start_an_encoder(tmp_path: Path) -> None:
    args = {"img_size": 48, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    torch.manual_seed(0)
    tower = timm.create_model("vit_base_patch16_clip_quickgelu_224", num_classes=0, **args)
    for parameter in tower.parameters():
        nn.init.normal_(parameter, std=0.1)
    architecture = tower.pretrained_cfg | {"architecture": "vit_base_patch16_clip_quickgelu_224"}
    tower.pretrained_cfg = architecture
    save_for_hf(tower, tmp_path, model_args=args, safe_serialization=True)
    encoder, images = started(f"timm:local-dir:{tmp_path}", RGB, clip="quick_gelu"), torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(encoder(images).tokens, tower.eval().forward_features(images), rtol=1e-5, atol=1e-5)
