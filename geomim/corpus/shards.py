"""Arrays of tiles on disk: zarr v3, a chunk a tile, many tiles a shard, written shard by shard side by side.

Any zarr library reads what is written here, and `geomim.corpus.reader` reads it at the speed of a copy.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c  # what zarr-python itself checks shard indices with
import numpy as np

from geomim.corpus.compression import CODECS, zarr_python
from geomim.corpus.remote import Place, aside
from geomim.errors import ConfigError, CorpusError, nearest

SHARD_BYTES = 64 * 2**20
"""Aimed size of a shard file; large enough for object stores, small enough to copy again."""
_LEAST_TILES = 64  # of a shard
MISSING = np.uint64(2**64 - 1)
"""Offset and size of a chunk that is not stored, as the zarr v3 specification says."""
COMPLETE = "every_shard_exists"
"""Attribute of arrays written here: a shard that is missing is a loss, not fill values."""


@dataclass(frozen=True)
class ArrayLayout:
    """How an array `(N, *tile)` lies in its shard files.

    Attributes:
        shape: `(N, *tile)`.
        dtype: Name of the native dtype; bytes are little-endian.
        fill: What a tile reads as that is not stored.
        per_shard: Tiles a shard.
        compression: None, `lz4` (blosc, bytes shuffled) or `zstd`, of each tile for itself.
    """

    shape: tuple[int, ...]
    dtype: str
    fill: Any
    per_shard: int
    compression: str | None = None

    @property
    def tile(self) -> tuple[int, ...]:
        """Shape of a tile."""
        return self.shape[1:]

    @property
    def tile_bytes(self) -> int:
        """Size of a tile in bytes, not compressed."""
        return int(np.prod(self.tile)) * np.dtype(self.dtype).itemsize

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.shape[0] // self.per_shard)

    def slots(self, number: int) -> range:
        """Places on the first axis that lie in one shard."""
        return range(number * self.per_shard, min((number + 1) * self.per_shard, self.shape[0]))

    def file(self, number: int) -> str:
        """Name of a shard below the array's folder."""
        return "/".join(["c", str(number), *("0" for _ in self.tile)])


