"""Every format says the same of the same objects; what cannot be used is counted and told."""

import json
from pathlib import Path

import numpy as np
import pytest
from photographs import photograph, save
from PIL import Image

from geomim.errors import InputError
from geomim.finetune.labels import open_labels
from geomim.finetune.labels.check import check
from geomim.finetune.labels.rasters import read_mask

SHIP, CAR = (10.0, 5.0, 30.0, 25.0), (40.0, 30.0, 50.0, 34.0)
HEIGHT, WIDTH = 48, 64


def corners_of(box):
    x1, y1, x2, y2 = box
    return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]


def coco(folder: Path) -> None:
    boxes = [(1, SHIP, 7), (1, CAR, 3)]
    write(
        folder / "instances.json",
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
                "categories": [{"id": 7, "name": "ship"}, {"id": 3, "name": "car"}],
                "annotations": [
                    {"image_id": i, "category_id": c, "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]]}
                    for i, b, c in boxes
                ],
            }
        ),
    )


def csv(folder: Path) -> None:
    rows = [("a.png", *SHIP, "ship"), ("a.png", *CAR, "car"), ("b.png", "", "", "", "", "")]
    write(
        folder / "boxes.csv",
        "\n".join(",".join(map(str, row)) for row in [("image", *"x1 y1 x2 y2 class".split()), *rows]),
    )


def yolo(folder: Path) -> None:
    def line(number, box):
        x1, y1, x2, y2 = box
        return f"{number} {(x1 + x2) / 2 / WIDTH} {(y1 + y2) / 2 / HEIGHT} {(x2 - x1) / WIDTH} {(y2 - y1) / HEIGHT}"

    write(folder / "a.txt", f"{line(1, SHIP)}\n{line(0, CAR)}\n")
    write(folder / "b.txt", "")
    write(folder / "classes.txt", "car\nship\n")


def voc(folder: Path) -> None:
    for name, boxes in (("a", (("ship", SHIP), ("car", CAR))), ("b", ())):
        inner = "".join(
            f"<object><name>{label}</name><bndbox><xmin>{b[0]}</xmin><ymin>{b[1]}</ymin><xmax>{b[2]}</xmax>"
            f"<ymax>{b[3]}</ymax></bndbox></object>"
            for label, b in boxes
        )
        write(folder / f"{name}.xml", f"<annotation>{inner}</annotation>")


def dota(folder: Path) -> None:
    line = "{} {} 0\n"
    points = {
        name: " ".join(f"{n}" for xy in corners_of(box) for n in xy) for name, box in (("ship", SHIP), ("car", CAR))
    }
    write(
        folder / "a.txt", "imagesource:GoogleEarth\ngsd:0.2\n" + "".join(line.format(p, n) for n, p in points.items())
    )


def dior(folder: Path) -> None:
    ends = ("left_top", "right_top", "right_bottom", "left_bottom")
    inner = "".join(
        f"<object><name>{label}</name><robndbox>"
        + "".join(f"<x_{e}>{x}</x_{e}><y_{e}>{y}</y_{e}>" for e, (x, y) in zip(ends, corners_of(box), strict=True))
        + "</robndbox></object>"
        for label, box in (("ship", SHIP), ("car", CAR))
    )
    write(folder / "a.xml", f"<annotation>{inner}</annotation>")


def hrsc(folder: Path) -> None:
    def one(label, box, angle):
        (x1, y1, x2, y2), turned = box, angle != 0
        sides = (y2 - y1, x2 - x1) if turned else (x2 - x1, y2 - y1)
        values = zip(("cx", "cy", "w", "h", "ang"), ((x1 + x2) / 2, (y1 + y2) / 2, *sides, angle), strict=True)
        numbers = "".join(f"<mbox_{key}>{value}</mbox_{key}>" for key, value in values)
        return f"<HRSC_Object><Class_ID>{label}</Class_ID>{numbers}</HRSC_Object>"

    inner = one("ship", SHIP, 0) + one("car", CAR, -np.pi / 2)
    write(folder / "a.xml", f"<HRSC_Image><HRSC_Objects>{inner}</HRSC_Objects></HRSC_Image>")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def images(tmp_path) -> Path:
    for number, name in enumerate("ab"):
        save(tmp_path / "images" / f"{name}.png", photograph(number, (HEIGHT, WIDTH)))
    return tmp_path / "images"


