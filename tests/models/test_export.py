import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import yaml

from geomim.errors import BandError, CheckpointError, ConfigError, InputError
from geomim.models.build import build_encoder, from_config
from geomim.models.fitting import contract_for, fitted, named_contract
from geomim.models.frozen import read_frozen
from geomim.models.vit import ViT
from geomim.models.weights import Loaded, read_encoder
from geomim.sensors import Band, BandContract, Sensor, get_sensor
from geomim.verbs.export import export

SIZES = {"image_size": 32, "patch_size": 8, "width": 48, "depth": 2, "heads": 3}
NAIP, S2 = get_sensor("naip"), get_sensor("sentinel2")
CONTRACTS = {
    "naip": BandContract(NAIP, (100.0, 90.0, 80.0, 120.0), (30.0, 25.0, 20.0, 40.0), ("public domain",)),
    "s2": BandContract(S2, tuple(1000.0 + 10 * place for place in range(13)), (300.0,) * 13, ("CC-BY-4.0",)),
}


def checkpoint(path: Path, contracts: dict[str, BandContract] = CONTRACTS, **options) -> tuple[str, ViT]:
    torch.manual_seed(0)
    encoder = build_encoder(contracts, **SIZES, **{"spectral": True} | options).eval()
    entry = {"format_version": 2, "recipe": "mae", "recipe_args": {}, "encoder": encoder.config, "step": 7}
    entry |= {"contracts": {name: one.to_dict() for name, one in contracts.items()}}
    entry |= {"provenance": {"start": ["started from timm:somewhere"]}}
    state = {f"model.encoder.{name}": value for name, value in encoder.state_dict().items()}
    torch.save({"state_dict": state, "geomim": entry}, path)
    return str(path), encoder


