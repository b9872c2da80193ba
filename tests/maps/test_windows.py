import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from geomim.maps.windows import Walk, blend, read_window


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
        values = F.avg_pool2d(numbers.float(), cell)
        return values.numpy(), (F.avg_pool2d(valid[:, None].float(), cell)[:, 0] >= 0.5).numpy()

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
    strips = list(blend(scene, walk, means(walk.cell), batch))
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


def test_windows_cross_over_linearly_and_each_cell_counts_in_full():
    walk = Walk(32, 80, 4, 8, 4)  # columns 0, 4, 8, 12
    weight = np.zeros(walk.shape[1])
    for left in walk.columns:
        weight[left : left + 8] += walk.taper[4]
    np.testing.assert_allclose(weight[4:-4], walk.taper[4].max() / 0.875, rtol=1e-6)
    numbers = iter(range(99))

    def look(one, _):
        return np.full((1, 1, 8, 8), next(numbers)), np.ones((1, 8, 8), bool)

    (values,) = (strip for _, strip in blend(Ground(32, 80), walk, look, 1))
    np.testing.assert_allclose(values[0, 4, 3:9], [0, 0.125, 0.375, 0.625, 0.875, 1.125], atol=1e-6)


def test_what_lies_outside_repeats_the_border_and_is_not_valid():
    numbers, valid = read_window(Ground(10, 10), 4, -2, 8)
    assert (numbers[:, :, 0] == numbers[:, :, 2]).all() and (numbers[:, 7] == numbers[:, 5]).all()
    assert valid[:6, 2:].all() and not valid[:, :2].any() and not valid[6:].any()


def test_memory_is_that_of_one_row_of_windows_however_long_the_scene_is():
    peaks = []
    for height in (2048, 16384):
        scene = Ground(height, 512)
        tracemalloc.start()
        for _ in blend(scene, Walk(height, 512, 8, 16, 4), means(8), 2):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert scene.largest <= 128 * 128
    assert peaks[1] < peaks[0] + 2**17 < 2 * 512 * 2048  # the scene is eight times as long
