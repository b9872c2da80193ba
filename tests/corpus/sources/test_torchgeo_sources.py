"""Source cards open small copies of the publishers' own layouts through the real torchgeo classes."""

import builtins
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from miniatures import MINIATURES, SIZE, pixels, raster

from geomim.corpus.scenes import open_scene
from geomim.corpus.sources import torchgeo as adapter
from geomim.corpus.sources.cards import cards, load_card
from geomim.corpus.sources.items import Item, list_items, open_item
from geomim.errors import BandError, InputError, MissingExtraError
from geomim.sensors import get_sensor

pytest.importorskip("torchgeo")


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for all miniatures: relative, since torchgeo reads Inria's numbers out of the whole path."""
    before, folder = os.getcwd(), tmp_path_factory.mktemp("sources")
    os.chdir(folder)
    yield folder
    os.chdir(before)


def items_of(name: str) -> list[Item]:
    """Items of a miniature, built once."""
    root = Path(name)
    if not root.exists():
        root.mkdir()
        MINIATURES[name](root)
    return list_items(f"{name}@{name}")


def first(name: str, split: str | None = None) -> Item:
    return next(item for item in items_of(name) if split is None or item.split == split)


def test_every_card_that_says_so_has_a_miniature() -> None:
    assert {card.name for card in cards() if card.opened == "miniature"} == set(MINIATURES)
    assert len(MINIATURES) >= 15


@pytest.mark.parametrize("card", [card for card in cards() if card.way == "torchgeo"], ids=lambda card: card.name)
def test_torchgeo_has_the_class_and_arguments_of_every_card(card) -> None:
    adapter.check_class(card)


@pytest.mark.parametrize("name", MINIATURES)
def test_a_miniature_opens_as_its_card_says(name: str) -> None:
    card, items = load_card(name), items_of(name)
    assert len({item.uri for item in items}) == len(items)
    assert {item.split for item in items} == (set(card.splits) or {None})
    assert {item.split for item in items if item.held_out} == set(card.held_out)
    assert {(item.dataset, item.licence, item.attribution) for item in items} == {
        (name, card.licence, card.attribution)
    }
    kinds = set()
    for split in card.splits or [None]:
        with open_item(first(name, split)) as scene:
            array, valid = scene.read_valid()
            assert array.shape == (len(card.bands), scene.height, scene.width)
            assert array.dtype == card.options.get("dtype", array.dtype)
            assert valid.all()
            assert [band.name for band in scene.sensor.bands] == [band.name for band in card.bands]
            kinds |= _kinds(first(name, split), scene.annotations, scene.height, scene.width)
    named = {kind for kind in card.labels if card.labels[kind] != "unverified"}
    assert kinds == {kind.removeprefix("oriented_") for kind in named} or card.options.get("dates")


def _kinds(item: Item, found, height: int, width: int) -> set[str]:
    """Kinds of labels that a scene carries; what they say lies inside the scene."""
    if found is None:
        return set()
    if found.mask is not None:
        assert found.mask.shape == (height, width)
        assert set(np.unique(found.mask)) - {255} <= set(range(len(found.classes)))
    for box in found.boxes:
        assert len(box.polygon) == 8 and min(box.polygon) >= 0 and max(box.polygon) <= max(height, width)
        assert box.label
    assert item.label in (None, found.label)
    present = (("classes", found.label), ("captions", found.captions), ("boxes", found.boxes))
    return {kind for kind, value in present if value} | ({"masks"} if found.mask is not None else set())


def test_pixels_are_those_that_were_written() -> None:
    with open_item(first("eurosat")) as scene:
        assert scene.sensor.names[-1] == "B8A"  # the order of the files
        np.testing.assert_array_equal(scene.read(), pixels(0, 0, bands=13, high=9000, dtype="uint16"))


def test_bands_are_chosen_by_name_never_by_position() -> None:
    uri = first("eurosat").uri
    whole = open_scene(uri).read()
    order = [band.name for band in load_card("eurosat").bands]
    with open_scene(uri, get_sensor("sentinel2", ["B08", "B8A", "B02"])) as scene:
        np.testing.assert_array_equal(scene.read(), whole[[order.index(name) for name in ("B08", "B8A", "B02")]])
    with open_scene(uri, bands=["B04", "B03", "B02"]) as scene:
        np.testing.assert_array_equal(scene.read(), whole[[order.index(name) for name in ("B04", "B03", "B02")]])
    with pytest.raises(BandError, match="they share no more than the name"):
        open_scene(uri, get_sensor("landsat7"))


