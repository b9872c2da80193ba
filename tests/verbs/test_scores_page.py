import csv
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from geomim.data.labelled import LabelledData, of_pictures
from geomim.evaluate.classes import confusion
from geomim.evaluate.scores import PIXELS, Probed, Scores, majority
from geomim.sensors import SENSORS
from geomim.verbs.scores_page import draw_confusion, thumbnail, write_page

CLASSES = ("sea", "oil & <gas>")


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """100 test images, 95 of one class, of which a probe has 93 right and one of the other five."""
    out = tmp_path_factory.mktemp("page")
    paths = []
    for number in range(100):
        paths.append(out / "pictures" / f"{number}.png")
        paths[-1].parent.mkdir(exist_ok=True)
        Image.new("RGB", (24, 16), (number, 0, 200)).save(paths[-1])
    labels = torch.tensor([0] * 95 + [1] * 5)
    part = of_pictures(paths, labels.tolist())
    images = LabelledData("folder data", CLASSES, SENSORS["rgb"], None, part, part)
    called = labels.clone()
    called[:2], called[96:] = 1, 0
    sure = 0.5 + torch.arange(1, 101) / 202
    shares = torch.stack([torch.where(called == 0, sure, 1 - sure), torch.where(called == 1, sure, 1 - sure)], 1)
    probed = Probed()
    probed.add("mae", "knn", [shares], labels)
    probed.add("mae", "linear", [shares, shares], labels)
    floors = Probed()
    floors.add(PIXELS, "linear", [torch.tensor([[1.0, 0.0]]).expand(100, 2)] * 2, labels)
    protocol = {"checkpoint": "mae.ckpt", "seeds": [0, 1]}
    scores = Scores("folder data", protocol, (*probed.rows, *floors.rows), ("a <note>",), majority(labels, labels))
    write_page(out, scores, probed.shares, images)
    return out, (out / "index.html").read_text()


def test_the_page_is_one_file_that_needs_no_network(made):
    tags = Tags()
    tags.feed(made[1])
    sources = [value for _, attributes in tags.found for name, value in attributes.items() if name in ("src", "href")]
    assert sources and all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    assert "http" not in re.sub(r"base64,[^\"]*", "", made[1]) and "<script" not in made[1] and "@import" not in made[1]
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in tags.found
    assert all(attributes["alt"] for tag, attributes in tags.found if tag == "img")
    assert "oil &amp; &lt;gas&gt;" in made[1] and "a &lt;note&gt;" in made[1]


def test_the_answer_comes_first_and_the_floors_stand_beside(made):
    heads = re.findall("<h2>(.*?)</h2>", made[1])
    assert heads[0] == "In short" and heads[2] == "Scores beside their floors" and heads[-1] == "How"
    first = made[1].split("<h2>")[1]
    assert "With a linear probe mae has 94.0% of the test images right (95 %: 87.5% to 97.2%)" in first
    assert "58.9% in the mean of the classes; the majority class alone would have 95.0%" in first
    assert "no difference is shown between mae and pixel statistics: linear 0.940 and 0.950" in first
    assert "<td>majority class</td><td>accuracy</td><td>0.950" in made[1]


def test_the_worst_images_are_those_whose_class_has_least(made):
    worst, best = (made[1].split(f"<h2>{kind} test images")[1].split("<h2>")[0] for kind in ("Worst", "Best"))
    captions = re.findall("<figcaption>(.*?)</figcaption>", worst)
    assert captions[1] == "sea (99%), is oil &amp; &lt;gas&gt;" and len(captions) == 6
    assert captions[-1] == "oil &amp; &lt;gas&gt; (50%), is sea"
    captions = re.findall("<figcaption>(.*?)</figcaption>", best)
    assert len(captions) == 8 and captions[0] == "oil &amp; &lt;gas&gt; (98%), right"
    assert captions[1] == "sea (97%), right"


def test_tables_for_machines_agree_with_the_scores(made):
    rows = list(csv.DictReader(io.StringIO((made[0] / "classes.csv").read_text())))
    assert [(row["probe"], row["class"]) for row in rows] == [(p, c) for p in ("knn", "linear") for c in CLASSES]
    shares = [[float(row[name]) for name in ("precision", "recall", "f1")] for row in rows[2:]]
    assert shares[0] == pytest.approx([93 / 97, 93 / 95, 186 / 192]) and shares[1] == pytest.approx(
        [1 / 3, 1 / 5, 2 / 8]
    )
    assert [row["support"] for row in rows[2:]] == ["95", "5"]
    counts = list(csv.reader(io.StringIO((made[0] / "confusion.csv").read_text())))
    assert counts[0] == ["probe", "class", "called sea", "called oil & <gas>"]
    assert counts[3:] == [["linear", "sea", "93.0", "2.0"], ["linear", "oil & <gas>", "4.0", "1.0"]]
    assert "oil &amp; &lt;gas&gt; called sea: 4 of 5" in made[1]


def test_many_classes_are_drawn_and_one_that_has_no_image():
    labels = torch.arange(60) % 59
    drawn = draw_confusion(confusion(labels[None], labels, 60).numpy(), [f"class {number}" for number in range(60)])
    assert Image.open(io.BytesIO(drawn)).width > 2000
    most = Image.open(io.BytesIO(draw_confusion(np.eye(1700), [str(number) for number in range(1700)])))
    assert most.width < 5000


def test_bands_are_shown_in_colours_by_name_and_nodata_grey():
    def seen(numbers, sensor, valid=None):
        return np.array(Image.open(io.BytesIO(thumbnail(numbers, valid, sensor))))

    naip = np.stack([np.full((8, 8), value, np.uint8) for value in (10, 20, 30, 250)])
    assert (seen(naip, SENSORS["naip"]) == (10, 20, 30)).all()
    valid = np.ones((8, 8), bool)
    valid[0] = False
    assert (seen(naip, SENSORS["naip"], valid)[0] == 96).all()
    ramp = np.broadcast_to(np.linspace(-20, -5, 64).reshape(1, 8, 8), (1, 8, 8)).astype(np.float32).copy()
    ramp[0, 3, 3] = np.nan
    grey = seen(ramp, SENSORS["sentinel1"])
    assert grey[0, 0].max() == 0 and grey[-1, -1].min() == 255 and (grey[3, 3] == 96).all()
    assert seen(np.zeros((3, 500, 300), np.uint16), SENSORS["rgb"]).shape[0] <= 192