def in_timm(folder: Path, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval().forward_features(images)


@pytest.mark.parametrize("class_token", [True, False])
def test_each_sensor_is_exported_and_loads_in_timm(tmp_path: Path, class_token: bool) -> None:
    path, encoder = checkpoint(tmp_path / "a.ckpt", class_token=class_token)
    assert read_encoder(path).contracts == CONTRACTS and read_encoder(path).contract is None
    for name, contract in CONTRACTS.items():
        folder, images = tmp_path / name, torch.randn(2, len(contract.names), 32, 32)
        export(path, str(folder), sensor=name)
        expected = encoder(images, sensor=name).tokens
        torch.testing.assert_close(in_timm(folder, images), expected, rtol=1e-5, atol=1e-5)
        again = read_encoder(folder)
        assert again.contract.sensor == contract.sensor and again.contract.mean == contract.mean
        assert again.contract.licences == ("public domain", "CC-BY-4.0")  # of all that it was trained on
        card = (folder / "README.md").read_text()
        assert "trained on naip, s2" in card and "started from timm:somewhere" in card


def test_a_link_stays_one_and_the_folder_one_is_in_is_refused(tmp_path: Path, monkeypatch) -> None:
    path, _ = checkpoint(tmp_path / "a.ckpt", {"naip": CONTRACTS["naip"]}, spectral=False)
    target, link = tmp_path / "target", tmp_path / "link"
    target.mkdir()
    link.symlink_to(target)
    for _ in range(2):  # empty, then an earlier export
        export(path, str(link))
    assert link.is_symlink() and read_encoder(target).contract == CONTRACTS["naip"]
    monkeypatch.chdir(target)
    with pytest.raises(InputError, match=r"'\.' is the folder you are in"):
        export(path, ".")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.ckpt", "link", "target"]


def test_statistics_are_divided_as_those_of_pictures_only_where_the_numbers_are_bytes(tmp_path: Path, capsys) -> None:
    lights = BandContract(Sensor("lights", (Band("dnb"),)), (5.4,), (9.0,))
    for dtype, divided, guessed in (("uint8", True, False), ("float32", False, False), (None, True, True)):
        one = replace(lights, dtype=dtype)
        path, _ = checkpoint(tmp_path / f"{dtype}.ckpt", {"lights": one}, spectral=False)
        written = export(path, str(tmp_path / f"out-{dtype}")) / "config.json"
        stated = json.loads(written.read_text())["pretrained_cfg"]
        assert stated["mean"] == [5.4 / 255 if divided else 5.4]
        assert ("divided by 255" in stated["description"]) == divided
        assert ("note: nothing says how the images were stored" in capsys.readouterr().out) == guessed


def test_bands_are_chosen_and_ordered(tmp_path: Path) -> None:
    path, encoder = checkpoint(tmp_path / "a.ckpt")
    folder = export(path, str(tmp_path / "out"), sensor="s2", bands=["B08", "B04"])
    one, _ = checkpoint(tmp_path / "one.ckpt", {"naip": CONTRACTS["naip"]})
    assert read_frozen(one, (4, 4))[1] == CONTRACTS["naip"]  # a teacher of one sensor is baked
    config = json.loads((folder / "config.json").read_text())
    assert config["pretrained_cfg"]["mean"] == [1070.0, 1030.0] and config["model_args"]["in_chans"] == 2
    some = BandContract(S2.select(["B08", "B04"]), (0.0,) * 2, (1.0,) * 2)
    images = torch.randn(2, 2, 32, 32)
    torch.testing.assert_close(in_timm(folder, images), encoder.bake(some)(images).tokens, rtol=1e-5, atol=1e-5)


def test_a_sensor_never_seen_borrows_statistics_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path, encoder = checkpoint(tmp_path / "a.ckpt")
    landsat = get_sensor("landsat8")
    folder = export(path, str(tmp_path / "out"), sensor="landsat8")
    said, card = capsys.readouterr().out, (folder / "README.md").read_text()
    assert (
        "never trained on 'landsat8' (B1, B2, B3, B4, B5, B6, B7), only on naip, s2" in said
        and "never trained on 'landsat8'" in card
    )
    contract = read_encoder(folder).contract
    assert contract.sensor == landsat and f"{landsat.names[3]} as B04 of s2" in said
    (_, scale, offset), (_, times, plus) = landsat.meaning(3), S2.meaning(3)
    assert contract.mean[3] * scale + offset == pytest.approx(1030 * times + plus)
    assert contract.std[3] * scale == pytest.approx(300 * times)
    images, (config, state) = torch.randn(2, 7, 32, 32), (encoder.config, encoder.state_dict())
    other = from_config(config, {"landsat8": contract}).eval()
    other.load_state_dict(state)
    torch.testing.assert_close(in_timm(folder, images), other(images).tokens, rtol=1e-5, atol=1e-5)


def test_statistics_of_a_sensor_file(tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path / "a.ckpt")
    values = {"name": "radar", "unit": "dB", "bands": [{"name": "VV", "polarisation": "VV"}]}
    file = tmp_path / "radar.yaml"
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(BandError, match=r"mean and std of VV in dB: give them as 'mean' and 'std' in the YAML"):
        export(path, str(tmp_path / "out"), sensor=str(file))
    broken = tmp_path / "broken.yaml"
    broken.write_text("bands: [")
    with pytest.raises(InputError, match=r"broken\.yaml' is no YAML file"):
        export(path, str(tmp_path / "out"), sensor=str(broken))
    assert not (tmp_path / "out").exists()
    file.write_text(yaml.safe_dump(values | {"mean": [-12.0], "std": [4.0]}))
    contract = read_encoder(export(path, str(tmp_path / "out"), sensor=str(file))).contract
    assert contract.names == ("VV",) and contract.mean == (-12.0,) and contract.std == (4.0,)
    file.write_text(yaml.safe_dump(values | {"mean": 5, "std": [4.0]}))
    with pytest.raises(InputError, match=r"radar\.yaml': 'mean' must be a list"):
        export(path, str(tmp_path / "out"), sensor=str(file))
    nameless = Loaded(read_encoder(path).encoder, {}, "a file")
    with pytest.raises(CheckpointError, match="names no sensor: say which with --sensor"):
        named_contract(nameless, "a.ckpt", None, None)


def test_gsd_and_patch_size(tmp_path: Path) -> None:
    path, encoder = checkpoint(tmp_path / "a.ckpt", gsd_positions=True)
    images = torch.randn(2, 4, 32, 32)
    for gsd in (None, 5.0):  # naip has 1 m
        folder = export(path, str(tmp_path / f"out{gsd}"), sensor="naip", gsd=gsd)
        expected = encoder(images, sensor="naip", gsd=torch.tensor(gsd or 1.0)).tokens
        torch.testing.assert_close(in_timm(folder, images), expected, rtol=1e-5, atol=1e-5)
    folder = export(path, str(tmp_path / "fine"), sensor="naip", patch_size=4)
    assert in_timm(folder, images).shape == (2, 1 + 64, 48)
    path, plain = checkpoint(tmp_path / "b.ckpt", {"naip": CONTRACTS["naip"]}, spectral=False)
    folder = export(path, str(tmp_path / "plain"), patch_size=4)
    expected = plain.bake(CONTRACTS["naip"], patch_size=4)(images).tokens
    torch.testing.assert_close(in_timm(folder, images), expected, rtol=1e-5, atol=1e-5)


def test_a_teacher_whose_positions_follow_the_gsd_says_for_which(tmp_path: Path, caplog) -> None:
    path, _ = checkpoint(tmp_path / "a.ckpt", {"naip": CONTRACTS["naip"]}, gsd_positions=True)
    read_frozen(path, (4, 4))
    assert "made for 1 m a pixel, as its sensor has, whatever the images have" in caplog.text


def test_refusals_name_what_is_there(tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path / "a.ckpt")
    out = str(tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"several sensors \(naip, s2\): name one with --sensor"):
        export(path, out)
    with pytest.raises(BandError, match=r"several sensors \(naip, s2\).*geomim export --sensor"):
        read_frozen(path, (4, 4))
    with pytest.raises(ConfigError, match="leave out --gsd"):
        export(path, out, sensor="s2", gsd=10.0)
    for gsd in (0.0, -3.0, float("nan")):
        with pytest.raises(ConfigError, match=f"--gsd: expected metres a pixel, above 0; given {gsd:g}"):
            export(path, out, sensor="s2", gsd=gsd)
    with pytest.raises(ConfigError, match="--patch-size: expected pixels, at least 1; given 0"):
        export(path, out, sensor="s2", patch_size=0)
    with pytest.raises(ConfigError, match="multiple of patch_size"):
        export(path, out, sensor="s2", patch_size=5)
    plain, _ = checkpoint(tmp_path / "b.ckpt", {"naip": CONTRACTS["naip"]}, spectral=False)
    with pytest.raises(ConfigError, match="leave out --sensor"):
        export(plain, out, sensor="s2")
    assert not Path(out).exists()


def test_contract_for_images(tmp_path: Path) -> None:
    loaded = read_encoder(checkpoint(tmp_path / "a.ckpt")[0])
    contract, notes = contract_for(loaded, "a", get_sensor("sentinel2_l1c"))
    assert contract == CONTRACTS["s2"] and "seen as 's2'" in notes[-1]
    rgb = get_sensor("rgb")
    own = BandContract(rgb, (120.0,) * 3, (50.0,) * 3)
    contract, notes = contract_for(loaded, "a", rgb, own)
    assert contract == own and "never trained on 'rgb'" in notes[-1] and "those of the images" in notes[-1]
    contract, notes = contract_for(loaded, "a", rgb)
    assert contract.sensor == rgb and contract.mean == (100.0, 90.0, 80.0) and "red as red of naip" in notes[-1]
    some = Loaded(loaded.encoder, {"s2": CONTRACTS["s2"].select(["B04", "B08"])}, "a file")
    contract, notes = contract_for(some, "a", get_sensor("sentinel2", ["B04", "B08", "B11"]))
    assert contract.names == ("B04", "B08") and "--all_bands takes them" in notes[-1]
    contract, notes = contract_for(some, "a", get_sensor("sentinel2", ["B04", "B08", "B11"]), all_bands=True)
    assert contract.names == ("B04", "B08", "B11") and "just these bands of 'sentinel2'" in notes[-1]
    contract, notes = contract_for(some, "a", get_sensor("sentinel2", ["B08", "B04"]), all_bands=True)
    assert contract == some.contract and "left out" not in notes[-1]
    few = S2.select(["B04", "B08"])
    contract, notes = contract_for(loaded, "a", few)
    assert contract.mean == (1030.0, 1070.0) and fitted(loaded.encoder, contract).in_chans == 2
    with pytest.raises(BandError, match="in kelvin"):
        contract_for(loaded, "a", Sensor("hot", (Band("T", 11000, 900),), unit="kelvin"))
