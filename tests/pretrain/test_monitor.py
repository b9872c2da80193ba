"""What is watched while an encoder trains: collapse, probes beside their floors, pictures, and who is told."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_corpus import write_corpus
from tiny_recipes import annotated, method

from geomim.cli import main
from geomim.data.datamodule import TileDataModule
from geomim.data.labelled import Labelled
from geomim.errors import ConfigError, CorpusError, GeomimError, MissingExtraError
from geomim.evaluate.features import frozen
from geomim.models.build import build_encoder
from geomim.models.vit import ViT
from geomim.pretrain.monitor import (
    COLUMNS,
    Watch,
    _rows,
    evaluating,
    patch_cosine,
    reconstructions,
    save_reconstructions,
    term_cosines,
)
from geomim.pretrain.recipes.pairs import shuffled_date
from geomim.pretrain.targets.answer import Answer
from geomim.randomness import Draws
from geomim.sensors import BandContract, get_sensor
from geomim.verbs import watching
from geomim.verbs.pretrain import Training, build, train
from geomim.verbs.watching import Watching, probing

ENCODER = {"patch_size": 4, "width": 24, "depth": 1, "heads": 2}
METHOD = {"decoder_depth": 1, "decoder_width": 16, "decoder_heads": 2}
TRAINING = Training(max_steps=4, precision="32-true", accelerator="cpu", progress_bar=False, log_every=2)
RGB = BandContract(get_sensor("rgb"), (125.0,) * 3, (60.0,) * 3)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("watched") / "corpus")


def run(corpus, folder, **watch):
    data = TileDataModule(str(corpus), batch_size=4, image_size=16, workers=0)
    return train(data, folder, "mae", METHOD, ENCODER, training=TRAINING, watch=Watching(test_split="val", **watch))


@pytest.fixture(scope="module")
def watched(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("watched") / "run"
    run(corpus, folder, every=2, data=str(corpus))
    return folder


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_patch_cosine_of_known_sets():
    same, apart = torch.ones(2, 5, 3), torch.eye(4).expand(2, 4, 4)
    assert patch_cosine(same) == pytest.approx(1) and patch_cosine(7 * same) == pytest.approx(1)
    assert patch_cosine(apart) == pytest.approx(0, abs=1e-6)
    assert patch_cosine(torch.tensor([[[1.0, 0], [-3, 0]]])) == pytest.approx(-1)
    assert patch_cosine(torch.tensor([[[1.0, 0]], [[0, 1]], [[1, 1]]])) == pytest.approx(2**0.5 / 3)  # of images
    weight = torch.tensor([[0.5, 1, 0, 0], [0, 0, 0, 1]])  # of the second image no pair is left
    values = torch.cat([apart[:1], same[:1, :4, :1].expand(1, 4, 4)])
    values[0, 1] = values[0, 0]
    assert patch_cosine(values, weight) == pytest.approx(1)
    assert np.isnan(patch_cosine(same, torch.zeros(2, 5)))


def test_patch_cosine_is_the_mean_over_pairs():
    values = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0))
    pairs = [torch.cosine_similarity(one[a], one[b], 0) for one in values for a in range(6) for b in range(6) if a != b]
    assert patch_cosine(values) == pytest.approx(float(torch.stack(pairs).mean()), abs=1e-6)


class Levels:
    """Batches of flat images, whose level is their class."""

    def __init__(self, count):
        self.labels = torch.arange(count) % 3

    def __iter__(self):
        images = (self.labels - 1.0)[:, None, None, None].expand(-1, 3, 16, 16)
        yield {"image": images, "valid": torch.ones(len(images), 1, 16, 16, dtype=torch.bool), "label": self.labels}


def test_what_is_separable_is_found_and_floors_are_measured_once(monkeypatch):
    asked = []
    monkeypatch.setattr(watching, "random_like", lambda encoder, seed: asked.append(seed) or encoder)
    torch.manual_seed(0)
    encoder = ViT(3, 16, 4, 24, 1, 2).eval()
    probe = watching.Probing(RGB, (Levels(30), Levels(12)), {"classes": 3, "data": "levels"})
    for _ in range(2):
        scores = probe(encoder, torch.device("cpu"))
        assert scores["data"] == "levels" and scored(scores) == {
            f"{kind}{floor}": 1.0 for kind in ("knn", "linear") for floor in ("", "/random", "/pixels")
        }
        assert all(row["low"] <= row["accuracy"] <= row["high"] for row in scores["rows"])
    assert asked == [0]


def test_positions_are_made_for_the_metres_a_pixel_of_the_images(monkeypatch):
    asked = []
    monkeypatch.setattr(ViT, "positions", lambda self, grid, gsd=None: asked.append(gsd) or self.pos_embed)
    probe = watching.Probing(RGB, (Levels(9), Levels(6)), {"classes": 3}, gsd=5.0)
    probe(ViT(3, 16, 4, 24, 1, 2, gsd_positions=True).eval(), torch.device("cpu"))
    assert asked[0] == 5.0 and all(gsd is None for gsd in asked[1:])


@pytest.mark.parametrize("option", ["spectral", "gsd_positions"])
def test_an_encoder_of_any_sensor_is_scored_as_what_it_is_of_this_one(monkeypatch, option):
    seen = []
    monkeypatch.setattr(watching, "frozen", lambda encoder, half: seen.append(encoder) or frozen(encoder, half=half))
    encoder = build_encoder({"rgb": RGB}, 16, **ENCODER, **{option: True}).eval()
    watching.Probing(RGB, (Levels(30), Levels(12)), {"classes": 3})(encoder, torch.device("cpu"))
    images = next(iter(Levels(3)))["image"]
    torch.testing.assert_close(seen[0](images).tokens, encoder.bake(RGB)(images).tokens)
    assert not seen[0].config.get(option)


def scored(scores):
    return {row["probe"] + COLUMNS[row["encoder"]]: row["accuracy"] for row in scores["rows"]}


def test_a_look_goes_to_the_table_tensorboard_and_the_checkpoint(watched):
    table = {row["step"]: row for row in rows(watched)}
    floors = {name: {row[name] for row in table.values()} for name in ("knn/random", "linear/random", "knn/pixels")}
    assert list(table) == ["2", "4"] and all(len(values) == 1 and "" not in values for values in floors.values())
    for row in table.values():
        assert all(0 <= float(row[name]) <= 1 for name in ("knn", "linear"))
        assert -1 <= float(row["prediction_cosine/reconstruction"]) <= 1 and float(row["embedding_rank"]) >= 1
    events = EventAccumulator(str(watched / "tensorboard")).Reload()
    assert {"knn", "knn/pixels", "target_cosine/reconstruction"} <= set(events.Tags()["scalars"])
    assert [image.step for image in events.Images("reconstructions")] == [2, 4]
    entry = torch.load(watched / "checkpoints" / "last.ckpt", weights_only=True)["geomim"]["provenance"]
    seen = scored(entry["evaluation"])
    assert entry["evaluation"]["step"] == 4 and entry["images"] == 16
    assert {name: f"{value:.6g}" for name, value in seen.items()} == {name: table["4"][name] for name in seen}


def test_looking_changes_nothing_of_the_training(watched, corpus, tmp_path):
    run(corpus, tmp_path / "unwatched", every=1000)
    one, other = (torch.load(f / "checkpoints/last.ckpt", weights_only=True) for f in (watched, tmp_path / "unwatched"))
    for name, weight in one["state_dict"].items():
        torch.testing.assert_close(other["state_dict"][name], weight, atol=0, rtol=0, msg=name)


def test_scores_of_before_stay_known_after_a_resume(watched, corpus):
    checkpoint = torch.load(watched / "checkpoints" / "last.ckpt", weights_only=True)
    module = build(TileDataModule(str(corpus), batch_size=4, image_size=16, workers=0), "mae", METHOD, ENCODER)
    checkpoint["geomim"]["settings"] = module.origin.settings
    module.on_load_checkpoint(checkpoint)
    assert module.provenance["evaluation"] == checkpoint["geomim"]["provenance"]["evaluation"]


def test_only_the_first_process_looks(corpus, tmp_path):
    data = TileDataModule(str(corpus), batch_size=4, image_size=16, workers=0)
    module = build(data, "mae", METHOD, ENCODER)
    told = []
    logger = SimpleNamespace(log_metrics=lambda figures, step: told.append(step))
    watch = Watch(data.pictures(6), data.contracts, tmp_path / "pictures", 2)
    for first in (False, True):
        trainer = SimpleNamespace(global_step=2, max_steps=4, is_global_zero=first, loggers=[logger])
        module.trainer = trainer
        watch.on_train_batch_end(trainer, module)
        assert told == [2] * first and (tmp_path / "pictures").exists() == first
    assert module.pace.idle > 0 and module.model.training


def look(data, folder, batch, recipe="mae", method=METHOD):
    """Two looks of a fresh model at a batch: the figures of each."""
    module, told = build(data, recipe, method, ENCODER), []
    logger = SimpleNamespace(log_metrics=lambda figures, step: told.append(figures))
    watch = Watch(batch, data.contracts, folder, 2)
    watch.on_train_start()
    for step in (2, 4):
        trainer = SimpleNamespace(global_step=step, max_steps=4, is_global_zero=True, loggers=[logger])
        module.trainer = trainer
        watch.on_train_batch_end(trainer, module)
    return told


def test_tiles_that_are_not_finite_are_left_out_and_named_once(corpus, tmp_path, capsys):
    data = TileDataModule(str(corpus), batch_size=4, image_size=16, workers=0)
    batch = data.pictures(6)
    bad = batch | {"image": batch["image"].clone()}
    bad["image"][1, 0, 3, 3] = float("nan")
    told, sound = look(data, tmp_path, bad), [0, 2, 3, 4, 5]
    assert capsys.readouterr().out == f"tiles {batch['id'][1]} are not finite: no longer watched\n"
    some = {key: value[sound] if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    assert told[0] == look(data, tmp_path, some)[0] and all(np.isfinite(list(told[1].values())))
    bad["image"][:] = float("nan")
    assert look(data, tmp_path, bad) == [] and capsys.readouterr().out.count("none of the watched tiles") == 2


def test_one_tile_has_pictures_and_no_figures_and_of_one_validation_tile_training_ones_are_watched(
    tmp_path, capsys, recwarn
):
    data = TileDataModule(str(write_corpus(tmp_path / "c", count=6)), batch_size=4, image_size=16, workers=0)
    assert len(data.pictures(64)["image"]) == 5  # one of six is for validation
    assert look(data, tmp_path / "pictures", data.pictures(1)) == []
    assert "one tile to watch" in capsys.readouterr().out and len(list((tmp_path / "pictures").iterdir())) == 2
    assert not recwarn.list


def test_a_recipe_of_two_dates_is_looked_at_with_foreign_dates_too(corpus, tmp_path):
    data = TileDataModule(str(corpus), batch_size=4, image_size=16, workers=0)
    batch = data.pictures(6)
    batch["views"] = {"date": {"image": -batch["image"], "valid": torch.ones(6, 1, 16, 16, dtype=torch.bool)}}
    batch["image"] = batch["image"].clone()
    batch["image"][1] = float("nan")  # its date goes with it
    told = look(data, tmp_path, batch, "croco")[0]
    keep = [0, 2, 3, 4, 5]
    some = {"image": batch["image"][keep], "sensor": "rgb"}
    some["views"] = {"date": {key: value[keep] for key, value in batch["views"]["date"].items()}}
    model = build(data, "croco", METHOD, ENCODER).model.eval()
    expected = shuffled_date(model, some, torch.tensor(0.5), Draws(0, torch.tensor(keep)))
    assert told["shuffled_date"] == pytest.approx(float(expected), abs=1e-7) and expected != 0
    assert "shuffled_date" not in look(data, tmp_path, data.pictures(3))[0]


def test_parts_go_back_to_the_mode_they_were_in():
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Sequential(torch.nn.Dropout()))
    model[1].eval()
    with pytest.raises(ValueError), evaluating(model):
        assert not any(part.training for part in model.modules())
        raise ValueError
    assert [part.training for part in model.modules()] == [True, True, False, False]


class Constant:
    """A target that is no picture."""

    dim = 48

    def __call__(self, view, positions):
        return Answer(torch.ones(*positions.shape, self.dim))


def test_where_no_pixels_are_predicted_input_and_mask_are_shown(tmp_path):
    data = TileDataModule(str(write_corpus(tmp_path / "corpus")), batch_size=4, image_size=16, workers=0)
    model = build(data, "mae", METHOD, ENCODER).model
    model.terms[0].target = Constant()
    batch = data.pictures(3)
    assert term_cosines(model, batch)["target_cosine/reconstruction"] == pytest.approx(1, abs=1e-5)
    pictures = reconstructions(model, batch, RGB)
    assert pictures.shape == (3, 2, 16, 16, 3)
    model = build(data, "latent_mim", METHOD | {"projector_width": 16, "visible": 0.25}, ENCODER).model
    assert np.array_equal(reconstructions(model, batch, RGB)[:, 0], pictures[:, 0])
    asked = ["prediction_cosine/discrimination", "target_cosine/discrimination", "prediction_cosine/similarity_visible"]
    assert list(term_cosines(model, batch)) == asked  # similarity compares the same predictions, with one number
    save_reconstructions(tmp_path / "a.png", pictures)
    assert (tmp_path / "a.png").read_bytes()[1:4] == b"PNG"


def test_sentences_tell_which_patches_of_watched_tiles_are_hidden(tmp_path):
    data = TileDataModule(str(annotated(write_corpus(tmp_path / "corpus"))), batch_size=4, image_size=16, workers=0)
    model = build(data, "sycoca_inspired", method("sycoca_inspired", "") | {"flat": 1.0}, ENCODER).model
    data.provide(model.needs, tokenizer=model.joint.text)
    batch = _rows(data.pictures(6), torch.tensor([False] + [True] * 5))
    told = batch["text"]["of"] >= 0
    assert told.any() and not told.all()
    said = model.joint.sentences(batch["text"]["tokens"][told])[
        :, None
    ].detach()  # images of which nothing is said count not
    assert term_cosines(model, batch)["target_cosine/contrast"] == pytest.approx(patch_cosine(said), abs=1e-5)
    (one, other) = (model.predict(batch, torch.tensor(0.5), Draws(seed, batch["position"]))["image"] for seed in (0, 1))
    assert ((one["seen"] == other["seen"]).flatten(1).all(1) == told).all()


def test_a_choice_of_images_is_bounded_and_always_the_same():
    images = Labelled(np.arange(100) % 3, lambda wanted: wanted.tolist())
    some, again = (images.some(10) for _ in range(2))
    chosen = some.read(np.arange(10))
    assert chosen == again.read(np.arange(10)) == sorted(set(chosen)) and len(some) == 10
    assert images.labels[chosen].tolist() == some.labels.tolist() and len(images.some(1000)) == 100


def test_what_cannot_be_watched_is_refused_before_anything_is_written(corpus, tmp_path, monkeypatch, capsys):
    other = write_corpus(tmp_path / "naip", sensor=get_sensor("naip", ["nir", "red"]))
    for watch, error, said in (
        ({"data": str(tmp_path / "nowhere")}, GeomimError, "watch.data: .*nowhere"),
        ({"data": str(corpus), "train_split": "fit"}, CorpusError, r"in split 'fit'.*--watch\.train_split"),
        ({"data": str(other)}, GeomimError, "watch.data: .*missing green, blue"),
    ):
        with pytest.raises(error, match=said):
            run(corpus, tmp_path / "run", **watch)
        assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="limit at least 1; given 1000 and 0"):
        Watching(limit=0)
    monkeypatch.setattr(watching, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match="pip install wandb"):
        Watching(wandb="project")
    assert main(["pretrain", "--recipe", "mae", "--data.corpus", str(corpus), "--watch.wandb", "project"]) != 0
    assert capsys.readouterr().err.count("\n") == 1


def test_weights_and_biases_is_told_where_asked_for(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(watching, "find_spec", lambda _: True)
    monkeypatch.setattr(watching, "WandbLogger", lambda *given, **named: made.append((given, named)) or "it")
    assert len(watching.loggers(tmp_path / "run", Watching())) == 2 and not made
    assert watching.loggers(tmp_path / "run", Watching(wandb="project"), {"recipe": "mae"})[2] == "it"
    assert made == [(("run", tmp_path / "run"), {"project": "project", "config": {"recipe": "mae"}})]


def test_a_spectral_encoder_is_probed_with_the_contract_that_its_images_have(corpus, tmp_path):
    """Found by bands and units, whatever it is called; a sensor it never saw has the statistics of its own corpus."""
    naip = BandContract(get_sensor("naip"), (90.0,) * 4, (40.0,) * 4)
    contracts = {"landsat": BandContract(get_sensor("landsat7"), (0.1,) * 6, (0.1,) * 6)} | {"aerial": naip}
    encoder = build_encoder(contracts, 16, patch_size=4, width=24, depth=1, heads=2, spectral=True)
    watched = str(write_corpus(tmp_path / "naip", sensor=get_sensor("naip")))
    found = probing(Watching(data=watched, test_split="val"), encoder, 16)
    assert found.contract == naip and any("the images are seen as 'aerial'" in note for note in found.facts["notes"])
    options = {"patch_size": 4, "width": 24, "depth": 1, "heads": 2, "gsd_positions": True}
    follows = probing(Watching(data=watched, test_split="val"), build_encoder({"aerial": naip}, 16, **options), 16)
    assert found.gsd is None and follows.gsd == 1.5  # 24 px of 1 m, seen as 16
    assert any("made for 1.5 m, at 16 px" in note for note in follows.facts["notes"])
    other = probing(Watching(data=str(corpus), test_split="val"), encoder, 16)
    assert other.contract.mean == (125.0,) * 3 and any("never trained on 'rgb'" in one for one in other.facts["notes"])
