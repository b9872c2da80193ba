"""Trees of folders as publishers have them: an image has its own labels, or none, whatever else is called as it is."""

import json
import os
import re
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from photographs import photograph, save
from rasterio.transform import from_origin

from geomim.corpus.scenes.maps import MADE
from geomim.errors import InputError
from geomim.finetune.labels import open_labels, rasters
from geomim.finetune.labels.check import _counts
from geomim.finetune.labels.rasters import read_mask

SIDE = 40


def image(path: Path) -> Path:
    save(path, photograph(0, (SIDE, SIDE)))
    return path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def yolo(path: Path, size: int) -> None:
    write(path.with_suffix(".txt"), f"0 0.5 0.5 {size / SIDE} {size / SIDE}\n")


def dota(path: Path, size: int) -> None:
    write(path.with_suffix(".txt"), f"0 0 {size} 0 {size} {size} 0 {size} ship 0\n")


def voc(path: Path, size: int) -> None:
    box = f"<xmin>0</xmin><ymin>0</ymin><xmax>{size}</xmax><ymax>{size}</ymax>"
    write(
        path.with_suffix(".XML"),
        f"<annotation><object><name>ship</name><bndbox>{box}</bndbox></object></annotation>",
    )


def mask(path: Path, size: int) -> None:
    values = np.zeros((SIDE, SIDE), np.uint8)
    values[:size, :size] = 1
    save(path.with_suffix(".png"), values)


def coco(path: Path, images: dict[str, int]) -> str:
    """Each image has one box of its size."""
    return str(
        write(
            path,
            json.dumps(
                {
                    "images": [{"id": at, "file_name": name} for at, name in enumerate(images)],
                    "categories": [{"id": 1, "name": "ship"}],
                    "annotations": [
                        {"image_id": at, "category_id": 1, "bbox": [0, 0, size, size]}
                        for at, size in enumerate(images.values())
                    ],
                }
            ),
        )
    )


def sizes(labels) -> dict[str, list[float]]:
    """Sides of the boxes, or of the square of the mask, of each image by its folders."""
    found = {}
    for item in labels.items:
        if item.mask:
            side = [float(np.sqrt((read_mask(labels, item, 0, 0, SIDE) == 1).sum()))]
        else:
            side = np.ptp(item.corners, axis=1)[:, 0].round(6).tolist()
        found[item.image] = side
    return found


LAYOUTS = {
    "train/images and train/labels": ("{}/images/1.png", "{}/labels/1.png"),
    "images/train and labels/train": ("images/{}/1.png", "labels/{}/1.png"),
    "side by side": ("{}/1.jpg", "{}/labels/1.png"),
    "images_png": ("{}/images_png/1.png", "{}/masks_png/1.png"),
    "train_images": ("{}_images/1.png", "{}_labels/1.png"),
    "split below": ("JPEGImages/{}/1.png", "Annotations/{}/1.png"),
    "DOTA": ("{}/images/1.png", "{}/labelTxt-v1.0/labelTxt/1.png"),
    "deeper": ("{}/images/x/1.png", "{}/labelTxt/x/1.png"),
}
PLACES = {"splits": ("train", "test"), "places": ("Train/Urban", "Train/Rural"), "plain": ("north", "south")}


@pytest.mark.parametrize("form", [yolo, dota, voc, mask], ids=lambda form: form.__name__)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("places", PLACES)
def test_images_called_alike_have_the_labels_of_their_own_folders(tmp_path, form, layout, places):
    pictures, labels = (str(tmp_path / one) for one in LAYOUTS[layout])
    if form is mask and "Annotations" not in labels:
        labels = labels.replace("labelTxt", "labels").replace("/labels/", "/masks/")
    one, two = PLACES[places]
    for place, size in ((one, 10), (two, 20)):
        image(Path(pictures.format(place)))
        form(Path(labels.format(place)), size)
    opened = open_labels([str(tmp_path)])
    assert sizes(opened) == {pictures.format(one): [10.0], pictures.format(two): [20.0]}
    assert not opened.refused
    told = {item.image: item.split for item in opened.items}
    assert told[pictures.format(one)] == ("train" if places != "plain" else None)
    assert told[pictures.format(two)] == {"splits": "test", "places": "train", "plain": None}[places]


