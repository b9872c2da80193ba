"""Scenes to staged tiles, many processes at once: what each worker of a build does, whole or not at all.

A task writes its tiles into a folder aside and renames it when it is done, so a build that was stopped goes on with
the tasks that are missing.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from geomim.corpus.duplicates.blocks import block_hashes
from geomim.corpus.duplicates.fingerprint import block_means, content_hash, perceptual_hash, signature
from geomim.corpus.labels import majority, open_masks
from geomim.corpus.lock import source_hash
from geomim.corpus.pipeline.facts import FACTS, outlines, scene_facts, tile_facts
from geomim.corpus.pipeline.plan import Plan, Task
from geomim.corpus.pipeline.raw import ImageFiles, RawFile
from geomim.corpus.pipeline.shuffle import stage_folder
from geomim.corpus.quality import assess
from geomim.corpus.scenes import Scene
from geomim.corpus.slicing import Tile, slice_scene
from geomim.corpus.statistics import moments
from geomim.corpus.store import IGNORE, SKIPPED
from geomim.errors import GeomimError, InputError

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
        ("taken_off", pa.int64()),
        ("notes", pa.list_(pa.string())),
    ]
)
"""A row a source that was cut; `xxh3` is null where the file is remote; `classes` are those of its own mask;
`taken_off` is what its numbers lost to mean the same as others'; `notes` say what was guessed or lost."""

_QUALITY = ("valid_fraction", "saturated_fraction", "information", "low_information")
_CORNERS = 32  # block hashes of a tile up to 256 px; larger ones get more, as their area is
_BATCH_BYTES = 16 * 2**20  # pixels that are fingerprinted at once


