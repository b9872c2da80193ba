"""Scenes that end at a slant: every kind of sentence is true of what of a tile is valid, through the whole verb."""

import json
import shutil
from collections import Counter

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from caption_truth import Objects, prove_cover, prove_ground
from rasterio.transform import from_origin
from test_caption_truth import masks_of
from test_caption_verb import WORDS, boxes, said, with_boxes
from test_vector_captions import WORDS as LAYERS
from test_vector_captions import as_seen, ground, on_the_border

from geomim.corpus.build import build
from geomim.corpus.captions.caption import caption
from geomim.corpus.store import Corpus

SIDE, GSD, EDGE, WEST, NORTH = 64, 10.0, 256, 500_000, 5_300_000
CLASSES = ["forest", "water", "building"]
MASKED = {
    "forest": ("an area of forest", "areas of forest", "mass"), "water": ("an area of water", "areas of water", "mass"),
    "building": ("a building", "buildings"),
}  # fmt: skip


def shapes_of(random):
    """Fields, buildings and a river in metres, which the tiles of the scene cut."""
    fields = [shapely.box(WEST + 700 * n, NORTH - 2560, WEST + 400 + 700 * n, NORTH) for n in range(4)]
    corners = random.uniform([WEST, NORTH - 2500], [WEST + 2500, NORTH], (90, 2)).tolist()
    houses = [shapely.box(x, y, x + 60, y + 60) for x, y in corners]
    apart = [one for n, one in enumerate(houses) if not any(one.intersects(other) for other in houses[:n])]
    river = shapely.LineString([(WEST - 50, NORTH - 900), (WEST + 2700, NORTH - 1500)])
    return [("farmland", one) for one in fields] + [("building", one) for one in apart] + [("river", river)]


@pytest.fixture(scope="module")
def slanted(tmp_path_factory):
    """Sixteen tiles of a scene that is valid within a square which stands on a corner, their geometries, and maps."""
    folder, random = tmp_path_factory.mktemp("slanted"), np.random.default_rng(7)
    kinds = random.integers(0, 2, (8, 8)).repeat(32, 0).repeat(32, 1)
    for row, col in random.integers(0, EDGE - 9, (120, 2)):
        kinds[row : row + 7, col : col + 6] = 2
    spectra = np.array([[500] * 3 + [200] + [3500] * 8, [900] * 3 + [600] + [200] * 8, [3000] * 10 + [2400] * 2])
    rows, cols = np.mgrid[:EDGE, :EDGE] - EDGE / 2 + 0.5
    valid = np.abs(rows + 0.3 * cols) + np.abs(cols - 0.3 * rows) < 140
    pixels = (spectra[kinds].transpose(2, 0, 1) + random.integers(0, 90, (12, EDGE, EDGE))) * valid
    cover = random.integers(1, 4, (16, 16)).repeat(16, 0).repeat(16, 1)
    place = {"crs": "EPSG:32632", "transform": from_origin(WEST, NORTH, GSD, GSD), "height": EDGE, "width": EDGE}
    for name, values, nodata in (("images", pixels.astype(np.uint16), 0), ("masks", kinds[None].astype(np.uint8), None),
                                 ("maps", cover[None].astype(np.float32), None)):  # fmt: skip
        (folder / name).mkdir()
        profile = {"count": len(values), "dtype": values.dtype, "nodata": nodata, **place}
        with rasterio.open(folder / name / "s.tif", "w", **profile) as to:
            to.write(values)
    (folder / "masks" / "classes.json").write_text(json.dumps(CLASSES))
    (folder / "maps" / "classes.json").write_text(json.dumps({"1": "forest", "2": "cropland", "3": "village"}))
    geometries = shapes_of(random)
    layer = geopandas.GeoSeries([shape for _, shape in geometries], crs=32632).to_crs(4326)
    geopandas.GeoDataFrame({"class": [what for what, _ in geometries]}, geometry=layer).to_file(folder / "map.gpkg")
    bands = "B01,B02,B03,B04,B05,B06,B07,B08,B8A,B09,B11,B12"
    out = build([str(folder / "images")], str(folder / "c"), tile=SIDE, sensor="sentinel2", bands=bands.split(","),
                masks=str(folder / "masks"), near=None, overlap=None, workers=1)  # fmt: skip
    with_boxes(out, {n: boxes(n) for n in range(16)})
    return folder, valid, cover, geometries


def test_what_is_said_of_padded_tiles_is_true_of_their_valid_part(slanted, tmp_path, monkeypatch):
    monkeypatch.setattr("geomim.corpus.captions.caption.report", lambda folder: None)
    folder, valid, cover, geometries = slanted
    corpus = str(shutil.copytree(folder / "c", tmp_path / "c"))
    layers = {"vector": [str(folder / "map.gpkg")], "landcover": str(folder / "maps" / "s.tif")}
    caption(corpus, of=["boxes", "masks", "index"], placed=True, **layers)
    stored, count, partly = Corpus.open(corpus).array("mask", SIDE), Counter(), 0
    for row in said(corpus, "slot", "boxes", "row", "col", "valid_fraction"):
        window = np.s_[row["row"] : row["row"] + SIDE, row["col"] : row["col"] + SIDE]
        good, mask = valid[window], stored.read([row["slot"]])[0]
        assert abs(good.mean() - row["valid_fraction"]) < 1e-9
        partly += bool(row["said"]) and 0 < good.mean() < 1
        shares = [float((mask == value)[good].mean()) if good.any() else 0 for value in range(3)]
        mapped = [float((cover[window] == value)[good].mean()) if good.any() else 0 for value in (1, 2, 3)]
        tile = ground(good, WEST + row["col"] * GSD, NORTH - row["row"] * GSD, GSD)
        seen, sizes = as_seen(geometries, tile, GSD)
        odd = any(on_the_border(shape, tile, GSD) for _, shape in geometries)
        for text, origin in row["said"]:
            count[origin] += 1
            if origin.startswith("b2c"):
                own = [{"what": b["label"], "polygon": b["polygon"]} for b in row["boxes"]]
                Objects(WORDS, SIDE, gsd=GSD, valid=good).prove(text, own)
            elif origin.startswith("m2b"):
                Objects(MASKED, SIDE, gsd=GSD).prove(text, masks_of(mask, CLASSES, MASKED, good))
            elif origin == "index":
                prove_cover(text, dict(zip(("dense vegetation", "open water"), shares, strict=False)))
            elif origin == "landcover":
                prove_cover(text, dict(zip(("forest", "cropland", "villages"), mapped, strict=True)))
            elif not odd:
                prove_ground(text, LAYERS, seen, sizes)
    assert partly >= 8 and min(count[origin] for origin in ("b2c", "m2b", "index", "landcover", "vector")) > 12, count
    assert count["b2c-placed"] and count["m2b-placed"]