@pytest.mark.parametrize("form", [yolo, dota, voc, mask], ids=lambda form: form.__name__)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_image_without_labels_does_not_have_those_of_another_folder(tmp_path, form, layout):
    pictures, labels = (str(tmp_path / one) for one in LAYOUTS[layout])
    if form is mask:
        labels = labels.replace("labelTxt", "labels").replace("/labels/", "/masks/")
    for place, name in (("train", "1"), ("train", "2"), ("test", "1"), ("test", "3")):
        image(Path(pictures.format(place).replace("1.", f"{name}.")))
    for name in "123":  # 3 is labelled in train, where there is no such image
        form(Path(labels.format("train").replace("1.png", f"{name}.png")), 10)
    opened = open_labels([str(tmp_path)])
    assert sizes(opened) == {pictures.format("train").replace("1.", f"{name}."): [10.0] for name in "12"}
    assert len(opened.refused) == 3 and all("test" in name for name, _ in opened.refused[:2])


def test_images_in_folders_that_share_one_of_labels_are_taken_where_their_names_are_their_own(tmp_path):
    for name in ("train/1", "test/2", "train/3", "test/3"):
        image(tmp_path / "images" / f"{name}.png")
    for name in "123":
        yolo(tmp_path / "labels" / name, 10)
    opened = open_labels([str(tmp_path)])
    assert [Path(item.image).name for item in opened.items] == ["2.png", "1.png"]
    assert {Path(name).name for name, _ in opened.refused} == {"3.png", "3.txt"}


def test_what_is_asked_for_by_folder_is_read_from_that_folder(tmp_path):
    for place, size in (("train", 10), ("test", 20)):
        image(tmp_path / place / "images" / "1.png")
        yolo(tmp_path / place / "labels" / "1.png", size)
    scenes = [str(tmp_path / place / "images") for place in ("train", "test")]
    both = open_labels(scenes, str(tmp_path))
    assert sizes(both) == {str(tmp_path / "train/images/1.png"): [10.0], str(tmp_path / "test/images/1.png"): [20.0]}
    assert {item.split for item in both.items} == {"train", "test"}, "of what scenes lie in, their folders tell"
    one = open_labels(scenes, str(tmp_path / "train"))
    assert sizes(one) == {str(tmp_path / "train/images/1.png"): [10.0]}
    assert sizes(open_labels(scenes[1:], str(tmp_path))) == {str(tmp_path / "test/images/1.png"): [20.0]}
    elsewhere = tmp_path / "gt" / "v2"
    os.rename(tmp_path / "train" / "labels", elsewhere.parent.mkdir() or elsewhere)
    assert sizes(open_labels(scenes[:1], str(elsewhere))) == {str(tmp_path / "train/images/1.png"): [10.0]}


@pytest.mark.parametrize("there", [True, False])
def test_pairs_of_change_called_alike_in_two_splits(tmp_path, there):
    for place, size in (("train", 10), ("test", 20)):
        for folder in "AB":
            image(tmp_path / place / folder / "1.png")
        if there or place == "train":
            mask(tmp_path / place / "label" / "1.png", size)
        else:
            mask(tmp_path / place / "label" / "2.png", size)
    opened = open_labels([str(tmp_path)])
    expected = {str(tmp_path / "train/A/1.png"): [10.0]} | ({str(tmp_path / "test/A/1.png"): [20.0]} if there else {})
    assert sizes(opened) == expected
    assert all(item.after == item.image.replace("/A/", "/B/") for item in opened.items)
    if there:  # the scenes that are asked for, of a larger folder
        asked = open_labels([str(tmp_path / "test")], str(tmp_path))
        assert sizes(asked) == {str(tmp_path / "test/A/1.png"): [20.0]}


