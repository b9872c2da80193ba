"""An encoder of several sensors from training to a map: every verb picks the contract of the data, aloud."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import yaml
from rasterio.transform import from_origin
from tiny_corpus import write_corpus

from geomim.cli import main
from geomim.corpus.scenes import open_scene
from geomim.corpus.store import Corpus
from geomim.data.labelled import open_labelled
from geomim.errors import BandError, ConfigError
from geomim.maps.cluster import cluster
from geomim.maps.walk.encoder import open_encoder
from geomim.models.build import build_encoder
from geomim.models.vit import ViT
from geomim.models.weights import read_encoder
from geomim.pretrain.module import Origin, PretrainModule
from geomim.pretrain.recipes import RECIPES
from geomim.sensors import Band, BandContract, Sensor, get_sensor, stated_contract
from geomim.verbs.candidate import open_candidate
from geomim.verbs.corpus_embed import embed
from geomim.verbs.evaluate import evaluate
from geomim.verbs.predict import predict
from geomim.verbs.tile_vectors import unlabelled

CONTRACTS = {
    "naip": BandContract(get_sensor("naip"), (125.0,) * 4, (60.0,) * 4),
    "sentinel2": BandContract(get_sensor("sentinel2"), (125.0,) * 13, (60.0,) * 13),
}


def save(path: Path, **options: bool) -> str:
    torch.manual_seed(0)
    sizes = {"image_size": 24, "patch_size": 8, "width": 48, "depth": 1, "heads": 3}
    encoder = build_encoder(CONTRACTS, **sizes, spectral=True, **options)
    model = RECIPES["mae"](encoder, decoder_depth=1, decoder_width=48)
    module = PretrainModule(model, Origin("mae", {}, CONTRACTS), batch_size=4)
    entry = module.description() | {"step": 1, "progress": 1.0}
    torch.save({"state_dict": module.state_dict(), "geomim": entry}, path)
    return str(path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("spectral") / "a.ckpt")


def test_a_checkpoint_of_training_is_read_with_all_its_sensors(checkpoint: str) -> None:
    loaded = read_encoder(checkpoint)
    assert loaded.contracts == CONTRACTS and loaded.encoder.config["spectral"]


def test_evaluated_and_embedded_for_the_sensor_of_the_data(checkpoint: str, tmp_path: Path) -> None:
    for name, said in (("naip", "seen as 'naip'"), ("landsat8", "never trained on 'landsat8'")):
        sensor = get_sensor(name)
        corpus = write_corpus(tmp_path / name, count=32, size=24, sensor=sensor)
        scores = evaluate(
            checkpoint, str(corpus), str(tmp_path / "out"), probes=["knn"], seeds=1, test_split="val", device="cpu"
        )
        assert any(said in note for note in scores.notes)
        assert np.load(embed(str(corpus), checkpoint, device="cpu")).shape == (32, 48)


def test_all_bands_of_the_data_where_it_was_trained_on_some(checkpoint: str, tmp_path: Path, capsys) -> None:
    bands = (*get_sensor("naip").bands, Band("SWIR", 1600, 90))
    sensor = Sensor("naip", bands)
    corpus = str(write_corpus(tmp_path / "corpus", count=32, size=24, sensor=sensor))
    asked = {"probes": ["linear"], "seeds": 1, "test_split": "val", "floors": False, "device": "cpu"}
    scores = evaluate(checkpoint, corpus, str(tmp_path / "out"), **asked)
    assert any("SWIR of their bands are left out" in note for note in scores.notes)
    evaluate(checkpoint, corpus, str(tmp_path / "out"), all_bands=True, **asked)
    card = json.loads((tmp_path / "out" / "linear.json").read_text())
    assert [band["name"] for band in card["contract"]["sensor"]["bands"]] == list(sensor.names)
    embed(corpus, checkpoint, all_bands=True, device="cpu")
    made = json.loads((tmp_path / "corpus" / "embeddings" / "a.json").read_text())
    assert len(made["contract"]["mean"]) == 5
    with pytest.raises(ConfigError, match="leave out --all_bands"):
        embed(corpus, "timm:anything", all_bands=True, device="cpu")


def write(path: Path, sensor: str) -> str:
    count = len(get_sensor(sensor).bands)
    pixels = np.random.default_rng(0).normal(125, 60, (count, 48, 48)).clip(1, 255).astype(np.uint8)
    profile = {"transform": from_origin(500000, 4000000, 2, 2), "crs": "EPSG:32632", "dtype": "uint8"}
    with rasterio.open(path, "w", driver="GTiff", count=count, height=48, width=48, **profile) as raster:
        raster.write(pixels)
        for band, name in enumerate(get_sensor(sensor).names, start=1):
            raster.set_band_description(band, name)
    return str(path)


def test_mapped_with_the_bands_of_the_probe_or_of_the_scene(checkpoint: str, tmp_path: Path, capsys) -> None:
    corpus = write_corpus(tmp_path / "corpus", count=32, size=24, sensor=get_sensor("naip"))
    evaluate(checkpoint, str(corpus), str(tmp_path / "out"), probes=["linear"], seeds=1, test_split="val", device="cpu")
    card = json.loads((tmp_path / "out" / "linear.json").read_text())
    assert [band["name"] for band in card["contract"]["sensor"]["bands"]] == ["red", "green", "blue", "nir"]
    scene = write(tmp_path / "scene.tif", "naip")
    probe = str(tmp_path / "out" / "linear.safetensors")
    assert predict([scene], probe, str(tmp_path / "map.tif"), device="cpu")[0].exists()
    with pytest.raises(BandError, match="red"):
        predict([write(tmp_path / "other.tif", "sentinel1")], probe, str(tmp_path), device="cpu")
    capsys.readouterr()
    assert cluster(checkpoint, [scene], str(tmp_path / "clusters.tif"), clusters=2, device="cpu")[0].exists()
    assert "seen as 'naip'" in capsys.readouterr().out


def test_positions_are_made_for_the_metres_a_pixel_of_the_data(tmp_path: Path, capsys) -> None:
    path = save(tmp_path / "a.ckpt", gsd_positions=True)
    encoder, half = read_encoder(path).encoder, torch.full((1,), 5.0)
    asked = {"probes": ["linear"], "seeds": 1, "test_split": "val", "floors": False, "device": "cpu"}
    sensor = get_sensor("naip")
    corpus = write_corpus(tmp_path / "corpus", 32, 48, sensor=sensor, gsds=[2.5] * 32)  # 48 px of 2.5 m: 24 of 5 m
    candidate = open_candidate(path, open_labelled(corpus, "train", "val"))
    torch.testing.assert_close(candidate.encoder.pos_embed, encoder.positions((3, 3), half))
    scores = evaluate(path, str(corpus), str(tmp_path / "out"), **asked)
    assert any("made for 5 m, at 24 px" in note for note in scores.notes)
    assert json.loads((tmp_path / "out" / "linear.json").read_text())["gsd"] == 5.0
    opened = Corpus.open(corpus)
    assert open_candidate(path, unlabelled(opened)).gsd == 5.0
    contract = CONTRACTS["naip"]
    unknown = open_labelled(write_corpus(tmp_path / "none", 32, 48, sensor=sensor), "train", "val")
    assert unknown.gsd_at(24, contract)[0] == 2.0 and "100% of the images tell none" in unknown.gsd_at(24, contract)[1]
    mixed = write_corpus(tmp_path / "mixed", 32, 24, sensor=sensor, gsds=[1.0, 2.0] * 16)
    assert "of 1 to 2 m, and all" in open_labelled(mixed, "train", "val").gsd_at(24, contract)[1]
    scene, probe = write(tmp_path / "scene.tif", "naip"), str(tmp_path / "out")  # of 2 m
    capsys.readouterr()
    predict([scene], probe, str(tmp_path / "map.tif"), device="cpu")
    assert "made for 2 m; the probe was fitted at 5 m" in " ".join(capsys.readouterr().out.split())
    frozen = open_encoder(path, None, "cpu", lambda _: (contract, ()), 5.0)
    with open_scene(scene, sensor) as opened_scene:
        here = frozen.at(opened_scene.gsd)
    torch.testing.assert_close(
        here.encoder.pos_embed, encoder.positions((3, 3), torch.full((1,), 2.0)), atol=5e-3, rtol=0
    )
    cluster(path, [scene], str(tmp_path / "clusters.tif"), clusters=2, device="cpu")
    assert "made for 2 m" in capsys.readouterr().out


def test_statistics_of_a_sensor_file_are_taken_where_the_encoder_knows_none(checkpoint: str, tmp_path: Path) -> None:
    values = {"name": "thermal", "unit": "kelvin", "bands": [{"name": "T", "wavelength": 11000}]}
    file, scene = tmp_path / "thermal.yaml", tmp_path / "scene.tif"
    profile = {"transform": from_origin(500000, 4000000, 2, 2), "crs": "EPSG:32632", "dtype": "float32"}
    with rasterio.open(scene, "w", driver="GTiff", count=1, height=48, width=48, **profile) as raster:
        raster.write(np.random.default_rng(0).normal(290, 5, (1, 48, 48)).astype("float32"))
    asked = (checkpoint, [str(scene)], str(tmp_path / "clusters.tif"), 2, str(file))
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(BandError, match=r"mean and std of T in kelvin: give them .* \(--sensor FILE.yaml\)"):
        cluster(*asked, device="cpu")
    corpus = write_corpus(tmp_path / "corpus", sensor=get_sensor(file))
    file.write_text(yaml.safe_dump(values | {"mean": [290.0], "std": [5.0]}))
    assert cluster(*asked, device="cpu")[0].exists()
    told = unlabelled(Corpus.open(corpus)).told(str(file))
    assert told.contract == stated_contract(file) and open_candidate(checkpoint, told).contract.mean == (290.0,)


def test_a_floor_is_of_the_same_size(checkpoint: str, tmp_path: Path) -> None:
    sensor = replace(get_sensor("rgb"), name="mine")
    corpus = write_corpus(tmp_path / "corpus", count=32, size=24, sensor=sensor)
    scores = evaluate(
        checkpoint, str(corpus), str(tmp_path / "out"), probes=["knn"], seeds=1, test_split="val", device="cpu"
    )
    assert len({row.encoder for row in scores.rows}) == 3


def test_a_run_from_published_weights_says_so_from_its_log_to_the_card(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / "corpus", sensor=get_sensor("naip"))
    torch.save({"model": ViT(3, 32, 8, 192, 1, 3).state_dict()}, "mae.pth")  # as published files are: no bands
    flags = (
        "pretrain --recipe mae --method.decoder_depth 1 --method.decoder_width 16 --method.decoder_heads 2 --name run "
        "--encoder.image_size 16 --encoder.patch_size 4 --encoder.size tiny --encoder.spectral true "
        "--encoder.band_dropout 0.3 --encoder.weights mae.pth --training.precision 32-true --training.accelerator cpu "
        "--training.progress_bar false --data.corpus corpus --data.batch_size 4 --data.workers 0 --training.max_steps 2"
    )
    assert main(flags.split()) == 1  # 12 blocks
    assert main([*flags.split(), "--encoder.depth", "1"]) == 0
    last = "runs/run/checkpoints/last.ckpt"
    start = torch.load(last, weights_only=True)["geomim"]["provenance"]["start"]
    assert "started from mae.pth" in start and "started from mae.pth" in capsys.readouterr().out
    assert "the weights name no bands: taken as 8-bit red, green, blue, normalised as ImageNet is" in start
    assert "bands of 'naip' that the weights lack: nir as red" in start
    assert "kernels resized from 8 to 4 px by pseudo-inverse" in start
    assert main(["export", last, "--out", "out"]) == 0
    assert "bands of 'naip' that the weights lack: nir as red" in Path("out/README.md").read_text()


def test_two_corpora_train_one_encoder_that_is_exported_for_each(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("naip", "sentinel2"):
        write_corpus(tmp_path / name, sensor=get_sensor(name))
    flags = (
        "pretrain --recipe mae --method.decoder_depth 1 --method.decoder_width 16 --method.decoder_heads 2 --name run "
        "--encoder.image_size 16 --encoder.patch_size 4 --encoder.width 24 --encoder.depth 1 --encoder.heads 2 "
        "--encoder.band_dropout 0.3 --training.precision 32-true --training.accelerator cpu "
        "--training.progress_bar false --data.batch_size 4 --data.workers 0 --training.max_steps 4"
        " --data.corpus [naip,sentinel2]"
    ).split()
    assert main(flags) == 2 and "--encoder.spectral true" in capsys.readouterr().err
    assert main([*flags, "--encoder.spectral", "true"]) == 0
    last = "runs/run/checkpoints/last.ckpt"
    assert set(read_encoder(last).contracts) == {"naip", "sentinel2"}
    assert main(["export", last, "--out", "out"]) == 1
    assert "naip, sentinel2" in capsys.readouterr().err
    for name, bands in (("naip", 4), ("sentinel2", 13), ("landsat8", 7)):
        assert main(["export", last, "--out", name + "_out", "--sensor", name]) == 0
        assert read_encoder(name + "_out").encoder.in_chans == bands
