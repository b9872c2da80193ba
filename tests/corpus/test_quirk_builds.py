"""Every awkward GeoTIFF through the whole builder: what is cut, what is kept, and what is said of the rest."""

import re
from collections import Counter

import numpy as np
import pytest
import rasterio
import shapely
from rasterio.windows import Window

from geomim.corpus import build as building
from geomim.corpus.build import build
from geomim.corpus.store import Corpus
from geomim.errors import BandError, InputError

RGB = ("red", "green", "blue")

# file, edge of a tile, its bands, tiles, kept ones, and what is said of those dropped for another reason than nodata
PLAIN = [
    ("geotiff_test_data/GeogToWGS84GeoKey5.tif", 64, RGB, 4, 3, {}),  # a palette, on a datum of its own
    ("geotiff_test_data/vestfold.tif", 256, ("gray",), 16, 5, {}),  # strips of two rows, nodata -3.4e38
    ("rasterio/RGB.byte.tif", 256, RGB, 12, 6, {}),
    ("rasterio/RGBA.uint16.tif", 128, RGB, 20, 6, {"exact duplicate": 1}),  # blue, green, red, alpha; constant
    ("rasterio/alpha.tif", 64, RGB, 400, 4, {}),
    ("rasterio/float_nan.tif", 2, ("gray",), 2, 1, {}),
    ("rasterio/float_raster_with_nodata.tif", 4, ("gray",), 12, 4, {"exact duplicate": 2}),
    ("rasterio/goes.tif", 128, RGB, 25, 13, {}),  # the Earth from far above, and space around it
    ("rasterio/rotated.tif", 8, ("gray",), 4, 2, {}),
    ("rasterio/test_esri_wkt.tif", 2, ("gray",), 1, 1, {}),
    ("rio_tiler/cog_cmap.tif", 1024, RGB, 63, 39, {}),
    ("rio_tiler/cog_dateline.tif", 512, ("gray",), 25, 24, {}),
    ("rio_tiler/cog_gcps.tif", 256, ("gray",), 20, 15, {}),
    ("rio_tiler/cog_hirise_mars.tif", 256, RGB, 35, 28, {}),
    ("rio_tiler/cog_int16.tif", 512, ("gray",), 36, 14, {}),
    ("rio_tiler/cog_nodata_nan.tif", 128, ("Gamma0_VV",), 25, 8, {}),
    ("rio_tiler/cog_rgb_mask.tif", 128, RGB, 6, 6, {}),
    ("rio_tiler/cog_rgba.tif", 128, RGB, 6, 5, {}),
    ("rio_tiler/cog_uint8_rgb_nodata.tif", 128, RGB, 4, 1, {"exact duplicate": 2}),
]
COLOURS = ("GeogToWGS84GeoKey5.tif", "cog_cmap.tif")  # stored as indices into a palette


@pytest.fixture
def made(data_dir, tmp_path, monkeypatch):
    """Builds a corpus of some of the files, without its pictures."""
    monkeypatch.setattr(building, "write_report", lambda folder: None)

    def make(names, **options):
        files = [str(data_dir / "geotiff_quirks" / name) for name in names]
        # padded, so that the figures below say of every pixel what became of it once
        return Corpus.open(build(files, str(tmp_path / "corpus"), workers=1, edge="pad", **options))

    return make


def measured(file):
    """Validity `(H, W)` as GDAL sees that of each band, and False where one is not finite."""
    with rasterio.open(file) as raster:
        valid = (raster.read_masks() > 0).all(axis=0)
        if np.dtype(raster.dtypes[0]).kind == "f":
            valid &= np.isfinite(raster.read()).all(axis=0)
    return valid


def said(tiles):
    """How many tiles were dropped for what, in words."""
    return Counter(re.split(r" (?:[\d<]|of )", reason)[0] for reason in tiles["reason"] if reason)


@pytest.mark.parametrize(("name", "tile", "bands", "count", "kept", "others"), PLAIN)
def test_a_readable_file_gives_its_tiles(made, data_dir, name, tile, bands, count, kept, others):
    corpus = made([name], tile=tile)
    tiles = corpus.table().to_pydict()
    assert corpus.sensor.names == bands and len(corpus.skipped()) == 0
    assert len(tiles["id"]) == count and sum(tiles["kept"]) == kept

    valid = measured(data_dir / "geotiff_quirks" / name)
    expected = [
        valid[row : row + tile, col : col + tile].sum() / tile**2
        for row, col in zip(tiles["row"], tiles["col"], strict=True)
    ]
    assert tiles["valid_fraction"] == pytest.approx(expected)
    reasons = {"no valid pixel": sum(share == 0 for share in expected)}
    reasons["valid fraction"] = sum(0 < share < 0.5 for share in expected)
    assert said(tiles) == Counter({reason: number for reason, number in (reasons | others).items() if number})
    assert np.isfinite(corpus.contract.mean).all() and np.abs(corpus.contract.mean).max() < 1e5  # no nodata in it


@pytest.mark.parametrize(("name", "tile"), [case[:2] for case in PLAIN if not case[0].endswith(COLOURS)])
def test_kept_pixels_are_those_of_the_file(made, data_dir, name, tile):
    corpus = made([name], tile=tile)
    row = next(row for row in corpus.table().to_pylist() if row["kept"])
    with rasterio.open(data_dir / "geotiff_quirks" / name) as raster:
        colours = [colour.name for colour in raster.colorinterp]
        bands = [colours.index(band) + 1 for band in RGB] if "red" in colours else [1]
        window = Window(row["col"], row["row"], tile, tile)
        expected = raster.read(bands, window=window, boundless=raster.gcps[1] is None, fill_value=0)
    inside = (slice(None), slice(0, expected.shape[1]), slice(0, expected.shape[2]))
    pixels, seen = corpus.tiles().read([0])[0], corpus.tiles().valid([0])[0]
    assert pixels.dtype == expected.dtype
    np.testing.assert_array_equal(pixels[inside][:, seen[inside[1:]]], expected[:, seen[inside[1:]]])


