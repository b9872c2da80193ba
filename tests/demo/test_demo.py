import html
import json
import os
import re
import shutil
import subprocess
from functools import partial

import numpy as np
import pytest
from PIL import Image

from geomim.corpus.store import Corpus
from geomim.corpus.synthetic import write_scenes
from geomim.demo import run
from geomim.demo.run import demo, group_by_sensor
from geomim.errors import InputError, MissingExtraError
from geomim.finetune import probing
from geomim.models.weights import read_checkpoint
from geomim.verbs.plot import read_figures


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A demo on three small scenes with labels, after a dozen steps."""
    root = tmp_path_factory.mktemp("demo")
    drawn = write_scenes(root / "given", scenes=3, size=512, seed=3)  # in one of them alone is water
    out = root / "out"
    with pytest.MonkeyPatch.context() as patch:  # what is written and told is as of the larger encoder
        patch.setattr(run, "ENCODER", run.ENCODER | {"width": 48, "depth": 2})
        patch.setattr(run, "METHOD", run.METHOD | {"decoder_width": 48})
        patch.setattr(run, "BATCH", 16)
        patch.setattr(run, "LOOKS", 1)
        patch.setattr(run, "evaluate", partial(run.evaluate, seeds=1))
        patch.setattr(probing, "_TRIED", 400)
        patch.setattr(probing, "_FITTED", 1000)
        yield made_by(drawn, out), out, drawn


def made_by(drawn, out):
    return demo(scenes=[str(drawn.scenes[0].parent)], labels=str(drawn.labels[0].parent), out=str(out), steps=12)


def test_every_room_left_its_result_and_every_picture_is_there(made):
    page, out, _ = made
    group = out / "sentinel2"
    for left in (
        "corpus/catalogue.parquet",
        "selective_rils/checkpoints/last.ckpt",
        "selective_rils/metrics.csv",
        "mae/metrics.csv",
        "scores-selective_rils/evaluation.json",
        "scores-selective_rils/linear.safetensors",
        "land-cover/task.ckpt",
        "land-cover/config.yaml",
        "scores-mae/evaluation.json",
        "encoder/model.safetensors",
    ):
        assert (group / left).is_file(), left
    assert list((group / "maps").glob("*_land_cover.tif")) and list((group / "maps").glob("*_words.tif"))
    pictures = re.findall(r'src="([^"]+)"', page.read_text())
    assert len(pictures) >= 6 and all((page.parent / picture).is_file() for picture in pictures)


def test_the_page_is_honest(made):
    text = made[0].read_text()
    for word in ("random initialisation", "pixel statistics", "linear", "labelled map pixels have the right class"):
        assert word in text
    assert "majority class" in text and "balanced" in text
    fitted = re.search(r"labels of the training scenes, cut into ([\d,]+) windows, for 22 steps of 16", text)
    seen = json.loads((made[1] / "sentinel2" / "land-cover" / "trained.json").read_text())
    table = Corpus.open(made[1] / "sentinel2" / "corpus").table(["source", "split"]).to_pylist()
    held_out = {os.path.realpath(row["source"]) for row in table if row["split"] == "test"}
    assert int(fitted[1].replace(",", "")) == len(seen) > 50 and held_out and not held_out & {one[0] for one in seen}
    said = r"held-out scenes (\d+)% are right, (\d+)% with as much training from random weights and (\d+)% from band"
    shares = re.search(said, text)
    assert shares and all(0 < int(one) <= 100 for one in shares.groups())
    # after a few steps the encoder cannot stand above all floors with every probe, and the page must say so
    assert "falls below" in text or "no difference is shown" in text
    assert "Only held-out scenes show water: those tiles are left out." in text
    notes = (made[1] / "sentinel2" / "scores-selective_rils" / "evaluation.json").read_text()
    assert "test images is among" in notes and "tiles of corpus that the encoder trained on" in notes


def test_the_page_tells_the_work_in_its_order(made):
    page = made[0]
    text = page.read_text()
    heads = re.findall("<h2>(.*?)</h2>", text)
    order = [
        "In short",
        "scenes",
        "Tiles",
        "said",
        "Training",
        "sees",
        "features",
        "map",
        "Words",
        "nearly one",
        "next",
    ]
    assert all(word in head for word, head in zip(order, heads, strict=True))
    assert [html.unescape(name) for name in re.findall(r'<li><a href="#s\d+">(.*?)</a>', text)] == heads
    links = set(re.findall(r'href="([^"#]+)"', text))
    assert "../sentinel2/corpus/report/index.html" in links and all((page.parent / link).is_file() for link in links)
    # what learned from sentences and what did not are told apart in words, whoever is ahead
    assert re.search(r"mae, step [\d,]+, which had the same time and no sentences, has \d+%: ", text)
    assert "average precision" in text


def test_the_second_encoder_has_the_time_of_the_first(made):
    first, second = (made[1] / "sentinel2" / name for name in ("selective_rils", "mae"))
    took = read_figures(first / "metrics.csv", "minutes")["loss"][0][-1]
    settings = read_checkpoint(second / "checkpoints" / "last.ckpt")["geomim"]["settings"]
    assert settings["training.minutes"] == round(float(took), 2)


@pytest.mark.parametrize(("width", "height"), [(1280, 2000), (390, 1600)], ids=["desk", "phone"])
def test_a_browser_shows_the_page_whole(made, tmp_path, width, height):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium is installed")
    size = f"--window-size={width},{height}"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={tmp_path / 'home'}"]
    for number, page in enumerate((made[0], made[1] / "sentinel2" / "corpus" / "report" / "index.html")):
        shot = tmp_path / f"shot-{number}.png"
        command = [browser, *flags, size, f"--screenshot={shot}", page.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        with Image.open(shot) as picture:
            assert picture.size == (width, height)
            pixels = np.asarray(picture.convert("RGB"))
        paper = (pixels == pixels[0, 0]).all(2)
        assert 0.02 < 1 - paper.mean()  # something is there,
        assert paper[:, -6:].mean() > 0.95  # and nothing runs out of the window


def test_started_again_it_reuses_what_is_there(made, monkeypatch):
    _, out, drawn = made
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*/checkpoints/last.ckpt")}
    begun = []
    monkeypatch.setattr(run, "_results", lambda chapter, *_: begun.append([*chapter.runs]))  # of them, made each time
    monkeypatch.setattr(run, "write_page", lambda *_: out / "page")
    monkeypatch.setattr(run, "_farewell", lambda *_: None)
    assert made_by(drawn, out) == out / "page" and begun == [["selective_rils", "mae"]]
    assert len(before) == 2 and before == {path: path.stat().st_mtime_ns for path in before}


def test_scenes_are_grouped_by_what_took_them(data_dir):
    paths = [str(path) for name in ("naip", "landsat7") for path in sorted((data_dir / name).iterdir())]
    paths += [str(path) for path in (data_dir / "sen1floods11").glob("*S2*")]
    groups = group_by_sensor(paths, ["naip=naip", "landsat7=landsat7", "sentinel2=S2Hand"], None)
    assert [(group.name, len(group.scenes)) for group in groups] == [("naip", 2), ("landsat7", 2), ("sentinel2", 1)]
    unsaid = group_by_sensor(paths, ["landsat7=landsat7", "sentinel2=S2Hand"], None)
    assert len(unsaid[0].skipped) == 2 and "--sensor" in unsaid[0].skipped[0]
    with pytest.raises(InputError, match="no scene can be used"):
        group_by_sensor(paths[:2], [], None)


def test_what_sentences_need_is_asked_for_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr("geomim.demo.run.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"maps,finetune,language"):
        demo(out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