def whole_shard(tile_bytes: int) -> int:
    """How many tiles of so many bytes a shard of a large corpus holds: about `SHARD_BYTES`."""
    return max(_LEAST_TILES, SHARD_BYTES // max(tile_bytes, 1))


def tiles_per_shard(shape: Sequence[int], dtype: Any) -> int:
    """How many tiles a shard of an array `(N, *tile)` holds: about `SHARD_BYTES`, and no more than there are."""
    size = int(np.prod(shape[1:]) * np.dtype(dtype).itemsize)
    return max(_LEAST_TILES, min(whole_shard(size), int(shape[0])))


def create_array(
    path: Path,
    shape: Sequence[int],
    dtype: Any,
    names: Sequence[str],
    fill: Any = 0,
    compression: str | None = None,
    per_shard: int | None = None,
) -> ArrayLayout:
    """Describe an array in its `zarr.json`; its shards are then written one by one, in any order, side by side.

    Args:
        path: Folder of the array. One that describes the same array already is left as it is.
        shape: `(N, *tile)`.
        dtype: Of the numbers; stored as little-endian bytes.
        names: Dimension names, which xarray reads.
        fill: What a tile reads as that is not stored.
        compression: None, `lz4` or `zstd`.
        per_shard: Tiles a shard; `tiles_per_shard` where None. Arrays that share their slots must share it, or
            corpora cannot be merged shard by shard.

    Raises:
        ConfigError: There is no such compression.
    """
    if compression not in (None, *CODECS):
        raise ConfigError(f"unknown compression '{compression}'{nearest(str(compression), CODECS)}")
    count = per_shard or tiles_per_shard(shape, dtype)
    layout = ArrayLayout(tuple(map(int, shape)), np.dtype(dtype).name, fill, count, compression)
    memory: dict[str, Any] = {}
    zarr = zarr_python()
    zarr.create_array(
        zarr.storage.MemoryStore(memory),
        shape=layout.shape,
        chunks=(1, *layout.tile),
        shards=(layout.per_shard, *layout.tile),
        dtype=layout.dtype,
        compressors=CODECS[compression].for_zarr(np.dtype(dtype).itemsize) if compression else None,
        filters=None,
        fill_value=fill,
        dimension_names=list(names),
        attributes={COMPLETE: True},
    )
    text = memory["zarr.json"].to_bytes()
    file = path / "zarr.json"
    if not file.exists() or file.read_bytes() != text:
        with aside(file) as out:
            out.write(text)
    return layout


def missing_shards(path: Path, layout: ArrayLayout) -> list[int]:
    """Numbers of the shards that are still to be written."""
    return [number for number in range(layout.shards) if not (path / layout.file(number)).exists()]


def write_shard(path: Path, layout: ArrayLayout, number: int, tiles: Iterable[np.ndarray | None]) -> None:
    """Write one shard aside and rename it; the same tiles give the same bytes.

    Args:
        path: Folder of the array.
        layout: From `create_array`.
        number: Of the shard.
        tiles: One for each of `layout.slots(number)`, shaped like a tile; None for one that is all `fill`.

    Raises:
        CorpusError: The disk is full.
    """
    little = np.dtype(layout.dtype).newbyteorder("<")
    encode = CODECS[layout.compression].encode if layout.compression else None
    index = np.full((layout.per_shard, 2), MISSING, "<u8")
    slots, count = layout.slots(number), 0
    with aside(path / layout.file(number)) as file:
        for count, tile in enumerate(tiles, start=1):
            if tile is None:
                continue
            if tile.shape != layout.tile:
                raise ValueError(f"'{path}': expected tiles of {layout.tile}, given {tile.shape}")
            raw = np.ascontiguousarray(tile, little)
            data = encode(raw) if encode else raw.data
            index[count - 1] = file.tell(), len(data) if encode else raw.nbytes
            file.write(data)
        if count != len(slots):
            raise ValueError(f"'{path}': shard {number} holds {len(slots)} tiles, given {count}")
        file.write(_checked(index))


def copy_runs(path: Path, layout: ArrayLayout, number: int, runs: Iterable[tuple[Path, int, int]]) -> None:
    """Write one shard from tiles that lie in files as the very bytes, without looking at them.

    Args:
        path: Folder of the array, not compressed.
        layout: From `create_array`.
        number: Of the shard.
        runs: File, first byte and number of bytes of consecutive tiles, in the order of the slots; together all
            tiles of the shard.

    Raises:
        CorpusError: A file is shorter than said, or the disk is full.
    """
    if layout.compression:
        raise ValueError(f"'{path}' is compressed: its tiles cannot be copied as they are")
    count, size = len(layout.slots(number)), layout.tile_bytes
    with aside(path / layout.file(number)) as target:
        for source, start, length in runs:
            _copy(source, start, length, target)
        if target.tell() != count * size:
            raise ValueError(f"'{path}': shard {number} has {count * size} bytes, given {target.tell()}")
        target.write(full_index(count, size, layout.per_shard))


def link_shard(path: Path, layout: ArrayLayout, number: int, file: Path) -> None:
    """Take a file over as a shard without reading it; nothing happens where the shard is there.

    Both names then lead to the same bytes, so neither may be written to; where a file system knows no second names,
    the bytes are copied.

    Args:
        path: Folder of the array.
        layout: From `create_array`.
        number: Of the shard.
        file: Holds the tiles and the index of a shard (`full_index`), byte for byte.

    Raises:
        CorpusError: The disk is full.
    """
    target = path / layout.file(number)
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, target)
    except OSError:
        with aside(target) as out:
            _copy(file, 0, file.stat().st_size, out)