@pytest.mark.parametrize("form", [coco, csv, yolo, voc, dota, dior, hrsc], ids=lambda form: form.__name__)
def test_every_format_says_the_same_of_the_same_boxes(tmp_path, images, form):
    form(tmp_path / "labels")
    labels = open_labels([str(images)], str(tmp_path / "labels"))
    assert labels.kind == ("oboxes" if form in (dota, dior, hrsc) else "boxes")
    assert sorted(labels.classes) == ["car", "ship"]
    first = labels.items[0]
    assert (Path(first.image).name, first.height, first.width) == ("a.png", HEIGHT, WIDTH)
    found = {labels.classes[place]: box for place, box in zip(first.labels, first.corners, strict=True)}
    for name, box in (("ship", SHIP), ("car", CAR)):
        assert np.allclose(found[name].min(0), box[:2]) and np.allclose(found[name].max(0), box[2:])
    # an image whose file is there and empty holds no object; one without a file is left out, and told
    told = form in (coco, csv, yolo, voc)
    assert [len(item.labels) for item in labels.items] == ([2, 0] if told else [2])
    assert [Path(name).name for name, _ in labels.refused] == ([] if told else ["b.png"])


def test_boxes_of_no_area_and_outside_are_counted_and_a_class_without_any_is_named(tmp_path, images):
    rows = [
        "image,xmin,ymin,xmax,ymax,label",
        "a.png,3,3,9,9, ",
        "a.png,3,3,3,9,ship",
        "a.png,100,5,120,9,ship",
        "a.png,50,40,90,60,ship",
    ]
    labels = open_labels([str(images)], str(write(tmp_path / "boxes.csv", "\n".join([*rows, "c.png,1,2,3,4,ship"]))))
    assert labels.items[0].corners.tolist() == [[list(point) for point in corners_of((50, 40, WIDTH, HEIGHT))]]
    for note in (
        "1 boxes of no area",
        "1 boxes have no class, and are left out",
        "1 boxes are left out, as they lie outside",
        "1 boxes are cut off at the border",
    ):
        assert any(one.startswith(note) for one in labels.notes), labels.notes
    assert {Path(name).name for name, _ in labels.refused} == {"b.png", "c.png"} and labels.classes == ("ship",)
    yolo(tmp_path / "labels")
    write(tmp_path / "labels" / "classes.txt", "car\nship\nplane")
    labels = open_labels([str(images)], str(tmp_path / "labels"))
    assert labels.classes == ("car", "ship", "plane") and any("no box is of plane" in note for note in labels.notes)


def sized(form: str, folder: Path, times: tuple[int, int] = (1, 1), said: tuple[int, int] = (WIDTH, HEIGHT)) -> str:
    """A ship on `a.png`, so many times as far right and down, and what its file says of the size of the image."""
    x1, y1, x2, y2 = (side * times[at % 2] for at, side in enumerate(SHIP))
    if form == "coco":
        data = {
            "images": [{"id": 1, "file_name": "a.png", "width": said[0], "height": said[1]}],
            "categories": [{"id": 1, "name": "ship"}],
            "annotations": [{"image_id": 1, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}],
        }
        return str(write(folder / "a.json", json.dumps(data)))
    if form == "csv":
        row = f"a.png,{said[0]},{said[1]},ship,{x1},{y1},{x2},{y2}"
        return str(write(folder / "a.csv", f"filename,width,height,class,xmin,ymin,xmax,ymax\n{row}"))
    box = f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
    size = f"<size><width>{said[0]}</width><height>{said[1]}</height></size>"
    xml = f"<annotation>{size}<object><name>ship</name><bndbox>{box}</bndbox></object></annotation>"
    return str(write(folder / "a.xml", xml).parent)


