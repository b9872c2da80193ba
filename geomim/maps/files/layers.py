"""Layers of polygons as files, written a batch at a time: GeoPackage and GeoParquet."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import pyproj
import shapely
from rasterio.errors import RasterioError

from geomim.errors import InputError
from geomim.maps.files.rasters import MADE, aside, open_map

ENDINGS = (".gpkg", ".parquet")
"""Of layers that can be written."""
Write = Callable[[Mapping[str, np.ndarray], np.ndarray], None]
"""Takes columns `(n,)` by name, the same ones each time, words as objects, and the polygons `(n,)` of the rows."""


@contextmanager
def layer(path: Path, crs: Any, tags: Mapping[str, str] | None = None) -> Iterator[Write]:
    """A file to write polygons to, whose ending says which; it is whole or not there.

    Args:
        path: The file; one that exists gives way. A GeoPackage's layer is called as it is.
        crs: `rasterio.crs.CRS` of the polygons, or None.
        tags: What is to be read from the file by `tags_of`.
    """
    with aside(path) as part:
        if path.suffix.lower() == ".parquet":
            with _parquet(part, crs, tags or {}) as write:
                yield write
        else:
            yield _package(part, path.stem, crs, tags or {})


def check_replaced(flag: str, path: Path, scene: str) -> None:
    """Say that a raster or layer is replaced, which is of the same scene.

    Args:
        flag: What named it.
        path: Where one is to be written.
        scene: What it will say in its tag `SCENE` that it is of.

    Raises:
        InputError: What is there is of another scene, or not made by geomim.
    """
    if not path.exists():
        return
    tags = tags_of(path)
    if MADE not in tags or "SCENE" not in tags:
        raise InputError(f"'{path}' is there and is nothing that geomim made of a scene: name another file with {flag}")
    if tags["SCENE"] != scene:
        raise InputError(f"'{path}' is of '{tags['SCENE']}', not of '{scene}': name another file with {flag}")
    print(f"note: '{path}' is there already: it is replaced")


def tags_of(path: Path) -> dict[str, str]:
    """The tags that a raster or layer was written with; none of another file."""
    try:
        if path.suffix.lower() not in ENDINGS:
            with open_map(path) as raster:
                return dict(raster.tags())
        if path.suffix.lower() == ".parquet":
            told = pq.read_metadata(path).metadata or {}
            return {
                name.decode(): value.decode() for name, value in told.items() if name not in (b"geo", b"ARROW:schema")
            }
        return dict(pyogrio.read_info(path)["dataset_metadata"] or {})
    except (pa.ArrowException, pyogrio.errors.DataSourceError, RasterioError, OSError):
        return {}


def say(said: Sequence[str]) -> None:
    """Print notes, and last what was written."""
    *notes, wrote = said
    for note in notes:
        print(f"note: {note}")
    print(wrote)


def _package(part: Path, name: str, crs: Any, tags: Mapping[str, str]) -> Write:
    def write(columns: Mapping[str, np.ndarray], shapes: np.ndarray) -> None:
        frame = geopandas.GeoDataFrame(dict(columns), geometry=shapes, crs=crs and crs.to_wkt())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "'crs' was not provided")
            how = {"mode": "a"} if part.exists() else {"mode": "w", "dataset_metadata": tags}
            frame.to_file(part, driver="GPKG", layer=name, geometry_type="Polygon", engine="pyogrio", **how)

    return write


@contextmanager
def _parquet(part: Path, crs: Any, tags: Mapping[str, str]) -> Iterator[Write]:
    writer: list[pq.ParquetWriter] = []
    low, high = np.full(2, np.inf), np.full(2, -np.inf)

    def write(columns: Mapping[str, np.ndarray], shapes: np.ndarray) -> None:
        own = {name: pa.array(one, pa.string() if one.dtype == object else None) for name, one in columns.items()}
        table = pa.table(own | {"geometry": pa.array(shapely.to_wkb(shapes), pa.binary())})
        if not writer:
            writer.append(pq.ParquetWriter(part, table.schema, compression="zstd"))
        writer[0].write_table(table)
        if len(shapes):
            bounds = shapely.total_bounds(shapes)
            low[:], high[:] = np.minimum(low, bounds[:2]), np.maximum(high, bounds[2:])

    try:
        yield write
        told: dict[str, Any] = {"encoding": "WKB", "geometry_types": ["Polygon"] if np.isfinite(low).all() else []}
        told["crs"] = pyproj.CRS.from_wkt(crs.to_wkt()).to_json_dict() if crs else None
        told |= {"bbox": [*low.tolist(), *high.tolist()]} if np.isfinite(low).all() else {}
        geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": told}}
        for one in writer:
            one.add_key_value_metadata({**tags, "geo": json.dumps(geo)})
    finally:
        for one in writer:
            one.close()
