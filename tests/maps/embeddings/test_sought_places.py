"""Which patch lies at a place that is asked for."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.transform import Affine

from geomim.corpus.scenes.footprints import by_control_points
from geomim.errors import InputError
from geomim.maps.embeddings.likeness import example
from geomim.maps.embeddings.patches import PatchRaster
from geomim.maps.embeddings.vectors import Rounding
from geomim.maps.files.rasters import placed

DEGREES, UTM = CRS.from_epsg(4326), CRS.from_epsg(32719)


def patches(rows, columns, **place) -> PatchRaster:
    """Vectors of row, column and 1."""
    values = np.stack([*np.mgrid[:rows, :columns], np.ones((rows, columns))]).astype(np.float32)
    shape = (3, rows, columns)
    return PatchRaster("a", {}, Rounding("float16"), shape, place, lambda window: values[(..., *window.toslices())])


def test_on_a_scene_of_control_points_it_is_the_patch_that_maps_and_vectors_have_there():
    """A swath of 1600 pixels of 10 m that bends by 300 m."""
    at = np.linspace(0, 1600, 9)
    points = [
        GroundControlPoint(r, c, 500000 + 10 * c + 300 * np.sin(r / 200), 6150000 - 10 * r + 300 * np.sin(c / 250))
        for r in at
        for c in at
    ]
    place = by_control_points("scene", points)
    there = placed(SimpleNamespace(transform=None, placement=place, width=1600, height=1600, crs=UTM), 16)
    own = patches(100, 100, **there)
    for row, column in [(r, c) for r in range(2, 100, 19) for c in range(1, 100, 14)]:
        (x,), (y,) = place(np.array([(column + 0.5) * 16]), np.array([(row + 0.5) * 16]))
        assert own.locate(float(x), float(y)) == (row, column)
    assert own.locate(400000, 6150000) is None and own.locate(10.0, 50.0) is None


@pytest.mark.parametrize("west", [350, -10, -370])
@pytest.mark.parametrize("like", ["-8,2", "352,2"])
def test_longitudes_are_found_however_they_are_counted(west, like, capsys):
    own = patches(10, 20, transform=Affine(0.5, 0, west, 0, -0.5, 4), crs=DEGREES)
    assert example(own, like).tolist() == [[4, 4, 1]]
    assert ("taken as longitude" in capsys.readouterr().out) == (not 0 <= float(like.split(",")[0]) - west < 10)
    for none in ("60,2", "-8,50"):
        with pytest.raises(InputError, match="no patch of 'a' lies there"):
            example(own, none)
    assert example(replace(own, place={}), "4,4").tolist() == [[4, 4, 1]]
