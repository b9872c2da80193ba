"""`geomim export` as ONNX, torch.export, STAC item and on the Hub: equal answers, the band contract in each."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pystac
import pytest
import timm
import tiny_encoder
import torch
from pystac.extensions.mlm import MLMExtension

from geomim.cli import main
from geomim.errors import CheckpointError, InputError
from geomim.evaluate.linear import LinearProbe
from geomim.evaluate.probes import EfficientProbe, patch_logits
from geomim.evaluate.saved import ProbeCard, fingerprint, save_probe
from geomim.models import graphs, hub
from geomim.models.build import from_config
from geomim.models.frozen import as_timm
from geomim.models.weights import read_encoder
from geomim.sensors import BandContract
from geomim.verbs import export as verb
from geomim.verbs.export import export

NAIP, S2 = tiny_encoder.NAIP, tiny_encoder.S2


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A checkpoint of NAIP, and its export in all forms."""
    root = tmp_path_factory.mktemp("formats")
    tiny_encoder.checkpoint(root / "a.ckpt", depth=2)
    said = ["export", str(root / "a.ckpt"), "--out", str(root / "all"), "--format", "onnx,torch-export"]
    assert main(said) == 0
    return root


def in_onnx(folder: Path, images: torch.Tensor) -> list[torch.Tensor]:
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    return [torch.from_numpy(one) for one in session.run(None, {"image": images.numpy()})]


def metadata(folder: Path) -> dict:
    found = onnxruntime.InferenceSession(folder / "model.onnx").get_modelmeta().custom_metadata_map
    return {key: json.loads(value) for key, value in found.items()}