def cut(plan: Plan, task: Task, folder: Path) -> None:
    """Cut the sources of a task into tiles and stage them in a folder, which appears when it is whole.

    A scene that fails half-way leaves no tile behind; it is listed in `skipped.parquet`.
    """
    part = stage_folder(folder)
    skipped, hashes = [], []
    first = task.first_id
    with Staging(plan, part) as staging:
        for source in task.sources.table.to_pylist():
            mark = len(staging)
            try:
                if not source["tiles"]:
                    raise InputError(f"'{source['uri']}' is smaller than a tile, and --edge drop leaves nothing of it")
                with plan.open(source["uri"], source["card"]) as scene:
                    staging.add_scene(scene, source, first)
                    if len(staging) - mark != source["tiles"]:
                        raise InputError(f"'{source['uri']}' changed while the corpus was built: run the build again")
                    classes = list(scene.annotations.classes) if scene.annotations else []
                facts = {"classes": classes, "taken_off": scene.taken_off or None, "notes": list(scene.notes) or None}
                size, digest = source_hash(source["uri"]) or (-1, None)
                hashes.append(source | facts | {"bytes": size, "xxh3": digest})
            except GeomimError as error:
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
        folder: Receives the raw files (see `raw`), `tiles.parquet` and `blocks.parquet`.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan = plan
        self._folder = folder
        self._masks = open_masks(plan.masks) if plan.masks else None
        self._waiting: list[tuple[dict[str, Any], Tile, np.ndarray | None]] = []
        self._waiting_bytes = 0
        self._tiles = FACTS.empty_table()  # those that are written
        self._blocks = [BLOCKS.empty_table()]
        self._files: dict[str, RawFile | ImageFiles] = {}
        self._counts: Counter[int] = Counter()  # tiles of each size that are written
        self._masked: Counter[int] = Counter()  # those of them that have a mask

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, *_: Any) -> None:
        for file in self._files.values():
            file.close()

    def __len__(self) -> int:
        return len(self._tiles) + len(self._waiting)

    def roll_back(self, count: int) -> None:
        """Forget all tiles but the first `count`."""
        if count >= len(self._tiles):
            del self._waiting[count - len(self._tiles) :]
            return
        self._waiting.clear()
        self._waiting_bytes = 0
        self._tiles = self._tiles.slice(0, count)
        self._counts = Counter(self._tiles["size"].to_pylist())
        self._masked = Counter(self._tiles.filter(self._tiles["mask_place"].is_valid())["size"].to_pylist())
        blocks = pa.concat_tables(self._blocks)
        self._blocks = [blocks.filter(pc.is_in(blocks["id"], self._tiles["id"]))]
        for name, file in self._files.items():
            kind, _, size = name.partition("-")
            places = {"signature": count, "mask": self._masked[int(size or 0)]}
            file.truncate(places.get(kind, self._counts[int(size or 0)]))

    def add_scene(self, scene: Scene, source: dict[str, Any], first_id: int) -> None:
        """Take all tiles of an open scene.

        Raises:
            InputError: It cannot be read to its end; `roll_back` then removes what was taken.
        """
        labels = self._labels(scene)
        shared = scene_facts(scene, source)
        tiles = zip(slice_scene(scene, self._plan.grid), outlines(scene, self._plan.grid), strict=True)
        for number, (tile, outline) in enumerate(tiles):
            facts = shared | tile_facts(scene, tile) | outline | {"id": first_id + number}
            if self._waiting and not _alike(self._waiting[0][1], tile):
                self._flush()
            self._waiting.append((facts, tile, None if labels is None else _part(labels, tile)))
            self._waiting_bytes += tile.pixels.nbytes
            if self._waiting_bytes >= _BATCH_BYTES:
                self._flush()

    def _labels(self, scene: Scene) -> np.ndarray | None:
        if self._masks:
            return self._masks.read(scene.uri, scene.height, scene.width, scene.grid)
        return scene.annotations.mask if scene.annotations else None

    def finish(self) -> None:
        """Write what waits, and the facts of all tiles."""
        self._flush()
        pq.write_table(self._tiles, self._folder / "tiles.parquet", compression="zstd")
        if self._plan.crops:
            pq.write_table(pa.concat_tables(self._blocks), self._folder / "blocks.parquet")

    def _flush(self) -> None:
        if not self._waiting:
            return
        size = self._waiting[0][1].size
        pixels = np.stack([tile.pixels for _, tile, _ in self._waiting])
        valid = np.stack([tile.valid for _, tile, _ in self._waiting])
        means = block_means(pixels, valid)
        rows = self._rows(pixels, valid, means)
        masks = [mask for _, _, mask in self._waiting if mask is not None]
        self._take_blocks(rows)
        self._write(f"image-{size}", pixels)
        self._write(f"valid-{size}", np.packbits(valid.reshape(len(valid), -1), axis=1))
        self._write("signature", signature(means))
        if masks:
            self._write(f"mask-{size}", np.stack(masks))
        self._tiles = pa.concat_tables([self._tiles, pa.Table.from_pylist(rows, FACTS)])
        self._masked[size] += len(masks)
        self._counts[size] += len(pixels)
        self._waiting.clear()
        self._waiting_bytes = 0

    def _rows(self, pixels: np.ndarray, valid: np.ndarray, means: np.ndarray) -> list[dict[str, Any]]:
        """Facts of the tiles that wait: hashes, quality and moments beside those that came with them."""
        clouds = [tile.clouds for _, tile, _ in self._waiting]
        known = None if any(cloud is None for cloud in clouds) else np.stack([c for c in clouds if c is not None])
        quality = assess(pixels, valid, known)
        hashes = perceptual_hash(means).view(np.int64)
        mean, squares, counts = moments(pixels, valid)
        size = self._waiting[0][1].size
        masked = self._masked[size]
        rows = []
        for place, (facts, tile, mask) in enumerate(self._waiting):
            row = facts | {name: getattr(quality, name)[place].item() for name in _QUALITY}
            row |= {
                "xxh3": content_hash(tile.pixels),
                "phash": int(hashes[place]),
                "cloud_fraction": None if np.isnan(cloud := quality.cloud_fraction[place]) else float(cloud),
                "beside": content_hash(tile.valid),
                "place": self._counts[size] + place,
                "pixels": int(counts[place]),
                "mean": mean[place].tolist(),
                "squares": squares[place].tolist(),
            }
            if mask is not None:
                row |= {"beside": row["beside"] + content_hash(mask), "mask_place": masked}
                masked += 1
                if self._masks is not None:
                    row["label"] = majority(mask, tile.valid, self._masks.classes)
            rows.append(row)
        return rows

    def _take_blocks(self, rows: list[dict[str, Any]]) -> None:
        """Block hashes of the tiles that wait, but of those that footprints compare and those that hold nothing."""
        for row, (_, tile, _) in zip(rows, self._waiting, strict=True):
            placed = row.get("geometry") is not None and row["time"] is not None
            if not self._plan.crops or placed or row["low_information"]:
                continue
            self._blocks.append(blocks_of(row["id"], tile.pixels, tile.valid))

    def _write(self, name: str, values: np.ndarray) -> None:
        if name not in self._files:
            kind, _, size = name.partition("-")
            images, record = kind == "image", values[0].nbytes
            file = self._folder / f"{name}.raw"
            self._files[name] = ImageFiles(self._folder, int(size), record) if images else RawFile(file, record)
        self._files[name].append(values)


def blocks_of(number: int, pixels: np.ndarray, valid: np.ndarray) -> pa.Table:
    """Rows of `BLOCKS` of one tile: `(C, H, W)` and `(H, W)` bool."""
    size = len(valid)
    hashes, xy = block_hashes(grey(pixels), valid, int(_CORNERS * max(1.0, (size / 256) ** 2)))
    columns = [np.full(len(xy), number, np.int64), np.full(len(xy), size, np.int32), hashes, xy[:, 0], xy[:, 1]]
    return pa.Table.from_arrays(columns, schema=BLOCKS)


def grey(pixels: np.ndarray) -> np.ndarray:
    """Mean of the bands, `(C, H, W)` to `(H, W)` float32: what block hashes are taken of."""
    return pixels.mean(0, dtype=np.float32)


def _alike(one: Tile, two: Tile) -> bool:
    """Whether two tiles may be in one batch: of one size, and clouds known of both or of none."""
    return one.size == two.size and (one.clouds is None) == (two.clouds is None)


def _part(labels: np.ndarray, tile: Tile) -> np.ndarray:
    mask = np.full((tile.size, tile.size), IGNORE, np.uint8)
    inside = labels[tile.row : tile.row + tile.size, tile.col : tile.col + tile.size]
    mask[: inside.shape[0], : inside.shape[1]] = inside
    return mask
