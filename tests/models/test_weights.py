import argparse
import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from geomim.errors import BandError, CheckpointError, ConfigError, InputError
from geomim.models.inputs import ContractInput
from geomim.models.vit import ViT
from geomim.models.weights import read_checkpoint, read_encoder
from geomim.sensors import SENSORS, BandContract
from geomim.verbs.export import export

SMALL = {"in_chans": 4, "image_size": 48, "patch_size": 8, "width": 48, "depth": 2, "heads": 3, "mlp_ratio": 2.0}
CONTRACT = BandContract(SENSORS["naip"], (100.0, 90.0, 80.0, 120.0), (30.0, 25.0, 20.0, 40.0), ("public domain",))


def checkpoint(path: Path, vit: ViT, **changes) -> Path:
    details = {
        "format_version": 1,
        "recipe": "mae",
        "recipe_args": {},
        "encoder": vit.config,
        "contract": CONTRACT.to_dict(),
        "step": 7,
    }
    state = {f"model.encoder.{name}": value for name, value in vit.state_dict().items()}
    state["model.decoder.weight"] = torch.zeros(3)
    torch.save({"state_dict": state, "geomim": details | changes}, path)
    return path


def randomised(config=SMALL) -> ViT:
    torch.manual_seed(0)
    encoder = ViT(**config).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return encoder


def reference(reference_dir: Path, name: str) -> tuple[dict[str, torch.Tensor], dict[str, np.ndarray]]:
    values = dict(np.load(reference_dir / name))
    prefix = "state_dict/"
    state = {key[len(prefix) :]: torch.from_numpy(value) for key, value in values.items() if key.startswith(prefix)}
    return state, values


def test_own_checkpoint_round_trip(tmp_path):
    encoder = randomised()
    read = read_encoder(checkpoint(tmp_path / "a.ckpt", encoder))
    loaded = read.encoder
    assert read.contract == CONTRACT
    images = torch.rand(2, 4, 48, 48)
    torch.testing.assert_close(loaded(images).tokens, encoder(images).tokens)
    assert not loaded.training


@pytest.mark.parametrize(
    ("file", "wrap"),
    [
        ("mae.npz", lambda state: {"model": state}),
        ("selectivemae.npz", lambda state: {"model": state, "optimizer": {}, "epoch": 3, "scaler": {}}),
        ("selectivemae.npz", lambda state: {"state_dict": {f"module.encoder.{k}": v for k, v in state.items()}}),
        ("mae.npz", lambda state: {f"module.{k}": v for k, v in state.items()}),
    ],
)
def test_reference_foreign_checkpoints(reference_dir, tmp_path, file, wrap):
    state, values = reference(reference_dir, file)
    content = wrap(state) | {"args": argparse.Namespace(lr=1e-3, model="x", betas=(0.9, 0.95))}
    torch.save(content, tmp_path / "a.pth")
    loaded = read_encoder(tmp_path / "a.pth", heads=int(values["heads"]))
    images = torch.from_numpy(values["images"])
    if "ids_visible" in values:
        indices = torch.from_numpy(values["ids_visible"])
    else:
        visible = values["latent"].shape[1] - 1
        indices = torch.from_numpy(values["noise"]).argsort(1)[:, :visible]
    with torch.no_grad():
        latent = loaded.encoder(images, indices).tokens
    torch.testing.assert_close(latent, torch.from_numpy(values["latent"]), rtol=1e-4, atol=1e-5)
    assert loaded.contract is None
    assert set(loaded.dropped) >= {"mask_token", "decoder_pos_embed", "decoder_blocks"}
    assert ("hog" in loaded.dropped) == (file == "selectivemae.npz") == ("SelectiveMAE" in loaded.kind)


def test_foreign_heads_are_asked_for_where_nothing_tells_them(tmp_path):
    torch.save({"model": randomised().state_dict()}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"48 wide.*heads"):
        read_encoder(tmp_path / "a.pth")


