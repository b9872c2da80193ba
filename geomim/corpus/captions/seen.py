"""What of a tile is seen: the pixels that are measurements, as shapes on the tile and on Earth.

What ends less than a pixel from where they end, at the tile's border or at nodata of any form, may go on there.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.features import shapes

from geomim.corpus.scenes.footprints import affine, on_ground
from geomim.corpus.store import Corpus

FACTS = ["size", "slot", "valid_fraction"]
"""Columns that say where to read of a tile which pixels are measurements."""
_DEGREE = 111_320.0  # metres of a degree of latitude
_SEGMENT = 4.0  # pixels of an edge, which may be a curve in longitude and latitude


class Place(NamedTuple):
    """Where a tile has measurements, and what of that is a pixel or more from their end; longitude and latitude."""

    valid: Any
    within: Any


def read_valid(corpus: Corpus, tile: Mapping[str, Any]) -> np.ndarray | None:
    """Which pixels of a tile are measurements, `(H, W)` bool; None where all are, or its pixels are not there.

    Args:
        corpus: Of the tile.
        tile: Row with `FACTS`.
    """
    there = tile["slot"] >= 0 and tile["valid_fraction"] < 1
    valid = corpus.array("valid", tile["size"]) if there else None
    return None if valid is None else valid.read([tile["slot"]])[0].astype(bool)


def within(valid: np.ndarray) -> np.ndarray:
    """Pixels whose neighbours are all in the tile and valid: what ends among them is seen whole."""
    from scipy import ndimage

    return ndimage.binary_erosion(valid, np.ones((3, 3)))


def outline(pixels: np.ndarray) -> Any:
    """Some pixels `(H, W)` bool as one geometry in columns and rows."""
    parts = shapes(pixels.astype(np.uint8), mask=pixels)
    return shapely.union_all([shapely.geometry.shape(part) for part, _ in parts])


def place_of(tile: Mapping[str, Any], valid: np.ndarray | None) -> Place | None:
    """Where a tile lies; None where nothing says where its pixels do.

    Args:
        tile: Row with `size`, `gsd`, `geometry` (not null), `transform`, `epsg` and `crs_wkt`.
        valid: `(H, W)` bool; None where all are.
    """
    footprint, size = shapely.from_wkb(tile["geometry"]), tile["size"]
    if tile["transform"] is None:  # ground control points: the catalogue has the place of its corners alone
        north = np.abs(shapely.bounds(footprint)[[1, 3]]).max()
        margin = (tile["gsd"] or 0.0) / _DEGREE / max(np.cos(np.radians(north)), 0.01)
        return Place(footprint, shapely.buffer(footprint, -margin)) if valid is None else None
    crs, pixels = crs_of(tile["epsg"], tile["crs_wkt"]), affine(Affine(*tile["transform"]))

    def ground(shape: Any) -> Any:
        return on_ground(crs, pixels, shapely.segmentize(shape, _SEGMENT))

    if valid is None:
        both = footprint, ground(shapely.box(1, 1, size - 1, size - 1))
    else:
        both = ground(outline(valid)), ground(outline(within(valid)))
    return None if None in both else Place(*both)


@lru_cache(256)
def crs_of(epsg: int | None, wkt: str | None) -> CRS:
    """The coordinate reference system of a tile."""
    return CRS.from_wkt(wkt) if epsg is None else CRS.from_epsg(epsg)
