"""Scenes to staged tiles, many processes at once: what each worker of a build does, whole or not at all.

A task writes its tiles into a folder aside and renames it when it is done, so a build that was stopped goes on with
the tasks that are missing.
"""

from __future__ import annotations

import os
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from rasterio.windows import Window

from geomim.corpus.duplicates.blocks import block_hashes
from geomim.corpus.duplicates.fingerprint import block_means, content_hash, perceptual_hash, signature
from geomim.corpus.labels import Masks, majority
from geomim.corpus.lock import source_hash
from geomim.corpus.pipeline.plan import Plan, Task
from geomim.corpus.pipeline.shuffle import stage_folder
from geomim.corpus.quality import assess
from geomim.corpus.scenes import Scene
from geomim.corpus.slicing import Tile, slice_scene
from geomim.corpus.store import CATALOGUE, IGNORE, SKIPPED
from geomim.errors import GeomimError, InputError

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

BLOCKS = pa.schema(
    [("id", pa.int64()), ("size", pa.int32()), ("hash", pa.uint64()), ("x", pa.int16()), ("y", pa.int16())]
)
"""Block hashes of tiles without a place on Earth or a time: footprints cannot tell of them what overlaps."""

HASHES = pa.schema(
    [
        ("uri", pa.string()),
        ("bytes", pa.int64()),
        ("xxh3", pa.string()),
        ("tiles", pa.int64()),
        ("classes", pa.list_(pa.string())),
    ]
)
"""A row a source that was cut; `xxh3` is null where the file is remote; `classes` are those of its own mask."""

_CORNERS = 32  # block hashes of a tile up to 256 px; larger ones get more, as their area is
_BATCH_BYTES = 16 * 2**20  # pixels that are fingerprinted at once


def cut(plan: Plan, task: Task, folder: Path) -> None:
    """Cut the sources of a task into tiles and stage them in a folder, which appears when it is whole.

    A scene that fails half-way leaves no tile behind; it is listed in `skipped.parquet`.

    Args:
        plan: How.
        task: Which sources.
        folder: Where to; an interrupted attempt beside it is removed.
    """
    part = stage_folder(folder)
    skipped, hashes = [], []
    first = task.first_id
    with Staging(plan, part) as staging:
        for source in task.sources.to_pylist():
            mark = len(staging)
            try:
                with plan.open(source["uri"], source["card"]) as scene:
                    staging.add_scene(scene, source, first)
                    if len(staging) - mark != source["tiles"]:
                        raise InputError(f"'{source['uri']}' changed while the corpus was built: run the build again")
                    classes = list(scene.annotations.classes) if scene.annotations else []
                size, digest = source_hash(source["uri"]) or (-1, None)
                row = {"uri": source["uri"], "bytes": size, "xxh3": digest, "tiles": source["tiles"]}
                hashes.append(row | {"classes": classes})
            except (GeomimError, FileNotFoundError) as error:  # the file may vanish after it was read
                staging.roll_back(mark)
                skipped.append({"source": source["uri"], "reason": str(error)})
            first += source["tiles"]
        staging.finish()
    pq.write_table(pa.Table.from_pylist(skipped, SKIPPED), part / "skipped.parquet")
    pq.write_table(pa.Table.from_pylist(hashes, HASHES), part / "sources.parquet")
    os.replace(part, folder)


