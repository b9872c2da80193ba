import dataclasses
import itertools
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import rasterio
from affine import Affine

from geomim.corpus import slicing
from geomim.corpus.scenes import Scene, find_scenes, open_scene, scene_name
from geomim.corpus.scenes.arrays import array_scene
from geomim.corpus.scenes.scene import UNKNOWN
from geomim.corpus.slicing import Grid, slice_scene, starts, whole, windows
from geomim.errors import InputError
from geomim.sensors import get_sensor


def write(path, pixels, block=None, **profile):
    shape = dict(zip(("count", "height", "width"), pixels.shape, strict=True))
    tiling = {"tiled": True, "blockxsize": block, "blockysize": block} if block else {}
    place = {"crs": "EPSG:32632", "transform": Affine(10, 0, 5e5, 0, -10, 54e5)}
    with rasterio.open(
        path, "w", driver="GTiff", dtype=pixels.dtype.name, **shape, **tiling, **place, **profile
    ) as file:
        file.write(pixels)
        for band in range(pixels.shape[0]):
            file.set_band_description(band + 1, f"band {chr(97 + band)}")
    return path


def numbers(bands, height, width, dtype=np.uint16):
    return np.arange(1, bands * height * width + 1).reshape(bands, height, width).astype(dtype)


@pytest.mark.parametrize(("height", "width"), [(100, 130), (64, 64), (10, 7), (65, 64), (1, 500)])
def test_windows_cover_every_pixel_once(height, width):
    count = np.zeros((height + 64, width + 64), int)
    grid = windows(height, width, Grid((64,)), "a")
    for window in grid:
        count[window.row_off : window.row_off + 64, window.col_off : window.col_off + 64] += 1
        assert window.row_off < height and window.col_off < width
    assert (count[:height, :width] == 1).all()
    places = [(window.row_off, window.col_off) for window in grid]
    assert places == sorted(places)  # rows of blocks from the top


@pytest.mark.parametrize("length", [1, 63, 64, 65, 100, 128, 129, 500])
@pytest.mark.parametrize("stride", [1, 20, 32, 64, 90, 700])
def test_starts_reach_the_border_and_stop(length, stride):
    first = starts(length, 64, stride)
    assert first[0] == 0 and all(b - a == stride for a, b in itertools.pairwise(first))
    assert first[-1] < length
    assert first[-1] + max(64, stride) >= length  # nothing is left but a gap of the stride
    assert len(first) == 1 or first[-2] + 64 < length  # no tile only repeats


def test_sizes_stay_as_drawn_when_the_data_move():
    grid, pixels = Grid((16, 32, 64)), np.zeros((3, 300, 300), np.uint8)
    uris = [f"torchgeo://EuroSAT/all/3?root={root}&args=%7B%7D" for root in ("%2Fdata", "%2Fmoved%2Fdata")]
    drawn = [
        [(t.row, t.col, t.size) for t in slice_scene(array_scene(u, pixels, get_sensor("rgb")), grid)] for u in uris
    ]
    places = [(w.row_off, w.col_off, w.width) for w in windows(300, 300, grid, scene_name(uris[0]))]
    assert drawn[0] == drawn[1] == places


@pytest.mark.parametrize(("tile", "stride"), [(0, None), (64, 0), (-1, 3)])
def test_sizes_below_one_pixel_are_refused(tile, stride):
    with pytest.raises(InputError, match="at least 1 pixel"):
        Grid((tile,), stride)


@pytest.mark.parametrize("block", [None, 32, 48])
@pytest.mark.parametrize(("tile", "stride"), [(64, 64), (64, 24), (50, 75), (32, 200), (300, 300)])
def test_tiles_are_the_pixels_of_their_windows(tmp_path, block, tile, stride):
    pixels = numbers(2, 150, 210)
    with open_scene(write(tmp_path / "a.tif", pixels, block)) as scene:
        tiles = list(slice_scene(scene, Grid((tile,), stride)))
    padded = np.zeros((2, 900, 900), np.uint16)
    padded[:, :150, :210] = pixels
    assert [(t.row, t.col) for t in tiles] == [
        (w.row_off, w.col_off) for w in windows(150, 210, Grid((tile,), stride), "a")
    ]
    for t in tiles:
        expected = padded[:, t.row : t.row + tile, t.col : t.col + tile]
        assert t.pixels.dtype == np.uint16 and np.array_equal(t.pixels, expected)
        assert np.array_equal(t.valid, expected[0] > 0)
        assert t.transform == Affine(10, 0, 5e5 + 10 * t.col, 0, -10, 54e5 - 10 * t.row)