@pytest.mark.parametrize("form", ["coco", "csv", "voc"])
def test_boxes_of_an_image_of_another_size_are_scaled_or_refused(tmp_path, images, form):
    expected, scaled = [[list(point) for point in corners_of(SHIP)]], "1 boxes are scaled to their image"
    for times, said in (((1, 1), (WIDTH, HEIGHT)), ((1, 1), (0, 0)), ((2, 2), (2 * WIDTH, 2 * HEIGHT))):
        labels = open_labels([str(images)], sized(form, tmp_path / "labels", times, said))
        assert labels.items[0].corners.tolist() == expected
        assert any(note.startswith(scaled) for note in labels.notes) == (times == (2, 2))
    with pytest.raises(InputError, match=r"image of 200 x 100 pixels, and it has 64 x 48: .*correct the size"):
        open_labels([str(images)], sized(form, tmp_path / "labels", said=(200, 100)))


@pytest.mark.parametrize("form", ["coco", "csv", "voc"])
def test_boxes_from_0_to_1_are_shares_of_the_sides(tmp_path, images, form):
    labels = open_labels([str(images)], sized(form, tmp_path / "labels", (1 / WIDTH, 1 / HEIGHT)))
    assert np.allclose(labels.items[0].corners[0], corners_of(SHIP))
    assert any("from 0 to 1, and taken as shares" in note for note in labels.notes)


def test_widths_of_boxes_are_none_of_images(tmp_path, images):
    table = write(tmp_path / "a.csv", "image,xmin,ymin,xmax,ymax,width,height,class\na.png,0,0,20,10,20,10,ship\n")
    assert open_labels([str(images)], str(table)).items[0].corners.max((0, 1)).tolist() == [20, 10]
    write(table, table.read_text() + "a.png,30,20,50,30,20,10,ship\n")
    assert open_labels([str(images)], str(table)).items[0].corners.max((0, 1)).tolist() == [50, 30]


@pytest.mark.parametrize("form", ["coco", "csv"])
def test_a_table_tells_the_split_of_its_images(tmp_path, images, form):
    def labels(*splits):
        table = sized(form, tmp_path / "labels")
        if form == "coco":
            data = json.loads(Path(table).read_text())
            data["images"].append({"id": 2, "file_name": "b.png"})
            for one, split in zip(data["images"], splits, strict=True):
                one["split"] = split
            Path(table).write_text(json.dumps(data))
        else:
            head, row = Path(table).read_text().splitlines()
            rows = [f"{split},{name}{row[1:]}" for name, split in zip("ab", splits, strict=True)]
            Path(table).write_text("\n".join([f"Split,{head}", *rows]))
        return open_labels([str(images)], table)

    assert [item.split for item in labels("Training", "test").items] == ["train", "test"]
    odd = labels("valid", "fold3")
    assert [item.split for item in odd.items] == ["val", None]
    assert any(note.endswith("splits fold3 are not read: expected train, val, test") for note in odd.notes)
    (tmp_path / "all").mkdir()
    images = images.rename(tmp_path / "all" / "train").parent
    torn = labels("train", "test")
    assert [item.split for item in torn.items] == ["train", "test"]
    assert any(note.startswith("1 images are of the split that their table tells") for note in torn.notes)


def test_an_image_of_two_splits_is_refused(tmp_path, images):
    rows = "image,split,xmin,ymin,xmax,ymax\na.png,train,1,2,9,9\na.png,test,1,2,9,9"
    with pytest.raises(InputError, match=r"'a.png' is of train and of test: give it one split"):
        open_labels([str(images)], str(write(tmp_path / "a.csv", rows)))