def test_a_map_of_change_that_was_corrected_by_hand_is_a_label(tmp_path):
    for folder in "AB":
        raster(tmp_path / folder / "1.tif", np.full((3, SIDE, SIDE), 7, np.uint8))
    values = np.zeros((1, SIDE, SIDE), np.uint8)
    values[:, :10, :10] = 1
    raster(tmp_path / "label" / "1.tif", values)
    with rasterio.open(tmp_path / "label" / "1.tif", "r+") as opened:
        opened.update_tags(**{MADE: "1"})
    labels = open_labels([str(tmp_path)])
    assert sizes(labels) == {str(tmp_path / "A" / "1.tif"): [10.0]} and not labels.refused


def test_the_tree_that_roboflow_exports(tmp_path):
    for place, size in (("train", 10), ("valid", 15), ("test", 20)):
        image(tmp_path / place / "1.png")
        coco(tmp_path / place / "_annotations.coco.json", {"1.png": size})
    opened = open_labels([str(tmp_path)])
    assert sizes(opened) == {
        str(tmp_path / place / "1.png"): [size] for place, size in (("test", 20), ("train", 10), ("valid", 15))
    }
    told = {Path(item.image).parent.name: item.split for item in opened.items}
    assert told == {"train": "train", "valid": "val", "test": "test"}


@pytest.mark.parametrize(
    "table", ["annotations/instances_{}.json", "annotations/{}/boxes.json", "{}/labels/boxes.json"]
)
def test_tables_name_images_of_their_own_split(tmp_path, table):
    for place, size in (("train", 10), ("val", 20)):
        image(tmp_path / ("{}/images" if "labels" in table else "images/{}2017").format(place) / "1.png")
        coco(tmp_path / table.format(place), {"1.png": size})
    opened = open_labels([str(tmp_path)])
    assert sorted((item.split, *sizes(opened)[item.image]) for item in opened.items) == [("train", 10.0), ("val", 20.0)]


@pytest.mark.parametrize(("one", "two"), [("train", "test"), ("Train/Urban", "Train/Rural")])
def test_a_table_of_another_folder_names_no_image_of_this_one(tmp_path, one, two):
    for name in "12":
        image(tmp_path / one / f"{name}.png")
    image(tmp_path / two / "1.png")
    coco(tmp_path / one / "boxes.json", {"1.png": 10})
    coco(tmp_path / two / "boxes.json", {"1.png": 15, "2.png": 20})
    expected = {str(tmp_path / one / "1.png"): [10.0], str(tmp_path / two / "1.png"): [15.0]}
    assert sizes(open_labels([str(tmp_path)])) == expected
    alone = open_labels([str(tmp_path / one)], str(tmp_path))
    assert sizes(alone) == {str(tmp_path / one / "1.png"): [10.0]}
    assert (str(tmp_path / one / "2.png"), "no row names it") in alone.refused
    elsewhere = open_labels([str(tmp_path / one)], str(tmp_path / two))
    assert len(elsewhere.items) == 2, "what is asked for so is taken so"


def test_tables_that_do_not_tell_which_image_they_name_are_refused(tmp_path):
    for name in ("north/1", "south/1", "south/2"):
        image(tmp_path / "images" / f"{name}.png")
    rows = "image,xmin,ymin,xmax,ymax,class\n1.png,0,0,9,9,ship\n{}2.PNG,0,0,5,5,ship\n"
    opened = open_labels([str(tmp_path)], str(write(tmp_path / "a.csv", rows.format("south\\"))))
    assert sizes(opened) == {str(tmp_path / "images/south/2.png"): [5.0]}
    assert [why for _, why in opened.refused] == [
        f"it is named twice, or shares its name, in '{tmp_path / 'a.csv'}': give one table, with folders in its names"
    ] * 2
    rows = "image,xmin,ymin,xmax,ymax,class\nimages\\north\\1.png,0,0,9,9,ship\nsouth/1.png,0,0,5,5,ship\n"
    opened = open_labels([str(tmp_path)], str(write(tmp_path / "a.csv", rows)))
    assert sizes(opened) == {str(tmp_path / "images/north/1.png"): [9.0], str(tmp_path / "images/south/1.png"): [5.0]}


