"""Windows: what moves with an image, which places train and test, and nothing that is not labelled is a class."""

import pickle
import shutil
from dataclasses import replace
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import rasterio
import shapely
import torch
from photographs import photograph, save
from PIL import Image
from rasterio.features import rasterize
from rasterio.transform import from_origin

from geomim.errors import BandError, ConfigError, InputError
from geomim.finetune import datamodule
from geomim.finetune.datamodule import Cut, Order, Windows, turned
from geomim.finetune.labels import Item, Labels, open_labels
from geomim.finetune.labels.items import Asked
from geomim.finetune.labels.rasters import read_mask
from geomim.finetune.places import Split, divide, ground_of, told_parts
from geomim.finetune.rotated import corners, from_corners
from geomim.maps.walk.windows import Walk
from geomim.sensors import BandContract, get_sensor

RGB = BandContract(get_sensor("rgb"), (110.0,) * 3, (50.0,) * 3)


def burn(polygons, side):
    return torch.from_numpy(rasterize([(shapely.Polygon(one), 1) for one in polygons], (side, side), dtype="int64"))


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("quarter", range(4))
def test_flips_and_turns_move_boxes_as_they_move_what_is_drawn(mirror, quarter):
    side = 40
    upright = [[3.0, 5], [17, 5], [17, 9], [3, 9]]
    oblique = corners(torch.tensor([[24.0, 22, 20, 8, 0.5]], dtype=torch.float64))[0].tolist()
    given = torch.tensor([upright, oblique], dtype=torch.float64)
    drawn = burn(given.tolist(), side)
    sample = {
        "image": drawn[None].float(),
        "valid": drawn[None] > 0,
        "mask": drawn,
        "corners": given,
        "label": torch.tensor([0, 1]),
    }
    found = turned(sample, mirror, quarter)
    assert (found["mask"] == found["image"][0]).all() and (found["valid"][0] == (found["mask"] > 0)).all()
    assert (burn(found["corners"].tolist(), side) == found["mask"]).float().mean() > 0.995
    assert (burn(found["corners"][:1].tolist(), side)[found["mask"] == 0] == 0).all(), (
        "to the pixel, where it is upright"
    )
    again = corners(from_corners(found["corners"]))  # as an oriented box, with its angle
    assert (burn(again.tolist(), side) != burn(found["corners"].tolist(), side)).sum() <= 2
    assert turned(sample, False, 0)["corners"].equal(given)


def scene(path, side=160, west=500_000, gsd=10.0):
    options = {"height": side, "width": side, "count": 3, "dtype": "uint8", "crs": "EPSG:32633"}
    place = from_origin(west, 4_000_000, gsd, gsd)
    path.parent.mkdir(exist_ok=True)
    with rasterio.open(path, "w", driver="GTiff", photometric="RGB", transform=place, **options) as raster:
        raster.write(photograph(1, side).transpose(2, 0, 1).clip(1))
    return str(path)


def polygons(uri, rows, side=6):
    """Labels of squares of pixels `(x, y, class)` on a scene."""
    shapes = np.array([shapely.box(x, y, x + side, y + side) for x, y, _ in rows])
    classes = sorted({name for _, _, name in rows})
    places = np.array([classes.index(name) for _, _, name in rows])
    with rasterio.open(uri) as raster:
        return Labels("mask", tuple(classes), (Item(uri, *raster.shape, shapes=shapes, labels=places),))


def each(loader):
    return map(loader.dataset.__getitem__, range(len(loader.dataset)))


def scattered(uri, side=160, count=24):
    """Three classes here and there, one of them twice only."""
    cells = np.random.default_rng(3).permutation(
        [(x, y) for x in range(3, side - 12, 20) for y in range(3, side - 12, 20)]
    )
    names = ["rare"] * 2 + ["field", "lake"] * count
    return polygons(uri, [(*map(int, cell), name) for cell, name in zip(cells[:count], names, strict=False)])


