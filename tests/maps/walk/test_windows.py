import tracemalloc
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from geomim.errors import InputError
from geomim.maps.walk import windows
from geomim.maps.walk.windows import Walk, ahead, blend, read_window


class Ground:
    """A scene that is made up where it is read, and knows the most that was asked of it at once."""

    uri = "ground.tif"

    def __init__(self, height, width, nodata=None):
        self.height, self.width, self.nodata, self.largest = height, width, nodata, 0

    def read_valid(self, window):
        rows = np.arange(window.row_off, window.row_off + window.height)[:, None]
        columns = np.arange(window.col_off, window.col_off + window.width)[None]
        assert rows.min() >= 0 and columns.min() >= 0 and rows.max() < self.height and columns.max() < self.width
        self.largest = max(self.largest, window.height * window.width)
        numbers = np.stack([(rows * 7 + columns * 3) % 251, (rows * 2 + columns * 5) % 241]).astype(np.uint8)
        valid = np.ones(numbers.shape[1:], bool)
        return numbers, valid if self.nodata is None else valid & ~self.nodata(rows, columns)


def means(cell):
    """Mean of each cell: a model without context."""

    def look(numbers, valid):
        return F.avg_pool2d(numbers.float(), cell), F.avg_pool2d(valid[:, None].float(), cell)[:, 0] >= 0.5

    return look


