import re

import pytest

from geomim.corpus.synthetic import write_scenes
from geomim.demo.run import demo, group_by_sensor
from geomim.errors import InputError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A demo on three small scenes with labels, after a handful of steps."""
    root = tmp_path_factory.mktemp("demo")
    drawn = write_scenes(root / "given", scenes=3, size=512, seed=3)  # in one of them alone is water
    out = root / "out"
    page = demo(scenes=[str(drawn.scenes[0].parent)], labels=str(drawn.labels[0].parent), out=str(out), steps=4)
    return page, out, drawn


def test_every_room_left_its_result_and_every_picture_is_there(made):
    page, out, _ = made
    group = out / "sentinel2"
    for left in (
        "corpus/catalogue.parquet",
        "run/checkpoints/last.ckpt",
        "run/metrics.csv",
        "evaluation/evaluation.json",
        "evaluation/linear.safetensors",
        "encoder/model.safetensors",
    ):
        assert (group / left).is_file(), left
    assert list((group / "maps").glob("*_land_cover.tif"))
    pictures = re.findall(r'src="([^"]+)"', page.read_text())
    assert len(pictures) >= 6 and all((page.parent / picture).is_file() for picture in pictures)


def test_the_page_is_honest(made):
    text = made[0].read_text()
    for word in ("random initialisation", "pixel statistics", "efficient", "labelled map pixels have the right class"):
        assert word in text
    assert "majority class" in text and "balanced" in text
    # after four steps the encoder cannot stand above all floors with every probe, and the page must say so
    assert "falls below" in text or "no difference is shown" in text
    assert "Only held-out scenes show water: those tiles are left out." in text
    notes = (made[1] / "sentinel2" / "evaluation" / "evaluation.json").read_text()
    assert "test images is among" in notes and "tiles of corpus that the encoder trained on" in notes


def test_started_again_it_reuses_what_is_there(made):
    page, out, drawn = made
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/run/checkpoints/last.ckpt")}
    again = demo(scenes=[str(drawn.scenes[0].parent)], labels=str(drawn.labels[0].parent), out=str(out), steps=4)
    assert again == page
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_scenes_are_grouped_by_what_took_them(data_dir):
    paths = [str(path) for name in ("naip", "landsat7") for path in sorted((data_dir / name).iterdir())]
    paths += [str(path) for path in (data_dir / "sen1floods11").glob("*S2*")]
    groups = group_by_sensor(paths, ["naip=naip", "landsat7=landsat7", "sentinel2=S2Hand"], None)
    assert [(group.name, len(group.scenes)) for group in groups] == [("naip", 2), ("landsat7", 2), ("sentinel2", 1)]
    unsaid = group_by_sensor(paths, ["landsat7=landsat7", "sentinel2=S2Hand"], None)
    assert len(unsaid[0].skipped) == 2 and "--sensor" in unsaid[0].skipped[0]
    with pytest.raises(InputError, match="no scene can be used"):
        group_by_sensor(paths[:2], [], None)
