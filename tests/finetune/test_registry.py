import copy
from functools import partial
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from lightning.pytorch import Trainer
from timm.models import save_for_hf
from tiny_encoder import NAIP, checkpoint, exported
from torch.utils.data import DataLoader
from torchgeo.models import get_model, get_model_weights, get_weight, list_models
from torchvision.models._api import WeightsEnum

from geomim.errors import BandError, CheckpointError, ConfigError
from geomim.finetune.registry import PlainEncoder, Registered, lightning_checkpoint, register
from geomim.finetune.stock import Change, Classification, Regression, Segmentation
from geomim.models.inputs import ContractInput
from geomim.models.vit import ViT

NAMES = NAIP.names


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Registered, ViT]:
    folder = tmp_path_factory.mktemp("registry") / "Fields-10"
    encoder = exported(folder)
    return register(str(folder)), encoder


def alike(one: torch.Tensor, two: torch.Tensor) -> None:
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_timm_makes_it_by_name(both: tuple[Registered, ViT]) -> None:
    one, encoder = both
    assert one.name == "geomim_fields_10" and timm.is_model(one.name)
    model = timm.create_model(one.name, pretrained=True, num_classes=5).eval()
    for side in (64, 96):
        images = torch.randn(2, 4, side, side)
        alike(model.forward_features(images), encoder(images).tokens)
    assert model(images).shape == (2, 5) and model.pretrained_cfg["contract"] == NAIP.to_dict()
    maps = timm.create_model(one.name, pretrained=True, features_only=True, out_indices=(1, 3)).eval()(images)
    alike(maps[1], model.forward_intermediates(images, indices=[1, 3], intermediates_only=True)[1])
    fresh = timm.create_model(one.name).eval()
    assert not torch.equal(fresh.state_dict()["patch_embed.proj.weight"], one.state["patch_embed.proj.weight"])


@torch.no_grad()
def test_other_numbers_of_bands_are_refused_and_two_dates_share_the_kernels(both: tuple[Registered, ViT]) -> None:
    one, encoder = both
    for channels in (3, 5, 12):
        with pytest.raises(BandError, match=rf"4 bands \(red, green, blue, nir\).*given {channels} channels"):
            timm.create_model(one.name, pretrained=True, in_chans=channels)
    with pytest.raises(BandError, match="given 3 channels"):
        Classification(model=one.name, weights=one.weights, in_channels=3, num_classes=2)
    with pytest.raises(BandError, match="given 3 channels"):
        Segmentation(model="unet", backbone=one.name, weights=one.weights, in_channels=3, num_classes=2)
    model, images = timm.create_model(one.name, pretrained=True, in_chans=8).eval(), torch.randn(2, 2, 4, 64, 64)
    mean = encoder(images.mean(1)).tokens  # an embedding is linear
    alike(model.forward_features(images.flatten(1, 2)), mean)


def test_torchgeo_finds_it_by_name(both: tuple[Registered, ViT]) -> None:
    one, _ = both
    member = get_weight("GeomimFields10_Weights.DEFAULT")
    assert isinstance(member, WeightsEnum) and str(member) == one.weights and one.name in list_models()
    assert list(get_model_weights(one.name)) == [member] and copy.deepcopy(member) is member
    assert member.meta["bands"] == list(NAMES) and member.meta["in_chans"] == 4 and member.meta["model"] == one.name
    for arguments in ({}, {"features_only": True}):
        model = get_model(one.name, weights=member, **arguments)
        state = getattr(model, "model", model).state_dict()
        assert all(torch.equal(one.state[key], value) for key, value in state.items() if key in one.state)
        assert {"patch_embed.proj.weight", "blocks.3.mlp.fc2.weight", "pos_embed"} <= state.keys()


