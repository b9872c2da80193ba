"""Runs with sentences as a user starts them: several sensors, towers that start from a file of RemoteCLIP's layout."""

import csv
import json
import math
import re
from pathlib import Path

import pytest
import torch
from tiny_corpus import write_corpus
from tiny_recipes import TEXT, annotated
from torch import nn

from geomim.cli import main
from geomim.models.image_text import open_image_text
from geomim.models.text import Stored, Text, stored
from geomim.models.vit import ViT
from geomim.pretrain.optimisation import parameter_groups
from geomim.pretrain.recipes.language import remote_clip
from geomim.sensors import get_sensor

open_clip = pytest.importorskip("open_clip")

VISION = {"image_size": 16, "layers": 1, "width": 16, "patch_size": 4, "head_width": 16}
SENTENCES = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1}
FLAGS = (
    "pretrain --encoder.image_size 16 --encoder.patch_size 4 --encoder.width 16 --encoder.depth 1 --encoder.heads 1 "
    "--encoder.clip quick_gelu --encoder.weights remoteclip:clip.pt --method.text.name local-dir:text "
    "--method.text.weights remoteclip:clip.pt --training.precision 32-true --training.accelerator cpu "
    "--training.progress_bar false --data.batch_size 4 --data.workers 0 --training.max_steps 6 --training.log_every 1"
).split()
BOTH = ["--data.corpus", "[rgb,s2]", "--encoder.spectral", "true"]
RILS = "--recipe selective_rils --method.decoder_width 16 --method.decoder_heads 2 --method.gate false".split()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A folder with a CLIP in RemoteCLIP's layout, the sizes of its text tower, and corpora of two sensors."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = open_clip.CLIP(16, VISION, SENTENCES, quick_gelu=True)
    torch.save(model.state_dict(), "clip.pt")
    Path("text").mkdir()
    config = {"model_cfg": {"embed_dim": 16, "text_cfg": SENTENCES}}
    Path("text/open_clip_config.json").write_text(json.dumps(config))
    annotated(write_corpus(tmp_path / "rgb", nodata=True))
    annotated(write_corpus(tmp_path / "s2", sensor=get_sensor("sentinel2", ["B02", "B03", "B04", "B08"]), seed=1))
    return model


def figures(name: str) -> list[dict[str, str]]:
    """Losses of a run, step by step."""
    kept = ("step", "loss", "contrast", "language", "gradient_norm")
    with Path("runs", name, "metrics.csv").open() as file:
        return [{key: row[key] for key in kept if key in row} for row in csv.DictReader(file)]


@pytest.mark.parametrize("recipe", [["--recipe", "remote_clip"], [*RILS, "--method.starts", "0.5"]], ids=" ".join)
def test_two_sensors_train_in_one_run_from_one_file(here: nn.Module, recipe: list[str], capsys) -> None:
    assert main([*FLAGS, *BOTH, *recipe, "--method.text.frozen", "true", "--name", "run"]) == 0
    said = capsys.readouterr().out
    assert "text tower started from remoteclip:clip.pt, activation QuickGELU, as OpenAI's" in said
    assert "started from remoteclip:clip.pt" in said and "bands of 'sentinel2' that the weights lack" in said
    rows = figures("run")
    late = 3 if "--method.starts" in recipe else 0  # until then nothing is said of it
    assert len(rows) == 6 and [list(row.values()).count("") for row in rows] == [1] * late + [0] * (6 - late)
    assert all(math.isfinite(float(value)) for row in rows for value in row.values() if value)
    assert ("step 4: 'language' is asked from here on\n" in said) == bool(late)
    if late:  # a mean is that of the steps in which it was asked
        seldom = ["--method.text.frozen", "true", "--training.log_every", "6", "--name", "seldom"]
        assert main([*FLAGS, *BOTH, *recipe, *seldom]) == 0
        mean = sum(float(row["language"]) for row in rows[late:]) / 3
        assert float(figures("seldom")[0]["language"]) == pytest.approx(mean, rel=1e-5)
    last = "runs/run/checkpoints/last.ckpt"
    content = torch.load(last, weights_only=True)
    trained = {name.removeprefix("model."): value for name, value in content["state_dict"].items()}
    for name, value in here.state_dict().items():
        if not name.startswith("visual.") and name != "logit_scale":
            assert torch.equal(trained[f"joint.text.network.{name}"], value), name
    assert not torch.equal(trained["encoder.norm.weight"], here.visual.ln_post.weight)
    ours = open_image_text(last)
    assert set(ours.contracts) == {"rgb", "sentinel2"}
    vectors = [
        ours.encode_image(torch.randn(2, bands, 16, 16), sensor=name) for name, bands in (("rgb", 3), ("sentinel2", 4))
    ]
    assert all(one.shape == (2, 16) and one.isfinite().all() for one in vectors)
    with torch.no_grad():
        expected = here.eval().encode_text(ours.joint.text.tokenize(["a road"]), normalize=True)
    torch.testing.assert_close(ours.encode_text(["a road"]), expected, rtol=1e-5, atol=1e-5)