@pytest.mark.parametrize("size", [20, 27])  # 160 is eight times 20, and 25 more than five times 27
def test_every_labelled_pixel_of_sparse_polygons_is_tested_once_over_all_folds(tmp_path, size):
    labels = scattered(scene(tmp_path / "scene.tif"))
    seen = np.zeros((160, 160), int)
    for fold in range(5):
        windows = Windows(labels, RGB, size, Split(fold=fold, val=False))
        for cut in windows.parts["test"]:
            mask = windows.sample(cut)["mask"].numpy()
            assert (mask >= 0).any()
            seen[cut.top : cut.top + size, cut.left : cut.left + size] += mask >= 0
    assert (seen == (read_mask(labels, labels.items[0], 0, 0, 160) >= 0)).all() and seen.sum() == 24 * 36


@pytest.mark.parametrize("side", [(30, 30), (16, 40), (47, 33), (12, 16), (65, 64)])
def test_windows_of_any_scene_have_cores_that_cover_it_once(side):
    item = Item("", *side)
    cuts = [Cut(0, *at, 16) for at in Walk(*side, 1, 16, 0).places]
    seen = np.zeros((80, 80), int)
    for cut in cuts:
        top, left, height, width = cut.core(item)
        assert cut.top <= top and top + height <= cut.top + 16 and cut.left <= left and left + width <= cut.left + 16
        assert min(height, width) >= 8, "half of a window at least"
        seen[top : top + height, left : left + width] += 1
    assert (seen[: side[0], : side[1]] == 1).all()


def test_a_test_counts_each_box_once_where_windows_overlap_and_training_sees_it_whole(tmp_path):
    boxes = [(14, 13, 17, 17), (2, 2, 12, 9), (11, 20, 29, 28), (17, 12, 27, 16), (18, 9, 26, 11)]
    for number in range(10):
        save(tmp_path / f"{number}.png", photograph(number, 30))
    rows = [f"{number}.png,{','.join(map(str, box))},ship" for number in range(10) for box in boxes]
    (tmp_path / "boxes.csv").write_text("\n".join(["image,x1,y1,x2,y2,class", *rows]))
    windows = Windows(open_labels([str(tmp_path)]), RGB, 20, Split(val=False), turn=False)
    assert len(windows.parts["test"]) == 8
    whole = {cut: windows.sample(cut) for cut in windows.parts["test"]}
    corner = [one["corners"][:, 0] + torch.tensor([cut.left, cut.top]) for cut, one in whole.items()]
    assert sorted(torch.cat(corner).tolist()) == sorted([[x, y] for x, y, _, _ in boxes] * 2)
    for cut in windows.parts["train"]:
        middles = [((x1 + x2) / 2 - cut.left, (y1 + y2) / 2 - cut.top) for x1, y1, x2, y2 in boxes]
        own = sum(0 <= x < 20 and 0 <= y < 20 for x, y in middles)
        assert len(windows.sample(cut, train=True)["label"]) == own >= len(windows.sample(cut)["label"])
    first = next(one for cut, one in whole.items() if (cut.top, cut.left) == (0, 0))
    assert sorted(first["beside"].tolist()) == sorted(
        [[15, 0, 20, 20], [0, 15, 20, 20], [14, 13, 17, 17], [17, 12, 20, 16], [18, 9, 20, 11]]
    ), "ground of other windows, and their boxes as far as they reach in"
    batch = next(iter(windows.test_dataloader()))
    assert [len(one) for one in batch["beside"]] == [len(one["beside"]) for one in whole.values()]
    assert "beside" not in next(iter(windows.train_dataloader()))
    assert "reach beyond" not in " ".join(windows.notes)


