"""`geomim predict` with tuned tasks of every kind; their weights are drawn, what they say is compared with the task."""

import re

import geopandas
import lightning
import numpy as np
import pytest
import rasterio
import shapely
import torch
from affine import Affine
from photographs import photograph
from tiny_tasks import TINY

from geomim.cli import main
from geomim.errors import CheckpointError, ConfigError, InputError
from geomim.finetune.change import Change
from geomim.finetune.classification import Classification
from geomim.finetune.detection import Detection
from geomim.finetune.rotated import corners
from geomim.finetune.segmentation import Segmentation
from geomim.models.inputs import ContractInput
from geomim.sensors import SENSORS
from geomim.verbs.finetune_stages import Job, _stored
from geomim.verbs.predict import predict

PLACE = {"crs": "EPSG:32633", "transform": Affine(10, 0, 500000, 0, -10, 5500000)}
SIDE = 32


def write(path, pixels, **place):
    """A photograph `(H, W, 3)` as a scene."""
    height, width, count = pixels.shape
    profile = {"driver": "GTiff", "count": count, "dtype": pixels.dtype, "height": height, "width": width}
    with rasterio.open(path, "w", **profile, **PLACE | place) as raster:
        raster.write(pixels.transpose(2, 0, 1))
    return str(path)


def keep(folder, task, name):
    kept = {"state_dict": task.state_dict(), "hyper_parameters": dict(task.hparams), "geomim_size": SIDE}
    kept |= {"pytorch-lightning_version": lightning.__version__, "geomim_task": name}
    task.on_save_checkpoint(kept)
    folder.mkdir()
    torch.save(kept, folder / "task.ckpt")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder of tasks, and the tasks."""
    folder, made = tmp_path_factory.mktemp("tasks"), {}
    torch.manual_seed(0)
    for head in ("fcos", "oriented"):
        made[head] = task = Detection(**TINY, classes=["car", "ship"], head=head, channels=64).eval()
        logits = task.model.class_logits if head == "oriented" else task.model.model.head.classification_head.cls_logits
        torch.nn.init.normal_(logits.weight, std=0.5)  # so that it finds something
        keep(folder / head, task, "detection")
    made["change"] = Change(**TINY, classes=["same", "other"], head="linear", neck="taps").eval()
    made["mask"] = Segmentation(**TINY, classes=["field", "town"], head="linear", neck="taps").eval()
    made["class"] = Classification(**TINY, classes=["field", "town"]).eval()
    for name, of in (("change", "change"), ("mask", "segmentation"), ("class", "classification")):
        keep(folder / name, made[name], of)
    return folder, made


def prepared(task, pixels):
    numbers = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]
    return ContractInput(task.contract, task.contract.as_stored(SENSORS["rgb"]))(numbers)[0]


@pytest.mark.parametrize("head", ["fcos", "oriented"])
def test_objects_of_one_window_are_those_of_the_task(tasks, tmp_path, head):
    folder, made = tasks
    pixels = photograph(3, (SIDE, SIDE))
    scene, task = write(tmp_path / "s.tif", pixels), made[head]
    (file,) = predict([scene], str(folder / head), str(tmp_path / "out.gpkg"), threshold=0.0, device="cpu")
    table = geopandas.read_file(file)
    with torch.inference_mode():
        (found,) = task(prepared(task, pixels))
    boxes = found["boxes"]
    points = corners(boxes) if head == "oriented" else boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]
    areas = torch.from_numpy(shapely.area(shapely.polygons(points.double().numpy())))
    inside = (((points.mean(1) >= 0) & (points.mean(1) < SIDE)).all(1) & (areas > 0.01)).numpy()
    assert 0 < len(table) <= inside.sum() and set(table["class"]) <= {"car", "ship"}
    expected = shapely.polygons(np.stack(PLACE["transform"] * points[inside].double().numpy().transpose(2, 0, 1), -1))
    scores = found["scores"][torch.from_numpy(inside)].numpy()
    for row in table.itertuples():
        near = shapely.hausdorff_distance(expected, row.geometry) < 0.1
        assert near.any() and np.abs(scores[near] - row.score).min() < 1e-3  # a box may be of both classes
    assert ("angle" in table) == (head == "oriented") and (table["area_m2"] > 0).all()
    if head == "fcos":
        assert len(table) == inside.sum()  # suppressed by the task already, by the same overlap


@pytest.mark.parametrize("head", ["fcos", "oriented"])
def test_objects_of_a_large_scene_repeat_nothing(tasks, tmp_path, head):
    folder, _ = tasks
    scene = write(tmp_path / "s.tif", photograph(3, (70, 90)))
    (file,) = predict([scene], str(folder / head), str(tmp_path / "out.parquet"), threshold=0.1, device="cpu")
    table = geopandas.read_parquet(file)
    assert len(table) > 5 and table.crs == PLACE["crs"] and table["score"].min() >= 0.1
    shapes, limit = table.geometry.to_numpy(), 0.1 if head == "oriented" else 0.5
    one, other = np.triu_indices(len(table), 1)
    same = (table["class"].to_numpy()[one] == table["class"].to_numpy()[other]).nonzero()[0]
    shared = shapely.area(shapely.intersection(shapes[one[same]], shapes[other[same]]))
    union = shapely.area(shapes[one[same]]) + shapely.area(shapes[other[same]]) - shared
    assert (shared <= (limit + 1e-6) * union).all()


def test_change_of_a_window_is_that_of_the_task(tasks, tmp_path):
    folder, made = tasks
    dates = photograph(1, (SIDE, SIDE)), photograph(2, (SIDE, SIDE))
    before, after = (write(tmp_path / f"{name}.tif", one) for name, one in zip("ab", dates, strict=True))
    (file,) = predict([before], str(folder / "change"), str(tmp_path / "out"), after=after, device="cpu")
    assert file.name == "a_change.tif"
    task = made["change"]
    with torch.inference_mode(), rasterio.open(file) as raster:
        likely = task(torch.stack([prepared(task, one) for one in dates], 1)).softmax(1)[0]
        ids, sure = raster.read()
        assert raster.tags(1)["CLASS_1"] == "other"
    clear = (likely[0] - 0.5).abs().numpy() > 0.01
    assert np.array_equal(ids[clear], likely.argmax(0).numpy()[clear])
    assert np.abs(sure - 100 * likely.amax(0).numpy()).max() < 1.5
    with rasterio.open(predict([after], str(folder / "change"), str(tmp_path / "c.tif"), after=before)[0]) as raster:
        assert not np.array_equal(raster.read(2), sure)  # which date is which counts


def test_whole_images_are_rows_of_a_table(tasks, tmp_path):
    folder, _ = tasks
    scenes = [write(tmp_path / f"{name}.tif", photograph(number, (40, 50))) for number, name in enumerate("ab")]
    (file,) = predict(scenes, str(folder / "class"), str(tmp_path / "kinds.csv"))
    head, *rows = file.read_text().splitlines()
    assert head == "image,class,probability" and [row.split(",")[0] for row in rows] == scenes


def test_one_broken_scene_does_not_keep_the_others_from_the_table(tasks, tmp_path, capsys):
    folder, _ = tasks
    whole, broken = (write(tmp_path / f"{name}.tif", photograph(1, (40, 50))) for name in "ab")
    dark = write(tmp_path / "dark.tif", photograph(2, (40, 50)).astype(np.float32) / 255)
    with open(broken, "r+b") as file:
        file.truncate(400)
    given, table = ["--model", str(folder / "class"), "--out"], tmp_path / "kinds.csv"
    assert main(["predict", broken, whole, dark, *given, str(table)]) == 1
    said = capsys.readouterr()
    assert [row.split(",")[0] for row in table.read_text().splitlines()] == ["image", whole]
    assert "2 of 3 scenes have no class" in said.err and broken in said.err and dark in said.err
    assert f"no class of '{dark}'" in said.out
    assert main(["predict", broken, dark, *given, str(tmp_path / "none.csv")]) == 1
    assert main(["predict", dark, *given, str(tmp_path / "none.csv")]) == 1
    assert not (tmp_path / "none.csv").exists()


def test_a_table_of_others_is_left_alone_and_an_own_one_replaced(tasks, tmp_path):
    folder, _ = tasks
    scene, table = write(tmp_path / "a.tif", photograph(1, (40, 50))), tmp_path / "kinds.csv"
    for there in ("image,class\na.tif,town\n", ""):
        table.write_text(there)
        with pytest.raises(InputError, match="no table of classes that geomim wrote"):
            predict([scene], str(folder / "class"), str(table))
        assert table.read_text() == there
    table.write_text("image,class,probability\nold.tif,town,0.5\n")
    predict([scene], str(folder / "class"), str(table))
    assert "old.tif" not in table.read_text() and scene in table.read_text()


def test_whole_images_use_the_device_and_what_is_assumed_is_said_and_nothing_warned_of(tasks, tmp_path, capsys, caplog):
    folder, made = tasks
    bright = 200 + photograph(1, (40, 50)) // 5  # above the mean everywhere, as what is not normalised
    scene, out = write(tmp_path / "a.tif", bright), str(tmp_path / "kinds.csv")
    assert prepared(made["class"], bright).min() > 0
    with pytest.raises(ConfigError, match="--device"):
        predict([scene], str(folder / "class"), out, device="nonsense")
    capsys.readouterr()
    predict([scene], str(folder / "class"), out, device="cpu")
    said = capsys.readouterr().out
    assert made["class"].notes and all(f"note: {note}\n" in said for note in made["class"].notes)
    assert f"'{scene}' is far from what the encoder was trained on" in said
    assert "normalised" not in caplog.text


def test_files_that_are_no_task_of_this_version_are_refused_in_a_sentence(tasks, tmp_path, capsys):
    folder, _ = tasks
    scene, file = write(tmp_path / "a.tif", photograph(1, (40, 50))), tmp_path / "kept" / "task.ckpt"
    state = torch.load(folder / "mask" / "task.ckpt", weights_only=True)
    weights = dict(list(state["state_dict"].items())[1:])
    wrong = [
        ({"state_dict": {}}, "holds no tuned task"),
        (state | {"geomim_task": "depth"}, "task of 'depth', which geomim"),
        (state | {"hyper_parameters": {}}, "damaged or of a version"),
        (state | {"state_dict": [1]}, "damaged or of a version"),
        (state | {"state_dict": weights}, "does not hold the task of segmentation"),
        (None, "is no readable checkpoint"),
    ]
    file.parent.mkdir()
    for content, said in wrong:
        torch.save(content, file) if content else file.write_bytes(file.read_bytes()[:1000])
        assert main(["predict", scene, "--model", str(file.parent), "--out", str(tmp_path / "map.tif")]) == 1
        assert said in capsys.readouterr().err
        with pytest.raises(CheckpointError, match=re.escape(said)):
            _stored(Job([scene], "none", out=str(file.parent)))


def test_scenes_beside_an_area_are_left_out_and_all_of_them_refused(tasks, tmp_path, capsys):
    folder, _ = tasks
    moved = PLACE["transform"] @ Affine.translation(500, 0)
    scenes = [write(tmp_path / "a.tif", photograph(1, (40, 50)))]
    scenes.append(write(tmp_path / "b.tif", photograph(1, (40, 50)), transform=moved))
    areas = {"near": shapely.box(500000, 5499800, 500200, 5500000), "far": shapely.box(0, 0, 10, 10)}
    for name, shape in areas.items():
        geopandas.GeoDataFrame(geometry=[shape], crs=PLACE["crs"]).to_file(tmp_path / f"{name}.gpkg")
    given = ["predict", *scenes, "--model", str(folder / "mask"), "--out", str(tmp_path / "maps")]
    assert main([*given, "--aoi", str(tmp_path / "near.gpkg"), "--polygons", str(tmp_path / "maps")]) == 0
    assert "no ground in common" in capsys.readouterr().out
    assert sorted(file.name for file in (tmp_path / "maps").glob("*_*.[gt]*")) == [
        "a_classes.tif",
        "a_classes.tif.aux.xml",
        "a_polygons.gpkg",
    ]
    table = geopandas.read_file(tmp_path / "maps" / "a_polygons.gpkg")
    assert table["hectares"].sum() == pytest.approx(20 * 20 / 100, rel=1e-2)
    assert main([*given, "--aoi", str(tmp_path / "far.gpkg")]) == 1
    assert "none of 2 scenes" in capsys.readouterr().err


def test_flags_and_endings_of_another_kind_are_refused_by_name(tasks, tmp_path):
    folder, _ = tasks
    scene = write(tmp_path / "s.tif", photograph(1, (40, 50)))
    refused = [
        ("mask", "map.tif", {"after": scene}, "--after says nothing here"),
        ("mask", "map.tif", {"threshold": 0.5}, "--threshold says nothing here"),
        ("mask", "map.gpkg", {}, r"expected \.tif or \.tiff, or a folder"),
        ("mask", "map.tif", {"simplify": 5}, "say with --polygons"),
        ("fcos", "map.tif", {}, r"expected \.gpkg or \.parquet, or a folder"),
        ("fcos", "a.gpkg", {"flips": True}, "--flips says nothing here"),
        ("fcos", "a.gpkg", {"polygons": "b.gpkg"}, "--polygons says nothing here"),
        ("change", "map.tif", {}, "the later one with --after"),
        ("class", "a.csv", {"aoi": "b.gpkg"}, "--aoi says nothing here"),
    ]
    for model, out, given, said in refused:
        with pytest.raises(ConfigError, match=said):
            predict([scene], str(folder / model), str(tmp_path / out), **given)
    with pytest.raises(ConfigError, match="give one scene"):
        predict(
            [scene, write(tmp_path / "t.tif", photograph(2, (40, 50)))],
            str(folder / "change"),
            str(tmp_path / "maps"),
            after=scene,
        )


@pytest.mark.parametrize("flags", [{"threshold": 30.0}, {"out": "ships.geojson"}, {"polygons": "map.shp"}])
def test_what_would_be_something_else_is_refused_before_anything_is_read(tmp_path, flags, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"--{next(iter(flags))}: "):
        predict(["missing.tif"], "model", **{"out": "maps"} | flags)
    assert not list(tmp_path.iterdir())