def test_lists_of_numbered_images_are_no_labels(tmp_path):
    image(tmp_path / "JPEGImages" / "00011.jpg")
    voc(tmp_path / "Annotations" / "00011", 10)
    write(tmp_path / "ImageSets" / "Main" / "train.txt", "\n".join(f"{number:05d}" for number in range(11, 20)))
    assert sizes(open_labels([str(tmp_path)])) == {str(tmp_path / "JPEGImages/00011.jpg"): [10.0]}


@pytest.mark.parametrize(("part", "key", "value"), [("images", "file_name", "1.png"), ("images", "id", 0)])
def test_a_table_of_two_images_called_alike_is_refused(tmp_path, part, key, value):
    image(tmp_path / "1.png")
    file = Path(coco(tmp_path / "boxes.json", {"1.png": 10, "2.png": 20}))
    table = json.loads(file.read_text())
    table[part][1][key] = value
    file.write_text(json.dumps(table))
    with pytest.raises(InputError, match=f"boxes.json' is no.*several {part} have the {key} {value}: give each"):
        open_labels([str(tmp_path)])


def test_an_image_that_two_tables_name_is_refused_with_both(tmp_path):
    for name in "12":
        image(tmp_path / "images" / f"{name}.png")
    coco(tmp_path / "labels" / "instances_all.json", {"1.png": 10, "2.png": 20})
    coco(tmp_path / "labels" / "instances_train.json", {"1.png": 10})
    opened = open_labels([str(tmp_path)])
    assert sizes(opened) == {str(tmp_path / "images/2.png"): [20.0]}
    assert re.search("instances_all.json', '.*instances_train.json': give one table", opened.refused[0][1])
    coco(tmp_path / "labels" / "instances_train.json", {"1.png": 10, "2.png": 20})
    with pytest.raises(InputError, match=r"no image is left .*give one table"):
        open_labels([str(tmp_path)])


@pytest.mark.parametrize("spelling", ["absolute labels", "absolute scenes", "dot", "link"])
def test_masks_are_no_images_however_their_folder_is_spelled(tmp_path, monkeypatch, spelling):
    monkeypatch.chdir(tmp_path)
    for name in "12":
        image(tmp_path / "d" / "images" / f"{name}.png")
        mask(tmp_path / "d" / "labels" / f"{name}.png", 10)
    (tmp_path / "link").symlink_to(tmp_path / "d")
    scenes, labels = {
        "absolute labels": ("d", str(tmp_path / "d" / "labels")),
        "absolute scenes": (str(tmp_path / "d"), "d/labels"),
        "dot": ("./d", "d/labels"),
        "link": ("link", "d/labels"),
    }[spelling]
    opened = open_labels([scenes], labels)
    assert [Path(item.image).parent.name for item in opened.items] == ["images", "images"]
    opened = open_labels([scenes], {"d/labels": "./d"}.get(labels, str(tmp_path / "d")))
    assert [Path(item.image).parent.name for item in opened.items] == ["images", "images"]


