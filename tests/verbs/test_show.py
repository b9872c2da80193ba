"""`geomim show` on a checkpoint, on an export, and on what others published."""

import json

import pytest
import torch
from tiny_corpus import write_corpus

from geomim.cli import main
from geomim.data.datamodule import TileDataModule
from geomim.models.vit import ViT
from geomim.verbs.pretrain import Training, train

FLAGS = (
    "pretrain --recipe mae --method.decoder_depth 1 --method.decoder_width 16 --method.decoder_heads 2 "
    "--encoder.image_size 16 --encoder.patch_size 4 --encoder.width 24 --encoder.depth 1 --encoder.heads 2 "
    "--training.precision 32-true --training.accelerator cpu --training.progress_bar false --data.batch_size 4 "
    "--data.workers 0 --training.max_steps 2 --training.log_every 1 --name run --watch.test_split val"
).split()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A watched run and its export."""
    root = tmp_path_factory.mktemp("show")
    corpus = write_corpus(root / "meadows")
    meta = json.loads((corpus / "corpus.json").read_text()) | {"lock": "1a2b", "audit": "3c4d"}
    (corpus / "corpus.json").write_text(json.dumps(meta))
    record = {"benchmark": "water", "splits": ["test"], "tiles": 3, "excluded": True, "given": "x"}
    (corpus / "audit").mkdir()
    (corpus / "audit" / "audit.json").write_text(json.dumps({"benchmarks": [record]}))
    assert main([*FLAGS, "--out", str(root), "--data.corpus", str(corpus), "--watch.data", str(corpus)]) == 0
    assert main(["export", str(root / "run/checkpoints/last.ckpt"), "--out", str(root / "encoder")]) == 0
    return root


@pytest.mark.parametrize("path", ["run/checkpoints/last.ckpt", "encoder"])
def test_all_is_said_of_a_run_and_carried_by_its_export(trained, capsys, path):
    assert main(["show", str(trained / path)]) == 0
    said = capsys.readouterr().out
    words = " ".join(said.split())
    for fact in (
        "recipe: mae (visible 0.25",
        "steps: 2 (100% of its schedule)",
        "images seen: 8",
        "code: geomim",
        "meadows, 24 tiles, lock 1a2b, audit 3c4d",
        "3 touch water (test): excluded",
        "Accuracy on corpus meadows at step 2",
        "random initialisation",
        "pixel statistics",
        "CC0-1.0",
        "batch_size 4,",
    ):
        assert fact in words, fact
    assert all(len(line) <= 80 for line in said.splitlines()[1:])


def test_machines_read_the_same(trained, capsys):
    entries = []
    for path in ("run/checkpoints/last.ckpt", "encoder"):
        assert main(["show", str(trained / path), "--json"]) == 0
        entries.append(json.loads(capsys.readouterr().out))
    one, other = ({key: value for key, value in entry.items() if key != "source"} for entry in entries)
    assert one == other and one["provenance"]["config"]["recipe"] == "mae"
    assert one["provenance"]["corpora"][0]["benchmarks"][0]["tiles"] == 3
    assert json.loads((trained / "encoder" / "config.json").read_text())["geomim"]["provenance"] == one["provenance"]


def test_of_published_weights_little_is_known_and_that_is_said(tmp_path, capsys):
    torch.save({"model": ViT(3, 32, 16, 192, 1, 3).state_dict()}, tmp_path / "a.pth")
    assert main(["show", str(tmp_path / "a.pth")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for fact in ("recipe: unknown", "images seen: unknown", "The weights state none", "width 192", "Corpora Unknown."):
        assert fact in said, fact


def test_what_is_no_encoder_is_a_sentence(tmp_path, capsys):
    (tmp_path / "a.ckpt").write_bytes(b"nothing")
    for path in ("a.ckpt", "nowhere.ckpt"):
        assert main(["show", str(tmp_path / path)]) == 1
        assert path in (said := capsys.readouterr().err) and said.count("\n") == 1


def test_what_signs_an_address_does_not_travel_with_the_weights(trained, tmp_path):
    data = TileDataModule(str(trained / "meadows"), batch_size=4, image_size=16, workers=0)
    method = {"decoder_depth": 1, "decoder_width": 16, "decoder_heads": 2}
    training = Training(max_steps=1, precision="32-true", accelerator="cpu", progress_bar=False)
    config = {"data": {"corpus": ["s3://bucket/plains", "https://me:secret@host/hills?version=2&sig=secret"]}}
    encoder = {"patch_size": 4, "width": 24, "depth": 1, "heads": 2}
    last = train(data, tmp_path, "mae", method, encoder, training=training, config=config)
    stored = torch.load(last, weights_only=True)["geomim"]["provenance"]["config"]
    assert stored["data"] == {"corpus": ["s3://bucket/plains", "https://host/hills?version=2"]}
