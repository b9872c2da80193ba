import numpy as np
import rasterio
from affine import Affine

from geomim.demo.truth import ClassMap, agreement, words_found

COLOURS = np.zeros((2, 3), np.uint8)


def truth():
    """Left half water, right half forest, the last row unknown."""
    ids = np.repeat([[0] * 8 + [1] * 8], 16, 0).astype(np.uint8)
    ids[-1] = 255
    return ClassMap(ids, ["water", "forest"], COLOURS, Affine.scale(2, -2))


def test_a_map_is_held_against_the_label_at_the_middle_of_its_pixels():
    patches = np.repeat([[0, 1, 1, 1]], 4, 0).astype(np.uint8)
    made = ClassMap(patches, ["water", "forest"], COLOURS, Affine.scale(8, -8))
    share, count = agreement(made, truth())
    assert (share, count) == (0.75, 16)
    beyond = ClassMap(np.zeros((5, 5), np.uint8), made.names, COLOURS, Affine.scale(8, -8))
    assert agreement(beyond, truth()) == (0.5, 16)  # what reaches past the labels does not count


def test_words_are_ranked_by_how_well_they_find_their_class(tmp_path):
    scores = np.zeros((2, 4, 4), np.float32)
    scores[0] = [0, 1, 2, 3]  # water is found where it is not,
    scores[1] = [0, 1, 2, 3]  # forest where it is
    scores[:, 0] = np.nan
    grid = {"driver": "GTiff", "height": 4, "width": 4, "count": 2, "dtype": "float32", "nodata": np.nan}
    with rasterio.open(tmp_path / "words.tif", "w", transform=Affine.scale(8, -8), crs="EPSG:32633", **grid) as raster:
        raster.write(scores)
        raster.descriptions = ("water", "forest")
    best, worst = words_found(tmp_path / "words.tif", truth())
    assert (best.word, best.precision, best.share) == ("forest", 1.0, 0.5)
    assert worst.word == "water" and worst.precision < worst.share
    assert best.there.tolist() == [[False, False, True, True]] * 4