def test_a_palette_becomes_its_colours(made, data_dir):
    corpus = made(["geotiff_test_data/GeogToWGS84GeoKey5.tif"], tile=64)
    with rasterio.open(data_dir / "geotiff_quirks" / "geotiff_test_data" / "GeogToWGS84GeoKey5.tif") as raster:
        table = raster.colormap(1)
        indices = raster.read(1, window=Window(0, 0, 64, 64))
    expected = np.array([table[index][:3] for index in range(256)], np.uint8)[indices]
    assert np.array_equal(corpus.tiles().read([0])[0], np.moveaxis(expected, -1, 0))


def test_footprints_are_where_the_tiles_are(made):
    """Across the date line in two halves; none where a tile is not on the Earth; rotated as the raster is."""
    across = made(["rio_tiler/cog_dateline.tif"], tile=512).table().to_pylist()
    outlines = [shapely.from_wkb(row["geometry"]) for row in across]
    assert Counter(outline.geom_type for outline in outlines) == {"Polygon": 20, "MultiPolygon": 5}
    assert all(outline.area < 1 for outline in outlines)  # degrees: none goes around the world


@pytest.mark.parametrize(
    ("name", "tile", "placed"),
    [
        ("rasterio/goes.tif", 128, 6),  # a tile that sees space has no outline on the ground
        ("rio_tiler/cog_hirise_mars.tif", 512, 0),
        ("rasterio/float_nan.tif", 2, 0),  # a transform and no reference system
        ("rasterio/rotated.tif", 8, 0),
        ("rio_tiler/cog_gcps.tif", 512, 6),
    ],
)
def test_what_has_no_place_on_earth_has_no_footprint(made, name, tile, placed):
    rows = made([name], tile=tile).table().to_pylist()
    assert sum(row["geometry"] is not None for row in rows) == placed
    assert all(row["epsg"] is None for row in rows if not placed)


def test_a_rotated_raster_keeps_its_rotation(made):
    row = made(["rasterio/rotated.tif"], tile=8).table().to_pylist()[0]
    assert row["transform"][1] != 0 and row["transform"][3] != 0


def test_ground_control_points_place_tiles_as_they_are_or_warped(made, tmp_path):
    cut = made(["rio_tiler/cog_gcps.tif"], tile=256).table().to_pylist()
    assert all(row["transform"] is None and row["geometry"] for row in cut)
    (tmp_path / "corpus").rename(tmp_path / "as-it-is")
    warped = made(["rio_tiler/cog_gcps.tif"], tile=256, warp="auto").table().to_pylist()
    assert all(row["transform"] is not None and row["geometry"] for row in warped)
    before, after = (
        shapely.union_all([shapely.from_wkb(row["geometry"]) for row in rows if row["valid_fraction"] > 0.9])
        for rows in (cut, warped)
    )
    assert after.within(before.buffer(0.3)) and sum(row["valid_fraction"] for row in warped) == pytest.approx(
        sum(row["valid_fraction"] for row in cut), rel=0.15
    )


def test_bands_without_names_are_refused_with_the_flag_and_then_cut_as_they_are_meant(made):
    with pytest.raises((BandError, InputError), match=r"--sensor NAME or --bands"):
        made(["rio_tiler/cog_scale.tif"], tile=64)
    corpus = made(["rio_tiler/cog_scale.tif"], tile=64, bands=["first", "second"])
    assert len(corpus.table()) == 16 and corpus.tiles().dtype == np.float32
    assert (corpus.sensor.scale, corpus.sensor.offset) == (1.0, 0.0)
    first, second = corpus.contract.mean
    assert 1000 < first < 1001.4 and 2000 < second < 2013.5  # a scale and an offset for each band


def test_a_scene_without_a_measurement_makes_no_corpus(made):
    with pytest.raises(InputError, match=r"no tile is kept.*no valid pixel"):
        made(["rasterio/all-nodata.tif"])


def test_a_truncated_file_is_skipped_and_named(made):
    with pytest.raises(InputError, match=r"1 skipped sources: .*corrupt\.tif' cannot be read"):
        made(["rasterio/corrupt.tif"])


def test_the_rest_is_built_where_some_cannot_be_read(made):
    corpus = made(["rasterio/corrupt.tif", "rasterio/RGB.byte.tif", "rasterio/RGBA.uint16.tif"], tile=256)
    skipped = {row["source"].rsplit("/", 1)[1]: row["reason"] for row in corpus.skipped().to_pylist()}
    assert "cannot be read" in skipped["corrupt.tif"] and "stores uint16 and 2 other" in skipped["RGBA.uint16.tif"]
    assert sum(corpus.table()["kept"].to_pylist()) == 6


def test_one_picture_with_a_mask_and_with_alpha_is_kept_once(made):
    tiles = made(["rio_tiler/cog_rgb_mask.tif", "rio_tiler/cog_rgba.tif"], tile=128).table().to_pylist()
    dropped = [row for row in tiles if "duplicate of" in row["reason"] or "overlap" in row["reason"]]
    assert len(dropped) >= 4 and all(row["duplicate_of"] is not None for row in dropped)
    places = Counter((row["row"], row["col"]) for row in tiles if row["kept"])
    assert sum(places.values()) <= 8
