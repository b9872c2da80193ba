"""Where maps lie, shown by a model of coordinates: what it says of a pixel is the pixel's own place."""

import itertools

import numpy as np
import pyproj
import pytest
import rasterio
import shapely
import torch
from affine import Affine
from drawn_scenes import CONTRACT, PLACE, write
from rasterio.control import GroundControlPoint
from rio_cogeo.cogeo import cog_validate
from torch.nn import functional as F

from geomim.corpus.scenes import open_scene
from geomim.errors import InputError
from geomim.maps.classes import card_of, draw, is_done
from geomim.maps.files.rasters import placed
from geomim.maps.walk import windows
from geomim.maps.walk.looker import Looker
from geomim.maps.walk.strips import Strips
from geomim.maps.walk.windows import blend
from geomim.sensors import SENSORS, BandContract

LEVELS = 200


def places(cell=1, side=32, classes=LEVELS) -> Looker:
    """A model whose class is what the first band holds: 200 values that repeat over rows and columns."""

    def look(images, valid):
        values = F.max_pool2d(images[:, 0], cell).round().long().clamp(0, classes - 1)
        return F.one_hot(values, classes).permute(0, 3, 1, 2).float()

    names = tuple(f"level {number}" for number in range(classes))
    return Looker(PLAIN, side, cell, names, f"places {cell}", look, torch.device("cpu"))


PLAIN = BandContract(SENSORS["naip"].select(("red",)), (0.0,), (1.0,))


def ground(height, width, cell=1) -> np.ndarray:
    """Levels `(4, H, W)` that tell a pixel, or square of pixels, from all others that are near."""
    rows, columns = np.mgrid[:height, :width] // cell
    return np.repeat(((rows * 17 + columns * 3) % LEVELS).astype(np.uint8)[None], 4, 0)


def drawn(scene_path, out, looker, overlap=0.5):
    with open_scene(scene_path, SENSORS["naip"]) as scene:

        def prepare(numbers, valid):
            return numbers.float(), valid[:, None]

        draw(scene, prepare, looker, looker.walk(scene, overlap), out, "places")
    return rasterio.open(out)


def turned(pixels, tmp_path):
    return write(tmp_path / "s.tif", pixels, transform=PLACE["transform"] * Affine.rotation(20))


def plain(pixels, tmp_path):
    return write(tmp_path / "s.tif", pixels)


def by_points(pixels, tmp_path):
    height, width = pixels.shape[1:]
    points = [
        GroundControlPoint(row, column, 500000 + 2 * column + row / 9, 4000000 - 2 * row + column / 7)
        for row, column in itertools.product((0, height / 2, height), (0, width / 3, width))
    ]
    path = tmp_path / "s.tif"
    profile = {"count": 4, "dtype": "uint8", "height": height, "width": width}
    with rasterio.open(path, "w", driver="GTiff", gcps=points, crs="EPSG:32632", **profile) as raster:
        raster.write(pixels)
        raster.descriptions = ("red", "green", "blue", "nir")
    return path


