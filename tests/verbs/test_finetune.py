"""From labels of each kind to a tuned task, its figures and its files; what cannot be meant is refused before."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import shapely.affinity
import yaml
from photographs import photograph, save
from rasterio.transform import from_origin
from tiny_encoder import checkpoint

from geomim.cli import main, parse
from geomim.errors import ConfigError, InputError
from geomim.finetune import probing, run
from geomim.finetune.backbones import Encoder, open_backbone
from geomim.finetune.datamodule import Cut, Windows
from geomim.finetune.labels import Item, Labels, open_labels
from geomim.finetune.places import Split
from geomim.finetune.run import TASKS, Model, Running, Tuning
from geomim.finetune.training import Training
from geomim.sensors import BandContract, get_sensor
from geomim.verbs.finetune import _plans, finetune
from geomim.verbs.finetune_stages import Job, Opened, _check_unseen, fit, keep, predict, say
from geomim.verbs.finetune_stages import test as scored

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "finetune").glob("*.yaml"))
RGB = BandContract(get_sensor("rgb"), (110.0,) * 3, (50.0,) * 3)
COUNT, SIDE = 12, 32


@pytest.fixture(scope="module", autouse=True)
def few_decays() -> Iterator[None]:
    """Of which the best is chosen: that is tested in test_probing, and would be a third of the time here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probing, "DECAYS", probing.DECAYS[2:4])
        yield


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("encoder") / "tiny.ckpt"
    checkpoint(path, RGB, image_size=SIDE, patch_size=8, width=32, depth=4, heads=2)
    return str(path)


def images(folder: Path, seed: int = 0) -> None:
    for number in range(COUNT):
        save(folder / f"{number:02}.png", photograph(seed + number, SIDE))


def mask(folder: Path) -> None:
    images(folder / "images")
    for number in range(COUNT):
        values = np.zeros((SIDE, SIDE), np.uint8)
        values[:, SIDE // 2 :] = 1
        save(folder / "labels" / f"{number:02}.png", values)


def classes(folder: Path) -> None:
    for number in range(COUNT):
        save(folder / "images" / "lake field".split()[number % 2] / f"{number:02}.png", photograph(number, SIDE))


def boxes(folder: Path) -> None:
    images(folder / "images")
    (folder / "labels").mkdir()
    rows = [f"{number:02}.png,4,4,{20 + number % 3},18,{'ship car'.split()[number % 2]}" for number in range(COUNT)]
    (folder / "labels" / "boxes.csv").write_text("\n".join(["image,x1,y1,x2,y2,class", *rows]))


def oboxes(folder: Path) -> None:
    images(folder / "images")
    (folder / "labels").mkdir()
    for number in range(COUNT):
        row = f"8 4 24 8 22 16 6 12 {'ship car'.split()[number % 2]} 0\n"
        (folder / "labels" / f"{number:02}.txt").write_text(row)


def change(folder: Path) -> None:
    images(folder / "images" / "A")
    images(folder / "images" / "B", 50)
    for number in range(COUNT):
        values = np.zeros((SIDE, SIDE), np.uint8)
        values[8:16, 8:16] = 255
        save(folder / "images" / "label" / f"{number:02}.png", values)


KINDS = {"mask": mask, "class": classes, "boxes": boxes, "oboxes": oboxes, "change": change}
COUNTED = {"mask": COUNT * SIDE**2, "class": COUNT, "boxes": COUNT, "oboxes": COUNT, "change": COUNT * SIDE**2}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, encoder: str):
    """A finished run of each kind, by one line."""
    done = {}

    def make(kind: str):
        if kind not in done:
            folder = tmp_path_factory.mktemp(kind)
            KINDS[kind](folder)
            labels = folder / "labels" if (folder / "labels").exists() else folder / "images"
            with pytest.MonkeyPatch.context() as patch:  # no time is taken
                patch.setattr(Tuning, "steps", lambda *_: 2)
                found = finetune(str(folder / "images"), str(labels), encoder, str(folder / "out"), folds=2)
            done[kind] = folder, found
        return done[kind]

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_one_line_tests_each_label_once_beside_random_weights_and_keeps_a_task(kind: str, made) -> None:
    folder, found = made(kind)
    out, (own, random, *rest) = folder / "out", found.values()
    floors = ["random initialisation"] + ["pixel statistics"] * ("boxes" not in kind)
    assert list(found) == ["tiny", *floors]
    for side in (own, random, *rest):
        assert next(row["count"] for row in side.figures if row["class"] == "all") == COUNTED[kind]
    assert len(own.shown) == COUNT and not random.shown
    assert random.task.hparams["encoder"]["seed"] == 0 and own.task.hparams["encoder"]["seed"] is None
    assert {"config.yaml", "task.ckpt", "figures.csv", "predictions.png", "index.html"} <= {
        p.name for p in out.iterdir()
    }
    assert (out / "confusion.csv").exists() == (kind not in ("boxes", "oboxes"))
    assert len(json.loads((out / "trained.json").read_text())) == COUNT * (1 + (kind == "change")), "it has seen all"


