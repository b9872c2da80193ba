"""Scenes to staged tiles, many processes at once: what each worker of a build does, whole or not at all.

A task is a run of consecutive scenes. It writes its tiles into a folder aside and renames it when it is done, so a
build that was stopped goes on with the tasks that are missing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from rasterio.windows import Window

from geomim.corpus.duplicates.fingerprint import GRID, block_means, content_hash, perceptual_hash, signature
from geomim.corpus.labels import Masks, majority
from geomim.corpus.quality import assess
from geomim.corpus.scenes import Scene, open_scene
from geomim.corpus.slicing import Tile, slice_scene, windows
from geomim.corpus.store import CATALOGUE, IGNORE, SKIPPED
from geomim.errors import GeomimError
from geomim.sensors import Sensor

_DECIDED = ("slot", "kept", "reason", "duplicate_of", "cluster")
FACTS = pa.schema([field for field in CATALOGUE if field.name not in _DECIDED])
"""Columns that slicing knows; the others are decided when all tiles are known."""

SCENES_PER_TASK = 256
BYTES_PER_TASK = 128 * 2**20  # of pixels: a task is worth starting, and losing one loses little
_BATCH_BYTES = 16 * 2**20  # pixels that are fingerprinted at once


@dataclass(frozen=True)
class Plan:
    """How scenes are read and cut; the same for every task of a build.

    Attributes:
        tile: Tile edge in pixels.
        stride: Step between tiles in pixels.
        sensor: Sensor as the user gave it, or None.
        bands: Bands as the user gave them, or None.
        licence: For all sources; where None, what each file says.
        attribution: For all sources.
        masks: Folder of label rasters, or None.
    """

    tile: int
    stride: int
    sensor: Sensor | None
    bands: list[str] | None
    licence: str | None
    attribution: str | None
    masks: str | None


@dataclass(frozen=True)
class Source:
    """A scene that a task is to cut.

    Attributes:
        uri: Where it is.
        first_id: Id of its first tile.
        split: `train`, `val` or `test`.
        label: Class of all its tiles, or None.
    """

    uri: str
    first_id: int
    split: str
    label: str | None


@dataclass(frozen=True)
class Header:
    """What opening a scene says about it.

    Attributes:
        uri: Where it is.
        tiles: Number of tiles on its grid.
        sensor: Bands, unit and scale.
        dtype: Type of its numbers.
        refused: One sentence why it cannot be used, or "".
    """

    uri: str
    tiles: int
    sensor: Sensor | None
    dtype: str
    refused: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them back."""
        return asdict(self) | {"sensor": self.sensor.to_dict() if self.sensor else None}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Header:
        """Read what `to_dict` wrote."""
        return cls(**values | {"sensor": Sensor.from_dict(values["sensor"]) if values["sensor"] else None})


def scan(plan: Plan, uris: Sequence[str]) -> list[Header]:
    """Open scenes without reading their pixels."""
    headers = []
    for uri in uris:
        try:
            with open_scene(uri, plan.sensor, plan.bands) as scene:
                tiles = len(windows(scene.height, scene.width, plan.tile, plan.stride))
                headers.append(Header(uri, tiles, scene.sensor, scene.dtype.name, ""))
        except GeomimError as error:
            headers.append(Header(uri, 0, None, "", str(error)))
    return headers


def cut(plan: Plan, sources: Sequence[Source], folder: Path) -> None:
    """Cut scenes into tiles and stage them in a folder, which appears when it is whole.

    A scene that fails half-way leaves no tile behind; it is listed in `skipped.parquet`.

    Args:
        plan: How.
        sources: Which scenes, in order.
        folder: Where to; an interrupted attempt beside it is removed.
    """
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    skipped = []
    with Staging(plan, part) as staging:
        for source in sources:
            mark = len(staging)
            try:
                with open_scene(source.uri, plan.sensor, plan.bands) as scene:
                    staging.add_scene(scene, source)
            except GeomimError as error:
                staging.roll_back(mark)
                skipped.append({"source": source.uri, "reason": str(error)})
        staging.finish()
    pq.write_table(pa.Table.from_pylist(skipped, SKIPPED), part / "skipped.parquet")
    os.replace(part, folder)