class Staging:
    """Tiles of one task on their way to disk, fingerprinted in batches; a context manager.

    Args:
        plan: How scenes are cut.
        folder: Receives raw files (`image-256.raw`, `valid-256.raw`, ... a size each, and `signature.raw` of all
            sizes), `tiles.parquet` and `blocks.parquet`.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan = plan
        self._folder = folder
        self._masks = _masks(plan.masks) if plan.masks else None
        self._waiting: list[tuple[dict[str, Any], Tile, np.ndarray | None]] = []
        self._waiting_bytes = 0
        self._rows: list[dict[str, Any]] = []  # of the tiles that are written
        self._blocks: list[dict[str, Any]] = []
        self._files: dict[str, Any] = {}
        self._bytes: dict[str, int] = {}  # of one tile in each file
        self._counts: Counter[int] = Counter()  # tiles of each size that are written
        self._masked: Counter[int] = Counter()  # those of them that have a mask

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, *_: Any) -> None:
        for file in self._files.values():
            file.close()

    def __len__(self) -> int:
        return len(self._rows) + len(self._waiting)

    def roll_back(self, count: int) -> None:
        """Forget all tiles but the first `count`."""
        if count >= len(self._rows):
            del self._waiting[count - len(self._rows) :]
            return
        self._waiting.clear()
        self._waiting_bytes = 0
        del self._rows[count:]
        self._counts = Counter(row["size"] for row in self._rows)
        self._masked = Counter(row["size"] for row in self._rows if "mask_place" in row)
        last = self._rows[-1]["id"] if self._rows else -1
        self._blocks = [block for block in self._blocks if block["id"] <= last]
        for name, file in self._files.items():
            kind, _, size = name.partition("-")
            tiles = {"signature": count, "mask": self._masked[int(size or 0)]}.get(kind, self._counts[int(size or 0)])
            file.seek(tiles * self._bytes[name])
            file.truncate()

    def add_scene(self, scene: Scene, source: dict[str, Any], first_id: int) -> None:
        """Take all tiles of an open scene.

        Raises:
            InputError: It cannot be read to its end; `roll_back` then removes what was taken.
        """
        labels = self._labels(scene)
        shared = _scene_facts(scene, source)
        for number, tile in enumerate(slice_scene(scene, self._plan.grid)):
            facts = shared | _tile_facts(scene, tile) | {"id": first_id + number}
            if self._waiting and not _alike(self._waiting[0][1], tile):
                self._flush()
            self._waiting.append((facts, tile, None if labels is None else _part(labels, tile)))
            self._waiting_bytes += tile.pixels.nbytes
            if self._waiting_bytes >= _BATCH_BYTES:
                self._flush()

    def _labels(self, scene: Scene) -> np.ndarray | None:
        if self._masks:
            return self._masks.read(scene.uri, scene.height, scene.width)
        return scene.annotations.mask if scene.annotations else None

    def finish(self) -> None:
        """Write what waits, and the facts of all tiles."""
        self._flush()
        pq.write_table(pa.Table.from_pylist(self._rows, FACTS), self._folder / "tiles.parquet", compression="zstd")
        if self._plan.crops:
            pq.write_table(pa.Table.from_pylist(self._blocks, BLOCKS), self._folder / "blocks.parquet")

    def _flush(self) -> None:
        if not self._waiting:
            return
        size = self._waiting[0][1].size
        pixels = np.stack([tile.pixels for _, tile, _ in self._waiting])
        valid = np.stack([tile.valid for _, tile, _ in self._waiting])
        means = block_means(pixels, valid)
        facts = self._facts(pixels, valid, means)
        masks = [mask for _, _, mask in self._waiting if mask is not None]
        masked = self._masked[size]
        for row, (own, tile, mask) in zip(facts, self._waiting, strict=True):
            row["beside"] = content_hash(tile.valid) + (content_hash(mask) if mask is not None else "")
            if mask is not None:
                row["mask_place"] = masked
                masked += 1
                if self._masks is not None:
                    row["label"] = majority(mask, tile.valid, self._masks.classes)
            self._rows.append(own | row)
            placed = own.get("geometry") is not None and own["time"] is not None  # compared by footprint
            if self._plan.crops and not placed and not row["low_information"]:
                self._take_blocks(own["id"], tile)
        self._write(f"image-{size}", pixels)
        self._write(f"valid-{size}", np.packbits(valid.reshape(len(valid), -1), axis=1))
        self._write("signature", signature(means))
        if masks:
            self._write(f"mask-{size}", np.stack(masks))
        self._masked[size] = masked
        self._counts[size] += len(pixels)
        self._waiting.clear()
        self._waiting_bytes = 0

    def _facts(self, pixels: np.ndarray, valid: np.ndarray, means: np.ndarray) -> list[dict[str, Any]]:
        """Hashes, quality and moments of a batch."""
        clouds = [tile.clouds for _, tile, _ in self._waiting]
        known = None if any(cloud is None for cloud in clouds) else np.stack([c for c in clouds if c is not None])
        quality = assess(pixels, valid, known)
        hashes = perceptual_hash(means).view(np.int64)
        mean, squares, counts = moments(pixels, valid)
        first = self._counts[self._waiting[0][1].size]
        return [
            {
                "xxh3": content_hash(tile.pixels),
                "phash": int(hashes[place]),
                "valid_fraction": float(quality.valid_fraction[place]),
                "cloud_fraction": None if known is None else float(quality.cloud_fraction[place]),
                "saturated_fraction": float(quality.saturated_fraction[place]),
                "information": float(quality.information[place]),
                "low_information": bool(quality.low_information[place]),
                "place": first + place,
                "pixels": int(counts[place]),
                "mean": mean[place].tolist(),
                "squares": squares[place].tolist(),
            }
            for place, (_, tile, _) in enumerate(self._waiting)
        ]

    def _take_blocks(self, number: int, tile: Tile) -> None:
        count = int(_CORNERS * max(1.0, (tile.size / 256) ** 2))
        hashes, xy = block_hashes(grey(tile.pixels), tile.valid, count)
        self._blocks += [
            {"id": number, "size": tile.size, "hash": int(one), "x": int(x), "y": int(y)}
            for one, (x, y) in zip(hashes, xy, strict=True)
        ]

    def _write(self, name: str, values: np.ndarray) -> None:
        if name not in self._files:
            self._files[name] = open(self._folder / f"{name}.raw", "wb")
            self._bytes[name] = values[0].nbytes
        self._files[name].write(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).data)


def read_raw(folder: Path, name: str, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Map one raw file of a finished task.

    Args:
        folder: The task's folder.
        name: `image-<size>` (native), `valid-<size>` (packed bits), `mask-<size>` (uint8), `signature` (float16).
        dtype: Type of its numbers.
        shape: Of one tile.

    Returns:
        `(n, *shape)`, read-only.
    """
    file = folder / f"{name}.raw"
    if not file.exists() or file.stat().st_size == 0:
        return np.empty((0, *shape), dtype)
    return np.memmap(file, dtype, mode="r").reshape(-1, *shape)


