"""Models of images and text: RemoteCLIP's and open_clip's, geomim's checkpoints and exports."""

import json
from collections import OrderedDict
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from geomim.errors import CheckpointError, ConfigError, InputError
from geomim.models.build import build_encoder
from geomim.models.clip import _name, _told_by_shapes
from geomim.models.frozen import read_frozen
from geomim.models.image_text import ImageText, open_image_text, write_remoteclip
from geomim.models.joint import Joint
from geomim.models.text import TextTower, build_text
from geomim.sensors import BandContract, get_sensor
from geomim.verbs.export import export

open_clip = pytest.importorskip("open_clip")

TEXT = {"context_length": 16, "width": 64, "heads": 1, "layers": 2}
VIT = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64}
SENTENCES = ["a river crosses farmland", "many planes"]


def peer(vision: dict = VIT, quick_gelu: bool = True, text: dict = TEXT) -> nn.Module:
    torch.manual_seed(0)
    model = open_clip.CLIP(48, vision, text, quick_gelu=quick_gelu).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.logit_scale.data.fill_(3.0)
    return model


def published(folder: Path, model: nn.Module) -> str:
    """In RemoteCLIP's layout."""
    path = folder / "RemoteCLIP-tiny.pt"
    torch.save(OrderedDict(model.state_dict()), path)
    return f"remoteclip:{path}"


def same(ours: ImageText, model: nn.Module) -> bool:
    images, tokens = torch.randn(3, 3, *[ours.image_size] * 2), ours.joint.text.tokenize(SENTENCES)
    with torch.no_grad():
        pairs = (
            (ours.encode_image(images), model.encode_image(images, normalize=True)),
            (ours.encode_text(SENTENCES), model.encode_text(tokens, normalize=True)),
        )
    return all(torch.allclose(one, other, rtol=1e-5, atol=1e-5) for one, other in pairs)


@pytest.mark.parametrize("vision", [VIT, RESNET], ids=["vit", "resnet"])
def test_remoteclips_layout_answers_as_open_clip_does(tmp_path: Path, vision: dict) -> None:
    model = peer(vision)
    ours = open_image_text(published(tmp_path, model))
    assert same(ours, model)
    if vision is VIT:  # a teacher as well
        teacher, contract = read_frozen(published(tmp_path, model), (4, 4))
        images = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            tokens = teacher.forward_features(images)
            torch.testing.assert_close(tokens[:, 0] @ model.visual.proj, model.visual(images), rtol=1e-5, atol=1e-5)
        assert contract == ours.contracts["rgb"]
    assert ours.logit_scale == pytest.approx(float(model.logit_scale.exp()), rel=1e-6)
    assert ours.contracts["rgb"].mean == pytest.approx([255 * one for one in open_clip.OPENAI_DATASET_MEAN])
    assert any("activation QuickGELU, as OpenAI's and RemoteCLIP's" in note for note in ours.notes)


def test_gelu_and_quick_gelu_are_told_apart(tmp_path: Path) -> None:
    gelu, quick = peer(quick_gelu=False), peer()
    source = published(tmp_path, gelu)  # the same tensors as of `quick`
    default, asked = open_image_text(source), open_image_text(source, quickgelu=False)
    assert same(default, quick) and not same(default, gelu)
    assert same(asked, gelu) and not same(asked, quick)
    assert any("activation GELU, as asked" in note for note in asked.notes)
    assert default.fingerprint != asked.fingerprint
    images = torch.randn(2, 3, 32, 32)
    for quick_gelu, model in ((None, quick), (False, gelu)):  # and of a teacher
        teacher, _ = read_frozen(source, (4, 4), quick_gelu)
        with torch.no_grad():
            found = teacher.forward_features(images)[:, 0] @ model.visual.proj
            torch.testing.assert_close(found, model.visual(images), rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="'timm:vit_tiny_patch16_224' states its activation itself"):
        read_frozen("timm:vit_tiny_patch16_224", (4, 4), True)


