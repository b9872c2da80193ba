import csv
import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin
from tiny_corpus import NAMES, write_corpus
from whole_arrays import write_array

from geomim.corpus.shards import write_groups
from geomim.data import masked as room
from geomim.errors import ConfigError, CorpusError
from geomim.evaluate.intervals import interval
from geomim.evaluate.saved import load_probe
from geomim.evaluate.scores import PIXELS, RANDOM
from geomim.models.vit import ViT
from geomim.sensors import SENSORS, BandContract
from geomim.verbs.evaluate import evaluate
from geomim.verbs.predict import predict

COLOURS = np.array([[60, 60, 60], [190, 190, 190]])


def checkpoint(path: Path) -> str:
    torch.manual_seed(0)
    encoder = ViT(3, 16, 4, 32, 2, 2)
    contract = BandContract(SENSORS["rgb"], (120.0,) * 3, (50.0,) * 3)
    state = {f"model.encoder.{name}": value for name, value in encoder.state_dict().items()}
    details = {"format_version": 1, "encoder": encoder.config, "contract": contract.to_dict()}
    torch.save({"state_dict": state, "geomim": details}, path)
    return str(path)


def pixels(kinds: np.ndarray, seed: int = 0) -> np.ndarray:
    """uint8 `(..., 3, H, W)` of two kinds of land."""
    noise = np.random.default_rng(seed).normal(0, 12, (*kinds.shape, 3))
    return np.moveaxis((COLOURS[kinds] + noise).clip(1, 255).astype(np.uint8), -1, -3)