@pytest.mark.parametrize("val", [False, True])
def test_parts_share_no_ground_and_have_each_class(tmp_path, val):
    labels = scattered(scene(tmp_path / "scene.tif"))
    windows = Windows(labels, RGB, 20, Split(val=val))
    boxes = {
        part: [shapely.box(c.left, c.top, c.left + 20, c.top + 20) for c in cuts]
        for part, cuts in windows.parts.items()
    }
    for one, two in (("train", "test"), ("train", "val"), ("val", "test")):
        assert not any(a.intersection(b).area > 0 for a in boxes[one] for b in boxes[two])
    for part in ("train", "test"):
        found = torch.cat([windows.sample(cut)["mask"].flatten() for cut in windows.parts[part]]).unique()
        assert found.tolist() == [-1, 0, 1, 2], part
    again = Windows(labels, RGB, 20, Split(val=val))
    assert again.parts == windows.parts and any("places with labels" in note for note in windows.notes)


def test_folds_are_of_all_places_once(tmp_path):
    labels = scattered(scene(tmp_path / "scene.tif"))
    tests = [Windows(labels, RGB, 20, Split(fold=fold, val=False)).parts["test"] for fold in range(5)]
    assert sum(map(len, tests)) == len({cut for own in tests for cut in own}) == 24


def ground(places, side=10.0):
    return ground_of(
        ["earth"] * len(places),
        shapely.box(*(np.array(places, float) * side / 111320).T, *((np.array(places, float) + 1) * side / 111320).T),
    )


def test_dense_windows_of_parts_lie_a_window_apart():
    places = [(x, y) for x in range(40) for y in range(40)]
    counts = np.ones((1600, 2), int)
    parts, said = divide(ground(places), counts, np.full(1600, "", "<U5"), Split(), ["a", "b"])
    train, test = (np.array(places)[parts == part] for part in ("train", "test"))
    assert np.abs(train[:, None] - test[None]).max(-1).min() == 2, "a window between them"
    assert 0.1 < len(test) / 1600 < 0.3 and any("less than a window from" in one for one in said)


@pytest.mark.parametrize("many", [False, True])
def test_pairs_that_share_a_date_are_one_place(tmp_path, many):
    for number in range(24):
        save(tmp_path / f"{number}.png", photograph(number, 32))
    dates = [(0, 1), (2, 3), (1, 4), (5, 2), (4, 5), *((n, n + 1) for n in range(6, 24 if many else 12, 2))]
    shapes, labels = np.array([shapely.box(0, 0, 16, 32), shapely.box(16, 0, 32, 32)]), np.array([0, 1])
    items = [
        Item(str(tmp_path / f"{one}.png"), 32, 32, after=str(tmp_path / f"{two}.png"), shapes=shapes, labels=labels)
        for one, two in dates
    ]
    for fold in range(2):
        windows = Windows(Labels("change", ("no", "yes"), tuple(items)), RGB, 32, Split(folds=2, fold=fold, val=False))
        chain = [{cut.item for cut in windows.parts[part]} & {*range(5)} for part in ("train", "test")]
        assert sorted(map(len, chain)) == [0, 5] and windows.parts["train"] and windows.parts["test"]


def test_a_window_between_parts_is_as_wide_in_the_north_as_on_the_equator():
    north = [0.0, 60.0]
    places = np.array([(x, y) for x in range(24) for y in range(24)], float) * 0.001
    corner = [places * [1 / np.cos(np.radians(lat)), 1] + [10, lat] for lat in north]
    size = [np.array([0.001 / np.cos(np.radians(lat)), 0.001]) for lat in north]
    shapes = np.concatenate([shapely.box(*one.T, *(one + own).T) for one, own in zip(corner, size, strict=True)])
    all_ = np.full(len(shapes), "", "<U5")
    parts, _ = divide(
        ground_of(["earth"] * len(shapes), shapes), np.ones((len(shapes), 1), int), all_, Split(val=False), ["a"]
    )
    for half in (slice(0, 576), slice(576, None)):
        train, test = ((places[parts[half] == part] * 1000).round() for part in ("train", "test"))
        away = np.abs(train[:, None] - test[None])
        for axis in (0, 1):
            assert away[away[..., 1 - axis] == 0][:, axis].min() == 2, "a window between them, either way"