def scene(folder: Path, bands: int = 3, crs: str | None = "EPSG:32633") -> str:
    """A photograph of 128 pixels of 10 m."""
    side, place = 128, from_origin(500_000, 4_000_000, 10, 10) if crs else None
    options = {"height": side, "width": side, "count": bands, "dtype": "uint8", "crs": crs, "transform": place}
    options["photometric"] = "RGB" if bands == 3 else "MINISBLACK"
    with rasterio.open(folder / "scene.tif", "w", driver="GTiff", **options) as raster:
        raster.write(np.resize(photograph(1, side).transpose(2, 0, 1).clip(1), (bands, side, side)))
    return str(folder / "scene.tif")


def squares(folder: Path, every: int = 16, side: float = 8, first: int = 4, east: float = 0, most: int = 64) -> str:
    """Polygons of three classes in a grid over it, in longitude and latitude."""
    cells = [(x, y) for x in range(first, 128, every) for y in range(first, 128, every)][:most]
    west, north = 500_000 + east, 4_000_000
    shapes = [
        shapely.box(west + 10 * x, north - 10 * (y + side), west + 10 * (x + side), north - 10 * y) for x, y in cells
    ]
    table = {"kind": (["lake", "field", "road"] * len(cells))[: len(cells)]}
    geopandas.GeoDataFrame(table, geometry=shapes, crs="EPSG:32633").to_crs(4326).to_file(folder / "own.gpkg")
    return str(folder / "own.gpkg")


def test_polygons_over_a_scene_are_folds_of_ground(encoder: str, tmp_path: Path, capsys) -> None:
    given = scene(tmp_path), squares(tmp_path), encoder, str(tmp_path / "out")
    own, *_ = finetune(*given, folds=3).values()
    counted = {row["class"]: row["count"] for row in own.figures}
    assert counted["all"] == pytest.approx(64 * 64, rel=0.02) and {*counted} == {"all", "lake", "field", "road"}
    said = " ".join(capsys.readouterr().out.split())
    assert "16 labelled windows are fewer than 200" in said and "3 folds by place take turns as the test" in said
    assert (
        "steps" not in said and said.count("the encoder pays here") + said.count("the encoder does not pay here") == 1
    )


