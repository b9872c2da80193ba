import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_corpus import write_corpus

from geomim.data.labelled import open_labelled
from geomim.errors import BandError, CheckpointError, ConfigError, CorpusError, InputError
from geomim.evaluate.saved import load_probe
from geomim.evaluate.scores import PIXELS, RANDOM
from geomim.models.vit import ViT
from geomim.models.weights import DIVIDED
from geomim.sensors import SENSORS, BandContract
from geomim.verbs import evaluate as evaluating
from geomim.verbs.candidate import open_candidate
from geomim.verbs.evaluate import evaluate
from geomim.verbs.export import export

CLASSES = {"bright": 200, "dark": 60, "middle": 130}


def checkpoint(path: Path, sensor="rgb", **config) -> str:
    bands = SENSORS[sensor]
    torch.manual_seed(0)
    encoder = ViT(
        **(
            {"in_chans": len(bands.bands), "image_size": 32, "patch_size": 8, "width": 48, "depth": 1, "heads": 3}
            | config
        )
    )
    contract = BandContract(bands, (120.0,) * len(bands.bands), (50.0,) * len(bands.bands))
    state = {f"model.encoder.{name}": value for name, value in encoder.state_dict().items()}
    details = {"format_version": 1, "encoder": encoder.config, "contract": contract.to_dict()}
    torch.save({"state_dict": state, "geomim": details}, path)
    return str(path)