class Staging:
    """Tiles of one task on their way to disk, fingerprinted in batches; a context manager.

    Args:
        plan: How scenes are cut.
        folder: Receives one raw file for each of `STREAMS` that there is, and `tiles.parquet`.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan = plan
        self._folder = folder
        self._masks = _masks(plan.masks) if plan.masks else None
        self._waiting: list[tuple[dict[str, Any], Tile, np.ndarray | None]] = []
        self._rows: list[dict[str, Any]] = []  # of the tiles that are written
        self._files: dict[str, Any] = {}
        self._sizes: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._rows) + len(self._waiting)

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, *_: Any) -> None:
        for file in self._files.values():
            file.close()

    def add_scene(self, scene: Scene, source: Source) -> None:
        """Take all tiles of an open scene.

        Raises:
            InputError: It cannot be read to its end; `roll_back` then removes what was taken.
        """
        size = self._plan.tile
        labels = self._masks.read(scene.uri, scene.height, scene.width) if self._masks else None
        shared = _scene_facts(scene, source, self._plan)
        for number, tile in enumerate(slice_scene(scene, size, self._plan.stride)):
            facts = shared | _tile_facts(scene, tile, size) | {"id": source.first_id + number}
            self._waiting.append((facts, tile, None if labels is None else _part(labels, tile, size)))
            if len(self._waiting) * tile.pixels.nbytes >= _BATCH_BYTES:
                self._flush()

    def roll_back(self, count: int) -> None:
        """Forget all tiles but the first `count`."""
        written = len(self._rows)
        if count >= written:
            del self._waiting[count - written :]
            return
        self._waiting.clear()
        del self._rows[count:]
        for name, file in self._files.items():
            file.seek(count * self._sizes[name])
            file.truncate()

    def finish(self) -> None:
        """Write what waits, and the facts of all tiles."""
        self._flush()
        pq.write_table(pa.Table.from_pylist(self._rows, FACTS), self._folder / "tiles.parquet", compression="zstd")

    def _flush(self) -> None:
        if not self._waiting:
            return
        pixels = np.stack([tile.pixels for _, tile, _ in self._waiting])
        valid = np.stack([tile.valid for _, tile, _ in self._waiting])
        means = block_means(pixels, valid)
        quality = assess(pixels, valid)
        hashes = perceptual_hash(means).view(np.int64)
        for place, (facts, tile, mask) in enumerate(self._waiting):
            facts |= {
                "xxh3": content_hash(tile.pixels),
                "phash": int(hashes[place]),
                "valid_fraction": float(quality.valid_fraction[place]),
                "information": float(quality.information[place]),
                "low_information": bool(quality.low_information[place]),
            }
            if mask is not None and self._masks is not None:
                facts["label"] = majority(mask, tile.valid, self._masks.classes)
            self._rows.append(facts)
        self._write("image", pixels)
        self._write("valid", np.packbits(valid.reshape(len(valid), -1), axis=1))
        self._write("signature", signature(means))
        self._write("moments", moments(pixels, valid))
        if self._masks:
            self._write("mask", np.stack([mask for _, _, mask in self._waiting if mask is not None]))
        self._waiting.clear()

    def _write(self, name: str, values: np.ndarray) -> None:
        if name not in self._files:
            self._files[name] = open(self._folder / f"{name}.raw", "wb")
        self._sizes[name] = values[0].nbytes
        self._files[name].write(np.ascontiguousarray(values).data)


def read_raw(folder: Path, name: str, dtype: Any, shape: Sequence[int]) -> np.ndarray:
    """Map one raw file of a finished task.

    Args:
        folder: The task's folder.
        name: `image` (native), `valid` (packed bits), `mask` (uint8), `signature` (float16) or `moments` (float64).
        dtype: Type of its numbers.
        shape: Of one tile.

    Returns:
        `(n, *shape)`, read-only.
    """
    file = folder / f"{name}.raw"
    if not file.exists() or file.stat().st_size == 0:
        return np.empty((0, *shape), dtype)
    return np.memmap(file, dtype, mode="r").reshape(-1, *shape)


SIGNATURE = (GRID * GRID,)
"""Shape of a staged signature."""


def moments(pixels: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Mean and sum of squared deviations of each band over a tile's valid pixels.

    Args:
        pixels: `(n, C, H, W)`.
        valid: `(n, H, W)` bool.

    Returns:
        `(n, C, 2)` float64; zeros where a tile has no valid pixel.
    """
    result = np.zeros((*pixels.shape[:2], 2))
    for place in range(len(pixels)):
        values = pixels[place].reshape(pixels.shape[1], -1)
        if not valid[place].all():
            values = values[:, valid[place].reshape(-1)]
        if values.shape[1]:
            values = values.astype(np.float64)
            mean = values.mean(1)
            values -= mean[:, None]
            result[place, :, 0] = mean
            result[place, :, 1] = np.square(values, out=values).sum(1)
    return result


@lru_cache(maxsize=1)
def _masks(folder: str) -> Masks:
    return Masks(folder)


def _part(labels: np.ndarray, tile: Tile, size: int) -> np.ndarray:
    mask = np.full((size, size), IGNORE, np.uint8)
    inside = labels[tile.row : tile.row + size, tile.col : tile.col + size]
    mask[: inside.shape[0], : inside.shape[1]] = inside
    return mask


def _scene_facts(scene: Scene, source: Source, plan: Plan) -> dict[str, Any]:
    epsg = scene.crs.to_epsg() if scene.crs else None
    return {
        "size": plan.tile,
        "source": scene.uri,
        "height": plan.tile,
        "width": plan.tile,
        "epsg": epsg,
        "crs_wkt": scene.crs.to_wkt() if scene.crs and epsg is None else None,
        "time": scene.time,
        "gsd": scene.gsd,
        "licence": plan.licence or scene.licence,
        "attribution": plan.attribution,
        "split": source.split,
        "label": source.label,
    }


def _tile_facts(scene: Scene, tile: Tile, size: int) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "row": tile.row,
        "col": tile.col,
        "transform": list(tile.transform)[:6] if tile.transform else None,
    }
    outline = scene.footprint(Window(tile.col, tile.row, size, size)) if scene.crs else None
    if outline is not None:
        box = dict(zip(("xmin", "ymin", "xmax", "ymax"), outline.bounds, strict=True))
        facts |= {"geometry": shapely.to_wkb(outline, byte_order=1), "bbox": box}
    return facts