@pytest.mark.parametrize(
    ("bands", "crs", "polygons", "flags", "said"),
    [
        (4, "EPSG:32633", {}, [], "has 4 bands, all without a name"),
        (1, "EPSG:32633", {}, [], "missing red, green, blue"),
        (3, None, {}, [], "it has no place on Earth"),
        (3, "EPSG:32633", {"east": 1e5}, [], "lies on a scene"),
        (3, "EPSG:32633", {"every": 12, "first": 2, "most": 2}, [], "all labels lie in one place"),
        (3, "EPSG:32633", {"every": 64, "side": 0.1, "first": 3}, [], "no pixel of 1 scenes is labelled"),
        (3, "EPSG:32633", {}, ["--class_column", "kindd"], "has no column 'kindd'; did you mean 'kind'"),
    ],
)
def test_what_cannot_be_used_is_a_sentence_and_leaves_nothing(
    bands: int, crs: str | None, polygons: dict, flags: list[str], said: str, encoder: str, tmp_path: Path, capsys
) -> None:
    given = [scene(tmp_path, bands, crs), squares(tmp_path, **polygons), "--encoder", encoder]
    assert main(["finetune", *given, "--out", str(tmp_path / "out"), *flags]) == 1
    error = capsys.readouterr().err
    assert said in error and "unexpected" not in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_folders_may_tell_the_test_and_then_it_can_be_tested_again(encoder: str, tmp_path: Path, monkeypatch) -> None:
    for number in range(COUNT):
        part, name = "test" if number < 4 else "train", "lake field".split()[number % 2]
        save(tmp_path / "images" / part / name / f"{number:02}.png", photograph(number, SIDE))
    monkeypatch.setattr(Tuning, "steps", lambda *_: 2)
    images, out = str(tmp_path / "images"), tmp_path / "out"
    own, *_ = finetune(images, images, encoder, str(out)).values()
    assert next(row["count"] for row in own.figures if row["class"] == "all") == 4
    again = scored(**parse(scored, ["--config", str(out / "config.yaml")], "finetune test"))
    assert [row["value"] for row in again.figures] == pytest.approx([row["value"] for row in own.figures], nan_ok=True)


def test_an_interrupted_run_leaves_no_finished_folder(encoder: str, tmp_path: Path, monkeypatch, capsys) -> None:
    mask(tmp_path)
    images, labels, out = (str(tmp_path / name) for name in ("images", "labels", "out"))
    given = ["finetune", images, labels, "--encoder", encoder, "--out", out, "--folds", "2"]

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TASKS["segmentation"], "test_step", stop)
        assert main(given) == 130
    assert "interrupted" in capsys.readouterr().err and not Path(out, "config.yaml").exists()
    assert main(given) == 0 and Path(out, "config.yaml").exists()


