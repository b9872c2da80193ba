"""Frozen teachers: what they are given, that it equals running them by hand, and what is refused."""

import dataclasses
import json
import logging

import numpy as np
import pytest
import timm
import torch
from tiny_teacher import MEAN, STD, write_teacher
from torch.nn import functional as F

from geomim.errors import BandError, CheckpointError, ConfigError
from geomim.models.build import build_encoder
from geomim.models.frozen import last_levels, read_frozen
from geomim.models.vit import ViT
from geomim.pretrain.context import Context, View
from geomim.pretrain.recipes import RECIPES
from geomim.pretrain.targets import FrozenTeacher, TeacherLevels
from geomim.randomness import Draws
from geomim.sensors import SENSORS, Band, BandContract, Sensor
from geomim.verbs.export import export

NAIP = BandContract(SENSORS["naip"], (100.0, 110.0, 90.0, 140.0), (40.0, 50.0, 30.0, 60.0))


def encoder(*contracts: BandContract, side: int = 32, patch: int = 4) -> ViT:
    network = ViT(len(contracts[0].names), side, patch, width=24, depth=2, heads=2)
    network.contracts = {one.sensor.name: one for one in contracts}
    return network


def view_of(network: ViT, contract: BandContract, numbers: torch.Tensor, valid: torch.Tensor | None = None) -> View:
    mean, std = (torch.tensor(values)[:, None, None] for values in (contract.mean, contract.divisor))
    batch = {"image": (numbers - mean) / std, "sensor": contract.sensor.name}
    batch |= {} if valid is None else {"valid": valid}
    return Context(batch, network, Draws(0, torch.arange(len(numbers)))).views["image"]