def test_a_named_place_ties_what_lies_on_its_ground_and_cuts_no_tie():
    """Three places, each of two scenes of which the table names one; and two named places that overlap."""
    squares = [(9 * (number // 2), 0) for number in range(6)]
    counts, told = np.ones((6, 1), int), np.full(6, "", "<U5")
    for places in (["a", "", "b", "", "c", ""], ["", "a", "b", "", "c", "c"]):
        for frames in (["earth"] * 6, [f"file {number // 2}" for number in range(6)]):
            tied = ground_of(frames, ground(squares).outlines, places)
            parts, said = divide(tied, counts, told, Split(), ["x"])
            assert sorted(parts[::2]) == ["test", "train", "val"] and (parts[::2] == parts[1::2]).all()
            assert said == ["3 places with labels (whole images) are shared out to 3 folds, test: 0"]
    both = ground_of(["earth"] * 6, ground(squares).outlines, list("uvwxyz"))
    parts, said = divide(both, counts, told, Split(val=False), ["x"])
    assert {*parts} == {"train", "test", "near"} and all({*parts[at : at + 2]} != {"train", "test"} for at in (0, 2, 4))
    assert any("are left out" in one for one in said), "those who name two places are not told that they are one"


def test_a_named_place_over_the_date_line_ties_its_own_ground_alone():
    over = shapely.MultiPolygon([shapely.box(179.999, 0, 180, 0.002), shapely.box(-180, 0, -179.999, 0.002)])
    beside, far = shapely.box(-180, 0, -179.998, 0.002), shapely.box(9, 0, 9.002, 0.002)
    given = [over, far, over, beside, far]
    assert ground_of(["earth"] * 5, given, ["a", "b", "", "", ""]).ties.tolist() == [
        "place a", "place b", "place a", "place a", "place b",
    ]  # fmt: skip
    assert ground_of(["earth"] * 5, given, ["", "b", "", "", ""]).ties.tolist() == ["", "place b", "", "", "place b"]


def test_a_named_place_keeps_its_ground_in_windows(tmp_path):
    uris = [scene(tmp_path / f"{name}.tif", 40, 500_000 + 9000 * (number // 2)) for number, name in enumerate("abcd")]
    both = [(3, 3, "field"), (20, 20, "lake")]
    one = [polygons(uri, both).items[0] for uri in uris]
    items = tuple(replace(item, place=place) for item, place in zip(one, ("north", None, "south", None), strict=True))
    parts = Windows(Labels("mask", ("field", "lake"), items), RGB, 40, Split(val=False)).parts
    assert {tuple(sorted(cut.item for cut in parts[part])) for part in ("train", "test")} == {(0, 1), (2, 3)}


def test_windows_over_the_date_line_share_ground_with_each_other_alone():
    over = shapely.MultiPolygon([shapely.box(179.999, 0, 180, 0.002), shapely.box(-180, 0, -179.999, 0.002)])
    shapes = [
        over,
        over,
        shapely.box(-179.999, 0, -179.997, 0.002),
        *(shapely.box(x, 0, x + 0.002, 0.002) for x in (9, 99)),
    ]
    told = np.array(["test", "", "", "", ""])
    parts, _ = divide(ground_of(["earth"] * 5, shapes), np.ones((5, 1), int), told, Split(val=False), ["a"])
    assert parts.tolist() == ["test", "near", "train", "train", "train"]
    told[:2], told[2:] = ["", ""], ["", "val", "test"]
    assert divide(ground_of(["earth"] * 5, shapes), np.ones((5, 1), int), told, Split(), ["a"])[0].tolist() == [
        "train", "train", "train", "val", "test",
    ]  # fmt: skip


def test_two_dates_of_a_place_and_copies_of_an_image_stay_together(tmp_path):
    first = scene(tmp_path / "a" / "first.tif")
    second = scene(tmp_path / "a" / "second.tif")
    one = scattered(first)
    labels = Labels(
        "mask",
        one.classes,
        (one.items[0], Item(second, 160, 160, shapes=one.items[0].shapes, labels=one.items[0].labels)),
    )
    windows = Windows(labels, RGB, 20)
    places = {part: {cut[1:] for cut in cuts} for part, cuts in windows.parts.items()}
    assert places["test"] and not places["test"] & (places["train"] | places["val"])
    for number in range(12):
        save(tmp_path / "classes" / ("farm", "port")[number % 2] / f"{number}.png", photograph(number, 16))
        shutil.copy(
            tmp_path / "classes" / ("farm", "port")[number % 2] / f"{number}.png",
            tmp_path / "classes" / ("farm", "port")[number % 2] / f"copy{number}.png",
        )
    windows = Windows(open_labels([str(tmp_path / "classes")]), RGB, 16, Split(val=False))
    names = {
        part: {windows.labels.items[cut.item].image.split("/")[-1].replace("copy", "") for cut in cuts}
        for part, cuts in windows.parts.items()
    }
    assert not names["train"] & names["test"] and len(names["train"] | names["test"]) == 12


def test_the_users_test_counts_and_one_of_the_same_ground_is_refused(tmp_path):
    uris = [
        scene(tmp_path / name / "scene.tif", west=west)
        for name, west in (("one", 500_000), ("two", 520_000), ("same", 500_000))
    ]
    each = [scattered(uri) for uri in uris]
    two = Labels("mask", each[0].classes, (each[0].items[0], each[1].items[0]))
    windows = Windows(two, RGB, 20, Split(test=(str(tmp_path / "two"),), val=False))
    assert {cut.item for cut in windows.parts["test"]} == {1} and {cut.item for cut in windows.parts["train"]} == {0}
    assert "1 of 2 images are the test, as you say" in windows.notes
    same = Labels("mask", each[0].classes, (each[0].items[0], each[2].items[0]))
    with pytest.raises(InputError, match="no label is left for train: train and test are of one place"):
        Windows(same, RGB, 20, Split(test=(str(tmp_path / "same"),), val=False))
    for test, said in (
        (("three",), r"'three' is none of 2 images, and no folder of some; valid: scene.tif"),
        ((str(tmp_path / "two"), "scen.tif"), r"'scen.tif' is none of 2 images.*; did you mean 'scene.tif'\?"),
        (("scene.tif",), r"'scene.tif' is the name of images of several folders \(.*one.*two.*\): give paths"),
        ((str(tmp_path / "tw"),), "is none of 2 images"),
    ):
        with pytest.raises(InputError, match=said):
            Windows(two, RGB, 20, Split(test=test))
    single = polygons(uris[0], [(3, 3, "field"), (10, 10, "lake")])
    with pytest.raises(InputError, match="all labels lie in one place"):
        Windows(single, RGB, 20)


def test_a_test_may_be_named_by_folder_path_link_or_second_date(tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.png").touch()
        (tmp_path / name / "same.png").touch()
    (tmp_path / "linked").symlink_to(tmp_path / "a")
    (tmp_path / "c" / "away.png").symlink_to(tmp_path / "b" / "b.png")
    monkeypatch.chdir(tmp_path)
    names = ["a/a.png", "./a/same.png", str(tmp_path / "b" / "b.png"), "linked/../b/same.png", "c/away.png"]
    items = [*map(Item, names), Item("d.png", after=str(tmp_path / "c" / "c.png"))]
    for test, at in (
        (["a"], [0, 1]), ([str(tmp_path / "linked")], [0, 1]), (["b/same.png", "a.png"], [0, 3]),
        (["c"], [4, 5]), (["c.png"], [5]), (["b.png"], [2]), (["b"], [2, 3, 4]), ([str(tmp_path)], [*range(6)]),
    ):  # fmt: skip
        assert [place for place, part in enumerate(told_parts(items, test)) if part] == at, test
    split = [Item("a", split="test"), Item("b", split="train"), Item("c")]
    assert told_parts(split, []) == ["test", "", ""] and told_parts(split, ["b"]) == ["", "test", ""]


def test_folds_are_those_that_there_are():
    for given, said in (
        ({"folds": 1}, "folds 1, split.fold 0: expected"),
        ({"fold": 5}, "folds 5, split.fold 5: expected"),
    ):
        with pytest.raises(ConfigError, match=said):
            Split(**given)
    three = ground([(0, 0), (100, 0), (0, 100)])
    counts, told = np.ones((3, 1), int), np.full(3, "", "<U5")
    parts = [divide(three, counts, told, Split(fold=fold, val=False), ["a"])[0].tolist() for fold in range(3)]
    assert sorted(own.index("test") for own in parts) == [0, 1, 2]
    with pytest.raises(ConfigError, match=r"split.fold 3: labels lie in 3 places, so folds are 0 to 2"):
        divide(three, counts, told, Split(fold=3), ["a"])


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_the_first_place_of_a_rare_class_trains_where_fold_0_is_the_test(folds):
    places = [(100 * place, 0) for place in range(folds)]
    counts = np.array([[5, 5], *[[9, 0]] * (folds - 1)])
    parts, said = divide(ground(places), counts, np.full(folds, "", "<U5"), Split(folds=folds), ["bg", "road"])
    assert parts[0] == "train" and sorted({*parts}) == sorted({"train", "test", *(["val"] if folds > 2 else [])})
    assert [one for one in said if "road" in one] == ["test holds no label of road, which too few places have"]


def test_a_class_of_two_places_is_in_train_and_in_test():
    """Fold 0 is given a place of the rarest class that holds much else, and so none of the four of the next one."""
    rows = "0 330 0 0 0,8 0 22 16 0,30 0 38 114 16,0 0 64 0 0,0 40 0 0 0,18 0 0 0 0,10 0 0 0 6,0 0 76 0 0,0 62 28 0 0,"
    rows += "0 26 0 0 0,0 56 0 0 6,120 174 0 0 0,0 0 22 0 4,0 78 0 0 0,26 0 0 0 0,6 0 40 0 0"
    counts = np.array([row.split() for row in rows.split(",")], int)
    places = ground([(100 * place, 0) for place in range(16)])
    parts, said = divide(places, counts, np.full(16, "", "<U5"), Split(val=False), list("abcde"))
    for part in ("train", "test"):
        assert counts[parts == part].any(0).all(), (part, said)


def test_what_lies_beyond_a_small_scene_is_not_valid_and_not_labelled(tmp_path):
    for number in range(12):
        save(tmp_path / "images" / f"{number}.png", photograph(number, (12, 20)))
        Image.fromarray(np.tile(np.arange(20) > 9, (12, 1)).astype(np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "masks").mkdir()
    for file in tmp_path.glob("*.png"):
        file.rename(tmp_path / "masks" / file.name)
    windows = Windows(open_labels([str(tmp_path)]), RGB, 16, turn=False, batch_size=3)
    batch = next(iter(windows.train_dataloader()))
    assert batch["image"].shape == (3, 3, 16, 16) and batch["image"].dtype == torch.float32
    assert not batch["valid"][:, :, 12:].any() and batch["valid"][:, :, :12].all()
    assert (
        (batch["mask"][:, 12:] == -1).all()
        and (batch["mask"][:, :12] >= 0).all()
        and (batch["image"][:, :, 12:] == 0).all()
    )
    first = next(iter(windows.test_dataloader()))
    uri, _, place = first["id"][0].rpartition("#")
    top, left = map(int, place.split(","))
    pixels = np.asarray(Image.open(uri)).transpose(2, 0, 1)[:, top : top + 12, left : left + 16]
    assert np.allclose(first["image"][0][:, :12].numpy(), (pixels - 110.0) / 50, atol=1e-5), (
        "normalised by the contract"
    )


def test_boxes_belong_to_the_window_of_their_middle_and_are_cut_at_its_border(tmp_path):
    for number in range(10):
        save(tmp_path / f"{number}.png", photograph(number, 32))
    rows = [f"{number}.png,{x1},4,{x2},8,ship" for number in range(10) for x1, x2 in ((10, 20), (26, 30))]
    (tmp_path / "boxes.csv").write_text("\n".join(["image,x1,y1,x2,y2,class", *rows]))
    windows = Windows(open_labels([str(tmp_path)]), RGB, 16, turn=False)
    found = {}
    for sample in each(windows.test_dataloader()):
        found[sample["id"].rpartition("#")[2]] = sample["bbox_xyxy"].tolist()
    expected = {"0,0": [[10, 4, 16, 8]], "0,16": [[10, 4, 14, 8]], "16,0": [], "16,16": []}
    assert found == expected and len(windows.parts["test"]) == 8, "of two images"
    assert any(note.startswith("10 of 20 boxes reach beyond their window") for note in windows.notes)
    beside = {(c.top, c.left): windows.sample(c)["beside"].tolist() for c in windows.parts["test"]}
    assert beside == {(0, 0): [], (0, 16): [[0, 4, 4, 8]], (16, 0): [], (16, 16): []}
    batch = next(iter(windows.train_dataloader()))
    assert isinstance(batch["label"], list) and batch["bbox_xyxy"][0].dtype == torch.float32
    empty = sum(not len(sample["label"]) for sample in each(windows.train_dataloader()))
    assert 0 < empty <= len(windows.parts["train"]) / 2
    whole = windows.undivided()  # which a task that is kept is trained on
    empty = sum(not len(sample["label"]) for sample in each(whole.train_dataloader()))
    assert 0 < empty <= len(whole.parts["train"]) / 2
    assert len(whole.parts["train"]) - empty > len(windows.parts["train"]) / 2
    assert not whole.parts["test"]
    assert "obox" in windows_of(windows.labels, "oboxes")


def windows_of(labels, kind):
    return next(iter(Windows(replace(labels, kind=kind), RGB, 16).train_dataloader()))


def test_an_epoch_holds_each_window_once_and_the_next_one_turns_them_anew():
    order = Order([0] * 4 + [1] * 6, 0)
    first = list(order)
    order.set_epoch(1)
    second = list(order)
    assert sorted(first) == [*range(10)] and sorted(second) == [*range(10, 20)]
    assert [one % 10 for one in second] != first and list(order) == second


def test_images_are_shuffled_and_each_is_opened_once_an_epoch(tmp_path, monkeypatch):
    images = np.arange(50).repeat(6).tolist()
    order = Order(images, 0, most=8)
    epochs = []
    for epoch in range(2):
        order.set_epoch(epoch)
        epochs.append([images[one % 300] for one in order])
        groups = [{*epochs[-1][at : at + 48]} for at in range(0, 300, 48)]
        assert [len(one) for one in groups] == [8] * 6 + [2] and len(set().union(*groups)) == 50
        assert epochs[-1][:48] != sorted(epochs[-1][:48]) and len({*epochs[-1][:8]}) > 3
    assert {*epochs[0][:48]} != {*epochs[1][:48]}
    for number in range(30):
        save(tmp_path / f"{number:02}.png", photograph(number, 32))
    rows = [f"{number:02}.png,{x},4,{x + 8},8,ship" for number in range(30) for x in (4, 20)]
    (tmp_path / "boxes.csv").write_text("\n".join(["image,x1,y1,x2,y2,class", *rows]))
    windows = Windows(open_labels([str(tmp_path)]), RGB, 16, Split(val=False), batch_size=4)
    opened, before = [], datamodule.open_for
    monkeypatch.setattr(datamodule, "open_for", lambda *given: opened.append(given[1]) or before(*given))
    datamodule._open.cache_clear()
    assert sum(len(batch["id"]) for batch in windows.train_dataloader()) > 40
    assert len(opened) == len({*opened}) == 24


def test_reading_processes_may_be_spawned(tmp_path):
    windows = Windows(scattered(scene(tmp_path / "scene.tif")), RGB, 20)
    windows.trainer = SimpleNamespace(hook=lambda: None)  # which cannot be pickled
    samples = windows.train_dataloader().dataset
    again = pickle.loads(pickle.dumps(samples))
    assert again.windows.trainer is None and windows.trainer is not None
    assert all(value.equal(again[5][key]) for key, value in samples[5].items() if key != "id")


def test_metres_far_from_the_encoders_are_said_with_both_numbers_and_other_bands_refused(tmp_path):
    sensor = get_sensor("sentinel2", ["B04", "B03", "B02"])
    assert sensor.gsd == 10
    for gsd, far in ((0.5, True), (6.5, True), (7.5, False), (10, False), (14, False), (16, True)):
        labels = scattered(scene(tmp_path / f"{gsd}.tif", gsd=gsd), count=8)
        labels = replace(labels, asked=Asked(bands=("red", "green", "blue")))
        said = Windows(labels, BandContract(sensor, (110.0,) * 3, (50.0,) * 3), 20, Split(folds=2)).notes
        both = f"images have {gsd:.3g} m a pixel, and the encoder is for 10 m, which its sensor has"
        assert any(note.startswith(both) for note in said) == far
    given = labels, BandContract(sensor, (110.0,) * 3, (50.0,) * 3), 20
    for trained, both in (
        ((1.0,), "was trained at 1 m"),
        ((0.3, 1.0), "was trained at 1 m"),
        ((0.3, 20.0), ""),
    ):  # images have 16
        windows = Windows(*given, Split(folds=2), gsds=(10.0,), trained_at=trained)
        said = [one for one in windows.notes if "m a pixel" in one]
        assert len(said) == bool(both) and all(both in one for one in said), "whatever sensor it is used for"
    near = BandContract(get_sensor("sentinel2", [*sensor.names, "B08"]), (500.0,) * 4, (300.0,) * 4)
    with pytest.raises(BandError, match="B08"):
        Windows(labels, near, 20)


class Counts(pl.LightningModule):
    """Remembers which windows it has seen."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.zeros(1)), []

    def training_step(self, batch, _):
        self.seen.append((batch["id"], batch["image"].mean((1, 2, 3)), batch["image"][:, 0, 0, 0]))
        return (self.weight * batch["image"]).mean()

    def validation_step(self, batch, _):
        raise AssertionError("there is no part for validation")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_lightning_trains_without_a_validation_part_and_each_epoch_is_another(tmp_path):
    windows = Windows(scattered(scene(tmp_path / "scene.tif")), RGB, 20, Split(val=False), batch_size=4)
    module = Counts()
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, windows)
    steps = len(module.seen) // 2
    epochs = [[name for names, _, _ in module.seen[at : at + steps] for name in names] for at in (0, steps)]
    assert steps >= 2 and epochs[0] != epochs[1] and len({*epochs[0]}) == len(epochs[0])


def test_windows_shared_out_otherwise_are_those_cut_anew(tmp_path, monkeypatch):
    labels = scattered(scene(tmp_path / "scene.tif"))
    first, other = (Windows(labels, RGB, 20, Split(folds=3, fold=fold)) for fold in (0, 1))
    before = {part: [*cuts] for part, cuts in first.parts.items()}
    monkeypatch.setattr(Windows, "_survey", None)  # nothing is read again
    found = first.shared(Split(folds=3, fold=1))
    assert found.parts == other.parts and found.notes == other.notes and found.parts != before == first.parts


def test_boxes_that_all_have_no_area_are_refused_with_that(tmp_path):
    for number in range(12):
        save(tmp_path / "images" / f"{number:02}.png", photograph(number, 20))
    rows = [f"{number:02}.png,4,4,4,18,ship" for number in range(12)]
    (tmp_path / "boxes.csv").write_text("\n".join(["image,x1,y1,x2,y2,class", *rows]))
    labels = open_labels([str(tmp_path / "images")], str(tmp_path / "boxes.csv"))
    with pytest.raises(InputError, match=r"no box is left in 12 images: .*12 boxes of no area are left out"):
        Windows(labels, RGB, 20)
