"""Rasters of classes."""

from xml.etree import ElementTree

import numpy as np
import pytest

from geomim.errors import ConfigError, InputError
from geomim.maps.files.rasters import (
    LAND,
    NODATA,
    check_endings,
    colours_of,
    create,
    name_classes,
    open_map,
    write_cog,
    write_names,
    write_style,
)


def test_land_cover_has_the_colours_it_is_known_by_and_no_two_classes_share_one():
    names = ["Water", "Dense forest", "Sparse forest", "pond water", *(f"kind {number}" for number in range(30))]
    colours = colours_of(names)
    assert colours[0] == (*LAND["water"], 255) and colours[1] == (*LAND["forest"], 255)
    assert len({colours[index] for index in range(len(names))}) == len(names)
    assert colours[NODATA] == (0, 0, 0, 0)


def test_names_come_back_from_all_three_files_whatever_is_in_them(tmp_path):
    odd = ["<a & b>", "Bäume, groß", "x=y", "'quoted\"", "]]>", "日本"]
    names, told = ([*odd, *two, *map(str, range(247))] for two in (["two\nlines", "bell\x07"], ["two lines", "bell"]))
    path = tmp_path / "map.tif"
    with create(path, {"dtype": "uint8", "count": 2, "height": 4, "width": 4, "nodata": NODATA}) as raster:
        name_classes(raster, names)
    write_names(path, names)
    write_style(path, names)
    with open_map(path) as raster:
        assert [raster.tags(1)[f"CLASS_{index}"] for index in range(255)] == told
        assert raster.colormap(1)[NODATA] == (0, 0, 0, 0)
    assert [one.text for one in ElementTree.parse(f"{path}.aux.xml").iter("Category")] == told
    assert [one.get("label") for one in ElementTree.parse(tmp_path / "map.qml").iter("paletteEntry")] == told


def test_a_style_has_what_the_loader_of_qgis_looks_for(tmp_path):
    """`qgis`, in it `pipe`, in it a renderer of one band with its palette; a value without an entry is not drawn."""
    write_style(tmp_path / "map.tif", ["water", "town"])
    text = (tmp_path / "map.qml").read_text()
    assert text.startswith("<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n<qgis ")
    root = ElementTree.fromstring(text)
    assert root.tag == "qgis" and int(root.get("version").split(".")[0]) == 3
    renderer = root.find("pipe/rasterrenderer")
    told = {"type": "paletted", "band": "1", "opacity": "1", "alphaBand": "-1", "nodataColor": ""}
    assert renderer.attrib == told
    entries = renderer.findall("colorPalette/paletteEntry")
    assert [sorted(one.attrib) for one in entries] == [["alpha", "color", "label", "value"]] * 2
    assert [(one.get("value"), one.get("color"), one.get("alpha")) for one in entries] == [
        ("0", "#0064c8", "255"),
        ("1", entries[1].get("color"), "255"),
    ]
    assert str(NODATA) not in {one.get("value") for one in entries}


def test_a_style_of_the_users_own_stays_and_ours_goes_with_its_map(tmp_path, capsys):
    path, style = tmp_path / "map.tif", tmp_path / "map.qml"
    with create(tmp_path / "numbers.tif", {"dtype": "float32", "count": 1, "height": 4, "width": 4}) as raster:
        raster.write(np.ones((1, 4, 4), np.float32))
    for names in (["water", "<a & b>", "日本"], ["town"]):  # those of another model take their place
        write_style(path, names)
        write_names(path, names)
        assert "town" in style.read_text() or names != ["town"]
    write_cog(tmp_path / "numbers.tif", path, "nearest")  # which has no classes
    assert sorted(file.name for file in tmp_path.iterdir()) == ["map.tif", "numbers.tif"]
    assert not capsys.readouterr().out
    write_style(path, ["water"])
    own = style.read_text().replace("#0064c8", "#0000ff")
    for text in (own, "no style"):
        style.write_text(text)
        write_style(path, ["water", "town"])
        write_cog(tmp_path / "numbers.tif", path, "nearest")
        assert style.read_text() == text
        assert capsys.readouterr().out.count(f"note: the style '{style}' is not as geomim writes one: it stays") == 2


def test_what_cannot_be_written_is_refused_by_its_flag(tmp_path):
    (file := tmp_path / "file").write_text("")
    for name in ("a.tif", "b/a.tif"):
        with pytest.raises(InputError, match=f"--out: .*a.tif' cannot be written in folder .*: '{file}' is a file"):
            check_endings(out=(str(file / name), ".tif"))
    for name in ("a!b.gpkg", "c!/a.gpkg"):
        with pytest.raises(ConfigError, match="--polygons: layers cannot be written where a name has '!'; given"):
            check_endings(polygons=(str(tmp_path / name), ".gpkg"))
    check_endings(out=(str(tmp_path / "new" / "a!b.tif"), ".tif"), polygons=(None, ".gpkg"))
