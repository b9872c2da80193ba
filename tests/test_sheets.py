"""Sheets of pictures: where each stands, its words below it, and the file whole or not at all."""

import numpy as np
import pytest
from PIL import Image

from geomim.sheets import contact_sheet, is_sheet

RED, GREEN = (np.full((4, 4, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 255, 0)))


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def columns_of(sheet, colour):
    """Number of rows and columns of pictures of one colour."""
    at = (sheet == colour).all(2)
    starts = [np.diff(np.r_[False, at.any(axis)].astype(int)) == 1 for axis in (1, 0)]
    return tuple(int(one.sum()) for one in starts)


def test_pictures_stand_in_rows_and_those_of_an_item_in_one(tmp_path):
    contact_sheet(tmp_path / "a.png", [("reds", [(RED, "")] * 7), ("greens", [(GREEN, "")])])
    sheet = read(tmp_path / "a.png")
    assert columns_of(sheet, (255, 0, 0)) == (2, 6) and columns_of(sheet, (0, 255, 0)) == (1, 1)
    greens = np.flatnonzero((sheet == (0, 255, 0)).all(2).any(1))
    assert greens[0] > np.flatnonzero((sheet == (255, 0, 0)).all(2).any(1))[-1]
    for item, across, expected in ((4, 6, (2, 4)), (3, 6, (2, 6)), (8, 6, (1, 8)), (2, 2, (4, 2))):
        contact_sheet(tmp_path / "b.png", [("", [(RED, "")] * 8)], item, across)
        assert columns_of(read(tmp_path / "b.png"), (255, 0, 0)) == expected
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.png", "b.png"]


def test_words_are_below_their_picture_whatever_they_are(tmp_path):
    for number, said in enumerate(("", "1: $x_^$", "\u0436\n\u0436", "a name that is longer than a picture is wide")):
        contact_sheet(tmp_path / f"{number}.png", [("", [(RED, ""), (GREEN, said)])])
    heights = [len(read(tmp_path / f"{number}.png")) for number in range(4)]
    assert heights[0] == heights[1] < heights[2] == heights[3]  # which are two lines each
    sheet = read(tmp_path / "2.png")
    dark = np.argwhere((sheet < 100).all(2))
    assert len(dark) > 20 and dark[:, 1].min() > sheet.shape[1] // 2 and dark[:, 0].min() > 240


@pytest.mark.parametrize("size", [(2, 3), (300, 900), (1000, 5)])
def test_pictures_keep_their_shape_and_floats_are_shares_of_white(tmp_path, size):
    contact_sheet(tmp_path / "a.png", [("", [(np.full((*size, 3), 0.5, np.float32), "")])])
    grey = (read(tmp_path / "a.png") == 128).all(2)
    height, width = grey.any(1).sum(), grey.any(0).sum()
    assert max(height, width) == 240
    assert (height, width) == pytest.approx([max(1, length * 240 / max(size)) for length in size], abs=1)


def test_a_head_is_shortened_to_the_sheet(tmp_path):
    for name, head in (("long", "many words " * 100), ("none", "")):
        contact_sheet(tmp_path / f"{name}.png", [(head, [(RED, "")])])
    long, none = (read(tmp_path / f"{name}.png") for name in ("long", "none"))
    assert long.shape[1] == none.shape[1] and len(long) == len(none) + 26
    assert (long[:, -4:] == 255).all() and (long[:26] < 100).any()


def test_a_sheet_is_known_again_and_no_other_file_is_taken_for_one(tmp_path):
    contact_sheet(tmp_path / "sheet.png", [("", [(RED, "")])])
    Image.fromarray(RED).save(tmp_path / "own.png")
    (tmp_path / "words.png").write_text("no picture")
    names = ("sheet.png", "own.png", "words.png", "none.png")
    assert [is_sheet(tmp_path / name) for name in names] == [True, False, False, False]
