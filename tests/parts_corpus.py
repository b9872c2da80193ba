"""A corpus with the small tables that decide, as a build leaves it, of pixels that a test gives."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from whole_arrays import write_array

from geomim.corpus.assemble import decide_anew, working, write_edges
from geomim.corpus.duplicates.fingerprint import block_means, content_hash, perceptual_hash
from geomim.corpus.lock import source_hash
from geomim.corpus.pipeline.copies import COPIES
from geomim.corpus.shards import write_groups
from geomim.corpus.store import CATALOGUE, SKIPPED, write_table
from geomim.sensors import get_sensor

RULES = {
    "min_valid": 0.5,
    "max_cloud": None,
    "where": None,
    "quota": 16,
    "only_licence": None,
    "non_commercial": False,
    "near": 4,
    "overlap": 0.5,
}
NAMES = {"image": ("tile", "band", "y", "x"), "valid": ("tile", "y", "x"), "mask": ("tile", "y", "x")}
FILLS = {"image": 0, "valid": True, "mask": 255}


def textures(count, size=32, seed=0, bands=3):
    """Tiles that no hash takes for each other, `(count, bands, size, size)` uint8."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, bands, 8, 8), dtype=np.uint8)
    return coarse.repeat(size // 8, 2).repeat(size // 8, 3)


def write_parts(path, tiles, sources=None, valid=None, masks=None, classes=(), recipe=None, **columns) -> Path:
    """Write a corpus of tiles `{size: (n, C, size, size)}` or `(n, C, size, size)`, one source a tile where None."""
    by_size = tiles if isinstance(tiles, dict) else {tiles.shape[-1]: tiles}
    rows = []
    for size, pixels in by_size.items():
        good = np.ones((len(pixels), size, size), bool) if valid is None else valid
        arrays = {"image": pixels, "valid": None if good.all() else good, "mask": masks}
        for name, values in arrays.items():
            if values is not None:
                folder = path / "tiles.zarr" / str(size) / name
                write_array(folder, values, NAMES[name], FILLS[name])
        phash = perceptual_hash(block_means(pixels, good)).view(np.int64)
        for slot, tile in enumerate(pixels):
            values = tile.reshape(len(tile), -1)[:, good[slot].reshape(-1)].astype(float)
            rows.append(
                {
                    "id": len(rows),
                    "size": size,
                    "slot": slot,
                    "row": 0,
                    "col": 0,
                    "height": size,
                    "width": size,
                    "xxh3": content_hash(tile),
                    "phash": int(phash[slot]),
                    "beside": content_hash(good[slot]) + ("" if masks is None else content_hash(masks[slot])),
                    "valid_fraction": float(good[slot].mean()),
                    "information": 9.0,
                    "low_information": False,
                    "split": "train",
                    "pixels": values.shape[1],
                    "mean": values.mean(1).tolist(),
                    "squares": ((values - values.mean(1, keepdims=True)) ** 2).sum(1).tolist(),
                }
            )
    uris = sources or [f"{path.name}-{number:03d}.tif" for number in range(len(rows))]
    for number, row in enumerate(rows):
        row["source"] = uris[number]
        row |= {name: values[number] for name, values in columns.items()}
    decided = ("kept", "reason", "duplicate_of", "cluster")
    schema = pa.schema(
        [
            *(field for field in CATALOGUE if field.name not in decided),
            ("beside", pa.string()),
            ("pixels", pa.int64()),
            ("mean", pa.list_(pa.float64())),
            ("squares", pa.list_(pa.float64())),
        ]
    )
    table = pa.Table.from_pylist(rows, schema)
    first = {}
    original = np.array([first.setdefault((row["xxh3"], row["beside"]), row["id"]) for row in rows])
    write_groups(path / "tiles.zarr")
    write_table(path / "catalogue" / "tiles-000000.parquet", table.append_column("original", pa.array(original)))
    ids = table["id"].to_numpy()
    copy = ids != original
    write_table(path / "catalogue" / "copies.parquet", pa.table([ids[copy], original[copy]], COPIES))
    write_edges(path / "catalogue", [])
    known = list(dict.fromkeys(uris))
    hashes = [source_hash(uri) or (-1, None) for uri in known]
    listed = {"uri": known, "bytes": [h[0] for h in hashes], "xxh3": pa.array([h[1] for h in hashes], pa.string())}
    listed["tiles"] = [uris.count(uri) for uri in known]
    write_table(path / "catalogue" / "sources.parquet", pa.table(listed))
    write_table(path / "skipped.parquet", SKIPPED.empty_table())
    meta = {
        "sensor": get_sensor("rgb").to_dict(),
        "recipe": {"source": known} | RULES | (recipe or {}),
        "protect": False,
        "classes": list(classes),
        "searched": 8,
    }
    with working() as workers:
        decide_anew(path, meta, workers)
    return path