def test_an_export_says_what_it_learned_from_and_answers_alike(here: nn.Module) -> None:
    meta = json.loads(Path("rgb/corpus.json").read_text())
    people = {"human": [{"file": "people.json", "xxh3": None, "licence": "CC-BY-NC-4.0"}]}
    Path("rgb/corpus.json").write_text(json.dumps(meta | {"sentences": people}))
    assert main([*FLAGS, *BOTH, "--recipe", "remote_clip", "--training.max_steps", "1", "--name", "run"]) == 0
    assert main("export runs/run/checkpoints/last.ckpt --out out --sensor sentinel2".split()) == 0
    card = Path("out/README.md").read_text()
    assert card.count("- `remoteclip:clip.pt`: unknown") == 1  # the licence of weights of both towers, said once
    for words in (
        "text tower started from remoteclip:clip.pt, activation QuickGELU",
        "'weights': 'remoteclip:clip.pt'",
        "dim 16, context_length 16",
        "by origin there are 48 human",
        "- `human` (people.json): CC-BY-NC-4.0\n- `human` (came with the imagery): the imagery's licence\n",
    ):
        assert words in card
    whole, ours = open_image_text("runs/run/checkpoints/last.ckpt"), open_image_text("out")
    images = torch.randn(2, 4, 16, 16)
    expected = whole.encode_image(images, sensor="sentinel2")
    torch.testing.assert_close(ours.encode_image(images), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(ours.encode_text(["a road"]), whole.encode_text(["a road"]))


@pytest.mark.parametrize("frozen", ["true", "false"])
def test_a_resumed_run_does_not_read_what_its_towers_started_from(here: nn.Module, frozen: str) -> None:
    run = [*FLAGS, "--data.corpus", "rgb", *RILS, "--method.starts", "0.3", "--method.text.frozen", frozen]
    assert main([*run, "--name", "whole", "--training.milestones", "2"]) == 0
    half = Path("runs/half/checkpoints")
    half.mkdir(parents=True)
    Path("runs/whole/checkpoints/step-0000003.ckpt").rename(half / "last.ckpt")
    Path("clip.pt").unlink()
    other = {"model_cfg": {"embed_dim": 16, "text_cfg": SENTENCES | {"heads": 2}}}  # weights of one head fit that, too
    Path("text/open_clip_config.json").write_text(json.dumps(other))
    assert main([*run, "--name", "half", "--resume", "last", "--training.milestones", "2"]) == 0
    assert figures("half") == figures("whole")[3:]
    ends = (f"runs/{name}/checkpoints/last.ckpt" for name in ("whole", "half"))
    entries = [torch.load(one, weights_only=True)["geomim"] for one in ends]
    assert entries[0]["joint"] == entries[1]["joint"] and entries[0]["joint"]["text"]["quick_gelu"]
    assert entries[0]["provenance"]["start"] == entries[1]["provenance"]["start"]


def test_the_licence_of_a_text_towers_weights_goes_on_without_those_of_an_encoder(here: nn.Module) -> None:
    alone = FLAGS[: (at := FLAGS.index("--encoder.weights"))] + FLAGS[at + 2 :]
    for resume in ([], ["--resume", "last"]):  # a resumed run does not read them again
        flags = [*alone, "--data.corpus", "rgb", "--recipe", "remote_clip", "--name", "run", *resume]
        assert main([*flags, "--training.max_steps", "1"]) == 0
        provenance = torch.load("runs/run/checkpoints/last.ckpt", weights_only=True)["geomim"]["provenance"]
        assert [one["weights"] for one in provenance["rights"]] == ["remoteclip:clip.pt"]


def test_a_frozen_tower_is_no_part_of_the_optimiser_and_stays_as_in_evaluation() -> None:
    model = remote_clip(ViT(3, 16, 4, 16, 1, 1), Text(TEXT.name, frozen=True)).train()
    given = {id(one) for group in parameter_groups(model, 0.05) for one in group["params"]}
    assert not given & {id(one) for one in model.joint.text.parameters()}
    assert {id(model.joint.logit_scale), id(model.joint.projection.weight)} <= given
    assert model.joint.training and not any(one.training for one in model.joint.text.modules())


def test_a_stored_tower_keeps_its_activation() -> None:
    config = {"embed_dim": 16, "quick_gelu": True, "text_cfg": SENTENCES}
    text, entry = Text("ViT-B-32", "remoteclip:a.pt", True), {"joint": {"text": config}}
    kept = Stored(config, "remoteclip:a.pt", True)
    assert stored({"text": text, "gate": True}, entry) == {"text": kept, "gate": True}
    assert stored({"text": text}, {}) == {"text": text} and stored({}, entry) == {"text": Stored(config)}
    assert kept.build().config == config and not any(one.requires_grad for one in kept.build().parameters())


def test_what_cannot_be_is_said_before_anything_is_read(here: nn.Module, capsys) -> None:
    for flags, said in (
        (["--encoder.class_token", "false", "--method.pool", "class"], "pool class needs a class token"),
        (["--method.text.name", "ViT-B-32"], "'ViT-B-32' has .*width 512.*name the weights' own"),
        (["--method.text.weights", "remoteclip:none.pt"], "'none.pt' does not exist"),
        (["--encoder.clip", "null"], "the encoder has"),
    ):
        run = [*FLAGS, "--data.corpus", "rgb", "--recipe", "remote_clip", *flags]
        assert main([*run, "--name", "no"] + ([] if "clip" in flags[0] else ["--encoder.weights", "null"])) in (1, 2)
        error = capsys.readouterr().err
        assert re.search(said, error), error
        assert not Path("runs/no/checkpoints").exists()