def test_tiles_are_their_own_memory(tmp_path):
    with open_scene(write(tmp_path / "a.tif", numbers(1, 64, 64))) as scene:
        tiles = list(slice_scene(scene, Grid((32,))))
    tiles[0].pixels[:] = 0
    assert (tiles[1].pixels > 0).all() and all(tile.pixels.base is None for tile in tiles)


@pytest.mark.parametrize(
    ("dtype", "nodata", "fill"), [("int16", -9999, -9999), ("float32", np.nan, np.nan), ("uint8", None, 0)]
)
def test_padding_is_nodata_and_invalid(tmp_path, dtype, nodata, fill):
    with open_scene(write(tmp_path / "a.tif", numbers(2, 20, 30, dtype), nodata=nodata)) as scene:
        (tile,) = slice_scene(scene, Grid((64,)))
    assert tile.pixels.shape == (2, 64, 64) and tile.valid.sum() == 20 * 30 and tile.valid[:20, :30].all()
    np.testing.assert_array_equal(tile.pixels[:, ~tile.valid], np.asarray(fill, dtype))


def test_nodata_inside_is_invalid(tmp_path):
    pixels = numbers(2, 64, 64)
    pixels[:, 10:20, 30:40] = 7
    pixels[:, 40, 40] = 7, 9  # in one band only
    with open_scene(write(tmp_path / "a.tif", pixels, nodata=7)) as scene:
        (tile,) = slice_scene(scene, Grid((64,)))
    assert np.array_equal(tile.valid, (pixels != 7).all(0))
    assert not tile.valid[10:20, 30:40].any() and not tile.valid[40, 40]


