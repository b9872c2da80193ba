import argparse
import pathlib
from pathlib import Path

import numpy as np
import pytest
import torch

from geomim.errors import CheckpointError
from geomim.models.vit import ViT
from geomim.models.weights import read_encoder


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(ViT(3, 32, 8, 192, 2, 3).state_dict())


def saved(path: Path, content) -> Path:
    torch.save(content, path / "a.pth")
    return path / "a.pth"


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.module.", "module._orig_mod.", "model.encoder.", "backbone.", "vit.net.", "mine.trunk."],
)
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s, "epoch": 3}, lambda s: {"state": {"net": s}}])
def test_weights_are_found_behind_any_prefix(tmp_path, state, prefix, wrap):
    extra = {f"{prefix}mask_token": torch.zeros(1, 1, 64), f"{prefix}decoder_embed.weight": torch.zeros(64, 192)}
    path = saved(tmp_path, wrap({f"{prefix}{name}": value for name, value in state.items()} | extra))
    loaded = read_encoder(path)
    for name, value in loaded.encoder.state_dict().items():
        assert torch.equal(value, state[name])
    assert any("mask_token" in note and "decoder_embed" in note for note in loaded.notes)
    assert any("3, as is usual" in note for note in loaded.notes)


def test_of_copies_the_trained_one_or_the_teacher_is_taken_and_said(tmp_path, state):
    other = {name: value + 1 for name, value in state.items()}
    for content, taken in (
        ({"model_ema": other, "model": state}, "model."),
        ({"student": other, "teacher": {f"backbone.{name}": value for name, value in state.items()}}, "teacher."),
        ({"model_ema": state}, "model_ema."),
    ):
        loaded = read_encoder(saved(tmp_path, content))
        assert torch.equal(loaded.encoder.pos_embed, state["pos_embed"])
        assert any(f"under '{taken}" in note for note in loaded.notes)
    with pytest.raises(CheckpointError, match=r"several encoders .*'s1\.', 's2\.'"):
        read_encoder(saved(tmp_path, {"s1": state, "s2": other}))


def test_plain_values_and_half_precision_are_read(tmp_path, state):
    values = {
        "args": argparse.Namespace(out=pathlib.Path("x"), lr=1e-3),
        "best": np.float64(0.5),
        "steps": np.int64(3),
        "folder": pathlib.PureWindowsPath("c:/x"),
    }
    encoder = read_encoder(saved(tmp_path, {"model": {k: v.half() for k, v in state.items()}} | values)).encoder
    assert {value.dtype for value in encoder.state_dict().values()} == {torch.float32}
    with pytest.raises(CheckpointError, match=r"ViT.*save its state_dict"):
        read_encoder(saved(tmp_path, encoder))


def test_other_layouts_are_refused_with_their_names_and_what_to_do(tmp_path, state):
    bare = {name: value for name, value in state.items() if not name.startswith("patch_embed")}
    finetuned = {name.replace("norm.", "fc_norm.") if name.startswith("norm") else name: v for name, v in state.items()}
    for content, sentence in (
        (bare | {"patch_embed.0.proj.weight": torch.zeros(192, 4, 8, 8)}, r"no 'patch_embed.*cls_token.*SatMAE"),
        (state | {"register_tokens": torch.zeros(1, 4, 192)}, "register_tokens.*timm:NAME"),
        (state | {"blocks.0.ls1.gamma": torch.zeros(192)}, "ls1.gamma.*DINOv2"),
        (finetuned | {"head.weight": torch.zeros(5, 192)}, "fc_norm.*pretrained weights"),
        ({"vit.embeddings.patch_embeddings.projection.weight": torch.zeros(192, 3, 8, 8)}, "vit.embeddings.*Hugging"),
        (state | {"pos_embed": torch.zeros(1, 61, 192)}, r"pos_embed \(1, 61, 192\)"),
        (state | {"patch_embed.proj.weight": torch.zeros(192, 3, 1, 8, 8)}, r"\(192, 3, 1, 8, 8\)"),
        ({"conv1.weight": torch.zeros(3, 3, 7, 7)}, r"given model\.conv1\.weight"),
        ({"epoch": 3}, "no tensors"),
    ):
        with pytest.raises(CheckpointError, match=sentence):
            read_encoder(saved(tmp_path, {"model": content}))


def test_heads_are_asked_for_where_no_size_is_usual_and_the_flag_works(tmp_path):
    torch.manual_seed(0)
    encoder = ViT(3, 16, 8, 512, 1, 16).eval()
    path = saved(tmp_path, encoder.state_dict())
    for heads in (None, 3):
        with pytest.raises(CheckpointError, match=r"512 wide.*--heads"):
            read_encoder(path, heads)
    loaded = read_encoder(path, 16)
    assert loaded.encoder.heads == 16 and not any("heads" in note for note in loaded.notes)
    images = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(loaded.encoder(images).tokens, encoder(images).tokens)