def test_names_of_dota_may_be_of_several_words(tmp_path, images):
    ends = ["small car 0", "small truck 1", "small truck", "plane 2", "2"]
    write(tmp_path / "labels" / "a.txt", "\n".join(f"0 0 9 0 9 9 0 9 {end}" for end in ends))
    labels = open_labels([str(images)], str(tmp_path / "labels"))
    assert [labels.classes[place] for place in labels.items[0].labels] == [
        "small car", "small truck", "small truck", "plane", "2"]  # fmt: skip
    assert any(note.startswith("2 boxes are marked difficult") for note in labels.notes)


def test_an_annotation_that_is_none_is_refused(tmp_path, images):
    file = write(tmp_path / "a.json", '{"images": [], "categories": [], "annotations": [null]}')
    with pytest.raises(InputError, match="is no COCO file of images, categories, annotations with bbox"):
        open_labels([str(images)], str(file))


def test_a_broken_label_file_costs_its_image_alone(tmp_path, images):
    dota(tmp_path / "labels")
    write(tmp_path / "labels" / "b.txt", "1 2 3 4 5 6 7 8 ship 0\n1 2 3 4 5 6 7 eight ship 0")
    labels = open_labels([str(images)], str(tmp_path / "labels"))
    assert len(labels.items) == 1
    assert [(Path(name).name, reason) for name, reason in labels.refused] == [
        ("b.txt", "it is no DOTA (line 2: could not convert string to float: 'eight')")
    ]


def test_several_formats_no_format_and_names_of_no_image_are_refused(tmp_path, images):
    with pytest.raises(InputError, match="no labels are recognised"):
        open_labels([str(images)])
    csv(tmp_path / "labels")
    voc(tmp_path / "labels")
    with pytest.raises(InputError, match=r"several labels .*Pascal VOC XML: .*CSV: .*give one of these"):
        open_labels([str(images)], str(tmp_path / "labels"))
    with pytest.raises(InputError, match="names none of the 2 sources"):
        open_labels([str(images)], str(write(tmp_path / "other.csv", "image,x1,y1,x2,y2,class\nz.png,1,2,3,4,ship")))
    with pytest.raises(InputError, match=r"line 2: '1, two, 3, 4' are no coordinates"):
        open_labels([str(images)], str(write(tmp_path / "bad.csv", "image,x1,y1,x2,y2,class\na.png,1,two,3,4,ship")))


def masks(folder: Path, numbers: dict[str, np.ndarray]) -> str:
    for name, values in numbers.items():
        save(folder / f"{name}.png", values.astype(np.uint8))
    return str(folder)


def halves(left: int, right: int, shape=(HEIGHT, WIDTH)) -> np.ndarray:
    return np.where(np.arange(shape[1]) < 20, left, right) * np.ones((shape[0], 1), int)


def read(labels, at=0) -> np.ndarray:
    return read_mask(labels, labels.items[at], 0, 0, WIDTH)[:HEIGHT]


@pytest.mark.parametrize("top", [1, 255])
def test_masks_of_two_numbers_are_background_and_foreground(tmp_path, images, top):
    folder = masks(tmp_path / "masks", {"a_mask": halves(0, top), "b_mask": halves(0, 0)})
    labels = open_labels([str(images)], folder)
    assert (labels.kind, labels.classes) == ("mask", ("background", "foreground"))
    assert (read(labels) == halves(0, 1)).all()
    assert labels.notes == (
        f"in masks 0 is 'background' and {top} is 'foreground'",
        "1 of 2 label rasters hold one class alone",
    )


def test_a_label_raster_that_is_drawn_again_is_read_again(tmp_path, images):
    folder = masks(tmp_path / "masks", {"a": halves(0, 1), "b": halves(0, 0)})
    labels = open_labels([str(images)], folder)
    assert (read(labels) == halves(0, 1)).all() and (read(labels) == halves(0, 1)).all()
    masks(tmp_path / "masks", {"a": halves(1, 0)})
    assert (read(labels) == halves(1, 0)).all()


