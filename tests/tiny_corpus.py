"""A corpus small enough to train on in a test: smooth textures, written by the store itself."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from whole_arrays import write_array

from geomim.corpus.shards import write_groups
from geomim.corpus.store import CATALOGUE, write_catalogue, write_json
from geomim.sensors import Sensor, get_sensor

NAMES = ("tile", "band", "y", "x")


def write_corpus(
    path: Path,
    count: int = 24,
    size: int = 24,
    nodata: bool = False,
    sensor: Sensor | None = None,
    seed: int = 0,
    gsds: list[float | None] | None = None,
) -> Path:
    """Write `count` tiles: two classes, the last quarter validation; with `nodata`, tile i lacks its top i/count."""
    sensor = sensor or get_sensor("rgb")
    random = np.random.default_rng(seed)
    coarse = random.uniform(20, 230, (count, len(sensor.bands), size // 4, size // 4))
    images = coarse.repeat(4, 2).repeat(4, 3).astype("uint8" if sensor.name == "rgb" else "uint16")
    path.mkdir(parents=True)
    arrays = {"image": images}
    if nodata:
        arrays["valid"] = (np.arange(size)[:, None] >= np.arange(count)[:, None, None] * size // count) & np.ones(
            (1, 1, size), bool
        )
        images[~arrays["valid"][:, None].repeat(images.shape[1], 1)] = 255
    for name, values in arrays.items():
        names = NAMES if values.ndim == 4 else (NAMES[0], *NAMES[2:])
        write_array(path / "tiles.zarr" / str(size) / name, values, names)
    write_groups(path / "tiles.zarr")
    columns = {
        "id": np.arange(count) + 100,
        "slot": np.arange(count),
        "size": [size] * count,
        "source": ["scene.tif"] * count,
        "kept": [True] * count,
        "reason": [""] * count,
        "split": ["train"] * (count - count // 4) + ["val"] * (count // 4),
        "gsd": gsds or [None] * count,
        "label": ["field", "forest"] * (count // 2),
    }
    fields = {field.name: pa.array(columns.get(field.name, [None] * count), field.type) for field in CATALOGUE}
    write_catalogue(path / "catalogue.parquet", [pa.table(fields, CATALOGUE)])
    bands = len(sensor.bands)
    write_json(
        path / "corpus.json",
        {
            "format_version": 1,
            "geomim_version": "0",
            "sensor": sensor.to_dict(),
            "statistics": {"mean": [125.0] * bands, "std": [60.0] * bands, "split": "train", "pixels": images.size},
            "licences": ["CC0-1.0"],
            "attributions": [],
            "recipe": {},
            "versions": {},
            "sizes": {str(size): {"tiles": count}},
            "classes": ["field", "forest"],
        },
    )
    return path
