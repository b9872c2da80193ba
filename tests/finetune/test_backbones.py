from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_encoder import NAIP, S2, checkpoint, exported

from geomim.errors import BandError, CheckpointError, ConfigError, InputError
from geomim.finetune.backbones import Backbone, open_backbone, write_backbone
from geomim.sensors import Band, Sensor, get_sensor


@torch.no_grad()
def tokens(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    return network.forward_features(images)


def alike(one: torch.Tensor, two: torch.Tensor) -> None:
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


def test_run_checkpoint_and_export_are_the_same_model_of_timm(tmp_path: Path, monkeypatch) -> None:
    encoder = checkpoint(tmp_path / "mine" / "checkpoints" / "last.ckpt")
    exported(tmp_path / "out")
    run = tmp_path / "mine"
    for source, name in ((run, "mine"), (run / "checkpoints" / "last.ckpt", "mine"), (tmp_path / "out", "out")):
        opened = open_backbone(str(source))
        assert opened.name == name and opened.contract.mean == NAIP.mean and not opened.network.training
        for side in (64, 48):
            images = torch.randn(2, 4, side, side)
            alike(tokens(opened.network, images), encoder(images).tokens.detach())
    maps = opened.network.forward_intermediates(images, indices=[1, 3], norm=True, intermediates_only=True)
    assert [one.shape for one in maps] == [(2, 32, 6, 6)] * 2 and opened.network.num_features == 32
    monkeypatch.chdir(tmp_path)
    assert open_backbone("out").name == "out" and open_backbone("mine").name == "mine"
    again = open_backbone(f"timm:local-dir:{tmp_path / 'out'}")
    assert again.contract == open_backbone(str(tmp_path / "out")).contract
    alike(tokens(again.network, images), encoder(images).tokens.detach())


def test_metres_that_it_was_trained_at_are_known_whatever_sensor_it_is_used_for(tmp_path: Path) -> None:
    checkpoint(tmp_path / "tiny.ckpt", S2)
    assert S2.sensor.gsd == 10 and open_backbone(str(tmp_path / "tiny.ckpt")).gsds == (10,)
    two = S2.sensor.select(["B02", "B03"])
    other = replace(two, name="mine", bands=tuple(replace(band, gsd=0.5) for band in two.bands))
    opened = open_backbone(str(tmp_path / "tiny.ckpt"), other)
    assert opened.contract.sensor.gsd == 0.5 and opened.gsds == (10,) and opened.trained_at == ()
    content = torch.load(tmp_path / "tiny.ckpt", weights_only=True)
    content["geomim"]["provenance"]["gsd"] = {S2.sensor.name: 2.5}
    torch.save(content, tmp_path / "told.ckpt")
    assert open_backbone(str(tmp_path / "told.ckpt"), other).trained_at == (2.5,)


def test_a_hierarchical_encoder_opens_too(tmp_path: Path) -> None:
    sizes = {"family": "swinv2", "patch_size": 2, "width": 8, "depth": 2, "heads": 1}
    encoder = checkpoint(tmp_path / "a.ckpt", **sizes)
    opened, images = open_backbone(str(tmp_path / "a.ckpt")), torch.randn(1, 4, 64, 64)
    alike(tokens(opened.network, images).flatten(1, 2), encoder(images).tokens.detach())
    assert {one["reduction"] for one in opened.network.feature_info} == {2, 4, 8, 16}


def test_a_spectral_encoder_is_baked(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    encoder = checkpoint(path, NAIP, S2, spectral=True)
    with pytest.raises(CheckpointError, match="several sensors"):
        open_backbone(str(path))
    for contract in (NAIP, S2):
        opened, images = open_backbone(str(path), contract.sensor.name), torch.randn(1, len(contract.names), 64, 64)
        alike(tokens(opened.network, images), encoder(images, sensor=contract.sensor.name).tokens.detach())
        assert opened.contract.mean == contract.mean and "trained on naip, sentinel2" in opened.notes[-1]
    assert open_backbone(str(path), "sentinel2", ["B08", "B04"]).contract.mean == (S2.mean[7], S2.mean[3])
    given = get_sensor("sentinel2").select(["B04", "B03", "B02"])
    assert open_backbone(str(path), given, ["B03", "B02"]).contract.names == ("B03", "B02")


def test_fewer_bands_answer_as_if_the_others_were_at_their_mean(tmp_path: Path) -> None:
    encoder = checkpoint(tmp_path / "a.ckpt")
    opened, images = open_backbone(str(tmp_path / "a.ckpt"), bands=["nir", "red"]), torch.randn(2, 2, 64, 64)
    assert opened.contract.mean == (120.0, 100.0) and opened.contract.licences == ("public domain",)
    assert "left out: green, blue" in opened.notes[-1]
    whole = torch.zeros(2, 4, 64, 64)
    whole[:, [3, 0]] = images
    alike(tokens(opened.network, images), encoder(whole).tokens.detach())


def test_a_sensor_that_has_its_bands_changes_nothing(tmp_path: Path) -> None:
    checkpoint(tmp_path / "a.ckpt")
    more = Sensor("mine", (Band("swir", 1600, 50), *reversed(NAIP.sensor.bands)))
    assert open_backbone(str(tmp_path / "a.ckpt"), more).contract.names == NAIP.names


def test_statistics_that_a_file_states_outrank_those_of_training(tmp_path: Path) -> None:
    checkpoint(tmp_path / "a.ckpt")
    path, file, images = str(tmp_path / "a.ckpt"), tmp_path / "mine.yaml", torch.randn(1, 4, 64, 64)
    stated = f"mean: {[50, 40, 30, 60, 20]}\nstd: {[5, 4, 3, 6, 2]}\n"
    for name in ("mine", "naip"):
        file.write_text(f"name: {name}\nbands: [swir, nir, blue, green, red]\n{stated}")
        opened = open_backbone(path, str(file))
        assert opened.contract.names == NAIP.names and opened.contract.licences == NAIP.licences
        assert (opened.contract.mean, opened.contract.std) == ((20.0, 60.0, 30.0, 40.0), (2.0, 6.0, 3.0, 4.0))
        assert opened.notes[-1] == f"its mean and std are those of '{file}'"
        alike(tokens(opened.network, images), tokens(open_backbone(path).network, images))


def test_other_bands_take_the_kernels_of_the_nearest(tmp_path: Path) -> None:
    encoder = checkpoint(tmp_path / "a.ckpt")
    mine = Sensor("mine", (Band("red", 640, 30), Band("edge", 720, 20), Band("swir", 1600, 50)), scale=0.5)
    opened = open_backbone(str(tmp_path / "a.ckpt"), mine)
    kernel, own = opened.network.patch_embed.proj.weight.detach(), encoder.patch_embed.proj.weight.detach()
    assert opened.contract.names == ("red", "edge", "swir") and opened.network.patch_embed.proj.in_channels == 3
    alike(kernel.sum(1), own.sum(1))  # bands that all look alike answer as before
    assert opened.contract.mean == (200.0, 200.0, 240.0)  # stored numbers of half a unit
    assert any("edge as red of naip" in note and "swir as nir of naip" in note for note in opened.notes)


def test_bands_that_are_like_none_are_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path / "a.ckpt")
    path = str(tmp_path / "a.ckpt")
    with pytest.raises(BandError, match="no band that the encoder knows tells mean and std of VV"):
        open_backbone(path, Sensor("radar", (Band("VV"),)))
    with pytest.raises(BandError, match="tells mean and std of B04 in"):  # reflectance, and it knows counts
        open_backbone(path, "sentinel2", ["B04"])
    with pytest.raises(BandError, match="missing swir"):
        open_backbone(path, bands=["red", "swir"])
    file = tmp_path / "s2.yaml"
    file.write_text("name: s2\nunit: reflectance\nbands: [{name: red, wavelength: 665}]\nmean: [900]\nstd: [300]\n")
    assert open_backbone(path, str(file), ["red"]).contract.mean == (900.0,)


def test_the_floor_is_the_same_architecture_with_other_weights(tmp_path: Path) -> None:
    exported(tmp_path / "out")
    before = torch.get_rng_state()
    state = open_backbone(str(tmp_path / "out")).network.state_dict()
    for source in (str(tmp_path / "out"), f"timm:local-dir:{tmp_path / 'out'}"):
        one, two, other = (open_backbone(source, seed=seed) for seed in (1, 1, 2))
        assert one.name.endswith(", random initialisation") and one.contract.mean == NAIP.mean
        floor = one.network.state_dict()
        assert {name: value.shape for name, value in floor.items()} == {n: v.shape for n, v in state.items()}
        for name in ("blocks.0.attn.qkv.weight", "patch_embed.proj.weight"):
            again, third = two.network.state_dict()[name], other.network.state_dict()[name]
            assert torch.equal(floor[name], again)
            assert not torch.equal(floor[name], third) and not torch.equal(floor[name], state[name])
    assert torch.equal(before, torch.get_rng_state())  # nothing is drawn from the user's numbers


def test_positions_follow_the_size_of_the_images(tmp_path: Path) -> None:
    checkpoint(tmp_path / "a.ckpt")
    plain, larger = (open_backbone(str(tmp_path / "a.ckpt"), image_size=size).network for size in (None, 96))
    assert larger.pos_embed.shape[1] == 1 + 12 * 12
    images = torch.randn(1, 4, 96, 96)
    alike(tokens(larger, images), tokens(plain, images))
    with pytest.raises(ConfigError, match="image_size 65: expected a multiple"):
        open_backbone(str(tmp_path / "a.ckpt"), image_size=65)
    with pytest.raises(ConfigError, match="image_size 64: 'timm:mixer_s32_224' takes images of 224 pixels alone"):
        open_backbone("timm:mixer_s32_224", seed=0, image_size=64)


@pytest.mark.parametrize(
    ("source", "given"),
    [
        ("vit", {"image_size": 96, "bands": ["nir", "red"]}),
        ("spectral", {"sensor": "naip"}),
        ("swin", {"bands": ["red"]}),
        ("timm:resnet10t", {"bands": ["blue"], "seed": 0}),
        ("timm:test_vit", {"image_size": 48, "seed": 0}),
    ],
)
def test_plain_values_and_weights_make_it_again_and_write_it_without_its_file(tmp_path, source, given) -> None:
    swin = {"family": "swinv2", "patch_size": 2, "width": 8, "depth": 2, "heads": 1}
    options = {"vit": {}, "spectral": {"spectral": True, "gsd_positions": True}, "swin": swin}
    if source in options:
        checkpoint(file := tmp_path / "a.ckpt", NAIP, **options[source])
        source = str(file)
    opened = open_backbone(source, **given)
    Path(tmp_path / "a.ckpt").unlink(missing_ok=True)
    torch.save(opened.to_dict(), tmp_path / "plain")
    again = Backbone.from_dict(torch.load(tmp_path / "plain", weights_only=True))
    again.network.load_state_dict(opened.network.state_dict())
    side = given.get("image_size", 64)
    images = torch.randn(2, len(opened.contract.names), side, side)
    assert torch.equal(tokens(again.network, images), tokens(opened.network, images))
    assert (again.contract, again.notes, again.name) == (opened.contract, opened.notes, opened.name)
    write_backbone(again, tmp_path / "out")
    folder = str(write_backbone(again, tmp_path / "out"))  # over what an interrupted run left
    for one in (f"timm:local-dir:{folder}", *([folder] if again.config else [])):
        third = open_backbone(one)
        assert torch.equal(third.network(images), opened.network(images)) and third.contract == opened.contract
    with pytest.raises(InputError, match="out"):
        (tmp_path / "out" / "config.json").write_text("{}")
        write_backbone(again, tmp_path / "out")


def test_what_cannot_be_opened_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'nowhere' does not exist: expected a run folder"):
        open_backbone("nowhere")
    with pytest.raises(CheckpointError, match="timm cannot give 'no_such_net'"):
        open_backbone("timm:no_such_net")


def test_any_model_of_timm_opens_and_takes_fewer_bands() -> None:
    opened = open_backbone("timm:resnet10t", bands=["blue"], seed=0)
    assert opened.contract.names == ("blue",) and "taken as 8-bit red, green, blue" in opened.notes[0]
    maps = opened.network.forward_intermediates(torch.randn(1, 1, 64, 64), intermediates_only=True)
    assert maps[-1].shape == (1, 512, 2, 2)
