"""Text towers and the space that they share with images."""

import copy
import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from geomim.errors import CheckpointError, ConfigError
from geomim.models.image_text import open_image_text
from geomim.models.joint import Joint, unit
from geomim.models.patches import Latents
from geomim.models.text import Stored, TextTower, build_text
from geomim.models.vit import ViT

open_clip = pytest.importorskip("open_clip")
tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

SENTENCES = ["a river crosses farmland", "", "many planes and 3 ships \N{SHIP} in the harbour", "ein Fluß"]
SMALL = {
    "embed_dim": 24,
    "quick_gelu": True,
    "text_cfg": {"context_length": 32, "width": 32, "heads": 2, "layers": 2},
}


def tower(**changes) -> TextTower:
    torch.manual_seed(0)
    return TextTower(SMALL | {"text_cfg": SMALL["text_cfg"] | changes})


@pytest.fixture(scope="module")
def tiny() -> TextTower:
    torch.manual_seed(0)
    return build_text("tiny")


def test_the_tiny_tower_is_open_clips_with_its_tokens(tiny: TextTower) -> None:
    tokens = tiny.tokenize(SENTENCES)
    assert tiny.dim == 192 and len(tiny.blocks) == 2 and tiny.causal and tiny.context_length == 77
    assert torch.equal(tokens, open_clip.tokenize(SENTENCES)) and tokens.dtype == torch.int64
    with torch.no_grad():
        torch.testing.assert_close(tiny(tokens), tiny.network(tokens), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pool", [{}, {"pool_type": "eos", "eos_id": 49407}])
def test_leaving_out_what_no_sentence_reaches_changes_nothing(pool) -> None:
    text = tower(**pool)
    tokens = text.tokenize(SENTENCES)
    trimmed = text.trim(tokens)
    assert trimmed.shape[1] == 16 < text.context_length  # the longest has 11 tokens
    with torch.no_grad():
        torch.testing.assert_close(text(trimmed), text(tokens), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(text(tokens[:1, :8]), text(tokens[:1]), rtol=1e-5, atol=1e-6)


def test_a_tower_that_sees_later_tokens_keeps_them() -> None:
    for changes in ({"no_causal_mask": True}, {"pool_type": "last"}, {"embed_cls": True}):
        text = tower(**changes)
        tokens = text.tokenize(SENTENCES)
        assert not text.causal and text.trim(tokens) is tokens and text(tokens).shape == (4, 24)


def test_long_sentences_end_where_the_context_does() -> None:
    text = tower()
    tokens = text.tokenize(["word " * 2500, "word"])
    assert tokens.shape == (2, 32) and int(tokens[0, -1]) == 49407 and text(tokens).isfinite().all()


def test_a_tower_is_built_again_from_its_config() -> None:
    text = tower()
    again = TextTower(text.config)
    again.load_state_dict(text.state_dict())
    tokens = text.tokenize(SENTENCES)
    assert torch.equal(again(tokens), text(tokens)) and again.config == text.config
    assert not text.train().training and not text.network.training  # nothing drops out


def test_frozen_and_copied_towers(tiny: TextTower) -> None:
    copied = copy.deepcopy(tiny)
    tokens = tiny.tokenize(SENTENCES)
    assert torch.equal(copied(tokens), tiny(tokens))
    assert not any(one.requires_grad for one in build_text("tiny", frozen=True).parameters())
    assert all(one.requires_grad for one in tiny.parameters())


def test_what_is_not_here_is_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'ViT-B-32'.*, or tiny"):
        build_text("ViT-B-33")
    with pytest.raises(ConfigError, match=r"'ViT-B-16-SigLIP' needs the tokenizer .*local-dir:FOLDER"):
        build_text("ViT-B-16-SigLIP")
    with pytest.raises(ConfigError, match="give it as weights"):
        build_text("remoteclip:a.pt")
    with pytest.raises(ConfigError, match=r"'local-dir:nowhere' has no readable open_clip_config\.json"):
        build_text("local-dir:nowhere")
    with pytest.raises(CheckpointError, match="expected open_clip:NAME/PRETRAINED"):
        build_text("ViT-B-32", "open_clip:ViT-B-32")
    with pytest.raises(ConfigError, match="knows 100 tokens; CLIP's tokenizer has 49408"):
        tower(vocab_size=100).tokenize(SENTENCES)
    with pytest.raises(ConfigError, match="temperature above 0"):
        Joint(tower(), 8, temperature=0.0)


def test_a_folder_is_its_own_tokenizers_place_and_one_without_is_refused(tmp_path: Path) -> None:
    model = {**SMALL, "text_cfg": SMALL["text_cfg"] | {"hf_tokenizer_name": "org/elsewhere"}}
    model |= {"vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8}, "custom_text": True}
    statistics = {"mean": [0.5] * 3, "std": [0.5] * 3}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": statistics}))
    source = f"local-dir:{tmp_path}"
    del model["custom_text"]
    torch.save(open_clip.CustomTextCLIP(**model).state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    for name, weights in ((source, None), (source, f"open_clip:{source}")):
        with pytest.raises(ConfigError, match=rf"tokenizer '{tmp_path}' cannot be had .*as local-dir:FOLDER"):
            build_text(name, weights)
    with pytest.raises(ConfigError, match="cannot be had"):
        open_image_text(f"open_clip:{source}").encode_text(SENTENCES)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "a": 1, "river": 2}, "<pad>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>").save_pretrained(tmp_path)
    text = build_text(source)
    assert text.tokenize(["a river"])[0].tolist() == [1, 2] + [0] * 30
    ours = open_image_text(f"open_clip:{source}")
    assert ours.encode_text(["a river"]).shape == (1, 24)
    moved = open_image_text(f"open_clip:local-dir:{shutil.copytree(tmp_path, tmp_path / 'moved')}")
    assert moved.fingerprint == ours.fingerprint and moved.joint.text.identity == text.identity
    assert str(tmp_path) not in text.identity and Stored(text.config).build().config == text.config
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "a": 2, "river": 1}, "<pad>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>").save_pretrained(tmp_path)
    assert open_image_text(f"open_clip:{source}").fingerprint != ours.fingerprint
    with pytest.raises(CheckpointError, match=rf"tokenizer '{tmp_path}' is another than"):
        Stored(text.config).build()