@pytest.mark.parametrize("make", [plain, turned, by_points])
@pytest.mark.parametrize("size", [(70, 101), (32, 32), (13, 21), (33, 130)])
def test_every_pixel_of_a_map_lies_on_its_own(make, size, tmp_path):
    pixels = ground(*size)
    path = make(pixels, tmp_path)
    with drawn(path, tmp_path / "m.tif", places()) as raster, rasterio.open(path) as source:
        assert np.array_equal(raster.read(1), pixels[0]) and (raster.read(2) == 100).all()
        assert raster.crs == source.crs or make is by_points
        if make is by_points:
            points, crs = raster.gcps
            assert crs == source.gcps[1] and len(points) > 100
            expected, _ = rasterio.transform.GCPTransformer(source.gcps[0], tps=True), None
            for one in points[:: len(points) // 7]:
                at = expected.xy(one.row, one.col, offset="ul")
                assert np.allclose((one.x, one.y), at, atol=0.01), "to a centimetre"
        else:
            assert raster.transform == source.transform
    assert cog_validate(str(tmp_path / "m.tif"), quiet=True)[0]


@pytest.mark.parametrize("size", [(70, 101), (13, 21), (64, 130)])
def test_every_cell_of_a_map_of_patches_lies_on_its_patch(size, tmp_path):
    pixels, cell = ground(*size, cell=8), 8
    with drawn(plain(pixels, tmp_path), tmp_path / "m.tif", places(cell, 32)) as raster:
        ids, inside = raster.read(1), ground(*size, cell=8)[0, ::8, ::8]
        assert raster.transform == PLACE["transform"] * Affine.scale(8) and ids.shape == inside.shape
        shares = np.outer(
            np.minimum(size[0] - 8 * np.arange(ids.shape[0]), 8), np.minimum(size[1] - 8 * np.arange(ids.shape[1]), 8)
        )
        assert np.array_equal(ids, np.where(shares >= 32, inside, 255))


@pytest.mark.parametrize(("folder", "sensor"), [("naip", "naip"), ("sen1floods11", "sentinel1")])
def test_maps_lie_on_real_scenes(folder, sensor, data_dir, tmp_path):
    """A model that is told which window it looks at, and says of each pixel of the scene what only this one is."""
    path = next(one for one in sorted((data_dir / folder).rglob("*.tif")) if "Label" not in one.name)
    levels, side = 11, 256
    with open_scene(path, SENSORS[sensor]) as scene, rasterio.open(path) as source:
        valid = scene.valid()
        expected = (np.arange(scene.height)[:, None] * 3 + np.arange(scene.width)[None]) % levels
        walk = places(1, side).walk(scene, 0.2)
        windows = [np.s_[top : top + side, left : left + side] for top, left in walk.places]
        order = iter([expected[one] for one in windows if valid[one].any()])

        def look(images, valid):
            found = torch.from_numpy(np.stack([next(order) for _ in images]))
            return F.one_hot(found, levels).permute(0, 3, 1, 2).float()

        names = tuple(map(str, range(levels)))
        looker = Looker(PLAIN, side, 1, names, "places", look, torch.device("cpu"))
        draw(
            scene, lambda numbers, valid: (numbers.float(), valid[:, None]), looker, walk, tmp_path / "m.tif", "places"
        )
        with rasterio.open(tmp_path / "m.tif") as raster:
            assert raster.transform == source.transform and raster.crs == source.crs and raster.bounds == source.bounds
            assert np.array_equal(raster.read(1), np.where(valid, expected, 255)), "0 pixels off"


def test_hectares_are_those_on_the_ellipsoid_in_any_system(tmp_path, capsys):
    pixels = np.zeros((4, 100, 100), np.uint8)
    systems = {
        "metres": ("EPSG:32632", Affine(10, 0, 500000, 0, -10, 5000000)),
        "degrees": ("EPSG:4326", Affine(0.0001, 0, 9, 0, -0.0001, 45)),
        "mercator": ("EPSG:3857", Affine(10, 0, 1000000, 0, -10, 5621521)),  # at 45 degrees twice as large as it says
    }
    for name, (crs, transform) in systems.items():
        path = write(tmp_path / f"{name}.tif", pixels, crs=crs, transform=transform)
        drawn(path, tmp_path / f"{name}_map.tif", places()).close()
    found = [float(line.split()[2]) for line in capsys.readouterr().out.splitlines() if "level 0:" in line]
    assert found == [pytest.approx(100.08, abs=0.05), pytest.approx(87.6, abs=0.1), pytest.approx(50.2, abs=0.5)]


def test_hectares_of_a_class_are_those_where_it_lies(tmp_path, capsys):
    """In degrees a pixel of the north is smaller than one of the south, in one row of windows too."""
    pixels = np.zeros((4, 100, 40), np.uint8)
    pixels[:, 50:] = 1
    path = write(tmp_path / "s.tif", pixels, crs="EPSG:4326", transform=Affine(0.2, 0, 9, 0, -0.2, 75))
    drawn(path, tmp_path / "m.tif", places(1, 128)).close()
    found = [float(line.split()[2].replace(",", "")) for line in capsys.readouterr().out.splitlines() if " ha " in line]
    rings = (shapely.segmentize(shapely.box(9, south, 17, south + 10), 0.2) for south in (65, 55))
    areas = [abs(pyproj.Geod(ellps="WGS84").geometry_area_perimeter(one)[0]) / 1e4 for one in rings]
    assert found == pytest.approx(areas, rel=2e-4) and found[1] > 1.2 * found[0]


def test_flipped_and_per_pixel_lookers_say_the_same_of_what_has_no_direction(tmp_path):
    looker = places(4, 16)
    images, valid = torch.from_numpy(ground(16, 16, 4)[None, :1]).float(), torch.ones(1, 1, 16, 16, dtype=torch.bool)
    once = looker.look(images, valid)
    assert torch.equal(looker.flipped().look(images, valid), once)
    large = looker.per_pixel()
    assert large.cell == 1 and large.look(images, valid).shape == (1, LEVELS, 16, 16)
    expected = F.interpolate(once, scale_factor=4, mode="bilinear", align_corners=False)
    torch.testing.assert_close(large.flipped().look(images, valid), expected)
    assert len({one.made_by for one in (looker, looker.flipped())}) == 2, "of another map"


def test_stopped_at_twenty_moments_and_gone_on_a_map_has_the_same_bytes(tmp_path, monkeypatch):
    path = plain(ground(150, 70), tmp_path)
    drawn(path, tmp_path / "whole.tif", places(), 0.75).close()
    whole = (tmp_path / "whole.tif").read_bytes()
    draws, out = np.random.default_rng(0), tmp_path / "m.tif"
    for _ in range(20):
        left = int(draws.integers(1, 12))

        def stop(scene, walk, job, read=windows._read, left=[left]):  # noqa: B006
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt
            return read(scene, walk, job)

        with monkeypatch.context() as patch:
            patch.setattr(windows, "_read", stop)
            try:
                drawn(path, out, places(), 0.75).close()
            except KeyboardInterrupt:
                assert not out.exists()
            else:
                assert out.read_bytes() == whole
                out.unlink()
    drawn(path, out, places(), 0.75).close()
    assert out.read_bytes() == whole


def test_a_map_is_done_for_the_same_scene_model_and_options_alone(tmp_path):
    path, out = plain(ground(40, 40), tmp_path), tmp_path / "m.tif"
    drawn(path, out, places()).close()
    with open_scene(path, SENSORS["naip"]) as scene:
        looker = places()
        assert is_done(out, scene, card_of(scene, looker, looker.walk(scene, 0.5)))
        assert not is_done(out, scene, card_of(scene, looker, looker.walk(scene, 0.25)))
        assert not is_done(out, scene, card_of(scene, looker.flipped(), looker.walk(scene, 0.5)))
        assert not is_done(tmp_path / "other.tif", scene, {})
    with open_scene(write(tmp_path / "t.tif", ground(40, 40)), SENSORS["naip"]) as other:
        with pytest.raises(InputError, match=r"is a map of '.*s.tif', not of '.*t.tif'"):
            is_done(out, other, {})


def test_two_processes_on_one_map(tmp_path):
    path, out = plain(ground(40, 40), tmp_path), tmp_path / "m.tif"
    with Strips(out, {}) as strips:
        strips.add(np.zeros((2, 1, 1), np.uint8))
        with pytest.raises(InputError, match="another process"):
            drawn(path, out, places())


def test_blended_windows_have_no_seam_where_single_ones_do(tmp_path):
    """Probabilities that err at the border of windows: the greatest step between neighbours."""
    border = torch.minimum(torch.arange(32), torch.arange(31, -1, -1)).float()
    depth = torch.minimum(border[:, None], border[None])

    def look(images, valid):
        sure = (0.5 + 0.5 * torch.exp(-depth / 3)).expand(len(images), 1, 32, 32)  # worst at the border, by place
        lean = torch.where(images[:, :1].mean((2, 3), keepdim=True) > 100, sure, 1 - sure)
        return torch.cat([lean, 1 - lean], 1)

    looker = Looker(CONTRACT, 32, 1, ("a", "b"), "leans", look, torch.device("cpu"))
    steps = {}
    for overlap in (0.0, 0.5):
        with open_scene(plain(ground(160, 160), tmp_path), SENSORS["naip"]) as scene:
            walk = looker.walk(scene, overlap)
            on = looker.on(lambda numbers, valid: (numbers.float(), valid[:, None]))
            values = np.concatenate([one for _, one in blend(scene, walk, on, 2)], 1)[0]
        steps[overlap] = max(np.abs(np.diff(values[16:-16, 16:-16], axis=axis)).max() for axis in (0, 1))
    assert steps[0.0] > 0.9 and steps[0.5] < 0.2 and steps[0.5] < steps[0.0] / 5


def test_place_of_a_scene_without_one_is_none(tmp_path):
    path = write(tmp_path / "s.tif", ground(8, 8), crs=None, transform=Affine.identity())
    with open_scene(path, SENSORS["naip"]) as scene:
        assert placed(scene, 1) == {}