def test_two_dates_are_two_scenes_and_the_later_has_the_change() -> None:
    items = [item for item in items_of("oscd") if item.split == "train"]
    assert len(items) == 4
    for place, region in enumerate(("abudhabi", "paris")):  # sorted, whatever the file system says
        earlier, later = (open_scene(item.uri) for item in items[2 * place : 2 * place + 2])
        assert earlier.read()[0, 0, 0] == 1000 + ["paris", "abudhabi"].index(region)
        assert later.read()[0, 0, 0] == 2000 + ["paris", "abudhabi"].index(region)
        assert earlier.annotations.mask is None and earlier.annotations.classes == ()
        np.testing.assert_array_equal(np.unique(later.annotations.mask), [0, 1])
        assert later.annotations.classes == ("no change", "change")


def test_mask_numbers_become_places_and_unnamed_ones_unlabelled() -> None:
    found = open_scene(first("loveda").uri).annotations
    assert found.classes == ("background", "building", "road", "water", "barren", "forest", "agriculture")
    stripes = found.mask[0, [0, SIZE // 4, SIZE // 2, SIZE - 1]]  # 0 no data, 1 background, 4 water, 7 agriculture
    np.testing.assert_array_equal(stripes, [255, 0, 3, 6])


def test_masks_of_a_paired_raster_dataset_come_with_its_files() -> None:
    with open_item(first("l8biome")) as scene:
        assert scene.crs is not None and scene.footprint() is not None
        assert scene.annotations.classes == ("cloud shadow", "clear", "thin cloud", "cloud")
        np.testing.assert_array_equal(np.unique(scene.annotations.mask), [0, 1, 3, 255])
    with open_item(first("chesapeake", "test")) as scene:
        assert scene.footprint() is not None
        np.testing.assert_array_equal(np.unique(scene.annotations.mask), [0, 1, 5, 255])


def test_rasters_without_masks_are_plain_files() -> None:
    items = items_of("naip")
    assert [Path(item.uri).name for item in items] == [
        "m_3807511_ne_18_060_20181104.tif",
        "m_3807511_sw_18_060_20181104.tif",
    ]
    with open_item(items[0]) as scene:
        assert scene.sensor.names == ("red", "green", "blue", "nir") and scene.time.year == 2018


def test_bands_in_files_of_their_own_are_one_product() -> None:
    safe = Path("s2/S2A_MSIL2A_20200101T100000_N0500_R022_T32TQM_20200101T120000.SAFE")
    for band, step in (("B01", 60), ("B02", 10)):
        name = f"T32TQM_20200101T100000_{band}_{step}m.jp2"
        raster(safe / "GRANULE/L2A_T32TQM/IMG_DATA" / f"R{step}m" / name, pixels(1, bands=1), step=step)
    assert [(item.uri, item.sensor) for item in list_items("sentinel2@s2")] == [(str(safe), None)]
    scene = Path("l8/LC08_L2SP_023032_20210622_20210629_02_T1")
    for band in ("B1", "B2"):
        raster(scene / f"{scene.name}_SR_{band}.TIF", pixels(1, bands=1), step=30)
    assert [item.uri for item in list_items("landsat8@l8")] == [str(scene)]


def test_boxes_keep_corners_and_classes() -> None:
    upright = open_scene(first("dior").uri).annotations.boxes
    assert upright[0].polygon == (2, 3, 12, 3, 12, 9, 2, 9)
    assert [box.label for box in upright] == ["ship", "windmill"]
    for name, label in (("dota", "plane"), ("fair1m", "Boeing747")):
        box = open_scene(first(name).uri).annotations.boxes[0]
        assert (box.polygon, box.label) == ((3, 2, 9, 4, 7, 10, 1, 8), label)
    assert open_scene(first("vhr10").uri).annotations.boxes[0].label == "vehicle"  # numbered from 1
    assert [box.label for box in open_scene(first("nasa-marine-debris").uri).annotations.boxes] == ["marine_debris"]
    assert open_scene(first("dota", "val").uri).annotations.boxes == ()


def test_captions_and_multi_label_images() -> None:
    assert open_scene(first("skyscript").uri).annotations.captions == ("a train rivière",)
    assert open_scene(first("bigearthnet", "train").uri).annotations.label == "Pastures"
    assert open_scene(first("bigearthnet", "val").uri).annotations.label is None  # it has two


def test_what_torchgeo_draws_at_random_is_drawn_alike() -> None:
    uri = first("seco").uri
    assert len({int(open_scene(uri).read()[0, 0, 0]) for _ in range(4)}) == 1


def test_a_dataset_is_built_once_a_process() -> None:
    adapter._construct.cache_clear()
    items = items_of("eurosat")
    for item in items:
        open_scene(item.uri)
    assert adapter._construct.cache_info().misses == 3  # one a split


def test_addresses_survive_odd_characters() -> None:
    sample = adapter.Sample("EuroSAT", "a/b c", 7, "/data/x&y?z#é%41", {"bands": ["B04"], "s": "=&"}, "eurosat", 1)
    assert adapter.parse(sample.uri) == sample
    assert adapter.parse(next(sample.uris([3]))).index == 3
    with pytest.raises(InputError, match="no torchgeo sample"):
        open_scene("torchgeo://EuroSAT/train?root=x")


def test_missing_sources_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchgeo.datasets import EuroSAT, utils

    def refuse(*args, **kwargs):
        raise AssertionError("nothing may be downloaded unasked")

    monkeypatch.setattr(utils, "download_url", refuse)
    with pytest.raises(InputError, match=r"finds no EuroSAT .*--download fetches it"):
        list_items(f"eurosat@{tmp_path}")
    with pytest.raises(InputError, match="fetch it by hand"):
        list_items(f"deepglobe-landcover@{tmp_path}")
    asked = []
    monkeypatch.setattr(EuroSAT, "_verify", lambda self: asked.append((self.download, self.checksum)))
    with pytest.raises(InputError):
        list_items(f"eurosat@{tmp_path}", download=True)
    assert asked[0] == (True, True)  # what is fetched is checked


def test_a_missing_split_is_said_and_can_be_left_out() -> None:
    MINIATURES["loveda"](Path("partial"))
    for file in sorted(Path("partial/Val").rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    Path("partial/Val").rmdir()
    with pytest.raises(InputError, match="loveda@partial:train leaves the split 'val' out"):
        list_items("loveda@partial")
    assert {item.split for item in list_items("loveda@partial:train+test")} == {"train", "test"}
    with pytest.raises(InputError, match="has no split 'tain'; did you mean 'train'"):
        list_items("loveda@partial:tain")


def test_broken_samples_and_wrong_cards_end_in_one_sentence(tmp_path: Path) -> None:
    MINIATURES["resisc45"](Path("broken"))
    next(Path("broken").rglob("lake00.jpg")).write_bytes(b"no picture")
    with pytest.raises(InputError, match="cannot be read by torchgeo"):
        open_scene(list_items("resisc45@broken")[1].uri)

    text = Path(load_card("eurosat").file).read_text()
    mine = tmp_path / "mine.yaml"
    mine.write_text(text.replace("name: eurosat", "name: mine").replace("[B01, B02,", "[B02,"))
    items_of("eurosat")
    item = list_items(f"{mine}@eurosat")[0]
    assert item.dataset == "mine" and item.card == str(mine)
    with pytest.raises(BandError, match="has 13 bands; card 'mine' names 12"):
        open_item(item)
    mine.write_text(text.replace("name: eurosat", "name: mine").replace("dataset: EuroSAT", "dataset: EuroSTA"))
    with pytest.raises(InputError, match="no dataset 'EuroSTA'; did you mean 'EuroSAT'"):
        list_items(f"{mine}@eurosat")


def test_numbers_that_are_not_whole_stay_as_they_are(tmp_path: Path) -> None:
    card = load_card("resisc45")
    sample = adapter.Sample("RESISC45", "train", 0, "x", {})
    for values, dtype in (
        (np.full((3, 4, 4), 7, "float32"), "uint8"),
        (np.full((3, 4, 4), 7.5, "float32"), "float32"),
        (np.full((3, 4, 4), 300, "float32"), "float32"),
    ):
        assert adapter._pixels("x", {"image": values}, sample, card).dtype == dtype
    with pytest.raises(InputError, match="gives no image, only mask"):
        adapter._pixels("x", {"mask": 0}, sample, card)
    with pytest.raises(InputError, match="dates: 2"):
        adapter._pixels("x", {"image": np.zeros((2, 3, 4, 4))}, sample, card)


def test_without_torchgeo_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.split(".")[0] == "torchgeo":
            raise ModuleNotFoundError("No module named 'torchgeo'", name="torchgeo")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match=r"geomim\[finetune\]"):
        list_items("eurosat@nowhere-else")


def test_json_arguments_are_part_of_the_address() -> None:
    assert json.dumps({"bands": "s2", "num_classes": 19, "split": "train"}) == json.dumps(
        dict(adapter.parse(first("bigearthnet", "train").uri).args)
    )
