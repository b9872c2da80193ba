"""What QGIS itself makes of maps: its own loader reads them, in a process of the Python that has PyQGIS, if one has."""

import json
import os
import subprocess
from functools import cache

import numpy as np
import pytest

from geomim.maps.files.rasters import NODATA, colours_of, create, name_classes, write_cog, write_names, write_style
from geomim.maps.outlines import write_polygons
from tests.drawn_scenes import PLACE

PYTHON = os.environ.get("QGIS_PYTHON", "/usr/bin/python3")
ASK = """
import json, os, sys
from qgis.core import QgsApplication, QgsRasterLayer, QgsVectorLayer
app = QgsApplication([], False)
app.initQgis()
raster, vector = QgsRasterLayer(sys.argv[1], "map"), QgsVectorLayer(sys.argv[2], "outlines", "ogr")
renderer, provider = raster.renderer(), raster.dataProvider()
print("ANSWER" + json.dumps({
    "valid": [raster.isValid(), vector.isValid()],
    "crs": [raster.crs().authid(), vector.crs().authid()],
    "extent": [raster.extent().xMinimum(), raster.extent().yMaximum()],
    "renderer": [renderer.type(), renderer.band()],
    "classes": [[one.value, one.label, one.color.getRgb()[:3]] for one in renderer.classes()],
    "nodata": [provider.sourceNoDataValue(band) for band in (1, 2)],
    "bands": [raster.bandName(band) for band in (1, 2)],
    "fields": vector.fields().names(),
    "outlines": sorted([one["class"], one["hectares"]] for one in vector.getFeatures()),
}), flush=True)
os._exit(0)  # layers that outlive QGIS end in a crash
"""


@cache
def qgis() -> bool:
    try:
        asked = subprocess.run([PYTHON, "-c", "import qgis.core"], env=_plain(), capture_output=True, timeout=60)
    except OSError:
        return False
    return asked.returncode == 0


def _plain() -> dict[str, str]:
    """The environment without what leads to this Python's packages."""
    return {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "QT_QPA_PLATFORM": "offscreen"}


def test_qgis_shows_classes_by_name_and_colour_where_they_lie(tmp_path):
    if not qgis():
        pytest.skip(f"{PYTHON} has no PyQGIS (Debian's package python3-qgis; QGIS_PYTHON names another Python)")
    names = ("forest & <field>", "Gewässer, still")
    ids = np.full((2, 40, 60), 1, np.uint8)
    ids[0, :, 30:], ids[0, :5], ids[1] = 0, NODATA, 90
    profile = {"dtype": "uint8", "count": 2, "nodata": NODATA, "height": 40, "width": 60} | PLACE
    with create(tmp_path / "plain.tif", profile) as raster:
        name_classes(raster, names)
        raster.descriptions = ("class", "confidence")
        raster.write(ids)
    path, outlines = tmp_path / "map.tif", tmp_path / "map.gpkg"
    write_cog(tmp_path / "plain.tif", path, "nearest")
    write_names(path, names)
    write_style(path, names)
    write_polygons(path, outlines, names)
    asked, alone = [PYTHON, "-c", ASK, str(path), str(outlines)], _plain() | {"XDG_RUNTIME_DIR": str(tmp_path)}
    said = subprocess.run(asked, env=alone, capture_output=True, text=True, timeout=120)
    assert "ANSWER" in said.stdout, said.stderr
    found = json.loads(said.stdout.partition("ANSWER")[2])
    assert found["valid"] == [True, True] and found["crs"] == ["EPSG:32632"] * 2
    assert found["extent"] == [500000, 4000000]
    assert found["renderer"] == ["paletted", 1], "not the greys of a raster without style"
    colours = colours_of(names)
    assert found["classes"] == [[index, name, list(colours[index][:3])] for index, name in enumerate(names)]
    assert found["nodata"] == [NODATA, NODATA]
    assert [one.partition(": ")[2].split(" (")[0] for one in found["bands"]] == ["class", "confidence"]
    assert {"class", "id", "hectares", "confidence"} <= {*found["fields"]}
    assert [name for name, _ in found["outlines"]] == sorted(names)
    assert np.allclose([size for _, size in found["outlines"]], 35 * 30 * 4 / 1e4, rtol=1e-2)
