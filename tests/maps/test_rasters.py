"""Rasters of classes."""

from geomim.maps.rasters import LAND, NODATA, colours_of


def test_land_cover_has_the_colours_it_is_known_by_and_no_two_classes_share_one():
    names = ["Water", "Dense forest", "Sparse forest", "pond water", *(f"kind {number}" for number in range(30))]
    colours = colours_of(names)
    assert colours[0] == (*LAND["water"], 255) and colours[1] == (*LAND["forest"], 255)
    assert len({colours[index] for index in range(len(names))}) == len(names)
    assert colours[NODATA] == (0, 0, 0, 0)