def grey(pixels: np.ndarray) -> np.ndarray:
    """Mean of the bands, `(C, H, W)` to `(H, W)` float32: what block hashes are taken of."""
    return pixels.mean(0, dtype=np.float32)


def moments(pixels: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and sum of squared deviations of each band over a tile's valid pixels.

    Args:
        pixels: `(n, C, H, W)`.
        valid: `(n, H, W)` bool.

    Returns:
        Means `(n, C)` and sums `(n, C)` float64, zeros where a tile has no valid pixel; valid pixels `(n,)` int64.
    """
    counts = valid.reshape(len(valid), -1).sum(1)
    flat = np.ascontiguousarray(pixels).reshape(*pixels.shape[:2], -1)
    if pixels.dtype.kind in "iu" and pixels.dtype.itemsize <= 2 and valid.all():
        total, square = _sums(flat)  # whole numbers add up in any order, so many at once
        mean = total / counts[:, None]
        return mean, square - total * mean, counts
    mean, squares = np.zeros(pixels.shape[:2]), np.zeros(pixels.shape[:2])
    _moments(flat, np.ascontiguousarray(valid).reshape(len(valid), -1), mean, squares)
    return mean, squares, counts


@numba.njit(cache=True, nogil=True)
def _sums(pixels):  # pragma: no cover - compiled
    """Sums of numbers and of their squares; runs of 4096 stay in 32 bits, which a processor adds many at once."""
    total, square = np.zeros(pixels.shape[:2], np.int64), np.zeros(pixels.shape[:2], np.int64)
    for n in range(pixels.shape[0]):
        for c in range(pixels.shape[1]):
            for start in range(0, pixels.shape[2], 4096):
                one, two = np.int32(0), np.int64(0)
                for value in pixels[n, c, start : start + 4096]:
                    one += np.int32(value)
                    two += np.int64(np.uint32(np.int32(value) * np.int32(value)))
                total[n, c] += one
                square[n, c] += two
    return total, square


@numba.njit(cache=True, nogil=True)
def _moments(pixels, valid, mean, squares):  # pragma: no cover - compiled
    for n in range(pixels.shape[0]):
        for c in range(pixels.shape[1]):
            total, count = 0.0, 0
            for p in range(pixels.shape[2]):
                if valid[n, p]:
                    total += pixels[n, c, p]
                    count += 1
            if count:
                middle, square = total / count, 0.0
                for p in range(pixels.shape[2]):
                    if valid[n, p]:
                        square += (pixels[n, c, p] - middle) ** 2
                mean[n, c], squares[n, c] = middle, square


def _alike(one: Tile, two: Tile) -> bool:
    """Whether two tiles may be in one batch: of one size, and clouds known of both or of none."""
    return one.size == two.size and (one.clouds is None) == (two.clouds is None)


@lru_cache(maxsize=1)
def _masks(folder: str) -> Masks:
    return Masks(folder)


def _part(labels: np.ndarray, tile: Tile) -> np.ndarray:
    mask = np.full((tile.size, tile.size), IGNORE, np.uint8)
    inside = labels[tile.row : tile.row + tile.size, tile.col : tile.col + tile.size]
    mask[: inside.shape[0], : inside.shape[1]] = inside
    return mask


def _scene_facts(scene: Scene, source: dict[str, Any]) -> dict[str, Any]:
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


def _tile_facts(scene: Scene, tile: Tile) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "size": tile.size,
        "row": tile.row,
        "col": tile.col,
        "height": tile.size,
        "width": tile.size,
        "transform": list(tile.transform)[:6] if tile.transform else None,
    }
    outline = scene.footprint(Window(tile.col, tile.row, tile.size, tile.size)) if scene.crs else None
    if outline is not None:
        box = dict(zip(("xmin", "ymin", "xmax", "ymax"), outline.bounds, strict=True))
        facts |= {"geometry": shapely.to_wkb(outline, byte_order=1), "bbox": box}
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