def test_patches_are_projected_tokens_after_the_last_norm(tmp_path: Path) -> None:
    model = peer()
    ours, images = open_image_text(published(tmp_path, model)), torch.randn(2, 3, 32, 32)
    model.visual.output_tokens = True
    with torch.no_grad():
        _, tokens = model.visual(images)
        torch.testing.assert_close(
            ours.encode_patches(images), F.normalize(tokens @ model.visual.proj, dim=-1), rtol=1e-5, atol=1e-5
        )
    assert ours.encode_patches(torch.randn(1, 3, 32, 48)).shape == (1, 24, 48)  # other sizes as well
    valid = torch.ones(2, 1, 32, 32, dtype=torch.bool)
    torch.testing.assert_close(ours.encode_image(images, valid, "rgb"), ours.encode_image(images))
    valid[0, :, :16], images[0, :, 16:] = False, 0.0
    hidden = images.clone()
    hidden[0, :, :16] = 7.0  # what is not valid is not seen
    torch.testing.assert_close(ours.encode_image(hidden, valid), ours.encode_image(images, valid))
    assert ours.encode_image(images, torch.zeros_like(valid)).isfinite().all()
    assert ours.encode_text([]).shape == (0, 48)


def test_a_resnet_has_no_patches(tmp_path: Path) -> None:
    ours = open_image_text(published(tmp_path, peer(RESNET)))
    with pytest.raises(CheckpointError, match=r"a ModifiedResNet answers with one vector an image.*vision transformer"):
        ours.encode_patches(torch.randn(1, 3, 64, 64))
    with pytest.raises(CheckpointError, match=r"takes images \(B, 3, 64, 64\)"):
        ours.encode_image(torch.randn(1, 3, 32, 32))


def test_open_clips_own_models_and_training_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"embed_dim": 48, "vision_cfg": VIT | {"head_width": 32}, "text_cfg": TEXT | {"heads": 2}}
    (tmp_path / "tiny-two-heads.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-two-heads.json")
    model = peer(config["vision_cfg"], quick_gelu=False, text=config["text_cfg"])
    trained = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": trained}, tmp_path / "epoch_3.pt")
    ours = open_image_text(f"open_clip:tiny-two-heads/{tmp_path / 'epoch_3.pt'}")
    assert same(ours, model) and any("activation GELU, as open_clip says" in note for note in ours.notes)
    assert same(open_image_text(f"remoteclip:{tmp_path / 'epoch_3.pt'}@tiny-two-heads", quickgelu=False), model)
    with monkeypatch.context() as patch:  # a tag knows what its architecture does not, as ViT-B-32/openai
        patch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: {"quick_gelu": True})
        tagged = open_image_text(f"open_clip:tiny-two-heads/{tmp_path / 'epoch_3.pt'}")
        assert not same(tagged, model) and any("activation QuickGELU" in note for note in tagged.notes)
    wrong = open_image_text(f"remoteclip:{tmp_path / 'epoch_3.pt'}", quickgelu=False)
    assert not same(wrong, model) and any("heads of 64 channels" in note for note in wrong.notes)
    text = build_text("tiny-two-heads", f"open_clip:tiny-two-heads/{tmp_path / 'epoch_3.pt'}", frozen=True)
    tokens = text.tokenize(SENTENCES)
    with torch.no_grad():
        torch.testing.assert_close(text(tokens), model.encode_text(tokens), rtol=1e-5, atol=1e-5)
    with pytest.raises(CheckpointError, match=r"has a text tower of .*width 64, heads 2.*; 'tiny' has .*width 192"):
        build_text("tiny", f"open_clip:tiny-two-heads/{tmp_path / 'epoch_3.pt'}")
    wide = peer(config["vision_cfg"], text=config["text_cfg"] | {"vocab_size": 49500})
    torch.save(wide.state_dict(), tmp_path / "wide.pt")
    text = config["text_cfg"] | {"heads": 1}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"embed_dim": 48, "text_cfg": text}}))
    with pytest.raises(CheckpointError, match=r"has a text tower of vocab_size 49500; .* has vocab_size 49408"):
        build_text(f"local-dir:{tmp_path}", f"remoteclip:{tmp_path / 'wide.pt'}")