class Counting:
    """Stands for the dataset of a scene and remembers which blocks were asked for."""

    def __init__(self, dataset, block):
        self.dataset, self.block, self.blocks, self.largest = dataset, block, Counter(), 0

    def read(self, bands, window):
        (top, bottom), (left, right) = window.toranges()
        height, width = self.block
        rows, cols = range(top // height, -(-bottom // height)), range(left // width, -(-right // width))
        self.blocks.update((row, col) for row in rows for col in cols)
        self.largest = max(self.largest, (bottom - top) * (right - left))
        return self.dataset.read(bands, window=window)

    def close(self):
        self.dataset.close()


def counted(path, sensor=None):
    scene = open_scene(path, sensor)
    counting = Counting(scene.reader.dataset, scene.block)
    scene.reader.dataset = counting
    return scene, counting


@pytest.mark.parametrize("block", [None, 64, 48])
@pytest.mark.parametrize(("tile", "stride"), [(64, 64), (32, 32), (50, 20), (100, 100)])
def test_every_block_is_read_once(tmp_path, block, tile, stride):
    scene, counting = counted(write(tmp_path / "a.tif", numbers(1, 300, 200), block))
    with scene:
        assert len(list(slice_scene(scene, Grid((tile,), stride)))) == len(
            windows(300, 200, Grid((tile,), stride), "a")
        )
    assert set(counting.blocks.values()) == {1}
    assert len(counting.blocks) == -(-300 // scene.block[0]) * -(-200 // scene.block[1])
    assert counting.largest <= (max(tile, stride) + scene.block[0]) * 200


def test_rows_that_exceed_memory_wait_on_disk_and_are_still_read_once(tmp_path, monkeypatch):
    path = write(tmp_path / "wide.tif", numbers(1, 128, 1024), 64)
    with open_scene(path) as scene:
        whole = list(slice_scene(scene, Grid((32,))))
    monkeypatch.setattr(slicing, "_PART_BYTES", 3 * 64 * 256)  # pixels and validity
    monkeypatch.setattr(slicing, "_HELD_BYTES", 3 * 64 * 512)
    scene, counting = counted(path)
    with scene:
        parts = list(slice_scene(scene, Grid((32,))))
    assert set(counting.blocks.values()) == {1} and counting.largest <= 64 * 256
    assert [(tile.row, tile.col) for tile in parts] == [(tile.row, tile.col) for tile in whole]
    assert all(np.array_equal(one.pixels, other.pixels) for one, other in zip(parts, whole, strict=True))


@pytest.mark.parametrize("block", [None, 64])
def test_large_rows_are_read_in_parts(tmp_path, monkeypatch, block):
    """Strips in several reads from top to bottom, blocks in several reads from left to right."""
    pixels = numbers(2, 200, 640)
    path = write(tmp_path / "a.tif", pixels, block)
    monkeypatch.setattr(slicing, "_PART_BYTES", 5 * 64 * 128)
    scene, counting = counted(path)
    with scene:
        (tile,) = slice_scene(scene, Grid((640,)))
    assert np.array_equal(tile.pixels[:, :200], pixels) and tile.valid.sum() == 200 * 640
    assert set(counting.blocks.values()) == {1} and counting.largest <= 64 * 128


def test_memory_is_bounded_by_rows_and_not_by_the_scene(tmp_path):
    path = tmp_path / "tall.tif"
    profile = {"driver": "GTiff", "count": 1, "height": 16384, "width": 512, "dtype": "uint8", "nodata": 255}
    with rasterio.open(path, "w", tiled=True, blockxsize=256, blockysize=256, compress="deflate", **profile) as file:
        file.write(np.ones((1, 512, 512), np.uint8), window=rasterio.windows.Window(0, 8192, 512, 512))
    tracemalloc.start()
    with open_scene(path) as scene:
        count = sum(1 for _ in slice_scene(scene, Grid((256,))))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 128 and peak < 16384 * 512 / 4


SIZES = Grid((64, 16, 32), seed=3)


def test_sizes_are_drawn_for_blocks_and_cover_every_pixel_once():
    places = windows(500, 700, SIZES, "a.tif")
    count = np.zeros((600, 800), int)
    drawn = {}
    for window in places:
        row, col, size = window.row_off, window.col_off, window.width
        assert window.height == size and row % size == 0 and col % size == 0
        count[row : row + size, col : col + size] += 1
        drawn.setdefault((row // 64, col // 64), set()).add(size)
    assert (count[:500, :700] == 1).all()
    assert all(len(sizes) == 1 for sizes in drawn.values())
    share = Counter(sizes.pop() for (row, col), sizes in drawn.items() if row < 7 and col < 10)
    assert set(share) == {16, 32, 64} and min(share.values()) > 70 / 6  # an equal share of the ground, about
    blocks = [(window.row_off // 64, window.col_off // 64) for window in places]
    assert blocks == sorted(blocks)  # rows of blocks from the top


def test_sizes_depend_on_seed_name_and_place_only():
    here = windows(256, 512, SIZES, "a.tif")
    assert here == windows(256, 512, Grid((16, 32, 64, 64), seed=3), "a.tif")
    assert here == [window for window in windows(300, 512, SIZES, "a.tif") if window.row_off < 256]
    assert here != windows(256, 512, SIZES, "b.tif")
    assert here != windows(256, 512, Grid((16, 32, 64), seed=4), "a.tif")


@pytest.mark.parametrize(("height", "width", "expected"), [(40, 600, {16, 32}), (20, 20, {16}), (9, 500, {16})])
def test_a_block_is_cut_at_sizes_that_fit_into_the_scene(height, width, expected):
    assert {window.width for window in windows(height, width, SIZES, "a")} == expected


def test_tiles_of_all_sizes_are_the_pixels_of_their_windows(tmp_path):
    pixels = numbers(2, 150, 210)
    scene, counting = counted(write(tmp_path / "a.tif", pixels, 48))
    with scene:
        tiles = list(slice_scene(scene, SIZES))
    padded = np.zeros((2, 300, 300), np.uint16)
    padded[:, :150, :210] = pixels
    assert set(counting.blocks.values()) == {1}
    assert [(t.col, t.row, t.size, t.size) for t in tiles] == [
        (w.col_off, w.row_off, w.width, w.height) for w in windows(150, 210, SIZES, "a.tif")
    ]
    for t in tiles:
        expected = padded[:, t.row : t.row + t.size, t.col : t.col + t.size]
        assert np.array_equal(t.pixels, expected) and np.array_equal(t.valid, expected[0] > 0)
        assert t.transform == Affine(10, 0, 5e5 + 10 * t.col, 0, -10, 54e5 - 10 * t.row)


@pytest.mark.parametrize(
    ("sizes", "stride", "words"),
    [((64, 96), None, "64 does not"), ((64, 128), 32, "one tile size"), ((), None, "at least 1")],
)
def test_grids_that_do_not_fit_are_refused(sizes, stride, words):
    with pytest.raises(InputError, match=words):
        Grid(sizes, stride)


class Clouds:
    """A cloud mask of the whole scene."""

    def __init__(self, mask):
        self.mask = mask

    def read(self, window):
        return self.mask[window.toslices()]

    def close(self):
        pass


def test_clouds_are_cut_with_the_pixels(tmp_path):
    mask = np.random.default_rng(0).choice([0, 1, UNKNOWN], (150, 210))
    with open_scene(write(tmp_path / "a.tif", numbers(2, 150, 210), 48)) as scene:
        assert all(tile.clouds is None for tile in slice_scene(scene, Grid((64,))))
        tiles = list(slice_scene(dataclasses.replace(scene, masks=Clouds(mask)), Grid((64,), stride=40)))
    padded = np.pad(mask, ((0, 100), (0, 100)))
    assert all(np.array_equal(t.clouds, padded[t.row : t.row + 64, t.col : t.col + 64]) for t in tiles)


def test_a_block_that_cannot_be_read_is_a_sentence(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 9000, (2, 256, 256)).astype("u2")
    path = write(tmp_path / "broken.tif", pixels, 64, compress="deflate")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 20000] = bytes(20000)  # two whole blocks
    path.write_bytes(content)
    seen = []
    with pytest.raises(InputError, match=r"broken\.tif' cannot be read at row"), open_scene(path) as scene:
        for tile in slice_scene(scene, Grid((64,))):
            seen.append(tile)
    assert len(seen) < 16


def test_real_scenes_are_whole(data_dir):
    for path in find_scenes([data_dir / "naip"]):
        with open_scene(path, get_sensor("naip")) as scene:
            whole, tiles = scene.read(), list(slice_scene(scene, Grid((200,))))
        mosaic = np.zeros((4, 1000, 1000), np.uint8)
        for tile in tiles:
            mosaic[:, tile.row : tile.row + 200, tile.col : tile.col + 200] = tile.pixels
        assert np.array_equal(mosaic[:, : whole.shape[1], : whole.shape[2]], whole)
        assert isinstance(scene, Scene) and sum(tile.valid.sum() for tile in tiles) == whole[0].size


@pytest.mark.parametrize("stride", [None, 20, 64, 90])
@pytest.mark.parametrize("length", [10, 64, 65, 100, 128, 129, 500])
def test_edges(length, stride):
    step = stride or 64
    padded = starts(length, 64, step)
    shifted, dropped = (starts(length, 64, step, edge) for edge in ("shift", "drop"))
    assert dropped == [one for one in padded if one + 64 <= length]
    assert shifted[:-1] == padded[:-1] and shifted == sorted(set(shifted))
    assert length < 64 or (shifted[-1] + 64 <= length and (step > 64 or shifted[-1] + 64 == length))
    for edge, along in (("pad", padded), ("shift", shifted), ("drop", dropped)):
        grid = Grid((64,), stride, edge=edge)
        assert [(w.row_off, w.col_off) for w in windows(length, 200, grid, "a")] == [
            (row, col) for row in along for col in starts(200, 64, step, edge)
        ]


@pytest.mark.parametrize(("height", "width"), [(300, 400), (100, 400), (40, 70), (64, 64)])
@pytest.mark.parametrize("edge", ["shift", "pad", "drop"])
def test_edges_of_several_sizes(tmp_path, height, width, edge):
    grid, pixels = Grid((16, 32, 128), edge=edge), numbers(2, height, width, np.uint32)
    count = np.zeros((height + 128, width + 128), int)
    with open_scene(write(tmp_path / "a.tif", pixels)) as scene:
        tiles = list(slice_scene(scene, grid))
        for tile in tiles:
            count[tile.row : tile.row + tile.size, tile.col : tile.col + tile.size] += 1
            inside = pixels[:, tile.row : tile.row + tile.size, tile.col : tile.col + tile.size]
            assert (tile.pixels[:, : inside.shape[1], : inside.shape[2]] == inside).all()
            assert tile.valid.sum() == inside[0].size
    beyond = count.sum() - count[:height, :width].sum()
    assert (beyond == 0) == (edge != "pad" or (height, width) == (64, 64))
    assert (count[:height, :width].min() >= 1) == (edge != "drop" or (height, width) == (64, 64))
    with pytest.raises(InputError, match="--edge: unknown way 'shfit'; did you mean 'shift'"):
        Grid((64,), edge="shfit")


@pytest.mark.parametrize(
    ("height", "width", "placed", "edge"),
    [(64, 64, True, 64), (512, 512, False, 512), (512, 512, True, 0), (600, 800, False, 0), (2000, 2000, False, 0)],
)
def test_pictures_that_are_tiles_by_themselves(height, width, placed, edge):
    assert whole(height, width, placed) == edge