@pytest.mark.parametrize("count", [1, 5])
@torch.no_grad()
def test_all_forms_answer_as_the_encoder(root: Path, count: int) -> None:
    images, encoder = torch.randn(count, 4, 64, 64), read_encoder(root / "a.ckpt").encoder
    patches = encoder(images).patches
    expected = patches.mean(1), patches.transpose(1, 2).unflatten(2, (8, 8))
    program = torch.export.load(root / "all" / "model.pt2").module()
    for found in (in_onnx(root / "all", images), program(images)):
        for one, two in zip(found, expected, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    plain = timm.create_model(f"local-dir:{root / 'all'}", pretrained=True).eval()
    torch.testing.assert_close(plain(images), expected[0], rtol=1e-4, atol=1e-4)


def test_the_contract_travels_and_no_place_of_this_machine(root: Path) -> None:
    folder, extra = root / "all", {"geomim.json": ""}
    torch.export.load(folder / "model.pt2", extra_files=extra)
    for said in (metadata(folder)["geomim"], json.loads(extra["geomim.json"])["geomim"]):
        assert BandContract.from_dict(said["contract"]) == NAIP
        assert said["encoder"]["patch_size"] == 8 and said["recipe"] == "mae"
    assert "model_type" not in metadata(folder)  # Deepness is told nothing of what gives no classes
    for path in folder.iterdir():
        assert str(root).encode() not in path.read_bytes() and str(Path(__file__).parents[2]).encode() not in (
            path.read_bytes()
        )
    card = (folder / "README.md").read_text()
    assert "`model.onnx`: image (batch, 4, 64, 64) -> pooled (batch, 32), patches (batch, 32, 8, 8)" in card
    assert read_encoder(folder).contract == NAIP


def test_the_item_is_one_of_mlm(root: Path) -> None:
    item = pystac.Item.from_file(root / "all" / "item.json")
    core = pystac.Item.from_dict(json.loads((root / "all" / "item.json").read_text()) | {"stac_extensions": []})
    assert core.validate()  # by STAC's own schema, which needs no network
    model = MLMExtension.ext(item)
    assert model.mlm_name == "all" and model.architecture == "Vision Transformer" and model.framework == "PyTorch"
    (given,), outputs = model.input, model.output
    assert given.bands == list(NAIP.names) and given.input.shape == [-1, 4, 64, 64]
    scaling = [(one["mean"], one["stddev"]) for one in item.properties["mlm:input"][0]["value_scaling"]]
    assert scaling == list(zip(NAIP.mean, NAIP.std, strict=True))
    assert [(one.name, one.result.shape) for one in outputs] == [("pooled", [-1, 32]), ("patches", [-1, 32, 8, 8])]
    assert model.hyperparameters.to_dict() == {"patch_size": 8, "image_size": 64}
    assert sorted(item.assets) == ["model.onnx", "model.pt2", "model.safetensors"]
    assert all("mlm:model" in one.roles for one in item.assets.values())
    red = item.assets["model.onnx"].extra_fields["bands"][0]
    assert (red["name"], red["gsd"], red["unit"]) == ("red", NAIP.sensor.bands[0].gsd, "digital number")
    assert red["eo:center_wavelength"] == NAIP.sensor.bands[0].wavelength / 1000
    assert BandContract.from_dict(item.properties["geomim:contract"]) == NAIP


def test_equal_exports_have_equal_bytes(root: Path) -> None:
    export(str(root / "a.ckpt"), str(root / "again"), ["onnx", "torch-export"])
    for name in ("model.onnx", "model.pt2", "model.safetensors", "config.json"):
        assert (root / "again" / name).read_bytes() == (root / "all" / name).read_bytes()


def in_torch(folder: Path, images: torch.Tensor) -> list[torch.Tensor]:
    return torch.export.load(folder / "model.pt2").module()(images)


@torch.no_grad()
def test_another_image_size(root: Path) -> None:
    out, images = root / "small", torch.randn(2, 4, 32, 32)
    export(str(root / "a.ckpt"), str(out), ["torch-export"], image_size=32)
    expected = read_encoder(root / "a.ckpt").encoder(images).patches.mean(1)
    torch.testing.assert_close(in_torch(out, images)[0], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_hierarchical_encoder_says_the_same_in_timm_and_takes_one_size(tmp_path: Path, capsys) -> None:
    sizes = {"family": "swinv2", "image_size": 64, "patch_size": 2, "width": 16, "depth": 1, "heads": 2, "window": 4}
    file, images = str(tmp_path / "swin.ckpt"), torch.randn(2, 4, 64, 64)
    encoder = tiny_encoder.checkpoint(Path(file), **sizes)
    pooled, patches = graphs.Features(as_timm(encoder).eval())(images)
    expected = encoder(images).patches
    torch.testing.assert_close(pooled, expected.mean(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(patches.flatten(2).transpose(1, 2), expected, rtol=1e-4, atol=1e-4)
    assert main(["export", file, "--out", str(tmp_path / "out"), "--format", "onnx", "--image_size", "32"]) == 2
    assert "the encoder takes 64 alone; given 32" in capsys.readouterr().err


def probed(folder: Path, encoder, contract: BandContract, probe, **changes) -> str:
    facts = {"kind": "linear", "pool": "patch", "encoder": fingerprint(encoder), "accuracy": 1.0} | changes
    card = ProbeCard(classes=("water", "wood", "town"), contract=contract.to_dict(), **facts)
    return str(save_probe(folder / "probe.safetensors", probe, card))


def in_deepness(folder: Path, tile: np.ndarray) -> np.ndarray:
    """What the plugin does with a tile `(S, S, bands)` of any type, as its manual and metadata say."""
    said = metadata(folder)
    mean, std = (np.array(said[f"standardization_{key}"], np.float32) for key in ("mean", "std"))
    batch = (np.float32(tile[None] * 1.0 / 255.0) - mean) / std
    (answer,) = in_onnx(folder, torch.from_numpy(batch.transpose(0, 3, 1, 2)))
    found = answer.numpy()
    found[found < said["seg_thresh"]] = 0
    return found.argmax(1)[0]


@pytest.mark.parametrize(("kind", "bands", "scale"), [("linear", None, 1.0), ("efficient", ["B04", "B08"], 2.0)])
@torch.no_grad()
def test_deepness_maps_what_a_probe_says_of_patches(root: Path, kind: str, bands, scale, capsys) -> None:
    """Of 8 bits and one sensor, and of 16 bits and an encoder of any."""
    torch.manual_seed(1)
    source, out = root / f"{kind}.ckpt", root / kind
    if bands is None:
        contract, encoder = NAIP, tiny_encoder.checkpoint(source, depth=2)
    else:
        contract = S2.select(bands)
        encoder = tiny_encoder.checkpoint(source, NAIP, S2, spectral=True, depth=2).bake(contract)
    probe = (LinearProbe(32, 3) if kind == "linear" else EfficientProbe(32, 3, 4)).eval()
    file = probed(root / f"probe-{kind}", encoder, contract, probe, kind=kind, scale=scale)
    assert main(["export", str(source), "--probe", file, "--format", "onnx", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert (
        f"choose a layer's bands as {', '.join(contract.names)}; a pixel is {contract.sensor.gsd * scale:g} m" in said
    )
    most, type_ = (256, np.uint8) if bands is None else (3000, np.uint16)
    tile = np.random.default_rng(0).integers(0, most, (64, 64, len(contract.names)), dtype=type_)
    mean, std = (torch.tensor(one)[:, None, None] for one in (contract.mean, contract.std))
    images = (torch.from_numpy(tile.astype(np.float32)).permute(2, 0, 1) - mean) / std
    ids = patch_logits(probe, encoder(images[None]).patches).argmax(-1).view(8, 8).numpy()
    assert len({*ids.flat}) > 1
    np.testing.assert_array_equal(in_deepness(out, tile), ids.repeat(8, 0).repeat(8, 1))
    said = metadata(out)
    assert said["model_type"] == "Segmentor" and said["class_names"] == {"0": "water", "1": "wood", "2": "town"}
    gsd = 100 * contract.sensor.gsd * scale  # as the probe saw its images
    assert (said["resolution"], said["tile_size"], said["tiles_size"], said["tiles_overlap"]) == (gsd, 64, 64, 50)
    assert onnxruntime.InferenceSession(out / "model.onnx").get_outputs()[0].shape[1:] == [3, 64, 64]
    item = MLMExtension.ext(pystac.Item.from_file(out / "item.json"))
    assert [one.title for one in item.output[-1].classes] == ["water", "wood", "town"]
    own = read_encoder(out).contract
    assert own.sensor == contract.sensor and own.mean == contract.mean
    assert own.licences == ("public domain",)  # of all that the encoder was trained on


def test_what_does_not_go_together_is_refused_and_leaves_nothing(root: Path, capsys) -> None:
    other = from_config(read_encoder(root / "a.ckpt").encoder.config)
    strange = probed(root / "strange", other, NAIP, LinearProbe(32, 3))
    own = read_encoder(root / "a.ckpt").encoder
    whole = probed(root / "whole", own, NAIP, LinearProbe(32, 3), pool="class")
    for flags, code, said in (
        (["--probe", strange], 2, "--probe is for graphs: add --format onnx"),
        (["--image_size", "32"], 2, "--image_size is for graphs"),
        (["--format", "onnx", "--image_size", "30"], 2, "a multiple of its patches' 8; given 30"),
        (["--format", "onnx", "--probe", strange], 1, "was fitted on another encoder"),
        (["--format", "onnx", "--probe", whole], 1, "reads the class token"),
        (["--format", "onnx", "--probe", strange, "--gsd", "2"], 2, "leave out --sensor"),
        (["--format", "remoteclip,onnx"], 2, "writes one file"),
        (["--push", "name"], 2, "--push: expected USER/NAME; given 'name'"),
        (["--format", "tflite"], 2, "tflite"),
    ):
        assert main(["export", str(root / "a.ckpt"), "--out", str(root / "none"), *flags]) == code
        assert said in capsys.readouterr().err and not (root / "none").exists()
    assert main(["export", str(root / "a.ckpt"), "--format", "onnx", "--out", str(root / "none.onnx")]) == 2
    assert "expected a folder" in capsys.readouterr().err
    assert not [path for path in root.iterdir() if path.name.startswith((".", "none"))]


def test_a_missing_library_is_named_before_anything_is_read(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(verb.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name)
    assert main(["export", "nowhere.ckpt", "--format", "onnx", "--out", str(tmp_path / "out")]) == 1
    assert "needs 'onnxscript', which is not installed: pip install 'geomim[onnx]'" in capsys.readouterr().err


def test_a_file_that_answers_otherwise_is_no_export(root: Path, monkeypatch) -> None:
    written = graphs._program

    def off(*given):
        opened = written(*given)
        return lambda images: [one + 1e-3 for one in opened(images)]

    monkeypatch.setattr(graphs, "_program", off)
    with pytest.raises(CheckpointError, match=r"model\.pt2 answers otherwise than the network"):
        export(str(root / "a.ckpt"), str(root / "wrong"), ["torch-export"])
    assert not [path for path in root.iterdir() if "wrong" in path.name]


class FakeHub:
    """What `HfApi` does with a repository, in a folder."""

    def __init__(self, folder: Path, fault: str = "") -> None:
        self.folder, self.fault, self.calls = folder, fault, []

    def __call__(self, **_):
        return self

    def create_repo(self, repo_id: str, private: bool, exist_ok: bool):
        if self.fault == "token":
            raise OSError("401 Unauthorized")
        self.calls.append((repo_id, private, exist_ok))
        return SimpleNamespace(repo_id=repo_id, __str__=None)

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str, delete_patterns: list[str]) -> None:
        self.folder.mkdir(exist_ok=True)
        for pattern in delete_patterns:
            for old in self.folder.glob(pattern):
                old.unlink()
        shutil.copytree(folder_path, self.folder, dirs_exist_ok=True)
        if self.fault == "bytes":
            (self.folder / "config.json").write_text("{}")

    def get_paths_info(self, repo_id: str, paths: list[str]):
        files = [self.folder / path for path in paths]
        return [SimpleNamespace(path=file.name, size=file.stat().st_size, lfs=None) for file in files if file.exists()]


def test_a_push_puts_the_export_with_its_card_on_the_hub(root: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    (stored := tmp_path / "hub").mkdir()
    for old in ("model.onnx", "NOTES.md"):
        (stored / old).write_text("of an earlier push")
    monkeypatch.setattr(hub, "HfApi", fake := FakeHub(stored))
    assert main(["export", str(root / "a.ckpt"), "--out", str(tmp_path / "out"), "--push", "me/meadows"]) == 0
    assert "pushed to" in capsys.readouterr().out and fake.calls == [("me/meadows", True, True)]
    names = {"README.md", "config.json", "item.json", "model.safetensors"}
    assert {path.name for path in stored.iterdir()} == names | {"NOTES.md"}
    assert 'timm.create_model("hf-hub:me/meadows", pretrained=True)' in (stored / "README.md").read_text()
    images = torch.randn(1, 4, 64, 64)
    with torch.no_grad():
        found = timm.create_model(f"local-dir:{stored}", pretrained=True).eval()(images)
        expected = read_encoder(root / "a.ckpt").encoder(images).patches.mean(1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("fault", "said"), [("token", "hf auth login"), ("bytes", "does not hold config.json")])
def test_a_push_that_fails_says_so_and_leaves_the_export(root: Path, tmp_path: Path, monkeypatch, fault, said) -> None:
    monkeypatch.setattr(hub, "HfApi", FakeHub(tmp_path / "hub", fault))
    with pytest.raises(InputError, match=said):
        export(str(root / "a.ckpt"), str(tmp_path / "out"), push="me/meadows")
    assert read_encoder(tmp_path / "out").contract == NAIP