def test_a_checkpoint_of_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    source = published(tmp_path, peer())
    with pytest.raises(
        CheckpointError, match=r"'ViT-B-32' in RemoteCLIP's layout; .*64 channels and 2 layers.*missing"
    ):
        open_image_text(f"{source}@ViT-B-32")
    with pytest.raises(CheckpointError, match=r"no architecture 'ViT-B-33'; did you mean 'ViT-B-32'"):
        open_image_text(f"{source}@ViT-B-33")
    state = peer().state_dict()
    for lacking, said in (("text_projection", "no 'text_projection'"), ("ln_final.bias", "missing ln_final.bias")):
        torch.save({name: value for name, value in state.items() if name != lacking}, tmp_path / "less.pt")
        with pytest.raises(CheckpointError, match=said):
            open_image_text(f"remoteclip:{tmp_path / 'less.pt'}")
    torch.save(state | {"visual.extra": torch.ones(2)}, tmp_path / "more.pt")
    with pytest.raises(CheckpointError, match=r"unknown visual\.extra"):
        open_image_text(f"remoteclip:{tmp_path / 'more.pt'}")
    for name, axes in (("visual.conv1.weight", (3, 4)), ("positional_embedding", ())):
        torch.save(state | {name: torch.ones(axes)}, tmp_path / "flat.pt")
        with pytest.raises(CheckpointError, match=rf"no '{name}' of \d axes"):
            open_image_text(f"remoteclip:{tmp_path / 'flat.pt'}")
    with pytest.raises(CheckpointError, match=r"'roberta-ViT-B-32' has towers of other libraries"):
        open_image_text(f"{source}@roberta-ViT-B-32")
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"is no CLIP in RemoteCLIP's layout: no 'visual\.conv1\.weight'"):
        open_image_text(f"remoteclip:{tmp_path / 'other.pt'}")
    with pytest.raises(CheckpointError, match="does not exist"):
        open_image_text("remoteclip:nowhere.pt")
    with pytest.raises(CheckpointError, match="open_clip cannot give"):
        open_image_text("open_clip:ViT-B-32/nowhere")


def test_the_published_architectures_are_told_by_shapes(tmp_path: Path) -> None:
    for name in ("RN50", "ViT-B-32", "ViT-L-14"):
        config = open_clip.get_model_config(name)
        with torch.device("meta"):
            model = open_clip.CLIP(**config)
        told = _told_by_shapes("a.pt", model.state_dict())
        assert _name(told) == name and told["vision_cfg"]["image_size"] == 224


def test_narrow_towers_are_of_one_head(tmp_path: Path) -> None:
    model = peer(VIT | {"width": 48, "head_width": 48}, text=TEXT | {"width": 32})
    assert same(open_image_text(published(tmp_path, model)), model)
    odd = peer(VIT | {"width": 200, "head_width": 100})
    with pytest.raises(CheckpointError, match=r"open_clip cannot build 'one of 200 channels .*divisible"):
        open_image_text(published(tmp_path, odd))


def test_towers_of_coca_answer_as_open_clip_does(tmp_path: Path) -> None:
    pooled = {"attentional_pool": True, "attn_pooler_heads": 1, "output_tokens": True}
    text = TEXT | {"embed_cls": True, "output_tokens": True}
    config = {"embed_dim": 48, "vision_cfg": VIT | pooled, "text_cfg": text, "custom_text": True}
    config["multimodal_cfg"] = TEXT | {"vocab_size": 49408, "attn_pooler_heads": 1}
    (tmp_path / "tiny-coca.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-coca.json")
    model = open_clip.create_model("tiny-coca").eval()
    torch.save(model.state_dict(), tmp_path / "coca.pt")
    ours, images = open_image_text(f"open_clip:tiny-coca/{tmp_path / 'coca.pt'}"), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours.encode_image(images), model.encode_image(images), rtol=1e-5, atol=1e-5)
        said = model.encode_text(ours.joint.text.tokenize(SENTENCES))
        torch.testing.assert_close(ours.encode_text(SENTENCES), said, rtol=1e-5, atol=1e-5)
    with pytest.raises(CheckpointError, match="one vector an image"):
        ours.encode_patches(images)


def test_a_bias_as_of_siglip_is_left_out_aloud(tmp_path: Path) -> None:
    config = {"embed_dim": 48, "vision_cfg": VIT, "text_cfg": TEXT, "init_logit_bias": -10.0}
    (tmp_path / "tiny-siglip.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-siglip.json")
    model = open_clip.create_model("tiny-siglip").eval()
    model.logit_scale.data.fill_(4.8)
    torch.save(model.state_dict(), tmp_path / "siglip.pt")
    ours = open_image_text(f"open_clip:tiny-siglip/{tmp_path / 'siglip.pt'}")
    assert same(ours, model) and ours.logit_scale == pytest.approx(100)
    assert any("its bias is left out and its scale is at most 100" in note for note in ours.notes)


