import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from tiny_encoder import exported
from torchgeo.models import get_weight

from geomim.cli import main
from geomim.errors import BandError, CheckpointError, InputError
from geomim.finetune.check import ALONE, REGISTERED, WEIGHTS, Line, lines
from geomim.finetune.registry import register
from geomim.verbs import check_backbone as verb

FEW = ("weights are numbers", "band contract", "names and transforms", "classification", "segmentation unet")
FEW += ("segmentation dpt", "change fcsiamdiff")
TASKS = {"classification", "segmentation unet", "segmentation dpt", "change fcsiamdiff"}


def tried(source: str, *names: str) -> dict[tuple[str, str], Line]:
    return {(one.way, one.what): one.tried() for one in lines(source) if one.what in names}


def failed(found: dict[tuple[str, str], Line]) -> set[tuple[str, str]]:
    """Of those that are promised."""
    return {key for key, line in found.items() if line.promised and not line.passed}


def test_an_exported_encoder_does_all_that_is_promised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported(tmp_path / "checked-whole")
    found = {(line.way, line.what): line for line in verb.check_backbone(str(tmp_path / "checked-whole"))}
    assert not failed(found) and "all 22 promised lines pass" in capsys.readouterr().out
    promised = {what for way, what in found if way == REGISTERED and found[way, what].promised}
    for task, models in (("segmentation", ""), ("change", "fcsiamdiff fcsiamconc changevit")):
        assert {f"{task} {one}" for one in f"unet deeplabv3+ upernet segformer dpt {models}".split()} <= promised
    assert {"classification", "regression", "names and transforms"} <= promised
    refused = {what: line.said for (way, what), line in found.items() if way == REGISTERED and not line.passed}
    assert refused.keys() == {"detection faster-rcnn", "segmentation fcn", "change fcn", "change btc"}
    assert "Backbone type 'geomim_checked_whole' is not valid" in refused["detection faster-rcnn"]
    assert "Invalid swin size" in refused["change btc"] and refused["segmentation fcn"].startswith("none of the")
    assert found[ALONE, "segmentation dpt"].promised and found[ALONE, "classification"].promised
    assert "Unsupported model downsampling" in found[ALONE, "segmentation unet"].said
    assert "tensors as given, loss" in found[REGISTERED, "change changevit"].said


def test_without_a_class_token_changevit_is_not_promised(tmp_path: Path) -> None:
    exported(tmp_path / "checked-tokenless", class_token=False)
    found = tried(str(tmp_path / "checked-tokenless"), "change changevit", "classification", "segmentation upernet")
    assert not found[REGISTERED, "change changevit"].promised and not failed(found)
    assert not found[REGISTERED, "change changevit"].passed


def swap_keys(state: dict[str, torch.Tensor], config: dict) -> None:
    one, two = "blocks.1.attn.qkv.weight", "blocks.1.attn.proj.weight"
    state[one], state[two] = state[two], state[one]


def name_fewer_bands(state: dict[str, torch.Tensor], config: dict) -> None:
    contract = config["geomim"]["contract"]
    contract["sensor"]["bands"].pop()
    contract["mean"].pop()
    contract["std"].pop()


def lose_the_contract(state: dict[str, torch.Tensor], config: dict) -> None:
    config["geomim"]["contract"] = None


def put_a_nan(state: dict[str, torch.Tensor], config: dict) -> None:
    state["blocks.1.norm1.weight"][3] = float("nan")


EVERY = {(REGISTERED, what) for what in (*TASKS, "names and transforms")}
STOCK = {(ALONE, "classification"), (ALONE, "segmentation dpt")}


@pytest.mark.parametrize(
    ("spoil", "wrong", "said"),
    [
        (swap_keys, EVERY | STOCK, "does not hold the encoder"),
        (name_fewer_bands, EVERY | {(WEIGHTS, "band contract")}, "expected 4 bands, one a channel"),
        (lose_the_contract, EVERY | {(WEIGHTS, "band contract")}, "4 channels and names no bands"),
        (put_a_nan, EVERY | STOCK | {(WEIGHTS, "weights are numbers")}, "the loss of one step is nan"),
    ],
)
def test_a_broken_export_fails_in_its_own_lines(
    spoil: Callable[..., None], wrong: set[tuple[str, str]], said: str, tmp_path: Path
) -> None:
    folder = tmp_path / spoil.__name__
    exported(folder)
    state, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    spoil(state, config)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    found = tried(str(folder), *FEW)
    # NaN is carried by names and answers as given: the line of names finds nothing else wrong
    expected = wrong - {(REGISTERED, "names and transforms")} if spoil is put_a_nan else wrong
    assert failed(found) == expected
    assert said in found[REGISTERED, "classification"].said