def test_minutes_are_as_many_steps_as_fill_them(encoder: str, tmp_path: Path, monkeypatch) -> None:
    mask(tmp_path)
    labels = open_labels([str(tmp_path / "images")], str(tmp_path / "labels"))
    windows = Windows(labels, open_backbone(encoder).contract, SIDE, batch_size=4)
    arguments = {"encoder": Encoder(encoder), "classes": ["a", "b"], "head": "linear", "training": Training("all")}
    clock = itertools.count(step=2)
    monkeypatch.setattr(run, "time", SimpleNamespace(perf_counter=lambda: next(clock)))  # two seconds a step
    assert Tuning("mask", arguments, Running(minutes=1), 0).steps(windows) == 30
    with pytest.raises(ConfigError, match="a step takes 2 s here: give more minutes"):
        Tuning("mask", arguments, Running(minutes=0.02), 0).steps(windows)
    batches = len(windows.train_dataloader())
    assert Tuning("mask", arguments, Running(accumulate=2), 0).steps(windows) == -(-batches // 2) * Training().epochs


@pytest.mark.parametrize("kind", ["mask", "class", "boxes", "oboxes"])
def test_what_is_kept_reads_new_scenes_and_refuses_to_be_tested_on_what_it_saw(
    kind: str, made, tmp_path, capsys
) -> None:
    folder, _ = made(kind)
    new = save(tmp_path / "new.png", photograph(99, (40, 56)))
    config = ["--config", str(folder / "out" / "config.yaml")]
    given = [*config, "--scenes", str(new)]
    (file,) = predict(**parse(predict, given, "finetune predict"))
    name = {"mask": "new_classes.tif", "class": "classes.csv"}.get(kind, "new_objects.gpkg")
    assert file == folder / "out" / "predicted" / name
    if kind == "mask":
        with rasterio.open(file) as raster:
            ids, sure = raster.read()
        assert ids.shape == (40, 56) and {*np.unique(ids).tolist()} <= {0, 1}
        assert sure.min() >= 50 and sure.max() <= 100, "per cent of the likelier of two"
    elif kind == "class":
        head, row = file.read_text().splitlines()
        assert (
            head == "image,class,probability" and row.startswith(f"{new},") and row.split(",")[1] in ("lake", "field")
        )
    else:
        assert ("angle" in geopandas.read_file(file)) == (kind == "oboxes")
    if kind != "class":
        capsys.readouterr()
        predict(**parse(predict, given, "finetune predict"))
        assert "is there already" in capsys.readouterr().out
    with pytest.raises(InputError, match=f"{6} of 6 windows of the test were trained on"):
        scored(**parse(scored, [*config, "--split.folds", "2"], "finetune test"))


def test_what_was_seen_is_known_from_any_folder_and_under_any_name(tmp_path: Path, monkeypatch) -> None:
    """Also a pair of which the other date was seen."""
    for name in "ab":
        (tmp_path / f"{name}.tif").touch()
        (tmp_path / f"link-{name}.tif").symlink_to(tmp_path / f"{name}.tif")
    task = SimpleNamespace(state_dict=dict, hparams={}, on_save_checkpoint=lambda _: None, tuning=Training("all"))

    def windows(*dates: str, left: int = 0) -> SimpleNamespace:
        items = (Item(dates[0], 64, 64, after=dates[1]),)
        parts = {key: [Cut(0, 0, left, 32)] for key in ("train", "test")}
        return SimpleNamespace(labels=Labels("change", ("no", "yes"), items), parts=parts, size=32, gsd=None)

    monkeypatch.chdir(tmp_path)
    keep(tmp_path / "out", task, windows("a.tif", "s3://bucket/b.tif"))
    monkeypatch.chdir("/")
    job, here = Job([], "", out=str(tmp_path / "out")), str(tmp_path)
    for seen in (f"{here}/a.tif", f"{here}/link-a.tif", "s3://bucket/b.tif"):
        for dates in ((seen, f"{here}/b.tif"), (f"{here}/b.tif", seen)):
            with pytest.raises(InputError, match="1 of 1 windows of the test were trained on"):
                _check_unseen(job, windows(*dates, left=31))
            _check_unseen(job, windows(*dates, left=32))
    _check_unseen(job, windows(f"{here}/b.tif", f"{here}/link-b.tif"))


def test_a_file_in_the_place_of_the_run_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for stage in (
        lambda out: finetune("nowhere", "nowhere", "none", out),
        lambda out: fit(scenes=["no"], encoder="none", out=out),
    ):
        for out in ("file", "file/run"):
            with pytest.raises(ConfigError, match=r"expected a folder, there or not; '.*/file' is a file"):
                stage(str(tmp_path / out))


def test_a_task_of_pixels_makes_maps_by_the_verb_for_all_models(made, tmp_path, capsys) -> None:
    folder, _ = made("mask")
    scene = save(tmp_path / "new.png", photograph(99, (70, 101)))
    out = tmp_path / "map.tif"
    for model in (folder / "out", folder / "out" / "task.ckpt"):
        assert main(["predict", str(scene), "--model", str(model), "--out", str(out)]) == 0
    assert "is there already" in capsys.readouterr().out, "of one task, however it is named"
    with rasterio.open(out) as raster:
        ids, sure = raster.read()
        assert raster.shape == (70, 101) and {*np.unique(ids).tolist()} <= {0, 1}
        assert sure.min() >= 50 and sure.max() <= 100, "per cent of the likelier of two"
    for flag, value in (("--resolution", "patch"), ("--encoder", "a.ckpt")):
        assert main(["predict", str(scene), "--model", str(folder / "out"), "--out", "b.tif", flag, value]) == 2
    boxes, _ = made("boxes")
    assert main(["predict", str(scene), "--model", str(boxes / "out"), "--out", "b.tif"]) == 2
    assert "finds objects" in capsys.readouterr().err


def test_a_config_trains_scores_val_and_then_the_test(encoder: str, tmp_path: Path, capsys) -> None:
    mask(tmp_path)
    written = {
        "task": "segmentation", "scenes": [str(tmp_path / "images")], "labels": str(tmp_path / "labels"),
        "encoder": encoder, "out": str(tmp_path / "out"), "model": {"head": "linear"}, "split": {"folds": 3},
        "run": {"max_steps": 2},
    }  # fmt: skip
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(written))
    assert main(["finetune", "fit", "--config", str(tmp_path / "job.yaml")]) == 0
    kept = tmp_path / "out" / "config.yaml"
    assert open_backbone(str(tmp_path / "out" / "encoder")).contract.names == RGB.names, "as it was tuned"
    assert main(["finetune", "test", "--config", str(kept)]) == 0
    for part in ("val", "test"):
        assert f"{4 * SIDE**2}" in (tmp_path / "out" / part / "figures.csv").read_text()
    assert main(["finetune", "fit", "--config", str(kept)]) == 2
    assert "holds a run already" in capsys.readouterr().err


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_published_protocols_parse_and_build_their_task(config: Path, encoder: str) -> None:
    given = ["--config", str(config), "--scenes", "a", "--encoder", encoder, "--split.test", "[b]"]
    job = parse(fit, given, "finetune fit")
    kind = {"classification": "class", "segmentation": "mask"}.get(job["task"], "boxes")
    kind = "oboxes" if job["model"].head == "oriented" else kind
    own = {"encoder": Encoder(encoder), "classes": ["a", "b"], "training": job["training"]}
    task = Tuning(kind, job["model"].arguments(kind) | own, job["run"], 0).make()
    assert isinstance(task, TASKS[job["task"]]) and task.tuning == job["training"] and job["split"].test == ("b",)
    assert "Not as published" in config.read_text()