@pytest.mark.parametrize("vision", [VIT, RESNET], ids=["vit", "resnet"])
def test_what_is_read_is_written_as_it_was(tmp_path: Path, vision: dict) -> None:
    model = peer(vision)
    write_remoteclip(open_image_text(published(tmp_path, model)), tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert type(again) is OrderedDict and again.keys() == model.state_dict().keys()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


def test_statistics_that_the_layout_cannot_hold_are_refused(tmp_path: Path) -> None:
    ours = open_image_text(published(tmp_path, peer(RESNET)))
    other = ours.fitted(BandContract(get_sensor("rgb"), *STATISTICS))
    with pytest.raises(CheckpointError, match=r"of mean \[122.77, .* and is .*of mean \[120.0, 110.0, 90.0\]"):
        write_remoteclip(other, tmp_path / "again.pt")
    assert not (tmp_path / "again.pt").exists()


STATISTICS = (120.0, 110.0, 90.0), (60.0, 50.0, 55.0)
NAIP, S2 = get_sensor("naip"), get_sensor("sentinel2")
CONTRACTS = {
    "naip": BandContract(NAIP, (100.0,) * 4, (30.0,) * 4),
    "s2": BandContract(S2, (1000.0,) * 13, (300.0,) * 13),
}


def trained(path: Path, contracts: dict = CONTRACTS, pool: str = "mean", **options) -> tuple[str, nn.Module, Joint]:
    """A checkpoint as a recipe with sentences leaves it."""
    torch.manual_seed(0)
    sizes = {"image_size": 32, "patch_size": 8, "width": 64, "depth": 2, "heads": 1, "spectral": len(contracts) > 1}
    encoder = build_encoder(contracts, **sizes | options).eval()
    text = TextTower({"embed_dim": 48, "quick_gelu": True, "text_cfg": TEXT})
    joint = Joint(text, encoder.width, pool)
    entry = {"format_version": 2, "recipe": "remote_clip", "encoder": encoder.config, "joint": joint.config}
    entry |= {"contracts": {name: one.to_dict() for name, one in contracts.items()}}
    parts = {"model.encoder": encoder, "model.joint": joint}
    state = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
    torch.save({"state_dict": state, "geomim": entry}, path)
    return str(path), encoder, joint


def test_a_checkpoint_of_several_sensors_answers_for_each(tmp_path: Path) -> None:
    path, encoder, joint = trained(tmp_path / "a.ckpt")
    ours = open_image_text(path)
    assert set(ours.contracts) == {"naip", "s2"} and (ours.image_size, ours.patch_size) == (32, 8)
    with torch.no_grad():
        for name, contract in CONTRACTS.items():
            images = torch.randn(2, len(contract.names), 32, 32)
            expected = joint.image(encoder(images, sensor=name))
            torch.testing.assert_close(ours.encode_image(images, sensor=name), expected)
            torch.testing.assert_close(ours.fitted(contract).encode_image(images), expected, rtol=1e-5, atol=1e-5)
        tokens = joint.text.tokenize(SENTENCES)
        torch.testing.assert_close(ours.encode_text(SENTENCES), joint.sentences(tokens), rtol=1e-5, atol=1e-6)
    landsat = get_sensor("landsat8")
    never = ours.fitted(BandContract(landsat, (0.0,) * 7, (1.0,) * 7))
    assert never.encode_patches(torch.randn(1, 7, 32, 32)).shape == (1, 16, 48)
    assert open_image_text(path).fingerprint == ours.fingerprint != never.fingerprint


def test_one_without_sentences_is_refused(tmp_path: Path) -> None:
    path, _, _ = trained(tmp_path / "a.ckpt")
    content = torch.load(path, weights_only=True)
    del content["geomim"]["joint"]
    torch.save(content, tmp_path / "b.ckpt")
    with pytest.raises(CheckpointError, match=r"b.ckpt' knows images and no sentences \(recipe remote_clip\)"):
        open_image_text(str(tmp_path / "b.ckpt"))
    with pytest.raises(ConfigError, match="states its activation itself"):
        open_image_text(path, quickgelu=False)
    content = torch.load(path, weights_only=True)
    del content["state_dict"]["model.joint.text.network.text_projection"]
    torch.save(content, tmp_path / "c.ckpt")
    with pytest.raises(CheckpointError, match=r"missing text.network.text_projection \(64, 48\)"):
        open_image_text(str(tmp_path / "c.ckpt"))


def test_one_trained_here_leaves_in_remoteclips_layout(tmp_path: Path) -> None:
    rgb = {"rgb": BandContract(get_sensor("rgb"), *STATISTICS)}
    path, _, _ = trained(tmp_path / "a.ckpt", rgb, "class", clip="quick_gelu")
    ours = open_image_text(path)
    export(path, str(tmp_path / "out.pt"), format=["remoteclip"])
    again, pictures = open_image_text(f"remoteclip:{tmp_path / 'out.pt'}"), 255 * torch.rand(2, 3, 32, 32)

    def seen(one: ImageText) -> torch.Tensor:
        mean, std = (
            torch.tensor(values)[:, None, None] for values in (one.contracts["rgb"].mean, one.contracts["rgb"].std)
        )
        return one.encode_image((pictures - mean) / std)

    torch.testing.assert_close(seen(again), seen(ours), rtol=1e-5, atol=1e-5)  # each as its own statistics want it
    model = peer()
    model.load_state_dict(torch.load(tmp_path / "out.pt", weights_only=True))
    assert same(again, model) and not same(ours, model)
    clip = {"pool": "class", "clip": "quick_gelu"}
    grb = {"grb": BandContract(get_sensor("rgb", ["green", "red", "blue"]), *STATISTICS)}
    s2 = {"s2": BandContract(S2.select(["B04", "B03", "B02"]), (1e3,) * 3, (3e2,) * 3)}
    for changes, said in (
        (clip | {"contracts": grb}, "'8-bit red, green, blue'.*'8-bit green, red, blue'"),
        (clip | {"contracts": s2}, "'8-bit red, green, blue'.*'red, green, blue'"),
        (clip | {"pool": "mean"}, "'pool': 'class'.*and is .*'pool': 'mean'"),
        (clip | {"clip": "gelu"}, "'clip': 'quick_gelu'.*and is .*'clip': 'gelu'"),
        (clip | {"heads": 2}, "'heads': 1.*and is .*'heads': 2"),
        ({"pool": "class"}, "missing visual.ln_pre.weight"),
        (clip | {"contracts": {"naip": CONTRACTS["naip"]}}, "visual.conv1.weight"),
    ):
        other, _, _ = trained(tmp_path / "b.ckpt", **{"contracts": rgb} | changes)
        with pytest.raises(CheckpointError, match=f"is not written, RemoteCLIP's layout.*{said}"):
            write_remoteclip(open_image_text(other), tmp_path / "none.pt")
    with pytest.raises(InputError, match="exists: give a new file"):
        export(path, str(tmp_path / "out.pt"), format=["remoteclip"])
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.ckpt", "b.ckpt", "out.pt"]


def test_an_export_is_a_plain_timm_model_with_the_space_beside(tmp_path: Path) -> None:
    for clip, contracts, sensor in (("quick_gelu", CONTRACTS, "s2"), (None, {"naip": CONTRACTS["naip"]}, None)):
        path, encoder, _ = trained(tmp_path / "a.ckpt", contracts, clip=clip)
        folder = export(path, str(tmp_path / f"out-{clip}"), sensor=sensor)
        name = sensor or "naip"
        ours, images = open_image_text(str(folder)), torch.randn(2, len(CONTRACTS[name].names), 32, 32)
        plain = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        with torch.no_grad():
            expected = encoder(images, sensor=name).tokens
            torch.testing.assert_close(plain.forward_features(images), expected, rtol=1e-5, atol=1e-5)
        whole = open_image_text(path)
        torch.testing.assert_close(
            ours.encode_image(images), whole.encode_image(images, sensor=name), rtol=1e-5, atol=1e-5
        )
        torch.testing.assert_close(ours.encode_text(SENTENCES), whole.encode_text(SENTENCES))
        assert "Images (the mean of their patches) and sentences share a space" in (folder / "README.md").read_text()
        assert (ours.fingerprint == whole.fingerprint) is (sensor is None)  # one baked for a sensor is another
        (folder / "joint.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"joint\.safetensors' does not exist"):
            open_image_text(str(folder))