def test_the_verb_fails_when_a_promise_is_broken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    def break_(*_: object) -> str:
        raise BandError("it names 3 bands, [red] and so on")

    made = [Line("a", WEIGHTS, lambda: "54 tensors", True), Line("b", REGISTERED, break_, True)]
    monkeypatch.setattr(verb, "lines", lambda source: [*made, Line("c", ALONE, break_)])
    assert main(["check-backbone", "some"]) == 1
    shown = capsys.readouterr()
    assert "1 of 2 promised lines fail: b (registered)" in shown.err and "[red]" in shown.out
    assert [shown.out.count(word) for word in ("passes", "FAILS", "refused")] == [
        2,
        1,
        1,
    ]  # weights count for both ways


def test_random_weights_are_found_out(tmp_path: Path) -> None:
    exported(tmp_path / "a")
    line = next(one for one in lines(str(tmp_path / "a")) if (one.way, one.what) == (ALONE, "classification"))
    of, *rest = line.run.args
    random = replace(line, run=lambda: line.run.func(lambda: replace(of(), weights=None), *rest)).tried()
    assert not random.passed and "tensors are random or others', first" in random.said


def test_weights_by_torchgeos_and_timms_names(tmp_path: Path) -> None:
    exported(tmp_path / "by-name")
    found = tried(f"timm:local-dir:{tmp_path / 'by-name'}", *FEW)
    assert not any(line.promised for line in found.values() if line.way != WEIGHTS)
    assert found[ALONE, "classification"].passed and found[REGISTERED, "segmentation unet"].passed
    one = register(str(tmp_path / "by-name"), "another name")
    found = tried(one.weights, *FEW)
    assert {way for way, _ in found} == {WEIGHTS, ALONE}
    assert all(line.passed == (what != "segmentation dpt") for (_, what), line in found.items())
    assert "RuntimeError: Error(s) in loading state_dict" in found[ALONE, "segmentation dpt"].said


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torch keeps what it fetched, and nothing to fetch from."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda *_, **__: (_ for _ in ()).throw(OSError("no way")))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


MOCO = "ViTSmall16_Weights.SENTINEL2_ALL_MOCO"


def test_torchgeos_own_transformer(cache: Path) -> None:
    state = timm.create_model("vit_small_patch16_224", in_chans=13, num_classes=0).state_dict()
    torch.save(state, cache / Path(get_weight(MOCO).url).name)
    found = {what: line for (_, what), line in tried(MOCO, *FEW, "change changevit").items()}
    assert {what for what, line in found.items() if line.passed} == {*FEW[:1], *FEW[2:4]}
    assert found["names and transforms"].said.startswith("B1, B2, B3")
    assert found["classification"].said.startswith("150 tensors as given, loss")
    assert "size mismatch for pos_embed" in found["change changevit"].said
    assert "Unsupported model downsampling pattern" in found["segmentation unet"].said
    assert "Error(s) in loading state_dict" in found["segmentation dpt"].said  # torchgeo's issue 2787


def test_what_cannot_be_fetched_is_told_so(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-backbone", MOCO]) == 1
    assert f"torchgeo cannot give '{MOCO}' (no way)" in capsys.readouterr().err
    (cache / Path(get_weight(MOCO).url).name).write_bytes(b"half a fi")
    assert main(["check-backbone", MOCO]) == 1
    assert f"torchgeo cannot give '{MOCO}' (" in capsys.readouterr().err


def test_folders_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("test_vit", "test_convnext"):
        folder = tmp_path / name
        save_for_hf(timm.create_model(name), str(folder), safe_serialization=True)
        with pytest.raises(CheckpointError, match=f"give timm:local-dir:{folder}"):
            lines(str(folder))
        found = tried(f"timm:local-dir:{folder}", "classification", "segmentation unet", "detection faster-rcnn")
        passed = {key for key, line in found.items() if line.passed}
        alone = {"classification"} | ({"segmentation unet"} if name == "test_convnext" else set())
        assert {what for way, what in passed if way == ALONE} == alone
        assert (REGISTERED, "segmentation unet") in passed
    assert "tensors as given, 2 left out, first head.norm.weight" in found[ALONE, "segmentation unet"].said
    (folder / "model.safetensors").write_bytes(b"half a file")
    assert main(["check-backbone", f"timm:local-dir:{folder}"]) == 1
    exported(tmp_path / "cut")
    whole = (tmp_path / "cut" / "model.safetensors").read_bytes()
    (tmp_path / "cut" / "model.safetensors").write_bytes(whole[:5000])
    assert main(["check-backbone", str(tmp_path / "cut")]) == 1
    said = capsys.readouterr().err
    assert "timm cannot give 'local-dir:" in said and "is not a readable safetensors file" in said
    assert "Traceback" not in said


def test_what_is_no_weights_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'resnet': expected an exported folder"):
        lines("resnet")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="none that geomim export writes"):
        lines(str(tmp_path))
