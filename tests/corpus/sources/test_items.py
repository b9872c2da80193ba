"""Sources become items: plain files, and files under a root as a card lays them out."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from miniatures import picture, pixels, raster

from geomim.corpus.sources.cards import load_card
from geomim.corpus.sources.items import Item, list_items, open_item, split_source
from geomim.errors import BandError, InputError

CARD = """kind: source
name: mine
title: Mine
task: [imagery]
sensor: SENSOR
bands: BANDS
gsd: 0.5
licence: CC-BY-4.0
non_commercial: false
attribution: me
homepage: https://example.org
splits: {train: 2, test: 1}
held_out: [test]
open:
  OPEN
opened: unopened
"""


def card(folder: Path, opening: str, sensor: str = "rgb", bands: str = "[red, green, blue]") -> Path:
    path = folder / "mine.yaml"
    path.write_text(CARD.replace("OPEN", opening).replace("SENSOR", sensor).replace("BANDS", bands))
    return path


def test_plain_files_are_items_of_which_nothing_is_known(tmp_path: Path) -> None:
    for name in ("b.png", "a.png"):
        picture(tmp_path / name, 1)
    assert list_items(str(tmp_path)) == [Item(str(tmp_path / "a.png")), Item(str(tmp_path / "b.png"))]
    assert list_items("https://example.org/a.tif") == [Item("https://example.org/a.tif")]
    with pytest.raises(InputError, match="does not exist"):
        list_items(str(tmp_path / "missing"))


def test_an_at_sign_in_a_path_names_no_card(tmp_path: Path) -> None:
    picture(tmp_path / "me@home" / "a.png", 1)
    assert [Path(item.uri).name for item in list_items(str(tmp_path / "me@home"))] == ["a.png"]
    assert list_items(f"{tmp_path}/me@home/*.png") == list_items(str(tmp_path / "me@home"))
    assert split_source("https://user@example.org/a.tif") is None
    assert split_source("s3://bucket/a@b") is None


def test_sources_are_taken_apart(tmp_path: Path) -> None:
    named = split_source("loveda@/data/loveda")
    assert (named.card.name, named.root, named.splits) == ("loveda", "/data/loveda", None)
    assert split_source("loveda@/data/loveda:train+val").splits == ("train", "val")
    assert split_source("visdrone@/data/v:test-dev").splits == ("test-dev",)
    (tmp_path / "odd:name").mkdir()
    assert split_source(f"loveda@{tmp_path}/odd:name").splits is None  # a folder of that name
    with pytest.raises(InputError, match="names no folder: give loveda@ROOT"):
        split_source("loveda@")
    with pytest.raises(InputError, match="no source card 'lovda'; did you mean 'loveda'"):
        split_source("lovda@/data")
    with pytest.raises(InputError, match="cannot be opened by its card"):
        list_items("geobench@/data")


def test_folders_by_split_with_classes(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("lake", "river"):
            picture(tmp_path / split / name / "1.png", 1)
    mine = card(tmp_path, "folder: {images: {train: 'train/*/*.png', test: 'test/**/*.png'}, label: folder}")
    items = list_items(f"{mine}@{tmp_path}")
    assert [(item.split, item.label, item.held_out) for item in items] == [
        ("train", "lake", False),
        ("train", "river", False),
        ("test", "lake", True),
        ("test", "river", True),
    ]
    assert {(one.licence, one.attribution, one.dataset, one.non_commercial) for one in items} == {
        ("CC-BY-4.0", "me", "mine", False)
    }
    assert [item.split for item in list_items(f"{mine}@{tmp_path}:test")] == ["test", "test"]
    with open_item(items[0]) as scene:
        np.testing.assert_array_equal(scene.read(), pixels(1))
    for file in (tmp_path / "test").rglob("*.png"):
        file.unlink()
    with pytest.raises(InputError, match=r"holds no test/\*\*/\*.png; expected Mine as published"):
        list_items(f"{mine}@{tmp_path}")
    with pytest.raises(InputError, match="is no folder; expected Mine"):
        list_items(f"{mine}@{tmp_path}/missing")


def test_captions_and_splits_in_the_publishers_json(tmp_path: Path) -> None:
    table = {
        "images": [
            {"filename": f"{number}.jpg", "split": split, "sentences": [{"raw": f"a lake {number}."}, {"raw": "water"}]}
            for number, split in enumerate(("train", "test"))
        ]
    }
    (tmp_path / "dataset_rsicd.json").write_text(json.dumps(table))
    for number in range(3):
        picture(tmp_path / "RSICD_images" / f"{number}.jpg", number)
    items = list_items(f"rsicd@{tmp_path}")
    assert [(item.split, item.captions, item.held_out) for item in items] == [
        ("train", ("a lake 0.", "water"), False),
        ("test", ("a lake 1.", "water"), True),
        (None, (), False),
    ]
    assert [Path(item.uri).name for item in list_items(f"rsicd@{tmp_path}:test")] == ["1.jpg"]
    (tmp_path / "dataset_rsicd.json").write_text("{}")
    with pytest.raises(InputError, match=r"dataset_rsicd.json' cannot be read as captions.*KeyError"):
        list_items(f"rsicd@{tmp_path}")


def test_the_card_names_the_bands_of_its_files(tmp_path: Path) -> None:
    raster(tmp_path / "a.tif", pixels(1, bands=2))
    bands = "[{name: red, wavelength: 660}, {name: edge, wavelength: 710}]"
    item = list_items(f"{card(tmp_path, 'geotiff: {images: a.tif}', 'drone', bands)}@{tmp_path}")[0]
    with open_item(item) as scene:
        assert (scene.sensor.name, scene.sensor.names, scene.sensor.bands[1].wavelength) == (
            "drone",
            ("red", "edge"),
            710,
        )
    with open_item(item, bands=["one", "two"]) as scene:
        assert scene.sensor.names == ("one", "two")
    raster(tmp_path / "a.tif", pixels(1, bands=3))
    with pytest.raises(BandError, match="has 3 bands"):
        open_item(item)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def test_images_in_tar_archives_are_read_in_place(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 1)
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").unlink()
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        for name in ("x/2", "x/1"):
            _add(tar, f"{name}.png", content)
            _add(tar, f"{name}.cls", name[-1:].encode())
            _add(tar, f"{name}.txt", b"a lake.\na big lake.\n")
    mine = card(tmp_path, "webdataset: {images: {train: 'train-*.tar'}}")
    items = list_items(f"{mine}@{tmp_path}")
    assert [(item.label, item.captions, item.split) for item in items] == [
        ("1", ("a lake.", "a big lake."), "train"),
        ("2", ("a lake.", "a big lake."), "train"),
    ]
    with open_item(items[0]) as scene:
        np.testing.assert_array_equal(scene.read(), pixels(1))
    with tarfile.open(tmp_path / "train-1.tar", "w") as tar:
        _add(tar, "../1.png", content)
    with pytest.raises(InputError, match="leads out of it"):
        list_items(f"{mine}@{tmp_path}")
    (tmp_path / "train-1.tar").write_bytes(b"no archive")
    with pytest.raises(InputError, match="cannot be read as a tar archive"):
        list_items(f"{mine}@{tmp_path}")


def test_images_of_equal_names_in_two_sources_stay_apart(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        picture(tmp_path / folder / "RSICD_images" / "1.jpg", 1)
        (tmp_path / folder / "dataset_rsicd.json").write_text('{"images": []}')
    items = list_items(f"rsicd@{tmp_path}/one") + list_items(f"rsicd@{tmp_path}/two")
    assert len({item.uri for item in items}) == 2
    assert load_card(items[0].card).name == "rsicd"
