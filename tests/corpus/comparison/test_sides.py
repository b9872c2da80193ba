"""What a user names as one side: images, cards and corpora, and their splits."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_corpus import write_corpus

from geomim.corpus.comparison.sides import side
from geomim.errors import InputError

CARD = """kind: source
name: mine
title: Mine
task: [imagery]
sensor: rgb
bands: [blue, green, red]
gsd: 0.5
licence: CC-BY-4.0
non_commercial: false
attribution: me
homepage: https://example.org
splits: {train: 1, val: 1, test-dev: 1}
held_out: [test-dev]
open:
  folder:
    images: IMAGES
opened: unopened
"""


def card(folder: Path, images: str) -> str:
    """`CARD@ROOT` of three pictures, one a split."""
    for split in ("train", "val", "test-dev"):
        (folder / "root" / split).mkdir(parents=True)
        Image.fromarray(np.full((16, 16, 3), len(split), np.uint8)).save(folder / "root" / split / "a.png")
    (folder / "mine.yaml").write_text(CARD.replace("IMAGES", images))
    return f"{folder / 'mine.yaml'}@{folder / 'root'}"


SPLIT = "{train: train/*.png, val: val/*.png, test-dev: test-dev/*.png}"


@pytest.mark.parametrize(
    ("behind", "taken"),
    [
        ("", ["test-dev"]),
        (":train+val", ["train", "val"]),
        (":train,val", ["train", "val"]),
        (":test-dev", ["test-dev"]),
        (":train", ["train"]),
    ],
)
def test_splits_of_a_card_that_are_named_count_and_else_the_held_out_ones(tmp_path, behind, taken):
    given = card(tmp_path, SPLIT)
    for name in ("", "called="):
        one = side(f"{name}{given}{behind}", held_out=True)
        assert [item.split for item in one.items] == taken
        assert one.name == (name.rstrip("=") or "mine")
    if behind:
        assert side(f"{given}{behind}").name == f"mine:{'+'.join(taken)}"
    else:
        assert len(side(given).items) == 3


def test_splits_that_a_card_or_its_files_do_not_say_are_refused(tmp_path):
    with pytest.raises(InputError, match="has no split 'trian'; did you mean 'train'"):
        side(f"{card(tmp_path / 'one', SPLIT)}:val+trian", held_out=True)
    with pytest.raises(InputError, match="holds no image of train or val"):
        side(card(tmp_path / "two", '"*/*.png"') + ":train+val", held_out=True)


def test_images_of_a_card_are_opened_with_the_bands_that_it_names(tmp_path):
    one = side(card(tmp_path, SPLIT))
    with one.open(one.items[0]) as scene:
        assert scene.sensor.names == ("blue", "green", "red")
    two = side(card(tmp_path / "other", SPLIT), bands=["red", "green", "blue"])  # what the user says comes first
    with two.open(two.items[0]) as scene:
        assert scene.sensor.names == ("red", "green", "blue")


@pytest.mark.parametrize("mark", ["+", ","])
def test_splits_of_a_corpus_are_named_alike(tmp_path, mark):
    path = write_corpus(tmp_path / "c")
    one = side(f"{path}:train{mark}val", held_out=True)
    assert one.splits == ("train", "val") and one.corpus is not None
