"""Saved probes as what looks at scenes."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from drawn_scenes import CLASSES, CONTRACT, save_encoder, save_probes, texture

from geomim.errors import CheckpointError
from geomim.evaluate.features import encode
from geomim.evaluate.linear import LinearProbe
from geomim.evaluate.saved import ProbeCard, fingerprint, load_probe, save_probe
from geomim.maps.probes import open_probe
from geomim.models.build import build_encoder
from geomim.models.fitting import fitted
from geomim.models.inputs import ContractInput
from geomim.models.weights import read_encoder
from geomim.sensors import SENSORS


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    save_probes(folder)
    return folder


@pytest.fixture
def window():
    pixels = texture(np.full((32, 32), 2))[None]
    return ContractInput(CONTRACT, SENSORS["naip"])(torch.from_numpy(pixels))


def test_answers_of_patches_add_up_to_what_the_probe_says_of_the_image(trained, window):
    looker, (probe, _) = open_probe(str(trained), device="cpu"), load_probe(trained)
    assert (looker.side, looker.cell, looker.classes, looker.gsd) == (32, 4, CLASSES, None)
    found = looker.look(*window)
    assert found.shape == (1, 3, 8, 8) and found.dtype == torch.float32
    torch.testing.assert_close(found.sum(1), torch.ones(1, 8, 8))
    assert (found.argmax(1) == 2).float().mean() > 0.95
    tokens = encode(read_encoder(str(trained / "a.ckpt")).encoder, window[0])[1]
    logits = found.log().flatten(2)
    logits = logits - logits.mean(1, keepdim=True)  # a softmax forgets what all classes share
    expected = probe(tokens.mean(1))
    torch.testing.assert_close(logits.mean(2), expected - expected.mean(1, keepdim=True), atol=1e-4, rtol=1e-3)


def test_another_probe_or_encoder_makes_another_map(trained, tmp_path):
    first = open_probe(str(trained), device="cpu").made_by
    assert first == open_probe(str(trained / "linear.json"), device="cpu").made_by
    assert first != open_probe(str(trained / "efficient.safetensors"), device="cpu").made_by
    probe, card = load_probe(trained)
    probe.weight.data += 0.01
    save_probe(tmp_path / "p.safetensors", probe, card)
    assert first != open_probe(str(tmp_path / "p.safetensors"), device="cpu").made_by


def test_an_encoder_that_moved_is_named_and_known_by_its_weights(trained, tmp_path, window):
    folder = tmp_path / "probes"
    shutil.copytree(trained, folder)
    moved = shutil.move(folder / "a.ckpt", tmp_path / "elsewhere.ckpt")
    probe, card = load_probe(folder)
    save_probe(folder / "linear.safetensors", probe, replace(card, checkpoint=str(folder / "a.ckpt")))
    with pytest.raises(CheckpointError, match=r"a\.ckpt', which probe .* was fitted on, is not there: say with --enc"):
        open_probe(str(folder))
    looker = open_probe(str(folder), str(moved), device="cpu")
    assert looker.made_by == open_probe(str(trained), device="cpu").made_by
    save_encoder(tmp_path / "b.ckpt", seed=1)
    with pytest.raises(CheckpointError, match=r"fitted on another encoder than '.*b\.ckpt'"):
        open_probe(str(folder), str(tmp_path / "b.ckpt"))


def test_a_probe_of_a_spectral_encoder_looks_with_the_bands_that_it_was_fitted_on(tmp_path):
    torch.manual_seed(0)
    other = replace(CONTRACT, sensor=CONTRACT.sensor.select(("nir", "red")), mean=(90.0,) * 2, std=(40.0,) * 2)
    sizes = {"image_size": 24, "patch_size": 8, "width": 48, "depth": 1, "heads": 3}
    encoder = build_encoder({"naip": CONTRACT}, **sizes, spectral=True).eval()
    details = {"format_version": 1, "encoder": encoder.config, "contracts": {"naip": CONTRACT.to_dict()}}
    state = {f"model.encoder.{name}": value for name, value in encoder.state_dict().items()}
    torch.save({"state_dict": state, "geomim": details}, tmp_path / "a.ckpt")
    source = read_encoder(str(tmp_path / "a.ckpt")).encoder
    looks = {}
    for name, contract in (("four", CONTRACT), ("two", other)):
        baked, probe = fitted(source, contract), LinearProbe(48, 2).eval()
        told = {"classes": ("a", "b"), "encoder": fingerprint(baked), "contract": contract.to_dict(), "accuracy": 1.0}
        card = ProbeCard(kind="linear", pool="mean", checkpoint=str(tmp_path / "a.ckpt"), **told)
        save_probe(tmp_path / f"{name}.safetensors", probe, card)
        looker = open_probe(str(tmp_path / f"{name}.json"), device="cpu")
        assert looker.contract == contract and looker.side == 24 and looker.cell == 8
        images = torch.randn(2, len(contract.names), 24, 24)
        found = looker.look(images, torch.ones(2, 1, 24, 24, dtype=torch.bool))
        tokens = encode(baked, images)[1]
        expected = probe(tokens).softmax(-1).transpose(1, 2).unflatten(2, (3, 3))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        looks[name] = looker.made_by
    assert looks["four"] != looks["two"]


def test_what_no_patch_can_answer_is_refused_and_another_scale_is_said(trained, tmp_path):
    probe, card = load_probe(trained)
    for name, changes in (("class", {"pool": "class"}), ("large", {"scale": 3.0}), ("small", {"scale": 0.5})):
        save_probe(tmp_path / f"{name}.safetensors", probe, replace(card, **changes))
    with pytest.raises(CheckpointError, match="fitted on the class token, which no patch has"):
        open_probe(str(tmp_path / "class.json"))
    for name, said in (("large", "shrunk 3 times"), ("small", "enlarged 2 times")):
        assert any(said in note for note in open_probe(str(tmp_path / f"{name}.json"), device="cpu").notes)
    (note,) = open_probe(str(trained), device="cpu").notes
    assert "fitted on mean-pooled tiles" in note and f"`geomim evaluate {trained / 'a.ckpt'} DATA --dense`" in note
    (note,) = open_probe(str(trained / "efficient.safetensors"), device="cpu").notes
    assert "fitted on tiles, to whose patches it attends together" in note
    save_probe(tmp_path / "patch.safetensors", probe, replace(card, pool="patch"))
    assert open_probe(str(tmp_path / "patch.json"), device="cpu").notes == ()


def test_a_probe_of_a_plain_timm_model_is_told_what_maps_need(trained, tmp_path):
    probe, card = load_probe(trained)
    save_probe(tmp_path / "linear.safetensors", probe, replace(card, checkpoint="timm:vit_tiny_patch16_224"))
    for encoder in (None, "timm:vit_tiny_patch16_224"):
        with pytest.raises(CheckpointError, match=r"maps need one of geomim's: .*--encoder timm:vit_tiny_patch16"):
            open_probe(str(tmp_path), encoder, device="cpu")
    looker = open_probe(str(tmp_path), str(trained / "a.ckpt"), device="cpu")  # the one that it is, by its weights
    assert looker.classes == CLASSES


def test_a_probe_that_is_not_there_is_told_as_it_was_given(tmp_path):
    with pytest.raises(CheckpointError, match=r"^'.*trainde' does not exist: give a probe"):
        open_probe(str(tmp_path / "trainde"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no probe in '.*empty/linear\.safetensors'"):
        open_probe(str(tmp_path / "empty"))