@pytest.mark.parametrize(("width", "heads"), [(192, 3), (1280, 16)])
def test_foreign_heads_of_usual_sizes(tmp_path, width, heads):
    torch.save(ViT(3, 32, 16, width, 1, heads).state_dict(), tmp_path / "a.pth")
    assert read_encoder(tmp_path / "a.pth").encoder.heads == heads


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_code_in_a_checkpoint_is_refused_by_name_and_not_run(tmp_path):
    marker = tmp_path / "ran"
    torch.save({"model": {}, "args": Malicious(marker)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"(posix|nt)\.system"):
        read_checkpoint(tmp_path / "a.pth")
    assert not marker.exists()


def test_foreign_objects_are_refused_by_name(tmp_path):
    torch.save({"args": argparse.Namespace(out=Fraction(1))}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="fractions"):
        read_checkpoint(tmp_path / "a.pth")


def test_damaged_and_missing_files(tmp_path):
    whole = checkpoint(tmp_path / "a.ckpt", randomised()).read_bytes()
    for name, content in {"cut.ckpt": whole[: len(whole) // 2], "text.pth": b"hello", "cut.safetensors": b"xx"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            read_encoder(tmp_path / name)
    with pytest.raises(CheckpointError, match="does not exist"):
        read_encoder(tmp_path / "nothing.ckpt")
    with pytest.raises(CheckpointError, match="no exported encoder"):
        read_encoder(tmp_path)


def test_other_weights_are_refused_with_shapes(tmp_path):
    encoder = randomised()
    with pytest.raises(CheckpointError, match="upgrade geomim"):
        read_encoder(checkpoint(tmp_path / "a.ckpt", encoder, format_version=99))
    with pytest.raises(CheckpointError, match=r"missing blocks\.2"):
        read_encoder(checkpoint(tmp_path / "b.ckpt", encoder, encoder=encoder.config | {"depth": 3}))
    with pytest.raises(CheckpointError, match=r"expected .*given"):
        read_encoder(checkpoint(tmp_path / "c.ckpt", encoder, encoder=encoder.config | {"in_chans": 3}))
    with pytest.raises(BandError, match="red, green, blue"):
        three = BandContract(SENSORS["rgb"], (1,) * 3, (1,) * 3).to_dict()
        read_encoder(checkpoint(tmp_path / "d.ckpt", encoder, contract=three))


IN_TIMM = """
import sys
sys.modules["geomim"] = None  # any import of geomim fails
import timm, torch
model = timm.create_model("local-dir:" + sys.argv[1], pretrained=True).eval()
images = torch.load(sys.argv[2], weights_only=True)
with torch.no_grad():
    torch.save([(model.forward_features(x), model(x)) for x in images], sys.argv[3])
print(model.num_classes, model.pretrained_cfg["mean"], model.pretrained_cfg["input_size"])
"""


def test_export_loads_in_timm_without_geomim(tmp_path):
    encoder = randomised()
    folder = export(str(checkpoint(tmp_path / "a.ckpt", encoder)), str(tmp_path / "out"))
    images = [torch.randn(2, 4, 48, 48), torch.randn(1, 4, 64, 64)]
    torch.save(images, tmp_path / "images.pt")
    command = [sys.executable, "-c", IN_TIMM, str(folder), str(tmp_path / "images.pt"), str(tmp_path / "got.pt")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "0"
    assert f"[{100 / 255}, {90 / 255}, {80 / 255}, {120 / 255}]" in done.stdout
    assert "4, 48, 48" in done.stdout
    for image, (tokens, pooled) in zip(images, torch.load(tmp_path / "got.pt"), strict=True):
        with torch.no_grad():
            expected = encoder(image).tokens
        torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(pooled, expected[:, 1:].mean(1), rtol=1e-5, atol=1e-5)


def test_pictures_prepared_by_timm_give_the_features_of_geomim(tmp_path):
    encoder = randomised(SMALL | {"in_chans": 3})
    bands = BandContract(SENSORS["rgb"], (100.0, 90.0, 80.0), (30.0, 25.0, 20.0))
    folder = export(str(checkpoint(tmp_path / "a.ckpt", encoder, contract=bands.to_dict())), str(tmp_path / "out"))
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    picture = np.random.default_rng(0).integers(0, 256, (48, 48, 3)).astype(np.uint8)
    theirs = transform(Image.fromarray(picture))[None]
    ours, _ = ContractInput(bands, SENSORS["rgb"])(torch.from_numpy(picture).permute(2, 0, 1)[None])
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(theirs), encoder(ours).tokens, rtol=1e-3, atol=1e-3)
    assert "create_transform` prepares pictures" in (folder / "README.md").read_text()


def test_numbers_of_a_unit_are_exported_as_they_are_stored_and_it_is_said(tmp_path):
    bands = BandContract(SENSORS["sentinel2"].select(["B04", "B03", "B02", "B08"]), (900.0,) * 4, (300.0,) * 4)
    folder = export(str(checkpoint(tmp_path / "a.ckpt", randomised(), contract=bands.to_dict())), str(tmp_path / "o"))
    config = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    assert config["mean"] == [900.0] * 4 and "stored numbers" in config["description"]
    assert "Do not use `timm.data.create_transform`" in (folder / "README.md").read_text()


def test_heads_that_a_file_states_are_not_overruled(tmp_path):
    path = checkpoint(tmp_path / "a.ckpt", randomised())
    assert read_encoder(path, 3).encoder.heads == 3
    with pytest.raises(ConfigError, match="states 3 attention heads"):
        read_encoder(path, 6)


def test_export_is_read_back_with_its_contract(tmp_path):
    folder = export(str(checkpoint(tmp_path / "a.ckpt", randomised())), str(tmp_path / "out"))
    again = read_encoder(export(str(folder), str(folder)))  # an export may be exported again, over itself
    assert again.contract == CONTRACT
    assert again.details["step"] == 7
    card = (folder / "README.md").read_text()
    assert all(word in card for word in ("| red |", "845", "public domain", "local-dir:"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.ckpt", "out"]


def test_export_refuses_a_folder_with_other_things(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match="no earlier export"):
        export(str(checkpoint(tmp_path / "a.ckpt", randomised())), str(tmp_path / "photos"))
    assert (tmp_path / "photos" / "a.jpg").exists()


def test_export_of_published_weights_states_no_bands(tmp_path):
    encoder = ViT(3, 32, 16, 192, 1, 3)
    torch.save({"model": encoder.state_dict()}, tmp_path / "a.pth")
    folder = export(str(tmp_path / "a.pth"), str(tmp_path / "out"))
    config = json.loads((folder / "config.json").read_text())
    assert config["geomim"]["contract"] is None
    assert config["pretrained_cfg"]["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert read_encoder(folder).contract is None


def test_export_loads_in_stock_torchgeo(tmp_path):
    pytest.importorskip("torchgeo")
    encoder = randomised()
    folder = export(str(checkpoint(tmp_path / "a.ckpt", encoder)), str(tmp_path / "out"))
    code = """
import sys
sys.modules["geomim"] = None
import torch
from torchgeo.trainers import ClassificationTask
name = "local-dir:" + sys.argv[1]
task = ClassificationTask(model=name, weights=True, in_channels=4, task="multiclass", num_classes=5)
weight = task.model.patch_embed.proj.weight
print(tuple(task.model(torch.zeros(2, 4, 48, 48)).shape), float(weight.double().sum()))
"""
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "(2, 5)" in done.stdout
    expected = float(encoder.patch_embed.proj.weight.detach().double().sum())
    assert float(done.stdout.split()[-1]) == pytest.approx(expected, rel=1e-6)