def by_hand(name: str, pictures: torch.Tensor, size: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Tokens after every block, and class attention, of 0..1 pictures as timm itself would be used."""
    network = timm.create_model(name.removeprefix("timm:"), pretrained=True, num_classes=0, img_size=size).eval()
    images = (pictures - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    kept, attention = [], []
    for block in network.blocks:
        block.attn.fused_attn = False
        block.register_forward_hook(lambda *call: kept.append(call[-1]))
    network.blocks[-1].attn.attn_drop.register_forward_hook(lambda *call: attention.append(call[-1]))
    with torch.no_grad():
        network(images)
    return kept, attention[0].mean(1)[:, 0, 1:]


def test_bands_are_mapped_and_normalised_as_its_own(tmp_path, caplog) -> None:
    """8-bit red, green, blue and infrared: as if the teacher had been given red, green, blue of 0..1."""
    name = write_teacher(tmp_path / "teacher")
    turned = dataclasses.replace(NAIP, sensor=SENSORS["naip"].select(["nir", "blue", "green", "red"]))
    network = encoder(turned, side=16)
    with caplog.at_level(logging.WARNING):
        teacher = FrozenTeacher(name, network, levels=2)
    assert "sees red (+0.7 +- 1.2), green (-0.6 +- 0.47), blue (-0.6 +- 0.65) of naip" in caplog.text
    numbers = torch.randint(0, 256, (3, 4, 16, 16)).float()
    view = view_of(network, turned, numbers)
    states = teacher(view)
    levels, attention = by_hand(name, numbers[:, [3, 2, 1]] / 255, 16)
    torch.testing.assert_close(states[0], levels[-2:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(states[1], attention, rtol=1e-4, atol=1e-6)
    assert teacher(view) is states  # once a view
    positions = torch.tensor([[3, 0], [1, 2], [5, 5]])
    answer = TeacherLevels(teacher)(view, positions).values
    assert answer.shape == (3, 3, 48) and not answer.requires_grad
    right = F.layer_norm(levels[-1], (24,))
    torch.testing.assert_close(answer[:, 0, 24:], right[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(answer[1, 2, 24:], right[1, 1 + 2], rtol=1e-4, atol=1e-5)


def test_its_grid_is_the_encoders(tmp_path) -> None:
    """A teacher of 4 px patches beside an encoder of 8 px patches is given half the pixels."""
    name = write_teacher(tmp_path / "teacher")
    network = encoder(NAIP, side=32, patch=8)
    teacher = FrozenTeacher(name, network, levels=3)
    numbers = torch.rand(2, 4, 32, 32) * 255
    tokens, attention = teacher(view_of(network, NAIP, numbers))
    small = F.interpolate(numbers[:, :3], (16, 16), mode="bilinear", antialias=True) / 255
    levels, _ = by_hand(name, small, 16)
    assert len(tokens) == 3 and attention.shape == (2, network.num_patches)
    torch.testing.assert_close(tokens, levels, rtol=1e-3, atol=1e-4)
    with pytest.raises(ConfigError, match=r"expected \(4, 4\) patches; given \(6, 4\)"):
        teacher(view_of(network, NAIP, torch.rand(2, 4, 48, 32)))


def test_positions_are_resampled_to_another_grid(tmp_path) -> None:
    name = write_teacher(tmp_path / "teacher")
    network = encoder(NAIP, side=32)
    numbers = torch.rand(2, 4, 32, 32) * 255
    states = FrozenTeacher(name, network, levels=1)(view_of(network, NAIP, numbers))
    levels, _ = by_hand(name, numbers[:, :3] / 255, 32)
    torch.testing.assert_close(states[0], levels[-1:], rtol=1e-4, atol=1e-5)


def test_reflectance_is_given_as_pictures_of_it(tmp_path) -> None:
    name = write_teacher(tmp_path / "teacher")
    sensor = SENSORS["sentinel2"].select(["B08", "B02", "B03", "B04"])
    contract = BandContract(sensor, (2500.0, 900.0, 1100.0, 1200.0), (900.0, 500.0, 500.0, 600.0))
    network = encoder(contract, side=16)
    numbers = torch.rand(2, 4, 16, 16) * 3000
    states = FrozenTeacher(name, network, levels=1)(view_of(network, contract, numbers))
    levels, _ = by_hand(name, numbers[:, [3, 2, 1]] * 1e-4, 16)
    torch.testing.assert_close(states[0], levels[-1:], rtol=1e-4, atol=1e-5)


def test_every_sensor_has_its_own_way_to_the_teacher(tmp_path) -> None:
    name = write_teacher(tmp_path / "teacher")
    rgb = BandContract(SENSORS["rgb"], (80.0, 90.0, 100.0), (50.0, 50.0, 50.0))
    turned = dataclasses.replace(
        rgb, sensor=dataclasses.replace(SENSORS["rgb"].select(["blue", "green", "red"]), name="bgr")
    )
    network = encoder(rgb, turned, side=16)
    teacher = FrozenTeacher(name, network, levels=1)
    numbers = torch.rand(2, 3, 16, 16) * 255
    one, two = (
        teacher(view_of(network, contract, pixels)) for contract, pixels in ((rgb, numbers), (turned, numbers.flip(1)))
    )
    mean = torch.tensor(turned.mean)
    assert not torch.equal(mean, mean.flip(0))
    torch.testing.assert_close(one[0], two[0], rtol=1e-4, atol=1e-4)


def test_what_was_not_measured_is_the_teachers_mean(tmp_path) -> None:
    name = write_teacher(tmp_path / "teacher")
    network = encoder(NAIP, side=16)
    teacher = FrozenTeacher(name, network, 2)
    valid = torch.ones(2, 1, 16, 16, dtype=torch.bool)
    valid[..., :8] = False
    numbers = torch.rand(2, 4, 16, 16) * 255
    filled = [torch.where(valid, numbers, fill) for fill in (0.0, 1e6)]
    one, two = (teacher(view_of(network, NAIP, pixels, valid)) for pixels in filled)
    assert torch.equal(one[0][-1], two[0][-1]) and torch.equal(one[1], two[1])


def test_a_geomim_encoder_teaches_from_checkpoint_or_export(tmp_path) -> None:
    torch.manual_seed(2)
    own = ViT(4, 16, 4, width=24, depth=3, heads=2).eval()
    entry = {"format_version": 2, "encoder": own.config, "contract": NAIP.to_dict()}
    state = {f"model.encoder.{name}": value for name, value in own.state_dict().items()}
    torch.save({"geomim": entry, "state_dict": state}, tmp_path / "own.ckpt")
    folder = export(str(tmp_path / "own.ckpt"), str(tmp_path / "export"))
    network = encoder(NAIP, side=16)
    numbers = torch.rand(2, 4, 16, 16) * 255
    view = view_of(network, NAIP, numbers)
    with torch.no_grad():
        levels = own(view.image, levels=True).levels
    for source in (tmp_path / "own.ckpt", folder, f"timm:local-dir:{folder}"):
        states = FrozenTeacher(str(source), network, levels=2)(view_of(network, NAIP, numbers))
        torch.testing.assert_close(states[0], levels[-2:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("quick", [False, True])
def test_an_open_clip_tower_teaches(tmp_path, monkeypatch, quick) -> None:
    open_clip = pytest.importorskip("open_clip")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "layers": 3, "width": 64, "head_width": 32, "patch_size": 4},
        "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 1, "layers": 1},
    }
    (tmp_path / "tiny-tower.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-tower.json")
    torch.manual_seed(0)
    # what is published says of weights whether they want QuickGELU: of OpenAI's, where no architecture does
    assert open_clip.get_pretrained_cfg("ViT-B-32", "openai")["quick_gelu"]
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda *_: {"quick_gelu": True} if quick else {})
    model = open_clip.create_model("tiny-tower", force_quick_gelu=quick).eval()
    torch.save(model.state_dict(), tmp_path / "tower.pt")
    source = f"open_clip:tiny-tower/{tmp_path / 'tower.pt'}"
    network, contract = read_frozen(source, (4, 4))
    np.testing.assert_allclose(contract.mean, [255 * value for value in open_clip.OPENAI_DATASET_MEAN])
    images, tower = torch.randn(2, 3, 16, 16), model.visual
    with torch.no_grad():
        tokens, attention = last_levels(network, images, 2)
        before, after = tower.transformer.forward_intermediates(tower._embeds(images), indices=2)[1]
        normed = tower.transformer.resblocks[-1].ln_1(before)
        _, weights = tower.transformer.resblocks[-1].attn(normed, normed, normed)
    torch.testing.assert_close(tokens, [before, after], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attention, weights[:, 0, 1:], rtol=1e-4, atol=1e-6)
    wide, _ = read_frozen(source, (4, 6))
    assert last_levels(wide, torch.randn(1, 3, 16, 24), 1)[0][0].shape == (1, 25, 64)
    with pytest.raises(CheckpointError, match="open_clip:NAME/PRETRAINED"):
        read_frozen("open_clip:tiny-tower", (4, 4))


RADAR = BandContract(Sensor("radar", (Band("VV"), Band("VH")), "dB"), (-10.0, -17.0), (4.0, 5.0))
RAW = BandContract(SENSORS["rgb"], (1200.0, 1100.0, 900.0), (600.0, 500.0, 500.0))
SMALL = BandContract(SENSORS["rgb"], (0.2, 0.3, 0.2), (0.1, 0.1, 0.2))


def test_what_a_teacher_cannot_see_is_refused_by_name(tmp_path) -> None:
    name = write_teacher(tmp_path / "teacher")
    with pytest.raises(BandError, match=r"cannot see 'radar'.*red, green, blue; given VV, VH"):
        FrozenTeacher(name, encoder(RADAR), 2)
    with pytest.raises(BandError, match=r"other numbers than those of 'rgb'.*red \(\+21.*unit, scale and offset"):
        FrozenTeacher(name, encoder(RAW), 2)
    with pytest.raises(BandError, match=r"other numbers than those of 'rgb'.*red \(-2.0 \+- 0.002\)"):
        FrozenTeacher(name, encoder(SMALL), 2)
    with pytest.raises(ConfigError, match="has 3 blocks: expected 1 to as many levels; given 5"):
        FrozenTeacher(name, encoder(NAIP), 5)
    with pytest.raises(ConfigError, match="band contracts"):
        FrozenTeacher(name, ViT(4, 32, 4, width=24, depth=2, heads=2))
    with pytest.raises(BandError, match="5 channels and names no bands"):
        FrozenTeacher(write_teacher(tmp_path / "five", in_chans=5), encoder(NAIP), 2)
    no_class = write_teacher(tmp_path / "headless", class_token=False, global_pool="avg")
    with pytest.raises(CheckpointError, match="with a class token; given VisionTransformer without"):
        FrozenTeacher(no_class, encoder(NAIP), 2)
    swin = build_encoder({"rgb": RAW}, family="swinv2", size="tiny", image_size=64, patch_size=4)
    state = {f"model.encoder.{key}": value for key, value in swin.state_dict().items()}
    entry = {"format_version": 2, "encoder": swin.config, "contract": RAW.to_dict()}
    torch.save({"state_dict": state, "geomim": entry}, tmp_path / "swin.ckpt")
    with pytest.raises(CheckpointError, match=r"swin\.ckpt': expected a vision transformer with a class token"):
        FrozenTeacher(str(tmp_path / "swin.ckpt"), encoder(NAIP), 2)
    with pytest.raises(CheckpointError, match="cannot read teacher 'timm:no_such_model'"):
        FrozenTeacher("timm:no_such_model", encoder(NAIP), 2)
    without = ViT(4, 32, 4, width=24, depth=2, heads=2, class_token=False)
    with pytest.raises(ConfigError, match=r"--encoder.class_token true"):
        RECIPES["mask_align"](without, teacher=name)


def test_its_weights_are_not_trained_and_not_stored(tmp_path) -> None:
    name = write_teacher(tmp_path / "teacher")
    model = RECIPES["mask_align"](encoder(NAIP), teacher=name, levels=2)
    heads = {f"terms.0.decoder.{name}" for name in model.terms[0].decoder.state_dict()}
    assert set(model.state_dict()) == heads | {f"encoder.{name}" for name in model.encoder.state_dict()}
    teacher = model.masking.teacher.network
    assert not teacher.training and not any(value.requires_grad for value in teacher.parameters())
