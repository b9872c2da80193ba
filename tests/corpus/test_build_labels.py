"""What scenes bring with them reaches the catalogue: several sizes, sentences, boxes and masks of their own."""

import dataclasses

import numpy as np
import pytest
import rasterio

from geomim.corpus.build import build
from geomim.corpus.pipeline import plan
from geomim.corpus.scenes.annotations import Annotations, Box
from geomim.corpus.scenes.arrays import array_scene
from geomim.corpus.store import Corpus
from geomim.errors import InputError
from geomim.sensors import get_sensor


def texture(seed, size=128):
    return np.kron(
        np.random.default_rng(seed).integers(0, 256, (3, 16, 16), dtype=np.uint8),
        np.ones((size // 16, size // 16), np.uint8),
    )


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Three files that open as scenes in memory; the last has no labels."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    mask = np.zeros((128, 128), np.uint8)
    mask[:, 64:] = 1
    mask[0] = 255
    boxes = (Box((10, 10, 20, 10, 20, 30, 10, 30), "plane"), Box((60, 70, 80, 70, 80, 90, 60, 90)))
    said = Annotations("town", ("a town", "roofs"), boxes, mask, ("land", "water"))
    for number in range(3):
        with rasterio.open(
            folder / f"{number}.png", "w", driver="PNG", count=3, height=8, width=8, dtype="uint8"
        ) as raster:
            raster.write(np.full((3, 8, 8), number, np.uint8))

    def opened(item, *_, **__):
        number = int(item.uri.rpartition("/")[2][0])
        return array_scene(item.uri, texture(number), get_sensor("rgb"), annotations=said if number < 2 else None)

    monkeypatch.setattr(plan, "open_item", opened)
    return folder


def test_labels_follow_their_tiles(pictures, tmp_path):
    corpus = Corpus.open(build([str(pictures)], str(tmp_path / "c"), tile=64, workers=1))
    rows = {(row["source"][-5], row["row"], row["col"]): row for row in corpus.table().to_pylist()}
    assert len(rows) == 12
    first = rows["0", 0, 0]
    assert first["label"] == "town" and first["captions"] == ["a town", "roofs"]
    assert first["boxes"] == [{"polygon": [10, 10, 20, 10, 20, 30, 10, 30], "label": "plane"}]
    assert rows["0", 0, 64]["boxes"] is None
    assert rows["0", 64, 64]["boxes"] == [{"polygon": [-4, 6, 16, 6, 16, 26, -4, 26], "label": None}]
    assert rows["2", 0, 0]["label"] is None and rows["2", 0, 0]["captions"] is None
    assert corpus.classes == ["land", "water"]
    tiles = corpus.tiles()
    masks = dict(zip(tiles.ids.tolist(), tiles.mask(np.arange(len(tiles))), strict=True))
    assert (masks[rows["1", 64, 0]["id"]] == 0).all() and (masks[rows["1", 64, 64]["id"]] == 1).all()
    assert (masks[rows["1", 0, 0]["id"]][0] == 255).all()
    assert (masks[rows["2", 0, 0]["id"]] == 255).all()


def test_several_sizes_use_every_pixel_once(pictures, tmp_path):
    corpus = Corpus.open(build([str(pictures)], str(tmp_path / "c"), tile=[16, 32, 64], seed=4, workers=1))
    assert len(corpus.sizes) > 1 and set(corpus.sizes) <= {16, 32, 64}
    seen = np.zeros((3, 128, 128), int)
    for size in corpus.sizes:
        table = corpus.table().to_pylist()
        image = corpus.array("image", size)
        assert len(image) == len({row["slot"] for row in table if row["size"] == size})
        for row in (row for row in table if row["size"] == size):
            number = int(row["source"][-5])
            part = np.s_[row["row"] : row["row"] + size, row["col"] : row["col"] + size]
            seen[number][part] += 1
            np.testing.assert_array_equal(image.read([row["slot"]])[0], texture(number)[:, *part])
        assert corpus.meta["sizes"][str(size)]["kept"] == len(corpus.tiles(size))
    assert (seen == 1).all()
    with pytest.raises(InputError, match="64"):
        build([str(pictures)], str(tmp_path / "d"), tile=[48, 64], workers=1)


def test_masks_of_different_classes_are_refused(pictures, tmp_path, monkeypatch):
    before = plan.open_item

    def other(item, *given, **options):
        if "1.png" not in item.uri:
            return before(item, *given, **options)
        said = Annotations(mask=np.zeros((128, 128), np.uint8), classes=("forest",))
        return array_scene(item.uri, texture(1), get_sensor("rgb"), annotations=said)

    monkeypatch.setattr(plan, "open_item", other)
    with pytest.raises(InputError, match=r"other classes|different classes"):
        build([str(pictures)], str(tmp_path / "c"), tile=64, workers=1)


def test_exact_copies_with_different_masks_keep_their_own(pictures, tmp_path, monkeypatch):
    def same(item, *_, **__):
        number = int(item.uri.rpartition("/")[2][0])
        mask = np.full((128, 128), min(number, 1), np.uint8)
        said = Annotations(mask=mask, classes=("land", "water"))
        return array_scene(item.uri, texture(0), get_sensor("rgb"), annotations=said)

    monkeypatch.setattr(plan, "open_item", same)
    corpus = Corpus.open(build([str(pictures)], str(tmp_path / "c"), tile=128, workers=1))
    slots = [row["slot"] for row in corpus.table(["slot"]).to_pylist()]
    assert slots == [0, 1, 1]
    mask = corpus.array("mask", 128)
    assert [int(mask.read([slot])[0, 0, 0]) for slot in slots] == [0, 1, 1]


def test_clouds_of_one_scene_are_known_whatever_its_neighbours_know(pictures, tmp_path, monkeypatch):
    class Cloudy:
        """The upper half is clouds."""

        def read(self, window):
            rows = np.arange(window.row_off, window.row_off + window.height)
            return np.broadcast_to((rows < 64)[:, None], (window.height, window.width)).copy()

        def close(self):
            """Nothing is open."""

    def opened(item, *_, **__):
        number = int(item.uri.rpartition("/")[2][0])
        scene = array_scene(item.uri, texture(number), get_sensor("rgb"))
        return dataclasses.replace(scene, masks=Cloudy()) if number == 1 else scene

    monkeypatch.setattr(plan, "open_item", opened)
    out = build([str(pictures)], str(tmp_path / "c"), tile=64, max_cloud=0.2, workers=1)
    rows = Corpus.open(out).table(["source", "row", "cloud_fraction", "kept", "reason"]).to_pylist()
    for row in rows:
        known = {0: 1.0, 64: 0.0}[row["row"]] if "1.png" in row["source"] else None
        assert row["cloud_fraction"] == known
        assert row["kept"] == (known != 1.0)
    assert {row["reason"] for row in rows} == {"", "cloud fraction 1 > 0.2"}