def raster(
    path: Path, bands: np.ndarray, nodata: float | None = None, pixel: float = 10, west: float = 500_000, **tags: str
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    place = {"crs": "EPSG:32633", "transform": from_origin(west, 4_000_000, pixel, pixel)}
    kind = {"count": len(bands), "height": SIDE, "width": SIDE, "dtype": bands.dtype, "nodata": nodata}
    with rasterio.open(path, "w", driver="GTiff", **kind, **place) as file:
        file.write(bands)
        file.update_tags(**tags)


def scene(path: Path, pixel: float = 10) -> None:
    raster(path, np.random.default_rng(0).integers(1, 255, (3, SIDE, SIDE), np.uint8), pixel=pixel)


def stripes(*values) -> np.ndarray:
    """`(C, SIDE, SIDE)`, as many columns of each value, a number or a colour."""
    each = np.array([np.atleast_1d(value) for value in values])
    return np.repeat(each, SIDE // len(each), 0).T[:, None].repeat(SIDE, 1)


def columns(labels, at=0) -> list[str | None]:
    found = read_mask(labels, labels.items[at], 0, 0, SIDE)
    assert (found == found[:1]).all()
    return [labels.classes[number] if number >= 0 else None for number in found[0, :: SIDE // 4]]


def test_the_folder_of_an_image_says_its_split_and_its_name_does_not(tmp_path):
    for name in ("area_test", "val/d_isere"):
        scene(tmp_path / "images" / f"{name}.tif")
    lake = geopandas.GeoDataFrame({"class": ["lake"]}, geometry=[shapely.box(5e5, 4e6 - 99, 5e5 + 99, 4e6)], crs=32633)
    lake.to_file(tmp_path / "lakes.gpkg")
    labels = open_labels([str(tmp_path / "images")], str(tmp_path / "lakes.gpkg"))
    assert {Path(item.image).stem: item.split for item in labels.items} == {"area_test": None, "d_isere": "val"}


@pytest.mark.parametrize("nodata", [None, 0, 255])
def test_colours_are_classes_and_only_nodata_in_all_bands_is_not_labelled(tmp_path, nodata):
    scene(tmp_path / "images" / "1.tif")
    colours = stripes((0, 0, 0), (0, 255, 255), (0, 255, 0), (255, 255, 255))
    raster(tmp_path / "masks" / "1.tif", colours.astype(np.uint8), nodata)
    labels = open_labels([str(tmp_path)])
    black, white = None if nodata == 0 else "#000000", None if nodata == 255 else "#ffffff"
    assert columns(labels) == [black, "#00ffff", "#00ff00", white]
    said = [note for note in labels.notes if "nodata" in note]
    assert said == ([] if nodata is None else [f"{SIDE * SIDE // 4} pixels are nodata ({nodata}): not labelled"])
    assert labels.items[0].counts.tolist() == [SIDE * SIDE // 4] * len(labels.classes)


@pytest.mark.parametrize("way", ["inside", "beside", "alpha"])
def test_what_a_mask_or_alpha_hides_is_not_labelled(tmp_path, way):
    scene(tmp_path / "images" / "1.tif")
    path, hidden = tmp_path / "masks" / "1.tif", np.repeat(np.array([255, 0, 255, 255], np.uint8), SIDE // 4)
    hidden = np.tile(hidden, (SIDE, 1))
    if way == "alpha":
        colours = stripes((255, 0, 0), (0, 0, 0), (0, 0, 0), (0, 255, 0)).astype(np.uint8)
        raster(path, np.concatenate([colours, hidden[None]]))  # GeoTIFF takes the fourth band as alpha
        expected = ["#ff0000", None, "#000000", "#00ff00"]
    else:
        raster(path, stripes(1, 0, 0, 2).astype(np.uint8))
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=way == "inside"), rasterio.open(path, "r+") as file:
            file.write_mask(hidden)
        assert path.with_name("1.tif.msk").exists() == (way == "beside")
        expected = ["1", None, "0", "2"]
    labels = open_labels([str(tmp_path)])
    assert columns(labels) == expected and labels.items[0].counts.tolist() == [SIDE * SIDE // 4] * 3
    assert f"{SIDE * SIDE // 4} pixels are masked out or -1 or NaN: not labelled" in labels.notes


def test_three_equal_bands_are_numbers(tmp_path):
    scene(tmp_path / "images" / "1.tif")
    raster(tmp_path / "masks" / "1.tif", stripes(*([n] * 3 for n in (0, 1, 2, 255))).astype(np.uint8))
    assert columns(open_labels([str(tmp_path)])) == ["0", "1", "2", None]
    write(tmp_path / "masks" / "classes.json", json.dumps(["field", "lake"]))
    assert columns(open_labels([str(tmp_path)])) == ["field", "lake", None, None]


def test_nodata_of_grey_masks_is_not_labelled_and_counts_agree(tmp_path):
    scene(tmp_path / "images" / "1.tif")
    grey = np.tile(np.r_[np.arange(20), np.arange(236, 256)].astype(np.uint8), (1, SIDE, 1))
    grey[:, :2] = 200
    raster(tmp_path / "masks" / "1.tif", grey, 200)
    labels = open_labels([str(tmp_path)])
    found = read_mask(labels, labels.items[0], 0, 0, SIDE)
    assert labels.threshold == 128 and (found[:2] == -1).all()
    assert (found[2:] == (np.arange(SIDE) >= 20)).all()
    assert labels.items[0].counts.tolist() == [20 * 38, 20 * 38] == _counts(labels, labels.items[0]).tolist()


def test_classes_that_are_all_nodata_but_one_are_refused_with_the_count(tmp_path):
    scene(tmp_path / "images" / "1.tif")
    raster(tmp_path / "masks" / "1.tif", stripes(0, 1).astype(np.uint8), 0)
    with pytest.raises(InputError, match=rf"number 1; {SIDE * SIDE // 2} pixels are nodata \(0\): not labelled:"):
        open_labels([str(tmp_path)])


def test_each_folder_names_its_classes_and_contradictions_are_refused(tmp_path):
    for place in ("train", "val"):
        scene(tmp_path / place / "images" / "1.tif")
        raster(tmp_path / place / "masks" / "1.tif", stripes(1, 2).astype(np.uint8))
    write(tmp_path / "val" / "masks" / "classes.json", json.dumps({"1": "field", "2": "lake"}))
    assert open_labels([str(tmp_path)]).classes == ("field", "lake")
    write(tmp_path / "train" / "masks" / "classes.json", json.dumps({"2": "field", "1": "lake"}))
    with pytest.raises(InputError, match=r"classes of .*val.*1.tif' are .*give each number one name"):
        open_labels([str(tmp_path)])


def test_tags_of_rasters_are_read_from_each(tmp_path):
    for name, tags in (("1", {"1": "field"}), ("2", {"2": "lake"})):
        scene(tmp_path / "images" / f"{name}.tif")
        raster(tmp_path / "masks" / f"{name}.tif", stripes(1, 2).astype(np.uint8), CLASSES=json.dumps(tags))
    assert open_labels([str(tmp_path)]).classes == ("field", "lake")
    raster(tmp_path / "masks" / "2.tif", stripes(1, 2).astype(np.uint8), CLASSES=json.dumps({"1": "lake"}))
    with pytest.raises(InputError, match="give each number one name"):
        open_labels([str(tmp_path)])


def test_a_mask_of_other_pixels_is_refused_though_it_begins_where_its_image_does(tmp_path):
    for name, pixel in (("1", 10), ("2", 20)):
        scene(tmp_path / "images" / f"{name}.tif")
        raster(tmp_path / "masks" / f"{name}.tif", stripes(0, 1).astype(np.uint8), pixel=pixel)
    labels = open_labels([str(tmp_path)])
    assert [Path(item.image).name for item in labels.items] == ["1.tif"]
    assert labels.refused[0][1] == "its label raster ends at column 80, row 80 of it: bring it to the image's grid"


def test_a_later_image_of_another_place_is_refused(tmp_path):
    for name, west in (("1", 500_000), ("2", 500_400)):
        scene(tmp_path / "A" / f"{name}.tif")
        raster(tmp_path / "B" / f"{name}.tif", photograph(1, 40).transpose(2, 0, 1), west=west)
        mask(tmp_path / "label" / f"{name}.png", 10)
    labels = open_labels([str(tmp_path)])
    assert [Path(item.image).name for item in labels.items] == ["1.tif"]
    assert "its later image lies at column 40, row 0 of it" in labels.refused[0][1]


def test_a_mask_is_counted_in_strips(tmp_path, monkeypatch):
    scene(tmp_path / "images" / "1.tif")
    raster(tmp_path / "masks" / "1.tif", stripes(0, 1, 3, 3).astype(np.uint8))
    whole, read = open_labels([str(tmp_path)]), []
    monkeypatch.setattr(rasters, "_STRIP", 7 * SIDE)
    numbers = rasters._numbers
    monkeypatch.setattr(rasters, "_numbers", lambda *given: read.append(given[1]) or numbers(*given))
    strips = open_labels([str(tmp_path)])
    assert [one.height for one in read] == [7] * 5 + [5] and {one.width for one in read} == {SIDE}, (
        "each pixel once, a strip at a time"
    )
    assert strips.items[0].counts.tolist() == whole.items[0].counts.tolist() == [400, 400, 800]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("data.yaml", "names: {1: car, 0: ship}", "ship"),
        ("data.yaml", "names: [ship, car]", "ship"),
        ("classes.txt", "ship\n\nplane\n", "ship"),
        ("classes.txt", "\nship\n", None),
    ],
)
def test_names_of_yolo_keep_their_numbers(tmp_path, name, text, expected):
    image(tmp_path / "images" / "1.png")
    image(tmp_path / "images" / "2.png")
    yolo(tmp_path / "labels" / "1", 10)
    write(tmp_path / "labels" / "2.txt", f"{2 if 'plane' in text else 1} 0.5 0.5 0.2 0.2\n-1 0.5 0.5 0.1 0.1\n")
    write(tmp_path / "labels" / name, text)
    if expected is None:
        with pytest.raises(InputError, match="class 0 has no name"):
            open_labels([str(tmp_path)])
        return
    labels = open_labels([str(tmp_path)])
    assert [labels.classes[number] for number in labels.items[0].labels] == [expected]
    assert labels.refused == ((str(tmp_path / "labels/2.txt"), "it is no YOLO (line 2: class -1 has no name)"),)


def test_names_of_yolo_are_those_of_their_own_folder(tmp_path):
    for place, names in (("train", "ship\ncar"), ("test", "car\nship")):
        image(tmp_path / place / "images" / "1.png")
        yolo(tmp_path / place / "labels" / "1", 10)
        write(tmp_path / place / "labels" / "classes.txt", names)
    labels = open_labels([str(tmp_path)])
    found = {item.split: labels.classes[item.labels[0]] for item in labels.items}
    assert found == {"train": "ship", "test": "car"} and sorted(labels.classes) == ["car", "ship"]


@pytest.mark.parametrize("form", ["dota", "voc"])
def test_difficult_boxes_are_counted_and_told(tmp_path, form):
    image(tmp_path / "images" / "1.png")
    if form == "dota":
        write(tmp_path / "labels" / "1.txt", "0 0 9 0 9 9 0 9 ship 1\n0 0 5 0 5 5 0 5 ship 0\n0 0 5 0 5 5 0 5 ship\n")
    else:
        voc(tmp_path / "labels" / "1", 9)
        path = tmp_path / "labels" / "1.XML"
        path.write_text(path.read_text().replace("<bndbox>", "<difficult>1</difficult><bndbox>"))
    labels = open_labels([str(tmp_path)])
    assert len(labels.items[0].labels) == (3 if form == "dota" else 1)
    assert [note for note in labels.notes if note.startswith("1 boxes are marked difficult: they count")]