def test_transforms_normalise_the_image_of_a_sample_as_the_contract_says(both: tuple[Registered, ViT]) -> None:
    transforms, mask = get_weight(both[0].weights).transforms, torch.ones(8, 8)
    images = torch.rand(2, 4, 8, 8) * 255
    expected, _ = ContractInput(NAIP, NAIP.sensor)(images)
    got = transforms({"mask": mask, "image": images[0], "label": 1})
    alike(got["image"], expected[0])
    assert got["mask"] is mask and got["label"] == 1
    alike(transforms({"image": images})["image"], expected)
    images[0, 2, 3, 3], images[1, 0, 1, 2] = float("nan"), float("inf")
    got = transforms(images)
    alike(got, ContractInput(NAIP, NAIP.sensor)(images)[0])
    assert not got[0, :, 3, 3].any() and not got[1, :, 1, 2].any()


@torch.no_grad()
@pytest.mark.parametrize(("patch", "output_stride"), [(8, 32), (16, 16), (8, 8)])
def test_maps_have_their_strides_and_add_no_weights(patch: int, output_stride: int, tmp_path: Path) -> None:
    encoder = exported(tmp_path / f"smp {patch} {output_stride}", patch_size=patch)
    one = register(str(tmp_path / f"smp {patch} {output_stride}"))
    made = smp.encoders.get_encoder(one.name, in_channels=4, weights=None, output_stride=output_stride).eval()
    assert isinstance(made, PlainEncoder) and made.output_stride == output_stride
    assert made.load_state_dict(one.state).missing_keys == []  # by plain names, strictly
    images = torch.randn(2, 4, 64, 96)
    maps = made(images)
    strides = [min(2**level, output_stride) for level in range(1, 6)]
    assert [tuple(one.shape) for one in maps[1:]] == [(2, 32, 64 // stride, 96 // stride) for stride in strides]
    assert maps[0] is images and made.out_channels == [4, *[32] * 5]
    last = encoder(images).tokens[:, 1:].transpose(1, 2).unflatten(2, (64 // patch, 96 // patch))
    if patch == output_stride:
        alike(maps[-1], last)
    else:
        alike(maps[-1].mean((2, 3)), last.mean((2, 3)))
    assert made.state_dict().keys() == {f"network.{key}" for key in one.state}
    made.load_state_dict(made.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        made.load_state_dict({key: value for key, value in one.state.items() if key != "norm.bias"})


def test_a_frozen_encoder_stays_and_the_decoder_learns(both: tuple[Registered, ViT]) -> None:
    one, _ = both
    task = Segmentation("unet", one.name, one.weights, in_channels=4, num_classes=2, freeze_backbone=True)
    batch = {"image": torch.randn(2, 4, 64, 64), "mask": torch.ones(2, 64, 64, dtype=torch.long)}
    before = copy.deepcopy(task.model.state_dict())
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    Trainer(max_steps=1, accelerator="cpu", **quiet).fit(task, *[DataLoader([batch], batch_size=None)] * 2)
    after = task.model.state_dict()
    assert all(torch.equal(after[f"encoder.network.{key}"], value) for key, value in one.state.items())
    assert not torch.equal(after["segmentation_head.0.weight"], before["segmentation_head.0.weight"])


def test_changevit_takes_it_at_another_size(both: tuple[Registered, ViT]) -> None:
    one, _ = both
    task = Change(model="changevit", backbone=one.name, weights=one.weights, in_channels=4)  # of 256 px
    assert task.model.encoder.pos_embed.shape[1] == 1 + 32 * 32


def test_a_pyramid_of_others_is_taken_too(tmp_path: Path) -> None:
    """Without what leads to its head where there are maps: training in parallel would miss a gradient."""
    save_for_hf(timm.create_model("test_convnext"), str(tmp_path / "pyramid"), safe_serialization=True)
    one = register(f"timm:local-dir:{tmp_path / 'pyramid'}")
    assert "head.norm.weight" in one.state
    task = Segmentation("unet", one.name, one.weights, in_channels=3, num_classes=2)
    task.model(torch.randn(2, 3, 64, 64)).sum().backward()
    state = task.model.encoder.network.state_dict()
    assert all(torch.equal(value, one.state[key]) for key, value in state.items()) and "stem.0.weight" in state
    assert [name for name, own in task.model.named_parameters() if own.grad is None] == []
    task = Classification(one.name, weights=one.weights, in_channels=3, num_classes=2)
    assert torch.equal(task.model.stem[0].weight, one.state["stem.0.weight"])
    maps = timm.create_model(one.name, pretrained=True, features_only=True).state_dict()
    assert torch.equal(maps["stem_0.weight"], state["stem.0.weight"])


def test_other_bands_are_registered_by_name(tmp_path: Path) -> None:
    encoder = exported(tmp_path / "plain")
    one = register(str(tmp_path / "plain"), "red edge!", bands=["nir", "red"])
    assert one.name == "geomim_red_edge" and get_weight(one.weights).meta["bands"] == ["nir", "red"]
    model = timm.create_model(one.name, pretrained=True)
    assert torch.equal(model.patch_embed.proj.weight, encoder.patch_embed.proj.weight[:, [3, 0]])
    assert model.pretrained_cfg["mean"] == pytest.approx([120 / 255, 100 / 255])
    assert model.pretrained_cfg["input_size"] == (2, 64, 64)


def test_a_name_is_of_one_encoder_which_may_be_written_again(tmp_path: Path) -> None:
    exported(tmp_path / "one")
    first = register(str(tmp_path / "one"), "twice")
    exported(tmp_path / "two", depth=2)
    with pytest.raises(ConfigError, match=r"'geomim_twice' is local-dir:.*: give another name"):
        register(str(tmp_path / "two"), "twice")
    exported(tmp_path / "one", depth=2)
    again = register(str(tmp_path / "one"), "twice")
    assert len(again.state) < len(first.state)
    assert len(timm.create_model("geomim_twice", pretrained=True).blocks) == 2
    with pytest.raises(ConfigError, match="geomim_vit_tiny_patch8"):
        register(str(tmp_path / "two"), "vit_tiny_patch8")


def test_what_was_not_exported_is_told_so(tmp_path: Path) -> None:
    checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ConfigError, match="no exported folder: make one with geomim export"):
        register(str(tmp_path / "a.ckpt"))


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "test_vit"])
def test_weights_without_a_head_fill_models_of_one_head_or_two(name: str) -> None:
    state = timm.create_model(name, num_classes=0).state_dict()
    model = Registered("geomim_any", name, {}, None, state).build(True, num_classes=3)
    assert torch.equal(model.pos_embed, state["pos_embed"]) and model.head.out_features == 3
    with pytest.raises(CheckpointError, match=r"does not fit: missing \['norm.weight'\]"):
        Registered("geomim_any", name, {}, None, {k: v for k, v in state.items() if k != "norm.weight"}).build(True)


def test_architectures_have_names_without_weights() -> None:
    for patch in (8, 16):
        name = f"geomim_vit_tiny_patch{patch}"
        model = timm.create_model(name, in_chans=2, img_size=64, num_classes=0)
        assert (model.num_features, len(model.blocks), model.patch_embed.patch_size) == (192, 12, (patch, patch))
        assert name in smp.encoders.encoders and name in list_models()
        with pytest.raises(CheckpointError, match="is an architecture: weights come from"):
            timm.create_model(name, pretrained=True)


@pytest.mark.parametrize("dpt", [False, True])
def test_a_path_fills_an_architecture_of_another_size(dpt: bool, both: tuple[Registered, ViT], tmp_path: Path) -> None:
    one, encoder = both
    path, wanted = lightning_checkpoint(one, tmp_path / "a.ckpt", dpt), encoder.patch_embed.proj.weight
    assert torch.load(path, weights_only=True)["hyper_parameters"]["contract"] == NAIP.to_dict()
    if dpt:
        task = Segmentation("dpt", f"tu-{one.name}", path, in_channels=4, num_classes=3)
        assert torch.equal(task.model.encoder.model.patch_embed.proj.weight, wanted)
        return
    for stock in (partial(Classification, num_classes=2), Regression):
        assert torch.equal(stock(one.name, weights=path, in_channels=4).model.patch_embed.proj.weight, wanted)
    task = Change(model="unet", backbone=one.name, weights=path, in_channels=4)
    kernel = task.model.encoder.network.patch_embed.proj.weight
    assert torch.equal(kernel[:, :4] + kernel[:, 4:], wanted)