def test_what_cannot_be_meant_is_refused_by_name(encoder: str, tmp_path: Path) -> None:
    given = ["--scenes", "a", "--encoder", encoder]
    for words, said in (
        (["--training.learnin_rate", "1"], r"'training.learnin_rate'.*training.learning_rate"),
        (["--modle.head", "linear"], "unknown argument 'modle.head'"),
        (["--training.freeze", "some"], "training.freeze"),
        (["--run.minutes", "1", "--run.max_steps", "3"], "give one"),
    ):
        with pytest.raises(ConfigError, match=said):
            parse(fit, [*given, *words], "finetune fit")
    with pytest.raises(ConfigError, match=r"model.join: segmentation has none"):
        Model(join="difference").arguments("mask")
    with pytest.raises(ConfigError, match="upright boxes"):
        Model(head="oriented").arguments("boxes")
    with pytest.raises(ConfigError, match=r"unknown model.head 'upernett'; did you mean 'upernet'"):
        Model(head="upernett").arguments("mask")
    with pytest.raises(ConfigError, match=r"run\.minutes"):
        Running(minutes=0)
    mask(tmp_path)
    with pytest.raises(ConfigError, match="task detection: the labels are of kind mask"):
        fit(scenes=[str(tmp_path / "images")], labels=str(tmp_path / "labels"), encoder=encoder, task="detection")
    classes(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"size 30: .*multiple of \(8, 8\)"):
        finetune(str(tmp_path / "other" / "images"), str(tmp_path / "other" / "images"), encoder, size=30)
    with pytest.raises(ConfigError, match="folds"):
        finetune("a", "b", encoder, folds=1)
    for own in ({"size": 0}, {"size": -8}, {"batch_size": 0}, {"workers": -1}, {"seed": -1}):
        with pytest.raises(ConfigError, match=rf"expected .*at least .*{next(iter(own.values()))}"):
            finetune("a", "b", encoder, **own)
    assert not Path("finetuned").exists()


def test_a_test_reads_by_the_contract_of_the_task_and_says_what_is_left(encoder: str, tmp_path: Path, capsys) -> None:
    mask(tmp_path)
    save(tmp_path / "images" / "alone.png", photograph(50, SIDE))
    opened = Opened(Job([str(tmp_path / "images")], encoder, str(tmp_path / "labels")))
    task = SimpleNamespace(contract=BandContract(RGB.sensor, (90.0,) * 3, (20.0,) * 3))
    assert opened.windows(Split(), task).contract == task.contract != opened.windows(Split()).contract
    plans, lost = _plans(opened, Split(folds=40, val=False))
    assert len(plans) == COUNT and not lost, "a place each, and not a word on each fold that there is not"
    say(opened, ["one"])
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "note: 1 images and label files are left out ('" in said and "alone.png': no label file is called so)" in said
    )