def whole(scene, cell):
    """The same in one pass over the whole scene."""
    rows, columns = -(-scene.height // cell), -(-scene.width // cell)
    numbers, valid = scene.read_valid(SimpleNamespace(row_off=0, col_off=0, height=scene.height, width=scene.width))
    around = ((0, rows * cell - scene.height), (0, columns * cell - scene.width))
    values, seen = means(cell)(
        torch.from_numpy(np.pad(numbers, ((0, 0), *around), mode="edge"))[None],
        torch.from_numpy(np.pad(valid, around))[None],
    )
    return np.where(seen, values[0], np.nan)


def drawn(scene, walk, batch=3):
    strips = list(blend(scene, walk, means(walk.cell), 2, batch))
    assert [top for top, _ in strips] == np.cumsum([0, *(strip.shape[1] for _, strip in strips)])[:-1].tolist()
    return np.concatenate([strip for _, strip in strips], 1)


@pytest.mark.parametrize("size", [(70, 101), (32, 32), (33, 130), (3, 5), (100, 4), (64, 64)])
@pytest.mark.parametrize("overlap", [0, 1, 2, 5, 7])
def test_without_context_windows_say_what_one_pass_says(size, overlap):
    scene = Ground(*size, nodata=lambda rows, columns: (rows < 9) & (columns < 21))
    found, expected = drawn(scene, Walk(*size, 4, 8, overlap)), whole(scene, 4)
    assert found.shape == expected.shape == (2, -(-size[0] // 4), -(-size[1] // 4))
    np.testing.assert_allclose(found, expected, rtol=1e-5, equal_nan=True)


def test_one_window_is_looked_at_once_and_the_last_ones_end_with_the_scene():
    assert Walk(32, 32, 4, 8, 2).places == Walk(17, 30, 4, 8, 2).places == [(0, 0)]
    walk = Walk(70, 101, 4, 8, 2)
    assert walk.rows == [0, 6, 10] and walk.columns == [0, 6, 12, 18]
    assert walk.rows[-1] + 8 == walk.shape[0] and walk.columns[-1] + 8 == walk.shape[1]


def test_windows_cross_over_as_a_cosine_and_each_cell_counts_in_full():
    walk = Walk(32, 80, 4, 8, 4)  # columns 0, 4, 8, 12
    weight = np.zeros(walk.shape[1])
    for left in walk.columns:
        weight[left : left + 8] += walk.taper[4]
    np.testing.assert_allclose(weight[4:-4], np.sqrt(walk.taper[4, 4]), rtol=1e-6)  # of the row alone
    numbers = iter(range(99))

    def look(one, _):
        return torch.full((1, 1, 8, 8), float(next(numbers))), torch.ones(1, 8, 8, dtype=torch.bool)

    rise = np.sin(np.pi / 2 * np.array([0.125, 0.375, 0.625, 0.875])) ** 2
    expected = [0, *rise, 1 + rise[0]]
    (values,) = (strip for _, strip in blend(Ground(32, 80), walk, look, 1, 1))
    np.testing.assert_allclose(values[0, 4, 3:9], expected, atol=1e-6)


def test_what_lies_outside_repeats_the_border_and_is_not_valid():
    numbers, valid = read_window(Ground(10, 10), 4, -2, 8)
    assert (numbers[:, :, 0] == numbers[:, :, 2]).all() and (numbers[:, 7] == numbers[:, 5]).all()
    assert valid[:6, 2:].all() and not valid[:, :2].any() and not valid[6:].any()


def test_memory_is_that_of_one_row_of_windows_however_long_the_scene_is():
    peaks = []
    for height in (2048, 16384):
        scene = Ground(height, 512)
        tracemalloc.start()
        for _ in blend(scene, Walk(height, 512, 8, 16, 4), means(8), 2, 2):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert scene.largest <= 128 * 224  # two windows, which share a quarter of their columns
    assert peaks[1] < peaks[0] + 2**19 < 2 * 512 * 2048  # the scene is eight times as long; threads differ


@pytest.mark.parametrize("overlap", [0, 3, 4, 7])
def test_a_walk_that_goes_on_at_a_row_says_the_same_bit_for_bit(overlap):
    scene, walk = Ground(101, 70, nodata=lambda rows, columns: rows + columns < 50), Walk(101, 70, 4, 8, overlap)
    strips = list(blend(scene, walk, means(4), 2))
    for start in range(len(walk.rows)):
        for (top, found), (first, expected) in zip(
            blend(scene, walk, means(4), 2, start=start), strips[start:], strict=True
        ):
            assert top == first and found.tobytes() == expected.tobytes()


def test_windows_without_image_or_that_nobody_wants_are_not_looked_at():
    scene, looked = Ground(64, 64, nodata=lambda rows, columns: (rows < 32) | (columns < 0)), []

    def look(numbers, valid):
        looked.extend(numbers[:, 0, 0, 0].tolist())
        return means(4)(numbers, valid)

    values = np.concatenate([one for _, one in blend(scene, Walk(64, 64, 4, 8, 0), look, 2)], 1)
    assert np.isnan(values[:, :8]).all() and np.isfinite(values[:, 8:]).all() and len(looked) == 2
    looked.clear()
    wanted = list(blend(scene, Walk(64, 64, 4, 8, 0), look, 2, wanted=lambda top, left: left == 32))
    assert len(looked) == 1 and np.isnan(wanted[1][1][:, :, :8]).all() and np.isfinite(wanted[1][1][:, :, 8:]).all()


@pytest.mark.parametrize("batch", [1, 3, 16])
@pytest.mark.parametrize("start", [0, 1])
def test_the_bar_comes_to_its_end_where_windows_are_not_wanted(monkeypatch, batch, start):
    bar = {}

    class Bar(nullcontext):
        def __enter__(self):
            return self

        def add_task(self, _, total, completed):
            bar.update(total=total, done=completed)

        def advance(self, _, count):
            bar["done"] += count

    monkeypatch.setattr(windows, "Progress", lambda **_: Bar())
    walk = Walk(96, 160, 4, 8, 0)
    wants = {"all": None, "some": lambda top, left: left >= 96 and top, "none": lambda top, left: False}
    for wanted in wants.values():
        for _ in blend(Ground(96, 160), walk, means(4), 2, batch, start, wanted):
            pass
        assert bar == {"total": 15, "done": 15}


def test_answers_that_are_not_finite_are_refused_with_their_place():
    def look(numbers, valid):
        values, seen = means(4)(numbers, valid)
        return torch.where(values > 200, torch.nan, values), seen

    with pytest.raises(InputError, match=r"ground.tif.*answers at row \d+, columns from 0 on are not finite"):
        list(blend(Ground(64, 64), Walk(64, 64, 4, 8, 0), look, 2))


def test_beyond_a_small_scene_the_model_sees_its_border_again():
    seen = []

    def look(numbers, valid):
        seen.append((numbers.clone(), valid.clone()))
        return means(4)(numbers, valid)

    ((_, values),) = blend(Ground(18, 13), Walk(18, 13, 4, 8, 4), look, 2)
    ((numbers, valid),) = seen
    assert (numbers[..., 18:, :] == numbers[..., 17:18, :]).all() and (numbers[..., 13:] == numbers[..., 12:13]).all()
    assert valid.all() and values.shape == (2, 5, 4)
    assert np.isfinite(values[:, :, :3]).all() and np.isnan(values[:, :, 3]).all()  # a pixel of four is inside


def test_reading_ahead_keeps_the_order_its_errors_and_no_more_than_it_may():
    made, taken = [], []

    def make(number):
        made.append(number)
        if number == 7:
            raise OSError("broken")
        return number

    with pytest.raises(OSError, match="broken"):
        for one in ahead(make, range(100), 2):
            taken.append(one)
            assert max(made) <= one + 3
    assert taken == list(range(7))
    assert next(ahead(make, range(20, 30), 2)) == 20  # what is not asked for ends without a word


def test_windows_are_blended_without_a_seam():
    """A model that errs most at the borders of its windows, as transformers do: how far apart are neighbours?"""
    error = torch.linspace(0, 1, 32).sub(0.5).abs().mul(2).pow(4)

    def look(numbers, valid):
        wrong = torch.maximum(error[:, None], error[None]).expand(len(numbers), 1, 32, 32)
        return wrong, torch.ones(len(numbers), 32, 32, dtype=torch.bool)

    def steps(overlap):
        walk = Walk(128, 128, 1, 32, overlap)
        whole = np.concatenate([one for _, one in blend(Ground(128, 128), walk, look, 1)], 1)[0]
        return np.abs(np.diff(whole[16:-16, 16:-16])).max(), whole[16:-16, 16:-16].max()

    assert steps(0) == (pytest.approx(0.235, abs=0.01), 1)  # at a seam an error of 1 beside the next window's
    step, worst = steps(16)
    assert step < 0.12 and worst < 0.35