def test_grey_masks_are_cut_at_128_and_that_is_said(tmp_path, images):
    random = np.random.default_rng(0)
    grey = np.where(
        halves(0, 1) > 0, random.integers(235, 256, (HEIGHT, WIDTH)), random.integers(0, 20, (HEIGHT, WIDTH))
    )
    labels = open_labels([str(images)], masks(tmp_path / "masks", {"a": grey}))
    assert (read(labels) == halves(0, 1)).all() and "from 128 on" in labels.notes[0]


def test_numbers_are_classes_255_is_none_and_a_file_names_them(tmp_path, images):
    numbers = halves(3, 9)
    numbers[:4] = 255
    folder = masks(tmp_path / "masks", {"a": numbers})
    labels = open_labels([str(images)], folder)
    assert (
        labels.classes == ("3", "9") and (read(labels)[:4] == -1).all() and (read(labels)[4:] == halves(0, 1)[4:]).all()
    )
    write(tmp_path / "masks" / "classes.json", json.dumps({"9": "water", "3": "forest", "4": "snow"}))
    labels = open_labels([str(images)], folder)
    assert labels.classes == ("forest", "snow", "water") and (read(labels)[4:] == halves(0, 2)[4:]).all()
    assert any("no pixel is of snow" in note for note in labels.notes)
    assert any(f"{4 * WIDTH} pixels of numbers 255, which have no name" in note for note in labels.notes)


def test_masks_of_one_class_of_another_size_or_of_no_classes_are_refused(tmp_path, images):
    with pytest.raises(InputError, match="all 2 label rasters hold one class, number 255: nothing can be told apart"):
        open_labels([str(images)], masks(tmp_path / "one", {"a": halves(255, 255), "b": halves(255, 255)}))
    labels = open_labels([str(images)], masks(tmp_path / "two", {"a": halves(0, 1), "b": halves(0, 1, (10, 64))}))
    assert labels.refused[0][1] == "image and label raster differ in size (48 x 64, 10 x 64 pixels)"
    with pytest.raises(InputError, match=r"different numbers .* name those that are some in a file classes.json"):
        open_labels([str(images)], masks(tmp_path / "pixels", {"a": photograph(3, (HEIGHT, WIDTH))[..., 0]}))


def test_masks_in_a_folder_among_the_scenes_are_found_and_are_no_scenes(tmp_path, images):
    masks(tmp_path / "groundtruth", {"a": halves(0, 255), "b": halves(0, 255)})
    labels = open_labels([str(tmp_path)])
    assert [Path(item.image).parent.name for item in labels.items] == ["images", "images"]


def test_folders_of_classes_and_of_splits(tmp_path):
    for part in ("train", "test"):
        for name in ("farm", "port"):
            for number in range(2):
                save(tmp_path / part / name / f"{number}.png", photograph(number, 8))
    labels = open_labels([str(tmp_path)])
    assert (labels.kind, labels.classes) == ("class", ("farm", "port"))
    assert all(item.split in item.image and labels.classes[item.label] in item.image for item in labels.items)
    assert len(labels.items) == 8


def test_pairs_of_change(tmp_path):
    for name in ("x", "y"):
        for folder in "AB":
            save(tmp_path / folder / f"{name}.png", photograph(1, (HEIGHT, WIDTH)))
    masks(tmp_path / "label", {"x": halves(0, 255), "y": halves(0, 0)})
    labels = open_labels([str(tmp_path)])
    assert (labels.kind, labels.classes) == ("change", ("no change", "change"))
    assert all(item.image.replace("/A/", "/B/") == item.after for item in labels.items)
    assert (read(labels) == halves(0, 1)).all()


def test_check_says_and_draws(tmp_path, images, capsys):
    csv(tmp_path / "labels")
    check([str(images)], str(tmp_path / "labels"), out=str(tmp_path / "seen" / "labels.png"))
    said = capsys.readouterr().out
    assert "labels of kind boxes on 2 images" in " ".join(said.split()) and "ship" in said
    assert min(Image.open(tmp_path / "seen" / "labels.png").size) > 100