def land(count: int, side: int, seed: int = 0) -> np.ndarray:
    """Squares of 4 pixels of two kinds."""
    coarse = np.random.default_rng(seed).integers(0, 2, (count, side // 4, side // 4))
    return coarse.repeat(4, 1).repeat(4, 2)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A corpus of tiles of mixed classes, without a class of their own, and what --dense makes of it."""
    root = tmp_path_factory.mktemp("dense")
    corpus = write_corpus(root / "corpus", count=32, size=16)
    kinds = land(32, 16)
    masks = kinds.astype(np.uint8)
    masks[:, :4] = 255
    for name, values, names in (("image", pixels(kinds), NAMES), ("mask", masks, (NAMES[0], *NAMES[2:]))):
        write_array(corpus / "tiles.zarr" / "16" / name, values, names)
    write_groups(corpus / "tiles.zarr")
    path = checkpoint(root / "a.ckpt")
    scores = evaluate(path, str(corpus), str(root / "out"), seeds=2, test_split="val", dense=True, device="cpu")
    return root, path, scores


def test_patches_are_scored_beside_their_floors(made):
    root, _, scores = made
    assert {(row.encoder, row.probe) for row in scores.rows} == {(n, "linear") for n in ("a", RANDOM, PIXELS)}
    assert scores.find("a", "linear").accuracy > 0.9
    assert 0.4 < scores.majority.accuracy < 0.75
    values = json.loads((root / "out" / "evaluation.json").read_text())
    assert values["protocol"]["train_patches"] == 24 * 12 and values["protocol"]["test_patches"] == 8 * 12
    assert "whole tiles" in values["protocol"]["interval"] and "t test" in values["protocol"]["test"]
    assert values["data"] == "patches of corpus corpus"
    rows = list(csv.DictReader((root / "out" / "classes.csv").open()))
    assert [row["class"] for row in rows] == ["field", "forest"] and all(float(row["iou"]) > 0.8 for row in rows)
    assert "of the test patches right" in (root / "out" / "index.html").read_text()
    row = scores.find("a", "linear")
    low, high = interval(row.correct)
    assert row.correct.shape == (2, 96) and row.high - row.low > high - low  # as if patches were independent


def test_predict_makes_a_map_with_it(made, tmp_path):
    root, *_ = made
    _, card = load_probe(root / "out")
    assert (card.kind, card.pool, card.classes) == ("linear", "patch", ("field", "forest"))
    kinds = land(1, 56, seed=9)[0]
    profile = {"transform": from_origin(0, 56, 1, 1), "crs": "EPSG:32632", "dtype": "uint8", "count": 3}
    with rasterio.open(tmp_path / "scene.tif", "w", driver="GTiff", height=56, width=56, **profile) as raster:
        raster.write(pixels(kinds, 5))
    (written,) = predict([str(tmp_path / "scene.tif")], str(root / "out"), str(tmp_path / "map.tif"))
    with rasterio.open(written) as raster:
        assert (raster.read(1) == kinds[::4, ::4]).mean() > 0.9
        assert raster.tags(1)["CLASS_1"] == "forest"


def test_what_cannot_be_fitted_is_refused_with_a_sentence(made, tmp_path):
    root, path, _ = made
    plain = write_corpus(tmp_path / "plain")
    about = json.loads((plain / "corpus.json").read_text()) | {"classes": []}
    (plain / "corpus.json").write_text(json.dumps(about))
    with pytest.raises(CorpusError, match="has neither masks nor labels, of which --dense needs one"):
        evaluate(path, str(plain), str(tmp_path / "o"), dense=True)
    for wrong in ({"pool": "class"}, {"probes": ["knn"]}, {"probes": ["knn", "linear"]}):
        with pytest.raises(ConfigError, match="--dense fits the linear probe"):
            evaluate(path, str(root / "corpus"), str(tmp_path / "o"), dense=True, **wrong)
    assert not (tmp_path / "o").exists()


def test_the_floor_is_the_class_that_training_patches_are_most_often_of(made, tmp_path, monkeypatch):
    """Classes are fitted on evenly, of which none is the most frequent; what only test tiles show is not scored."""
    monkeypatch.setattr(room, "PATCHES", 48)
    corpus = write_corpus(tmp_path / "corpus", count=32, size=16)
    kinds = np.random.default_rng(1).random((32, 4, 4)).repeat(4, 1).repeat(4, 2) < 0.8
    masks = kinds.astype(np.uint8)
    masks[-1, :8] = 2
    for name, values, names in (("image", pixels(masks % 2), NAMES), ("mask", masks, (NAMES[0], *NAMES[2:]))):
        write_array(corpus / "tiles.zarr" / "16" / name, values, names)
    write_groups(corpus / "tiles.zarr")
    about = json.loads((corpus / "corpus.json").read_text()) | {"classes": ["field", "forest", "town"]}
    (corpus / "corpus.json").write_text(json.dumps(about))
    scores = evaluate(made[1], str(corpus), str(tmp_path / "o"), seeds=1, test_split="val", dense=True, device="cpu")
    labels = scores.find("a", "linear").labels
    assert scores.protocol["train_patches"] == 48 and set(labels.tolist()) == {0, 1}
    assert scores.majority.accuracy == float(labels.double().mean()) > 0.6
    assert "test patches of town are not scored: no training patch is of it" in scores.notes


DARK = np.array([[50, 50, 50], [110, 110, 110], [220, 220, 220]])  # field, forest, and what tiles of both have


def drawn(kinds: np.ndarray, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 12, (*kinds.shape, 3))
    return np.moveaxis((DARK[kinds] + noise).clip(1, 255).astype(np.uint8), -1, -3)


def test_without_masks_patches_are_fitted_from_the_tiles_classes(made, tmp_path, capsys):
    """Half of each tile is bright ground of no class, beside which the means of both classes are dark."""
    corpus, random = write_corpus(tmp_path / "corpus", count=64, size=16), np.random.default_rng(0)
    own = random.random((64, 16)).argsort(1) < 8
    kinds = np.where(own, np.arange(64)[:, None] % 2, 2).reshape(64, 4, 4).repeat(4, 1).repeat(4, 2)
    write_array(corpus / "tiles.zarr" / "16" / "image", drawn(kinds, 1), NAMES)
    write_groups(corpus / "tiles.zarr")
    truth = np.where(random.random((14, 14)) < 0.5, np.arange(14) // 7, 2)  # fields on the left
    profile = {"transform": from_origin(0, 56, 1, 1), "crs": "EPSG:32632", "dtype": "uint8", "count": 3}
    with rasterio.open(tmp_path / "scene.tif", "w", driver="GTiff", height=56, width=56, **profile) as raster:
        raster.write(drawn(truth.repeat(4, 0).repeat(4, 1), 2))
    found, said = {}, {}
    for name, how in (("patches", {"dense": True}), ("pooled", {"probes": ["linear"]})):
        out = tmp_path / name
        scores = evaluate(made[1], str(corpus), str(out), seeds=1, test_split="val", device="cpu", **how)
        assert scores.find("a", "linear").balanced > 0.9 and len(scores.find("a", "linear").labels) == 16
        assert {row.encoder for row in scores.rows} == {"a", RANDOM, PIXELS}
        assert any("by multiple instance" in note for note in scores.notes) == (name == "patches")
        capsys.readouterr()
        (written,) = predict([str(tmp_path / "scene.tif")], str(out), str(tmp_path / f"{name}.tif"))
        said[name] = capsys.readouterr().out
        with rasterio.open(written) as raster:
            found[name] = (raster.read(1) == truth)[truth < 2].mean()
    assert found["patches"] > 0.9 > 0.86 > found["pooled"], found  # drawn weights mix a window's patches, so not less
    assert "fitted on mean-pooled tiles" in said["pooled"] and "mean-pooled" not in said["patches"]
    values = json.loads((tmp_path / "patches" / "evaluation.json").read_text())["protocol"]
    assert values["pool"] == "patch" and values["fitted"].startswith("multiple instance")
    assert values["train_images"] == 48 and load_probe(tmp_path / "patches")[1].pool == "patch"
