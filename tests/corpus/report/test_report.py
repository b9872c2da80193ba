import re

import matplotlib
import numpy as np
import pytest

from geomim.corpus.build import build
from geomim.corpus.report.page import html_page
from geomim.corpus.report.pictures import composite, contact_sheet, display_bands, display_limits
from geomim.corpus.report.report import funnel, kind_of, write_report
from geomim.corpus.store import Corpus
from geomim.corpus.synthetic import write_scenes
from geomim.sensors import get_sensor


@pytest.mark.parametrize("value", [0.0, 7.0, 1e4, -3e8])
def test_a_band_of_one_number_has_a_picture(value):
    tile = np.full((3, 8, 8), value)
    assert len(np.unique(composite(tile, get_sensor("rgb")))) == 1
    tile[:, 0, 0] = np.nextafter(value, np.inf)
    assert composite(tile, get_sensor("rgb")).shape == (8, 8, 3)


def test_composite_takes_bands_by_name():
    assert display_bands(get_sensor("sentinel2")) == [3, 2, 1]
    assert display_bands(get_sensor("sentinel2", ["B08", "B03", "B04"])) == [0, 2, 1]
    assert display_bands(get_sensor("sentinel2", ["B11", "B12"])) == [0, 0, 0]
    tile = np.zeros((4, 8, 8), np.uint16)
    tile[0] = np.arange(64).reshape(8, 8)  # red
    shown = composite(tile, get_sensor("naip"), valid=np.arange(64).reshape(8, 8) > 0)
    assert shown.shape == (8, 8, 3) and shown.dtype == np.uint8
    assert shown[..., 0].max() == 255 and shown[0, 1, 0] == 0 and (shown[0, 0] == 96).all()
    assert (composite(np.full((3, 4, 4), np.nan), get_sensor("rgb")) == 96).all()


@pytest.mark.parametrize(("water", "cloud"), [(0.9, 0.0), (0.0, 0.06), (0.5, 0.03)])
def test_land_is_seen_beside_much_water_and_some_cloud(water, cloud):
    rng = np.random.default_rng(0)
    kind = rng.choice(3, (120, 120), p=[water, 1 - water - cloud, cloud])
    numbers = [rng.normal(300, 8, kind.shape), rng.normal(1500, 300, kind.shape), rng.normal(7000, 900, kind.shape)]
    tile = np.choose(kind, numbers)[None].repeat(3, 0)
    for limits in (None, display_limits(tile[None], np.ones((1, *kind.shape), bool))):
        shown = composite(tile, get_sensor("rgb"), limits=limits)
        land = shown[kind == 1].astype(float)
        assert (land > 254).mean() < 0.05 and (land < 1).mean() < 0.05
        assert land.std() > 20  # it is no flat grey, as between water and cloud it would be


def test_a_long_page_has_contents_that_lead_to_its_sections():
    page = html_page("A & B", [("One <1>", "x"), ("Two", "y"), ("Empty", ""), ("Three", "z"), ("Four", "z")])
    links = re.findall(r'<a href="#(.*?)">(.*?)</a>', page)
    assert [name for _, name in links] == ["One &lt;1&gt;", "Two", "Three", "Four"]
    assert all(f'<section id="{target}"><h2>{name}</h2>' in page for target, name in links)
    assert "<nav>" not in html_page("Short", [("One", "x")])


def test_contact_sheet_places_pictures_in_rows():
    pictures = [np.full((4, 5, 3), value, np.uint8) for value in range(5)]
    sheet = contact_sheet(pictures, columns=2, gap=1)
    assert sheet.shape == (14, 11, 3)
    assert sheet[0, 6, 0] == 1 and sheet[13, 0, 0] == 4 and sheet[13, 10, 0] == 255


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    planted = write_scenes(folder, scenes=3, size=256)
    (folder / "scenes" / "<b>broken.tif").write_text("")
    build([str(folder / "scenes")], str(folder / "c"), tile=64, labels="folder", min_valid=0.9, workers=1)
    assert planted.exact
    return Corpus.open(folder / "c")


def test_page_shows_every_dropped_kind_beside_its_keeper(corpus):
    folder = corpus.path / "report"
    page = (folder / "index.html").read_text()
    counts = funnel(corpus)
    assert counts["exact duplicates"] and counts["near duplicates"] and counts["too few valid pixels"]
    assert counts["tiles"] == sum(counts.values()) - counts["tiles"]
    for name, count in counts.items():
        assert f"<td>{name}</td><td class=n>{count:,}</td>" in page
    assert "&lt;b&gt;broken.tif" in page and "<b>broken" not in page
    pictures = re.findall(r'src="([^"]+)"', page)
    assert {"kept.png", "histograms.png", "footprints.png"} < set(pictures)
    assert all((folder / name).is_file() for name in pictures)
    assert "http" not in page  # nothing is fetched from elsewhere
    row = next(row for row in corpus.table().to_pylist() if kind_of(row["reason"]) == "near duplicates")
    pair = matplotlib.image.imread(folder / f"dropped-{row['id']}.png")
    assert pair.shape[:2] == (64, 64 + 4 + 64)
    assert np.corrcoef(pair[:, :64, :3].ravel(), pair[:, 68:, :3].ravel())[0, 1] > 0.9


def test_report_can_be_written_again(corpus):
    page = write_report(corpus.path)
    assert page.is_file() and not (corpus.path / "report.part").exists()