def _copy(source: Path, start: int, length: int, target: BinaryIO) -> None:
    """Append a part of a file to another: by the kernel, or through a buffer where it cannot."""
    target.flush()
    by_kernel = hasattr(os, "copy_file_range")
    with open(source, "rb", buffering=0) as file:
        while length:
            if by_kernel:
                try:
                    done = os.copy_file_range(file.fileno(), target.fileno(), length, start)
                except OSError:  # between file systems, or one that cannot; a full disk fails below as well
                    by_kernel = False
                    continue
            else:
                file.seek(start)
                done = os.write(target.fileno(), file.read(min(length, 2**20)))
            if done == 0:
                raise CorpusError(f"'{source}' is cut off: remove it and run the build again")
            start, length = start + done, length - done
    target.seek(0, os.SEEK_END)


def full_index(count: int, tile_bytes: int, per_shard: int | None = None) -> bytes:
    """The end of a shard whose `count` tiles lie one behind the other, not compressed.

    Args:
        count: Tiles that are there.
        tile_bytes: Of each.
        per_shard: Tiles that there is room for; `count` where None.
    """
    index = np.full((per_shard or count, 2), MISSING, "<u8")
    index[:count, 0] = np.arange(count) * tile_bytes
    index[:count, 1] = tile_bytes
    return _checked(index)


def _checked(index: np.ndarray) -> bytes:
    raw = index.tobytes()
    return raw + google_crc32c.value(raw).to_bytes(4, "little")


def write_groups(path: Path) -> None:
    """Write the groups of `tiles.zarr` above its arrays, with all that they hold, so that one file opens all.

    Args:
        path: The folder `tiles.zarr`, with the arrays in a folder for each tile size.
    """
    zarr = zarr_python()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr says that v3 does not specify this yet; xarray warns where it is missing
        for group in (*sorted(part for part in path.iterdir() if part.is_dir()), path):
            if not (group / "zarr.json").exists():
                zarr.create_group(str(group), zarr_format=3)
            zarr.consolidate_metadata(str(group))


def read_meta(path: Place) -> dict[str, Any]:
    """What the `zarr.json` of an array says.

    Raises:
        CorpusError: It is missing or damaged.
    """
    try:
        meta: dict[str, Any] = json.loads((path / "zarr.json").read_text())
        np.dtype(meta["data_type"]), tuple(meta["shape"])
        return meta
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorpusError(f"'{path}' is no zarr v3 array ({error}): build the corpus again") from error


def find_layout(meta: dict[str, Any]) -> ArrayLayout | None:
    """The layout where it is one that is written here, else None."""
    try:
        (codec,) = meta["codecs"]
        inner = codec["configuration"]
        shape, shard = meta["shape"], meta["chunk_grid"]["configuration"]["chunk_shape"]
        (bytes_, *packed) = inner["codecs"]
        keys = meta["chunk_key_encoding"]
        known = (
            codec["name"] == "sharding_indexed"
            and meta["chunk_grid"]["name"] == "regular"
            and keys["name"] == "default"
            and keys.get("configuration", {}).get("separator", "/") == "/"
            and bytes_["name"] == "bytes"
            and bytes_.get("configuration", {}).get("endian", "little") == "little"
            and [c["name"] for c in inner["index_codecs"]] == ["bytes", "crc32c"]
            and inner.get("index_location", "end") == "end"
            and inner["chunk_shape"] == [1, *shape[1:]]
            and shard[1:] == shape[1:]
        )
        packing = [name for codec in packed for name in CODECS if CODECS[name].name == codec["name"]]
        if not known or len(packed) > 1 or len(packing) != len(packed):
            return None
        return ArrayLayout(tuple(shape), meta["data_type"], meta.get("fill_value", 0), int(shard[0]), *packing)
    except (KeyError, TypeError, ValueError):
        return None