def pictures(folder: Path, count: int, side: int = 40, seed: int = 0) -> Path:
    random = np.random.default_rng(seed)
    for name, level in CLASSES.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = random.normal(level, 20, (side + 8 * (index % 2), side, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def test_a_file_in_the_place_of_the_folder_is_refused_first(tmp_path):
    (tmp_path / "file").touch()
    for out in ("file", "file/folder"):
        with pytest.raises(ConfigError, match=r"file' is a file"):
            evaluate("nowhere", "nowhere", str(tmp_path / out))


def test_image_folder_with_splits(tmp_path, capsys):
    for split, count in (("train", 12), ("test", 6)):
        pictures(tmp_path / "data" / split, count, seed=count)
    out = tmp_path / "out"
    scores = evaluate(checkpoint(tmp_path / "a.ckpt"), str(tmp_path / "data"), str(out), seeds=1, device="cpu")
    assert {row.encoder for row in scores.rows} == {"a", RANDOM, PIXELS}
    assert scores.find("a", "linear").accuracy > 0.9
    assert scores.find(PIXELS, "knn").accuracy > 0.9
    assert scores.find("a", "efficient") is not None and scores.find(PIXELS, "efficient") is None
    values = json.loads((out / "evaluation.json").read_text())
    assert values["protocol"]["train_images"] == 36 and values["protocol"]["test_images"] == 18
    probe, card = load_probe(out)
    assert card.classes == tuple(sorted(CLASSES)) and card.contract["sensor"]["name"] == "rgb"
    assert probe.in_features == 48
    assert sorted(path.name for path in out.iterdir()) == [
        "classes.csv",
        "confusion.csv",
        "confusion.png",
        "efficient.json",
        "efficient.safetensors",
        "evaluation.json",
        "index.html",
        "linear.json",
        "linear.safetensors",
    ]
    assert PIXELS in capsys.readouterr().out


def test_image_folder_without_splits_says_how_it_was_split(tmp_path):
    folder = pictures(tmp_path / "data", 10)
    scores = evaluate(
        checkpoint(tmp_path / "a.ckpt"), str(folder), str(tmp_path / "o"), 16, ["knn"], 1, floors=False, device="cpu"
    )
    assert scores.protocol["train_images"] == 24 and scores.protocol["test_images"] == 6
    assert scores.protocol["image_size"] == 16
    assert "fifth of each class" in scores.notes[0]
    one, other = (open_labelled(folder) for _ in range(2))
    assert np.array_equal(one.test.labels, other.test.labels)
    assert len(scores.rows) == 1


def test_corpus(tmp_path):
    write_corpus(tmp_path / "corpus", count=32, size=24, nodata=True)
    scores = evaluate(
        checkpoint(tmp_path / "a.ckpt", image_size=16),
        str(tmp_path / "corpus"),
        str(tmp_path / "o"),
        probes=["knn", "linear"],
        seeds=1,
        test_split="val",
        device="cpu",
    )
    assert scores.protocol["train_images"] == 24 and scores.protocol["test_images"] == 8
    assert load_probe(tmp_path / "o")[1].classes == ("field", "forest")
    with pytest.raises(CorpusError, match=r"split 'test'; it has train, val"):
        open_labelled(tmp_path / "corpus")


def test_bands_are_enforced_by_name(tmp_path):
    write_corpus(tmp_path / "corpus", count=16, sensor=SENSORS["naip"])
    rgb = checkpoint(tmp_path / "rgb.ckpt")
    scores = evaluate(
        rgb, str(tmp_path / "corpus"), str(tmp_path / "o"), None, ["knn"], 1, test_split="val", device="cpu"
    )
    assert len(scores.rows) == 3  # red, green and blue are taken out of four bands
    naip = checkpoint(tmp_path / "naip.ckpt", "naip")
    folder = pictures(tmp_path / "data", 5)
    with pytest.raises(BandError, match=r"red, green, blue, nir.*missing nir"):
        evaluate(naip, str(folder), str(tmp_path / "p"), device="cpu")
    assert not (tmp_path / "p").exists()


def test_published_weights_are_taken_as_rgb_and_it_is_said(tmp_path):
    torch.save({"model": ViT(3, 32, 16, 192, 1, 3).state_dict()}, tmp_path / "mae.pth")
    folder = pictures(tmp_path / "data", 5)
    scores = evaluate(str(tmp_path / "mae.pth"), str(folder), str(tmp_path / "o"), None, ["knn"], 1, device="cpu")
    assert any("ImageNet" in note for note in scores.notes)


def test_bad_input_is_refused_with_a_sentence(tmp_path):
    path = checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(InputError, match="no folder"):
        evaluate(path, str(tmp_path / "nothing"))
    (tmp_path / "data" / "only").mkdir(parents=True)
    with pytest.raises(InputError, match="two class folders"):
        evaluate(path, str(tmp_path / "data"))
    folder = pictures(tmp_path / "pictures", 5)
    with pytest.raises(ConfigError, match="at least one seed"):
        evaluate(path, str(folder), seeds=0)
    with pytest.raises(ConfigError, match="multiple of the patch size 8"):
        evaluate(path, str(folder), image_size=30)
    with pytest.raises(CheckpointError, match="no_such_model"):
        evaluate("timm:no_such_model", str(folder))
    (folder / "dark" / "0.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"dark.0\.png"):
        evaluate(path, str(folder), str(tmp_path / "o"), device="cpu")


def fractions(path: Path) -> str:
    """An encoder that was trained on colours from 0 to 1."""
    content = torch.load(checkpoint(path), weights_only=True)
    content["geomim"]["contract"] |= {"mean": [0.5] * 3, "std": [0.2] * 3}
    torch.save(content, path)
    return str(path)


def test_numbers_of_another_unit_are_refused_and_the_file_that_is_named_works(tmp_path):
    path, folder = fractions(tmp_path / "a.ckpt"), pictures(tmp_path / "data", 5)
    with pytest.raises(InputError, match=r"255 times too large.*--sensor FILE\.yaml") as refused:
        evaluate(path, str(folder), str(tmp_path / "o"), probes=["knn"], seeds=1, device="cpu")
    assert not (tmp_path / "o").exists()
    sensor = tmp_path / "mine.yaml"
    sensor.write_text(str(refused.value).split("FILE.yaml: ")[1])
    scores = evaluate(
        path, str(folder), str(tmp_path / "o"), None, ["knn"], 1, sensor=str(sensor), floors=False, device="cpu"
    )
    assert not any("far from" in note for note in scores.notes)


def test_heads_are_asked_for_and_given(tmp_path):
    torch.save(ViT(3, 32, 16, 128, 1, 4).state_dict(), tmp_path / "mae.pth")
    arguments = (str(tmp_path / "mae.pth"), str(pictures(tmp_path / "data", 5)), str(tmp_path / "o"), None, ["knn"], 1)
    with pytest.raises(CheckpointError, match="--heads"):
        evaluate(*arguments, device="cpu")
    assert evaluate(*arguments, heads=4, floors=False, device="cpu").rows


def test_an_export_seen_through_timm_scores_as_itself(tmp_path):
    folder = export(checkpoint(tmp_path / "a.ckpt"), str(tmp_path / "export"))
    data = str(pictures(tmp_path / "data", 8))

    def known(name: str) -> dict[str, float]:
        scores = evaluate(name, data, str(tmp_path / "o"), None, ["knn", "linear"], 1, floors=False, device="cpu")
        return {row.probe: row.accuracy for row in scores.rows}

    assert known(f"timm:local-dir:{folder}") == known(str(folder))
    config = json.loads((folder / "config.json").read_text())
    images = open_labelled(data)
    for contract, description, mean in ((True, None, 120.0), (False, DIVIDED, 120.0), (False, None, 120.0 / 255)):
        # the earliest exports held statistics of stored numbers and did not say so
        kept = config["geomim"] | ({} if contract else {"contract": None})
        cfg = config["pretrained_cfg"] | {"description": description}
        (folder / "config.json").write_text(json.dumps(config | {"geomim": kept, "pretrained_cfg": cfg}))
        assert open_candidate(f"timm:local-dir:{folder}", images).contract.mean[0] == pytest.approx(mean)


def test_a_probe_records_how_far_its_images_were_shrunk(tmp_path):
    for name in CLASSES:
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(5):
            Image.new("RGB", (64, 64), (CLASSES[name], 10 * index, 90)).save(tmp_path / "data" / name / f"{index}.png")
    path = checkpoint(tmp_path / "a.ckpt")
    for size, scale in ((None, 2.0), (128, 0.5)):
        evaluate(path, str(tmp_path / "data"), str(tmp_path / "o"), size, ["linear"], 1, floors=False, device="cpu")
        assert load_probe(tmp_path / "o")[1].scale == scale


def test_a_rare_class_that_is_never_found_is_said(tmp_path):
    for name, count in (("sea", 95), ("oil", 5)):
        for split in ("train", "test"):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (32, 32), (90, 90, index)).save(tmp_path / split / name / f"{index}.png")
    scores = evaluate(
        checkpoint(tmp_path / "a.ckpt"),
        str(tmp_path),
        str(tmp_path / "o"),
        None,
        ["knn"],
        1,
        floors=False,
        device="cpu",
    )
    row = scores.rows[0]
    assert row.accuracy == 0.95 and row.balanced == 0.5
    assert any("95% of the test images are sea" in note for note in scores.notes)
    assert "the knn probe never finds oil" in scores.notes


def test_the_table_is_printed_before_the_page_is_made_and_brackets_in_names_are_no_style(tmp_path, capsys, monkeypatch):
    for name in ("sea", "oil"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(10):
            Image.new("RGB", (32, 32), (90, 9 * index, 90)).save(tmp_path / "data" / name / f"{index}.png")

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(evaluating, "write_page", full)
    with pytest.raises(OSError, match="no space"):
        evaluate(checkpoint(tmp_path / "a[red].ckpt"), str(tmp_path / "data"), str(tmp_path / "o"), None, ["knn"], 1)
    said = capsys.readouterr().out
    assert "a[red]" in said and "majority class" in said