def test_coca_answers_with_its_sentences_alone() -> None:
    text = tower(embed_cls=True, output_tokens=True)
    tokens = text.tokenize(SENTENCES)
    assert torch.equal(text(tokens), text.network(tokens)[0]) and text(tokens).shape == (4, 24)


@pytest.fixture
def joint() -> Joint:
    return Joint(tower(), 16)


def test_a_joint_space_starts_as_clip_does_and_comes_again(joint: Joint) -> None:
    assert float(joint.scale.detach()) == pytest.approx(1 / 0.07) and joint.dim == 24
    with torch.no_grad():
        joint.logit_scale += 9
    assert float(joint.scale.detach()) == pytest.approx(100)
    again = Joint.from_config(joint.config)
    again.load_state_dict(joint.state_dict())
    tokens = joint.text.tokenize(SENTENCES)
    torch.testing.assert_close(again.sentences(tokens), joint.sentences(tokens))


def test_hidden_tokens_count_for_nothing(joint: Joint) -> None:
    tokens = torch.randn(3, 1 + 6, 16)
    valid = torch.ones(3, 7, dtype=torch.bool)
    valid[1, 4:], valid[2, 1:] = False, False  # of the third nothing is left: then all count
    found = joint.image(Latents(tokens, key_valid=valid))
    expected = torch.stack([tokens[0, 1:].mean(0), tokens[1, 1:4].mean(0), tokens[2, 1:].mean(0)])
    torch.testing.assert_close(found, unit(joint.project(expected)))
    torch.testing.assert_close(joint.image(Latents(tokens))[0], found[0])
    assert joint.patches(Latents(tokens)).shape == (3, 6, 24)
    by_class = Joint(tower(), 16, "class")
    torch.testing.assert_close(by_class.image(Latents(tokens)), unit(by_class.project(tokens[:, 0])))
    with pytest.raises(ConfigError, match="use pool 'mean'"):
        by_class.image(Latents(tokens, prefix=0))


@pytest.mark.parametrize("half", [False, True])
def test_gradient_reaches_everything_and_vectors_are_of_length_one_in_float32(half: bool) -> None:
    encoder = ViT(3, 16, 8, 16, 1, 2)
    joint = Joint(tower(), 16)
    tokens = joint.text.trim(joint.text.tokenize(SENTENCES))
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        latents = encoder(torch.randn(4, 3, 16, 16))
        images, patches, texts = joint.image(latents), joint.patches(latents), joint.sentences(tokens)
        for vectors in (images, patches, texts):
            assert vectors.dtype == torch.float32
            torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(vectors.shape[:-1]))
        loss = (joint.scale * images @ texts.T).logsumexp(1).sum() + patches.sum()
    loss.backward()
    missing = {name for name, one in [*joint.named_parameters(), *encoder.named_parameters()] if one.grad is None}
    assert not missing and all(one.grad.isfinite().all() for one in joint.parameters())
    assert joint.logit_scale.shape == (1,) and math.isfinite(float(joint.logit_scale))
