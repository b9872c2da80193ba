"""What cutting knows of a tile besides its pixels: one row of `tiles.parquet`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import shapely

from geomim.corpus.scenes import Scene, scene_name
from geomim.corpus.slicing import Grid, Tile, windows
from geomim.corpus.store import CATALOGUE

_DECIDED = ("slot", "kept", "reason", "duplicate_of", "cluster")
FACTS = pa.schema(
    [
        *(field for field in CATALOGUE if field.name not in _DECIDED),
        pa.field("place", pa.int64(), nullable=False),
        pa.field("mask_place", pa.int64()),
        pa.field("beside", pa.string(), nullable=False),
        pa.field("pixels", pa.int64(), nullable=False),
        pa.field("mean", pa.list_(pa.float64()), nullable=False),
        pa.field("squares", pa.list_(pa.float64()), nullable=False),
    ]
)
"""What cutting knows of a tile. `place` counts the tiles of its size in the task, and `mask_place` those of them that
have a mask; `beside` is a hash of validity and mask, which exact copies share, too; `pixels` valid ones have `mean` and
sum of squared deviations `squares`, a number a band."""

_AT_ONCE = 256  # outlines


def scene_facts(scene: Scene, source: dict[str, Any]) -> dict[str, Any]:
    """What all tiles of a scene share."""
    epsg = scene.crs.to_epsg() if scene.crs else None
    said = scene.annotations
    return {
        "source": scene.uri,
        "dataset": source["dataset"],
        "sensor": scene.sensor.name,
        "epsg": epsg,
        "crs_wkt": scene.crs.to_wkt() if scene.crs and epsg is None else None,
        "time": scene.time,
        "gsd": scene.gsd,
        "licence": source["licence"] or scene.licence,
        "attribution": source["attribution"],
        "non_commercial": source["non_commercial"],
        "split": source["split"],
        "label": source["label"] or (said.label if said else None),
        "captions": source["captions"] or (list(said.captions) if said and said.captions else None),
    }


def outlines(scene: Scene, grid: Grid) -> Iterator[dict[str, Any]]:
    """Footprint and bounding box of each tile that `slice_scene` gives, nothing where it has no place on Earth."""
    squares = windows(scene.height, scene.width, grid, scene_name(scene.uri))
    for start in range(0, len(squares), _AT_ONCE):
        found = scene.footprints(squares[start : start + _AT_ONCE])
        corners = shapely.bounds(found).tolist()
        for outline, corner in zip(shapely.to_wkb(found, byte_order=1).tolist(), corners, strict=True):
            box = dict(zip(("xmin", "ymin", "xmax", "ymax"), corner, strict=True))
            yield {} if outline is None else {"geometry": outline, "bbox": box}


def tile_facts(scene: Scene, tile: Tile) -> dict[str, Any]:
    """Where a tile lies in its scene, and the objects in it."""
    facts: dict[str, Any] = {
        "size": tile.size,
        "row": tile.row,
        "col": tile.col,
        "height": tile.size,
        "width": tile.size,
        "transform": list(tile.transform)[:6] if tile.transform else None,
    }
    if scene.annotations and scene.annotations.boxes:
        facts["boxes"] = _boxes(scene, tile)
    return facts


def _boxes(scene: Scene, tile: Tile) -> list[dict[str, Any]] | None:
    """Objects whose middle lies in the tile, in the tile's own pixels."""
    inside = []
    assert scene.annotations is not None
    for box in scene.annotations.boxes:
        x, y = np.array(box.polygon[::2]) - tile.col, np.array(box.polygon[1::2]) - tile.row
        if 0 <= x.mean() < tile.size and 0 <= y.mean() < tile.size:
            inside.append({"polygon": np.stack([x, y], 1).ravel().tolist(), "label": box.label})
    return inside or None
